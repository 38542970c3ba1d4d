//! The graph of a version, made ready to run on one sample at a time.

use super::base::PREFIX;
use super::check::{MAX_GRAPH_BYTES, external_files, node_name, parse_model};
use super::pb;
use crate::error::{INPUT_SHAPE, INVALID_VERSION, Result, UNSUPPORTED_OPERATOR, WorkerError};
use crate::pipeline::{Dtype, Prepared, TensorSpec};
use crate::version::{BACKBONE, MODEL, TUNED, read_bounded};
use fleetune_gradient::nhwc::{FConv, Isa, rewrite};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;

/// A plan for one sample. Sharing it between threads is cheap; each run has its own state.
pub struct Graph {
    plan: Arc<TypedRunnableModel>,
    outputs: usize,
}

impl Graph {
    /// Opens the graph of the version in `dir`, whose tensors may lie in the version's two weight files only.
    pub fn open(dir: &Path, input: &TensorSpec, output: &TensorSpec) -> Result<Self> {
        let bytes = read_bounded(&dir.join(MODEL), MAX_GRAPH_BYTES)?;
        let mut model = parse_model(&bytes, &external_files(dir, &[BACKBONE, TUNED])?)?;
        super::fold::fold(&mut model, dir)?;
        let folder = dir
            .to_str()
            .ok_or_else(|| WorkerError::bad(INVALID_VERSION, "the version's folder has a name that is not UTF-8"))?;
        let graph = Self::build(&model, Some(folder), input)?;
        let outputs: usize = output.shape.iter().product();
        if graph.outputs != outputs {
            return Err(WorkerError::bad(
                INPUT_SHAPE,
                format!(
                    "the graph gives {} values, {} says {outputs}",
                    graph.outputs, output.name
                ),
            ));
        }
        Ok(graph)
    }

    /// Makes a plan of `model` for one sample of the form `input`; the first output is the result, as f32.
    pub fn build(model: &pb::ModelProto, folder: Option<&str>, input: &TensorSpec) -> Result<Self> {
        Self::build_with(model, folder, input, Some(Isa::native()))
    }

    /// As [`Graph::build`], with the convolution kernels of `isa`, or with tract's own convolutions.
    pub fn build_with(
        model: &pb::ModelProto,
        folder: Option<&str>,
        input: &TensorSpec,
        isa: Option<Isa>,
    ) -> Result<Self> {
        let typed = ready(model, folder, input, isa)?;
        let fact = typed.output_fact(0).map_err(|e| refused(model, &e))?;
        let outputs = fact.shape.as_concrete().map_or(0, |shape| shape.iter().product());
        let plan = typed.into_runnable().map_err(|e| refused(model, &e))?;
        Ok(Self { plan, outputs })
    }

    /// Number of values that [`Graph::run`] gives; 0 where the graph does not say.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Convolutions that run in channels-last kernels of our own.
    pub fn convolutions(&self) -> usize {
        let nodes = &self.plan.model().nodes;
        nodes.iter().filter(|n| n.op_is::<FConv>()).count()
    }

    /// Runs one sample.
    pub fn run(&self, prepared: &Prepared) -> Result<Vec<f32>> {
        let given = prepared_tensors(prepared)?.into_iter().map(IntoTValue::into_tvalue);
        let result = self.plan.run(given.collect()).map_err(failed_run)?;
        let output = result[0].cast_to::<f32>().map_err(failed_run)?;
        let view = output.view();
        view.as_slice::<f32>().map(<[f32]>::to_vec).map_err(failed_run)
    }
}

/// A sample as the graph takes it.
pub(super) fn prepared_tensors(prepared: &Prepared) -> Result<Vec<Tensor>> {
    let shape = prepared.shape();
    let tensor = match prepared {
        Prepared::Pixels { data, .. } => Tensor::from_shape(&shape, data),
        Prepared::Window { data, .. } => Tensor::from_shape(&shape, data),
    };
    Ok(vec![tensor.map_err(failed_run)?])
}

/// A plan of a part of a graph for one sample, with all of the part's outputs.
pub(super) fn plan(model: &pb::ModelProto, tensors: &[TensorSpec]) -> Result<Arc<TypedRunnableModel>> {
    let [tensor] = tensors else {
        return Err(WorkerError::bad(
            crate::error::INTERNAL,
            format!("the frozen part takes {} inputs", tensors.len()),
        ));
    };
    let typed = ready(model, None, tensor, Some(Isa::native()))?;
    typed.into_runnable().map_err(|e| refused(model, &e))
}

/// Types `model`, puts the convolution kernels of `isa` into it, or leaves tract's own, and makes it fast.
fn ready(model: &pb::ModelProto, folder: Option<&str>, input: &TensorSpec, isa: Option<Isa>) -> Result<TypedModel> {
    type_model(model, folder, input)
        .and_then(|typed| match isa {
            Some(isa) => rewrite(&typed, isa).map_err(|e| refused(model, &e)),
            None => Ok(typed),
        })?
        .into_optimized()
        .map_err(|e| refused(model, &e))
}

/// The engine could not run a plan.
#[allow(clippy::needless_pass_by_value)] // It stands behind `map_err`.
pub(super) fn failed_run(error: TractError) -> WorkerError {
    WorkerError::bad(UNSUPPORTED_OPERATOR, format!("running the model: {error:#}"))
}

fn type_model(model: &pb::ModelProto, folder: Option<&str>, input: &TensorSpec) -> Result<TypedModel> {
    let onnx = tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true);
    let failed = |e: TractError| refused(model, &e);
    let parsed = onnx.parse(model, folder).map_err(failed)?;
    if let Some(name) = parsed.unresolved_inputs.first() {
        return Err(WorkerError::bad(
            crate::error::NOT_ONNX,
            format!("a node reads the tensor {name:?}, which no node, input or initializer gives"),
        ));
    }
    let mut inference = parsed.model;
    let sources = inference.input_outlets().map_err(failed)?.len();
    if sources != 1 {
        return Err(WorkerError::bad(
            INPUT_SHAPE,
            format!("the graph takes {sources} inputs, the pipeline gives one"),
        ));
    }
    let dtype = match input.dtype {
        Dtype::Uint8 => u8::datum_type(),
        Dtype::Fp32 => f32::datum_type(),
    };
    inference
        .set_input_fact(0, InferenceFact::dt_shape(dtype, &input.shape))
        .map_err(failed)?;
    inference
        .into_typed()
        .and_then(TypedModel::into_decluttered)
        .map_err(failed)
}

/// Whether the engine has an operator of this name.
pub fn knows(op_type: &str) -> bool {
    static KNOWN: LazyLock<HashSet<String>> = LazyLock::new(|| tract_onnx::onnx().op_register.0.into_keys().collect());
    KNOWN.contains(op_type)
}

/// The shapes of all tensors of `model` for one sample, as far as they can be told.
pub fn shapes(model: &pb::ModelProto, input: &str, shape: &[usize]) -> BTreeMap<String, String> {
    let find = || -> TractResult<BTreeMap<String, String>> {
        let onnx = tract_onnx::onnx()
            .with_ignore_value_info(true)
            .with_ignore_output_shapes(true);
        let parsed = onnx.parse(model, None)?;
        let mut inference = parsed.model;
        if let Some(outlet) = parsed.outlets_by_name.get(input) {
            inference.set_outlet_fact(*outlet, InferenceFact::dt_shape(f32::datum_type(), shape))?;
        }
        // What cannot be told stays unknown; the rest is still worth listing.
        let _ = inference.analyse(true);
        let mut known = BTreeMap::new();
        for (name, outlet) in &parsed.outlets_by_name {
            let fact = inference.outlet_fact(*outlet)?;
            if let Some(shape) = fact.shape.concretize() {
                let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
                known.insert(name.clone(), format!("[{}]", dims.join(", ")));
            }
        }
        Ok(known)
    };
    find().unwrap_or_default()
}

/// Longest text of the engine that a message repeats.
const MAX_CAUSE: usize = 400;

/// What the engine refused, with the operator and node that it names. Where it names none, the first node that holds
/// inner graphs is the likely one, because their shapes depend on data.
fn refused(model: &pb::ModelProto, error: &TractError) -> WorkerError {
    let cause = format!("{error:#}");
    let nodes = model.graph.as_ref().map_or(&[][..], |g| &g.node);
    let named = nodes
        .iter()
        .filter(|n| {
            let name = node_name(n);
            // A quoted name, or one that stands by itself.
            !name.is_empty() && (cause.contains(&format!("{name:?}")) || cause.contains(&format!(" {name} ")))
        })
        .max_by_key(|n| node_name(n).len());
    let inner = || nodes.iter().find(|n| n.attribute.iter().any(|a| a.g.is_some()));
    let place = named.or_else(inner).map_or("the model".to_owned(), |n| {
        format!(
            "operator {} of node {:?}",
            n.op_type,
            node_name(n).trim_start_matches(PREFIX)
        )
    });
    let short: String = cause.replace(PREFIX, "").chars().take(MAX_CAUSE).collect();
    WorkerError::bad(UNSUPPORTED_OPERATOR, format!("{place} cannot be run: {short}"))
}
