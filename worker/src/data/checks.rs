//! What the data look like before anything is trained: counts per class, unusable samples, duplicates and near-duplicates
//! across parts. It decides which findings end a job; the rest is told in the report. Pure.

use super::{Draft, Found, Part};
use crate::error::{MISSING_VALUES, Result, TOO_FEW_SAMPLES, UNREADABLE_SAMPLES, WorkerError};
use fleetune_crds::Task;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Edge of the grey thumbnail of a picture.
pub const THUMB: u32 = 16;
/// Mean difference of two thumbnails, in 8-bit steps, up to which two pictures count as near-duplicates.
const NEAR_PIXELS: u32 = 2;
/// Most training rows of one fingerprint that a row is compared with.
const MAX_COMPARED: usize = 256;
/// Most rows that are named as examples.
const MAX_EXAMPLES: usize = 10;

/// A coarse picture of a sample: those of near-duplicates are mostly equal.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Fingerprint {
    /// Equal for samples that look alike.
    pub bucket: u64,
    /// Of a picture: its grey thumbnail, by which samples of one bucket are told apart.
    pub thumb: Vec<u8>,
}

/// What was found in the data.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Checks {
    /// Samples that can be used.
    pub samples: usize,
    /// Rows of each part.
    pub parts: BTreeMap<String, usize>,
    /// Rows of each class in train, validation and test.
    pub classes: BTreeMap<String, [usize; 3]>,
    /// Samples with missing values.
    pub missing_values: usize,
    /// Samples that cannot be decoded.
    pub unreadable: usize,
    /// Samples left out on purpose, by cause.
    pub left_out: BTreeMap<String, usize>,
    /// Samples that are byte for byte a copy of an earlier one.
    pub duplicates: usize,
    /// Of those, the ones whose copy lies in another part.
    pub duplicates_across_parts: usize,
    /// Copies whose labels differ.
    pub conflicting_labels: usize,
    /// Validation and test rows that look like a training row.
    pub near_duplicates_across_parts: usize,
    /// Some of the samples above, by name.
    pub examples: Vec<String>,
}

/// Ends the job where more than the share `allowed` of the samples is bad.
pub fn bad_samples(found: &Found, allowed: f64) -> Result<()> {
    let total = found.drafts.len() + found.bad.len();
    let Some(first) = found.bad.first() else {
        return Ok(());
    };
    if found.bad.len() as f64 <= allowed * total as f64 {
        return Ok(());
    }
    let missing = found.bad.iter().filter(|b| b.reason == MISSING_VALUES).count();
    // The larger group gives the reason.
    let reason = if missing * 2 >= found.bad.len() {
        MISSING_VALUES
    } else {
        UNREADABLE_SAMPLES
    };
    let first = found.bad.iter().find(|b| b.reason == reason).unwrap_or(first);
    Err(WorkerError::bad(
        reason,
        format!(
            "{} of {total} samples cannot be used, first {}: {}. Repair or remove them, or raise \
             spec.dataset.requirements.maxBadFraction",
            found.bad.len(),
            first.key,
            first.why
        ),
    ))
}

impl Checks {
    /// Counts over what was found; every draft has its part.
    pub fn of(found: &Found, labels: &[String]) -> Self {
        let mut checks = Self {
            samples: found.drafts.len(),
            missing_values: found.bad.iter().filter(|b| b.reason == MISSING_VALUES).count(),
            unreadable: found.bad.iter().filter(|b| b.reason == UNREADABLE_SAMPLES).count(),
            left_out: found.left_out.iter().map(|(why, n)| ((*why).to_owned(), *n)).collect(),
            ..Self::default()
        };
        for part in Part::ALL {
            checks.parts.insert(part.name().to_owned(), 0);
        }
        for label in labels {
            checks.classes.insert(label.clone(), [0; 3]);
        }
        for draft in &found.drafts {
            let part = part(draft);
            *checks.parts.entry(part.name().to_owned()).or_default() += 1;
            if let Some(class) = checks.classes.get_mut(&draft.label) {
                class[part as usize] += 1;
            }
        }
        for bad in &found.bad {
            checks.example(format!("{}: {}", bad.key, bad.why));
        }
        checks.copies(&found.drafts);
        checks.near_copies(&found.drafts);
        checks
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(text);
        }
    }

    fn copies(&mut self, drafts: &[Draft]) {
        let mut first: HashMap<[u8; 32], &Draft> = HashMap::with_capacity(drafts.len());
        for draft in drafts {
            match first.entry(draft.hash) {
                std::collections::hash_map::Entry::Vacant(slot) => {
                    slot.insert(draft);
                }
                std::collections::hash_map::Entry::Occupied(slot) => {
                    let other = *slot.get();
                    self.duplicates += 1;
                    if part(other) != part(draft) {
                        self.duplicates_across_parts += 1;
                        self.example(format!(
                            "{} ({}) is a copy of {} ({})",
                            draft.key,
                            part(draft).name(),
                            other.key,
                            part(other).name()
                        ));
                    }
                    if other.label != draft.label {
                        self.conflicting_labels += 1;
                        self.example(format!(
                            "{} is {:?}, its copy {} is {:?}",
                            draft.key, draft.label, other.key, other.label
                        ));
                    }
                }
            }
        }
    }

    fn near_copies(&mut self, drafts: &[Draft]) {
        let mut train: HashMap<u64, Vec<&Draft>> = HashMap::new();
        for draft in drafts.iter().filter(|d| part(d) == Part::Train) {
            let bucket = train.entry(draft.fingerprint.bucket).or_default();
            if bucket.len() < MAX_COMPARED {
                bucket.push(draft);
            }
        }
        for draft in drafts.iter().filter(|d| part(d) != Part::Train) {
            let near = train
                .get(&draft.fingerprint.bucket)
                .into_iter()
                .flatten()
                .find(|other| other.hash != draft.hash && alike(&draft.fingerprint, &other.fingerprint));
            if let Some(other) = near {
                self.near_duplicates_across_parts += 1;
                self.example(format!(
                    "{} ({}) looks like {} (train)",
                    draft.key,
                    part(draft).name(),
                    other.key
                ));
            }
        }
    }

    /// Ends the job where a class or a part has too few rows.
    pub fn requirements(&self, task: Task, min_per_class: u32) -> Result<()> {
        let few = |what: String| {
            Err(WorkerError::bad(
                TOO_FEW_SAMPLES,
                format!("{what}: add samples, or lower spec.dataset.requirements.minPerClass"),
            ))
        };
        let min = min_per_class as usize;
        if task == Task::Classification {
            for (label, [train, ..]) in &self.classes {
                if *train < min {
                    return few(format!("class {label:?} has {train} training rows of at least {min}"));
                }
            }
        }
        let train = self.parts.get(Part::Train.name()).copied().unwrap_or(0);
        if train < min {
            return few(format!("{train} training rows of at least {min}"));
        }
        for part in [Part::Validation, Part::Test] {
            if self.parts.get(part.name()).copied().unwrap_or(0) == 0 {
                return Err(WorkerError::bad(
                    TOO_FEW_SAMPLES,
                    format!(
                        "no row falls into {} ({} samples in all): add samples or groups, or change spec.dataset.split",
                        part.name(),
                        self.samples
                    ),
                ));
            }
        }
        Ok(())
    }
}

fn part(draft: &Draft) -> Part {
    draft.part.unwrap_or(Part::Train)
}

fn alike(a: &Fingerprint, b: &Fingerprint) -> bool {
    if a.bucket != b.bucket || a.thumb.len() != b.thumb.len() {
        return false;
    }
    let sum: u32 = a
        .thumb
        .iter()
        .zip(&b.thumb)
        .map(|(x, y)| u32::from(x.abs_diff(*y)))
        .sum();
    sum <= NEAR_PIXELS * a.thumb.len() as u32
}

/// The fingerprint of a picture: the average hash of an 8x8 grid, and a grey thumbnail. It finds copies that were
/// re-encoded or slightly resized; it does not find crops, turns or mirror images.
pub fn of_picture(picture: &image::RgbImage) -> Fingerprint {
    let grey = image::imageops::grayscale(picture);
    let thumb = image::imageops::resize(&grey, THUMB, THUMB, image::imageops::FilterType::Triangle).into_raw();
    let cell = |x: usize, y: usize| -> u32 {
        let at = |dx: usize, dy: usize| u32::from(thumb[(2 * y + dy) * THUMB as usize + 2 * x + dx]);
        at(0, 0) + at(1, 0) + at(0, 1) + at(1, 1)
    };
    let mean: u32 = thumb.iter().map(|v| u32::from(*v)).sum::<u32>() / 64;
    let mut bucket = 0;
    for y in 0..8 {
        for x in 0..8 {
            bucket = bucket << 1 | u64::from(cell(x, y) > mean);
        }
    }
    Fingerprint { bucket, thumb }
}

/// The fingerprint of a text: equal for texts that differ in nothing but case, punctuation and spaces.
pub fn of_text(text: &str) -> Fingerprint {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for word in words(text) {
        hasher.update(word);
        hasher.update([0]);
    }
    let hash = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    Fingerprint {
        bucket: u64::from_le_bytes(first),
        thumb: Vec::new(),
    }
}

/// The words of a text: what lies between characters that are neither letters nor digits, in small letters.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

/// The fingerprint of a window: equal for windows that differ by less than about a hundredth of their range.
pub fn of_window(values: &[f32]) -> Fingerprint {
    use sha2::{Digest, Sha256};
    let (low, high) = values
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let step = ((high - low) / 100.0).max(f32::MIN_POSITIVE);
    let mut hasher = Sha256::new();
    for value in values {
        hasher.update([((value - low) / step).round() as u8]);
    }
    let hash = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    Fingerprint {
        bucket: u64::from_le_bytes(first),
        thumb: Vec::new(),
    }
}
