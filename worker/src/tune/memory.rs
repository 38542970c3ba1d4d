//! How much memory a training takes, told before it begins, against what the pod has: how many shards are worked on at
//! once, and whether the frozen part's results are kept.

use crate::config::Job;
use crate::error::{MEMORY_TOO_SMALL, Result, WorkerError};
use crate::node::memory::left;
use crate::selftest::resident_memory;
use fleetune_crds::common::Bytes;
use fleetune_gradient::memory::Estimate;

/// Share of what is left that stays free for what else grows.
const RESERVE: f64 = 0.1;
/// What the allocator wastes, and kernels take for themselves, as a share of what the shards take. Measured with two shards
/// at once: 0.39 for EfficientNet-Lite0 at 224², 0.18 for Fracast.
const WASTE: f64 = 0.4;

/// What a training is made of, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// Of one shard.
    pub step: Estimate,
    /// All trained weights.
    pub weights: u64,
    /// Numbers that the optimizer remembers for each weight.
    pub moments: u64,
    /// All rows at the border, if they can be kept.
    pub rows: Option<u64>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Shards at once.
    pub at_once: usize,
    /// Whether rows are kept.
    pub keep: bool,
    /// Bytes that this takes.
    pub needed: u64,
}

/// Bytes that this job may still take: what is left of the container or machine, and of the limit that the spec names.
pub fn budget(job: &Job) -> u64 {
    let limit = job
        .spec
        .worker
        .resources
        .as_ref()
        .and_then(|r| r.limits.as_ref()?.get("memory"))
        .and_then(|q| q.0.parse::<Bytes>().ok())
        .map(|bytes| bytes.get().saturating_sub(resident_memory()));
    let free = left().unwrap_or(u64::MAX).min(limit.unwrap_or(u64::MAX));
    (free as f64 * (1.0 - RESERVE)) as u64
}

/// Fits `parts` into `budget`: fewer shards at once first, at last no kept rows. No choice changes a result.
pub fn plan(parts: &Parts, budget: u64, threads: usize) -> Result<Plan> {
    // The weights, the best epoch's, the sum of a step's gradients, and the moments. The two plans, with gradient and
    // without, each hold the frozen weights.
    let fixed = parts.weights * (3 + parts.moments) + 2 * parts.step.constants + parts.step.inputs;
    let shard = (parts.step.peak as f64 * (1.0 + WASTE)) as u64;
    let takes = |at_once: usize, rows: u64| fixed + shard * at_once as u64 + rows;
    let least = takes(1, 0);
    if least > budget {
        return Err(WorkerError::bad(
            MEMORY_TOO_SMALL,
            format!(
                "training takes at least {}, and {} are left: raise spec.worker.resources.limits.memory, or lower \
                 spec.train.batchSize, or train less with method Head, LastLayers or Lora",
                shown(least),
                shown(budget)
            ),
        ));
    }
    let at_once = (1..=threads.max(1)).rev().find(|n| takes(*n, 0) <= budget).unwrap_or(1);
    let keep = parts.rows.is_some_and(|rows| takes(at_once, rows) <= budget);
    Ok(Plan {
        at_once,
        keep,
        needed: takes(at_once, if keep { parts.rows.unwrap_or(0) } else { 0 }),
    })
}

fn shown(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(rows: Option<u64>) -> Parts {
        Parts {
            step: Estimate {
                constants: 10,
                inputs: 5,
                peak: 100,
            },
            weights: 20,
            moments: 2,
            rows,
        }
    }

    #[test]
    fn shards_give_way_before_kept_rows_do() {
        // 20 * 5 + 2 * 10 + 5 = 125, and 140 a shard.
        let of = |budget, rows| plan(&parts(rows), budget, 4).unwrap();
        let got = of(10_000, Some(1000));
        assert_eq!((got.at_once, got.keep, got.needed), (4, true, 1685));
        let got = of(700, Some(1000));
        assert_eq!((got.at_once, got.keep, got.needed), (4, false, 685));
        let got = of(410, Some(1));
        assert_eq!((got.at_once, got.keep, got.needed), (2, true, 406));
        let got = of(10_000, None);
        assert_eq!((got.at_once, got.keep), (4, false));
        assert_eq!(of(265, None).at_once, 1);
    }

    #[test]
    fn too_little_memory_is_refused_and_says_what_helps() {
        let refused = plan(&parts(None), 264, 4).unwrap_err();
        assert_eq!(refused.reason(), MEMORY_TOO_SMALL);
        assert!(refused.message().contains("limits.memory"), "{refused}");
    }
}
