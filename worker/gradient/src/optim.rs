//! Optimizers: what a step of training does to the weights. All are element by element, so threads change nothing. The
//! formulas are written for one weight w with gradient g, learning rate η and weight decay λ; λ counts as 0 for
//! parameters that do not decay.

use crate::params::{Param, same_bits};
use rayon::prelude::*;

/// Values that one task works on.
const CHUNK: usize = 1 << 14;

/// Share by which `Bound` is generous.
const SLACK: f64 = 1e-5;

/// Which optimizer, with all of its numbers but the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Stochastic gradient descent with momentum μ (Sutskever et al. 2013, in PyTorch's form):
    /// m ← μ m + g + λ w; w ← w − η m, or with Nesterov's look-ahead w ← w − η (g + λ w + μ m).
    Sgd {
        /// μ, from 0 to below 1.
        momentum: f64,
        /// Whether to look ahead.
        nesterov: bool,
        /// λ, as an L2 penalty.
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba 2015, algorithm 1), the penalty λ w being part of g:
    /// m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²; w ← w − η (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε).
    Adam(Adam),
    /// AdamW (Loshchilov and Hutter 2019, algorithm 2 in PyTorch's form): the same with the decay apart from the
    /// gradient, w ← (1 − η λ) w first.
    AdamW(Adam),
}

/// The numbers of Adam.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// β₁, from 0 to below 1.
    pub beta1: f64,
    /// β₂, from 0 to below 1.
    pub beta2: f64,
    /// ε, above 0.
    pub epsilon: f64,
    /// λ.
    pub weight_decay: f64,
}

impl Default for Adam {
    /// The values that the paper's algorithm 1 names, without decay.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

impl Rule {
    /// How many numbers the optimizer remembers for each weight: 0, 1 (m) or 2 (m and v).
    pub fn moments(&self) -> usize {
        match self {
            Self::Sgd { momentum, .. } => usize::from(*momentum != 0.0),
            Self::Adam(_) | Self::AdamW(_) => 2,
        }
    }
}

/// What an optimizer remembers: for each moment, one row of values a parameter, and how many steps it took.
#[derive(Clone, Debug)]
pub struct State {
    /// Steps taken.
    pub steps: u64,
    /// `moments[i][p]` belongs to parameter p: m, then v.
    pub moments: Vec<Vec<Vec<f32>>>,
}

/// Equal to the last bit.
impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.steps == other.steps
            && self.moments.len() == other.moments.len()
            && self.moments.iter().flatten().count() == other.moments.iter().flatten().count()
            && self
                .moments
                .iter()
                .flatten()
                .zip(other.moments.iter().flatten())
                .all(|(a, b)| same_bits(a, b))
    }
}

impl State {
    /// Nothing remembered yet.
    pub fn new(rule: &Rule, params: &[Param]) -> Self {
        let zeros = || params.iter().map(|p| vec![0.0; p.values().len()]).collect();
        Self {
            steps: 0,
            moments: (0..rule.moments()).map(|_| zeros()).collect(),
        }
    }

    /// Moves the parameters by one step. `gradients` has one row of values a parameter, each to be multiplied with `scale`
    /// first (which is how a clipped gradient comes in). Returns the largest magnitude among the new weights; it is
    /// infinite or NaN if one of them is.
    pub fn step(
        &mut self,
        rule: &Rule,
        learning_rate: f64,
        scale: f64,
        params: &mut [Param],
        gradients: &[&[f32]],
    ) -> f32 {
        self.steps += 1;
        let kernel = Kernel::new(rule, learning_rate, scale, self.steps);
        let moments = self.moments.len();
        let (first, rest) = self.moments.split_at_mut(moments.min(1));
        let mut first = first.iter_mut().flatten();
        let mut second = rest.iter_mut().flatten();
        let mut largest = 0;
        for (param, gradient) in params.iter_mut().zip(gradients) {
            let kernel = if param.decays { kernel } else { kernel.without_decay() };
            let m = first.next().map_or(&mut [][..], Vec::as_mut_slice);
            let v = second.next().map_or(&mut [][..], Vec::as_mut_slice);
            largest = largest.max(kernel.apply(param.values_mut(), gradient, m, v));
        }
        f32::from_bits(largest)
    }
}

/// A rule with everything computed that is the same for all weights of a step, in f64, then rounded once.
#[derive(Clone, Copy)]
enum Kernel {
    Sgd {
        scale: f32,
        rate: f32,
        decay: f32,
        momentum: f32,
        nesterov: bool,
    },
    Adam {
        scale: f32,
        /// η / (1 − β₁ᵗ).
        rate: f32,
        /// 1 / √(1 − β₂ᵗ).
        correction: f32,
        beta1: [f32; 2],
        beta2: [f32; 2],
        epsilon: f32,
        /// λ inside the gradient (Adam).
        penalty: f32,
        /// 1 − η λ (AdamW).
        shrink: f32,
    },
}

impl Kernel {
    fn new(rule: &Rule, learning_rate: f64, scale: f64, t: u64) -> Self {
        let adam = |a: &Adam, penalty: f64, shrink: f64| Self::Adam {
            scale: scale as f32,
            rate: (learning_rate / (1.0 - libm::pow(a.beta1, t as f64))) as f32,
            correction: (1.0 / libm::sqrt(1.0 - libm::pow(a.beta2, t as f64))) as f32,
            beta1: [a.beta1 as f32, (1.0 - a.beta1) as f32],
            beta2: [a.beta2 as f32, (1.0 - a.beta2) as f32],
            epsilon: a.epsilon as f32,
            penalty: penalty as f32,
            shrink: shrink as f32,
        };
        match rule {
            Rule::Sgd {
                momentum,
                nesterov,
                weight_decay,
            } => Self::Sgd {
                scale: scale as f32,
                rate: learning_rate as f32,
                decay: *weight_decay as f32,
                momentum: *momentum as f32,
                nesterov: *nesterov,
            },
            Rule::Adam(a) => adam(a, a.weight_decay, 1.0),
            Rule::AdamW(a) => adam(a, 0.0, 1.0 - learning_rate * a.weight_decay),
        }
    }

    fn without_decay(self) -> Self {
        let mut kernel = self;
        match &mut kernel {
            Self::Sgd { decay, .. } => *decay = 0.0,
            Self::Adam { penalty, shrink, .. } => (*penalty, *shrink) = (0.0, 1.0),
        }
        kernel
    }

    /// Moves one tensor; `m` and `v` are as long as `w`, or empty where the rule has none. Returns the bits of the largest
    /// magnitude among the new weights.
    fn apply(self, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) -> u32 {
        let one = w.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK));
        match (m.is_empty(), v.is_empty()) {
            (true, _) => one.map(|(w, g)| self.chunk(w, g, &mut [], &mut [])).max(),
            (false, true) => one
                .zip(m.par_chunks_mut(CHUNK))
                .map(|((w, g), m)| self.chunk(w, g, m, &mut []))
                .max(),
            (false, false) => one
                .zip(m.par_chunks_mut(CHUNK))
                .zip(v.par_chunks_mut(CHUNK))
                .map(|(((w, g), m), v)| self.chunk(w, g, m, v))
                .max(),
        }
        .unwrap_or(0)
    }

    fn chunk(self, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) -> u32 {
        let mut largest = 0;
        match self {
            Self::Sgd {
                scale,
                rate,
                decay,
                momentum,
                nesterov,
            } => {
                if m.is_empty() {
                    for (w, g) in w.iter_mut().zip(g) {
                        *w -= rate * (scale * g + decay * *w);
                        largest = largest.max(magnitude(*w));
                    }
                    return largest;
                }
                for ((w, g), m) in w.iter_mut().zip(g).zip(m) {
                    let g = scale * g + decay * *w;
                    *m = momentum * *m + g;
                    let d = if nesterov { g + momentum * *m } else { *m };
                    *w -= rate * d;
                    largest = largest.max(magnitude(*w));
                }
            }
            Self::Adam {
                scale,
                rate,
                correction,
                beta1,
                beta2,
                epsilon,
                penalty,
                shrink,
            } => {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    let g = scale * g + penalty * *w;
                    *m = beta1[0] * *m + beta1[1] * g;
                    *v = beta2[0] * *v + beta2[1] * g * g;
                    *w = shrink * *w - rate * *m / (v.sqrt() * correction + epsilon);
                    largest = largest.max(magnitude(*w));
                }
            }
        }
        largest
    }
}

/// The bits of |w|: among them infinity and NaN are the largest, which a comparison of floats would lose.
fn magnitude(w: f32) -> u32 {
    w.abs().to_bits()
}

/// No new weight has a larger magnitude than this, given what came before: the check that spares a copy of the state in
/// each step. It follows the formulas above with each term at its largest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// Largest magnitude of a weight.
    pub weight: f64,
    /// Largest magnitude of m.
    pub moment: f64,
}

impl Bound {
    /// What holds for a state that is given.
    pub(crate) fn of(params: &[Param], state: &State) -> Self {
        let largest = |values: &[f32]| values.iter().map(|v| magnitude(*v)).max().unwrap_or(0);
        let weight = params.iter().map(|p| largest(p.values())).max().unwrap_or(0);
        let moment = state.moments.first().into_iter().flatten().map(|m| largest(m)).max();
        Self {
            weight: f64::from(f32::from_bits(weight)),
            moment: f64::from(f32::from_bits(moment.unwrap_or(0))),
        }
    }

    /// What holds after step `t`, counted from 1, with gradients of norm at most `norm`. The optimizer's arithmetic in f32
    /// is off by less than the share `SLACK`.
    pub(crate) fn after(self, rule: &Rule, learning_rate: f64, norm: f64, t: u64) -> Self {
        let (w, m) = (self.weight, self.moment);
        let (weight, moment) = match rule {
            Rule::Sgd {
                momentum, weight_decay, ..
            } => {
                let g = norm + weight_decay * w;
                let m = momentum * m + g;
                (w + learning_rate * (g + m), m)
            }
            Rule::Adam(a) | Rule::AdamW(a) => {
                let m = a.beta1 * m + (1.0 - a.beta1) * (norm + a.weight_decay * w);
                let shrink = 1.0 + learning_rate * a.weight_decay;
                let rate = learning_rate / (1.0 - libm::pow(a.beta1, t as f64));
                (shrink * w + rate * m / a.epsilon, m)
            }
        };
        Self {
            weight: weight * (1.0 + SLACK),
            moment: moment * (1.0 + SLACK),
        }
    }
}

#[cfg(test)]
mod tests;
