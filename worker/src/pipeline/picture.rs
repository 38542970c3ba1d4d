//! From an encoded picture to pixels: decode within bounds, make RGB, resize.

use super::{Dtype, Prepared, TensorSpec, jpeg};
use crate::error::{DECOMPRESSION_BOMB, INVALID_SAMPLE, INVALID_VERSION, Result, WorkerError};
use fleetune_crds::ImageInput;
use image::{ImageDecoder, ImageReader, imageops::FilterType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::io::Cursor;

/// Longest edge of a picture that is decoded; a larger one is refused before memory is taken.
pub const MAX_IMAGE_EDGE: u32 = 8192;
/// Most memory that decoding one picture may take.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// Longest edge of a picture after the resize.
const MAX_RESIZED_EDGE: u32 = 4096;
/// Largest encoded picture that is looked at.
pub const MAX_ENCODED_BYTES: usize = 64 << 20;
/// Name of the graph's image input.
pub const INPUT_IMAGE: &str = "image";

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

impl ImageSteps {
    /// The steps of a job's input.
    pub(super) fn for_input(input: &ImageInput) -> Self {
        Self {
            decode: vec![Encoding::Png, Encoding::Jpeg],
            color: Color::Rgb,
            resize: Resize {
                algorithm: Algorithm::Triangle,
                width: input.size,
                height: input.size,
            },
        }
    }

    /// The tensor that the steps give, u8 `[1, H, W, 3]`.
    pub(super) fn tensor(&self) -> Result<TensorSpec> {
        let Resize { width, height, .. } = self.resize;
        if !(1..=MAX_RESIZED_EDGE).contains(&width) || !(1..=MAX_RESIZED_EDGE).contains(&height) {
            return Err(WorkerError::bad(
                INVALID_VERSION,
                format!("pipeline.json: resize to {width}x{height}, each edge must be in 1..={MAX_RESIZED_EDGE}"),
            ));
        }
        Ok(TensorSpec {
            name: INPUT_IMAGE.to_owned(),
            dtype: Dtype::Uint8,
            shape: vec![1, height as usize, width as usize, 3],
        })
    }

    pub(super) fn prepare(&self, bytes: &[u8]) -> Result<Prepared> {
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
    if reader.format() == Some(image::ImageFormat::Jpeg) {
        let frame = jpeg::frame(bytes).map_err(|why| unreadable(why.to_owned()))?;
        if frame.memory() > MAX_IMAGE_BYTES {
            return Err(too_large(frame.width.into(), frame.height.into()));
        }
    }
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_IMAGE_EDGE);
    limits.max_image_height = Some(MAX_IMAGE_EDGE);
    limits.max_alloc = Some(MAX_IMAGE_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| refused(&e))?;
    if decoder.total_bytes() > MAX_IMAGE_BYTES {
        let (width, height) = decoder.dimensions();
        return Err(too_large(width, height));
    }
    let picture = image::DynamicImage::from_decoder(decoder).map_err(|e| refused(&e))?;
    Ok(picture.into_rgb8())
}

fn too_large(width: u32, height: u32) -> WorkerError {
    WorkerError::bad(
        DECOMPRESSION_BOMB,
        format!(
            "decoding a picture of {width}x{height} pixels takes more than {MAX_IMAGE_BYTES} bytes: make it smaller"
        ),
    )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::png;
    use crate::pipeline::jpeg::tests::{cmyk, jpeg, progressive, resized};
    use crate::pipeline::{Raw, testing::preparer};

    fn near(picture: &image::RgbImage, x: u32, y: u32, want: [u8; 3]) {
        let got = picture.get_pixel(x, y).0;
        let far = got.iter().zip(&want).map(|(g, w)| g.abs_diff(*w)).max();
        assert!(far <= Some(8), "{got:?} is not {want:?}");
    }

    #[test]
    fn jpeg_files_of_all_kinds_become_rgb() {
        let baseline = decode(&jpeg(16, 16, |x, y| [10 * x as u8, 10 * y as u8, 120])).unwrap();
        near(&baseline, 3, 12, [30, 120, 120]);
        let grey = decode(&progressive()).unwrap();
        near(&grey, 0, 0, [40; 3]);
        near(&grey, 15, 9, [190; 3]);
        near(&decode(&cmyk()).unwrap(), 7, 7, [200, 40, 40]);
    }

    #[test]
    fn jpeg_files_that_are_cut_or_spoiled_are_refused() {
        for whole in [
            jpeg(64, 64, |x, y| [x as u8, y as u8, (x * y) as u8]),
            progressive(),
            cmyk(),
        ] {
            for part in 1..8 {
                let end = whole.len() * part / 8;
                assert_eq!(decode(&whole[..end]).unwrap_err().reason(), INVALID_SAMPLE, "{part}/8");
            }
            // Whatever is in it: an answer or an error, no panic.
            for at in 2..whole.len() {
                let mut spoiled = whole.clone();
                spoiled[at] ^= 0xff;
                let _ = decode(&spoiled);
            }
        }
        let error = decode(&progressive()[..200]).unwrap_err();
        assert!(error.message().contains("cut short"), "{error}");
    }

    #[test]
    fn sizes_that_jpeg_files_claim_are_bounded_before_memory_is_taken() {
        for (bytes, width, height) in [
            (jpeg(16, 16, |_, _| [0; 3]), 65_500, 65_500),
            (jpeg(16, 16, |_, _| [0; 3]), MAX_IMAGE_EDGE as u16 + 1, 1),
            (progressive(), 65_500, 65_500),
            // The pixels alone would fit, the coefficients of the scans do not.
            (progressive(), MAX_IMAGE_EDGE as u16, MAX_IMAGE_EDGE as u16),
            (cmyk(), 9000, 9000),
        ] {
            let error = decode(&resized(bytes, width, height)).unwrap_err();
            assert_eq!(error.reason(), DECOMPRESSION_BOMB, "{width}x{height}: {error}");
        }
    }

    #[test]
    fn pictures_of_the_right_size_are_not_touched() {
        let bytes = png(32, 32, |x, y| [x as u8, y as u8, 9]);
        let Prepared::Pixels { data, .. } = preparer("{image: {size: 32}}").prepare(Raw::Image(&bytes)).unwrap() else {
            panic!()
        };
        assert_eq!(&data[..6], &[0, 0, 9, 1, 0, 9]);
    }
}
