//! FineTuneJob: a bounded piece of work from a base model and a data set to a published version, or a reason why not.

use crate::common::{Bytes, Decimal, Digest, Span};
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Condition: the data set was read and met its requirements.
pub const DATA_READY: &str = "DataReady";
/// Condition: a candidate was trained and pushed.
pub const TRAINED: &str = "Trained";
/// Condition: the candidate was evaluated on the test split.
pub const EVALUATED: &str = "Evaluated";
/// Condition: every gate held.
pub const GATES_PASSED: &str = "GatesPassed";
/// Condition: the version is signed, tagged and has a ModelVersion.
pub const PUBLISHED: &str = "Published";

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
#[x_kube(validation = Rule::new("has(self.input.image) != has(self.input.sensor)").message("input: name exactly one of image and sensor"))]
#[x_kube(validation = Rule::new("self.task != 'Regression' || !has(self.train) || !has(self.train.loss) || self.train.loss == 'MeanSquaredError'").message("train.loss: a Regression takes MeanSquaredError"))]
#[x_kube(validation = Rule::new("self.task != 'Classification' || !has(self.train) || !has(self.train.loss) || self.train.loss != 'MeanSquaredError'").message("train.loss: a Classification takes CrossEntropy or BinaryCrossEntropy"))]
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
    /// Time from the start after which the job fails with DeadlineExceeded. Default: 24h.
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

/// A pretrained model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BaseModel {
    /// ONNX file: `s3://`, `http(s)://`, `pvc://CLAIM/PATH`, `file://` (local runs only) or `oci://` (an artifact whose
    /// first layer is the file).
    #[schemars(length(min = 1, max = 1024))]
    pub uri: String,
    /// SHA-256 of the file, 64 hex digits. Anything else is refused with ModelMismatch.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// Name of the tensor whose values are the features. Default: the input of the last MatMul or Gemm by topology.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub features: Option<String>,
    /// Secret in the job's namespace with credentials for the address (see `dataset.credentialsSecret`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret: Option<String>,
}

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

/// Labelled samples.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// A file or, for ClassFolders, also a prefix: `s3://`, `http(s)://`, `pvc://CLAIM/PATH` or `file://` (local runs only).
    #[schemars(length(min = 1, max = 1024))]
    pub uri: String,
    /// Default: ClassFolders for images, Rows for sensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Names of columns, for tables and manifests.
    #[serde(default)]
    pub columns: Columns,
    /// How rows are told apart into train, validation and test.
    #[serde(default)]
    pub split: Split,
    /// What the data must hold before anything is trained.
    #[serde(default)]
    pub requirements: Requirements,
    /// Secret in the job's namespace whose keys become environment variables of the worker: AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT, AWS_ALLOW_HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret: Option<String>,
}

/// How samples are laid out.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[schemars(description = "")] // Else it hides that of the field.
pub enum Format {
    /// One folder a class, in a tar or under a prefix: `CLASS/NAME.png`.
    ClassFolders,
    /// A CSV table beside the files, in a tar or under a prefix (`manifest.csv`): one row a sample.
    Manifest,
    /// CSV or Parquet, one row a window: all value columns, channel after channel.
    Rows,
    /// CSV or Parquet in long format, one row a sample: group, time and value columns; cut into windows.
    Series,
}

/// Names of columns.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Columns {
    /// The label, or the target of a Regression. Default: `label`.
    #[serde(default = "label_column")]
    #[schemars(length(min = 1, max = 128))]
    pub label: String,
    /// The group (user, machine, site) a row belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub group: Option<String>,
    /// The time of a row: a number, or RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub time: Option<String>,
    /// The split of a row (`train`, `validation`, `test`), for `split.by: Column`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub split: Option<String>,
    /// The file of a row, for Manifest. Default: `path`.
    #[serde(default = "path_column")]
    #[schemars(length(min = 1, max = 128))]
    pub path: String,
    /// The value columns, in order. Default: all columns with no other role, in the file's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub values: Vec<String>,
}

fn label_column() -> String {
    "label".into()
}

fn path_column() -> String {
    "path".into()
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            label: label_column(),
            group: None,
            time: None,
            split: None,
            path: path_column(),
            values: Vec::new(),
        }
    }
}

/// How rows are told apart into train, validation and test. A row's part is a hash of the seed and its key, so it never
/// moves when data grow.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Split {
    /// Default: Group where `columns.group` is set, else Random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<SplitBy>,
    /// Shares of train, validation and test; they add up to 1. Default: 0.7, 0.15, 0.15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fractions: Option<Fractions>,
    /// Seed of the hash. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub seed: i64,
}

/// What keeps rows together in one part.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[schemars(description = "")] // Else it hides that of the field.
pub enum SplitBy {
    /// The row's own content.
    Random,
    /// The value of `columns.group`: all rows of a group land in one part.
    Group,
    /// The value of `columns.time`: the earliest share trains, the latest tests.
    Time,
    /// The value of `columns.split` says it.
    Column,
}

/// Shares of the three parts.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("double(self.train) + double(self.validation) + double(self.test) > 0.9999 && double(self.train) + double(self.validation) + double(self.test) < 1.0001").message("split.fractions: train, validation and test must add up to 1"))]
#[x_kube(validation = Rule::new("double(self.train) > 0.0 && double(self.validation) > 0.0 && double(self.test) > 0.0").message("split.fractions: each share must be above 0"))]
pub struct Fractions {
    /// Share of rows that train.
    pub train: Decimal,
    /// Share of rows that pick the best epoch.
    pub validation: Decimal,
    /// Share of rows that are read once, by `validate`.
    pub test: Decimal,
}

/// What the data must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Requirements {
    /// Fewest training rows of each class, or of all for a Regression. Default: 5.
    #[serde(default = "default_min_per_class")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_per_class: u32,
    /// Share of samples that may be unreadable or hold missing values before the job fails. Default: 0.
    #[serde(default = "zero")]
    pub max_bad_fraction: Decimal,
    /// Most bytes of the data set, unpacked. Default: 8Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Bytes>,
}

fn default_min_per_class() -> u32 {
    5
}

fn zero() -> Decimal {
    Decimal::from_f64(0.0).unwrap_or_else(|| unreachable!("a constant"))
}

impl Default for Requirements {
    fn default() -> Self {
        Self {
            min_per_class: default_min_per_class(),
            max_bad_fraction: zero(),
            max_bytes: None,
        }
    }
}

/// How to train.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Train {
    /// Which weights move. Default: Head.
    #[serde(default)]
    pub method: Method,
    /// The head that is put on the features.
    #[serde(default)]
    pub head: Head,
    /// Default: CrossEntropy for a Classification, MeanSquaredError for a Regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// The optimizer and its parameters.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Most passes over the training rows. Default: 100.
    #[serde(default = "default_epochs")]
    #[schemars(range(min = 1, max = 10_000))]
    pub epochs: u32,
    /// Rows in a step. Default: 32.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 65_536))]
    pub batch_size: u32,
    /// Ends the training when the objective on the validation rows no longer gets better.
    #[serde(default)]
    pub early_stopping: EarlyStopping,
    /// Seed of initial weights, order of rows and dropout. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub seed: i64,
    /// Default: None.
    #[serde(default)]
    pub class_weights: ClassWeights,
}

fn default_epochs() -> u32 {
    100
}

fn default_batch() -> u32 {
    32
}

impl Default for Train {
    fn default() -> Self {
        Self {
            method: Method::Head,
            head: Head::default(),
            loss: None,
            optimizer: Optimizer::default(),
            epochs: default_epochs(),
            batch_size: default_batch(),
            early_stopping: EarlyStopping::default(),
            seed: 0,
            class_weights: ClassWeights::None,
        }
    }
}

/// Which weights move.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// Only a new head; the base model is frozen and runs over the data once.
    #[default]
    Head,
}

/// The head on the features: hidden layers, then one linear layer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Widths of the hidden layers. Default: none, a linear head.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(range(min = 1, max = 4096)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub layers: Vec<u32>,
    /// After each hidden layer. Default: Relu.
    #[serde(default)]
    pub activation: Activation,
    /// Share of the values before each linear layer that a training step drops, from 0 to below 1. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^0(\.[0-9]{1,6})?$"))]
    pub dropout: Option<Decimal>,
}

/// A function between layers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// max(0, x)
    #[default]
    Relu,
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// tanh(x)
    Tanh,
}

/// What training makes small.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[schemars(description = "")] // Else it hides that of the field.
pub enum Loss {
    /// Negative log-likelihood of the softmax, from logits.
    CrossEntropy,
    /// Mean over classes of the binary cross-entropy of each sigmoid, from logits.
    BinaryCrossEntropy,
    /// Mean of squared differences, on standardised targets.
    MeanSquaredError,
}

/// An optimizer and its parameters.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Optimizer {
    /// Default: AdamW.
    #[serde(default)]
    pub name: OptimizerName,
    /// Default: 0.001 for Adam and AdamW, 0.05 for Sgd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,9})?$"))]
    pub learning_rate: Option<Decimal>,
    /// Of Sgd. Default: 0.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^0(\.[0-9]{1,9})?$"))]
    pub momentum: Option<Decimal>,
    /// L2 penalty on weights, not on biases: decoupled for AdamW, in the gradient for Sgd and Adam. Default: 0.01 for AdamW, else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,9})?$"))]
    pub weight_decay: Option<Decimal>,
}

/// The name of an optimizer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OptimizerName {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adam (Kingma and Ba 2015).
    Adam,
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    #[default]
    AdamW,
}

/// When training ends early. The weights of the best epoch are kept in any case.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EarlyStopping {
    /// Epochs without a better objective after which training ends. Default: 10.
    #[serde(default = "default_patience")]
    #[schemars(range(min = 1, max = 10_000))]
    pub patience: u32,
}

fn default_patience() -> u32 {
    10
}

impl Default for EarlyStopping {
    fn default() -> Self {
        Self {
            patience: default_patience(),
        }
    }
}

/// How much each class counts in the loss.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ClassWeights {
    /// Every row counts the same.
    #[default]
    None,
    /// Every class counts the same: rows / (classes × rows of the class).
    Balanced,
}

/// What to measure, and what must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Evaluation {
    /// The metric that picks the best epoch and that the status shows. Default: macroF1, or mse for a Regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Metric>,
    /// All must hold on the test rows, else nothing is published. Default: none, which passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["metric".into()]))]
    pub gates: Vec<Gate>,
    /// Fewest test rows for a verdict; with fewer the gates are Inconclusive. Default: 20.
    #[serde(default = "default_min_samples")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_samples: u32,
    /// Whether an Inconclusive verdict lets the version through. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_inconclusive: bool,
}

fn default_min_samples() -> u32 {
    20
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            objective: None,
            gates: Vec::new(),
            min_samples: default_min_samples(),
            allow_inconclusive: false,
        }
    }
}

/// A bound on one metric.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.min) || has(self.max) || has(self.overBaseline)").message("evaluation.gates: a gate needs min, max or overBaseline"))]
pub struct Gate {
    /// The metric; one gate for each.
    pub metric: Metric,
    /// The smallest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Decimal>,
    /// The largest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Decimal>,
    /// By how much the model must be better than the best cheap baseline; for mse and mae, lower by this much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_baseline: Option<Decimal>,
}

/// A metric of the test rows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")] // Else it hides that of the field.
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// Mean over classes of the F1 score.
    MacroF1,
    /// Mean over classes of precision.
    MacroPrecision,
    /// Mean over classes of recall.
    MacroRecall,
    /// Mean squared error, in the target's unit squared.
    Mse,
    /// Mean absolute error, in the target's unit.
    Mae,
    /// Coefficient of determination.
    R2,
}

impl Metric {
    /// The name in the API, in reports and in Prometheus labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macroF1",
            Self::MacroPrecision => "macroPrecision",
            Self::MacroRecall => "macroRecall",
            Self::Mse => "mse",
            Self::Mae => "mae",
            Self::R2 => "r2",
        }
    }

    /// Whether a larger value is a better one.
    pub fn larger_is_better(self) -> bool {
        !matches!(self, Self::Mse | Self::Mae)
    }

    /// The objective where the spec names none.
    pub fn default_for(task: Task) -> Self {
        match task {
            Task::Classification => Self::MacroF1,
            Task::Regression => Self::Mse,
        }
    }
}

/// What a version may cost on a device.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Hardware class (the Node label `fleetune.dev/class`, by default its architecture), or `*`.
    #[schemars(length(min = 1, max = 63))]
    pub class: String,
    /// Most bytes of the version's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Bytes>,
    /// Most resident memory of a process that loads the version and answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_peak_memory: Option<Bytes>,
    /// Longest 95th percentile of the time for one sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_p95_latency: Option<Span>,
}

/// Where versions go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// OCI repository, `HOST[:PORT]/PATH` without a tag.
    #[schemars(
        length(min = 3, max = 255),
        regex(pattern = r"^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$")
    )]
    pub repository: String,
    /// Secret of type kubernetes.io/dockerconfigjson in the job's namespace, for pushing candidates and reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub push_secret: Option<String>,
    /// Name of a signing key that the chart allows to this namespace. Default: the chart's `defaultSigningKey`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub signing_key: Option<String>,
}

/// The worker pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPod {
    /// Image of the `finetune` pod. Default: the chart's. `validate` and `publish` always run the chart's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Requests and limits of the `finetune` and `validate` pods. Default: the chart's `worker.resources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Node labels that the pods need.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,
}

/// What the controller has seen of a job.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct FineTuneJobStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// For people: Pending, Suspended, FineTuning, Validating, Publishing, Succeeded or Failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// For people: what runs and how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// When the first worker Job was made; from then on the spec is immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the job succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Digest of the list of samples (sorted key, size, sha256) that the first pod read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_manifest: Option<Digest>,
    /// Digest of the candidate in `output.repository`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Digest>,
    /// Digest of the report in `output.repository`; there also after a failed gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Digest>,
    /// Name of the ModelVersion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The objective on the test rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// What `validate` measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<crate::outcome::Summary>,
    /// Summary condition Succeeded; domain conditions DataReady, Trained, Evaluated, GatesPassed, Published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The objective on the test rows, beside the best cheap baseline.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Objective {
    /// The metric.
    pub metric: Metric,
    /// Its value for the candidate.
    pub value: Decimal,
    /// Its value for the best cheap baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Decimal>,
}
