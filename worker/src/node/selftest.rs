//! The self-test of a version in a child process: the same binary, with a deadline, and with an address-space limit below
//! what the container has left. Whatever the version does there, the serving process does not feel it.

use crate::error::{Class, UNSUPPORTED_FORMAT, WorkerError};
use crate::selftest::SelfTestResult;
use fleetune_crds::common::Span;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// Most bytes of the child's answer.
const MAX_ANSWER: u64 = 64 << 10;
/// Least address space that a child is started with.
const MIN_MEMORY: u64 = 64 << 20;
/// How often a version that was only too slow is tried again: the node may have been busy.
const LATENCY_TRIES: u32 = 3;
/// Wait between these.
const LATENCY_PAUSE: Duration = Duration::from_secs(2);

/// What the child prints.
#[derive(Serialize, Deserialize, Debug)]
#[serde(untagged)]
pub enum Answer {
    /// It ran to the end.
    Result(SelfTestResult),
    /// The version cannot be opened or run.
    Failed {
        /// Why.
        error: Failure,
    },
}

/// Why a version cannot be opened or run.
#[derive(Serialize, Deserialize, Debug)]
pub struct Failure {
    /// A PascalCase word.
    pub reason: String,
    /// What, where and what to do.
    pub message: String,
    /// Whether trying again can help.
    pub transient: bool,
}

impl From<&WorkerError> for Answer {
    fn from(error: &WorkerError) -> Self {
        Self::Failed {
            error: Failure {
                reason: error.reason().to_owned(),
                message: error.message().to_owned(),
                transient: error.class() == Class::Transient,
            },
        }
    }
}

/// What came of a self-test.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The version works here.
    Passed,
    /// The version is bad.
    Failed {
        /// A PascalCase word.
        reason: &'static str,
        /// What, where and what to do.
        message: String,
    },
    /// This node cannot take it.
    Skipped {
        /// A PascalCase word.
        reason: &'static str,
        /// What, where and what to do.
        message: String,
    },
    /// No verdict: try again later.
    Inconclusive {
        /// What, where and what to do.
        message: String,
    },
}

/// Bounds of a self-test.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Largest deviation that passes.
    pub tolerance: f32,
    /// The longest that it may take.
    pub deadline: Duration,
    /// Most address space, in bytes; none where nothing bounds the process.
    pub memory: Option<u64>,
    /// Longest 95th percentile, from the budget of this node's class.
    pub max_p95: Option<Span>,
    /// Most resident memory, from the budget of this node's class.
    pub max_peak: Option<u64>,
}

/// Runs the self-test of the version in `dir` by `program`, which is this binary.
pub async fn run(program: &Path, dir: &Path, bounds: &Bounds) -> Verdict {
    if bounds.memory.is_some_and(|bytes| bytes < MIN_MEMORY) {
        return Verdict::Skipped {
            reason: "BudgetExceeded",
            message: format!(
                "{} MiB of memory are left for a self-test, {} MiB are needed: raise the runtime's memory limit",
                bounds.memory.unwrap_or_default() >> 20,
                MIN_MEMORY >> 20
            ),
        };
    }
    let mut verdict = once(program, dir, bounds).await;
    for _ in 1..LATENCY_TRIES {
        let (Verdict::Failed { message, .. }, true) = &verdict else {
            break;
        };
        tracing::info!(message, "self-test too slow: trying again");
        tokio::time::sleep(LATENCY_PAUSE).await;
        verdict = once(program, dir, bounds).await;
    }
    verdict.0
}

/// One run; true where the version was only too slow.
async fn once(program: &Path, dir: &Path, bounds: &Bounds) -> (Verdict, bool) {
    let inconclusive = |message: String| (Verdict::Inconclusive { message }, false);
    let failed = |message: String| {
        (
            Verdict::Failed {
                reason: "SelfTestFailed",
                message,
            },
            false,
        )
    };
    let mut command = tokio::process::Command::new(program);
    command
        .arg("selftest")
        .arg(dir)
        .arg(format!("--tolerance={}", bounds.tolerance))
        // Arenas are reserved, not used, but the limit counts them.
        .env("MIMALLOC_ARENA_RESERVE", "0")
        .env("RUST_LOG", "error")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    if let Some(bytes) = bounds.memory {
        command.arg(format!("--memory={bytes}"));
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return inconclusive(format!("the self-test process cannot be started: {error}")),
    };
    let mut text = Vec::new();
    let work = async {
        if let Some(out) = child.stdout.take() {
            let _ = out.take(MAX_ANSWER).read_to_end(&mut text).await;
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(bounds.deadline, work).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return inconclusive(format!("the self-test process is lost: {error}")),
        Err(_) => {
            let _ = child.kill().await;
            return failed(format!("the self-test took longer than {:?}", bounds.deadline));
        }
    };
    match serde_json::from_slice(&text) {
        Ok(Answer::Result(result)) if status.success() => judge(&result, bounds),
        Ok(Answer::Failed { error }) if error.transient => inconclusive(error.message),
        Ok(Answer::Failed { error }) if error.reason == UNSUPPORTED_FORMAT => (
            Verdict::Skipped {
                reason: UNSUPPORTED_FORMAT,
                message: error.message,
            },
            false,
        ),
        Ok(Answer::Failed { error }) => failed(format!("{}: {}", error.reason, error.message)),
        _ => failed(format!("the self-test process ended with {status}{}", limit(bounds))),
    }
}

fn limit(bounds: &Bounds) -> String {
    bounds
        .memory
        .map(|bytes| format!(" (address-space limit {} MiB)", bytes >> 20))
        .unwrap_or_default()
}

/// The verdict over a run to the end; true where the version was only too slow.
fn judge(result: &SelfTestResult, bounds: &Bounds) -> (Verdict, bool) {
    if !result.ok {
        let message = format!(
            "outputs differ from the recorded ones by {}, more than the tolerance of {}",
            result.worst, bounds.tolerance
        );
        return (
            Verdict::Failed {
                reason: "SelfTestFailed",
                message,
            },
            false,
        );
    }
    let over = |message| Verdict::Failed {
        reason: "BudgetExceeded",
        message,
    };
    if let Some(most) = bounds.max_peak
        && result.peak_memory_bytes > most
    {
        let message = format!(
            "peak memory of {} bytes, the budget is {most}",
            result.peak_memory_bytes
        );
        return (over(message), false);
    }
    if let Some(most) = bounds.max_p95.as_ref().map(|span| span.get().as_secs_f64() * 1e3)
        && result.p95_ms > most
    {
        let message = format!(
            "95 % of the samples took up to {:.1} ms, the budget is {most:.1} ms",
            result.p95_ms
        );
        return (over(message), true);
    }
    (Verdict::Passed, false)
}

/// This binary, also where its file has been replaced meanwhile.
pub fn program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn bounds() -> Bounds {
        Bounds {
            tolerance: 0.1,
            deadline: Duration::from_secs(5),
            memory: Some(1 << 30),
            max_p95: None,
            max_peak: None,
        }
    }

    async fn with_script(script: &str, bounds: &Bounds) -> Verdict {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        once(&path, dir.path(), bounds).await.0
    }

    #[tokio::test]
    async fn every_end_of_the_child_has_a_verdict() {
        let good = r#"echo '{"ok":true,"worst":0.01,"p95Ms":5.0,"peakMemoryBytes":100}'"#;
        let off = r#"echo '{"ok":false,"worst":0.5,"p95Ms":5.0,"peakMemoryBytes":100}'"#;
        let error = r#"echo '{"error":{"reason":"NotOnnx","message":"m","transient":false}}'; exit 2"#;
        let passing = r#"echo '{"error":{"reason":"LocalIo","message":"m","transient":true}}'; exit 3"#;
        let newer = r#"echo '{"error":{"reason":"UnsupportedFormat","message":"m","transient":false}}'; exit 2"#;
        assert_eq!(with_script(good, &bounds()).await, Verdict::Passed);
        let failed = |verdict: Verdict, text: &str| match verdict {
            Verdict::Failed { reason, message } => {
                assert!(message.contains(text), "{message}");
                reason
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(failed(with_script(off, &bounds()).await, "0.5"), "SelfTestFailed");
        assert_eq!(failed(with_script(error, &bounds()).await, "NotOnnx"), "SelfTestFailed");
        assert_eq!(
            failed(with_script("kill -ABRT $$", &bounds()).await, "signal"),
            "SelfTestFailed"
        );
        assert_eq!(
            failed(with_script("exit 0", &bounds()).await, "ended"),
            "SelfTestFailed"
        );
        assert_eq!(
            failed(with_script(&format!("{good}; exit 1"), &bounds()).await, "ended"),
            "SelfTestFailed"
        );
        let quick = Bounds {
            deadline: Duration::from_millis(100),
            ..bounds()
        };
        assert_eq!(
            failed(with_script("exec sleep 10", &quick).await, "longer"),
            "SelfTestFailed"
        );
        assert!(matches!(
            with_script(passing, &bounds()).await,
            Verdict::Inconclusive { .. }
        ));
        assert!(matches!(with_script(newer, &bounds()).await, Verdict::Skipped { .. }));
        let slow = Bounds {
            max_p95: Some("4ms".parse().unwrap()),
            ..bounds()
        };
        assert_eq!(failed(with_script(good, &slow).await, "budget"), "BudgetExceeded");
        let large = Bounds {
            max_peak: Some(99),
            ..bounds()
        };
        assert_eq!(failed(with_script(good, &large).await, "budget"), "BudgetExceeded");
    }

    #[tokio::test]
    async fn without_memory_nothing_is_started() {
        let none = Bounds {
            memory: Some(1 << 20),
            ..bounds()
        };
        let verdict = run(Path::new("/nonexistent"), Path::new("/"), &none).await;
        assert!(matches!(
            verdict,
            Verdict::Skipped {
                reason: "BudgetExceeded",
                ..
            }
        ));
    }
}
