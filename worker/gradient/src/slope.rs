//! The derivative by one tensor as a shard gives it.

use crate::params::{is_f32, slice, slice_mut};
use rayon::prelude::*;
use tract_onnx::prelude::Tensor;

/// Values that one task adds up.
const CHUNK: usize = 1 << 15;

/// ∂L/∂w for one tensor w of f32.
#[derive(Clone, Debug, PartialEq)]
pub enum Slope {
    /// For each value of w, in its shape.
    Whole(Tensor),
    /// For the rows that were read of a table w of at least one axis; for all others it is 0. Few rows of a large table
    /// take few bytes.
    Rows {
        /// Numbers of the rows, in the order in which they were read. One may come again: then its parts are summed.
        numbers: Vec<usize>,
        /// The rows' derivatives, one behind the other.
        values: Tensor,
    },
}

impl Slope {
    /// Whether it is one of a tensor of `shape`.
    pub fn fits(&self, shape: &[usize]) -> bool {
        match self {
            Self::Whole(tensor) => is_f32(tensor) && tensor.shape() == shape,
            Self::Rows { numbers, values } => match shape {
                [rows, row @ ..] => {
                    let length = numbers.len() * row.iter().product::<usize>();
                    is_f32(values) && values.len() == length && numbers.iter().all(|n| n < rows)
                }
                [] => false,
            },
        }
    }

    /// Adds it to `sum`, one value for each of w. It must [fit](Self::fits).
    pub(crate) fn add_to(&self, sum: &mut [f32]) {
        match self {
            Self::Whole(tensor) => sum
                .par_chunks_mut(CHUNK)
                .zip(slice(tensor).par_chunks(CHUNK))
                .for_each(|(sum, own)| add(sum, own)),
            Self::Rows { numbers, values } => {
                let row = values.len() / numbers.len().max(1);
                for (number, own) in numbers.iter().zip(slice(values).chunks_exact(row.max(1))) {
                    if let Some(sum) = sum.get_mut(number * row..) {
                        add(sum, own);
                    }
                }
            }
        }
    }

    /// All of it, for a tensor of `shape`. It must [fit](Self::fits).
    pub fn whole(self, shape: &[usize]) -> Tensor {
        match self {
            Self::Whole(tensor) => tensor,
            rows @ Self::Rows { .. } => {
                let mut whole = zeros(shape);
                rows.add_to(slice_mut(&mut whole));
                whole
            }
        }
    }
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zero::<f32>(shape).unwrap_or_default()
}

fn add(sum: &mut [f32], own: &[f32]) {
    sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(numbers: &[usize], values: &[f32]) -> Slope {
        Slope::Rows {
            numbers: numbers.to_vec(),
            values: Tensor::from_shape(&[values.len()], values).unwrap(),
        }
    }

    #[test]
    fn rows_are_added_where_they_were_read() {
        let slope = rows(&[2, 0, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(slope.fits(&[3, 2]));
        let mut sum = vec![1.0; 6];
        slope.add_to(&mut sum);
        assert_eq!(sum, vec![4.0, 5.0, 1.0, 1.0, 7.0, 9.0]);
        let whole = slope.whole(&[3, 2]);
        assert_eq!(whole.shape(), [3, 2]);
        assert_eq!(slice(&whole), [3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
        assert_eq!(slice(&rows(&[], &[]).whole(&[2, 1])), [0.0, 0.0]);
    }

    #[test]
    fn what_is_of_another_tensor_does_not_fit() {
        for (numbers, shape) in [(&[3, 0, 2][..], &[3, 2][..]), (&[0, 1], &[3, 2]), (&[0, 1, 2], &[])] {
            assert!(!rows(numbers, &[0.0; 6]).fits(shape), "{numbers:?} {shape:?}");
        }
        assert!(!Slope::Whole(zeros(&[2, 3])).fits(&[3, 2]));
    }
}
