//! Tables with one row a text.

use super::rows::bad_time;
use super::split::of_name;
use super::table::{Roles, Table, column, seconds};
use super::{Bad, Content, Draft, Found, checks};
use crate::config::Job;
use crate::error::{MISSING_VALUES, Result, UNREADABLE_SAMPLES};
use crate::pipeline::MAX_TEXT_BYTES;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Reads the table at `path`.
pub fn read(path: &Path, job: &Job) -> Result<Found> {
    let columns = &job.spec.dataset.columns;
    let table = Table::open_path(path)?;
    let roles = Roles::find(columns, table.columns())?;
    let text = column(table.columns(), &columns.text, "text")?;
    let mut found = Found::default();
    table.for_each(|number, cells| {
        let key = format!("row {number}");
        let (label, text) = (cells[roles.label].trim(), cells[text]);
        let wrong = if label.is_empty() {
            Some((MISSING_VALUES, "no label".to_owned()))
        } else if text.trim().is_empty() {
            Some((MISSING_VALUES, "no text".to_owned()))
        } else if text.len() > MAX_TEXT_BYTES {
            let why = format!("its text has {} bytes, at most {MAX_TEXT_BYTES} are read", text.len());
            Some((UNREADABLE_SAMPLES, why))
        } else {
            None
        };
        if let Some((reason, why)) = wrong {
            found.bad.push(Bad { key, reason, why });
            return Ok(());
        }
        let time = match roles.time {
            Some(i) => Some(seconds(cells[i]).ok_or_else(|| bad_time(&key, cells[i]))?),
            None => None,
        };
        found.drafts.push(Draft {
            label: label.to_owned(),
            group: roles.group.map(|i| cells[i].to_owned()),
            time,
            part: roles.split.and_then(|i| of_name(cells[i])),
            hash: Sha256::digest(text).into(),
            fingerprint: checks::of_text(text),
            content: Content::Text(text.to_owned()),
            key,
        });
        Ok(())
    })?;
    Ok(found)
}
