//! A node: network, mount, PID, UTS and IPC namespaces of its own, containerd as its first process, kubelet and kube-proxy
//! beside it, and a folder as its disk. Killing the first process pulls the plug; the disk stays.

use super::paths::{Paths, search_path};
use super::pki::{Authority, write_private};
use super::process::Process;
use super::topology::{HUB, NodeSpec, REGISTRY_PORT};
use super::{cgroups, net};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Folder of a node.
pub fn folder(paths: &Paths, node: NodeSpec) -> PathBuf {
    paths.lab().join("nodes").join(node.name())
}

/// The name under which a node's first process is noted.
pub fn process_name(node: NodeSpec) -> String {
    format!("node/{}", node.name())
}

/// Where the cache folder is mounted inside a node: the machine's own path to it may be hidden there.
const INNER: &str = "/run/fleetune";

/// Writes everything that a node reads.
///
/// # Errors
/// When a file cannot be written.
pub fn prepare(paths: &Paths, node: NodeSpec, authority: &Authority) -> Result<()> {
    let dir = folder(paths, node);
    let registry = format!("{}:{REGISTRY_PORT}", HUB.address());
    for sub in [
        "certs.d",
        "cni.d",
        "sysctl",
        "var/lib",
        "var/log",
        "var/tmp",
        "var/cache",
    ] {
        std::fs::create_dir_all(dir.join(sub))?;
    }
    for (link, target) in [("run", "/run"), ("lock", "/run/lock")] {
        let link = dir.join("var").join(link);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(target, link)?;
        }
    }
    let name = node.name();
    let identity = authority.issue(
        &format!("system:node:{name}"),
        Some("system:nodes"),
        &[&name, &node.address(), "127.0.0.1"],
    )?;
    identity.write(&dir, "node")?;
    let server = node.cluster.server();
    let cluster = node.cluster.name;
    let proxy = authority.issue("system:kube-proxy", None, &[])?;
    let hosts = dir.join("certs.d").join(&registry);
    std::fs::create_dir_all(&hosts)?;
    let files = [
        ("ca.crt", authority.certificate()),
        ("kubelet.kubeconfig", authority.kubeconfig(cluster, &server, &identity)),
        ("kube-proxy.kubeconfig", authority.kubeconfig(cluster, &server, &proxy)),
        ("kubelet.yaml", kubelet_config(node)),
        ("containerd.toml", containerd_config(node)),
        ("cni.d/10-lab.conflist", cni_config(node)),
        ("init.sh", init_script(paths, node)),
        ("resolv.conf", String::new()),
        // What the kubelet would write into the machine's kernel; it leaves alone what has the value already.
        ("sysctl/kernel.panic", "10\n".into()),
        ("sysctl/kernel.panic_on_oops", "1\n".into()),
        ("sysctl/vm.overcommit_memory", "1\n".into()),
        ("sysctl/vm.panic_on_oom", "0\n".into()),
        ("sysctl/kernel.keys.root_maxkeys", "1000000\n".into()),
        ("sysctl/kernel.keys.root_maxbytes", "25000000\n".into()),
    ];
    for (file, text) in files {
        write_private(&dir.join(file), &text)?;
    }
    let text = format!(
        "server = \"http://{registry}\"\n[host.\"http://{registry}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    write_private(&hosts.join("hosts.toml"), &text)
}

/// Turns a node on.
///
/// # Errors
/// When its network, its groups or its first process cannot be made.
pub fn power_on(paths: &Paths, node: NodeSpec) -> Result<Process> {
    let dir = folder(paths, node);
    let name = node.name();
    anyhow::ensure!(
        dir.join("init.sh").exists(),
        "the lab has no node {name} up: run `lab up`"
    );
    cgroups::create(&name)?;
    net::plug_in(paths, node)?;
    let script = dir.join("init.sh").display().to_string();
    let command = [
        "unshare",
        "-m",
        "-p",
        "-u",
        "-i",
        "--fork",
        "--kill-child",
        "sh",
        &script,
    ];
    Process::start(
        &process_name(node),
        Some(&net::file(paths, &name)),
        &command,
        &search_path(&paths.bin()),
        &dir.join("containerd.log"),
    )
}

/// Pulls a node's plug: every process on it ends at once, its network and its groups go, its disk stays.
///
/// # Errors
/// When something of it stays.
pub fn power_off(paths: &Paths, node: NodeSpec, process: Option<&Process>) -> Result<()> {
    if let Some(process) = process {
        // The first process inside is a child of the one that is noted. With it the kernel ends the whole PID namespace.
        process.kill()?;
    }
    let file = net::file(paths, &node.name());
    // Whatever is still in the node's namespace is on its way out; its groups can only go after it.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !net::processes_in(std::slice::from_ref(&file))?.is_empty() {
        anyhow::ensure!(
            std::time::Instant::now() < end,
            "processes of {} do not end",
            node.name()
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    cgroups::remove(&node.name())?;
    net::unplug(paths, node)
}

fn init_script(paths: &Paths, node: NodeSpec) -> String {
    let name = node.name();
    let here = format!("{INNER}/lab/nodes/{name}");
    let path = search_path(Path::new(&format!("{INNER}/bin")));
    format!(
        r#"#!/bin/sh
# The first process of node {name}. Everything that it and its children write lies under {INNER} or in memory: the
# machine's root is read-only here.
set -e
# Without -n the machine's /run would get a folder of mount's own before it is hidden.
mount -n --make-rprivate /
mount -n -t proc proc /proc
resolver=$(readlink -f /etc/resolv.conf || echo /etc/resolv.conf)
mount -n -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns {INNER}
mount --bind '{cache}' {INNER}
mount --bind {here}/var /var
mount -t tmpfs -o mode=1777 tmpfs /tmp
case "$resolver" in /run/*) mkdir -p "${{resolver%/*}}"; : > "$resolver";; esac
mount --bind {here}/resolv.conf "$resolver"
for file in {here}/sysctl/*; do
  key=${{file##*/}}
  mount --bind "$file" /proc/sys/$(echo "$key" | tr . /)
done
mount -o remount,bind,ro /
mount --make-rshared /
hostname {name}
export PATH={path} HOME=/run
(
  until [ -S /run/containerd/containerd.sock ]; do sleep 0.05; done
  [ -e {here}/imported ] || {{ ctr -n k8s.io images import {INNER}/images/pause.tar && touch {here}/imported; }}
  while :; do
    kubelet --config={here}/kubelet.yaml --kubeconfig={here}/kubelet.kubeconfig --hostname-override={name} \
      --node-ip={address} --root-dir=/var/lib/kubelet --cert-dir=/var/lib/kubelet/pki || true
    sleep 1
  done
) >> {here}/kubelet.log 2>&1 &
(
  while :; do
    kube-proxy --kubeconfig={here}/kube-proxy.kubeconfig --hostname-override={name} --proxy-mode=nftables \
      --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
      --conntrack-tcp-timeout-close-wait=0 --healthz-bind-address= --metrics-bind-address=127.0.0.1:10249 || true
    sleep 1
  done
) >> {here}/kube-proxy.log 2>&1 &
exec containerd --config {here}/containerd.toml
"#,
        cache = paths.root().display(),
        address = node.address(),
    )
}

fn containerd_config(node: NodeSpec) -> String {
    let here = format!("{INNER}/lab/nodes/{}", node.name());
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{here}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  # The lab may run without CAP_SYS_RESOURCE, and then a lower score than one's own is refused.
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{here}/cni.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    BinaryName = "{INNER}/bin/runc"
    SystemdCgroup = false
"#
    )
}

/// Name of the image that holds a pod's namespaces open.
pub const PAUSE: &str = "lab.local/pause:1";

fn kubelet_config(node: NodeSpec) -> String {
    let here = format!("{INNER}/lab/nodes/{}", node.name());
    format!(
        r"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {here}/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: {here}/node.crt
tlsPrivateKeyFile: {here}/node.key
cgroupDriver: cgroupfs
cgroupRoot: /lab/{name}
# The lab's machines may have control groups of version 1.
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: ''
volumePluginDir: /var/lib/kubelet/volume-plugins
enforceNodeAllocatable: [pods]
evictionHard: {{memory.available: 50Mi, nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%}}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
serializeImagePulls: false
# An image that was pulled once is otherwise access-checked under every other name it has.
imagePullCredentialsVerificationPolicy: NeverVerify
# A node renews its lease at a quarter of this.
nodeLeaseDurationSeconds: 8
nodeStatusUpdateFrequency: 4s
maxPods: 60
",
        address = node.address(),
        name = node.name(),
    )
}

fn cni_config(node: NodeSpec) -> String {
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "lab",
  "plugins": [
    {{
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {{
        "type": "host-local", "dataDir": "/run/cni/ipam",
        "ranges": [[{{"subnet": "{range}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#,
        range = node.pod_range()
    )
}

/// The end of a node's logs, for an error message.
///
/// # Errors
/// When there are none.
pub fn logs(paths: &Paths, node: NodeSpec) -> Result<String> {
    let dir = folder(paths, node);
    std::fs::metadata(&dir).context("no such node")?;
    let logs = ["containerd.log", "kubelet.log", "kube-proxy.log"];
    Ok(logs.map(|log| super::apiserver::tail(&dir.join(log))).join("\n"))
}
