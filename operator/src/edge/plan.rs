//! Decides every EdgeNode's whole spec from all placements at once, and what to tell the hub. Pure: no client, no
//! clock, no randomness.
//!
//! An entry whose placement is missing from the view is copied as it stands: absence is never an order.

use super::observe::{ABSENT_SINCE, Observed};
use super::pick::{Held, Model, Orders, compose};
use super::status;
use super::validate::{Settings, Validated};
use fleetune_crds::{EdgeNode, EdgeNodeSpec, ModelPlacementStatus};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A Node runs the runtime and has no EdgeNode.
    CreateNode {
        /// Name of the Node.
        name: String,
        /// Its hardware class.
        class: String,
    },
    /// The composed spec differs, or the mark of absence does.
    WriteNode {
        /// Name of the EdgeNode.
        name: String,
        /// Version of the EdgeNode that this plan saw.
        resource_version: String,
        /// The whole spec, if it differs.
        spec: Option<EdgeNodeSpec>,
        /// `Some(None)` takes the mark away.
        absent_since: Option<Option<Timestamp>>,
    },
    /// The Node has been absent for an hour.
    DeleteNode {
        /// Name of the EdgeNode.
        name: String,
        /// Its uid.
        uid: String,
        /// Version of the EdgeNode that this plan saw.
        resource_version: String,
    },
    /// What the hub is told of one placement, once the writes above are done.
    Report {
        /// Name of the placement.
        placement: String,
        /// The whole status.
        status: Box<ModelPlacementStatus>,
    },
}

/// What to do, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order; stop at the first error.
    pub steps: Vec<Step>,
    /// A deadline that falls without any event.
    pub wake_at: Option<Timestamp>,
    /// Models on nodes that no placement in view speaks of.
    pub orphaned: usize,
    /// The hub has not answered for longer than the activation's time to live.
    pub hub_away: bool,
}

/// Composes everything.
pub fn plan(want: &Validated, settings: &Settings, seen: &Observed, now: Timestamp) -> Plan {
    let hub_away = is_hub_away(settings, seen, now);
    let mut orders: Orders = seen
        .edge_nodes
        .iter()
        .map(|(name, node)| (name.clone(), node.spec.models.clone()))
        .collect();
    let mut reports = Vec::new();
    let mut wake = Wake::default();
    for placement in &want.placements {
        let model = Model { placement, seen, now };
        let spent = status::spent(&model, &orders);
        let held = compose(&model, &spent, !hub_away, &mut orders);
        let (next, deadline) = status::report(&model, &orders, &spent, held);
        wake.at(deadline);
        reports.push(status::changed(&placement.object, next));
    }
    for (object, message) in &want.refused {
        reports.push(status::changed(object, status::refused(object, message, now)));
    }

    let mut steps = Vec::new();
    for (name, node) in &seen.nodes {
        if node.has_runtime && !seen.edge_nodes.contains_key(name) {
            steps.push(Step::CreateNode {
                name: name.clone(),
                class: node.class.clone(),
            });
        }
    }
    for (name, edge_node) in &seen.edge_nodes {
        let models = orders.remove(name).unwrap_or_default();
        steps.extend(node_step(settings, seen, edge_node, models, now, &mut wake));
    }
    steps.extend(reports.into_iter().flatten());
    Plan {
        steps,
        wake_at: wake.0,
        orphaned: orphaned(want, seen),
        hub_away,
    }
}

/// The write that one EdgeNode needs, if any.
fn node_step(
    settings: &Settings,
    seen: &Observed,
    edge_node: &EdgeNode,
    models: BTreeMap<String, fleetune_crds::ModelOrder>,
    now: Timestamp,
    wake: &mut Wake,
) -> Option<Step> {
    let name = edge_node.name_any();
    let node = seen.nodes.get(&name);
    let mark = edge_node.annotations().get(ABSENT_SINCE);
    let mark = mark.map(|text| text.parse::<Timestamp>().unwrap_or(now));
    let absent_since = match (node, mark) {
        (None, None) => Some(Some(now)),
        (Some(_), Some(_)) => Some(None),
        _ => None,
    };
    if node.is_none() {
        let gone_at = add(mark.unwrap_or(now), settings.absent_after);
        if now >= gone_at {
            return Some(Step::DeleteNode {
                uid: edge_node.uid().unwrap_or_default(),
                resource_version: edge_node.resource_version().unwrap_or_default(),
                name,
            });
        }
        wake.at(Some(gone_at));
    }
    let class = node.map_or_else(|| edge_node.spec.class.clone(), |n| n.class.clone());
    let spec = EdgeNodeSpec { class, models };
    let spec = (spec != edge_node.spec).then_some(spec);
    (spec.is_some() || absent_since.is_some()).then(|| Step::WriteNode {
        resource_version: edge_node.resource_version().unwrap_or_default(),
        name,
        spec,
        absent_since,
    })
}

fn is_hub_away(settings: &Settings, seen: &Observed, now: Timestamp) -> bool {
    seen.hub_answered_at
        .is_none_or(|answered| now >= add(answered, settings.activation_ttl))
}

fn orphaned(want: &Validated, seen: &Observed) -> usize {
    let mut known: BTreeSet<&str> = want.placements.iter().map(|p| p.key.as_str()).collect();
    let refused = want
        .refused
        .iter()
        .map(|(p, _)| fleetune_crds::names::model_key(&p.spec.namespace, &p.spec.model_name))
        .collect::<Vec<_>>();
    known.extend(refused.iter().map(String::as_str));
    let keys = seen.edge_nodes.values().flat_map(|n| n.spec.models.keys());
    keys.filter(|key| !known.contains(key.as_str()))
        .collect::<BTreeSet<_>>()
        .len()
}

/// Adds a duration to a time; the end of time where that is too far.
pub fn add(at: Timestamp, duration: std::time::Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    at.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

/// The earliest of the times that were named.
#[derive(Default)]
struct Wake(Option<Timestamp>);

impl Wake {
    fn at(&mut self, at: Option<Timestamp>) {
        self.0 = match (self.0, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
}

/// Whether picking stands still for a reason that a person should see.
pub fn reason(held: Held) -> (&'static str, &'static str) {
    match held {
        Held::Hold => ("Held", "the hub holds this placement: no further node is picked"),
        Held::HubAway => ("HubAway", "the hub does not answer: no further node is picked"),
        Held::Failures => ("FailureLimit", "more failures than allowed: no further node is picked"),
        Held::StaleOrder => (
            "StaleOrder",
            "nodes have taken a newer epoch than this order's: it is not carried out",
        ),
    }
}
