//! The state of a run as bytes: weights, moments of the optimizer, number of the next step, and the hash of the spec that
//! made it. Files are the caller's. All numbers are little-endian:
//!
//! | what | bytes |
//! | --- | --- |
//! | `FTUNECK1` | 8 |
//! | hash of the spec | 32 |
//! | number of the next step | 8 |
//! | moments the optimizer keeps for each weight | 4 |
//! | number of tensors, then for each: length of its name, name, rank, dimensions of 8 bytes | 4, then 4 + n + 4 + 8 r |
//! | values of all tensors, then all first moments, then all second ones, in f32 | 4 each |
//! | length of the caller's notes, notes | 8 + n |
//! | SHA-256 of all of the above | 32 |
//!
//! What is read may be torn, of another job, or made to harm: nothing is reserved by a number that was read, every length is
//! compared with what the run at hand expects.

use crate::optim::State;
use crate::params::Param;
use crate::trainer::{Plan, PlanError, Trainer};
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// The first bytes, version included.
const MAGIC: &[u8; 8] = b"FTUNECK1";
/// Length of a SHA-256.
const HASH: usize = 32;
/// Values that are turned to bytes at once.
const CHUNK: usize = 1 << 12;
/// Most bytes of the caller's notes.
pub const MAX_NOTES: usize = 16 << 20;

/// Why bytes are no checkpoint of this run.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum CheckpointError {
    /// Other bytes, or of another version.
    #[error("not a checkpoint, or one of another version")]
    Foreign,
    /// Cut off, or changed.
    #[error("the checkpoint is torn or was changed: its checksum does not fit")]
    Torn,
    /// Of another spec.
    #[error("the checkpoint was made by another spec, base model or data set")]
    OtherSpec,
    /// Of other tensors.
    #[error("the checkpoint does not fit the model at {0}")]
    OtherTensors(String),
    /// Of another optimizer.
    #[error("the checkpoint holds the state of another optimizer")]
    OtherOptimizer,
    /// Of a longer run.
    #[error("the checkpoint is at step {step}, the run has {steps}")]
    Beyond {
        /// The next step by the checkpoint.
        step: u64,
        /// Steps of the run.
        steps: u64,
    },
    /// Values that aren't numbers.
    #[error("the checkpoint holds values of {0} that are not finite")]
    NotFinite(String),
    /// Notes that are too long, or bytes that nobody knows.
    #[error("the checkpoint is longer or shorter than its own lengths say")]
    Length,
    /// The plan itself is bad.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Writes the state of `trainer` with the hash of its `spec` and the caller's `notes` (its history, say; at most
/// [`MAX_NOTES`] bytes, or the checkpoint can't be read again).
pub fn write(trainer: &Trainer, spec: &[u8; HASH], notes: &[u8], out: impl Write) -> io::Result<()> {
    if notes.len() > MAX_NOTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "notes are too long"));
    }
    let mut out = Hashing {
        out,
        hash: Sha256::new(),
    };
    let state = trainer.state();
    out.write_all(MAGIC)?;
    out.write_all(spec)?;
    out.write_all(&state.steps.to_le_bytes())?;
    out.write_all(&(state.moments.len() as u32).to_le_bytes())?;
    out.write_all(&(trainer.params().len() as u32).to_le_bytes())?;
    for param in trainer.params() {
        out.write_all(&table_entry(param))?;
    }
    for param in trainer.params() {
        write_values(&mut out, param.values())?;
    }
    for values in state.moments.iter().flatten() {
        write_values(&mut out, values)?;
    }
    out.write_all(&(notes.len() as u64).to_le_bytes())?;
    out.write_all(notes)?;
    let Hashing { mut out, hash } = out;
    out.write_all(&hash.finalize())
}

/// The same as bytes in memory.
pub fn to_bytes(trainer: &Trainer, spec: &[u8; HASH], notes: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    write(trainer, spec, notes, &mut bytes)?;
    Ok(bytes)
}

/// The run that the bytes hold, and the caller's notes. `params` are the run's tensors as they are before training; their
/// names and shapes have to be those of the checkpoint.
pub fn resume(
    plan: Plan,
    params: Vec<Param>,
    spec: &[u8; HASH],
    bytes: &[u8],
) -> Result<(Trainer, Vec<u8>), CheckpointError> {
    let mut input = Input { rest: checked(bytes)? };
    if input.take(HASH)? != spec {
        return Err(CheckpointError::OtherSpec);
    }
    let steps = input.u64()?;
    if steps > plan.steps() {
        return Err(CheckpointError::Beyond {
            step: steps,
            steps: plan.steps(),
        });
    }
    let mut state = State::new(&plan.rule, &params);
    if input.u32()? as usize != state.moments.len() {
        return Err(CheckpointError::OtherOptimizer);
    }
    state.steps = steps;
    let mut params = params;
    if input.u32()? as usize != params.len() {
        return Err(CheckpointError::OtherTensors("the number of tensors".to_owned()));
    }
    for param in &params {
        let want = table_entry(param);
        if input.take(want.len())? != want {
            return Err(CheckpointError::OtherTensors(param.name().to_owned()));
        }
    }
    for param in &mut params {
        let name = param.name().to_owned();
        input.values(param.values_mut(), &name)?;
    }
    for moment in &mut state.moments {
        for (values, param) in moment.iter_mut().zip(&params) {
            input.values(values, param.name())?;
        }
    }
    let notes = usize::try_from(input.u64()?).map_err(|_| CheckpointError::Length)?;
    if notes > MAX_NOTES || notes != input.rest.len() {
        return Err(CheckpointError::Length);
    }
    let notes = input.rest.to_vec();
    Ok((Trainer::at(plan, params, state)?, notes))
}

/// What lies between the magic and the checksum, if both fit.
fn checked(bytes: &[u8]) -> Result<&[u8], CheckpointError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(CheckpointError::Foreign)?;
    let (body, checksum) = rest.split_last_chunk::<HASH>().ok_or(CheckpointError::Torn)?;
    let hash: [u8; HASH] = Sha256::digest(&bytes[..bytes.len() - HASH]).into();
    if hash == *checksum {
        Ok(body)
    } else {
        Err(CheckpointError::Torn)
    }
}

fn table_entry(param: &Param) -> Vec<u8> {
    let mut entry = Vec::new();
    entry.extend((param.name().len() as u32).to_le_bytes());
    entry.extend(param.name().as_bytes());
    entry.extend((param.shape().len() as u32).to_le_bytes());
    for dimension in param.shape() {
        entry.extend((*dimension as u64).to_le_bytes());
    }
    entry
}

fn write_values(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * CHUNK);
    for chunk in values.chunks(CHUNK) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Hashes what passes.
struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Bytes that are still to be read.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], CheckpointError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(CheckpointError::Length)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        self.take(N)?.try_into().map_err(|_| CheckpointError::Length)
    }

    fn u32(&mut self) -> Result<u32, CheckpointError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CheckpointError> {
        self.array().map(u64::from_le_bytes)
    }

    fn values(&mut self, into: &mut [f32], name: &str) -> Result<(), CheckpointError> {
        let bytes = self.take(4 * into.len())?;
        let (words, _) = bytes.as_chunks::<4>();
        for (value, word) in into.iter_mut().zip(words) {
            *value = f32::from_le_bytes(*word);
        }
        // Moments may be larger than a weight may; both are finite in every run that goes on.
        if into.iter().any(|v| !v.is_finite()) {
            return Err(CheckpointError::NotFinite(name.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
