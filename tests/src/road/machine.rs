//! The processes of Fleetune's containers, as this machine sees them.

use anyhow::{Result, ensure};
use nix::unistd::Pid;

/// The processes that run `/usr/bin/PROGRAM COMMAND …` in containers of the lab.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes(program: &str, command: &str) -> Result<Vec<Pid>> {
    let start = format!("/usr/bin/{program}\0{command}\0");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process may end while it is looked at.
        let Ok(arguments) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let Ok(groups) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            continue;
        };
        if arguments.starts_with(start.as_bytes()) && groups.contains(":/lab/") {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// The only one of these processes.
///
/// # Errors
/// When there is none, or more than one.
pub fn process(program: &str, command: &str) -> Result<Pid> {
    let found = processes(program, command)?;
    ensure!(found.len() == 1, "one {program} {command} runs: {found:?}");
    Ok(found[0])
}

/// The runtime of a node.
///
/// # Errors
/// When not exactly one runs there.
pub fn runtime(node: &str) -> Result<Pid> {
    let mut found = processes("fleetune-worker", "node")?;
    let here = format!(":/lab/{node}/");
    found.retain(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(&here))
    });
    ensure!(found.len() == 1, "one runtime runs on {node}: {found:?}");
    Ok(found[0])
}

/// Resident memory of a process in bytes; 0 where it has ended.
pub fn resident_bytes(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
