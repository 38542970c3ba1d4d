//! Which part a row belongs to. By hash of seed and key (content or group) a row never moves when data grow; by time
//! the earliest share trains; by column the row says it. Pure.

use super::{Draft, Part};
use crate::config::SplitRule;
use crate::error::{COLUMN_ABSENT, INVALID_SPLIT, Result, WorkerError};
use fleetune_crds::SplitBy;
use sha2::{Digest, Sha256};

/// The part of a key.
pub fn of_key(rule: &SplitRule, key: &[u8]) -> Part {
    let mut hasher = Sha256::new();
    hasher.update(b"fleetune split 1\0");
    hasher.update(rule.seed.to_le_bytes());
    hasher.update(key);
    let hash = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    // 53 bits, so that the share is exact as f64.
    of_share(rule, (u64::from_be_bytes(first) >> 11) as f64 / (1u64 << 53) as f64)
}

/// The part at a share from 0 to below 1.
fn of_share(rule: &SplitRule, share: f64) -> Part {
    if share < rule.train {
        Part::Train
    } else if share < rule.train + rule.validation {
        Part::Validation
    } else {
        Part::Test
    }
}

/// The part that a column's value names.
pub fn of_name(name: &str) -> Option<Part> {
    match name.trim().to_ascii_lowercase().as_str() {
        "train" => Some(Part::Train),
        "validation" | "val" | "valid" | "dev" => Some(Part::Validation),
        "test" => Some(Part::Test),
        _ => None,
    }
}

/// The two times at which validation and test begin.
pub fn times(rule: &SplitRule, mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (share * all.len() as f64).round() as usize;
        all.get(index).copied().unwrap_or(f64::INFINITY)
    };
    (at(rule.train), at(rule.train + rule.validation))
}

/// The part of a time: rows of the same time stay together.
pub fn of_time(borders: (f64, f64), time: f64) -> Part {
    if time < borders.0 {
        Part::Train
    } else if time < borders.1 {
        Part::Validation
    } else {
        Part::Test
    }
}

/// Gives every draft that has none its part.
pub fn assign(drafts: &mut [Draft], rule: &SplitRule) -> Result<()> {
    let borders = if rule.by == SplitBy::Time {
        times(rule, drafts.iter().filter_map(|d| d.time).collect())
    } else {
        (0.0, 0.0)
    };
    for draft in drafts.iter_mut().filter(|d| d.part.is_none()) {
        let absent = |what: &str| WorkerError::bad(COLUMN_ABSENT, format!("{}: no {what} to split by", draft.key));
        draft.part = Some(match rule.by {
            SplitBy::Random => of_key(rule, &draft.hash),
            SplitBy::Group => of_key(rule, draft.group.as_deref().ok_or_else(|| absent("group"))?.as_bytes()),
            SplitBy::Time => of_time(borders, draft.time.ok_or_else(|| absent("time"))?),
            SplitBy::Column => {
                return Err(WorkerError::bad(
                    INVALID_SPLIT,
                    format!("{}: its split is none of train, validation and test", draft.key),
                ));
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(seed: u64) -> SplitRule {
        SplitRule {
            by: SplitBy::Random,
            train: 0.7,
            validation: 0.15,
            seed,
        }
    }

    #[test]
    fn shares_are_met_and_seeds_differ() {
        let count = |seed| {
            let mut n = [0; 3];
            for i in 0..20_000u32 {
                n[of_key(&rule(seed), &i.to_le_bytes()) as usize] += 1;
            }
            n
        };
        for seed in [0, 1] {
            let n = count(seed);
            assert!((f64::from(n[0]) / 20_000.0 - 0.7).abs() < 0.02, "{n:?}");
            assert!((f64::from(n[1]) / 20_000.0 - 0.15).abs() < 0.02, "{n:?}");
        }
        let moved = (0..1000u32).filter(|i| of_key(&rule(0), &i.to_le_bytes()) != of_key(&rule(1), &i.to_le_bytes()));
        assert!(moved.count() > 200);
    }

    #[test]
    fn the_hash_is_pinned() {
        // A change here moves every row of every data set: it needs a new format.
        let parts: String = (0..24u8)
            .map(|i| ["t", "v", "e"][of_key(&rule(0), &[i]) as usize])
            .collect();
        assert_eq!(parts, PINNED);
    }

    const PINNED: &str = "vtettttetevttvttttttetvt";

    #[test]
    fn time_keeps_ties_together() {
        let times_seen: Vec<f64> = (0..100).map(|i| f64::from(i / 10)).collect();
        let borders = times(&rule(0), times_seen);
        assert_eq!(of_time(borders, 6.0), Part::Train);
        assert_eq!(of_time(borders, 7.0), Part::Validation);
        assert_eq!(of_time(borders, 9.0), Part::Test);
    }

    #[test]
    fn names_are_read() {
        assert_eq!(of_name(" Train"), Some(Part::Train));
        assert_eq!(of_name("val"), Some(Part::Validation));
        assert_eq!(of_name("holdout"), None);
    }

    proptest! {
        /// A row's part depends on the row alone: rows that come later move nothing.
        #[test]
        fn parts_are_stable_when_data_grow(keys in proptest::collection::vec(any::<[u8; 8]>(), 1..50)) {
            let all: Vec<Part> = keys.iter().map(|k| of_key(&rule(7), k)).collect();
            let half: Vec<Part> = keys[..keys.len() / 2].iter().map(|k| of_key(&rule(7), k)).collect();
            prop_assert_eq!(&all[..half.len()], &half[..]);
        }
    }
}
