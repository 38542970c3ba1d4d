//! Augmentation: small changes of training rows that do not change their label. Each is a pure function of a row and of
//! the random numbers of its place (seed, step or copy, row), so it is the same on any number of threads and after a resume.
//! Images are channel-major, \[channels, height, width\], with values from 0 to 1 before they are standardised; sensor
//! windows are time-major, \[steps, channels\], in the unit of the sensor.

use crate::philox::{Place, Purpose, Stream};

/// Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// What may happen to an image. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ImageRule {
    /// Whether half of the images are mirrored left to right.
    pub flip: bool,
    /// Pixels of zeros around the image, out of which a window of the old size is cut.
    pub crop: usize,
    /// Brightness: all values times a factor from 1 − b to 1 + b; from 0 to 1.
    pub brightness: f64,
    /// Contrast: distance to the image's mean brightness times a factor from 1 − c to 1 + c; from 0 to 1.
    pub contrast: f64,
    /// Saturation: distance of each value to its pixel's brightness times a factor from 1 − s to 1 + s; from 0 to 1. Images
    /// of one channel have none.
    pub saturation: f64,
}

/// What may happen to a sensor window. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SensorRule {
    /// Standard deviation of noise on each value, as a share of its channel's standard deviation in the window.
    pub jitter: f64,
    /// Each channel times a factor from 1 − s to 1 + s.
    pub scale: f64,
    /// The window moves by up to this many steps to either side; the end that is laid open repeats the last value.
    pub shift: usize,
}

/// The random numbers of one row in one step or copy.
pub fn stream(seed: u64, step: u32, row: u32) -> Stream {
    Stream::new(
        seed,
        Place {
            step,
            sample: row,
            ..Place::of(Purpose::Augment)
        },
    )
}

/// Changes an image of `shape` \[channels, height, width\] in place. An image that isn't as long as its shape says stays.
pub fn image(rule: &ImageRule, shape: [usize; 3], pixels: &mut [f32], random: &mut Stream) {
    let [channels, height, width] = shape;
    if pixels.is_empty() || channels * height * width != pixels.len() {
        return;
    }
    if rule.flip && random.chance(0.5) {
        pixels.chunks_mut(width).for_each(<[f32]>::reverse);
    }
    if rule.crop > 0 {
        let mut place = || random.below(2 * rule.crop as u32 + 1) as usize;
        let (top, left) = (place(), place());
        for plane in pixels.chunks_mut(height * width) {
            cut(plane, width, rule.crop, top, left);
        }
    }
    colour(rule, channels, pixels, random);
}

/// Cuts a window of the plane's own size out of the plane with `border` zeros around it, `top` and `left` from its corner.
fn cut(plane: &mut [f32], width: usize, border: usize, top: usize, left: usize) {
    let old = plane.to_vec();
    let height = old.len() / width;
    let inside = |at: usize, end: usize| at.checked_sub(border).filter(|i| *i < end);
    for (y, row) in plane.chunks_mut(width).enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            *value = match (inside(y + top, height), inside(x + left, width)) {
                (Some(y), Some(x)) => old[y * width + x],
                _ => 0.0,
            };
        }
    }
}

fn colour(rule: &ImageRule, channels: usize, pixels: &mut [f32], random: &mut Stream) {
    let mut factor = |spread: f64| random.within(1.0 - spread, 1.0 + spread) as f32;
    let (brightness, contrast, saturation) = (factor(rule.brightness), factor(rule.contrast), factor(rule.saturation));
    let clip = |v: f32| v.clamp(0.0, 1.0);
    if rule.brightness > 0.0 {
        for v in &mut *pixels {
            *v = clip(*v * brightness);
        }
    }
    if rule.contrast > 0.0 {
        let grey = luma(channels, pixels);
        let mean = (grey.iter().map(|v| f64::from(*v)).sum::<f64>() / grey.len() as f64) as f32;
        for v in &mut *pixels {
            *v = clip(mean + (*v - mean) * contrast);
        }
    }
    if rule.saturation > 0.0 && channels == 3 {
        let grey = luma(channels, pixels);
        for plane in pixels.chunks_mut(grey.len()) {
            for (v, grey) in plane.iter_mut().zip(&grey) {
                *v = clip(grey + (*v - grey) * saturation);
            }
        }
    }
}

/// Brightness of each pixel: the mean of its channels, weighted where they are red, green and blue.
fn luma(channels: usize, pixels: &[f32]) -> Vec<f32> {
    let mut grey = vec![0.0; pixels.len() / channels];
    for (c, plane) in pixels.chunks(grey.len()).enumerate() {
        let weight = if channels == 3 { LUMA[c] } else { 1.0 / channels as f32 };
        for (g, v) in grey.iter_mut().zip(plane) {
            *g += weight * v;
        }
    }
    grey
}

/// Changes a window of `channels` values a time step in place. A window that doesn't hold whole steps stays.
pub fn sensors(rule: &SensorRule, channels: usize, values: &mut [f32], random: &mut Stream) {
    if values.is_empty() || channels == 0 || !values.len().is_multiple_of(channels) {
        return;
    }
    let steps = values.len() / channels;
    if rule.shift > 0 {
        let to = random.below(2 * rule.shift as u32 + 1) as usize;
        let old = values.to_vec();
        for (t, step) in values.chunks_mut(channels).enumerate() {
            let from = (t + to).saturating_sub(rule.shift).min(steps - 1);
            step.copy_from_slice(&old[from * channels..][..channels]);
        }
    }
    if rule.scale > 0.0 {
        let factors: Vec<f32> = (0..channels)
            .map(|_| random.within(1.0 - rule.scale, 1.0 + rule.scale) as f32)
            .collect();
        for step in values.chunks_mut(channels) {
            for (v, factor) in step.iter_mut().zip(&factors) {
                *v *= factor;
            }
        }
    }
    if rule.jitter > 0.0 {
        let spread: Vec<f64> = (0..channels)
            .map(|c| rule.jitter * deviation(values.iter().skip(c).step_by(channels)))
            .collect();
        for step in values.chunks_mut(channels) {
            for (v, spread) in step.iter_mut().zip(&spread) {
                *v += (spread * random.normal()) as f32;
            }
        }
    }
}

/// Standard deviation, by all n values.
fn deviation<'a>(values: impl Iterator<Item = &'a f32> + Clone) -> f64 {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().map(|v| f64::from(*v)).sum::<f64>() / n;
    libm::sqrt(values.map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seeds(n: u32) -> impl Iterator<Item = Stream> {
        (0..n).map(|row| stream(1, 0, row))
    }

    fn equal(a: &[f32], b: &[f32]) -> bool {
        crate::params::same_bits(a, b)
    }

    fn near(a: f32, b: f32) -> bool {
        (a - b).abs() < 1e-5
    }

    #[test]
    fn half_of_the_images_are_mirrored() {
        let rule = ImageRule {
            flip: true,
            ..ImageRule::default()
        };
        let old = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
        let mut mirrored = 0;
        for mut random in seeds(1000) {
            let mut pixels = old;
            image(&rule, [1, 2, 3], &mut pixels, &mut random);
            if equal(&pixels, &[0.3, 0.2, 0.1, 0.6, 0.5, 0.4]) {
                mirrored += 1;
            } else {
                assert!(equal(&pixels, &old));
            }
        }
        assert!((400..600).contains(&mirrored), "{mirrored}");
    }

    #[test]
    fn a_crop_moves_all_channels_alike_and_fills_with_zeros() {
        let mut plane = [1.0, 2.0, 3.0, 4.0];
        cut(&mut plane, 2, 1, 2, 1);
        assert!(equal(&plane, &[3.0, 4.0, 0.0, 0.0]));
        cut(&mut plane, 2, 1, 1, 0);
        assert!(equal(&plane, &[0.0, 3.0, 0.0, 0.0]));
        let rule = ImageRule {
            crop: 1,
            ..ImageRule::default()
        };
        // One bright pixel in the middle of 3 x 3 lands on each of the 9 places, in both channels.
        let mut places = std::collections::BTreeSet::new();
        for mut random in seeds(300) {
            let mut pixels = [0.0; 18];
            (pixels[4], pixels[13]) = (1.0, 0.5);
            image(&rule, [2, 3, 3], &mut pixels, &mut random);
            let at = pixels.iter().position(|v| *v > 0.9).unwrap();
            assert!(near(pixels[at + 9], 0.5));
            places.insert(at);
        }
        assert_eq!(places.len(), 9);
    }

    #[test]
    fn colours() {
        let old = [0.2, 0.4, 0.4, 0.4, 0.6, 0.4];
        let run = |rule: ImageRule, mut random: Stream| {
            let mut pixels = old;
            image(&rule, [3, 1, 2], &mut pixels, &mut random);
            pixels
        };
        let mut changed = 0;
        for random in seeds(50) {
            let brighter = run(
                ImageRule {
                    brightness: 0.5,
                    ..ImageRule::default()
                },
                random.clone(),
            );
            let factor = brighter[0] / old[0];
            assert!((0.5..1.5).contains(&factor));
            assert!(brighter.iter().zip(old).all(|(new, old)| near(*new, old * factor)));
            // Saturation moves the colourful pixel and leaves the grey one; brightness stays.
            let saturated = run(
                ImageRule {
                    saturation: 0.5,
                    ..ImageRule::default()
                },
                random.clone(),
            );
            assert!([1, 3, 5].iter().all(|i| near(saturated[*i], 0.4)));
            assert!(near(luma(3, &saturated)[0], luma(3, &old)[0]));
            // Contrast keeps the mean brightness.
            let contrasted = run(
                ImageRule {
                    contrast: 0.5,
                    ..ImageRule::default()
                },
                random,
            );
            let mean = |p: &[f32]| luma(3, p).iter().sum::<f32>() / 2.0;
            assert!(near(mean(&contrasted), mean(&old)));
            changed += u32::from(!near(saturated[0], old[0]) && !near(contrasted[0], old[0]));
        }
        assert!(changed > 45);
    }

    #[test]
    fn sensor_windows() {
        let old: Vec<f32> = (0..10).flat_map(|t| [t as f32, 100.0 - t as f32]).collect();
        let run = |rule: SensorRule, mut random: Stream| {
            let mut values = old.clone();
            sensors(&rule, 2, &mut values, &mut random);
            values
        };
        let mut shifts = std::collections::BTreeSet::new();
        for random in seeds(100) {
            let shift = SensorRule {
                shift: 2,
                ..SensorRule::default()
            };
            let moved = run(shift, random.clone());
            let to = moved[10] as usize;
            shifts.insert(to);
            for (t, step) in moved.chunks(2).enumerate() {
                let from = (t + to).saturating_sub(5).min(9);
                assert!(equal(step, &old[2 * from..2 * from + 2]));
            }
            let scale = SensorRule {
                scale: 0.1,
                ..SensorRule::default()
            };
            let scaled = run(scale, random);
            let factors = [scaled[2] / old[2], scaled[3] / old[3]];
            assert!(!near(factors[0], factors[1]), "each channel has its own");
            assert!(factors.iter().all(|f| (0.9..1.1).contains(f)));
            for (i, v) in scaled.iter().enumerate() {
                assert!((v - old[i] * factors[i % 2]).abs() < 1e-3);
            }
        }
        assert_eq!(shifts.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    }

    /// Noise is a share of each channel's own spread: sqrt(8.25) of ten numbers in a row.
    #[test]
    fn jitter_has_its_deviation() {
        let rule = SensorRule {
            jitter: 0.1,
            ..SensorRule::default()
        };
        let old: Vec<f32> = (0..10).flat_map(|t| [t as f32, 100.0 * t as f32]).collect();
        let (mut small, mut large) = (0.0, 0.0);
        for mut random in seeds(1000) {
            let mut values = old.clone();
            sensors(&rule, 2, &mut values, &mut random);
            for (new, old) in values.chunks(2).zip(old.chunks(2)) {
                small += f64::from(new[0] - old[0]).powi(2);
                large += f64::from(new[1] - old[1]).powi(2);
            }
        }
        let want = 0.01 * 8.25;
        assert!((small / 1e4 / want - 1.0).abs() < 0.08, "{small}");
        assert!((large / 1e8 / want - 1.0).abs() < 0.08, "{large}");
    }

    proptest! {
        #[test]
        fn any_rule_on_any_shape(
            shape in [0_usize..5, 0_usize..5, 0_usize..5],
            len in 0_usize..30,
            crop in 0_usize..9,
            spread in 0.0..=1.0,
            row: u32,
        ) {
            let rule = ImageRule { flip: true, crop, brightness: spread, contrast: spread, saturation: spread };
            let whole = shape.iter().product();
            for len in [len, whole] {
                let mut pixels: Vec<f32> = (0..len).map(|i| i as f32 / len as f32).collect();
                let old = pixels.clone();
                image(&rule, shape, &mut pixels, &mut stream(2, 3, row));
                prop_assert!(pixels.iter().all(|v| (0.0..=1.0).contains(v)));
                prop_assert!(len == whole || pixels == old);
                let mut again = old.clone();
                image(&rule, shape, &mut again, &mut stream(2, 3, row));
                prop_assert_eq!(&pixels, &again);
                image(&ImageRule::default(), shape, &mut again, &mut stream(2, 3, row));
                prop_assert_eq!(&pixels, &again, "the default rule changes nothing");
                let rule = SensorRule { jitter: spread, scale: spread, shift: crop };
                let mut values = old.clone();
                sensors(&rule, shape[0], &mut values, &mut stream(2, 3, row));
                prop_assert!(values.iter().all(|v| v.is_finite()));
            }
        }
    }
}
