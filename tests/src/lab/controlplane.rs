//! A cluster's control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler in one network namespace.

use super::apiserver::{common_apiserver_args, etcd_args, tail, write_pki_for};
use super::net;
use super::paths::{Paths, search_path};
use super::pki::{Authority, write_private};
use super::process::Process;
use super::topology::{API_PORT, ClusterSpec};
use anyhow::Result;
use std::path::PathBuf;

/// Folder of a cluster: certificates, kubeconfigs, logs and etcd's data.
pub fn folder(paths: &Paths, cluster: ClusterSpec) -> PathBuf {
    paths.lab().join(cluster.name)
}

/// Writes everything that a control plane reads, and the administrator's two kubeconfigs: `kubeconfig` for the machine,
/// `inner.kubeconfig` for whoever lives in the lab.
///
/// # Errors
/// When a file cannot be written.
pub fn prepare(paths: &Paths, cluster: ClusterSpec) -> Result<Authority> {
    let dir = folder(paths, cluster);
    std::fs::create_dir_all(&dir)?;
    let authority = Authority::new(&format!("fleetune-lab-{}", cluster.name))?;
    let (address, service) = (cluster.address(), cluster.service_address());
    let names = [
        "127.0.0.1",
        "localhost",
        &address,
        &service,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    write_pki_for(&dir, &authority, &names)?;
    let server = cluster.server();
    for (file, user, group) in [
        ("inner.kubeconfig", "admin", Some("system:masters")),
        (
            "kube-controller-manager.kubeconfig",
            "system:kube-controller-manager",
            None,
        ),
        ("kube-scheduler.kubeconfig", "system:kube-scheduler", None),
    ] {
        let identity = authority.issue(user, group, &[])?;
        write_private(&dir.join(file), &authority.kubeconfig(cluster.name, &server, &identity))?;
    }
    let identity = authority.issue("admin", Some("system:masters"), &[])?;
    let loopback = format!("https://127.0.0.1:{}", cluster.loopback_port());
    write_private(
        &dir.join("kubeconfig"),
        &authority.kubeconfig(cluster.name, &loopback, &identity),
    )?;
    let scraper = authority.issue("prometheus", Some("system:masters"), &[])?;
    scraper.write(&dir, "prometheus")?;
    Ok(authority)
}

/// Starts etcd.
///
/// # Errors
/// When it cannot be started.
pub fn start_etcd(paths: &Paths, cluster: ClusterSpec) -> Result<Process> {
    let args = etcd_args(&folder(paths, cluster), "127.0.0.1", 2379, 2380);
    start(paths, cluster, "etcd", &args)
}

/// Starts the API server.
///
/// # Errors
/// When it cannot be started.
pub fn start_apiserver(paths: &Paths, cluster: ClusterSpec) -> Result<Process> {
    let mut args = vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={}", cluster.address()),
        format!("--secure-port={API_PORT}"),
        format!("--service-cluster-ip-range={}", cluster.service_range()),
    ];
    args.extend(common_apiserver_args(
        &folder(paths, cluster),
        "https://kubernetes.default.svc.cluster.local",
    ));
    start(paths, cluster, "kube-apiserver", &args)
}

/// Starts the controller manager and the scheduler. Worth doing once the API answers: started earlier they retry only
/// after seconds.
///
/// # Errors
/// When one cannot be started.
pub fn start_controllers(paths: &Paths, cluster: ClusterSpec) -> Result<[Process; 2]> {
    let file = |name: &str| folder(paths, cluster).join(name).display().to_string();
    let manager = [
        format!("--kubeconfig={}", file("kube-controller-manager.kubeconfig")),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        format!("--root-ca-file={}", file("ca.crt")),
        format!("--service-account-private-key-file={}", file("token.key")),
        "--use-service-account-credentials=true".into(),
        format!("--service-cluster-ip-range={}", cluster.service_range()),
        // Each controller makes a ServiceAccount and a token of its own; at the default rate that takes four seconds.
        "--kube-api-qps=300".into(),
        "--kube-api-burst=600".into(),
        // The default is a folder of the machine, which it would make.
        format!("--flex-volume-plugin-dir={}", file("volume-plugins")),
        // A dead node is NotReady after 16 s instead of 50, so that tests of it end in time. Nodes renew every 2 s.
        "--node-monitor-period=2s".into(),
        "--node-monitor-grace-period=16s".into(),
        "--profiling=false".into(),
    ];
    let scheduler = [
        format!("--kubeconfig={}", file("kube-scheduler.kubeconfig")),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        "--profiling=false".into(),
    ];
    Ok([
        start(paths, cluster, "kube-controller-manager", &manager)?,
        start(paths, cluster, "kube-scheduler", &scheduler)?,
    ])
}

/// The name under which a process of a cluster is noted.
pub fn process_name(cluster: ClusterSpec, program: &str) -> String {
    format!("{}/{program}", cluster.name)
}

/// The end of a program's log, for an error message.
pub fn log(paths: &Paths, cluster: ClusterSpec, program: &str) -> String {
    tail(&folder(paths, cluster).join(format!("{program}.log")))
}

fn start(paths: &Paths, cluster: ClusterSpec, program: &str, args: &[String]) -> Result<Process> {
    let path = paths.program(program)?.display().to_string();
    let mut command = vec![path.as_str()];
    command.extend(args.iter().map(String::as_str));
    Process::start(
        &process_name(cluster, program),
        Some(&net::file(paths, cluster.name)),
        &command,
        &search_path(&paths.bin()),
        &folder(paths, cluster).join(format!("{program}.log")),
    )
}
