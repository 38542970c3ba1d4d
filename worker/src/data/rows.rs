//! Tables with one row a window: all value columns, channel after channel.

use super::split::of_name;
use super::table::{Roles, Table, seconds, value};
use super::{Bad, Content, Draft, Found, checks};
use crate::config::Job;
use crate::error::{DATA_FORMAT, INPUT_SHAPE, INVALID_JOB, MISSING_VALUES, Result, WorkerError};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Reads the table at `path`.
pub fn read(path: &Path, job: &Job) -> Result<Found> {
    let Some(sensor) = &job.spec.input.sensor else {
        return Err(WorkerError::bad(INVALID_JOB, "format Rows takes input.sensor"));
    };
    let table = Table::open_path(path)?;
    let roles = Roles::find(&job.spec.dataset.columns, table.columns())?;
    let want = sensor.channels as usize * sensor.window as usize;
    if roles.values.len() != want {
        return Err(WorkerError::bad(
            INPUT_SHAPE,
            format!(
                "the table has {} value columns, input.sensor says {} channels of {} samples = {want}: name the columns in \
                 spec.dataset.columns, or change the window",
                roles.values.len(),
                sensor.channels,
                sensor.window
            ),
        ));
    }
    let names = table.columns().to_vec();
    let mut found = Found::default();
    table.for_each(|number, cells| {
        let key = format!("row {number}");
        let mut missing = |what: String| {
            found.bad.push(Bad {
                key: key.clone(),
                reason: MISSING_VALUES,
                why: what,
            });
        };
        let label = cells[roles.label].trim();
        if label.is_empty() {
            missing("no label".to_owned());
            return Ok(());
        }
        let mut window = Vec::with_capacity(want);
        for column in &roles.values {
            let Some(v) = value(cells[*column]) else {
                let shown: String = cells[*column].chars().take(20).collect();
                missing(format!("column {:?} is {shown:?}, not a finite number", names[*column]));
                return Ok(());
            };
            window.push(v);
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
            hash: hash(&window),
            fingerprint: checks::of_window(&window),
            content: Content::Window(window),
            key,
        });
        Ok(())
    })?;
    Ok(found)
}

/// The error for a time that is neither a number nor RFC 3339.
pub fn bad_time(key: &str, text: &str) -> WorkerError {
    let shown: String = text.chars().take(40).collect();
    WorkerError::bad(
        DATA_FORMAT,
        format!("{key}: the time {shown:?} is neither a number nor RFC 3339"),
    )
}

/// SHA-256 of a window's values.
pub fn hash(window: &[f32]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for v in window {
        hasher.update(v.to_le_bytes());
    }
    hasher.finalize().into()
}
