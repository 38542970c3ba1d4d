//! The command line: what each subcommand is called and takes. It decides nothing else.

use clap::{Args, Parser, Subcommand};
use fleetune_crds::common::Digest;
use fleetune_crds::names;
use std::path::PathBuf;

/// Fine-tunes, validates, publishes and serves small models.
#[derive(Parser, Debug)]
#[command(name = "fleetune-worker", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Reads base model and data, trains by the job's method, and pushes the candidate by digest.
    Finetune(Finetune),
    /// Measures a candidate on the test rows, applies gates and budget, and pushes the report.
    Validate(Validate),
    /// Hashes, signs and tags a candidate that passed its gates. Never opens a model.
    Publish(Publish),
    /// Keeps, tests and serves the models of one edge node.
    Node(Node),
    /// Prints what is in a version or an ONNX file.
    Inspect(Inspect),
    /// Writes a version as one self-contained ONNX file.
    Export(Export),
    /// Compares versions of a job on its test rows, each with the first, and prints gains with paired intervals as JSON.
    Compare(Compare),
    /// Gives the store's folder on a node to the runtime's user; runs before the runtime.
    PrepareStore(PrepareStore),
    /// Runs a version's self-test in this process; the node runtime starts it as a child.
    #[command(hide = true)]
    Selftest(Selftest),
}

/// Options of `finetune`.
#[derive(Args, Debug)]
pub struct Finetune {
    /// The FineTuneJob's manifest.
    #[arg(short, long, default_value = names::JOB_FILE)]
    pub file: PathBuf,
    /// Run here, without a cluster: write version and report into a folder, push nothing. Allows file:// addresses.
    #[arg(long, requires = "out")]
    pub local: bool,
    /// The folder for version and report.
    #[arg(long, requires = "local")]
    pub out: Option<PathBuf>,
}

/// Options of `validate`.
#[derive(Args, Debug)]
pub struct Validate {
    /// The FineTuneJob's manifest.
    #[arg(short, long, default_value = names::JOB_FILE)]
    pub file: PathBuf,
    /// Digest of the candidate's manifest.
    #[arg(long)]
    pub candidate: Digest,
    /// Digest of the data manifest that training read.
    #[arg(long)]
    pub data_manifest: Digest,
}

/// Options of `publish`.
#[derive(Args, Debug)]
pub struct Publish {
    /// The FineTuneJob's manifest.
    #[arg(short, long, default_value = names::JOB_FILE)]
    pub file: PathBuf,
    /// Digest of the candidate's manifest.
    #[arg(long)]
    pub candidate: Digest,
    /// Digest of the report's manifest.
    #[arg(long)]
    pub report: Digest,
    /// The signing key, PKCS#8 PEM.
    #[arg(long, default_value = names::KEY_FILE)]
    pub key: PathBuf,
}

/// Options of `inspect`.
#[derive(Args, Debug)]
pub struct Inspect {
    /// A version's directory, `oci://HOST/PATH:TAG` or `oci://HOST/PATH@sha256:…`, or an `.onnx` file.
    pub target: String,
}

/// Options of `export`.
#[derive(Args, Debug)]
pub struct Export {
    /// The version's directory.
    pub dir: PathBuf,
    /// The file to write.
    pub out: PathBuf,
}

/// Options of `compare`.
#[derive(Args, Debug)]
pub struct Compare {
    /// The FineTuneJob's manifest; file:// addresses are allowed.
    #[arg(short, long)]
    pub file: PathBuf,
    /// The versions' directories.
    #[arg(required = true)]
    pub versions: Vec<PathBuf>,
}

/// Options of `node`.
#[derive(Args, Debug)]
pub struct Node {
    /// The configuration file.
    #[arg(long, default_value = "/etc/fleetune/config.yaml")]
    pub config: PathBuf,
    /// Name of the node, which is the name of its EdgeNode.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
}

/// Options of `selftest`.
#[derive(Args, Debug)]
pub struct Selftest {
    /// The version's directory.
    pub dir: PathBuf,
    /// Largest deviation from the recorded outputs that passes.
    #[arg(long)]
    pub tolerance: f32,
    /// Most bytes of address space that this process may have.
    #[arg(long)]
    pub memory: Option<u64>,
}

/// Options of `prepare-store`.
#[derive(Args, Debug)]
pub struct PrepareStore {
    /// The store's folder.
    #[arg(long, default_value = names::NODE_STORE)]
    pub path: PathBuf,
    /// The runtime's user, and group.
    #[arg(long)]
    pub uid: u32,
}
