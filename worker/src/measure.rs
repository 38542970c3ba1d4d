//! What a version costs and how far its answers vary: latency in this process, memory and other CPU kernels in child
//! processes. Where no child can be started it says so and measures this process.

use crate::error::Result;
use crate::selftest::{self, SelfTestResult};
use crate::version::Version;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::{Command, Stdio};

/// The smallest tolerance of a self-test. Kernels of other architectures than the one of `validate` cannot be run here;
/// single precision leaves some 1e-5 on a probability, and this is well above, while other weights differ far more.
pub const TOLERANCE_FLOOR: f32 = 1e-3;
/// The tolerance is this many times the spread that was seen.
const SPREAD_FACTOR: f32 = 8.0;
/// The largest tolerance: beyond, a self-test would prove nothing.
pub const TOLERANCE_CEILING: f32 = 0.05;

/// Sets of CPU extensions under which the self-test is run.
#[cfg(target_arch = "x86_64")]
const KERNELS: &[(&str, &str)] = &[
    ("native", ""),
    ("without AVX-512", "-avx512f,-avx512vnni,-avx512fp16"),
    (
        "without AVX-512, AVX2, FMA",
        "-avx512f,-avx512vnni,-avx512fp16,-avx2,-fma",
    ),
    ("SSE2", "-avx512f,-avx512vnni,-avx512fp16,-avx2,-fma,-avx,-f16c"),
];
#[cfg(target_arch = "aarch64")]
const KERNELS: &[(&str, &str)] = &[("native", ""), ("NEON", "-fp16,-dotprod,-sve2,-sme,-sme2,-apple-amx")];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const KERNELS: &[(&str, &str)] = &[("native", "")];

/// The self-test under one set of kernels.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// Which kernels.
    pub kernels: String,
    /// What came out.
    pub result: SelfTestResult,
}

/// The self-test of a version as `validate` saw it; nodes take `tolerance` from here.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SelfTest {
    /// Largest deviation from the recorded outputs that passes on a node.
    pub tolerance: f32,
    /// Rounds over all samples.
    pub rounds: usize,
    /// The largest deviation that was seen here.
    pub spread: f32,
    /// Each set of kernels.
    pub variants: Vec<Variant>,
}

/// Where a number of peak memory comes from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum MemoryOf {
    /// A process that only loads the version and answers.
    Child,
    /// The process of `validate`, which holds the data set too: an upper bound.
    Validate,
}

/// Runs the self-test under all kernels in children of `program`, or in this process where there is no program.
pub fn self_test(version: &Version, program: Option<&Path>) -> Result<(SelfTest, u64, MemoryOf)> {
    let mut variants = Vec::new();
    if let Some(program) = program {
        for (name, isa) in KERNELS {
            match child(program, version.dir(), isa) {
                Ok(result) => variants.push(Variant {
                    kernels: (*name).to_owned(),
                    result,
                }),
                Err(why) => tracing::warn!(kernels = name, why, "no self-test under these kernels"),
            }
        }
    }
    let memory = variants.first().map(|v| v.result.peak_memory_bytes);
    if variants.is_empty() {
        variants.push(Variant {
            kernels: "native".to_owned(),
            result: selftest::run(version, version.dir(), f32::INFINITY)?,
        });
    }
    let spread = variants.iter().map(|v| v.result.worst).fold(0.0, f32::max);
    let test = SelfTest {
        tolerance: tolerance(spread),
        rounds: selftest::ROUNDS,
        spread,
        variants,
    };
    Ok(match memory {
        Some(bytes) => (test, bytes, MemoryOf::Child),
        None => (test, selftest::peak_memory(), MemoryOf::Validate),
    })
}

/// The tolerance for a spread.
fn tolerance(spread: f32) -> f32 {
    (spread * SPREAD_FACTOR).clamp(TOLERANCE_FLOOR, TOLERANCE_CEILING)
}

fn child(program: &Path, dir: &Path, isa: &str) -> std::result::Result<SelfTestResult, String> {
    let mut command = Command::new(program);
    command.arg("selftest").arg(dir);
    // JSON has no infinity, and neither has a command line.
    command.arg("--tolerance").arg("1000000");
    // What is freed counts as it does on a node.
    command.env_remove(crate::lineage::ENV_PURGE);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    if !isa.is_empty() {
        command.env(crate::lineage::ENV_ISA, isa);
    }
    let output = command.output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerance_follows_the_spread_within_bounds() {
        assert!((tolerance(0.0) - TOLERANCE_FLOOR).abs() < 1e-9);
        assert!((tolerance(1e-3) - 8e-3).abs() < 1e-9);
        assert!((tolerance(1.0) - TOLERANCE_CEILING).abs() < 1e-9);
    }
}
