//! A pipeline with what it needs to run. The one way from a raw sample to the graph's tensors.

use super::text::Tokens;
use super::{Before, Pipeline, Prepared, Raw, TOKENIZER};
use crate::error::{INVALID_SAMPLE, INVALID_VERSION, Result, WorkerError};

/// A pipeline that is ready to prepare samples. Cheap to share between threads.
pub struct Preparer {
    pipeline: Pipeline,
    tokens: Option<Tokens>,
}

impl Preparer {
    /// Makes `pipeline` ready; `tokenizer` is the tokenizer's file, for texts.
    pub fn new(pipeline: Pipeline, tokenizer: Option<&[u8]>) -> Result<Self> {
        let tokens = match (&pipeline.before, tokenizer) {
            (Before::Text(steps), Some(bytes)) => Some(Tokens::read(steps, bytes)?),
            (Before::Text(_), None) => {
                return Err(WorkerError::bad(INVALID_VERSION, format!("{TOKENIZER} is missing")));
            }
            (Before::Image(_) | Before::Window(_), _) => None,
        };
        Ok(Self { pipeline, tokens })
    }

    /// The pipeline.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Turns a raw sample into the graph's tensors.
    pub fn prepare(&self, raw: Raw<'_>) -> Result<Prepared> {
        match (&self.pipeline.before, raw) {
            (Before::Image(steps), Raw::Image(bytes)) => steps.prepare(bytes),
            (Before::Window(steps), Raw::Window(values)) => {
                Prepared::window(steps.channels, steps.samples, values.to_vec())
            }
            (Before::Text(_), Raw::Text(text)) => self.tokens()?.prepare(text),
            (before, raw) => {
                let takes = match before {
                    Before::Image(_) => "a PNG or JPEG file",
                    Before::Window(_) => "a window of numbers",
                    Before::Text(_) => "a text",
                };
                let given = match raw {
                    Raw::Image(_) => "a file",
                    Raw::Window(_) => "a window of numbers",
                    Raw::Text(_) => "a text",
                };
                Err(WorkerError::bad(
                    INVALID_SAMPLE,
                    format!("the model takes {takes}, not {given}"),
                ))
            }
        }
    }

    /// Checks that `prepared` is what the graph takes.
    pub fn admits(&self, prepared: &Prepared) -> Result<()> {
        let bad = |why: String| Err(WorkerError::bad(INVALID_SAMPLE, why));
        let (dtype, shape) = (prepared.dtype(), prepared.shape());
        for input in &self.pipeline.inputs {
            if shape != input.shape || dtype != input.dtype {
                return bad(format!(
                    "the model takes {:?} of shape {:?}, the tensor is {dtype:?} of shape {shape:?}",
                    input.dtype, input.shape,
                ));
            }
        }
        if let Prepared::Tokens { ids, .. } = prepared {
            let below = i64::from(self.tokens()?.vocabulary());
            if let Some(id) = ids.iter().find(|id| !(0..below).contains(*id)) {
                return bad(format!("token {id}: the tokenizer has tokens 0 to {}", below - 1));
            }
        }
        Ok(())
    }

    /// The largest number of a token; `None` where the graph takes none.
    pub fn last_token(&self) -> Option<i64> {
        self.tokens.as_ref().map(|t| i64::from(t.vocabulary()) - 1)
    }

    /// The whole words that the tokenizer knows, in the order of their numbers; none where the graph takes no tokens.
    pub fn words(&self) -> Vec<String> {
        self.tokens.as_ref().map(Tokens::words).unwrap_or_default()
    }

    fn tokens(&self) -> Result<&Tokens> {
        self.tokens
            .as_ref()
            .ok_or_else(|| WorkerError::bad(crate::error::INTERNAL, "a text without a tokenizer"))
    }
}
