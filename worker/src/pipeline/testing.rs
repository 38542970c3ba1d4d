//! Pipelines for tests.

use super::{Pipeline, Preparer};
use fleetune_crds::common::Digest;
use fleetune_crds::{Input, Task};

/// The pipeline of a Classification with three labels over `input`, a job's `spec.input` in YAML.
pub(crate) fn pipeline(input: &str) -> Pipeline {
    Pipeline::for_job(&serde_yaml::from_str(input).unwrap(), Task::Classification, 3).unwrap()
}

/// The same, ready to prepare samples; `input` is no text.
pub(crate) fn preparer(input: &str) -> Preparer {
    Preparer::new(pipeline(input), None).unwrap()
}

/// The vocabulary of [`tiny_tokenizer`], by number.
pub(crate) const TINY_WORDS: [&str; 16] = [
    "[PAD]", "[CLS]", "[SEP]", "[UNK]", "turn", "on", "off", "the", "light", "lamp", "open", "close", "##s", "door",
    "window", "please",
];

/// A BERT tokenizer of a few words, as the bytes of its file. It asks for padding and truncation of its own, which a
/// pipeline overrules.
pub(crate) fn tiny_tokenizer() -> Vec<u8> {
    let words: Vec<String> = TINY_WORDS
        .iter()
        .enumerate()
        .map(|(i, w)| format!("\"{w}\":{i}"))
        .collect();
    let special = |id: usize| {
        format!(
            r#"{{"id":{id},"content":"{}","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}}"#,
            TINY_WORDS[id]
        )
    };
    let specials: Vec<String> = (0..4).map(special).collect();
    format!(
        r###"{{"version":"1.0",
        "truncation":{{"max_length":3,"strategy":"LongestFirst","stride":0,"direction":"Right"}},
        "padding":{{"strategy":{{"Fixed":99}},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"[PAD]"}},
        "added_tokens":[{}],
        "normalizer":{{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}},
        "pre_tokenizer":{{"type":"BertPreTokenizer"}},
        "post_processor":{{"type":"TemplateProcessing",
          "single":[{{"SpecialToken":{{"id":"[CLS]","type_id":0}}}},{{"Sequence":{{"id":"A","type_id":0}}}},{{"SpecialToken":{{"id":"[SEP]","type_id":0}}}}],
          "pair":[{{"Sequence":{{"id":"A","type_id":0}}}},{{"Sequence":{{"id":"B","type_id":1}}}}],
          "special_tokens":{{"[CLS]":{{"id":"[CLS]","ids":[1],"tokens":["[CLS]"]}},"[SEP]":{{"id":"[SEP]","ids":[2],"tokens":["[SEP]"]}}}}}},
        "decoder":{{"type":"WordPiece","prefix":"##","cleanup":true}},
        "model":{{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{{{}}}}}}}"###,
        specials.join(","),
        words.join(",")
    )
    .into_bytes()
}

/// A job's text input with a tokenizer of these bytes.
pub(crate) fn text_input(max_tokens: u32, tokenizer: &[u8]) -> Input {
    let sha256 = Digest::of(tokenizer).hex().to_owned();
    let yaml = format!(
        "{{text: {{maxTokens: {max_tokens}, tokenizer: {{uri: 'file:///tokenizer.json', sha256: '{sha256}'}}}}}}"
    );
    serde_yaml::from_str(&yaml).unwrap()
}

/// The tiny tokenizer, ready to prepare texts.
pub(crate) fn text_preparer(max_tokens: u32) -> Preparer {
    let tokenizer = tiny_tokenizer();
    let pipeline = Pipeline::for_job(&text_input(max_tokens, &tokenizer), Task::Classification, 3).unwrap();
    Preparer::new(pipeline, Some(&tokenizer)).unwrap()
}
