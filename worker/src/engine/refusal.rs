//! What the gradient engine refuses, as the worker's errors: a reason for each cause, and what to do.

use crate::engine::base::PREFIX;
use crate::error::{
    INPUT_SHAPE, INTERNAL, LORA_NOT_POSSIBLE, LORA_TARGET_NOT_FOUND, NOT_FINITE, NOTHING_TO_TRAIN,
    UNSUPPORTED_OPERATOR, WorkerError,
};
use fleetune_gradient::Refusal;
use fleetune_gradient::params::ParamError;

/// The error of a refusal, with the names that the base model has.
#[allow(clippy::needless_pass_by_value)] // It stands behind `map_err`.
pub fn refused(refusal: Refusal) -> WorkerError {
    let (reason, advice) = match &refusal {
        Refusal::NothingToTrain(_) => (
            NOTHING_TO_TRAIN,
            ": use method Head, a larger lastLayers.count, or features that lie behind weights",
        ),
        Refusal::NotFloat { .. } => (UNSUPPORTED_OPERATOR, ": start from a model of f32, or use method Head"),
        Refusal::NotFinite { .. } => (NOT_FINITE, ": export the base model anew"),
        Refusal::NoMatch { .. } => (LORA_TARGET_NOT_FOUND, ": change spec.train.lora.targets"),
        Refusal::NoAdapter { .. } => (LORA_NOT_POSSIBLE, ": leave it out of spec.train.lora.targets"),
        Refusal::OpenShape { .. } | Refusal::Shape { .. } => (INPUT_SHAPE, ""),
        Refusal::NoSuchTensor { .. } => (INTERNAL, ""),
        Refusal::UnsupportedOperator { .. } | Refusal::Unsound(_) | Refusal::Engine { .. } => {
            (UNSUPPORTED_OPERATOR, "")
        }
    };
    WorkerError::bad(reason, format!("{refusal}{advice}").replace(PREFIX, ""))
}

/// The error of a tensor that can't be trained.
#[allow(clippy::needless_pass_by_value)] // It stands behind `map_err`.
pub fn misfit(error: ParamError) -> WorkerError {
    WorkerError::bad(INTERNAL, error.to_string())
}
