//! The FineTuneJob controller: from a job to a published version, or a reason why not. It makes one worker Job after
//! the other, reads what they say, and never trusts a pod with more than that.

mod apply;
pub mod build;
pub mod observe;
pub mod plan;
pub mod progress;
pub mod status;
pub mod step;
pub mod sweep;
pub mod validate;
pub mod verdict;

use crate::config::HubConfig;
use crate::process::Controllers;
use crate::runtime::controller::{Options, controller, related, run};
use crate::runtime::error::{class_of, reason_of};
use crate::runtime::{Class, Classify, Context, Wake};
use fleetune_crds::{FineTuneJob, names};
use futures::FutureExt;
use k8s_openapi::api::batch::v1::Job;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Jobs that are reconciled at the same time.
const CONCURRENCY: u16 = 8;
/// Shortest time between two writes of a job's status that only tell progress.
const PROGRESS_PERIOD: Duration = Duration::from_secs(5);

/// What this controller keeps in memory; losing it costs nothing but a write or a scrape.
pub struct State {
    /// Asks pods how far they are.
    pub poller: progress::Poller,
    /// Series of jobs.
    pub metrics: progress::JobMetrics,
    /// Held while a version gets its place in the order of publication.
    pub publishing: tokio::sync::Mutex<()>,
    written: Mutex<HashMap<String, Instant>>,
}

impl State {
    /// Nothing in memory yet.
    ///
    /// # Errors
    /// When the HTTP client or the series cannot be made.
    pub fn new(registry: &prometheus::Registry) -> anyhow::Result<Self> {
        Ok(Self {
            poller: progress::Poller::new()?,
            metrics: progress::JobMetrics::new(registry)?,
            publishing: tokio::sync::Mutex::default(),
            written: Mutex::default(),
        })
    }

    /// Whether a status that only tells progress may be written now; remembers that it is.
    fn may_write_progress(&self, uid: &str) -> bool {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = written.get(uid).is_none_or(|last| now >= *last + PROGRESS_PERIOD);
        if due {
            written.insert(uid.to_owned(), now);
        }
        due
    }

    fn forget(&self, job: &FineTuneJob) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.remove(&job.uid().unwrap_or_default());
        self.metrics
            .drop_job(&job.namespace().unwrap_or_default(), &job.name_any());
    }
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("the API server refused or did not answer")]
    Api(#[from] kube::Error),
    /// An object of our name that is not ours.
    #[error("{kind} {namespace}/{name} exists and does not belong to this job: delete it")]
    NameTaken {
        /// Its kind.
        kind: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Another version was published since the plan was made.
    #[error("another version was published first")]
    Outrun,
    /// A plan asked for an object that cannot be built.
    #[error("a step was planned that lacks what it needs")]
    Unplanned,
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Api(error) => class_of(error),
            Self::NameTaken { .. } => Class::Transient,
            Self::Outrun => Class::Conflict,
            Self::Unplanned => Class::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => reason_of(error),
            Self::NameTaken { .. } => "NameTaken",
            Self::Outrun => "Outrun",
            Self::Unplanned => "Unplanned",
        }
    }
}

/// The controller, running until the context's switch is thrown.
///
/// # Errors
/// When its client or series cannot be made.
pub fn start(ctx: &Context<HubConfig>) -> anyhow::Result<Controllers> {
    let state = Arc::new(State::new(&ctx.metrics.registry)?);
    let jobs = controller(
        ctx,
        "FineTuneJob",
        Api::<FineTuneJob>::all(ctx.client.clone()),
        watcher::Config::default(),
    );
    let workers = related(
        ctx,
        "Job",
        Api::<Job>::all(ctx.client.clone()),
        watcher::Config::default().labels(names::LABEL_STEP),
    );
    let options = Options {
        kind: "FineTuneJob",
        concurrency: CONCURRENCY,
        resync: ctx.config.common.resync.get(),
        phase: |job: &FineTuneJob| {
            let phase = job.status.as_ref().and_then(|s| s.phase.clone());
            phase.unwrap_or_else(|| "Pending".into())
        },
    };
    let jobs = jobs.watches_stream(workers, job_of);
    let jobs = run(ctx.clone(), options, jobs, move |job, ctx| {
        let state = state.clone();
        async move { reconcile(&job, &ctx, &state).await }
    });
    let orphans = controller(
        ctx,
        "Job",
        Api::<Job>::all(ctx.client.clone()),
        watcher::Config::default().labels(names::LABEL_STEP),
    );
    let options = Options {
        kind: "Job",
        concurrency: 2,
        resync: ctx.config.common.resync.get(),
        phase: |worker: &Job| observe::see_job(worker, true).phase().to_owned(),
    };
    let orphans = run(ctx.clone(), options, orphans, |worker, ctx| async move {
        sweep::sweep(&worker, &ctx).await
    });
    Ok(futures::future::join(jobs, orphans).map(|_| ()).boxed())
}

/// The job that a worker Job belongs to, wherever it lives.
#[allow(clippy::needless_pass_by_value, reason = "the signature that kube asks for")]
fn job_of(worker: Job) -> Option<ObjectRef<FineTuneJob>> {
    let labels = worker.labels();
    let (name, namespace) = (labels.get(names::LABEL_JOB)?, labels.get(names::LABEL_NAMESPACE)?);
    Some(ObjectRef::new(name).within(namespace))
}

/// One pass: observe, validate, plan, build and apply, status.
pub async fn reconcile(cached: &FineTuneJob, ctx: &Context<HubConfig>, state: &State) -> Result<Wake, Error> {
    let now = ctx.clock.now();
    let Some(mut job) = observe::observe_job(ctx, cached).await? else {
        state.forget(cached);
        return Ok(Wake::Resync);
    };
    let seen = observe::observe(ctx, state, &job).await?;
    if let Some(progress) = &seen.progress {
        state.metrics.show_progress(&job, progress);
    }
    let prev = job.status.clone().unwrap_or_default();
    let deleting = job.metadata.deletion_timestamp.is_some();
    let (want, plan) = if deleting {
        (None, plan::cleanup(&seen, &prev))
    } else if prev.finished_at.is_some() {
        let ttl = job.spec.ttl_after_finished.as_ref();
        (None, plan::finished(&seen, &prev, ttl, now))
    } else {
        match validate::validate(&job, &ctx.config) {
            Ok(want) => {
                let plan = plan::plan(&want, &seen, &prev, now);
                (Some(want), plan)
            }
            Err(invalid) => (None, plan::refused(&invalid, &prev)),
        }
    };
    let applier = apply::Applier {
        ctx,
        state,
        seen: &seen,
        now,
    };
    applier.apply(&mut job, want.as_ref(), &plan).await?;
    if deleting {
        state.forget(&job);
        return Ok(plan.wake);
    }
    let next = status::status(&job, &seen, &plan, now);
    finish(ctx, state, &mut job, &prev, &next).await?;
    Ok(plan.wake)
}

/// Writes the status where it changed; events and metrics only after that.
async fn finish(
    ctx: &Context<HubConfig>,
    state: &State,
    job: &mut FineTuneJob,
    prev: &fleetune_crds::FineTuneJobStatus,
    next: &fleetune_crds::FineTuneJobStatus,
) -> Result<(), Error> {
    let stored = job.status.clone().unwrap_or_default();
    let uid = job.uid().unwrap_or_default();
    if *next != stored && (status::is_more_than_progress(&stored, next) || state.may_write_progress(&uid)) {
        apply::write_status(ctx, job, next).await?;
        state.metrics.count(prev, next);
        if let Some(event) = status::transition(prev, next) {
            let action = next.phase.as_deref().unwrap_or("Reconcile");
            if event.warning {
                ctx.events.warning(job, &event.reason, action, event.note).await;
            } else {
                ctx.events.normal(job, &event.reason, action, event.note).await;
            }
        }
    }
    state.metrics.show_status(job);
    Ok(())
}

#[cfg(test)]
mod tests;
