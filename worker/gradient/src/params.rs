//! The tensors that train: named, in a fixed order, each with its place in memory that the model's graph reads too.

use std::sync::Arc;
use tract_onnx::prelude::Tensor;

/// A tensor that can't be a parameter.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum ParamError {
    /// The shape and the number of values differ.
    #[error("{name}: shape {shape:?} does not hold {values} values")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// The shape.
        shape: Vec<usize>,
        /// Number of values.
        values: usize,
    },
    /// Only f32 trains.
    #[error("{name}: not a tensor of f32")]
    Type {
        /// Name of the tensor.
        name: String,
    },
}

/// One tensor of f32. A clone shares its values until one of the two is written.
#[derive(Clone, Debug)]
pub struct Param {
    name: String,
    tensor: Arc<Tensor>,
    /// Whether weight decay applies.
    pub decays: bool,
}

impl Param {
    /// A tensor of `shape` with `values` in row-major order.
    pub fn new(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Result<Self, ParamError> {
        let name = name.into();
        match Tensor::from_shape(shape, values) {
            Ok(tensor) if tensor.len() == values.len() => Self::of(name, Arc::new(tensor)),
            _ => Err(ParamError::Shape {
                name,
                shape: shape.to_vec(),
                values: values.len(),
            }),
        }
    }

    /// A tensor that exists already. Weight decay applies where the rank is above 1: a bias, or the scale of a norm, isn't
    /// pulled to zero.
    pub fn of(name: impl Into<String>, tensor: Arc<Tensor>) -> Result<Self, ParamError> {
        let name = name.into();
        if !is_f32(&tensor) {
            return Err(ParamError::Type { name });
        }
        let decays = tensor.rank() > 1;
        Ok(Self { name, tensor, decays })
    }

    /// Its name, that of the ONNX initializer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    /// Its values in row-major order.
    pub fn values(&self) -> &[f32] {
        slice(&self.tensor)
    }

    /// Its values, to be written. Shared values are copied first.
    pub fn values_mut(&mut self) -> &mut [f32] {
        if Arc::get_mut(&mut self.tensor).is_none() {
            self.tensor = Arc::new(self.tensor.deep_clone());
        }
        Arc::get_mut(&mut self.tensor).map(slice_mut).unwrap_or_default()
    }

    /// The tensor that a graph is fed with; no copy.
    pub fn tensor(&self) -> &Arc<Tensor> {
        &self.tensor
    }
}

/// Equal to the last bit, NaN included.
impl PartialEq for Param {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.shape() == other.shape()
            && self.decays == other.decays
            && same_bits(self.values(), other.values())
    }
}

/// Whether a tensor holds f32 in plain memory.
pub(crate) fn is_f32(tensor: &Tensor) -> bool {
    tensor
        .as_plain_ram()
        .is_some_and(|plain| plain.as_slice::<f32>().is_ok())
}

/// The values of a tensor of f32; none of any other.
pub(crate) fn slice(tensor: &Tensor) -> &[f32] {
    tensor
        .as_plain_ram()
        .and_then(|plain| plain.as_slice().ok())
        .unwrap_or_default()
}

/// The values of a tensor of f32, to be written; none of any other.
pub(crate) fn slice_mut(tensor: &mut Tensor) -> &mut [f32] {
    match tensor.to_plain_array_view_mut() {
        Ok(view) => view.into_slice().unwrap_or_default(),
        Err(_) => &mut [],
    }
}

/// Whether two rows of numbers are equal to the last bit.
pub(crate) fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decay_is_for_matrices() {
        let of = |shape: &[usize]| {
            Param::new("p", shape, &vec![0.0; shape.iter().product()])
                .unwrap()
                .decays
        };
        assert!(of(&[2, 3]) && of(&[2, 3, 3, 3]));
        assert!(!of(&[3]) && !of(&[]));
    }

    #[test]
    fn a_clone_is_not_written_along() {
        let mut a = Param::new("p", &[2], &[1.0, 2.0]).unwrap();
        let held = a.tensor().clone();
        let b = a.clone();
        a.values_mut()[0] = 5.0;
        assert_eq!((a.values(), b.values()), (&[5.0, 2.0][..], &[1.0, 2.0][..]));
        assert_ne!(a, b);
        drop(held);
    }

    #[test]
    fn what_is_no_parameter() {
        assert!(matches!(
            Param::new("p", &[2, 2], &[1.0; 3]),
            Err(ParamError::Shape { values: 3, .. })
        ));
        let whole = Tensor::from_shape(&[1], &[1_i64]).unwrap();
        assert!(matches!(
            Param::of("p", Arc::new(whole)),
            Err(ParamError::Type { name }) if name == "p"
        ));
    }
}
