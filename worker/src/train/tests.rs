//! Gradients against finite differences, optimizers against steps computed by hand, and the trainer against
//! scikit-learn.

use super::*;
use fleetune_crds::{Activation, OptimizerName};
use ndarray::array;

fn rule() -> TrainRule {
    TrainRule {
        optimizer: OptimizerName::Sgd,
        learning_rate: 0.1,
        weight_decay: 0.0,
        epochs: 50,
        batch_size: 16,
        patience: 50,
        ..TrainRule::linear(Loss::CrossEntropy, 3)
    }
}

fn no_scale() -> TargetScale {
    TargetScale { mean: 0.0, std: 1.0 }
}

/// Every weight and bias of nets of all kinds: the gradient is the slope of the loss.
#[test]
fn gradients_are_slopes() {
    let x = array![[0.3, -1.2, 0.7], [1.1, 0.4, -0.6]];
    let smooth = loss::Kind {
        smoothing: 0.2,
        ..Loss::CrossEntropy.into()
    };
    // Close to one target, far from the other: both sides of Huber's bend.
    let bent = loss::Kind {
        delta: 0.7,
        ..Loss::Huber.into()
    };
    let cases: [(loss::Kind, Targets, usize); 6] = [
        (Loss::CrossEntropy.into(), Targets::Classes(vec![1, 0]), 2),
        (smooth, Targets::Classes(vec![1, 0]), 2),
        (Loss::BinaryCrossEntropy.into(), Targets::Classes(vec![1, 0]), 2),
        (Loss::MeanSquaredError.into(), Targets::Values(vec![0.3, -2.0]), 1),
        (Loss::MeanAbsoluteError.into(), Targets::Values(vec![0.3, -2.0]), 1),
        (bent, Targets::Values(vec![0.3, -5.0]), 1),
    ];
    for (kind, y, outputs) in cases {
        for activation in [Activation::Relu, Activation::Sigmoid, Activation::Tanh] {
            let net = Net::new(3, &[5, 4], outputs, activation, 11);
            let value = |net: &Net| {
                let (logits, _) = net.forward(&x, None);
                loss::of_rows(kind, &logits, &y, &[0, 1], &[1.0, 2.5], &no_scale()).0
            };
            let (logits, trace) = net.forward(&x, None);
            let (_, gradient) = loss::of_rows(kind, &logits, &y, &[0, 1], &[1.0, 2.5], &no_scale());
            let gradients = net.backward(&trace, gradient);
            let step = 1e-6;
            for (layer, analytic) in gradients.iter().enumerate() {
                for i in 0..net.layers[layer].w.len() {
                    let slope = |sign: f64| {
                        let mut moved = net.clone();
                        moved.layers[layer].w.as_slice_mut().unwrap()[i] += sign * step;
                        value(&moved)
                    };
                    let want = (slope(1.0) - slope(-1.0)) / (2.0 * step);
                    let got = analytic.w.iter().nth(i).unwrap();
                    assert!(
                        (got - want).abs() < 1e-6 * (1.0 + want.abs()),
                        "{kind:?} {activation:?} w {got} {want}"
                    );
                }
                for i in 0..net.layers[layer].b.len() {
                    let slope = |sign: f64| {
                        let mut moved = net.clone();
                        moved.layers[layer].b[i] += sign * step;
                        value(&moved)
                    };
                    let want = (slope(1.0) - slope(-1.0)) / (2.0 * step);
                    let got = analytic.b[i];
                    assert!(
                        (got - want).abs() < 1e-6 * (1.0 + want.abs()),
                        "{kind:?} {activation:?} b {got} {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn losses_by_hand_and_without_overflow() {
    let one = |kind, logits: Array2<f64>, y| loss::of_rows(kind, &logits, &y, &[0], &[1.0], &no_scale()).0;
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    near(
        one(Loss::CrossEntropy, array![[0.0, 0.0]], Targets::Classes(vec![0])),
        2f64.ln(),
    );
    near(
        one(Loss::CrossEntropy, array![[1000.0, 0.0]], Targets::Classes(vec![1])),
        1000.0,
    );
    near(
        one(Loss::BinaryCrossEntropy, array![[0.0, 0.0]], Targets::Classes(vec![0])),
        2f64.ln(),
    );
    near(
        one(
            Loss::BinaryCrossEntropy,
            array![[-1000.0, 0.0]],
            Targets::Classes(vec![0]),
        ),
        f64::midpoint(1000.0, 2f64.ln()),
    );
    for (kind, want) in [
        (Loss::MeanSquaredError, 4.0),
        (Loss::MeanAbsoluteError, 2.0),
        (Loss::Huber, 1.5),
    ] {
        near(one(kind, array![[3.0]], Targets::Values(vec![1.0])), want);
    }
    // A tenth is spread over both classes: 0.95 (ln 2 - 0) each way at equal logits, and more where the net is sure.
    let smooth = loss::Kind {
        smoothing: 0.1,
        ..Loss::CrossEntropy.into()
    };
    let of =
        |logits: Array2<f64>| loss::of_rows(smooth, &logits, &Targets::Classes(vec![0]), &[0], &[1.0], &no_scale()).0;
    near(of(array![[0.0, 0.0]]), 2f64.ln());
    near(of(array![[1000.0, 0.0]]), 50.0);
}

/// Two steps on one weight of 1 and one bias of 1 with gradients 0.5 and 0.2.
#[test]
fn optimizers_take_the_steps_of_their_papers() {
    let with = |optimizer, weight_decay| TrainRule {
        optimizer,
        weight_decay,
        ..rule()
    };
    let run_by = |rule: TrainRule| {
        let mut net = Net::new(1, &[], 1, Activation::Relu, 0);
        net.layers[0].w.fill(1.0);
        net.layers[0].b.fill(1.0);
        let mut state = optim::State::new(&rule, &net, 1);
        for g in [0.5, 0.2] {
            let gradient = net::Linear {
                w: array![[g]],
                b: array![g],
            };
            state.step(&mut net, &[gradient]);
        }
        (net.layers[0].w[[0, 0]], net.layers[0].b[0])
    };
    let run = |optimizer, weight_decay| run_by(with(optimizer, weight_decay));
    let near = |got: (f64, f64), want: (f64, f64)| {
        assert!(
            (got.0 - want.0).abs() < 1e-7 && (got.1 - want.1).abs() < 1e-7,
            "{got:?} is not {want:?}"
        );
    };
    // SGD: velocity 0.5, then 0.9 * 0.5 + 0.2 = 0.65; with a penalty of 0.1 also 0.1 w in each gradient.
    near(run(OptimizerName::Sgd, 0.0), (1.0 - 0.05 - 0.065, 1.0 - 0.05 - 0.065));
    let w1 = 1.0 - 0.1 * 0.6;
    near(
        run(OptimizerName::Sgd, 0.1),
        (w1 - 0.1 * (0.9 * 0.6 + 0.2 + 0.1 * w1), 1.0 - 0.05 - 0.065),
    );
    // Nesterov: 0.5 + 0.9 * 0.5, then 0.2 + 0.9 * 0.65.
    let ahead = TrainRule {
        nesterov: true,
        ..with(OptimizerName::Sgd, 0.0)
    };
    let w2 = 1.0 - 0.1 * 0.95 - 0.1 * 0.785;
    near(run_by(ahead), (w2, w2));
    // Gradients of norm 0.5 √2 and 0.2 √2 are scaled down to 0.1: each of the two numbers is 0.1 / √2.
    let clipped = TrainRule {
        clip_norm: Some(0.1),
        momentum: 0.0,
        ..with(OptimizerName::Sgd, 0.0)
    };
    let w2 = 1.0 - 0.1 * 2.0 * 0.1 / 2f64.sqrt();
    near(run_by(clipped), (w2, w2));
    // Adam: the first step is the rate itself; the second has m = (0.9 * 0.05 + 0.02) / 0.19 and
    // v = (0.999 * 0.00025 + 0.00004) / 0.001999.
    let second = (0.065 / 0.19) / (0.000_289_75f64 / 0.001_999).sqrt();
    near(run(OptimizerName::Adam, 0.0), (0.9 - 0.1 * second, 0.9 - 0.1 * second));
    // AdamW: the same steps, and 1 - 0.1 * 0.1 of the weight each time; the bias decays not at all.
    let w1 = 0.99 - 0.1;
    near(
        run(OptimizerName::AdamW, 0.1),
        (0.99 * w1 - 0.1 * second, 0.9 - 0.1 * second),
    );
}

#[test]
fn dropout_drops_its_share_and_keeps_the_mean() {
    let net = Net::new(2000, &[], 1, Activation::Relu, 1);
    let x = Array2::ones((50, 2000));
    let mut noise = net::Dropout::new(0.3, 5, 1, 0);
    let (_, trace) = net.forward(&x, Some(&mut noise));
    let seen = trace.first_input();
    let dropped = seen.iter().filter(|v| **v == 0.0).count() as f64 / seen.len() as f64;
    assert!((dropped - 0.3).abs() < 0.01, "{dropped}");
    assert!((seen.mean().unwrap() - 1.0).abs() < 0.01);
    let mut again = net::Dropout::new(0.3, 5, 1, 0);
    assert_eq!(
        net.forward(&x, Some(&mut again)).1.first_input(),
        seen,
        "the same place, the same noise"
    );
    let mut other = net::Dropout::new(0.3, 5, 1, 1);
    assert_ne!(net.forward(&x, Some(&mut other)).1.first_input(), seen);
}

#[test]
fn first_weights_have_the_named_bounds() {
    let net = Net::new(30, &[20], 10, Activation::Relu, 2);
    for (layer, bound) in [(0, (6.0f64 / 30.0).sqrt()), (1, (6.0f64 / 30.0).sqrt())] {
        let max = net.layers[layer].w.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(max <= bound && max > 0.9 * bound, "layer {layer}: {max} {bound}");
    }
    assert!(
        Net::new(30, &[20], 10, Activation::Tanh, 2).layers[0]
            .w
            .iter()
            .all(|v| v.abs() <= (6.0f64 / 50.0).sqrt())
    );
}

fn blobs() -> (Set, Set, serde_json::Value) {
    let text = include_str!("../../tests/reference/blobs.csv");
    let (mut x, mut y) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for line in text.lines() {
        let cells: Vec<&str> = line.split(',').collect();
        let part = usize::from(cells[0] == "test");
        y[part].push(cells[1].parse().unwrap());
        x[part].push(cells[2..].iter().map(|c| c.parse().unwrap()).collect());
    }
    let [xa, xb] = x;
    let [ya, yb] = y;
    let set = |x: Vec<Vec<f32>>, y| Set {
        x: matrix(x, 8).unwrap(),
        y: Targets::Classes(y),
    };
    let reference = serde_json::from_str(include_str!("../../tests/reference/blobs.json")).unwrap();
    (set(xa, ya), set(xb, yb), reference)
}

/// With the same L2 on the same scaled features, a linear head is scikit-learn's LogisticRegression.
#[test]
fn a_linear_head_does_not_lose_to_scikit_learn() {
    let (train, test, reference) = blobs();
    for case in reference["cases"].as_array().unwrap() {
        let rule = TrainRule {
            weight_decay: case["weightDecay"].as_f64().unwrap(),
            batch_size: 500,
            learning_rate: 0.5,
            epochs: 400,
            patience: 400,
            ..rule()
        };
        // To the end, not to the best epoch: scikit-learn stops at the minimum of the loss.
        let (scale, target) = (Scale::of(&train.x), no_scale());
        let z = scale.apply(&train.x);
        let mut net = Net::new(8, &[], 4, Activation::Relu, rule.seed);
        let mut state = optim::State::new(&rule, &net, 1);
        for epoch in 1..=rule.epochs {
            one_epoch(&rule, epoch, &z, &train.y, &target, &[1.0; 500], &mut net, &mut state);
        }
        for (set, name) in [(&train, "trainAccuracy"), (&test, "testAccuracy")] {
            let (_, answers) = evaluate(&net, &rule, &scale.apply(&set.x), &set.y, &target);
            let (got, want) = (
                metrics::objective(Metric::Accuracy, &answers, &set.y, 4),
                case[name].as_f64().unwrap(),
            );
            assert!((got - want).abs() <= 0.005, "{name}: {got} is not {want}");
            if name == "testAccuracy" {
                for (got, want) in answers[0].iter().zip(case["firstProbabilities"].as_array().unwrap()) {
                    assert!(
                        (got - want.as_f64().unwrap()).abs() < 1e-3,
                        "{:?} is not {case}",
                        answers[0]
                    );
                }
            }
        }
    }
}

#[test]
fn folding_changes_no_answer() {
    let (train, test, _) = blobs();
    let rule = TrainRule {
        layers: vec![6],
        activation: Activation::Tanh,
        epochs: 3,
        ..rule()
    };
    let fitted = fit(&rule, Metric::Accuracy, 4, &train, &test, |_| {}).unwrap();
    let head = fitted.head().unwrap();
    let x = test.x.select(Axis(0), &[0, 1, 2]);
    for (row, want) in x.rows().into_iter().zip(fitted.predict(&x)) {
        let mut value: Vec<f32> = row.iter().zip(&head.mean).map(|(v, m)| v - m).collect();
        for (i, layer) in head.layers.iter().enumerate() {
            value = (0..layer.outputs)
                .map(|o| {
                    let w = &layer.weights[o * layer.inputs..(o + 1) * layer.inputs];
                    let sum: f32 = w.iter().zip(&value).map(|(w, v)| w * v).sum::<f32>() + layer.bias[o];
                    if i == 0 { sum.tanh() } else { sum }
                })
                .collect();
        }
        let total: f32 = value.iter().map(|v| v.exp()).sum();
        for (v, want) in value.iter().zip(want) {
            assert!((f64::from(v.exp() / total) - want).abs() < 1e-4);
        }
    }
}

/// y = 3 x0 - 20 x1 + 100, far from the unit scale: standardised inside, answered outside.
#[test]
fn a_regression_answers_in_the_targets_unit() {
    let rows: Vec<Vec<f32>> = (0..200i16)
        .map(|i| vec![f32::from(i % 17) * 10.0, f32::from(i % 5) * 0.01])
        .collect();
    let y = rows
        .iter()
        .map(|r| 3.0 * f64::from(r[0]) - 20.0 * f64::from(r[1]) + 100.0)
        .collect();
    let set = Set {
        x: matrix(rows, 2).unwrap(),
        y: Targets::Values(y),
    };
    let rule = TrainRule {
        loss: Loss::MeanSquaredError,
        optimizer: OptimizerName::AdamW,
        learning_rate: 0.01,
        ..rule()
    };
    let fitted = fit(&rule, Metric::R2, 1, &set, &set, |_| {}).unwrap();
    assert!(fitted.best_objective > 0.9999, "{}", fitted.best_objective);
    let head = fitted.head().unwrap();
    let slope = head.layers[0].weights[0];
    assert!(
        (slope - 3.0).abs() < 0.05,
        "the folded weight is in the data's units: {slope}"
    );
}

#[test]
fn balanced_weights_count_classes_the_same() {
    let y = Targets::Classes(vec![0, 0, 0, 1]);
    assert_eq!(row_weights(&y, 2, ClassWeights::None), [1.0; 4]);
    let weights = row_weights(&y, 2, ClassWeights::Balanced);
    assert!((weights[0] - 4.0 / 6.0).abs() < 1e-12 && (weights[3] - 2.0).abs() < 1e-12);
}

#[test]
fn training_ends_early_and_keeps_the_best_epoch() {
    let (train, test, _) = blobs();
    let rule = TrainRule {
        patience: 3,
        epochs: 1000,
        ..rule()
    };
    let fitted = fit(&rule, Metric::Accuracy, 4, &train, &test, |_| {}).unwrap();
    assert_eq!(fitted.history.len() as u32, fitted.best_epoch + 3);
    let best = fitted.history.iter().map(|e| e.objective).fold(0.0, f64::max);
    assert!((best - fitted.best_objective).abs() < 1e-12);
    let again = metrics::objective(Metric::Accuracy, &fitted.predict(&test.x), &test.y, 4);
    assert!(
        (again - best).abs() < 1e-12,
        "the kept weights are those of the best epoch"
    );
}

#[test]
fn a_rate_that_explodes_is_an_error_that_says_what_to_do() {
    let (train, test, _) = blobs();
    let rule = TrainRule {
        learning_rate: 999.0,
        weight_decay: 999.0,
        ..rule()
    };
    let error = fit(&rule, Metric::Accuracy, 4, &train, &test, |_| {}).unwrap_err();
    assert_eq!(error.reason(), TRAINING_DIVERGED);
    assert!(error.message().contains("learningRate"));
}

#[test]
fn the_order_of_rows_is_a_permutation_of_its_own_for_each_epoch() {
    let (one, two) = (shuffled(100, 1, 1), shuffled(100, 1, 2));
    assert_ne!(one, two);
    assert_eq!(one, shuffled(100, 1, 1));
    let mut sorted = one;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_constant_feature_cannot_speak_up_later() {
    let x = array![[1.0f32, 5.0], [2.0, 5.0]];
    let scale = Scale::of(&x);
    let z = scale.apply(&array![[1.5, 1e9]]);
    assert!(z[[0, 0]].abs() < 1e-6 && z[[0, 1]] == 0.0);
}

/// `train.portableKernels` cannot choose the kernel of a product in f64, and need not: with fused multiply-add each value is
/// a chain over 256 terms at a time, in order, whether the CPU has AVX-512 or not. A release of the crate that sums
/// otherwise fails here.
#[cfg(target_arch = "x86_64")]
#[test]
fn products_are_the_same_chains_on_every_cpu_with_fma() {
    const BLOCK: usize = 256;
    if !is_x86_feature_detected!("fma") || !is_x86_feature_detected!("avx2") {
        return;
    }
    let mut random = stream(1, 9, 0);
    let mut number = || (random.next_u64() >> 11) as f64 / (1u64 << 52) as f64 - 1.0;
    for (m, k, n) in [
        (32, 1280, 10),
        (7, 3, 5),
        (33, 700, 17),
        (16, 256, 8),
        (3, 1000, 1),
        (1, 600, 9),
    ] {
        let a = Array2::from_shape_simple_fn((m, k), &mut number);
        let b = Array2::from_shape_simple_fn((n, k), &mut number);
        // As in a forward and as in a backward pass.
        for got in [a.dot(&b.t()), b.dot(&a.t()).reversed_axes()] {
            for ((i, j), value) in got.indexed_iter() {
                let blocks = a.row(i).to_vec();
                let want = blocks
                    .chunks(BLOCK)
                    .zip(b.row(j).to_vec().chunks(BLOCK))
                    .fold(0.0, |sum, (a, b)| {
                        sum + a.iter().zip(b).fold(0.0f64, |chain, (a, b)| a.mul_add(*b, chain))
                    });
                assert_eq!(value.to_bits(), f64::to_bits(want), "{m} x {k} x {n}, {i}, {j}");
            }
        }
    }
}
