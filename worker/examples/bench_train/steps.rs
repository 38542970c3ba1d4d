//! Times a step of training against PyTorch on the CPU, both with two threads, and compares the peak of their memory.
//!
//!     train_step PYTHON OUT.json [NET ...]
//!
//! Each net runs in two processes, this program and `peer.py`, which take turns: what else the machine does meets both. A
//! round is a few steps; minimum and median are over the rounds.
#![allow(clippy::print_stdout)] // A table is what it makes.

#[path = "../../tests/golden/builder.rs"]
#[allow(dead_code)] // The tests use all of it.
mod builder;
mod nets;

use anyhow::{Context, Result, bail, ensure};
use builder::uniform;
use fleetune_gradient::feed::{Feed, Rows};
use fleetune_gradient::optim::Rule;
use fleetune_gradient::params::Param;
use fleetune_gradient::schedule::{Schedule, Shape};
use fleetune_gradient::trainer::{Plan, Shard, Trainer};
use fleetune_gradient::{Differentiable, Input, Loss, Refusal, onnx};
use nets::{ALL, CLASSES, Timed, VOCABULARY, net};
use serde::Serialize;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;
use tract_onnx::prelude::{DatumType, Tensor};

/// The worker's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rounds of each net.
const ROUNDS: usize = 15;
/// Steps before the first round.
const WARM_UP: usize = 2;
/// What both sides may use.
const THREADS: usize = 2;
/// Goal for the peak of memory relative to the peer's.
const MEMORY_GOAL: f64 = 0.5;

/// One line of the table.
#[derive(Serialize)]
struct Row {
    name: String,
    /// Smallest time of a step in ms, or peak in MiB.
    ours: f64,
    peer: f64,
    ratio_min: f64,
    ratio_median: f64,
    goal: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [serve, name] if serve == "serve" => serve_steps(name),
        [python, out, chosen @ ..] => compare(python, out, chosen),
        _ => bail!("usage: train_step PYTHON OUT.json [NET ...]"),
    }
}

fn compare(python: &str, out: &str, chosen: &[String]) -> Result<()> {
    let mut rows = Vec::new();
    println!("| step | ours | PyTorch | ratio of minima | of medians | goal |\n| --- | --- | --- | --- | --- | --- |");
    for (name, goal) in ALL {
        if !chosen.is_empty() && !chosen.iter().any(|c| c == name) {
            continue;
        }
        for row in measure(python, name, goal)? {
            println!(
                "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} |",
                row.name, row.ours, row.peer, row.ratio_min, row.ratio_median, row.goal
            );
            rows.push(row);
        }
    }
    std::fs::write(out, serde_json::to_vec_pretty(&rows)?).with_context(|| format!("writing {out}"))
}

fn measure(python: &str, name: &str, goal: f64) -> Result<[Row; 2]> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/train_step/peer.py");
    let mut own = Side::start(Command::new(std::env::current_exe()?).args(["serve", name]))?;
    let mut peer = Side::start(Command::new(python).args([script, name]))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(own.ask()?);
        theirs.push(peer.ask()?);
    }
    let peaks = [own.peak()?, peer.peak()?];
    ours.sort_by(f64::total_cmp);
    theirs.sort_by(f64::total_cmp);
    let ratio = |at: usize| ours[at] / theirs[at];
    Ok([
        Row {
            name: format!("{name}, ms"),
            ours: ours[0],
            peer: theirs[0],
            ratio_min: ratio(0),
            ratio_median: ratio(ROUNDS / 2),
            goal,
        },
        Row {
            name: format!("{name}, peak MiB"),
            ours: peaks[0],
            peer: peaks[1],
            ratio_min: peaks[0] / peaks[1],
            ratio_median: peaks[0] / peaks[1],
            goal: MEMORY_GOAL,
        },
    ])
}

/// A process that takes a few steps for every line it reads, and answers with the time of one in ms.
struct Side {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    fn start(command: &mut Command) -> Result<Self> {
        let threads = THREADS.to_string();
        let mut child = command
            .envs([("RAYON_NUM_THREADS", &threads), ("OMP_NUM_THREADS", &threads)])
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

/// Random rows; the labels go round.
struct Data {
    inputs: Vec<Arc<Tensor>>,
    targets: Vec<Arc<Tensor>>,
    shard: usize,
}

impl Rows for Data {
    fn inputs(&self, shard: &Shard) -> Result<Vec<Arc<Tensor>>, Refusal> {
        Ok(vec![self.inputs[shard.rows[0] as usize / self.shard].clone()])
    }

    fn target(&self, shard: &Shard) -> Result<Arc<Tensor>, Refusal> {
        Ok(self.targets[shard.rows[0] as usize / self.shard].clone())
    }
}

fn data(timed: &Timed) -> Result<Data> {
    let shape = [&[timed.shard], &timed.sample[..]].concat();
    let count: usize = shape.iter().product();
    let (mut inputs, mut targets) = (Vec::new(), Vec::new());
    for i in 0..timed.batch / timed.shard {
        let values = uniform(1000 + i as u32, count);
        let word = |v: &f32| (f64::midpoint(f64::from(*v), 1.0) * VOCABULARY as f64) as i64;
        inputs.push(Arc::new(match timed.datum_type {
            DatumType::I64 => Tensor::from_shape(&shape, &values.iter().map(word).collect::<Vec<i64>>())?,
            _ => Tensor::from_shape(&shape, &values)?,
        }));
        let one_hot: Vec<f32> = (0..timed.shard * CLASSES)
            .map(|j| f32::from(u8::from(j % CLASSES == (j / CLASSES + i) % CLASSES)))
            .collect();
        targets.push(Arc::new(Tensor::from_shape(&[timed.shard, CLASSES], &one_hot)?));
    }
    Ok(Data {
        inputs,
        targets,
        shard: timed.shard,
    })
}

fn serve_steps(name: &str) -> Result<()> {
    let timed = net(name).with_context(|| format!("no net is named {name}"))?;
    let input = Input {
        name: "x".to_owned(),
        datum_type: timed.datum_type,
        shape: [&[timed.shard], &timed.sample[..]].concat(),
    };
    let model = Differentiable::build(
        &timed.model,
        &[input],
        &timed.output,
        &timed.weights,
        Loss::CrossEntropy,
    )?;
    let graph = timed.model.graph.as_ref().context("no graph")?;
    let weights = onnx::weights(graph, &timed.weights)?;
    let params: Result<Vec<Param>, _> = timed
        .weights
        .iter()
        .zip(weights)
        .map(|(n, w)| Param::of(n, w))
        .collect();
    let plan = Plan {
        rows: timed.batch as u32,
        batch: timed.batch as u32,
        shard: timed.shard as u32,
        at_once: THREADS,
        epochs: 1 << 20,
        seed: 0,
        rule: Rule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        },
        schedule: Schedule {
            learning_rate: 1e-3,
            shape: Shape::Constant,
            warm_up: 0,
            total: 1 << 20,
        },
        clip: None,
        row_weights: vec![],
    };
    let rows = data(&timed)?;
    let (batch, steps) = (timed.batch, timed.steps);
    // The tensors in it are copies of the weights that train.
    drop(timed);
    let feed = Feed { model: &model, rows };
    let mut trainer = Trainer::new(plan, params?)?;
    let mut run = |steps: usize| -> Result<()> {
        for _ in 0..steps {
            let report = trainer.step(&feed)?.context("the run is over")?;
            ensure!(report.rows as usize == batch, "a whole batch was expected");
        }
        Ok(())
    };
    run(WARM_UP)?;
    println!("ready");
    for line in std::io::stdin().lines() {
        line?;
        let start = Instant::now();
        run(steps)?;
        println!("{}", start.elapsed().as_secs_f64() * 1000.0 / steps as f64);
    }
    Ok(())
}
