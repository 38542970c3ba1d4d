//! Two processes that do the same work in turns.

use anyhow::{Context, Result, ensure};
use fleetune_worker::lineage::{ENV_PURGE, NO_PURGE};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// What both sides may use.
pub const THREADS: usize = 2;

/// What was measured of either side.
pub struct Figures {
    ours: Vec<f64>,
    peer: Vec<f64>,
}

impl Figures {
    fn new(mut ours: Vec<f64>, mut peer: Vec<f64>) -> Self {
        ours.sort_by(f64::total_cmp);
        peer.sort_by(f64::total_cmp);
        Self { ours, peer }
    }

    /// Our figure below which the share `q` of all lies.
    pub fn ours(&self, q: f64) -> f64 {
        at(&self.ours, q)
    }

    /// The peer's.
    pub fn peer(&self, q: f64) -> f64 {
        at(&self.peer, q)
    }
}

fn at(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * q) as usize).copied().unwrap_or(f64::NAN)
}

/// This program, with the environment in which the worker trains.
pub fn program(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).env(ENV_PURGE, NO_PURGE);
    Ok(command)
}

/// A script of the peer's.
pub fn script(python: &str, name: &str, arguments: &[&str]) -> Command {
    let folder = concat!(env!("FLEETUNE_ROOT"), "/worker/examples/bench_train/peers");
    let mut command = Command::new(python);
    command.arg(format!("{folder}/{name}")).args(arguments);
    command
}

fn with_threads(command: &mut Command) -> &mut Command {
    let threads = THREADS.to_string();
    command.envs([("RAYON_NUM_THREADS", &threads), ("OMP_NUM_THREADS", &threads)])
}

/// Starts both and lets them work in turns: times in ms, and peaks of resident memory in MiB.
pub fn turns(ours: Command, peer: Command, rounds: usize) -> Result<(Figures, Figures)> {
    let (mut own, mut other) = (Side::start(ours)?, Side::start(peer)?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(own.ask()?);
        theirs.push(other.ask()?);
    }
    let peaks = Figures::new(vec![own.peak()?], vec![other.peak()?]);
    Ok((Figures::new(ours, theirs), peaks))
}

/// Runs both from start to end in turns, each with the number of its run: times in ms.
pub fn runs(
    ours: impl Fn(usize) -> Result<Command>,
    peer: impl Fn(usize) -> Result<Command>,
    count: usize,
) -> Result<Figures> {
    let time = |mut command: Command| {
        let start = Instant::now();
        let output = with_threads(&mut command)
            .output()
            .with_context(|| format!("starting {command:?}"))?;
        let time = start.elapsed().as_secs_f64() * 1000.0;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?} failed: {said}");
        Ok(time)
    };
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for run in 0..count {
        own.push(time(ours(run)?)?);
        other.push(time(peer(run)?)?);
    }
    Ok(Figures::new(own, other))
}

/// A process that works a round for every line it reads, and answers with its time.
struct Side {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = with_threads(&mut command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut side = Self { child, input, output };
        ensure!(side.line()? == "ready", "{command:?} did not start");
        Ok(side)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self) -> Result<f64> {
        writeln!(self.input, "go")?;
        self.input.flush()?;
        self.line()?.parse().context("a time was expected")
    }

    /// Peak of the resident memory in MiB.
    fn peak(&mut self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmHWM:"))
            .context("no peak")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Either may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers every line of the input with the time that `round` took in ms, divided by `units`; `round` runs once before.
pub fn serve(units: usize, mut round: impl FnMut() -> Result<()>) -> Result<()> {
    round()?;
    println!("ready");
    for line in std::io::stdin().lines() {
        line?;
        let start = Instant::now();
        round()?;
        println!("{}", start.elapsed().as_secs_f64() * 1000.0 / units as f64);
    }
    Ok(())
}
