//! Waits on objects by watching them, never by sleeping.

use anyhow::{Result, bail, ensure};
use fleetune_crds::{FineTuneJob, ModelRollout, RunState, conditions};
use futures::{TryStreamExt, pin_mut};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Watches one object until `see` breaks with a value.
///
/// # Errors
/// When `deadline` passes first; the message names the object and shows its last seen state.
pub async fn follow<K, T>(
    api: Api<K>,
    name: &str,
    deadline: Duration,
    mut see: impl FnMut(&K) -> ControlFlow<T>,
) -> Result<T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let mut last = None;
    let watch = async {
        let stream = watcher(api, watcher::Config::default().fields(&format!("metadata.name={name}")))
            .default_backoff()
            .applied_objects();
        pin_mut!(stream);
        loop {
            match stream.try_next().await {
                Ok(Some(object)) => {
                    if let ControlFlow::Break(value) = see(&object) {
                        return Ok(value);
                    }
                    last = Some(object);
                }
                Ok(None) => bail!("the watch of {name} ended"),
                // A server that restarts, or a link that is cut: the watcher comes back by itself.
                Err(error) => tracing::debug!(%error, name, "watch interrupted"),
            }
        }
    };
    match tokio::time::timeout(deadline, watch).await {
        Ok(done) => done,
        Err(_) => bail!("{name} is not there after {deadline:?}; last seen: {last:#?}"),
    }
}

/// Asks again and again until there is an answer, for what no watch tells. An error is no answer.
///
/// # Errors
/// When there is none within `deadline`; the message has the last error.
pub async fn until<T>(what: &str, deadline: Duration, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        let last = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        ensure!(
            Instant::now() < end,
            "after {deadline:?} it is still not so that {what}{last}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Breaks once the job has succeeded or failed, with whether it succeeded.
pub fn job_done(job: &FineTuneJob) -> ControlFlow<bool> {
    let Some(status) = &job.status else {
        return ControlFlow::Continue(());
    };
    match conditions::get(&status.conditions, conditions::SUCCEEDED) {
        Some(done) if done.status == "True" => ControlFlow::Break(true),
        Some(done) if done.status == "False" && conditions::is_true(&status.conditions, conditions::STALLED) => {
            ControlFlow::Break(false)
        }
        _ => ControlFlow::Continue(()),
    }
}

/// Breaks once the run of this version has ended, with how.
pub fn rollout_done(version: &str) -> impl FnMut(&ModelRollout) -> ControlFlow<RunState> + '_ {
    move |rollout| match rollout.status.as_ref().and_then(|status| status.run.as_ref()) {
        Some(run) if run.version == version && run.finished_at.is_some() => ControlFlow::Break(run.state),
        _ => ControlFlow::Continue(()),
    }
}
