//! Runs a graph over many rows: one batch of one at a time, a plan shared by all cores, results by index, so that the
//! number of threads changes nothing.

use crate::config::AugmentRule;
use crate::data::{Content, Row, Target};
use crate::engine::Graph;
use crate::error::{INTERNAL, NOT_FINITE, Result, WorkerError};
use crate::pipeline::{MAX_ENCODED_BYTES, Pipeline, Prepared, Raw};
use crate::progress::Tracker;
use crate::train::{Set, Targets, matrix};
use crate::tune::vary;
use rayon::prelude::*;

/// The tensor of a row.
pub fn prepare(pipeline: &Pipeline, row: &Row) -> Result<Prepared> {
    match &row.content {
        Content::File(file) => pipeline.prepare(Raw::Image(&file.read(MAX_ENCODED_BYTES as u64)?)),
        Content::Window(values) => pipeline.prepare(Raw::Window(values)),
    }
    .map_err(|e| e.at(&row.key))
}

/// The features and targets of some rows and of the kept variants that `augment` asks for: those of variant c of row r
/// are at c · rows + r, and variant 0 is the row itself.
pub fn extract(
    graph: &Graph,
    pipeline: &Pipeline,
    rows: &[&Row],
    augment: Option<(&AugmentRule, u64)>,
    tracker: &Tracker,
) -> Result<Set> {
    let copies = variants(augment.map(|(rule, _)| rule));
    let all: Vec<&Row> = rows.iter().copied().cycle().take(rows.len() * (1 + copies)).collect();
    let features: Vec<Result<Vec<f32>>> = all
        .par_iter()
        .enumerate()
        .map(|(i, row)| {
            let mut prepared = prepare(pipeline, row)?;
            let (copy, number) = ((i / rows.len()) as u32, (i % rows.len()) as u32);
            if let Some((rule, seed)) = augment.filter(|_| copy > 0) {
                prepared = vary(rule, seed, copy, number, prepared);
            }
            let features = graph.run(&prepared)?;
            tracker.add(1);
            if features.iter().all(|v| v.is_finite()) {
                Ok(features)
            } else {
                Err(WorkerError::bad(
                    NOT_FINITE,
                    format!("{}: the base model gives values that are not finite", row.key),
                ))
            }
        })
        .collect();
    Ok(Set {
        x: matrix(features.into_iter().collect::<Result<_>>()?, graph.outputs())?,
        y: targets(&all)?,
    })
}

/// Variants of each row that are kept beside it.
pub fn variants(augment: Option<&AugmentRule>) -> usize {
    augment.and_then(|rule| rule.copies).unwrap_or(0)
}

/// Calls `f` for every row on all cores; results are in the order of the rows, and so is the first error.
pub fn each<T: Send>(rows: &[&Row], tracker: &Tracker, f: impl Fn(&Row) -> Result<T> + Sync) -> Result<Vec<T>> {
    let results: Vec<Result<T>> = rows
        .par_iter()
        .map(|row| {
            let result = f(row);
            tracker.add(1);
            result
        })
        .collect();
    results.into_iter().collect()
}

/// The targets of some rows of one task.
pub fn targets(rows: &[&Row]) -> Result<Targets> {
    let mixed = || WorkerError::bad(INTERNAL, "rows of two tasks");
    if let Some(Row {
        target: Target::Class(_),
        ..
    }) = rows.first()
    {
        let classes = rows.iter().map(|r| match r.target {
            Target::Class(c) => Ok(c),
            Target::Value(_) => Err(mixed()),
        });
        return Ok(Targets::Classes(classes.collect::<Result<_>>()?));
    }
    let values = rows.iter().map(|r| match r.target {
        Target::Value(v) => Ok(v),
        Target::Class(_) => Err(mixed()),
    });
    Ok(Targets::Values(values.collect::<Result<_>>()?))
}
