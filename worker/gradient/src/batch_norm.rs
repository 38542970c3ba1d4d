//! Batch normalisation whose scale or shift is trained, in operators that have gradients. Its statistics stay as they are:
//! y = (x − μ)·γ/√(σ² + ε) + β (Ioffe and Szegedy 2015, at inference).

use crate::error::Refusal;
use crate::onnx::{self, floats, integers, node_name};
use tract_onnx::pb;

/// Default of the operator's ε.
const EPSILON: f32 = 1e-5;

/// Replaces the batch normalisations of `graph` that read one of `trained` by x·(γ·s) + (β − μ·s·γ) with s = 1/√(σ² + ε),
/// where s and μ·s are new initializers. `rank` tells the number of axes of a tensor.
///
/// # Errors
/// [`Refusal::Unsound`] where the statistics are no initializers, or where `rank` does not know the input.
pub fn expand(
    graph: &mut pb::GraphProto,
    trained: &[String],
    rank: &dyn Fn(&str) -> Option<usize>,
) -> Result<(), Refusal> {
    let mut nodes = Vec::with_capacity(graph.node.len());
    let mut added = vec![];
    for node in std::mem::take(&mut graph.node) {
        let reads_trained = node.input.iter().any(|name| trained.contains(name));
        if node.op_type == "BatchNormalization" && reads_trained {
            let known = rank(&node.input[0]).ok_or_else(|| missing(&node, "the rank of its input"))?;
            nodes.extend(expanded(graph, &node, known, &mut added)?);
        } else {
            nodes.push(node);
        }
    }
    graph.node = nodes;
    graph.initializer.extend(added);
    Ok(())
}

/// Whether some batch normalisation reads one of `trained`.
pub fn has_trained(graph: &pb::GraphProto, trained: &[String]) -> bool {
    let reads = |node: &pb::NodeProto| node.input.iter().any(|name| trained.contains(name));
    graph
        .node
        .iter()
        .any(|node| node.op_type == "BatchNormalization" && reads(node))
}

fn missing(node: &pb::NodeProto, what: &str) -> Refusal {
    Refusal::Unsound(format!("batch normalisation {:?} lacks {what}", node_name(node)))
}

fn expanded(
    graph: &pb::GraphProto,
    node: &pb::NodeProto,
    rank: usize,
    added: &mut Vec<pb::TensorProto>,
) -> Result<Vec<pb::NodeProto>, Refusal> {
    let [x, scale, shift, mean, variance] = &node.input[..] else {
        return Err(missing(node, "an input"));
    };
    let [y] = &node.output[..] else {
        return Err(missing(node, "an output, or has those of training"));
    };
    let read = |name: &str| -> Result<Vec<f32>, Refusal> {
        let tensor = onnx::tensor(onnx::initializer(graph, name)?)?;
        Ok(tensor.view().as_slice::<f32>()?.to_vec())
    };
    let epsilon = node
        .attribute
        .iter()
        .find(|a| a.name == "epsilon")
        .map_or(EPSILON, |a| a.f);
    let spread: Vec<f32> = read(variance)?
        .into_iter()
        .map(|v| (1.0 / (f64::from(v) + f64::from(epsilon)).sqrt()) as f32)
        .collect();
    let centre: Vec<f32> = read(mean)?.iter().zip(&spread).map(|(m, s)| m * s).collect();
    let channels = spread.len();
    // One axis for the channels, then one for each spatial axis.
    let mut shape = vec![channels as i64];
    shape.resize(rank.saturating_sub(1).max(1), 1);
    let called = |part: &str| format!("{y}.norm.{part}");
    added.push(floats(&called("spread"), &[channels], &spread));
    added.push(floats(&called("centre"), &[channels], &centre));
    added.push(integers(&called("shape"), &shape));
    let step = |op: &str, inputs: [&str; 2], output: &str| onnx::node(op, &inputs, output, vec![]);
    Ok(vec![
        step("Mul", [scale, &called("spread")], &called("factor")),
        step("Mul", [scale, &called("centre")], &called("moved")),
        step("Sub", [shift, &called("moved")], &called("term")),
        step("Reshape", [&called("factor"), &called("shape")], &called("wide_factor")),
        step("Reshape", [&called("term"), &called("shape")], &called("wide_term")),
        step("Mul", [x, &called("wide_factor")], &called("scaled")),
        step("Add", [&called("scaled"), &called("wide_term")], y),
    ])
}
