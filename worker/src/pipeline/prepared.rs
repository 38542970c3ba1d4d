//! What goes in: a raw sample as a client sends it, and the tensor that it becomes.

use super::Dtype;
use crate::error::{INVALID_SAMPLE, Result, WorkerError};

/// A raw sample, as a client sends it.
#[derive(Clone, Copy, Debug)]
pub enum Raw<'a> {
    /// An encoded PNG or JPEG file.
    Image(&'a [u8]),
    /// A window, channel after channel.
    Window(&'a [f32]),
    /// A text.
    Text(&'a str),
}

/// The tensors that the graph takes: `[1, H, W, 3]` of u8, `[1, C, T]` of f32, or two of `[1, N]` of i64.
#[derive(Clone, Debug, PartialEq)]
pub enum Prepared {
    /// Pixels, rows of RGB.
    Pixels {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
        /// `height * width * 3` values.
        data: Vec<u8>,
    },
    /// A window, channel after channel.
    Window {
        /// Number of channels.
        channels: u32,
        /// Samples of each channel.
        samples: u32,
        /// `channels * samples` finite values.
        data: Vec<f32>,
    },
    /// A text as tokens.
    Tokens {
        /// Their numbers, at least 0.
        ids: Vec<i64>,
        /// 1 for each token, 0 for padding; as long as `ids`, with a 1 somewhere.
        mask: Vec<i64>,
    },
}

impl Prepared {
    /// Pixels from their bytes, rows of RGB.
    pub fn pixels(height: u32, width: u32, data: Vec<u8>) -> Result<Self> {
        let want = u64::from(height) * u64::from(width) * 3;
        if data.len() as u64 != want {
            return Err(WorkerError::bad(
                INVALID_SAMPLE,
                format!(
                    "[1, {height}, {width}, 3] takes {want} bytes, the tensor has {}",
                    data.len()
                ),
            ));
        }
        Ok(Self::Pixels { height, width, data })
    }

    /// A window from its values, channel after channel; all must be finite.
    pub fn window(channels: u32, samples: u32, data: Vec<f32>) -> Result<Self> {
        let want = u64::from(channels) * u64::from(samples);
        if data.len() as u64 != want {
            return Err(WorkerError::bad(
                INVALID_SAMPLE,
                format!(
                    "{channels} channels of {samples} samples are {want} values, the window has {}",
                    data.len()
                ),
            ));
        }
        if let Some(at) = data.iter().position(|v| !v.is_finite()) {
            return Err(WorkerError::bad(
                INVALID_SAMPLE,
                format!(
                    "value {at} of the window is {}: only finite numbers are taken",
                    data[at]
                ),
            ));
        }
        Ok(Self::Window {
            channels,
            samples,
            data,
        })
    }

    /// Tokens from their numbers and mask.
    pub fn tokens(ids: Vec<i64>, mask: Vec<i64>) -> Result<Self> {
        let bad = |why: String| Err(WorkerError::bad(INVALID_SAMPLE, why));
        if ids.len() != mask.len() {
            return bad(format!("{} tokens with a mask of {}", ids.len(), mask.len()));
        }
        if let Some(id) = ids.iter().find(|id| **id < 0) {
            return bad(format!("token {id}: tokens are numbered from 0"));
        }
        if let Some(value) = mask.iter().find(|m| !(0..=1).contains(*m)) {
            return bad(format!("the mask holds {value}: it is 1 for a token and 0 for padding"));
        }
        if !mask.contains(&1) {
            return bad("the mask leaves no token".to_owned());
        }
        Ok(Self::Tokens { ids, mask })
    }

    /// Of tokens: how many there are until only padding follows. Of all others 0.
    pub fn used(&self) -> usize {
        match self {
            Self::Tokens { mask, .. } => mask.iter().rposition(|m| *m == 1).map_or(0, |last| last + 1),
            Self::Pixels { .. } | Self::Window { .. } => 0,
        }
    }

    /// Of tokens: the first `tokens` alone, where only padding follows. All others, and longer texts, stay as they are.
    #[must_use]
    pub fn shortened(mut self, tokens: usize) -> Self {
        if self.used() <= tokens
            && let Self::Tokens { ids, mask } = &mut self
        {
            ids.truncate(tokens);
            mask.truncate(tokens);
        }
        self
    }

    /// The tensor that a client prepared itself: little-endian bytes of `dtype` and a shape.
    pub fn from_bytes(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<Self> {
        let edge = |n: usize| {
            u32::try_from(n).map_err(|_| WorkerError::bad(INVALID_SAMPLE, format!("a dimension of {n} is too large")))
        };
        match (dtype, shape) {
            (Dtype::Uint8, [1, height, width, 3]) => Self::pixels(edge(*height)?, edge(*width)?, bytes.to_vec()),
            (Dtype::Fp32, [1, channels, samples]) if bytes.len().is_multiple_of(4) => {
                let values = bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                Self::window(edge(*channels)?, edge(*samples)?, values.collect())
            }
            _ => Err(WorkerError::bad(
                INVALID_SAMPLE,
                format!("{dtype:?} of shape {shape:?} is neither UINT8 [1, H, W, 3] nor FP32 [1, C, T]"),
            )),
        }
    }

    /// Its shape, with the batch of one; of tokens that of both tensors.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Pixels { height, width, .. } => vec![1, *height as usize, *width as usize, 3],
            Self::Window { channels, samples, .. } => vec![1, *channels as usize, *samples as usize],
            Self::Tokens { ids, .. } => vec![1, ids.len()],
        }
    }

    /// Its element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::Pixels { .. } => Dtype::Uint8,
            Self::Window { .. } => Dtype::Fp32,
            Self::Tokens { .. } => Dtype::Int64,
        }
    }
}
