//! How a batch is cut into shards. That is told by the batch and the model, never by the machine, so that threads and
//! memory change no bit of a result.

/// Most shards of a step.
const MOST: usize = 8;
/// Fewest rows of a shard.
const LEAST_ROWS: usize = 4;
/// How often a shard uses each trained weight, at least. A shard reads all weights and gives a whole gradient; that pays
/// where each of them is used for many places of a picture, or else for many rows.
const LEAST_USE: f64 = 16.0;

/// Rows of a shard of a batch, for a model that uses a trained weight `reuse` times a row, see
/// [`reuse`](fleetune_gradient::Differentiable::reuse).
pub fn rows(batch: usize, reuse: f64) -> usize {
    let paying = (LEAST_USE / reuse).round() as usize;
    batch.div_ceil(MOST).max(LEAST_ROWS.max(paying).min(batch))
}

/// The same before the model is known: the fewest that it may be.
pub fn fewest(batch: usize) -> usize {
    rows(batch, f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dense_net_has_few_shards_and_a_convolution_many() {
        assert_eq!([1, 2, 32, 33, 256].map(|batch| rows(batch, 0.99)), [1, 2, 16, 16, 32]);
        assert_eq!([1, 2, 32, 33, 256].map(|batch| rows(batch, 49.0)), [1, 2, 4, 5, 32]);
        assert_eq!(rows(64, 0.0), 64);
        assert_eq!(fewest(8), 4);
    }
}
