//! The lab's networks: one namespace for the wide area, one for each cluster's control plane with a bridge for its nodes,
//! one for each node. The machine's own namespace gets no interface, no address and no route.
//!
//! The namespaces are files in the lab's folder (bind mounts of `/proc/PID/ns/net`), not entries of `/run/netns`: what is
//! ours is told by where it lies.

use super::paths::{Paths, search_path};
use super::process::run;
use super::topology::{CLUSTERS, ClusterSpec, NodeSpec};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the namespace that joins the clusters.
pub const WAN: &str = "wan";

/// The file of a namespace.
pub fn file(paths: &Paths, name: &str) -> PathBuf {
    paths.lab().join("netns").join(name)
}

/// Makes the wide area and the clusters' networks. Nodes plug in one by one, with [`plug_in`].
///
/// # Errors
/// When the kernel refuses.
pub fn create(paths: &Paths, clusters: &[ClusterSpec]) -> Result<()> {
    make(paths, WAN)?;
    for cluster in clusters {
        make(paths, cluster.name)?;
    }
    let mut wan = String::new();
    for cluster in clusters {
        let link = cluster.link_name();
        let far = file(paths, cluster.name);
        writeln!(
            wan,
            "ip link add {link} type veth peer name wan netns '{}'",
            far.display()
        )?;
        wan.push_str(&link_up(*cluster));
    }
    inside(paths, WAN, &wan)?;
    for cluster in clusters {
        let (far, near) = cluster.link();
        let mut script = format!(
            "ip link add br0 type bridge\nip addr add {}/24 dev br0\nip link set br0 up\n\
             ip addr add {near}/30 dev wan\nip link set wan up\nip route add default via {far}\n",
            cluster.address()
        );
        for node in cluster.node_specs() {
            writeln!(script, "ip route add {} via {}", node.pod_range(), node.address())?;
        }
        inside(paths, cluster.name, &script)?;
    }
    Ok(())
}

/// Brings the far end of a cluster's link up, with its address and routes, which the kernel drops when a link goes down.
fn link_up(cluster: ClusterSpec) -> String {
    let (far, near) = cluster.link();
    let link = cluster.link_name();
    let mut script = format!(
        "ip addr replace {far}/30 dev {link}\nip link set {link} up\nip route replace {} via {near}\n",
        cluster.range()
    );
    for node in cluster.node_specs() {
        let _ = writeln!(script, "ip route replace {} via {near}", node.pod_range());
    }
    script
}

/// Cuts a cluster from all others.
///
/// # Errors
/// When the lab is not up.
pub fn cut(paths: &Paths, cluster: ClusterSpec) -> Result<()> {
    inside(paths, WAN, &format!("ip link set {} down", cluster.link_name()))
}

/// Joins a cluster to the others again.
///
/// # Errors
/// When the lab is not up.
pub fn heal(paths: &Paths, cluster: ClusterSpec) -> Result<()> {
    inside(paths, WAN, &link_up(cluster))
}

/// Makes a node's namespace and plugs it into its cluster's bridge.
///
/// # Errors
/// When the kernel refuses.
pub fn plug_in(paths: &Paths, node: NodeSpec) -> Result<()> {
    let name = node.name();
    make(paths, &name)?;
    let port = node.port_name();
    let script = format!(
        "ip link add {port} type veth peer name eth0 netns '{}'\nip link set {port} master br0\nip link set {port} up\n",
        file(paths, &name).display()
    );
    inside(paths, node.cluster.name, &script)?;
    let mut script = format!(
        "ip addr add {}/24 dev eth0\nip link set eth0 up\nip route add default via {}\n",
        node.address(),
        node.cluster.address()
    );
    for other in node.cluster.node_specs().filter(|other| *other != node) {
        writeln!(script, "ip route add {} via {}", other.pod_range(), other.address())?;
    }
    inside(paths, &name, &script)
}

/// Bounds what a node receives, until it is unplugged. `rate` is written as `tc` has it, such as `8mbit`.
///
/// # Errors
/// When the node is off, or the kernel refuses.
pub fn slow(paths: &Paths, node: NodeSpec, rate: &str) -> Result<()> {
    let script = format!(
        "tc qdisc replace dev {} root tbf rate {rate} burst 64kb latency 1s",
        node.port_name()
    );
    inside(paths, node.cluster.name, &script)
}

/// Pulls a node's plug and removes its namespace, with everything that was set in it.
///
/// # Errors
/// When the namespace cannot be removed.
pub fn unplug(paths: &Paths, node: NodeSpec) -> Result<()> {
    inside(
        paths,
        node.cluster.name,
        &format!("ip link del {} 2>/dev/null || true", node.port_name()),
    )?;
    remove(&file(paths, &node.name()))
}

/// Makes one namespace, with loopback and forwarding.
fn make(paths: &Paths, name: &str) -> Result<()> {
    let file = file(paths, name);
    std::fs::create_dir_all(file.parent().context("a namespace lies in a folder")?)?;
    std::fs::write(&file, b"")?;
    run(Command::new("unshare")
        .arg(format!("--net={}", file.display()))
        .arg("true"))?;
    // /proc/sys/net shows the namespace of the process that looks, so this changes nothing of the machine.
    let script = "ip link set lo up\necho 1 > /proc/sys/net/ipv4/ip_forward\n\
                  for f in all default; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; done\n";
    inside(paths, name, script)
}

/// Removes a namespace's file; the namespace itself goes with the last process in it.
///
/// # Errors
/// When the file is there and cannot be removed.
pub fn remove(file: &Path) -> Result<()> {
    if !file.exists() {
        return Ok(());
    }
    while is_mounted(file)? {
        nix::mount::umount2(file, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", file.display()))?;
    }
    std::fs::remove_file(file).with_context(|| file.display().to_string())
}

fn is_mounted(path: &Path) -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == path)))
}

/// Runs a shell script in a namespace; it ends at the first command that fails.
///
/// # Errors
/// When a command fails; the message holds what it printed.
pub fn inside(paths: &Paths, name: &str, script: &str) -> Result<()> {
    let file = file(paths, name);
    anyhow::ensure!(file.exists(), "the lab's network {name} is not there: run `lab up`");
    run(Command::new("nsenter")
        .arg(format!("--net={}", file.display()))
        .args(["--", "sh", "-ec", script])
        .env("PATH", search_path(&paths.bin())))?;
    Ok(())
}

/// The namespaces on disk.
///
/// # Errors
/// When the folder cannot be read.
pub fn all(paths: &Paths) -> Result<Vec<PathBuf>> {
    let folder = paths.lab().join("netns");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    Ok(std::fs::read_dir(folder)?
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?)
}

/// Pids of all processes that are in one of these namespaces: whatever was started there, whoever noted it.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes_in(namespaces: &[PathBuf]) -> Result<Vec<i32>> {
    // A file that is no namespace (yet) has a number of another device, which no process is in.
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let own = identity(Path::new("/proc/self/ns/net"));
    let ours: Vec<_> = namespaces
        .iter()
        .filter_map(|file| identity(file))
        .filter(|id| Some(*id) != own)
        .collect();
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        if identity(Path::new(&format!("/proc/{pid}/ns/net"))).is_some_and(|id| ours.contains(&id)) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// Whether a cluster's link is cut.
///
/// # Errors
/// When the lab is not up.
pub fn is_cut(paths: &Paths, cluster: ClusterSpec) -> Result<bool> {
    let test = format!("ip -o link show {} | grep -q 'state DOWN'", cluster.link_name());
    anyhow::ensure!(CLUSTERS.contains(&cluster), "no such cluster");
    Ok(inside(paths, WAN, &test).is_ok())
}
