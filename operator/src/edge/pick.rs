//! One placement's orders to the nodes of its cluster: who falls back, who unloads, who is picked next.
//!
//! Writes into the composed orders and nothing else. A pick, once made, never moves within its run; what serves is
//! never displaced by anything but a pick; falling back needs no permission and no free slot.

use super::observe::{NodeView, Observed};
use super::standing::{Standing, digest, serves, standing};
use super::validate::Placement;
use fleetune_crds::common::Digest;
use fleetune_crds::{EdgeNode, ModelOrder, ModelState, OrderState, PlacementState, Source, VersionState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use sha2::Digest as _;
use std::collections::BTreeMap;

/// The composed specs: for each EdgeNode its orders by model key.
pub type Orders = BTreeMap<String, BTreeMap<String, ModelOrder>>;

/// Why no further node was picked although the counts would permit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The hub said Hold.
    Hold,
    /// The hub has not answered for longer than the activation's time to live.
    HubAway,
    /// More failures than the placement allows.
    Failures,
    /// Orders on nodes are newer than the placement.
    StaleOrder,
}

/// Most models on a node, as the EdgeNode's schema has it.
const MAX_MODELS: usize = fleetune_crds::MAX_MODELS;

/// The view of one model in the cluster, with what has been composed so far.
pub struct Model<'a> {
    /// The placement.
    pub placement: &'a Placement,
    /// The cluster.
    pub seen: &'a Observed,
    /// Now.
    pub now: Timestamp,
}

impl<'a> Model<'a> {
    fn key(&self) -> &'a str {
        &self.placement.key
    }

    fn source(&self) -> Option<&'a Source> {
        self.placement.object.spec.source.as_ref()
    }

    fn fallback(&self) -> Option<&'a Source> {
        self.placement.object.spec.fallback.as_ref()
    }

    /// The order is for the proven version (or for none): no run is under way, every node is to have it.
    pub fn is_settled(&self) -> bool {
        digest(self.source()) == digest(self.fallback())
    }

    /// What the node's runtime says of this model.
    pub fn state(&self, node: &str) -> Option<&'a ModelState> {
        self.seen.edge_nodes.get(node)?.status.as_ref()?.models.get(self.key())
    }

    /// The Node of this name.
    pub fn node(&self, name: &str) -> Option<&'a NodeView> {
        self.seen.nodes.get(name)
    }

    /// Whether the order is a pick: it has the placement's version, by this run or, once proven, by any.
    pub fn is_pick(&self, order: &ModelOrder) -> bool {
        let same = self.source().is_some() && serves(order) == digest(self.source());
        same && (self.is_settled() || order.run == self.placement.object.spec.run)
    }

    /// How a node stands to its order.
    pub fn standing(&self, node: &str, order: &ModelOrder) -> Standing {
        standing(order, self.state(node), self.node(node), self.now)
    }

    fn is_skipped(&self, node: &str, version: Option<&Digest>) -> bool {
        self.state(node)
            .is_some_and(|s| s.state == VersionState::Skipped && s.digest.as_ref() == version)
    }

    /// Matches the selector, Node and runtime Ready, not cordoned, has an EdgeNode, has not skipped the version.
    pub fn is_eligible(&self, node: &str, version: Option<&Digest>) -> bool {
        self.seen.edge_nodes.contains_key(node)
            && self
                .node(node)
                .is_some_and(|n| n.is_reachable() && !n.cordoned && self.placement.selects(&n.labels))
            && !self.is_skipped(node, version)
    }

    /// The highest epoch that any node has been ordered or has taken for this model.
    pub fn highest_epoch(&self) -> i64 {
        let of = |node: &EdgeNode| {
            let ordered = node.spec.models.get(self.key()).map_or(0, |o| o.epoch);
            let taken = node.status.as_ref().and_then(|s| s.models.get(self.key()));
            ordered.max(taken.map_or(0, |s| s.epoch))
        };
        self.seen.edge_nodes.values().map(of).max().unwrap_or(0)
    }

    /// The order is for the proven version: a late joiner's, or that of a node which has returned or had it before.
    pub fn is_for_proven(&self, order: &ModelOrder) -> bool {
        serves(order).is_some() && serves(order) == digest(self.fallback())
    }

    /// Late joiners get the proven version: nodes without an order, and nodes that missed it.
    pub fn is_late(&self, node: &str, present: Option<&ModelOrder>) -> bool {
        let Some(proven) = digest(self.fallback()) else {
            return false;
        };
        let has = present.and_then(serves);
        let has_either = has.is_some() && (has == Some(proven) || has == digest(self.source()));
        !has_either && self.is_eligible(node, Some(proven))
    }

    fn order(&self, source: Option<&Source>, fallback: Option<&Source>) -> ModelOrder {
        let spec = &self.placement.object.spec;
        ModelOrder {
            epoch: spec.epoch,
            run: spec.run,
            source: source.cloned(),
            // A version is no way out of itself.
            fallback: fallback.filter(|f| digest(Some(f)) != digest(source)).cloned(),
            min_success_time: spec.min_success_time.clone(),
            progress_deadline: spec.progress_deadline.clone(),
            picked_at: Time(self.now),
            state: OrderState::Serve,
        }
    }
}

/// Composes this model's orders. `slots` says how many picks a class has spent on nodes that are gone. Returns why
/// nothing more was picked, where something stands in the way.
pub fn compose(model: &Model<'_>, slots: &BTreeMap<String, i32>, permitted: bool, orders: &mut Orders) -> Option<Held> {
    let spec = &model.placement.object.spec;
    if model.highest_epoch() > spec.epoch {
        return Some(Held::StaleOrder);
    }
    if spec.state == PlacementState::Remove {
        remove(model, orders);
        return None;
    }
    fall_back(model, orders);
    order_again(model, orders);
    if spec.state == PlacementState::Hold {
        return Some(Held::Hold);
    }
    if !permitted {
        return Some(Held::HubAway);
    }
    pick(model, slots, orders)
}

/// Every node that has an order gets the order to unload; one whose runtime has done so loses the entry.
fn remove(model: &Model<'_>, orders: &mut Orders) {
    let epoch = model.placement.object.spec.epoch;
    for (node, models) in orders.iter_mut() {
        let Some(order) = models.get(model.key()) else { continue };
        if order.state == OrderState::Remove {
            let done = |s: &ModelState| s.state == VersionState::Removed && s.epoch >= order.epoch;
            if model.state(node).is_some_and(done) {
                models.remove(model.key());
            }
        } else if order.epoch < epoch {
            let order = ModelOrder {
                state: OrderState::Remove,
                ..model.order(None, None)
            };
            models.insert(model.key().to_owned(), order);
        }
    }
}

/// A node refuses an order that is older than the last one it remembers: the model was removed there once, and nobody but
/// its disk knew by which epoch. Once the placement is above what the node names, it gets the same order again.
fn order_again(model: &Model<'_>, orders: &mut Orders) {
    let epoch = model.placement.object.spec.epoch;
    for (node, models) in orders.iter_mut() {
        let Some(order) = models.get_mut(model.key()) else {
            continue;
        };
        let forgotten = |s: &ModelState| s.state == VersionState::Removed && s.epoch > order.epoch;
        if order.state == OrderState::Serve && model.state(node).is_some_and(forgotten) {
            order.epoch = epoch;
            order.picked_at = Time(model.now);
        }
    }
}

/// Nodes with an aborted version return to the proven one, or to none, all at once.
fn fall_back(model: &Model<'_>, orders: &mut Orders) {
    let spec = &model.placement.object.spec;
    for models in orders.values_mut() {
        let Some(order) = models.get(model.key()) else { continue };
        let aborted = serves(order).is_some_and(|digest| spec.aborted.contains(digest));
        if aborted && order.epoch < spec.epoch {
            models.insert(model.key().to_owned(), model.order(model.fallback(), None));
        }
    }
}

fn pick(model: &Model<'_>, slots: &BTreeMap<String, i32>, orders: &mut Orders) -> Option<Held> {
    let spec = &model.placement.object.spec;
    let (mut in_flight, mut late) = (0, 0);
    let mut failed = 0;
    let mut picked = slots.clone();
    for (node, models) in &*orders {
        let Some(order) = models.get(model.key()) else { continue };
        if serves(order).is_none() {
            continue;
        }
        let standing = model.standing(node, order);
        let on_its_way = i32::from(matches!(standing, Standing::InFlight { .. }));
        if model.is_for_proven(order) {
            late += on_its_way;
        } else {
            in_flight += on_its_way;
        }
        if model.is_pick(order) && standing != Standing::Skipped {
            failed += i32::from(matches!(standing, Standing::Failed { .. }));
            *picked.entry(class_of(model, node).to_owned()).or_default() += 1;
        }
    }
    if failed > spec.max_failed {
        return Some(Held::Failures);
    }

    for node in candidates(model, orders) {
        let Some(models) = orders.get_mut(&node) else { continue };
        let present = models.get(model.key());
        if present.is_none() && models.len() >= MAX_MODELS {
            continue;
        }
        let class = class_of(model, &node).to_owned();
        let activate = spec.classes.get(&class).map_or(0, |c| c.activate);
        let taken = picked.get(&class).copied().unwrap_or(0);
        let wave = !model.is_settled() && taken < activate && model.is_eligible(&node, digest(model.source()));
        let order = if wave && in_flight < spec.max_in_flight {
            in_flight += 1;
            *picked.entry(class).or_default() += 1;
            model.order(model.source(), model.fallback())
        } else if !wave && late < spec.max_late && model.is_late(&node, present) {
            late += 1;
            // Between runs a node that missed the proven version has an older one, which it may return to.
            let before = present.and_then(|o| o.source.as_ref()).filter(|_| model.is_settled());
            model.order(model.fallback(), before)
        } else {
            continue;
        };
        let order = ModelOrder {
            fallback: order.fallback.filter(|f| !spec.aborted.contains(&f.digest)),
            ..order
        };
        models.insert(model.key().to_owned(), order);
    }
    None
}

/// Nodes that could be given an order, in a stable order that differs from model to model and run to run, so that it
/// is not always the same node that goes first. Those that have the version already (from an earlier run) lead.
fn candidates(model: &Model<'_>, orders: &Orders) -> Vec<String> {
    let run = model.placement.object.spec.run;
    let mut out: Vec<(bool, [u8; 32], &String)> = Vec::new();
    for (node, models) in orders {
        let order = models.get(model.key());
        if order.is_some_and(|o| model.is_pick(o)) || model.node(node).is_none() {
            continue;
        }
        let has_it = order.is_some_and(|o| serves(o).is_some() && serves(o) == digest(model.source()));
        let hash = sha2::Sha256::digest(format!("{}\n{run}\n{node}", model.key()));
        out.push((!has_it, hash.into(), node));
    }
    out.sort();
    out.into_iter().map(|(_, _, node)| node.clone()).collect()
}

/// The class of a node: of the Node while there is one, of its EdgeNode after.
pub fn class_of<'a>(model: &Model<'a>, node: &str) -> &'a str {
    let own = model.seen.edge_nodes.get(node).map_or("", |n| n.spec.class.as_str());
    model.node(node).map_or(own, |n| n.class.as_str())
}
