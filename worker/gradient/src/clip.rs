//! The norm of all gradients, and clipping by it. The order of the sums is fixed, whatever the number of threads.

use rayon::prelude::*;

/// Values that one partial sum runs over.
const CHUNK: usize = 1 << 16;
/// Running sums inside a chunk: as many as a vector register holds.
const LANES: usize = 8;
/// Keeps the factor finite for a norm of 0; PyTorch's `clip_grad_norm_` adds the same.
const EPSILON: f64 = 1e-6;

/// Euclidean norm of all values of all tensors together, summed in f64. Not finite if a value isn't.
pub fn global_norm(gradients: &[&[f32]]) -> f64 {
    let sums: Vec<f64> = gradients
        .par_iter()
        .flat_map(|tensor| tensor.par_chunks(CHUNK))
        .map(square_sum)
        .collect();
    libm::sqrt(sums.iter().sum())
}

fn square_sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            let value = f64::from(*value);
            *lane += value * value;
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
}

/// What gradients of norm `norm` are multiplied with so that their norm is at most `limit` (Pascanu et al. 2013):
/// min(1, limit / norm).
pub fn factor(norm: f64, limit: Option<f64>) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + EPSILON)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn by_hand() {
        assert!((global_norm(&[&[3.0], &[0.0, 4.0]]) - 5.0).abs() < 1e-12);
        assert!(global_norm(&[&[1.0, f32::NAN]]).is_nan());
        assert!(global_norm(&[&[f32::INFINITY]]).is_infinite());
        // Squares that f32 can't hold.
        assert!((global_norm(&[&[1e30, 0.0]]) / 1e30 - 1.0).abs() < 1e-6);
        assert!((factor(5.0, Some(1.0)) - 0.2).abs() < 1e-6);
        for unclipped in [factor(5.0, None), factor(0.5, Some(1.0)), factor(0.0, Some(1.0))] {
            assert!((unclipped - 1.0).abs() < 1e-12);
        }
    }

    proptest! {
        #[test]
        fn a_clipped_norm_is_at_most_the_limit(
            values in proptest::collection::vec(-1e3_f32..1e3, 1..300), limit in 1e-3..1e3,
        ) {
            let norm = global_norm(&[&values]);
            let plain: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            prop_assert!((norm - plain.sqrt()).abs() <= 1e-9 * norm.max(1.0));
            prop_assert!(norm * factor(norm, Some(limit)) <= limit * (1.0 + 1e-9));
        }
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let tensor: Vec<f32> = (0..300_000).map(|i| (i as f32).sin()).collect();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| global_norm(&[&tensor, &tensor[..70_000]])).to_bits()
        };
        assert_eq!(on(1), on(2));
        assert_eq!(on(1), on(5));
    }
}
