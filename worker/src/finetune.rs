//! `finetune`: from a job to a candidate. Reads base model and data, runs the frozen backbone once, trains a head and, by
//! the job's method, what lies before it, writes the version, loads it back and compares it with what was trained. In a
//! pod it pushes the candidate by digest; it judges nothing and signs nothing.

mod frozen;
mod sets;

use crate::cache::Cache;
use crate::config::{Job, MAX_MODEL_BYTES, MethodRule};
use crate::data::{self, DataSet, Part, Row};
use crate::engine::{Backbone, Base, build, pb};
use crate::error::{
    DATA_TOO_LARGE, EXPORT_MISMATCH, INTERNAL, MODEL_TOO_LARGE, Result, TOKENIZER_TOO_LARGE, WorkerError,
};
use crate::features::prepare;
use crate::lineage::Lineage;
use crate::pipeline::{MAX_TOKENIZER_BYTES, Pipeline, Preparer, TOKENIZER, TensorSpec, json};
use crate::progress::Tracker;
use crate::registry::Registry;
use crate::sources::{self, Limits};
use crate::train::{self, Epoch, Fitted, Set};
use crate::tune::{self, Setup, tune};
use crate::version::{LABELS, LINEAGE, PIPELINE, Version};
use crate::{selftest, synthetic};
use fleetune_crds::Task;
use fleetune_crds::common::Digest;
use fleetune_crds::names;
use fleetune_crds::outcome::{Code, Outcome, REASON_DONE};
use ndarray::Axis;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The learning curve, in a version's folder.
pub const HISTORY: &str = "history.json";
/// Rows on which the written version is compared with the trained one.
const COMPARED: usize = 16;
/// Largest difference between what was trained and the written version in single precision: absolute for probabilities,
/// relative for values.
const MAX_DIFFERENCE: f64 = 2e-3;

/// The files of a job on this machine.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The base model.
    pub model: Option<PathBuf>,
    /// The tokenizer, where samples are texts.
    pub tokenizer: Option<PathBuf>,
    /// The data set: a file or a folder.
    pub data: PathBuf,
}

/// Brings the job's data, and its base model with its tokenizer if `model`, onto this machine.
pub async fn fetch(job: &Job, scratch: &Path, local: bool, model: bool, tracker: &Tracker) -> Result<Fetched> {
    tracker.stage("download", 1 + u64::from(model));
    let folder = |name: &str| -> Result<PathBuf> {
        let path = scratch.join(name);
        std::fs::create_dir_all(&path).map_err(|e| WorkerError::io("making", &path, &e))?;
        Ok(path)
    };
    let model = if model {
        let limits = Limits {
            max_bytes: MAX_MODEL_BYTES,
            too_large: MODEL_TOO_LARGE,
            local,
        };
        let path = sources::fetch(&job.spec.base_model.uri, &folder("model")?, &limits)
            .await
            .map_err(|e| e.at("spec.baseModel.uri"))?;
        tracker.add(1);
        Some(path)
    } else {
        None
    };
    let tokenizer = match &job.spec.input.text {
        Some(text) if model.is_some() => {
            let limits = Limits {
                max_bytes: MAX_TOKENIZER_BYTES,
                too_large: TOKENIZER_TOO_LARGE,
                local,
            };
            let path = sources::fetch(&text.tokenizer.uri, &folder("tokenizer")?, &limits).await;
            Some(path.map_err(|e| e.at("spec.input.text.tokenizer.uri"))?)
        }
        _ => None,
    };
    let limits = Limits {
        max_bytes: job.max_data_bytes(),
        too_large: DATA_TOO_LARGE,
        local,
    };
    let data = sources::fetch(&job.spec.dataset.uri, &folder("data")?, &limits)
        .await
        .map_err(|e| e.at("spec.dataset.uri"))?;
    tracker.add(1);
    Ok(Fetched { model, tokenizer, data })
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Built {
    /// Digest of the data manifest.
    pub data_manifest: Digest,
    /// Objective of the best epoch on the validation rows.
    pub objective: f64,
    /// Its number.
    pub best_epoch: u32,
}

/// What of a training outlives its process: checkpoints, and what the frozen part gave.
pub struct Storage<'a> {
    /// Where what the frozen part gives is kept.
    pub cache: Option<Cache>,
    /// The folder that checkpoints lie under.
    pub dir: &'a Path,
    /// Time between two checkpoints.
    pub every: Duration,
    /// Asked after each step with its number: false ends the training as if the pod was told to stop.
    pub go_on: &'a (dyn Fn(u64) -> bool + Sync),
}

impl<'a> Storage<'a> {
    /// Checkpoints under `dir`, as often as is usual.
    pub fn under(dir: &'a Path) -> Self {
        Self {
            cache: None,
            dir,
            every: tune::CHECKPOINT_EVERY,
            go_on: &|_| true,
        }
    }

    /// The same, and what the frozen part gives, on a volume that outlives the job.
    pub fn on_claim(claim: &'a Path) -> Self {
        Self {
            cache: Some(Cache::in_folder(&claim.join("features"))),
            ..Self::under(claim)
        }
    }
}

/// Makes the version in the empty folder `dir`.
pub fn build(
    job: &Job,
    fetched: &Fetched,
    dir: &Path,
    storage: &Storage<'_>,
    tracker: &Tracker,
) -> Result<(Built, DataSet)> {
    let model = fetched
        .model
        .as_deref()
        .ok_or_else(|| WorkerError::bad(INTERNAL, "no base model was fetched"))?;
    // Tokenizer and model first: what is wrong with them shows in a second, the data may take an hour.
    let tokenizer = tokenizer(fetched)?;
    let prepare = |classes| {
        let pipeline = Pipeline::for_job(&job.spec.input, job.spec.task, classes)?;
        Preparer::new(pipeline, tokenizer.as_deref())
    };
    let preparer = prepare(2)?;
    let (backbone, graph) = Base::load(model, &job.spec.base_model.sha256, MAX_MODEL_BYTES)
        .map_err(|e| e.at("spec.baseModel"))
        .and_then(|base| frozen::part(job, &base, &preparer))?;
    let data = data::load(job, &fetched.data, tracker).map_err(|e| e.at("spec.dataset"))?;
    let preparer = prepare(data.labels.len())?;
    tracing::info!(
        samples = data.rows.len(),
        classes = data.labels.len(),
        features = backbone.width,
        manifest = %data.manifest,
        "data ready"
    );
    let frozen = (&graph, backbone.features.as_str());
    let sets = sets::of(job, frozen, &preparer, &data, storage.cache.as_ref(), tracker)?;
    let tensors = tune::inputs(&preparer, &data, graph.takes_any_length())?;
    drop(graph);
    let trained = train(job, &backbone, (&preparer, tensors), &data, sets, storage, tracker)?;
    if let Some(tokenizer) = &tokenizer {
        let path = dir.join(TOKENIZER);
        std::fs::write(&path, tokenizer).map_err(|e| WorkerError::io("writing", &path, &e))?;
    }
    write(job, dir, &backbone, preparer.pipeline(), &data, &trained)?;
    check(dir, &data, &trained.answers)?;
    let built = Built {
        data_manifest: data.manifest.clone(),
        objective: trained.best.objective,
        best_epoch: trained.best.epoch,
    };
    Ok((built, data))
}

/// What was trained, by any method.
struct Trained {
    /// The graph.
    model: pb::ModelProto,
    /// Names of the base model's tensors that moved.
    moved: BTreeSet<String>,
    /// All epochs.
    history: Vec<Epoch>,
    /// The one whose weights are kept.
    best: Epoch,
    /// Answers to the first validation rows.
    answers: Vec<Vec<f64>>,
}

fn train(
    job: &Job,
    backbone: &Backbone,
    (preparer, tensors): (&Preparer, Vec<TensorSpec>),
    data: &DataSet,
    (train, validation): (Set, Set),
    storage: &Storage<'_>,
    tracker: &Tracker,
) -> Result<Trained> {
    let graph = |backbone: &Backbone, head: &build::Head| {
        let pipeline = preparer.pipeline();
        build::full_model(backbone, &job.spec.input, &pipeline.inputs, &pipeline.output, head)
    };
    let first = fit(job, data, &train, &validation, tracker)?;
    if job.train.method == MethodRule::Head {
        let n = validation.x.nrows().min(COMPARED);
        return Ok(Trained {
            model: graph(backbone, &first.head()?)?,
            moved: BTreeSet::new(),
            best: first.best()?,
            answers: first.predict(&validation.x.select(Axis(0), &(0..n).collect::<Vec<usize>>())),
            history: first.history,
        });
    }
    drop((train, validation));
    let setup = Setup {
        job,
        backbone,
        preparer,
        tensors,
        data,
        outputs: outputs(job, data),
        cache: storage.cache.as_ref(),
        work: storage.dir,
        every: storage.every,
        go_on: storage.go_on,
        tracker,
    };
    let tuned = tune(&setup, &first, COMPARED)?;
    Ok(Trained {
        model: graph(&tuned.backbone, &tuned.head.head()?)?,
        moved: tuned.moved,
        history: tuned.history,
        best: tuned.best,
        answers: tuned.answers,
    })
}

/// The bytes of the tokenizer's file, where there is one.
fn tokenizer(fetched: &Fetched) -> Result<Option<Vec<u8>>> {
    let Some(path) = &fetched.tokenizer else {
        return Ok(None);
    };
    let io = |e: std::io::Error| WorkerError::io("reading", path, &e);
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_TOKENIZER_BYTES {
        return Err(WorkerError::bad(
            TOKENIZER_TOO_LARGE,
            format!("the tokenizer has {size} bytes, at most {MAX_TOKENIZER_BYTES} are read"),
        ));
    }
    std::fs::read(path).map(Some).map_err(io)
}

fn outputs(job: &Job, data: &DataSet) -> usize {
    match job.spec.task {
        Task::Classification => data.labels.len(),
        Task::Regression => 1,
    }
}

/// Trains the head: all that method Head does, and what the others start from.
fn fit(job: &Job, data: &DataSet, train: &Set, validation: &Set, tracker: &Tracker) -> Result<Fitted> {
    let alone = job.train.method == MethodRule::Head;
    let rule = if alone {
        job.train.clone()
    } else {
        job.train.of_first_head()
    };
    tracker.stage(if alone { "train" } else { "head" }, u64::from(rule.epochs));
    train::fit(&rule, job.objective, outputs(job, data), train, validation, |epoch| {
        tracker.add(1);
        epoch.tell(job.objective, None, tracker);
    })
}

fn write(
    job: &Job,
    dir: &Path,
    backbone: &Backbone,
    pipeline: &Pipeline,
    data: &DataSet,
    trained: &Trained,
) -> Result<()> {
    build::write(dir, trained.model.clone(), &trained.moved)?;
    let name = backbone.features.trim_start_matches(crate::engine::base::PREFIX);
    // Epoch 0 is the head that a deeper method starts from.
    let epochs = trained.history.iter().filter(|e| e.epoch > 0).count();
    let lineage = Lineage::of(job, data, (name, backbone.width), epochs, trained.best.epoch);
    for (file, text) in [
        (PIPELINE, pipeline.text()?),
        (LABELS, json(&data.labels)?),
        (LINEAGE, json(&lineage)?),
        (HISTORY, json(&trained.history)?),
    ] {
        let path = dir.join(file);
        std::fs::write(&path, text).map_err(|e| WorkerError::io("writing", &path, &e))?;
    }
    let version = Version::open(dir)?;
    let rows: Vec<&Row> = data.part(Part::Train).collect();
    selftest::write(dir, &synthetic::make(job, &version, &rows)?)
}

/// Loads the version back and compares it with what was trained on validation rows: raw sample to answer on one side,
/// `answers` of the trained weights on the other.
fn check(dir: &Path, data: &DataSet, answers: &[Vec<f64>]) -> Result<()> {
    let version = Version::open(dir)?;
    for (row, want) in data.part(Part::Validation).zip(answers) {
        let got = version.run(&prepare(version.preparer(), row)?)?;
        let differs = got.len() != want.len()
            || got.iter().zip(want).any(|(g, w)| {
                let difference = (f64::from(*g) - w).abs();
                difference.is_nan() || difference > MAX_DIFFERENCE * w.abs().max(1.0)
            });
        if differs {
            return Err(WorkerError::bad(
                EXPORT_MISMATCH,
                format!(
                    "{}: the written version answers {got:?}, the trained one {want:?}. This is a bug of the worker or of \
                     the engine on this model; please report it with the base model",
                    row.key
                ),
            ));
        }
    }
    let samples = selftest::run(&version, dir, f32::INFINITY)?;
    tracing::info!(
        compared = answers.len(),
        self_test_ms = samples.p95_ms,
        "the written version answers like the trained one"
    );
    Ok(())
}

/// Runs the step in a pod: makes the candidate and pushes it by digest.
pub async fn run(job: Job, tracker: Tracker) -> Result<Outcome> {
    run_with(&Registry::from_env()?, job, tracker).await
}

/// The same with a registry client of the caller's.
pub async fn run_with(registry: &Registry, job: Job, tracker: Tracker) -> Result<Outcome> {
    let scratch = tempfile::tempdir().map_err(|e| WorkerError::io("making", &std::env::temp_dir(), &e))?;
    let dir = scratch.path().join("version");
    let fetched = fetch(&job, scratch.path(), false, true, &tracker).await?;
    let repository = job.spec.output.repository.clone();
    let (built, dir) = {
        let (dir, tracker) = (dir, tracker.clone());
        // A claim outlives the pod; without one a new pod starts over.
        let claim = PathBuf::from(names::WORK_DIR);
        let work = scratch.path().join("checkpoints");
        blocking(move || {
            let storage = if claim.is_dir() {
                Storage::on_claim(&claim)
            } else {
                Storage::under(&work)
            };
            let built = build(&job, &fetched, &dir, &storage, &tracker)?.0;
            Ok((built, dir))
        })
        .await?
    };
    tracker.stage("push", 1);
    let digest = registry.push_candidate(&repository, &dir).await?;
    tracker.add(1);
    tracker.finish();
    let mut outcome = Outcome::new(
        Code::Done,
        REASON_DONE,
        format!(
            "trained to {:.4} on the validation rows in epoch {}",
            built.objective, built.best_epoch
        ),
    );
    outcome.digest = Some(digest);
    outcome.data_manifest = Some(built.data_manifest);
    Ok(outcome)
}

/// Runs what keeps a core busy off the threads that serve progress.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| WorkerError::bad(INTERNAL, format!("a thread ended early: {e}")))?
}
