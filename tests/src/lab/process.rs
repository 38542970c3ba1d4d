//! Processes that outlive the one that started them, named by pid and start time so that a pid that was given away again
//! is never mistaken for ours.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is, for people and for the one that restarts it.
    pub name: String,
    /// Its pid.
    pub pid: i32,
    /// Its start in clock ticks since boot, from `/proc/PID/stat`.
    pub start: u64,
}

impl Process {
    /// Starts a program in a session of its own, with no input and its output appended to `log`. With a namespace file, it
    /// runs in that network namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, namespace: Option<&Path>, command: &[&str], path: &str, log: &Path) -> Result<Self> {
        Ok(Self::spawn(name, namespace, command, path, log, Stdio::null())?.0)
    }

    /// Starts a program that waits for a line of input before it does anything, in the machine's network namespace. Whoever
    /// starts it writes that line once the process is noted; if the starter is killed before, the program meets the end
    /// of its input instead.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_held(name: &str, command: &[&str], path: &str, log: &Path) -> Result<(Self, ChildStdin)> {
        let (process, input) = Self::spawn(name, None, command, path, log, Stdio::piped())?;
        Ok((process, input.context("a process without an input")?))
    }

    fn spawn(
        name: &str,
        namespace: Option<&Path>,
        command: &[&str],
        path: &str,
        log: &Path,
        input: Stdio,
    ) -> Result<(Self, Option<ChildStdin>)> {
        let out = File::options()
            .append(true)
            .create(true)
            .open(log)
            .with_context(|| log.display().to_string())?;
        let mut run = Command::new("setsid");
        if let Some(file) = namespace {
            run.arg("nsenter").arg(format!("--net={}", file.display())).arg("--");
        }
        // Nothing of the user's environment (proxies, KUBECONFIG) reaches the lab.
        run.args(command)
            .env_clear()
            .env("PATH", path)
            .env("HOME", "/nonexistent")
            .current_dir("/")
            .stdin(input)
            .stdout(out.try_clone()?)
            .stderr(out);
        let mut child = run.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = i32::try_from(child.id())?;
        let start = start_time(pid).with_context(|| format!("{name} ended at once: see {}", log.display()))?;
        let process = Self {
            name: name.to_owned(),
            pid,
            start,
        };
        Ok((process, child.stdin.take()))
    }

    /// Whether it still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    /// Kills it, without a chance to clean up, and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after ten seconds.
    pub fn kill(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while self.is_alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            anyhow::ensure!(Instant::now() < end, "{} (pid {}) does not end", self.name, self.pid);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

/// The start time of a process that is there and no zombie.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; what follows the last one is regular.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // The state is that of the first thread alone. As long as another one is ending, the process holds its files and
    // ports: whoever starts its successor now meets an address in use.
    let threads: usize = fields.get(17)?.parse().ok()?;
    if matches!(*fields.first()?, "Z" | "X") && threads <= 1 {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be run or says no; the message holds what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(
            "sleep",
            None,
            &["sleep", "60"],
            "/usr/bin:/bin",
            &dir.path().join("log"),
        )
        .unwrap();
        assert!(process.is_alive());
        let other = Process {
            start: process.start + 1,
            ..process.clone()
        };
        assert!(!other.is_alive(), "the same pid with another start is another process");
        process.kill().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn a_process_whose_first_thread_ended_is_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let program = "import ctypes, threading, time\n\
                       threading.Thread(target=time.sleep, args=(60,)).start()\n\
                       ctypes.CDLL(None).pthread_exit(None)";
        let process = Process::start("threads", None, &["python3", "-c", program], "/usr/bin:/bin", &log).unwrap();
        let stat = format!("/proc/{}/stat", process.pid);
        let end = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
            assert!(Instant::now() < end, "{}", std::fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(process.is_alive());
        process.kill().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn what_fails_says_why() {
        let error = run(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("no such luck"), "{error}");
    }
}
