//! Whole jobs on texts: a tiny encoder and a tokenizer of sixteen words.

use super::*;
use crate::engine::build::{floats, node};
use crate::engine::pb;
use crate::engine::testing::{TEXT_WIDTH, text_model};
use crate::error::{INPUT_SHAPE, INVALID_TOKENIZER, NOT_FOUND, TOKENIZER_MISMATCH, TOKENIZER_TOO_LARGE};
use crate::pipeline::testing::TINY_WORDS;
use crate::pipeline::{MAX_TOKENIZER_BYTES, TOKENIZER};
use crate::train::Epoch;
use fleetune_crds::common::Digest;
use prost::Message;
use std::collections::BTreeSet;

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

/// Names of the base model's tensors in the version's tuned file.
fn moved(dir: &Path) -> BTreeSet<String> {
    let model = pb::ModelProto::decode(&*std::fs::read(dir.join(version::MODEL)).unwrap()).unwrap();
    let tensors = model.graph.unwrap().initializer.into_iter();
    tensors
        .filter(|t| t.external_data.iter().any(|e| e.value == version::TUNED))
        .filter_map(|t| t.name.strip_prefix("base/").map(str::to_owned))
        .collect()
}

#[test]
fn texts_by_all_methods() {
    for (method, weights) in [
        ("Full", &["words", "types", "query", "key"][..]),
        ("LastLayers, lastLayers: {count: 2}", &["query", "key"]),
        (
            "Lora, lora: {rank: 2, alpha: '8'}",
            &["query.lora.a", "query.lora.b", "key.lora.a", "key.lora.b"],
        ),
        (
            "Lora, lora: {rank: 2, targets: [query]}",
            &["query.lora.a", "query.lora.b"],
        ),
    ] {
        let more = format!("  train: {{method: {method}, epochs: 8, optimizer: {{learningRate: '0.003'}}}}\n");
        let files = text_files(&text_model(TINY_WORDS.len()), 12, &more);
        let one = run_on(1, &files, "one").unwrap();
        assert_eq!(one.digest, run_on(3, &files, "three").unwrap().digest, "{method}");
        let dir = files.folder.path().join("one").join(VERSION);
        assert_eq!(
            moved(&dir),
            weights.iter().map(|w| (*w).to_owned()).collect(),
            "{method}"
        );
        let history = std::fs::read(dir.join(crate::finetune::HISTORY)).unwrap();
        let epochs: Vec<Epoch> = serde_json::from_slice(&history).unwrap();
        let (first, last) = (&epochs[1], epochs.last().unwrap());
        assert!(last.train_loss < first.train_loss, "{method}: {epochs:?}");
        // Half of the texts are of either class.
        let accuracy = one.summary.metrics["accuracy"].get();
        assert!(accuracy > 0.65, "{method}: {:?}", one.summary);
        let tested = selftest::run(&Version::open(&dir).unwrap(), &dir, 1e-3).unwrap();
        assert!(tested.ok, "{method}: {tested:?}");
    }
}

#[test]
fn a_model_whose_answer_depends_on_padding_is_trained_with_it() {
    let mut careless = text_model(TINY_WORDS.len());
    let graph = careless.graph.as_mut().unwrap();
    graph.node.retain(|n| n.op_type != "Mul");
    let add = graph.node.iter_mut().find(|n| n.output[0] == "masked").unwrap();
    add.input[1] = "padding".to_owned();
    // A version that was trained without its padding would answer otherwise than it was trained, and end the job.
    for model in [careless, text_model(TINY_WORDS.len())] {
        let files = text_files(&model, 24, "  train: {method: Full, epochs: 2}\n");
        run_on(2, &files, "out").unwrap();
    }
}

/// The model with a table of so many places: cut to the text's length, or read by constant numbers as exporters write it.
fn placed(places: usize, gathered: Option<i64>) -> pb::ModelProto {
    let mut model = text_model(TINY_WORDS.len());
    let ints = |name: &str, values: Vec<i64>| pb::TensorProto {
        name: name.to_owned(),
        dims: vec![i64::try_from(values.len()).unwrap()],
        data_type: pb::tensor_proto::DataType::Int64 as i32,
        int64_data: values,
        ..Default::default()
    };
    let table = (0..places * TEXT_WIDTH)
        .map(|i| (i * 7919 % 101) as f32 / 500.0)
        .collect::<Vec<f32>>();
    let graph = model.graph.as_mut().unwrap();
    graph.initializer.extend([
        floats("places", &[places, TEXT_WIDTH], &table),
        ints("from", vec![0]),
        ints("second", vec![1]),
        ints("third", vec![2]),
    ]);
    graph.node[2] = node("Add", &["word", "type"], "typed", vec![]);
    graph.node.insert(3, node("Add", &["typed", "place"], "x", vec![]));
    let mut own = vec![
        node("Shape", &["input_ids"], "shape", vec![]),
        node("Slice", &["shape", "second", "third", "from"], "length", vec![]),
    ];
    if let Some(numbers) = gathered {
        graph.initializer.push(ints("numbers", (0..numbers).collect()));
        own.push(node(
            "Slice",
            &["numbers", "from", "length", "from"],
            "position_ids",
            vec![],
        ));
        own.push(node("Gather", &["places", "position_ids"], "place", vec![]));
    } else {
        own.push(node("Slice", &["places", "from", "length", "from"], "place", vec![]));
    }
    graph.node.splice(0..0, own);
    model
}

#[test]
fn a_text_longer_than_the_table_of_places_is_refused_with_what_fits() {
    for (what, model) in [("cut", placed(10, None)), ("read", placed(10, Some(512)))] {
        let error = run_on(2, &text_files(&model, 12, ""), "out").map(|_| ()).unwrap_err();
        assert_eq!(error.reason(), INPUT_SHAPE, "{what}: {error}");
        for word in ["at most 10 tokens, not of 12", "spec.input.text.maxTokens"] {
            assert!(error.message().contains(word), "{what}: {error} lacks {word:?}");
        }
    }
    let made = run_on(
        2,
        &text_files(&placed(12, Some(512)), 12, "  train: {method: Full, epochs: 2}\n"),
        "out",
    );
    assert!(made.unwrap().summary.metrics.contains_key("accuracy"));
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
