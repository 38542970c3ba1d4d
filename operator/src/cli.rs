//! The command line.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// The Fleetune operator.
#[derive(Parser, Debug)]
#[command(name = "fleetune-operator", version)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// What to run.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Reconciles FineTuneJobs, ModelRollouts and DeviceClusters on the hub.
    Hub(Process),
    /// Places models on the nodes of one device cluster.
    Edge(Process),
}

/// What every process is given.
#[derive(Args, Debug, Clone)]
pub struct Process {
    /// Configuration file.
    #[arg(long, default_value = "/etc/fleetune/config.yaml")]
    pub config: PathBuf,
    /// Name of this pod, unique among replicas.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Namespace of this pod.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: String,
}
