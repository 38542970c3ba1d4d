//! A whole job of method Head: the example with 2,000 pictures of clothes, from the process's start to the version.

use anyhow::Result;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;

/// A job with a folder for what it makes.
pub struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    /// Writes the job's manifest for the files in `data`.
    pub fn new(data: &Path) -> Result<Self> {
        let data = data.canonicalize()?;
        let uri = |name: &str| format!("file://{}", data.join(name).display());
        let model = std::fs::read(data.join("efficientnet-lite0.onnx"))?;
        let manifest = json!({
            "apiVersion": "fleetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "shirts-1", "namespace": "bench"},
            "spec": {
                "modelName": "shirts",
                "task": "Classification",
                "baseModel": {"uri": uri("efficientnet-lite0.onnx"), "sha256": hex::encode(Sha256::digest(model))},
                "input": {"image": {"size": 224}},
                "dataset": {"uri": uri("fashion-mnist.tar")},
                "train": {"optimizer": {"weightDecay": "1"}},
                "output": {"repository": "localhost:5000/models/shirts"},
            },
        });
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("job.json"), serde_json::to_vec(&manifest)?)?;
        Ok(Self { folder })
    }

    /// Runs the job by `worker`.
    pub fn command(&self, mut worker: Command, run: usize) -> Command {
        let folder = self.folder.path();
        worker
            .args(["finetune", "--local", "--file"])
            .arg(folder.join("job.json"));
        worker.arg("--out").arg(folder.join(format!("ours-{run}")));
        worker
    }

    /// Where the peer writes its model.
    pub fn peer_out(&self, run: usize) -> String {
        self.folder
            .path()
            .join(format!("peer-{run}.onnx"))
            .display()
            .to_string()
    }
}
