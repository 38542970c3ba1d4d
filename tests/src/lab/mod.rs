//! Real Kubernetes on one machine: control planes and nodes from their own programs, each in namespaces of its own, with
//! a registry, a data server and Prometheus beside them.
//!
//! [`ApiServer`] is the light one: an API server without nodes, for one test. [`Lab`] is the whole: a hub and two device
//! clusters whose nodes can lose power and whose links can be cut. Machines are left as they were found: see `clean`.

mod apiserver;
mod cgroups;
mod clean;
mod cluster;
mod controlplane;
mod discover;
pub mod forward;
mod net;
mod node;
pub mod paths;
mod pki;
mod process;
pub mod progress;
mod services;
mod state;
pub mod tools;
pub mod topology;
mod up;

pub use apiserver::{ApiServer, client_from, wait_ready};
pub use cgroups::{Throttle, oom_kills};
pub use cluster::{Cluster, wait};
pub use process::run;

use anyhow::{Context, Result};
use paths::Paths;
use state::{Ledger, State, lock};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use topology::{CLUSTERS, ClusterSpec, HUB};
use up::blocking;

/// Longest wait for a node or an API server to come back.
const DEADLINE: Duration = Duration::from_secs(90);

/// A running lab.
#[derive(Clone, Debug)]
pub struct Lab {
    paths: Paths,
    clusters: Vec<Cluster>,
}

impl Lab {
    /// Brings the lab up from nothing and says how long it took. An earlier one is removed first.
    ///
    /// # Errors
    /// When a program is missing or a step fails.
    pub async fn up(clusters: &[ClusterSpec]) -> Result<(Self, Duration)> {
        let paths = Paths::from_env()?;
        let took = up::up(&paths, clusters, None).await?;
        Ok((Self::of(paths, clusters), took))
    }

    /// The lab that is up, made whole again (nodes that are off are turned on, links that are cut are healed), or else a
    /// new one.
    ///
    /// # Errors
    /// When a program is missing or a step fails.
    pub async fn up_or_attach() -> Result<Self> {
        let paths = Paths::from_env()?;
        // Looked at under the lock, so that of two who find no lab only one makes it.
        let held = {
            let paths = paths.clone();
            blocking(move || lock(&paths)).await?
        };
        if let Some(lab) = Self::attach(&paths)?.filter(|lab| lab.clusters.len() == CLUSTERS.len()) {
            drop(held);
            lab.mend().await?;
            return Ok(lab);
        }
        up::up(&paths, &CLUSTERS, Some(held)).await?;
        Ok(Self::of(paths, &CLUSTERS))
    }

    /// The lab, if it is up and none of its daemons has ended. It may be one cluster only.
    ///
    /// # Errors
    /// When its state cannot be read.
    pub fn attach(paths: &Paths) -> Result<Option<Self>> {
        let Some(state) = State::load(paths)? else {
            return Ok(None);
        };
        let alive = state
            .processes
            .iter()
            .all(|p| p.name.starts_with("node/") || p.is_alive());
        if !state.complete || !alive {
            return Ok(None);
        }
        let clusters = state
            .clusters
            .iter()
            .map(|name| topology::cluster(name))
            .collect::<Result<Vec<_>>>()?;
        Ok(Some(Self::of(paths.clone(), &clusters)))
    }

    fn of(paths: Paths, clusters: &[ClusterSpec]) -> Self {
        install_crypto();
        let clusters = clusters
            .iter()
            .map(|spec| Cluster {
                spec: *spec,
                paths: paths.clone(),
            })
            .collect();
        Self { paths, clusters }
    }

    async fn mend(&self) -> Result<()> {
        for cluster in &self.clusters {
            if net::is_cut(&self.paths, cluster.spec)? {
                self.heal(cluster.name()).await?;
            }
            // A test that failed in mid-restart must not fail all that follow it.
            let state = State::load(&self.paths)?.context("the lab went down")?;
            let name = controlplane::process_name(cluster.spec, "kube-apiserver");
            if !state.process(&name).is_some_and(process::Process::is_alive) {
                self.start_apiserver(cluster.name()).await?;
            }
            wait_ready(&cluster.client().await?, DEADLINE).await?;
            for node in cluster.spec.node_specs() {
                let state = State::load(&self.paths)?.context("the lab went down")?;
                if !state
                    .process(&node::process_name(node))
                    .is_some_and(process::Process::is_alive)
                {
                    self.power_on(&node.name()).await?;
                }
            }
            for node in cluster.nodes() {
                cluster.wait_node(&node, true, DEADLINE).await?;
            }
        }
        Ok(())
    }

    /// Removes everything that the lab made. Does nothing where there is none.
    ///
    /// # Errors
    /// When something stays.
    pub async fn down() -> Result<()> {
        let paths = Paths::from_env()?;
        blocking(move || {
            let _held = lock(&paths)?;
            clean::clear(&paths)
        })
        .await
    }

    /// A cluster of the lab.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn cluster(&self, name: &str) -> Result<&Cluster> {
        self.clusters
            .iter()
            .find(|c| c.name() == name)
            .with_context(|| format!("no cluster {name:?} in this lab"))
    }

    /// All clusters of the lab, the hub first.
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// Pulls a node's plug. Its disk stays.
    ///
    /// # Errors
    /// When there is no such node, or something of it stays.
    pub async fn power_off(&self, name: &str) -> Result<()> {
        let (paths, node) = (self.paths.clone(), topology::node(name)?);
        blocking(move || {
            let _held = lock(&paths)?;
            let state = State::load(&paths)?.context("the lab is not up")?;
            let key = node::process_name(node);
            node::power_off(&paths, node, state.process(&key))?;
            Ledger::new(paths, state).change(|s| s.processes.retain(|p| p.name != key))?;
            Ok(())
        })
        .await
    }

    /// Turns a node on, and returns at once: [`Cluster::wait_node`] waits for it.
    ///
    /// # Errors
    /// When there is no such node, or it is on.
    pub async fn power_on(&self, name: &str) -> Result<()> {
        let (paths, node) = (self.paths.clone(), topology::node(name)?);
        blocking(move || {
            let _held = lock(&paths)?;
            let state = State::load(&paths)?.context("the lab is not up")?;
            let known = state.process(&node::process_name(node)).cloned();
            anyhow::ensure!(
                !known.as_ref().is_some_and(process::Process::is_alive),
                "{} is on",
                node.name()
            );
            // A node whose first process ended by itself has left its network and groups behind.
            node::power_off(&paths, node, known.as_ref())?;
            let process = node::power_on(&paths, node)?;
            Ledger::new(paths, state).note(process)
        })
        .await
    }

    /// Bounds what a node receives, until it loses its power. `rate` is written as `tc` has it, such as `8mbit`.
    ///
    /// # Errors
    /// When there is no such node, or it is off.
    pub async fn slow(&self, name: &str, rate: &str) -> Result<()> {
        let (paths, node, rate) = (self.paths.clone(), topology::node(name)?, rate.to_owned());
        blocking(move || net::slow(&paths, node, &rate)).await
    }

    /// The file of a cluster's network, for running a program there.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub fn network(&self, name: &str) -> Result<PathBuf> {
        Ok(net::file(&self.paths, topology::cluster(name)?.name))
    }

    /// Cuts a cluster from all others. The machine still reaches it.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub async fn cut(&self, name: &str) -> Result<()> {
        let (paths, cluster) = (self.paths.clone(), topology::cluster(name)?);
        blocking(move || net::cut(&paths, cluster)).await
    }

    /// Joins a cluster to the others again.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub async fn heal(&self, name: &str) -> Result<()> {
        let (paths, cluster) = (self.paths.clone(), topology::cluster(name)?);
        blocking(move || net::heal(&paths, cluster)).await
    }

    /// Kills a cluster's API server.
    ///
    /// # Errors
    /// When there is no such cluster.
    pub async fn stop_apiserver(&self, name: &str) -> Result<()> {
        let (paths, cluster) = (self.paths.clone(), topology::cluster(name)?);
        blocking(move || {
            let state = State::load(&paths)?.context("the lab is not up")?;
            let process = state.process(&controlplane::process_name(cluster, "kube-apiserver"));
            process.context("no API server is noted")?.kill()
        })
        .await
    }

    /// Starts a cluster's API server after [`Lab::stop_apiserver`] and waits until it answers.
    ///
    /// # Errors
    /// When there is no such cluster, or it does not answer in time.
    pub async fn start_apiserver(&self, name: &str) -> Result<()> {
        let (paths, cluster) = (self.paths.clone(), topology::cluster(name)?);
        blocking(move || {
            let _held = lock(&paths)?;
            let state = State::load(&paths)?.context("the lab is not up")?;
            let process = controlplane::start_apiserver(&paths, cluster)?;
            Ledger::new(paths, state).note(process)
        })
        .await?;
        wait_ready(&self.cluster(name)?.client().await?, DEADLINE)
            .await
            .with_context(|| controlplane::log(&self.paths, cluster, "kube-apiserver"))
    }

    /// Kills a cluster's API server, starts it again and waits until it answers.
    ///
    /// # Errors
    /// When there is no such cluster, or it does not answer in time.
    pub async fn restart_apiserver(&self, name: &str) -> Result<()> {
        self.stop_apiserver(name).await?;
        self.start_apiserver(name).await
    }

    /// `HOST:PORT` of the registry, as everything in the lab calls it.
    pub fn registry_addr(&self) -> String {
        format!("{}:{}", HUB.address(), topology::REGISTRY_PORT)
    }

    /// `HOST:PORT` at which the machine reaches the registry.
    pub fn registry_loopback(&self) -> &'static str {
        "127.0.0.1:15000"
    }

    /// Folder in which the registry keeps its blobs, for tests that damage one.
    pub fn registry_storage(&self) -> PathBuf {
        services::registry_storage(&self.paths)
    }

    /// URL of the data folder, as everything in the lab calls it.
    pub fn data_url(&self) -> String {
        format!("http://{}:{}", HUB.address(), topology::DATA_PORT)
    }

    /// `HOST:PORT` at which the machine reaches the runtime of one node, wherever its Service would send it.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn runtime_addr(&self, node: &str) -> Result<String> {
        Ok(format!("127.0.0.1:{}", topology::node(node)?.loopback_port()))
    }

    /// Folder on the machine that is a node's `/var`: its disk.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node_disk(&self, node: &str) -> Result<PathBuf> {
        Ok(node::folder(&self.paths, topology::node(node)?).join("var"))
    }

    /// The `data.result` of an instant query.
    ///
    /// # Errors
    /// When Prometheus does not answer or does not understand the query.
    pub async fn prometheus_query(&self, query: &str) -> Result<Vec<serde_json::Value>> {
        let url = reqwest::Url::parse_with_params("http://127.0.0.1:19090/api/v1/query", [("query", query)])?;
        let answer: serde_json::Value = http()?.get(url).send().await?.json().await?;
        anyhow::ensure!(answer["status"] == "success", "Prometheus on {query}: {answer}");
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    /// How long `up` took.
    ///
    /// # Errors
    /// When the lab is not up.
    pub fn up_secs(&self) -> Result<f64> {
        Ok(State::load(&self.paths)?.context("the lab is not up")?.up_secs)
    }
}

/// What is up, for people: one line a cluster, node and service.
///
/// # Errors
/// When the state cannot be read.
pub fn status(paths: &Paths) -> Result<String> {
    let Some(state) = State::load(paths)? else {
        return Ok("the lab is down\n".into());
    };
    let mut text = format!(
        "the lab is {}\n",
        if state.complete {
            "up"
        } else {
            "on its way up, or was interrupted"
        }
    );
    for name in &state.clusters {
        let spec = topology::cluster(name)?;
        let link = if net::is_cut(paths, spec)? { "cut" } else { "joined" };
        let _ = writeln!(
            text,
            "{name:10} {link:7} {} 127.0.0.1:{}",
            spec.server(),
            spec.loopback_port()
        );
        for node in spec.node_specs() {
            let on = state
                .process(&node::process_name(node))
                .is_some_and(process::Process::is_alive);
            let _ = writeln!(
                text,
                "  {:8} {:7} {} 127.0.0.1:{}",
                node.name(),
                if on { "on" } else { "off" },
                node.address(),
                node.loopback_port()
            );
        }
    }
    for process in state.processes.iter().filter(|p| !p.is_alive()) {
        let _ = writeln!(text, "ended: {} (pid {})", process.name, process.pid);
    }
    Ok(text)
}

/// What an unclean `down` would have left: mounts under the lab's folder, its control groups, the folder itself.
///
/// # Errors
/// When it cannot be told.
pub fn leftovers(paths: &Paths) -> Result<Vec<String>> {
    let mut all = clean::mounts_below(paths)?;
    all.extend(cgroups::leftovers()?.iter().map(|p| p.display().to_string()));
    if paths.lab().exists() {
        all.push(paths.lab().display().to_string());
    }
    Ok(all)
}

/// An HTTP client for loopback.
///
/// # Errors
/// When it cannot be made.
pub fn http() -> Result<reqwest::Client> {
    install_crypto();
    Ok(reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()?)
}

/// Installs the process's TLS provider; a second call changes nothing.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
