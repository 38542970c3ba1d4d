//! Builds a placement's order from what the status says. Infallible, but for a version that nobody knows any more.

use super::plan::Planner;
use fleetune_crds::common::{Digest, Span};
use fleetune_crds::{ClassOrder, ModelPlacementSpec, PlacementState, RunState, Source};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;
use std::time::Duration;

/// Between runs a node that fails does not stop others from getting the proven version.
const UNLIMITED: i32 = 100_000;

/// What all placements of a rollout have in common.
#[derive(Clone, Debug)]
pub struct Order {
    /// The version to have.
    pub source: Option<Source>,
    fallback: Option<Source>,
    aborted: Vec<Digest>,
    namespace: String,
    model: String,
    uid: String,
    epoch: i64,
    run: i64,
    soak: Span,
    deadline: Span,
    selector: LabelSelector,
    max_failed: i32,
    state: PlacementState,
}

/// What one cluster is permitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Per hardware class, how many nodes may have the version.
    pub classes: BTreeMap<String, ClassOrder>,
    /// Nodes of the wave that may be on their way to it.
    pub max_in_flight: i32,
    /// Late joiners that may be on their way to the proven version.
    pub max_late: i32,
}

/// The order that follows from the status; none where a version that it needs is not known any more: then nothing is
/// written, because "no version" would unload nodes.
pub fn order(p: &mut Planner<'_>) -> Option<Order> {
    let fallback = match p.next.proven.clone() {
        Some(proven) => Some(p.source(&proven.digest)?),
        None => None,
    };
    let run = p.next.run.clone();
    let state = run.as_ref().map(|r| r.state);
    let in_wave = matches!(state, Some(RunState::Progressing | RunState::Failed));
    let source = match run.as_ref().filter(|_| in_wave) {
        Some(run) => Some(p.source(&run.digest)?),
        None => fallback.clone(),
    };
    let stages = &p.want.stages;
    let soak = match (state, run.as_ref()) {
        (Some(RunState::Progressing | RunState::Failed), Some(run)) => {
            let wave = usize::try_from(run.wave).unwrap_or(0);
            stages.get(wave.min(stages.len().saturating_sub(1)))
        }
        (Some(RunState::Complete), _) => stages.last(),
        // What a node returns to has been proven there.
        _ => None,
    };
    let held = p.want.paused || state == Some(RunState::Failed) || (in_wave && p.problem.is_some());
    Some(Order {
        source,
        fallback,
        aborted: p.next.aborted.clone(),
        namespace: p.want.namespace.clone(),
        model: p.want.model.clone(),
        uid: p.want.uid.clone(),
        epoch: p.next.epoch,
        run: run.as_ref().map_or(0, |r| r.number),
        soak: soak.map_or_else(|| Span::from(Duration::ZERO), |s| s.min_success_time.clone()),
        deadline: p.want.progress_deadline.clone(),
        selector: p.want.nodes.clone(),
        max_failed: if in_wave { p.want.max_failures } else { UNLIMITED },
        state: if held {
            PlacementState::Hold
        } else {
            PlacementState::Run
        },
    })
}

/// One cluster's order.
pub fn placement(order: &Order, counts: Counts) -> ModelPlacementSpec {
    ModelPlacementSpec {
        namespace: order.namespace.clone(),
        model_name: order.model.clone(),
        rollout_uid: order.uid.clone(),
        epoch: order.epoch,
        run: order.run,
        source: order.source.clone(),
        fallback: order.fallback.clone(),
        aborted: order.aborted.clone(),
        node_selector: order.selector.clone(),
        classes: counts.classes,
        min_success_time: order.soak.clone(),
        progress_deadline: order.deadline.clone(),
        max_in_flight: counts.max_in_flight.max(1),
        max_late: counts.max_late,
        max_failed: order.max_failed,
        state: order.state,
    }
}
