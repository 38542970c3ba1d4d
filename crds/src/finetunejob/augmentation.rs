//! `train.augmentation`: small changes of training rows that do not change their label.

use crate::common::Decimal;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Variants of the training rows, drawn from the seed. Exactly one of image and sensor, as in `input`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.image) != has(self.sensor)").message("train.augmentation: name exactly one of image and sensor"))]
pub struct Augmentation {
    /// Variants of each training row that are made once, kept, and trained on beside the row itself. Methods Head and
    /// LastLayers need it, because their frozen part runs once. Default: none kept, every epoch draws new ones in place of
    /// the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub copies: Option<u32>,
    /// What may happen to a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageAugmentation>,
    /// What may happen to a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor: Option<SensorAugmentation>,
}

/// What may happen to a picture, after it was resized.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ImageAugmentation {
    /// Half of the pictures are mirrored left to right. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub flip: bool,
    /// Pixels of black that are put around the picture before a window of its old size is cut out. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 256))]
    pub crop: Option<u32>,
    /// All values times 1 ± up to this, from 0 to 1. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(0(\.[0-9]{1,6})?|1)$"))]
    pub brightness: Option<Decimal>,
    /// Distance to the picture's mean brightness times 1 ± up to this, from 0 to 1. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(0(\.[0-9]{1,6})?|1)$"))]
    pub contrast: Option<Decimal>,
    /// Distance of each value to its pixel's brightness times 1 ± up to this, from 0 to 1. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(0(\.[0-9]{1,6})?|1)$"))]
    pub saturation: Option<Decimal>,
}

/// What may happen to a window.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SensorAugmentation {
    /// Standard deviation of noise on each value, as a share of that of its channel in the window, from 0 to 1. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(0(\.[0-9]{1,6})?|1)$"))]
    pub jitter: Option<Decimal>,
    /// Each channel times 1 ± up to this, from 0 to 1. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(0(\.[0-9]{1,6})?|1)$"))]
    pub scale: Option<Decimal>,
    /// Samples by which the window moves to either side; the end that is laid open repeats the last value. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_535))]
    pub shift: Option<u32>,
}
