//! Memory for an operator's result.
#![allow(unsafe_code)]

use tract_onnx::tract_core::internal::{Tensor, TractResult};

/// A tensor of f32 whose values `fill` writes, all of them: the memory is as it was found, because zeroing it costs as
/// much as a memory-bound convolution.
pub(super) fn filled(shape: &[usize], fill: impl FnOnce(&mut [f32]) -> TractResult<()>) -> TractResult<Tensor> {
    // SAFETY: the operators of this folder write every value of their result, which their tests see against results by
    // definition, and read none before they wrote it.
    let mut tensor = unsafe { Tensor::uninitialized::<f32>(shape)? };
    fill(tensor.try_as_plain_ram_mut()?.as_slice_mut()?)?;
    Ok(tensor)
}
