//! The Open Inference Protocol v2 on the wire: JSON, and its binary tensor extension. It turns a body into samples and
//! answers into a body, and holds all bounds on what a client may ask for.

use super::table::{Description, Sample};
use crate::pipeline::{Dtype, INPUT_IMAGE, INPUT_WINDOW, OUTPUT_PROBABILITIES, OUTPUT_VALUE, Prepared};
use crate::version::Answer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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
        let [(input, raw)] = inputs.as_slice() else {
            return bad(format!("the model takes one input, the request has {}", inputs.len()));
        };
        let samples = samples(input, *raw, model)?;
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
    let prepared = json!({
        "name": model.input.name,
        "datatype": datatype(model.input.dtype),
        "shape": shape(&model.input.shape),
    });
    let raw = if model.image {
        json!({ "name": INPUT_IMAGE, "datatype": "BYTES", "shape": [-1] })
    } else {
        json!({ "name": INPUT_WINDOW, "datatype": "FP32", "shape": shape(&model.input.shape) })
    };
    // A window is its own prepared tensor.
    let inputs = if raw == prepared {
        vec![raw]
    } else {
        vec![raw, prepared]
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
    }
}

fn samples(input: &Input, raw: Option<&[u8]>, model: &Description) -> Result<Vec<Sample>, Bad> {
    let is_raw_image = model.image && input.name == INPUT_IMAGE && input.datatype == "BYTES";
    let is_raw_window = !model.image && input.name == INPUT_WINDOW && input.datatype == "FP32";
    let is_prepared = input.name == model.input.name && input.datatype == datatype(model.input.dtype);
    if is_raw_image {
        return images(input, raw);
    }
    if !is_raw_window && !is_prepared {
        let raw = if model.image {
            format!("{INPUT_IMAGE} as BYTES (a PNG or JPEG file)")
        } else {
            format!("{INPUT_WINDOW} as FP32")
        };
        return bad(format!(
            "the model takes {raw} or {} as {}, not {:?} as {}",
            model.input.name,
            datatype(model.input.dtype),
            input.name,
            input.datatype
        ));
    }
    tensors(input, raw, model)
}

fn images(input: &Input, raw: Option<&[u8]>) -> Result<Vec<Sample>, Bad> {
    let count = elements(&input.shape)?;
    let files: Vec<Vec<u8>> = match (raw, &input.data) {
        (Some(mut bytes), None) => {
            let mut files = Vec::new();
            while !bytes.is_empty() {
                let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
                    return bad("BYTES data ends within a length");
                };
                let length = u32::from_le_bytes(*length) as usize;
                if length > rest.len() {
                    return bad(format!("a BYTES element has {length} bytes, {} are left", rest.len()));
                }
                let (file, rest) = rest.split_at(length);
                files.push(file.to_vec());
                bytes = rest;
                if files.len() > MAX_SAMPLES {
                    return bad(format!("more than {MAX_SAMPLES} samples"));
                }
            }
            files
        }
        (None, Some(data)) if data.numbers.is_empty() => data
            .texts
            .iter()
            .take(MAX_SAMPLES + 1)
            .map(|text| {
                STANDARD
                    .decode(text)
                    .map_err(|error| Bad(format!("BYTES data in JSON is base64: {error}")))
            })
            .collect::<Result<_, _>>()?,
        _ => return bad("an image comes as base64 text in data, or as binary data"),
    };
    if files.len() as u64 != count {
        return bad(format!(
            "shape {:?} has {count} elements, the data {}",
            input.shape,
            files.len()
        ));
    }
    Ok(files.into_iter().map(Sample::Image).collect())
}

fn tensors(input: &Input, raw: Option<&[u8]>, model: &Description) -> Result<Vec<Sample>, Bad> {
    let own = &model.input.shape[1..];
    let one: u64 = own.iter().map(|edge| *edge as u64).product();
    let count = elements(&input.shape)?;
    let inner: Vec<u64> = own.iter().map(|edge| *edge as u64).collect();
    // With a batch in front, or a single sample as it is.
    let fits = input.shape == inner || input.shape.get(1..) == Some(inner.as_slice());
    if !fits || one == 0 {
        return bad(format!(
            "the model takes shape {:?}, the input has {:?}",
            shape(&model.input.shape),
            input.shape
        ));
    }
    let rows = count / one;
    if rows > MAX_SAMPLES as u64 {
        return bad(format!("more than {MAX_SAMPLES} samples"));
    }
    let width = match model.input.dtype {
        Dtype::Uint8 => 1,
        Dtype::Fp32 => 4,
    };
    let mismatch = |found: u64| {
        Bad(format!(
            "shape {:?} has {count} elements, the data {found}",
            input.shape
        ))
    };
    match (model.input.dtype, raw, &input.data) {
        (Dtype::Uint8, Some(bytes), None) => {
            if bytes.len() as u64 != count * width {
                return Err(mismatch(bytes.len() as u64 / width));
            }
            bytes.chunks_exact(one as usize).map(|row| pixels(row, model)).collect()
        }
        (Dtype::Uint8, None, Some(data)) if data.texts.is_empty() => {
            if data.numbers.len() as u64 != count {
                return Err(mismatch(data.numbers.len() as u64));
            }
            let whole = |v: &f32| (0.0..=255.0).contains(v) && v.fract() == 0.0;
            if !data.numbers.iter().all(whole) {
                return bad("UINT8 data holds a number that is none of 0 to 255");
            }
            let bytes: Vec<u8> = data.numbers.iter().map(|v| *v as u8).collect();
            bytes.chunks_exact(one as usize).map(|row| pixels(row, model)).collect()
        }
        (Dtype::Fp32, Some(bytes), None) => {
            if bytes.len() as u64 != count * width {
                return Err(mismatch(bytes.len() as u64 / width));
            }
            let values: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            Ok(windows(&values, one as usize))
        }
        (Dtype::Fp32, None, Some(data)) if data.texts.is_empty() => {
            if data.numbers.len() as u64 != count {
                return Err(mismatch(data.numbers.len() as u64));
            }
            Ok(windows(&data.numbers, one as usize))
        }
        _ => bad("a tensor comes as numbers in data, or as binary data"),
    }
}

fn windows(values: &[f32], one: usize) -> Vec<Sample> {
    values
        .chunks_exact(one)
        .map(|row| Sample::Window(row.to_vec()))
        .collect()
}

fn pixels(row: &[u8], model: &Description) -> Result<Sample, Bad> {
    Prepared::from_bytes(Dtype::Uint8, &model.input.shape, row)
        .map(Sample::Prepared)
        .map_err(|error| Bad(error.message().to_owned()))
}

fn elements(shape: &[u64]) -> Result<u64, Bad> {
    shape
        .iter()
        .try_fold(1_u64, |product, edge| product.checked_mul(*edge))
        .filter(|count| *count > 0)
        .ok_or_else(|| Bad(format!("shape {shape:?} has no elements, or too many")))
}
