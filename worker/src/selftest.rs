//! The self-test of a version: synthetic raw samples with recorded outputs. It proves that a version's bytes and this
//! machine's arithmetic give what validation saw; it says nothing about accuracy.

use crate::error::{INVALID_VERSION, Result, WorkerError};
use crate::pipeline::{Before, Raw, json};
use crate::version::{SELFTEST, Version, read_bounded};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;

/// The version of `selftest/expected.json` that this build writes and reads.
pub const FORMAT: u32 = 1;
/// The list of samples, in the folder.
pub const EXPECTED: &str = "expected.json";
/// Most samples of a self-test.
const MAX_SAMPLES: usize = 64;
/// Largest file of a self-test.
const MAX_FILE: u64 = 64 << 20;
/// Rounds over all samples; latency is taken from the best, because a busy neighbour only ever makes it worse.
pub const ROUNDS: usize = 5;

/// `selftest/expected.json`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Expected {
    /// [`FORMAT`].
    pub version: u32,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// A sample with its recorded output.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sample {
    /// Name of its file in the folder: a PNG, little-endian f32 values channel after channel, or a text in UTF-8.
    pub file: String,
    /// What the graph gave when the version was made.
    pub output: Vec<f32>,
}

/// What a self-test found.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SelfTestResult {
    /// Whether every output is within the tolerance.
    pub ok: bool,
    /// The largest deviation, absolute or relative to the recorded value, whichever is smaller.
    pub worst: f32,
    /// 95th percentile of the time for one sample, raw sample to answer, in the best round.
    pub p95_ms: f64,
    /// Peak resident memory of this process, in bytes; 0 where the system does not say.
    pub peak_memory_bytes: u64,
}

/// Runs the self-test of `version` that lies in its folder `dir`.
pub fn run(version: &Version, dir: &Path, tolerance: f32) -> Result<SelfTestResult> {
    let samples = read(dir)?;
    let mut worst: f32 = 0.0;
    let mut p95_ms = f64::INFINITY;
    for _ in 0..ROUNDS {
        let mut times = Vec::with_capacity(samples.len());
        for (sample, bytes) in &samples {
            let start = Instant::now();
            let output = run_file(version, bytes)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            worst = worst.max(deviation(&output, &sample.output));
        }
        p95_ms = p95_ms.min(percentile(&mut times, 0.95));
    }
    Ok(SelfTestResult {
        ok: worst <= tolerance,
        worst,
        p95_ms,
        peak_memory_bytes: peak_memory(),
    })
}

/// The largest deviation of `output` from `recorded`: absolute for small values, relative for large ones. Infinite where
/// the lengths differ or a value is not finite.
pub fn deviation(output: &[f32], recorded: &[f32]) -> f32 {
    if output.len() != recorded.len() {
        return f32::INFINITY;
    }
    output.iter().zip(recorded).fold(0.0, |worst, (a, b)| {
        let d = (a - b).abs() / b.abs().max(1.0);
        if d.is_finite() { worst.max(d) } else { f32::INFINITY }
    })
}

/// The value below which the share `q` of `times` lies (nearest rank); 0 for none.
pub fn percentile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let rank = (q * times.len() as f64).ceil() as usize;
    times.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Peak resident memory of this process by the kernel's own account (`VmHWM`), in bytes; 0 where it does not say.
pub fn peak_memory() -> u64 {
    status("VmHWM:")
}

/// Resident memory of this process now, in bytes; 0 where the kernel does not say.
pub fn resident_memory() -> u64 {
    status("VmRSS:")
}

fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// A sample of a new self-test: file name, bytes, output.
pub type Made = (String, Vec<u8>, Vec<f32>);

/// Writes the self-test of a version: the samples' files, and their outputs in `expected.json`.
pub fn write(dir: &Path, samples: &[Made]) -> Result<()> {
    let folder = dir.join(SELFTEST);
    std::fs::create_dir_all(&folder).map_err(|e| WorkerError::io("making", &folder, &e))?;
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|e| WorkerError::io("writing", &path, &e))
    };
    for (file, bytes, _) in samples {
        put(file, bytes)?;
    }
    let expected = Expected {
        version: FORMAT,
        samples: samples
            .iter()
            .map(|(file, _, output)| Sample {
                file: file.clone(),
                output: output.clone(),
            })
            .collect(),
    };
    put(EXPECTED, &json(&expected)?)
}

/// Runs one file of a self-test through prepare and graph.
pub fn run_file(version: &Version, bytes: &[u8]) -> Result<Vec<f32>> {
    let values: Vec<f32>;
    let raw = match version.pipeline().before {
        Before::Image(_) => Raw::Image(bytes),
        Before::Text(_) => Raw::Text(
            std::str::from_utf8(bytes)
                .map_err(|e| WorkerError::bad(INVALID_VERSION, format!("a text of {SELFTEST} is not UTF-8: {e}")))?,
        ),
        Before::Window(_) => {
            values = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            Raw::Window(&values)
        }
    };
    version.run(&version.prepare(raw)?)
}

fn read(dir: &Path) -> Result<Vec<(Sample, Vec<u8>)>> {
    let folder = dir.join(SELFTEST);
    let bad = |why: String| WorkerError::bad(INVALID_VERSION, format!("{SELFTEST}/{EXPECTED}: {why}"));
    let expected: Expected =
        serde_json::from_slice(&read_bounded(&folder.join(EXPECTED), MAX_FILE)?).map_err(|e| bad(e.to_string()))?;
    if expected.version != FORMAT {
        return Err(bad(format!("version {}, this build reads {FORMAT}", expected.version)));
    }
    if expected.samples.is_empty() || expected.samples.len() > MAX_SAMPLES {
        return Err(bad(format!(
            "{} samples, not 1 to {MAX_SAMPLES}",
            expected.samples.len()
        )));
    }
    let mut samples = Vec::with_capacity(expected.samples.len());
    for sample in expected.samples {
        let plain = sample
            .file
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !plain || sample.file.starts_with('.') || sample.file.is_empty() {
            return Err(bad(format!("{:?} is not a plain file name", sample.file)));
        }
        let bytes = read_bounded(&folder.join(&sample.file), MAX_FILE)?;
        samples.push((sample, bytes));
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_absolute_for_small_and_relative_for_large() {
        assert!((deviation(&[0.5], &[0.4]) - 0.1).abs() < 1e-6);
        assert!((deviation(&[110.0], &[100.0]) - 0.1).abs() < 1e-6);
        assert!(deviation(&[1.0], &[1.0, 2.0]).is_infinite());
        assert!(deviation(&[f32::NAN], &[1.0]).is_infinite());
    }

    #[test]
    fn percentile_is_the_nearest_rank() {
        let mut times: Vec<f64> = (1..=20).map(f64::from).collect();
        assert!((percentile(&mut times, 0.95) - 19.0).abs() < 1e-9);
        assert!((percentile(&mut [], 0.95)).abs() < 1e-9);
        assert!((percentile(&mut [7.0], 0.95) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn peak_memory_is_known_on_linux() {
        assert!(peak_memory() > 1 << 20);
    }
}
