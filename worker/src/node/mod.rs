//! The node runtime: keeps what this node shall serve in its store, tests it, serves it, and returns by itself from what
//! fails. It serves from its own store before it has read any API, and goes on with every control plane away.

pub mod config;
mod driver;
pub mod memory;
pub mod metrics;
pub mod plan;
pub mod protocol;
pub mod runtime;
pub mod selftest;
pub mod serve;
mod stage;
mod status;
pub mod table;
#[cfg(test)]
mod tests;

use crate::error::{Result, WorkerError};
use crate::registry::{Credentials, Registry};
use config::Config;
use fleetune_crds::names::{ENV_INSECURE_REGISTRIES, ENV_REGISTRY_CONFIG};
use runtime::{RealModels, Shared};
use std::path::Path;
use std::time::Duration;

/// How long requests are still answered after the process was told to stop: endpoints take a moment to forget a pod.
const LINGER: Duration = Duration::from_secs(3);

/// Runs the node runtime until the future `stop` is ready.
pub async fn run(config: Config, node: String, stop: impl Future<Output = ()>) -> Result<()> {
    let registry = registry(&config)?;
    let listen = config.listen;
    let shared = Shared::new(config, registry, RealModels, &runtime::build(), &runtime::boot_id())?;
    let serving = serve::Serving::new(shared.table.clone(), shared.metrics.clone(), shared.ready.subscribe());
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| WorkerError::transient("ListenFailed", format!("{listen}: {error}")))?;
    tracing::info!(%listen, node, build = runtime::build(), "node runtime");
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        axum::serve(listener, serve::router(serving))
            .with_graceful_shutdown(async move {
                let _ = closed.await;
            })
            .await
    });
    let status = tokio::spawn(status::run(shared.clone(), node));
    let mut drive = tokio::spawn(shared.clone().run());
    let ended = tokio::select! {
        ended = &mut drive => Some(ended),
        () = stop => None,
    };
    shared.stopping.send_replace(true);
    let result = if let Some(ended) = ended {
        flatten(ended)
    } else {
        tracing::info!("told to stop");
        let result = flatten(drive.await);
        tokio::time::sleep(LINGER).await;
        result
    };
    let _ = close.send(());
    let _ = tokio::time::timeout(LINGER, server).await;
    let _ = tokio::time::timeout(LINGER, status).await;
    result
}

fn flatten(ended: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    ended.unwrap_or_else(|error| Err(WorkerError::transient(crate::error::INTERNAL, error.to_string())))
}

fn registry(config: &Config) -> Result<Registry> {
    let insecure = std::env::var(ENV_INSECURE_REGISTRIES).unwrap_or_default();
    let credentials = match std::env::var_os(ENV_REGISTRY_CONFIG) {
        Some(path) if !path.is_empty() && Path::new(&path).exists() => Credentials::read(Path::new(&path))?,
        _ => Credentials::default(),
    };
    let hosts = insecure.split(',').map(str::trim).filter(|host| !host.is_empty());
    let hosts = hosts.chain(config.insecure_registries.iter().map(String::as_str));
    Ok(Registry::new(hosts, credentials)?)
}
