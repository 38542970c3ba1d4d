//! The cut between frozen and trained, and the choice of layers, by topology.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{graph, mlp, model, names, random, residual, tensor};
use fleetune_gradient::cut::{all_layers, cut, last_layers};
use fleetune_gradient::onnx::{integers, node};
use fleetune_gradient::{Differentiable, Input, Loss, Refusal, onnx, pb};
use std::sync::Arc;
use tract_onnx::prelude::{Datum, Framework, InferenceModelExt, IntoTValue, TVec, Tensor};
use tract_onnx::tract_core::internal::{DatumExt, IntoRunnable, IntoTensor};

fn ops(graph: &pb::GraphProto) -> Vec<&str> {
    graph.node.iter().map(|n| n.output[0].as_str()).collect()
}

#[test]
fn the_last_layers_are_told_by_place_and_not_by_name() {
    // Of the two layers "a" is the last, though "z" sounds later.
    assert_eq!(last_layers(&mlp(), "logits", 1).unwrap(), names(&["a", "a.b"]));
    assert_eq!(
        last_layers(&mlp(), "logits", 2).unwrap(),
        names(&["z", "z.b", "a", "a.b"])
    );
    assert_eq!(
        last_layers(&mlp(), "logits", 9).unwrap(),
        all_layers(&mlp(), "logits").unwrap()
    );
    assert!(matches!(
        last_layers(&mlp(), "logits", 0),
        Err(Refusal::NothingToTrain(_))
    ));
    assert!(matches!(last_layers(&mlp(), "x", 1), Err(Refusal::NothingToTrain(_))));
}

#[test]
fn a_norm_belongs_to_the_layer_in_front_of_it() {
    let with_norms = graph(
        &[("x", &[2, 4])],
        vec![
            node("LayerNormalization", &["x", "n1", "n1b"], "first", vec![]),
            node("MatMul", &["first", "w1"], "mid", vec![]),
            node("LayerNormalization", &["mid", "n2", "n2b"], "second", vec![]),
            node("MatMul", &["second", "w2"], "logits", vec![]),
        ],
        vec![
            random("n1", &[4], 1),
            random("n1b", &[4], 2),
            random("w1", &[4, 4], 3),
            random("n2", &[4], 4),
            random("n2b", &[4], 5),
            random("w2", &[4, 3], 6),
        ],
        "logits",
    );
    assert_eq!(last_layers(&with_norms, "logits", 1).unwrap(), names(&["w2"]));
    assert_eq!(
        last_layers(&with_norms, "logits", 2).unwrap(),
        names(&["w1", "n2", "n2b", "w2"])
    );
    assert_eq!(all_layers(&with_norms, "logits").unwrap().len(), 6);
}

#[test]
fn a_mask_is_not_a_bias_and_a_scalar_not_a_parameter() {
    let masked = graph(
        &[("x", &[1, 2, 3, 4])],
        vec![
            node("MatMul", &["x", "w"], "scores", vec![]),
            node("Mul", &["scores", "scale"], "scaled", vec![]),
            node("Add", &["scaled", "mask"], "logits", vec![]),
        ],
        vec![
            random("w", &[4, 3], 1),
            random("scale", &[1], 2),
            random("mask", &[1, 1, 3, 3], 3),
        ],
        "logits",
    );
    assert_eq!(last_layers(&masked, "logits", 1).unwrap(), names(&["w"]));
}

#[test]
fn a_cut_inside_a_residual_block_has_two_tensors() {
    let whole = residual();
    let trained = last_layers(&whole, "logits", 2).unwrap();
    assert_eq!(trained, names(&["w5", "b5", "w2", "b2"]));
    let parts = cut(&whole, "logits", &trained).unwrap();
    // What goes around the block and what goes into its last layer.
    assert_eq!(parts.tensors, names(&["in", "bent"]));
    assert_eq!(parts.inputs, Vec::<String>::new());
    assert_eq!(ops(&parts.frozen), ["stem", "in", "branch", "bent"]);
    assert_eq!(ops(&parts.trained), ["out", "sum", "pool", "flat", "logits"]);
    let held: Vec<&str> = parts.trained.initializer.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(held, ["w5", "b5", "w2", "b2"]);
}

#[test]
fn shape_arithmetic_and_constants_stay_with_the_trained_part() {
    let mut shaped = residual();
    // The flattening asks for the batch size of the input instead.
    shaped.node[7] = node("Reshape", &["pool", "to"], "flat", vec![]);
    shaped
        .node
        .insert(7, node("Concat", &["n", "four"], "to", vec![common::int("axis", 0)]));
    shaped
        .node
        .insert(7, node("Slice", &["shape", "zero", "one"], "n", vec![]));
    shaped.node.insert(7, node("Shape", &["x"], "shape", vec![]));
    for (name, value) in [("zero", 0), ("one", 1), ("four", 4)] {
        shaped.initializer.push(integers(name, &[value]));
    }
    let parts = cut(&shaped, "logits", &names(&["w5"])).unwrap();
    assert_eq!(parts.inputs, names(&["x"]));
    assert_eq!(parts.tensors, names(&["in", "bent"]));
    assert_eq!(
        ops(&parts.trained),
        ["out", "sum", "pool", "shape", "n", "to", "flat", "logits"]
    );
    assert!(!ops(&parts.frozen).contains(&"shape"));
}

#[test]
fn a_cut_that_leaves_nothing_is_refused() {
    let mut spare = mlp();
    spare.initializer.push(random("spare", &[3], 8));
    assert!(matches!(
        cut(&spare, "logits", &names(&["spare"])),
        Err(Refusal::NothingToTrain(_))
    ));
    assert!(matches!(cut(&spare, "logits", &[]), Err(Refusal::NothingToTrain(_))));
    assert!(matches!(
        cut(&spare, "logits", &names(&["none"])),
        Err(Refusal::NoSuchTensor { .. })
    ));
}

#[test]
fn the_two_parts_together_are_the_whole() {
    let whole = residual();
    let trained = last_layers(&whole, "logits", 2).unwrap();
    let parts = cut(&whole, "logits", &trained).unwrap();
    let x = tensor(&[2, 3, 5, 5], 11);
    let mut frozen = tract_onnx::onnx().model_for_proto_model(&model(parts.frozen)).unwrap();
    frozen.set_input_fact(0, f32::fact([2, 3, 5, 5]).into()).unwrap();
    let plan = frozen.into_optimized().unwrap().into_runnable().unwrap();
    let features: TVec<_> = plan.run(TVec::from_elem(x.clone().into_tvalue(), 1)).unwrap();
    let features: Vec<Arc<Tensor>> = features.into_iter().map(|t| Arc::new(t.into_tensor())).collect();

    let input = |name: &str, shape: &[usize]| Input {
        name: name.to_owned(),
        datum_type: f32::datum_type(),
        shape: shape.to_vec(),
    };
    let inputs: Vec<Input> = parts
        .tensors
        .iter()
        .zip(&features)
        .map(|(n, t)| input(n, t.shape()))
        .collect();
    let weights = onnx::weights(&whole, &trained).unwrap();
    let build = |proto: &pb::ModelProto, inputs: &[Input]| {
        Differentiable::build(proto, inputs, "logits", &trained, Loss::CrossEntropy).unwrap()
    };
    let target = Arc::new(Tensor::from_shape(&[2, 3], &[1.0f32, 0.0, 0.0, 0.0, 0.0, 1.0]).unwrap());
    let rows = Arc::new(Tensor::from_shape(&[2], &[1.0f32, 1.0]).unwrap());
    let all = build(&model(whole.clone()), &[input("x", &[2, 3, 5, 5])]);
    let last = build(&model(parts.trained), &inputs);
    let all = all.run(&weights, &[x], &target, &rows).unwrap();
    let last = last.run(&weights, &features, &target, &rows).unwrap();
    assert!((all.loss - last.loss).abs() < 1e-6, "{} {}", all.loss, last.loss);
    for (a, b) in all.whole(&weights).iter().zip(&last.whole(&weights)) {
        a.close_enough(b, true).unwrap();
    }
}
