//! Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A
//! number is a function of the seed and of the place where it is used (purpose and layer, step, sample, index), never of
//! what was drawn before. So it is the same on any number of threads, in any order, and after a resume. Pure.
//!
//! Logarithm and cosine come from the `libm` crate, for the C library's differ from machine to machine in the last bit.

/// The two multipliers of a round.
const MULTIPLY: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What is added to the key after each round: the golden ratio and √3 − 1.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Rounds of the variant that is named 10.
const ROUNDS: usize = 10;
/// Bits of the first counter word that hold the layer; the rest holds the purpose.
const LAYER_BITS: u32 = 24;

/// Philox4x32-10: four words out of a counter and a key.
pub const fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    let mut round = 0;
    while round < ROUNDS {
        let a = MULTIPLY[0] as u64 * c[0] as u64;
        let b = MULTIPLY[1] as u64 * c[2] as u64;
        c = [
            (b >> 32) as u32 ^ c[1] ^ k[0],
            b as u32,
            (a >> 32) as u32 ^ c[3] ^ k[1],
            a as u32,
        ];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        round += 1;
    }
    c
}

/// What numbers are drawn for: two purposes never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Initial weights.
    Init = 1,
    /// The order of the rows in an epoch.
    Order = 2,
    /// Dropout masks.
    Dropout = 3,
    /// Augmentation.
    Augment = 4,
    /// Made-up data of tests and benchmarks.
    Data = 5,
}

/// Where numbers are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What for.
    pub purpose: Purpose,
    /// Number of the layer or tensor, below 2^24.
    pub layer: u32,
    /// Number of the step or epoch.
    pub step: u32,
    /// Number of the row in the data set.
    pub sample: u32,
}

impl Place {
    /// A place that is the same for all layers, steps and samples.
    pub const fn of(purpose: Purpose) -> Self {
        Self {
            purpose,
            layer: 0,
            step: 0,
            sample: 0,
        }
    }
}

/// The numbers of one place, 2^34 of them, in order.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Stream {
    /// The numbers of `place` under `seed`.
    pub const fn new(seed: u64, place: Place) -> Self {
        let first = (place.purpose as u32) << LAYER_BITS | (place.layer & ((1 << LAYER_BITS) - 1));
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [first, place.step, place.sample, 0],
            block: [0; 4],
            used: 4,
        }
    }

    /// 32 random bits.
    pub fn bits(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox4x32(self.counter, self.key);
            self.counter[3] = self.counter[3].wrapping_add(1);
            self.used = 0;
        }
        let word = self.block[self.used];
        self.used += 1;
        word
    }

    /// A number in \[0, 1) with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        let high = u64::from(self.bits() >> 5);
        let low = u64::from(self.bits() >> 6);
        (high << 26 | low) as f64 / (1_u64 << 53) as f64
    }

    /// A number in \[low, high).
    pub fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// A number of the standard normal distribution (Box and Muller 1958, its cosine half).
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
        radius * libm::cos(core::f64::consts::TAU * self.uniform())
    }

    /// A whole number in 0..n, each as likely as the others (Lemire 2019); 0 for n = 0.
    pub fn below(&mut self, n: u32) -> u32 {
        // Products below 2^32 mod n in their low word would make some numbers more likely.
        let refused = n.wrapping_neg().checked_rem(n).unwrap_or(0);
        loop {
            let product = u64::from(self.bits()) * u64::from(n);
            if product as u32 >= refused {
                return (product >> 32) as u32;
            }
        }
    }

    /// True with probability `p`, to 2^-32.
    pub fn chance(&mut self, p: f64) -> bool {
        f64::from(self.bits()) < p * (u64::from(u32::MAX) + 1) as f64
    }
}

/// The order of `rows` rows in an epoch (Fisher and Yates).
pub fn permutation(seed: u64, epoch: u32, rows: u32) -> Vec<u32> {
    let mut random = Stream::new(
        seed,
        Place {
            step: epoch,
            ..Place::of(Purpose::Order)
        },
    );
    let mut order: Vec<u32> = (0..rows).collect();
    for i in (1..rows).rev() {
        order.swap(i as usize, random.below(i + 1) as usize);
    }
    order
}

/// Fills one sample's dropout mask: 0 with probability `rate`, else 1 / (1 − rate), so that the mean stays (Srivastava et
/// al. 2014, in the inverted form). `rate` is from 0 to below 1.
pub fn dropout_mask(seed: u64, layer: u32, step: u32, sample: u32, rate: f64, mask: &mut [f32]) {
    let place = Place {
        purpose: Purpose::Dropout,
        layer,
        step,
        sample,
    };
    let mut random = Stream::new(seed, place);
    let kept = (1.0 / (1.0 - rate)) as f32;
    for value in mask {
        *value = if random.chance(rate) { 0.0 } else { kept };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The vectors that Random123 publishes with its source (`kat_vectors`, lines "philox4x32 10").
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        for (counter, key, want) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (
                [ones; 4],
                [ones; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, key), want);
        }
    }

    fn stream(seed: u64) -> Stream {
        Stream::new(seed, Place::of(Purpose::Data))
    }

    #[test]
    fn a_stream_is_the_blocks_of_its_place_in_order() {
        let place = Place {
            purpose: Purpose::Augment,
            layer: 7,
            step: 8,
            sample: 9,
        };
        let mut s = Stream::new(0x0000_0002_0000_0001, place);
        let drawn: Vec<u32> = (0..8).map(|_| s.bits()).collect();
        assert_eq!(drawn[..4], philox4x32([4 << 24 | 7, 8, 9, 0], [1, 2]));
        assert_eq!(drawn[4..], philox4x32([4 << 24 | 7, 8, 9, 1], [1, 2]));
    }

    /// Moments of 200,000 draws lie within 5 standard errors of those of the distributions.
    #[test]
    fn moments() {
        let n = 200_000;
        let error = |variance: f64| 5.0 * (variance / f64::from(n)).sqrt();
        let mut s = stream(3);
        let u: Vec<f64> = (0..n).map(|_| s.uniform()).collect();
        assert!(u.iter().all(|v| (0.0..1.0).contains(v)));
        let mean = |v: &mut dyn Iterator<Item = f64>| v.sum::<f64>() / f64::from(n);
        assert!((mean(&mut u.iter().copied()) - 0.5).abs() < error(1.0 / 12.0));
        let g: Vec<f64> = (0..n).map(|_| s.normal()).collect();
        assert!(mean(&mut g.iter().copied()).abs() < error(1.0));
        assert!((mean(&mut g.iter().map(|v| v * v)) - 1.0).abs() < error(2.0));
        assert!((mean(&mut g.iter().map(|v| v.powi(4))) - 3.0).abs() < error(96.0));
    }

    #[test]
    fn a_mask_drops_its_rate_and_keeps_the_mean() {
        let (n, rate) = (100_000_usize, 0.3);
        let mut mask = vec![0.0; n];
        dropout_mask(5, 1, 2, 3, rate, &mut mask);
        let dropped = mask.iter().filter(|v| **v == 0.0).count() as f64 / n as f64;
        assert!(
            (dropped - rate).abs() < 5.0 * (rate * (1.0 - rate) / n as f64).sqrt(),
            "{dropped}"
        );
        let kept = (1.0 / 0.7_f64) as f32;
        assert!(mask.iter().all(|v| *v == 0.0 || v.to_bits() == kept.to_bits()));
        let mut other = vec![0.0; n];
        dropout_mask(5, 1, 2, 4, rate, &mut other);
        assert_ne!(mask, other, "another sample has a mask of its own");
        dropout_mask(5, 1, 2, 3, 0.0, &mut mask);
        assert!(mask.iter().all(|v| v.to_bits() == 1.0_f32.to_bits()));
    }

    proptest! {
        #[test]
        fn an_epoch_has_every_row_once(seed: u64, epoch: u32, rows in 0_u32..500) {
            let mut order = permutation(seed, epoch, rows);
            if rows > 50 {
                prop_assert_ne!(&order, &permutation(seed, epoch.wrapping_add(1), rows));
            }
            order.sort_unstable();
            prop_assert_eq!(order, (0..rows).collect::<Vec<_>>());
        }

        #[test]
        fn below_stays_below(seed: u64, n: u32) {
            let drawn = stream(seed).below(n);
            prop_assert!(drawn < n || n == 0 && drawn == 0);
        }
    }

    /// Each of 6 numbers comes a sixth of the time: chi-squared with 5 degrees of freedom is below 25.7 but once in 10^4.
    #[test]
    fn below_is_fair() {
        let mut counts = [0_u32; 6];
        let mut s = stream(11);
        for _ in 0..60_000 {
            counts[s.below(6) as usize] += 1;
        }
        let chi: f64 = counts.iter().map(|c| (f64::from(*c) - 1e4).powi(2) / 1e4).sum();
        assert!(chi < 25.7, "{counts:?}");
    }
}
