//! Runs a graph over many rows: a plan shared by all cores, results by index, so that the number of threads changes
//! nothing. Pictures and windows go one at a time; texts of the same length go together, so that nothing is padded.

use crate::config::AugmentRule;
use crate::data::{Content, Row, Target};
use crate::engine::Graph;
use crate::error::{INTERNAL, NOT_FINITE, Result, WorkerError};
use crate::pipeline::{MAX_ENCODED_BYTES, Prepared, Preparer, Raw};
use crate::progress::Tracker;
use crate::train::Targets;
use crate::tune::vary;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The tensors of a row.
pub fn prepare(preparer: &Preparer, row: &Row) -> Result<Prepared> {
    match &row.content {
        Content::File(file) => preparer.prepare(Raw::Image(&file.read(MAX_ENCODED_BYTES as u64)?)),
        Content::Window(values) => preparer.prepare(Raw::Window(values)),
        Content::Text(text) => preparer.prepare(Raw::Text(text)),
    }
    .map_err(|e| e.at(&row.key))
}

/// The features of some rows and of the kept variants that `augment` asks for, in the order of [`with_variants`].
pub fn extract(
    graph: &Graph,
    preparer: &Preparer,
    rows: &[&Row],
    augment: Option<(&AugmentRule, u64)>,
    tracker: &Tracker,
) -> Result<Vec<Vec<f32>>> {
    let all = with_variants(rows, augment.map(|(rule, _)| rule));
    let one = |(i, row): (usize, &&Row)| -> Result<Vec<f32>> {
        let mut sample = prepare(preparer, row)?;
        let (copy, number) = ((i / rows.len()) as u32, (i % rows.len()) as u32);
        if let Some((rule, seed)) = augment.filter(|_| copy > 0) {
            sample = vary(rule, seed, copy, number, sample);
        }
        let features = graph.run(&sample)?;
        tracker.add(1);
        finite(features, row)
    };
    if graph.rows() > 1 {
        return together(graph, preparer, &all, tracker);
    }
    let each: Vec<Result<Vec<f32>>> = all.par_iter().enumerate().map(one).collect();
    each.into_iter().collect()
}

/// The rows and their kept variants: variant c of row r is at c · rows + r, and variant 0 is the row itself.
pub fn with_variants<'a>(rows: &[&'a Row], augment: Option<&AugmentRule>) -> Vec<&'a Row> {
    let all = rows.len() * (1 + variants(augment));
    rows.iter().copied().cycle().take(all).collect()
}

/// Variants of each row that are kept beside it.
pub fn variants(augment: Option<&AugmentRule>) -> usize {
    augment.and_then(|rule| rule.copies).unwrap_or(0)
}

fn finite(features: Vec<f32>, row: &Row) -> Result<Vec<f32>> {
    if features.iter().all(|v| v.is_finite()) {
        Ok(features)
    } else {
        Err(WorkerError::bad(
            NOT_FINITE,
            format!("{}: the base model gives values that are not finite", row.key),
        ))
    }
}

/// Features of texts, as many at a time as the plan takes, all of one length. Which texts go together follows from the
/// rows alone: the last bits of a text's features depend on its place among them, and must not depend on the threads.
fn together(graph: &Graph, preparer: &Preparer, rows: &[&Row], tracker: &Tracker) -> Result<Vec<Vec<f32>>> {
    let texts: Vec<Result<Prepared>> = rows.par_iter().map(|row| prepare(preparer, row)).collect();
    let texts: Vec<Prepared> = texts.into_iter().collect::<Result<_>>()?;
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, text) in texts.iter().enumerate() {
        by_length.entry(text.used()).or_default().push(i);
    }
    // The longest first: what is left for the end, when some cores have nothing to do any more, is short.
    let groups: Vec<&[usize]> = by_length
        .values()
        .rev()
        .flat_map(|list| list.chunks(graph.rows()))
        .collect();
    let run = |group: &&[usize]| -> Result<Vec<Vec<f32>>> {
        let texts: Vec<&Prepared> = group.iter().map(|i| &texts[*i]).collect();
        let features = graph.run_rows(&texts)?;
        tracker.add(group.len() as u64);
        let checked = group.iter().zip(features).map(|(i, own)| finite(own, rows[*i]));
        checked.collect()
    };
    let results: Vec<Result<Vec<Vec<f32>>>> = groups.par_iter().map(run).collect();
    let mut features = vec![Vec::new(); rows.len()];
    for (group, result) in groups.iter().zip(results) {
        for (i, own) in group.iter().zip(result?) {
            features[*i] = own;
        }
    }
    Ok(features)
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
