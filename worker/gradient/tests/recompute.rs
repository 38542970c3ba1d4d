//! Activations that are computed again against those that are kept.
#![allow(clippy::unwrap_used)]

mod common;

use common::{mlp, model, names, noise, residual, tensor};
use fleetune_gradient::{Activations, Differentiable, Input, Loss, onnx, pb};
use std::sync::Arc;
use tract_onnx::prelude::{Datum, Tensor};

/// Layer after layer of the same width, with a way past each two.
fn deep(layers: usize) -> pb::GraphProto {
    let (mut node, mut initializer, mut at) = (Vec::new(), Vec::new(), "x".to_owned());
    for i in 0..layers {
        let name = |what: &str| format!("{what}{i}");
        initializer.push(onnx::floats(&name("w"), &[16, 16], &noise(256, i)));
        node.push(onnx::node("MatMul", &[&at, &name("w")], &name("product"), vec![]));
        node.push(onnx::node("Sigmoid", &[&name("product")], &name("bent"), vec![]));
        node.push(onnx::node(
            "Mul",
            &[&name("bent"), &name("product")],
            &name("gated"),
            vec![],
        ));
        node.push(onnx::node("Add", &[&name("gated"), &at], &name("sum"), vec![]));
        at = name("sum");
    }
    pb::GraphProto {
        name: "deep".to_owned(),
        node,
        initializer,
        input: vec![onnx::float_info("x", &[64, 16])],
        output: vec![onnx::float_info(&at, &[64, 16])],
        ..Default::default()
    }
}

#[test]
fn activations_that_are_computed_again_take_less_memory() {
    let sixteen: Vec<String> = (0..16).map(|i| format!("w{i}")).collect();
    let cases = [
        (deep(16), vec![64, 16], "sum15", sixteen),
        // One gradient, at the end of the way back: no segment may be computed again before the way has come to it.
        (deep(16), vec![64, 16], "sum15", names(&["w0"])),
        (mlp(), vec![4, 6], "logits", names(&["a", "a.b", "z", "z.b"])),
        (
            residual(),
            vec![2, 3, 5, 5],
            "logits",
            names(&["w9", "b9", "w1", "w5", "b5", "w2", "b2"]),
        ),
    ];
    for (graph, shape, output, trained) in cases {
        let proto = model(graph);
        let build = |activations| {
            let x = Input {
                name: "x".to_owned(),
                datum_type: f32::datum_type(),
                shape: shape.clone(),
            };
            Differentiable::build_with(&proto, &[x], output, &trained, Loss::MeanSquaredError, activations).unwrap()
        };
        let (kept, again) = (build(Activations::Kept), build(Activations::Recomputed));
        let weights = onnx::weights(proto.graph.as_ref().unwrap(), &trained).unwrap();
        let (x, t) = (tensor(&shape, 9), tensor(&[shape[0], kept.classes()], 5));
        let w = Arc::new(Tensor::from_shape(&shape[..1], &vec![0.5_f32; shape[0]]).unwrap());
        let run = |net: &Differentiable| net.run(&weights, std::slice::from_ref(&x), &t, &w).unwrap();
        let (want, have) = (run(&kept), run(&again));
        assert_eq!(want.loss.to_bits(), have.loss.to_bits());
        for (want, have) in want.whole(&weights).iter().zip(have.whole(&weights)) {
            want.close_enough(&have, true).unwrap();
        }
        if trained.len() == 1 {
            assert!(again.memory().peak < kept.memory().peak);
        } else if output == "sum15" {
            let (kept, again) = (kept.memory().peak, again.memory().peak);
            assert!(again * 5 < kept * 3, "{again} bytes instead of {kept}");
        }
    }
}
