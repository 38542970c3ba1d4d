//! Windows of measured values: none but checks.

use super::{Dtype, TensorSpec};
use crate::error::{INVALID_VERSION, Result, WorkerError};
use fleetune_crds::SensorInput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most values of a window: 65,536 samples of 256 channels.
const MAX_WINDOW_VALUES: u64 = 65_536 * 256;
/// Name of the graph's window input.
pub const INPUT_WINDOW: &str = "window";

/// The steps before a graph that takes windows: none but checks.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WindowSteps {
    /// Number of channels.
    pub channels: u32,
    /// Samples of each channel.
    pub samples: u32,
}

impl WindowSteps {
    /// The steps of a job's input.
    pub(super) fn for_input(input: &SensorInput) -> Self {
        Self {
            channels: input.channels,
            samples: input.window,
        }
    }

    /// The tensor that the graph takes, f32 `[1, C, T]`.
    pub(super) fn tensor(&self) -> Result<TensorSpec> {
        let values = u64::from(self.channels) * u64::from(self.samples);
        if values == 0 || values > MAX_WINDOW_VALUES {
            return Err(WorkerError::bad(
                INVALID_VERSION,
                format!("pipeline.json: a window of {values} values, must be in 1..={MAX_WINDOW_VALUES}"),
            ));
        }
        Ok(TensorSpec {
            name: INPUT_WINDOW.to_owned(),
            dtype: Dtype::Fp32,
            shape: vec![1, self.channels as usize, self.samples as usize],
        })
    }
}
