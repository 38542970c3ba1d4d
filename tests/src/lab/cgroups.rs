//! Each node's control groups: `lab/NODE` in every hierarchy. Nothing else under `/sys/fs/cgroup` is written or removed.

use super::topology;
use anyhow::{Context, Result};
use nix::unistd::Pid;
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

/// The group of a process of the lab, in the hierarchy of a controller.
fn of(pid: Pid, controller: &str) -> Result<PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let hierarchy = if controllers.is_empty() { "" } else { controller };
        let ours = controllers.is_empty() || controllers.split(',').any(|name| name == controller);
        ours.then(|| Path::new(ROOT).join(hierarchy).join(path.trim_start_matches('/')))
    });
    let own = own.with_context(|| format!("process {pid} has no group of {controller}: {groups}"))?;
    anyhow::ensure!(
        own.components().any(|part| part.as_os_str() == "lab"),
        "process {pid} is none of the lab's: {}",
        own.display()
    );
    Ok(own)
}

/// How often the kernel has killed in the group of a process, because the group's memory ran out.
///
/// # Errors
/// When the process is not there, or the kernel does not count.
pub fn oom_kills(pid: Pid) -> Result<u64> {
    let group = of(pid, "memory")?;
    let file = ["memory.oom_control", "memory.events"].map(|name| group.join(name));
    let file = file.iter().find(|file| file.exists()).context("no account of kills")?;
    let text = std::fs::read_to_string(file)?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .context("kills are not counted")?
        .trim()
        .parse()
        .context("no number")
}

/// A bound on the processor time of a process's container, until it is dropped.
#[derive(Debug)]
pub struct Throttle {
    undo: Vec<(PathBuf, String)>,
}

impl Throttle {
    /// Gives the container of a process `quota` of processor time in each `period`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(pid: Pid, quota: Duration, period: Duration) -> Result<Self> {
        let group = of(pid, "cpu")?;
        let (quota, period) = (quota.as_micros(), period.as_micros());
        let wanted = if group.join("cpu.max").exists() {
            vec![("cpu.max", format!("{quota} {period}"))]
        } else {
            vec![
                ("cpu.cfs_period_us", period.to_string()),
                ("cpu.cfs_quota_us", quota.to_string()),
            ]
        };
        let mut throttle = Self { undo: Vec::new() };
        for (name, value) in wanted {
            let file = group.join(name);
            let before = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            std::fs::write(&file, value).with_context(|| file.display().to_string())?;
            throttle.undo.push((file, before.trim().to_owned()));
        }
        Ok(throttle)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        for (file, before) in self.undo.iter().rev() {
            let _ = std::fs::write(file, before);
        }
    }
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
