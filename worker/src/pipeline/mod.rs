//! `pipeline.json`: every step between a raw sample and an answer that lies outside the graph, with all parameters, and
//! what the graph takes and gives. It decides how a raw sample becomes the graph's tensors, for training, validation,
//! self-test and serving alike. It holds no arithmetic that ONNX can say: that is in the graph.

mod jpeg;
mod picture;
mod prepared;
mod preparer;
#[cfg(test)]
pub(crate) mod testing;
mod text;
mod window;

pub use picture::{
    Algorithm, Color, Encoding, INPUT_IMAGE, ImageSteps, MAX_ENCODED_BYTES, MAX_IMAGE_EDGE, Resize, decode,
};
pub use prepared::{Prepared, Raw};
pub use preparer::Preparer;
pub use text::{
    INPUT_IDS, INPUT_MASK, INPUT_TEXT, MAX_TEXT_BYTES, MAX_TOKENIZER_BYTES, Padding, Side, TOKENIZER, TextSteps,
    TokenizerFile, Truncation,
};
pub use window::{INPUT_WINDOW, WindowSteps};

use crate::error::{INVALID_JOB, INVALID_VERSION, Result, UNSUPPORTED_FORMAT, WorkerError};
use fleetune_crds::{ImageInput, Input, SensorInput, Task, TextInput, common::Digest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of `pipeline.json` that this build writes and reads.
pub const VERSION: u32 = 1;

/// How a version turns raw samples into answers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pipeline {
    /// Version of this format; a reader refuses a newer one.
    pub version: u32,
    /// What the model answers.
    pub task: Task,
    /// The steps before the graph.
    pub before: Before,
    /// The graph's inputs: one, or for a text numbers and mask.
    pub inputs: Vec<TensorSpec>,
    /// The graph's output: `probabilities` in the order of `labels.json`, or one `value` in the target's unit.
    pub output: TensorSpec,
}

/// The steps before the graph.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Before {
    /// Decode, make RGB, resize.
    Image(ImageSteps),
    /// The values as they are.
    Window(WindowSteps),
    /// Tokenise, shorten, fill up.
    Text(TextSteps),
}

/// A tensor at the graph's border.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// An element type, by its name in the Open Inference Protocol.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Unsigned bytes.
    #[serde(rename = "UINT8")]
    Uint8,
    /// Single precision floats.
    #[serde(rename = "FP32")]
    Fp32,
    /// Signed integers of 64 bits.
    #[serde(rename = "INT64")]
    Int64,
}

/// Name of the graph's output for a Classification.
pub const OUTPUT_PROBABILITIES: &str = "probabilities";
/// Name of the graph's output for a Regression.
pub const OUTPUT_VALUE: &str = "value";

/// The one kind of input that a spec names.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// Pictures.
    Image(&'a ImageInput),
    /// Windows.
    Sensor(&'a SensorInput),
    /// Texts.
    Text(&'a TextInput),
}

impl<'a> Kind<'a> {
    /// The kind of `input`.
    pub fn of(input: &'a Input) -> Result<Self> {
        match (&input.image, &input.sensor, &input.text) {
            (Some(image), None, None) => Ok(Self::Image(image)),
            (None, Some(sensor), None) => Ok(Self::Sensor(sensor)),
            (None, None, Some(text)) => Ok(Self::Text(text)),
            _ => Err(WorkerError::bad(
                INVALID_JOB,
                "spec.input: name exactly one of image, sensor and text",
            )),
        }
    }
}

impl Before {
    /// The tensors that the steps give, which are what the graph takes.
    fn tensors(&self) -> Result<Vec<TensorSpec>> {
        match self {
            Self::Image(steps) => Ok(vec![steps.tensor()?]),
            Self::Window(steps) => Ok(vec![steps.tensor()?]),
            Self::Text(steps) => steps.tensors(),
        }
    }
}

impl Pipeline {
    /// The pipeline of a job's input and task; `classes` is the number of labels, unused for a Regression.
    pub fn for_job(input: &Input, task: Task, classes: usize) -> Result<Self> {
        let before = match Kind::of(input)? {
            Kind::Image(image) => Before::Image(ImageSteps::for_input(image)),
            Kind::Sensor(sensor) => Before::Window(WindowSteps::for_input(sensor)),
            Kind::Text(text) => Before::Text(TextSteps::for_input(text)),
        };
        let (name, width) = match task {
            Task::Classification => (OUTPUT_PROBABILITIES, classes),
            Task::Regression => (OUTPUT_VALUE, 1),
        };
        let output = TensorSpec {
            name: name.to_owned(),
            dtype: Dtype::Fp32,
            shape: vec![1, width],
        };
        let pipeline = Self {
            version: VERSION,
            task,
            inputs: before.tensors()?,
            before,
            output,
        };
        pipeline.check()?;
        Ok(pipeline)
    }

    /// Reads and checks the text of `pipeline.json`.
    pub fn read(text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let bad = |error: serde_json::Error| WorkerError::bad(INVALID_VERSION, format!("pipeline.json: {error}"));
        let head: Head = serde_json::from_slice(text).map_err(bad)?;
        if head.version != VERSION {
            return Err(WorkerError::bad(
                UNSUPPORTED_FORMAT,
                format!(
                    "pipeline.json has version {}, this build reads {VERSION}: update the worker",
                    head.version
                ),
            ));
        }
        let pipeline: Self = serde_json::from_slice(text).map_err(bad)?;
        pipeline.check()?;
        Ok(pipeline)
    }

    /// The text of `pipeline.json`, always the same for the same pipeline.
    pub fn text(&self) -> Result<Vec<u8>> {
        json(self)
    }

    /// The hash of inputs, shapes, units and labels.
    pub fn contract(&self, labels: &[String]) -> Result<Digest> {
        Ok(Digest::of(&json(&(self, labels))?))
    }

    fn check(&self) -> Result<()> {
        let want = self.before.tensors()?;
        if self.inputs != want {
            return Err(WorkerError::bad(
                INVALID_VERSION,
                format!("pipeline.json: the steps give {want:?}, inputs says {:?}", self.inputs),
            ));
        }
        let [1, width] = self.output.shape[..] else {
            return Err(WorkerError::bad(
                INVALID_VERSION,
                "pipeline.json: output.shape is not [1, N]",
            ));
        };
        let ok = match self.task {
            Task::Classification => (2..=65_536).contains(&width),
            Task::Regression => width == 1,
        };
        if ok {
            Ok(())
        } else {
            Err(WorkerError::bad(
                INVALID_VERSION,
                format!("pipeline.json: {width} outputs do not fit the task"),
            ))
        }
    }
}

/// JSON with a line feed at the end, in the order of the fields: the same value gives the same bytes.
pub fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| WorkerError::bad(crate::error::INTERNAL, format!("writing JSON: {e}")))?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::testing::{pipeline, preparer};
    use super::*;
    use crate::error::INVALID_SAMPLE;

    #[test]
    fn pipelines_are_read_as_they_were_written() {
        for input in ["{image: {size: 32}}", "{sensor: {window: 8, channels: 2}}"] {
            let pipeline = pipeline(input);
            assert_eq!(Pipeline::read(&pipeline.text().unwrap()).unwrap(), pipeline);
        }
    }

    #[test]
    fn a_contract_changes_with_input_and_labels_only() {
        let labels = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let one = pipeline("{image: {size: 32}}");
        let two = pipeline("{image: {size: 32, mean: '0', std: '1'}}");
        let abc = labels(&["a", "b", "c"]);
        assert_eq!(
            one.contract(&abc).unwrap(),
            two.contract(&abc).unwrap(),
            "scaling is inside the graph"
        );
        assert_ne!(
            one.contract(&abc).unwrap(),
            one.contract(&labels(&["a", "c", "b"])).unwrap()
        );
        assert_ne!(
            one.contract(&abc).unwrap(),
            pipeline("{image: {size: 48}}").contract(&abc).unwrap()
        );
    }

    #[test]
    fn tensors_and_samples_of_another_form_are_refused() {
        let (image, window) = (
            preparer("{image: {size: 32}}"),
            preparer("{sensor: {window: 4, channels: 2}}"),
        );
        assert_eq!(
            window.prepare(Raw::Window(&[0.0; 7])).unwrap_err().reason(),
            INVALID_SAMPLE
        );
        assert_eq!(
            window.prepare(Raw::Window(&[f32::NAN; 8])).unwrap_err().reason(),
            INVALID_SAMPLE
        );
        assert_eq!(window.prepare(Raw::Image(b"x")).unwrap_err().reason(), INVALID_SAMPLE);
        assert_eq!(window.prepare(Raw::Text("x")).unwrap_err().reason(), INVALID_SAMPLE);
        assert_eq!(
            image.prepare(Raw::Window(&[0.0; 8])).unwrap_err().reason(),
            INVALID_SAMPLE
        );
        for (dtype, shape, bytes) in [
            (Dtype::Uint8, vec![1, 2, 2, 3], 11),
            (Dtype::Uint8, vec![1, 2, 2, 4], 16),
            (Dtype::Uint8, vec![1, usize::MAX, 2, 3], 12),
            (Dtype::Fp32, vec![1, 2, 4], 30),
            (Dtype::Fp32, vec![2, 2, 4], 64),
        ] {
            let refused = Prepared::from_bytes(dtype, &shape, &vec![0; bytes]);
            assert_eq!(refused.unwrap_err().reason(), INVALID_SAMPLE, "{shape:?}");
        }
        let other = Prepared::from_bytes(Dtype::Fp32, &[1, 2, 3], &[0; 24]).unwrap();
        assert_eq!(window.admits(&other).unwrap_err().reason(), INVALID_SAMPLE);
    }
}
