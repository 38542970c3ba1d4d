//! The status of a job, from what was planned and done. Pure. Equal input gives an equal status, so that nothing is
//! written when nothing changed.

use crate::finetunejob::observe::Observed;
use crate::finetunejob::plan::{Plan, Stage, Step, suspended_for};
use crate::finetunejob::step::WorkerStep;
use crate::finetunejob::verdict::Trouble;
use fleetune_crds::conditions::{self, RECONCILING, STALLED, SUCCEEDED, Wanted};
use fleetune_crds::outcome::Progress;
use fleetune_crds::{
    DATA_READY, EVALUATED, FineTuneJob, FineTuneJobStatus, GATES_PASSED, Metric, Objective, PUBLISHED, TRAINED,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// The status after `plan` was applied.
pub fn status(job: &FineTuneJob, seen: &Observed, plan: &Plan, now: Timestamp) -> FineTuneJobStatus {
    let prev = job.status.clone().unwrap_or_default();
    let generation = job.metadata.generation.unwrap_or_default();
    if plan.stage == Stage::Finished {
        return keep(prev, generation);
    }
    let facts = &plan.facts;
    let started = prev.started_at.clone();
    let started_at = started.or_else(|| plan.steps.contains(&Step::RecordStart).then_some(Time(now)));
    let over = matches!(plan.stage, Stage::Succeeded(_) | Stage::Failed(_));
    let phase = phase(&plan.stage, started_at.is_some());
    let suspended = job.spec.suspend && started_at.is_some() && !over;
    FineTuneJobStatus {
        observed_generation: Some(generation),
        progress: progress(plan, seen, &prev, phase),
        phase: Some(phase.to_owned()),
        started_at,
        suspended_at: suspended.then(|| prev.suspended_at.clone().unwrap_or(Time(now))),
        suspended_for: match prev.suspended_at {
            Some(_) if !suspended => Some(Duration::from_secs(suspended_for(&prev, now).as_secs()).into()),
            _ => prev.suspended_for.clone(),
        },
        finished_at: prev.finished_at.clone().or_else(|| over.then_some(Time(now))),
        data_manifest: facts.data_manifest.clone(),
        candidate: facts.candidate.clone(),
        report: facts.report.clone(),
        version: match &plan.stage {
            Stage::Succeeded(version) => Some(version.clone()),
            _ => None,
        },
        objective: objective(job, plan),
        summary: facts.summary.clone(),
        conditions: conditions::replace(&prev.conditions, &wanted(plan, phase), generation, now),
    }
}

/// The status of a job that is over, for a later generation of its spec (`ttlAfterFinished` may still change).
fn keep(mut prev: FineTuneJobStatus, generation: i64) -> FineTuneJobStatus {
    prev.observed_generation = Some(generation);
    for condition in &mut prev.conditions {
        condition.observed_generation = Some(generation);
    }
    prev
}

fn phase(stage: &Stage, started: bool) -> &'static str {
    match stage {
        Stage::Suspended => "Suspended",
        Stage::Refused(_) | Stage::Failed(_) => "Failed",
        Stage::Running(_) if !started => "Pending",
        Stage::Running(step) => step.phase(),
        Stage::Succeeded(_) | Stage::Finished => "Succeeded",
    }
}

/// `train 12/100`, from what the pod says; what it said last where it does not answer.
fn progress(plan: &Plan, seen: &Observed, prev: &FineTuneJobStatus, phase: &str) -> Option<String> {
    if !matches!(plan.stage, Stage::Running(_)) {
        return None;
    }
    match &seen.progress {
        Some(progress) => Some(progress_text(progress)),
        None => prev.progress.clone().filter(|_| prev.phase.as_deref() == Some(phase)),
    }
}

fn progress_text(progress: &Progress) -> String {
    match progress.total {
        0 => progress.stage.clone(),
        total => format!("{} {}/{total}", progress.stage, progress.done.min(total)),
    }
}

fn objective(job: &FineTuneJob, plan: &Plan) -> Option<Objective> {
    let summary = plan.facts.summary.as_ref()?;
    let named = job.spec.evaluation.objective;
    let metric = named.unwrap_or_else(|| Metric::default_for(job.spec.task));
    Some(Objective {
        metric,
        value: summary.metrics.get(metric.name())?.clone(),
        baseline: summary.baseline_metrics.get(metric.name()).cloned(),
    })
}

/// All conditions, in the order in which they are shown.
fn wanted(plan: &Plan, phase: &str) -> Vec<Wanted> {
    let mut all = Vec::new();
    match &plan.stage {
        Stage::Running(step) => {
            let (reason, message) = match &plan.waiting {
                Some(trouble) => (trouble.reason.as_str(), trouble.message.clone()),
                None => (phase, format!("the step {} is under way", step.name())),
            };
            all.push(Wanted::new(SUCCEEDED, None, reason, message.clone()));
            all.push(Wanted::new(RECONCILING, Some(true), reason, message));
        }
        Stage::Suspended => {
            let message = "spec.suspend is true: set it to false to go on";
            all.push(Wanted::new(SUCCEEDED, None, "Suspended", message));
        }
        Stage::Refused(trouble) | Stage::Failed(trouble) => {
            for (type_, status) in [(SUCCEEDED, false), (STALLED, true)] {
                all.push(Wanted::new(type_, Some(status), &trouble.reason, &trouble.message));
            }
        }
        Stage::Succeeded(version) => {
            let message = format!("{version} is signed and published");
            all.push(Wanted::new(SUCCEEDED, Some(true), "Published", message));
        }
        Stage::Finished => {}
    }
    all.extend(domain(plan));
    all
}

/// How far the job has come, one condition for each thing that can be waited for.
fn domain(plan: &Plan) -> Vec<Wanted> {
    let facts = &plan.facts;
    let failed = match &plan.stage {
        Stage::Failed(trouble) => Some(trouble),
        _ => None,
    };
    let no = |type_, trouble: &Trouble| Wanted::new(type_, Some(false), &trouble.reason, &trouble.message);
    let mut all = Vec::new();
    let (Some(candidate), Some(manifest)) = (&facts.candidate, &facts.data_manifest) else {
        all.extend(failed.map(|trouble| {
            no(
                if is_about_data(&trouble.reason) {
                    DATA_READY
                } else {
                    TRAINED
                },
                trouble,
            )
        }));
        return all;
    };
    let read = format!("the list of samples is {manifest}");
    all.push(Wanted::new(DATA_READY, Some(true), "ManifestWritten", read));
    let pushed = format!("the candidate is {candidate}");
    all.push(Wanted::new(TRAINED, Some(true), "CandidatePushed", pushed));
    let Some(passed) = facts.passed else {
        all.extend(failed.map(|trouble| no(EVALUATED, trouble)));
        return all;
    };
    let report = match &facts.report {
        Some(report) => format!("the report is {report}"),
        None => "the candidate was evaluated; no report was pushed".to_owned(),
    };
    all.push(Wanted::new(EVALUATED, Some(true), "ReportPushed", report));
    match (passed, failed) {
        (true, _) => all.push(Wanted::new(
            GATES_PASSED,
            Some(true),
            "Passed",
            "every gate and the budget held",
        )),
        (false, Some(trouble)) => all.push(no(GATES_PASSED, trouble)),
        (false, None) => all.push(Wanted::new(GATES_PASSED, Some(false), "GateFailed", "a gate failed")),
    }
    match &plan.stage {
        Stage::Succeeded(version) => {
            let message = format!("ModelVersion {version}");
            all.push(Wanted::new(PUBLISHED, Some(true), "VersionWritten", message));
        }
        Stage::Failed(trouble) if passed => all.push(no(PUBLISHED, trouble)),
        _ => {}
    }
    all
}

/// Whether a failure of `finetune` is about the data: those reasons of the worker begin with one of these words.
fn is_about_data(reason: &str) -> bool {
    const WORDS: [&str; 10] = [
        "Data",
        "UnsafePath",
        "Decompression",
        "OneClass",
        "Column",
        "MissingValues",
        "UnreadableSamples",
        "TooFewSamples",
        "InvalidSplit",
        "InvalidSample",
    ];
    WORDS.iter().any(|word| reason.starts_with(word))
}

/// What changed between two statuses, as an event; at most one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Whether a person should look.
    pub warning: bool,
    /// The event's reason.
    pub reason: String,
    /// The event's note.
    pub note: String,
}

/// The transition that a write of `next` over `prev` is, if it is one.
pub fn transition(prev: &FineTuneJobStatus, next: &FineTuneJobStatus) -> Option<Transition> {
    let succeeded = conditions::get(&next.conditions, SUCCEEDED)?;
    let before = conditions::get(&prev.conditions, SUCCEEDED);
    if before.is_some_and(|b| b.reason == succeeded.reason && b.status == succeeded.status) {
        return None;
    }
    let usual = WorkerStep::ALL.iter().any(|step| step.phase() == succeeded.reason);
    let good = succeeded.status == "True" || usual || matches!(succeeded.reason.as_str(), "Suspended" | "Pending");
    Some(Transition {
        warning: !good,
        reason: succeeded.reason.clone(),
        note: succeeded.message.clone(),
    })
}

/// Whether `next` says anything but a further progress; progress alone is not worth a write each time.
pub fn is_more_than_progress(prev: &FineTuneJobStatus, next: &FineTuneJobStatus) -> bool {
    let mut aligned = next.clone();
    aligned.progress.clone_from(&prev.progress);
    aligned != *prev
}
