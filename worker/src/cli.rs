//! The command line: what each subcommand is called and takes. It decides nothing else.

use clap::{Args, Parser, Subcommand};
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
    /// Runs a version's self-test in this process; the node runtime starts it as a child.
    #[command(hide = true)]
    Selftest(Selftest),
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
