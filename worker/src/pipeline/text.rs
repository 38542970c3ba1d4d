//! From a text to tokens: a WordPiece tokenizer from its own file, truncation, padding.

use super::{Dtype, Prepared, TensorSpec};
use crate::error::{
    INVALID_SAMPLE, INVALID_TOKENIZER, INVALID_VERSION, Result, TOKENIZER_MISMATCH, TOKENIZER_TOO_LARGE, WorkerError,
};
use fleetune_crds::TextInput;
use fleetune_crds::common::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokenizers::{TruncationDirection, TruncationParams, TruncationStrategy};

/// Name of the tokenizer's file in a version.
pub const TOKENIZER: &str = "tokenizer.json";
/// Largest tokenizer that is read, in bytes: a vocabulary of 120,000 words has about 4 MiB.
pub const MAX_TOKENIZER_BYTES: u64 = 8 << 20;
/// Largest text that is looked at, in bytes. What counts of it are the first few hundred words.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// Most tokens of a text.
const MAX_TOKENS: u32 = 512;
/// Fewest tokens of a text: two special ones, and two of its own.
const MIN_TOKENS: u32 = 4;
/// Name of the raw sample in the Open Inference Protocol.
pub const INPUT_TEXT: &str = "text";
/// Name of the graph's input with the numbers of the tokens.
pub const INPUT_IDS: &str = "input_ids";
/// Name of the graph's input that is 1 for tokens and 0 for padding.
pub const INPUT_MASK: &str = "attention_mask";

/// The steps from a text to tokens.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TextSteps {
    /// What turns a text into tokens, special ones included.
    pub tokenizer: TokenizerFile,
    /// What happens to a text with more tokens. What the tokenizer's file says about it does not count.
    pub truncation: Truncation,
    /// What happens to a text with fewer tokens. What the tokenizer's file says about it does not count.
    pub padding: Padding,
}

/// A tokenizer's file in the version.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenizerFile {
    /// Its name: `tokenizer.json`, in the format of the tokenizers library, of kind WordPiece.
    pub file: String,
    /// SHA-256 of its bytes, 64 hex digits.
    pub sha256: String,
}

/// How a text is shortened.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Truncation {
    /// Most tokens, special ones included; the special token at the end is kept.
    pub max_tokens: u32,
    /// Which end goes.
    pub side: Side,
}

/// How a text is filled up.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Padding {
    /// Tokens after it.
    pub tokens: u32,
    /// The number of the token that fills up; its mask is 0.
    pub id: u32,
    /// Which end is filled up.
    pub side: Side,
}

/// An end of a text.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// The end.
    Right,
}

impl TextSteps {
    /// The steps of a job's input.
    pub(super) fn for_input(input: &TextInput) -> Self {
        Self {
            tokenizer: TokenizerFile {
                file: TOKENIZER.to_owned(),
                sha256: input.tokenizer.sha256.clone(),
            },
            truncation: Truncation {
                max_tokens: input.max_tokens,
                side: Side::Right,
            },
            padding: Padding {
                tokens: input.max_tokens,
                id: 0,
                side: Side::Right,
            },
        }
    }

    /// The tensors that the steps give: numbers and mask, both i64 `[1, tokens]`.
    pub(super) fn tensors(&self) -> Result<Vec<TensorSpec>> {
        let tokens = self.truncation.max_tokens;
        if !(MIN_TOKENS..=MAX_TOKENS).contains(&tokens) || self.padding.tokens != tokens {
            return Err(WorkerError::bad(
                INVALID_VERSION,
                format!(
                    "pipeline.json: truncation to {tokens} and padding to {} tokens, must be the same and in \
                     {MIN_TOKENS}..={MAX_TOKENS}",
                    self.padding.tokens
                ),
            ));
        }
        if self.tokenizer.file != TOKENIZER {
            return Err(WorkerError::bad(
                INVALID_VERSION,
                format!(
                    "pipeline.json: the tokenizer is {:?}, must be {TOKENIZER}",
                    self.tokenizer.file
                ),
            ));
        }
        let tensor = |name: &str| TensorSpec {
            name: name.to_owned(),
            dtype: Dtype::Int64,
            shape: vec![1, tokens as usize],
        };
        Ok(vec![tensor(INPUT_IDS), tensor(INPUT_MASK)])
    }
}

/// A tokenizer that is ready to use.
pub(super) struct Tokens {
    tokenizer: tokenizers::Tokenizer,
    steps: TextSteps,
    vocabulary: u32,
}

impl Tokens {
    /// Reads a tokenizer's file, whose hash must be that of the steps.
    pub(super) fn read(steps: &TextSteps, bytes: &[u8]) -> Result<Self> {
        let bad = |why: String| WorkerError::bad(INVALID_TOKENIZER, format!("{TOKENIZER}: {why}"));
        if bytes.len() as u64 > MAX_TOKENIZER_BYTES {
            return Err(WorkerError::bad(
                TOKENIZER_TOO_LARGE,
                format!(
                    "{TOKENIZER} has {} bytes, at most {MAX_TOKENIZER_BYTES} are read",
                    bytes.len()
                ),
            ));
        }
        let have = Digest::of(bytes);
        if have.hex() != steps.tokenizer.sha256 {
            return Err(WorkerError::bad(
                TOKENIZER_MISMATCH,
                format!(
                    "{TOKENIZER} has sha256 {}, {} is wanted: name the right file or hash",
                    have.hex(),
                    steps.tokenizer.sha256
                ),
            ));
        }
        check_kind(bytes)?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| {
            bad(format!(
                "not a tokenizer: {e}; take the one that the base model was trained with"
            ))
        })?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams {
                direction: TruncationDirection::Right,
                max_length: steps.truncation.max_tokens as usize,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .map_err(|e| {
                bad(format!(
                    "cannot shorten texts to {} tokens: {e}",
                    steps.truncation.max_tokens
                ))
            })?;
        // Numbers need not be dense: what counts is the largest.
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocabulary = largest
            .and_then(|id| id.checked_add(1))
            .ok_or_else(|| bad("the vocabulary is empty, or its numbers are too large".to_owned()))?;
        let tokens = Self {
            tokenizer,
            steps: steps.clone(),
            vocabulary,
        };
        // A word that it has no number for must not end a job, or worse, a request, much later.
        tokens.prepare("\u{2603}").map_err(|e| bad(e.message().to_owned()))?;
        Ok(tokens)
    }

    /// Tokens are numbered from 0 to below this.
    pub(super) fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// The whole words of letters alone that have a token of their own, in the order of their numbers.
    pub(super) fn words(&self) -> Vec<String> {
        let all: BTreeMap<u32, String> = self
            .tokenizer
            .get_vocab(false)
            .into_iter()
            .map(|(word, id)| (id, word))
            .collect();
        let plain = |word: &String| word.chars().all(char::is_alphabetic) && word.chars().nth(1).is_some();
        all.into_values().filter(plain).collect()
    }

    /// A text as numbers and mask, shortened and filled up.
    pub(super) fn prepare(&self, text: &str) -> Result<Prepared> {
        let bad = |why: String| WorkerError::bad(INVALID_SAMPLE, why);
        if text.len() > MAX_TEXT_BYTES {
            return Err(bad(format!(
                "the text has {} bytes, at most {MAX_TEXT_BYTES} are read",
                text.len()
            )));
        }
        if text.trim().is_empty() {
            return Err(bad("the text is empty".to_owned()));
        }
        let encoding = self
            .tokenizer
            .encode_fast(text, true)
            .map_err(|e| bad(format!("the text has no tokens: {e}")))?;
        let tokens = self.steps.padding.tokens as usize;
        let mut ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
        let mut mask = vec![1; ids.len()];
        ids.resize(tokens, i64::from(self.steps.padding.id));
        mask.resize(tokens, 0);
        Prepared::tokens(ids, mask)
    }
}

/// Only WordPiece is read: other kinds need more of the library than a node should carry, and none is tested.
fn check_kind(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    let bad = |why: String| Err(WorkerError::bad(INVALID_TOKENIZER, format!("{TOKENIZER}: {why}")));
    let file: File = match serde_json::from_slice(bytes) {
        Ok(file) => file,
        Err(e) => {
            return bad(format!(
                "not a tokenizer: {e}; take the one that the base model was trained with"
            ));
        }
    };
    match file.model.kind.as_deref() {
        Some("WordPiece") => Ok(()),
        kind => bad(format!(
            "the tokenizer is of kind {}, only WordPiece (BERT and its kin) is supported: take another base model",
            kind.unwrap_or("unknown")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TINY_WORDS, text_preparer, tiny_tokenizer};
    use super::super::{Pipeline, Preparer, Raw};
    use super::*;
    use fleetune_crds::Task;

    fn tokens(text: &str) -> (Vec<i64>, Vec<i64>) {
        match text_preparer(8).prepare(Raw::Text(text)).unwrap() {
            Prepared::Tokens { ids, mask } => (ids, mask),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn texts_become_numbers_and_a_mask() {
        let word = |w: &str| i64::try_from(TINY_WORDS.iter().position(|x| *x == w).unwrap()).unwrap();
        let (ids, mask) = tokens("Turn ON the lights!");
        assert_eq!(
            ids,
            [
                word("[CLS]"),
                word("turn"),
                word("on"),
                word("the"),
                word("light"),
                word("##s"),
                word("[UNK]"),
                word("[SEP]")
            ]
        );
        assert_eq!(mask, [1; 8]);
        let (ids, mask) = tokens("on");
        assert_eq!(ids[..3], [word("[CLS]"), word("on"), word("[SEP]")]);
        assert_eq!((ids[3..].to_vec(), mask), (vec![0; 5], vec![1, 1, 1, 0, 0, 0, 0, 0]));
        let (ids, mask) = tokens(&"the light ".repeat(50));
        assert_eq!(
            (ids[7], mask),
            (word("[SEP]"), vec![1; 8]),
            "the last special token is kept"
        );
    }

    #[test]
    fn texts_that_are_none_are_refused() {
        let preparer = text_preparer(8);
        for text in ["", " \n\t ", &"a ".repeat(MAX_TEXT_BYTES)] {
            assert_eq!(preparer.prepare(Raw::Text(text)).unwrap_err().reason(), INVALID_SAMPLE);
        }
        for raw in [Raw::Image(b"x"), Raw::Window(&[0.0])] {
            let error = preparer.prepare(raw).unwrap_err();
            assert_eq!(error.reason(), INVALID_SAMPLE);
            assert!(error.message().contains("takes a text"), "{error}");
        }
    }

    #[test]
    fn tensors_of_a_client_are_checked() {
        let preparer = text_preparer(4);
        let admitted = |ids: [i64; 4], mask: [i64; 4]| {
            Prepared::tokens(ids.to_vec(), mask.to_vec()).and_then(|prepared| preparer.admits(&prepared))
        };
        assert!(admitted([1, 5, 2, 0], [1, 1, 1, 0]).is_ok());
        let last = i64::try_from(TINY_WORDS.len()).unwrap() - 1;
        assert!(admitted([1, last, 2, 0], [1, 1, 1, 0]).is_ok());
        for (what, ids, mask) in [
            ("below zero", [1, -1, 2, 0], [1, 1, 1, 0]),
            ("no such token", [1, last + 1, 2, 0], [1, 1, 1, 0]),
            ("no such token in the padding", [1, 5, 2, i64::MAX], [1, 1, 1, 0]),
            ("a mask of twos", [1, 5, 2, 0], [1, 2, 1, 0]),
            ("nothing but padding", [1, 5, 2, 0], [0; 4]),
        ] {
            assert_eq!(admitted(ids, mask).unwrap_err().reason(), INVALID_SAMPLE, "{what}");
        }
        let short = Prepared::tokens(vec![1, 2], vec![1, 1]).unwrap();
        assert_eq!(
            preparer.admits(&short).unwrap_err().reason(),
            INVALID_SAMPLE,
            "too short"
        );
        assert_eq!(
            Prepared::tokens(vec![1, 2], vec![1]).unwrap_err().reason(),
            INVALID_SAMPLE
        );
    }

    /// The steps for a file with these bytes.
    fn reason(bytes: &[u8]) -> &'static str {
        let input = super::super::testing::text_input(8, bytes);
        let pipeline = Pipeline::for_job(&input, Task::Classification, 2).unwrap();
        Preparer::new(pipeline, Some(bytes)).map(|_| ()).unwrap_err().reason()
    }

    #[test]
    fn files_that_are_no_tokenizers_are_refused() {
        let good = tiny_tokenizer();
        let text = String::from_utf8(good.clone()).unwrap();
        for (what, bytes) in [
            ("nothing", Vec::new()),
            ("no JSON", b"hello".to_vec()),
            ("not UTF-8", vec![b'"', 0xff, b'"']),
            ("another JSON", b"{}".to_vec()),
            ("half a file", good[..good.len() / 2].to_vec()),
            ("another kind", text.replace("WordPiece", "BPE").into_bytes()),
            (
                "no word for the unknown",
                text.replace("\"[UNK]\":", "\"[UNKNOWN]\":").into_bytes(),
            ),
            (
                "a number too large",
                text.replace("\"##s\":12", "\"##s\":4294967295").into_bytes(),
            ),
        ] {
            assert_eq!(reason(&bytes), INVALID_TOKENIZER, "{what}");
        }
        let mut large = good.clone();
        large.resize(MAX_TOKENIZER_BYTES as usize + 1, b' ');
        assert_eq!(reason(&large), TOKENIZER_TOO_LARGE);
        let pipeline = text_preparer(8).pipeline().clone();
        let mut other = good;
        other.push(b' ');
        assert_eq!(
            Preparer::new(pipeline.clone(), Some(&other))
                .map(|_| ())
                .unwrap_err()
                .reason(),
            TOKENIZER_MISMATCH
        );
        assert_eq!(
            Preparer::new(pipeline, None).map(|_| ()).unwrap_err().reason(),
            INVALID_VERSION,
            "missing"
        );
    }

    #[test]
    fn steps_that_no_worker_writes_are_refused() {
        let good = text_preparer(8).pipeline().clone();
        let text = String::from_utf8(good.text().unwrap()).unwrap();
        for (what, from, to) in [
            ("another length", "\"tokens\": 8", "\"tokens\": 9"),
            ("no tokens", "8", "0"),
            ("too many tokens", "8", "513"),
            ("a path", "tokenizer.json", "../tokenizer.json"),
            ("one input", INPUT_MASK, INPUT_IDS),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text, "{what}");
            assert_eq!(
                Pipeline::read(changed.as_bytes()).unwrap_err().reason(),
                INVALID_VERSION,
                "{what}"
            );
        }
    }
}
