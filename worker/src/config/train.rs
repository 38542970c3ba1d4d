//! `spec.train` with every default resolved, which differ between methods.

use super::bad;
use crate::error::Result;
use fleetune_crds::common::{Amount, CountOrPercent, Decimal};
use fleetune_crds::{
    Activation, Augmentation, ClassWeights, FineTuneJobSpec, Loss, Method, OptimizerName, Schedule, ScheduleName, Task,
    Train,
};
use fleetune_gradient::augment::{ImageRule, SensorRule};
use fleetune_gradient::schedule::{self, Shape};

/// Epochs of Head.
const HEAD_EPOCHS: u32 = 100;
/// Epochs of all other methods.
const EPOCHS: u32 = 10;
/// Epochs between two changes of the schedule Step.
const STEP_EVERY: u32 = 10;
/// What a change of the schedule Step multiplies with.
const STEP_FACTOR: f64 = 0.1;
/// Momentum of Sgd.
const MOMENTUM: f64 = 0.9;
/// Standard deviations of the target at which Huber's loss bends.
const HUBER_DELTA: f64 = 1.0;
/// Share of OneCycle that rises, and its two ends as shares of the peak: those of Smith and Topin in PyTorch's form.
const ONE_CYCLE: Shape = Shape::OneCycle {
    rise: 0.3,
    start: 1.0 / 25.0,
    end: 1.0 / 25.0 / 1e4,
};

/// A training with its defaults resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainRule {
    /// Which weights move.
    pub method: MethodRule,
    /// Widths of the hidden layers.
    pub layers: Vec<usize>,
    /// After each hidden layer.
    pub activation: Activation,
    /// Share of values that a step drops before each linear layer of the head.
    pub dropout: f64,
    /// What training makes small.
    pub loss: Loss,
    /// Where Huber's loss turns from a square to a line, in standard deviations of the target.
    pub huber_delta: f64,
    /// Share of the truth that is spread evenly over all classes.
    pub label_smoothing: f64,
    /// The optimizer.
    pub optimizer: OptimizerName,
    /// Its learning rate.
    pub learning_rate: f64,
    /// Momentum of Sgd.
    pub momentum: f64,
    /// Whether Sgd looks ahead.
    pub nesterov: bool,
    /// L2 penalty on weights.
    pub weight_decay: f64,
    /// How the learning rate moves.
    pub schedule: ScheduleRule,
    /// Largest norm of all gradients together.
    pub clip_norm: Option<f64>,
    /// Most passes.
    pub epochs: u32,
    /// Rows in a step.
    pub batch_size: usize,
    /// Epochs without a better objective after which training ends.
    pub patience: u32,
    /// Seed of everything random.
    pub seed: u64,
    /// How much each class counts.
    pub class_weights: ClassWeights,
    /// Variants of the training rows.
    pub augment: Option<AugmentRule>,
}

/// Which weights move.
#[derive(Clone, Debug, PartialEq)]
pub enum MethodRule {
    /// The head.
    Head,
    /// The head and so many of the base model's last layers.
    LastLayers(usize),
    /// All.
    Full,
    /// The head and low-rank adapters.
    Lora {
        /// Rank of the adapters.
        rank: usize,
        /// Their scale is alpha / rank.
        alpha: f64,
        /// Names of nodes or weights of the base model; none for all that can be adapted.
        targets: Vec<String>,
    },
}

impl std::fmt::Display for MethodRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Head => f.write_str("Head"),
            Self::LastLayers(count) => write!(f, "LastLayers {count}"),
            Self::Full => f.write_str("Full"),
            Self::Lora { rank, alpha, .. } => write!(f, "Lora rank {rank} alpha {alpha}"),
        }
    }
}

/// How the learning rate moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduleRule {
    name: ScheduleName,
    warm_up: Amount,
    every: u32,
    factor: f64,
}

/// How training rows vary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AugmentRule {
    /// Variants of each row that are kept beside it; none where each epoch draws new ones in place of the rows.
    pub copies: Option<usize>,
    /// What may happen.
    pub variants: Variants,
}

/// What may happen to a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Variants {
    /// To a picture.
    Image(ImageRule),
    /// To a window.
    Sensor(SensorRule),
}

impl TrainRule {
    /// A linear head by the defaults of Head.
    #[must_use]
    pub fn linear(loss: Loss, seed: u64) -> Self {
        let defaults = Train::default();
        Self {
            method: MethodRule::Head,
            layers: Vec::new(),
            activation: Activation::Relu,
            dropout: 0.0,
            loss,
            huber_delta: HUBER_DELTA,
            label_smoothing: 0.0,
            optimizer: OptimizerName::AdamW,
            learning_rate: learning_rate(Method::Head, OptimizerName::AdamW),
            momentum: MOMENTUM,
            nesterov: false,
            weight_decay: weight_decay(OptimizerName::AdamW),
            schedule: schedule_rule(Method::Head, None),
            clip_norm: None,
            epochs: HEAD_EPOCHS,
            batch_size: defaults.batch_size as usize,
            patience: defaults.early_stopping.patience,
            seed,
            class_weights: ClassWeights::None,
            augment: None,
        }
    }

    /// The rule by which the head is trained that a deeper method starts from: of Head's kind and with its defaults, but
    /// for what the spec says of head and loss.
    #[must_use]
    pub fn of_first_head(&self) -> Self {
        Self {
            layers: self.layers.clone(),
            activation: self.activation,
            dropout: self.dropout,
            huber_delta: self.huber_delta,
            label_smoothing: self.label_smoothing,
            batch_size: self.batch_size,
            class_weights: self.class_weights,
            augment: self.augment,
            ..Self::linear(self.loss, self.seed)
        }
    }
}

impl ScheduleRule {
    /// The learning rate over `epochs` passes of `steps` steps each.
    pub fn over(&self, learning_rate: f64, epochs: u32, steps: u64) -> schedule::Schedule {
        let total = steps * u64::from(epochs);
        schedule::Schedule {
            learning_rate,
            shape: match self.name {
                ScheduleName::Constant => Shape::Constant,
                ScheduleName::Cosine => Shape::Cosine { floor: 0.0 },
                ScheduleName::Step => Shape::Step {
                    every: steps * u64::from(self.every),
                    factor: self.factor,
                },
                ScheduleName::OneCycle => ONE_CYCLE,
            },
            warm_up: u64::from(self.warm_up.of(u32::try_from(total).unwrap_or(u32::MAX))),
            total,
        }
    }

    /// The name of the curve.
    pub fn name(&self) -> ScheduleName {
        self.name
    }
}

fn learning_rate(method: Method, optimizer: OptimizerName) -> f64 {
    match (method, optimizer) {
        (Method::Head | Method::Lora, OptimizerName::Sgd) => 0.05,
        (Method::Head | Method::Lora, OptimizerName::Adam | OptimizerName::AdamW) => 0.001,
        // Weights that were trained before move a tenth as fast, so that they keep what they know.
        (Method::LastLayers | Method::Full, OptimizerName::Sgd) => 0.005,
        (Method::LastLayers | Method::Full, OptimizerName::Adam | OptimizerName::AdamW) => 0.0001,
    }
}

fn weight_decay(optimizer: OptimizerName) -> f64 {
    if optimizer == OptimizerName::AdamW { 0.01 } else { 0.0 }
}

fn schedule_rule(method: Method, given: Option<&Schedule>) -> ScheduleRule {
    let (name, warm_up) = match (given, method) {
        (Some(given), _) => (
            given.name,
            given.warm_up.as_ref().map_or(Amount::Count(0), CountOrPercent::get),
        ),
        (None, Method::Head) => (ScheduleName::Constant, Amount::Count(0)),
        (None, _) => (ScheduleName::Cosine, Amount::Percent(10)),
    };
    ScheduleRule {
        name,
        warm_up,
        every: given.and_then(|s| s.every).unwrap_or(STEP_EVERY),
        factor: number(given.and_then(|s| s.factor.as_ref()), STEP_FACTOR),
    }
}

fn number(given: Option<&Decimal>, default: f64) -> f64 {
    given.map_or(default, Decimal::get)
}

/// Checks `spec.train` and resolves its defaults.
pub fn rule(spec: &FineTuneJobSpec) -> Result<TrainRule> {
    let train = &spec.train;
    let loss = train.loss.unwrap_or(match spec.task {
        Task::Classification => Loss::CrossEntropy,
        Task::Regression => Loss::MeanSquaredError,
    });
    if loss.is_of_values() != (spec.task == Task::Regression) {
        return Err(bad(format!(
            "spec.train.loss {loss:?} does not go with task {:?}",
            spec.task
        )));
    }
    let optimizer = &train.optimizer;
    let deep = train.method != Method::Head;
    let clip = number(train.clip_norm.as_ref(), if deep { 1.0 } else { f64::INFINITY });
    let rule = TrainRule {
        method: method(train)?,
        layers: train.head.layers.iter().map(|w| *w as usize).collect(),
        activation: train.head.activation,
        dropout: number(train.head.dropout.as_ref(), 0.0),
        loss,
        huber_delta: number(train.huber_delta.as_ref(), HUBER_DELTA),
        label_smoothing: number(train.label_smoothing.as_ref(), 0.0),
        optimizer: optimizer.name,
        learning_rate: number(
            optimizer.learning_rate.as_ref(),
            learning_rate(train.method, optimizer.name),
        ),
        momentum: number(optimizer.momentum.as_ref(), MOMENTUM),
        nesterov: optimizer.nesterov,
        weight_decay: number(optimizer.weight_decay.as_ref(), weight_decay(optimizer.name)),
        schedule: schedule_rule(train.method, train.schedule.as_ref()),
        clip_norm: clip.is_finite().then_some(clip),
        epochs: train.epochs.unwrap_or(if deep { EPOCHS } else { HEAD_EPOCHS }),
        batch_size: train.batch_size as usize,
        patience: train.early_stopping.patience,
        seed: u64::try_from(train.seed).map_err(|_| bad("spec.train.seed is below 0"))?,
        class_weights: train.class_weights,
        augment: train.augmentation.as_ref().map(|a| augment(spec, a)).transpose()?,
    };
    check(train, &rule)?;
    Ok(rule)
}

fn method(train: &Train) -> Result<MethodRule> {
    if train.lora.is_some() && train.method != Method::Lora {
        return Err(bad("spec.train.lora: only method Lora takes it"));
    }
    if train.last_layers.is_some() && train.method != Method::LastLayers {
        return Err(bad("spec.train.lastLayers: only method LastLayers takes it"));
    }
    Ok(match (train.method, &train.last_layers) {
        (Method::Head, _) => MethodRule::Head,
        (Method::Full, _) => MethodRule::Full,
        (Method::LastLayers, Some(last)) if last.count > 0 => MethodRule::LastLayers(last.count as usize),
        (Method::LastLayers, _) => {
            return Err(bad(
                "spec.train.lastLayers.count: method LastLayers needs it, at least 1",
            ));
        }
        (Method::Lora, _) => {
            let lora = train.lora.clone().unwrap_or_default();
            let alpha = number(lora.alpha.as_ref(), f64::from(2 * lora.rank));
            if !(1..=64).contains(&lora.rank) || alpha <= 0.0 {
                return Err(bad("spec.train.lora: rank is 1 to 64, alpha above 0"));
            }
            MethodRule::Lora {
                rank: lora.rank as usize,
                alpha,
                targets: lora.targets,
            }
        }
    })
}

fn augment(spec: &FineTuneJobSpec, given: &Augmentation) -> Result<AugmentRule> {
    let zero = |given: &Option<Decimal>| number(given.as_ref(), 0.0);
    let variants = match (&given.image, &given.sensor) {
        (Some(image), None) if spec.input.image.is_some() => Variants::Image(ImageRule {
            flip: image.flip,
            crop: image.crop.unwrap_or(0) as usize,
            brightness: zero(&image.brightness),
            contrast: zero(&image.contrast),
            saturation: zero(&image.saturation),
        }),
        (None, Some(sensor)) if spec.input.sensor.is_some() => Variants::Sensor(SensorRule {
            jitter: zero(&sensor.jitter),
            scale: zero(&sensor.scale),
            shift: sensor.shift.unwrap_or(0) as usize,
        }),
        _ => {
            return Err(bad(
                "spec.train.augmentation: name image with input.image, or sensor with input.sensor",
            ));
        }
    };
    if given.copies.is_none() && matches!(spec.train.method, Method::Head | Method::LastLayers) {
        return Err(bad(format!(
            "spec.train.augmentation.copies: method {:?} runs the frozen part once, so it needs the number of variants of \
             each row that are kept",
            spec.train.method
        )));
    }
    if given.copies.is_some_and(|n| !(1..=100).contains(&n)) {
        return Err(bad("spec.train.augmentation.copies is 1 to 100"));
    }
    Ok(AugmentRule {
        copies: given.copies.map(|n| n as usize),
        variants,
    })
}

fn check(train: &Train, rule: &TrainRule) -> Result<()> {
    let share = 0.0..1.0;
    if rule.learning_rate <= 0.0
        || rule.weight_decay < 0.0
        || !share.contains(&rule.momentum)
        || !share.contains(&rule.dropout)
        || !share.contains(&rule.label_smoothing)
    {
        return Err(bad(
            "spec.train: learningRate is above 0, weightDecay at least 0, momentum, dropout and labelSmoothing from 0 to \
             below 1",
        ));
    }
    if rule.clip_norm.is_some_and(|c| c <= 0.0) || rule.huber_delta <= 0.0 {
        return Err(bad("spec.train: clipNorm and huberDelta are above 0"));
    }
    if rule.label_smoothing > 0.0 && rule.loss != Loss::CrossEntropy {
        return Err(bad("spec.train.labelSmoothing: only the loss CrossEntropy takes it"));
    }
    if train.huber_delta.is_some() && rule.loss != Loss::Huber {
        return Err(bad("spec.train.huberDelta: only the loss Huber takes it"));
    }
    if rule.nesterov && rule.optimizer != OptimizerName::Sgd {
        return Err(bad("spec.train.optimizer.nesterov: only Sgd takes it"));
    }
    if !(1..=10_000).contains(&rule.epochs) || rule.batch_size == 0 || rule.patience == 0 {
        return Err(bad(
            "spec.train: epochs are 1 to 10000, batchSize and patience at least 1",
        ));
    }
    if rule.layers.len() > 4 || rule.layers.iter().any(|w| !(1..=4096).contains(w)) {
        return Err(bad("spec.train.head.layers: at most 4, each 1 to 4096 wide"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Job;
    use super::*;
    use crate::error::INVALID_JOB;

    fn job(input: &str, train: &str) -> Result<Job> {
        let text = crate::data::testing::job_text(
            "Classification",
            input,
            "{uri: 'file:///d.csv'}",
            &"0".repeat(64),
            &format!("  train: {train}\n"),
        );
        Job::parse(&text)
    }

    const SENSOR: &str = "{sensor: {window: 8}}";

    #[test]
    fn defaults_of_each_method() {
        for (train, rate, epochs, clip, schedule) in [
            ("{}", 0.001, 100, None, ScheduleName::Constant),
            ("{method: Full}", 0.0001, 10, Some(1.0), ScheduleName::Cosine),
            (
                "{method: Full, optimizer: {name: Sgd}}",
                0.005,
                10,
                Some(1.0),
                ScheduleName::Cosine,
            ),
            (
                "{method: LastLayers, lastLayers: {count: 2}}",
                0.0001,
                10,
                Some(1.0),
                ScheduleName::Cosine,
            ),
            (
                "{method: Lora, clipNorm: '2', epochs: 3}",
                0.001,
                3,
                Some(2.0),
                ScheduleName::Cosine,
            ),
        ] {
            let rule = job(SENSOR, train).unwrap().train;
            assert!((rule.learning_rate - rate).abs() < 1e-12, "{train}");
            assert_eq!(
                (rule.epochs, rule.clip_norm, rule.schedule.name()),
                (epochs, clip, schedule),
                "{train}"
            );
            let first = rule.of_first_head();
            assert_eq!((first.epochs, first.clip_norm, first.seed), (100, None, rule.seed));
        }
        let lora = job(SENSOR, "{method: Lora, lora: {rank: 4}}").unwrap().train.method;
        assert_eq!(
            lora,
            MethodRule::Lora {
                rank: 4,
                alpha: 8.0,
                targets: vec![]
            }
        );
    }

    #[test]
    fn schedules_in_steps() {
        let rule = job(
            SENSOR,
            "{schedule: {name: Step, every: 2, factor: '0.5', warmUp: '10%'}}",
        )
        .unwrap();
        let schedule = rule.train.schedule.over(1.0, 10, 8);
        assert_eq!((schedule.total, schedule.warm_up), (80, 8));
        assert_eq!(schedule.shape, Shape::Step { every: 16, factor: 0.5 });
        let cycle = job(SENSOR, "{schedule: {name: OneCycle}}").unwrap();
        let schedule = cycle.train.schedule.over(1.0, 10, 10);
        assert!((schedule.at(0) - 0.04).abs() < 1e-9 && (schedule.at(29) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_does_not_go_together() {
        for (what, train) in [
            ("layers without a count", "{method: LastLayers}"),
            ("a count without layers", "{lastLayers: {count: 1}}"),
            ("adapters of another method", "{method: Full, lora: {}}"),
            ("a rank of 0", "{method: Lora, lora: {rank: 0}}"),
            (
                "smoothing of another loss",
                "{loss: BinaryCrossEntropy, labelSmoothing: '0.1'}",
            ),
            ("a delta of another loss", "{huberDelta: '1'}"),
            ("a loss of the other task", "{loss: Huber}"),
            ("a look ahead of AdamW", "{optimizer: {nesterov: true}}"),
            ("a norm of nothing", "{clipNorm: '0'}"),
            (
                "variants of another input",
                "{augmentation: {copies: 1, image: {flip: true}}}",
            ),
            ("variants of a frozen part", "{augmentation: {sensor: {jitter: '0.1'}}}"),
            (
                "variants under frozen layers",
                "{method: LastLayers, lastLayers: {count: 1}, augmentation: {sensor: {jitter: '0.1'}}}",
            ),
        ] {
            let refused = job(SENSOR, train).map(|_| ()).unwrap_err();
            assert_eq!(refused.reason(), INVALID_JOB, "{what}");
        }
        assert!(job(SENSOR, "{method: Full, augmentation: {sensor: {jitter: '0.1'}}}").is_ok());
    }
}
