//! Reverse-mode differentiation and training of tract models: an ONNX model in, a training step out. No Kubernetes, no
//! files, no data formats.
//!
//! [`backward::differentiate`] walks a graph of the engine backwards and adds its gradient as more nodes of the same
//! graph, so that forward and backward pass run as one plan. [`registry`] is the list of what it can pass; [`rules`] holds
//! one function per operator. [`model::Differentiable`] is a model with its loss and gradient, [`trainer`] what steps it.

pub mod augment;
pub mod backward;
pub mod batch_norm;
pub mod checkpoint;
pub mod clip;
pub mod cut;
pub mod error;
pub mod feed;
pub mod layers;
pub mod lora;
pub mod losses;
pub mod memory;
pub mod model;
pub mod nhwc;
pub mod onnx;
pub mod ops;
pub mod optim;
pub mod params;
pub mod philox;
mod prelude;
pub mod profile;
pub mod recompute;
pub mod registry;
pub mod rules;
pub mod schedule;
pub mod site;
pub mod slope;
pub mod trainer;

pub use backward::differentiate;
pub use error::Refusal;
pub use losses::Loss;
pub use model::{Differentiable, Input, Outcome};
pub use recompute::Activations;
/// ONNX as protocol buffer messages.
pub use tract_onnx::pb;
