//! The part of a base model that a job freezes, ready to run: cut at the features, and tried with the longest text.

use crate::config::Job;
use crate::engine::{Backbone, Base, Graph, build};
use crate::error::{INPUT_SHAPE, INVALID_TOKENIZER, Result, UNSUPPORTED_OPERATOR, WorkerError};
use crate::pipeline::{Pipeline, Prepared, Preparer, TensorSpec};
use fleetune_crds::Input;

/// Least spec.input.text.maxTokens.
const MIN_TOKENS: u32 = 4;
/// Texts that go through the frozen part at a time: the weights are read from memory once for all of them.
const TEXTS_AT_ONCE: usize = 8;

/// The base model up to its features, and that part ready to run.
pub fn part(job: &Job, base: &Base, preparer: &Preparer) -> Result<(Backbone, Graph)> {
    let last = preparer.last_token();
    let inputs = &preparer.pipeline().inputs;
    let error = match cut(job, base, &job.spec.input, inputs, last) {
        Err(error) if [UNSUPPORTED_OPERATOR, INPUT_SHAPE].contains(&error.reason()) => error,
        result => return result,
    };
    let asked = job.spec.input.text.as_ref().map_or(0, |text| text.max_tokens);
    Err(match most_tokens(job, base, last, asked) {
        0 => error,
        most => WorkerError::bad(
            INPUT_SHAPE,
            format!(
                "the base model takes texts of at most {most} tokens, not of {asked}: lower spec.input.text.maxTokens ({})",
                error.message()
            ),
        ),
    })
}

/// The same for samples of the form `input`. A text encoder is tried at once with the longest text: a smaller table of
/// places would end the job in the middle of the data, or a request on a node.
fn cut(job: &Job, base: &Base, input: &Input, inputs: &[TensorSpec], last: Option<i64>) -> Result<(Backbone, Graph)> {
    let backbone = base
        .cut(job.spec.base_model.features.as_deref(), input, inputs)
        .map_err(|e| e.at("spec.baseModel"))?;
    let model = build::features_model(&backbone, input, inputs)?;
    let Some(last) = last else {
        return Ok((backbone, Graph::build(&model, None, inputs)?));
    };
    if usize::try_from(last).is_ok_and(|last| last >= backbone.vocabulary) {
        return Err(WorkerError::bad(
            INVALID_TOKENIZER,
            format!(
                "the tokenizer has tokens up to {last}, the base model takes 0 to {}: name its own tokenizer",
                backbone.vocabulary.saturating_sub(1)
            ),
        ));
    }
    let graph = Graph::build_rows(&model, None, inputs, TEXTS_AT_ONCE)?;
    let tokens = inputs.first().and_then(|i| i.shape.last()).copied().unwrap_or(0);
    graph.run(&Prepared::tokens(vec![last; tokens], vec![1; tokens])?)?;
    Ok((backbone, graph))
}

/// The longest text that a text encoder takes, of those shorter than `asked` tokens; 0 where it takes none of them.
fn most_tokens(job: &Job, base: &Base, last: Option<i64>, asked: u32) -> u32 {
    let takes = |tokens: u32| {
        let mut input = job.spec.input.clone();
        if let Some(text) = &mut input.text {
            text.max_tokens = tokens;
        }
        Pipeline::for_job(&input, job.spec.task, 2)
            .and_then(|pipeline| cut(job, base, &input, &pipeline.inputs, last))
            .is_ok()
    };
    let (mut most, mut refused) = (MIN_TOKENS, asked);
    if most >= refused || !takes(most) {
        return 0;
    }
    while most + 1 < refused {
        let middle = most.midpoint(refused);
        if takes(middle) {
            most = middle;
        } else {
            refused = middle;
        }
    }
    most
}
