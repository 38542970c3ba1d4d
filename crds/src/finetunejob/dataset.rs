//! `dataset`: the labelled samples, how they are laid out, told apart and checked.

use crate::common::{Bytes, Decimal};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Labelled samples.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// A file or, for ClassFolders, also a prefix: `s3://`, `http(s)://`, `pvc://CLAIM/PATH` or `file://` (local runs only).
    #[schemars(length(min = 1, max = 1024))]
    pub uri: String,
    /// Default: ClassFolders for images, Rows for sensors and texts.
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
    /// CSV, JSON lines or Parquet, one row a sample. A window: all value columns, channel after channel. A text: the text
    /// column.
    Rows,
    /// CSV, JSON lines or Parquet in long format, one row a sample: group, time and value columns; cut into windows.
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
    /// The text of a row, for texts. Default: `text`.
    #[serde(default = "text_column")]
    #[schemars(length(min = 1, max = 128))]
    pub text: String,
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

fn text_column() -> String {
    "text".into()
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            label: label_column(),
            group: None,
            time: None,
            split: None,
            path: path_column(),
            text: text_column(),
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
