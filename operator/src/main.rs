//! The binary: reads the command line and the configuration, sets up logs and TLS, and hands over.

use anyhow::Context as _;
use clap::Parser;
use fleetune_crds::{EdgeNode, names};
use fleetune_operator::cli::{Cli, Command};
use fleetune_operator::config::{self, EdgeConfig, HubConfig};
use fleetune_operator::runtime::crds;
use fleetune_operator::{edge, hub, process};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    logs();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    match cli.command {
        Command::Hub(args) => {
            let config: HubConfig = config::read(&args.config)?;
            let ctx = process::context(config, &args, "fleetune-hub", client().await?)?;
            process::run(ctx, names::LEASE_HUB, hub::needed(), hub::controllers).await
        }
        Command::Edge(args) => {
            let config: EdgeConfig = config::read(&args.config)?;
            let ctx = process::context(config, &args, "fleetune-edge", client().await?)?;
            let needed = vec![crds::needed::<EdgeNode>()];
            process::run(ctx, names::LEASE_EDGE, needed, edge::start).await
        }
    }
}

/// The cluster that this process runs in, or the one of the environment's kubeconfig.
async fn client() -> anyhow::Result<kube::Client> {
    let config = kube::Config::infer()
        .await
        .context("no Kubernetes cluster is configured")?;
    fleetune_operator::runtime::client::client(config).context("no client for the cluster")
}

/// JSON lines in a cluster, short text elsewhere; on standard error.
fn logs() {
    let mut levels = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
    // The library's own spans say again what ours say.
    if !levels.contains("kube_runtime") {
        levels.push_str(",kube_runtime=warn");
    }
    let filter = EnvFilter::new(levels);
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        logs.json().flatten_event(true).init();
    } else {
        logs.compact().init();
    }
}
