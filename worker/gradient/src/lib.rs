//! Reverse-mode differentiation and training of tract models: an ONNX model in, a training step out. No Kubernetes, no
//! files, no data formats.

pub mod augment;
pub mod checkpoint;
pub mod clip;
pub mod optim;
pub mod params;
pub mod philox;
pub mod schedule;
pub mod trainer;
