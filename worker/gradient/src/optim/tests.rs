use super::*;

const RATE: f64 = 0.1;

fn step(rule: Rule, steps: usize) -> (Vec<Param>, State) {
    let mut params = vec![
        Param::new("w", &[1, 2], &[1.0, -2.0]).unwrap(),
        Param::new("b", &[1], &[0.5]).unwrap(),
    ];
    let mut state = State::new(&rule, &params);
    for _ in 0..steps {
        let largest = state.step(&rule, RATE, 0.5, &mut params, &[&[2.0, 4.0], &[-2.0]]);
        let want = params
            .iter()
            .flat_map(Param::values)
            .fold(0.0_f32, |a, v| a.max(v.abs()));
        assert_eq!(largest.to_bits(), want.to_bits());
    }
    (params, state)
}

fn near(got: &[Param], want: [f32; 3]) {
    for (g, w) in got.iter().flat_map(Param::values).zip(want) {
        assert!((g - w).abs() < 1e-6, "{got:?} is not {want:?}");
    }
}

/// Gradients are 1, 2 and −1 after the scale of 0.5; the bias does not decay.
#[test]
fn sgd_by_hand() {
    let sgd = |momentum, nesterov, weight_decay| Rule::Sgd {
        momentum,
        nesterov,
        weight_decay,
    };
    near(&step(sgd(0.0, false, 0.0), 2).0, [0.8, -2.4, 0.7]);
    // The decay adds 0.5 w to the gradients of w alone.
    near(&step(sgd(0.0, false, 0.5), 1).0, [0.85, -2.1, 0.6]);
    // m is g, then 1.9 g.
    near(&step(sgd(0.9, false, 0.0), 2).0, [0.71, -2.58, 0.79]);
    // 1.9 g, then g + 0.9 · 1.9 g = 2.71 g.
    near(
        &step(sgd(0.9, true, 0.0), 2).0,
        [1.0 - 0.461, -2.0 - 0.922, 0.5 + 0.461],
    );
    assert_eq!(step(sgd(0.0, false, 0.0), 1).1.moments.len(), 0);
    assert_eq!(step(sgd(0.9, false, 0.0), 1).1.moments.len(), 1);
}

/// With equal gradients both corrected moments are g and g², so each step is η sign(g).
#[test]
fn adam_by_hand() {
    let adam = |weight_decay| Adam {
        weight_decay,
        ..Adam::default()
    };
    near(&step(Rule::Adam(adam(0.0)), 3).0, [0.7, -2.3, 0.8]);
    near(&step(Rule::AdamW(adam(0.0)), 3).0, [0.7, -2.3, 0.8]);
    // w is 0.95 w − 0.1 sign(g), the bias as before.
    near(&step(Rule::AdamW(adam(0.5)), 1).0, [0.85, -2.0, 0.6]);
    // The penalty changes the gradient's size, not its sign: 1 + 0.5 and 2 − 1.
    near(&step(Rule::Adam(adam(0.5)), 1).0, [0.9, -2.1, 0.6]);
    let (_, state) = step(Rule::Adam(adam(0.0)), 3);
    assert_eq!((state.steps, state.moments.len()), (3, 2));
}

#[test]
fn a_weight_that_is_no_number_is_the_largest() {
    let rule = Rule::Sgd {
        momentum: 0.0,
        nesterov: false,
        weight_decay: 0.0,
    };
    for bad in [f32::NAN, f32::INFINITY] {
        let mut params = vec![Param::new("w", &[1, 2], &[1.0, 2.0]).unwrap()];
        let largest = State::new(&rule, &params).step(&rule, RATE, 1.0, &mut params, &[&[bad, 1.0]]);
        assert!(!largest.is_finite());
    }
}
