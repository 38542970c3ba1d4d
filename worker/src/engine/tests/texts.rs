//! Base models that take texts: which inputs, where the cut is, how tokens become one vector, and what padding does.

use super::*;
use crate::engine::build::{cut_model, features_model, info};
use crate::engine::testing::{TEXT_WIDTH, text_model};
use crate::pipeline::Kind;
use pb::tensor_proto::DataType;

const TOKENS: usize = 8;

fn text_input() -> Input {
    let tokenizer = format!("{{uri: 'file:///t', sha256: '{}'}}", "0".repeat(64));
    serde_yaml::from_str(&format!("{{text: {{maxTokens: {TOKENS}, tokenizer: {tokenizer}}}}}")).unwrap()
}

fn inputs() -> Vec<crate::pipeline::TensorSpec> {
    Pipeline::for_job(&text_input(), Task::Classification, 2)
        .unwrap()
        .inputs
}

fn text(ids: &[i64]) -> Prepared {
    let mut padded = ids.to_vec();
    padded.resize(TOKENS, 0);
    Prepared::tokens(padded, (0..TOKENS).map(|i| i64::from(i < ids.len())).collect()).unwrap()
}

fn features(model: &pb::ModelProto, rows: usize) -> Graph {
    let backbone = cut(model, None, &text_input()).unwrap();
    let model = features_model(&backbone, &text_input(), &inputs()).unwrap();
    Graph::build_rows(&model, None, &inputs(), rows).unwrap()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

#[test]
fn the_default_cut_is_the_output_with_one_vector_a_token() {
    let backbone = cut(&text_model(16), None, &text_input()).unwrap();
    assert_eq!(backbone.features, "base/last_hidden_state");
    assert!(backbone.by_token);
    assert_eq!(backbone.width, TEXT_WIDTH);
    assert_eq!((backbone.inputs.len(), backbone.vocabulary), (3, 16));
    let inner = cut(&text_model(16), Some("word"), &text_input()).unwrap();
    assert_eq!(
        (inner.inputs.len(), inner.by_token),
        (1, true),
        "what is not read is not fed"
    );
    let mut classifier = text_model(16);
    let graph = classifier.graph.as_mut().unwrap();
    graph.node.push(node(
        "ReduceMax",
        &["last_hidden_state"],
        "most",
        vec![axes(1), int("keepdims", 0)],
    ));
    graph.node.push(node("MatMul", &["most", "old"], "logits", vec![]));
    graph.initializer.push(floats("old", &[TEXT_WIDTH, 3], &noise(72)));
    graph.output = vec![info("logits", DataType::Float, &[-1, 3])];
    let backbone = cut(&classifier, None, &text_input()).unwrap();
    assert_eq!((backbone.features.as_str(), backbone.by_token), ("base/most", false));
}

fn axes(axis: i64) -> pb::AttributeProto {
    pb::AttributeProto {
        name: "axes".to_owned(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ints: vec![axis],
        ..Default::default()
    }
}

/// The mean over the text's own tokens at unit length, from what the model gives for all [`TOKENS`], padding included.
fn by_hand(model: &pb::ModelProto, sample: &Prepared) -> Vec<f32> {
    let input = text_input();
    let backbone = cut(model, None, &input).unwrap();
    let raw = cut_model(&backbone, Kind::of(&input).unwrap(), &inputs()).unwrap();
    let hidden = Graph::build(&raw, None, &inputs()).unwrap().run(sample).unwrap();
    assert_eq!(hidden.len(), TOKENS * TEXT_WIDTH);
    let own = sample.used();
    let mut mean = [0.0f32; TEXT_WIDTH];
    for token in hidden.chunks(TEXT_WIDTH).take(own) {
        for (m, v) in mean.iter_mut().zip(token) {
            *m += v / own as f32;
        }
    }
    let length = mean.iter().map(|v| v * v).sum::<f32>().sqrt();
    mean.iter().map(|v| v / length).collect()
}

#[test]
fn features_are_the_mean_over_the_mask_at_unit_length_in_every_opset() {
    let sample = text(&[1, 5, 7, 9, 2]);
    let mut first: Option<Vec<f32>> = None;
    for opset in [11, 13, 18] {
        let mut model = text_model(16);
        model.opset_import[0].version = opset;
        let want = by_hand(&model, &sample);
        let got = features(&model, 1).run(&sample).unwrap();
        assert!(close(&got, &want), "opset {opset}: {got:?} {want:?}");
        assert!(first.as_ref().is_none_or(|first| close(first, &got)));
        first = Some(got);
    }
}

#[test]
fn texts_run_together_or_alone() {
    let (one, four) = (features(&text_model(16), 1), features(&text_model(16), 4));
    let texts = [text(&[1, 4, 2]), text(&[1, 9, 2]), text(&[1, 15, 2]), text(&[1, 6, 2])];
    let rows: Vec<&Prepared> = texts.iter().collect();
    let all = four.run_rows(&rows).unwrap();
    assert_eq!(all.len(), 4);
    assert_eq!(
        four.run_rows(&rows).unwrap(),
        all,
        "the same bits for the same texts in the same order"
    );
    for (text, together) in texts.iter().zip(&all) {
        assert!(close(&one.run(text).unwrap(), together));
        assert!(close(&four.run(text).unwrap(), together));
    }
    let long = text(&[1, 4, 5, 6, 7, 2]);
    let mixed = four.run_rows(&[&texts[0], &long]).unwrap();
    assert!(
        close(&mixed[0], &all[0]) && close(&mixed[1], &one.run(&long).unwrap()),
        "padding changes nothing"
    );
    assert!(four.run_rows(&[]).is_err());
    assert!(one.run_rows(&[&long, &long]).is_err());
}

/// The model with a table of places for texts of exactly [`TOKENS`] tokens.
fn fixed() -> pb::ModelProto {
    let mut model = text_model(16);
    let graph = model.graph.as_mut().unwrap();
    graph.node[2] = node("Add", &["word", "type"], "typed", vec![]);
    graph.node.insert(3, node("Add", &["typed", "places"], "x", vec![]));
    graph
        .initializer
        .push(floats("places", &[1, TOKENS, TEXT_WIDTH], &noise(TOKENS * TEXT_WIDTH)));
    model
}

/// The model without its mask: every token of padding counts.
fn careless() -> pb::ModelProto {
    let mut model = text_model(16);
    let graph = model.graph.as_mut().unwrap();
    graph.node.retain(|n| n.op_type != "Mul");
    let add = graph.node.iter_mut().find(|n| n.output[0] == "masked").unwrap();
    add.input[1] = "padding".to_owned();
    model
}

#[test]
fn a_model_that_needs_its_padding_gets_it() {
    let long = text(&[1, 4, 5, 6, 7, 8, 9, 2]);
    for (what, model) in [("one length", fixed()), ("no mask", careless())] {
        let graph = features(&model, 1);
        let short = text(&[1, 4, 2]);
        let got = graph.run(&short).unwrap();
        assert!(close(&got, &by_hand(&model, &short)), "{what}");
        let many = features(&model, 3).run_rows(&[&long, &short]).unwrap();
        assert!(close(&got, &many[1]), "{what}");
        assert!(close(&graph.run(&long).unwrap(), &many[0]), "{what}");
    }
}

#[test]
fn inputs_of_a_text_encoder_are_checked() {
    let change = |change: &dyn Fn(&mut pb::GraphProto)| {
        let mut model = text_model(16);
        change(model.graph.as_mut().unwrap());
        cut(&model, None, &text_input()).unwrap_err()
    };
    let no_mask = change(&|g| {
        g.input.remove(1);
    });
    assert_eq!(no_mask.reason(), INPUT_SHAPE);
    assert!(no_mask.message().contains("attention_mask"), "{no_mask}");
    let more = change(&|g| g.input.push(info("position_ids", DataType::Int64, &[-1, -1])));
    assert_eq!(more.reason(), INPUT_SHAPE);
    assert!(more.message().contains("position_ids"), "{more}");
    let floats = change(&|g| g.input[0] = info("input_ids", DataType::Float, &[-1, -1]));
    assert_eq!(floats.reason(), INPUT_SHAPE);
    let shorter = change(&|g| g.input[0] = info("input_ids", DataType::Int64, &[1, 7]));
    assert_eq!(shorter.reason(), INPUT_SHAPE);
    assert!(shorter.message().contains("[1, 7]"), "{shorter}");
    let wordless = change(&|g| g.node[0].input[1] = "token_type_ids".to_owned());
    assert_eq!(wordless.reason(), INPUT_SHAPE);
    assert!(wordless.message().contains("input_ids"), "{wordless}");
    let error = cut(&window_model(), None, &text_input()).unwrap_err();
    assert_eq!(error.reason(), INPUT_SHAPE, "a model for windows");
    let error = cut(&text_model(16), None, &sensor_input(2, 8)).unwrap_err();
    assert_eq!(error.reason(), INPUT_SHAPE, "a model for texts");
}
