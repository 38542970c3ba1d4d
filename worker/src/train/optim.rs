//! Optimizers: SGD with momentum, Adam, AdamW. The L2 penalty is on weights only, never on biases. Pure.

use super::net::{Linear, Net};
use crate::config::TrainRule;
use fleetune_crds::OptimizerName;
use ndarray::{Array, Dimension, Zip};

/// Decay of Adam's mean of gradients (Kingma and Ba 2015).
const BETA1: f64 = 0.9;
/// Decay of Adam's mean of squared gradients.
const BETA2: f64 = 0.999;
/// Keeps Adam from dividing by 0.
const EPSILON: f64 = 1e-8;

/// What an optimizer remembers.
pub struct State {
    kind: OptimizerName,
    learning_rate: f64,
    momentum: f64,
    weight_decay: f64,
    steps: i32,
    first: Vec<Linear>,
    second: Vec<Linear>,
}

impl State {
    /// A fresh state for `net`.
    pub fn new(rule: &TrainRule, net: &Net) -> Self {
        let zeros = || {
            net.layers
                .iter()
                .map(|l| Linear {
                    w: Array::zeros(l.w.raw_dim()),
                    b: Array::zeros(l.b.raw_dim()),
                })
                .collect()
        };
        Self {
            kind: rule.optimizer,
            learning_rate: rule.learning_rate,
            momentum: rule.momentum,
            weight_decay: rule.weight_decay,
            steps: 0,
            first: zeros(),
            second: zeros(),
        }
    }

    /// Moves the weights of `net` by one step.
    pub fn step(&mut self, net: &mut Net, gradients: &[Linear]) {
        self.steps = self.steps.saturating_add(1);
        for (i, (layer, gradient)) in net.layers.iter_mut().zip(gradients).enumerate() {
            let one = Step {
                kind: self.kind,
                rate: self.learning_rate,
                momentum: self.momentum,
                correction1: 1.0 - BETA1.powi(self.steps),
                correction2: 1.0 - BETA2.powi(self.steps),
            };
            let (first, second) = (&mut self.first[i], &mut self.second[i]);
            one.apply(
                &mut layer.w,
                &gradient.w,
                &mut first.w,
                &mut second.w,
                self.weight_decay,
            );
            one.apply(&mut layer.b, &gradient.b, &mut first.b, &mut second.b, 0.0);
        }
    }
}

struct Step {
    kind: OptimizerName,
    rate: f64,
    momentum: f64,
    correction1: f64,
    correction2: f64,
}

impl Step {
    fn apply<D: Dimension>(
        &self,
        w: &mut Array<f64, D>,
        gradient: &Array<f64, D>,
        first: &mut Array<f64, D>,
        second: &mut Array<f64, D>,
        decay: f64,
    ) {
        Zip::from(w)
            .and(gradient)
            .and(first)
            .and(second)
            .for_each(|w, g, m, v| match self.kind {
                OptimizerName::Sgd => {
                    *m = self.momentum * *m + (g + decay * *w);
                    *w -= self.rate * *m;
                }
                OptimizerName::Adam => {
                    let g = g + decay * *w;
                    *w -= self.rate * self.adam(g, m, v);
                }
                OptimizerName::AdamW => {
                    *w -= self.rate * decay * *w;
                    *w -= self.rate * self.adam(*g, m, v);
                }
            });
    }

    fn adam(&self, g: f64, m: &mut f64, v: &mut f64) -> f64 {
        *m = BETA1 * *m + (1.0 - BETA1) * g;
        *v = BETA2 * *v + (1.0 - BETA2) * g * g;
        (*m / self.correction1) / ((*v / self.correction2).sqrt() + EPSILON)
    }
}
