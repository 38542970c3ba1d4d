//! The ModelPlacement controller: turns the placements of one device cluster into EdgeNodes and reports counts. The
//! same code runs in the device cluster (Pull) and in the hub (Push).

pub mod apply;
pub mod heartbeat;
pub mod kubeconfig;
pub mod metrics;
pub mod observe;
pub mod pick;
pub mod plan;
pub mod pool;
pub mod renew;
pub mod run;
pub mod standing;
pub mod status;
pub mod validate;

use crate::config::EdgeConfig;
use crate::process::Controllers;
use crate::runtime::clock::jitter;
use crate::runtime::{Context, Shutdown};
use futures::FutureExt;
use metrics::EdgeMetrics;
use run::EdgeContext;
use std::sync::Arc;
use std::time::Duration;

/// How often the hub's kubeconfig is read again: its token is renewed while this process runs.
const KUBECONFIG_PERIOD: Duration = Duration::from_mins(1);

/// `fleetune-operator edge`: the controller of the cluster that this process runs in, until the context's switch is
/// thrown. The process holds the cluster's Lease.
///
/// # Errors
/// When the series cannot be made.
pub fn start(ctx: &Context<EdgeConfig>) -> anyhow::Result<Controllers> {
    let metrics = Arc::new(EdgeMetrics::new(&ctx.metrics.registry)?);
    let ctx = ctx.clone();
    Ok(async move {
        let gate = ctx.health.gate("hub kubeconfig");
        let mut wait = Duration::from_secs(1);
        while !ctx.shutdown.is_triggered() {
            let path = &ctx.config.hub_kubeconfig;
            let found = match kubeconfig::read(path).await {
                Ok(text) => kubeconfig::client(&text).await.map(|(client, _)| (text, client)),
                Err(error) => Err(error),
            };
            match found {
                Ok((text, hub)) => {
                    gate.open();
                    wait = Duration::from_secs(1);
                    Box::pin(with_hub(&ctx, &metrics, &text, hub)).await;
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the hub cannot be reached; nodes serve on");
                    tokio::select! {
                        () = ctx.shutdown.wait() => {}
                        () = tokio::time::sleep(jitter(wait, 0.2)) => wait = (wait * 2).min(KUBECONFIG_PERIOD),
                    }
                }
            }
        }
    }
    .boxed())
}

/// Runs until the switch is thrown or the kubeconfig has changed.
async fn with_hub(ctx: &Context<EdgeConfig>, metrics: &Arc<EdgeMetrics>, text: &str, hub: kube::Client) {
    let common = &ctx.config.common;
    let stop = Shutdown::default();
    let edge = EdgeContext {
        cluster: ctx.config.cluster.clone(),
        hub,
        device: ctx.client.clone(),
        device_namespace: ctx.namespace.to_string(),
        identity: ctx.pod.to_string(),
        node_namespace: common.node_namespace.clone(),
        heartbeat: common.heartbeat.interval.get(),
        resync: common.resync.get(),
        settings: pool::settings(common),
        clock: ctx.clock.clone(),
        events: ctx.events.clone(),
        metrics: metrics.clone(),
        shutdown: stop.clone(),
    };
    let renewal = renew::Renewal {
        cluster: ctx.config.cluster.clone(),
        hub: edge.hub.clone(),
        device: ctx.client.clone(),
        namespace: ctx.namespace.to_string(),
        secret: ctx.config.hub_kubeconfig_secret.clone().unwrap_or_default(),
    };
    let tokens = async {
        if !renewal.secret.is_empty() {
            renewal.keep(metrics, &stop).await;
        }
    };
    let changed = async {
        loop {
            tokio::time::sleep(jitter(KUBECONFIG_PERIOD, 0.2)).await;
            if kubeconfig::read(&ctx.config.hub_kubeconfig)
                .await
                .is_ok_and(|now| now != text)
            {
                tracing::info!("the hub's kubeconfig has changed");
                return;
            }
        }
    };
    let switch = async {
        tokio::select! {
            () = ctx.shutdown.wait() => {}
            () = changed => {}
        }
        stop.trigger();
    };
    tokio::join!(run::run(edge), switch, tokens);
}

#[cfg(test)]
mod tests;
