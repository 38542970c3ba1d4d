//! Who gives and who reads which tensor of an ONNX graph, and renaming. Pure.

use super::pb;
use std::collections::{BTreeSet, HashMap, HashSet};

/// The wiring of a graph.
pub struct Wiring {
    producers: HashMap<String, usize>,
    constants: HashSet<String>,
}

impl Wiring {
    /// The wiring of `graph`, whose nodes are in topological order.
    pub fn of(graph: &pb::GraphProto) -> Self {
        let mut constants: HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
        let mut producers = HashMap::new();
        for (i, node) in graph.node.iter().enumerate() {
            let constant = reads(node).iter().all(|name| constants.contains(name));
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                producers.insert(output.clone(), i);
                if constant {
                    constants.insert(output.clone());
                }
            }
        }
        Self { producers, constants }
    }

    /// Index of the node that gives `tensor`.
    pub fn producer(&self, tensor: &str) -> Option<usize> {
        self.producers.get(tensor).copied()
    }

    /// Whether `tensor` is the same for every input.
    pub fn is_constant(&self, tensor: &str) -> bool {
        self.constants.contains(tensor)
    }

    /// For each node, whether `tensor` depends on it.
    pub fn alive(&self, graph: &pb::GraphProto, tensor: &str) -> Vec<bool> {
        let mut alive = vec![false; graph.node.len()];
        let mut open: Vec<usize> = self.producer(tensor).into_iter().collect();
        while let Some(i) = open.pop() {
            if alive[i] {
                continue;
            }
            alive[i] = true;
            open.extend(reads(&graph.node[i]).iter().filter_map(|name| self.producer(name)));
        }
        alive
    }
}

/// The tensors that a node reads, those that its inner graphs take from outside included.
pub fn reads(node: &pb::NodeProto) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = node.input.iter().filter(|i| !i.is_empty()).cloned().collect();
    for attribute in &node.attribute {
        for inner in attribute.g.iter().chain(&attribute.graphs) {
            // A name that the inner graph gives itself may be in here too: that keeps at most one node too many.
            names.extend(inner.node.iter().flat_map(reads));
            names.extend(inner.output.iter().map(|o| o.name.clone()));
        }
    }
    names
}

/// Puts `prefix` in front of every name in the graph, inner graphs included.
pub fn prefix_graph(graph: &mut pb::GraphProto, prefix: &str) {
    let rename = |name: &mut String| {
        if !name.is_empty() {
            name.insert_str(0, prefix);
        }
    };
    for tensor in &mut graph.initializer {
        rename(&mut tensor.name);
    }
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        rename(&mut info.name);
    }
    graph.value_info.clear();
    graph.quantization_annotation.clear();
    for node in &mut graph.node {
        rename(&mut node.name);
        node.input.iter_mut().chain(&mut node.output).for_each(rename);
        node.doc_string.clear();
        for attribute in &mut node.attribute {
            for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                prefix_graph(inner, prefix);
            }
        }
    }
}

/// Gives each node that is called like one of its graph's initializers or like one of `inputs` another name: ONNX allows
/// both, the engine does not.
pub fn set_nodes_apart(graph: &mut pb::GraphProto, inputs: &[String]) {
    let given: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    for node in &mut graph.node {
        while given.contains(node.name.as_str()) || inputs.contains(&node.name) {
            node.name.push_str(".node");
        }
    }
}
