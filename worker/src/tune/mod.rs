//! Trains deeper than the head: the head that was trained on frozen features first, then all weights that the method moves,
//! from there (LP-FT, Kumar et al. 2022: a random head would spoil the features that it is put on). Epoch 0 is that head,
//! so the kept epoch is never worse on the validation rows than method Head.
//!
//! What is frozen runs once where its results fit into memory. A step is cut into [shards](shard), whose gradients
//! are summed in order.

pub mod checkpoint;
mod memory;
mod ready;
mod rows;
pub mod shard;
mod vary;

use crate::cache::{Cache, Key};
use crate::config::{Job, TrainRule};
use crate::data::{DataSet, Part};
use crate::engine::base::Backbone;
use crate::engine::step::Step;
use crate::engine::tunable::Tunable;
use crate::error::{INVALID_JOB, MEMORY_TOO_SMALL, Result, TRAINING_DIVERGED, WorkerError};
use crate::features::{prepare, targets};
use crate::pipeline::{Preparer, TensorSpec};
use crate::progress::Tracker;
use crate::selftest::peak_memory;
use crate::train::{Best, Epoch, Fitted, Parts, Targets, loss, metrics, row_weights};
use checkpoint::{Notes, Store};
use fleetune_crds::OptimizerName;
use fleetune_gradient::Activations;
use fleetune_gradient::optim::{Adam, Rule};
use fleetune_gradient::params::Param;
use fleetune_gradient::trainer::{self, Gradient, Gradients, Plan, Shard, StepError, Trainer};
use ndarray::Array2;
use rayon::prelude::*;
use ready::{ready, ready_for, tunable, with_methods};
use rows::Rows;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub use vary::vary;

/// Time between two checkpoints.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// What a training needs beside the job.
pub struct Setup<'a> {
    /// The job.
    pub job: &'a Job,
    /// The base model up to the features.
    pub backbone: &'a Backbone,
    /// How samples are prepared.
    pub preparer: &'a Preparer,
    /// What a sample is given to the graph as; texts as long as the longest of them, where the model takes any length.
    pub tensors: Vec<TensorSpec>,
    /// The samples.
    pub data: &'a DataSet,
    /// Number of outputs.
    pub outputs: usize,
    /// Where what the frozen part gives is kept beyond this run.
    pub cache: Option<&'a Cache>,
    /// Folder of the checkpoints.
    pub work: &'a std::path::Path,
    /// Time between two checkpoints.
    pub every: Duration,
    /// Asked after each step with its number: false ends the training as if the pod was told to stop.
    pub go_on: &'a (dyn Fn(u64) -> bool + Sync),
    /// Where progress is told.
    pub tracker: &'a Tracker,
}

/// What came of it.
pub struct Tuned {
    /// The base model's part with the weights of the best epoch.
    pub backbone: Backbone,
    /// The head of the best epoch.
    pub head: Parts,
    /// Names of the tensors of the base model's part that moved.
    pub moved: BTreeSet<String>,
    /// All epochs, from 0, the head alone.
    pub history: Vec<Epoch>,
    /// The best one.
    pub best: Epoch,
    /// Answers for validation rows by the weights of the best epoch.
    pub answers: Vec<Vec<f64>>,
}

/// Trains from the head `first`; `compared` answers are given.
pub fn tune(setup: &Setup<'_>, first: &Fitted, compared: usize) -> Result<Tuned> {
    let (job, data, tracker) = (setup.job, setup.data, setup.tracker);
    let rule = &job.train;
    let tunable = tunable(setup, first, rule).map_err(|e| with_methods(setup, first, e))?;
    let (frozen, step) = ready(setup, &tunable).map_err(|e| with_methods(setup, first, e))?;
    if rule.augment.is_some_and(|a| a.copies.is_none()) && frozen.has_weights() {
        return Err(WorkerError::bad(
            INVALID_JOB,
            "spec.train.augmentation.copies: the method freezes a part of the base model, which runs once, so it needs the \
             number of variants of each row that are kept",
        ));
    }
    let params = tunable.params()?;
    let part = |part| data.part(part).collect::<Vec<_>>();
    let tokens = setup.tensors.first().and_then(|t| t.shape.last()).copied().unwrap_or(0);
    let rows = |part_of, augment| Rows::new(&frozen, setup.preparer, part(part_of), augment, rule.seed, tokens);
    let mut train = rows(Part::Train, rule.augment);
    let mut validation = rows(Part::Validation, None);
    let planned = |step: &Step| plan(setup, step, &params, [&train, &validation]);
    let (step, plan) = match planned(&step) {
        Err(error) if error.reason() == MEMORY_TOO_SMALL => {
            tracing::warn!(cause = error.message(), "activations are computed again");
            let step = ready_for(setup, &tunable, (step.samples(), Activations::Recomputed))?.1;
            let plan = planned(&step)?;
            (step, plan)
        }
        planned => (step, planned?),
    };
    if plan.keep {
        tracker.stage("features", (train.len() + validation.len()) as u64);
        for rows in [&mut train, &mut validation] {
            let cache = cached(setup, rows)?;
            rows.keep(cache.as_ref(), tracker)?;
        }
    }
    let y = targets(&train.samples)?;
    let run = Run {
        setup,
        step: &step,
        wanted: wanted(rule, &y, setup.outputs, &first.parts()),
        weights: row_weights(&y, setup.outputs, rule.class_weights),
        y: targets(&validation.samples)?,
        head: first.parts(),
        train,
        validation,
    };
    let (params, history, best) = run.train(&tunable, params, first, plan.at_once)?;
    tracing::info!(peak_bytes = peak_memory(), "trained");
    let (backbone, head, moved) = tunable.with(&params)?;
    Ok(Tuned {
        answers: run.answers(&params, compared)?,
        backbone,
        head,
        moved: moved.into_iter().collect(),
        history,
        best,
    })
}

/// Where rows at the border are kept beyond this run, and their key.
fn cached(setup: &Setup<'_>, rows: &Rows<'_>) -> Result<Option<(Cache, Key)>> {
    let Some(cache) = setup.cache.filter(|_| rows.frozen.has_weights()) else {
        return Ok(None);
    };
    let tokens = rows.tokens.to_string();
    let border = rows.frozen.names().iter().map(String::as_str);
    let cut: Vec<&str> = ["border", &tokens].into_iter().chain(border).collect();
    let samples = (setup.data, rows.samples.as_slice());
    let key = Key::of((setup.job, setup.preparer), &cut, samples, rows.augment.as_ref())?;
    Ok(Some((cache.clone(), key)))
}

/// The graph's inputs for the training and validation rows of `data`: where a text may be of `any` length, of the length
/// of the longest one, so that no time goes into padding that all of them have.
pub fn inputs(preparer: &Preparer, data: &DataSet, any: bool) -> Result<Vec<TensorSpec>> {
    let mut inputs = preparer.pipeline().inputs.clone();
    if any {
        let rows: Vec<&crate::data::Row> = data.part(Part::Train).chain(data.part(Part::Validation)).collect();
        let used: Vec<Result<usize>> = rows.par_iter().map(|row| Ok(prepare(preparer, row)?.used())).collect();
        let longest = used
            .into_iter()
            .try_fold(1, |longest, used| used.map(|u| u.max(longest)))?;
        for input in &mut inputs {
            if let Some(tokens) = input.shape.last_mut() {
                *tokens = longest;
            }
        }
    }
    Ok(inputs)
}

fn plan(setup: &Setup<'_>, step: &Step, params: &[Param], rows: [&Rows<'_>; 2]) -> Result<memory::Plan> {
    let [train, validation] = rows;
    let kept = if train.can_be_kept() {
        Some(train.row_bytes()? * (train.len() + validation.len()) as u64)
    } else {
        None
    };
    let parts = memory::Parts {
        step: step.memory(),
        weights: params.iter().map(|p| p.values().len() as u64 * 4).sum(),
        moments: optimizer(&setup.job.train).moments() as u64,
        rows: kept,
    };
    let budget = memory::budget(setup.job);
    let shards = setup.job.train.batch_size.div_ceil(step.samples());
    let plan = memory::plan(&parts, budget, rayon::current_num_threads().min(shards))?;
    let weights: usize = params.iter().map(|p| p.values().len()).sum();
    tracing::info!(
        weights,
        tensors = params.len(),
        step_bytes = parts.step.peak,
        rows_bytes = kept,
        needed_bytes = plan.needed,
        budget_bytes = budget,
        shards_at_once = plan.at_once,
        rows_kept = plan.keep,
        "memory planned"
    );
    Ok(plan)
}

fn optimizer(rule: &TrainRule) -> Rule {
    let adam = Adam {
        weight_decay: rule.weight_decay,
        ..Adam::default()
    };
    match rule.optimizer {
        OptimizerName::Sgd => Rule::Sgd {
            momentum: rule.momentum,
            nesterov: rule.nesterov,
            weight_decay: rule.weight_decay,
        },
        OptimizerName::Adam => Rule::Adam(adam),
        OptimizerName::AdamW => Rule::AdamW(adam),
    }
}

/// What the loss wants of each training row: a distribution over the classes, or a standardised value.
fn wanted(rule: &TrainRule, y: &Targets, outputs: usize, head: &Parts) -> Vec<Vec<f32>> {
    let even = rule.label_smoothing / outputs as f64;
    let truth = |hit: bool| (even + (1.0 - rule.label_smoothing) * f64::from(u8::from(hit))) as f32;
    match y {
        Targets::Classes(classes) => classes
            .iter()
            .map(|class| (0..outputs).map(|i| truth(i == *class)).collect())
            .collect(),
        Targets::Values(values) => values
            .iter()
            .map(|v| vec![((v - head.target.mean) / head.target.std) as f32])
            .collect(),
    }
}

struct Run<'a> {
    setup: &'a Setup<'a>,
    step: &'a Step,
    /// One row of values for each training sample.
    wanted: Vec<Vec<f32>>,
    /// How much each training sample counts.
    weights: Vec<f64>,
    /// The truth of the validation rows.
    y: Targets,
    head: Parts,
    train: Rows<'a>,
    validation: Rows<'a>,
}

impl Gradients for Run<'_> {
    type Error = WorkerError;

    fn of(&self, params: &[Param], shard: &Shard) -> Result<Gradient> {
        let numbers = || shard.rows.iter().map(|r| *r as usize);
        let rows = numbers()
            .map(|n| self.train.get(n, shard.step))
            .collect::<Result<Vec<_>>>()?;
        let targets: Vec<&[f32]> = numbers()
            .map(|n| self.wanted[self.train.sample(n)].as_slice())
            .collect();
        self.step.gradient(params, shard, &rows, &targets)
    }
}

impl Run<'_> {
    fn plan(&self, at_once: usize) -> Plan {
        let rule = &self.setup.job.train;
        let rows = self.train.len();
        let steps = rows.div_ceil(rule.batch_size) as u64;
        Plan {
            rows: rows as u32,
            batch: rule.batch_size as u32,
            shard: self.step.samples() as u32,
            at_once,
            epochs: rule.epochs,
            seed: rule.seed,
            rule: optimizer(rule),
            schedule: rule.schedule.over(rule.learning_rate, rule.epochs, steps),
            clip: rule.clip_norm,
            row_weights: (0..rows).map(|n| self.weights[self.train.sample(n)] as f32).collect(),
        }
    }

    /// All epochs; the weights of the best one.
    fn train(
        &self,
        tunable: &Tunable,
        params: Vec<Param>,
        first: &Fitted,
        at_once: usize,
    ) -> Result<(Vec<Param>, Vec<Epoch>, Epoch)> {
        let (job, tracker) = (self.setup.job, self.setup.tracker);
        let store = Store::of(self.setup, tunable, self.step.samples())?;
        let plan = self.plan(at_once);
        let begun = params.clone();
        let (mut trainer, mut notes, mut best) = if let Some((trainer, notes, kept)) = store.load(&plan, &params)? {
            tracing::info!(step = trainer.next_step(), "goes on from a checkpoint");
            let best = Best(notes.best().map(|epoch| (kept.unwrap_or(begun), epoch)));
            (trainer, notes, best)
        } else {
            let entry = Epoch {
                epoch: 0,
                train_loss: first.best()?.train_loss,
                learning_rate: 0.0,
                gradient_norm: 0.0,
                ..self.evaluate(&params)?
            };
            self.note(&entry, None);
            let mut best = Best::default();
            best.offer(job.objective, &entry, || params.clone());
            let trainer =
                Trainer::new(plan, params).map_err(|e| WorkerError::bad(crate::error::NOT_FINITE, e.to_string()))?;
            (trainer, Notes::begin(entry), best)
        };
        tracker.stage("train", u64::from(job.train.epochs));
        tracker.add(u64::from(trainer.epochs_done()));
        let mut saved = Instant::now();
        let mut since = Instant::now();
        let mut seen = 0;
        while !best.is_over(trainer.epochs_done(), job.train.patience) {
            let Some(report) = trainer.step(self).map_err(diverged)? else {
                break;
            };
            notes.add(&report);
            seen += report.rows;
            tracker.metric("train.loss", report.loss);
            tracker.metric("train.learningRate", report.learning_rate);
            tracker.metric("train.gradientNorm", report.gradient_norm);
            if trainer.epoch_ended() {
                let rate = f64::from(seen) / since.elapsed().as_secs_f64().max(f64::EPSILON);
                let entry = notes.finish(trainer.epochs_done(), &self.evaluate(trainer.params())?);
                self.note(&entry, Some(rate));
                best.offer(job.objective, &entry, || trainer.params().to_vec());
                tracker.add(1);
                (since, seen) = (Instant::now(), 0);
            }
            if saved.elapsed() >= self.setup.every {
                store.save(&trainer, &notes, best.0.as_ref())?;
                saved = Instant::now();
            }
            if !(self.setup.go_on)(report.step) {
                return Err(WorkerError::transient("Terminated", "the training was told to stop"));
            }
        }
        store.remove();
        let (params, kept) = best
            .0
            .ok_or_else(|| WorkerError::bad(TRAINING_DIVERGED, "no epoch was trained"))?;
        Ok((params, notes.history, kept))
    }

    /// Loss and objective on the validation rows.
    fn evaluate(&self, params: &[Param]) -> Result<Epoch> {
        let (job, outputs) = (self.setup.job, self.setup.outputs);
        let logits = self.logits(params, self.validation.len())?;
        let flat: Vec<f64> = logits.iter().flatten().copied().collect();
        let matrix = Array2::from_shape_vec((logits.len(), flat.len() / logits.len().max(1)), flat)
            .map_err(|e| WorkerError::bad(crate::error::INTERNAL, format!("logits differ in length: {e}")))?;
        let all: Vec<usize> = (0..logits.len()).collect();
        let ones = vec![1.0; logits.len()];
        let (validation_loss, _) = loss::of_rows(&job.train, &matrix, &self.y, &all, &ones, &self.head.target);
        if !validation_loss.is_finite() {
            return Err(WorkerError::bad(
                TRAINING_DIVERGED,
                "the loss on the validation rows is not finite: lower spec.train.optimizer.learningRate",
            ));
        }
        Ok(Epoch {
            epoch: 0,
            train_loss: 0.0,
            validation_loss,
            objective: metrics::objective(job.objective, &self.named(&logits), &self.y, outputs),
            learning_rate: 0.0,
            gradient_norm: 0.0,
        })
    }

    /// Answers for the first `count` validation rows.
    fn answers(&self, params: &[Param], count: usize) -> Result<Vec<Vec<f64>>> {
        Ok(self.named(&self.logits(params, count.min(self.validation.len()))?))
    }

    fn named(&self, logits: &[Vec<f64>]) -> Vec<Vec<f64>> {
        logits
            .iter()
            .map(|z| loss::answer(self.setup.job.train.loss, z, &self.head.target))
            .collect()
    }

    fn logits(&self, params: &[Param], count: usize) -> Result<Vec<Vec<f64>>> {
        let numbers: Vec<usize> = (0..count).collect();
        let shards: Vec<Result<Vec<Vec<f32>>>> = numbers
            .par_chunks(self.step.samples().max(1))
            .map(|numbers| {
                let rows = numbers
                    .iter()
                    .map(|n| self.validation.get(*n, 0))
                    .collect::<Result<Vec<_>>>()?;
                self.step.logits(params, &rows)
            })
            .collect();
        let mut logits = Vec::with_capacity(count);
        for shard in shards {
            logits.extend(shard?.into_iter().map(|z| z.into_iter().map(f64::from).collect()));
        }
        Ok(logits)
    }

    fn note(&self, epoch: &Epoch, samples_per_second: Option<f64>) {
        let (job, tracker) = (self.setup.job, self.setup.tracker);
        epoch.tell(job.objective, samples_per_second, tracker);
    }
}

fn diverged(error: StepError<WorkerError>) -> WorkerError {
    match error {
        StepError::Gradients(error) => error,
        StepError::Misfit { name } => WorkerError::bad(
            crate::error::INTERNAL,
            format!("the gradient of {name} has another shape than it"),
        ),
        error @ StepError::Diverged { .. } => {
            let hint = match &error {
                StepError::Diverged {
                    bad: trainer::Bad::Weight(_),
                    ..
                } => "lower spec.train.optimizer.learningRate",
                _ => "lower spec.train.optimizer.learningRate, or set spec.train.clipNorm",
            };
            WorkerError::bad(
                TRAINING_DIVERGED,
                format!("{error}: {hint}").replace(crate::engine::base::PREFIX, ""),
            )
        }
    }
}

#[cfg(test)]
mod tests;
