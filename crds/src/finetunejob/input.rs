//! `input`: how a raw sample becomes a tensor.

use crate::common::Decimal;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// How a raw sample becomes a tensor.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// Pictures: PNG or JPEG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageInput>,
    /// Windows of one or more measured channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor: Option<SensorInput>,
}

/// Pictures. They are resized to a square and given to the model as f32, NCHW, RGB.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ImageInput {
    /// Edge of the square in pixels.
    #[schemars(range(min = 8, max = 1024))]
    pub size: u32,
    /// Subtracted from each 8-bit value. Default: 127.
    #[serde(default = "default_mean")]
    pub mean: Decimal,
    /// Divides each value after that. Default: 128.
    #[serde(default = "default_std")]
    pub std: Decimal,
}

fn default_mean() -> Decimal {
    Decimal::from_f64(127.0).unwrap_or_else(|| unreachable!("a constant"))
}

fn default_std() -> Decimal {
    Decimal::from_f64(128.0).unwrap_or_else(|| unreachable!("a constant"))
}

/// Windows of measured channels, given to the model as f32 `[batch, channels, window]`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SensorInput {
    /// Samples in a window.
    #[schemars(range(min = 2, max = 65_536))]
    pub window: u32,
    /// Channels of a sample. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 256))]
    pub channels: u32,
    /// Samples from the start of one window to the next, for the format Series. Default: `window`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub stride: Option<u32>,
}

fn one() -> u32 {
    1
}
