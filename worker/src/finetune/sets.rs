//! The features of a job's training and validation rows: those that an earlier run left on the job's volume, else computed.

use crate::cache::{Cache, Key};
use crate::config::{AugmentRule, Job};
use crate::data::{DataSet, Part, Row};
use crate::engine::Graph;
use crate::error::Result;
use crate::features::{extract, targets, variants, with_variants};
use crate::pipeline::Preparer;
use crate::progress::Tracker;
use crate::train::{Set, matrix};

/// The sets for training and validation; `frozen` is the part that gives the features, and their name.
pub fn of(
    job: &Job,
    (graph, name): (&Graph, &str),
    preparer: &Preparer,
    data: &DataSet,
    cache: Option<&Cache>,
    tracker: &Tracker,
) -> Result<(Set, Set)> {
    // The test rows are not looked at here: `validate` reads them, once.
    let rows = |part| data.part(part).collect::<Vec<&Row>>();
    let (train, validation) = (rows(Part::Train), rows(Part::Validation));
    let augment = job.train.augment.as_ref();
    let total = train.len() * (1 + variants(augment)) + validation.len();
    tracker.stage("features", total as u64);
    let set = |rows: &[&Row], augment: Option<&AugmentRule>| -> Result<Set> {
        let all = with_variants(rows, augment);
        let varied = augment.map(|rule| (rule, job.train.seed));
        let compute = || extract(graph, preparer, rows, varied, tracker);
        let features = match cache {
            Some(cache) => {
                let key = Key::of((job, preparer), &["features", name], (data, rows), augment)?;
                let form = (all.len(), graph.outputs() * 4);
                cache.rows(&key, form, (numbers, |row| bytes(row)), tracker, compute)?
            }
            None => compute()?,
        };
        Ok(Set {
            x: matrix(features, graph.outputs())?,
            y: targets(&all)?,
        })
    };
    Ok((set(&train, augment)?, set(&validation, None)?))
}

fn numbers(bytes: &[u8]) -> Option<Vec<f32>> {
    let (words, rest) = bytes.as_chunks();
    rest.is_empty()
        .then(|| words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|v| v.to_le_bytes()).collect()
}
