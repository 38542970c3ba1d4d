//! Writes graphs: the steps in front of a backbone, the backbone, and a head behind it. Everything that ONNX can say is
//! said here, so that a client in any language only decodes and resizes.

use super::base::{Backbone, INPUT_TYPES, PREFIX};
use super::check::{element_size, elements};
use super::pb;
use crate::error::{INTERNAL, Result, WorkerError};
use crate::pipeline::{Dtype, INPUT_IDS, INPUT_MASK, Kind, TensorSpec};
use crate::version::{BACKBONE, MODEL, TUNED};
use fleetune_crds::{Activation, Input};
use pb::attribute_proto::AttributeType;
use pb::tensor_proto::DataType;
use prost::Message;
use std::collections::BTreeSet;
use std::path::Path;

/// Names of tensors of the head begin with this: they are tuned.
pub(super) const HEAD: &str = "head/";
/// Names of tensors of the steps before the backbone begin with this.
const STEPS: &str = "steps/";
/// Weights begin at multiples of this in their file.
const ALIGN: usize = 64;
/// Frozen tensors below this many bytes stay in the graph: shapes, bounds of clips, scales of resizes, which runtimes
/// read while they type the graph.
const MIN_EXTERNAL: usize = 128;
/// A vector shorter than this has no direction, and stays as it is but for the scale.
const LEAST_LENGTH: f32 = 1e-12;
/// The oldest IR version that is written.
const IR_VERSION: i64 = 8;

/// A trained head, ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Subtracted from the features.
    pub mean: Vec<f32>,
    /// Linear layers in order.
    pub layers: Vec<Layer>,
    /// Between the layers.
    pub activation: Activation,
    /// After the last layer.
    pub last: Last,
}

/// A linear layer: `weights` has `outputs` rows of `inputs`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Width of what comes in.
    pub inputs: usize,
    /// Width of what goes out.
    pub outputs: usize,
    /// Row after row.
    pub weights: Vec<f32>,
    /// One for each output.
    pub bias: Vec<f32>,
}

/// What follows the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// Probabilities that add up to 1.
    Softmax,
    /// One probability for each class by itself.
    Sigmoid,
    /// The value as it is.
    Nothing,
}

/// Splits a part of a graph into nodes and frozen tensors: constants become initializers, all with raw bytes.
pub fn freeze(part: pb::GraphProto) -> Result<(Vec<pb::NodeProto>, Vec<pb::TensorProto>)> {
    let mut initializers = part.initializer;
    let mut nodes = Vec::with_capacity(part.node.len());
    for mut node in part.node {
        let value = if node.op_type == "Constant" && node.attribute.len() == 1 && node.attribute[0].name == "value" {
            node.attribute[0].t.take()
        } else {
            None
        };
        match value {
            Some(mut tensor) => {
                tensor.name = node.output.first().cloned().unwrap_or_default();
                initializers.push(tensor);
            }
            None => nodes.push(node),
        }
    }
    let initializers = initializers.into_iter().map(raw).collect::<Result<_>>()?;
    Ok((nodes, initializers))
}

/// The tensor with its values as little-endian bytes; text stays as it is.
fn raw(mut tensor: pb::TensorProto) -> Result<pb::TensorProto> {
    tensor.doc_string.clear();
    let Some(size) = element_size(tensor.data_type) else {
        return Ok(tensor);
    };
    if tensor.raw_data.is_empty() && elements(&tensor)? > 0 {
        let kind = DataType::try_from(tensor.data_type).unwrap_or(DataType::Undefined);
        tensor.raw_data = match kind {
            DataType::Float => tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DataType::Double => tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DataType::Int64 | DataType::Uint64 => tensor.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            // Smaller kinds are listed as i32; their low bytes are the value.
            _ => tensor
                .int32_data
                .iter()
                .flat_map(|v| v.to_le_bytes().into_iter().take(size as usize))
                .collect(),
        };
    }
    tensor.float_data.clear();
    tensor.double_data.clear();
    tensor.int64_data.clear();
    tensor.int32_data.clear();
    Ok(tensor)
}

/// A graph from raw tensors to the tensor at the cut, as it is.
pub fn cut_model(backbone: &Backbone, kind: Kind<'_>, tensors: &[TensorSpec]) -> Result<pb::ModelProto> {
    let mut graph = before(backbone, kind, tensors)?;
    graph.output.push(info(&backbone.features, DataType::Float, &[]));
    Ok(model(backbone, graph))
}

/// A graph from raw tensors to the flat features. Of a text it can be given several at a time.
pub fn features_model(backbone: &Backbone, input: &Input, tensors: &[TensorSpec]) -> Result<pb::ModelProto> {
    let kind = Kind::of(input)?;
    let mut graph = before(backbone, kind, tensors)?;
    let features = pooled(&mut graph, backbone);
    graph
        .node
        .push(node("Reshape", &[&features, "steps/flat"], "features", vec![]));
    // 0 is the dimension as it is.
    let rows = i64::from(!matches!(kind, Kind::Text(_)));
    graph.initializer.push(ints("steps/flat", &[rows, -1]));
    graph.output.push(info("features", DataType::Float, &[-1, -1]));
    Ok(model(backbone, graph))
}

/// The graph of a version: steps, backbone, head.
pub fn full_model(
    backbone: &Backbone,
    input: &Input,
    tensors: &[TensorSpec],
    output: &TensorSpec,
    head: &Head,
) -> Result<pb::ModelProto> {
    let mut graph = before(backbone, Kind::of(input)?, tensors)?;
    let features = pooled(&mut graph, backbone);
    let width = i64::try_from(backbone.width).unwrap_or(-1);
    graph.initializer.push(ints("steps/flat", &[1, width]));
    graph
        .node
        .push(node("Reshape", &[&features, "steps/flat"], "head/features", vec![]));
    graph
        .initializer
        .push(floats("head/mean", &[1, backbone.width], &head.mean));
    graph
        .node
        .push(node("Sub", &["head/features", "head/mean"], "head/centred", vec![]));
    let mut from = "head/centred".to_owned();
    let count = head.layers.len();
    for (i, layer) in head.layers.iter().enumerate() {
        let (weights, bias) = (format!("head/{i}/weights"), format!("head/{i}/bias"));
        graph
            .initializer
            .push(floats(&weights, &[layer.outputs, layer.inputs], &layer.weights));
        graph.initializer.push(floats(&bias, &[layer.outputs], &layer.bias));
        let last = i + 1 == count;
        let linear = if last && head.last == Last::Nothing {
            output.name.clone()
        } else {
            format!("head/{i}/linear")
        };
        graph
            .node
            .push(node("Gemm", &[&from, &weights, &bias], &linear, vec![int("transB", 1)]));
        from = linear;
        if !last {
            let active = format!("head/{i}/active");
            graph
                .node
                .push(node(operator(head.activation), &[&from], &active, vec![]));
            from = active;
        }
    }
    match head.last {
        Last::Softmax => graph
            .node
            .push(node("Softmax", &[&from], &output.name, vec![int("axis", 1)])),
        Last::Sigmoid => graph.node.push(node("Sigmoid", &[&from], &output.name, vec![])),
        Last::Nothing => {}
    }
    graph
        .output
        .push(info(&output.name, DataType::Float, &dims(&output.shape)));
    Ok(model(backbone, graph))
}

/// The operator of a function between layers.
pub(super) fn operator(activation: Activation) -> &'static str {
    match activation {
        Activation::Relu => "Relu",
        Activation::Sigmoid => "Sigmoid",
        Activation::Tanh => "Tanh",
    }
}

/// The inputs, the steps, and the backbone.
pub(super) fn before(backbone: &Backbone, kind: Kind<'_>, tensors: &[TensorSpec]) -> Result<pb::GraphProto> {
    let mut graph = pb::GraphProto {
        name: "fleetune".to_owned(),
        ..Default::default()
    };
    for tensor in tensors {
        let kind = match tensor.dtype {
            Dtype::Uint8 => DataType::Uint8,
            Dtype::Fp32 => DataType::Float,
            Dtype::Int64 => DataType::Int64,
        };
        graph.input.push(info(&tensor.name, kind, &dims(&tensor.shape)));
    }
    match (kind, tensors, &backbone.inputs[..]) {
        (Kind::Image(image), [tensor], [input]) => {
            let scalar = |name: &str, v: f64| floats(name, &[], &[v as f32]);
            graph.initializer.push(scalar("steps/mean", image.mean.get()));
            graph.initializer.push(scalar("steps/std", image.std.get()));
            graph.node.push(node(
                "Cast",
                &[&tensor.name],
                "steps/float",
                vec![int("to", i64::from(DataType::Float as i32))],
            ));
            graph.node.push(node(
                "Transpose",
                &["steps/float"],
                "steps/planes",
                vec![pb::AttributeProto {
                    name: "perm".to_owned(),
                    r#type: AttributeType::Ints as i32,
                    ints: vec![0, 3, 1, 2],
                    ..Default::default()
                }],
            ));
            graph
                .node
                .push(node("Sub", &["steps/planes", "steps/mean"], "steps/centred", vec![]));
            graph
                .node
                .push(node("Div", &["steps/centred", "steps/std"], input, vec![]));
        }
        (Kind::Sensor(_), [tensor], [input]) => graph.node.push(node("Identity", &[&tensor.name], input, vec![])),
        (Kind::Text(_), [ids, mask], inputs) => {
            for input in inputs {
                graph.node.push(match input.trim_start_matches(PREFIX) {
                    INPUT_IDS => node("Identity", &[&ids.name], input, vec![]),
                    INPUT_MASK => node("Identity", &[&mask.name], input, vec![]),
                    // A sample is one text, so the type of every token is that of the first: 0.
                    INPUT_TYPES => node("Sub", &[&ids.name, &ids.name], input, vec![]),
                    other => {
                        return Err(WorkerError::bad(INTERNAL, format!("a text gives no input {other:?}")));
                    }
                });
            }
        }
        _ => return Err(WorkerError::bad(INTERNAL, "inputs that do not go with each other")),
    }
    graph.initializer.extend(backbone.initializers.iter().cloned());
    graph.node.extend(backbone.nodes.iter().cloned());
    Ok(graph)
}

/// Where the features are one vector a token, their mean over the text's own tokens, scaled to unit length:
/// `mean = sum(mask * features) / sum(mask)`, `pooled = mean / |mean|`. Gives the name of the tensor, `[1, width]`.
pub(super) fn pooled(graph: &mut pb::GraphProto, backbone: &Backbone) -> String {
    if !backbone.by_token {
        return backbone.features.clone();
    }
    let opset = backbone.opset.iter().find(|o| o.domain.is_empty());
    let opset = opset.map_or(1, |o| o.version);
    // The axes of a reduction were an attribute before they became an input.
    let axes = |since: i64| {
        let attribute = pb::AttributeProto {
            name: "axes".to_owned(),
            r#type: AttributeType::Ints as i32,
            ints: vec![1],
            ..Default::default()
        };
        if opset < since {
            (vec![], vec![attribute])
        } else {
            (vec!["steps/axis"], vec![])
        }
    };
    let reduce = |operator: &str, since: i64, from: &str, to: &str, keep: i64| {
        let (inputs, mut attributes) = axes(since);
        attributes.push(int("keepdims", keep));
        let inputs: Vec<&str> = std::iter::once(from).chain(inputs).collect();
        node(operator, &inputs, to, attributes)
    };
    let nodes = [
        node(
            "Cast",
            &[INPUT_MASK],
            "steps/mask",
            vec![int("to", i64::from(DataType::Float as i32))],
        ),
        node(
            "Reshape",
            &["steps/mask", "steps/columns"],
            "steps/mask/columns",
            vec![],
        ),
        node("Mul", &[&backbone.features, "steps/mask/columns"], "steps/own", vec![]),
        reduce("ReduceSum", 13, "steps/own", "steps/sum", 0),
        reduce("ReduceSum", 13, "steps/mask", "steps/count", 1),
        node("Div", &["steps/sum", "steps/count"], "steps/average", vec![]),
        reduce("ReduceL2", 18, "steps/average", "steps/length", 1),
        node("Max", &["steps/length", "steps/least"], "steps/length/safe", vec![]),
        node("Div", &["steps/average", "steps/length/safe"], "steps/pooled", vec![]),
    ];
    graph.node.extend(nodes);
    graph.initializer.push(ints("steps/columns", &[0, -1, 1]));
    if opset >= 13 {
        graph.initializer.push(ints("steps/axis", &[1]));
    }
    graph.initializer.push(floats("steps/least", &[], &[LEAST_LENGTH]));
    "steps/pooled".to_owned()
}

pub(super) fn model(backbone: &Backbone, graph: pb::GraphProto) -> pb::ModelProto {
    pb::ModelProto {
        ir_version: backbone.ir_version.max(IR_VERSION),
        opset_import: backbone.opset.clone(),
        producer_name: "fleetune".to_owned(),
        graph: Some(graph),
        ..Default::default()
    }
}

/// Writes a version's graph into `dir`: frozen weights, tuned weights, and the graph that points to them. Tuned are the
/// head and the tensors that `tuned_names` names.
pub fn write(dir: &Path, mut model: pb::ModelProto, tuned_names: &BTreeSet<String>) -> Result<()> {
    let graph = model.graph.get_or_insert_default();
    let (mut backbone, mut tuned) = (Vec::new(), Vec::new());
    for tensor in &mut graph.initializer {
        if tensor.name.starts_with(HEAD) || tuned_names.contains(&tensor.name) {
            outside(tensor, &mut tuned, TUNED);
        } else if !tensor.name.starts_with(STEPS) && is_float(tensor) && tensor.raw_data.len() >= MIN_EXTERNAL {
            outside(tensor, &mut backbone, BACKBONE);
        }
    }
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        let io = |e: std::io::Error| WorkerError::io("writing", &path, &e);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        std::fs::write(&path, bytes).map_err(io)
    };
    put(BACKBONE, &backbone)?;
    put(TUNED, &tuned)?;
    put(MODEL, &model.encode_to_vec())
}

fn is_float(tensor: &pb::TensorProto) -> bool {
    matches!(
        DataType::try_from(tensor.data_type),
        Ok(DataType::Float | DataType::Float16 | DataType::Double)
    )
}

fn outside(tensor: &mut pb::TensorProto, file: &mut Vec<u8>, name: &str) {
    file.resize(file.len().next_multiple_of(ALIGN), 0);
    let bytes = std::mem::take(&mut tensor.raw_data);
    tensor.data_location = Some(pb::tensor_proto::DataLocation::External as i32);
    let entry = |key: &str, value: String| pb::StringStringEntryProto {
        key: key.to_owned(),
        value,
    };
    tensor.external_data = vec![
        entry("location", name.to_owned()),
        entry("offset", file.len().to_string()),
        entry("length", bytes.len().to_string()),
    ];
    file.extend(bytes);
}

fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|d| i64::try_from(*d).unwrap_or(-1)).collect()
}

/// A node named as its output.
pub(crate) fn node(op_type: &str, input: &[&str], output: &str, attribute: Vec<pb::AttributeProto>) -> pb::NodeProto {
    pb::NodeProto {
        name: output.to_owned(),
        op_type: op_type.to_owned(),
        input: input.iter().map(|i| (*i).to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute,
        ..Default::default()
    }
}

/// An integer attribute.
pub(crate) fn int(name: &str, value: i64) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..Default::default()
    }
}

/// A tensor of floats.
pub(crate) fn floats(name: &str, shape: &[usize], values: &[f32]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        dims: dims(shape),
        data_type: DataType::Float as i32,
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    }
}

pub(super) fn ints(name: &str, values: &[i64]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        dims: vec![i64::try_from(values.len()).unwrap_or(-1)],
        data_type: DataType::Int64 as i32,
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    }
}

/// A graph input or output; a dimension below 0 is unknown.
pub(crate) fn info(name: &str, kind: DataType, shape: &[i64]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = shape
        .iter()
        .map(|d| Dimension {
            value: (*d >= 0).then_some(Value::DimValue(*d)),
            ..Default::default()
        })
        .collect();
    pb::ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(pb::type_proto::Tensor {
                elem_type: kind as i32,
                shape: Some(pb::TensorShapeProto { dim }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}
