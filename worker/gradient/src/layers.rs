//! What of a node's constants is a parameter: weights, biases, norms, embeddings. Told by the operator and the operand's
//! place and rank, never by a name.

use crate::onnx::Producers;
use std::collections::HashMap;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;

/// The initializers of one node that can be trained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The weight of a layer, of rank 2 or more.
    pub weight: Option<String>,
    /// Biases, and the scale and shift of norms.
    pub others: Vec<String>,
    /// A table that rows are read from.
    pub embedding: Option<String>,
}

/// The parameters of `node`.
pub fn parameters(graph: &pb::GraphProto, node: &pb::NodeProto) -> Parameters {
    let at = |i: usize| node.input.get(i).and_then(|name| constant(graph, name));
    let ranked = |i: usize, rank: usize| at(i).filter(|t| t.dims.len() >= rank).map(|t| t.name.clone());
    // A single number is a constant of a formula, not a parameter.
    let vector = |i: usize| {
        at(i)
            .filter(|t| t.dims.iter().product::<i64>() > 1 || i > 1)
            .map(|t| t.name.clone())
    };
    let others = |places: &[usize]| places.iter().filter_map(|i| vector(*i)).collect();
    match node.op_type.as_str() {
        "Conv" | "ConvTranspose" => Parameters {
            weight: ranked(1, 3),
            others: others(&[2]),
            ..Default::default()
        },
        "Gemm" => Parameters {
            weight: ranked(1, 2).or_else(|| ranked(0, 2)),
            others: others(&[2]),
            ..Default::default()
        },
        "MatMul" => Parameters {
            weight: ranked(1, 2).or_else(|| ranked(0, 2)),
            ..Default::default()
        },
        "Add" | "Mul" => Parameters {
            others: [0, 1]
                .into_iter()
                .filter(|i| at(*i).is_some_and(is_parameter))
                .filter_map(vector)
                .collect(),
            ..Default::default()
        },
        "BatchNormalization" | "LayerNormalization" | "InstanceNormalization" | "GroupNormalization" => Parameters {
            others: [1, 2].into_iter().filter_map(|i| ranked(i, 1)).collect(),
            ..Default::default()
        },
        "PRelu" => Parameters {
            others: others(&[1]),
            ..Default::default()
        },
        "Gather" => Parameters {
            embedding: ranked(0, 2),
            ..Default::default()
        },
        _ => Parameters::default(),
    }
}

/// Whether a constant that is added or multiplied is a bias, a scale or a table of positions rather than a mask, which has
/// more axes.
fn is_parameter(tensor: &pb::TensorProto) -> bool {
    tensor.dims.len() <= 3 || tensor.dims.iter().filter(|d| **d > 1).count() <= 1
}

/// The initializer of floats that `name` is, or is a rearrangement of.
pub(crate) fn constant<'g>(graph: &'g pb::GraphProto, name: &str) -> Option<&'g pb::TensorProto> {
    let producers = Producers::of(graph);
    let initializers: HashMap<&str, &pb::TensorProto> =
        graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut name = name;
    loop {
        if let Some(found) = initializers.get(name) {
            return (found.data_type == DataType::Float as i32).then_some(*found);
        }
        let node = &graph.node[producers.get(name)?];
        let rearranges = matches!(
            node.op_type.as_str(),
            "Identity" | "Transpose" | "Reshape" | "Unsqueeze" | "Squeeze" | "Flatten"
        );
        name = node.input.first().filter(|_| rearranges)?;
    }
}
