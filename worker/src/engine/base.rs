//! A base model: checked against its hash and bounds, and cut at the feature tensor. What lies behind the cut is dropped,
//! what lies before it is frozen. It decides where the cut is; it trains nothing.

use super::check::{ExternalFiles, node_name, parse_model};
use super::graph::{Graph, shapes};
use super::names::{Wiring, prefix_graph};
use super::{build, pb};
use crate::error::{
    FEATURES_NOT_FOUND, INPUT_SHAPE, MODEL_MISMATCH, MODEL_TOO_LARGE, NOT_ONNX, Result, UNSUPPORTED_OPERATOR,
    WorkerError,
};
use crate::pipeline::TensorSpec;
use fleetune_crds::Input;
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
    input: String,
}

/// What is left of a base model in front of the cut.
#[derive(Clone, Debug)]
pub struct Backbone {
    /// Nodes in order.
    pub nodes: Vec<pb::NodeProto>,
    /// Frozen tensors in graph order, all with raw bytes.
    pub initializers: Vec<pb::TensorProto>,
    /// Name of the input.
    pub input: String,
    /// Name of the feature tensor.
    pub features: String,
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
        let [input] = inputs[..] else {
            let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
            return Err(WorkerError::bad(
                INPUT_SHAPE,
                format!(
                    "the base model takes {} inputs ({}), one is needed",
                    names.len(),
                    names.join(", ")
                ),
            ));
        };
        let input = input.name.clone();
        Ok(Self { model, input })
    }

    fn graph(&self) -> Result<&pb::GraphProto> {
        self.model
            .graph
            .as_ref()
            .ok_or_else(|| WorkerError::bad(NOT_ONNX, "the model holds no graph"))
    }

    /// Cuts the model at `features` (by default the input of the last MatMul or Gemm) for samples of the form `input`.
    pub fn cut(&self, features: Option<&str>, input: &Input, tensor: &TensorSpec) -> Result<Backbone> {
        let want = model_shape(input)?;
        self.check_input(&want)?;
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
            None => default_features(graph, &wiring)
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
        if !used.contains(&self.input) {
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
        prefix_graph(&mut part, PREFIX);
        let (nodes, initializers) = build::freeze(part)?;
        let mut backbone = Backbone {
            nodes,
            initializers,
            input: format!("{PREFIX}{}", self.input),
            features: format!("{PREFIX}{name}"),
            width: 0,
            opset: self.model.opset_import.clone(),
            ir_version: self.model.ir_version,
        };
        let typed = Graph::build(&build::features_model(&backbone, input, tensor)?, None, tensor)?;
        backbone.width = typed.outputs();
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

    fn check_input(&self, want: &[usize]) -> Result<()> {
        let graph = self.graph()?;
        let info = graph
            .input
            .iter()
            .find(|i| i.name == self.input)
            .and_then(|i| i.r#type.as_ref());
        let Some(pb::TypeProto {
            value: Some(Value::TensorType(tensor)),
            ..
        }) = info
        else {
            return Ok(());
        };
        if tensor.elem_type != pb::tensor_proto::DataType::Float as i32 {
            return Err(WorkerError::bad(
                INPUT_SHAPE,
                format!(
                    "the base model's input {:?} has element type {}, f32 is needed",
                    self.input, tensor.elem_type
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
                "the base model's input {:?} has shape [{}], spec.input gives {want:?} (one sample at a time): change \
                 spec.input, or export the model for that shape",
                self.input,
                shown.join(", ")
            ),
        ))
    }

    fn no_features(&self, want: &[usize], why: &str) -> WorkerError {
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
    pub fn candidates(&self, want: &[usize]) -> Vec<(String, String)> {
        let Ok(graph) = self.graph() else { return Vec::new() };
        let wiring = Wiring::of(graph);
        let known = shapes(&self.model, &self.input, want);
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
            .map(|n| (n.to_owned(), known.get(n).cloned().unwrap_or_else(|| "[?]".to_owned())))
            .collect()
    }
}

/// The shape that the base model takes for one sample.
pub fn model_shape(input: &Input) -> Result<Vec<usize>> {
    match (&input.image, &input.sensor) {
        (Some(image), None) => Ok(vec![1, 3, image.size as usize, image.size as usize]),
        (None, Some(sensor)) => Ok(vec![1, sensor.channels as usize, sensor.window as usize]),
        _ => Err(WorkerError::bad(
            crate::error::INVALID_JOB,
            "spec.input: name exactly one of image and sensor",
        )),
    }
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
