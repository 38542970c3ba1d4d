//! Progress of running pods: asked like a scrape, bounded, never trusted; and the job's series in `/metrics`.

use fleetune_crds::outcome::Progress;
use fleetune_crds::{FineTuneJob, names};
use futures::StreamExt;
use kube::ResourceExt;
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a pod may take to answer. A pod that is busy is asked again a few seconds later.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The longest answer that is read.
const MAX_ANSWER: usize = 64 << 10;
/// The most metrics of one job that become series.
const MAX_METRICS: usize = 32;

/// Asks pods how far they are.
pub struct Poller(reqwest::Client);

impl Poller {
    /// A poller that follows no redirect and uses no proxy: it talks to pods only.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new() -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self(client))
    }

    /// What the pod at this address says; `None` where it does not answer in time, or with something else.
    pub async fn poll(&self, ip: &str) -> Option<Progress> {
        let host = match ip.parse().ok()? {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let url = format!("http://{host}:{}/progress", names::WORKER_PORT);
        let answer = self.0.get(url).send().await.ok()?.error_for_status().ok()?;
        let mut body = Vec::new();
        let mut chunks = answer.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.ok()?);
            if body.len() > MAX_ANSWER {
                return None;
            }
        }
        read_progress(&body)
    }
}

/// Reads an answer; what does not look like a name or a number is left out.
pub fn read_progress(body: &[u8]) -> Option<Progress> {
    let mut progress: Progress = serde_json::from_slice(body).ok()?;
    if !is_word(&progress.stage) {
        return None;
    }
    progress.samples_per_second = progress.samples_per_second.filter(|v| v.is_finite() && *v >= 0.0);
    progress.metrics = progress
        .metrics
        .into_iter()
        .filter(|(name, value)| value.is_finite() && split_name(name).is_some())
        .take(MAX_METRICS)
        .collect();
    Some(progress)
}

fn is_word(word: &str) -> bool {
    (1..=32).contains(&word.len()) && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// `validation.macroF1` as split and metric.
fn split_name(name: &str) -> Option<(&str, &str)> {
    name.split_once('.')
        .filter(|(split, metric)| is_word(split) && is_word(metric))
}

/// Namespace and name of a job.
type JobKey = (String, String);
/// Split and metric.
type SeriesKey = (String, String);

/// The series of jobs. They go when their job does.
pub struct JobMetrics {
    metric: GaugeVec,
    epoch: GaugeVec,
    samples_per_second: GaugeVec,
    seconds_left: GaugeVec,
    gate_passed: GaugeVec,
    gates: IntCounterVec,
    finished: IntCounterVec,
    /// Splits and metrics that a job has series for.
    known: Mutex<HashMap<JobKey, BTreeSet<SeriesKey>>>,
}

impl JobMetrics {
    /// Registers the series.
    ///
    /// # Errors
    /// When a name is taken, which is a fault of this program.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let vec = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vec.clone()))?;
            Ok::<_, prometheus::Error>(vec)
        };
        // Not `job`, which Prometheus gives to what it scrapes and would rename here.
        let job = &["namespace", "finetunejob"];
        Ok(Self {
            metric: gauge(
                "fleetune_job_metric",
                "Metrics of a job by split, while it runs and after.",
                &["namespace", "finetunejob", "split", "metric"],
            )?,
            epoch: gauge("fleetune_job_epoch", "Epochs that are done.", job)?,
            samples_per_second: gauge(
                "fleetune_job_samples_per_second",
                "Samples a second of the running stage.",
                job,
            )?,
            seconds_left: gauge(
                "fleetune_job_stage_left_seconds",
                "Time left in the running stage.",
                job,
            )?,
            gate_passed: gauge(
                "fleetune_job_gates_passed",
                "1 where every gate of the job held, else 0.",
                job,
            )?,
            gates: counter(
                "fleetune_job_gate_verdicts_total",
                "Verdicts of gates on candidates.",
                &["verdict"],
            )?,
            finished: counter(
                "fleetune_jobs_finished_total",
                "Jobs that ended, by reason.",
                &["reason"],
            )?,
            known: Mutex::default(),
        })
    }

    /// Shows what a running pod says.
    pub fn show_progress(&self, job: &FineTuneJob, progress: &Progress) {
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        let labels = [namespace.as_str(), name.as_str()];
        if progress.stage == "train" {
            self.epoch.with_label_values(&labels).set(progress.done as f64);
        }
        if let Some(rate) = progress.samples_per_second {
            self.samples_per_second.with_label_values(&labels).set(rate);
            if rate > 0.0 && progress.stage != "train" {
                let left = progress.total.saturating_sub(progress.done) as f64 / rate;
                self.seconds_left.with_label_values(&labels).set(left);
            }
        }
        for (key, value) in &progress.metrics {
            if let Some((split, metric)) = split_name(key) {
                self.set(&labels, split, metric, *value);
            }
        }
    }

    /// Shows what the status has recorded; what only a running pod has goes once the job is over.
    pub fn show_status(&self, job: &FineTuneJob) {
        let Some(status) = &job.status else { return };
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        let labels = [namespace.as_str(), name.as_str()];
        if let Some(summary) = &status.summary {
            for (split, metrics) in [("test", &summary.metrics), ("baseline", &summary.baseline_metrics)] {
                for (metric, value) in metrics.iter().filter(|(metric, _)| is_word(metric)) {
                    self.set(&labels, split, metric, value.get());
                }
            }
        }
        if let Some(gates) = fleetune_crds::conditions::get(&status.conditions, fleetune_crds::GATES_PASSED) {
            let passed = f64::from(u8::from(gates.status == "True"));
            self.gate_passed.with_label_values(&labels).set(passed);
        }
        if status.finished_at.is_some() {
            for gauge in [&self.epoch, &self.samples_per_second, &self.seconds_left] {
                let _ = gauge.remove_label_values(&labels);
            }
        }
    }

    /// Counts transitions, after they were written.
    pub fn count(&self, prev: &fleetune_crds::FineTuneJobStatus, next: &fleetune_crds::FineTuneJobStatus) {
        use fleetune_crds::conditions::{SUCCEEDED, get};
        let gates = fleetune_crds::GATES_PASSED;
        if let (None, Some(gate)) = (get(&prev.conditions, gates), get(&next.conditions, gates)) {
            let verdict = match (gate.status.as_str(), gate.reason.as_str()) {
                ("True", _) => "pass",
                (_, fleetune_crds::outcome::REASON_INCONCLUSIVE) => "inconclusive",
                _ => "fail",
            };
            self.gates.with_label_values(&[verdict]).inc();
        }
        if prev.finished_at.is_none()
            && next.finished_at.is_some()
            && let Some(end) = get(&next.conditions, SUCCEEDED)
        {
            self.finished.with_label_values(&[end.reason.as_str()]).inc();
        }
    }

    /// Forgets a job.
    pub fn drop_job(&self, namespace: &str, job: &str) {
        let labels = [namespace, job];
        for gauge in [
            &self.epoch,
            &self.samples_per_second,
            &self.seconds_left,
            &self.gate_passed,
        ] {
            let _ = gauge.remove_label_values(&labels);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (split, metric) in known
            .remove(&(namespace.to_owned(), job.to_owned()))
            .unwrap_or_default()
        {
            let _ = self
                .metric
                .remove_label_values(&[namespace, job, split.as_str(), metric.as_str()]);
        }
    }

    fn set(&self, job: &[&str; 2], split: &str, metric: &str, value: f64) {
        let [namespace, name] = *job;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let series = known.entry((namespace.to_owned(), name.to_owned())).or_default();
        let key = (split.to_owned(), metric.to_owned());
        if series.len() >= 2 * MAX_METRICS && !series.contains(&key) {
            return;
        }
        series.insert(key);
        self.metric
            .with_label_values(&[namespace, name, split, metric])
            .set(value);
    }
}
