//! Losses from logits, with their gradients, and what logits answer. Pure.

use super::Targets;
use super::scale::TargetScale;
use crate::config::TrainRule;
use fleetune_crds::Loss;
use ndarray::Array2;

/// A loss with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kind {
    /// Which.
    pub loss: Loss,
    /// Where Huber's loss turns from a square to a line, in standard deviations of the target.
    pub delta: f64,
    /// Share of the truth that CrossEntropy spreads evenly over all classes.
    pub smoothing: f64,
}

impl From<Loss> for Kind {
    fn from(loss: Loss) -> Self {
        Self {
            loss,
            delta: 1.0,
            smoothing: 0.0,
        }
    }
}

impl From<&TrainRule> for Kind {
    fn from(rule: &TrainRule) -> Self {
        Self {
            loss: rule.loss,
            delta: rule.huber_delta,
            smoothing: rule.label_smoothing,
        }
    }
}

/// The mean loss of some rows, each counted with its weight, and its gradient by the logits. `rows` are the places of
/// the logits' rows in `y`.
pub fn of_rows(
    kind: impl Into<Kind>,
    logits: &Array2<f64>,
    y: &Targets,
    rows: &[usize],
    weights: &[f64],
    target: &TargetScale,
) -> (f64, Array2<f64>) {
    let Kind { loss, delta, smoothing } = kind.into();
    let n = rows.len().max(1) as f64;
    let mut gradient = Array2::zeros(logits.raw_dim());
    let mut total = 0.0;
    for (i, (row, weight)) in rows.iter().zip(weights).enumerate() {
        let z = logits.row(i);
        let mut g = gradient.row_mut(i);
        let z = z.to_vec();
        let out = g.as_slice_mut().unwrap_or_default();
        let value = match y {
            Targets::Classes(classes) => of_class(loss, &z, classes[*row], smoothing, out),
            Targets::Values(values) => of_value(loss, &z, (values[*row] - target.mean) / target.std, delta, out),
        };
        total += weight * value;
        for v in out {
            *v *= weight / n;
        }
    }
    (total / n, gradient)
}

/// A loss and targets of different tasks were refused with the job, long before.
fn of_class(loss: Loss, z: &[f64], class: usize, smoothing: f64, gradient: &mut [f64]) -> f64 {
    match loss {
        Loss::CrossEntropy => cross_entropy(z, class, smoothing, gradient),
        Loss::BinaryCrossEntropy => binary_cross_entropy(z, class, gradient),
        Loss::MeanSquaredError | Loss::MeanAbsoluteError | Loss::Huber => f64::NAN,
    }
}

fn of_value(loss: Loss, z: &[f64], want: f64, delta: f64, gradient: &mut [f64]) -> f64 {
    let residual = |f: fn(f64, f64) -> (f64, f64), gradient: &mut [f64]| {
        let mut total = 0.0;
        for (g, v) in gradient.iter_mut().zip(z) {
            let (value, slope) = f(v - want, delta);
            total += value;
            *g = slope;
        }
        total
    };
    match loss {
        Loss::MeanSquaredError => residual(|r, _| (r * r, 2.0 * r), gradient),
        Loss::MeanAbsoluteError => residual(|r, _| (r.abs(), if r == 0.0 { 0.0 } else { r.signum() }), gradient),
        Loss::Huber => residual(huber, gradient),
        Loss::CrossEntropy | Loss::BinaryCrossEntropy => f64::NAN,
    }
}

/// r²/2 for |r| <= delta, else delta (|r| - delta/2) (Huber 1964), with its slope.
fn huber(r: f64, delta: f64) -> (f64, f64) {
    if r.abs() <= delta {
        (r * r / 2.0, r)
    } else {
        (delta * (r.abs() - delta / 2.0), delta * r.signum())
    }
}

/// Negative log-likelihood of the softmax: logsumexp(z) - Σ t z, where the truth t is 1 at the class, or with smoothing s
/// s/k everywhere and 1 - s more there (Szegedy et al. 2016).
fn cross_entropy(z: &[f64], class: usize, smoothing: f64, gradient: &mut [f64]) -> f64 {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|v| (v - max).exp()).sum();
    let even = smoothing / z.len() as f64;
    let mut hit = 0.0;
    for (i, (g, v)) in gradient.iter_mut().zip(z).enumerate() {
        let truth = even + (1.0 - smoothing) * f64::from(u8::from(i == class));
        *g = (v - max).exp() / sum - truth;
        hit += truth * v;
    }
    max + sum.ln() - hit
}

/// Mean over classes of softplus(z) - y z, in the form that overflows nowhere.
fn binary_cross_entropy(z: &[f64], class: usize, gradient: &mut [f64]) -> f64 {
    let k = z.len() as f64;
    let mut total = 0.0;
    for (i, (g, v)) in gradient.iter_mut().zip(z).enumerate() {
        let y = f64::from(u8::from(i == class));
        total += v.max(0.0) - v * y + (-v.abs()).exp().ln_1p();
        *g = (sigmoid(*v) - y) / k;
    }
    total / k
}

/// 1 / (1 + exp(-x)), without overflow.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// What logits answer: probabilities, or one value in the target's unit.
pub fn answer(kind: Loss, z: &[f64], target: &TargetScale) -> Vec<f64> {
    match kind {
        Loss::CrossEntropy => {
            let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = z.iter().map(|v| (v - max).exp()).sum();
            z.iter().map(|v| (v - max).exp() / sum).collect()
        }
        Loss::BinaryCrossEntropy => z.iter().map(|v| sigmoid(*v)).collect(),
        Loss::MeanSquaredError | Loss::MeanAbsoluteError | Loss::Huber => {
            z.iter().map(|v| v * target.std + target.mean).collect()
        }
    }
}
