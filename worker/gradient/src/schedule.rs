//! Learning rates as pure functions of the step: a resumed run needs nothing but its position.
//! Cosine is computed by the `libm` crate, so that it is the same on all machines.

/// How the learning rate moves over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Always the peak.
    Constant,
    /// From the peak to `floor` times it, along half a cosine (Loshchilov and Hutter 2017, eq. 5, without restarts):
    /// floor + (1 − floor) (1 + cos(π t / T)) / 2.
    Cosine {
        /// Share of the peak at the end, from 0 to 1.
        floor: f64,
    },
    /// The peak times `factor` to the power of ⌊t / every⌋.
    Step {
        /// Steps between two changes, at least 1.
        every: u64,
        /// What each change multiplies with.
        factor: f64,
    },
    /// Up to the peak and far below the start (Smith and Topin 2019), both along half a cosine: from `start` times the
    /// peak at step 0 to the peak at step `rise` T − 1, then to `end` times the peak at step T − 1.
    OneCycle {
        /// Share of the run that rises, above 0 to below 1.
        rise: f64,
        /// Share of the peak at the start.
        start: f64,
        /// Share of the peak at the end.
        end: f64,
    },
}

/// A learning rate over a run of `total` steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The peak.
    pub learning_rate: f64,
    /// How it moves after the warm-up.
    pub shape: Shape,
    /// Steps that lead to the peak along a line: step t of w has (t + 1) / w of it (Goyal et al. 2017, section 2.2).
    pub warm_up: u64,
    /// Steps of the whole run, the warm-up included.
    pub total: u64,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0. After the last step it stays.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warm_up {
            return self.learning_rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let total = self.total.saturating_sub(self.warm_up).max(1);
        let t = (step - self.warm_up).min(total);
        self.learning_rate * self.shape.share(t, total)
    }
}

impl Shape {
    /// Share of the peak at step `t` of `total`.
    fn share(self, t: u64, total: u64) -> f64 {
        let total = total as f64;
        match self {
            Self::Constant => 1.0,
            Self::Cosine { floor } => between(1.0, floor, t as f64 / total),
            Self::Step { every, factor } => libm::pow(factor, (t / every.max(1)) as f64),
            Self::OneCycle { rise, start, end } => {
                let (t, top, last) = (t as f64, rise * total - 1.0, total - 1.0);
                if t <= top {
                    between(start, 1.0, t / top.max(1.0))
                } else {
                    between(1.0, end, ((t - top) / (last - top).max(1.0)).min(1.0))
                }
            }
        }
    }
}

/// From `a` at x = 0 to `b` at x = 1 along half a cosine.
fn between(a: f64, b: f64, x: f64) -> f64 {
    b + (a - b) * (1.0 + libm::cos(core::f64::consts::PI * x)) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rates(shape: Shape, warm_up: u64, total: u64) -> Vec<f64> {
        let schedule = Schedule {
            learning_rate: 0.1,
            shape,
            warm_up,
            total,
        };
        (0..total).map(|t| schedule.at(t)).collect()
    }

    fn near(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-12, "{got:?} is not {want:?}");
        }
    }

    /// Numbers of PyTorch 2.15: CosineAnnealingLR(T_max=8, eta_min=0.01) and OneCycleLR(max_lr=0.1, total_steps=10,
    /// pct_start=0.3, div_factor=25, final_div_factor=1e4), both from 0.1.
    #[test]
    fn as_pytorch() {
        let cosine = [
            0.1,
            0.096_574_578_963_007_9,
            0.086_819_805_153_394_63,
            0.072_220_754_456_429_05,
            0.055,
            0.037_779_245_543_570_94,
            0.023_180_194_846_605_363,
            0.013_425_421_036_992_097,
        ];
        let one_cycle = [
            0.004,
            0.052,
            0.1,
            0.095_048_463_201_347_38,
            0.081_174_565_394_976_2,
            0.061_126_202_193_628_93,
            0.038_874_197_806_371_07,
            0.018_825_834_605_023_7,
            0.004_951_936_798_652_629,
            4e-7,
        ];
        near(&rates(Shape::Cosine { floor: 0.1 }, 0, 8), &cosine);
        let cycle = Shape::OneCycle {
            rise: 0.3,
            start: 0.04,
            end: 4e-6,
        };
        near(&rates(cycle, 0, 10), &one_cycle);
    }

    #[test]
    fn by_hand() {
        near(&rates(Shape::Constant, 0, 3), &[0.1; 3]);
        let step = Shape::Step { every: 2, factor: 0.5 };
        near(&rates(step, 0, 5), &[0.1, 0.1, 0.05, 0.05, 0.025]);
        near(&rates(Shape::Constant, 4, 6), &[0.025, 0.05, 0.075, 0.1, 0.1, 0.1]);
        // After a warm-up the shape begins anew.
        near(&rates(step, 2, 5), &[0.05, 0.1, 0.1, 0.1, 0.05]);
    }

    fn shapes() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Constant),
            (0.0..=1.0).prop_map(|floor| Shape::Cosine { floor }),
            (0_u64..5, 0.1..1.0).prop_map(|(every, factor)| Shape::Step { every, factor }),
            (0.01..0.99, 0.0..1.0, 0.0..1.0).prop_map(|(rise, start, end)| Shape::OneCycle { rise, start, end }),
        ]
    }

    proptest! {
        #[test]
        fn never_above_the_peak_nor_below_nothing(
            shape in shapes(), warm_up in 0_u64..20, total in 0_u64..50, step in 0_u64..100,
        ) {
            let rate = Schedule { learning_rate: 0.1, shape, warm_up, total }.at(step);
            prop_assert!((0.0..=0.1 + 1e-12).contains(&rate), "{rate}");
        }
    }
}
