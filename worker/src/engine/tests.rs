//! Base models that are not what they should be, cuts, and versions whose weights lie where they should not.

mod texts;

use super::build::{Head, Last, Layer, floats, full_model, int, node, write};
use super::testing::{encoded, model, noise, picture_model, window_model};
use super::*;
use crate::error::*;
use crate::pipeline::{Pipeline, Prepared};
use crate::version::{BACKBONE, MODEL, TUNED};
use fleetune_crds::{Activation, Input, Task};
use prost::Message;
use std::path::Path;

fn image_input(size: u32) -> Input {
    serde_yaml::from_str(&format!("{{image: {{size: {size}}}}}")).unwrap()
}

fn sensor_input(channels: u32, window: u32) -> Input {
    serde_yaml::from_str(&format!("{{sensor: {{window: {window}, channels: {channels}}}}}")).unwrap()
}

fn cut(model: &pb::ModelProto, features: Option<&str>, input: &Input) -> Result<Backbone> {
    let tensors = Pipeline::for_job(input, Task::Classification, 2)?.inputs;
    Base::parse(&model.encode_to_vec())?.cut(features, input, &tensors)
}

#[test]
fn the_default_cut_is_the_input_of_the_last_matmul_or_gemm() {
    let backbone = cut(&picture_model(), None, &image_input(16)).unwrap();
    assert_eq!((backbone.features.as_str(), backbone.width), ("base/flat", 24));
    let names: Vec<&str> = backbone.initializers.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["base/conv/w"], "what lies behind the cut is dropped");
    let backbone = cut(&window_model(), None, &sensor_input(2, 8)).unwrap();
    assert_eq!((backbone.features.as_str(), backbone.width), ("base/hidden", 40));
    let backbone = cut(&window_model(), Some("linear"), &sensor_input(2, 8)).unwrap();
    assert_eq!(backbone.features, "base/linear");
}

#[test]
fn features_that_are_not_there_list_those_that_are() {
    let error = cut(&picture_model(), Some("embedding"), &image_input(16)).unwrap_err();
    assert_eq!(error.reason(), FEATURES_NOT_FOUND);
    for want in ["\"embedding\"", "logits [1, 2]", "flat [1, 24]", "pool [1, 24, 1, 1]"] {
        assert!(error.message().contains(want), "{error} lacks {want}");
    }
    // An input and a weight are tensors, but no node gives them.
    for name in ["x", "conv/w"] {
        assert_eq!(
            cut(&picture_model(), Some(name), &image_input(16))
                .unwrap_err()
                .reason(),
            FEATURES_NOT_FOUND
        );
    }
    let none = model(&[-1, 2, 8], vec![node("Tanh", &["x"], "y", vec![])], vec![], "y");
    let error = cut(&none, None, &sensor_input(2, 8)).unwrap_err();
    assert_eq!(error.reason(), FEATURES_NOT_FOUND);
    assert!(error.message().contains("y [1, 2, 8]"), "{error}");
}

#[test]
fn a_product_of_two_computed_tensors_is_no_head() {
    let attention = model(
        &[-1, 2, 8],
        vec![
            node("MatMul", &["x", "w"], "q", vec![]),
            node("Transpose", &["q"], "t", vec![perm()]),
            node("MatMul", &["q", "t"], "scores", vec![]),
        ],
        vec![floats("w", &[8, 8], &noise(64))],
        "scores",
    );
    // The last product with constant weights reads the input itself, which is no feature tensor.
    assert_eq!(
        cut(&attention, None, &sensor_input(2, 8)).unwrap_err().reason(),
        FEATURES_NOT_FOUND
    );
    assert!(cut(&attention, Some("scores"), &sensor_input(2, 8)).is_ok());
}

#[test]
fn a_node_may_be_called_like_a_tensor() {
    let mut model = window_model();
    model.graph.as_mut().unwrap().node[1].name = "w".to_owned();
    model.graph.as_mut().unwrap().node[2].name = "x".to_owned();
    let input = sensor_input(2, 8);
    let backbone = cut(&model, None, &input).unwrap();
    let names: Vec<&str> = backbone.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names[1..], ["base/w.node", "base/x.node"]);
    assert_eq!(backbone.width, 40);
}

#[test]
fn files_that_are_no_models_are_refused() {
    let (bytes, hash) = encoded(&picture_model());
    let file = tempfile::NamedTempFile::new().unwrap();
    let load = |bytes: &[u8], hash: &str, max| {
        std::fs::write(file.path(), bytes).unwrap();
        Base::load(file.path(), hash, max).map(|_| ()).unwrap_err().reason()
    };
    assert_eq!(load(&bytes, &"0".repeat(64), 1 << 20), MODEL_MISMATCH);
    assert_eq!(load(&bytes, &hash, 10), MODEL_TOO_LARGE);
    for (what, bytes) in [
        ("text", b"hello".to_vec()),
        ("nothing", Vec::new()),
        ("zeros", vec![0; 1000]),
        ("half a model", bytes[..bytes.len() / 2].to_vec()),
        ("all but a byte", bytes[..bytes.len() - 1].to_vec()),
    ] {
        use sha2::Digest;
        let hash = hex::encode(sha2::Sha256::digest(&bytes));
        assert_eq!(load(&bytes, &hash, 1 << 20), NOT_ONNX, "{what}");
    }
}

#[test]
fn tensors_with_too_few_bytes_or_impossible_shapes_are_refused() {
    let with = |change: &dyn Fn(&mut pb::TensorProto)| {
        let mut model = picture_model();
        change(&mut model.graph.as_mut().unwrap().initializer[0]);
        Base::parse(&model.encode_to_vec()).map(|_| ()).unwrap_err().reason()
    };
    assert_eq!(with(&|t| t.raw_data.truncate(8)), NOT_ONNX);
    assert_eq!(with(&|t| t.dims = vec![-1, 3]), NOT_ONNX);
    assert_eq!(with(&|t| t.dims = vec![i64::MAX, i64::MAX]), NOT_ONNX);
    assert_eq!(with(&|t| t.data_type = 14), UNSUPPORTED_OPERATOR, "complex numbers");
    assert_eq!(with(&|t| t.data_type = 999), UNSUPPORTED_OPERATOR);
    let outside = with(&|t| {
        t.raw_data.clear();
        t.data_location = Some(1);
        t.external_data = vec![
            pb::StringStringEntryProto {
                key: "location".into(),
                value: "../../etc/passwd".into(),
            },
            pb::StringStringEntryProto {
                key: "length".into(),
                value: "288".into(),
            },
        ];
    });
    assert_eq!(outside, EXTERNAL_DATA);
}

#[test]
fn operators_that_cannot_be_run_are_named() {
    let mut strange = window_model();
    strange.graph.as_mut().unwrap().node[2].op_type = "FancyActivation".to_owned();
    let error = cut(&strange, None, &sensor_input(2, 8)).unwrap_err();
    assert_eq!(error.reason(), UNSUPPORTED_OPERATOR);
    assert!(
        error.message().contains("FancyActivation") && error.message().contains("\"hidden\""),
        "{error}"
    );
    // Behind the cut nothing is run, so nothing matters.
    let mut behind = window_model();
    behind.graph.as_mut().unwrap().node[3].op_type = "FancyActivation".to_owned();
    assert!(cut(&behind, Some("hidden"), &sensor_input(2, 8)).is_ok());
    // A product of shapes that do not fit fails in typing, not by name.
    let mut odd = window_model();
    odd.graph.as_mut().unwrap().initializer[0] = floats("w", &[15, 40], &noise(600));
    let error = cut(&odd, None, &sensor_input(2, 8)).unwrap_err();
    assert_eq!(error.reason(), UNSUPPORTED_OPERATOR);
    assert!(
        error.message().contains("MatMul") && error.message().contains("\"linear\""),
        "{error}"
    );
}

/// An `If` whose branches differ in rank, on a condition that depends on the data.
#[test]
fn an_if_that_cannot_be_typed_is_named() {
    use pb::attribute_proto::AttributeType;
    let branch = |name: &str, nodes: Vec<pb::NodeProto>, output: &str| pb::AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Graph as i32,
        g: Some(pb::GraphProto {
            name: name.to_owned(),
            node: nodes,
            output: vec![super::build::info(output, pb::tensor_proto::DataType::Float, &[])],
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut model = window_model();
    let graph = model.graph.as_mut().unwrap();
    graph.initializer.push(floats("zero", &[], &[0.0]));
    graph
        .node
        .insert(1, node("ReduceMean", &["x"], "mean", vec![int("keepdims", 0)]));
    graph
        .node
        .insert(2, node("Greater", &["mean", "zero"], "condition", vec![]));
    graph.node.insert(
        3,
        node(
            "If",
            &["condition"],
            "chosen",
            vec![
                branch("then_branch", vec![node("Identity", &["flat"], "then", vec![])], "then"),
                branch(
                    "else_branch",
                    vec![node("ReduceMean", &["flat"], "else", vec![int("keepdims", 0)])],
                    "else",
                ),
            ],
        ),
    );
    graph.node[4].input[0] = "chosen".to_owned();
    let error = cut(&model, None, &sensor_input(2, 8)).unwrap_err();
    assert_eq!(error.reason(), UNSUPPORTED_OPERATOR);
    assert!(
        error.message().contains("If") && error.message().contains("chosen"),
        "{error}"
    );
}

#[test]
fn inputs_must_fit() {
    for (what, model, input) in [
        ("channels", window_model(), sensor_input(3, 8)),
        ("window", window_model(), sensor_input(2, 9)),
        ("rank", window_model(), image_input(16)),
        ("kind", picture_model(), sensor_input(3, 16)),
    ] {
        let error = cut(&model, None, &input).unwrap_err();
        assert_eq!(error.reason(), INPUT_SHAPE, "{what}: {error}");
    }
    let mut two = window_model();
    let second = super::build::info("y", pb::tensor_proto::DataType::Float, &[1]);
    two.graph.as_mut().unwrap().input.push(second);
    let error = cut(&two, None, &sensor_input(2, 8)).unwrap_err();
    assert_eq!(error.reason(), INPUT_SHAPE);
    assert!(error.message().contains("2 inputs (x, y)"), "{error}");
    let mut fixed = window_model();
    fixed.graph.as_mut().unwrap().input[0] = super::build::info("x", pb::tensor_proto::DataType::Float, &[4, 2, 8]);
    let error = cut(&fixed, None, &sensor_input(2, 8)).unwrap_err();
    assert!(
        error.message().contains("[4, 2, 8]"),
        "a batch that is fixed to 4: {error}"
    );
}

fn written(dir: &Path, classes: usize) -> Pipeline {
    let input = sensor_input(2, 8);
    let pipeline = Pipeline::for_job(&input, Task::Classification, classes).unwrap();
    let backbone = cut(&window_model(), None, &input).unwrap();
    let head = Head {
        mean: noise(40),
        layers: vec![Layer {
            inputs: 40,
            outputs: classes,
            weights: noise(40 * classes),
            bias: noise(classes),
        }],
        activation: Activation::Relu,
        last: Last::Softmax,
    };
    write(
        dir,
        full_model(&backbone, &input, &pipeline.inputs, &pipeline.output, &head).unwrap(),
        &std::collections::BTreeSet::new(),
    )
    .unwrap();
    pipeline
}

#[test]
fn frozen_bytes_depend_on_model_and_cut_alone() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pipeline = written(one.path(), 3);
    written(two.path(), 5);
    let read = |dir: &tempfile::TempDir, name| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(read(&one, BACKBONE), read(&two, BACKBONE));
    assert_eq!(read(&one, BACKBONE).len(), 640 * 4);
    assert_ne!(read(&one, TUNED), read(&two, TUNED));
    let graph = Graph::open(one.path(), &pipeline.inputs, &pipeline.output).unwrap();
    let output = graph.run(&Prepared::window(2, 8, noise(16)).unwrap()).unwrap();
    assert_eq!(output.len(), 3);
    assert!((output.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    let wrong = Pipeline::for_job(&sensor_input(2, 8), Task::Classification, 4).unwrap();
    assert!(Graph::open(one.path(), &wrong.inputs, &wrong.output).is_err());
}

#[test]
fn weights_that_lie_elsewhere_are_refused_before_memory_is_taken() {
    for (what, key, value) in [
        ("another file", "location", "/etc/passwd"),
        ("a file above", "location", "../secret"),
        ("the graph itself", "location", "model.onnx"),
        ("behind the end", "offset", "1000000000000"),
        ("an offset that wraps", "offset", "18446744073709551615"),
        ("no number", "offset", "x"),
        ("too long", "length", "1099511627776"),
        ("too short", "length", "4"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let pipeline = written(dir.path(), 3);
        let path = dir.path().join(MODEL);
        let mut model = pb::ModelProto::decode(&*std::fs::read(&path).unwrap()).unwrap();
        let tensors = &mut model.graph.as_mut().unwrap().initializer;
        let tensor = tensors.iter_mut().find(|t| !t.external_data.is_empty()).unwrap();
        tensor.external_data.iter_mut().find(|e| e.key == key).unwrap().value = value.to_owned();
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        let error = Graph::open(dir.path(), &pipeline.inputs, &pipeline.output)
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(error.reason(), EXTERNAL_DATA | NOT_ONNX), "{what}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let pipeline = written(dir.path(), 3);
    std::fs::remove_file(dir.path().join(BACKBONE)).unwrap();
    std::os::unix::fs::symlink("/etc/hosts", dir.path().join(BACKBONE)).unwrap();
    let error = Graph::open(dir.path(), &pipeline.inputs, &pipeline.output)
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.reason(), EXTERNAL_DATA, "a link");
    let refused = |change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        let pipeline = written(dir.path(), 3);
        change(&dir.path().join(BACKBONE));
        let opened = Graph::open(dir.path(), &pipeline.inputs, &pipeline.output);
        opened.map(|_| ()).unwrap_err()
    };
    let missing = refused(&|path| std::fs::remove_file(path).unwrap());
    assert_eq!(missing.reason(), EXTERNAL_DATA, "{missing}");
    assert!(
        missing.message().contains("\"base/w\"") && missing.message().contains(BACKBONE),
        "{missing}"
    );
    let short = refused(&|path| std::fs::write(path, [0; 2556]).unwrap());
    assert_eq!(short.reason(), EXTERNAL_DATA, "{short}");
    assert!(
        short.message().contains("\"base/w\"") && short.message().contains("2556 bytes"),
        "{short}"
    );
}

fn perm() -> pb::AttributeProto {
    pb::AttributeProto {
        name: "perm".to_owned(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ints: vec![0, 2, 1],
        ..Default::default()
    }
}
