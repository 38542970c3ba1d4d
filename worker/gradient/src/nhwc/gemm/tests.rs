use super::*;

/// Values in -1..1 that look random and are always the same.
pub(in super::super) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}

/// The product by its definition, in f64.
fn plain(
    [m, n, k]: [usize; 3],
    a: Strided,
    b: impl Fn(usize, usize) -> f32,
    old: &[f32],
    row: usize,
    epilogue: &Epilogue,
) -> Vec<f32> {
    let mut c = old.to_vec();
    for i in 0..m {
        for j in 0..n {
            let at = i * row + j;
            let mut sum = if epilogue.accumulate { f64::from(old[at]) } else { 0.0 };
            sum += epilogue.bias.map_or(0.0, |b| f64::from(b[j]));
            for t in 0..k {
                sum += f64::from(a.data[i * a.row + t * a.col]) * f64::from(b(t, j));
            }
            sum += epilogue.residual.map_or(0.0, |r| f64::from(r[at]));
            let mut value = (sum as f32).max(epilogue.clip.low).min(epilogue.clip.high);
            if let Some((gate, bounds)) = epilogue.gate
                && !(bounds.low < gate[at] && gate[at] < bounds.high)
            {
                value = 0.0;
            }
            c[at] = value;
        }
    }
    c
}

fn close(have: &[f32], want: &[f32], scale: f32, what: &str) {
    assert_eq!(have.len(), want.len());
    for (i, (h, w)) in have.iter().zip(want).enumerate() {
        assert!((h - w).abs() <= 2e-6 * scale, "{what}: at {i}: {h} is not {w}");
    }
}

#[test]
fn every_kernel_is_the_plain_product_over_odd_sizes_and_tails() {
    let relu6 = Clip { low: 0.0, high: 0.5 };
    for &isa in Isa::available() {
        for (turn, size) in (0..).zip([
            [1, 1, 1],
            [12, 32, 7],
            [13, 33, 16],
            [25, 17, 3],
            [49, 40, 96],
            [5, 15, 0],
            [23, 48, 31],
            [11, 65, 2],
            [100, 24, 144],
            [7, 16, 2049],
            [3, 31, 2500],
        ]) {
            let [m, n, k] = size;
            let row = n + turn % 3;
            let what = format!("{isa:?} {size:?} turn {turn}");
            let scale = (k as f32).sqrt().max(1.0);
            let (x, w) = (noise(m * k + 5, 1), noise(n * k + 1, 2));
            let (bias, other, gate) = (noise(n, 3), noise(m * row, 4), noise(m * row, 5));
            let at = |t: usize, j: usize| w[t * n + j];
            let packed = pack(k, n, at);
            // Rows and columns of A may lie either way round.
            let a = if turn % 2 == 0 {
                Strided {
                    data: &x,
                    row: k,
                    col: 1,
                }
            } else {
                Strided {
                    data: &x,
                    row: 1,
                    col: m,
                }
            };
            for (b, lies) in [(Panels::packed(&packed, k), "packed"), (Panels::rows(&w, n), "rows")] {
                for epilogue in [
                    Epilogue::NONE,
                    Epilogue {
                        bias: Some(&bias),
                        ..Epilogue::NONE
                    },
                    Epilogue {
                        bias: Some(&bias),
                        residual: Some(&other),
                        clip: relu6,
                        ..Epilogue::NONE
                    },
                    Epilogue {
                        accumulate: true,
                        gate: Some((&gate, relu6)),
                        ..Epilogue::NONE
                    },
                ] {
                    let old = noise(m * row, 6);
                    let mut c = old.clone();
                    gemm(isa, size, a, b, (&mut c, row), &epilogue);
                    close(
                        &c,
                        &plain(size, a, at, &old, row, &epilogue),
                        scale,
                        &format!("{what} {lies}"),
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_so_through_a_clip() {
    for &isa in Isa::available() {
        let mut c = [0.0; 20];
        let (a, b) = ([f32::NAN], [1.0; 20]);
        let epilogue = Epilogue {
            clip: Clip { low: 0.0, high: 6.0 },
            ..Epilogue::NONE
        };
        gemm(
            isa,
            [1, 20, 1],
            Strided {
                data: &a,
                row: 1,
                col: 1,
            },
            Panels::rows(&b, 20),
            (&mut c, 20),
            &epilogue,
        );
        assert!(c.iter().all(|v| v.is_nan()), "{isa:?}: {c:?}");
    }
}

#[test]
#[should_panic(expected = "A is too short")]
fn a_matrix_that_is_too_short_is_refused() {
    let mut c = [0.0; 4];
    gemm(
        Isa::Portable,
        [2, 2, 2],
        Strided {
            data: &[1.0; 3],
            row: 2,
            col: 1,
        },
        Panels::rows(&[1.0; 4], 2),
        (&mut c, 2),
        &Epilogue::NONE,
    );
}
