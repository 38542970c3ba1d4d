//! Low-rank adapters: where they go, what they change, and how they are folded away.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{graph, int, mlp, model, names, noise, random, residual, tensor};
use fleetune_gradient::lora::{Adapter, Lora, adapt, fold};
use fleetune_gradient::onnx::{self, floats, node};
use fleetune_gradient::{Differentiable, Input, Loss, Refusal, pb};
use std::sync::Arc;
use tract_onnx::prelude::{Datum, Tensor};

fn lora(targets: &[&str]) -> Lora {
    Lora {
        rank: 2,
        alpha: 4.0,
        targets: names(targets),
    }
}

/// Numbers in place of normal ones.
fn drawn() -> impl FnMut() -> f32 {
    let mut numbers = noise(4096, 17).into_iter().cycle();
    move || numbers.next().unwrap()
}

fn adapted(graph: &pb::GraphProto, targets: &[&str]) -> (pb::GraphProto, Vec<Adapter>) {
    let mut changed = graph.clone();
    let adapters = adapt(&mut changed, &lora(targets), &mut drawn()).unwrap();
    (changed, adapters)
}

fn refused(graph: &pb::GraphProto, targets: &[&str]) -> Refusal {
    adapt(&mut graph.clone(), &lora(targets), &mut drawn()).unwrap_err()
}

fn outputs(graph: &pb::GraphProto, trained: &[String], shape: &[usize]) -> Tensor {
    let weights = onnx::weights(graph, trained).unwrap();
    net(graph, trained, shape)
        .forward(&weights, &[tensor(shape, 9)])
        .unwrap()
}

fn net(graph: &pb::GraphProto, trained: &[String], shape: &[usize]) -> Differentiable {
    let input = Input {
        name: "x".to_owned(),
        datum_type: f32::datum_type(),
        shape: shape.to_vec(),
    };
    Differentiable::build(
        &model(graph.clone()),
        &[input],
        "logits",
        trained,
        Loss::MeanSquaredError,
    )
    .unwrap()
}

fn set(graph: &mut pb::GraphProto, name: &str, seed: usize) {
    let tensor = graph.initializer.iter_mut().find(|t| t.name == name).unwrap();
    let dims: Vec<usize> = tensor.dims.iter().map(|d| *d as usize).collect();
    *tensor = floats(name, &dims, &noise(dims.iter().product(), seed));
}

fn shape(graph: &pb::GraphProto, name: &str) -> Vec<i64> {
    onnx::initializer(graph, name).unwrap().dims.clone()
}

#[test]
fn a_fresh_adapter_changes_no_output() {
    for (whole, dims) in [(mlp(), vec![4, 6]), (residual(), vec![2, 3, 5, 5])] {
        let trained: Vec<String> = fleetune_gradient::cut::all_layers(&whole, "logits").unwrap();
        let (changed, adapters) = adapted(&whole, &[]);
        let factors: Vec<String> = adapters.iter().flat_map(|a| [a.a.clone(), a.b.clone()]).collect();
        let before = outputs(&whole, &trained, &dims);
        outputs(&changed, &factors, &dims).close_enough(&before, true).unwrap();
    }
}

#[test]
fn factors_lie_on_the_sides_of_input_and_output() {
    let (changed, adapters) = adapted(&mlp(), &[]);
    let weights: Vec<&str> = adapters.iter().map(|a| a.weight.as_str()).collect();
    assert_eq!(weights, ["z", "a"]);
    // "z" is a transposed [8, 6] weight of 6 inputs, "a" one of 8 inputs and 3 outputs.
    assert_eq!(
        (shape(&changed, "z.lora.a"), shape(&changed, "z.lora.b")),
        (vec![2, 6], vec![8, 2])
    );
    assert_eq!(
        (shape(&changed, "a.lora.a"), shape(&changed, "a.lora.b")),
        (vec![8, 2], vec![2, 3])
    );
    let (changed, _) = adapted(&residual(), &["w1"]);
    assert_eq!(
        (shape(&changed, "w1.lora.a"), shape(&changed, "w1.lora.b")),
        (vec![2, 36], vec![4, 2])
    );
    let b = onnx::tensor(onnx::initializer(&changed, "w1.lora.b").unwrap()).unwrap();
    assert!(b.is_all_zero().unwrap());
}

#[test]
fn the_sum_is_the_weight_plus_the_scaled_product() {
    let (mut changed, _) = adapted(&mlp(), &["a"]);
    set(&mut changed, "a.lora.b", 23);
    let read = |graph: &pb::GraphProto, name: &str| -> Vec<f32> {
        let tensor = onnx::tensor(onnx::initializer(graph, name).unwrap()).unwrap();
        tensor.view().as_slice::<f32>().unwrap().to_vec()
    };
    let (w, a, b) = (
        read(&changed, "a"),
        read(&changed, "a.lora.a"),
        read(&changed, "a.lora.b"),
    );
    assert_eq!(fold(&mut changed).unwrap(), 1);
    let merged = read(&changed, "a.lora.effective");
    for (i, value) in merged.iter().enumerate() {
        let (row, column) = (i / 3, i % 3);
        let product: f32 = (0..2).map(|k| a[row * 2 + k] * b[k * 3 + column]).sum();
        assert!((value - (w[i] + 2.0 * product)).abs() < 1e-6);
    }
}

#[test]
fn folding_keeps_the_outputs_and_drops_the_factors() {
    for (whole, dims, other) in [(mlp(), vec![4, 6], "z.b"), (residual(), vec![2, 3, 5, 5], "b2")] {
        let (mut changed, adapters) = adapted(&whole, &[]);
        for (i, adapter) in adapters.iter().enumerate() {
            set(&mut changed, &adapter.b, 31 + i);
        }
        let before = outputs(&changed, &names(&[other]), &dims);
        assert_eq!(fold(&mut changed).unwrap(), adapters.len());
        assert_eq!(changed.node.len(), whole.node.len());
        assert!(!changed.initializer.iter().any(|t| t.name.ends_with(".lora.a")));
        outputs(&changed, &names(&[other]), &dims)
            .close_enough(&before, true)
            .unwrap();
        assert_eq!(fold(&mut changed).unwrap(), 0);
    }
}

#[test]
fn factors_are_trained_and_the_weight_is_not() {
    let (mut changed, adapters) = adapted(&residual(), &["w1", "logits"]);
    for adapter in &adapters {
        set(&mut changed, &adapter.b, 41);
    }
    let factors: Vec<String> = adapters.iter().flat_map(|a| [a.a.clone(), a.b.clone()]).collect();
    let net = net(&changed, &factors, &[2, 3, 5, 5]);
    let weights = onnx::weights(&changed, &factors).unwrap();
    let target = Arc::new(Tensor::from_shape(&[2, 3], &noise(6, 5)).unwrap());
    let rows = Arc::new(Tensor::from_shape(&[2], &[1.0f32, 1.0]).unwrap());
    let x = tensor(&[2, 3, 5, 5], 9);
    let at = |weights: &[Arc<Tensor>]| net.run(weights, std::slice::from_ref(&x), &target, &rows).unwrap();
    let gradients = at(&weights).whole(&weights);
    for (i, gradient) in gradients.iter().enumerate() {
        let gradient = gradient.view().as_slice::<f32>().unwrap().to_vec();
        let moved = |step: f32| {
            let values = weights[i].view().as_slice::<f32>().unwrap().to_vec();
            let changed: Vec<f32> = values.iter().zip(&gradient).map(|(v, g)| v + step * g).collect();
            let mut all = weights.clone();
            all[i] = Arc::new(Tensor::from_shape(weights[i].shape(), &changed).unwrap());
            at(&all).loss
        };
        let squares: f32 = gradient.iter().map(|g| g * g).sum();
        let step = 1e-3 / squares.sqrt();
        let numeric = (moved(step) - moved(-step)) / (2.0 * step);
        assert!(
            (numeric - squares).abs() < 0.02 * squares,
            "{}: {numeric} against {squares}",
            factors[i]
        );
    }
}

#[test]
fn targets_are_names_of_nodes_or_weights_with_wildcards() {
    let chosen =
        |targets: &[&str]| -> Vec<String> { adapted(&residual(), targets).1.into_iter().map(|a| a.weight).collect() };
    assert_eq!(chosen(&["w?"]), ["w9", "w1", "w5", "w2"]);
    assert_eq!(chosen(&["*t*"]), ["w9", "w5", "w2"]);
    assert_eq!(chosen(&["branch", "w2"]), ["w1", "w2"]);
    match refused(&residual(), &["w1", "query*"]) {
        Refusal::NoMatch { target, candidates } => {
            assert_eq!(target, "query*");
            assert_eq!(candidates, ["stem", "branch", "out", "logits"]);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn depthwise_and_grouped_convolutions_are_refused_by_name() {
    let mut grouped = residual();
    grouped.node[2].attribute.push(int("group", 4));
    grouped.initializer[2] = random("w1", &[4, 1, 3, 3], 3);
    match refused(&grouped, &["branch"]) {
        Refusal::NoAdapter { node, reason } => {
            assert_eq!(node, "branch");
            assert!(reason.contains("grouped"), "{reason}");
        }
        other => panic!("{other}"),
    }
    // Without targets they are left out.
    let (_, adapters) = adapted(&grouped, &[]);
    assert!(adapters.iter().all(|a| a.weight != "w1"));
    let only = graph(
        &[("x", &[1, 2, 4, 4])],
        vec![node("Conv", &["x", "w"], "logits", vec![int("group", 2)])],
        vec![random("w", &[2, 1, 3, 3], 1)],
        "logits",
    );
    assert!(matches!(refused(&only, &[]), Refusal::NothingToTrain(_)));
}
