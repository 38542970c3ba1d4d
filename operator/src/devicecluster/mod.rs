//! The DeviceCluster controller: gives each registered cluster a namespace, a heartbeat and, for Pull, an account with a
//! kubeconfig, and says whether the cluster can be reached. Deregistering ends the access and unloads nothing.

mod apply;
pub mod build;
pub mod observe;
pub mod plan;
pub mod status;
pub mod validate;

use crate::config::HubConfig;
use crate::process::Controllers;
use crate::runtime::controller::{Options, controller, run};
use crate::runtime::error::{class_of, reason_of};
use crate::runtime::watch::{filled, news, watch};
use crate::runtime::{Class, Classify, Context, Wake};
use fleetune_crds::conditions::{READY, get};
use fleetune_crds::{DeviceCluster, names};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::reflector::{ObjectRef, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use observe::{Beats, Observed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Registrations that are reconciled at the same time.
const CONCURRENCY: u16 = 8;

type Heartbeat = Box<dyn Fn(&str) -> BoxFuture<'static, Option<Arc<Lease>>> + Send + Sync>;

/// What this controller keeps in memory; losing it costs a few reads.
pub struct State {
    /// The heartbeat Lease of a cluster, from a watch.
    pub heartbeat: Heartbeat,
    /// When each heart was seen to beat.
    pub beats: Beats,
    /// What was seen of a registration that lacked nothing, until it is read again.
    complete: Mutex<HashMap<String, (Instant, Observed)>>,
    memory: Duration,
}

impl State {
    /// Nothing in memory yet; what is complete is read again after `memory`.
    pub fn new(memory: Duration, heartbeat: Heartbeat) -> Self {
        Self {
            heartbeat,
            beats: Beats::default(),
            complete: Mutex::default(),
            memory,
        }
    }

    fn key(cluster: &DeviceCluster) -> String {
        let generation = cluster.metadata.generation.unwrap_or_default();
        format!("{}/{generation}", cluster.uid().unwrap_or_default())
    }

    /// What was seen of a registration a short while ago, if it lacked nothing.
    fn remembered(&self, cluster: &DeviceCluster) -> Option<Observed> {
        let complete = self.complete.lock().unwrap_or_else(PoisonError::into_inner);
        let (when, seen) = complete.get(&Self::key(cluster))?;
        (when.elapsed() < self.memory).then(|| seen.clone())
    }

    /// Remembers what was seen where nothing had to be done, and forgets it otherwise.
    fn remember(&self, cluster: &DeviceCluster, seen: &Observed, complete: bool) {
        let mut all = self.complete.lock().unwrap_or_else(PoisonError::into_inner);
        if complete {
            all.entry(Self::key(cluster))
                .or_insert_with(|| (Instant::now(), seen.clone()));
        } else {
            all.remove(&Self::key(cluster));
        }
        all.retain(|_, (when, _)| when.elapsed() < self.memory);
    }
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("the API server refused or did not answer")]
    Api(#[from] kube::Error),
    /// A token request was answered without a token.
    #[error("the API server gave no token for the agent's account")]
    NoToken,
    /// A plan asked for an object that cannot be built.
    #[error("a step was planned that lacks what it needs")]
    Unplanned,
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Api(error) => class_of(error),
            Self::NoToken => Class::Transient,
            Self::Unplanned => Class::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => reason_of(error),
            Self::NoToken => "NoToken",
            Self::Unplanned => "Unplanned",
        }
    }
}

/// The controller, running until the context's switch is thrown.
pub fn start(ctx: &Context<HubConfig>) -> Controllers {
    let (leases, writer) = store::<Lease>();
    let beats = watch(
        Api::<Lease>::all(ctx.client.clone()),
        watcher::Config::default().labels(names::LABEL_CLUSTER),
    );
    let beats = news(beats.reflect(writer).touched_objects(), "Lease", &ctx.metrics);
    let clusters = controller(
        ctx,
        "DeviceCluster",
        Api::<DeviceCluster>::all(ctx.client.clone()),
        watcher::Config::default(),
    )
    .watches_stream(beats, cluster_of);
    let resync = ctx.config.common.resync.get();
    // Before the cache is filled, an old beat would look like a new one.
    let filled = filled(&leases);
    let heartbeat = move |cluster: &str| {
        let lease = ObjectRef::new(names::LEASE_HEARTBEAT).within(&names::cluster_namespace(cluster));
        let (leases, filled) = (leases.clone(), filled.clone());
        async move { if filled.await { leases.get(&lease) } else { None } }.boxed()
    };
    let state = Arc::new(State::new(resync, Box::new(heartbeat)));
    let options = Options {
        kind: "DeviceCluster",
        concurrency: CONCURRENCY,
        resync,
        phase: |cluster: &DeviceCluster| {
            let status = cluster.status.as_ref();
            let ready = status.and_then(|s| get(&s.conditions, READY));
            ready.map_or_else(|| "Pending".into(), |ready| ready.reason.clone())
        },
    };
    run(ctx.clone(), options, clusters, move |cluster, ctx| {
        let state = state.clone();
        async move { reconcile(&cluster, &ctx, &state).await }
    })
    .boxed()
}

#[allow(clippy::needless_pass_by_value, reason = "the signature that kube asks for")]
fn cluster_of(lease: Lease) -> Option<ObjectRef<DeviceCluster>> {
    Some(ObjectRef::new(lease.labels().get(names::LABEL_CLUSTER)?))
}

/// One pass: observe, validate, plan, build and apply, status.
pub async fn reconcile(cached: &DeviceCluster, ctx: &Context<HubConfig>, state: &State) -> Result<Wake, Error> {
    let now = ctx.clock.now();
    let mut cluster = cached.clone();
    let seen = observe::observe(ctx, state, &cluster).await?;
    let prev = cluster.status.clone().unwrap_or_default();
    let (want, plan) = if cluster.metadata.deletion_timestamp.is_some() {
        (None, plan::cleanup(&seen))
    } else {
        match validate::validate(&cluster, &ctx.config, &ctx.namespace) {
            Ok(want) => {
                let plan = plan::plan(&want, &seen, &prev, now);
                (Some(want), plan)
            }
            Err(invalid) => (None, plan::refused(&invalid)),
        }
    };
    state.remember(&cluster, &seen, want.is_some() && plan.steps.is_empty());
    apply::apply(ctx, &mut cluster, want.as_ref(), &plan.steps, now).await?;
    if plan.stage == plan::Stage::Deregistered {
        state.beats.forget(&cluster.name_any());
        return Ok(plan.wake);
    }
    let next = status::status(&cluster, &seen, &plan, now);
    if next != prev {
        apply::write_status(ctx, &cluster, &next).await?;
        if let Some((warning, reason, note)) = status::transition(&prev, &next) {
            if warning {
                ctx.events.warning(&cluster, &reason, "Register", note).await;
            } else {
                ctx.events.normal(&cluster, &reason, "Register", note).await;
            }
        }
    }
    Ok(plan.wake)
}

#[cfg(test)]
mod tests;
