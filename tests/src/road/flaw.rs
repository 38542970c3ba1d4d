//! Versions that answer well and go wrong all the same: nodes put into a good version's graph, which only show when it
//! runs, or when it runs on one kind of picture.

use anyhow::{Context, Result};
use fleetune_worker::engine::pb;
use fleetune_worker::version::MODEL;
use image::{GrayImage, ImageFormat};
use pb::attribute_proto::AttributeType;
use pb::tensor_proto::DataType;
use prost::Message;
use std::io::Cursor;
use std::path::Path;

/// What is wrong with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Doubles a tensor until no memory is left.
    EatsMemory,
    /// Reads beyond the end of a tensor, which ends the process.
    Aborts,
    /// Answers with what is no number to a picture that is all black, and well to any other.
    ErrsOnBlack,
    /// Reads beyond the end of a tensor, which ends the process, when the picture is all black, and answers well to any
    /// other.
    AbortsOnBlack,
}

/// Doublings of a tensor of ten values: far beyond the memory of any machine.
const DOUBLINGS: usize = 40;

impl Flaw {
    /// Puts the flaw into the graph of the version in `dir`.
    ///
    /// # Errors
    /// When the folder holds no version.
    pub fn put_into(self, dir: &Path) -> Result<()> {
        let path = dir.join(MODEL);
        let mut model = pb::ModelProto::decode(std::fs::read(&path)?.as_slice())?;
        let graph = model.graph.as_mut().context("a model has a graph")?;
        let input = graph.input.first().context("a graph has an input")?.name.clone();
        let output = graph.output.first().context("a graph has an output")?.name.clone();
        for name in graph.node.iter_mut().flat_map(|node| &mut node.output) {
            if *name == output {
                "flaw/good".clone_into(name);
            }
        }
        match self {
            Self::EatsMemory => eat(graph, &output),
            Self::Aborts => {
                brightest(graph, &input);
                graph.node.push(cast("flaw/number", "flaw/whole", DataType::Int64));
                graph.node.push(node("Add", &["flaw/whole", "flaw/far"], "flaw/index"));
                pick(graph, &output);
            }
            Self::AbortsOnBlack => {
                brightest(graph, &input);
                graph.node.push(cast("flaw/number", "flaw/bright", DataType::Bool));
                graph.node.push(node("Not", &["flaw/bright"], "flaw/black"));
                graph.node.push(cast("flaw/black", "flaw/whole", DataType::Int64));
                graph.node.push(node("Mul", &["flaw/whole", "flaw/far"], "flaw/index"));
                pick(graph, &output);
            }
            Self::ErrsOnBlack => {
                brightest(graph, &input);
                // A number by itself is 1, but for zero.
                graph
                    .node
                    .push(node("Div", &["flaw/number", "flaw/number"], "flaw/factor"));
                graph.node.push(node("Mul", &["flaw/good", "flaw/factor"], &output));
            }
        }
        Ok(std::fs::write(path, model.encode_to_vec())?)
    }
}

/// The brightest value of the picture, which is 0 where it is all black, as a matrix of one.
fn brightest(graph: &mut pb::GraphProto, input: &str) {
    graph.initializer.push(ints("flaw/one", &[1, 1]));
    graph.node.push(cast(input, "flaw/pixels", DataType::Float));
    graph.node.push(node("ReduceMax", &["flaw/pixels"], "flaw/brightest"));
    graph
        .node
        .push(node("Reshape", &["flaw/brightest", "flaw/one"], "flaw/number"));
}

/// Adds nothing to the answer, by way of the one of its values that `flaw/index` names.
fn pick(graph: &mut pb::GraphProto, output: &str) {
    graph.initializer.push(ints("flaw/far", &[1_000]));
    graph.initializer.push(ints("flaw/flat", &[-1]));
    graph
        .node
        .push(node("Reshape", &["flaw/good", "flaw/flat"], "flaw/values"));
    graph
        .node
        .push(node("GatherND", &["flaw/values", "flaw/index"], "flaw/picked"));
    graph
        .node
        .push(node("Sub", &["flaw/picked", "flaw/picked"], "flaw/nothing"));
    graph.node.push(node("Add", &["flaw/good", "flaw/nothing"], output));
}

/// Repeats the answer along a third axis, twice as often in each node, and takes the mean over it.
fn eat(graph: &mut pb::GraphProto, output: &str) {
    graph.initializer.push(ints("flaw/deep", &[1, -1, 1]));
    graph.initializer.push(ints("flaw/flat", &[1, -1]));
    graph.initializer.push(ints("flaw/twice", &[1, 1, 2]));
    graph
        .node
        .push(node("Reshape", &["flaw/good", "flaw/deep"], "flaw/eaten-0"));
    for i in 0..DOUBLINGS {
        let (from, to) = (format!("flaw/eaten-{i}"), format!("flaw/eaten-{}", i + 1));
        graph.node.push(node("Tile", &[&from, "flaw/twice"], &to));
    }
    let last = format!("flaw/eaten-{DOUBLINGS}");
    graph.node.push(node("GlobalAveragePool", &[&last], "flaw/mean"));
    graph.node.push(node("Reshape", &["flaw/mean", "flaw/flat"], output));
}

fn node(op_type: &str, input: &[&str], output: &str) -> pb::NodeProto {
    pb::NodeProto {
        // The node that gave the answer before keeps its name, which is that of the output.
        name: format!("flawed {output}"),
        op_type: op_type.to_owned(),
        input: input.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

fn cast(input: &str, output: &str, to: DataType) -> pb::NodeProto {
    let to = pb::AttributeProto {
        name: "to".to_owned(),
        r#type: AttributeType::Int as i32,
        i: i64::from(to as i32),
        ..Default::default()
    };
    pb::NodeProto {
        attribute: vec![to],
        ..node("Cast", &[input], output)
    }
}

fn ints(name: &str, values: &[i64]) -> pb::TensorProto {
    pb::TensorProto {
        name: name.to_owned(),
        dims: vec![i64::try_from(values.len()).unwrap_or(i64::MAX)],
        data_type: DataType::Int64 as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..Default::default()
    }
}

/// A picture that is all black, as PNG.
///
/// # Errors
/// When it cannot be encoded.
pub fn black() -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    GrayImage::new(28, 28).write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}
