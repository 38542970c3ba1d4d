//! The binary: reads the command line, starts logging, runs one subcommand and ends with its exit code. All work is in
//! the library.

use clap::Parser;
use fleetune_crds::outcome::EXIT_BAD_INPUT;
use fleetune_worker::cli::{Cli, Command};
use fleetune_worker::error::WorkerError;
use fleetune_worker::selftest;
use fleetune_worker::version::Version;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One provider for the whole process; a second call can only find it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match cli.command {
        Command::Selftest(args) => run_selftest(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, reason = error.reason(), "failed");
            ExitCode::from(u8::try_from(error.outcome().code.exit()).unwrap_or(EXIT_BAD_INPUT as u8))
        }
    }
}

fn run_selftest(args: &fleetune_worker::cli::Selftest) -> Result<(), WorkerError> {
    let version = Version::open(&args.dir)?;
    let result = selftest::run(&version, &args.dir, args.tolerance)?;
    let text = serde_json::to_string(&result).unwrap_or_default();
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
        .map_err(|error| WorkerError::io("writing", std::path::Path::new("stdout"), &error))
}
