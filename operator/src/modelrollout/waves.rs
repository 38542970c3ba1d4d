//! The arithmetic of waves: how large one is, which (cluster, class) cells it falls on, how the permission to be
//! unavailable is shared. Pure functions of counts; the same answer for the same input; growing only.

use fleetune_crds::common::Amount;
use std::collections::{BTreeMap, BTreeSet};

/// Nodes of one class in one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Name of the cluster.
    pub cluster: String,
    /// Hardware class.
    pub class: String,
    /// Nodes that may have the version: permitted or picked, whichever is more.
    pub taken: i32,
    /// Nodes that have it.
    pub picked: i32,
    /// Eligible nodes that do not have it.
    pub free: i32,
    /// Nothing is known or may be changed now: not reachable, not matched any more, or an order is not answered yet.
    pub frozen: bool,
}

impl Cell {
    /// The most nodes that this cell can hold now.
    pub fn capacity(&self) -> i32 {
        if self.frozen {
            self.taken
        } else {
            self.picked + self.free
        }
    }

    /// What may be given to it beyond what it has.
    pub fn spare(&self) -> i32 {
        (self.capacity() - self.taken).max(0)
    }
}

/// The size of a wave, in nodes, cumulative: a share of all that can have the version, rounded up, at least 1, never
/// less than what has been permitted already, never more than there is. 0 where there is no node at all.
pub fn size(stage: Amount, cells: &[Cell]) -> i32 {
    let total: i32 = cells.iter().map(|c| c.capacity().max(c.taken)).sum();
    let taken: i32 = cells.iter().map(|c| c.taken).sum();
    let share = i32::try_from(stage.of(total.unsigned_abs())).unwrap_or(i32::MAX);
    share.max(1).min(total).max(taken)
}

/// Gives out the nodes of a wave of `total` nodes, in place, into `taken`. First one of every class, then one in every
/// cluster, then by share, so that large cells carry more. Slots of cells that can no longer fill them move to others,
/// in two steps: they are taken back first (`true` is returned) and given out once that is acknowledged, so that the
/// wave is never exceeded.
pub fn allot(cells: &mut [Cell], total: i32) -> bool {
    let spare: i32 = cells.iter().map(Cell::spare).sum();
    let mut movable = spare;
    let mut moved = false;
    for cell in cells.iter_mut() {
        let unfillable = (cell.taken - cell.capacity()).min(movable);
        if unfillable > 0 {
            cell.taken -= unfillable;
            movable -= unfillable;
            moved = true;
        }
    }
    if moved {
        return true;
    }
    let mut left = total - cells.iter().map(|c| c.taken).sum::<i32>();
    let mut by_class: BTreeMap<String, i32> = BTreeMap::new();
    let mut by_cluster: BTreeMap<String, i32> = BTreeMap::new();
    for cell in cells.iter() {
        *by_class.entry(cell.class.clone()).or_default() += cell.taken;
        *by_cluster.entry(cell.cluster.clone()).or_default() += cell.taken;
    }
    while left > 0 {
        let best = cells
            .iter_mut()
            .filter(|c| c.spare() > 0)
            .min_by(|a, b| rank(a, &by_class, &by_cluster).cmp(&rank(b, &by_class, &by_cluster)));
        let Some(cell) = best else { break };
        cell.taken += 1;
        *by_class.entry(cell.class.clone()).or_default() += 1;
        *by_cluster.entry(cell.cluster.clone()).or_default() += 1;
        left -= 1;
    }
    false
}

/// Smaller goes first.
fn rank<'a>(
    cell: &'a Cell,
    by_class: &BTreeMap<String, i32>,
    by_cluster: &BTreeMap<String, i32>,
) -> (bool, bool, u64, &'a str, &'a str) {
    let covered = |map: &BTreeMap<String, i32>, key: &str| map.get(key).is_some_and(|n| *n > 0);
    // The share after the gift, in parts per million: no floats, so that it orders the same everywhere.
    let share = (i64::from(cell.taken + 1) * 1_000_000 / i64::from(cell.capacity().max(1))).unsigned_abs();
    (
        covered(by_class, &cell.class),
        covered(by_cluster, &cell.cluster),
        share,
        &cell.cluster,
        &cell.class,
    )
}

/// Classes that have nodes but none in the wave.
pub fn left_out(cells: &[Cell]) -> Vec<String> {
    let mut all: BTreeSet<&str> = BTreeSet::new();
    let mut covered: BTreeSet<&str> = BTreeSet::new();
    for cell in cells {
        if cell.capacity() > 0 {
            all.insert(&cell.class);
        }
        if cell.taken > 0 {
            covered.insert(&cell.class);
        }
    }
    all.difference(&covered).map(|s| (*s).to_owned()).collect()
}

/// A cluster that wants its turn to activate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Its name.
    pub cluster: String,
    /// Nodes that it is to activate.
    pub nodes: i32,
}

/// Shares what is left of `max_unavailable` among clusters that want to activate. Every one that gets a share gets at
/// least 1 and no more than it has nodes for; who gets none waits until another one is done. `used` is what clusters
/// hold that are not done yet.
pub fn share(max_unavailable: i32, used: i32, turns: &[Turn]) -> BTreeMap<String, i32> {
    let mut left = (max_unavailable - used).max(0);
    let mut out = BTreeMap::new();
    for turn in turns {
        if left == 0 {
            break;
        }
        out.insert(turn.cluster.clone(), 1);
        left -= 1;
    }
    // The rest goes round, to those with the most nodes to go first.
    let mut order: Vec<&Turn> = turns.iter().filter(|t| out.contains_key(&t.cluster)).collect();
    order.sort_by(|a, b| b.nodes.cmp(&a.nodes).then_with(|| a.cluster.cmp(&b.cluster)));
    while left > 0 {
        let mut given = false;
        for turn in &order {
            let Some(share) = out.get_mut(&turn.cluster) else {
                continue;
            };
            if left > 0 && *share < turn.nodes {
                *share += 1;
                left -= 1;
                given = true;
            }
        }
        if !given {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cell(cluster: &str, class: &str, taken: i32, picked: i32, free: i32) -> Cell {
        Cell {
            cluster: cluster.into(),
            class: class.into(),
            taken,
            picked,
            free,
            frozen: false,
        }
    }

    fn taken(cells: &[Cell]) -> Vec<i32> {
        cells.iter().map(|c| c.taken).collect()
    }

    #[test]
    fn sizes_are_rounded_up_and_at_least_one() {
        let cells = [cell("a", "arm64", 0, 0, 11)];
        assert_eq!(size(Amount::Percent(10), &cells), 2);
        assert_eq!(size(Amount::Percent(0), &cells), 1);
        assert_eq!(size(Amount::Percent(100), &cells), 11);
        assert_eq!(size(Amount::Count(3), &cells), 3);
        assert_eq!(size(Amount::Count(30), &cells), 11, "not more than there are");
        assert_eq!(size(Amount::Count(1), &[]), 0, "no node, no wave");
        assert_eq!(size(Amount::Count(1), &[cell("a", "x", 4, 4, 2)]), 4, "growing only");
    }

    #[test]
    fn what_is_frozen_counts_with_what_it_has() {
        let mut cut = cell("b", "x", 2, 1, 5);
        cut.frozen = true;
        assert_eq!(size(Amount::Percent(100), &[cell("a", "x", 0, 0, 3), cut.clone()]), 5);
        let mut cells = [cell("a", "x", 0, 0, 3), cut];
        assert!(!allot(&mut cells, 5));
        assert_eq!(taken(&cells), [3, 2]);
    }

    #[test]
    fn a_canary_covers_classes_then_clusters_then_shares() {
        let fleet = || {
            vec![
                cell("a", "amd64", 0, 0, 100),
                cell("a", "arm64", 0, 0, 10),
                cell("b", "amd64", 0, 0, 2),
            ]
        };
        for (total, expected) in [
            (1, [1, 0, 0]),
            (2, [1, 1, 0]),
            (3, [1, 1, 1]),
            (14, [11, 2, 1]),
            (112, [100, 10, 2]),
        ] {
            let mut cells = fleet();
            allot(&mut cells, total);
            assert_eq!(cells.iter().map(|c| c.taken).sum::<i32>(), total);
            if total < 14 {
                assert_eq!(taken(&cells), expected, "{total}");
            }
        }
        let mut cells = fleet();
        allot(&mut cells, 1);
        assert_eq!(left_out(&cells), ["arm64"]);
    }

    #[test]
    fn a_slot_that_cannot_be_filled_is_taken_back_before_it_is_given_elsewhere() {
        let mut cells = [cell("a", "x", 3, 1, 0), cell("b", "x", 1, 1, 5)];
        assert!(allot(&mut cells, 4));
        assert_eq!(taken(&cells), [1, 1]);
        assert!(!allot(&mut cells, 4));
        assert_eq!(taken(&cells), [1, 3]);
        let mut stuck = [cell("a", "x", 3, 1, 0), cell("b", "x", 1, 1, 0)];
        assert!(!allot(&mut stuck, 4), "nobody else could take it: it waits where it is");
        assert_eq!(taken(&stuck), [3, 1]);
    }

    #[test]
    fn unavailability_is_shared_and_never_exceeded() {
        let turn = |cluster: &str, nodes| Turn {
            cluster: cluster.into(),
            nodes,
        };
        let turns = [turn("a", 10), turn("b", 2), turn("c", 1)];
        let shares = |max, used| share(max, used, &turns).into_values().collect::<Vec<_>>();
        assert_eq!(shares(1, 0), [1]);
        assert_eq!(shares(2, 0), [1, 1]);
        assert_eq!(shares(2, 2), [0; 0]);
        assert_eq!(shares(6, 0), [3, 2, 1]);
        assert_eq!(shares(100, 0), [10, 2, 1]);
    }

    proptest! {
        #[test]
        fn allotment_is_exact_growing_and_within_capacity(
            raw in prop::collection::vec((0..4usize, 0..3usize, 0..5i32, 0..20i32, any::<bool>()), 1..12),
            percent in 0..=100u32,
        ) {
            let mut cells: Vec<Cell> = Vec::new();
            for (cluster, class, picked, free, frozen) in raw {
                let mut next = cell(&format!("c{cluster}"), &format!("k{class}"), picked, picked, free);
                next.frozen = frozen;
                if !cells.iter().any(|c| c.cluster == next.cluster && c.class == next.class) {
                    cells.push(next);
                }
            }
            let before = cells.clone();
            let total = size(Amount::Percent(percent), &cells);
            prop_assert!(!allot(&mut cells, total));
            prop_assert_eq!(cells.iter().map(|c| c.taken).sum::<i32>(), total);
            for (old, new) in before.iter().zip(&cells) {
                prop_assert!(new.taken >= old.taken && new.taken <= old.capacity().max(old.taken));
                prop_assert!(!old.frozen || new.taken == old.taken);
            }
            let mut again = before.clone();
            allot(&mut again, total);
            prop_assert_eq!(again, cells);
        }

        #[test]
        fn shares_stay_within_the_limit(max in 0..20i32, used in 0..20i32, nodes in prop::collection::vec(1..9i32, 0..8)) {
            let turns: Vec<Turn> = nodes.iter().enumerate()
                .map(|(i, n)| Turn { cluster: i.to_string(), nodes: *n }).collect();
            let shares = share(max, used, &turns);
            prop_assert!(shares.values().sum::<i32>() <= (max - used).max(0));
            prop_assert!(shares.values().all(|s| *s >= 1));
            if max > used && !turns.is_empty() { prop_assert!(!shares.is_empty()); }
        }
    }
}
