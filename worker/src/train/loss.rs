//! Losses from logits, with their gradients, and what logits answer. Pure.

use super::Targets;
use super::scale::TargetScale;
use fleetune_crds::Loss;
use ndarray::Array2;

/// The mean loss of some rows, each counted with its weight, and its gradient by the logits. `rows` are the places of
/// the logits' rows in `y`.
pub fn of_rows(
    kind: Loss,
    logits: &Array2<f64>,
    y: &Targets,
    rows: &[usize],
    weights: &[f64],
    target: &TargetScale,
) -> (f64, Array2<f64>) {
    let n = rows.len().max(1) as f64;
    let mut gradient = Array2::zeros(logits.raw_dim());
    let mut total = 0.0;
    for (i, (row, weight)) in rows.iter().zip(weights).enumerate() {
        let z = logits.row(i);
        let mut g = gradient.row_mut(i);
        let z = z.to_vec();
        let out = g.as_slice_mut().unwrap_or_default();
        let loss = match (kind, y) {
            (Loss::CrossEntropy, Targets::Classes(classes)) => cross_entropy(&z, classes[*row], out),
            (Loss::BinaryCrossEntropy, Targets::Classes(classes)) => binary_cross_entropy(&z, classes[*row], out),
            (Loss::MeanSquaredError, Targets::Values(values)) => {
                squared_error(&z, (values[*row] - target.mean) / target.std, out)
            }
            // A loss and targets of different tasks: refused with the job, long before.
            _ => f64::NAN,
        };
        total += weight * loss;
        for v in out {
            *v *= weight / n;
        }
    }
    (total / n, gradient)
}

/// Negative log-likelihood of the softmax: logsumexp(z) - z\[class\].
fn cross_entropy(z: &[f64], class: usize, gradient: &mut [f64]) -> f64 {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|v| (v - max).exp()).sum();
    for (i, (g, v)) in gradient.iter_mut().zip(z).enumerate() {
        *g = (v - max).exp() / sum - f64::from(u8::from(i == class));
    }
    max + sum.ln() - z[class]
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

fn squared_error(z: &[f64], want: f64, gradient: &mut [f64]) -> f64 {
    let mut total = 0.0;
    for (g, v) in gradient.iter_mut().zip(z) {
        total += (v - want) * (v - want);
        *g = 2.0 * (v - want);
    }
    total
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
        Loss::MeanSquaredError => z.iter().map(|v| v * target.std + target.mean).collect(),
    }
}
