//! What a JPEG file says of itself, read before it is decoded. The decoder is lenient and paints what a truncated file
//! lacks in grey, and for a progressive file it takes more memory than the pixels need; both are found here first.

/// The frame of a JPEG file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Width in pixels.
    pub(super) width: u16,
    /// Height in pixels.
    pub(super) height: u16,
    /// Components of a pixel.
    pub(super) components: u8,
    /// Whether the file comes in several scans, whose coefficients are all kept until the last.
    pub(super) progressive: bool,
}

impl Frame {
    /// Bytes that decoding takes: three a pixel for the result, and for a progressive file a 16-bit coefficient for each
    /// component of each pixel.
    pub(super) fn memory(self) -> u64 {
        let pixels = u64::from(self.width) * u64::from(self.height);
        let coefficients = if self.progressive {
            2 * u64::from(self.components)
        } else {
            0
        };
        pixels * (3 + coefficients)
    }
}

/// Most scans of a file. Encoders write about ten; each costs time over the whole picture, however few its bytes.
const MAX_SCANS: usize = 100;
const START_OF_SCAN: u8 = 0xda;
const END_OF_IMAGE: u8 = 0xd9;

/// Walks the markers of a file from its start to its end (ITU-T T.81, annex B). The error says what is wrong.
pub(super) fn frame(bytes: &[u8]) -> Result<Frame, &'static str> {
    const SHORT: &str = "the JPEG file is cut short: copy it again";
    let mut frame = None;
    let mut scans = 0;
    let mut at = 2;
    loop {
        // What is no marker is a scan's data, or padding.
        let code = loop {
            let pair = bytes.get(at..at + 2).ok_or(SHORT)?;
            match (pair[0], pair[1]) {
                // A stuffed byte of data, and restarts within a scan.
                (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
                (0xff, code @ 0x02..=0xfe) => break code,
                _ => at += 1,
            }
        };
        if code == END_OF_IMAGE {
            break;
        }
        let length = bytes.get(at + 2..at + 4).ok_or(SHORT)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let body = bytes.get(at + 4..at + 2 + length.max(2)).ok_or(SHORT)?;
        match code {
            START_OF_SCAN if scans == MAX_SCANS => return Err("the JPEG file has more than 100 scans"),
            START_OF_SCAN => scans += 1,
            // Among the codes of frames lie Huffman tables, JPEG extensions and arithmetic conditioning.
            0xc0..=0xcf if !matches!(code, 0xc4 | 0xc8 | 0xcc) => {
                let [_, h1, h0, w1, w0, components, ..] = *body else {
                    return Err("the JPEG file has a broken frame header");
                };
                let next = Frame {
                    width: u16::from_be_bytes([w1, w0]),
                    height: u16::from_be_bytes([h1, h0]),
                    components,
                    progressive: code == 0xc2,
                };
                if frame.replace(next).is_some() {
                    return Err("the JPEG file has more than one frame");
                }
            }
            _ => {}
        }
        at += 2 + length.max(2);
    }
    match frame {
        Some(frame) if scans > 0 && frame.width > 0 && frame.height > 0 => Ok(frame),
        _ => Err("the JPEG file holds no picture"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use base64::Engine as _;
    use image::{ExtendedColorType, Rgb, RgbImage, codecs::jpeg::JpegEncoder};

    /// 16x16, grey from 40 on the left to 190 on the right, progressive; the encoder at hand writes no such files.
    const PROGRESSIVE: &str = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8t\
    MC0oMCUoKSj/wgALCAAQABABAREA/8QAFAABAAAAAAAAAAAAAAAAAAAABv/aAAgBAQAAAAE22Etv/8QAFRABAQAAAAAAAAAAAAAAAAAAAAT/\
    2gAIAQEAAQUCkSJEj//EABQQAQAAAAAAAAAAAAAAAAAAACD/2gAIAQEABj8CH//EABUQAQEAAAAAAAAAAAAAAAAAAABB/9oACAEBAAE/IZSl\
    L//aAAgBAQAAABCv/8QAFBABAAAAAAAAAAAAAAAAAAAAIP/aAAgBAQABPxAKv//Z";
    /// 16x16, all (200, 40, 40), in CMYK as Adobe writes it.
    const CMYK: &str = "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAGBAUGBQQGBgUGBwcGCAoQCgoJCQoUDg8MEBcUGBgXFBYWGh0lHxobIxwWFiAsICMmJykqKRkfLTAt\
    KDAlKCko/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAAHCP/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAOBEMA\
    TQBZAEsAAD8AsCFIU1SAAAA//9k=";

    fn of(text: &str) -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(text).unwrap()
    }

    pub(in crate::pipeline) fn progressive() -> Vec<u8> {
        of(PROGRESSIVE)
    }

    pub(in crate::pipeline) fn cmyk() -> Vec<u8> {
        of(CMYK)
    }

    /// A baseline JPEG whose pixels are about `at(x, y)`.
    pub(in crate::pipeline) fn jpeg(width: u32, height: u32, at: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb(at(x, y)));
        let mut bytes = Vec::new();
        JpegEncoder::new_with_quality(&mut bytes, 95)
            .encode(&picture, width, height, ExtendedColorType::Rgb8)
            .unwrap();
        bytes
    }

    /// The file with another size in its frame header.
    pub(in crate::pipeline) fn resized(mut bytes: Vec<u8>, width: u16, height: u16) -> Vec<u8> {
        let at = bytes
            .windows(2)
            .position(|pair| matches!(pair, [0xff, 0xc0 | 0xc2]))
            .unwrap();
        bytes[at + 5..at + 7].copy_from_slice(&height.to_be_bytes());
        bytes[at + 7..at + 9].copy_from_slice(&width.to_be_bytes());
        bytes
    }

    #[test]
    fn frames_are_read_to_the_end_of_the_file() {
        let baseline = frame(&jpeg(40, 24, |x, y| [x as u8, y as u8, 0])).unwrap();
        assert_eq!((baseline.width, baseline.height, baseline.components), (40, 24, 3));
        assert!(!baseline.progressive);
        assert_eq!(baseline.memory(), 40 * 24 * 3);
        let progressive = frame(&progressive()).unwrap();
        assert!(progressive.progressive);
        assert_eq!(progressive.memory(), 16 * 16 * 5);
        assert_eq!(frame(&cmyk()).unwrap().components, 4);
        let mut followed = cmyk();
        followed.extend(b"what a camera keeps behind its pictures");
        assert!(frame(&followed).is_ok());
    }

    #[test]
    fn no_beginning_of_a_file_is_a_file() {
        for whole in [
            jpeg(40, 24, |x, y| [x as u8 * 6, y as u8 * 10, 99]),
            progressive(),
            cmyk(),
        ] {
            for end in 0..whole.len() {
                assert!(frame(&whole[..end]).is_err(), "{end} of {}", whole.len());
            }
        }
        assert!(frame(&[0xff, 0xd8, 0xff, 0xd9]).is_err(), "no frame");
        let two = {
            let first = resized(cmyk(), 9000, 9000);
            [&first[..first.len() - 2], &cmyk()[2..]].concat()
        };
        assert!(frame(&two).unwrap_err().contains("one frame"));
        let mut scans = cmyk();
        let end = scans.split_off(scans.len() - 2);
        scans.extend([0xff, START_OF_SCAN, 0, 2].repeat(MAX_SCANS));
        scans.extend(end);
        assert!(frame(&scans).unwrap_err().contains("scans"));
        assert!(frame(&resized(cmyk(), 0, 16)).is_err());
    }
}
