//! What a spec asks of a training shows in what it does.

use super::*;

/// A net on windows, all of whose weights move.
fn full(more: &str) -> Files {
    sensor_files(&window_model(), &format!("{{method: Full, batchSize: 32, {more}}}"))
}

#[test]
fn the_weights_of_the_best_epoch_are_kept() {
    // So fast that it gets worse again.
    let of = |epochs: u32| {
        full(&format!(
            "epochs: {epochs}, optimizer: {{learningRate: '0.1'}}, schedule: {{name: Constant}}"
        ))
    };
    let (longer, shorter) = (of(2), of(1));
    let long = run(&longer, 2, "out").unwrap();
    let [head, best, last] = history(&long).try_into().unwrap();
    assert!(
        best.objective > head.objective && best.objective > last.objective,
        "{head:?} {best:?} {last:?}"
    );
    let short = run(&shorter, 2, "out").unwrap();
    let weights = |dir: &Path| std::fs::read(dir.join(TUNED)).unwrap();
    assert_eq!(weights(&long), weights(&short));
}

#[test]
fn dropout_shows_in_the_loss_of_training_and_not_in_that_of_validation() {
    // At this rate nothing moves, so the losses are those of the head, with values dropped or not.
    let of = |dropout: &str| {
        let files = full(&format!(
            "epochs: 1, optimizer: {{learningRate: '0.000001'}}, head: {{dropout: '{dropout}'}}"
        ));
        history(&run(&files, 2, "out").unwrap()).remove(1)
    };
    let (without, with) = (of("0"), of("0.5"));
    assert!(with.train_loss > without.train_loss + 0.1, "{with:?} {without:?}");
    assert!(
        (with.validation_loss - without.validation_loss).abs() < 0.1,
        "{with:?} {without:?}"
    );
}

#[test]
fn label_smoothing_spreads_a_share_of_the_truth_evenly() {
    let files = full("labelSmoothing: '0.2'");
    let head = Parts {
        scale: crate::train::scale::Scale::of(&ndarray::Array2::ones((2, 1))),
        target: crate::train::scale::TargetScale { mean: 0.0, std: 1.0 },
        layers: Vec::new(),
        activation: fleetune_crds::Activation::Relu,
        loss: fleetune_crds::Loss::CrossEntropy,
    };
    let wanted = wanted(&files.job.train, &Targets::Classes(vec![2, 0]), 4, &head);
    let want: [[f32; 4]; 2] = [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]];
    for (got, want) in wanted.iter().zip(want) {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{wanted:?}");
        }
    }
}

#[test]
fn class_weights_count_in_the_deeper_training() {
    // One row of twelve, by chance: a model can do no better than to say how often a class is.
    let chance = |v: &[f32]| {
        if (v[3] * 977.0).rem_euclid(1.0) < 0.08 {
            "rare"
        } else {
            "other"
        }
        .to_owned()
    };
    let of = |weights: &str| {
        let train = format!(
            "{{method: Full, batchSize: 32, epochs: 3, optimizer: {{learningRate: '0.05'}}, classWeights: {weights}}}"
        );
        let files = files("Classification", SENSOR, &window_model(), &windows(chance), &train, "");
        history(&run(&files, 2, "out").unwrap()).pop().unwrap().train_loss
    };
    // The entropy of a twelfth is 0.29, and of a half, which both classes weigh, 0.69.
    let (even, balanced) = (of("None"), of("Balanced"));
    assert!(even < 0.5 && 0.5 < balanced, "{even} {balanced}");
}
