//! `finetune --local`: the same job without a cluster, by the same code, to the same digest: version and report in a
//! folder. It pushes nothing.

use crate::artifact::pack;
use crate::config::Job;
use crate::error::{INVALID_JOB, Result, WorkerError};
use crate::finetune::{Fetched, Storage, blocking, build, fetch};
use crate::gates::Verdict;
use crate::progress::Tracker;
use crate::validate::{Candidate, evaluate};
use fleetune_crds::common::Digest;
use fleetune_crds::outcome::Summary;
use std::path::{Path, PathBuf};

/// Folder of the version under `--out`.
pub const VERSION: &str = "version";
/// Folder of the report under `--out`.
pub const REPORT: &str = "report";
/// Folder of the checkpoints under `--out`, there while a training is not done: started again, it goes on.
pub const CHECKPOINTS: &str = "checkpoints";

/// What a local run made.
#[derive(Clone, Debug)]
pub struct Local {
    /// Digest of the candidate.
    pub digest: Digest,
    /// Digest of the data manifest.
    pub data_manifest: Digest,
    /// The word on it.
    pub verdict: Verdict,
    /// What was measured.
    pub summary: Summary,
}

/// Runs `job` into the folder `out`, whose `version` and `report` must not be there yet. `program` is the worker's own
/// binary, for the self-test's child.
pub async fn run(job: Job, out: &Path, program: Option<PathBuf>, tracker: Tracker) -> Result<Local> {
    std::fs::create_dir_all(out).map_err(|e| WorkerError::io("making", out, &e))?;
    let scratch = tempfile::tempdir_in(out).map_err(|e| WorkerError::io("making", out, &e))?;
    let fetched = fetch(&job, scratch.path(), true, true, &tracker).await?;
    let (out, work) = (out.to_owned(), tracker.clone());
    let result = blocking(move || {
        let folder = out.join(CHECKPOINTS);
        let made = make(
            &job,
            &fetched,
            &out,
            program.as_deref(),
            &Storage::under(&folder),
            &work,
        );
        // Empty once the training is done.
        let _ = std::fs::remove_dir(&folder);
        made
    })
    .await;
    tracker.finish();
    result
}

/// Makes version and report from files that are on this machine.
fn make(
    job: &Job,
    fetched: &Fetched,
    out: &Path,
    program: Option<&Path>,
    storage: &Storage<'_>,
    tracker: &Tracker,
) -> Result<Local> {
    let (version, report) = (out.join(VERSION), out.join(REPORT));
    for folder in [&version, &report] {
        if folder.exists() {
            return Err(WorkerError::bad(
                INVALID_JOB,
                format!("{} is there already: name a fresh folder with --out", folder.display()),
            ));
        }
    }
    std::fs::create_dir_all(out).map_err(|e| WorkerError::io("making", out, &e))?;
    // Whole or not at all: the version gets its name when it is done.
    let scratch = tempfile::tempdir_in(out).map_err(|e| WorkerError::io("making", out, &e))?;
    let draft = scratch.path().join("draft");
    std::fs::create_dir_all(&draft).map_err(|e| WorkerError::io("making", &draft, &e))?;
    let (built, data) = build(job, fetched, &draft, storage, tracker)?;
    let digest = pack(&draft)?.digest();
    std::fs::rename(&draft, &version).map_err(|e| WorkerError::io("naming", &version, &e))?;
    let candidate = Candidate {
        dir: &version,
        digest: &digest,
        program,
    };
    let (verdict, summary) = evaluate(job, &candidate, &data, &report, tracker)?;
    Ok(Local {
        digest,
        data_manifest: built.data_manifest,
        verdict,
        summary,
    })
}

impl Local {
    /// What to tell a person at the end.
    pub fn text(&self, out: &Path) -> String {
        use std::fmt::Write;
        let mut text = format!("{}: {}\n", self.verdict.reason, self.verdict.message);
        for (name, value) in &self.summary.metrics {
            let baseline = self.summary.baseline_metrics.get(name);
            let beside = baseline.map_or(String::new(), |b| format!("   {} {b}", self.summary.baseline));
            let _ = writeln!(text, "  {name:<15} {value}{beside}");
        }
        let _ = writeln!(
            text,
            "  {:<15} {} ms, {} bytes",
            "p95, size", self.summary.p95_latency_ms, self.summary.bytes
        );
        let _ = writeln!(text, "version   {}  {}", self.digest, out.join(VERSION).display());
        let _ = writeln!(
            text,
            "report    {}",
            out.join(REPORT).join(crate::report::HTML).display()
        );
        text
    }
}

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod tests;
