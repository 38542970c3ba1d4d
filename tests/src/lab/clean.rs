//! Removing the lab: everything that `up` made, by what is noted and by what is found, and nothing else.

use super::paths::Paths;
use super::process::{Process, start_time};
use super::state::State;
use super::{cgroups, net};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// Ends every process of the lab, then removes its groups, namespaces, mounts and files. Does nothing where there is no lab.
///
/// # Errors
/// When something stays; the message says what.
pub fn clear(paths: &Paths) -> Result<()> {
    if !paths.lab().exists() {
        return Ok(());
    }
    // A state that cannot be read must not keep the rest from being removed.
    let state = State::load(paths).unwrap_or_default().unwrap_or_default();
    let namespaces = net::all(paths)?;
    for process in state.processes.iter().rev() {
        process.kill()?;
    }
    // An interrupted `up` may have started what it had no time to note: it is in one of our namespaces all the same.
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        let left = net::processes_in(&namespaces)?;
        if left.is_empty() {
            break;
        }
        for pid in &left {
            if let Some(start) = start_time(*pid) {
                let _ = Process {
                    name: "a process in the lab".into(),
                    pid: *pid,
                    start,
                }
                .kill();
            }
        }
        anyhow::ensure!(
            Instant::now() < end,
            "processes {left:?} are still in the lab's networks"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    cgroups::remove_all()?;
    for file in namespaces {
        net::remove(&file)?;
    }
    let mounts = mounts_below(paths)?;
    for mount in mounts.iter().rev() {
        nix::mount::umount2(mount.as_str(), nix::mount::MntFlags::MNT_DETACH).with_context(|| mount.clone())?;
    }
    std::fs::remove_dir_all(paths.lab()).with_context(|| paths.lab().display().to_string())
}

/// Mounts of the machine under the lab's folder.
///
/// # Errors
/// When the list of mounts cannot be read.
pub fn mounts_below(paths: &Paths) -> Result<Vec<String>> {
    let lab = paths.lab();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points
        .filter(|at| std::path::Path::new(at).starts_with(&lab))
        .map(str::to_owned)
        .collect())
}
