//! Small reads and writes of ONNX graphs: who makes a tensor, what a weight holds, which nodes an output needs.

use crate::error::Refusal;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tract_onnx::data_resolver;
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::prelude::Tensor;
use tract_onnx::tensor::load_tensor;

/// A node's name, or that of its first output where it has none.
pub fn node_name(node: &pb::NodeProto) -> &str {
    if node.name.is_empty() {
        node.output.first().map_or("", String::as_str)
    } else {
        &node.name
    }
}

/// Which node makes each tensor.
pub struct Producers<'g>(HashMap<&'g str, usize>);

impl<'g> Producers<'g> {
    /// Reads the nodes of `graph`.
    pub fn of(graph: &'g pb::GraphProto) -> Self {
        let outputs = |(i, node): (usize, &'g pb::NodeProto)| node.output.iter().map(move |o| (o.as_str(), i));
        Self(
            graph
                .node
                .iter()
                .enumerate()
                .flat_map(outputs)
                .filter(|(o, _)| !o.is_empty())
                .collect(),
        )
    }

    /// Index of the node that makes `tensor`; `None` for inputs and initializers.
    pub fn get(&self, tensor: &str) -> Option<usize> {
        self.0.get(tensor).copied()
    }
}

/// All tensors that a node reads, those that the graphs inside it read from outside included.
pub fn reads(node: &pb::NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node
        .input
        .iter()
        .map(String::as_str)
        .filter(|i| !i.is_empty())
        .collect();
    for inner in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
        let own = defined(inner);
        let outputs = inner.output.iter().map(|o| o.name.as_str());
        let outside = inner.node.iter().flat_map(reads).chain(outputs);
        names.extend(outside.filter(|name| !own.contains(name)));
    }
    names
}

/// The tensors that a graph makes itself.
fn defined(graph: &pb::GraphProto) -> BTreeSet<&str> {
    graph
        .node
        .iter()
        .flat_map(|n| n.output.iter())
        .chain(graph.input.iter().map(|i| &i.name))
        .chain(graph.initializer.iter().map(|t| &t.name))
        .map(String::as_str)
        .collect()
}

/// Gives the initializers and inputs of `graph` names that no node of the engine can have: it names nodes after the node
/// that they come from, and meets the exporter's names of weights.
pub fn set_apart(graph: &mut pb::GraphProto) {
    let mut prefix = "given/".to_owned();
    while graph.node.iter().any(|n| node_name(n).starts_with(&prefix)) {
        prefix.insert(0, '_');
    }
    let given: BTreeSet<String> = graph
        .initializer
        .iter()
        .map(|t| t.name.clone())
        .chain(graph.input.iter().map(|i| i.name.clone()))
        .collect();
    let renamed = |name: &mut String| {
        if given.contains(name.as_str()) {
            name.insert_str(0, &prefix);
        }
    };
    graph.initializer.iter_mut().for_each(|t| renamed(&mut t.name));
    graph.input.iter_mut().for_each(|i| renamed(&mut i.name));
    rename_reads(&mut graph.node, &renamed);
}

fn rename_reads(nodes: &mut [pb::NodeProto], rename: &dyn Fn(&mut String)) {
    for node in nodes {
        node.input.iter_mut().for_each(rename);
        for inner in node.attribute.iter_mut().filter_map(|a| a.g.as_mut()) {
            let own: BTreeSet<String> = defined(inner).into_iter().map(str::to_owned).collect();
            let outside = |name: &mut String| {
                if !own.contains(name.as_str()) {
                    rename(name);
                }
            };
            rename_reads(&mut inner.node, &outside);
            inner.output.iter_mut().for_each(|o| outside(&mut o.name));
        }
    }
}

/// Indices of the nodes that `outputs` depend on, in the order of the graph.
pub fn needed(graph: &pb::GraphProto, outputs: &[&str]) -> Vec<usize> {
    let producers = Producers::of(graph);
    let mut todo: Vec<usize> = outputs.iter().filter_map(|o| producers.get(o)).collect();
    let mut found: BTreeSet<usize> = todo.iter().copied().collect();
    while let Some(i) = todo.pop() {
        for j in reads(&graph.node[i]).into_iter().filter_map(|name| producers.get(name)) {
            if found.insert(j) {
                todo.push(j);
            }
        }
    }
    found.into_iter().collect()
}

/// Drops the nodes, initializers and inputs that `outputs` do not need.
pub fn prune(graph: &mut pb::GraphProto, outputs: &[&str]) {
    let keep: BTreeSet<usize> = needed(graph, outputs).into_iter().collect();
    let mut index = 0..;
    graph.node.retain(|_| index.next().is_some_and(|i| keep.contains(&i)));
    let read: BTreeSet<String> = graph
        .node
        .iter()
        .flat_map(reads)
        .chain(outputs.iter().copied())
        .map(str::to_owned)
        .collect();
    graph.initializer.retain(|t| read.contains(&t.name));
    graph.input.retain(|i| read.contains(&i.name));
}

/// The values of an initializer that lies in the file itself.
pub fn tensor(proto: &pb::TensorProto) -> Result<Tensor, Refusal> {
    load_tensor(&*data_resolver::default(), proto, None)
        .map_err(|e| Refusal::Unsound(format!("{:?}: {e:#}", proto.name)))
}

/// The initializer of this name.
pub fn initializer<'g>(graph: &'g pb::GraphProto, name: &str) -> Result<&'g pb::TensorProto, Refusal> {
    graph
        .initializer
        .iter()
        .find(|t| t.name == name)
        .ok_or_else(|| Refusal::NoSuchTensor {
            what: "initializer",
            name: name.to_owned(),
        })
}

/// The weights of these names as they stand in the graph, in this order.
///
/// # Errors
/// [`Refusal::NotFloat`] and [`Refusal::NotFinite`] for what cannot be trained.
pub fn weights(graph: &pb::GraphProto, names: &[String]) -> Result<Vec<Arc<Tensor>>, Refusal> {
    names
        .iter()
        .map(|name| {
            let proto = initializer(graph, name)?;
            if proto.data_type != DataType::Float as i32 {
                let datum_type = DataType::try_from(proto.data_type).map_or("an unknown type", |t| t.as_str_name());
                return Err(Refusal::NotFloat {
                    name: name.clone(),
                    datum_type: datum_type.to_owned(),
                });
            }
            let tensor = tensor(proto)?;
            check_finite(name, &tensor)?;
            Ok(Arc::new(tensor))
        })
        .collect()
}

/// Refuses a tensor of f32 that holds NaN or an infinity.
pub fn check_finite(name: &str, tensor: &Tensor) -> Result<(), Refusal> {
    let view = tensor.view();
    let values = view.as_slice::<f32>()?;
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Refusal::NotFinite {
            name: name.to_owned(),
            index,
            value: values[index],
        }),
    }
}

/// An initializer of f32.
pub fn floats(name: &str, dims: &[usize], values: &[f32]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        data_type: DataType::Float as i32,
        dims: dims.iter().map(|d| *d as i64).collect(),
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    }
}

/// An initializer of i64.
pub fn integers(name: &str, values: &[i64]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        data_type: DataType::Int64 as i32,
        dims: vec![values.len() as i64],
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    }
}

/// The description of a tensor of f32 with these dimensions, as a graph's input.
pub fn float_info(name: &str, dims: &[usize]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value as Length};
    let dim = dims
        .iter()
        .map(|d| Dimension {
            value: Some(Length::DimValue(*d as i64)),
            ..Default::default()
        })
        .collect();
    pb::ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(pb::type_proto::Tensor {
                elem_type: DataType::Float as i32,
                shape: Some(pb::TensorShapeProto { dim }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A node.
pub fn node(op_type: &str, inputs: &[&str], output: &str, attribute: Vec<pb::AttributeProto>) -> pb::NodeProto {
    pb::NodeProto {
        op_type: op_type.to_owned(),
        name: output.to_owned(),
        input: inputs.iter().map(|i| (*i).to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute,
        ..Default::default()
    }
}

/// An integer attribute of a node, or its default.
pub fn int_attribute(node: &pb::NodeProto, name: &str, default: i64) -> i64 {
    node.attribute.iter().find(|a| a.name == name).map_or(default, |a| a.i)
}
