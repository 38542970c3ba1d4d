//! What becomes of the placements when a rollout is deleted. Retain: they are released, nothing unloads. Remove: nodes
//! unload and say so; after an hour the rollout goes all the same and says what still serves.

use super::place;
use super::plan::{Planner, Step, Waiting};
use fleetune_crds::{DeletionPolicy, ModelPlacementSpec, PlacementState};
use k8s_openapi::jiff::SignedDuration;

/// How long Remove waits for its acknowledgement.
pub const DEADLINE: SignedDuration = SignedDuration::from_hours(1);

/// Plans a deletion.
pub fn plan(p: &mut Planner<'_>) {
    if !p.want.has_finalizer {
        return;
    }
    match p.want.deletion_policy {
        DeletionPolicy::Retain => release(p, None),
        DeletionPolicy::Remove => remove(p),
    }
}

/// Gives every placement back and goes.
fn release(p: &mut Planner<'_>, left: Option<String>) {
    let writes: Vec<Step> = p
        .ours()
        .map(|(name, _, order)| Step::Write {
            cluster: name.to_owned(),
            resource_version: order.resource_version.clone(),
            spec: Box::new(place::released(p, &order.spec)),
        })
        .collect();
    p.steps.extend(writes);
    p.steps.push(Step::RemoveFinalizer { left });
}

fn remove(p: &mut Planner<'_>) {
    let ordered = |spec: &ModelPlacementSpec| spec.state == PlacementState::Remove;
    // Status first: the epoch of the removal, above every epoch that was ordered or taken.
    for (_, _, order) in p.ours() {
        let told = order.status.observed_epoch.max(order.status.highest_epoch);
        if ordered(&order.spec) && told <= order.spec.epoch {
            p.next.epoch = p.next.epoch.max(order.spec.epoch);
        } else {
            p.next.epoch = p.next.epoch.max(order.spec.epoch + 1).max(told + 1);
        }
    }
    let mut left = Vec::new();
    let mut steps = Vec::new();
    for (name, _, order) in p.ours() {
        let told = order.status.observed_epoch.max(order.status.highest_epoch);
        if !ordered(&order.spec) || told > order.spec.epoch {
            left.push(name.to_owned());
            steps.push(Step::Write {
                cluster: name.to_owned(),
                resource_version: order.resource_version.clone(),
                spec: Box::new(ModelPlacementSpec {
                    epoch: p.next.epoch,
                    state: PlacementState::Remove,
                    ..order.spec.clone()
                }),
            });
        } else if order.is_answered() && order.sum(|c| c.serving) == 0 {
            steps.push(Step::Delete {
                cluster: name.to_owned(),
                resource_version: order.resource_version.clone(),
            });
        } else {
            left.push(name.to_owned());
        }
    }
    let expired = p.want.deleted_at.is_some_and(|at| p.now >= at + DEADLINE);
    if left.is_empty() {
        p.steps.extend(steps);
        p.steps.push(Step::RemoveFinalizer { left: None });
    } else if expired {
        // The orders stay where they are: a cluster that comes back later still unloads.
        release(p, Some(left.join(", ")));
    } else {
        p.steps.extend(steps);
        p.waiting.push(Waiting::Removal(left));
    }
}
