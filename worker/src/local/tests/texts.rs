//! Whole jobs on texts: a tiny encoder and a tokenizer of sixteen words.

use super::*;
use crate::engine::testing::text_model;
use crate::error::{INVALID_TOKENIZER, NOT_FOUND, TOKENIZER_MISMATCH, TOKENIZER_TOO_LARGE};
use crate::pipeline::testing::TINY_WORDS;
use crate::pipeline::{MAX_TOKENIZER_BYTES, TOKENIZER};
use fleetune_crds::common::Digest;

/// Orders of words, and whether each switches on or off.
fn orders() -> String {
    let mut text = "label,text".to_owned();
    let things = ["light", "lamp", "door", "window", "lights", "lamps", "doors", "windows"];
    for (i, thing) in things.iter().enumerate() {
        for (j, other) in things.iter().enumerate() {
            for (label, order) in [
                ("on", "turn on the"),
                ("off", "turn off the"),
                ("on", "open the"),
                ("off", "close the"),
            ] {
                let please = ["", "please ", "Please, "][(i + j) % 3];
                let _ = write!(text, "\n{label},\"{please}{order} {thing} the {other}\"");
            }
        }
    }
    text
}

fn text_files(model: &crate::engine::pb::ModelProto, tokens: u32, more: &str) -> Files {
    let sha256 = Digest::of(&tiny_tokenizer()).hex().to_owned();
    files(
        "Classification",
        &format!("{{text: {{maxTokens: {tokens}, tokenizer: {{uri: 'file:///tokenizer.json', sha256: '{sha256}'}}}}}}"),
        "",
        model,
        orders().as_bytes(),
        more,
    )
}

#[test]
fn a_job_on_texts_ends_in_the_same_digest_on_any_number_of_threads() {
    let more = "  train: {epochs: 60, optimizer: {learningRate: '0.01'}}\n";
    let files = text_files(&text_model(TINY_WORDS.len()), 12, more);
    let one = run_on(1, &files, "one").unwrap();
    let two = run_on(2, &files, "two").unwrap();
    let five = run_on(5, &files, "five").unwrap();
    assert_eq!(one.digest, two.digest);
    assert_eq!(one.digest, five.digest);
    assert!(one.summary.metrics["accuracy"].get() > 0.9, "{:?}", one.summary);
    let out = files.folder.path().join("one");
    let dir = out.join(VERSION);
    assert_eq!(std::fs::read(dir.join(TOKENIZER)).unwrap(), tiny_tokenizer());
    let version = Version::open(&dir).unwrap();
    for (text, label) in [("please open the window", "on"), ("turn off the lamps", "off")] {
        let answer = version.answer(version.run(&version.prepare(Raw::Text(text)).unwrap()).unwrap());
        assert_eq!(answer.label.as_deref(), Some(label), "{text}: {answer:?}");
    }
    let report = std::fs::read_to_string(out.join(REPORT).join(report::HTML)).unwrap();
    assert!(report.contains("linearWords") && report.contains("majority"));
    let tested = selftest::run(&version, &dir, 1e-3).unwrap();
    assert!(tested.ok, "{tested:?}");
    let words: Vec<String> = version.preparer().words();
    for i in 0..8 {
        let text = std::fs::read_to_string(dir.join(version::SELFTEST).join(format!("{i}.txt"))).unwrap();
        assert!(
            text.split(' ').all(|w| words.iter().any(|x| x == w)),
            "no word of the data: {text}"
        );
    }
}

#[test]
fn a_version_without_its_own_tokenizer_is_no_version() {
    let files = text_files(&text_model(TINY_WORDS.len()), 12, "  train: {epochs: 2}\n");
    run_on(2, &files, "out").unwrap();
    let dir = files.folder.path().join("out").join(VERSION);
    let path = dir.join(TOKENIZER);
    let open = || Version::open(&dir).map(|_| ()).unwrap_err().reason();
    let mut other = tiny_tokenizer();
    other.push(b'\n');
    std::fs::write(&path, &other).unwrap();
    assert_eq!(open(), TOKENIZER_MISMATCH);
    other.resize(MAX_TOKENIZER_BYTES as usize + 1, b'\n');
    std::fs::write(&path, &other).unwrap();
    assert_eq!(open(), INVALID_VERSION);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(open(), INVALID_VERSION);
}

#[test]
fn tokenizers_that_are_none_end_the_job() {
    let good = text_model(TINY_WORDS.len());
    let with = |change: &dyn Fn(&mut Files)| {
        let mut files = text_files(&good, 12, "");
        change(&mut files);
        run_on(2, &files, "out").map(|_| ()).unwrap_err()
    };
    let put = |files: &mut Files, bytes: &[u8]| {
        std::fs::write(files.folder.path().join("tokenizer.json"), bytes).unwrap();
        if let Some(text) = &mut files.job.spec.input.text {
            text.tokenizer.sha256 = Digest::of(bytes).hex().to_owned();
        }
    };
    let missing = with(&|files| std::fs::remove_file(files.folder.path().join("tokenizer.json")).unwrap());
    assert_eq!(missing.reason(), NOT_FOUND);
    assert!(missing.message().contains("spec.input.text.tokenizer.uri"), "{missing}");
    let large = with(&|files| put(files, &vec![b' '; MAX_TOKENIZER_BYTES as usize + 1]));
    assert_eq!(large.reason(), TOKENIZER_TOO_LARGE);
    assert_eq!(with(&|files| put(files, b"{}")).reason(), INVALID_TOKENIZER);
    let mismatch = with(&|files| {
        if let Some(text) = &mut files.job.spec.input.text {
            text.tokenizer.sha256 = "0".repeat(64);
        }
    });
    assert_eq!(mismatch.reason(), TOKENIZER_MISMATCH);
}

#[test]
fn a_tokenizer_of_another_model_ends_the_job_before_the_data_are_read() {
    let files = text_files(&text_model(TINY_WORDS.len() - 1), 12, "");
    std::fs::write(files.folder.path().join("data"), b"").unwrap();
    let error = run_on(2, &files, "out").map(|_| ()).unwrap_err();
    assert_eq!(error.reason(), INVALID_TOKENIZER, "{error}");
    assert!(
        error
            .message()
            .contains("tokens up to 15, the base model takes 0 to 14"),
        "{error}"
    );
}
