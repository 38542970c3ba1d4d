//! What the hub is told of a placement: counts per class and a capped sample of failures, never a list of nodes.

use super::pick::{Held, Model, Orders, class_of};
use super::plan::{Step, reason};
use super::standing::{Standing, digest, serves};
use fleetune_crds::conditions::{self, READY, RECONCILING, STALLED, Wanted};
use fleetune_crds::{ClassCounts, Failure, MAX_FAILURE_SAMPLES, ModelPlacement, ModelPlacementStatus, OrderState};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use std::collections::BTreeMap;

/// Picks of this run, per class, that are neither on a node nor skipped any more: their nodes left the cluster. The
/// slot of a deleted node is spent, so these still count.
pub fn spent(model: &Model<'_>, orders: &Orders) -> BTreeMap<String, i32> {
    let spec = &model.placement.object.spec;
    let prev = model.placement.object.status.as_ref();
    let Some(prev) = prev.filter(|s| s.run == spec.run && !model.is_settled() && s.observed_epoch > 0) else {
        return BTreeMap::new();
    };
    let mut live: BTreeMap<&str, i32> = BTreeMap::new();
    for (node, models) in orders {
        if models.get(&model.placement.key).is_some_and(|o| model.is_pick(o)) {
            *live.entry(class_of(model, node)).or_default() += 1;
        }
    }
    let told: i32 = prev.classes.values().map(|c| c.picked + c.skipped).sum();
    // A node that changed its class is missing in one and extra in another.
    let mut missing = told - live.values().sum::<i32>();
    let mut out = BTreeMap::new();
    for (class, counts) in &prev.classes {
        let short = counts.picked + counts.skipped - live.get(class.as_str()).copied().unwrap_or(0);
        let spent = short.min(missing);
        if spent > 0 {
            missing -= spent;
            out.insert(class.clone(), spent);
        }
    }
    out
}

/// The status that follows from the composed orders, and the next progress deadline.
pub fn report(
    model: &Model<'_>,
    orders: &Orders,
    spent: &BTreeMap<String, i32>,
    held: Option<Held>,
) -> (ModelPlacementStatus, Option<Timestamp>) {
    let object = &model.placement.object;
    let spec = &object.spec;
    let prev = object.status.clone().unwrap_or_default();
    let highest_epoch = model.highest_epoch().max(prev.highest_epoch);
    if held == Some(Held::StaleOrder) {
        // The counts of an order that is not carried out would mislead: the hub only learns how far it is behind.
        let next = ModelPlacementStatus { highest_epoch, ..prev };
        return (with_conditions(object, next, held, 0, model.now), None);
    }

    let mut classes: BTreeMap<String, ClassCounts> = BTreeMap::new();
    for (class, spent) in spent {
        let counts = classes.entry(class.clone()).or_default();
        counts.picked += spent;
        counts.unreachable += spent;
    }
    let mut runtimes: BTreeMap<String, i32> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut deadline: Option<Timestamp> = None;
    let mut in_flight = 0;
    for (node, models) in orders {
        let counts = classes.entry(class_of(model, node).to_owned()).or_default();
        let order = models.get(&model.placement.key);
        let state = model.state(node);
        let reachable = model.node(node).is_some_and(super::observe::NodeView::is_reachable);
        let pick = order.filter(|o| model.is_pick(o));
        let selected = model.node(node).is_some_and(|n| model.placement.selects(&n.labels));
        if selected {
            build(model, node, &mut runtimes);
        }
        if model.is_eligible(node, digest(spec.source.as_ref())) {
            counts.eligible += 1;
            counts.free += i32::from(pick.is_none());
        }
        // While Remove is not acknowledged the model counts as serving, whatever the runtime last said.
        let served = state.is_some_and(|s| s.active.is_some());
        counts.serving += i32::from(served || order.is_some_and(|o| o.state == OrderState::Remove));
        if let (Some(order), true) = (order, reachable) {
            let bad = |d| spec.aborted.contains(d);
            let runs = state.and_then(|s| s.active.as_ref()).is_some_and(bad);
            let told = state.is_some_and(|s| s.epoch < order.epoch && s.digest.as_ref().is_some_and(bad));
            counts.aborted += i32::from(runs || told || serves(order).is_some_and(bad));
        }
        counts.late += i32::from(model.is_late(node, order));
        let Some(order) = order else { continue };
        let standing = model.standing(node, order);
        if model.is_for_proven(order) && matches!(standing, Standing::InFlight { .. }) {
            // Nobody is late without a turn: what is on its way without one returns from an aborted version.
            counts.late += i32::from(spec.max_late > 0);
        }
        if pick.is_none() {
            continue;
        }
        counts.picked += i32::from(standing != Standing::Skipped);
        match standing {
            Standing::InFlight { deadline: at } => {
                in_flight += 1;
                deadline = Some(deadline.map_or(at, |d| d.min(at)));
            }
            Standing::Active => counts.active += 1,
            Standing::Proven => {
                counts.active += 1;
                counts.proven += 1;
            }
            Standing::Skipped => counts.skipped += 1,
            Standing::Unreachable => counts.unreachable += 1,
            Standing::Failed { reason, message } => {
                counts.failed += 1;
                if let Some(digest) = serves(order) {
                    failures.push(Failure {
                        node: node.clone(),
                        digest: digest.clone(),
                        reason,
                        message: conditions::cut(message),
                    });
                }
            }
        }
    }
    classes.retain(|class, counts| *counts != ClassCounts::default() || spec.classes.contains_key(class));

    let next = ModelPlacementStatus {
        observed_epoch: spec.epoch,
        observed_generation: object.metadata.generation,
        run: spec.run,
        highest_epoch: highest_epoch.max(spec.epoch.min(highest_ordered(model, orders))),
        max_late: spec.max_late,
        classes,
        runtimes,
        failures: sample(&prev, spec.run, failures),
        conditions: prev.conditions,
    };
    (with_conditions(object, next, held, in_flight, model.now), deadline)
}

fn highest_ordered(model: &Model<'_>, orders: &Orders) -> i64 {
    let of = |models: &BTreeMap<_, fleetune_crds::ModelOrder>| models.get(&model.placement.key).map_or(0, |o| o.epoch);
    orders.values().map(of).max().unwrap_or(0)
}

fn build(model: &Model<'_>, node: &str, runtimes: &mut BTreeMap<String, i32>) {
    let status = model.seen.edge_nodes.get(node).and_then(|n| n.status.as_ref());
    let build = status.map_or("", |s| s.build.as_str());
    let build = if build.is_empty() { "unknown" } else { build };
    let build = if runtimes.len() >= 7 && !runtimes.contains_key(build) {
        "other"
    } else {
        build
    };
    *runtimes.entry(build.to_owned()).or_default() += 1;
}

/// Failures of a run stay in the sample after their nodes have gone back, until the next run.
fn sample(prev: &ModelPlacementStatus, run: i64, now: Vec<Failure>) -> Vec<Failure> {
    let mut by_node: BTreeMap<String, Failure> = BTreeMap::new();
    if prev.run == run {
        by_node.extend(prev.failures.iter().map(|f| (f.node.clone(), f.clone())));
    }
    for failure in now {
        if by_node.len() < MAX_FAILURE_SAMPLES || by_node.contains_key(&failure.node) {
            by_node.insert(failure.node.clone(), failure);
        }
    }
    by_node.into_values().collect()
}

fn with_conditions(
    object: &ModelPlacement,
    mut next: ModelPlacementStatus,
    held: Option<Held>,
    in_flight: i32,
    now: Timestamp,
) -> ModelPlacementStatus {
    let mut wanted = Vec::new();
    match held {
        Some(held @ (Held::StaleOrder | Held::Failures)) => {
            let (reason, message) = reason(held);
            wanted.push(Wanted::new(READY, Some(false), reason, message));
            wanted.push(Wanted::new(STALLED, Some(true), reason, message));
        }
        _ if in_flight > 0 => {
            let message = "nodes have been picked that do not serve the version yet";
            wanted.push(Wanted::new(READY, Some(false), "Activating", message));
            wanted.push(Wanted::new(RECONCILING, Some(true), "Activating", message));
        }
        Some(held) => {
            let (reason, message) = reason(held);
            wanted.push(Wanted::new(READY, Some(true), reason, message));
        }
        None => wanted.push(Wanted::new(
            READY,
            Some(true),
            "Placed",
            "every picked node has answered",
        )),
    }
    let generation = object.metadata.generation.unwrap_or(0);
    next.conditions = conditions::replace(&next.conditions, &wanted, generation, now);
    next
}

/// The status of a placement that cannot be acted on.
pub fn refused(object: &ModelPlacement, message: &str, now: Timestamp) -> ModelPlacementStatus {
    let mut next = object.status.clone().unwrap_or_default();
    let wanted = [
        Wanted::new(READY, Some(false), "Invalid", message),
        Wanted::new(STALLED, Some(true), "Invalid", message),
    ];
    let generation = object.metadata.generation.unwrap_or(0);
    next.observed_generation = object.metadata.generation;
    next.conditions = conditions::replace(&next.conditions, &wanted, generation, now);
    next
}

/// The report, if it says anything new.
pub fn changed(object: &ModelPlacement, next: ModelPlacementStatus) -> Option<Step> {
    (object.status.as_ref() != Some(&next)).then(|| Step::Report {
        placement: object.name_any(),
        status: Box::new(next),
    })
}
