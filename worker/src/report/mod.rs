//! The report on a candidate: everything that was measured, as JSON for programs and as one HTML page for people. It is
//! written for every candidate, passed or not. It decides nothing.

mod html;
mod svg;
mod text;

use crate::baseline::Baseline;
use crate::data::Checks;
use crate::error::{Result, WorkerError};
use crate::gates::{Check, Verdict};
use crate::lineage::Lineage;
use crate::measure::{MemoryOf, SelfTest};
use crate::pipeline::json;
use crate::train::{Epoch, metrics::ClassScore};
use fleetune_crds::common::Digest;
use fleetune_crds::{Budget, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The version of `report.json`.
pub const FORMAT: u32 = 1;
/// File name of the JSON.
pub const JSON: &str = "report.json";
/// File name of the page.
pub const HTML: &str = "report.html";
/// Most classes for which the whole confusion matrix is written.
pub const MAX_MATRIX: usize = 100;

/// `report.json`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Version of this format; a reader refuses a newer one.
    pub version: u32,
    /// Namespace of the model.
    pub namespace: String,
    /// Name of the model.
    pub model_name: String,
    /// What the model answers.
    pub task: Task,
    /// The candidate that this report is about.
    pub candidate: Digest,
    /// Digest of the data manifest.
    pub data_manifest: Digest,
    /// Hash of inputs, shapes, units and labels.
    pub contract: Digest,
    /// The word on it.
    pub verdict: Verdict,
    /// Name of the metric that picked the best epoch.
    pub objective: String,
    /// Test rows.
    pub samples: usize,
    /// Metrics on the test rows, by name.
    pub metrics: BTreeMap<String, f64>,
    /// Baselines on the same rows.
    pub baselines: Vec<Baseline>,
    /// Scores of each class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, ClassScore>,
    /// The confusion matrix, rows are the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Confusion>,
    /// Gates on metrics.
    pub gates: Vec<Check>,
    /// The budget's default class.
    pub budget_checks: Vec<Check>,
    /// The job's budgets; each node checks its own class.
    pub budget: Vec<Budget>,
    /// What it costs.
    pub cost: Cost,
    /// Its self-test; nodes use the tolerance.
    pub self_test: SelfTest,
    /// The learning curve.
    pub history: Vec<Epoch>,
    /// What was found in the data.
    pub data: Checks,
    /// Where it comes from.
    pub lineage: Lineage,
}

/// A confusion matrix with its labels.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Confusion {
    /// In the order of rows and columns.
    pub labels: Vec<String>,
    /// `rows[truth][predicted]`.
    pub rows: Vec<Vec<usize>>,
}

/// What a version costs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Bytes of its files.
    pub bytes: u64,
    /// Median time for one sample, raw sample to answer, in milliseconds.
    pub p50_latency_ms: f64,
    /// 95th percentile of it.
    pub p95_latency_ms: f64,
    /// Peak resident memory in bytes.
    pub peak_memory_bytes: u64,
    /// Of which process.
    pub peak_memory_of: MemoryOf,
}

impl Report {
    /// Writes both files into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        for (name, bytes) in [(JSON, json(self)?), (HTML, html::page(self).into_bytes())] {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(|e| WorkerError::io("writing", &path, &e))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `docs/report.schema.json` is the JSON Schema of `report.json`, for programs in other languages. Run this test
    /// with FLEETUNE_WRITE_SCHEMA=1 after a change of the types, and commit what it writes.
    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let mut schema = schemars::schema_for!(Report);
        let name = format!("https://fleetune.dev/schemas/report-v{FORMAT}.json");
        schema.insert("$id".into(), name.into());
        let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
        let path = Path::new(env!("FLEETUNE_ROOT")).join("docs/report.schema.json");
        if std::env::var_os("FLEETUNE_WRITE_SCHEMA").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "{} is not that of the types", path.display());
    }
}
