use super::*;
use crate::optim::Adam;
use crate::philox::{Place, Purpose, Stream, dropout_mask};
use crate::schedule::Shape;
use proptest::prelude::*;

/// A small net by hand, 3 inputs → 4 hidden values (tanh, dropout) → 1 output, with squared error. `spoil` puts a value in
/// the place of one number of a step.
pub(crate) struct Toy {
    pub spoil: Option<(u32, Spoil)>,
}

#[derive(Clone, Copy)]
pub(crate) enum Spoil {
    Loss(f64),
    Gradient(usize, f32),
    Shape,
    Error,
}

pub(crate) const ROWS: u32 = 23;
const HIDDEN: usize = 4;
const SEED: u64 = 42;

fn numbers(layer: u32, sample: u32, n: usize) -> Vec<f32> {
    let place = Place {
        layer,
        sample,
        ..Place::of(Purpose::Data)
    };
    let mut s = Stream::new(SEED, place);
    (0..n).map(|_| s.normal() as f32).collect()
}

pub(crate) fn params() -> Vec<Param> {
    [
        ("w1", vec![HIDDEN, 3]),
        ("b1", vec![HIDDEN]),
        ("w2", vec![1, HIDDEN]),
        ("b2", vec![1]),
    ]
    .into_iter()
    .enumerate()
    .map(|(i, (name, shape))| Param::new(name, &shape, &numbers(i as u32, 0, shape.iter().product())).unwrap())
    .collect()
}

impl Gradients for Toy {
    type Error = String;

    fn of(&self, params: &[Param], shard: &Shard) -> Result<Gradient, String> {
        let values: Vec<&[f32]> = params.iter().map(Param::values).collect();
        let mut grads: Vec<Vec<f32>> = values.iter().map(|v| vec![0.0; v.len()]).collect();
        let mut loss = 0.0;
        for (row, weight) in shard.rows.iter().zip(&shard.weights) {
            let x = numbers(10, *row, 3);
            let want = x[0] * x[1] + x[2];
            let mut mask = [0.0; HIDDEN];
            dropout_mask(SEED, 0, shard.step, *row, 0.25, &mut mask);
            let hidden: Vec<f32> = (0..HIDDEN)
                .map(|h| (0..3).map(|i| values[0][3 * h + i] * x[i]).sum::<f32>() + values[1][h])
                .map(f32::tanh)
                .collect();
            let y: f32 = (0..HIDDEN).map(|h| values[2][h] * hidden[h] * mask[h]).sum::<f32>() + values[3][0];
            loss += f64::from(weight * (y - want).powi(2));
            let d = 2.0 * weight * (y - want);
            grads[3][0] += d;
            for h in 0..HIDDEN {
                grads[2][h] += d * hidden[h] * mask[h];
                let d = d * values[2][h] * mask[h] * (1.0 - hidden[h] * hidden[h]);
                grads[1][h] += d;
                for i in 0..3 {
                    grads[0][3 * h + i] += d * x[i];
                }
            }
        }
        let mut tensors: Vec<Tensor> = grads
            .iter()
            .zip(params)
            .map(|(g, p)| Tensor::from_shape(p.shape(), g).unwrap())
            .collect();
        match self.spoil.filter(|(step, _)| *step == shard.step).map(|(_, what)| what) {
            Some(Spoil::Loss(value)) => loss = value,
            Some(Spoil::Gradient(i, value)) => slice_mut(&mut tensors[i])[0] = value,
            Some(Spoil::Shape) => tensors[2] = Tensor::from_shape(&[3], &[0.0_f32; 3]).unwrap(),
            Some(Spoil::Error) => return Err("no".to_owned()),
            None => {}
        }
        let slopes = tensors.into_iter().map(Slope::Whole).collect();
        Ok(Gradient { loss, slopes })
    }
}

pub(crate) const FINE: Toy = Toy { spoil: None };

pub(crate) fn plan(rule: Rule) -> Plan {
    let mut plan = Plan {
        rows: ROWS,
        batch: 8,
        shard: 3,
        at_once: 4,
        epochs: 4,
        seed: SEED,
        rule,
        schedule: Schedule {
            learning_rate: 0.02,
            shape: Shape::Cosine { floor: 0.1 },
            warm_up: 2,
            total: 0,
        },
        clip: Some(0.8),
        row_weights: Vec::new(),
    };
    plan.schedule.total = plan.steps();
    plan
}

pub(crate) fn adam_w() -> Rule {
    Rule::AdamW(Adam {
        weight_decay: 0.01,
        ..Adam::default()
    })
}

pub(crate) fn rules() -> impl Strategy<Value = Rule> {
    prop_oneof![
        (prop_oneof![Just(0.0), 0.1..0.99], any::<bool>(), 0.0..0.1).prop_map(|(momentum, nesterov, weight_decay)| {
            Rule::Sgd {
                momentum,
                nesterov,
                weight_decay,
            }
        }),
        (0.0..0.1).prop_map(|weight_decay| Rule::Adam(Adam {
            weight_decay,
            ..Adam::default()
        })),
        Just(adam_w()),
    ]
}

pub(crate) fn run(trainer: &mut Trainer) -> Vec<Report> {
    std::iter::from_fn(|| trainer.step(&FINE).unwrap()).collect()
}

#[test]
fn it_learns() {
    for (rule, learning_rate) in [
        (
            Rule::Sgd {
                momentum: 0.9,
                nesterov: true,
                weight_decay: 0.0,
            },
            0.02,
        ),
        (adam_w(), 0.05),
    ] {
        let mut plan = plan(rule);
        plan.epochs = 60;
        plan.schedule.total = plan.steps();
        plan.schedule.learning_rate = learning_rate;
        let reports = run(&mut Trainer::new(plan, params()).unwrap());
        assert_eq!(reports.len(), 180);
        let mean = |part: &[Report]| part.iter().map(|r| r.loss).sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&reports[..9]), mean(&reports[171..]));
        assert!(last < 0.6 * first, "{rule:?}: {first} to {last}");
    }
}

#[test]
fn steps_epochs_and_last_batches() {
    let mut trainer = Trainer::new(plan(adam_w()), params()).unwrap();
    assert!(!trainer.epoch_ended());
    let mut ends = Vec::new();
    let mut reports = Vec::new();
    while let Some(report) = trainer.step(&FINE).unwrap() {
        if trainer.epoch_ended() {
            ends.push((report.step, trainer.epochs_done()));
        }
        reports.push((report.step, report.epoch, report.rows));
    }
    assert_eq!(reports[..4], [(0, 0, 8), (1, 0, 8), (2, 0, 7), (3, 1, 8)]);
    assert_eq!(ends, [(2, 1), (5, 2), (8, 3), (11, 4)]);
    assert_eq!(trainer.step(&FINE).unwrap(), None, "a run that is over stays over");
}

/// Every row of an epoch is in exactly one shard with its own weight; what fills up weighs nothing.
#[test]
fn shards_cover_an_epoch() {
    let mut plan = plan(adam_w());
    plan.row_weights = (0..ROWS).map(|r| 1.0 + r as f32).collect();
    let mut trainer = Trainer::new(plan, params()).unwrap();
    let mut seen = vec![0; ROWS as usize];
    for _ in 0..3 {
        let (_, rows, shards) = trainer.shards();
        for shard in &shards {
            assert_eq!((shard.rows.len(), shard.weights.len()), (3, 3));
            for (row, weight) in shard.rows.iter().zip(&shard.weights) {
                if *weight != 0.0 {
                    seen[*row as usize] += 1;
                    let want = (1.0 + *row as f32) / rows as f32;
                    assert!((weight - want).abs() < 1e-6);
                }
            }
        }
        trainer.state.steps += 1;
    }
    assert_eq!(seen, vec![1; ROWS as usize]);
}

fn in_pool(threads: usize, plan: &Plan) -> Trainer {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut trainer = Trainer::new(plan.clone(), params()).unwrap();
        run(&mut trainer);
        trainer
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn threads_and_shards_at_once_change_no_bit(rule in rules(), batch in 1_u32..12, shard in 1_u32..5) {
        let plan = Plan { batch, shard, at_once: 4, ..plan(rule) };
        let one = in_pool(1, &plan);
        for (threads, at_once) in [(2, 4), (5, 4), (1, 1), (2, 2)] {
            let other = in_pool(threads, &Plan { at_once, ..plan.clone() });
            prop_assert_eq!(&one.params, &other.params);
            prop_assert_eq!(&one.state, &other.state);
        }
    }

    /// The bound that spares a copy of the state holds for gradients and weights of any size.
    #[test]
    fn no_weight_is_beyond_its_bound(
        rule in rules(),
        size in -20_i32..15,
        gradients in proptest::collection::vec(-1.0_f32..1.0, 12),
        rate in 1e-4..10.0,
    ) {
        let mut params = vec![Param::new("w", &[2, 2], &[1.0, -2.0, 0.0, 1e-3]).unwrap()];
        let mut state = State::new(&rule, &params);
        let mut bound = Bound::of(&params, &state);
        for g in gradients.chunks(4) {
            let g: Vec<f32> = g.iter().map(|v| v * 10_f32.powi(size)).collect();
            bound = bound.after(&rule, rate, clip::global_norm(&[&g]), state.steps + 1);
            let largest = state.step(&rule, rate, 1.0, &mut params, &[&g]);
            prop_assert!(f64::from(largest) <= bound.weight, "{largest} {bound:?}");
            let exact = Bound::of(&params, &state);
            prop_assert!((exact.weight - f64::from(largest)).abs() < f64::EPSILON && exact.moment <= bound.moment);
        }
    }
}

#[test]
fn what_is_bad_is_named_and_the_state_before_it_stays() {
    let nan = f32::NAN;
    let gradient = |name: &str| Bad::Gradient(name.to_owned());
    for (spoil, want) in [
        (Spoil::Loss(f64::NAN), Bad::Loss),
        (Spoil::Loss(1e16), Bad::Loss),
        (Spoil::Gradient(1, nan), gradient("b1")),
        (Spoil::Gradient(3, f32::INFINITY), gradient("b2")),
        (Spoil::Gradient(0, -2e15), gradient("w1")),
    ] {
        let mut trainer = Trainer::new(plan(adam_w()), params()).unwrap();
        let mut before = None;
        let toy = Toy {
            spoil: Some((5, spoil)),
        };
        let error = loop {
            before = match trainer.step(&toy) {
                Ok(_) => Some(trainer.clone()),
                Err(e) => break e,
            }
            .or(before);
        };
        assert_eq!(error, StepError::Diverged { step: 5, bad: want });
        let before = before.unwrap();
        assert_eq!((before.next_step(), &before), (5, &trainer));
    }
}

/// A gradient that is fine and a learning rate that throws the weights beyond what is usable.
#[test]
fn weights_that_explode_are_taken_back() {
    let mut plan = plan(Rule::Sgd {
        momentum: 0.9,
        nesterov: false,
        weight_decay: 0.0,
    });
    (plan.clip, plan.schedule.learning_rate, plan.schedule.shape) = (Some(1.0), 1e18, Shape::Constant);
    let mut trainer = Trainer::new(plan, params()).unwrap();
    let before = trainer.clone();
    let error = trainer.step(&FINE).unwrap_err();
    assert_eq!(
        error,
        StepError::Diverged {
            step: 0,
            bad: Bad::Weight("w1".to_owned())
        }
    );
    assert_eq!(trainer, before);
    assert_eq!(trainer.params(), params());
    assert_eq!(
        error.to_string(),
        "training diverged at step 0: the weight w1 is not finite, or beyond 1e15"
    );
}

#[test]
fn gradients_that_do_not_fit_or_fail() {
    let mut trainer = Trainer::new(plan(adam_w()), params()).unwrap();
    let mut step = |spoil| {
        trainer
            .step(&Toy {
                spoil: Some((0, spoil)),
            })
            .unwrap_err()
    };
    assert_eq!(step(Spoil::Shape), StepError::Misfit { name: "w2".to_owned() });
    assert_eq!(step(Spoil::Error), StepError::Gradients("no".to_owned()));
}

#[test]
fn plans_that_cannot_be_followed() {
    let with = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan(adam_w());
        change(&mut plan);
        Trainer::new(plan, params()).unwrap_err()
    };
    assert_eq!(with(&|p| p.rows = 0), PlanError::NoRows);
    assert_eq!(with(&|p| p.batch = 0), PlanError::Empty);
    assert_eq!(with(&|p| p.shard = 0), PlanError::Empty);
    assert_eq!(with(&|p| p.at_once = 0), PlanError::Empty);
    assert_eq!(
        with(&|p| p.row_weights = vec![1.0]),
        PlanError::RowWeights { rows: ROWS, weights: 1 }
    );
    assert!(matches!(
        with(&|p| (p.rows, p.batch, p.epochs) = (u32::MAX, 1, 2)),
        PlanError::TooLong { .. }
    ));
    let none = Trainer::new(plan(adam_w()), Vec::new()).unwrap_err();
    assert_eq!(none, PlanError::NoWeights);
    let mut params = params();
    params[1].values_mut()[2] = f32::NAN;
    assert_eq!(
        Trainer::new(plan(adam_w()), params).unwrap_err(),
        PlanError::NotFinite { name: "b1".to_owned() }
    );
}
