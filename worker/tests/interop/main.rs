//! What other people's programs say of ours: the same job by every kind of address, from an S3 server and a registry on
//! loopback; signatures before OpenSSF's own verifier; versions before the ONNX checker and ONNX Runtime; JSON files
//! before a validator of JSON Schema. Beside them what needs the same small models: portable kernels.
#![allow(clippy::unwrap_used, clippy::panic)] // A test may end itself.

mod fixture;
mod json;
mod onnx;
mod portable;
mod programs;
mod signature;
mod sources;
