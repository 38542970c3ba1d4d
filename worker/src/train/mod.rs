//! Trains a head on features: standardised with the statistics of the training rows, in f64 with a fixed order of sums,
//! so that the same rows and seed give the same weights on any number of threads. It picks the best epoch by the
//! objective on the validation rows. It knows nothing of models, files or clusters.

pub mod loss;
pub mod metrics;
pub mod net;
pub mod optim;
pub mod scale;

use crate::config::TrainRule;
use crate::engine::build::{Head, Last, Layer};
use crate::error::{Result, TRAINING_DIVERGED, WorkerError};
use crate::progress::Tracker;
use fleetune_crds::{Activation, ClassWeights, Loss, Metric};
use ndarray::{Array1, Array2, Axis};
use net::Net;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use scale::{Scale, TargetScale};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rows that are pushed through the net at once where nothing is learned.
const EVAL_ROWS: usize = 256;

/// What the rows should be answered with.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Indices of labels.
    Classes(Vec<usize>),
    /// Values in the target's unit.
    Values(Vec<f64>),
}

impl Targets {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(c) => c.len(),
            Self::Values(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Features and targets of some rows.
#[derive(Clone, Debug)]
pub struct Set {
    /// One row a sample.
    pub x: Array2<f32>,
    /// One a row.
    pub y: Targets,
}

/// One pass over the training rows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Epoch {
    /// Its number, from 1.
    pub epoch: u32,
    /// Mean loss of its steps, dropout and class weights included.
    pub train_loss: f64,
    /// Mean loss on the validation rows.
    pub validation_loss: f64,
    /// The objective on the validation rows.
    pub objective: f64,
    /// Learning rate of its last step; 0 where none was taken.
    #[serde(default)]
    pub learning_rate: f64,
    /// Mean over its steps of the norm of all gradients together, before clipping.
    #[serde(default)]
    pub gradient_norm: f64,
}

impl Epoch {
    /// Tells log and tracker of it.
    pub fn tell(&self, objective: Metric, samples_per_second: Option<f64>, tracker: &Tracker) {
        tracker.metric("train.loss", self.train_loss);
        tracker.metric("train.learningRate", self.learning_rate);
        tracker.metric("train.gradientNorm", self.gradient_norm);
        tracker.metric("validation.loss", self.validation_loss);
        tracker.metric(&format!("validation.{}", objective.name()), self.objective);
        if let Some(rate) = samples_per_second {
            tracker.metric("train.samplesPerSecond", rate);
        }
        tracing::info!(
            epoch = self.epoch,
            train_loss = self.train_loss,
            validation_loss = self.validation_loss,
            objective = self.objective,
            metric = objective.name(),
            learning_rate = self.learning_rate,
            gradient_norm = self.gradient_norm,
            samples_per_second,
            "epoch"
        );
    }
}

/// A trained head.
#[derive(Clone, Debug)]
pub struct Fitted {
    scale: Scale,
    target: TargetScale,
    net: Net,
    loss: Loss,
    /// All epochs.
    pub history: Vec<Epoch>,
    /// The epoch whose weights are kept, from 1.
    pub best_epoch: u32,
    /// Their objective on the validation rows.
    pub best_objective: f64,
}

/// Trains a head with `outputs` outputs.
pub fn fit(
    rule: &TrainRule,
    objective: Metric,
    outputs: usize,
    train: &Set,
    validation: &Set,
    mut on_epoch: impl FnMut(&Epoch),
) -> Result<Fitted> {
    let scale = Scale::of(&train.x);
    let target = TargetScale::of(&train.y);
    let z = scale.apply(&train.x);
    let z_validation = scale.apply(&validation.x);
    let weights = row_weights(&train.y, outputs, rule.class_weights);
    let mut net = Net::new(train.x.ncols(), &rule.layers, outputs, rule.activation, rule.seed);
    let mut optimizer = optim::State::new(rule, &net, z.nrows().div_ceil(rule.batch_size));
    let mut best: Best<Net> = Best::default();
    let mut history = Vec::new();
    for epoch in 1..=rule.epochs {
        let (train_loss, moved) = one_epoch(rule, epoch, &z, &train.y, &target, &weights, &mut net, &mut optimizer);
        let (validation_loss, predicted) = evaluate(&net, rule, &z_validation, &validation.y, &target);
        let value = metrics::objective(objective, &predicted, &validation.y, outputs);
        let entry = Epoch {
            epoch,
            train_loss,
            validation_loss,
            objective: value,
            learning_rate: moved.learning_rate,
            gradient_norm: moved.gradient_norm,
        };
        if !train_loss.is_finite() || !validation_loss.is_finite() {
            return Err(WorkerError::bad(
                TRAINING_DIVERGED,
                format!("the loss is no longer finite in epoch {epoch}: lower spec.train.optimizer.learningRate"),
            ));
        }
        on_epoch(&entry);
        best.offer(objective, &entry, || net.clone());
        history.push(entry);
        if best.is_over(epoch, rule.patience) {
            break;
        }
    }
    let Some((net, kept)) = best.0 else {
        return Err(WorkerError::bad(TRAINING_DIVERGED, "no epoch was trained"));
    };
    Ok(Fitted {
        scale,
        target,
        net,
        loss: rule.loss,
        history,
        best_epoch: kept.epoch,
        best_objective: kept.objective,
    })
}

/// The best epoch so far, with what it left.
#[derive(Clone, Debug)]
pub struct Best<T>(pub Option<(T, Epoch)>);

impl<T> Default for Best<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Best<T> {
    /// Takes an epoch if it is better than the best. Among equals the lower loss is the better epoch: small validation
    /// sets have few different scores. Whether it was taken.
    pub fn offer(&mut self, objective: Metric, entry: &Epoch, kept: impl FnOnce() -> T) -> bool {
        let better = self.0.as_ref().is_none_or(|(_, best)| {
            let gain = if objective.larger_is_better() {
                entry.objective - best.objective
            } else {
                best.objective - entry.objective
            };
            gain > 0.0 || (gain == 0.0 && entry.validation_loss < best.validation_loss)
        });
        if better {
            self.0 = Some((kept(), entry.clone()));
        }
        better
    }

    /// Whether the last `patience` epochs brought nothing better.
    pub fn is_over(&self, epoch: u32, patience: u32) -> bool {
        self.0
            .as_ref()
            .is_some_and(|(_, best)| epoch.saturating_sub(best.epoch) >= patience)
    }
}

#[allow(clippy::too_many_arguments)] // One step of `fit`, apart for reading only.
fn one_epoch(
    rule: &TrainRule,
    epoch: u32,
    z: &Array2<f32>,
    y: &Targets,
    target: &TargetScale,
    weights: &[f64],
    net: &mut Net,
    optimizer: &mut optim::State,
) -> (f64, optim::Moved) {
    let order = shuffled(z.nrows(), rule.seed, epoch);
    let mut total = 0.0;
    let mut moved = optim::Moved {
        learning_rate: 0.0,
        gradient_norm: 0.0,
    };
    let steps = order.chunks(rule.batch_size).len().max(1) as f64;
    for (step, rows) in order.chunks(rule.batch_size).enumerate() {
        let x = z.select(Axis(0), rows).mapv(f64::from);
        let mut noise = net::Dropout::new(rule.dropout, rule.seed, epoch, step);
        let (logits, trace) = net.forward(&x, Some(&mut noise));
        let picked: Vec<f64> = rows.iter().map(|r| weights[*r]).collect();
        let (loss, gradient) = loss::of_rows(rule, &logits, y, rows, &picked, target);
        total += loss * rows.len() as f64;
        let gradients = net.backward(&trace, gradient);
        let step_moved = optimizer.step(net, &gradients);
        moved.learning_rate = step_moved.learning_rate;
        moved.gradient_norm += step_moved.gradient_norm / steps;
    }
    (total / z.nrows() as f64, moved)
}

fn evaluate(net: &Net, rule: &TrainRule, z: &Array2<f32>, y: &Targets, target: &TargetScale) -> (f64, Vec<Vec<f64>>) {
    let mut total = 0.0;
    let mut predicted = Vec::with_capacity(z.nrows());
    let all: Vec<usize> = (0..z.nrows()).collect();
    for rows in all.chunks(EVAL_ROWS) {
        let x = z.select(Axis(0), rows).mapv(f64::from);
        let (logits, _) = net.forward(&x, None);
        let (loss, _) = loss::of_rows(rule, &logits, y, rows, &vec![1.0; rows.len()], target);
        total += loss * rows.len() as f64;
        predicted.extend(
            logits
                .rows()
                .into_iter()
                .map(|row| loss::answer(rule.loss, &row.to_vec(), target)),
        );
    }
    (total / z.nrows() as f64, predicted)
}

/// How much each row counts in the loss.
pub fn row_weights(y: &Targets, outputs: usize, kind: ClassWeights) -> Vec<f64> {
    let Targets::Classes(classes) = y else {
        return vec![1.0; y.len()];
    };
    if kind == ClassWeights::None {
        return vec![1.0; classes.len()];
    }
    let mut counts = vec![0usize; outputs];
    for class in classes {
        counts[*class] += 1;
    }
    let present = counts.iter().filter(|n| **n > 0).count();
    classes
        .iter()
        .map(|c| classes.len() as f64 / (present * counts[*c]) as f64)
        .collect()
}

/// The order of the rows in an epoch: Fisher and Yates, from the seed and the epoch's number.
fn shuffled(rows: usize, seed: u64, epoch: u32) -> Vec<usize> {
    let mut random = stream(seed, net::STREAM_ORDER, u64::from(epoch));
    let mut order: Vec<usize> = (0..rows).collect();
    for i in (1..rows).rev() {
        let j = (random.next_u64() % (i as u64 + 1)) as usize;
        order.swap(i, j);
    }
    order
}

/// A generator for one purpose and place, whatever was drawn before.
fn stream(seed: u64, purpose: u64, place: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(purpose << 56 | place);
    random
}

impl Fitted {
    /// Answers for rows of raw features: probabilities, or one value in the target's unit.
    pub fn predict(&self, x: &Array2<f32>) -> Vec<Vec<f64>> {
        let z = self.scale.apply(x);
        let mut answers = Vec::with_capacity(x.nrows());
        let all: Vec<usize> = (0..z.nrows()).collect();
        for rows in all.chunks(EVAL_ROWS) {
            let x = z.select(Axis(0), rows).mapv(f64::from);
            let (logits, _) = self.net.forward(&x, None);
            answers.extend(
                logits
                    .rows()
                    .into_iter()
                    .map(|r| loss::answer(self.loss, &r.to_vec(), &self.target)),
            );
        }
        answers
    }

    /// The head in single precision, with the scaling of features and target folded into its first and last layer.
    pub fn head(&self) -> Result<Head> {
        self.parts().head()
    }

    /// The epoch whose weights are kept.
    pub fn best(&self) -> Result<Epoch> {
        let best = self.history.iter().find(|e| e.epoch == self.best_epoch);
        best.cloned()
            .ok_or_else(|| WorkerError::bad(TRAINING_DIVERGED, "no epoch was trained"))
    }

    /// What it is made of, with nothing folded.
    pub fn parts(&self) -> Parts {
        Parts {
            scale: self.scale.clone(),
            target: self.target.clone(),
            layers: self.net.layers.clone(),
            activation: self.net.activation,
            loss: self.loss,
        }
    }
}

/// A head and the scaling on both of its sides.
#[derive(Clone, Debug)]
pub struct Parts {
    /// In front of the first layer.
    pub scale: Scale,
    /// Behind the last layer, of a Regression.
    pub target: TargetScale,
    /// The layers, on standardised features and for a standardised target.
    pub layers: Vec<net::Linear>,
    /// Between the layers.
    pub activation: Activation,
    /// What was made small.
    pub loss: Loss,
}

impl Parts {
    /// The head in single precision, with the scaling of features and target folded into its first and last layer.
    pub fn head(&self) -> Result<Head> {
        let count = self.layers.len();
        let mut layers = Vec::with_capacity(count);
        for (i, layer) in self.layers.iter().enumerate() {
            let mut weights = layer.w.clone();
            let mut bias = layer.b.clone();
            if i == 0 {
                weights *= &self.scale.factor.view().insert_axis(Axis(0));
            }
            if i + 1 == count && self.loss.is_of_values() {
                weights *= self.target.std;
                bias = bias * self.target.std + self.target.mean;
            }
            layers.push(single(&weights, &bias)?);
        }
        Ok(Head {
            mean: self.scale.mean.to_vec(),
            layers,
            activation: self.activation,
            last: match self.loss {
                Loss::CrossEntropy => Last::Softmax,
                Loss::BinaryCrossEntropy => Last::Sigmoid,
                Loss::MeanSquaredError | Loss::MeanAbsoluteError | Loss::Huber => Last::Nothing,
            },
        })
    }
}

/// A layer in single precision.
pub fn single(weights: &Array2<f64>, bias: &Array1<f64>) -> Result<Layer> {
    let single = |v: &f64| *v as f32;
    let layer = Layer {
        inputs: weights.ncols(),
        outputs: weights.nrows(),
        weights: weights.iter().map(single).collect(),
        bias: bias.iter().map(single).collect(),
    };
    if layer.weights.iter().chain(&layer.bias).all(|v| v.is_finite()) {
        return Ok(layer);
    }
    Err(WorkerError::bad(
        TRAINING_DIVERGED,
        "the trained weights are not finite in single precision: lower the learning rate",
    ))
}

/// Rows of equal length as a matrix.
pub fn matrix(rows: Vec<Vec<f32>>, width: usize) -> Result<Array2<f32>> {
    let n = rows.len();
    Array2::from_shape_vec((n, width), rows.into_iter().flatten().collect()).map_err(|e| {
        WorkerError::bad(
            crate::error::INTERNAL,
            format!("rows of features differ in length: {e}"),
        )
    })
}

#[cfg(test)]
mod tests;
