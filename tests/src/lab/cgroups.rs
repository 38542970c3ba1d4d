//! Each node's control groups: `lab/NODE` in every hierarchy. Nothing else under `/sys/fs/cgroup` is written or removed.

use super::topology;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";

/// The folders that hold hierarchies: one a controller with version 1, the root itself with version 2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_path_buf()]);
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(root).context("no control groups")? {
        let path = entry?.path();
        // Links such as cpu,cpuacct lead to a folder that is listed anyway.
        if path.is_dir() && !path.is_symlink() && path.join("cgroup.procs").exists() {
            all.push(path);
        }
    }
    anyhow::ensure!(!all.is_empty(), "no control groups are mounted under {ROOT}");
    Ok(all)
}

/// Makes the groups of a node.
///
/// # Errors
/// When the kernel refuses.
pub fn create(node: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let lab = hierarchy.join("lab");
        for (parent, group) in [(&hierarchy, lab.clone()), (&lab, lab.join(node))] {
            // Version 2 hands a controller down only where the parent says so.
            if parent.join("cgroup.subtree_control").exists() && hierarchy == Path::new(ROOT) {
                for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
                    let _ = std::fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
            std::fs::create_dir_all(&group).with_context(|| group.display().to_string())?;
            // Version 1 starts a cpuset empty, and nothing can run in an empty one.
            for name in ["cpuset.cpus", "cpuset.mems"] {
                if parent.join(name).exists() && hierarchy != Path::new(ROOT) {
                    std::fs::write(group.join(name), std::fs::read(parent.join(name))?)?;
                }
            }
        }
    }
    Ok(())
}

/// Removes what pods left in a node's groups, and the groups. A kubelet needs three seconds for each stale one.
///
/// # Errors
/// When a group still has processes after a while.
pub fn remove(node: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        remove_tree(&hierarchy.join("lab").join(node))?;
    }
    Ok(())
}

/// Removes the groups of all nodes of the lab, and `lab` itself unless somebody else has put something there.
///
/// # Errors
/// When a group still has processes after a while.
pub fn remove_all() -> Result<()> {
    for hierarchy in hierarchies()? {
        let lab = hierarchy.join("lab");
        for node in topology::CLUSTERS
            .into_iter()
            .flat_map(topology::ClusterSpec::node_specs)
        {
            remove_tree(&lab.join(node.name()))?;
        }
        let _ = std::fs::remove_dir(&lab);
    }
    Ok(())
}

/// The node groups that are there, for the test that nothing stays.
///
/// # Errors
/// When the hierarchies cannot be read.
pub fn leftovers() -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?
        .into_iter()
        .map(|h| h.join("lab"))
        .filter(|p| p.exists())
        .collect())
}

fn remove_tree(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    // The last process of a group takes a moment to go after it was killed.
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match std::fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error).with_context(|| group.display().to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
