//! The only module that names tract: ONNX files in, plans that run out. It bounds sizes before memory is taken and
//! turns every refusal into an error that names operator and node. It trains nothing and reads no data.

pub mod base;
pub mod build;
mod check;
mod fold;
mod graph;
mod lookup;
mod names;
mod refusal;
pub mod row;
pub mod step;
pub mod tunable;

pub use base::{Backbone, Base};
pub use check::{MAX_GRAPH_BYTES, external, external_files, parse_model};
pub use fold::inside;
pub use graph::{Feed, Graph, knows};
/// ONNX as protocol buffer messages.
pub use tract_onnx::pb;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
