//! `fleetune-worker inspect`: what is in a version (a directory, or an artifact in a registry) or in an ONNX file, as text
//! for people. It reads and prints; it runs no model.

use crate::artifact::{BACKBONE, GRAPH, TUNED, VersionManifest, pack};
use crate::engine::{Base, Feed, MAX_GRAPH_BYTES, external_files, knows, parse_model, pb};
use crate::error::{Result, WorkerError};
use crate::pipeline::Pipeline;
use crate::registry::Registry;
use crate::version::read_bounded;
use fleetune_crds::common::Digest;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Largest ONNX file that is read, in bytes.
const MAX_MODEL: u64 = 2 << 30;
/// Largest JSON file that is read, in bytes.
const MAX_JSON: u64 = 32 << 20;
/// Most labels that are listed.
const MAX_LABELS: usize = 20;

/// Describes `target`: a version's directory, `oci://HOST/PATH:TAG` (or `@sha256:…`), or an `.onnx` file.
pub async fn run(target: &str) -> Result<String> {
    if let Some(reference) = target.strip_prefix("oci://") {
        return remote(reference).await;
    }
    let path = Path::new(target);
    let meta = std::fs::metadata(path).map_err(|error| WorkerError::io("reading", path, &error))?;
    if !meta.is_dir() {
        return model_file(path);
    }
    // A local run writes version and report side by side, and either folder may be meant.
    let dir = if path.join("version").join(GRAPH).is_file() {
        path.join("version")
    } else {
        path.to_owned()
    };
    let mut text = version(&dir)?;
    let report = dir.parent().unwrap_or(&dir).join("report").join(crate::report::JSON);
    if report.is_file() {
        let value = json(&report)?;
        if value["candidate"].as_str() == Some(pack(&dir)?.digest().as_str()) {
            text.push_str(&card(&value));
        }
    }
    Ok(text)
}

async fn remote(reference: &str) -> Result<String> {
    let registry = Registry::from_env()?;
    let (repository, bytes) = registry.resolve(reference).await?;
    VersionManifest::parse(&bytes)?;
    let digest = Digest::of(&bytes);
    let scratch =
        tempfile::tempdir().map_err(|error| WorkerError::io("making", Path::new("scratch folder"), &error))?;
    let dir = scratch.path().join("version");
    registry.fetch_version(&repository.to_string(), &digest, &dir).await?;
    let mut text = version(&dir)?;
    // `publish` gives the report the version's tag with `.report`; a candidate has none.
    if !reference.contains('@')
        && let Ok((_, report)) = registry.resolve(&format!("{reference}.report")).await
        && let Ok(value) = registry
            .fetch_report(&repository.to_string(), &Digest::of(&report), &digest)
            .await
    {
        text.push_str(&card(&value));
    }
    Ok(text)
}

fn version(dir: &Path) -> Result<String> {
    let mut text = String::new();
    let packed = pack(dir)?;
    line(&mut text, "Version", packed.digest().as_str());
    head(&mut text, "Layers");
    for layer in &packed.layers {
        line(
            &mut text,
            layer.kind.title(),
            &format!("{:>12} bytes  {}", layer.size, layer.digest),
        );
    }
    let pipeline_text = read_bounded(&dir.join("pipeline.json"), MAX_JSON)?;
    let pipeline = Pipeline::read(&pipeline_text)?;
    let labels: Vec<String> = serde_json::from_value(json(&dir.join("labels.json"))?).unwrap_or_default();
    head(&mut text, "Pipeline");
    flat(
        &mut text,
        "",
        &serde_json::from_slice(&pipeline_text).unwrap_or_default(),
    );
    line(&mut text, "contract", pipeline.contract(&labels)?.as_str());
    if !labels.is_empty() {
        let mut shown = labels.iter().take(MAX_LABELS).cloned().collect::<Vec<_>>().join(", ");
        if labels.len() > MAX_LABELS {
            let _ = write!(shown, ", … ({} in all)", labels.len());
        }
        line(&mut text, "labels", &shown);
    }
    head(&mut text, "Lineage");
    match dir.join("lineage.json") {
        path if path.is_file() => flat(&mut text, "", &json(&path)?),
        _ => line(&mut text, "lineage.json", "is missing"),
    }
    let files = external_files(dir, &[BACKBONE, TUNED])?;
    let model = parse_model(&read_bounded(&dir.join(GRAPH), MAX_GRAPH_BYTES)?, &files)?;
    text.push_str(&graph(&model));
    Ok(text)
}

fn model_file(path: &Path) -> Result<String> {
    let bytes = read_bounded(path, MAX_MODEL)?;
    let mut text = String::new();
    line(&mut text, "Model", &path.display().to_string());
    line(&mut text, "sha256", Digest::of(&bytes).hex());
    line(&mut text, "bytes", &bytes.len().to_string());
    let model = parse_model(&bytes, &external_files(Path::new(""), &[])?)?;
    text.push_str(&graph(&model));
    head(
        &mut text,
        "Possible cuts (spec.baseModel.features), nearest to the output first",
    );
    match Base::parse(&bytes) {
        Ok(base) => {
            for (name, shape) in base.candidates(&feeds(&model)) {
                line(&mut text, &name, &shape);
            }
        }
        Err(error) => line(&mut text, "none", error.message()),
    }
    Ok(text)
}

/// What is in a graph, and whether the engine has its operators.
fn graph(model: &pb::ModelProto) -> String {
    let mut text = String::new();
    head(&mut text, "Graph");
    let opsets: Vec<String> = model
        .opset_import
        .iter()
        .map(|opset| match opset.domain.as_str() {
            "" => opset.version.to_string(),
            domain => format!("{domain} {}", opset.version),
        })
        .collect();
    line(&mut text, "opset", &opsets.join(", "));
    let Some(graph) = &model.graph else { return text };
    let given: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    for input in graph.input.iter().filter(|input| !given.contains(&input.name.as_str())) {
        line(&mut text, "input", &value(input));
    }
    for output in &graph.output {
        line(&mut text, "output", &value(output));
    }
    let weights: i64 = graph
        .initializer
        .iter()
        .map(|tensor| tensor.dims.iter().product::<i64>())
        .sum();
    line(
        &mut text,
        "weights",
        &format!("{} tensors, {weights} values", graph.initializer.len()),
    );
    head(&mut text, "Operators");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in &graph.node {
        *counts.entry(node.op_type.as_str()).or_default() += 1;
    }
    for (operator, count) in counts {
        let support = if knows(operator) {
            "runs"
        } else {
            "NOT SUPPORTED by the engine"
        };
        line(&mut text, operator, &format!("{count:>5}  {support}"));
    }
    text
}

fn value(info: &pb::ValueInfoProto) -> String {
    let shape: Vec<String> = dims(info)
        .into_iter()
        .map(|edge| edge.map_or_else(|| "?".to_owned(), |edge| edge.to_string()))
        .collect();
    format!("{} [{}]", info.name, shape.join(", "))
}

fn dims(info: &pb::ValueInfoProto) -> Vec<Option<i64>> {
    use pb::tensor_shape_proto::dimension::Value as Edge;
    let Some(pb::type_proto::Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return Vec::new();
    };
    let shape = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    shape
        .iter()
        .map(|edge| match &edge.value {
            Some(Edge::DimValue(edge)) => Some(*edge),
            _ => None,
        })
        .collect()
}

/// What the model's inputs take for one sample: what is open is 1.
fn feeds(model: &pb::ModelProto) -> Vec<Feed> {
    let Some(graph) = &model.graph else { return Vec::new() };
    let given: Vec<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|input| !given.contains(&input.name.as_str()));
    inputs
        .map(|input| Feed {
            name: input.name.clone(),
            kind: element_type(input),
            shape: dims(input)
                .into_iter()
                .map(|edge| {
                    edge.and_then(|edge| usize::try_from(edge).ok())
                        .filter(|edge| *edge > 0)
                        .unwrap_or(1)
                })
                .collect(),
        })
        .collect()
}

fn element_type(info: &pb::ValueInfoProto) -> pb::tensor_proto::DataType {
    use pb::tensor_proto::DataType;
    match info.r#type.as_ref().and_then(|kind| kind.value.as_ref()) {
        Some(pb::type_proto::Value::TensorType(tensor)) => {
            DataType::try_from(tensor.elem_type).unwrap_or(DataType::Float)
        }
        _ => DataType::Float,
    }
}

/// What a report says in a few lines.
fn card(report: &Value) -> String {
    let mut text = String::new();
    head(&mut text, "Card");
    for key in ["verdict", "samples", "metrics", "gates", "cost", "baselines"] {
        flat(&mut text, key, &report[key]);
    }
    text
}

/// A JSON value as lines of path and leaf.
fn flat(text: &mut String, path: &str, value: &Value) {
    let join = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                flat(text, &join(key), value);
            }
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            for (index, item) in items.iter().enumerate() {
                flat(text, &join(&index.to_string()), item);
            }
        }
        Value::Null => {}
        Value::String(leaf) => line(text, path, leaf),
        leaf => line(text, path, &leaf.to_string()),
    }
}

fn head(text: &mut String, title: &str) {
    let _ = writeln!(text, "\n{title}");
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:<28} {value}");
}

fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&read_bounded(path, MAX_JSON)?)
        .map_err(|error| WorkerError::bad(crate::error::INVALID_VERSION, format!("{}: {error}", path.display())))
}
