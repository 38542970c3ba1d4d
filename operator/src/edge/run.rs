//! The loop of one device cluster, for Pull and Push alike: watch both clusters, and after a change or a deadline look,
//! plan and write. At most one pass a second, at most one report on a placement every two.

use super::apply::{Applier, Error, call};
use super::heartbeat::{self, Answered};
use super::metrics::EdgeMetrics;
use super::observe::{Observed, node_views};
use super::plan::{Step, plan};
use super::validate::{Settings, validate};
use crate::runtime::clock::{between, jitter};
use crate::runtime::controller::Kind;
use crate::runtime::error::{Class, Classify, chain};
use crate::runtime::events::Events;
use crate::runtime::{self, Clock, Shutdown, backoff};
use fleetune_crds::{EdgeNode, ModelPlacement, names};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, ObjectMeta};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Shortest time between two passes.
const FLOOR: Duration = Duration::from_secs(1);
/// Shortest time between two reports on one placement.
const REPORT: Duration = Duration::from_secs(2);

/// What one cluster's edge controller is given.
#[derive(Clone)]
pub struct EdgeContext {
    /// Name of the DeviceCluster.
    pub cluster: String,
    /// Client of the hub, with rights in the cluster's namespace only.
    pub hub: Client,
    /// Client of the device cluster.
    pub device: Client,
    /// Namespace on the device cluster that holds the Lease of the writer.
    pub device_namespace: String,
    /// Name of this process among those that may write.
    pub identity: String,
    /// Namespace of the node runtime.
    pub node_namespace: String,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Longest time between two passes.
    pub resync: Duration,
    /// Times that decisions rest on.
    pub settings: Settings,
    /// The wall clock.
    pub clock: Clock,
    /// Events in the device cluster.
    pub events: Events,
    /// Series.
    pub metrics: Arc<EdgeMetrics>,
    /// Ends the loop.
    pub shutdown: Shutdown,
}

/// Runs until the switch is thrown. The caller holds the Lease of the writer.
pub async fn run(ctx: EdgeContext) {
    let changed = Arc::new(Notify::new());
    let answered = Answered::default();
    let hub_namespace = names::cluster_namespace(&ctx.cluster);
    let runtime = watcher::Config::default().labels("app.kubernetes.io/name=fleetune-node");
    let all = watcher::Config::default;
    let (placements, from_hub) = watch(
        Api::<ModelPlacement>::namespaced(ctx.hub.clone(), &hub_namespace),
        all(),
        &changed,
    );
    let (nodes, from_nodes) = watch(Api::<Node>::all(ctx.device.clone()), all(), &changed);
    let (pods, from_pods) = watch(
        Api::<Pod>::namespaced(ctx.device.clone(), &ctx.node_namespace),
        runtime,
        &changed,
    );
    let (edge_nodes, from_edge_nodes) = watch(Api::<EdgeNode>::all(ctx.device.clone()), all(), &changed);
    let caches = Caches {
        placements,
        nodes,
        pods,
        edge_nodes,
    };
    let watches = async { tokio::join!(from_hub, from_nodes, from_pods, from_edge_nodes) };
    tracing::info!(cluster = ctx.cluster, "edge controller started");
    tokio::select! {
        () = ctx.shutdown.wait() => {}
        _ = watches => {}
        () = heartbeat::beat(&ctx, &answered, &changed) => {}
        () = passes(&ctx, &caches, &answered, &changed) => {}
    }
    ctx.metrics.forget(&ctx.cluster);
    tracing::info!(cluster = ctx.cluster, "edge controller stopped");
}

struct Caches {
    placements: Store<ModelPlacement>,
    nodes: Store<Node>,
    pods: Store<Pod>,
    /// Only wakes; EdgeNodes are listed before they are written.
    edge_nodes: Store<EdgeNode>,
}

/// A cache that keeps what it last knew while its server is away, and the future that fills it.
fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    changed: &Arc<Notify>,
) -> (Store<K>, impl Future<Output = ()> + use<K>)
where
    K: Kind,
{
    let (reader, writer) = reflector::store();
    let changed = changed.clone();
    let filled = runtime::watch::watch(api, config)
        .reflect(writer)
        .for_each(move |event| {
            if !matches!(event, Ok(watcher::Event::InitApply(_))) {
                changed.notify_one();
            }
            if let Err(error) = event {
                tracing::debug!(kind = %K::kind(&()), error = chain(&error), "watch error");
            }
            futures::future::ready(())
        });
    (reader, filled)
}

async fn passes(ctx: &EdgeContext, caches: &Caches, answered: &Answered, changed: &Notify) {
    let device = [
        caches.nodes.wait_until_ready().await.is_ok(),
        caches.pods.wait_until_ready().await.is_ok(),
        caches.edge_nodes.wait_until_ready().await.is_ok(),
    ];
    if device.contains(&false) {
        return;
    }
    let mut memory = Memory {
        started: Instant::now(),
        reported: HashMap::new(),
        hub_away: false,
    };
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let wake = match pass(ctx, caches, answered, &mut memory).await {
            Ok(wake) => {
                failures = 0;
                wake
            }
            Err(error) if error.class() == Class::Conflict => {
                tracing::debug!(cluster = ctx.cluster, error = chain(&error), "lost a race");
                FLOOR
            }
            Err(error) => {
                let delay = backoff::delay(failures).min(Duration::from_secs(30));
                failures += 1;
                tracing::warn!(
                    cluster = ctx.cluster,
                    reason = error.reason(),
                    error = chain(&error),
                    "trying again"
                );
                delay
            }
        };
        tokio::time::sleep_until(started + FLOOR).await;
        tokio::select! {
            () = changed.notified(), if failures == 0 => {}
            () = tokio::time::sleep(wake.saturating_sub(FLOOR)) => {}
        }
    }
}

struct Memory {
    started: Instant,
    /// When each placement was last reported on.
    reported: HashMap<String, Instant>,
    hub_away: bool,
}

/// One pass: look, plan, write. Returns when to look again at the latest.
async fn pass(ctx: &EdgeContext, caches: &Caches, answered: &Answered, memory: &mut Memory) -> Result<Duration, Error> {
    // Placements before EdgeNodes: an order that is newer than what is read here finds its match at the next pass.
    let clone = |objects: Vec<Arc<ModelPlacement>>| objects.iter().map(|o| (**o).clone()).collect::<Vec<_>>();
    let placements = clone(caches.placements.state());
    let nodes: Vec<Node> = caches.nodes.state().iter().map(|n| (**n).clone()).collect();
    let pods: Vec<Pod> = caches.pods.state().iter().map(|p| (**p).clone()).collect();
    let api: Api<EdgeNode> = Api::all(ctx.device.clone());
    let params = ListParams::default();
    let listed = call(&ctx.metrics, "list", "listing EdgeNodes", api.list(&params)).await?;
    let seen = Observed {
        nodes: node_views(&nodes, &pods),
        edge_nodes: listed.into_iter().map(|n| (n.name_any(), n)).collect(),
        hub_answered_at: answered.at(),
        placements,
    };
    let now = ctx.clock.now();
    let plan = plan(&validate(&seen.placements), &ctx.settings, &seen, now);
    ctx.metrics.show(&ctx.cluster, plan.hub_away, plan.orphaned);
    // A process that has just started has not asked yet.
    let asked = seen.hub_answered_at.is_some() || memory.started.elapsed() >= ctx.settings.activation_ttl;
    note_hub(ctx, memory, plan.hub_away && asked).await;
    let applier = Applier {
        device: &ctx.device,
        hub: &ctx.hub,
        cluster: &ctx.cluster,
        edge_nodes: &seen.edge_nodes,
        metrics: &ctx.metrics,
    };
    applier.nodes(&plan.steps).await?;
    let mut wake = plan.wake_at.map_or(ctx.resync, |at| between(now, at));
    for step in &plan.steps {
        let Step::Report { placement, status } = step else {
            continue;
        };
        let due = memory.reported.get(placement).map(|last| *last + REPORT);
        if let Some(rest) = due.and_then(|due| due.checked_duration_since(Instant::now())) {
            wake = wake.min(rest);
            continue;
        }
        memory.reported.insert(placement.clone(), Instant::now());
        applier.report(placement, status).await?;
    }
    memory
        .reported
        .retain(|name, _| seen.placements.iter().any(|p| p.name_any() == *name));
    Ok(wake.max(FLOOR).min(jitter(ctx.resync, 0.2)))
}

/// Says on the device's side that the hub went away or came back, once each time.
async fn note_hub(ctx: &EdgeContext, memory: &mut Memory, hub_away: bool) {
    if hub_away == memory.hub_away {
        return;
    }
    memory.hub_away = hub_away;
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(names::LEASE_EDGE.to_owned()),
            namespace: Some(ctx.device_namespace.clone()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    };
    if hub_away {
        tracing::warn!(
            cluster = ctx.cluster,
            "Orphaned: the hub does not answer; nodes serve on, nothing new is activated"
        );
        let note = "the hub does not answer: nodes serve on, nothing new is activated".to_owned();
        ctx.events.warning(&lease, "Orphaned", "Place", note).await;
    } else {
        tracing::info!(cluster = ctx.cluster, "the hub answers");
        let note = "the hub answers: activation is permitted".to_owned();
        ctx.events.normal(&lease, "HubAnswers", "Place", note).await;
    }
}
