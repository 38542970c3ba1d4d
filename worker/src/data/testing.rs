//! Small data sets for tests.

use image::{ImageFormat, Rgb, RgbImage};
use std::io::Cursor;

/// A tar of files.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A PNG whose pixels are `at(x, y)`.
pub fn png(width: u32, height: u32, at: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb(at(x, y)));
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Pictures of two classes in folders: reddish and bluish, no two alike.
pub fn pictures(per_class: u32) -> Vec<(String, Vec<u8>)> {
    (0..per_class)
        .flat_map(|i| {
            let noise = move |x: u32, y: u32| ((x * 31 + y * 17 + i * 7 + x * y * i) % 61) as u8;
            [
                (
                    format!("red/{i}.png"),
                    png(12, 10, |x, y| [180 + noise(x, y), noise(y, x), 40]),
                ),
                (
                    format!("blue/{i}.png"),
                    png(12, 10, |x, y| [40, noise(x, y), 180 + noise(y, x)]),
                ),
            ]
        })
        .collect()
}

/// A job of these sections, with a base model of this hash.
pub fn job(task: &str, input: &str, dataset: &str, sha256: &str, more: &str) -> crate::config::Job {
    crate::config::Job::parse(&job_text(task, input, dataset, sha256, more)).unwrap()
}

/// The same as text.
pub fn job_text(task: &str, input: &str, dataset: &str, sha256: &str, more: &str) -> String {
    format!(
        "apiVersion: fleetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {{name: j, namespace: shop}}\nspec:\n  \
         modelName: m\n  task: {task}\n  baseModel: {{uri: 'file:///model.onnx', sha256: '{sha256}'}}\n  \
         input: {input}\n  dataset: {dataset}\n  output: {{repository: 'registry:5000/m'}}\n{more}"
    )
}

/// The checksum of a PNG chunk.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| {
            if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 }
        })
    })
}
