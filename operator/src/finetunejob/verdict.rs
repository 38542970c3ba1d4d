//! What a worker Job and its pods say about a step. Termination messages are hostile input: bounded, checked word by
//! word, and never trusted further than the exit code goes.

use crate::finetunejob::observe::{JobEnd, SeenJob, SeenPod};
use crate::runtime::clock::between;
use fleetune_crds::conditions::cut;
use fleetune_crds::outcome::{Code, MAX_TERMINATION_MESSAGE, Outcome};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// How long a pod may take to start, images of a gigabyte over slow links aside, before someone is told to look.
const SLOW_START: Duration = Duration::from_mins(1);

/// What came of a step so far.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// No end yet; what the pod waits for, if it waits.
    Running(Option<Trouble>),
    /// It did its work.
    Done(Box<Outcome>),
    /// It did not, and will not.
    Failed(Trouble),
}

/// A reason and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A PascalCase word.
    pub reason: String,
    /// What, where and what to do.
    pub message: String,
}

impl Trouble {
    /// A reason with a message, cut to what a condition holds.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: cut(message.into()),
        }
    }
}

/// Reads a termination message; `None` where it is not an outcome that can be used.
pub fn read_outcome(message: &str) -> Option<Outcome> {
    if message.len() > MAX_TERMINATION_MESSAGE {
        return None;
    }
    let mut outcome: Outcome = serde_json::from_str(message).ok()?;
    // The status must stay within its schema whatever a worker says.
    let fits = outcome.summary.as_ref().is_none_or(|summary| {
        summary.metrics.len() <= 16 && summary.baseline_metrics.len() <= 16 && summary.baseline.len() <= 253
    });
    if !fits || !is_reason(&outcome.reason) {
        return None;
    }
    outcome.message = cut(outcome.message);
    outcome.gate = outcome.gate.map(|gate| gate.chars().take(253).collect());
    Some(outcome)
}

/// Whether `word` can be the reason of a condition and the value of a metric's label.
fn is_reason(word: &str) -> bool {
    word.len() <= 64
        && word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.chars().all(|c| c.is_ascii_alphanumeric())
}

/// What came of the step that `job` does.
pub fn verdict(job: &SeenJob) -> Verdict {
    match &job.end {
        Some(JobEnd::Complete) => complete(job),
        Some(JobEnd::Failed { reason, message }) => Verdict::Failed(failure(job, reason, message)),
        None if job.deleting => Verdict::Failed(Trouble::new(
            "JobDeleted",
            format!(
                "the Job {} was deleted while it ran: make a new FineTuneJob to run again",
                job.name
            ),
        )),
        None => Verdict::Running(waiting(job)),
    }
}

/// What a step that has not ended waits for: the newest pod's own trouble, else why the pod before it failed.
fn waiting(job: &SeenJob) -> Option<Trouble> {
    if let Some(trouble) = job.pods.iter().rev().find_map(|pod| pod.trouble.clone()) {
        return Some(trouble);
    }
    let failed = job.pods.iter().filter(|pod| pod.failed).count();
    let last = job.pods.iter().rev().find(|pod| pod.failed)?;
    let why = worker_word(last).unwrap_or_else(|| kubelet_word(last, ""));
    let text = format!("try {} after {}: {}", failed + 1, why.reason, why.message);
    Some(Trouble::new("Retrying", text))
}

/// A pod that has not started long after it was made, or a Job that has none: what the kubelet and the Job controller
/// say about that stands in events alone.
pub fn slow_start(job: &SeenJob, now: Timestamp) -> Option<Trouble> {
    let late = |since: Option<Timestamp>| since.is_some_and(|since| between(since, now) > SLOW_START);
    let name = &job.name;
    match job.pods.last() {
        None if late(job.created) && !job.suspended => Some(Trouble::new(
            "NoPod",
            format!("the Job {name} has no pod: see its events (kubectl describe job {name}), often a quota"),
        )),
        Some(pod) if pod.starting && late(pod.created) => Some(Trouble::new(
            "PodNotStarting",
            format!(
                "pod {} does not start: see its events (kubectl describe pod {}), often a missing Secret or claim",
                pod.name, pod.name
            ),
        )),
        _ => None,
    }
}

fn complete(job: &SeenJob) -> Verdict {
    let done = job.pods.iter().rev().find_map(|pod| {
        let end = pod.end.as_ref().filter(|end| end.exit_code == 0)?;
        Some(read_outcome(&end.message))
    });
    match done {
        Some(Some(outcome)) if outcome.code == Code::Done => Verdict::Done(Box::new(outcome)),
        Some(_) => Verdict::Failed(Trouble::new(
            "OutcomeUnreadable",
            format!(
                "the pod of Job {} ended well, but its termination message is not an outcome: check worker.image",
                job.name
            ),
        )),
        None => Verdict::Failed(Trouble::new(
            "OutcomeLost",
            format!(
                "the Job {} is complete, but its pod was removed before its outcome was read",
                job.name
            ),
        )),
    }
}

/// The reason of a failed Job: the worker's own word where there is one, else what the kubelet says, else the Job's.
fn failure(job: &SeenJob, reason: &str, message: &str) -> Trouble {
    let last = job.pods.iter().rev().find(|pod| pod.failed);
    let Some(pod) = last else {
        let text = format!("the Job {} failed ({reason}) and left no pod: {message}", job.name);
        return Trouble::new("WorkerFailed", text);
    };
    let tries = match job.pods.iter().filter(|pod| pod.failed).count() {
        0 | 1 => String::new(),
        tries => format!(" (after {tries} tries)"),
    };
    if let Some(word) = worker_word(pod) {
        return Trouble::new(&word.reason, format!("{}{tries}", word.message));
    }
    kubelet_word(pod, &tries)
}

/// The worker's own word about its failure.
fn worker_word(pod: &SeenPod) -> Option<Trouble> {
    let outcome = read_outcome(&pod.end.as_ref()?.message).filter(|outcome| outcome.code != Code::Done)?;
    Some(Trouble::new(&outcome.reason, outcome.message))
}

fn kubelet_word(pod: &SeenPod, tries: &str) -> Trouble {
    let name = &pod.name;
    match (&pod.end, pod.reason.as_deref()) {
        (_, Some("Evicted")) => Trouble::new(
            "Evicted",
            format!(
                "the node evicted pod {name}{tries}: {}",
                pod.message.as_deref().unwrap_or("no message")
            ),
        ),
        (Some(end), _) if end.reason == "OOMKilled" => Trouble::new(
            "OOMKilled",
            format!("pod {name} used more memory than its limit{tries}: raise worker.resources.limits.memory"),
        ),
        (Some(end), _) => Trouble::new(
            "WorkerFailed",
            format!(
                "pod {name} ended with exit code {}{tries} and no outcome: see its log",
                end.exit_code
            ),
        ),
        (None, reason) => Trouble::new(
            "WorkerFailed",
            format!("pod {name} failed{tries}: {}", reason.unwrap_or("no reason given")),
        ),
    }
}
