//! A job as the worker sees it: the FineTuneJob manifest, with every default resolved and every bound of the API checked
//! again, because a local run has no API server in front of it. It reads one file and decides nothing about data.

use crate::error::{INVALID_JOB, Result, WorkerError};
use crate::pipeline::Kind;
use crate::version::read_bounded;
use fleetune_crds::{Budget, Dataset, Evaluation, FineTuneJob, FineTuneJobSpec, Format, Input, Metric, SplitBy, Task};
use std::path::Path;

mod train;

pub use train::{AugmentRule, MethodRule, ScheduleRule, TrainRule, Variants};

/// Largest job manifest.
const MAX_JOB: u64 = 1 << 20;
/// Most bytes of a base model.
pub const MAX_MODEL_BYTES: u64 = 2 << 30;
/// Most bytes of a data set where the spec names no bound.
const DEFAULT_DATA_BYTES: u64 = 8 << 30;

/// A checked job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Namespace; `default` where the manifest names none.
    pub namespace: String,
    /// The spec as written.
    pub spec: FineTuneJobSpec,
    /// The data's layout.
    pub format: Format,
    /// How rows are told apart.
    pub split: SplitRule,
    /// How it is trained.
    pub train: TrainRule,
    /// The metric that picks the best epoch.
    pub objective: Metric,
}

/// A split with its defaults resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitRule {
    /// What keeps rows together.
    pub by: SplitBy,
    /// Share of train.
    pub train: f64,
    /// Share of validation.
    pub validation: f64,
    /// Seed of the hash.
    pub seed: u64,
}

impl Job {
    /// Reads the manifest at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_bounded(path, MAX_JOB).map_err(|e| match e.class() {
            crate::error::Class::BadInput => WorkerError::bad(INVALID_JOB, e.message()),
            crate::error::Class::Transient => e,
        })?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| WorkerError::bad(INVALID_JOB, format!("{}: {e}", path.display())))?;
        Self::parse(text)
    }

    /// Parses and checks a manifest.
    pub fn parse(text: &str) -> Result<Self> {
        let job: FineTuneJob =
            serde_yaml::from_str(text).map_err(|e| WorkerError::bad(INVALID_JOB, format!("not a FineTuneJob: {e}")))?;
        let namespace = job.metadata.namespace.unwrap_or_else(|| "default".to_owned());
        Self::check(namespace, job.spec)
    }

    fn check(namespace: String, spec: FineTuneJobSpec) -> Result<Self> {
        check_input(&spec.input)?;
        check_budget(&spec.budget)?;
        let format = format(&spec)?;
        let split = split(&spec.dataset)?;
        let train = train::rule(&spec)?;
        check_columns(&spec.dataset, format, split.by)?;
        let objective = spec
            .evaluation
            .objective
            .unwrap_or_else(|| Metric::default_for(spec.task));
        check_evaluation(&spec.evaluation, objective, spec.task)?;
        Ok(Self {
            namespace,
            spec,
            format,
            split,
            train,
            objective,
        })
    }

    /// Most bytes of the data set.
    pub fn max_data_bytes(&self) -> u64 {
        self.spec
            .dataset
            .requirements
            .max_bytes
            .as_ref()
            .map_or(DEFAULT_DATA_BYTES, fleetune_crds::common::Bytes::get)
    }
}

fn bad(message: impl Into<String>) -> WorkerError {
    WorkerError::bad(INVALID_JOB, message)
}

fn check_input(input: &Input) -> Result<()> {
    match Kind::of(input)? {
        Kind::Image(image) => {
            if !(8..=1024).contains(&image.size) {
                return Err(bad(format!("spec.input.image.size is {}, not 8 to 1024", image.size)));
            }
            if image.std.get() <= 0.0 {
                return Err(bad("spec.input.image.std must be above 0"));
            }
        }
        Kind::Sensor(sensor) => {
            if !(2..=65_536).contains(&sensor.window) || !(1..=256).contains(&sensor.channels) {
                return Err(bad(
                    "spec.input.sensor: window is 2 to 65536 samples, channels are 1 to 256",
                ));
            }
            if sensor.stride.is_some_and(|s| s == 0 || s > 65_536) {
                return Err(bad("spec.input.sensor.stride is 1 to 65536 samples"));
            }
        }
        Kind::Text(text) => {
            if !(4..=512).contains(&text.max_tokens) {
                return Err(bad(format!(
                    "spec.input.text.maxTokens is {}, not 4 to 512",
                    text.max_tokens
                )));
            }
        }
    }
    Ok(())
}

fn check_budget(budget: &[Budget]) -> Result<()> {
    for (i, entry) in budget.iter().enumerate() {
        if budget[..i].iter().any(|other| other.class == entry.class) {
            return Err(bad(format!("spec.budget names class {:?} twice", entry.class)));
        }
    }
    Ok(())
}

fn format(spec: &FineTuneJobSpec) -> Result<Format> {
    let kind = Kind::of(&spec.input)?;
    let format = spec.dataset.format.unwrap_or(match kind {
        Kind::Image(_) => Format::ClassFolders,
        Kind::Sensor(_) | Kind::Text(_) => Format::Rows,
    });
    match (format, kind) {
        (Format::ClassFolders | Format::Manifest, Kind::Image(_))
        | (Format::Rows | Format::Series, Kind::Sensor(_))
        | (Format::Rows, Kind::Text(_)) => Ok(format),
        _ => Err(bad(format!(
            "spec.dataset.format {format:?} does not go with this input: images take ClassFolders or Manifest, \
             sensors take Rows or Series, texts take Rows"
        ))),
    }
}

fn split(dataset: &Dataset) -> Result<SplitRule> {
    let (train, validation, test) = match &dataset.split.fractions {
        Some(f) => (f.train.get(), f.validation.get(), f.test.get()),
        None => (0.7, 0.15, 0.15),
    };
    if train <= 0.0 || validation <= 0.0 || test <= 0.0 || (train + validation + test - 1.0).abs() > 1e-4 {
        return Err(bad(
            "spec.dataset.split.fractions: train, validation and test must be above 0 and add up to 1",
        ));
    }
    let grouped = dataset.columns.group.is_some();
    Ok(SplitRule {
        by: dataset
            .split
            .by
            .unwrap_or(if grouped { SplitBy::Group } else { SplitBy::Random }),
        train,
        validation,
        seed: u64::try_from(dataset.split.seed).map_err(|_| bad("spec.dataset.split.seed is below 0"))?,
    })
}

fn check_columns(dataset: &Dataset, format: Format, by: SplitBy) -> Result<()> {
    let columns = &dataset.columns;
    let need = |column: &Option<String>, name: &str, why: &str| {
        if column.is_some() {
            Ok(())
        } else {
            Err(bad(format!("spec.dataset.columns.{name} must be named {why}")))
        }
    };
    match by {
        SplitBy::Group => need(&columns.group, "group", "for split.by: Group")?,
        SplitBy::Time => need(&columns.time, "time", "for split.by: Time")?,
        SplitBy::Column => need(&columns.split, "split", "for split.by: Column")?,
        SplitBy::Random => {}
    }
    if format == Format::Series {
        need(&columns.time, "time", "for format: Series")?;
    }
    if format == Format::ClassFolders && by != SplitBy::Random {
        return Err(bad(
            "spec.dataset.split.by: class folders have no columns, so only Random works; use format: Manifest",
        ));
    }
    Ok(())
}

/// Whether a metric belongs to a task.
pub fn belongs(metric: Metric, task: Task) -> bool {
    matches!(metric, Metric::Mse | Metric::Mae | Metric::R2) == (task == Task::Regression)
}

fn check_evaluation(evaluation: &Evaluation, objective: Metric, task: Task) -> Result<()> {
    for metric in evaluation.gates.iter().map(|g| g.metric).chain([objective]) {
        if !belongs(metric, task) {
            return Err(bad(format!(
                "spec.evaluation: the metric {} does not belong to task {task:?}",
                metric.name()
            )));
        }
    }
    for (i, gate) in evaluation.gates.iter().enumerate() {
        if gate.min.is_none() && gate.max.is_none() && gate.over_baseline.is_none() {
            return Err(bad("spec.evaluation.gates: a gate needs min, max or overBaseline"));
        }
        if evaluation.gates[..i].iter().any(|other| other.metric == gate.metric) {
            return Err(bad(format!("spec.evaluation.gates names {} twice", gate.metric.name())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetune_crds::Loss;

    fn job(extra: &str) -> Result<Job> {
        Job::parse(&format!(
            "apiVersion: fleetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {{name: j}}\nspec:\n  modelName: m\n  \
             task: Classification\n  baseModel: {{uri: 'file:///m.onnx', sha256: {}}}\n  dataset: {{uri: 'file:///d.tar'}}\n  \
             output: {{repository: 'r:5000/m'}}\n{extra}",
            "0".repeat(64)
        ))
    }

    #[test]
    fn defaults_are_those_of_the_api() {
        let job = job("  input: {image: {size: 224}}\n").unwrap();
        assert_eq!(job.format, Format::ClassFolders);
        assert_eq!(job.split.by, SplitBy::Random);
        assert_eq!(job.objective, Metric::MacroF1);
        assert_eq!(job.train.loss, Loss::CrossEntropy);
        assert!((job.train.learning_rate - 0.001).abs() < 1e-12);
        assert!((job.train.weight_decay - 0.01).abs() < 1e-12);
        assert_eq!(job.max_data_bytes(), 8 << 30);
    }

    #[test]
    fn texts_come_in_rows() {
        use crate::data::testing::job_text;
        let text = |dataset: &str| {
            let input = "{text: {tokenizer: {uri: 'file:///t', sha256: a}}}";
            Job::parse(&job_text("Classification", input, dataset, "", ""))
        };
        assert_eq!(text("{uri: 'file:///d'}").unwrap().format, Format::Rows);
        for format in ["ClassFolders", "Manifest", "Series"] {
            let error = text(&format!("{{uri: 'file:///d', format: {format}, columns: {{time: t}}}}")).unwrap_err();
            assert!(error.message().contains("texts take Rows"), "{error}");
        }
    }

    #[test]
    fn bad_specs_are_refused_without_an_api_server() {
        for (what, extra) in [
            ("two inputs", "  input: {image: {size: 224}, sensor: {window: 8}}\n"),
            ("no epochs", "  input: {image: {size: 224}}\n  train: {epochs: 0}\n"),
            (
                "a loss of the other task",
                "  input: {image: {size: 224}}\n  train: {loss: MeanSquaredError}\n",
            ),
            (
                "a metric of the other task",
                "  input: {image: {size: 224}}\n  evaluation: {gates: [{metric: mse, max: '1'}]}\n",
            ),
            (
                "an unknown metric",
                "  input: {image: {size: 224}}\n  evaluation: {gates: [{metric: f2, min: '1'}]}\n",
            ),
            ("a tiny image", "  input: {image: {size: 2}}\n"),
            ("a text without a tokenizer", "  input: {text: {maxTokens: 8}}\n"),
            (
                "a text of three tokens",
                "  input: {text: {maxTokens: 3, tokenizer: {uri: 'file:///t', sha256: a}}}\n",
            ),
            (
                "a gate without bounds",
                "  input: {image: {size: 224}}\n  evaluation: {gates: [{metric: accuracy}]}\n",
            ),
        ] {
            assert_eq!(job(extra).unwrap_err().reason(), INVALID_JOB, "{what}");
        }
    }
}
