//! A model of a hub, its device clusters and their nodes, driven by the real pure functions of both controllers.
//!
//! It keeps resourceVersions, generations, finalizers and the CRDs' rule that epochs only grow. Controllers may see
//! stale copies and die between any two writes; nodes fail, go dark, are slow; clusters are cut from the hub. It
//! simplifies: one rollout of one model, no watches (every controller looks once a round), a runtime that answers within
//! a round or never, no API server of its own for each device cluster (EdgeNodes are written at once).
//! What must always hold is checked at every write; a violation panics.

mod edge;
mod hub;
mod invariants;

use crate::testing::model_node::ModelNode;
use fleetune_crds::common::Digest;
use fleetune_crds::{EdgeNode, ModelPlacement, ModelRollout, ModelVersion, RolloutAction, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
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
    /// What became of people's words, by name: taken or not, and why.
    pub answers: BTreeMap<String, (bool, String)>,
    /// Nodes that were last ordered to leave an aborted version, which needs no permission.
    returning: BTreeSet<String>,
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
            answers: BTreeMap::new(),
            returning: BTreeSet::new(),
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
        self.publish_with_contract(n, "contract");
    }

    /// Publishes version `n`, whose contract is the hash of `contract`.
    pub fn publish_with_contract(&mut self, n: u32, contract: &str) {
        let (digest, contract) = (digest(n), Digest::of(contract.as_bytes()));
        let object = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelVersion",
            "metadata": { "name": format!("{MODEL}-{n}"), "namespace": NAMESPACE },
            "spec": {
                "modelName": MODEL, "sequence": n, "task": "Classification",
                "source": {
                    "repository": "registry.test/m", "digest": digest, "report": digest, "signature": digest,
                    "contract": contract,
                },
                "summary": {
                    "samples": 100, "metrics": {}, "baseline": "majority", "baselineMetrics": {}, "bytes": 1,
                    "p95LatencyMs": "1", "peakMemoryBytes": 1, "contract": contract,
                },
                "dataManifest": digest, "baseModelSha256": "0".repeat(64), "job": "j",
                "publishedAt": Time(self.now),
            },
        });
        self.versions.push(serde_json::from_value(object).unwrap());
    }

    /// Says a word on a run, as a person would: an Approve where a stage is named, else an Abort.
    pub fn say(&mut self, name: &str, run: i64, stage_hash: &str, stage: Option<&str>) {
        let action = if stage.is_some() { "Approve" } else { "Abort" };
        let object = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "RolloutAction",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "rollout": "r", "run": run, "stageHash": stage_hash, "action": action, "stage": stage, "by": "someone" },
        });
        self.actions.push(serde_json::from_value(object).unwrap());
    }

    /// A node joins a cluster.
    pub fn join(&mut self, cluster: &str, name: &str, class: &str) {
        let node = ModelNode::new(class, self.now);
        let device = self.devices.get_mut(cluster).unwrap();
        device.nodes.insert(name.to_owned(), node);
    }

    /// Says how a version fares on every node.
    pub fn fate(&mut self, digest: &Digest, fate: crate::testing::model_node::Fate) {
        for node in self.devices.values_mut().flat_map(|d| d.nodes.values_mut()) {
            node.fate(digest, fate);
        }
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
}
