//! The models of the examples as nets of the golden tests: their graph up to its features, with a classifier on them.

use crate::builder::{SEED, int, ints, uniform};
use crate::nets::{CLASSES, Net};
use fleetune_gradient::onnx::{float_info, floats, node};
use fleetune_gradient::pb;
use fleetune_gradient::pb::tensor_proto::DataType;
use fleetune_gradient::philox::{Place, Purpose, Stream};
use prost::Message;
use std::path::PathBuf;

/// What is a table of constants, not a weight.
const TABLES: [&str; 1] = ["recency"];

/// The file where `examples/prepare.py` puts it, if it is there. A machine that must have it is told so by
/// `FLEETUNE_REQUIRE_LAB`.
pub fn file(name: &str) -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from);
    let user = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let cache = set("FLEETUNE_CACHE").or_else(|| Some(user()?.join("fleetune")))?;
    let path = cache.join("data").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none_or(|v| v != "1"),
        "{} is missing: run examples/prepare.py",
        path.display()
    );
    println!("SKIPPED: {} is missing, examples/prepare.py makes it", path.display());
    None
}

/// What the model at a path is given, and where a classifier reads it.
pub struct Real<'a> {
    pub path: &'a PathBuf,
    /// Shape of one sample.
    pub sample: &'a [usize],
    /// Number of features.
    pub width: usize,
    /// The tensor that holds them.
    pub features: &'a str,
    /// Words that a text is made of; 0 where samples are no texts.
    pub vocabulary: usize,
}

/// The model with a classifier on its features, or of a text encoder on their mean over all tokens.
pub fn net(real: &Real) -> Net {
    let mut model = pb::ModelProto::decode(&*std::fs::read(real.path).unwrap()).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let is_weight = |t: &&pb::TensorProto| {
        let count: i64 = t.dims.iter().product();
        t.data_type == DataType::Float as i32 && count > 1 && !TABLES.contains(&t.name.as_str())
    };
    let mut weights: Vec<String> = graph
        .initializer
        .iter()
        .filter(is_weight)
        .map(|t| t.name.clone())
        .collect();
    let width = real.width;
    let scale = (3.0 / width as f64).sqrt() as f32;
    let scaled = |layer, count, scale: f32| uniform(layer, count).iter().map(|u| u * scale).collect::<Vec<f32>>();
    let weight = floats("head.w", &[CLASSES, width], &scaled(3000, CLASSES * width, scale));
    let bias = floats("head.b", &[CLASSES], &scaled(3001, CLASSES, 0.1));
    weights.extend([weight.name.clone(), bias.name.clone()]);
    graph.initializer.extend([weight, bias]);
    let mut input = graph.input[0].name.clone();
    if real.vocabulary > 0 {
        "text".clone_into(&mut input);
        takes_texts(graph, &input);
        let over = vec![ints("axes", &[1]), int("keepdims", 0)];
        graph
            .node
            .push(node("ReduceMean", &[real.features], "head.features", over));
    } else {
        let flat = vec![int("axis", 1)];
        graph
            .node
            .push(node("Flatten", &[real.features], "head.features", flat));
    }
    let inputs = ["head.features", "head.w", "head.b"];
    graph
        .node
        .push(node("Gemm", &inputs, "head.logits", vec![int("transB", 1)]));
    Net {
        model,
        input,
        sample: real.sample.to_vec(),
        gain: 1.0,
        output: "head.logits".to_owned(),
        weights,
    }
}

/// Makes the three inputs of a text encoder from one of numbers of words, as f32, of which 0 is padding.
fn takes_texts(graph: &mut pb::GraphProto, input: &str) {
    graph
        .initializer
        .extend([floats("text.zero", &[], &[0.0]), floats("text.one", &[], &[1.0])]);
    let number = || vec![int("to", i64::from(DataType::Int64 as i32))];
    let own = vec![
        node("Cast", &[input], "input_ids", number()),
        node("Min", &[input, "text.one"], "text.mask", vec![]),
        node("Cast", &["text.mask"], "attention_mask", number()),
        node("Mul", &[input, "text.zero"], "text.types", vec![]),
        node("Cast", &["text.types"], "token_type_ids", number()),
    ];
    graph.node.splice(0..0, own);
    graph.input = vec![float_info(input, &[])];
}

/// Numbers of words, the same as those of `real.py`.
pub fn texts(rows: usize, tokens: usize, vocabulary: usize) -> Vec<f32> {
    let place = Place {
        layer: 1000,
        ..Place::of(Purpose::Data)
    };
    let mut stream = Stream::new(SEED, place);
    let mut numbers = Vec::with_capacity(rows * tokens);
    for row in 0..rows {
        let own = tokens - 2 * (row % 3);
        for token in 0..tokens {
            let number = 1 + stream.bits() as usize % (vocabulary - 1);
            numbers.push(if token < own { number as f32 } else { 0.0 });
        }
    }
    numbers
}
