//! Which part of a graph must be trained and which is frozen, told by topology alone: exporters name things misleadingly.

use crate::error::Refusal;
use crate::layers::parameters;
use crate::onnx::{self, Producers, reads};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tract_onnx::pb;

/// A graph in two parts.
#[derive(Clone, Debug)]
pub struct Cut {
    /// What depends on the input and on no trained weight, and gives the tensors of the cut. Without nodes where the trained
    /// part reads the model's inputs alone.
    pub frozen: pb::GraphProto,
    /// What is left; its inputs are the tensors of the cut and then those inputs of the model that it reads itself.
    pub trained: pb::GraphProto,
    /// The tensors of the cut, in the order in which the frozen part makes them. Residual connections make several.
    pub tensors: Vec<String>,
    /// Inputs of the model that the trained part reads itself.
    pub inputs: Vec<String>,
}

/// Cuts `graph` above all that depends on an initializer named in `trained`, as far as `output` needs it.
///
/// The trained part is the least one: the nodes on paths from a trained weight to the output, with the constants and the
/// shape arithmetic that they need.
///
/// # Errors
/// [`Refusal::NothingToTrain`] where `output` depends on none of `trained`.
pub fn cut(graph: &pb::GraphProto, output: &str, trained: &[String]) -> Result<Cut, Refusal> {
    for name in trained {
        onnx::initializer(graph, name)?;
    }
    let needed = onnx::needed(graph, &[output]);
    let kinds = classify(graph, &needed, trained);
    if !kinds.values().any(|k| *k == Kind::Trained) {
        return Err(Refusal::NothingToTrain(format!(
            "{output:?} depends on none of the {} weights that were named",
            trained.len()
        )));
    }
    let producers = Producers::of(graph);
    // Nodes of the trained part, and the tensors it must be given.
    let mut above: BTreeSet<usize> = BTreeSet::new();
    let mut given: BTreeSet<&str> = BTreeSet::new();
    let mut todo: Vec<usize> = kinds
        .iter()
        .filter(|(_, k)| **k == Kind::Trained)
        .map(|(i, _)| *i)
        .collect();
    while let Some(i) = todo.pop() {
        if !above.insert(i) {
            continue;
        }
        for name in reads(&graph.node[i]) {
            match producers.get(name) {
                Some(j) if kinds.get(&j) == Some(&Kind::Frozen) => {
                    given.insert(name);
                }
                Some(j) => todo.push(j),
                None => {
                    given.extend(graph.input.iter().find(|x| x.name == name).map(|x| x.name.as_str()));
                }
            }
        }
    }
    let initialized: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: Vec<String> = graph
        .input
        .iter()
        .map(|i| i.name.clone())
        .filter(|i| given.contains(i.as_str()) && !initialized.contains(i.as_str()))
        .collect();
    let tensors: Vec<String> = needed
        .iter()
        .flat_map(|i| &graph.node[*i].output)
        .filter(|o| given.contains(o.as_str()))
        .cloned()
        .collect();
    Ok(Cut {
        frozen: frozen_part(graph, &tensors),
        trained: trained_part(graph, &above, output, &tensors, &inputs),
        tensors,
        inputs,
    })
}

/// What a node depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No input and no trained weight.
    Constant,
    /// Only the shapes of what does not depend on a trained weight. Small, and not one row per sample: computed anew.
    Shape,
    /// An input, but no trained weight.
    Frozen,
    /// A trained weight.
    Trained,
}

fn classify(graph: &pb::GraphProto, needed: &[usize], trained: &[String]) -> BTreeMap<usize, Kind> {
    let producers = Producers::of(graph);
    let weights: HashSet<&str> = trained.iter().map(String::as_str).collect();
    let initialized: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: HashSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
    let mut kinds: BTreeMap<usize, Kind> = BTreeMap::new();
    // ONNX lists nodes in topological order.
    for i in needed {
        let node = &graph.node[*i];
        let of = |name: &str| match producers.get(name) {
            Some(j) => kinds.get(&j).copied().unwrap_or(Kind::Frozen),
            None if weights.contains(name) => Kind::Trained,
            None if inputs.contains(name) && !initialized.contains(name) => Kind::Frozen,
            None => Kind::Constant,
        };
        let read: Vec<Kind> = reads(node).into_iter().map(of).collect();
        let kind = if read.contains(&Kind::Trained) {
            Kind::Trained
        } else if matches!(node.op_type.as_str(), "Shape" | "Size") {
            Kind::Shape
        } else if read.contains(&Kind::Frozen) {
            Kind::Frozen
        } else if read.contains(&Kind::Shape) {
            Kind::Shape
        } else {
            Kind::Constant
        };
        kinds.insert(*i, kind);
    }
    kinds
}

fn frozen_part(graph: &pb::GraphProto, tensors: &[String]) -> pb::GraphProto {
    let mut part = graph.clone();
    let outputs: Vec<&str> = tensors.iter().map(String::as_str).collect();
    part.output = outputs.iter().map(|name| untyped(name)).collect();
    part.value_info.clear();
    onnx::prune(&mut part, &outputs);
    part
}

fn trained_part(
    graph: &pb::GraphProto,
    nodes: &BTreeSet<usize>,
    output: &str,
    tensors: &[String],
    inputs: &[String],
) -> pb::GraphProto {
    let mut part = graph.clone();
    part.node = nodes.iter().map(|i| graph.node[*i].clone()).collect();
    part.value_info.clear();
    part.output = vec![untyped(output)];
    let read: HashSet<&str> = part.node.iter().flat_map(reads).collect();
    part.initializer = graph
        .initializer
        .iter()
        .filter(|t| read.contains(t.name.as_str()))
        .cloned()
        .collect();
    let own = inputs
        .iter()
        .filter_map(|name| graph.input.iter().find(|i| i.name == *name).cloned());
    part.input = tensors.iter().map(|name| float_of_any_shape(name)).chain(own).collect();
    part
}

/// A tensor whose type and shape are told when the graph is loaded.
fn untyped(name: &str) -> pb::ValueInfoProto {
    pb::ValueInfoProto {
        name: name.to_owned(),
        ..Default::default()
    }
}

/// An input whose shape is told when the graph is loaded. Its element type is, too: what is written here is replaced.
fn float_of_any_shape(name: &str) -> pb::ValueInfoProto {
    let mut info = onnx::float_info(name, &[]);
    if let Some(pb::type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        tensor.shape = None;
    }
    info
}

/// The initializers of the last `count` layers in front of `output`, with their biases and the norms behind them: the
/// deepest part that can be trained without touching an earlier layer.
///
/// A layer is a node with weights of rank 2 or more: Conv, Gemm, or MatMul with a constant operand. Layers are ordered by
/// the greatest number of layers on a path to the output; those side by side by their place in the graph, the later first.
/// A bias or norm belongs to the layers if it lies behind one of them.
///
/// # Errors
/// [`Refusal::NothingToTrain`] where `count` is 0 or there is no layer.
pub fn last_layers(graph: &pb::GraphProto, output: &str, count: usize) -> Result<Vec<String>, Refusal> {
    let needed = onnx::needed(graph, &[output]);
    let producers = Producers::of(graph);
    // Greatest number of layers on a path from each node to the output, itself included.
    let mut depth: BTreeMap<usize, usize> = BTreeMap::new();
    let mut ordered: Vec<(usize, std::cmp::Reverse<usize>)> = Vec::new();
    for i in needed.iter().rev() {
        let weight = parameters(graph, &graph.node[*i]).weight;
        let own = depth.get(i).copied().unwrap_or(0) + usize::from(weight.is_some());
        if weight.is_some() {
            ordered.push((own, std::cmp::Reverse(*i)));
        }
        for j in reads(&graph.node[*i])
            .into_iter()
            .filter_map(|name| producers.get(name))
        {
            let below = depth.entry(j).or_default();
            *below = own.max(*below);
        }
    }
    ordered.sort_unstable();
    let chosen: BTreeSet<usize> = ordered.iter().take(count).map(|(_, i)| i.0).collect();
    if chosen.is_empty() {
        return Err(Refusal::NothingToTrain(format!(
            "{} layers were asked for, the graph has {} in front of {output:?}",
            count,
            ordered.len()
        )));
    }
    let mut behind: HashSet<&str> = HashSet::new();
    let mut names: Vec<String> = Vec::new();
    for i in &needed {
        let node = &graph.node[*i];
        let found = parameters(graph, node);
        let follows = reads(node).iter().any(|name| behind.contains(name));
        if chosen.contains(i) {
            names.extend(found.weight.into_iter().chain(found.others));
        } else if follows && found.weight.is_none() {
            names.extend(found.others);
        }
        if follows || chosen.contains(i) {
            behind.extend(node.output.iter().map(String::as_str));
        }
    }
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}

/// The initializers of all layers, biases, norms and embeddings that `output` needs.
///
/// # Errors
/// [`Refusal::NothingToTrain`] where there are none.
pub fn all_layers(graph: &pb::GraphProto, output: &str) -> Result<Vec<String>, Refusal> {
    let mut seen = HashSet::new();
    let mut names = Vec::new();
    for i in onnx::needed(graph, &[output]) {
        let found = parameters(graph, &graph.node[i]);
        let all = found.weight.into_iter().chain(found.others).chain(found.embedding);
        names.extend(all.filter(|name| seen.insert(name.clone())));
    }
    if names.is_empty() {
        return Err(Refusal::NothingToTrain(format!("{output:?} depends on no weight")));
    }
    Ok(names)
}
