//! Runs one controller: bounded concurrency, one reconcile of an object a second at most, delays by error class, resync
//! with jitter, metrics and one span a reconcile. The only place that turns an error class into a delay.

use crate::runtime::backoff::Pace;
use crate::runtime::clock::jitter;
use crate::runtime::context::Context;
use crate::runtime::error::{Class, Classify, chain};
use crate::runtime::metrics::Outcome;
use crate::runtime::watch::{news, watch};
use futures::{Stream, StreamExt};
use kube::runtime::controller::{Action, Config, Error};
use kube::runtime::reflector::{ObjectRef, store};
use kube::runtime::{Controller, Predicate, WatchStreamExt, predicates, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::Instrument;

/// When an object is looked at again, if nothing happens before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// After this time.
    After(Duration),
    /// With the next resync.
    Resync,
}

/// How one controller runs.
pub struct Options<K> {
    /// The kind, as label and span field.
    pub kind: &'static str,
    /// Reconciles at the same time.
    pub concurrency: u16,
    /// Longest time between two reconciles of an object.
    pub resync: Duration,
    /// The phase of an object, for `fleetune_objects`.
    pub phase: fn(&K) -> String,
}

/// What the helper needs of a kind.
pub trait Kind: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K> Kind for K where K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}

/// A controller over the objects of `api`, whose main stream wakes on changes of spec, labels, annotations and
/// finalizers, not of status.
pub fn controller<K: Kind, C>(
    ctx: &Context<C>,
    kind: &'static str,
    api: Api<K>,
    config: watcher::Config,
) -> Controller<K> {
    let (reader, writer) = store();
    let changed = predicates::generation
        .combine(predicates::finalizers)
        .combine(predicates::annotations)
        .combine(predicates::labels);
    let stream = watch(api, config)
        .reflect(writer)
        .applied_objects()
        .predicate_filter(changed, kube::runtime::PredicateConfig::default());
    Controller::for_stream(news(stream, kind, &ctx.metrics), reader)
}

/// All changes and deletions of related objects, for `Controller::watches_stream` and `owns_stream`.
pub fn related<K: Kind, C>(
    ctx: &Context<C>,
    kind: &'static str,
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<K, watcher::Error>> + Send + 'static {
    news(watch(api, config).touched_objects(), kind, &ctx.metrics)
}

struct Shared<K, C, F>
where
    K: Kind,
{
    ctx: Context<C>,
    options: Options<K>,
    pace: Pace<ObjectRef<K>>,
    reconcile: F,
}

/// Runs a controller until the context's switch is thrown; reconciles in flight end first. The gate `controller KIND`
/// opens once its cache is filled.
pub async fn run<K, C, E, F, Fut>(ctx: Context<C>, options: Options<K>, controller: Controller<K>, reconcile: F)
where
    K: Kind,
    K::DynamicType: Eq + Hash + Debug + Clone + Unpin,
    C: Send + Sync + 'static,
    E: Classify,
    F: Fn(Arc<K>, Context<C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Wake, E>> + Send + 'static,
{
    let kind = options.kind;
    let gate = ctx.health.gate(format!("controller {kind}"));
    let reader = controller.store();
    let (counted, phase) = (reader.clone(), options.phase);
    ctx.metrics.track(kind, move || {
        let mut phases = BTreeMap::new();
        for object in counted.state() {
            *phases.entry(phase(&object)).or_insert(0) += 1;
        }
        phases
    });
    let shared = Arc::new(Shared {
        ctx: ctx.clone(),
        pace: Pace::default(),
        reconcile,
        options,
    });
    let opened = async move {
        if reader.wait_until_ready().await.is_ok() {
            gate.open();
            tracing::info!(kind, "controller is ready");
        }
    };
    let drained = {
        let shared = shared.clone();
        controller
            .with_config(Config::default().concurrency(shared.options.concurrency))
            .graceful_shutdown_on(ctx.shutdown.wait())
            .run(one, policy, shared.clone())
            .for_each(move |result| {
                report(&shared, result);
                futures::future::ready(())
            })
    };
    tokio::select! {
        () = drained => {}
        () = async { opened.await; std::future::pending::<()>().await } => {}
    }
    tracing::info!(kind, "controller has stopped");
}

/// One reconcile, or none where the object had one less than a second ago.
async fn one<K, C, E, F, Fut>(object: Arc<K>, shared: Arc<Shared<K, C, F>>) -> Result<Action, E>
where
    K: Kind,
    C: Send + Sync + 'static,
    E: Classify,
    F: Fn(Arc<K>, Context<C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Wake, E>> + Send + 'static,
{
    if shared.ctx.shutdown.is_triggered() {
        return Ok(Action::await_change());
    }
    let key = ObjectRef::from_obj(&*object);
    let started = Instant::now();
    if let Err(rest) = shared.pace.start(key.clone(), started) {
        return Ok(Action::requeue(rest));
    }
    let kind = shared.options.kind;
    let span = tracing::info_span!(
        "reconcile",
        kind,
        namespace = object.namespace().unwrap_or_default(),
        name = object.name_any(),
        uid = object.uid().unwrap_or_default(),
        generation = object.meta().generation.unwrap_or_default(),
    );
    let result = (shared.reconcile)(object, shared.ctx.clone()).instrument(span).await;
    let outcome = if result.is_ok() {
        Outcome::Success
    } else {
        Outcome::Error
    };
    shared.ctx.metrics.reconciled(kind, outcome, started.elapsed());
    let wake = result?;
    shared.pace.succeeded(&key);
    shared.ctx.metrics.backing_off(kind, shared.pace.in_backoff());
    let resync = jitter(shared.options.resync, 0.2);
    Ok(Action::requeue(match wake {
        Wake::After(delay) => jitter(delay, 0.05).min(resync),
        Wake::Resync => resync,
    }))
}

#[allow(clippy::needless_pass_by_value, reason = "the signature that kube asks for")]
fn policy<K, C, E, F>(object: Arc<K>, error: &E, shared: Arc<Shared<K, C, F>>) -> Action
where
    K: Kind,
    E: Classify,
{
    let delay = shared.pace.failed(ObjectRef::from_obj(&*object), error.class());
    shared
        .ctx
        .metrics
        .backing_off(shared.options.kind, shared.pace.in_backoff());
    // Even an object that only a change can help is looked at with each resync: watches may miss one.
    Action::requeue(delay.unwrap_or_else(|| jitter(shared.options.resync, 0.2)))
}

/// Logs and counts how a reconcile ended; each error is logged here and nowhere else.
fn report<K, C, E, F>(shared: &Shared<K, C, F>, result: Result<(ObjectRef<K>, Action), Error<E, watcher::Error>>)
where
    K: Kind,
    E: Classify,
{
    let kind = shared.options.kind;
    match result {
        Ok((object, action)) => tracing::trace!(kind, %object, ?action, "reconciled"),
        Err(Error::ReconcilerFailed(error, object)) => {
            shared.ctx.metrics.failed(kind, error.reason());
            let (reason, text) = (error.reason(), chain(&error));
            let (namespace, name) = (object.namespace.clone().unwrap_or_default(), object.name.clone());
            match error.class() {
                Class::Conflict => tracing::debug!(kind, namespace, name, reason, error = text, "lost a race"),
                Class::Transient => tracing::warn!(kind, namespace, name, reason, error = text, "trying again"),
                Class::Invalid => tracing::info!(kind, namespace, name, reason, error = text, "waiting for a change"),
                Class::Bug => tracing::error!(kind, namespace, name, reason, error = text, "needs a person"),
            }
        }
        Err(Error::ObjectNotFound(object)) => {
            let mut gone = ObjectRef::<K>::new(&object.name);
            gone.namespace.clone_from(&object.namespace);
            shared.pace.forget(&gone);
            tracing::trace!(kind, %gone, "is gone");
        }
        Err(Error::QueueError(error)) => tracing::debug!(kind, error = chain(&error), "watch error"),
        Err(Error::RunnerError(error)) => tracing::error!(kind, error = chain(&error), "the runner failed"),
    }
}
