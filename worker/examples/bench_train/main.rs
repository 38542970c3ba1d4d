//! Speed and size against PyTorch and onnxruntime, all on the CPU with two threads: steps of training, features, a whole
//! job, and a cold start. Prints a table and writes it as JSON.
//!
//!     bench_train PYTHON WORKER DATA OUT.json [ROW ...]
//!
//! PYTHON has what `requirements.txt` lists, WORKER is the worker's release build, DATA the folder that
//! `examples/prepare.py` fills. Ours and the peer are two processes that take turns, so that what else the machine does
//! meets both. `bench_train profile NET` prints where the time of a training step goes,
//! by operator, and `bench_train profile pictures DATA` that of a picture's features, by operator and form.
#![allow(clippy::print_stdout)] // A table is what it makes.

#[path = "../../gradient/tests/golden/builder.rs"]
#[allow(dead_code)] // The tests use all of it.
mod builder;
mod features;
mod job;
mod nets;
mod side;
mod steps;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use side::{Figures, program, script, turns};
use std::path::Path;
use std::process::Command;

/// The worker's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Goal for the peak of memory relative to the peer's.
const MEMORY_GOAL: f64 = 0.5;

/// One line of the table.
#[derive(Serialize)]
struct Row {
    name: String,
    /// Smallest time, or peak of memory.
    ours: f64,
    peer: f64,
    ratio_min: f64,
    ratio_median: f64,
    goal: f64,
}

impl Row {
    fn new(name: impl Into<String>, figures: &Figures, goal: f64) -> Self {
        let row = Self {
            name: name.into(),
            ours: figures.ours(0.0),
            peer: figures.peer(0.0),
            ratio_min: figures.ours(0.0) / figures.peer(0.0),
            ratio_median: figures.ours(0.5) / figures.peer(0.5),
            goal,
        };
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} |",
            row.name, row.ours, row.peer, row.ratio_min, row.ratio_median, row.goal
        );
        row
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match &words[..] {
        ["profile", "pictures", data] => features::profile_pictures(Path::new(data)),
        ["profile", net] => steps::profile(net),
        ["step", net] => steps::serve(net),
        ["pictures", data] => features::serve_pictures(Path::new(data)),
        ["sentences", data] => features::serve_sentences(Path::new(data)),
        ["first", data] => features::first(Path::new(data)),
        [python, worker, data, out, chosen @ ..] => compare(python, worker, data, out, chosen),
        _ => bail!("usage: bench_train PYTHON WORKER DATA OUT.json [ROW ...]"),
    }
}

fn compare(python: &str, worker: &str, data: &str, out: &str, chosen: &[&str]) -> Result<()> {
    let wanted = |name: &str| chosen.is_empty() || chosen.contains(&name);
    let mut rows = Vec::new();
    println!("| work | ours | peer | ratio of minima | of medians | goal |\n| --- | --- | --- | --- | --- | --- |");
    for (net, goal) in nets::ALL.into_iter().filter(|(net, _)| wanted(net)) {
        let (times, peaks) = turns(program(&["step", net])?, script(python, "steps.py", &[net]), 15)?;
        rows.push(Row::new(format!("training step of {net}, ms"), &times, goal));
        rows.push(Row::new(format!("peak of training {net}, MiB"), &peaks, MEMORY_GOAL));
    }
    for (kind, goal) in [("pictures", 1.0), ("sentences", 1.3)] {
        if wanted(kind) {
            let (times, _) = turns(
                program(&[kind, data])?,
                script(python, "features.py", &[kind, data]),
                15,
            )?;
            rows.push(Row::new(format!("features of {kind}, ms each"), &times, goal));
        }
    }
    if wanted("first") {
        let peer = || script(python, "features.py", &["first", data]);
        let times = side::runs(|_| program(&["first", data]), |_| Ok(peer()), 9)?;
        rows.push(Row::new("cold start to first prediction, ms", &times, 0.5));
    }
    if wanted("job") {
        let work = job::Work::new(Path::new(data))?;
        let ours = |run| Ok(work.command(Command::new(worker), run));
        let peer = |run| Ok(script(python, "job.py", &[data, &work.peer_out(run)]));
        let times = side::runs(ours, peer, 2)?;
        rows.push(Row::new("whole Head job of 2,000 pictures, ms", &times, 1.0));
    }
    std::fs::write(out, serde_json::to_vec_pretty(&rows)?).with_context(|| format!("writing {out}"))
}
