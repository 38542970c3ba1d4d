//! `validate`: a second pod that trusts nothing of the first. It loads the candidate back, reads the data again and
//! compares the manifest, runs the test rows, fits baselines, measures cost, applies gates and budget, and writes a report
//! either way. It signs and tags nothing.

use crate::baseline::{self, best, named};
use crate::config::Job;
use crate::data::{self, DataSet, Part, Row, manifest};
use crate::error::{INVALID_VERSION, Result, WorkerError};
use crate::features::{each, prepare, targets};
use crate::finetune::{HISTORY, blocking, fetch};
use crate::gates::{self, Verdict};
use crate::lineage::Lineage;
use crate::measure;
use crate::progress::Tracker;
use crate::registry::Registry;
use crate::report::{self, Confusion, Report};
use crate::selftest::percentile;
use crate::train::{Epoch, Targets, metrics};
use crate::version::{LINEAGE, Version, read_bounded};
use fleetune_crds::Metric;
use fleetune_crds::common::{Decimal, Digest};
use fleetune_crds::outcome::{Code, Outcome, Summary};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Samples before the clock counts: the first ones find cold caches.
const WARM_UP: usize = 5;
/// Samples whose time is taken.
const TIMED: usize = 100;
/// Largest JSON file of a version that is read here.
const MAX_JSON: u64 = 16 << 20;

/// What `validate` works on.
pub struct Candidate<'a> {
    /// The version's folder.
    pub dir: &'a Path,
    /// Its digest.
    pub digest: &'a Digest,
    /// The program whose `selftest` is run as a child; without one, memory is that of this process.
    pub program: Option<&'a Path>,
}

/// Measures the candidate on `data` and writes the report into `out`.
pub fn evaluate(
    job: &Job,
    candidate: &Candidate<'_>,
    data: &DataSet,
    out: &Path,
    tracker: &Tracker,
) -> Result<(Verdict, Summary)> {
    let version = Version::open(candidate.dir)?;
    let lineage: Lineage = file(candidate.dir, LINEAGE)?;
    let history: Vec<Epoch> = file(candidate.dir, HISTORY)?;
    fits(job, &version, data, &lineage)?;
    let test: Vec<&Row> = data.part(Part::Test).collect();
    let truth = targets(&test)?;
    tracker.stage("evaluate", test.len() as u64);
    let answers = each(&test, tracker, |row| {
        let output = version.run(&prepare(version.preparer(), row)?)?;
        Ok(output.into_iter().map(f64::from).collect::<Vec<f64>>())
    })?;
    let outputs = data.labels.len().max(1);
    let scores = metrics::all(&answers, &truth, outputs);
    for (metric, value) in &scores {
        tracker.metric(&format!("test.{}", metric.name()), *value);
    }
    let baselines = baseline::all(job, data, tracker)?;
    let (p50, p95) = latency(&version, &test, tracker)?;
    tracker.stage("selftest", 1);
    let (self_test, memory, memory_of) = measure::self_test(&version, candidate.program)?;
    let cost = gates::Cost {
        bytes: version.bytes(),
        peak_memory: memory,
        p95_ms: p95,
    };
    let gates = gates::gates(&job.spec.evaluation, &scores, &baselines);
    let budget_checks = gates::budget(&job.spec.budget, cost);
    let verdict = gates::verdict(&job.spec.evaluation, test.len(), &gates, &budget_checks);
    let summary = summary(job, &version, &scores, &baselines, test.len(), cost);
    let (classes, confusion) = confusion(&answers, &truth, &data.labels);
    let report = Report {
        version: report::FORMAT,
        namespace: job.namespace.clone(),
        model_name: job.spec.model_name.clone(),
        task: job.spec.task,
        candidate: candidate.digest.clone(),
        data_manifest: data.manifest.clone(),
        contract: version.contract().clone(),
        verdict: verdict.clone(),
        objective: job.objective.name().to_owned(),
        samples: test.len(),
        metrics: named(scores),
        baselines,
        classes,
        confusion,
        gates,
        budget_checks,
        budget: job.spec.budget.clone(),
        cost: report::Cost {
            bytes: cost.bytes,
            p50_latency_ms: p50,
            p95_latency_ms: p95,
            peak_memory_bytes: memory,
            peak_memory_of: memory_of,
        },
        self_test,
        history,
        data: data.checks.clone(),
        lineage,
    };
    std::fs::create_dir_all(out).map_err(|e| WorkerError::io("making", out, &e))?;
    report.write(out)?;
    tracing::info!(reason = verdict.reason, message = verdict.message, "verdict");
    Ok((verdict, summary))
}

fn file<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Result<T> {
    serde_json::from_slice(&read_bounded(&dir.join(name), MAX_JSON)?)
        .map_err(|e| WorkerError::bad(INVALID_VERSION, format!("{name}: {e}")))
}

/// The candidate must be the one that this job makes of this data.
fn fits(job: &Job, version: &Version, data: &DataSet, lineage: &Lineage) -> Result<()> {
    let wrong = |what: String| Err(WorkerError::bad(INVALID_VERSION, format!("the candidate {what}")));
    if version.task() != job.spec.task {
        return wrong(format!("is a {:?}, the job a {:?}", version.task(), job.spec.task));
    }
    if version.labels() != data.labels {
        return wrong("has other labels than the data".to_owned());
    }
    let wanted = crate::pipeline::Pipeline::for_job(&job.spec.input, job.spec.task, data.labels.len())?;
    if *version.pipeline() != wanted {
        return wrong("prepares samples in another way than the spec says".to_owned());
    }
    if lineage.base_model_sha256 != job.spec.base_model.sha256 || lineage.data_manifest != data.manifest {
        return wrong("was made from another base model or other data".to_owned());
    }
    Ok(())
}

/// Median and 95th percentile of the time for one sample, raw sample to answer, one after the other.
fn latency(version: &Version, rows: &[&Row], tracker: &Tracker) -> Result<(f64, f64)> {
    tracker.stage("latency", TIMED as u64);
    let mut times = Vec::with_capacity(TIMED);
    for (i, row) in rows.iter().cycle().take(WARM_UP + TIMED).enumerate() {
        let start = Instant::now();
        version.run(&prepare(version.preparer(), row)?)?;
        if i >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e3);
            tracker.add(1);
        }
    }
    Ok((percentile(&mut times, 0.5), percentile(&mut times, 0.95)))
}

fn confusion(
    answers: &[Vec<f64>],
    truth: &Targets,
    labels: &[String],
) -> (BTreeMap<String, metrics::ClassScore>, Option<Confusion>) {
    let Targets::Classes(truth) = truth else {
        return (BTreeMap::new(), None);
    };
    let predicted: Vec<usize> = answers.iter().map(|a| metrics::argmax(a)).collect();
    let counts = metrics::Confusion::of(truth, &predicted, labels.len());
    let matrix = (labels.len() <= report::MAX_MATRIX).then(|| Confusion {
        labels: labels.to_vec(),
        rows: counts.rows(),
    });
    (labels.iter().cloned().zip(counts.classes()).collect(), matrix)
}

fn summary(
    job: &Job,
    version: &Version,
    scores: &BTreeMap<Metric, f64>,
    baselines: &[baseline::Baseline],
    samples: usize,
    cost: gates::Cost,
) -> Summary {
    let decimals = |all: &BTreeMap<String, f64>| {
        all.iter()
            .filter_map(|(name, value)| Some((name.clone(), Decimal::from_f64(*value)?)))
            .collect()
    };
    let baseline = best(baselines, job.objective);
    let zero = || Decimal::from_f64(0.0).unwrap_or_else(|| unreachable!("a constant"));
    Summary {
        samples: u32::try_from(samples).unwrap_or(u32::MAX),
        metrics: decimals(&named(scores.clone())),
        baseline: baseline.map_or(String::new(), |b| b.name.clone()),
        baseline_metrics: baseline.map(|b| decimals(&b.metrics)).unwrap_or_default(),
        bytes: i64::try_from(cost.bytes).unwrap_or(i64::MAX),
        p95_latency_ms: Decimal::from_f64(cost.p95_ms).unwrap_or_else(zero),
        peak_memory_bytes: i64::try_from(cost.peak_memory).unwrap_or(i64::MAX),
        contract: version.contract().clone(),
    }
}

/// The outcome of a verdict: a failed gate is work done.
pub fn outcome(verdict: &Verdict, summary: Summary, report: Option<Digest>) -> Outcome {
    let mut outcome = Outcome::new(Code::Done, &verdict.reason, verdict.message.clone());
    outcome.gate.clone_from(&verdict.gate);
    outcome.digest = report;
    outcome.summary = Some(summary);
    outcome
}

/// Runs the step in a pod: fetches the candidate and the data, evaluates, pushes the report.
pub async fn run(job: Job, candidate: Digest, data_manifest: Digest, tracker: Tracker) -> Result<Outcome> {
    let program = std::env::current_exe().ok();
    run_with(&Registry::from_env()?, job, candidate, data_manifest, program, tracker).await
}

/// The same with a registry client and a program of the caller's.
pub async fn run_with(
    registry: &Registry,
    job: Job,
    candidate: Digest,
    data_manifest: Digest,
    program: Option<PathBuf>,
    tracker: Tracker,
) -> Result<Outcome> {
    let scratch = tempfile::tempdir().map_err(|e| WorkerError::io("making", &std::env::temp_dir(), &e))?;
    let (dir, out) = (scratch.path().join("version"), scratch.path().join("report"));
    let repository = job.spec.output.repository.clone();
    registry.fetch_version(&repository, &candidate, &dir).await?;
    let fetched = fetch(&job, scratch.path(), false, false, &tracker).await?;
    let (verdict, summary) = {
        let (out, tracker, candidate) = (out.clone(), tracker.clone(), candidate.clone());
        blocking(move || {
            let data = data::load(&job, &fetched.data, &tracker)
                .and_then(|data| manifest::same(&data.manifest, &data_manifest).map(|()| data))
                .map_err(|e| e.at("spec.dataset"))?;
            let candidate = Candidate {
                dir: &dir,
                digest: &candidate,
                program: program.as_deref(),
            };
            evaluate(&job, &candidate, &data, &out, &tracker)
        })
        .await?
    };
    tracker.stage("push", 1);
    let report = registry.push_report(&repository, &candidate, &out).await?;
    tracker.add(1);
    tracker.finish();
    Ok(outcome(&verdict, summary, Some(report)))
}
