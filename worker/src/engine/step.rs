//! A [`Tunable`] made ready: what is frozen as a plan for one sample, what moves as a plan for a shard with its gradient.

use super::graph::{failed_run, prepared_tensors};
use super::pb;
use super::refusal::refused;
use super::row::Row;
use super::tunable::Tunable;
use crate::error::{Result, UNSUPPORTED_OPERATOR, WorkerError};
use crate::pipeline::{Dtype, Prepared, TensorSpec};
use fleetune_gradient::cut::{self, Cut};
use fleetune_gradient::memory::Estimate;
use fleetune_gradient::params::Param;
use fleetune_gradient::philox::dropout_mask;
use fleetune_gradient::trainer::{Gradient, Shard};
use fleetune_gradient::{Activations, Differentiable, Loss};
use std::sync::Arc;
use tract_onnx::prelude::*;

/// What depends on the sample and on no trained weight.
pub struct Frozen {
    /// Gives the tensors of the cut; none where the trained part reads the sample itself.
    plan: Option<Arc<TypedRunnableModel>>,
    /// The sample's tensors that it takes, by their places among the graph's inputs.
    takes: Vec<usize>,
    /// Those that the trained part reads itself.
    passes: Vec<usize>,
    /// Whether weights of the base model are in it.
    weights: bool,
    /// Names of the tensors of the cut and of the sample that a row has.
    names: Vec<String>,
}

/// What moves.
pub struct Step {
    model: Differentiable,
    masks: Vec<(String, usize)>,
    dropout: f64,
    seed: u64,
}

/// Cuts `tunable` into its two parts, the second for `shard` samples at a time. `tensors` are what a sample is given as.
pub fn split(
    tunable: &Tunable,
    tensors: &[TensorSpec],
    loss: Loss,
    (shard, activations): (usize, Activations),
    (dropout, seed): (f64, u64),
) -> Result<(Frozen, Step)> {
    let graph = tunable.model.graph.clone().unwrap_or_default();
    let parts = cut::cut(&graph, tunable.logits(), &tunable.trained).map_err(refused)?;
    let frozen = Frozen::of(tunable, &parts, tensors)?;
    let zeros = tensors.iter().map(zero).collect::<Result<Vec<_>>>()?;
    let probe = frozen.run(&zeros)?;
    let samples = parts
        .inputs
        .iter()
        .filter(|name| tensors.iter().any(|t| t.name == **name));
    let names = parts.tensors.iter().chain(samples);
    let mut inputs: Vec<_> = names
        .zip(probe.tensors())
        .map(|(name, tensor)| input(name, tensor.datum_type(), tensor.shape(), shard))
        .collect();
    for (mask, width) in tunable.masks() {
        inputs.push(input(mask, f32::datum_type(), &[1, *width], shard));
    }
    let model = pb::ModelProto {
        graph: Some(parts.trained),
        ..tunable.model.clone()
    };
    let (logits, trained) = (tunable.logits(), &tunable.trained);
    let model = Differentiable::build_with(&model, &inputs, logits, trained, loss, activations).map_err(refused)?;
    let step = Step {
        model,
        masks: tunable.masks().to_vec(),
        dropout,
        seed,
    };
    Ok((frozen, step))
}

fn input(name: &str, datum_type: DatumType, shape: &[usize], shard: usize) -> fleetune_gradient::Input {
    let mut shape = shape.to_vec();
    if let Some(first) = shape.first_mut() {
        *first = shard;
    }
    fleetune_gradient::Input {
        name: name.to_owned(),
        datum_type,
        shape,
    }
}

fn datum_type(dtype: Dtype) -> DatumType {
    match dtype {
        Dtype::Uint8 => u8::datum_type(),
        Dtype::Fp32 => f32::datum_type(),
        Dtype::Int64 => i64::datum_type(),
    }
}

fn zero(tensor: &TensorSpec) -> Result<Tensor> {
    Tensor::zero_dt(datum_type(tensor.dtype), &tensor.shape).map_err(failed_run)
}

impl Frozen {
    fn of(tunable: &Tunable, parts: &Cut, tensors: &[TensorSpec]) -> Result<Self> {
        let place = |name: &str| tensors.iter().position(|t| t.name == name);
        let takes: Vec<usize> = parts.frozen.input.iter().filter_map(|i| place(&i.name)).collect();
        let given: Vec<TensorSpec> = takes.iter().map(|i| tensors[*i].clone()).collect();
        let weights = parts
            .frozen
            .initializer
            .iter()
            .any(|t| t.name.starts_with(super::base::PREFIX) && t.dims.len() > 1);
        let plan = if parts.tensors.is_empty() {
            None
        } else {
            let model = pb::ModelProto {
                graph: Some(parts.frozen.clone()),
                ..tunable.model.clone()
            };
            Some(super::graph::plan(&model, &given)?)
        };
        Ok(Self {
            plan,
            takes,
            passes: parts.inputs.iter().filter_map(|name| place(name)).collect(),
            weights,
            names: parts.tensors.iter().chain(&parts.inputs).cloned().collect(),
        })
    }

    /// Whether weights of the base model are in it, so that running it anew for every step costs time.
    pub fn has_weights(&self) -> bool {
        self.weights
    }

    /// Names of the tensors of the cut, and of the sample's that are passed on: what a row is made of.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The tensors of a sample.
    pub fn row(&self, prepared: &Prepared) -> Result<Row> {
        self.run(&prepared_tensors(prepared)?)
    }

    fn run(&self, sample: &[Tensor]) -> Result<Row> {
        let of = |places: &[usize]| {
            places
                .iter()
                .filter_map(|i| sample.get(*i).cloned())
                .collect::<Vec<_>>()
        };
        let mut row = Vec::new();
        if let Some(plan) = &self.plan {
            let taken = of(&self.takes).into_iter().map(IntoTValue::into_tvalue).collect();
            row.extend(
                plan.run(taken)
                    .map_err(failed_run)?
                    .into_iter()
                    .map(TValue::into_tensor),
            );
        }
        row.extend(of(&self.passes));
        if let Some(odd) = row.iter().find(|t| t.shape().first() != Some(&1)) {
            return Err(WorkerError::bad(
                UNSUPPORTED_OPERATOR,
                format!(
                    "a tensor between the frozen and the trained part has the shape {:?}, which is not one row a sample",
                    odd.shape()
                ),
            ));
        }
        Ok(Row::of(row))
    }
}

impl Step {
    /// Samples of a shard.
    pub fn samples(&self) -> usize {
        self.model.samples()
    }

    /// How often a row uses each trained weight, on average.
    pub fn reuse(&self) -> f64 {
        self.model.reuse()
    }

    /// What one shard needs.
    pub fn memory(&self) -> Estimate {
        self.model.memory()
    }

    /// Loss and gradients of a shard; `targets` has one row of `outputs` values a sample.
    pub fn gradient(&self, params: &[Param], shard: &Shard, rows: &[Arc<Row>], targets: &[&[f32]]) -> Result<Gradient> {
        let masks = |i: usize, width: usize| self.mask(i, width, shard);
        let inputs = self.inputs(rows, masks)?;
        let target: Vec<f32> = targets.concat();
        let target = Tensor::from_shape(&[targets.len(), self.model.classes()], &target).map_err(failed_run)?;
        let weights = Arc::new(tensor1(&shard.weights));
        let outcome = self
            .model
            .run(&tensors(params), &inputs, &Arc::new(target), &weights)
            .map_err(refused)?;
        Ok(Gradient {
            loss: f64::from(outcome.loss),
            slopes: outcome.gradients,
        })
    }

    /// The logits of at most a shard of samples.
    pub fn logits(&self, params: &[Param], rows: &[Arc<Row>]) -> Result<Vec<Vec<f32>>> {
        let mut filled = rows.to_vec();
        if let Some(first) = rows.first() {
            filled.resize(self.samples(), first.clone());
        }
        let inputs = self.inputs(&filled, |_, width| vec![1.0; width * filled.len()])?;
        let logits = self.model.forward(&tensors(params), &inputs).map_err(refused)?;
        let view = logits.view();
        let values = view.as_slice::<f32>().map_err(failed_run)?;
        Ok(values
            .chunks(self.model.classes().max(1))
            .take(rows.len())
            .map(<[f32]>::to_vec)
            .collect())
    }

    /// What a shard is given: the rows' tensors, then the masks, in the order of the cut.
    fn inputs(&self, rows: &[Arc<Row>], mask: impl Fn(usize, usize) -> Vec<f32>) -> Result<Vec<Arc<Tensor>>> {
        let width = rows.first().map_or(0, |row| row.tensors().len());
        let mut inputs = Vec::with_capacity(width + self.masks.len());
        for i in 0..width {
            let column: Vec<&Tensor> = rows.iter().filter_map(|row| row.tensors().get(i)).collect();
            inputs.push(Arc::new(Tensor::stack_tensors(0, &column).map_err(failed_run)?));
        }
        for (i, (_, width)) in self.masks.iter().enumerate() {
            let mask = Tensor::from_shape(&[rows.len(), *width], &mask(i, *width)).map_err(failed_run)?;
            inputs.push(Arc::new(mask));
        }
        Ok(inputs)
    }

    /// The masks of a shard's rows for the values in front of a layer.
    fn mask(&self, layer: usize, width: usize, shard: &Shard) -> Vec<f32> {
        let mut mask = vec![0.0; width * shard.rows.len()];
        for (row, mask) in shard.rows.iter().zip(mask.chunks_exact_mut(width.max(1))) {
            dropout_mask(self.seed, layer as u32, shard.step, *row, self.dropout, mask);
        }
        mask
    }
}

fn tensors(params: &[Param]) -> Vec<Arc<Tensor>> {
    params.iter().map(|p| p.tensor().clone()).collect()
}
