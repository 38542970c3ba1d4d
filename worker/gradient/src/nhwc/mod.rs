//! Channels-last convolutions: tract's graphs hold pictures with channels first, where a convolution spends half its time
//! moving values. Here are kernels of our own over pictures with channels last, an operator made of them, and a rewrite of
//! the typed graph that puts it in place of tract's.
//!
//! `unsafe` is allowed in the kernel files alone: `lanes/`, `gemm/kernel.rs`, `depthwise/kernel.rs`, and `output.rs`. Their
//! tests run once more under valgrind.

mod chain;
pub mod dense;
pub mod depthwise;
pub mod gemm;
mod grad;
mod isa;
mod lanes;
mod op;
mod output;
mod plan;
mod product;
mod rewrite;
pub mod shape;
mod stripes;

pub use gemm::Clip;
pub use grad::{ClipGrad, FConvGradB, FConvGradW, FConvGradX};
pub use isa::Isa;
pub use op::{FConv, Kind, Weights};
pub use product::products;
pub use rewrite::rewrite;
pub use stripes::{Sizes, Stripes, stripes};

#[cfg(test)]
mod grad_tests;
#[cfg(test)]
mod memcheck;
#[cfg(test)]
mod tests;
