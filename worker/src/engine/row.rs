//! One sample at the border between the frozen part of a model and the trained one.

use tract_onnx::prelude::*;

/// The tensors of one sample at the border.
#[derive(Clone, Debug, PartialEq)]
pub struct Row(Vec<Tensor>);

impl Row {
    /// A row of these tensors.
    pub fn of(tensors: Vec<Tensor>) -> Self {
        Self(tensors)
    }

    /// Its tensors.
    pub fn tensors(&self) -> &[Tensor] {
        &self.0
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|t| (t.len() * t.datum_type().size_of()) as u64).sum()
    }

    /// Whether all its numbers are finite.
    pub fn is_finite(&self) -> bool {
        self.0.iter().all(|t| {
            t.view()
                .as_slice::<f32>()
                .map_or(true, |values| values.iter().all(|v| v.is_finite()))
        })
    }

    /// The values of all tensors one after another, in little-endian order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.bytes()).unwrap_or(0));
        for tensor in &self.0 {
            let view = tensor.view();
            if let Ok(values) = view.as_slice::<f32>() {
                bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            } else if let Ok(values) = view.as_slice::<i64>() {
                bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            } else if let Ok(values) = view.as_slice::<u8>() {
                bytes.extend(values);
            }
        }
        bytes
    }

    /// A row of this one's form with the values in `bytes`, as [`to_bytes`](Self::to_bytes) gives them; `None` where they are
    /// not so many.
    pub fn with_bytes(&self, bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut tensors = Vec::with_capacity(self.0.len());
        for like in &self.0 {
            let taken;
            (taken, rest) = rest.split_at_checked(like.len() * like.datum_type().size_of())?;
            let tensor = if like.datum_type() == f32::datum_type() {
                Tensor::from_shape(like.shape(), &words(taken, f32::from_le_bytes)).ok()?
            } else if like.datum_type() == i64::datum_type() {
                Tensor::from_shape(like.shape(), &words(taken, i64::from_le_bytes)).ok()?
            } else if like.datum_type() == u8::datum_type() {
                Tensor::from_shape(like.shape(), taken).ok()?
            } else {
                return None;
            };
            tensors.push(tensor);
        }
        rest.is_empty().then_some(Self(tensors))
    }
}

fn words<const N: usize, T>(bytes: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| of(*chunk)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_from_its_bytes() {
        let row = Row::of(vec![
            Tensor::from_shape(&[1, 2], &[1.5f32, -0.0]).unwrap(),
            Tensor::from_shape(&[1, 1, 2], &[-7i64, i64::MAX]).unwrap(),
            Tensor::from_shape(&[1, 3], &[1u8, 2, 255]).unwrap(),
        ]);
        let bytes = row.to_bytes();
        assert_eq!(bytes.len() as u64, row.bytes());
        let like = Row::of(
            row.tensors()
                .iter()
                .map(|t| Tensor::zero_dt(t.datum_type(), t.shape()).unwrap())
                .collect(),
        );
        assert_eq!(like.with_bytes(&bytes).unwrap(), row);
        assert!(like.with_bytes(&bytes[1..]).is_none());
        assert!(like.with_bytes(&[bytes.as_slice(), &[0]].concat()).is_none());
        let other = Row::of(vec![tensor1(&[true, false])]);
        assert!(
            other.with_bytes(&[1, 0]).is_none(),
            "a form without bytes of its own is not guessed"
        );
    }
}
