//! The operator's processes, run inside the test.

use super::HOME;
use anyhow::{Context, Result};
use fleetune_crds::{EdgeNode, names};
use fleetune_operator::cli::Process;
use fleetune_operator::runtime::{Shutdown, crds};
use fleetune_operator::{edge, hub, process};
use kube::Client;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Longest time in which a process ends in order.
const END: Duration = Duration::from_secs(15);

/// One running process.
pub struct Running {
    /// What runs it; aborted it is a process that was killed.
    pub task: JoinHandle<Result<()>>,
    shutdown: Shutdown,
    url: String,
}

impl Running {
    /// `fleetune-operator hub`, as pod `name`. `config` is added to the least configuration, as YAML.
    ///
    /// # Errors
    /// When the configuration is none or the process cannot be set up.
    pub fn hub(name: &str, client: Client, config: &str) -> Result<Self> {
        let (listen, url) = address()?;
        let config = serde_yaml::from_str(&format!("workerImage: worker\n{listen}{config}"))?;
        let ctx = process::context(config, &pod(name), "fleetune-hub", client)?;
        Ok(Self {
            shutdown: ctx.shutdown.clone(),
            task: tokio::spawn(process::run(ctx, names::LEASE_HUB, hub::needed(), hub::controllers)),
            url,
        })
    }

    /// `fleetune-operator edge`, as pod `name`. `config` is the configuration but for the address, as YAML.
    ///
    /// # Errors
    /// When the configuration is none or the process cannot be set up.
    pub fn edge(name: &str, client: Client, config: &str) -> Result<Self> {
        let (listen, url) = address()?;
        let config = serde_yaml::from_str(&format!("{listen}{config}"))?;
        let ctx = process::context(config, &pod(name), "fleetune-edge", client)?;
        let needed = vec![crds::needed::<EdgeNode>()];
        Ok(Self {
            shutdown: ctx.shutdown.clone(),
            task: tokio::spawn(process::run(ctx, names::LEASE_EDGE, needed, edge::start)),
            url,
        })
    }

    /// A page of the process: its code and text.
    ///
    /// # Errors
    /// When it is not served.
    pub async fn page(&self, path: &str) -> Result<(u16, String)> {
        let answer = reqwest::get(format!("{}{path}", self.url)).await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Its series.
    ///
    /// # Errors
    /// When they are not served.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self.page("/metrics").await?.1)
    }

    /// Ends it as SIGTERM would.
    ///
    /// # Errors
    /// When it ends with an error, or not at all.
    pub async fn end(self) -> Result<()> {
        self.shutdown.trigger();
        let ended = tokio::time::timeout(END, self.task).await;
        ended.context("the process does not end")??
    }
}

fn pod(name: &str) -> Process {
    Process {
        config: "/dev/null".into(),
        pod_name: name.into(),
        pod_namespace: HOME.into(),
    }
}

/// A free address of loopback: as configuration, and as URL.
fn address() -> Result<(String, String)> {
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    Ok((format!("listen: {address}\n"), format!("http://{address}")))
}
