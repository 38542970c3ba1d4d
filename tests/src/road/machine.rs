//! The processes of Fleetune's containers, as this machine sees them.

use anyhow::Result;
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

/// Resident memory of a process in bytes; 0 where it has ended.
pub fn resident_bytes(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
