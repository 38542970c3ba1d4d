//! `make quality` at small cuts: the real models of the examples trained by each method on some hundred real samples, by the
//! release build of the worker. So few rows say little about how good a method is: what must hold is that it trains, that
//! it does no clear harm, and that a version answers as its report says.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test may end itself, and says why it is skipped.

use fleetune_tests::images::release_binaries;
use fleetune_tests::lab::paths::{Paths, tree};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Epochs of the deeper methods.
const EPOCHS: usize = 3;
/// Name of a suite, its samples, and the methods that it compares.
const SUITES: [(&str, usize, &[&str]); 3] = [
    ("shirts", 300, &["Head", "LastLayers", "Full"]),
    ("motion", 360, &["Head", "Full"]),
    ("home", 300, &["Head", "Lora"]),
];

/// One version, as `quality.py` tells of it.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Row {
    suite: String,
    method: String,
    samples: usize,
    /// Of the version, loaded once more.
    accuracy: f64,
    /// By its report.
    reported: f64,
    majority: f64,
    train_losses: Vec<f64>,
    own_bytes: u64,
    bytes: u64,
    /// Whether all of the interval of the gain over Head lies below one point of loss.
    harms: bool,
}

#[test]
fn real_models_train_by_each_method() {
    let data = Paths::from_env().unwrap().data();
    if !data.join("minilm.onnx").exists() || !data.join("fashion-mnist-6k.tar").exists() {
        assert!(
            std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none_or(|v| v != "1"),
            "the models and data sets are missing: run examples/prepare.py"
        );
        println!("SKIPPED: the models and data sets are missing: run examples/prepare.py");
        return;
    }
    let worker = release_binaries().unwrap().join("fleetune-worker");
    let out = tempfile::tempdir().unwrap();
    for (suite, samples, methods) in SUITES {
        let mut command = Command::new("python3");
        command.arg("-B").arg(tree().join("examples/quality.py"));
        command.arg("--worker").arg(&worker).arg("--data").arg(&data);
        command.arg("--out").arg(out.path()).args(["--only", suite]);
        command.args(["--cut", &samples.to_string(), "--epochs", &EPOCHS.to_string()]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{suite}: {said}");
        let text = std::fs::read(out.path().join("quality.json")).unwrap();
        let rows: Vec<Row> = serde_json::from_slice(&text).unwrap();
        let names: Vec<&str> = rows.iter().map(|r| r.method.as_str()).collect();
        assert_eq!(names, methods, "{suite}");
        println!("{}", String::from_utf8_lossy(&output.stdout));
        rows.iter().for_each(judge);
        let own: BTreeMap<&str, u64> = rows.iter().map(|r| (r.method.as_str(), r.own_bytes)).collect();
        for row in rows.iter().filter(|r| r.method != "Head") {
            assert!(
                row.own_bytes > own["Head"],
                "more than the head is a version's own: {row:?}"
            );
            // Adapters are a small part of a version, whatever they are adapters of.
            assert!(row.method != "Lora" || row.own_bytes * 20 <= row.bytes, "{row:?}");
        }
        if suite == "shirts" {
            stays_inside_its_memory(&worker, &out.path().join(suite));
        }
    }
}

/// The job of `folder` with method Full in less memory than its activations take: it computes them again, and its process
/// never has more than it was given.
fn stays_inside_its_memory(worker: &Path, folder: &Path) {
    const LIMIT_MIB: u64 = 435;
    let job = std::fs::read_to_string(folder.join("Full.json")).unwrap();
    let mut job: Value = serde_json::from_str(&job).unwrap();
    job["spec"]["train"]["epochs"] = json!(1);
    job["spec"]["worker"] = json!({ "resources": { "limits": { "memory": format!("{LIMIT_MIB}Mi") } } });
    let tight = folder.join("tight.json");
    std::fs::write(&tight, job.to_string()).unwrap();
    let mut command = Command::new(worker);
    command.args(["finetune", "--local", "-f"]).arg(&tight);
    command.arg("--out").arg(folder.join("tight"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lines = || said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = |message: &str| lines().find(|line| line["message"] == message);
    assert!(line("activations are computed again").is_some(), "{said}");
    let peak = line("trained").and_then(|line| line["peak_bytes"].as_u64()).unwrap();
    assert!((1..=LIMIT_MIB << 20).contains(&peak), "{peak} bytes of {LIMIT_MIB} MiB");
}

fn judge(row: &Row) {
    assert!(row.samples > 30, "{row:?}");
    assert!(
        (row.accuracy - row.reported).abs() < 1e-9,
        "the report tells of another version: {row:?}"
    );
    assert!(
        row.accuracy > row.majority + 0.1,
        "better than the most frequent class: {row:?}"
    );
    assert!(!row.harms, "{row:?}");
    let (first, last) = (row.train_losses[0], *row.train_losses.last().unwrap());
    assert!(last < first, "{} {} does not learn: {row:?}", row.suite, row.method);
    assert!(row.method == "Head" || row.train_losses.len() == EPOCHS, "{row:?}");
}
