//! `lineage.json`: what a version was made from, in words that are the same for every run of the same job: no address, no
//! time, no machine. Whatever differs between two runs belongs into the report.

use crate::config::Job;
use crate::data::{DataSet, Part};
use fleetune_crds::common::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of `lineage.json`.
pub const FORMAT: u32 = 1;

/// Where a version comes from.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Lineage {
    /// Version of this format.
    pub version: u32,
    /// Name of the model.
    pub model_name: String,
    /// Digest of the data manifest.
    pub data_manifest: Digest,
    /// How rows were told apart.
    pub split: Split,
    /// SHA-256 of the base model.
    pub base_model_sha256: String,
    /// The feature tensor, by its name in the base model.
    pub features: String,
    /// Features of a sample.
    pub feature_count: usize,
    /// Method, loss, optimizer and seed.
    pub training: Training,
    /// The worker that made it.
    pub worker: Worker,
}

/// How rows were told apart.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Split {
    /// What kept rows together.
    pub by: String,
    /// Share of train.
    pub train: f64,
    /// Share of validation.
    pub validation: f64,
    /// Seed of the hash.
    pub seed: u64,
    /// Rows of each part.
    pub rows: BTreeMap<String, usize>,
}

/// How the head was trained.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Training {
    /// Which weights moved.
    pub method: String,
    /// The loss.
    pub loss: String,
    /// The optimizer.
    pub optimizer: String,
    /// Its learning rate.
    pub learning_rate: f64,
    /// The L2 penalty.
    pub weight_decay: f64,
    /// Widths of the hidden layers.
    pub layers: Vec<usize>,
    /// Epochs that were run.
    pub epochs: usize,
    /// The epoch that was kept.
    pub best_epoch: u32,
    /// Seed of everything random.
    pub seed: u64,
}

/// A worker build on a kind of CPU.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// Its version.
    pub version: String,
    /// The revision it was built from; empty where the build did not say.
    pub revision: String,
    /// The CPU's architecture.
    pub architecture: String,
    /// Its vector extensions, which decide about the last bits of sums.
    pub cpu_features: Vec<String>,
}

impl Lineage {
    /// The lineage of a trained head.
    pub fn of(job: &Job, data: &DataSet, features: (&str, usize), epochs: usize, best_epoch: u32) -> Self {
        let rows = Part::ALL
            .iter()
            .map(|p| (p.name().to_owned(), data.part(*p).count()))
            .collect();
        Self {
            version: FORMAT,
            model_name: job.spec.model_name.clone(),
            data_manifest: data.manifest.clone(),
            split: Split {
                by: format!("{:?}", job.split.by),
                train: job.split.train,
                validation: job.split.validation,
                seed: job.split.seed,
                rows,
            },
            base_model_sha256: job.spec.base_model.sha256.clone(),
            features: features.0.to_owned(),
            feature_count: features.1,
            training: Training {
                method: job.train.method.to_string(),
                loss: format!("{:?}", job.train.loss),
                optimizer: format!("{:?}", job.train.optimizer),
                learning_rate: job.train.learning_rate,
                weight_decay: job.train.weight_decay,
                layers: job.train.layers.clone(),
                epochs,
                best_epoch,
                seed: job.train.seed,
            },
            worker: Worker {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                revision: option_env!("FLEETUNE_REVISION").unwrap_or_default().to_owned(),
                architecture: std::env::consts::ARCH.to_owned(),
                cpu_features: cpu_features(),
            },
        }
    }
}

/// Environment variable that keeps the engine from using extensions of the CPU: their names with a minus in front, separated
/// by commas.
pub const ENV_ISA: &str = "TRACT_CPU_ISA";
/// Its value for kernels that all machines with AVX2 and FMA have.
pub const PORTABLE_ISA: &str = "-avx512f,-avx512vnni,-avx512fp16";
/// The allocator's variable for when it gives freed memory back to the system.
pub const ENV_PURGE: &str = "MIMALLOC_PURGE_DELAY";
/// Never: each step of a training frees its tensors and takes the same again, and where they were given back in between,
/// page faults took up to a third of the time.
pub const NO_PURGE: &str = "-1";

/// The vector extensions of this CPU that the engine uses.
pub fn cpu_features() -> Vec<String> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx", std::is_x86_feature_detected!("avx")),
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
        ];
        let off = std::env::var(ENV_ISA).unwrap_or_default();
        let unused = |name: &str| off.split(',').any(|o| o.trim().strip_prefix('-') == Some(name));
        all.iter()
            .filter(|(name, on)| *on && !unused(name))
            .map(|(name, _)| (*name).to_owned())
            .collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}
