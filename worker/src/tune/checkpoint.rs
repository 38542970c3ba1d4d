//! Checkpoints of a training on the job's volume: the last state, and the weights of the best epoch. A training that goes
//! on from one ends in the same bytes as one that never stopped. Files are written whole or not at all.

use super::Setup;
use crate::engine::tunable::Tunable;
use crate::error::{CHECKPOINT_MISMATCH, Result, WorkerError};
use crate::lineage::cpu_features;
use crate::train::Epoch;
use fleetune_gradient::checkpoint::{self, CheckpointError};
use fleetune_gradient::optim::Rule;
use fleetune_gradient::params::Param;
use fleetune_gradient::trainer::{Plan, Report, Trainer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The last state.
const LATEST: &str = "latest";
/// Most bytes of a checkpoint that are read: weights and two moments of the largest base model, and a little more.
const MAX_BYTES: u64 = 4 * crate::config::MAX_MODEL_BYTES;

/// Where the checkpoints of one job lie.
pub struct Store {
    dir: PathBuf,
    spec: [u8; 32],
}

/// The best epoch's weights, and that epoch.
type Kept = (Vec<Param>, Epoch);

/// What a checkpoint notes beside weights and optimizer.
#[derive(Clone, Debug, PartialEq)]
pub struct Notes {
    /// Epochs that are done.
    pub history: Vec<Epoch>,
    /// Number of the best one.
    best: u32,
    /// Of the epoch that goes on: Σ loss · rows, Σ gradient norm, rows, steps, and the last learning rate.
    loss: f64,
    norm: f64,
    rows: u64,
    steps: u64,
    learning_rate: f64,
}

/// [`Notes`] as they are written: floats by their bits, because text would round them.
#[derive(Serialize, Deserialize)]
struct Written {
    history: Vec<(u32, [u64; 5])>,
    best: u32,
    floats: [u64; 3],
    rows: u64,
    steps: u64,
}

impl Notes {
    /// The notes of a run whose epoch 0 is `first`.
    pub fn begin(first: Epoch) -> Self {
        Self {
            history: vec![first],
            best: 0,
            loss: 0.0,
            norm: 0.0,
            rows: 0,
            steps: 0,
            learning_rate: 0.0,
        }
    }

    /// Adds a step to the epoch that goes on.
    pub fn add(&mut self, report: &Report) {
        self.loss += report.loss * f64::from(report.rows);
        self.norm += report.gradient_norm;
        self.rows += u64::from(report.rows);
        self.steps += 1;
        self.learning_rate = report.learning_rate;
    }

    /// Ends epoch `number`, whose validation gave `measured`.
    pub fn finish(&mut self, number: u32, measured: &Epoch) -> Epoch {
        let entry = Epoch {
            epoch: number,
            train_loss: self.loss / self.rows.max(1) as f64,
            learning_rate: self.learning_rate,
            gradient_norm: self.norm / self.steps.max(1) as f64,
            ..measured.clone()
        };
        (self.loss, self.norm, self.rows, self.steps) = (0.0, 0.0, 0, 0);
        self.history.push(entry.clone());
        entry
    }

    /// The best epoch.
    pub fn best(&self) -> Option<Epoch> {
        self.history.iter().find(|e| e.epoch == self.best).cloned()
    }

    fn bytes(&self) -> Vec<u8> {
        let floats = |e: &Epoch| {
            [
                e.train_loss,
                e.validation_loss,
                e.objective,
                e.learning_rate,
                e.gradient_norm,
            ]
            .map(f64::to_bits)
        };
        let written = Written {
            history: self.history.iter().map(|e| (e.epoch, floats(e))).collect(),
            best: self.best,
            floats: [self.loss, self.norm, self.learning_rate].map(f64::to_bits),
            rows: self.rows,
            steps: self.steps,
        };
        serde_json::to_vec(&written).unwrap_or_default()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let written: Written = serde_json::from_slice(bytes).ok()?;
        let epoch = |(epoch, bits): &(u32, [u64; 5])| {
            let [train_loss, validation_loss, objective, learning_rate, gradient_norm] = bits.map(f64::from_bits);
            Epoch {
                epoch: *epoch,
                train_loss,
                validation_loss,
                objective,
                learning_rate,
                gradient_norm,
            }
        };
        let [loss, norm, learning_rate] = written.floats.map(f64::from_bits);
        Some(Self {
            history: written.history.iter().map(epoch).collect(),
            best: written.best,
            loss,
            norm,
            rows: written.rows,
            steps: written.steps,
            learning_rate,
        })
    }
}

impl Store {
    /// The store of a job: everything that decides about its bytes is in its hash, and the hash is in the folder's name, so
    /// that jobs can share a volume.
    pub fn of(setup: &Setup<'_>, tunable: &Tunable, shard: usize) -> Result<Self> {
        let job = setup.job;
        let text = crate::pipeline::json(&(
            (&job.spec.train, &job.spec.base_model.sha256, &setup.backbone.features),
            (&job.spec.input, job.spec.task, job.objective.name()),
            (&setup.data.manifest, &job.spec.dataset.split, &tunable.trained),
            (
                shard,
                env!("CARGO_PKG_VERSION"),
                option_env!("FLEETUNE_REVISION"),
                cpu_features(),
            ),
        ))?;
        let spec: [u8; 32] = Sha256::digest(&text).into();
        let name = format!("{}.{}.{}", job.namespace, job.spec.model_name, &hex::encode(spec)[..12]);
        Ok(Self {
            dir: setup.work.join(name),
            spec,
        })
    }

    /// The state that was saved last, its notes, and the weights of its best epoch; `None` of those where that is epoch 0.
    #[allow(clippy::type_complexity)] // Read in one place.
    pub fn load(&self, plan: &Plan, params: &[Param]) -> Result<Option<(Trainer, Notes, Option<Vec<Param>>)>> {
        let Some((trainer, notes)) = self.read(LATEST, plan.clone(), params)? else {
            return Ok(None);
        };
        let Some(notes) = Notes::read(&notes) else {
            return Ok(None);
        };
        if notes.best == 0 {
            return Ok(Some((trainer, notes, None)));
        }
        let best = self.read(&best(notes.best), weights_only(plan), params)?;
        Ok(best.map(|(best, _)| (trainer, notes, Some(best.params().to_vec()))))
    }

    /// Saves the state of a run.
    pub fn save(&self, trainer: &Trainer, notes: &Notes, kept: Option<&Kept>) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(|e| WorkerError::io("making", &self.dir, &e))?;
        let mut notes = notes.clone();
        // The best epoch's weights first: what the last state names is always there.
        if let Some((params, epoch)) = kept {
            notes.best = epoch.epoch;
            let name = best(epoch.epoch);
            if epoch.epoch > 0 && !self.dir.join(&name).exists() {
                let weights = Trainer::new(weights_only(trainer.plan()), params.clone())
                    .map_err(|e| WorkerError::bad(crate::error::INTERNAL, e.to_string()))?;
                self.write(&name, &weights, &[])?;
            }
        }
        self.write(LATEST, trainer, &notes.bytes())?;
        self.keep_only(&[LATEST.to_owned(), best(notes.best)]);
        tracing::debug!(step = trainer.next_step(), "checkpoint");
        Ok(())
    }

    /// Removes all checkpoints of the job: it is done.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.display(), %error, "checkpoints stay");
        }
    }

    fn write(&self, name: &str, trainer: &Trainer, notes: &[u8]) -> Result<()> {
        let io = |e: std::io::Error| WorkerError::io("writing a checkpoint into", &self.dir, &e);
        let mut file = tempfile::NamedTempFile::new_in(&self.dir).map_err(io)?;
        let mut out = BufWriter::new(file.as_file_mut());
        checkpoint::write(trainer, &self.spec, notes, &mut out).map_err(io)?;
        out.flush().map_err(io)?;
        drop(out);
        file.as_file().sync_all().map_err(io)?;
        file.persist(self.dir.join(name)).map_err(|e| io(e.error))?;
        Ok(())
    }

    /// A checkpoint that is damaged is as good as none; one of another job is an error.
    fn read(&self, name: &str, plan: Plan, params: &[Param]) -> Result<Option<(Trainer, Vec<u8>)>> {
        let path = self.dir.join(name);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_BYTES => {
                tracing::warn!(path = %path.display(), bytes = meta.len(), "too large for a checkpoint: starts over");
                return Ok(None);
            }
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(WorkerError::io("reading", &path, &e)),
        }
        let bytes = fs::read(&path).map_err(|e| WorkerError::io("reading", &path, &e))?;
        match checkpoint::resume(plan, params.to_vec(), &self.spec, &bytes) {
            Ok(found) => Ok(Some(found)),
            Err(
                error @ (CheckpointError::OtherSpec
                | CheckpointError::OtherTensors(_)
                | CheckpointError::OtherOptimizer
                | CheckpointError::Beyond { .. }),
            ) => Err(WorkerError::bad(
                CHECKPOINT_MISMATCH,
                format!("{}: {error}: remove it", path.display()),
            )),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "starts over");
                Ok(None)
            }
        }
    }

    fn keep_only(&self, names: &[String]) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            if !names.iter().any(|keep| Path::new(&name) == Path::new(keep)) {
                // What cannot be removed costs room, nothing else.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn best(epoch: u32) -> String {
    format!("best-{epoch}")
}

/// The plan of a run that remembers nothing but weights.
fn weights_only(plan: &Plan) -> Plan {
    Plan {
        rule: Rule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        },
        ..plan.clone()
    }
}
