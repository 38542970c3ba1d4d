//! A model from ONNX bytes to loss, logits and gradients.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{mlp, model, names, noise, tensor};
use fleetune_gradient::slope::Slope;
use fleetune_gradient::{Differentiable, Input, Loss, Refusal, onnx, pb};
use std::sync::Arc;
use tract_onnx::prelude::{Datum, Tensor};

const TRAINED: &[&str] = &["a", "a.b", "z", "z.b"];

fn input(shape: &[usize]) -> Vec<Input> {
    vec![Input {
        name: "x".to_owned(),
        datum_type: f32::datum_type(),
        shape: shape.to_vec(),
    }]
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.view().as_slice::<f32>().unwrap().to_vec()
}

/// A distribution over three classes for each of four rows.
fn target() -> Arc<Tensor> {
    let values = [0.8, 0.1, 0.1, 0.0, 1.0, 0.0, 0.2, 0.2, 0.6, 0.0, 0.0, 1.0f32];
    Arc::new(Tensor::from_shape(&[4, 3], &values).unwrap())
}

fn rows(weights: &[f32]) -> Arc<Tensor> {
    Arc::new(Tensor::from_shape(&[weights.len()], weights).unwrap())
}

#[test]
fn every_loss_agrees_with_differences() {
    let proto = model(mlp());
    let trained = names(TRAINED);
    let losses = [
        Loss::CrossEntropy,
        Loss::BinaryCrossEntropy,
        Loss::MeanSquaredError,
        Loss::MeanAbsoluteError,
        Loss::Huber { delta: 0.5 },
    ];
    for loss in losses {
        let net = Differentiable::build(&proto, &input(&[4, 6]), "logits", &trained, loss).unwrap();
        let weights = onnx::weights(proto.graph.as_ref().unwrap(), &trained).unwrap();
        let (x, t, w) = (tensor(&[4, 6], 9), target(), rows(&[1.0, 0.5, 2.0, 1.0]));
        let at = |weights: &[Arc<Tensor>]| net.run(weights, std::slice::from_ref(&x), &t, &w).unwrap();
        let outcome = at(&weights);
        assert_eq!(outcome.logits.shape(), [4, 3]);
        for (i, gradient) in outcome.whole(&weights).iter().enumerate() {
            assert_eq!(gradient.shape(), weights[i].shape());
            let gradient = values(gradient);
            let largest = (0..gradient.len())
                .max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()))
                .unwrap();
            let moved = |step: f32| {
                let mut all = weights.clone();
                let mut changed = values(&all[i]);
                changed[largest] += step;
                all[i] = Arc::new(Tensor::from_shape(weights[i].shape(), &changed).unwrap());
                at(&all).loss
            };
            let numeric = (moved(2e-3) - moved(-2e-3)) / 4e-3;
            let analytic = gradient[largest];
            assert!(
                (numeric - analytic).abs() < 0.02 * analytic.abs().max(0.05),
                "{loss:?}, {}: {analytic} against {numeric}",
                TRAINED[i]
            );
        }
    }
}

#[test]
fn a_loss_is_what_its_formula_says() {
    let proto = model(mlp());
    let (x, t, w) = (tensor(&[4, 6], 9), target(), rows(&[1.0, 0.5, 2.0, 0.0]));
    let trained = names(&["a"]);
    let weights = onnx::weights(proto.graph.as_ref().unwrap(), &trained).unwrap();
    let formula = |loss: Loss, z: &[f32], t: &[f32]| -> f64 {
        let pairs = || z.iter().zip(t).map(|(z, t)| (f64::from(*z), f64::from(*t)));
        let mean = |f: &dyn Fn(f64, f64) -> f64| pairs().map(|(z, t)| f(z, t)).sum::<f64>() / 3.0;
        match loss {
            Loss::CrossEntropy => {
                let log_sum = pairs().map(|(z, _)| z.exp()).sum::<f64>().ln();
                pairs().map(|(z, t)| t * (log_sum - z)).sum()
            }
            Loss::BinaryCrossEntropy => mean(&|z, t| (1.0 + z.exp()).ln() - t * z),
            Loss::MeanSquaredError => mean(&|z, t| (z - t).powi(2)),
            Loss::MeanAbsoluteError => mean(&|z, t| (z - t).abs()),
            Loss::Huber { delta } => {
                let d = f64::from(delta);
                mean(&|z, t| {
                    let r = (z - t).abs();
                    if r <= d { r * r / 2.0 } else { d * (r - d / 2.0) }
                })
            }
        }
    };
    for loss in [
        Loss::CrossEntropy,
        Loss::BinaryCrossEntropy,
        Loss::MeanSquaredError,
        Loss::MeanAbsoluteError,
        Loss::Huber { delta: 0.5 },
    ] {
        let net = Differentiable::build(&proto, &input(&[4, 6]), "logits", &trained, loss).unwrap();
        let outcome = net.run(&weights, std::slice::from_ref(&x), &t, &w).unwrap();
        assert_eq!(outcome.logits, net.forward(&weights, std::slice::from_ref(&x)).unwrap());
        let (z, t) = (values(&outcome.logits), values(&t));
        let want: f64 = values(&w)
            .iter()
            .enumerate()
            .map(|(i, w)| f64::from(*w) * formula(loss, &z[3 * i..][..3], &t[3 * i..][..3]))
            .sum();
        let have = f64::from(outcome.loss);
        assert!(
            (have - want).abs() < 1e-5 * want.abs().max(1.0),
            "{loss:?}: {have} against {want}"
        );
    }
}

#[test]
fn a_padding_row_changes_nothing() {
    let proto = model(mlp());
    let trained = names(TRAINED);
    let net = Differentiable::build(&proto, &input(&[4, 6]), "logits", &trained, Loss::CrossEntropy).unwrap();
    let weights = onnx::weights(proto.graph.as_ref().unwrap(), &trained).unwrap();
    let (t, w) = (target(), rows(&[1.0, 1.0, 1.0, 0.0]));
    let x = noise(24, 9);
    let mut other = x.clone();
    other[18..].fill(1000.0);
    let run = |x: &[f32]| {
        net.run(&weights, &[Arc::new(Tensor::from_shape(&[4, 6], x).unwrap())], &t, &w)
            .unwrap()
    };
    let (first, second) = (run(&x), run(&other));
    assert_eq!(first.loss.to_bits(), second.loss.to_bits());
    assert_eq!(first.gradients, second.gradients);
}

#[test]
fn threads_share_a_model() {
    let proto = model(mlp());
    let trained = names(TRAINED);
    let net = Differentiable::build(&proto, &input(&[4, 6]), "logits", &trained, Loss::CrossEntropy).unwrap();
    let weights = onnx::weights(proto.graph.as_ref().unwrap(), &trained).unwrap();
    let (x, t, w) = (tensor(&[4, 6], 9), target(), rows(&[1.0; 4]));
    let run = || net.run(&weights, std::slice::from_ref(&x), &t, &w).unwrap().gradients;
    let alone = run();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        for thread in all {
            assert_eq!(thread.join().unwrap(), alone);
        }
    });
}

#[test]
fn the_estimate_counts_weights_and_activations() {
    let proto = model(mlp());
    let build = |samples: usize| {
        let mut proto = proto.clone();
        proto.graph.as_mut().unwrap().input = vec![onnx::float_info("x", &[samples, 6])];
        let inputs = input(&[samples, 6]);
        Differentiable::build(&proto, &inputs, "logits", &names(TRAINED), Loss::CrossEntropy)
            .unwrap()
            .memory()
    };
    let (small, large) = (build(4), build(400));
    // Weights, x, target and row weights of 4 bytes each.
    let given = |samples: u64| 4 * (48 + 8 + 24 + 3 + samples * (6 + 3 + 1));
    assert_eq!((small.inputs, large.inputs), (given(4), given(400)));
    // At least the hidden layer and the logits live until the backward pass.
    assert!(large.peak > 4 * 400 * (8 + 3), "{large:?}");
    assert!(
        large.peak > 20 * small.peak && large.peak < 200 * small.peak,
        "{small:?} {large:?}"
    );
}

fn refusal(proto: &pb::ModelProto, trained: &[&str]) -> Refusal {
    let built = Differentiable::build(proto, &input(&[4, 6]), "logits", &names(trained), Loss::CrossEntropy);
    built.map(|_| ()).unwrap_err()
}

#[test]
fn bad_weights_and_names_are_refused() {
    let proto = model(mlp());
    assert!(matches!(refusal(&proto, &[]), Refusal::NothingToTrain(_)));
    assert!(matches!(
        refusal(&proto, &["q"]),
        Refusal::NoSuchTensor {
            what: "initializer",
            ..
        }
    ));

    let mut bad = mlp();
    let mut numbers = noise(24, 3);
    numbers[5] = f32::NAN;
    bad.initializer[2] = onnx::floats("a", &[8, 3], &numbers);
    match refusal(&model(bad), &["z", "a"]) {
        Refusal::NotFinite { name, index, value } => assert!(name == "a" && index == 5 && value.is_nan()),
        other => panic!("{other}"),
    }

    let mut loose = mlp();
    loose.initializer.push(onnx::floats("loose", &[2], &[1.0, 2.0]));
    assert!(matches!(refusal(&model(loose), &["loose"]), Refusal::NothingToTrain(_)));

    let mut whole = mlp();
    whole.initializer.push(onnx::integers("whole", &[1, 2]));
    match refusal(&model(whole), &["whole"]) {
        Refusal::NotFloat { name, datum_type } => assert_eq!((&*name, &*datum_type), ("whole", "INT64")),
        other => panic!("{other}"),
    }
}

#[test]
fn an_operator_without_a_rule_is_refused_by_name_unless_it_is_frozen() {
    let mut graph = mlp();
    // A cumulative sum behind the first layer.
    graph.node[1].input[0] = "summed".to_owned();
    graph
        .node
        .insert(1, onnx::node("CumSum", &["hidden", "axis"], "summed", vec![]));
    let mut axis = onnx::integers("axis", &[1]);
    axis.dims.clear();
    graph.initializer.push(axis);
    let proto = model(graph);
    match refusal(&proto, TRAINED) {
        Refusal::UnsupportedOperator { operator, node, .. } => {
            assert!(
                operator.contains("CumSum") && node.contains("summed"),
                "{operator} {node}"
            );
        }
        other => panic!("{other}"),
    }
    Differentiable::build(
        &proto,
        &input(&[4, 6]),
        "logits",
        &names(&["a", "a.b"]),
        Loss::CrossEntropy,
    )
    .unwrap();
}

#[test]
fn a_weight_may_be_named_like_a_node_of_the_engine() {
    let mut net = common::residual();
    for name in [&mut net.node[0].input[2], &mut net.initializer[1].name] {
        "stem.bias".clone_into(name);
    }
    let shape = [2, 3, 5, 5];
    let trained = names(&["stem.bias", "w9"]);
    let net = Differentiable::build(&model(net), &input(&shape), "logits", &trained, Loss::CrossEntropy).unwrap();
    assert_eq!((net.samples(), net.classes()), (2, 3));
}

/// The MLP with a batch normalisation behind each layer, one over two axes and one over four.
fn normed() -> pb::GraphProto {
    let mut net = common::residual();
    "normed".clone_into(&mut net.node[1].input[0]);
    net.node.insert(
        1,
        onnx::node("BatchNormalization", &["stem", "s", "t", "m", "v"], "normed", vec![]),
    );
    net.node.push(onnx::node(
        "BatchNormalization",
        &["logits", "s2", "t2", "m2", "v2"],
        "out2",
        vec![],
    ));
    for (suffix, channels) in [("", 4), ("2", 3)] {
        for (i, part) in ["s", "t", "m"].into_iter().enumerate() {
            net.initializer
                .push(common::random(&format!("{part}{suffix}"), &[channels], 50 + i));
        }
        let spread: Vec<f32> = noise(channels, 60).iter().map(|v| 1.0 + 0.5 * v).collect();
        net.initializer
            .push(onnx::floats(&format!("v{suffix}"), &[channels], &spread));
    }
    net
}

#[test]
fn the_scale_and_shift_of_a_batch_norm_can_be_trained() {
    let proto = model(normed());
    let shape = [2, 3, 5, 5];
    let trained = names(&["s", "t", "s2", "t2", "w9"]);
    let build = |trained: &[String]| {
        Differentiable::build(&proto, &input(&shape), "out2", trained, Loss::MeanSquaredError).unwrap()
    };
    let (net, frozen) = (build(&trained), build(&names(&["w9"])));
    let weights = onnx::weights(proto.graph.as_ref().unwrap(), &trained).unwrap();
    let x = [tensor(&shape, 9)];
    // The engine's own batch normalisation gives the same.
    let want = frozen.forward(&weights[4..], &x).unwrap();
    net.forward(&weights, &x).unwrap().close_enough(&want, true).unwrap();
    let (t, w) = (tensor(&[2, 3], 5), rows(&[1.0, 1.0]));
    let outcome = net.run(&weights, &x, &t, &w).unwrap();
    slopes_agree(&trained, &weights, &outcome.whole(&weights), |all| {
        net.run(all, &x, &t, &w).unwrap().loss
    });
}

/// Each gradient is the slope of the loss along itself, by central differences.
fn slopes_agree(names: &[String], weights: &[Arc<Tensor>], gradients: &[Tensor], loss: impl Fn(&[Arc<Tensor>]) -> f32) {
    for (i, gradient) in gradients.iter().enumerate() {
        let gradient = values(gradient);
        let squares: f32 = gradient.iter().map(|g| g * g).sum();
        let step = 1e-2 / squares.sqrt();
        let moved = |step: f32| {
            let mut all = weights.to_vec();
            let changed: Vec<f32> = values(&all[i])
                .iter()
                .zip(&gradient)
                .map(|(v, g)| v + step * g)
                .collect();
            all[i] = Arc::new(Tensor::from_shape(weights[i].shape(), &changed).unwrap());
            loss(&all)
        };
        let numeric = (moved(step) - moved(-step)) / (2.0 * step);
        assert!(
            (numeric - squares).abs() < 0.02 * squares,
            "{}: {numeric} against {squares}",
            names[i]
        );
    }
}

/// The MLP with an LSTM of three units in front of the last layer; rows are steps of one series.
fn recurrent() -> pb::GraphProto {
    let mut net = mlp();
    net.node.truncate(2);
    let shape = |name: &str, values: &[i64]| onnx::integers(name, values);
    net.node.extend([
        onnx::node("Reshape", &["relu", "steps"], "series", vec![]),
        onnx::node(
            "LSTM",
            &["series", "w", "r"],
            "states",
            vec![common::int("hidden_size", 3)],
        ),
        onnx::node("Reshape", &["states", "rows"], "flat", vec![]),
        onnx::node("MatMul", &["flat", "a"], "logits", vec![]),
    ]);
    net.initializer[2] = common::random("a", &[3, 3], 3);
    net.initializer.extend([
        common::random("w", &[1, 12, 8], 5),
        common::random("r", &[1, 12, 3], 6),
        shape("steps", &[4, 1, 8]),
        shape("rows", &[4, 3]),
    ]);
    net
}

#[test]
fn a_recurrent_layer_is_refused_unless_it_is_frozen() {
    let proto = model(recurrent());
    for trained in [&["w", "a"][..], &["z"]] {
        match refusal(&proto, trained) {
            Refusal::UnsupportedOperator { operator, node, reason } => {
                assert!(
                    node.contains("states") && !operator.is_empty() && !reason.is_empty(),
                    "{operator} {node} {reason}"
                );
            }
            other => panic!("{other}"),
        }
    }
    Differentiable::build(&proto, &input(&[4, 6]), "logits", &names(&["a"]), Loss::CrossEntropy).unwrap();
}

#[test]
fn dropout_of_an_exported_model_is_the_identity() {
    let mut net = mlp();
    "kept".clone_into(&mut net.node[2].input[0]);
    net.node.insert(2, onnx::node("Dropout", &["relu"], "kept", vec![]));
    let (x, t, w) = (tensor(&[4, 6], 9), target(), rows(&[1.0; 4]));
    let gradients = |graph: pb::GraphProto| {
        let proto = model(graph);
        let weights = onnx::weights(proto.graph.as_ref().unwrap(), &names(TRAINED)).unwrap();
        let net =
            Differentiable::build(&proto, &input(&[4, 6]), "logits", &names(TRAINED), Loss::CrossEntropy).unwrap();
        net.run(&weights, std::slice::from_ref(&x), &t, &w).unwrap().gradients
    };
    assert_eq!(gradients(net), gradients(mlp()));
}

#[test]
fn a_fresh_layer_norm_keeps_its_weights() {
    let mut net = mlp();
    "normed".clone_into(&mut net.node[2].input[0]);
    net.node.insert(
        2,
        onnx::node("LayerNormalization", &["relu", "ones", "zeros"], "normed", vec![]),
    );
    net.initializer.extend([
        onnx::floats("ones", &[8], &[1.0; 8]),
        onnx::floats("zeros", &[8], &[0.0; 8]),
    ]);
    let proto = model(net);
    let trained = names(&["z", "ones", "zeros"]);
    let net = Differentiable::build(&proto, &input(&[4, 6]), "logits", &trained, Loss::CrossEntropy).unwrap();
    let weights = onnx::weights(proto.graph.as_ref().unwrap(), &trained).unwrap();
    let (x, t, w) = (tensor(&[4, 6], 9), target(), rows(&[1.0; 4]));
    let run = |weights: &[Arc<Tensor>]| net.run(weights, std::slice::from_ref(&x), &t, &w).unwrap();
    let outcome = run(&weights);
    slopes_agree(&trained, &weights, &outcome.whole(&weights), |all| run(all).loss);
}

/// The gradient of a table is given as the rows that were read. A word may come again, also by its number from the end.
#[test]
fn a_table_of_words_gets_the_gradient_of_the_rows_that_were_read() {
    let mut ids = onnx::float_info("x", &[2, 3]);
    let int64 = pb::tensor_proto::DataType::Int64 as i32;
    if let Some(pb::type_proto::Value::TensorType(tensor)) = ids.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        tensor.elem_type = int64;
    }
    let graph = pb::GraphProto {
        name: "words".to_owned(),
        node: vec![
            onnx::node("Gather", &["table", "x"], "words", vec![]),
            onnx::node("Tanh", &["words"], "bent", vec![]),
            onnx::node("Flatten", &["bent"], "flat", vec![]),
            onnx::node("MatMul", &["flat", "z"], "logits", vec![]),
        ],
        initializer: vec![
            onnx::floats("table", &[5, 2], &noise(10, 1)),
            onnx::floats("z", &[6, 3], &noise(18, 2)),
        ],
        input: vec![ids],
        output: vec![onnx::float_info("logits", &[2, 3])],
        ..Default::default()
    };
    let (proto, trained) = (model(graph), names(&["table", "z"]));
    let given = Input {
        name: "x".to_owned(),
        datum_type: i64::datum_type(),
        shape: vec![2, 3],
    };
    let net = Differentiable::build(&proto, &[given], "logits", &trained, Loss::MeanSquaredError).unwrap();
    let weights = onnx::weights(proto.graph.as_ref().unwrap(), &trained).unwrap();
    let x = [Arc::new(Tensor::from_shape(&[2, 3], &[1_i64, 4, 1, -1, 2, 4]).unwrap())];
    let (t, w) = (tensor(&[2, 3], 5), rows(&[1.0, 0.5]));
    let run = |weights: &[Arc<Tensor>]| net.run(weights, &x, &t, &w).unwrap();
    let outcome = run(&weights);
    match &outcome.gradients[0] {
        Slope::Rows { numbers, .. } => assert_eq!(numbers, &[1, 4, 1, 4, 2, 4]),
        Slope::Whole(_) => panic!("the whole table"),
    }
    let whole = outcome.whole(&weights);
    assert!(
        [0, 1, 6, 7]
            .iter()
            .all(|i| values(&whole[0])[*i].abs() < f32::MIN_POSITIVE)
    );
    slopes_agree(&trained, &weights, &whole, |all| run(all).loss);
}
