//! The OCI images of the lab: operator and worker from their release binaries, and two small ones that the lab itself
//! needs. No container engine and no registry but the lab's is used.

mod oci;

pub use oci::{Blob, Entry, Image, NON_ROOT};

use crate::lab::paths::{Paths, tree};
use crate::lab::{Lab, run};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An image in the lab's registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// `HOST/PATH@sha256:…`, as pods name it.
    pub reference: String,
    /// What a node downloads.
    pub compressed_bytes: usize,
}

/// Operator and worker in the lab's registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// `fleetune-operator`.
    pub operator: Pushed,
    /// `fleetune-worker`.
    pub worker: Pushed,
    /// Folder of the binaries that are in them.
    pub binaries: PathBuf,
}

/// Builds both release binaries, makes their images and pushes them into the lab's registry.
///
/// # Errors
/// When the build fails or the lab is not up.
pub async fn build(lab: &Lab) -> Result<Built> {
    let release = tokio::task::spawn_blocking(release_binaries).await??;
    let push = async |name: &str| -> Result<Pushed> {
        let image = of_binary(&release.join(name))?;
        let repository = format!("fleetune/{}", name.trim_start_matches("fleetune-"));
        let digest = image.push(lab.registry_loopback(), &repository).await?;
        Ok(Pushed {
            reference: format!("{}/{repository}@{digest}", lab.registry_addr()),
            compressed_bytes: image.compressed_bytes(),
        })
    };
    Ok(Built {
        operator: push("fleetune-operator").await?,
        worker: push("fleetune-worker").await?,
        binaries: release.clone(),
    })
}

/// Builds both release binaries and returns their folder.
///
/// # Errors
/// When there is no cargo, or the build fails.
pub fn release_binaries() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Under `cargo test` the environment names this package. Build scripts that watch those names (ring's does) would run
    // again, and everything above them would be built anew.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    for name in [
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_MANIFEST_LINKS",
        "CARGO_PRIMARY_PACKAGE",
    ] {
        command.env_remove(name);
    }
    let status = command
        .current_dir(tree())
        .args([
            "build",
            "--release",
            "--package",
            "fleetune-operator",
            "--package",
            "fleetune-worker",
        ])
        .status()
        .context("cannot run cargo")?;
    anyhow::ensure!(status.success(), "the release build failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| tree().join("target"), PathBuf::from);
    Ok(target.join("release"))
}

/// An image of one binary: in the lower layer what it is linked with and the certificates, which change rarely, in the
/// upper one the binary.
///
/// # Errors
/// When the binary is not there, or a shared object that it needs is not.
pub fn of_binary(binary: &Path) -> Result<Image> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let name = binary
        .file_name()
        .context("a binary has a name")?
        .to_string_lossy()
        .into_owned();
    let mut base = BTreeMap::new();
    for path in shared_objects(binary)? {
        let mode = 0o755;
        base.insert(path.display().to_string(), Entry::File(mode, read(&path)?));
    }
    let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if authorities.exists() {
        base.insert(
            authorities.display().to_string(),
            Entry::File(0o644, read(authorities)?),
        );
    }
    let users = format!("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{NON_ROOT}:{NON_ROOT}:nonroot:/:/sbin/nologin\n");
    base.insert("/etc/passwd".into(), Entry::File(0o644, users.into_bytes()));
    base.insert(
        "/etc/group".into(),
        Entry::File(0o644, format!("root:x:0:\nnonroot:x:{NON_ROOT}:\n").into_bytes()),
    );
    base.insert("/tmp".into(), Entry::Folder(0o1777));
    let path = format!("/usr/bin/{name}");
    let top = BTreeMap::from([(path.clone(), Entry::File(0o755, read(binary)?))]);
    Image::new(&[base, top], &[&path], NON_ROOT)
}

/// The shared objects that a binary is linked with, at the paths where it looks for them; none for a static one.
fn shared_objects(binary: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(binary).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_static = text.contains("statically linked") || why.contains("not a dynamic executable");
        anyhow::ensure!(is_static, "ldd {}: {text}{why}", binary.display());
        return Ok(BTreeSet::new());
    }
    parse_ldd(&text)
}

/// Reads what ldd prints: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader. The kernel's own object has no path.
fn parse_ldd(text: &str) -> Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        anyhow::ensure!(!line.ends_with("not found"), "a shared object is missing: {line}");
        let place = line.split_once("=> ").map_or(line, |(_, place)| place);
        let path = place.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            paths.insert(PathBuf::from(path));
        }
    }
    Ok(paths)
}

/// Compiles the pause program and writes its image where nodes import it from.
///
/// # Errors
/// When there is no C compiler.
pub fn write_pause(paths: &Paths) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (source, program) = (dir.path().join("pause.c"), dir.path().join("pause"));
    std::fs::write(&source, include_str!("pause.c"))?;
    run(Command::new("gcc")
        .args(["-static", "-Os", "-s", "-o"])
        .arg(&program)
        .arg(&source))?;
    let files = BTreeMap::from([("/pause".to_owned(), Entry::File(0o755, std::fs::read(program)?))]);
    let image = Image::new(&[files], &["/pause"], NON_ROOT)?;
    let target = paths.root().join("images/pause.tar");
    std::fs::create_dir_all(paths.root().join("images"))?;
    std::fs::write(&target, image.layout("lab.local/pause:1")?).with_context(|| target.display().to_string())
}

/// An image of a static busybox with links for its commands: what tests of the lab itself run.
///
/// # Errors
/// When the cache holds no busybox.
pub fn busybox(paths: &Paths) -> Result<Image> {
    let program = paths.program("busybox")?;
    let mut files = BTreeMap::from([("/bin/busybox".to_owned(), Entry::File(0o755, std::fs::read(program)?))]);
    for command in [
        "sh", "sleep", "httpd", "wget", "cat", "echo", "ls", "nc", "true", "false", "id",
    ] {
        files.insert(format!("/bin/{command}"), Entry::Link("busybox".into()));
    }
    files.insert("/tmp".into(), Entry::Folder(0o1777));
    Image::new(&[files], &["/bin/sh"], NON_ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let paths: Vec<PathBuf> = parse_ldd(text).unwrap().into_iter().collect();
        assert_eq!(
            paths,
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(parse_ldd("\tlibmissing.so => not found\n").is_err());
    }
}
