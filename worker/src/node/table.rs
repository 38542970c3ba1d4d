//! What this process serves: one loaded version a model. A switch replaces the entry; requests that hold the old version
//! finish on it, the next ones get the new one.

use crate::error::{Result, WorkerError};
use crate::pipeline::{Before, INPUT_IMAGE, INPUT_TEXT, INPUT_WINDOW, Prepared, Raw, TensorSpec};
use crate::version::{Answer, Version};
use fleetune_crds::Task;
use fleetune_crds::common::Digest;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;

/// Requests over which the 95th percentile of the latency is taken.
const WINDOW: usize = 512;

/// A sample of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// An encoded picture.
    Image(Vec<u8>),
    /// A window, channel after channel.
    Window(Vec<f32>),
    /// A text.
    Text(String),
    /// The tensor that the graph takes.
    Prepared(Prepared),
}

/// What a loaded version looks like from outside.
#[derive(Clone, Debug)]
pub struct Description {
    /// What it answers.
    pub task: Task,
    /// What a raw sample is.
    pub raw: RawKind,
    /// The graph's inputs.
    pub inputs: Vec<TensorSpec>,
    /// Number of labels; 0 for a Regression.
    pub labels: usize,
}

/// What a raw sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawKind {
    /// An encoded picture.
    Image,
    /// A window, channel after channel.
    Window,
    /// A text.
    Text,
}

impl RawKind {
    /// Name of the input.
    pub fn input(self) -> &'static str {
        match self {
            Self::Image => INPUT_IMAGE,
            Self::Window => INPUT_WINDOW,
            Self::Text => INPUT_TEXT,
        }
    }

    /// Its datatype in the Open Inference Protocol.
    pub fn datatype(self) -> &'static str {
        match self {
            Self::Image | Self::Text => "BYTES",
            Self::Window => "FP32",
        }
    }
}

/// Something that answers samples.
pub trait Predictor: Send + Sync {
    /// What it takes and gives.
    fn description(&self) -> Description;
    /// Turns a sample into the graph's tensors. An error is the client's.
    fn prepare(&self, sample: Sample) -> Result<Prepared>;
    /// Answers. An error is the version's.
    fn answer(&self, prepared: &Prepared) -> Result<Answer>;
}

impl Predictor for Version {
    fn description(&self) -> Description {
        Description {
            task: self.task(),
            raw: match self.pipeline().before {
                Before::Image(_) => RawKind::Image,
                Before::Window(_) => RawKind::Window,
                Before::Text(_) => RawKind::Text,
            },
            inputs: self.pipeline().inputs.clone(),
            labels: self.labels().len(),
        }
    }

    fn prepare(&self, sample: Sample) -> Result<Prepared> {
        let prepared = match sample {
            Sample::Image(bytes) => Version::prepare(self, Raw::Image(&bytes))?,
            Sample::Window(values) => Version::prepare(self, Raw::Window(&values))?,
            Sample::Text(text) => Version::prepare(self, Raw::Text(&text))?,
            Sample::Prepared(prepared) => prepared,
        };
        self.preparer().admits(&prepared)?;
        Ok(prepared)
    }

    fn answer(&self, prepared: &Prepared) -> Result<Answer> {
        Ok(Version::answer(self, self.run(prepared)?))
    }
}

/// A loaded version under its model's name.
pub struct Served {
    /// NAMESPACE/MODEL.
    pub key: String,
    /// The version.
    pub digest: Digest,
    /// What answers.
    pub predictor: Arc<dyn Predictor>,
    /// Called on an inference error, so that a trial is judged at once.
    pub failed: Notify,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    requests: u64,
    errors: u64,
    latencies: VecDeque<f64>,
}

impl Served {
    /// A version that is ready to serve.
    pub fn new(key: &str, digest: Digest, predictor: Arc<dyn Predictor>) -> Self {
        Self {
            key: key.to_owned(),
            digest,
            predictor,
            failed: Notify::new(),
            tally: Mutex::default(),
        }
    }

    /// Answers a sample and counts it. `Err(Ok(_))` is the client's fault, `Err(Err(_))` the version's.
    pub fn infer(&self, sample: Sample) -> std::result::Result<Answer, Fault> {
        let start = std::time::Instant::now();
        let prepared = self.predictor.prepare(sample).map_err(Fault::Client)?;
        let answer = self.predictor.answer(&prepared);
        self.count(start.elapsed(), answer.is_err());
        answer.map_err(Fault::Version)
    }

    fn count(&self, took: Duration, failed: bool) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.requests += 1;
        if failed {
            tally.errors += 1;
        } else {
            if tally.latencies.len() == WINDOW {
                tally.latencies.pop_front();
            }
            tally.latencies.push_back(took.as_secs_f64() * 1e3);
        }
        drop(tally);
        if failed {
            self.failed.notify_one();
        }
    }

    /// What it did since it was loaded.
    pub fn soak(&self) -> super::plan::Soak {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times: Vec<f64> = tally.latencies.iter().copied().collect();
        super::plan::Soak {
            requests: tally.requests,
            errors: tally.errors,
            p95_ms: crate::selftest::percentile(&mut times, 0.95),
        }
    }
}

/// Why a sample has no answer.
#[derive(Debug)]
pub enum Fault {
    /// The sample is not one that the model takes.
    Client(WorkerError),
    /// The version failed on it.
    Version(WorkerError),
}

/// All that is served, by NAMESPACE/MODEL.
#[derive(Default)]
pub struct Table(RwLock<BTreeMap<String, Arc<Served>>>);

/// What a model's name in a request means.
pub enum Found {
    /// This model.
    One(Arc<Served>),
    /// No model.
    None,
    /// A short name that several namespaces have.
    Several(Vec<String>),
}

impl Table {
    /// Switches a model to a version.
    pub fn put(&self, served: Served) -> Option<Arc<Served>> {
        self.write().insert(served.key.clone(), Arc::new(served))
    }

    /// Stops serving a model.
    pub fn remove(&self, key: &str) -> Option<Arc<Served>> {
        self.write().remove(key)
    }

    /// The version of a model that serves.
    pub fn get(&self, key: &str) -> Option<Arc<Served>> {
        self.read().get(key).cloned()
    }

    /// The model that a request names: NAMESPACE.MODEL, or MODEL where that is unique.
    pub fn find(&self, name: &str) -> Found {
        let table = self.read();
        if let Some((namespace, model)) = name.split_once('.')
            && let Some(served) = table.get(&format!("{namespace}/{model}"))
        {
            return Found::One(served.clone());
        }
        let short: Vec<_> = table
            .values()
            .filter(|served| served.key.split_once('/').is_some_and(|(_, model)| model == name))
            .collect();
        match short.as_slice() {
            [] => Found::None,
            [one] => Found::One((*one).clone()),
            several => Found::Several(several.iter().map(|served| served.key.replace('/', ".")).collect()),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Served>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<Served>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
