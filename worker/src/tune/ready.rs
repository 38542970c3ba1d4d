//! The model of a method made ready to train, and which methods would work where an operator is in the way of one.

use super::{Setup, shard};
use crate::config::{MethodRule, TrainRule};
use crate::engine::step::{Frozen, Step, split};
use crate::engine::tunable::Tunable;
use crate::error::{Result, UNSUPPORTED_OPERATOR, WorkerError};
use crate::train::Fitted;
use fleetune_crds::Loss;
use fleetune_gradient::Activations;

/// Layers that are tried when an error says how many could be trained.
const MAX_TRIED: usize = 32;

/// Both parts of the model, for shards of `rows` samples.
pub fn ready_for(
    setup: &Setup<'_>,
    tunable: &Tunable,
    (rows, activations): (usize, Activations),
) -> Result<(Frozen, Step)> {
    let rule = &setup.job.train;
    split(
        tunable,
        &setup.tensors,
        gradient_loss(rule),
        (rows, activations),
        (rule.dropout, rule.seed),
    )
}

/// The same for shards of as many samples as suit the batch and the model. One that only takes a single sample is trained a
/// sample at a time.
pub fn ready(setup: &Setup<'_>, tunable: &Tunable) -> Result<(Frozen, Step)> {
    let rule = &setup.job.train;
    let of = |rows| ready_for(setup, tunable, (rows, Activations::Kept));
    let fewest = shard::fewest(rule.batch_size);
    let error = match of(fewest) {
        Ok(ready) => {
            let rows = shard::rows(rule.batch_size, ready.1.reuse());
            return if rows == fewest { Ok(ready) } else { of(rows) };
        }
        Err(error) if fewest == 1 => return Err(error),
        Err(error) => error,
    };
    let ready = of(1).map_err(|_| error.clone())?;
    tracing::warn!(cause = error.message(), "the model takes one sample at a time");
    Ok(ready)
}

/// How many of the last layers could be trained.
fn most_layers(setup: &Setup<'_>, first: &Fitted) -> usize {
    let mut found = (0, 0);
    for count in 1..=MAX_TRIED {
        let rule = TrainRule {
            method: MethodRule::LastLayers(count),
            ..setup.job.train.clone()
        };
        let Ok(tunable) = tunable(setup, first, &rule) else {
            break;
        };
        let more = tunable.trained.len() > found.1;
        if !more
            || split(
                &tunable,
                &setup.tensors,
                gradient_loss(&rule),
                (1, Activations::Kept),
                (0.0, 0),
            )
            .is_err()
        {
            break;
        }
        found = (count, tunable.trained.len());
    }
    found.0
}

/// What the method moves of the base model, and the head `first` on it.
pub fn tunable(setup: &Setup<'_>, first: &Fitted, rule: &TrainRule) -> Result<Tunable> {
    let input = &setup.job.spec.input;
    Tunable::of(setup.backbone, input, &setup.tensors, first.parts(), rule)
}

/// An error with the methods that would work, where an operator is in the way.
pub fn with_methods(setup: &Setup<'_>, first: &Fitted, error: WorkerError) -> WorkerError {
    if error.reason() != UNSUPPORTED_OPERATOR {
        return error;
    }
    let works = match most_layers(setup, first) {
        0 => "Head".to_owned(),
        n => format!("Head, and LastLayers with a lastLayers.count of at most {n}"),
    };
    WorkerError::bad(
        UNSUPPORTED_OPERATOR,
        format!("{}; methods that work with this base model: {works}", error.message()),
    )
}

fn gradient_loss(rule: &TrainRule) -> fleetune_gradient::Loss {
    use fleetune_gradient::Loss as L;
    match rule.loss {
        Loss::CrossEntropy => L::CrossEntropy,
        Loss::BinaryCrossEntropy => L::BinaryCrossEntropy,
        Loss::MeanSquaredError => L::MeanSquaredError,
        Loss::MeanAbsoluteError => L::MeanAbsoluteError,
        Loss::Huber => L::Huber {
            delta: rule.huber_delta as f32,
        },
    }
}
