//! Small jobs, run by the worker's own binary.

use super::programs::{Python, run};
use fleetune_crds::common::Digest;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The worker.
pub fn worker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetune-worker"));
    // What a caller has set for itself is none of the job's.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command
}

/// Base models and data sets in a folder.
pub struct Fixture {
    /// The folder.
    pub dir: tempfile::TempDir,
}

impl Fixture {
    /// Makes them.
    pub fn new(python: &Python) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(python.script("tiny.py").arg(dir.path()), 0);
        Self { dir }
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The address of the folder, for local runs.
    pub fn local(&self) -> String {
        format!("file://{}", self.dir.path().display())
    }

    /// Writes the manifest of a job on `model` and `data`, which are full addresses. `rest` is YAML of the spec, indented
    /// by two.
    pub fn job(&self, name: &str, task: &str, input: &str, model: &str, data: &str, rest: &str) -> PathBuf {
        let file = model.rsplit('/').next().unwrap().split(':').next().unwrap();
        let bytes = std::fs::read(self.path(&format!("{}.onnx", file.trim_end_matches(".onnx")))).unwrap();
        let text = format!(
            "apiVersion: fleetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             modelName: tiny\n  task: {task}\n  baseModel: {{uri: '{model}', sha256: {}}}\n  input: {input}\n  \
             dataset: {{uri: '{data}'}}\n  output: {{repository: 'registry.lab:5000/tiny'}}\n{rest}",
            Digest::of(&bytes).hex()
        );
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The job on pictures, from these addresses.
    pub fn pictures(&self, name: &str, model: &str, data: &str) -> PathBuf {
        self.job(name, "Classification", "{image: {size: 16}}", model, data, "")
    }

    /// The job on pictures from this folder, run here: the folder with version and report.
    pub fn made(&self) -> PathBuf {
        let (model, data) = (self.local() + "/pictures.onnx", self.local() + "/pictures.tar");
        let out = self.path("made");
        finetune(&mut worker(), &self.pictures("made", &model, &data), &out);
        out
    }
}

/// Runs a job here into the folder `out`: the candidate's digest.
pub fn finetune(command: &mut Command, job: &Path, out: &Path) -> String {
    let command = command
        .arg("finetune")
        .arg("--local")
        .arg("-f")
        .arg(job)
        .arg("--out")
        .arg(out);
    let said = run(command, 0);
    let line = said.lines().find_map(|line| line.strip_prefix("version")).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}
