//! How much memory this container has left, by the kernel's account: cgroup v2, cgroup v1, or the machine where nothing
//! bounds it.

use std::fs;
use std::path::{Path, PathBuf};

/// A limit at least this large is none: cgroup v1 writes a huge number for "unlimited".
const UNLIMITED: u64 = 1 << 60;

/// Bytes that can still be taken. None where the system does not say.
pub fn left() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available(&text));
    let cgroup = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| in_cgroup(&text, Path::new("/sys/fs/cgroup")));
    match (cgroup, machine) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

fn in_cgroup(own: &str, root: &Path) -> Option<u64> {
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let relative = path.trim_start_matches('/');
        // Inside a container the own group is often mounted as the root, whatever its path is called outside.
        let found = if controllers.is_empty() {
            [root.join(relative), root.to_owned()].iter().find_map(|dir| v2(dir))
        } else if controllers.split(',').any(|name| name == "memory") {
            let base = root.join("memory");
            [base.join(relative), base].iter().find_map(|dir| v1(dir))
        } else {
            None
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn v2(dir: &Path) -> Option<u64> {
    remaining(
        number(dir.join("memory.max"))?,
        number(dir.join("memory.current"))?,
        dir,
        "inactive_file",
    )
}

fn v1(dir: &Path) -> Option<u64> {
    remaining(
        number(dir.join("memory.limit_in_bytes"))?,
        number(dir.join("memory.usage_in_bytes"))?,
        dir,
        "total_inactive_file",
    )
}

/// What is left under the limit, counting page cache that the kernel gives back by itself as free.
fn remaining(limit: u64, usage: u64, dir: &Path, inactive: &str) -> Option<u64> {
    if limit >= UNLIMITED {
        return None;
    }
    let cache = fs::read_to_string(dir.join("memory.stat"))
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix(inactive)?.trim().parse::<u64>().ok())
        })
        .unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(cache)))
}

fn number(path: PathBuf) -> Option<u64> {
    match fs::read_to_string(path).ok()?.trim() {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_cgroups_are_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("memory/pod");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("memory.limit_in_bytes"), "1000\n").unwrap();
        fs::write(dir.join("memory.usage_in_bytes"), "700\n").unwrap();
        fs::write(dir.join("memory.stat"), "cache 300\ntotal_inactive_file 200\n").unwrap();
        assert_eq!(in_cgroup("4:cpu:/pod\n3:memory:/pod\n", root.path()), Some(500));
        fs::write(dir.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(in_cgroup("3:memory:/pod\n", root.path()), None);
        // The container's own group is mounted as the root.
        fs::write(root.path().join("memory.max"), "1000\n").unwrap();
        fs::write(root.path().join("memory.current"), "400\n").unwrap();
        assert_eq!(in_cgroup("0::/somewhere/outside\n", root.path()), Some(600));
        fs::write(root.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(in_cgroup("0::/\n", root.path()), None);
    }

    #[test]
    fn the_machine_says_what_is_available() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:    8 kB\n"), Some(8192));
        assert!(left().unwrap() > 1 << 20);
    }
}
