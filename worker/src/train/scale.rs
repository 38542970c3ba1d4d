//! Standardisation with the statistics of the training rows, in a form that can be folded into the exported graph.

use super::Targets;
use ndarray::{Array1, Array2};

/// Deviations below this share of the mean are rounding, not information.
const CONSTANT: f64 = 1e-7;

/// `(x - mean) * factor`, column by column.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Means, in the precision in which the graph subtracts them.
    pub mean: Array1<f32>,
    /// 1 / deviation; 0 for a column that is constant, which therefore cannot speak up on new data.
    pub factor: Array1<f64>,
}

impl Scale {
    /// The statistics of the columns of `x`.
    pub fn of(x: &Array2<f32>) -> Self {
        let n = x.nrows().max(1) as f64;
        let mut sum = vec![0.0f64; x.ncols()];
        for row in x.rows() {
            for (s, v) in sum.iter_mut().zip(row) {
                *s += f64::from(*v);
            }
        }
        let mean: Vec<f32> = sum.iter().map(|s| (s / n) as f32).collect();
        let mut squares = vec![0.0f64; x.ncols()];
        for row in x.rows() {
            for ((s, v), m) in squares.iter_mut().zip(row).zip(&mean) {
                let d = f64::from(*v) - f64::from(*m);
                *s += d * d;
            }
        }
        let factor = squares
            .iter()
            .zip(&mean)
            .map(|(s, m)| {
                let std = (s / n).sqrt();
                if std > CONSTANT * f64::from(m.abs()) && std > f64::from(f32::MIN_POSITIVE) {
                    1.0 / std
                } else {
                    0.0
                }
            })
            .collect();
        Self {
            mean: Array1::from_vec(mean),
            factor,
        }
    }

    /// The standardised rows.
    pub fn apply(&self, x: &Array2<f32>) -> Array2<f32> {
        let mut z = x.clone();
        for mut row in z.rows_mut() {
            for ((v, m), f) in row.iter_mut().zip(&self.mean).zip(&self.factor) {
                *v = ((f64::from(*v) - f64::from(*m)) * f) as f32;
            }
        }
        z
    }
}

/// Mean and deviation of a Regression's targets; 0 and 1 for classes.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetScale {
    /// The mean.
    pub mean: f64,
    /// The deviation; 1 where it is 0.
    pub std: f64,
}

impl TargetScale {
    /// The statistics of `y`.
    pub fn of(y: &Targets) -> Self {
        let Targets::Values(values) = y else {
            return Self { mean: 0.0, std: 1.0 };
        };
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
        Self {
            mean,
            std: if std > 0.0 { std } else { 1.0 },
        }
    }
}
