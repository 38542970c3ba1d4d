//! The models of the examples as nets of the golden tests: their graph up to its features, with a classifier on them.

use crate::builder::uniform;
use crate::nets::{CLASSES, Net};
use fleetune_gradient::onnx::{floats, node};
use fleetune_gradient::pb;
use fleetune_gradient::pb::attribute_proto::AttributeType;
use fleetune_gradient::pb::tensor_proto::DataType;
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

/// The model at `path` with a classifier on its `width` features.
pub fn net(path: &PathBuf, sample: &[usize], width: usize) -> Net {
    let mut model = pb::ModelProto::decode(&*std::fs::read(path).unwrap()).unwrap();
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
    let scale = (3.0 / width as f64).sqrt() as f32;
    let scaled = |layer, count, scale: f32| uniform(layer, count).iter().map(|u| u * scale).collect::<Vec<f32>>();
    let weight = floats("head.w", &[CLASSES, width], &scaled(3000, CLASSES * width, scale));
    let bias = floats("head.b", &[CLASSES], &scaled(3001, CLASSES, 0.1));
    weights.extend([weight.name.clone(), bias.name.clone()]);
    graph.initializer.extend([weight, bias]);
    let transposed = pb::AttributeProto {
        name: "transB".to_owned(),
        i: 1,
        r#type: AttributeType::Int as i32,
        ..Default::default()
    };
    let inputs = ["features", "head.w", "head.b"];
    graph.node.push(node("Gemm", &inputs, "head.logits", vec![transposed]));
    let input = graph.input[0].name.clone();
    Net {
        model,
        input,
        sample: sample.to_vec(),
        gain: 1.0,
        output: "head.logits".to_owned(),
        weights,
    }
}
