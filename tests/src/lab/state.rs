//! What `up` has made, on disk from the first moment on, so that whoever comes next can attach to it or remove it.

use super::paths::Paths;
use super::process::Process;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::sync::Mutex;

/// The state of a run of the lab.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Clusters that are up.
    pub clusters: Vec<String>,
    /// Processes by what they are; the newest of a name counts.
    pub processes: Vec<Process>,
    /// Whether `up` came to its end.
    pub complete: bool,
    /// How long `up` took, in seconds.
    #[serde(default)]
    pub up_secs: f64,
}

impl State {
    /// The state on disk, if there is one.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(paths: &Paths) -> Result<Option<Self>> {
        match std::fs::read_to_string(paths.state()) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).context("state.json")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| paths.state().display().to_string()),
        }
    }

    /// Replaces the state on disk in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, paths: &Paths) -> Result<()> {
        let new = paths.state().with_extension("new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, paths.state())?;
        Ok(())
    }

    /// The process of that name.
    pub fn process(&self, name: &str) -> Option<&Process> {
        self.processes.iter().find(|p| p.name == name)
    }
}

/// The state that several threads write to while the lab comes up.
pub struct Ledger {
    paths: Paths,
    state: Mutex<State>,
}

impl Ledger {
    /// A ledger that goes on from `state`.
    pub fn new(paths: Paths, state: State) -> Self {
        Self {
            paths,
            state: Mutex::new(state),
        }
    }

    /// Changes the state and writes it down.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn change(&self, change: impl FnOnce(&mut State)) -> Result<State> {
        let mut state = self
            .state
            .lock()
            .map_err(|_| anyhow::anyhow!("a thread of the lab panicked"))?;
        change(&mut state);
        state.save(&self.paths)?;
        Ok(state.clone())
    }

    /// Notes a process in place of an earlier one of its name.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn note(&self, process: Process) -> Result<()> {
        self.change(|state| {
            state.processes.retain(|p| p.name != process.name);
            state.processes.push(process);
        })?;
        Ok(())
    }
}

/// Held while somebody brings the lab up or down or changes it: one at a time, over processes.
///
/// # Errors
/// When the lock file cannot be made.
pub fn lock(paths: &Paths) -> Result<File> {
    std::fs::create_dir_all(paths.root())?;
    let file = File::create(paths.root().join("lab.lock"))?;
    file.lock()?;
    Ok(file)
}
