//! A job's labelled samples: read safely, listed in a manifest, split, and checked before anything is trained. The same
//! code runs in `finetune` and `validate`, so that both see the same rows. It runs no model.

pub mod checks;
pub mod files;
pub mod images;
pub mod jsonl;
pub mod manifest;
pub mod rows;
pub mod series;
pub mod split;
pub mod table;
pub mod texts;

pub use checks::Checks;
pub use files::FileRef;

use crate::config::Job;
use crate::error::{DATA_EMPTY, DATA_FORMAT, Result, WorkerError};
use crate::progress::Tracker;
use fleetune_crds::common::Digest;
use fleetune_crds::{Format, Task};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Most classes of a Classification.
const MAX_CLASSES: usize = 10_000;

/// A part of the rows.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// Trains.
    Train,
    /// Picks the best epoch.
    Validation,
    /// Is read once, by `validate`.
    Test,
}

impl Part {
    /// All parts, in order.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The name in columns, reports and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// What a sample holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// An encoded picture in a file.
    File(FileRef),
    /// A window, channel after channel, all finite.
    Window(Vec<f32>),
    /// A text, not empty.
    Text(String),
}

/// What a sample should be answered with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Index of the label.
    Class(usize),
    /// Value in the target's unit.
    Value(f64),
}

/// A sample that may be used.
#[derive(Clone, Debug)]
pub struct Row {
    /// Names it within the data set.
    pub key: String,
    /// Its part.
    pub part: Part,
    /// Its answer.
    pub target: Target,
    /// What the model sees.
    pub content: Content,
}

/// A sample before it is known whether it may be used.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Names it within the data set.
    pub key: String,
    /// Its label or target as written.
    pub label: String,
    /// Its group, where a column names one.
    pub group: Option<String>,
    /// Its time, where a column names one.
    pub time: Option<f64>,
    /// Its part, where it is known already.
    pub part: Option<Part>,
    /// What the model sees.
    pub content: Content,
    /// SHA-256 of what the model sees.
    pub hash: [u8; 32],
    /// Equal for samples that look the same.
    pub fingerprint: checks::Fingerprint,
}

/// A sample that cannot be used, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Bad {
    /// Where it lies.
    pub key: String,
    /// [`crate::error::MISSING_VALUES`] or [`crate::error::UNREADABLE_SAMPLES`].
    pub reason: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// What a reader found.
#[derive(Debug, Default)]
pub struct Found {
    /// Samples.
    pub drafts: Vec<Draft>,
    /// Samples that cannot be used.
    pub bad: Vec<Bad>,
    /// What was left out on purpose, by cause.
    pub left_out: std::collections::BTreeMap<&'static str, usize>,
}

/// A data set, ready to use.
#[derive(Debug)]
pub struct DataSet {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// The labels in the order of the model's outputs; empty for a Regression.
    pub labels: Vec<String>,
    /// The rows, in a fixed order.
    pub rows: Vec<Row>,
    /// What was found while reading.
    pub checks: Checks,
}

impl DataSet {
    /// The rows of a part.
    pub fn part(&self, part: Part) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.part == part)
    }
}

/// Reads the data set at `path` (a file or folder on this machine).
pub fn load(job: &Job, path: &Path, tracker: &Tracker) -> Result<DataSet> {
    let table = matches!(job.format, Format::Rows | Format::Series);
    let files = if table {
        files::single(path, job.max_data_bytes())?
    } else {
        files::list(path, job.max_data_bytes())?
    };
    let listed = manifest::digest(&files)?;
    tracker.stage("data", files.len() as u64);
    let found = match job.format {
        Format::ClassFolders => images::class_folders(&files, tracker)?,
        Format::Manifest => images::manifest(&files, job, tracker)?,
        Format::Rows if job.spec.input.text.is_some() => texts::read(path, job)?,
        Format::Rows => rows::read(path, job)?,
        Format::Series => series::read(path, job)?,
    };
    finish(job, listed, found)
}

/// From what a reader found to a data set: bad samples against their bound, split, labels, checks.
pub fn finish(job: &Job, manifest: Digest, mut found: Found) -> Result<DataSet> {
    if found.drafts.is_empty() && found.bad.is_empty() {
        let hint: Vec<String> = found.left_out.iter().map(|(why, n)| format!("{n} {why}")).collect();
        return Err(WorkerError::bad(
            DATA_EMPTY,
            format!(
                "the data set holds no samples of format {:?} (left out: {}): add some, or name the right format",
                job.format,
                if hint.is_empty() {
                    "nothing".to_owned()
                } else {
                    hint.join(", ")
                }
            ),
        ));
    }
    checks::bad_samples(&found, job.spec.dataset.requirements.max_bad_fraction.get())?;
    split::assign(&mut found.drafts, &job.split)?;
    let labels = match job.spec.task {
        Task::Classification => labels(&found.drafts)?,
        Task::Regression => Vec::new(),
    };
    let checks = Checks::of(&found, &labels);
    let mut rows = Vec::with_capacity(found.drafts.len());
    for draft in found.drafts {
        rows.push(Row {
            target: target(&draft, &labels)?,
            part: draft.part.unwrap_or(Part::Train),
            key: draft.key,
            content: draft.content,
        });
    }
    checks.requirements(job.spec.task, job.spec.dataset.requirements.min_per_class)?;
    Ok(DataSet {
        manifest,
        labels,
        rows,
        checks,
    })
}

fn labels(drafts: &[Draft]) -> Result<Vec<String>> {
    let set: std::collections::BTreeSet<&str> = drafts.iter().map(|d| d.label.as_str()).collect();
    if set.len() == 1 {
        return Err(WorkerError::bad(
            crate::error::ONE_CLASS,
            format!(
                "every sample has the label {:?}: a Classification needs two classes or more; add samples of others",
                set.first().copied().unwrap_or_default()
            ),
        ));
    }
    if set.len() > MAX_CLASSES {
        return Err(WorkerError::bad(
            DATA_FORMAT,
            format!(
                "{} different labels, at most {MAX_CLASSES} are taken: is this a Regression?",
                set.len()
            ),
        ));
    }
    Ok(set.into_iter().map(ToOwned::to_owned).collect())
}

fn target(draft: &Draft, labels: &[String]) -> Result<Target> {
    if labels.is_empty() {
        return match draft.label.trim().parse::<f64>() {
            // Beyond single precision no version could answer it.
            Ok(value) if value.is_finite() && (value as f32).is_infinite() => Err(WorkerError::bad(
                DATA_FORMAT,
                format!(
                    "{}: the target {value:e} is out of range, at most {:e} either way: give it in another unit",
                    draft.key,
                    f32::MAX
                ),
            )),
            Ok(value) if value.is_finite() => Ok(Target::Value(value)),
            _ => Err(WorkerError::bad(
                DATA_FORMAT,
                format!("{}: the target {:?} is not a finite number", draft.key, draft.label),
            )),
        };
    }
    labels
        .binary_search(&draft.label)
        .map(Target::Class)
        .map_err(|_| WorkerError::bad(crate::error::INTERNAL, format!("label {:?} is in no list", draft.label)))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
