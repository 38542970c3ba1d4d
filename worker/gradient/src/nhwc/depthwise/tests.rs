use super::super::gemm::tests::noise;
use super::*;

/// The windows that a convolution has: sizes, strides, uneven padding, channel tails, pictures smaller than a window.
fn cases() -> Vec<(Window, Picture)> {
    let mut cases = Vec::new();
    for (kernel, stride, pads) in [
        (
            [3, 3],
            [1, 1],
            Pads {
                top: 1,
                left: 1,
                bottom: 1,
                right: 1,
            },
        ),
        (
            [3, 3],
            [2, 2],
            Pads {
                top: 0,
                left: 0,
                bottom: 1,
                right: 1,
            },
        ),
        (
            [3, 3],
            [2, 2],
            Pads {
                top: 1,
                left: 1,
                bottom: 1,
                right: 1,
            },
        ),
        (
            [5, 5],
            [1, 1],
            Pads {
                top: 2,
                left: 2,
                bottom: 2,
                right: 2,
            },
        ),
        (
            [5, 5],
            [2, 2],
            Pads {
                top: 1,
                left: 1,
                bottom: 2,
                right: 2,
            },
        ),
        (
            [1, 4],
            [1, 3],
            Pads {
                top: 0,
                left: 3,
                bottom: 0,
                right: 1,
            },
        ),
        (
            [7, 2],
            [3, 1],
            Pads {
                top: 3,
                left: 0,
                bottom: 4,
                right: 0,
            },
        ),
        ([1, 1], [2, 2], Pads::default()),
    ] {
        for (height, width, channels) in [(7, 7, 32), (13, 17, 19), (4, 30, 5), (2, 3, 16)] {
            let window = Window { kernel, stride, pads };
            let picture = Picture {
                height,
                width,
                channels,
            };
            if !window.output(picture).is_empty() {
                cases.push((window, picture));
            }
        }
    }
    cases
}

/// Calls `each` with (output pixel, input pixel, tap) for every pair that a window joins.
pub(in super::super) fn joined(window: &Window, picture: Picture, mut each: impl FnMut(usize, usize, usize)) {
    let out = window.output(picture);
    for oy in 0..out.height {
        for ox in 0..out.width {
            for ky in 0..window.kernel[0] {
                for kx in 0..window.kernel[1] {
                    let y = (oy * window.stride[0] + ky).wrapping_sub(window.pads.top);
                    let x = (ox * window.stride[1] + kx).wrapping_sub(window.pads.left);
                    if y < picture.height && x < picture.width {
                        each(oy * out.width + ox, y * picture.width + x, ky * window.kernel[1] + kx);
                    }
                }
            }
        }
    }
}

fn close(have: &[f32], want: &[f64], what: &str) {
    assert_eq!(have.len(), want.len(), "{what}");
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        assert!((f64::from(*h) - w).abs() <= 2e-5, "{what}: at {i}: {h} is not {w}");
    }
}

#[test]
fn every_kernel_sums_the_windows_of_the_definition() {
    for &isa in Isa::available() {
        for (window, picture) in cases() {
            let what = format!("{isa:?} {window:?} {picture:?}");
            let (out, channels) = (window.output(picture), picture.channels);
            let taps = window.kernel[0] * window.kernel[1];
            let (x, w) = (noise(picture.len(), 1), noise(taps * channels, 2));
            let (bias, residual, gate) = (noise(channels, 3), noise(out.len(), 4), noise(out.len(), 5));
            let packed = pack(channels, taps, |c, t| w[c * taps + t]);
            let mut want = vec![0.0; out.len()];
            joined(&window, picture, |o, i, t| {
                for c in 0..channels {
                    want[o * channels + c] += f64::from(x[i * channels + c]) * f64::from(w[c * taps + t]);
                }
            });
            let mut y = vec![f32::NAN; out.len()];
            forward(isa, &window, (&x, picture), &packed, &mut y, &Finish::NONE);
            close(&y, &want, &what);
            let clip = Clip { low: -0.2, high: 0.7 };
            let finish = Finish {
                bias: Some(&bias),
                residual: Some(&residual),
                clip,
                gate: Some((&gate, clip)),
            };
            forward(isa, &window, (&x, picture), &packed, &mut y, &finish);
            for (i, w) in want.iter_mut().enumerate() {
                *w += f64::from(bias[i % channels]) + f64::from(residual[i]);
                *w = w.clamp(f64::from(clip.low), f64::from(clip.high));
                if !(clip.low < gate[i] && gate[i] < clip.high) {
                    *w = 0.0;
                }
            }
            close(&y, &want, &what);
        }
    }
}

#[test]
fn every_kernel_gives_both_gradients_of_the_definition() {
    for &isa in Isa::available() {
        for (window, picture) in cases() {
            let what = format!("{isa:?} {window:?} {picture:?}");
            let (out, channels) = (window.output(picture), picture.channels);
            let taps = window.kernel[0] * window.kernel[1];
            let (x, w, dy) = (noise(picture.len(), 1), noise(taps * channels, 2), noise(out.len(), 3));
            let packed = pack(channels, taps, |c, t| w[c * taps + t]);
            let (mut dx, mut dw) = (vec![0.0; picture.len()], vec![1.0; taps * channels]);
            joined(&window, picture, |o, i, t| {
                for c in 0..channels {
                    let gradient = f64::from(dy[o * channels + c]);
                    dx[i * channels + c] += gradient * f64::from(w[c * taps + t]);
                    dw[c * taps + t] += gradient * f64::from(x[i * channels + c]);
                }
            });
            let mut have = vec![f32::NAN; picture.len()];
            input_gradient(isa, &window, &dy, &packed, (&mut have, picture), &Finish::NONE);
            close(&have, &dx, &what);
            // Added to what is there.
            let mut have = vec![1.0; packed.len()];
            weight_gradient(isa, &window, (&x, picture), &dy, &mut have);
            let have: Vec<f32> = (0..channels * taps)
                .map(|i| (i / taps, i % taps))
                .map(|(c, t)| have[(c / LANES * taps + t) * LANES + c % LANES])
                .collect();
            close(&have, &dw, &what);
        }
    }
}
