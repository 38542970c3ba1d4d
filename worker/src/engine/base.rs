//! A base model: checked against its hash and bounds, and cut at the feature tensor. What lies behind the cut is dropped,
//! what lies before it is frozen. It decides where the cut is; it trains nothing.

use super::check::{ExternalFiles, parse_model};
use super::graph::{Feed, shape_of, shapes};
use super::names::{Wiring, prefix_graph, set_nodes_apart};
use super::{build, pb};
use crate::error::{
    FEATURES_NOT_FOUND, INPUT_SHAPE, MODEL_MISMATCH, MODEL_TOO_LARGE, NOT_FINITE, NOT_ONNX, Result,
    UNSUPPORTED_OPERATOR, WorkerError,
};
use crate::pipeline::{INPUT_IDS, INPUT_MASK, Kind, TensorSpec};
use fleetune_crds::Input;
use fleetune_gradient::onnx::node_name;
use pb::tensor_proto::DataType;
use pb::type_proto::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;

/// Every name of the base model gets this in front, so that none meets a name of ours.
pub const PREFIX: &str = "base/";
/// Most features of a sample.
const MAX_FEATURES: usize = 1 << 18;
/// Most candidates that an error lists.
const MAX_LISTED: usize = 12;

/// A checked base model.
pub struct Base {
    model: pb::ModelProto,
    inputs: Vec<String>,
}

/// Name of the optional third input of a text encoder: always 0 here, because a sample is one text.
pub const INPUT_TYPES: &str = "token_type_ids";

/// What is left of a base model in front of the cut.
#[derive(Clone, Debug)]
pub struct Backbone {
    /// Nodes in order.
    pub nodes: Vec<pb::NodeProto>,
    /// Frozen tensors in graph order, all with raw bytes.
    pub initializers: Vec<pb::TensorProto>,
    /// Names of the inputs that are read.
    pub inputs: Vec<String>,
    /// Name of the feature tensor.
    pub features: String,
    /// Whether that is one vector a token, `[1, tokens, width]`, which the graph pools.
    pub by_token: bool,
    /// Of texts: how many different tokens there are; a larger number would lie outside a table, which the engine does
    /// not survive. 0 where samples are no texts.
    pub vocabulary: usize,
    /// Features of one sample.
    pub width: usize,
    /// The model's operator sets.
    pub opset: Vec<pb::OperatorSetIdProto>,
    /// The model's IR version.
    pub ir_version: i64,
}

impl Base {
    /// Reads the model at `path`, which must have the SHA-256 `sha256` (64 hex digits) and at most `max` bytes.
    pub fn load(path: &Path, sha256: &str, max: u64) -> Result<Self> {
        let io = |e: std::io::Error| WorkerError::io("reading", path, &e);
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > max {
            return Err(WorkerError::bad(
                MODEL_TOO_LARGE,
                format!("the base model has {size} bytes, at most {max} are taken: use a smaller model"),
            ));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let have = hex::encode(Sha256::digest(&bytes));
        if have != sha256 {
            return Err(WorkerError::bad(
                MODEL_MISMATCH,
                format!("the base model has sha256 {have}, spec.baseModel says {sha256}: name the right file or hash"),
            ));
        }
        Self::parse(&bytes)
    }

    /// Parses a model from its bytes. It must be one file: external data is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut model = parse_model(bytes, &ExternalFiles::new())?;
        let graph = model.graph.get_or_insert_default();
        // Intermediate shapes of an exporter clash with the fixed shape that we give.
        graph.value_info.clear();
        let given: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let inputs: Vec<&pb::ValueInfoProto> = graph
            .input
            .iter()
            .filter(|i| !given.contains(i.name.as_str()))
            .collect();
        let inputs = inputs.into_iter().map(|i| i.name.clone()).collect();
        Ok(Self { model, inputs })
    }

    /// Whether the model's inputs are those that samples of this kind have.
    fn check_names(&self, kind: Kind<'_>) -> Result<()> {
        let has = |name: &str| self.inputs.iter().any(|i| i == name);
        let (fits, needed) = match kind {
            Kind::Image(_) | Kind::Sensor(_) => (self.inputs.len() == 1, "one is needed".to_owned()),
            Kind::Text(_) => (
                has(INPUT_IDS)
                    && has(INPUT_MASK)
                    && self
                        .inputs
                        .iter()
                        .all(|i| [INPUT_IDS, INPUT_MASK, INPUT_TYPES].contains(&i.as_str())),
                format!("a text needs {INPUT_IDS}, {INPUT_MASK} and, if you like, {INPUT_TYPES}"),
            ),
        };
        if fits {
            return Ok(());
        }
        Err(WorkerError::bad(
            INPUT_SHAPE,
            format!(
                "the base model takes {} inputs ({}), {needed}",
                self.inputs.len(),
                self.inputs.join(", ")
            ),
        ))
    }

    /// What each input takes for one sample of this kind.
    fn feeds(&self, kind: Kind<'_>) -> Vec<Feed> {
        let (shape, kind) = model_shape(kind);
        let feed = |name: &String| Feed {
            name: name.clone(),
            kind,
            shape: shape.clone(),
        };
        self.inputs.iter().map(feed).collect()
    }

    fn graph(&self) -> Result<&pb::GraphProto> {
        self.model
            .graph
            .as_ref()
            .ok_or_else(|| WorkerError::bad(NOT_ONNX, "the model holds no graph"))
    }

    /// Cuts the model at `features` (by default the input of the last MatMul or Gemm) for samples of the form `input`.
    pub fn cut(&self, features: Option<&str>, input: &Input, tensors: &[TensorSpec]) -> Result<Backbone> {
        let kind = Kind::of(input)?;
        self.check_names(kind)?;
        let want = self.feeds(kind);
        for feed in &want {
            self.check_input(feed)?;
        }
        let graph = self.graph()?;
        let wiring = Wiring::of(graph);
        let name = match features {
            Some(name) if wiring.producer(name).is_some() => name.to_owned(),
            Some(name) => {
                return Err(self.no_features(
                    &want,
                    &format!("the base model has no tensor {name:?} that a node gives"),
                ));
            }
            None => self
                .output_by_token(kind, &want)
                .or_else(|| default_features(graph, &wiring))
                .ok_or_else(|| self.no_features(&want, "the base model has no MatMul or Gemm with constant weights"))?,
        };
        let alive = wiring.alive(graph, &name);
        let mut part = pb::GraphProto::default();
        let mut used: BTreeSet<String> = BTreeSet::new();
        for (node, keep) in graph.node.iter().zip(&alive) {
            if *keep {
                check_operator(node)?;
                used.extend(super::names::reads(node));
                part.node.push(node.clone());
            }
        }
        let read: Vec<&String> = self.inputs.iter().filter(|i| used.contains(*i)).collect();
        if read.is_empty() {
            return Err(self.no_features(
                &want,
                &format!("the tensor {name:?} does not depend on the model's input"),
            ));
        }
        part.initializer = graph
            .initializer
            .iter()
            .filter(|t| used.contains(&t.name))
            .cloned()
            .collect();
        set_nodes_apart(&mut part, &self.inputs);
        prefix_graph(&mut part, PREFIX);
        let (nodes, initializers) = build::freeze(part)?;
        if let Some(tensor) = initializers.iter().find(|t| holds_nan(t)) {
            return Err(WorkerError::bad(
                NOT_FINITE,
                format!(
                    "tensor {:?} of the base model holds NaN: export it anew",
                    tensor.name.trim_start_matches(PREFIX)
                ),
            ));
        }
        let mut backbone = Backbone {
            nodes,
            initializers,
            inputs: read.iter().map(|i| format!("{PREFIX}{i}")).collect(),
            features: format!("{PREFIX}{name}"),
            by_token: false,
            vocabulary: 0,
            width: 0,
            opset: self.model.opset_import.clone(),
            ir_version: self.model.ir_version,
        };
        if let Kind::Text(text) = kind {
            backbone.vocabulary = vocabulary(&backbone).ok_or_else(|| {
                WorkerError::bad(
                    INPUT_SHAPE,
                    format!("the base model looks up no table of words by {INPUT_IDS}: is it an encoder of texts?"),
                )
            })?;
            let shape = shape_of(&build::cut_model(&backbone, kind, tensors)?, tensors)?;
            backbone.by_token = is_by_token(&shape, text.max_tokens);
        }
        let shape = shape_of(&build::features_model(&backbone, input, tensors)?, tensors)?;
        backbone.width = if shape.is_empty() { 0 } else { shape.iter().product() };
        if !(1..=MAX_FEATURES).contains(&backbone.width) {
            return Err(self.no_features(
                &want,
                &format!(
                    "the tensor {name:?} has {} values for a sample, not 1 to {MAX_FEATURES}",
                    backbone.width
                ),
            ));
        }
        Ok(backbone)
    }

    /// The first output with one vector a token, where samples are texts.
    fn output_by_token(&self, kind: Kind<'_>, want: &[Feed]) -> Option<String> {
        let Kind::Text(text) = kind else { return None };
        let known = shapes(&self.model, want);
        let outputs = self.graph().ok()?.output.iter();
        outputs
            .map(|o| &o.name)
            .find(|name| {
                known
                    .get(*name)
                    .is_some_and(|shape| is_by_token(shape, text.max_tokens))
            })
            .cloned()
    }

    fn check_input(&self, feed: &Feed) -> Result<()> {
        let Feed { name, shape: want, .. } = feed;
        let graph = self.graph()?;
        let info = graph
            .input
            .iter()
            .find(|i| i.name == *name)
            .and_then(|i| i.r#type.as_ref());
        let Some(pb::TypeProto {
            value: Some(Value::TensorType(tensor)),
            ..
        }) = info
        else {
            return Ok(());
        };
        if tensor.elem_type != feed.kind as i32 {
            return Err(WorkerError::bad(
                INPUT_SHAPE,
                format!(
                    "the base model's input {name:?} has element type {}, {:?} is needed",
                    tensor.elem_type, feed.kind
                ),
            ));
        }
        let Some(shape) = &tensor.shape else { return Ok(()) };
        let have: Vec<Option<i64>> = shape
            .dim
            .iter()
            .map(|d| match d.value {
                Some(pb::tensor_shape_proto::dimension::Value::DimValue(n)) if n > 0 => Some(n),
                _ => None,
            })
            .collect();
        let fits = have.len() == want.len()
            && have
                .iter()
                .zip(want)
                .all(|(h, w)| h.is_none_or(|n| usize::try_from(n) == Ok(*w)));
        if fits {
            return Ok(());
        }
        let shown: Vec<String> = have
            .iter()
            .map(|d| d.map_or("?".to_owned(), |n| n.to_string()))
            .collect();
        Err(WorkerError::bad(
            INPUT_SHAPE,
            format!(
                "the base model's input {name:?} has shape [{}], spec.input gives {want:?} (one sample at a time): change \
                 spec.input, or export the model for that shape",
                shown.join(", ")
            ),
        ))
    }

    fn no_features(&self, want: &[Feed], why: &str) -> WorkerError {
        let listed: Vec<String> = self
            .candidates(want)
            .into_iter()
            .map(|(name, shape)| format!("{name} {shape}"))
            .collect();
        WorkerError::bad(
            FEATURES_NOT_FOUND,
            format!(
                "{why}: name one in spec.baseModel.features; candidates: {}",
                if listed.is_empty() {
                    "none".to_owned()
                } else {
                    listed.join(", ")
                }
            ),
        )
    }

    /// Tensors that can be features, nearest to the output first, with their shapes for one sample.
    pub fn candidates(&self, want: &[Feed]) -> Vec<(String, String)> {
        let Ok(graph) = self.graph() else { return Vec::new() };
        let wiring = Wiring::of(graph);
        let known = shapes(&self.model, want);
        let mut names: Vec<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
        for node in graph.node.iter().rev() {
            match node.op_type.as_str() {
                "MatMul" | "Gemm" => {
                    names.extend(node.input.iter().map(String::as_str).filter(|i| !wiring.is_constant(i)));
                }
                "GlobalAveragePool" | "ReduceMean" | "Flatten" => {
                    names.extend(node.output.iter().map(String::as_str));
                }
                _ => {}
            }
        }
        let mut seen = BTreeSet::new();
        names
            .into_iter()
            .filter(|n| wiring.producer(n).is_some() && seen.insert(*n))
            .take(MAX_LISTED)
            .map(|n| {
                let shape = known
                    .get(n)
                    .map_or_else(|| "[?]".to_owned(), |shape| format!("{shape:?}"));
                (n.to_owned(), shape)
            })
            .collect()
    }
}

/// Shape and element type of what each input of the base model takes for one sample.
fn model_shape(kind: Kind<'_>) -> (Vec<usize>, DataType) {
    match kind {
        Kind::Image(image) => (vec![1, 3, image.size as usize, image.size as usize], DataType::Float),
        Kind::Sensor(sensor) => (
            vec![1, sensor.channels as usize, sensor.window as usize],
            DataType::Float,
        ),
        Kind::Text(text) => (vec![1, text.max_tokens as usize], DataType::Int64),
    }
}

/// Rows of the smallest table that is looked up by the numbers of the tokens, as they are or reshaped; at least 2.
fn vocabulary(backbone: &Backbone) -> Option<usize> {
    let mut ids = BTreeSet::from([format!("{PREFIX}{INPUT_IDS}")]);
    let mut rows: Option<usize> = None;
    for node in &backbone.nodes {
        let reads = |at: usize| node.input.get(at).is_some_and(|name| ids.contains(name));
        match node.op_type.as_str() {
            "Cast" | "Identity" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Transpose" if reads(0) => {
                ids.extend(node.output.iter().cloned());
            }
            "Gather" if reads(1) => {
                let axis = node.attribute.iter().find(|a| a.name == "axis").map_or(0, |a| a.i);
                let table = backbone
                    .initializers
                    .iter()
                    .find(|t| Some(&t.name) == node.input.first())?;
                let length = table.dims.get(usize::try_from(axis).ok()?)?;
                let length = usize::try_from(*length).ok()?;
                rows = Some(rows.map_or(length, |rows| rows.min(length)));
            }
            _ => {}
        }
    }
    rows.filter(|rows| *rows >= 2)
}

/// Whether a tensor with raw bytes holds a value that is not a number. A ReLU could hide it from what comes out.
fn holds_nan(tensor: &pb::TensorProto) -> bool {
    let bytes = tensor.raw_data.as_slice();
    match DataType::try_from(tensor.data_type) {
        Ok(DataType::Float) => bytes.as_chunks::<4>().0.iter().any(|b| f32::from_le_bytes(*b).is_nan()),
        Ok(DataType::Double) => bytes.as_chunks::<8>().0.iter().any(|b| f64::from_le_bytes(*b).is_nan()),
        // Half precision: all bits of the exponent, and one behind them.
        Ok(DataType::Float16) => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .any(|b| u16::from_le_bytes(*b) & 0x7fff > 0x7c00),
        _ => false,
    }
}

/// Whether a tensor of one text is one vector a token.
fn is_by_token(shape: &[usize], tokens: u32) -> bool {
    matches!(shape, [1, n, _] if *n == tokens as usize)
}

/// The input of the last MatMul or Gemm with constant weights that an output depends on.
fn default_features(graph: &pb::GraphProto, wiring: &Wiring) -> Option<String> {
    let mut needed = vec![false; graph.node.len()];
    for output in &graph.output {
        for (n, alive) in needed.iter_mut().zip(wiring.alive(graph, &output.name)) {
            *n |= alive;
        }
    }
    graph
        .node
        .iter()
        .zip(&needed)
        .rev()
        .filter(|(node, needed)| **needed && matches!(node.op_type.as_str(), "MatMul" | "Gemm"))
        .find_map(|(node, _)| match node.input.get(..2)? {
            [data, weights] if wiring.is_constant(weights) && !wiring.is_constant(data) => Some(data.clone()),
            [weights, data] if wiring.is_constant(weights) && !wiring.is_constant(data) => Some(data.clone()),
            _ => None,
        })
        .filter(|name| wiring.producer(name).is_some())
}

fn check_operator(node: &pb::NodeProto) -> Result<()> {
    if !super::graph::knows(&node.op_type) {
        let domain = if node.domain.is_empty() { "" } else { " of domain " };
        return Err(WorkerError::bad(
            UNSUPPORTED_OPERATOR,
            format!(
                "operator {}{domain}{} of node {:?} is not supported: export the model without it, or cut before it with \
                 spec.baseModel.features",
                node.op_type,
                node.domain,
                node_name(node)
            ),
        ));
    }
    for attribute in &node.attribute {
        for inner in attribute.g.iter().chain(&attribute.graphs) {
            inner.node.iter().try_for_each(check_operator)?;
        }
    }
    Ok(())
}
