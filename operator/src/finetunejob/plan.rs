//! Decides what to do next for a job. Pure: what is wanted, what is seen, what the status says and the time go in; steps
//! come out. A worker Job holds our finalizer until its outcome is in the status, so a Job that is not there was never
//! made, and no step is ever run twice.

use crate::finetunejob::observe::{Observed, SeenJob};
use crate::finetunejob::step::{WorkerStep, version_name};
use crate::finetunejob::validate::{Invalid, Validated};
use crate::finetunejob::verdict::{Trouble, Verdict, slow_start, verdict};
use crate::runtime::Wake;
use crate::runtime::clock::between;
use fleetune_crds::common::{Digest, Span};
use fleetune_crds::conditions::is_true;
use fleetune_crds::outcome::{Outcome, REASON_DONE, REASON_PASSED, Summary};
use fleetune_crds::{FineTuneJobStatus, GATES_PASSED};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// How often the pod of a running step is looked at: with its jitter, two looks are a little longer than the five
/// seconds between two writes of progress.
pub const POLL: Duration = Duration::from_millis(2750);

/// One thing to do; `apply` does them in order and stops at the first error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put the finalizer on the job.
    AddFinalizer,
    /// Write `startedAt`, after which the API server refuses changes of the spec.
    RecordStart,
    /// Make the ConfigMap that the step's pod reads.
    EnsureConfig(WorkerStep),
    /// Make the worker Job; the irreversible step.
    CreateJob(WorkerStep),
    /// Suspend or resume the worker Job.
    Suspend(WorkerStep, bool),
    /// Delete the worker Job and its pods.
    DeleteJob(WorkerStep),
    /// Take our finalizer off the worker Job.
    ReleaseJob(WorkerStep),
    /// Make the ModelVersion.
    CreateVersion {
        /// Its place in the order of publication.
        sequence: i64,
        /// Digest of the signature.
        signature: Digest,
    },
    /// Delete the ConfigMap in the operator's namespace, which no owner reference reaches.
    DeleteConfig,
    /// Take the finalizer off the job.
    RemoveFinalizer,
    /// Delete the job: its time after the end is over.
    DeleteSelf,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Held back by `suspend`.
    Suspended,
    /// The spec cannot be carried out; a change of it, or of the chart, helps.
    Refused(Trouble),
    /// A step's Job runs or is about to.
    Running(WorkerStep),
    /// Published under this name.
    Succeeded(String),
    /// Over, without a version.
    Failed(Trouble),
    /// Over before this pass; the status stays.
    Finished,
}

/// What is known of the job's results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Digest of the candidate.
    pub candidate: Option<Digest>,
    /// Digest of the list of samples.
    pub data_manifest: Option<Digest>,
    /// Digest of the report.
    pub report: Option<Digest>,
    /// What `validate` measured.
    pub summary: Option<Summary>,
    /// Whether the gates held; `None` before they were applied.
    pub passed: Option<bool>,
    /// Digest of the signature.
    pub signature: Option<Digest>,
}

/// What to do, and where that leaves the job.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Where the job stands once that is done.
    pub stage: Stage,
    /// What is known.
    pub facts: Facts,
    /// What keeps the running step.
    pub waiting: Option<Trouble>,
    /// When to look again.
    pub wake: Wake,
}

impl Facts {
    /// What the status has recorded.
    pub fn of(status: &FineTuneJobStatus) -> Self {
        let gates = fleetune_crds::conditions::get(&status.conditions, GATES_PASSED);
        Self {
            candidate: status.candidate.clone(),
            data_manifest: status.data_manifest.clone(),
            report: status.report.clone(),
            summary: status.summary.clone(),
            passed: gates.map(|_| is_true(&status.conditions, GATES_PASSED)),
            signature: None,
        }
    }

    /// Whether nothing is left to learn from this step.
    fn settles(&self, step: WorkerStep) -> bool {
        match step {
            WorkerStep::Finetune => self.candidate.is_some() && self.data_manifest.is_some(),
            WorkerStep::Validate => self.report.is_some() && self.summary.is_some() && self.passed == Some(true),
            WorkerStep::Publish => self.signature.is_some(),
        }
    }

    /// Takes over what a finished step says; a failure where that is not enough to go on, or says no.
    fn learn(&mut self, step: WorkerStep, outcome: Outcome) -> Result<(), Trouble> {
        let incomplete = |what: &str| {
            Trouble::new(
                "OutcomeUnreadable",
                format!("the outcome of {} has no {what}: check worker.image", step.name()),
            )
        };
        let digest = outcome.digest.ok_or_else(|| incomplete("digest"));
        match step {
            WorkerStep::Finetune => {
                self.candidate = Some(digest?);
                self.data_manifest = Some(outcome.data_manifest.ok_or_else(|| incomplete("data manifest"))?);
            }
            WorkerStep::Validate => {
                self.summary = outcome.summary;
                let passed = outcome.reason == REASON_PASSED || outcome.reason == REASON_DONE;
                if !passed {
                    // A refused candidate keeps its report, for people to look at.
                    self.report = digest.ok();
                    self.passed = Some(false);
                    return Err(refusal(&outcome.reason, outcome.gate.as_deref(), outcome.message));
                }
                self.report = Some(digest?);
                if self.summary.is_none() {
                    return Err(incomplete("summary"));
                }
                self.passed = Some(true);
            }
            WorkerStep::Publish => self.signature = Some(digest?),
        }
        Ok(())
    }
}

/// A verdict against the candidate, in words.
fn refusal(reason: &str, gate: Option<&str>, message: String) -> Trouble {
    match gate {
        Some(gate) if !message.contains(gate) => Trouble::new(reason, format!("{gate}: {message}")),
        _ => Trouble::new(reason, message),
    }
}

/// What to do for a live job whose spec is sound.
pub fn plan(want: &Validated, seen: &Observed, prev: &FineTuneJobStatus, now: Timestamp) -> Plan {
    let recorded = Facts::of(prev);
    let mut facts = recorded.clone();
    let mut steps = Vec::new();
    if !seen.finalizer {
        steps.push(Step::AddFinalizer);
    }
    let left = time_left(want, prev, now);
    for step in WorkerStep::ALL {
        let job = seen.jobs.get(&step);
        if recorded.settles(step) {
            if job.is_some_and(|job| job.ours && job.held) {
                steps.push(Step::ReleaseJob(step));
            }
            continue;
        }
        match job.map(|job| (job, verdict(job))) {
            Some((job, _)) if !job.ours => return name_taken(step, job, steps, facts),
            Some((_, Verdict::Done(outcome))) => {
                if let Err(trouble) = facts.learn(step, *outcome) {
                    return over(Stage::Failed(trouble), steps, facts);
                }
            }
            Some((_, Verdict::Failed(trouble))) => return over(Stage::Failed(trouble), steps, facts),
            None | Some((_, Verdict::Running(_))) if left.is_zero() => {
                return over(Stage::Failed(deadline(want, step)), steps, facts);
            }
            Some((job, Verdict::Running(waiting))) => {
                let waiting = waiting.or_else(|| slow_start(job, now));
                if job.suspended != want.spec.suspend {
                    steps.push(Step::Suspend(step, want.spec.suspend));
                }
                return running(want, step, steps, facts, waiting, left);
            }
            None => {
                if !want.spec.suspend {
                    if prev.started_at.is_none() {
                        steps.push(Step::RecordStart);
                    }
                    steps.extend([Step::EnsureConfig(step), Step::CreateJob(step)]);
                }
                return running(want, step, steps, facts, None, left);
            }
        }
    }
    publish(want, seen, steps, facts)
}

/// The last act: the ModelVersion that makes a signed candidate known.
fn publish(want: &Validated, seen: &Observed, mut steps: Vec<Step>, facts: Facts) -> Plan {
    let (Some(candidate), Some(signature)) = (&facts.candidate, &facts.signature) else {
        // Only a fault of this module leads here: say so instead of publishing half of it.
        let text = "a step counted as done without its digest";
        return over(Stage::Failed(Trouble::new("OutcomeUnreadable", text)), steps, facts);
    };
    let name = version_name(&want.spec.model_name, candidate);
    match seen.versions.iter().find(|version| version.name == name) {
        Some(version) if version.digest == *candidate => {}
        Some(version) => {
            let text = format!("the ModelVersion {name} names another digest, {}", version.digest);
            return over(Stage::Failed(Trouble::new("VersionNameTaken", text)), steps, facts);
        }
        None => {
            let newest = seen.versions.iter().map(|version| version.sequence).max().unwrap_or(0);
            steps.push(Step::CreateVersion {
                sequence: newest.saturating_add(1),
                signature: signature.clone(),
            });
        }
    }
    over(Stage::Succeeded(name), steps, facts)
}

/// A job whose spec cannot be carried out. What runs already goes on; nothing new is begun.
pub fn refused(invalid: &Invalid, prev: &FineTuneJobStatus) -> Plan {
    Plan {
        steps: Vec::new(),
        stage: Stage::Refused(Trouble::new(invalid.reason(), invalid.to_string())),
        facts: Facts::of(prev),
        waiting: None,
        wake: Wake::Resync,
    }
}

/// What is left to do for a job that is over: end what still runs, let its Jobs go, delete it when its time has come.
pub fn finished(seen: &Observed, prev: &FineTuneJobStatus, ttl: Option<&Span>, now: Timestamp) -> Plan {
    let mut steps = Vec::new();
    for (step, job) in seen.jobs.iter().filter(|(_, job)| job.ours) {
        if job.end.is_none() && !job.deleting {
            steps.push(Step::DeleteJob(*step));
        }
        if job.held {
            steps.push(Step::ReleaseJob(*step));
        }
    }
    let mut wake = Wake::Resync;
    if let (Some(ttl), Some(finished_at)) = (ttl, &prev.finished_at) {
        let left = ttl.get().saturating_sub(between(finished_at.0, now));
        if left.is_zero() {
            steps.push(Step::DeleteSelf);
        } else {
            wake = Wake::After(left);
        }
    }
    Plan {
        steps,
        stage: Stage::Finished,
        facts: Facts::of(prev),
        waiting: None,
        wake,
    }
}

/// What to do for a job that is being deleted: end its pods, and leave nothing where no owner reference reaches.
pub fn cleanup(seen: &Observed, prev: &FineTuneJobStatus) -> Plan {
    let mut steps = Vec::new();
    for (step, job) in seen.jobs.iter().filter(|(_, job)| job.ours) {
        if !job.deleting {
            steps.push(Step::DeleteJob(*step));
        }
        if job.held {
            steps.push(Step::ReleaseJob(*step));
        }
    }
    if seen.finalizer {
        steps.extend([Step::DeleteConfig, Step::RemoveFinalizer]);
    }
    Plan {
        steps,
        stage: Stage::Finished,
        facts: Facts::of(prev),
        waiting: None,
        wake: Wake::Resync,
    }
}

/// Time until the deadline; a job that has not started has all of it, and one that is suspended loses none.
fn time_left(want: &Validated, prev: &FineTuneJobStatus, now: Timestamp) -> Duration {
    match &prev.started_at {
        Some(started_at) => {
            let active = between(started_at.0, now).saturating_sub(suspended_for(prev, now));
            want.deadline.saturating_sub(active)
        }
        None => want.deadline.max(Duration::from_secs(1)),
    }
}

/// How long a started job has been suspended so far.
pub fn suspended_for(prev: &FineTuneJobStatus, now: Timestamp) -> Duration {
    let before = prev.suspended_for.as_ref().map_or(Duration::ZERO, Span::get);
    let since = prev
        .suspended_at
        .as_ref()
        .map_or(Duration::ZERO, |at| between(at.0, now));
    before + since
}

fn deadline(want: &Validated, step: WorkerStep) -> Trouble {
    Trouble::new(
        "DeadlineExceeded",
        format!(
            "the job did not end within activeDeadline ({}s); it was in the step {}",
            want.deadline.as_secs(),
            step.name()
        ),
    )
}

fn running(
    want: &Validated,
    step: WorkerStep,
    steps: Vec<Step>,
    facts: Facts,
    waiting: Option<Trouble>,
    left: Duration,
) -> Plan {
    let (stage, wake) = if want.spec.suspend {
        // Nothing runs out while nothing runs.
        (Stage::Suspended, Wake::Resync)
    } else {
        (Stage::Running(step), Wake::After(left.min(POLL)))
    };
    Plan {
        steps,
        stage,
        facts,
        waiting,
        wake,
    }
}

/// An end: it is recorded first, and only the next pass cleans up.
fn over(stage: Stage, steps: Vec<Step>, facts: Facts) -> Plan {
    Plan {
        steps,
        stage,
        facts,
        waiting: None,
        wake: Wake::After(Duration::from_secs(1)),
    }
}

/// A Job of our name that is not ours, most likely of an earlier job of this name that is on its way out.
fn name_taken(step: WorkerStep, job: &SeenJob, steps: Vec<Step>, facts: Facts) -> Plan {
    Plan {
        steps,
        stage: Stage::Running(step),
        facts,
        waiting: Some(Trouble::new(
            "JobNameTaken",
            format!(
                "a Job {} exists that does not belong to this FineTuneJob: delete it",
                job.name
            ),
        )),
        wake: Wake::After(POLL),
    }
}
