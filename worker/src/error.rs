//! The worker's one error type: a class that decides about a retry, a PascalCase reason for conditions and events, and
//! a message that says what, where and what to do. It decides nothing about exit codes; those follow from the class.

use fleetune_crds::outcome::{Code, Outcome};

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The input is bad: trying again changes nothing.
    BadInput,
    /// A passing cause: trying again can help.
    Transient,
}

/// What went wrong in the worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct WorkerError {
    class: Class,
    reason: &'static str,
    message: String,
}

impl WorkerError {
    /// Bad input: no retry.
    pub fn bad(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            class: Class::BadInput,
            reason,
            message: message.into(),
        }
    }

    /// A passing cause: retry.
    pub fn transient(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            class: Class::Transient,
            reason,
            message: message.into(),
        }
    }

    /// A file or folder of this machine that could not be read or written. A full disk can pass, so it is retried.
    pub fn io(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::transient(IO, format!("{what} {}: {error}", path.display()))
    }

    /// Whether trying again can help.
    pub fn class(&self) -> Class {
        self.class
    }

    /// A PascalCase word, the same for the same cause.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// What, where and what to do.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with a place in front of its message.
    #[must_use]
    pub fn at(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The termination message for this error.
    pub fn outcome(&self) -> Outcome {
        let code = match self.class {
            Class::BadInput => Code::BadInput,
            Class::Transient => Code::Transient,
        };
        Outcome::new(code, self.reason, self.message.clone())
    }
}

/// The result of most of the worker's functions.
pub type Result<T, E = WorkerError> = std::result::Result<T, E>;

/// Reason: this machine's disk did not do what it was asked.
pub const IO: &str = "LocalIo";
/// Reason: a bug of the worker; the message has what is needed to report it.
pub const INTERNAL: &str = "Internal";

/// Reason: the job's manifest cannot be read.
pub const INVALID_JOB: &str = "InvalidJob";

/// Reason: the address has a scheme or form that is not supported here.
pub const INVALID_ADDRESS: &str = "InvalidAddress";
/// Reason: nothing lies at the address.
pub const NOT_FOUND: &str = "SourceNotFound";
/// Reason: the address asks for credentials, or refuses those given.
pub const DENIED: &str = "SourceDenied";
/// Reason: the address does not answer, or broke off.
pub const UNREACHABLE: &str = "SourceUnreachable";

/// Reason: the data set holds no samples.
pub const DATA_EMPTY: &str = "DataEmpty";
/// Reason: the data set has more bytes than allowed.
pub const DATA_TOO_LARGE: &str = "DataTooLarge";
/// Reason: the data set's format is not what the spec says.
pub const DATA_FORMAT: &str = "DataFormat";
/// Reason: a path in an archive or a manifest leads out of it.
pub const UNSAFE_PATH: &str = "UnsafePath";
/// Reason: an archive or an image unpacks to far more than it says.
pub const DECOMPRESSION_BOMB: &str = "DecompressionBomb";
/// Reason: a Classification found a single class.
pub const ONE_CLASS: &str = "OneClass";
/// Reason: a column that the spec names is not in the table.
pub const COLUMN_ABSENT: &str = "ColumnAbsent";
/// Reason: more values are missing or not finite than allowed.
pub const MISSING_VALUES: &str = "MissingValues";
/// Reason: more samples cannot be decoded than allowed.
pub const UNREADABLE_SAMPLES: &str = "UnreadableSamples";
/// Reason: a class or a split has too few samples.
pub const TOO_FEW_SAMPLES: &str = "TooFewSamples";
/// Reason: a split value is none of train, validation and test.
pub const INVALID_SPLIT: &str = "InvalidSplit";
/// Reason: the data set is no longer the one that `finetune` read.
pub const DATA_CHANGED: &str = fleetune_crds::outcome::REASON_DATA_CHANGED;

/// Reason: the base model's bytes are not those that the spec names.
pub const MODEL_MISMATCH: &str = "ModelMismatch";
/// Reason: the tokenizer's bytes are not those that the spec names.
pub const TOKENIZER_MISMATCH: &str = "TokenizerMismatch";
/// Reason: the tokenizer is over the size limit.
pub const TOKENIZER_TOO_LARGE: &str = "TokenizerTooLarge";
/// Reason: the file is not a tokenizer of a kind that is supported, or does not fit the base model.
pub const INVALID_TOKENIZER: &str = "InvalidTokenizer";
/// Reason: the base model is over the size limit.
pub const MODEL_TOO_LARGE: &str = "ModelTooLarge";
/// Reason: the file is not an ONNX model, or is cut short.
pub const NOT_ONNX: &str = "NotOnnx";
/// Reason: the graph has an operator that the engine cannot run.
pub const UNSUPPORTED_OPERATOR: &str = "UnsupportedOperator";
/// Reason: the graph does not take the input that the spec describes.
pub const INPUT_SHAPE: &str = "InputShapeMismatch";
/// Reason: the feature tensor is not in the graph, or cannot be one.
pub const FEATURES_NOT_FOUND: &str = "FeaturesNotFound";
/// Reason: a tensor's bytes lie outside the model's files.
pub const EXTERNAL_DATA: &str = "ExternalData";
/// Reason: the model gave a value that is not finite.
pub const NOT_FINITE: &str = "NotFinite";

/// Reason: a file of a version is missing or not what the format says.
pub const INVALID_VERSION: &str = "InvalidVersion";
/// Reason: the version was written in a format that this build does not read.
pub const UNSUPPORTED_FORMAT: &str = "UnsupportedFormat";
/// Reason: a sample has not the form that the model takes.
pub const INVALID_SAMPLE: &str = "InvalidSample";
/// Reason: the method leaves no weight of the base model to train.
pub const NOTHING_TO_TRAIN: &str = "NothingToTrain";
/// Reason: a LoRA target is the name of no weight that can be adapted.
pub const LORA_TARGET_NOT_FOUND: &str = "LoraTargetNotFound";
/// Reason: a LoRA target names only layers that have no product of low rank.
pub const LORA_NOT_POSSIBLE: &str = "LoraNotPossible";
/// Reason: training needs more memory than the pod has.
pub const MEMORY_TOO_SMALL: &str = "MemoryTooSmall";
/// Reason: the checkpoint belongs to another job.
pub const CHECKPOINT_MISMATCH: &str = "CheckpointMismatch";
/// Reason: training did not converge to finite weights.
pub const TRAINING_DIVERGED: &str = "TrainingDiverged";
/// Reason: the written version answers differently from the trained one.
pub const EXPORT_MISMATCH: &str = "ExportMismatch";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_decides_the_exit_code() {
        assert_eq!(WorkerError::bad(DATA_EMPTY, "m").outcome().code.exit(), 2);
        assert_eq!(WorkerError::transient(IO, "m").outcome().code.exit(), 3);
        assert_eq!(
            WorkerError::bad(NOT_ONNX, "m").at("model.onnx").message(),
            "model.onnx: m"
        );
    }
}
