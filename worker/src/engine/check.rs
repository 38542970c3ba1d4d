//! What an ONNX file must hold before the engine looks at it: it parses, and every tensor's bytes are there and as many
//! as its shape says. Pure but for reading file lengths.

use super::pb;
use crate::error::{EXTERNAL_DATA, NOT_ONNX, Result, WorkerError};
use fleetune_gradient::onnx::node_name;
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest `model.onnx` of a version: its weights lie outside, so what is left is small.
pub const MAX_GRAPH_BYTES: u64 = 64 << 20;
/// Most values of one tensor.
const MAX_ELEMENTS: u64 = 1 << 31;

/// Where a model's external data may lie: names relative to the model's folder, with their lengths.
pub type ExternalFiles = BTreeMap<String, u64>;

/// The lengths of the files that a version's tensors may refer to.
pub fn external_files(dir: &Path, names: &[&str]) -> Result<ExternalFiles> {
    let mut files = ExternalFiles::new();
    for name in names {
        let path = dir.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => {
                files.insert((*name).to_owned(), meta.len());
            }
            Ok(_) => {
                return Err(WorkerError::bad(EXTERNAL_DATA, format!("{name} is not a plain file")));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(WorkerError::io("reading", &path, &e)),
        }
    }
    Ok(files)
}

/// Parses an ONNX model and checks its tensors against their shapes. External data may lie in `files` only.
pub fn parse_model(bytes: &[u8], files: &ExternalFiles) -> Result<pb::ModelProto> {
    let model = pb::ModelProto::decode(bytes).map_err(|e| {
        WorkerError::bad(
            NOT_ONNX,
            format!("not an ONNX model, or cut short: {e}: export it, or copy it, again"),
        )
    })?;
    let Some(graph) = &model.graph else {
        return Err(WorkerError::bad(NOT_ONNX, "not an ONNX model: it holds no graph"));
    };
    if graph.node.is_empty() || graph.output.is_empty() {
        return Err(WorkerError::bad(
            NOT_ONNX,
            "not an ONNX model: its graph has no nodes or no outputs",
        ));
    }
    if let Some(function) = model.functions.first() {
        let name = function.name.as_deref().unwrap_or_default();
        return Err(WorkerError::bad(
            crate::error::UNSUPPORTED_OPERATOR,
            format!("the model defines its own function {name:?}: export it with functions inlined"),
        ));
    }
    check_graph(graph, files)?;
    Ok(model)
}

fn check_graph(graph: &pb::GraphProto, files: &ExternalFiles) -> Result<()> {
    if let Some(sparse) = graph.sparse_initializer.first() {
        let name = sparse.values.as_ref().map_or("", |v| v.name.as_str());
        return Err(WorkerError::bad(
            crate::error::UNSUPPORTED_OPERATOR,
            format!("initializer {name:?} is sparse: export it dense"),
        ));
    }
    for tensor in &graph.initializer {
        check_tensor(tensor, files)?;
    }
    for node in &graph.node {
        for attribute in &node.attribute {
            for tensor in attribute.t.iter().chain(&attribute.tensors) {
                // Only initializers may lie outside: a constant is part of the graph.
                check_tensor(tensor, &ExternalFiles::new())
                    .map_err(|e| e.at(&format!("node {:?} ({})", node_name(node), node.op_type)))?;
            }
            for inner in attribute.g.iter().chain(&attribute.graphs) {
                check_graph(inner, &ExternalFiles::new())?;
            }
        }
    }
    Ok(())
}

/// Bytes of one value of an ONNX element type that the engine can hold; `None` for all others.
pub fn element_size(data_type: i32) -> Option<u64> {
    use pb::tensor_proto::DataType as T;
    Some(match T::try_from(data_type).ok()? {
        T::Uint8 | T::Int8 | T::Bool => 1,
        T::Uint16 | T::Int16 | T::Float16 => 2,
        T::Float | T::Int32 | T::Uint32 => 4,
        T::Int64 | T::Uint64 | T::Double => 8,
        _ => return None,
    })
}

/// Number of values that a shape says.
pub fn elements(tensor: &pb::TensorProto) -> Result<u64> {
    let bad = || {
        WorkerError::bad(
            NOT_ONNX,
            format!("tensor {:?} has the impossible shape {:?}", tensor.name, tensor.dims),
        )
    };
    tensor
        .dims
        .iter()
        .try_fold(1u64, |product, d| product.checked_mul(u64::try_from(*d).ok()?))
        .filter(|n| *n <= MAX_ELEMENTS)
        .ok_or_else(bad)
}

/// Where a tensor's bytes lie, if outside: file, offset, length.
pub fn external(tensor: &pb::TensorProto) -> Result<Option<(&str, u64, u64)>> {
    if tensor.data_location != Some(pb::tensor_proto::DataLocation::External as i32) {
        return Ok(None);
    }
    let get = |key: &str| {
        tensor
            .external_data
            .iter()
            .find(|e| e.key == key)
            .map(|e| e.value.as_str())
    };
    let bad = |what: &str| WorkerError::bad(EXTERNAL_DATA, format!("tensor {:?}: {what}", tensor.name));
    let location = get("location").ok_or_else(|| bad("no location"))?;
    let offset = get("offset")
        .unwrap_or("0")
        .parse()
        .map_err(|_| bad("the offset is not a number"))?;
    let length = get("length")
        .ok_or_else(|| bad("no length"))?
        .parse()
        .map_err(|_| bad("the length is not a number"))?;
    Ok(Some((location, offset, length)))
}

fn check_tensor(tensor: &pb::TensorProto, files: &ExternalFiles) -> Result<()> {
    let count = elements(tensor)?;
    let string = tensor.data_type == pb::tensor_proto::DataType::String as i32;
    let Some(size) = element_size(tensor.data_type) else {
        // Text is only ever a table of names, never weights.
        if string && tensor.raw_data.is_empty() && tensor.string_data.len() as u64 == count {
            return Ok(());
        }
        return Err(WorkerError::bad(
            crate::error::UNSUPPORTED_OPERATOR,
            format!(
                "tensor {:?} has element type {}, which is not supported",
                tensor.name, tensor.data_type
            ),
        ));
    };
    let bytes = count * size;
    let short = |have: u64| {
        WorkerError::bad(
            NOT_ONNX,
            format!(
                "tensor {:?} of shape {:?} takes {bytes} bytes, the model has {have}",
                tensor.name, tensor.dims
            ),
        )
    };
    if let Some((location, offset, length)) = external(tensor)? {
        let Some(&file) = files.get(location) else {
            return Err(WorkerError::bad(
                EXTERNAL_DATA,
                format!(
                    "tensor {:?} lies in the file {location:?}, which is not part of the model: save it as one file",
                    tensor.name
                ),
            ));
        };
        if length != bytes {
            return Err(short(length));
        }
        return match offset.checked_add(length) {
            Some(end) if end <= file => Ok(()),
            _ => Err(WorkerError::bad(
                EXTERNAL_DATA,
                format!(
                    "tensor {:?} lies at {offset} + {length} of {location:?}, which has {file} bytes",
                    tensor.name
                ),
            )),
        };
    }
    if !tensor.raw_data.is_empty() {
        let have = tensor.raw_data.len() as u64;
        return if have == bytes { Ok(()) } else { Err(short(have)) };
    }
    let listed = match size {
        8 if tensor.data_type == pb::tensor_proto::DataType::Double as i32 => tensor.double_data.len(),
        8 => tensor.int64_data.len(),
        4 if tensor.data_type == pb::tensor_proto::DataType::Float as i32 => tensor.float_data.len(),
        _ => tensor.int32_data.len(),
    } as u64;
    if listed == count {
        Ok(())
    } else {
        Err(short(listed * size))
    }
}
