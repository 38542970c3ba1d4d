//! Push: the hub runs one edge controller for each DeviceCluster of that mode, with a client from its kubeconfig Secret.

use super::kubeconfig::{self, KubeconfigError};
use super::metrics::EdgeMetrics;
use super::run::{EdgeContext, run};
use super::validate::Settings;
use crate::config::{Common, HubConfig};
use crate::process::Controllers;
use crate::runtime::clock::jitter;
use crate::runtime::error::chain;
use crate::runtime::events::Events;
use crate::runtime::lease::Elector;
use crate::runtime::watch::{news, watch};
use crate::runtime::{Context, Shutdown};
use fleetune_crds::{DeviceCluster, Mode, names};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How often Secrets are read again, for kubeconfigs that were renewed.
const PERIOD: Duration = Duration::from_secs(30);

/// What an edge controller takes from the common configuration.
pub fn settings(common: &Common) -> Settings {
    Settings {
        activation_ttl: common.activation_ttl.get(),
        ..Settings::default()
    }
}

struct Running {
    secret_version: String,
    stop: Shutdown,
    task: JoinHandle<()>,
}

/// All Push clusters, running until the context's switch is thrown.
///
/// # Errors
/// When the series cannot be made.
pub fn start(ctx: &Context<HubConfig>) -> anyhow::Result<Controllers> {
    let metrics = Arc::new(EdgeMetrics::new(&ctx.metrics.registry)?);
    let ctx = ctx.clone();
    Ok(async move {
        let api: Api<DeviceCluster> = Api::all(ctx.client.clone());
        let changes = watch(api, watcher::Config::default()).touched_objects();
        let changes = news(changes, "DeviceCluster", &ctx.metrics);
        let mut changes = std::pin::pin!(changes);
        let mut running: HashMap<String, Running> = HashMap::new();
        loop {
            if let Err(error) = follow(&ctx, &metrics, &mut running).await {
                tracing::warn!(error = chain(&error), "device clusters could not be read");
            }
            tokio::select! {
                () = ctx.shutdown.wait() => break,
                _ = changes.next() => tokio::time::sleep(Duration::from_secs(1)).await,
                () = tokio::time::sleep(jitter(PERIOD, 0.2)) => {}
            }
        }
        for (_, one) in running {
            stop(one).await;
        }
    }
    .boxed())
}

impl Drop for Running {
    /// Whoever drops the pool has lost the right to write: no edge controller outlives it.
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn stop(mut one: Running) {
    one.stop.trigger();
    if let Err(error) = (&mut one.task).await {
        tracing::error!(%error, "an edge controller failed");
    }
}

/// Starts what is new, stops what is gone, restarts what has another kubeconfig.
async fn follow(
    ctx: &Context<HubConfig>,
    metrics: &Arc<EdgeMetrics>,
    running: &mut HashMap<String, Running>,
) -> Result<(), kube::Error> {
    let clusters: Api<DeviceCluster> = Api::all(ctx.client.clone());
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &ctx.namespace);
    let mut wanted: HashMap<String, Secret> = HashMap::new();
    for cluster in clusters.list(&ListParams::default()).await? {
        let push = cluster.spec.mode == Mode::Push && cluster.metadata.deletion_timestamp.is_none();
        let Some(name) = cluster.spec.kubeconfig_secret.clone().filter(|_| push) else {
            continue;
        };
        let Some(secret) = secrets.get_opt(&name).await? else {
            tracing::warn!(
                cluster = cluster.name_any(),
                secret = name,
                "the kubeconfig Secret does not exist"
            );
            continue;
        };
        wanted.insert(cluster.name_any(), secret);
    }
    let gone: Vec<String> = running
        .iter()
        .filter(|(name, one)| {
            let version = wanted.get(*name).and_then(ResourceExt::resource_version);
            version.as_deref() != Some(&one.secret_version) || one.task.is_finished()
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in gone {
        if let Some(one) = running.remove(&name) {
            stop(one).await;
        }
    }
    for (name, secret) in wanted {
        if running.contains_key(&name) {
            continue;
        }
        let secret_version = secret.resource_version().unwrap_or_default();
        match edge_context(ctx, metrics, &name, &secret).await {
            Ok(edge) => {
                let stop = edge.shutdown.clone();
                let timing = ctx.config.common.lease.timing();
                let task = tokio::spawn(elected(edge, timing));
                running.insert(
                    name,
                    Running {
                        secret_version,
                        stop,
                        task,
                    },
                );
            }
            // The DeviceCluster's status says it to people.
            Err(error) => tracing::warn!(cluster = name, %error, "the cluster cannot be reached by its kubeconfig"),
        }
    }
    Ok(())
}

async fn edge_context(
    ctx: &Context<HubConfig>,
    metrics: &Arc<EdgeMetrics>,
    cluster: &str,
    secret: &Secret,
) -> Result<EdgeContext, KubeconfigError> {
    let (device, namespace) = kubeconfig::client(kubeconfig::of_secret(secret)?).await?;
    // The context's namespace is where the device cluster keeps the Lease; without one, the same name as here.
    let device_namespace = if namespace == "default" {
        ctx.namespace.to_string()
    } else {
        namespace
    };
    let common = &ctx.config.common;
    Ok(EdgeContext {
        cluster: cluster.to_owned(),
        hub: ctx.client.clone(),
        events: Events::new(device.clone(), "fleetune-edge", &ctx.pod),
        device,
        device_namespace,
        identity: format!("hub-{}", ctx.pod),
        node_namespace: common.node_namespace.clone(),
        heartbeat: common.heartbeat.interval.get(),
        resync: common.resync.get(),
        settings: settings(common),
        clock: ctx.clock.clone(),
        metrics: metrics.clone(),
        shutdown: Shutdown::default(),
    })
}

/// Runs one edge controller while this process holds the device cluster's Lease.
async fn elected(ctx: EdgeContext, timing: crate::runtime::lease::Timing) {
    let mut elector = Elector::new(
        ctx.device.clone(),
        &ctx.device_namespace,
        names::LEASE_EDGE,
        &ctx.identity,
        timing,
        ctx.clock.clone(),
    );
    while elector.acquire(&ctx.shutdown).await {
        let lost = tokio::select! {
            () = run(ctx.clone()) => None,
            lost = elector.keep() => Some(lost),
        };
        let Some(lost) = lost else {
            elector.vacate().await;
            return;
        };
        tracing::warn!(cluster = ctx.cluster, %lost, "another edge controller writes");
    }
}
