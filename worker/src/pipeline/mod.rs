//! `pipeline.json`: every step between a raw sample and an answer that lies outside the graph, with all parameters, and
//! what the graph takes and gives. It decides how a raw sample becomes the graph's tensor, for training, validation,
//! self-test and serving alike. It holds no arithmetic that ONNX can say: that is in the graph.

use crate::error::{DECOMPRESSION_BOMB, INVALID_SAMPLE, INVALID_VERSION, Result, UNSUPPORTED_FORMAT, WorkerError};
use fleetune_crds::{Input, Task, common::Digest};
use image::{ImageDecoder, ImageReader, imageops::FilterType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::io::Cursor;

/// The version of `pipeline.json` that this build writes and reads.
pub const VERSION: u32 = 1;
/// Longest edge of a picture that is decoded; a larger one is refused before memory is taken.
pub const MAX_IMAGE_EDGE: u32 = 8192;
/// Most memory that decoding one picture may take.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// Largest encoded picture that is looked at.
pub const MAX_ENCODED_BYTES: usize = 64 << 20;
/// Most values of a window: 65,536 samples of 256 channels.
const MAX_WINDOW_VALUES: u64 = 65_536 * 256;

/// A raw sample, as a client sends it.
#[derive(Clone, Copy, Debug)]
pub enum Raw<'a> {
    /// An encoded PNG or JPEG file.
    Image(&'a [u8]),
    /// A window, channel after channel.
    Window(&'a [f32]),
}

/// The tensor that the graph takes, shape `[1, H, W, 3]` of u8 or `[1, C, T]` of f32.
#[derive(Clone, Debug, PartialEq)]
pub enum Prepared {
    /// Pixels, rows of RGB.
    Pixels {
        /// Height in pixels.
        height: u32,
        /// Width in pixels.
        width: u32,
        /// `height * width * 3` values.
        data: Vec<u8>,
    },
    /// A window, channel after channel.
    Window {
        /// Number of channels.
        channels: u32,
        /// Samples of each channel.
        samples: u32,
        /// `channels * samples` finite values.
        data: Vec<f32>,
    },
}

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
    /// The graph's input.
    pub input: TensorSpec,
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
}

/// The steps from an encoded picture to pixels.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSteps {
    /// Encodings that are read.
    pub decode: Vec<Encoding>,
    /// Order of the colours: always RGB. Grey is repeated, alpha is dropped, 16 bits become 8, EXIF is not looked at.
    pub color: Color,
    /// The resize that follows.
    pub resize: Resize,
}

/// An encoding of pictures.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Encoding {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
}

/// Order of the colours.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// Red, green, blue.
    #[serde(rename = "RGB")]
    Rgb,
}

/// A resize of pixels.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resize {
    /// The filter.
    pub algorithm: Algorithm,
    /// Width after it; the aspect ratio is not kept.
    pub width: u32,
    /// Height after it.
    pub height: u32,
}

/// A filter for resizing.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    /// Triangle filter whose support grows when shrinking (bilinear with antialiasing), pixel centres at halves,
    /// 8 bits in and out.
    Triangle,
}

/// The steps before a graph that takes windows: none but checks.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WindowSteps {
    /// Number of channels.
    pub channels: u32,
    /// Samples of each channel.
    pub samples: u32,
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
}

/// Name of the graph's image input.
pub const INPUT_IMAGE: &str = "image";
/// Name of the graph's window input.
pub const INPUT_WINDOW: &str = "window";
/// Name of the graph's output for a Classification.
pub const OUTPUT_PROBABILITIES: &str = "probabilities";
/// Name of the graph's output for a Regression.
pub const OUTPUT_VALUE: &str = "value";

impl Pipeline {
    /// The pipeline of a job's input and task; `classes` is the number of labels, unused for a Regression.
    pub fn for_job(input: &Input, task: Task, classes: usize) -> Result<Self> {
        let (before, input) = match (&input.image, &input.sensor) {
            (Some(image), None) => (
                Before::Image(ImageSteps {
                    decode: vec![Encoding::Png, Encoding::Jpeg],
                    color: Color::Rgb,
                    resize: Resize {
                        algorithm: Algorithm::Triangle,
                        width: image.size,
                        height: image.size,
                    },
                }),
                TensorSpec {
                    name: INPUT_IMAGE.to_owned(),
                    dtype: Dtype::Uint8,
                    shape: vec![1, image.size as usize, image.size as usize, 3],
                },
            ),
            (None, Some(sensor)) => (
                Before::Window(WindowSteps {
                    channels: sensor.channels,
                    samples: sensor.window,
                }),
                TensorSpec {
                    name: INPUT_WINDOW.to_owned(),
                    dtype: Dtype::Fp32,
                    shape: vec![1, sensor.channels as usize, sensor.window as usize],
                },
            ),
            _ => {
                return Err(WorkerError::bad(
                    crate::error::INVALID_JOB,
                    "spec.input: name exactly one of image and sensor",
                ));
            }
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
            before,
            input,
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

    /// Turns a raw sample into the graph's tensor.
    pub fn prepare(&self, raw: Raw<'_>) -> Result<Prepared> {
        match (&self.before, raw) {
            (Before::Image(steps), Raw::Image(bytes)) => steps.prepare(bytes),
            (Before::Window(steps), Raw::Window(values)) => {
                Prepared::window(steps.channels, steps.samples, values.to_vec())
            }
            (Before::Image(_), Raw::Window(_)) => Err(WorkerError::bad(
                INVALID_SAMPLE,
                "the model takes a PNG or JPEG file, not a window of numbers",
            )),
            (Before::Window(_), Raw::Image(_)) => Err(WorkerError::bad(
                INVALID_SAMPLE,
                "the model takes a window of numbers, not a file",
            )),
        }
    }

    /// Checks that `prepared` is what the graph takes.
    pub fn admits(&self, prepared: &Prepared) -> Result<()> {
        if prepared.shape() == self.input.shape && prepared.dtype() == self.input.dtype {
            return Ok(());
        }
        Err(WorkerError::bad(
            INVALID_SAMPLE,
            format!(
                "the model takes {:?} of shape {:?}, the tensor is {:?} of shape {:?}",
                self.input.dtype,
                self.input.shape,
                prepared.dtype(),
                prepared.shape()
            ),
        ))
    }

    fn check(&self) -> Result<()> {
        let want = match &self.before {
            Before::Image(ImageSteps { resize, .. }) => {
                let fits = |edge: u32| (1..=4096).contains(&edge);
                if !fits(resize.width) || !fits(resize.height) {
                    return Err(WorkerError::bad(
                        INVALID_VERSION,
                        "pipeline.json: resize is not in 1..=4096",
                    ));
                }
                (Dtype::Uint8, vec![1, resize.height as usize, resize.width as usize, 3])
            }
            Before::Window(steps) => {
                let values = u64::from(steps.channels) * u64::from(steps.samples);
                if values == 0 || values > MAX_WINDOW_VALUES {
                    return Err(WorkerError::bad(
                        INVALID_VERSION,
                        "pipeline.json: the window is empty or too large",
                    ));
                }
                (Dtype::Fp32, vec![1, steps.channels as usize, steps.samples as usize])
            }
        };
        if (self.input.dtype, &self.input.shape) != (want.0, &want.1) {
            return Err(WorkerError::bad(
                INVALID_VERSION,
                format!("pipeline.json: the steps give {want:?}, input says {:?}", self.input),
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

impl ImageSteps {
    fn prepare(&self, bytes: &[u8]) -> Result<Prepared> {
        let picture = decode(bytes)?;
        let Resize { width, height, .. } = self.resize;
        let data = if picture.dimensions() == (width, height) {
            picture.into_raw()
        } else {
            // FilterType::Triangle is `Algorithm::Triangle`, the only one there is.
            image::imageops::resize(&picture, width, height, FilterType::Triangle).into_raw()
        };
        Ok(Prepared::Pixels { height, width, data })
    }
}

/// Decodes a PNG or JPEG file to RGB, with bounds on edges and memory that hold before memory is taken.
pub fn decode(bytes: &[u8]) -> Result<image::RgbImage> {
    let unreadable = |why: String| WorkerError::bad(INVALID_SAMPLE, format!("not a readable PNG or JPEG: {why}"));
    if bytes.len() > MAX_ENCODED_BYTES {
        return Err(WorkerError::bad(
            DECOMPRESSION_BOMB,
            format!(
                "a picture of {} bytes, at most {MAX_ENCODED_BYTES} are read",
                bytes.len()
            ),
        ));
    }
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|e| unreadable(e.to_string()))?;
    if !matches!(
        reader.format(),
        Some(image::ImageFormat::Png | image::ImageFormat::Jpeg)
    ) {
        return Err(unreadable("the first bytes are those of neither".to_owned()));
    }
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_IMAGE_EDGE);
    limits.max_image_height = Some(MAX_IMAGE_EDGE);
    limits.max_alloc = Some(MAX_IMAGE_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| refused(&e))?;
    if decoder.total_bytes() > MAX_IMAGE_BYTES {
        let (width, height) = decoder.dimensions();
        return Err(WorkerError::bad(
            DECOMPRESSION_BOMB,
            format!("a picture of {width}x{height} pixels takes more than {MAX_IMAGE_BYTES} bytes"),
        ));
    }
    let picture = image::DynamicImage::from_decoder(decoder).map_err(|e| refused(&e))?;
    Ok(picture.into_rgb8())
}

fn refused(error: &image::ImageError) -> WorkerError {
    match error {
        image::ImageError::Limits(limit) => WorkerError::bad(
            DECOMPRESSION_BOMB,
            format!("a picture over the bounds ({MAX_IMAGE_EDGE} pixels an edge, {MAX_IMAGE_BYTES} bytes): {limit}"),
        ),
        other => WorkerError::bad(INVALID_SAMPLE, format!("not a readable PNG or JPEG: {other}")),
    }
}

impl Prepared {
    /// Pixels from their bytes, rows of RGB.
    pub fn pixels(height: u32, width: u32, data: Vec<u8>) -> Result<Self> {
        let want = u64::from(height) * u64::from(width) * 3;
        if data.len() as u64 != want {
            return Err(WorkerError::bad(
                INVALID_SAMPLE,
                format!(
                    "[1, {height}, {width}, 3] takes {want} bytes, the tensor has {}",
                    data.len()
                ),
            ));
        }
        Ok(Self::Pixels { height, width, data })
    }

    /// A window from its values, channel after channel; all must be finite.
    pub fn window(channels: u32, samples: u32, data: Vec<f32>) -> Result<Self> {
        let want = u64::from(channels) * u64::from(samples);
        if data.len() as u64 != want {
            return Err(WorkerError::bad(
                INVALID_SAMPLE,
                format!(
                    "{channels} channels of {samples} samples are {want} values, the window has {}",
                    data.len()
                ),
            ));
        }
        if let Some(at) = data.iter().position(|v| !v.is_finite()) {
            return Err(WorkerError::bad(
                INVALID_SAMPLE,
                format!(
                    "value {at} of the window is {}: only finite numbers are taken",
                    data[at]
                ),
            ));
        }
        Ok(Self::Window {
            channels,
            samples,
            data,
        })
    }

    /// The tensor that a client prepared itself: little-endian bytes of `dtype` and a shape.
    pub fn from_bytes(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<Self> {
        let edge = |n: usize| {
            u32::try_from(n).map_err(|_| WorkerError::bad(INVALID_SAMPLE, format!("a dimension of {n} is too large")))
        };
        match (dtype, shape) {
            (Dtype::Uint8, [1, height, width, 3]) => Self::pixels(edge(*height)?, edge(*width)?, bytes.to_vec()),
            (Dtype::Fp32, [1, channels, samples]) if bytes.len().is_multiple_of(4) => {
                let values = bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                Self::window(edge(*channels)?, edge(*samples)?, values.collect())
            }
            _ => Err(WorkerError::bad(
                INVALID_SAMPLE,
                format!("{dtype:?} of shape {shape:?} is neither UINT8 [1, H, W, 3] nor FP32 [1, C, T]"),
            )),
        }
    }

    /// Its shape, with the batch of one.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Pixels { height, width, .. } => vec![1, *height as usize, *width as usize, 3],
            Self::Window { channels, samples, .. } => vec![1, *channels as usize, *samples as usize],
        }
    }

    /// Its element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::Pixels { .. } => Dtype::Uint8,
            Self::Window { .. } => Dtype::Fp32,
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
    use super::*;
    use crate::data::testing::png;

    fn pipeline(input: &str) -> Pipeline {
        Pipeline::for_job(&serde_yaml::from_str(input).unwrap(), Task::Classification, 3).unwrap()
    }

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
    fn pictures_of_the_right_size_are_not_touched() {
        let bytes = png(32, 32, |x, y| [x as u8, y as u8, 9]);
        let Prepared::Pixels { data, .. } = pipeline("{image: {size: 32}}").prepare(Raw::Image(&bytes)).unwrap() else {
            panic!()
        };
        assert_eq!(&data[..6], &[0, 0, 9, 1, 0, 9]);
    }

    #[test]
    fn tensors_and_samples_of_another_form_are_refused() {
        let (image, window) = (
            pipeline("{image: {size: 32}}"),
            pipeline("{sensor: {window: 4, channels: 2}}"),
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
