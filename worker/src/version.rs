//! A version on disk, opened: graph, pipeline and labels, checked against each other. The one module that turns a raw
//! sample into an answer, for finetune's own check, validate, self-test and serving. It trusts no byte of the folder.

use crate::engine::Graph;
use crate::error::{INVALID_VERSION, NOT_FINITE, Result, WorkerError};
use crate::pipeline::{Before, MAX_TOKENIZER_BYTES, Pipeline, Prepared, Preparer, Raw, TOKENIZER};
use fleetune_crds::{Task, common::Digest};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The graph, in a version's folder.
pub const MODEL: &str = "model.onnx";
/// The frozen weights.
pub const BACKBONE: &str = "weights/backbone.bin";
/// The tuned weights.
pub const TUNED: &str = "weights/tuned.bin";
/// The steps outside the graph.
pub const PIPELINE: &str = "pipeline.json";
/// The class names.
pub const LABELS: &str = "labels.json";
/// Where the version comes from.
pub const LINEAGE: &str = "lineage.json";
/// The folder of the self-test.
pub const SELFTEST: &str = "selftest";

/// Largest JSON file of a version.
const MAX_JSON: u64 = 16 << 20;

/// A version that is ready to answer. Cheap to share between threads; each call runs on its own state.
pub struct Version {
    dir: PathBuf,
    preparer: Preparer,
    labels: Vec<String>,
    graph: Graph,
    contract: Digest,
    bytes: u64,
}

/// What a model says about a sample.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Answer {
    /// Of a Classification: one probability for each label. Of a Regression: empty.
    pub probabilities: Vec<f32>,
    /// Of a Classification: the label with the largest probability, the first of equals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Of a Regression: the value in the target's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f32>,
}

impl Version {
    /// Opens the version in `dir` and makes its graph ready to run.
    pub fn open(dir: &Path) -> Result<Self> {
        let pipeline = Pipeline::read(&read_bounded(&dir.join(PIPELINE), MAX_JSON)?)?;
        let labels: Vec<String> = serde_json::from_slice(&read_bounded(&dir.join(LABELS), MAX_JSON)?)
            .map_err(|e| WorkerError::bad(INVALID_VERSION, format!("{LABELS}: {e}")))?;
        let want = match pipeline.task {
            Task::Classification => pipeline.output.shape[1],
            Task::Regression => 0,
        };
        if labels.len() != want {
            return Err(WorkerError::bad(
                INVALID_VERSION,
                format!("{LABELS} holds {} labels, the model gives {want}", labels.len()),
            ));
        }
        let tokenizer = match pipeline.before {
            Before::Text(_) => Some(read_bounded(&dir.join(TOKENIZER), MAX_TOKENIZER_BYTES)?),
            Before::Image(_) | Before::Window(_) => None,
        };
        let contract = pipeline.contract(&labels)?;
        let graph = Graph::open(dir, &pipeline.inputs, &pipeline.output)?;
        Ok(Self {
            dir: dir.to_owned(),
            bytes: folder_bytes(dir)?,
            preparer: Preparer::new(pipeline, tokenizer.as_deref())?,
            labels,
            graph,
            contract,
        })
    }

    /// The folder it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The hash of inputs, shapes, units and labels.
    pub fn contract(&self) -> &Digest {
        &self.contract
    }

    /// The class names, in the order of the probabilities; empty for a Regression.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// What the model answers.
    pub fn task(&self) -> Task {
        self.pipeline().task
    }

    /// The steps outside the graph.
    pub fn pipeline(&self) -> &Pipeline {
        self.preparer.pipeline()
    }

    /// What turns raw samples into the graph's tensors.
    pub fn preparer(&self) -> &Preparer {
        &self.preparer
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Turns a raw sample into the graph's tensors.
    pub fn prepare(&self, raw: Raw<'_>) -> Result<Prepared> {
        self.preparer.prepare(raw)
    }

    /// Runs the graph: probabilities, or one value in the target's unit. All are finite.
    pub fn run(&self, prepared: &Prepared) -> Result<Vec<f32>> {
        self.preparer.admits(prepared)?;
        let output = self.graph.run(prepared)?;
        if let Some(at) = output.iter().position(|v| !v.is_finite()) {
            return Err(WorkerError::bad(
                NOT_FINITE,
                format!("output {at} of the model is {}", output[at]),
            ));
        }
        Ok(output)
    }

    /// Names what [`Version::run`] gave.
    pub fn answer(&self, output: Vec<f32>) -> Answer {
        match self.task() {
            Task::Classification => Answer {
                label: argmax(&output).and_then(|i| self.labels.get(i)).cloned(),
                probabilities: output,
                value: None,
            },
            Task::Regression => Answer {
                probabilities: Vec::new(),
                label: None,
                value: output.first().copied(),
            },
        }
    }
}

/// The index of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, v) in values.iter().enumerate() {
        if best.is_none_or(|b| *v > values[b]) {
            best = Some(i);
        }
    }
    best
}

/// Reads a file of at most `max` bytes.
pub fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let bad = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => WorkerError::bad(INVALID_VERSION, format!("{} is missing", path.display())),
        _ => WorkerError::io("reading", path, &e),
    };
    let file = std::fs::File::open(path).map_err(bad)?;
    let length = file.metadata().map_err(bad)?.len();
    if length > max {
        return Err(WorkerError::bad(
            INVALID_VERSION,
            format!("{} has {length} bytes, at most {max} are read", path.display()),
        ));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(max).read_to_end(&mut bytes).map_err(bad)?;
    Ok(bytes)
}

/// Bytes of all files under `dir`.
pub fn folder_bytes(dir: &Path) -> Result<u64> {
    let mut total = 0;
    let entries = std::fs::read_dir(dir).map_err(|e| WorkerError::io("listing", dir, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| WorkerError::io("listing", dir, &e))?;
        let meta = entry
            .metadata()
            .map_err(|e| WorkerError::io("reading", &entry.path(), &e))?;
        total += if meta.is_dir() {
            folder_bytes(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(total)
}
