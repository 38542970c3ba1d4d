//! Pictures: class folders, or a manifest beside the files. Each is decoded once here, so that what cannot be read is
//! known before anything is trained.

use super::files::FileRef;
use super::split::of_name;
use super::table::{Roles, Table, seconds};
use super::{Bad, Content, Draft, Found, checks};
use crate::config::Job;
use crate::error::{
    COLUMN_ABSENT, DATA_FORMAT, DECOMPRESSION_BOMB, MISSING_VALUES, Result, UNREADABLE_SAMPLES, WorkerError,
};
use crate::pipeline::{MAX_ENCODED_BYTES, decode};
use crate::progress::Tracker;
use crate::sources::safe_path;
use rayon::prelude::*;
use std::collections::HashMap;

/// The table of a Manifest data set.
const MANIFEST: &str = "manifest.csv";

/// `CLASS/NAME.png`: a picture's label is the name of its folder.
pub fn class_folders(files: &[FileRef], tracker: &Tracker) -> Result<Found> {
    let mut found = Found::default();
    let mut pictures = Vec::new();
    for file in files {
        tracker.add(1);
        if !is_picture(&file.key) {
            *found
                .left_out
                .entry("files that are no PNG or JPEG by name")
                .or_default() += 1;
            continue;
        }
        match file.key.rsplit('/').nth(1) {
            Some(label) => pictures.push(Sample {
                file,
                label: label.to_owned(),
                group: None,
                time: None,
                part: None,
            }),
            None => *found.left_out.entry("pictures in no class folder").or_default() += 1,
        }
    }
    read(pictures, &mut found)?;
    Ok(found)
}

/// `manifest.csv` beside the pictures: one row a picture.
pub fn manifest(files: &[FileRef], job: &Job, tracker: &Tracker) -> Result<Found> {
    let table = files
        .iter()
        .find(|f| f.key.rsplit('/').next() == Some(MANIFEST))
        .ok_or_else(|| {
            WorkerError::bad(
                DATA_FORMAT,
                format!("format Manifest, but there is no {MANIFEST} beside the files"),
            )
        })?;
    // Paths in the table are relative to its folder.
    let folder = table.key.strip_suffix(MANIFEST).unwrap_or_default();
    let by_key: HashMap<&str, &FileRef> = files.iter().map(|f| (f.key.as_str(), f)).collect();
    let columns = &job.spec.dataset.columns;
    let table = Table::open(table)?;
    let roles = Roles::find(columns, table.columns())?;
    let Some(path) = table.columns().iter().position(|c| *c == columns.path) else {
        return Err(WorkerError::bad(
            COLUMN_ABSENT,
            format!(
                "{MANIFEST} has no column {:?}; it has {:?}",
                columns.path,
                table.columns()
            ),
        ));
    };
    let mut found = Found::default();
    let mut pictures = Vec::new();
    table.for_each(|number, cells| {
        let key = format!("{folder}{}", safe_path(cells[path])?.to_string_lossy());
        let label = cells[roles.label].trim();
        if label.is_empty() {
            found.bad.push(Bad {
                key: format!("{MANIFEST} row {number}"),
                reason: MISSING_VALUES,
                why: "no label".to_owned(),
            });
            return Ok(());
        }
        let Some(file) = by_key.get(key.as_str()) else {
            found.bad.push(Bad {
                reason: UNREADABLE_SAMPLES,
                why: format!("row {number} of {MANIFEST} names it, but it is not there"),
                key,
            });
            return Ok(());
        };
        tracker.add(1);
        pictures.push(Sample {
            file,
            label: label.to_owned(),
            group: roles.group.map(|i| cells[i].to_owned()),
            time: roles.time.and_then(|i| seconds(cells[i])),
            part: roles.split.and_then(|i| of_name(cells[i])),
        });
        Ok(())
    })?;
    pictures.sort_by(|a, b| a.file.key.cmp(&b.file.key));
    read(pictures, &mut found)?;
    Ok(found)
}

struct Sample<'a> {
    file: &'a FileRef,
    label: String,
    group: Option<String>,
    time: Option<f64>,
    part: Option<super::Part>,
}

fn read(pictures: Vec<Sample<'_>>, found: &mut Found) -> Result<()> {
    let results: Vec<Result<Result<Draft, Bad>>> = pictures.into_par_iter().map(draft).collect();
    for result in results {
        match result? {
            Ok(draft) => found.drafts.push(draft),
            Err(bad) => found.bad.push(bad),
        }
    }
    Ok(())
}

/// A picture that cannot be decoded is a bad sample; one that unpacks beyond all bounds ends the job.
fn draft(sample: Sample<'_>) -> Result<Result<Draft, Bad>> {
    let decoded = sample
        .file
        .read(MAX_ENCODED_BYTES as u64)
        .and_then(|bytes| decode(&bytes));
    let picture = match decoded {
        Ok(picture) => picture,
        Err(e) if e.reason() == crate::error::INVALID_SAMPLE => {
            return Ok(Err(Bad {
                key: sample.file.key.clone(),
                reason: UNREADABLE_SAMPLES,
                why: e.message().to_owned(),
            }));
        }
        Err(e) if e.reason() == DECOMPRESSION_BOMB => return Err(e.at(&sample.file.key)),
        Err(e) => return Err(e),
    };
    Ok(Ok(Draft {
        key: sample.file.key.clone(),
        label: sample.label,
        group: sample.group,
        time: sample.time,
        part: sample.part,
        hash: sample.file.sha256,
        fingerprint: checks::of_picture(&picture),
        content: Content::File(sample.file.clone()),
    }))
}

fn is_picture(key: &str) -> bool {
    let ending = key.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    matches!(ending.as_str(), "png" | "jpg" | "jpeg")
}
