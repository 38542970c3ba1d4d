//! FineTuneJob: a bounded piece of work from a base model and a data set to a published version, or a reason why not.
//! One file for each part of the spec, and one for the status.

mod augmentation;
mod dataset;
mod evaluation;
mod head;
mod input;
mod method;
mod model;
mod optimizer;
mod output;
mod schedule;
mod status;
mod train;

pub use augmentation::*;
pub use dataset::*;
pub use evaluation::*;
pub use head::*;
pub use input::*;
pub use method::*;
pub use model::*;
pub use optimizer::*;
pub use output::*;
pub use schedule::*;
pub use status::*;
pub use train::*;

use crate::common::Span;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fine-tunes a small pretrained model on labelled samples, validates it on held-out ones, and publishes it if the
/// gates hold. Immutable once started, but for `suspend`, `activeDeadline` and `ttlAfterFinished`.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "fleetune.dev",
    version = "v1alpha1",
    kind = "FineTuneJob",
    plural = "finetunejobs",
    shortname = "ftj",
    category = "fleetune",
    namespaced,
    status = "FineTuneJobStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 52").message("a job's name has at most 52 characters, so that its pods can carry it"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.startedAt) || (self.spec.modelName == oldSelf.spec.modelName && \
         self.spec.task == oldSelf.spec.task && self.spec.baseModel == oldSelf.spec.baseModel && \
         self.spec.input == oldSelf.spec.input && self.spec.dataset == oldSelf.spec.dataset && \
         self.spec.train == oldSelf.spec.train && self.spec.evaluation == oldSelf.spec.evaluation && \
         self.spec.output == oldSelf.spec.output && self.spec.worker == oldSelf.spec.worker && \
         self.spec.backoffLimit == oldSelf.spec.backoffLimit && has(self.spec.budget) == has(oldSelf.spec.budget) && \
         (!has(self.spec.budget) || self.spec.budget == oldSelf.spec.budget))"
    ).message("a started job is immutable but for suspend, activeDeadline and ttlAfterFinished: make a new job"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Metric", type_ = "string", json_path = ".status.objective.metric"),
    printcolumn(name = "Value", type_ = "string", json_path = ".status.objective.value"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.input.image), has(self.input.sensor), has(self.input.text)].filter(given, given).size() == 1").message("input: name exactly one of image, sensor and text"))]
#[x_kube(validation = Rule::new("!has(self.train) || !has(self.train.loss) || (self.train.loss in ['MeanSquaredError', 'MeanAbsoluteError', 'Huber']) == (self.task == 'Regression')").message("train.loss: a Classification takes CrossEntropy or BinaryCrossEntropy, a Regression MeanSquaredError, MeanAbsoluteError or Huber"))]
#[x_kube(validation = Rule::new("!has(self.train) || !has(self.train.labelSmoothing) || self.task == 'Classification'").message("train.labelSmoothing: only a Classification takes it"))]
#[x_kube(validation = Rule::new("!has(self.train) || !has(self.train.augmentation) || ((!has(self.train.augmentation.image) || has(self.input.image)) && (!has(self.train.augmentation.sensor) || has(self.input.sensor)))").message("train.augmentation: image goes with input.image, sensor with input.sensor"))]
#[x_kube(validation = Rule::new("!has(self.evaluation) || !has(self.evaluation.gates) || self.evaluation.gates.all(g, (g.metric in ['mse','mae','r2']) == (self.task == 'Regression'))").message("evaluation.gates: mse, mae and r2 belong to Regression, all other metrics to Classification"))]
pub struct FineTuneJobSpec {
    /// Name of the model, a DNS label. With the namespace it is the model's identity: versions and rollouts refer to it.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub model_name: String,
    /// What the model answers: one of a set of labels, or a number.
    pub task: Task,
    /// The pretrained model to start from.
    pub base_model: BaseModel,
    /// How a raw sample becomes a tensor. Exactly one of its fields.
    pub input: Input,
    /// The labelled samples.
    pub dataset: Dataset,
    /// How to train. Default: a linear head by AdamW on the frozen features.
    #[serde(default)]
    pub train: Train,
    /// What to measure on the test split, and what must hold before a version is published.
    #[serde(default)]
    pub evaluation: Evaluation,
    /// What a version may cost on a device, keyed by hardware class; `*` is the default class. `validate` checks `*`,
    /// each node checks its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["class".into()]))]
    pub budget: Vec<Budget>,
    /// Where versions are pushed, and with which key they are signed.
    pub output: Output,
    /// The worker pods.
    #[serde(default)]
    pub worker: WorkerPod,
    /// Holds the job back, or ends its running pod; the job starts over when it is set to false again. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspend: bool,
    /// Time from the start after which the job fails with DeadlineExceeded; time in which it is suspended does not count.
    /// Default: 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_deadline: Option<Span>,
    /// How often a worker pod that failed for a passing cause is tried again. Default: 3.
    #[serde(default = "default_backoff_limit")]
    #[schemars(range(min = 0, max = 20))]
    pub backoff_limit: i32,
    /// Time after the end at which the job is deleted. Default: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_after_finished: Option<Span>,
}

fn default_backoff_limit() -> i32 {
    3
}

/// What a model answers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// One of a set of labels.
    Classification,
    /// A number.
    Regression,
}
