//! Push: the hub runs one edge controller for each DeviceCluster of that mode, with a client from its kubeconfig Secret.
//! A kubeconfig comes from outside: one that would run a program or read a file here is refused.

use super::metrics::EdgeMetrics;
use super::run::{EdgeContext, run};
use super::validate::Settings;
use crate::config::{Common, HubConfig};
use crate::process::Controllers;
use crate::runtime::clock::jitter;
use crate::runtime::error::chain;
use crate::runtime::events::Events;
use crate::runtime::lease::Elector;
use crate::runtime::{Context, Shutdown};
use fleetune_crds::{DeviceCluster, Mode, names};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config, ResourceExt};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How often Secrets are read again, for kubeconfigs that were renewed.
const PERIOD: Duration = Duration::from_secs(30);
/// Most bytes of a kubeconfig.
const MAX_KUBECONFIG: usize = 1 << 20;

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// It could not be read.
    #[error("the kubeconfig cannot be read: {0}")]
    Read(String),
    /// It asks for what is refused.
    #[error("the kubeconfig uses {0}, which is refused: put certificates and token into it as data")]
    Refused(&'static str),
    /// No client can be made of it.
    #[error("no client can be made of the kubeconfig: {0}")]
    Client(String),
}

/// A client from the text of a kubeconfig, and the namespace of its context.
///
/// # Errors
/// When it cannot be read, or would run a program or read a file.
pub async fn client(text: &str) -> Result<(Client, String), KubeconfigError> {
    if text.len() > MAX_KUBECONFIG {
        return Err(KubeconfigError::Refused("more than 1 MiB"));
    }
    let kubeconfig = Kubeconfig::from_yaml(text).map_err(|e| KubeconfigError::Read(e.to_string()))?;
    refuse(&kubeconfig)?;
    let failed = |error: &dyn std::error::Error| KubeconfigError::Client(chain(error));
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let mut config = config.map_err(|e| failed(&e))?;
    // Calls are bounded and tried again by the loop that makes them; a retry below it would hide minutes.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.write_timeout = Some(super::apply::CALL);
    let namespace = config.default_namespace.clone();
    Ok((Client::try_from(config).map_err(|e| failed(&e))?, namespace))
}

fn refuse(kubeconfig: &Kubeconfig) -> Result<(), KubeconfigError> {
    for auth in kubeconfig.auth_infos.iter().filter_map(|a| a.auth_info.as_ref()) {
        let refused = [
            (auth.exec.is_some(), "an exec plugin"),
            (auth.auth_provider.is_some(), "an auth provider"),
            (auth.token_file.is_some(), "a token file"),
            (auth.client_certificate.is_some(), "a client certificate file"),
            (auth.client_key.is_some(), "a client key file"),
        ];
        if let Some((_, what)) = refused.iter().find(|(is, _)| *is) {
            return Err(KubeconfigError::Refused(what));
        }
    }
    let mut clusters = kubeconfig.clusters.iter().filter_map(|c| c.cluster.as_ref());
    if clusters.any(|c| c.certificate_authority.is_some()) {
        return Err(KubeconfigError::Refused("a certificate authority file"));
    }
    Ok(())
}

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
        let changes = watcher(api, watcher::Config::default())
            .default_backoff()
            .touched_objects()
            .filter_map(|event| futures::future::ready(event.ok().map(|_| ())));
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
    let mut wanted: HashMap<String, (DeviceCluster, Secret)> = HashMap::new();
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
        wanted.insert(cluster.name_any(), (cluster, secret));
    }
    let gone: Vec<String> = running
        .iter()
        .filter(|(name, one)| {
            let version = wanted.get(*name).and_then(|(_, secret)| secret.resource_version());
            version.as_deref() != Some(&one.secret_version) || one.task.is_finished()
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in gone {
        if let Some(one) = running.remove(&name) {
            stop(one).await;
        }
    }
    for (name, (cluster, secret)) in wanted {
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
            Err(error) => {
                tracing::warn!(cluster = name, %error, "the cluster cannot be reached by its kubeconfig");
                let note = format!("Secret {}: {error}", secret.name_any());
                ctx.events.warning(&cluster, "KubeconfigRefused", "Connect", note).await;
            }
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
    let data = secret.data.as_ref().and_then(|d| d.get("kubeconfig"));
    let data = data.ok_or(KubeconfigError::Read("the Secret has no key `kubeconfig`".into()))?;
    let text = std::str::from_utf8(&data.0).map_err(|e| KubeconfigError::Read(e.to_string()))?;
    let (device, namespace) = client(text).await?;
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

/// The text of a kubeconfig file.
///
/// # Errors
/// When it cannot be read.
pub async fn read(path: &Path) -> Result<String, KubeconfigError> {
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|error| KubeconfigError::Read(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(user: &str, cluster: &str) -> Kubeconfig {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://10.0.0.1:6443'{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        );
        Kubeconfig::from_yaml(&text).unwrap()
    }

    #[test]
    fn a_kubeconfig_that_runs_or_reads_something_here_is_refused() {
        assert!(refuse(&kubeconfig("token: t", ", certificate-authority-data: YQ==")).is_ok());
        for (user, cluster) in [
            ("exec: {apiVersion: client.authentication.k8s.io/v1, command: sh}", ""),
            ("auth-provider: {name: gcp, config: {}}", ""),
            ("tokenFile: /etc/passwd", ""),
            ("client-certificate: /c", ""),
            ("client-key: /k", ""),
            ("token: t", ", certificate-authority: /ca"),
        ] {
            let refused = refuse(&kubeconfig(user, cluster));
            assert!(matches!(refused, Err(KubeconfigError::Refused(_))), "{user} {cluster}");
        }
    }
}
