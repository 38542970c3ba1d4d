//! What the hub's address offers beside the API: an OCI registry, the data folder over HTTP, and Prometheus, which scrapes the
//! API servers and whatever `discover` finds.

use super::net;
use super::paths::{Paths, search_path};
use super::process::Process;
use super::topology::{ClusterSpec, DATA_PORT, HUB, PROMETHEUS_PORT, REGISTRY_PORT};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Folder of the registry's blobs.
pub fn registry_storage(paths: &Paths) -> PathBuf {
    paths.lab().join("registry")
}

/// Starts the registry.
///
/// # Errors
/// When it cannot be started.
pub fn start_registry(paths: &Paths) -> Result<Process> {
    let dir = registry_storage(paths);
    std::fs::create_dir_all(&dir)?;
    let config = paths.lab().join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
         delete: {{enabled: true}}\nhttp:\n  addr: {}:{REGISTRY_PORT}\n",
        dir.display(),
        HUB.address()
    );
    std::fs::write(&config, text)?;
    let program = paths.program("docker-registry")?.display().to_string();
    start(paths, "registry", &[&program, "serve", &config.display().to_string()])
}

/// Starts the data server.
///
/// # Errors
/// When it cannot be started.
pub fn start_data(paths: &Paths) -> Result<Process> {
    std::fs::create_dir_all(paths.data())?;
    let python = python()?.display().to_string();
    let (port, folder) = (DATA_PORT.to_string(), paths.data().display().to_string());
    let command = [
        &python,
        "-u",
        "-m",
        "http.server",
        "--bind",
        &HUB.address(),
        "--directory",
        &folder,
        &port,
    ];
    start(paths, "data", &command)
}

/// Starts Prometheus, which scrapes every pod of every cluster that asks for it by annotation.
///
/// # Errors
/// When it cannot be started.
pub fn start_prometheus(paths: &Paths, clusters: &[ClusterSpec]) -> Result<Process> {
    let config = paths.lab().join("prometheus.yml");
    std::fs::write(&config, prometheus_config(paths, clusters))?;
    let storage = paths.lab().join("prometheus");
    std::fs::create_dir_all(&storage)?;
    std::fs::create_dir_all(paths.lab().join("targets"))?;
    let program = paths.program("prometheus")?.display().to_string();
    start(
        paths,
        "prometheus",
        &[
            &program,
            &format!("--config.file={}", config.display()),
            &format!("--storage.tsdb.path={}", storage.display()),
            &format!("--web.listen-address={}:{PROMETHEUS_PORT}", HUB.address()),
            "--storage.tsdb.retention.time=1d",
            "--log.level=warn",
        ],
    )
}

fn prometheus_config(paths: &Paths, clusters: &[ClusterSpec]) -> String {
    let mut text = "global: {scrape_interval: 5s, scrape_timeout: 4s}\nscrape_configs:\n".to_owned();
    for cluster in clusters {
        let dir = super::controlplane::folder(paths, *cluster).display().to_string();
        let tls = format!("{{ca_file: {dir}/ca.crt, cert_file: {dir}/prometheus.crt, key_file: {dir}/prometheus.key}}");
        let _ = write!(
            text,
            r"- job_name: {name}-pods
  # As the charts' ServiceMonitors ask: `namespace` is that of the object, not of the operator.
  honor_labels: true
  file_sd_configs: [{{files: ['{targets}'], refresh_interval: 5s}}]
- job_name: {name}-apiserver
  scheme: https
  tls_config: {tls}
  static_configs: [{{targets: ['{address}:6443'], labels: {{cluster: {name}}}}}]
  # Of the API server's thousands of series only what counts requests.
  metric_relabel_configs:
  - {{source_labels: [__name__], action: keep, regex: 'apiserver_request_total|process_resident_memory_bytes'}}
",
            name = cluster.name,
            targets = super::discover::file(paths, *cluster).display(),
            address = cluster.address(),
        );
    }
    text
}

fn start(paths: &Paths, name: &str, command: &[&str]) -> Result<Process> {
    Process::start(
        name,
        Some(&net::file(paths, HUB.name)),
        command,
        &search_path(&paths.bin()),
        &paths.lab().join(format!("{name}.log")),
    )
}

/// The real Python, not a shim that looks for one by the user's settings.
fn python() -> Result<PathBuf> {
    let mut command = std::process::Command::new("python3");
    command.args(["-c", "import sys; print(sys.executable)"]);
    let path = super::process::run(&mut command).context("the lab serves its data with Python 3")?;
    Ok(PathBuf::from(path.trim()))
}
