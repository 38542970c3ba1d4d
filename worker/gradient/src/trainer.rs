//! One step of training after the other. A batch is cut into shards of a given size; their gradients are summed in the
//! order of the shards, so the number of threads, and how many shards are in memory at once, change no bit of the result.
//! Nothing is drawn from a generator that remembers: the state of a run is its weights, its optimizer's moments and the
//! number of its next step.

use crate::clip;
use crate::optim::{Bound, Rule, State};
use crate::params::{Param, slice, slice_mut};
use crate::philox::permutation;
use crate::schedule::Schedule;
use crate::slope::Slope;
use rayon::prelude::*;
use std::fmt;
use tract_onnx::prelude::Tensor;

/// A loss, a gradient or a weight of this magnitude is an explosion, as infinity and NaN are: a squared gradient still has
/// room in f32, and no training that works comes near.
pub const EXPLODED: f64 = 1e15;

/// What to train by. The same plan, first weights and data give the same bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Rows of the data set, numbered from 0.
    pub rows: u32,
    /// Rows of a step; the last step of an epoch has what is left.
    pub batch: u32,
    /// Rows of a shard. The last shard of a step is filled up with rows that weigh 0.
    pub shard: u32,
    /// Shards that are worked on at once, at least 1; fewer need less memory and more time.
    pub at_once: usize,
    /// Passes over the rows.
    pub epochs: u32,
    /// Seed of the order of the rows; dropout and augmentation have the same.
    pub seed: u64,
    /// The optimizer.
    pub rule: Rule,
    /// The learning rate.
    pub schedule: Schedule,
    /// Largest norm of all gradients together; larger ones are scaled down to it.
    pub clip: Option<f64>,
    /// How much each row counts, one number a row; all 1 if there are none.
    pub row_weights: Vec<f32>,
}

impl Plan {
    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        u64::from(self.rows.div_ceil(self.batch.max(1)))
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.steps_per_epoch() * u64::from(self.epochs)
    }

    fn check(&self) -> Result<(), PlanError> {
        let weights = self.row_weights.len();
        if self.rows == 0 {
            Err(PlanError::NoRows)
        } else if self.batch == 0 || self.shard == 0 || self.at_once == 0 {
            Err(PlanError::Empty)
        } else if weights != 0 && weights != self.rows as usize {
            Err(PlanError::RowWeights {
                rows: self.rows,
                weights,
            })
        } else if self.steps() > u64::from(u32::MAX) {
            Err(PlanError::TooLong { steps: self.steps() })
        } else {
            Ok(())
        }
    }

    fn row_weight(&self, row: u32) -> f32 {
        self.row_weights.get(row as usize).copied().unwrap_or(1.0)
    }
}

/// A plan that can't be followed.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum PlanError {
    /// No rows.
    #[error("there are no rows to train on")]
    NoRows,
    /// A batch, a shard or the number of shards at once is 0.
    #[error("batch, shard and the number of shards at once are at least 1")]
    Empty,
    /// Not one weight a row.
    #[error("{rows} rows have {weights} weights")]
    RowWeights {
        /// Number of rows.
        rows: u32,
        /// Number of weights.
        weights: usize,
    },
    /// Randomness counts steps in 32 bits.
    #[error("{steps} steps are more than 2^32 - 1")]
    TooLong {
        /// Number of steps.
        steps: u64,
    },
    /// No weights.
    #[error("there is nothing to train: no weight is left")]
    NoWeights,
    /// Weights that are not numbers already.
    #[error("{name} holds values that are not finite")]
    NotFinite {
        /// Name of the tensor.
        name: String,
    },
}

/// The rows of one shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// Number of the step, from 0: with the row and the seed it makes dropout and augmentation.
    pub step: u32,
    /// Rows, as many as the plan's shard has; those that fill up repeat the first.
    pub rows: Vec<u32>,
    /// What the loss of each row is multiplied with: its own weight / rows of the batch, or 0 for one that fills up.
    pub weights: Vec<f32>,
}

/// What a shard gives.
#[derive(Clone, Debug)]
pub struct Gradient {
    /// Σ weight · loss over its rows.
    pub loss: f64,
    /// The derivative of that by each parameter, in their order.
    pub slopes: Vec<Slope>,
}

/// The gradients of some shards, summed.
struct Sum {
    loss: f64,
    tensors: Vec<Tensor>,
}

/// What computes gradients: a model, or a stand-in of a test.
pub trait Gradients: Sync {
    /// What goes wrong.
    type Error: Send;

    /// Loss and gradients of a shard.
    fn of(&self, params: &[Param], shard: &Shard) -> Result<Gradient, Self::Error>;
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Its number, from 0.
    pub step: u64,
    /// Its epoch, from 0.
    pub epoch: u32,
    /// Rows that it saw.
    pub rows: u32,
    /// Loss of the batch before the step: Σ weight · loss / rows.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Norm of all gradients together, before clipping.
    pub gradient_norm: f64,
}

/// What is no longer a usable number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The loss.
    Loss,
    /// The gradient of the parameter of this name.
    Gradient(String),
    /// The parameter of this name.
    Weight(String),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loss => f.write_str("the loss"),
            Self::Gradient(name) => write!(f, "the gradient of {name}"),
            Self::Weight(name) => write!(f, "the weight {name}"),
        }
    }
}

/// Why a step was not taken. The trainer is as it was before the step.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum StepError<E> {
    /// Gradients could not be computed.
    #[error("computing gradients: {0}")]
    Gradients(E),
    /// Gradients that don't fit the parameters.
    #[error("{name} has a gradient of another shape or type, or none")]
    Misfit {
        /// The first parameter that they don't fit.
        name: String,
    },
    /// A number is NaN, infinite or exploded.
    #[error("training diverged at step {step}: {bad} is not finite, or beyond 1e15")]
    Diverged {
        /// Number of the step, from 0.
        step: u64,
        /// The first bad tensor, in the order loss, gradients, weights.
        bad: Bad,
    },
}

/// A run.
#[derive(Clone, Debug)]
pub struct Trainer {
    plan: Plan,
    params: Vec<Param>,
    state: State,
    bound: Bound,
    /// The order of the rows in the epoch of this number.
    order: Option<(u32, Vec<u32>)>,
}

/// Equal in plan, weights and optimizer, to the last bit.
impl PartialEq for Trainer {
    fn eq(&self, other: &Self) -> bool {
        self.plan == other.plan && self.params == other.params && self.state == other.state
    }
}

impl Trainer {
    /// A run that begins.
    pub fn new(plan: Plan, params: Vec<Param>) -> Result<Self, PlanError> {
        let state = State::new(&plan.rule, &params);
        Self::at(plan, params, state)
    }

    /// A run that goes on from `state`, which has the shapes of `params`.
    pub(crate) fn at(plan: Plan, params: Vec<Param>, state: State) -> Result<Self, PlanError> {
        plan.check()?;
        if params.iter().all(|p| p.values().is_empty()) {
            return Err(PlanError::NoWeights);
        }
        if let Some(name) = first_bad(&params) {
            return Err(PlanError::NotFinite { name });
        }
        let bound = Bound::of(&params, &state);
        Ok(Self {
            plan,
            params,
            state,
            bound,
            order: None,
        })
    }

    /// What it trains by.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The weights as they are now.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// What the optimizer remembers.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Number of the next step, from 0.
    pub fn next_step(&self) -> u64 {
        self.state.steps
    }

    /// Epochs that are done.
    pub fn epochs_done(&self) -> u32 {
        (self.state.steps / self.plan.steps_per_epoch()) as u32
    }

    /// Whether the last step ended an epoch.
    pub fn epoch_ended(&self) -> bool {
        self.state.steps > 0 && self.state.steps.is_multiple_of(self.plan.steps_per_epoch())
    }

    /// Takes the next step; None after the last one.
    pub fn step<G: Gradients>(&mut self, gradients: &G) -> Result<Option<Report>, StepError<G::Error>> {
        let step = self.state.steps;
        if step >= self.plan.steps() {
            return Ok(None);
        }
        let (epoch, rows, shards) = self.shards();
        let sum = self.sum(gradients, &shards)?;
        let slices: Vec<&[f32]> = sum.tensors.iter().map(slice).collect();
        let norm = clip::global_norm(&slices);
        self.check(step, sum.loss, norm, &slices)?;
        let learning_rate = self.plan.schedule.at(step);
        self.update(learning_rate, norm, &slices)?;
        Ok(Some(Report {
            step,
            epoch,
            rows,
            loss: sum.loss,
            learning_rate,
            gradient_norm: norm,
        }))
    }

    /// Epoch, number of rows, and shards of the next step.
    fn shards(&mut self) -> (u32, u32, Vec<Shard>) {
        let (plan, step) = (&self.plan, self.state.steps);
        let epoch = (step / plan.steps_per_epoch()) as u32;
        let order = match self.order.take() {
            Some((of, order)) if of == epoch => order,
            _ => permutation(plan.seed, epoch, plan.rows),
        };
        let first = (step % plan.steps_per_epoch()) as usize * plan.batch as usize;
        let rows = &order[first..order.len().min(first + plan.batch as usize)];
        let mean = 1.0 / rows.len() as f64;
        let shards = rows
            .chunks(plan.shard as usize)
            .map(|rows| {
                let weight = |row: &u32| (f64::from(plan.row_weight(*row)) * mean) as f32;
                let mut shard = Shard {
                    step: step as u32,
                    rows: rows.to_vec(),
                    weights: rows.iter().map(weight).collect(),
                };
                shard.rows.resize(plan.shard as usize, rows[0]);
                shard.weights.resize(plan.shard as usize, 0.0);
                shard
            })
            .collect();
        let count = rows.len() as u32;
        self.order = Some((epoch, order));
        (epoch, count, shards)
    }

    /// The sum over shards, ((g₀ + g₁) + g₂) + …, whatever is computed at once.
    fn sum<G: Gradients>(&self, gradients: &G, shards: &[Shard]) -> Result<Sum, StepError<G::Error>> {
        let mut sum: Option<Sum> = None;
        for wave in shards.chunks(self.plan.at_once) {
            let results: Vec<_> = wave.par_iter().map(|s| gradients.of(&self.params, s)).collect();
            for result in results {
                let gradient = result.map_err(StepError::Gradients)?;
                self.fits(&gradient.slopes)?;
                match &mut sum {
                    None => sum = Some(self.first(gradient)),
                    Some(sum) => add(sum, &gradient),
                }
            }
        }
        // A step has a row, so it has a shard.
        Ok(sum.unwrap_or(Sum {
            loss: f64::NAN,
            tensors: Vec::new(),
        }))
    }

    fn first(&self, gradient: Gradient) -> Sum {
        let slopes = gradient.slopes.into_iter().zip(&self.params);
        Sum {
            loss: gradient.loss,
            tensors: slopes.map(|(slope, param)| slope.whole(param.shape())).collect(),
        }
    }

    fn fits<E>(&self, slopes: &[Slope]) -> Result<(), StepError<E>> {
        let fit = |(i, p): (usize, &Param)| slopes.get(i).is_some_and(|slope| slope.fits(p.shape()));
        match self.params.iter().enumerate().find(|p| !fit(*p)) {
            None => Ok(()),
            Some((_, param)) => Err(StepError::Misfit {
                name: param.name().to_owned(),
            }),
        }
    }

    fn check<E>(&self, step: u64, loss: f64, norm: f64, gradients: &[&[f32]]) -> Result<(), StepError<E>> {
        if !usable(loss) {
            return Err(StepError::Diverged { step, bad: Bad::Loss });
        }
        if usable(norm) {
            return Ok(());
        }
        // Many values that are each still in range can have a norm that isn't: then the largest is to blame.
        let bad = self
            .params
            .iter()
            .zip(gradients)
            .find(|(_, g)| g.iter().any(|v| !usable(f64::from(*v))))
            .or_else(|| {
                let norm = |g: &[f32]| clip::global_norm(&[g]);
                self.params
                    .iter()
                    .zip(gradients)
                    .max_by(|a, b| norm(a.1).total_cmp(&norm(b.1)))
            })
            .map_or(Bad::Loss, |(p, _)| Bad::Gradient(p.name().to_owned()));
        Err(StepError::Diverged { step, bad })
    }

    /// Moves the weights. If one of them explodes, all of them and the optimizer are as before.
    fn update<E>(&mut self, learning_rate: f64, norm: f64, gradients: &[&[f32]]) -> Result<(), StepError<E>> {
        let (rule, step) = (self.plan.rule, self.state.steps);
        let scale = clip::factor(norm, self.plan.clip);
        let after = |bound: Bound| bound.after(&rule, learning_rate, norm * scale, step + 1);
        let mut bound = after(self.bound);
        if !usable(bound.weight) {
            bound = after(Bound::of(&self.params, &self.state));
        }
        // Where the step can't explode, and that is always but at the end, no copy is held.
        let before = (!usable(bound.weight)).then(|| (self.params.clone(), self.state.clone()));
        let largest = self
            .state
            .step(&rule, learning_rate, scale, &mut self.params, gradients);
        if !usable(f64::from(largest)) {
            let name = first_bad(&self.params).unwrap_or_default();
            if let Some((params, state)) = before {
                (self.params, self.state) = (params, state);
            }
            return Err(StepError::Diverged {
                step,
                bad: Bad::Weight(name),
            });
        }
        bound.weight = f64::from(largest);
        self.bound = bound;
        Ok(())
    }
}

fn usable(value: f64) -> bool {
    value.abs() <= EXPLODED
}

fn first_bad(params: &[Param]) -> Option<String> {
    params
        .iter()
        .find(|p| p.values().iter().any(|v| !usable(f64::from(*v))))
        .map(|p| p.name().to_owned())
}

fn add(sum: &mut Sum, other: &Gradient) {
    sum.loss += other.loss;
    for (sum, slope) in sum.tensors.iter_mut().zip(&other.slopes) {
        slope.add_to(slice_mut(sum));
    }
}

#[cfg(test)]
pub(crate) mod tests;
