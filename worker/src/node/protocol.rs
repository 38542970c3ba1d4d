//! The Open Inference Protocol v2 on the wire: JSON, and its binary tensor extension. It turns a body into samples and
//! answers into a body, and holds all bounds on what a client may ask for.

mod samples;

use super::table::{Description, RawKind, Sample};
use crate::pipeline::{Dtype, OUTPUT_PROBABILITIES, OUTPUT_VALUE};
use crate::version::Answer;
use fleetune_crds::Task;
use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::fmt;

/// Most samples of one request.
pub const MAX_SAMPLES: usize = 64;
/// Name of the output with the label.
const OUTPUT_LABEL: &str = "label";

/// A request that cannot be answered as it is; the text says why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Bad(pub String);

fn bad<T>(text: impl Into<String>) -> Result<T, Bad> {
    Err(Bad(text.into()))
}

/// A request, read.
#[derive(Debug, PartialEq)]
pub struct Request {
    id: Option<String>,
    /// The samples, in order.
    pub samples: Vec<Sample>,
    outputs: Vec<(String, bool)>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    id: Option<String>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Option<Vec<Output>>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<u64>,
    #[serde(default)]
    data: Option<Flat>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Parameters of the binary tensor extension.
#[derive(Deserialize, Default)]
struct Parameters {
    #[serde(default, rename = "binary_data_size")]
    size: Option<usize>,
    #[serde(default, rename = "binary_data")]
    output: Option<bool>,
    #[serde(default, rename = "binary_data_output")]
    all_outputs: Option<bool>,
}

/// Tensor data in JSON, however it is nested: read straight into flat vectors, because a tree of JSON values would take
/// many times the memory of the body.
#[derive(Default)]
struct Flat {
    numbers: Vec<f32>,
    texts: Vec<String>,
}

struct Fill<'a>(&'a mut Flat);

impl<'de> Visitor<'de> for Fill<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers, strings, or arrays of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Fill(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.0.texts.push(value.to_owned());
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut flat = Self::default();
        Fill(&mut flat).deserialize(from)?;
        Ok(flat)
    }
}

impl Request {
    /// Reads a body. `header` is the length of the JSON in front of binary tensors.
    pub fn read(body: &[u8], header: Option<usize>, model: &Description) -> Result<Self, Bad> {
        let (text, mut binary) = match header {
            None => (body, &[][..]),
            Some(length) if length <= body.len() => body.split_at(length),
            Some(length) => {
                return bad(format!(
                    "Inference-Header-Content-Length is {length}, the body has {} bytes",
                    body.len()
                ));
            }
        };
        let request: Body =
            serde_json::from_slice(text).map_err(|error| Bad(format!("the request is not valid: {error}")))?;
        let mut inputs = Vec::new();
        for input in request.inputs {
            let raw = match input.parameters.size {
                None => None,
                Some(size) if size <= binary.len() => {
                    let (own, rest) = binary.split_at(size);
                    binary = rest;
                    Some(own)
                }
                Some(size) => {
                    return bad(format!(
                        "input {:?} has binary_data_size {size}, {} bytes are left in the body",
                        input.name,
                        binary.len()
                    ));
                }
            };
            inputs.push((input, raw));
        }
        if !binary.is_empty() {
            return bad(format!(
                "{} bytes at the end of the body belong to no input",
                binary.len()
            ));
        }
        let samples = samples::read(&inputs, model)?;
        if samples.is_empty() || samples.len() > MAX_SAMPLES {
            return bad(format!("{} samples, not 1 to {MAX_SAMPLES}", samples.len()));
        }
        let all = request.parameters.all_outputs.unwrap_or(false);
        let known = outputs_of(model);
        let outputs = match request.outputs {
            None => known.iter().map(|(name, _)| ((*name).to_owned(), all)).collect(),
            Some(wanted) => wanted
                .into_iter()
                .map(|output| {
                    if known.iter().any(|(name, _)| *name == output.name) {
                        Ok((output.name, output.parameters.output.unwrap_or(all)))
                    } else {
                        bad(format!(
                            "the model has no output {:?}, but {}",
                            output.name,
                            known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" and ")
                        ))
                    }
                })
                .collect::<Result<_, _>>()?,
        };
        Ok(Self {
            id: request.id,
            samples,
            outputs,
        })
    }

    /// The answer's body and, with binary tensors, the length of the JSON in front.
    pub fn reply(&self, name: &str, version: &str, answers: &[Answer]) -> (Vec<u8>, Option<usize>) {
        let rows = answers.len();
        let mut outputs = Vec::new();
        let mut binary = Vec::new();
        for (output, in_binary) in &self.outputs {
            let (datatype, shape, data, bytes) = match output.as_str() {
                OUTPUT_PROBABILITIES => {
                    let values: Vec<f32> = answers.iter().flat_map(|a| a.probabilities.iter().copied()).collect();
                    let shape = json!([rows, values.len() / rows.max(1)]);
                    floats(shape, &values)
                }
                OUTPUT_VALUE => {
                    let values: Vec<f32> = answers.iter().filter_map(|a| a.value).collect();
                    floats(json!([rows]), &values)
                }
                _ => {
                    let labels: Vec<&str> = answers.iter().map(|a| a.label.as_deref().unwrap_or_default()).collect();
                    let mut bytes = Vec::new();
                    for label in &labels {
                        bytes.extend_from_slice(&(label.len() as u32).to_le_bytes());
                        bytes.extend_from_slice(label.as_bytes());
                    }
                    ("BYTES", json!([rows]), json!(labels), bytes)
                }
            };
            let mut entry = json!({ "name": output, "datatype": datatype, "shape": shape });
            if *in_binary {
                entry["parameters"] = json!({ "binary_data_size": bytes.len() });
                binary.extend_from_slice(&bytes);
            } else {
                entry["data"] = data;
            }
            outputs.push(entry);
        }
        let mut reply = json!({ "model_name": name, "model_version": version, "outputs": outputs });
        if let Some(id) = &self.id {
            reply["id"] = json!(id);
        }
        let mut body = reply.to_string().into_bytes();
        if !self.outputs.iter().any(|(_, in_binary)| *in_binary) {
            return (body, None);
        }
        let header = body.len();
        body.extend_from_slice(&binary);
        (body, Some(header))
    }
}

fn floats(shape: Value, values: &[f32]) -> (&'static str, Value, Value, Vec<u8>) {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    ("FP32", shape, json!(values), bytes)
}

/// Names and datatypes of a model's outputs.
fn outputs_of(model: &Description) -> Vec<(&'static str, &'static str)> {
    match model.task {
        Task::Classification => vec![(OUTPUT_PROBABILITIES, "FP32"), (OUTPUT_LABEL, "BYTES")],
        Task::Regression => vec![(OUTPUT_VALUE, "FP32")],
    }
}

/// The metadata of a model.
pub fn metadata(name: &str, version: &str, model: &Description) -> Value {
    let prepared = model
        .inputs
        .iter()
        .map(|input| json!({ "name": input.name, "datatype": datatype(input.dtype), "shape": shape(&input.shape) }));
    let prepared: Vec<Value> = prepared.collect();
    let raw = json!({
        "name": model.raw.input(),
        "datatype": model.raw.datatype(),
        "shape": match (model.raw, model.inputs.first()) {
            (RawKind::Window, Some(input)) => shape(&input.shape),
            _ => vec![-1],
        },
    });
    // A window is its own prepared tensor.
    let inputs: Vec<Value> = if prepared.contains(&raw) {
        prepared
    } else {
        std::iter::once(raw).chain(prepared).collect()
    };
    let outputs: Vec<Value> = outputs_of(model)
        .into_iter()
        .map(|(name, datatype)| match name {
            OUTPUT_PROBABILITIES => json!({ "name": name, "datatype": datatype, "shape": [-1, model.labels] }),
            _ => json!({ "name": name, "datatype": datatype, "shape": [-1] }),
        })
        .collect();
    json!({ "name": name, "versions": [version], "platform": "onnx_tract", "inputs": inputs, "outputs": outputs })
}

fn shape(own: &[usize]) -> Vec<i64> {
    std::iter::once(-1)
        .chain(own.iter().skip(1).map(|edge| i64::try_from(*edge).unwrap_or(i64::MAX)))
        .collect()
}

fn datatype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Uint8 => "UINT8",
        Dtype::Fp32 => "FP32",
        Dtype::Int64 => "INT64",
    }
}
