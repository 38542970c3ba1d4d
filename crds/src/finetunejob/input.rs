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
    /// Texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextInput>,
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

/// Texts, given to the model as its inputs `input_ids`, `attention_mask` and, where it has one, `token_type_ids`, each
/// i64 `[batch, tokens]`. A base model that gives one vector a token is pooled: the mean over the text's own tokens,
/// scaled to unit length.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TextInput {
    /// Most tokens of a text, the special ones included; a longer text loses its end. Default: 64.
    #[serde(default = "default_tokens")]
    #[schemars(range(min = 4, max = 512))]
    pub max_tokens: u32,
    /// How a text becomes tokens. Every version carries the file.
    pub tokenizer: Tokenizer,
}

fn default_tokens() -> u32 {
    64
}

/// The tokenizer that the base model was trained with.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Tokenizer {
    /// A `tokenizer.json` of kind WordPiece (BERT and its kin), at most 8 MiB: at the same kinds of address as the base
    /// model, and read with the same credentials.
    #[schemars(length(min = 1, max = 1024))]
    pub uri: String,
    /// SHA-256 of the file, 64 hex digits. Anything else is refused with TokenizerMismatch.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
}
