//! A version with adapters, made ready: W + s·A·B over weights becomes one weight, once, while the version is opened.

use super::check::external;
use super::pb;
use super::refusal::refused;
use crate::error::{EXTERNAL_DATA, Result, WorkerError};
use fleetune_gradient::lora;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Folds all adapters of `model`, whose tensors may lie in files of `dir`; they were checked against those before.
pub fn fold(model: &mut pb::ModelProto, dir: &Path) -> Result<()> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let read = over_weights(graph);
    if read.is_empty() {
        return Ok(());
    }
    for tensor in graph.initializer.iter_mut().filter(|t| read.contains(&t.name)) {
        inside(tensor, dir)?;
    }
    let folded = lora::fold(graph).map_err(refused)?;
    tracing::debug!(folded, "adapters");
    Ok(())
}

/// Names of the weights that products and sums over weights alone read.
fn over_weights(graph: &pb::GraphProto) -> BTreeSet<String> {
    let mut constant: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let weights = constant.clone();
    let mut read = BTreeSet::new();
    for node in &graph.node {
        let folds = matches!(node.op_type.as_str(), "MatMul" | "Reshape" | "Mul" | "Add");
        if folds && node.input.iter().all(|name| constant.contains(name.as_str())) {
            read.extend(
                node.input
                    .iter()
                    .filter(|name| weights.contains(name.as_str()))
                    .cloned(),
            );
            constant.extend(node.output.iter().map(String::as_str));
        }
    }
    read
}

/// Brings the bytes of a tensor that lies outside into the graph.
pub fn inside(tensor: &mut pb::TensorProto, dir: &Path) -> Result<()> {
    let Some((name, offset, length)) = external(tensor)? else {
        return Ok(());
    };
    let path = dir.join(name);
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            WorkerError::bad(EXTERNAL_DATA, format!("{} has fewer bytes than it had", path.display()))
        }
        _ => WorkerError::io("reading", &path, &error),
    };
    let mut file = File::open(&path).map_err(io)?;
    file.seek(SeekFrom::Start(offset)).map_err(io)?;
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes).map_err(io)?;
    tensor.raw_data = bytes;
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}
