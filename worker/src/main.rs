//! The binary: reads the command line, starts logging, runs one subcommand and ends with its exit code. All work is in
//! the library.

use clap::Parser;
use fleetune_crds::names;
use fleetune_crds::outcome::{Code, Outcome};
use fleetune_worker::cli::{self, Cli, Command};
use fleetune_worker::config::Job;
use fleetune_worker::error::{INTERNAL, INVALID_JOB, Result, WorkerError};
use fleetune_worker::lineage::{ENV_ISA, ENV_PURGE, NO_PURGE, PORTABLE_ISA};
use fleetune_worker::progress::{self, Tracker};
use fleetune_worker::registry::Registry;
use fleetune_worker::version::Version;
use fleetune_worker::{compare, export, finetune, inspect, local, node, publish, selftest, validate};
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A local run has bars; its log would tear them apart.
    let quiet = matches!(&cli.command, Command::Finetune(args) if args.local) && std::io::stderr().is_terminal();
    start_logging(if quiet { "warn" } else { "info" });
    // One provider for the whole process; a second call can only find it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Finetune(args) => match (with_environment(&args), &args.out) {
            (Err(error), None) => last_words(Err(error)),
            (Err(error), Some(_)) => exit(Err(error)),
            (Ok(job), Some(out)) => exit(block_on(run_local(job, out))),
            (Ok(job), None) => last_words(block_on(run_finetune(job))),
        },
        Command::Validate(args) => last_words(block_on(run_validate(args))),
        Command::Publish(args) => last_words(block_on(run_publish(&args))),
        Command::Inspect(args) => exit(block_on(inspect::run(&args.target)).and_then(|text| print(text.trim_end()))),
        Command::Export(args) => exit(run_export(&args)),
        Command::Compare(args) => exit(block_on(run_compare(args))),
        Command::Node(args) => exit(run_node(args)),
        Command::PrepareStore(args) => exit(fleetune_worker::prepare_store::run(&args.path, args.uid)),
        Command::Selftest(args) => exit(run_selftest(&args)),
    }
}

fn start_logging(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.compact().init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Runtime::new()
        .map_err(|error| WorkerError::transient(INTERNAL, format!("no runtime: {error}")))?
        .block_on(async {
            tokio::select! {
                result = work => result,
                () = terminated() => Err(WorkerError::transient("Terminated", "the pod was told to stop")),
            }
        })
}

/// Returns when the process is told to stop.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

/// Ends a step of a job: writes the termination message and gives the exit code.
fn last_words(result: Result<Outcome>) -> ExitCode {
    let outcome = result.unwrap_or_else(|error| error.outcome());
    if outcome.code == Code::Done {
        tracing::info!(reason = outcome.reason, detail = outcome.message, "done");
    } else {
        tracing::error!(reason = outcome.reason, detail = outcome.message, "failed");
    }
    progress::write_termination(Path::new(progress::TERMINATION_LOG), &outcome);
    code(outcome.code)
}

/// Ends a command that no pod runs.
fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(reason = error.reason(), detail = error.message(), "failed");
            code(error.outcome().code)
        }
    }
}

fn code(code: Code) -> ExitCode {
    ExitCode::from(u8::try_from(code.exit()).unwrap_or(u8::MAX))
}

/// Reads the job. This program is replaced by itself with the variables that a training needs: the allocator reads its own
/// before `main` begins, and the engine chooses its kernels once, when it is first used.
fn with_environment(args: &cli::Finetune) -> Result<Job> {
    use std::os::unix::process::CommandExt;
    let job = Job::read(&args.file)?;
    let mut needed = vec![(ENV_PURGE, NO_PURGE)];
    if job.spec.train.portable_kernels && cfg!(target_arch = "x86_64") {
        needed.push((ENV_ISA, PORTABLE_ISA));
    }
    if needed
        .iter()
        .all(|(name, value)| std::env::var(name).is_ok_and(|v| v == *value))
    {
        return Ok(job);
    }
    let program =
        std::env::current_exe().map_err(|e| WorkerError::io("finding", Path::new("this program's file"), &e))?;
    let error = std::process::Command::new(&program)
        .args(std::env::args_os().skip(1))
        .envs(needed)
        .exec();
    Err(WorkerError::io("starting", &program, &error))
}

async fn run_local(job: Job, out: &Path) -> Result<()> {
    let program = std::env::current_exe().ok();
    let made = local::run(job, out, program, Tracker::new(true)).await?;
    print(&made.text(out))
}

async fn run_finetune(job: Job) -> Result<Outcome> {
    finetune::run(job, served()).await
}

async fn run_validate(args: cli::Validate) -> Result<Outcome> {
    let job = Job::read(&args.file)?;
    validate::run(job, args.candidate, args.data_manifest, served()).await
}

/// A tracker that the operator can poll.
fn served() -> Tracker {
    let tracker = Tracker::new(false);
    let everywhere = std::net::SocketAddr::from(([0, 0, 0, 0], names::WORKER_PORT));
    tokio::spawn(progress::serve(tracker.clone(), everywhere));
    tracker
}

async fn run_publish(args: &cli::Publish) -> Result<Outcome> {
    let text = fleetune_worker::version::read_bounded(&args.file, 1 << 20)?;
    let job = serde_yaml::from_slice(&text)
        .map_err(|error| WorkerError::bad(INVALID_JOB, format!("{}: {error}", args.file.display())))?;
    let order = publish::Order {
        candidate: args.candidate.clone(),
        report: args.report.clone(),
    };
    let registry = Registry::from_env()?;
    publish::run(&registry, &job, &order, &args.key).await
}

fn run_export(args: &cli::Export) -> Result<()> {
    let bytes = export::run(&args.dir, &args.out)?;
    print(&format!("{}: {bytes} bytes", args.out.display()))
}

async fn run_compare(args: cli::Compare) -> Result<()> {
    let job = Job::read(&args.file)?;
    let comparison = compare::run(job, args.versions).await?;
    print(&serde_json::to_string_pretty(&comparison).unwrap_or_default())
}

fn run_node(args: cli::Node) -> Result<()> {
    let config = node::config::Config::read(&args.config)?;
    tokio::runtime::Runtime::new()
        .map_err(|error| WorkerError::transient(INTERNAL, format!("no runtime: {error}")))?
        .block_on(node::run(config, args.node_name, terminated()))
}

/// Prints the result, or why there is none: the process that started this one reads either.
fn run_selftest(args: &cli::Selftest) -> Result<()> {
    let result = selftest_within_limits(args);
    let text = match &result {
        Ok(result) => serde_json::to_string(result),
        Err(error) => serde_json::to_string(&node::selftest::Answer::from(error)),
    };
    print(&text.unwrap_or_default())?;
    result.map(|_| ())
}

fn selftest_within_limits(args: &cli::Selftest) -> Result<selftest::SelfTestResult> {
    if let Some(bytes) = args.memory {
        use nix::sys::resource::{Resource, setrlimit};
        setrlimit(Resource::RLIMIT_AS, bytes, bytes)
            .map_err(|error| WorkerError::transient(INTERNAL, format!("address-space limit of {bytes}: {error}")))?;
    }
    let version = Version::open(&args.dir)?;
    selftest::run(&version, &args.dir, args.tolerance)
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(|error| WorkerError::io("writing", Path::new("stdout"), &error))
}
