//! Optimizers: SGD with momentum, Adam, AdamW. The L2 penalty is on weights only, never on biases. Gradients are clipped
//! by their norm, and the learning rate follows the schedule. Pure.

use super::net::{Linear, Net};
use crate::config::TrainRule;
use fleetune_crds::OptimizerName;
use fleetune_gradient::clip;
use fleetune_gradient::schedule::Schedule;
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
    schedule: Schedule,
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
    clip: Option<f64>,
    steps: i32,
    first: Vec<Linear>,
    second: Vec<Linear>,
}

impl State {
    /// A fresh state for `net`, for epochs of `steps` steps.
    pub fn new(rule: &TrainRule, net: &Net, steps: usize) -> Self {
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
            schedule: rule.schedule.over(rule.learning_rate, rule.epochs, steps as u64),
            momentum: rule.momentum,
            nesterov: rule.nesterov,
            weight_decay: rule.weight_decay,
            clip: rule.clip_norm,
            steps: 0,
            first: zeros(),
            second: zeros(),
        }
    }

    /// Moves the weights of `net` by one step.
    pub fn step(&mut self, net: &mut Net, gradients: &[Linear]) -> Moved {
        let learning_rate = self.schedule.at(u64::from(self.steps.unsigned_abs()));
        self.steps = self.steps.saturating_add(1);
        let squares: f64 = gradients
            .iter()
            .flat_map(|g| g.w.iter().chain(&g.b))
            .map(|v| v * v)
            .sum();
        let gradient_norm = squares.sqrt();
        let scale = clip::factor(gradient_norm, self.clip);
        for (i, (layer, gradient)) in net.layers.iter_mut().zip(gradients).enumerate() {
            let one = Step {
                kind: self.kind,
                rate: learning_rate,
                scale,
                momentum: self.momentum,
                nesterov: self.nesterov,
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
        Moved {
            learning_rate,
            gradient_norm,
        }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moved {
    /// The learning rate.
    pub learning_rate: f64,
    /// Norm of all gradients together, before clipping.
    pub gradient_norm: f64,
}

struct Step {
    kind: OptimizerName,
    rate: f64,
    scale: f64,
    momentum: f64,
    nesterov: bool,
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
            .for_each(|w, g, m, v| {
                let g = g * self.scale;
                match self.kind {
                    OptimizerName::Sgd => {
                        let g = g + decay * *w;
                        *m = self.momentum * *m + g;
                        *w -= self.rate * if self.nesterov { g + self.momentum * *m } else { *m };
                    }
                    OptimizerName::Adam => {
                        let g = g + decay * *w;
                        *w -= self.rate * self.adam(g, m, v);
                    }
                    OptimizerName::AdamW => {
                        *w -= self.rate * decay * *w;
                        *w -= self.rate * self.adam(g, m, v);
                    }
                }
            });
    }

    fn adam(&self, g: f64, m: &mut f64, v: &mut f64) -> f64 {
        *m = BETA1 * *m + (1.0 - BETA1) * g;
        *v = BETA2 * *v + (1.0 - BETA2) * g * g;
        (*m / self.correction1) / ((*v / self.correction2).sqrt() + EPSILON)
    }
}
