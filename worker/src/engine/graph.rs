//! The graph of a version, made ready to run.

use super::base::PREFIX;
use super::check::{MAX_GRAPH_BYTES, external_files, parse_model};
use super::lookup::onnx;
use super::pb;
use crate::error::{INPUT_SHAPE, INTERNAL, INVALID_VERSION, Result, UNSUPPORTED_OPERATOR, WorkerError};
use crate::pipeline::{Dtype, Prepared, TensorSpec};
use crate::version::{BACKBONE, MODEL, TUNED, read_bounded};
use fleetune_gradient::nhwc::{FConv, Isa, Sizes, Stripes, products, rewrite, stripes};
use fleetune_gradient::onnx::node_name;
use fleetune_gradient::profile::{Part, profile};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::DimLike;

/// A plan for one sample, or for so many texts at a time. Sharing it between threads is cheap; each run has its own state.
pub struct Graph {
    plan: Arc<TypedRunnableModel>,
    outputs: usize,
    rows: usize,
    tokens: Tokens,
}

/// Symbol of the number of texts.
const TEXTS: &str = "texts";
/// Largest difference, as a share of the largest value, that padding may make for the engine to leave it out.
const PADDING_TOLERANCE: f32 = 1e-3;
/// Largest difference of the logarithms of two probabilities for the same.
const LOGARITHM_TOLERANCE: f32 = 1e-2;

/// Whether two answers differ by no more than sums in another order do. Probabilities that are close to 0 or 1 hide what
/// lies before them, so of those the logarithms are compared too.
fn alike(a: &[f32], b: &[f32]) -> bool {
    let largest = b.iter().fold(0.0, |most: f32, v| most.max(v.abs()));
    let shares = a.iter().chain(b).all(|v| (0.0..=1.0).contains(v));
    let close = |(a, b): (&f32, &f32)| {
        let logarithms = || (a.max(f32::MIN_POSITIVE).ln() - b.max(f32::MIN_POSITIVE).ln()).abs();
        (a - b).abs() <= PADDING_TOLERANCE * largest && (!shares || logarithms() <= LOGARITHM_TOLERANCE)
    };
    a.len() == b.len() && a.iter().zip(b).all(close)
}

/// How many tokens of a text a plan takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tokens {
    /// As many as the text has, so that no time goes into padding; and as many texts as there are.
    Own,
    /// Always so many, because the model's shapes cannot be told otherwise. 0 where samples are no texts.
    All(usize),
}

impl Graph {
    /// Opens the graph of the version in `dir`, whose tensors may lie in the version's two weight files only.
    pub fn open(dir: &Path, inputs: &[TensorSpec], output: &TensorSpec) -> Result<Self> {
        let bytes = read_bounded(&dir.join(MODEL), MAX_GRAPH_BYTES)?;
        let mut model = parse_model(&bytes, &external_files(dir, &[BACKBONE, TUNED])?)?;
        super::fold::fold(&mut model, dir)?;
        let folder = dir
            .to_str()
            .ok_or_else(|| WorkerError::bad(INVALID_VERSION, "the version's folder has a name that is not UTF-8"))?;
        let graph = Self::build(&model, Some(folder), inputs)?;
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

    /// Makes a plan of `model` for one sample of the form `inputs`; the first output is the result, as f32.
    pub fn build(model: &pb::ModelProto, folder: Option<&str>, inputs: &[TensorSpec]) -> Result<Self> {
        Self::build_rows(model, folder, inputs, 1)
    }

    /// As [`Graph::build`], with the convolution kernels of `isa`, or with tract's own convolutions.
    pub fn build_with(
        model: &pb::ModelProto,
        folder: Option<&str>,
        inputs: &[TensorSpec],
        isa: Option<Isa>,
    ) -> Result<Self> {
        Self::plan(model, folder, inputs, 1, Tokens::All(most_tokens(inputs)), isa)
    }

    /// Makes a plan of `model` for `rows` texts at a time.
    pub fn build_rows(
        model: &pb::ModelProto,
        folder: Option<&str>,
        inputs: &[TensorSpec],
        rows: usize,
    ) -> Result<Self> {
        let most = most_tokens(inputs);
        if most > 0 {
            // Most encoders take any length; some are exported for one.
            let any = Self::plan(model, folder, inputs, rows, Tokens::Own, Some(Isa::native()));
            match any.and_then(|graph| Ok((graph.ignores_padding(most)?, graph))) {
                Ok((true, graph)) => return Ok(graph),
                Ok(_) => tracing::debug!("the graph answers otherwise where a text is padded"),
                Err(error) => tracing::debug!(%error, "the graph does not take texts of any length"),
            }
        }
        Self::plan(model, folder, inputs, rows, Tokens::All(most), Some(Isa::native()))
    }

    /// Whether the answers to two short texts are the same with and without padding to `most` tokens.
    fn ignores_padding(&self, most: usize) -> Result<bool> {
        // Padding that were a copy of the text could not be told from it.
        for (own, word) in [(2, |i| i == 0), (3, |i| i < 3)] as [(usize, fn(usize) -> bool); 2] {
            let mask = (0..most).map(|i| i64::from(i < own)).collect();
            let ids = (0..most).map(|i| i64::from(word(i))).collect();
            let text = Prepared::tokens(ids, mask)?;
            let (bare, padded) = (self.run_tokens(&[&text], own)?, self.run_tokens(&[&text], most)?);
            match (bare.first(), padded.first()) {
                (Some(bare), Some(padded)) if self.outputs > 0 && alike(bare, padded) => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn plan(
        model: &pb::ModelProto,
        folder: Option<&str>,
        inputs: &[TensorSpec],
        rows: usize,
        tokens: Tokens,
        isa: Option<Isa>,
    ) -> Result<Self> {
        let typed = ready(model, folder, inputs, rows, tokens, isa)?;
        let fact = typed.output_fact(0).map_err(|e| refused(model, &e))?;
        let texts = typed.symbols.sym(TEXTS);
        let values = fact.shape.volume().substitute(&texts, &rows.to_dim());
        let values = values.map_err(|e| refused(model, &e))?.to_usize().unwrap_or(0);
        let plan = typed.into_runnable().map_err(|e| refused(model, &e))?;
        Ok(Self {
            plan,
            outputs: values / rows,
            rows,
            tokens,
        })
    }

    /// Number of values that [`Graph::run`] gives; 0 where the graph does not say.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Convolutions that run in channels-last kernels of our own.
    pub fn convolutions(&self) -> usize {
        let joined = |node: &TypedNode| node.op_as().map(Stripes::convolutions);
        let nodes = self.plan.model().nodes.iter();
        nodes
            .map(|n| joined(n).unwrap_or(usize::from(n.op_is::<FConv>())))
            .sum()
    }

    /// Where the time of one sample's run goes, by operator, its parameters and the form of its result.
    pub fn profile(&self, prepared: &Prepared) -> Result<Vec<Part>> {
        let given = prepared_tensors(prepared)?.into_iter().map(IntoTValue::into_tvalue);
        let label = |node: &TypedNode| {
            let info = node.op.info().unwrap_or_default().join(" ");
            let form = node.outputs.first().map(|o| format!("{:?}", o.fact.shape));
            format!("{} {info} {}", node.op.name(), form.unwrap_or_default())
        };
        profile(&self.plan, given.collect(), label).map_err(super::refusal::refused)
    }

    /// Whether texts run at their own length, because the model's answer is the same without padding.
    pub fn takes_any_length(&self) -> bool {
        self.tokens == Tokens::Own
    }

    /// Samples that a plan takes at a time.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Runs one sample.
    pub fn run(&self, prepared: &Prepared) -> Result<Vec<f32>> {
        self.run_rows(&[prepared])?
            .pop()
            .ok_or_else(|| WorkerError::bad(INTERNAL, "a run without an answer"))
    }

    /// Runs as many texts as the plan takes, or fewer; an answer for each. Texts of one length cost no padding.
    pub fn run_rows(&self, prepared: &[&Prepared]) -> Result<Vec<Vec<f32>>> {
        let (Some(first), true) = (prepared.first(), prepared.len() <= self.rows) else {
            return Err(WorkerError::bad(
                INTERNAL,
                format!("{} samples for a plan of {}", prepared.len(), self.rows),
            ));
        };
        if let Prepared::Tokens { .. } = first {
            let tokens = match self.tokens {
                Tokens::Own => prepared.iter().map(|p| p.used()).max().unwrap_or(0),
                Tokens::All(tokens) => tokens,
            };
            return self.run_tokens(prepared, tokens);
        }
        let given = prepared_tensors(first)?.into_iter().map(IntoTValue::into_tvalue);
        self.execute(given.collect(), self.rows, 1)
    }

    /// Runs texts, cut to so many tokens each. Where the plan takes a number of them, the missing ones are the last again.
    fn run_tokens(&self, prepared: &[&Prepared], tokens: usize) -> Result<Vec<Vec<f32>>> {
        let (mut ids, mut masks) = (Vec::new(), Vec::new());
        let last = prepared.last().copied().into_iter().cycle();
        let rows = match self.tokens {
            Tokens::Own => prepared.len(),
            Tokens::All(_) => self.rows,
        };
        for row in prepared.iter().copied().chain(last).take(rows) {
            match row {
                Prepared::Tokens { ids: own, mask } if own.len() >= tokens => {
                    ids.extend_from_slice(&own[..tokens]);
                    masks.extend_from_slice(&mask[..tokens]);
                }
                _ => return Err(WorkerError::bad(INTERNAL, "a text is shorter than the plan takes")),
            }
        }
        let tensor = |values: &[i64]| Tensor::from_shape(&[rows, tokens], values).map_err(failed_run);
        let inputs = tvec![tensor(&ids)?.into_tvalue(), tensor(&masks)?.into_tvalue()];
        self.execute(inputs, rows, prepared.len())
    }

    /// Runs the plan for `rows` rows and gives the answers to the first `count`.
    fn execute(&self, inputs: TVec<TValue>, rows: usize, count: usize) -> Result<Vec<Vec<f32>>> {
        let result = self.plan.run(inputs).map_err(failed_run)?;
        let output = result[0].cast_to::<f32>().map_err(failed_run)?;
        let view = output.view();
        let values = view.as_slice::<f32>().map_err(failed_run)?;
        let one = (values.len() / rows.max(1)).max(1);
        Ok(values.chunks(one).take(count).map(<[f32]>::to_vec).collect())
    }
}

/// A sample as the graph takes it; a text with all its padding.
pub(super) fn prepared_tensors(prepared: &Prepared) -> Result<Vec<Tensor>> {
    let shape = prepared.shape();
    let tensors = match prepared {
        Prepared::Pixels { data, .. } => vec![Tensor::from_shape(&shape, data)],
        Prepared::Window { data, .. } => vec![Tensor::from_shape(&shape, data)],
        Prepared::Tokens { ids, mask } => {
            vec![
                Tensor::from_shape(&[1, ids.len()], ids),
                Tensor::from_shape(&[1, mask.len()], mask),
            ]
        }
    };
    tensors.into_iter().map(|t| t.map_err(failed_run)).collect()
}

/// A plan of a part of a graph for one sample, with all of the part's outputs.
pub(super) fn plan(model: &pb::ModelProto, inputs: &[TensorSpec]) -> Result<Arc<TypedRunnableModel>> {
    let tokens = Tokens::All(most_tokens(inputs));
    let typed = ready(model, None, inputs, 1, tokens, Some(Isa::native()))?;
    typed.into_runnable().map_err(|e| refused(model, &e))
}

/// Types `model`, puts the convolution kernels of `isa` into it, or leaves tract's own, and makes it fast.
fn ready(
    model: &pb::ModelProto,
    folder: Option<&str>,
    inputs: &[TensorSpec],
    rows: usize,
    tokens: Tokens,
    isa: Option<Isa>,
) -> Result<TypedModel> {
    type_model(model, folder, inputs, rows, tokens)?
        .into_decluttered()
        .and_then(|typed| match isa {
            Some(isa) => rewrite(&typed, isa)
                .and_then(|typed| products(typed, isa))
                .and_then(|typed| stripes(typed, Sizes::USUAL)),
            None => Ok(typed),
        })
        .and_then(TypedModel::into_optimized)
        .map_err(|e| refused(model, &e))
}

/// The engine could not run a plan.
#[allow(clippy::needless_pass_by_value)] // It stands behind `map_err`.
pub(super) fn failed_run(error: TractError) -> WorkerError {
    WorkerError::bad(UNSUPPORTED_OPERATOR, format!("running the model: {error:#}"))
}

/// Most tokens of a text, as its inputs say; 0 where samples are no texts.
fn most_tokens(inputs: &[TensorSpec]) -> usize {
    match inputs.first() {
        Some(first) if first.dtype == Dtype::Int64 => first.shape.last().copied().unwrap_or(0),
        _ => 0,
    }
}

/// Types `model` for inputs of the form `inputs`, given in that order.
fn type_model(
    model: &pb::ModelProto,
    folder: Option<&str>,
    inputs: &[TensorSpec],
    rows: usize,
    tokens: Tokens,
) -> Result<TypedModel> {
    let failed = |e: TractError| refused(model, &e);
    let parsed = onnx().parse(model, folder).map_err(failed)?;
    if let Some(name) = parsed.unresolved_inputs.first() {
        return Err(WorkerError::bad(
            crate::error::NOT_ONNX,
            format!("a node reads the tensor {name:?}, which no node, input or initializer gives"),
        ));
    }
    let mut inference = parsed.model;
    let sources = inference.input_outlets().map_err(failed)?.len();
    let mut outlets = Vec::with_capacity(inputs.len());
    for input in inputs {
        outlets.extend(parsed.outlets_by_name.get(&input.name).copied());
    }
    if sources != inputs.len() || outlets.len() != inputs.len() {
        let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
        return Err(WorkerError::bad(
            INPUT_SHAPE,
            format!(
                "the graph takes {sources} inputs, the pipeline gives {}",
                names.join(" and ")
            ),
        ));
    }
    inference.set_input_outlets(&outlets).map_err(failed)?;
    let (any, texts) = (inference.symbols.sym("tokens"), inference.symbols.sym(TEXTS));
    for (i, input) in inputs.iter().enumerate() {
        let dtype = match input.dtype {
            Dtype::Uint8 => u8::datum_type(),
            Dtype::Fp32 => f32::datum_type(),
            Dtype::Int64 => i64::datum_type(),
        };
        let mut shape: TVec<TDim> = input.shape.iter().map(ToDim::to_dim).collect();
        if rows > 1 {
            shape[0] = rows.to_dim();
        }
        if let (Tokens::Own, [first, .., last]) = (tokens, &mut shape[..]) {
            if rows > 1 {
                *first = texts.clone().into();
            }
            *last = any.clone().into();
        }
        inference
            .set_input_fact(i, InferenceFact::dt_shape(dtype, shape))
            .map_err(failed)?;
    }
    inference.into_typed().map_err(failed)
}

/// The shape of the first output of `model` for one sample; empty where it cannot be told.
pub fn shape_of(model: &pb::ModelProto, inputs: &[TensorSpec]) -> Result<Vec<usize>> {
    let shape = |typed: &TypedModel| -> Result<Option<Vec<usize>>> {
        let fact = typed.output_fact(0).map_err(|e| refused(model, &e))?;
        Ok(fact.shape.as_concrete().map(<[usize]>::to_vec))
    };
    let typed = type_model(model, None, inputs, 1, Tokens::All(most_tokens(inputs)))?;
    if let Some(shape) = shape(&typed)? {
        return Ok(shape);
    }
    // Simplifying takes most of the time, and tells the shape of a graph that computes it.
    let simple = typed.into_decluttered().map_err(|e| refused(model, &e))?;
    Ok(shape(&simple)?.unwrap_or_default())
}

/// Whether the engine has an operator of this name.
pub fn knows(op_type: &str) -> bool {
    static KNOWN: LazyLock<HashSet<String>> = LazyLock::new(|| tract_onnx::onnx().op_register.0.into_keys().collect());
    KNOWN.contains(op_type)
}

/// What an input of a base model takes for one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    /// The input.
    pub name: String,
    /// Its element type.
    pub kind: pb::tensor_proto::DataType,
    /// Its shape, with the batch of one.
    pub shape: Vec<usize>,
}

/// The shapes of all tensors of `model` for one sample, as far as they can be told.
pub fn shapes(model: &pb::ModelProto, feeds: &[Feed]) -> BTreeMap<String, Vec<usize>> {
    use pb::tensor_proto::DataType;
    let find = || -> TractResult<BTreeMap<String, Vec<usize>>> {
        let parsed = onnx().parse(model, None)?;
        let mut inference = parsed.model;
        for feed in feeds {
            let dtype = match feed.kind {
                DataType::Int64 => i64::datum_type(),
                _ => f32::datum_type(),
            };
            if let Some(outlet) = parsed.outlets_by_name.get(&feed.name) {
                inference.set_outlet_fact(*outlet, InferenceFact::dt_shape(dtype, &feed.shape))?;
            }
        }
        // What cannot be told stays unknown; the rest is still worth listing.
        let _ = inference.analyse(true);
        let mut known = BTreeMap::new();
        for (name, outlet) in &parsed.outlets_by_name {
            let fact = inference.outlet_fact(*outlet)?;
            let dims = fact.shape.concretize().unwrap_or_default();
            let dims: Option<Vec<usize>> = dims.iter().map(|d| d.to_usize().ok()).collect();
            if let (true, Some(shape)) = (fact.shape.concretize().is_some(), dims) {
                known.insert(name.clone(), shape);
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
