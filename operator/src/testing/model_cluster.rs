//! A model of a hub, its device clusters and their nodes, driven by the real pure functions of both controllers.
//!
//! It keeps resourceVersions, generations, finalizers and the CRDs' rule that epochs only grow. Controllers may see
//! stale copies and die between any two writes; nodes fail, go dark, are slow; clusters are cut from the hub. It
//! simplifies: one rollout of one model, no watches (every controller looks once a round), a runtime that answers within
//! a round or never, no API server of its own for each device cluster (EdgeNodes are written at once).
//! What must always hold is checked at every write; a violation panics.

use crate::edge::observe::{ABSENT_SINCE, NodeView, Observed as EdgeObserved};
use crate::edge::plan::{Step as EdgeStep, plan as edge_plan};
use crate::edge::validate::{Settings, validate as edge_validate};
use crate::modelrollout::observe as hub_observe;
use crate::modelrollout::plan::{Step as HubStep, plan as hub_plan};
use crate::modelrollout::validate::validate as hub_validate;
use crate::testing::model_node::ModelNode;
use fleetune_crds::common::Digest;
use fleetune_crds::{
    DeviceCluster, EdgeNode, EdgeNodeSpec, EdgeNodeStatus, ModelPlacement, ModelPlacementStatus, ModelRollout,
    ModelVersion, RolloutAction, RunState, VersionState, names,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Length of a round.
pub const ROUND: SignedDuration = SignedDuration::from_secs(10);
/// A cluster that has not been heard for so long is unreachable; also the activation's time to live.
pub const UNREACHABLE_AFTER: SignedDuration = SignedDuration::from_mins(5);
/// The model of all simulations.
pub const MODEL: &str = "shirts";
/// Its namespace.
pub const NAMESPACE: &str = "shop";

/// A controller that died in the middle of its writes.
pub struct Died;

/// One device cluster.
#[derive(Clone)]
pub struct ModelDevice {
    /// Hub and cluster reach each other.
    pub connected: bool,
    /// What lies on the hub for it.
    pub placement: Option<ModelPlacement>,
    /// Its nodes, by name.
    pub nodes: BTreeMap<String, ModelNode>,
    /// Their EdgeNodes.
    pub edge_nodes: BTreeMap<String, EdgeNode>,
    heard_at: Timestamp,
    answered_at: Option<Timestamp>,
    /// What the edge controller last read from the hub.
    known: Option<ModelPlacement>,
}

/// What a controller of the hub reads.
#[derive(Clone)]
struct HubView {
    rollout: ModelRollout,
    placements: BTreeMap<String, ModelPlacement>,
}

/// Everything.
#[derive(Clone)]
pub struct World {
    /// Now.
    pub now: Timestamp,
    /// The one rollout; none once it is gone.
    pub rollout: Option<ModelRollout>,
    /// Other rollouts of the namespace, uid to name.
    pub others: BTreeMap<String, String>,
    /// Published versions.
    pub versions: Vec<ModelVersion>,
    /// People's words.
    pub actions: Vec<RolloutAction>,
    /// Device clusters by name.
    pub devices: BTreeMap<String, ModelDevice>,
    /// Writes of both controllers so far.
    pub writes: usize,
    /// Writes left until the controller that writes dies.
    pub until_death: Option<usize>,
    /// No node ever goes dark, no cluster is cut: the limit over all clusters can be checked.
    pub calm: bool,
    /// Nodes that were ever ordered to have a version, by digest.
    pub ordered: BTreeMap<String, BTreeSet<String>>,
    version: u64,
    last_hub_view: Option<HubView>,
}

/// A digest that stands for version `n`.
pub fn digest(n: u32) -> Digest {
    Digest::of(&n.to_be_bytes())
}

impl World {
    /// Clusters `dc-0`, `dc-1`, … with the given numbers of nodes of each class.
    pub fn new(clusters: &[Vec<(&str, u32)>], spec: &serde_json::Value) -> Self {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let mut world = Self {
            now,
            rollout: None,
            others: BTreeMap::new(),
            versions: Vec::new(),
            actions: Vec::new(),
            devices: BTreeMap::new(),
            writes: 0,
            until_death: None,
            calm: true,
            ordered: BTreeMap::new(),
            version: 1,
            last_hub_view: None,
        };
        for (i, classes) in clusters.iter().enumerate() {
            let mut nodes = BTreeMap::new();
            for (class, count) in classes {
                for n in 0..*count {
                    nodes.insert(format!("dc-{i}-{class}-{n}"), ModelNode::new(class, now));
                }
            }
            let device = ModelDevice {
                connected: true,
                placement: None,
                nodes,
                edge_nodes: BTreeMap::new(),
                heard_at: now,
                answered_at: None,
                known: None,
            };
            world.devices.insert(format!("dc-{i}"), device);
        }
        world.make_rollout("uid-1", spec);
        world
    }

    /// Makes the rollout anew.
    pub fn make_rollout(&mut self, uid: &str, spec: &serde_json::Value) {
        let object = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelRollout",
            "metadata": { "name": "r", "namespace": NAMESPACE, "uid": uid, "generation": 1, "resourceVersion": "1" },
            "spec": spec,
        });
        self.rollout = Some(serde_json::from_value(object).unwrap());
    }

    /// Changes the rollout's spec as a person would.
    pub fn edit(&mut self, change: impl FnOnce(&mut fleetune_crds::ModelRolloutSpec)) {
        self.version += 1;
        let version = self.version.to_string();
        let rollout = self.rollout.as_mut().unwrap();
        change(&mut rollout.spec);
        rollout.metadata.generation = rollout.metadata.generation.map(|g| g + 1);
        rollout.metadata.resource_version = Some(version);
    }

    /// Deletes the rollout as a person would: its finalizer holds it.
    pub fn delete_rollout(&mut self) {
        self.version += 1;
        let (version, now) = (self.version.to_string(), self.now);
        let rollout = self.rollout.as_mut().unwrap();
        rollout.metadata.deletion_timestamp = Some(Time(now));
        rollout.metadata.resource_version = Some(version);
    }

    /// Publishes version `n`.
    pub fn publish(&mut self, n: u32) {
        let digest = digest(n);
        let object = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelVersion",
            "metadata": { "name": format!("{MODEL}-{n}"), "namespace": NAMESPACE },
            "spec": {
                "modelName": MODEL, "sequence": n, "task": "Classification",
                "source": {
                    "repository": "registry.test/m", "digest": digest, "report": digest, "signature": digest,
                    "contract": Digest::of(b"contract"),
                },
                "summary": {
                    "samples": 100, "metrics": {}, "baseline": "majority", "baselineMetrics": {}, "bytes": 1,
                    "p95LatencyMs": "1", "peakMemoryBytes": 1, "contract": Digest::of(b"contract"),
                },
                "dataManifest": digest, "baseModelSha256": "0".repeat(64), "job": "j",
                "publishedAt": Time(self.now),
            },
        });
        self.versions.push(serde_json::from_value(object).unwrap());
    }

    /// The rollout's status.
    pub fn status(&self) -> fleetune_crds::ModelRolloutStatus {
        self.rollout.as_ref().and_then(|r| r.status.clone()).unwrap_or_default()
    }

    /// The rollout's phase.
    pub fn phase(&self) -> String {
        self.status().phase.unwrap_or_default()
    }

    /// What each node serves, by node.
    pub fn serving(&self) -> BTreeMap<String, Option<Digest>> {
        let nodes = self.devices.values().flat_map(|d| &d.nodes);
        nodes
            .map(|(name, node)| (name.clone(), node.state.active.clone()))
            .collect()
    }

    fn key() -> String {
        names::model_key(NAMESPACE, MODEL)
    }

    /// One round: time passes, everyone looks once.
    pub fn round(&mut self) {
        self.now += ROUND;
        self.hub(false);
        let names: Vec<String> = self.devices.keys().cloned().collect();
        for name in names {
            self.edge(&name, false);
            self.runtimes(&name);
        }
    }

    /// Rounds until nothing is written for `quiet` rounds; how many rounds it took. Panics after `most`.
    pub fn settle(&mut self, quiet: usize, most: usize) -> usize {
        let mut still = 0;
        for round in 0..most {
            let before = self.writes;
            self.round();
            still = if self.writes == before { still + 1 } else { 0 };
            if still >= quiet {
                return round;
            }
        }
        panic!("no rest after {most} rounds: {:#?}", self.status());
    }

    /// A write is about to happen: it counts, or the writer is dead.
    fn write(&mut self) -> Result<String, Died> {
        if let Some(left) = &mut self.until_death {
            if *left == 0 {
                return Err(Died);
            }
            *left -= 1;
        }
        self.writes += 1;
        self.version += 1;
        Ok(self.version.to_string())
    }

    // === the hub

    /// One look of the hub's controller; with `stale` from what it saw at its last look.
    pub fn hub(&mut self, stale: bool) {
        let Some(rollout) = self.rollout.clone() else { return };
        let fresh = HubView {
            rollout,
            placements: self
                .devices
                .iter()
                .filter_map(|(name, d)| Some((name.clone(), d.placement.clone()?)))
                .collect(),
        };
        let view = match self.last_hub_view.take().filter(|_| stale) {
            Some(old) => old,
            None => fresh.clone(),
        };
        self.last_hub_view = Some(fresh);
        let _ = self.hub_pass(&view);
    }

    fn hub_pass(&mut self, view: &HubView) -> Result<(), Died> {
        let want = hub_validate(&view.rollout).unwrap();
        let clusters = self.devices.keys().map(|name| {
            let object = json!({
                "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster",
                "metadata": { "name": name, "labels": { "name": name } }, "spec": { "mode": "Pull" },
                "status": { "namespace": names::cluster_namespace(name) },
            });
            serde_json::from_value::<DeviceCluster>(object).unwrap()
        });
        let mut rollouts = self.others.clone();
        rollouts.insert(want.uid.clone(), want.name.clone());
        let heard: BTreeMap<&str, Timestamp> = self.devices.iter().map(|(n, d)| (n.as_str(), d.heard_at)).collect();
        let placements = view.placements.values().cloned();
        let seen = hub_observe::Observed {
            versions: hub_observe::versions(&want, self.versions.clone()),
            actions: hub_observe::actions(&want, self.actions.clone()),
            clusters: hub_observe::clusters(&want, clusters, placements, |name| heard[name] + UNREACHABLE_AFTER),
            rollouts,
        };
        let prev = view.rollout.status.clone().unwrap_or_default();
        let plan = hub_plan(&want, &seen, &prev, self.now);
        assert_eq!(plan, hub_plan(&want, &seen, &prev, self.now), "equal input, equal plan");

        let mut version = view.rollout.metadata.resource_version.clone();
        if view.rollout.status.as_ref() != Some(&plan.status) {
            let current = self.rollout.as_ref().and_then(|r| r.metadata.resource_version.clone());
            if current != version {
                return Ok(()); // a conflict
            }
            let next = self.write()?;
            self.check_run(&prev, &plan.status);
            let rollout = self.rollout.as_mut().unwrap();
            rollout.status = Some(plan.status.clone());
            rollout.metadata.resource_version = Some(next.clone());
            version = Some(next);
        }
        let mut failed = false;
        for step in &plan.steps {
            match step {
                HubStep::RemoveFinalizer { .. } if failed => {}
                HubStep::AddFinalizer | HubStep::RemoveFinalizer { .. } => {
                    let current = self.rollout.as_ref().and_then(|r| r.metadata.resource_version.clone());
                    if current != version {
                        return Ok(());
                    }
                    let next = self.write()?;
                    if *step == HubStep::AddFinalizer {
                        let rollout = self.rollout.as_mut().unwrap();
                        rollout.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
                        rollout.metadata.resource_version = Some(next);
                    } else {
                        self.rollout = None;
                    }
                }
                HubStep::Answer { .. } => {}
                HubStep::Create { cluster, spec } => {
                    if self.devices[cluster].placement.is_some() {
                        failed = true;
                        continue;
                    }
                    let next = self.write()?;
                    let mut object = ModelPlacement::new(&names::placement_name(NAMESPACE, MODEL), *spec.clone());
                    object.metadata.namespace = Some(names::cluster_namespace(cluster));
                    object.metadata.generation = Some(1);
                    object.metadata.resource_version = Some(next);
                    self.devices.get_mut(cluster).unwrap().placement = Some(object);
                }
                HubStep::Write {
                    cluster,
                    resource_version,
                    spec,
                } => {
                    let current = self.devices[cluster].placement.as_ref();
                    if current.and_then(ResourceExt::resource_version).as_ref() != Some(resource_version) {
                        failed = true;
                        continue;
                    }
                    let next = self.write()?;
                    let object = self.devices.get_mut(cluster).unwrap().placement.as_mut().unwrap();
                    assert!(spec.epoch >= object.spec.epoch, "epochs only grow");
                    object.spec = *spec.clone();
                    object.metadata.generation = object.metadata.generation.map(|g| g + 1);
                    object.metadata.resource_version = Some(next);
                }
                HubStep::Delete { cluster, .. } => {
                    self.write()?;
                    self.devices.get_mut(cluster).unwrap().placement = None;
                }
            }
        }
        Ok(())
    }

    /// What must hold when the status moves.
    fn check_run(&self, prev: &fleetune_crds::ModelRolloutStatus, next: &fleetune_crds::ModelRolloutStatus) {
        assert!(next.epoch >= prev.epoch, "epochs only grow");
        let Some(run) = &next.run else { return };
        for (i, pair) in run.waves.windows(2).enumerate() {
            assert!(
                pair[0].passed_at.is_some(),
                "wave {} started before the one before passed",
                i + 1
            );
            assert!(pair[1].nodes >= pair[0].nodes, "waves are cumulative");
        }
        let old = prev.run.as_ref().filter(|r| r.number == run.number);
        if let Some(old) = old {
            for (a, b) in old.waves.iter().zip(&run.waves) {
                assert!(a.name != b.name || a.nodes == b.nodes, "a wave's size is fixed");
            }
            let both = old.waves.iter().zip(&run.waves);
            let passed = both
                .filter(|(a, b)| a.passed_at.is_none() && b.passed_at.is_some())
                .count();
            if passed > 0 && old.stage_hash == run.stage_hash {
                self.check_pass(&run.digest, run.number);
            }
        }
    }

    /// A wave passes: what the hub was told of proven nodes must be true.
    fn check_pass(&self, version: &Digest, run: i64) {
        let strategy = &self.rollout.as_ref().unwrap().spec.strategy;
        let quorum: usize = strategy.quorum.as_str().trim_end_matches('%').parse().unwrap();
        let (mut picks, mut proven, mut failed) = (0, 0, 0);
        for device in self.devices.values() {
            for (name, edge_node) in &device.edge_nodes {
                let order = edge_node.spec.models.get(&Self::key());
                let pick =
                    order.is_some_and(|o| o.run == run && o.source.as_ref().is_some_and(|s| s.digest == *version));
                let state = device.nodes.get(name).map(|n| &n.state);
                if let (true, Some(state)) = (pick, state) {
                    if state.digest.as_ref() == Some(version) && state.state == VersionState::Skipped {
                        continue;
                    }
                    picks += 1;
                    let is = |s| state.digest.as_ref() == Some(version) && state.state == s;
                    proven += usize::from(is(VersionState::Proven));
                    failed += i32::from(is(VersionState::Failed));
                }
            }
        }
        assert!(picks > 0, "an empty wave never passes");
        assert!(proven * 100 >= quorum * picks, "passed with {proven} proven of {picks}");
        // Of a node that fails while its cluster is cut off nobody can know: the wave passes by its quorum.
        if self.calm {
            assert!(failed <= strategy.max_failures, "passed with {failed} failed");
        }
    }

    // === the edge

    /// One look of a cluster's controller; with `stale` from what it last knew of the hub.
    pub fn edge(&mut self, cluster: &str, stale: bool) {
        let now = self.now;
        let device = self.devices.get_mut(cluster).unwrap();
        if device.connected {
            device.heard_at = now;
            device.answered_at = Some(now);
            if !stale {
                device.known = device.placement.clone();
            }
        }
        let _ = self.edge_pass(cluster);
    }

    fn edge_pass(&mut self, cluster: &str) -> Result<(), Died> {
        let device = &self.devices[cluster];
        let nodes = device.nodes.iter().filter(|(_, n)| !n.gone);
        let seen = EdgeObserved {
            placements: device.known.iter().cloned().collect(),
            nodes: nodes
                .map(|(name, node)| (name.clone(), node.view()))
                .collect::<BTreeMap<String, NodeView>>(),
            edge_nodes: device.edge_nodes.clone(),
            hub_answered_at: device.answered_at,
        };
        let want = edge_validate(&seen.placements);
        let plan = edge_plan(&want, &Settings::default(), &seen, self.now);
        assert_eq!(
            plan,
            edge_plan(&want, &Settings::default(), &seen, self.now),
            "equal input, equal plan"
        );
        for step in plan.steps {
            match step {
                EdgeStep::CreateNode { name, class } => {
                    let next = self.write()?;
                    let mut object = EdgeNode::new(
                        &name,
                        EdgeNodeSpec {
                            class,
                            models: BTreeMap::new(),
                        },
                    );
                    object.metadata.resource_version = Some(next);
                    object.metadata.generation = Some(1);
                    self.devices.get_mut(cluster).unwrap().edge_nodes.insert(name, object);
                }
                EdgeStep::WriteNode {
                    name,
                    resource_version,
                    spec,
                    absent_since,
                } => {
                    let next = self.write()?;
                    let device = self.devices.get_mut(cluster).unwrap();
                    let object = device.edge_nodes.get_mut(&name).unwrap();
                    assert_eq!(object.resource_version().unwrap(), resource_version);
                    if let Some(spec) = spec {
                        check_orders(&object.spec, &spec);
                        for order in spec.models.values() {
                            if let Some(source) = &order.source {
                                let all = self.ordered.entry(source.digest.to_string()).or_default();
                                all.insert(name.clone());
                            }
                        }
                        object.spec = spec;
                        object.metadata.generation = object.metadata.generation.map(|g| g + 1);
                    }
                    match absent_since {
                        Some(Some(at)) => {
                            object.annotations_mut().insert(ABSENT_SINCE.into(), at.to_string());
                        }
                        Some(None) => {
                            object.annotations_mut().remove(ABSENT_SINCE);
                        }
                        None => {}
                    }
                    object.metadata.resource_version = Some(next);
                }
                EdgeStep::DeleteNode { name, .. } => {
                    self.write()?;
                    self.devices.get_mut(cluster).unwrap().edge_nodes.remove(&name);
                }
                EdgeStep::Report { status, .. } => {
                    self.check_picks();
                    if !self.devices[cluster].connected {
                        return Ok(());
                    }
                    self.report(cluster, *status)?;
                }
            }
        }
        self.check_picks();
        Ok(())
    }

    fn report(&mut self, cluster: &str, status: ModelPlacementStatus) -> Result<(), Died> {
        let next = self.write()?;
        let device = self.devices.get_mut(cluster).unwrap();
        if let Some(object) = device.placement.as_mut() {
            object.status = Some(status);
            object.metadata.resource_version = Some(next);
        }
        Ok(())
    }

    /// No more nodes have the running version than its wave has; no more are on their way than may be.
    fn check_picks(&self) {
        let status = self.status();
        let Some(run) = status.run.filter(|r| r.state == RunState::Progressing) else {
            return;
        };
        let limit = run.waves.last().map_or(0, |w| w.nodes);
        let (mut picks, mut in_flight) = (0, 0);
        for device in self.devices.values() {
            for (name, edge_node) in &device.edge_nodes {
                let Some(order) = edge_node.spec.models.get(&Self::key()) else {
                    continue;
                };
                if order.run != run.number || order.source.as_ref().is_none_or(|s| s.digest != run.digest) {
                    continue;
                }
                let state = device.nodes.get(name).map(|n| &n.state);
                let state = state.filter(|s| s.epoch >= order.epoch && s.digest.as_ref() == Some(&run.digest));
                let state = state.map(|s| s.state);
                picks += i32::from(state != Some(VersionState::Skipped));
                // One that missed its deadline has failed.
                let deadline = SignedDuration::try_from(order.progress_deadline.get()).unwrap();
                let late = self.now >= order.picked_at.0 + deadline;
                let told = !matches!(
                    state,
                    Some(VersionState::Active | VersionState::Proven | VersionState::Failed | VersionState::Skipped)
                );
                in_flight += i32::from(told && !late);
            }
        }
        assert!(picks <= limit, "{picks} picked in a wave of {limit}");
        if self.calm {
            let most = self.rollout.as_ref().unwrap().spec.strategy.max_unavailable.get();
            let most = most.of(limit.unsigned_abs()).max(1);
            assert!(
                in_flight.unsigned_abs() <= most,
                "{in_flight} on their way, {most} may be"
            );
        }
    }

    // === the nodes

    /// Every runtime of a cluster that is not dark looks at its EdgeNode once.
    pub fn runtimes(&mut self, cluster: &str) {
        let now = self.now;
        let device = self.devices.get_mut(cluster).unwrap();
        let mut version = self.version;
        for (name, node) in &mut device.nodes {
            let Some(edge_node) = device.edge_nodes.get_mut(name) else {
                continue;
            };
            if node.dark || node.gone {
                continue;
            }
            let order = edge_node.spec.models.get(&Self::key());
            node.look(order, now);
            // As the runtime does: a model that was removed is named only while somebody asks.
            let is_named = order.is_some() || node.state.state != VersionState::Removed;
            let status = EdgeNodeStatus {
                observed_generation: edge_node.metadata.generation,
                build: "0.1.0".into(),
                models: is_named
                    .then(|| (Self::key(), node.state.clone()))
                    .into_iter()
                    .collect(),
                conditions: Vec::new(),
            };
            if node.was_told() && edge_node.status.as_ref() != Some(&status) {
                version += 1;
                edge_node.status = Some(status);
                edge_node.meta_mut().resource_version = Some(version.to_string());
            }
        }
        self.version = version;
    }
}

/// What the EdgeNode's CRD checks, and that a key is never lost while it serves.
fn check_orders(old: &EdgeNodeSpec, new: &EdgeNodeSpec) {
    for (key, before) in &old.models {
        match new.models.get(key) {
            Some(after) => assert!(after.epoch >= before.epoch, "epochs only grow"),
            None => assert_eq!(
                before.state,
                fleetune_crds::OrderState::Remove,
                "absence is never an order"
            ),
        }
    }
}
