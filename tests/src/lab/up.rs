//! Bringing the lab up: clear what is left, networks, then all clusters at once, each step waiting on a condition.

use super::apiserver::tail;
use super::cluster::{Cluster, wait};
use super::paths::{Paths, search_path};
use super::process::Process;
use super::progress::Steps;
use super::state::{Ledger, State, lock};
use super::topology::{ClusterSpec, HUB};
use super::{clean, controlplane, net, node, services, wait_ready};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for any one condition.
const DEADLINE: Duration = Duration::from_mins(2);

/// Brings the given clusters up, from nothing, and returns how long it took. `held` is the lock, where the caller has it.
///
/// # Errors
/// When a step fails; what was made stays for a look at its logs, and the next `up` or `down` removes it.
pub async fn up(paths: &Paths, clusters: &[ClusterSpec], held: Option<File>) -> Result<Duration> {
    super::install_crypto();
    check(paths)?;
    let nodes: u64 = clusters.iter().map(|c| u64::from(c.nodes)).sum();
    let steps = Arc::new(Steps::new("lab", 5 + 2 * clusters.len() as u64 + nodes));
    let forwarder = forwarder()?;
    let (ledger, held) = {
        let (paths, clusters, steps) = (paths.clone(), clusters.to_vec(), steps.clone());
        blocking(move || {
            let held = held.map_or_else(|| lock(&paths), Ok)?;
            clean::clear(&paths)?;
            steps.done("what was left is cleared");
            std::fs::create_dir_all(paths.lab())?;
            let ledger = Ledger::new(paths.clone(), State::default());
            ledger.change(|state| state.clusters = clusters.iter().map(|c| c.name.to_owned()).collect())?;
            net::create(&paths, &clusters)?;
            let (process, mut go) = start_forwarder(&paths, &clusters, &forwarder)?;
            ledger.note(process)?;
            writeln!(go, "noted").context("the forwarder ended")?;
            steps.done("networks and the way in");
            Ok((Arc::new(ledger), held))
        })
        .await?
    };
    let mut tasks = tokio::task::JoinSet::new();
    for cluster in clusters {
        tasks.spawn(cluster_up(paths.clone(), *cluster, ledger.clone(), steps.clone()));
    }
    if clusters.contains(&HUB) {
        tasks.spawn(services_up(
            paths.clone(),
            clusters.to_vec(),
            ledger.clone(),
            steps.clone(),
        ));
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    let took = steps.elapsed();
    ledger.change(|state| {
        state.complete = true;
        state.up_secs = took.as_secs_f64();
    })?;
    drop(held);
    Ok(took)
}

/// What must hold before anything is made.
fn check(paths: &Paths) -> Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes namespaces and control groups: run it as root"
    );
    anyhow::ensure!(
        !paths.root().starts_with("/run") && !paths.root().starts_with("/proc"),
        "FLEETUNE_CACHE is {}: nodes have a /run of their own, so take another folder",
        paths.root().display()
    );
    for program in super::tools::PROGRAMS {
        paths.program(program)?;
    }
    anyhow::ensure!(
        paths.root().join("images/pause.tar").exists(),
        "the pause image is missing: run `make tools`"
    );
    Ok(())
}

async fn cluster_up(paths: Paths, spec: ClusterSpec, ledger: Arc<Ledger>, steps: Arc<Steps>) -> Result<()> {
    let name = spec.name;
    let cluster = Cluster {
        spec,
        paths: paths.clone(),
    };
    {
        let (paths, ledger) = (paths.clone(), ledger.clone());
        blocking(move || {
            let authority = controlplane::prepare(&paths, spec)?;
            for node in spec.node_specs() {
                node::prepare(&paths, node, &authority)?;
            }
            ledger.note(controlplane::start_etcd(&paths, spec)?)?;
            ledger.note(controlplane::start_apiserver(&paths, spec)?)
        })
        .await?;
    }
    wait_ready(&cluster.client().await?, DEADLINE).await.with_context(|| {
        // The forwarder is between us and the API server: what it says comes first.
        let (forward, server) = (
            tail(&forward_log(&paths)),
            controlplane::log(&paths, spec, "kube-apiserver"),
        );
        format!("cluster {name}: {forward}\n{server}")
    })?;
    steps.done(&format!("{name}: API ready"));
    {
        let (paths, ledger) = (paths.clone(), ledger.clone());
        blocking(move || {
            for process in controlplane::start_controllers(&paths, spec)? {
                ledger.note(process)?;
            }
            for node in spec.node_specs() {
                ledger.note(node::power_on(&paths, node)?)?;
            }
            Ok(())
        })
        .await?;
    }
    for node in spec.node_specs() {
        let ready = cluster.wait_condition(&node.name(), true, DEADLINE).await;
        ready.with_context(|| node::logs(&paths, node).unwrap_or_default())?;
        steps.done(&format!("{}: Ready", node.name()));
    }
    cluster.wait_account(DEADLINE).await?;
    steps.done(&format!("{name}: up"));
    Ok(())
}

async fn services_up(paths: Paths, clusters: Vec<ClusterSpec>, ledger: Arc<Ledger>, steps: Arc<Steps>) -> Result<()> {
    {
        let (paths, ledger) = (paths.clone(), ledger.clone());
        blocking(move || {
            ledger.note(services::start_registry(&paths)?)?;
            ledger.note(services::start_data(&paths)?)?;
            ledger.note(services::start_prometheus(&paths, &clusters)?)
        })
        .await?;
    }
    let http = super::http()?;
    for (name, url) in [
        ("registry", "http://127.0.0.1:15000/v2/"),
        ("data server", "http://127.0.0.1:18000/"),
        ("Prometheus", "http://127.0.0.1:19090/-/ready"),
    ] {
        let what = format!("the {name} answers");
        wait(&what, DEADLINE, || async {
            Ok(http.get(url).send().await?.status().is_success())
        })
        .await?;
        steps.done(&what);
    }
    Ok(())
}

/// Starts the forwarder, which listens on the machine's loopback and therefore runs in the machine's own namespace. It
/// begins with the first line that is written to it.
fn start_forwarder(paths: &Paths, clusters: &[ClusterSpec], program: &Path) -> Result<(Process, ChildStdin)> {
    let names = clusters.iter().map(|c| c.name).collect::<Vec<_>>().join(",");
    let (program, root) = (program.display().to_string(), paths.root().display().to_string());
    let command = [program.as_str(), "forward", "--cache", &root, &names];
    Process::start_held("forward", &command, &search_path(&paths.bin()), &forward_log(paths))
}

fn forward_log(paths: &Paths) -> PathBuf {
    paths.lab().join("forward.log")
}

/// The `lab` program: this one, or the one that was built beside it.
fn forwarder() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let near = own.ancestors().skip(1).take(2).map(|dir| dir.join("lab"));
    for candidate in std::iter::once(own.clone()).filter(|p| p.ends_with("lab")).chain(near) {
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    anyhow::bail!("the program `lab` is not built: run `cargo build --package fleetune-tests --bin lab`")
}

/// Runs blocking work off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}
