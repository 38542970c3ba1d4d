//! Metrics of predictions against the truth. Pure. Definitions are those of scikit-learn: the mean over classes is over
//! those that occur in truth or prediction, and a ratio without a denominator is 0.

use super::Targets;
use fleetune_crds::Metric;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was predicted for one class.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClassScore {
    /// Share of the answers with this label that are right.
    pub precision: f64,
    /// Share of the rows of this class that are found.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// Rows of this class.
    pub support: usize,
}

/// Counts of a Classification: `matrix[truth][predicted]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Confusion {
    matrix: BTreeMap<(usize, usize), usize>,
    classes: usize,
    total: usize,
}

impl Confusion {
    /// Counts pairs of truth and prediction.
    pub fn of(truth: &[usize], predicted: &[usize], classes: usize) -> Self {
        let mut matrix = BTreeMap::new();
        for pair in truth.iter().copied().zip(predicted.iter().copied()) {
            *matrix.entry(pair).or_default() += 1;
        }
        Self {
            matrix,
            classes,
            total: truth.len(),
        }
    }

    /// The whole matrix, rows are the truth.
    pub fn rows(&self) -> Vec<Vec<usize>> {
        let get = |t, p| self.matrix.get(&(t, p)).copied().unwrap_or(0);
        (0..self.classes)
            .map(|t| (0..self.classes).map(|p| get(t, p)).collect())
            .collect()
    }

    /// Share of right answers.
    pub fn accuracy(&self) -> f64 {
        let right: usize = self.matrix.iter().filter(|((t, p), _)| t == p).map(|(_, n)| n).sum();
        ratio(right, self.total)
    }

    /// The scores of each class.
    pub fn classes(&self) -> Vec<ClassScore> {
        let (mut truth, mut said, mut right) = (vec![0; self.classes], vec![0; self.classes], vec![0; self.classes]);
        for ((t, p), n) in &self.matrix {
            truth[*t] += n;
            said[*p] += n;
            if t == p {
                right[*t] += n;
            }
        }
        (0..self.classes)
            .map(|c| ClassScore {
                precision: ratio(right[c], said[c]),
                recall: ratio(right[c], truth[c]),
                f1: ratio(2 * right[c], truth[c] + said[c]),
                support: truth[c],
            })
            .collect()
    }

    /// Accuracy and the means over classes.
    pub fn metrics(&self) -> BTreeMap<Metric, f64> {
        let scores = self.classes();
        let mut said = vec![false; self.classes];
        for (t, p) in self.matrix.keys() {
            said[*t] = true;
            said[*p] = true;
        }
        let present: Vec<&ClassScore> = scores.iter().zip(&said).filter(|(_, s)| **s).map(|(c, _)| c).collect();
        let mean = |f: fn(&ClassScore) -> f64| present.iter().map(|c| f(c)).sum::<f64>() / present.len().max(1) as f64;
        BTreeMap::from([
            (Metric::Accuracy, self.accuracy()),
            (Metric::MacroF1, mean(|c| c.f1)),
            (Metric::MacroPrecision, mean(|c| c.precision)),
            (Metric::MacroRecall, mean(|c| c.recall)),
        ])
    }
}

fn ratio(a: usize, b: usize) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// MSE, MAE and R².
pub fn regression(truth: &[f64], predicted: &[f64]) -> BTreeMap<Metric, f64> {
    let n = truth.len().max(1) as f64;
    let mean = truth.iter().sum::<f64>() / n;
    let errors = || truth.iter().zip(predicted).map(|(t, p)| t - p);
    let squares: f64 = errors().map(|e| e * e).sum();
    let spread: f64 = truth.iter().map(|t| (t - mean) * (t - mean)).sum();
    let r2 = if spread > 0.0 {
        1.0 - squares / spread
    } else {
        f64::from(u8::from(squares == 0.0))
    };
    BTreeMap::from([
        (Metric::Mse, squares / n),
        (Metric::Mae, errors().map(f64::abs).sum::<f64>() / n),
        (Metric::R2, r2),
    ])
}

/// The index of the largest value, the first of equals.
pub fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

/// All metrics of a task for answers in the form of a version's output.
pub fn all(answers: &[Vec<f64>], y: &Targets, outputs: usize) -> BTreeMap<Metric, f64> {
    match y {
        Targets::Classes(truth) => {
            let predicted: Vec<usize> = answers.iter().map(|a| argmax(a)).collect();
            Confusion::of(truth, &predicted, outputs).metrics()
        }
        Targets::Values(truth) => {
            let predicted: Vec<f64> = answers.iter().map(|a| a.first().copied().unwrap_or(f64::NAN)).collect();
            regression(truth, &predicted)
        }
    }
}

/// One metric.
pub fn objective(metric: Metric, answers: &[Vec<f64>], y: &Targets, outputs: usize) -> f64 {
    all(answers, y, outputs).get(&metric).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn classification_by_hand() {
        // truth 0 0 0 1 1 2, predicted 0 0 1 1 2 2
        let confusion = Confusion::of(&[0, 0, 0, 1, 1, 2], &[0, 0, 1, 1, 2, 2], 4);
        assert_eq!(confusion.rows()[0], [2, 1, 0, 0]);
        let scores = confusion.classes();
        near(scores[0].precision, 1.0);
        near(scores[0].recall, 2.0 / 3.0);
        near(scores[1].precision, 0.5);
        near(scores[2].recall, 1.0);
        let metrics = confusion.metrics();
        near(metrics[&Metric::Accuracy], 4.0 / 6.0);
        // F1: 0.8, 0.5, 2/3; class 3 occurs nowhere and does not count.
        near(metrics[&Metric::MacroF1], (0.8 + 0.5 + 2.0 / 3.0) / 3.0);
        near(metrics[&Metric::MacroPrecision], (1.0 + 0.5 + 0.5) / 3.0);
        near(metrics[&Metric::MacroRecall], (2.0 / 3.0 + 0.5 + 1.0) / 3.0);
    }

    #[test]
    fn regression_by_hand() {
        let metrics = regression(&[1.0, 2.0, 3.0], &[1.0, 2.0, 5.0]);
        near(metrics[&Metric::Mse], 4.0 / 3.0);
        near(metrics[&Metric::Mae], 2.0 / 3.0);
        near(metrics[&Metric::R2], 1.0 - 4.0 / 2.0);
        near(regression(&[2.0, 2.0], &[2.0, 2.0])[&Metric::R2], 1.0);
        near(regression(&[2.0, 2.0], &[2.0, 3.0])[&Metric::R2], 0.0);
    }
}
