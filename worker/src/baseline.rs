//! Cheap baselines, fitted on the same training rows and scored on the same test rows: what a model must beat to be worth
//! its bytes. The linear ones use the same trainer as the head, with settings of their own, so that a job cannot weaken
//! what it is measured against.

mod words;

use crate::config::{Job, TrainRule};
use crate::data::{Content, DataSet, Part, Row};
use crate::error::{Result, WorkerError};
use crate::features::{each, targets};
use crate::pipeline::{Kind, MAX_ENCODED_BYTES, decode};
use crate::progress::Tracker;
use crate::train::{self, Fitted, Set, Targets, matrix, metrics};
use fleetune_crds::{Metric, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use words::Words;

/// Edge of the grey picture that the linear baseline sees.
const EDGE: u32 = 32;
/// Learning rates that are tried; the validation rows pick one.
const RATES: [f64; 2] = [0.001, 0.01];
const EPOCHS: u32 = 100;
const BATCH: usize = 32;
const PATIENCE: u32 = 10;

/// A baseline and what it scored on the test rows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// `majority`, `mean`, `linearGrey32`, `linearStatistics` or `linearWords`.
    pub name: String,
    /// What it does, for people.
    pub what: String,
    /// Its metrics by name.
    pub metrics: BTreeMap<String, f64>,
}

impl Baseline {
    /// One of its metrics.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.metrics.get(metric.name()).copied()
    }
}

/// Fits all baselines of a job.
pub fn all(job: &Job, data: &DataSet, tracker: &Tracker) -> Result<Vec<Baseline>> {
    let rows = |part| data.part(part).collect::<Vec<&Row>>();
    let (train, validation, test) = (rows(Part::Train), rows(Part::Validation), rows(Part::Test));
    let outputs = match job.spec.task {
        Task::Classification => data.labels.len(),
        Task::Regression => 1,
    };
    let truth = targets(&test)?;
    let mut all = vec![constant(job, &targets(&train)?, &truth, outputs, data)];
    tracker.stage("baselines", (train.len() + validation.len() + test.len()) as u64);
    let words = Words::of(train.iter().filter_map(|row| match &row.content {
        Content::Text(words) => Some(words.as_str()),
        Content::File(_) | Content::Window(_) => None,
    }));
    let cheap = |rows: &[&Row]| -> Result<Set> {
        let values = each(rows, tracker, |row| simple(job, row, &words))?;
        let width = values.first().map_or(0, Vec::len);
        Ok(Set {
            x: matrix(values, width)?,
            y: targets(rows)?,
        })
    };
    let (train, validation, test) = (cheap(&train)?, cheap(&validation)?, cheap(&test)?);
    let fitted = linear(job, outputs, &train, &validation)?;
    let (name, what) = match Kind::of(&job.spec.input)? {
        Kind::Image(_) => ("linearGrey32", "a linear model on 32x32 grey pixels"),
        Kind::Sensor(_) => (
            "linearStatistics",
            "a linear model on mean, deviation, minimum and maximum of each channel",
        ),
        Kind::Text(_) => (
            "linearWords",
            "a linear model on the 2,048 most frequent words, weighted by tf-idf",
        ),
    };
    all.push(Baseline {
        name: name.to_owned(),
        what: what.to_owned(),
        metrics: named(metrics::all(&fitted.predict(&test.x), &truth, outputs)),
    });
    Ok(all)
}

/// Metrics by their names.
pub fn named(metrics: BTreeMap<Metric, f64>) -> BTreeMap<String, f64> {
    metrics.into_iter().map(|(m, v)| (m.name().to_owned(), v)).collect()
}

/// The best baseline by `metric`, the first of equals.
pub fn best(all: &[Baseline], metric: Metric) -> Option<&Baseline> {
    let mut best: Option<(&Baseline, f64)> = None;
    for baseline in all {
        let Some(value) = baseline.value(metric) else { continue };
        let better = best.is_none_or(|(_, v)| {
            if metric.larger_is_better() {
                value > v
            } else {
                value < v
            }
        });
        if better {
            best = Some((baseline, value));
        }
    }
    best.map(|(b, _)| b)
}

/// The most frequent class, or the mean.
fn constant(job: &Job, train: &Targets, truth: &Targets, outputs: usize, data: &DataSet) -> Baseline {
    let (name, what, answer) = match train {
        Targets::Classes(classes) => {
            let mut counts = vec![0.0; outputs];
            for class in classes {
                counts[*class] += 1.0;
            }
            let most = metrics::argmax(&counts);
            let label = data.labels.get(most).map_or("", String::as_str);
            ("majority", format!("always {label:?}, the most frequent class"), counts)
        }
        Targets::Values(values) => {
            let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
            (
                "mean",
                format!("always {mean:.4}, the mean of the training rows"),
                vec![mean],
            )
        }
    };
    tracing::debug!(task = ?job.spec.task, name, "baseline");
    Baseline {
        name: name.to_owned(),
        what,
        metrics: named(metrics::all(&vec![answer; truth.len()], truth, outputs)),
    }
}

fn linear(job: &Job, outputs: usize, train: &Set, validation: &Set) -> Result<Fitted> {
    let mut best: Option<Fitted> = None;
    for learning_rate in RATES {
        let rule = TrainRule {
            huber_delta: job.train.huber_delta,
            learning_rate,
            epochs: EPOCHS,
            batch_size: BATCH,
            patience: PATIENCE,
            class_weights: job.train.class_weights,
            ..TrainRule::linear(job.train.loss, job.train.seed)
        };
        let fitted = train::fit(&rule, job.objective, outputs, train, validation, |_| {})?;
        let better = best.as_ref().is_none_or(|b| {
            if job.objective.larger_is_better() {
                fitted.best_objective > b.best_objective
            } else {
                fitted.best_objective < b.best_objective
            }
        });
        if better {
            best = Some(fitted);
        }
    }
    best.ok_or_else(|| WorkerError::bad(crate::error::INTERNAL, "no baseline was fitted"))
}

/// What the linear baseline sees of a row.
fn simple(job: &Job, row: &Row, words: &Words) -> Result<Vec<f32>> {
    match &row.content {
        Content::Text(text) => Ok(words.features(text)),
        Content::File(file) => {
            let picture = decode(&file.read(MAX_ENCODED_BYTES as u64)?).map_err(|e| e.at(&row.key))?;
            let grey = image::imageops::grayscale(&picture);
            let small = image::imageops::resize(&grey, EDGE, EDGE, image::imageops::FilterType::Triangle);
            Ok(small.into_raw().into_iter().map(f32::from).collect())
        }
        Content::Window(values) => {
            let samples = job
                .spec
                .input
                .sensor
                .as_ref()
                .map_or(values.len(), |s| s.window as usize);
            Ok(values.chunks(samples).flat_map(statistics).collect())
        }
    }
}

/// Mean, deviation, minimum and maximum of a channel.
fn statistics(channel: &[f32]) -> [f32; 4] {
    let n = channel.len().max(1) as f64;
    let mean = channel.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = channel.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    let min = channel.iter().copied().fold(f32::INFINITY, f32::min);
    let max = channel.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    [mean as f32, variance.sqrt() as f32, min, max]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_by_hand() {
        for (got, want) in statistics(&[1.0, 3.0, 5.0, 7.0])
            .iter()
            .zip([4.0, 5.0f32.sqrt(), 1.0, 7.0])
        {
            assert!((got - want).abs() < 1e-6);
        }
    }

    #[test]
    fn the_best_baseline_depends_on_the_metric() {
        let one = |name: &str, mse: f64, r2: f64| Baseline {
            name: name.to_owned(),
            what: String::new(),
            metrics: BTreeMap::from([("mse".to_owned(), mse), ("r2".to_owned(), r2)]),
        };
        let all = [one("a", 2.0, 0.1), one("b", 1.0, 0.5), one("c", 1.0, 0.4)];
        assert_eq!(best(&all, Metric::Mse).unwrap().name, "b");
        assert_eq!(best(&all, Metric::R2).unwrap().name, "b");
        assert!(best(&all, Metric::Accuracy).is_none());
    }
}
