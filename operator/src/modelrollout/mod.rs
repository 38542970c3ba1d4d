//! The ModelRollout controller: allots the fleet to waves and writes one placement per device cluster, as counts. It
//! never names a node.

pub mod apply;
pub mod build;
pub mod deletion;
pub mod heartbeat;
pub mod metrics;
pub mod observe;
pub mod place;
pub mod plan;
pub mod run;
pub mod status;
pub mod validate;
pub mod waves;

use crate::config::HubConfig;
use crate::process::Controllers;
use crate::runtime::controller::{Options, controller, related, run as run_controller};
use crate::runtime::{Context, Wake};
use apply::{Applier, Error, at};
use fleetune_crds::conditions::{self, READY, STALLED, Wanted};
use fleetune_crds::{DeviceCluster, ModelPlacement, ModelRollout, ModelVersion, RolloutAction, names};
use futures::FutureExt;
use heartbeat::Heartbeats;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::ListParams;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use std::sync::Arc;

/// Rollouts that are reconciled at the same time.
const CONCURRENCY: u16 = 8;

/// What this controller keeps in memory; losing it costs nothing but time.
pub struct State {
    /// When each device cluster was last heard.
    pub hearts: Heartbeats,
    /// Series of rollouts.
    pub metrics: metrics::RolloutMetrics,
}

impl State {
    /// Nothing heard yet.
    ///
    /// # Errors
    /// When a series cannot be registered.
    pub fn new(ctx: &Context<HubConfig>) -> anyhow::Result<Self> {
        Ok(Self {
            hearts: Heartbeats::new(ctx.config.common.heartbeat.unreachable_after.get()),
            metrics: metrics::RolloutMetrics::new(&ctx.metrics.registry)?,
        })
    }
}

/// The controller, running until the context's switch is thrown.
///
/// # Errors
/// When its series cannot be made.
pub fn start(ctx: &Context<HubConfig>) -> anyhow::Result<Controllers> {
    let state = Arc::new(State::new(ctx)?);
    let client = || ctx.client.clone();
    let all = watcher::Config::default;
    let rollouts = controller(ctx, "ModelRollout", Api::<ModelRollout>::all(client()), all());
    let store = rollouts.store();
    let (by_placement, by_version, by_cluster, by_lease) = (store.clone(), store.clone(), store.clone(), store);
    let (beating, clock) = (state.clone(), ctx.clock.clone());
    let hearts = all().fields(&heartbeat_field());
    let rollouts = rollouts
        .watches_stream(
            related(ctx, "ModelPlacement", Api::<ModelPlacement>::all(client()), all()),
            move |p: ModelPlacement| of_model(&by_placement, &p.spec.namespace, &p.spec.model_name),
        )
        .watches_stream(
            related(ctx, "ModelVersion", Api::<ModelVersion>::all(client()), all()),
            move |v: ModelVersion| of_model(&by_version, &v.namespace().unwrap_or_default(), &v.spec.model_name),
        )
        .watches_stream(
            related(ctx, "RolloutAction", Api::<RolloutAction>::all(client()), all()),
            |a: RolloutAction| Some(ObjectRef::new(&a.spec.rollout).within(&a.namespace().unwrap_or_default())),
        )
        .watches_stream(
            related(ctx, "DeviceCluster", Api::<DeviceCluster>::all(client()), all()),
            move |_: DeviceCluster| every(&by_cluster),
        )
        // Heartbeats are noted as they come; only a cluster that comes back wakes its rollouts.
        .watches_stream(
            related(ctx, "Lease", Api::<Lease>::all(client()), hearts),
            move |lease: Lease| {
                let back = beating.hearts.note(&lease, clock.now());
                if back { every(&by_lease) } else { Vec::new() }
            },
        );
    let options = Options {
        kind: "ModelRollout",
        concurrency: CONCURRENCY,
        resync: ctx.config.common.resync.get(),
        phase: |rollout: &ModelRollout| {
            let phase = rollout.status.as_ref().and_then(|s| s.phase.clone());
            phase.unwrap_or_else(|| "Pending".into())
        },
    };
    Ok(run_controller(ctx.clone(), options, rollouts, move |rollout, ctx| {
        let state = state.clone();
        async move { reconcile(&rollout, &ctx, &state).await }
    })
    .boxed())
}

/// Selects the heartbeats among all Leases.
fn heartbeat_field() -> String {
    format!("metadata.name={}", names::LEASE_HEARTBEAT)
}

fn of_model(store: &Store<ModelRollout>, namespace: &str, model: &str) -> Vec<ObjectRef<ModelRollout>> {
    let all = store.state();
    all.iter()
        .filter(|r| r.spec.model_name == model && r.namespace().as_deref() == Some(namespace))
        .map(|r| ObjectRef::from_obj(&**r))
        .collect()
}

fn every(store: &Store<ModelRollout>) -> Vec<ObjectRef<ModelRollout>> {
    store.state().iter().map(|r| ObjectRef::from_obj(&**r)).collect()
}

/// One pass: observe, validate, plan, apply; events and metrics after the writes.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn reconcile(cached: &ModelRollout, ctx: &Context<HubConfig>, state: &State) -> Result<Wake, Error> {
    let now = ctx.clock.now();
    let (namespace, name) = (cached.namespace().unwrap_or_default(), cached.name_any());
    let api: Api<ModelRollout> = Api::namespaced(ctx.client.clone(), &namespace);
    let Some(mut rollout) = api.get_opt(&name).await.map_err(at("reading the rollout"))? else {
        state.metrics.forget(&namespace, &name);
        return Ok(Wake::Resync);
    };
    let prev = rollout.status.clone().unwrap_or_default();
    let want = match validate::validate(&rollout) {
        Ok(want) => want,
        Err(invalid) => {
            let generation = rollout.metadata.generation.unwrap_or(0);
            let wanted = [
                Wanted::new(READY, Some(false), invalid.reason(), invalid.to_string()),
                Wanted::new(STALLED, Some(true), invalid.reason(), invalid.to_string()),
            ];
            let mut next = prev.clone();
            next.observed_generation = Some(generation);
            next.phase = Some("Stalled".into());
            next.conditions = conditions::replace(&prev.conditions, &wanted, generation, now);
            if rollout.status.as_ref() != Some(&next) {
                apply::write_status(&ctx.client, &mut rollout, &next).await?;
            }
            return Ok(Wake::Resync);
        }
    };
    let seen = observe(&ctx.client, &want, state, now).await?;
    let plan = plan::plan(&want, &seen, &prev, now);
    let applier = Applier {
        client: &ctx.client,
        want: &want,
        seen: &seen,
        now,
    };
    let outcome = applier.apply(&mut rollout, &plan).await;
    // The status is written first: what it tells has happened, whatever became of the steps.
    if rollout.status.as_ref() == Some(&plan.status) {
        publish(ctx, &rollout, &prev, &plan).await;
        state.metrics.show(&namespace, &name, &plan.status);
    }
    outcome?;
    let wake = plan.wake.after(now);
    Ok(wake.map_or(Wake::Resync, Wake::After))
}

async fn publish(
    ctx: &Context<HubConfig>,
    rollout: &ModelRollout,
    prev: &fleetune_crds::ModelRolloutStatus,
    plan: &plan::Plan,
) {
    for event in status::events(prev, &plan.status) {
        if event.warning {
            ctx.events.warning(rollout, event.reason, "RollOut", event.note).await;
        } else {
            ctx.events.normal(rollout, event.reason, "RollOut", event.note).await;
        }
    }
    for step in &plan.steps {
        match step {
            plan::Step::Answer {
                action,
                taken: false,
                message,
            } => {
                let note = format!("RolloutAction {action} {message}");
                let related = ObjectReference {
                    api_version: Some(RolloutAction::api_version(&()).into_owned()),
                    kind: Some(RolloutAction::kind(&()).into_owned()),
                    name: Some(action.clone()),
                    namespace: rollout.namespace(),
                    ..ObjectReference::default()
                };
                ctx.events
                    .warning_of(rollout, related, "ActionIgnored", "RollOut", note)
                    .await;
            }
            plan::Step::RemoveFinalizer { left: Some(left) } => {
                let note = format!("nodes did not answer within an hour and may still serve the model: {left}");
                ctx.events.warning(rollout, "RemovalIncomplete", "Delete", note).await;
            }
            _ => {}
        }
    }
}

/// Reads everything that a plan rests on, from the API server, not from a cache: a placement that is written is written
/// with the resourceVersion of this reading.
async fn observe(
    client: &Client,
    want: &validate::Validated,
    state: &State,
    now: k8s_openapi::jiff::Timestamp,
) -> Result<observe::Observed, Error> {
    let all = ListParams::default();
    let namespaced = |what: &'static str| at(format!("reading {what} in {}", want.namespace));
    let of_model = all.clone().fields(&format!("spec.modelName={}", want.model));
    let placed = all.clone().labels(&format!(
        "{}={},{}={}",
        names::LABEL_NAMESPACE,
        want.namespace,
        names::LABEL_MODEL,
        want.model
    ));
    let versions: Api<ModelVersion> = Api::namespaced(client.clone(), &want.namespace);
    let actions: Api<RolloutAction> = Api::namespaced(client.clone(), &want.namespace);
    let rollouts: Api<ModelRollout> = Api::namespaced(client.clone(), &want.namespace);
    let clusters: Api<DeviceCluster> = Api::all(client.clone());
    let placements: Api<ModelPlacement> = Api::all(client.clone());
    let leases: Api<Lease> = Api::all(client.clone());
    // Hearts are read too: while the watch of the Leases is away, nobody is to be called unreachable for it.
    let beats = all.clone().fields(&heartbeat_field());
    for lease in leases.list(&beats).await.map_err(at("reading heartbeats"))? {
        state.hearts.note(&lease, now);
    }
    // Rollouts last: a placement's owner that is not among them does not exist.
    let versions = versions.list(&of_model).await.map_err(namespaced("versions"))?;
    let actions = actions.list(&all).await.map_err(namespaced("actions"))?;
    let clusters = clusters.list(&all).await.map_err(at("reading device clusters"))?;
    let placements = placements.list(&placed).await.map_err(at("reading placements"))?;
    let rollouts = rollouts.list(&all).await.map_err(namespaced("rollouts"))?;
    Ok(observe::Observed {
        versions: observe::versions(want, versions),
        actions: observe::actions(want, actions),
        clusters: observe::clusters(want, clusters, placements, |cluster| {
            state.hearts.reachable_until(cluster, now)
        }),
        rollouts: rollouts
            .iter()
            .filter_map(|r| Some((r.meta().uid.clone()?, r.name_any())))
            .collect(),
    })
}

#[cfg(test)]
mod tests;
