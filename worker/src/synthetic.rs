//! The samples of a version's self-test: synthetic, made from the seed, so that no sample of the data set leaves with a
//! version. Of many, those are taken whose answer is neither a toss-up nor saturated: the first would tip over on another
//! machine, the second would look the same with other weights.

use crate::config::Job;
use crate::data::{Content, Row};
use crate::error::{INTERNAL, Result, WorkerError};
use crate::pipeline::Kind;
use crate::selftest;
use crate::version::Version;
use image::{ImageFormat, Rgb, RgbImage};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::collections::BTreeMap;
use std::io::Cursor;

/// Samples that are tried.
const TRIED: usize = 48;
/// Samples that are kept.
const KEPT: usize = 8;
/// Edge of a synthetic picture: not the model's, so that the resize is part of the test.
const EDGE: u32 = 48;
/// Most words of a synthetic text.
const WORDS: f64 = 12.0;
/// Distance of the two largest probabilities that is best: a sample is judged by how near it comes.
const MARGIN: f32 = 0.5;

/// An encoded sample and what the version answers to it.
type Tried = (Vec<u8>, Vec<f32>);

/// Makes the self-test of `version`, which lies in its folder already but for it. `rows` are training rows; of windows
/// only mean and deviation of each channel are used.
pub fn make(job: &Job, version: &Version, rows: &[&Row]) -> Result<Vec<selftest::Made>> {
    let mut random = ChaCha8Rng::seed_from_u64(job.train.seed);
    random.set_stream(u64::MAX);
    let kind = Kind::of(&job.spec.input)?;
    let channels = statistics(job, rows);
    let words = version.preparer().words();
    let mut tried = Vec::with_capacity(TRIED);
    for _ in 0..TRIED {
        let bytes = match kind {
            Kind::Image(_) => picture(&mut random)?,
            Kind::Sensor(sensor) => window(&mut random, &channels, sensor.window as usize),
            Kind::Text(_) => text(&mut random, &words),
        };
        let output = selftest::run_file(version, &bytes)?;
        tried.push((bytes, output));
    }
    let ending = match kind {
        Kind::Image(_) => "png",
        Kind::Sensor(_) => "f32",
        Kind::Text(_) => "txt",
    };
    Ok(choose(tried)
        .into_iter()
        .enumerate()
        .map(|(i, (bytes, output))| (format!("{i}.{ending}"), bytes, output))
        .collect())
}

/// Takes [`KEPT`] samples: by turns from every answered label, best margin first.
fn choose(tried: Vec<Tried>) -> Vec<Tried> {
    let mut by_label: BTreeMap<usize, Vec<Tried>> = BTreeMap::new();
    for one in tried {
        by_label
            .entry(crate::version::argmax(&one.1).unwrap_or(0))
            .or_default()
            .push(one);
    }
    for list in by_label.values_mut() {
        list.sort_by(|a, b| (margin(&a.1) - MARGIN).abs().total_cmp(&(margin(&b.1) - MARGIN).abs()));
        list.reverse();
    }
    let mut kept = Vec::with_capacity(KEPT);
    while kept.len() < KEPT {
        let before = kept.len();
        for list in by_label.values_mut() {
            if kept.len() < KEPT
                && let Some(one) = list.pop()
            {
                kept.push(one);
            }
        }
        if kept.len() == before {
            break;
        }
    }
    kept
}

fn margin(output: &[f32]) -> f32 {
    let mut sorted = output.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    match sorted[..] {
        [first, second, ..] => first - second,
        _ => MARGIN,
    }
}

fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A colour gradient with a few rectangles and a little noise, as PNG.
fn picture(random: &mut ChaCha8Rng) -> Result<Vec<u8>> {
    let mut colour = || [(); 3].map(|()| (unit(random) * 255.0) as u8);
    let (from, to) = (colour(), colour());
    let boxes: Vec<[u8; 3]> = (0..4).map(|_| colour()).collect();
    let places: Vec<[u32; 4]> = (0..4)
        .map(|_| [(); 4].map(|()| (unit(random) * f64::from(EDGE)) as u32))
        .collect();
    let mix = |a: u8, b: u8, t: f64| f64::from(a) * (1.0 - t) + f64::from(b) * t;
    let picture = RgbImage::from_fn(EDGE, EDGE, |x, y| {
        let t = f64::from(x + y) / f64::from(2 * EDGE);
        let inside = places
            .iter()
            .position(|[a, b, c, d]| (*a.min(c)..=*a.max(c)).contains(&x) && (*b.min(d)..=*b.max(d)).contains(&y));
        let noise = unit(random) * 4.0 - 2.0;
        let base = match inside {
            Some(i) => boxes[i].map(f64::from),
            None => [mix(from[0], to[0], t), mix(from[1], to[1], t), mix(from[2], to[2], t)],
        };
        Rgb(base.map(|v| (v + noise).clamp(0.0, 255.0) as u8))
    });
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|e| WorkerError::bad(INTERNAL, format!("writing a PNG: {e}")))?;
    Ok(bytes.into_inner())
}

/// A few words of the tokenizer's own vocabulary: no word of the data set.
fn text(random: &mut ChaCha8Rng, words: &[String]) -> Vec<u8> {
    let count = 1 + (unit(random) * WORDS) as usize;
    let mut chosen = || {
        words
            .get((unit(random) * words.len() as f64) as usize)
            .map_or("text", String::as_str)
    };
    let text: Vec<&str> = (0..count).map(|_| chosen()).collect();
    text.join(" ").into_bytes()
}

/// Mean and deviation of each channel over the rows.
fn statistics(job: &Job, rows: &[&Row]) -> Vec<(f64, f64)> {
    let Some(sensor) = &job.spec.input.sensor else {
        return Vec::new();
    };
    let (channels, samples) = (sensor.channels as usize, sensor.window as usize);
    let mut sums = vec![(0.0, 0.0, 0.0); channels];
    for row in rows {
        if let Content::Window(values) = &row.content {
            for (sum, channel) in sums.iter_mut().zip(values.chunks(samples)) {
                for v in channel {
                    let v = f64::from(*v);
                    *sum = (sum.0 + 1.0, sum.1 + v, sum.2 + v * v);
                }
            }
        }
    }
    sums.iter()
        .map(|(n, sum, squares)| {
            let mean = sum / f64::max(*n, 1.0);
            (mean, (squares / f64::max(*n, 1.0) - mean * mean).max(0.0).sqrt())
        })
        .collect()
}

/// Three waves and a little noise on each channel, at the data's scale, as little-endian f32.
fn window(random: &mut ChaCha8Rng, channels: &[(f64, f64)], samples: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(channels.len() * samples * 4);
    for (mean, deviation) in channels {
        let offset = unit(random) * 2.0 - 1.0;
        let waves: Vec<(f64, f64, f64)> = (0..3)
            .map(|_| {
                (
                    unit(random),
                    1.0 + unit(random) * 20.0,
                    unit(random) * std::f64::consts::TAU,
                )
            })
            .collect();
        for i in 0..samples {
            let t = i as f64 / samples as f64 * std::f64::consts::TAU;
            let wave: f64 = waves
                .iter()
                .map(|(size, speed, phase)| size * (speed * t + phase).sin())
                .sum();
            let noise = unit(random) * 0.2 - 0.1;
            let value = mean + deviation * (offset + wave + noise);
            bytes.extend((value as f32).to_le_bytes());
        }
    }
    bytes
}
