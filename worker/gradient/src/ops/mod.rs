//! Operators of our own that rules need: those whose gradient in the engine's operators would take several passes over
//! memory, or for which the engine has none. Each works on f32 and f64, so that its rule can be checked in f64.

mod again;
mod depthwise;
pub mod gather;
mod kernel;
mod norm;
mod pointwise;
mod pool;
mod repeat;
mod sample;
mod share;
mod unfold;
mod window;

pub use again::Again;
pub use depthwise::{DepthwiseGradInput, DepthwiseGradKernel};
pub use gather::GatherGrad;
pub use norm::RmsNormGrad;
pub use pointwise::{Pointwise, PointwiseGrad, Softplus, softplus};
pub use pool::{MaxPoolGrad, SumPoolGrad};
pub use repeat::Repeat;
pub use sample::DownsampleGrad;
pub use share::{Extremum, Share};
pub use unfold::{Fold, Unfold};
pub use window::{Run, Window};
