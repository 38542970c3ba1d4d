//! A model that can be trained: an ONNX graph of which some weights are inputs, joined by its loss and its gradient into
//! one plan of the engine.

use crate::backward::differentiate_with;
use crate::batch_norm;
use crate::error::Refusal;
use crate::losses::Loss;
use crate::memory::{self, Estimate};
use crate::nhwc::{self, Isa};
use crate::onnx;
use crate::ops::gather::{self, GatherGrad};
use crate::profile::{Part, profile};
use crate::recompute::Activations;
use crate::slope::Slope;
use std::collections::HashMap;
use std::sync::Arc;
use tract_onnx::pb;
use tract_onnx::prelude::{
    DatumType, InferenceFact, InferenceModelExt, IntoTValue, OutletId, RunOptions, TValue, TVec, Tensor, TypedModel,
    TypedRunnableModel, tvec,
};
use tract_onnx::tract_core::internal::{
    AxisOp, Cost, DatumExt, DimLike, IntoTensor, SpecialOps, TDim, ToDim, TractError,
};
use tract_onnx::tract_hir::infer::Factoid;

/// An input of the graph with the shape that it has in every run, batch included.
#[derive(Clone, Debug)]
pub struct Input {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub datum_type: DatumType,
    /// Its shape, of which the first dimension counts samples.
    pub shape: Vec<usize>,
}

/// What one run gives.
pub struct Outcome {
    /// L = Σᵢ wᵢ·lᵢ, see [`Loss`].
    pub loss: f32,
    /// The logits, \[n, c\].
    pub logits: Tensor,
    /// ∂L/∂w for each trained weight, in the order in which they were named.
    pub gradients: Vec<Slope>,
}

impl Outcome {
    /// All gradients whole, in the shapes of `weights`.
    pub fn whole(self, weights: &[Arc<Tensor>]) -> Vec<Tensor> {
        let slopes = self.gradients.into_iter().zip(weights);
        slopes.map(|(slope, weight)| slope.whole(weight.shape())).collect()
    }
}

/// A gradient that the plan gives.
struct Given {
    /// Number of the trained weight.
    weight: usize,
    /// The length of a table of which the plan gives the rows that were read, then their numbers, instead of the whole
    /// gradient.
    table: Option<usize>,
}

/// A model for one batch size. Runs may go on in many threads at once: each has a state of its own.
pub struct Differentiable {
    step: Arc<TypedRunnableModel>,
    forward: Arc<TypedRunnableModel>,
    estimate: Estimate,
    samples: usize,
    classes: usize,
    reuse: f64,
    /// What the plan gives after loss and logits, in its order.
    gradients: Vec<Given>,
}

impl Differentiable {
    /// Makes the model whose weights `trained` (initializers of f32) are given anew for every run and differentiated. All
    /// others stay constants, so that the engine folds what it can.
    ///
    /// The weights become inputs before the engine simplifies the graph: it would delete those that happen to do nothing,
    /// such as the ones and zeros of a fresh normalisation.
    ///
    /// # Errors
    /// [`Refusal::NothingToTrain`] where `trained` is empty or `output` depends on none of it;
    /// [`Refusal::UnsupportedOperator`] where a gradient would have to pass an operator without a rule.
    pub fn build(
        model: &pb::ModelProto,
        inputs: &[Input],
        output: &str,
        trained: &[String],
        loss: Loss,
    ) -> Result<Self, Refusal> {
        Self::build_with(model, inputs, output, trained, loss, Activations::Kept)
    }

    /// As [`build`](Self::build), with `activations` kept or computed again: less memory and more time.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_with(
        model: &pb::ModelProto,
        inputs: &[Input],
        output: &str,
        trained: &[String],
        loss: Loss,
        activations: Activations,
    ) -> Result<Self, Refusal> {
        let (mut typed, logits) = load(model, inputs, output, trained)?;
        let shape = typed
            .outlet_fact(logits)?
            .shape
            .as_concrete()
            .unwrap_or_default()
            .to_vec();
        let [samples, classes] = shape[..] else {
            return Err(Refusal::Shape {
                name: output.to_owned(),
                have: shape,
                want: "[samples, values]".to_owned(),
            });
        };
        let multiplications = multiplications(&typed)?;
        let forward = runnable(typed.clone(), &RunOptions::default())?;

        let weights: Vec<OutletId> = typed.input_outlets()?[inputs.len()..].to_vec();
        let mut values = 0;
        for weight in &weights {
            values += count(&typed.outlet_fact(*weight)?.shape.volume())?;
        }
        let target = typed.add_source("target", f32::fact([samples, classes]))?;
        let rows = typed.add_source("row_weights", f32::fact([samples]))?;
        let total = loss.wire(&mut typed, logits, target, rows)?;
        let gradients = differentiate_with(&mut typed, total, &weights, activations)?;
        let mut outputs = vec![total, logits];
        let mut given = Vec::with_capacity(gradients.len());
        let mut walk: Vec<(usize, OutletId)> = gradients.into_iter().enumerate().collect();
        // The plan computes its outputs one after the other: each gradient as soon as the backward pass has come so far,
        // so that what it is computed from need not stay.
        walk.sort_by_key(|(_, gradient)| gradient.node);
        for (weight, gradient) in walk {
            // The gradient of a table of words is as large as the table, and almost all of it is 0.
            let node = typed.node(gradient.node);
            let table = node.op_as::<GatherGrad>().and_then(GatherGrad::table);
            match table {
                Some(_) => outputs.extend(node.inputs.iter().copied()),
                None => outputs.push(gradient),
            }
            given.push(Given { weight, table });
        }
        typed.select_output_outlets(&outputs)?;
        let in_order = RunOptions {
            skip_order_opt_ram: true,
            ..RunOptions::default()
        };
        let step = runnable(typed, &in_order)?;
        let estimate = memory::estimate(&step)?;
        Ok(Self {
            step,
            forward,
            estimate,
            samples,
            classes,
            gradients: given,
            reuse: multiplications / values.max(1) as f64 / samples.max(1) as f64,
        })
    }

    /// Samples of one run.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Logits of one sample.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Multiplications of the forward pass for one sample, for each value of the trained weights: 1 where all of them are
    /// dense layers, the number of its places for a convolution.
    pub fn reuse(&self) -> f64 {
        self.reuse
    }

    /// What one run needs.
    pub fn memory(&self) -> Estimate {
        self.estimate
    }

    /// Loss, logits and gradients. `weights` are those named in `trained`, in that order; `target` is \[n, c\] and
    /// `row_weights` \[n\], see [`Loss`].
    pub fn run(
        &self,
        weights: &[Arc<Tensor>],
        inputs: &[Arc<Tensor>],
        target: &Arc<Tensor>,
        row_weights: &Arc<Tensor>,
    ) -> Result<Outcome, Refusal> {
        let given = inputs.iter().chain(weights).chain([target, row_weights]);
        let mut outputs = run(&self.step, given)?.into_iter();
        let (Some(loss), Some(logits)) = (outputs.next(), outputs.next()) else {
            return Err(Refusal::Unsound("the step gave no loss".to_owned()));
        };
        let mut gradients = Vec::with_capacity(self.gradients.len());
        for Given { weight, table } in &self.gradients {
            let values = outputs.next().map(TValue::into_tensor);
            let values = values.ok_or_else(|| Refusal::Unsound("the step gave too few gradients".to_owned()))?;
            let slope = match table {
                None => Slope::Whole(values),
                Some(length) => Slope::Rows {
                    numbers: numbers(outputs.next(), *length)?,
                    values,
                },
            };
            gradients.push((weight, slope));
        }
        gradients.sort_by_key(|(weight, _)| **weight);
        Ok(Outcome {
            loss: loss.cast_to_scalar::<f32>()?,
            logits: logits.into_tensor(),
            gradients: gradients.into_iter().map(|(_, slope)| slope).collect(),
        })
    }

    /// Where the time of one [`run`](Self::run) goes.
    pub fn profile(
        &self,
        weights: &[Arc<Tensor>],
        inputs: &[Arc<Tensor>],
        target: &Arc<Tensor>,
        row_weights: &Arc<Tensor>,
    ) -> Result<Vec<Part>, Refusal> {
        let given = inputs.iter().chain(weights).chain([target, row_weights]);
        profile(&self.step, given.map(|t| t.clone().into_tvalue()).collect(), |node| {
            node.op.name().into_owned()
        })
    }

    /// The logits alone, \[n, c\].
    pub fn forward(&self, weights: &[Arc<Tensor>], inputs: &[Arc<Tensor>]) -> Result<Tensor, Refusal> {
        let mut outputs = run(&self.forward, inputs.iter().chain(weights))?;
        Ok(outputs.remove(0).into_tensor())
    }
}

fn run<'t>(
    plan: &Arc<TypedRunnableModel>,
    given: impl Iterator<Item = &'t Arc<Tensor>>,
) -> Result<TVec<TValue>, Refusal> {
    let given: TVec<TValue> = given.map(|t| t.clone().into_tvalue()).collect();
    plan.run(given).map_err(Refusal::engine("running a step"))
}

fn runnable(model: TypedModel, options: &RunOptions) -> Result<Arc<TypedRunnableModel>, Refusal> {
    model
        .into_decluttered()
        .and_then(|model| nhwc::products(model, Isa::native()))
        .and_then(TypedModel::into_optimized)
        .and_then(|model| model.into_runnable_with_options(options))
        .map_err(Refusal::engine("preparing the graph"))
}

/// Multiplications of one run, as far as operators tell their number: products of matrices and convolutions do.
fn multiplications(model: &TypedModel) -> Result<f64, Refusal> {
    let mut sum = 0.0;
    for node in model.nodes() {
        let facts = model.node_input_facts(node.id)?;
        for (cost, number) in node.op.cost(&facts)? {
            if let Cost::FMA(_) = cost {
                sum += count(&number)? as f64;
            }
        }
    }
    Ok(sum)
}

/// The rows that indices name in a table of so many; the forward pass has read them, so they are inside.
fn numbers(indices: Option<TValue>, rows: usize) -> Result<Vec<usize>, Refusal> {
    let indices = indices.ok_or_else(|| Refusal::Unsound("the step gave no indices".to_owned()))?;
    let indices = indices.cast_to::<i64>()?;
    let inside = |index: &i64| {
        gather::inside(*index, rows)
            .ok_or_else(|| Refusal::Unsound(format!("index {index} is outside of a table of {rows} rows")))
    };
    indices
        .try_as_plain_ram()?
        .as_slice::<i64>()?
        .iter()
        .map(inside)
        .collect()
}

fn count(dim: &TDim) -> Result<usize, Refusal> {
    Ok(dim.to_usize().map_err(TractError::from)?)
}

/// Shapes that an exporter wrote clash with those of the batch.
fn reader() -> tract_onnx::Onnx {
    tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true)
}

/// The typed graph of `output` with the inputs and then the weights as its inputs; the logits are \[n, c\].
fn load(
    model: &pb::ModelProto,
    inputs: &[Input],
    output: &str,
    trained: &[String],
) -> Result<(TypedModel, OutletId), Refusal> {
    let proto = promoted(model, inputs, output, trained)?;
    let onnx = tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true);
    let parsed = onnx.parse(&proto, None).map_err(Refusal::engine("reading the graph"))?;
    if let Some(name) = parsed.unresolved_inputs.into_iter().next() {
        return Err(Refusal::NoSuchTensor { what: "tensor", name });
    }
    let mut inference = parsed.model;
    for (i, input) in inputs.iter().enumerate() {
        inference.set_input_fact(i, InferenceFact::dt_shape(input.datum_type, &input.shape))?;
    }
    let typed = inference
        .into_typed()
        .and_then(TypedModel::into_decluttered)
        .map_err(Refusal::engine("typing the graph"))?;
    let mut typed = nhwc::rewrite(&typed, Isa::native()).map_err(Refusal::engine("rewriting convolutions"))?;
    let logits = flattened(&mut typed, output)?;
    typed.select_output_outlets(&[logits])?;
    Ok((typed, logits))
}

/// The graph with `trained` as inputs instead of initializers, and no more of it than `output` needs.
fn promoted(
    model: &pb::ModelProto,
    inputs: &[Input],
    output: &str,
    trained: &[String],
) -> Result<pb::ModelProto, Refusal> {
    let ranks = ranks(model, inputs, trained)?;
    let whole = model
        .graph
        .as_ref()
        .ok_or_else(|| Refusal::Unsound("the model holds no graph".to_owned()))?;
    let mut given_graph = without(whole, trained);
    let graph = &mut given_graph;
    batch_norm::expand(graph, trained, &|name| ranks.get(name).copied())?;
    if onnx::Producers::of(graph).get(output).is_none() {
        return Err(Refusal::NoSuchTensor {
            what: "output",
            name: output.to_owned(),
        });
    }
    let mut given: Vec<pb::ValueInfoProto> = Vec::new();
    for input in inputs {
        let info = graph.input.iter().find(|i| i.name == input.name);
        given.push(info.cloned().ok_or_else(|| Refusal::NoSuchTensor {
            what: "input",
            name: input.name.clone(),
        })?);
    }
    for (name, weight) in trained.iter().zip(onnx::weights(whole, trained)?) {
        given.push(onnx::float_info(name, weight.shape()));
    }
    graph.output = vec![pb::ValueInfoProto {
        name: output.to_owned(),
        ..Default::default()
    }];
    onnx::prune(graph, &[output]);
    let read: Vec<&str> = graph.node.iter().flat_map(onnx::reads).collect();
    if !trained.iter().any(|name| read.contains(&name.as_str())) {
        return Err(Refusal::NothingToTrain(format!(
            "{output:?} depends on none of the {} weights that were named",
            trained.len()
        )));
    }
    graph.input = given;
    onnx::set_apart(graph);
    Ok(pb::ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        functions: model.functions.clone(),
        graph: Some(given_graph),
        ..Default::default()
    })
}

/// A copy of the graph without the values of some initializers, which may be most of it.
fn without(graph: &pb::GraphProto, initializers: &[String]) -> pb::GraphProto {
    let kept = graph.initializer.iter().filter(|t| !initializers.contains(&t.name));
    pb::GraphProto {
        name: graph.name.clone(),
        node: graph.node.clone(),
        initializer: kept.cloned().collect(),
        input: graph.input.clone(),
        ..Default::default()
    }
}

/// The number of axes of each tensor, as far as it is needed to write out batch normalisations.
fn ranks(model: &pb::ModelProto, inputs: &[Input], trained: &[String]) -> Result<HashMap<String, usize>, Refusal> {
    if !model
        .graph
        .as_ref()
        .is_some_and(|graph| batch_norm::has_trained(graph, trained))
    {
        return Ok(HashMap::new());
    }
    let mut parsed = reader()
        .parse(model, None)
        .map_err(Refusal::engine("reading the graph"))?;
    for input in inputs {
        if let Some(outlet) = parsed.outlets_by_name.get(&input.name) {
            let fact = InferenceFact::dt_shape(input.datum_type, &input.shape);
            parsed.model.set_outlet_fact(*outlet, fact)?;
        }
    }
    parsed
        .model
        .analyse(true)
        .map_err(Refusal::engine("typing the graph"))?;
    let mut ranks = HashMap::new();
    for (name, outlet) in parsed.outlets_by_name {
        let shape = &parsed.model.outlet_fact(outlet)?.shape;
        ranks.extend(shape.rank().concretize().map(|rank| (name, rank as usize)));
    }
    Ok(ranks)
}

/// The output as \[n, c\]: trailing dimensions are joined.
fn flattened(typed: &mut TypedModel, output: &str) -> Result<OutletId, Refusal> {
    let outlet = typed.output_outlets()?[0];
    let fact = typed.outlet_fact(outlet)?;
    let shape = fact.shape.as_concrete().ok_or_else(|| Refusal::OpenShape {
        node: output.to_owned(),
        shape: format!("{:?}", fact.shape),
    })?;
    if shape.len() < 3 {
        return Ok(outlet);
    }
    let rest: TVec<_> = shape[1..].iter().map(ToDim::to_dim).collect();
    let joined: usize = shape[1..].iter().product();
    let flat = AxisOp::Reshape(1, rest, tvec![joined.to_dim()]);
    Ok(typed.wire_node("logits", flat, &[outlet])?[0])
}
