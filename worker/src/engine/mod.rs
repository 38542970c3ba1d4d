//! The only module that names tract: ONNX files in, plans that run out. It bounds sizes before memory is taken and
//! turns every refusal into an error that names operator and node. It trains nothing and reads no data.

mod check;
mod graph;

pub use check::{MAX_GRAPH_BYTES, parse_model};
pub use graph::Graph;
/// ONNX as protocol buffer messages.
pub use tract_onnx::pb;
