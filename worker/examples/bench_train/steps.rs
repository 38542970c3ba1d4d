//! Steps of training the nets of `nets.rs`, as the worker takes them: a batch in shards, two of them at a time.

use crate::builder::uniform;
use crate::nets::{CLASSES, Timed, VOCABULARY, net};
use crate::side::{self, THREADS};
use anyhow::{Context, Result, ensure};
use fleetune_gradient::feed::{Feed, Rows};
use fleetune_gradient::optim::Rule;
use fleetune_gradient::params::Param;
use fleetune_gradient::profile::Part;
use fleetune_gradient::schedule::{Schedule, Shape};
use fleetune_gradient::trainer::{Plan, Shard, Trainer};
use fleetune_gradient::{Differentiable, Input, Loss, Refusal, onnx};
use fleetune_worker::tune::shard;
use std::sync::Arc;
use tract_onnx::prelude::{DatumType, Tensor};

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

/// The net for as many rows as the worker gives a shard, and its weights.
fn model(timed: &mut Timed) -> Result<(Differentiable, Vec<Arc<Tensor>>)> {
    let fewest = built(timed)?;
    timed.shard = shard::rows(timed.batch, fewest.reuse());
    let model = if timed.shard == fewest.samples() {
        fewest
    } else {
        built(timed)?
    };
    let graph = timed.model.graph.as_ref().context("no graph")?;
    Ok((model, onnx::weights(graph, &timed.weights)?))
}

fn built(timed: &Timed) -> Result<Differentiable> {
    let input = Input {
        name: "x".to_owned(),
        datum_type: timed.datum_type,
        shape: [&[timed.shard], &timed.sample[..]].concat(),
    };
    Ok(Differentiable::build(
        &timed.model,
        &[input],
        &timed.output,
        &timed.weights,
        Loss::CrossEntropy,
    )?)
}

/// Prints where the time of a shard goes.
pub fn profile(name: &str) -> Result<()> {
    let mut timed = net(name).with_context(|| format!("no net is named {name}"))?;
    let (model, weights) = model(&mut timed)?;
    let rows = data(&timed)?;
    let row_weights = Arc::new(Tensor::from_shape(&[timed.shard], &vec![1_f32; timed.shard])?);
    let mut parts = Vec::new();
    for _ in 0..5 {
        parts = model.profile(&weights, &rows.inputs[..1], &rows.targets[0], &row_weights)?;
    }
    print(&parts);
    Ok(())
}

/// Prints parts of a run.
pub fn print(parts: &[Part]) {
    println!("| operator | nodes | ms |\n| --- | --- | --- |");
    for part in parts {
        println!(
            "| {} | {} | {:.3} |",
            part.operator,
            part.nodes,
            part.time.as_secs_f64() * 1000.0
        );
    }
}

/// Takes a few steps a round.
pub fn serve(name: &str) -> Result<()> {
    let mut timed = net(name).with_context(|| format!("no net is named {name}"))?;
    let (model, weights) = model(&mut timed)?;
    let params = timed.weights.iter().zip(weights).map(|(n, w)| Param::of(n, w));
    let params: Vec<Param> = params.collect::<Result<_, _>>()?;
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
    let mut trainer = Trainer::new(plan, params)?;
    side::serve(steps, || {
        for _ in 0..steps {
            let report = trainer.step(&feed)?.context("the run is over")?;
            ensure!(report.rows as usize == batch, "a whole batch was expected");
        }
        Ok(())
    })
}
