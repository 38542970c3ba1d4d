//! Variants of training rows: a prepared sample in, a changed one out, drawn from seed, place and row alone.

use crate::config::{AugmentRule, Variants};
use crate::pipeline::Prepared;
use fleetune_gradient::augment;

/// The variant of row `row` in place `place`: the number of a copy, or that of a step.
#[must_use]
pub fn vary(rule: &AugmentRule, seed: u64, place: u32, row: u32, mut prepared: Prepared) -> Prepared {
    let mut random = augment::stream(seed, place, row);
    match (&rule.variants, &mut prepared) {
        (Variants::Image(rule), Prepared::Pixels { height, width, data }) => {
            let shape = [3, *height as usize, *width as usize];
            let mut planes = to_planes(data);
            augment::image(rule, shape, &mut planes, &mut random);
            from_planes(&planes, data);
        }
        (
            Variants::Sensor(rule),
            Prepared::Window {
                channels,
                samples,
                data,
            },
        ) => {
            let (channels, samples) = (*channels as usize, *samples as usize);
            let mut steps = transposed(data, channels, samples);
            augment::sensors(rule, channels, &mut steps, &mut random);
            *data = transposed(&steps, samples, channels);
        }
        // A rule of another input is refused with the job.
        _ => {}
    }
    prepared
}

/// Rows of RGB bytes as planes of values from 0 to 1.
fn to_planes(data: &[u8]) -> Vec<f32> {
    (0..3)
        .flat_map(|c| data.iter().skip(c).step_by(3).map(|v| f32::from(*v) / 255.0))
        .collect()
}

fn from_planes(planes: &[f32], data: &mut [u8]) {
    let size = planes.len() / 3;
    for (i, pixel) in data.chunks_mut(3).enumerate() {
        for (c, value) in pixel.iter_mut().enumerate() {
            *value = (planes[c * size + i] * 255.0).round() as u8;
        }
    }
}

/// A matrix of `rows` rows, transposed.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|c| (0..rows).map(move |r| values[r * columns + c]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetune_gradient::augment::{ImageRule, SensorRule};

    fn rule(variants: Variants) -> AugmentRule {
        AugmentRule {
            copies: Some(1),
            variants,
        }
    }

    #[test]
    fn a_picture_stays_or_is_mirrored() {
        let rule = rule(Variants::Image(ImageRule {
            flip: true,
            ..ImageRule::default()
        }));
        let data: Vec<u8> = (0..12).collect();
        let picture = Prepared::pixels(2, 2, data).unwrap();
        let mirrored = Prepared::pixels(2, 2, vec![3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]).unwrap();
        let seen: Vec<Prepared> = (0..20).map(|row| vary(&rule, 1, 1, row, picture.clone())).collect();
        assert!(seen.contains(&picture) && seen.contains(&mirrored));
        assert!(seen.iter().all(|p| *p == picture || *p == mirrored));
        assert_eq!(
            vary(&rule, 1, 1, 7, picture.clone()),
            seen[7],
            "the same place, the same variant"
        );
    }

    #[test]
    fn a_window_moves_in_time_and_all_channels_alike() {
        let rule = rule(Variants::Sensor(SensorRule {
            shift: 1,
            ..SensorRule::default()
        }));
        let window = Prepared::window(2, 3, vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0]).unwrap();
        let moved = Prepared::window(2, 3, vec![2.0, 3.0, 3.0, 20.0, 30.0, 30.0]).unwrap();
        let seen: Vec<Prepared> = (0..30).map(|row| vary(&rule, 1, 0, row, window.clone())).collect();
        assert!(seen.contains(&window) && seen.contains(&moved), "{seen:?}");
    }
}
