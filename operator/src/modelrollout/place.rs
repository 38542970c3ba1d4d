//! From the status to placements: what each cluster's order must be, and which of them differ. Also the counts that
//! the run is judged by, so that order and judgement rest on the same reading.

use super::build::{self, Counts};
use super::observe::{Cluster, PlacementView};
use super::plan::{Owner, Planner, Step, Waiting};
use super::waves::{self, Cell, Turn};
use fleetune_crds::{ClassOrder, ModelPlacementSpec, PlacementState, Run, RunState};
use std::collections::BTreeMap;

/// The nodes of a run over all clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Nodes that may have the version, permitted or picked.
    pub taken: i32,
    /// Nodes that the wave is judged by: picks, and in clusters that cannot be reached what was permitted.
    pub slots: i32,
    /// Served it through their soak.
    pub proven: i32,
    /// Touched and bad.
    pub failed: i32,
    /// Slots that are neither proven nor failed yet and can be reached.
    pub open: i32,
    /// Of those, the ones that serve and are in their soak.
    pub soaking: i32,
    /// Nodes that could still be given to clusters that cannot fill theirs.
    pub spare: i32,
    /// Clusters that can be reached and have not answered their latest order.
    pub unanswered: Vec<String>,
}

/// The order is one of this run's waves.
fn is_of(order: &PlacementView, run: &Run) -> bool {
    order.spec.run == run.number && order.spec.source.as_ref().is_some_and(|s| s.digest == run.digest)
}

/// The counts of an order can be built on: they are of this run, of the latest order, of a cluster that can be reached.
fn is_usable(p: &Planner<'_>, cluster: &Cluster, order: &PlacementView, run: &Run) -> bool {
    cluster.matched
        && p.is_reachable(cluster)
        && order.is_answered()
        && is_of(order, run)
        && order.status.run == run.number
}

/// The cells of a run, as they are.
pub fn cells(p: &Planner<'_>, run: &Run) -> Vec<Cell> {
    let mut out = Vec::new();
    for (name, cluster, order) in p.ours() {
        let usable = is_usable(p, cluster, order, run);
        for class in order.classes() {
            let counts = order.counts(class, run.number);
            out.push(Cell {
                cluster: name.to_owned(),
                class: class.to_owned(),
                taken: order.permitted(class, run.number).max(counts.picked),
                picked: counts.picked,
                free: counts.free,
                frozen: !usable,
            });
        }
    }
    out
}

/// Counts a run's nodes.
pub fn tally(p: &Planner<'_>, run: &Run) -> Tally {
    let mut t = Tally::default();
    for (name, cluster, order) in p.ours() {
        let reachable = p.is_reachable(cluster);
        if reachable && (!order.is_answered() || !is_of(order, run) || order.spec.epoch != p.next.epoch) {
            t.unanswered.push(name.to_owned());
        }
        for class in order.classes() {
            let counts = order.counts(class, run.number);
            let taken = order.permitted(class, run.number).max(counts.picked);
            let slots = if reachable { counts.picked } else { taken };
            t.taken += taken;
            t.slots += slots;
            t.proven += counts.proven;
            t.failed += counts.failed;
            if reachable {
                // What could be picked and is not yet is open too.
                let room = (taken.min(counts.picked + counts.free) - counts.picked).max(0);
                t.open += counts.picked - counts.proven - counts.failed - counts.unreachable + room;
                t.soaking += counts.active - counts.proven;
            }
        }
    }
    t.spare = cells(p, run).iter().map(Cell::spare).sum();
    t
}

/// The first failure of a run, for people.
pub fn first_failure(p: &Planner<'_>, run: &Run) -> String {
    for (name, _, order) in p.ours().filter(|(_, _, o)| o.status.run == run.number) {
        if let Some(f) = order.status.failures.iter().find(|f| f.digest == run.digest) {
            return format!(": {name}/{}: {}: {}", f.node, f.reason, f.message);
        }
    }
    String::new()
}

/// Adds the writes that bring every placement to what the status says.
pub fn place(p: &mut Planner<'_>) {
    let Some(order) = build::order(p) else { return };
    let running = p.active_run().cloned();
    let (given, used) = match &running {
        Some(run) => allot(p, run),
        None => (BTreeMap::new(), 0),
    };
    let late = late_turns(p, used);
    let mut steps = Vec::new();
    for (name, cluster) in &p.seen.clusters {
        let Some(placement) = &cluster.placement else {
            if cluster.matched && cluster.registered {
                let spec = Box::new(build::placement(&order, Counts::default()));
                steps.push(Step::Create {
                    cluster: name.clone(),
                    spec,
                });
            }
            continue;
        };
        let mut counts = match p.owner(placement) {
            Owner::Other(_) => continue,
            Owner::Nobody if !cluster.matched => continue,
            Owner::Nobody => Counts::default(),
            Owner::Ours => match &running {
                Some(run) => in_wave(placement, run, given.get(name)),
                None => settled(placement, p.next.epoch, order.source.is_some()),
            },
        };
        counts.max_late = late.get(name.as_str()).copied().unwrap_or(placement.spec.max_late);
        let mut spec = build::placement(&order, counts);
        if !cluster.matched {
            spec.state = PlacementState::Hold;
            spec.node_selector = placement.spec.node_selector.clone();
        }
        if spec != placement.spec {
            steps.push(Step::Write {
                cluster: name.clone(),
                resource_version: placement.resource_version.clone(),
                spec: Box::new(spec),
            });
        }
    }
    p.steps.extend(steps);
}

/// What one cluster is given in a wave.
#[derive(Clone, Debug, Default)]
struct Given {
    classes: BTreeMap<String, ClassOrder>,
    max_in_flight: Option<i32>,
}

/// How many nodes may be unavailable at a time: a count, or a share of `nodes`; at least one.
fn limit(p: &Planner<'_>, nodes: i32) -> i32 {
    let limit = p.want.max_unavailable.of(nodes.unsigned_abs());
    i32::try_from(limit).unwrap_or(i32::MAX).max(1)
}

/// All nodes that can have a version.
fn eligible(p: &Planner<'_>) -> i32 {
    p.ours().map(|(_, _, o)| o.sum(|c| c.eligible)).sum()
}

/// Shares the running wave out, as far as the permission to be unavailable reaches. Also how much of it is taken then.
fn allot(p: &mut Planner<'_>, run: &Run) -> (BTreeMap<String, Given>, i32) {
    let before = cells(p, run);
    let mut after = before.clone();
    let wave = run.waves.last().filter(|w| w.passed_at.is_none());
    let held = p.want.paused || run.state == RunState::Failed || p.problem.is_some();
    if let (Some(wave), false) = (wave, held) {
        waves::allot(&mut after, wave.nodes);
    }
    let sum =
        |cells: &[Cell], cluster: &str| -> i32 { cells.iter().filter(|c| c.cluster == cluster).map(|c| c.taken).sum() };

    // Clusters that are not done hold their share; the rest of the permission goes to those that want to begin.
    let mut used = 0;
    let mut turns = Vec::new();
    let mut busy = Vec::new();
    for (name, cluster, order) in p.ours().filter(|(_, c, _)| p.is_reachable(c)) {
        let settled: i32 = order
            .classes()
            .map(|class| order.counts(class, run.number))
            .map(|c| c.proven + c.failed + c.unreachable)
            .sum();
        let (had, gets) = (sum(&before, name), sum(&after, name));
        if had > settled {
            used += order.spec.max_in_flight;
            busy.push(name);
        } else if gets > had && cluster.matched {
            turns.push(Turn {
                cluster: name.to_owned(),
                nodes: gets - had,
            });
        }
    }
    // Late joiners that have their turn count too, against the share of all nodes.
    let of_wave = limit(p, wave.map_or(0, |w| w.nodes));
    let of_all = limit(p, eligible(p)) - held_late(p);
    let shares = waves::share(of_wave.min(of_all), used, &turns);
    if turns.iter().any(|t| !shares.contains_key(&t.cluster)) {
        p.waiting.push(Waiting::Activating);
    }

    let mut out: BTreeMap<String, Given> = BTreeMap::new();
    for (old, new) in before.iter().zip(&after) {
        let rises = new.taken > old.taken;
        let may = !rises || busy.contains(&new.cluster.as_str()) || shares.contains_key(&new.cluster);
        let activate = if may { new.taken } else { old.taken };
        let given = out.entry(new.cluster.clone()).or_default();
        given.classes.insert(new.class.clone(), ClassOrder { activate });
        given.max_in_flight = shares.get(&new.cluster).copied();
    }
    (out, used + shares.values().sum::<i32>())
}

/// Counts of a cluster in a wave: what it was given, or what it had.
fn in_wave(placement: &PlacementView, run: &Run, given: Option<&Given>) -> Counts {
    if !is_of(placement, run) {
        return Counts::default();
    }
    let given = given.cloned().unwrap_or_default();
    Counts {
        classes: given.classes,
        max_in_flight: given.max_in_flight.unwrap_or(placement.spec.max_in_flight),
        ..Counts::default()
    }
}

/// Counts of a cluster between runs: every node that can have the proven version. They grow only, within an epoch. Whoever
/// does not have it yet is a late joiner.
fn settled(placement: &PlacementView, epoch: i64, proven: bool) -> Counts {
    let same = placement.spec.epoch == epoch;
    let mut counts = Counts {
        max_in_flight: placement.spec.max_in_flight,
        ..Counts::default()
    };
    if proven {
        for class in placement.classes() {
            let eligible = placement.status.classes.get(class).map_or(0, |c| c.eligible);
            let had = placement.spec.classes.get(class).filter(|_| same);
            let activate = eligible.max(had.map_or(0, |c| c.activate));
            counts.classes.insert(class.to_owned(), ClassOrder { activate });
        }
    }
    counts
}

/// Late joiners that a cluster may have on their way: by its order, and until that is answered by the one before. What
/// cannot be reached does not count, as in a wave.
fn late_in(placement: &PlacementView) -> i32 {
    let before = if placement.is_answered() {
        0
    } else {
        placement.status.max_late
    };
    placement.spec.max_late.max(before)
}

fn held_late(p: &Planner<'_>) -> i32 {
    let reachable = p.ours().filter(|(_, cluster, _)| p.is_reachable(cluster));
    reachable.map(|(_, _, order)| late_in(order)).sum()
}

/// Turns of late joiners, from what the wave leaves of the permission to be unavailable. A cluster that has none left
/// gives its turn back; the next one gets it once that is answered. Only what changes is named.
fn late_turns<'a>(p: &Planner<'a>, used: i32) -> BTreeMap<&'a str, i32> {
    let mut out = BTreeMap::new();
    let mut turns = Vec::new();
    let held = p.want.paused || p.problem.is_some() || p.run().is_some_and(|r| r.state == RunState::RollingBack);
    for (name, cluster, order) in p.ours() {
        if !p.is_reachable(cluster) || !order.is_answered() || order.status.max_late != order.spec.max_late {
            continue;
        }
        let late = order.sum(|c| c.late);
        if late == 0 && order.spec.max_late > 0 {
            out.insert(name, 0);
        } else if late > 0 && order.spec.max_late == 0 && cluster.matched && !held {
            turns.push(Turn {
                cluster: name.to_owned(),
                nodes: late,
            });
        }
    }
    let shares = waves::share(limit(p, eligible(p)), used + held_late(p), &turns);
    for (name, _, _) in p.ours() {
        if let Some(share) = shares.get(name) {
            out.insert(name, *share);
        }
    }
    out
}

/// The order as it would be released: nobody's, and nothing further is picked.
pub fn released(p: &Planner<'_>, spec: &ModelPlacementSpec) -> ModelPlacementSpec {
    let mut spec = spec.clone();
    spec.rollout_uid.clear();
    if spec.state == PlacementState::Run {
        spec.state = PlacementState::Hold;
    }
    // What the next owner may return to.
    let proven = p.next.proven.as_ref().and_then(|v| p.seen.source(&v.digest));
    if proven.is_some() {
        spec.fallback = proven;
    }
    spec
}
