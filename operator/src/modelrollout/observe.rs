//! What the rollout controller has seen: versions, actions, device clusters with their placements and heartbeats. Facts
//! only; what follows from them is decided in `plan`.

use super::validate::Validated;
use fleetune_crds::common::Digest;
use fleetune_crds::{
    Action, ClassCounts, ClassOrder, DeviceCluster, ModelPlacement, ModelPlacementSpec, ModelPlacementStatus,
    ModelVersion, RolloutAction, Source, conditions, names,
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::SelectorExt;
use std::collections::BTreeMap;

/// One reading.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Versions of this model.
    pub versions: Vec<Version>,
    /// Actions that name this rollout.
    pub actions: Vec<ActionView>,
    /// Device clusters that are meant or that hold a placement of this model, by name.
    pub clusters: BTreeMap<String, Cluster>,
    /// Rollouts of this namespace, uid to name.
    pub rollouts: BTreeMap<String, String>,
}

/// A published version.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    /// Name of the ModelVersion.
    pub name: String,
    /// Order of publication.
    pub sequence: i64,
    /// Where it lies.
    pub source: Source,
}

/// A person's word.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionView {
    /// Name of the RolloutAction.
    pub name: String,
    /// Run that it is about.
    pub run: i64,
    /// List of stages that it is about.
    pub stage_hash: String,
    /// What to do.
    pub action: Action,
    /// Of an Approve: the stage.
    pub stage: Option<String>,
    /// Who.
    pub by: String,
    /// Its status says already what became of it.
    pub answered: bool,
}

/// One device cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The selector matches and the cluster allows this namespace.
    pub matched: bool,
    /// The hub has made its namespace.
    pub registered: bool,
    /// Unreachable from then on, unless its heart beats before.
    pub reachable_until: Timestamp,
    /// The placement of this model there.
    pub placement: Option<PlacementView>,
}

/// A placement as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacementView {
    /// Version of the object; writes are conditional on it.
    pub resource_version: String,
    /// Generation of the spec.
    pub generation: i64,
    /// The order.
    pub spec: ModelPlacementSpec,
    /// What the edge said last.
    pub status: ModelPlacementStatus,
}

impl PlacementView {
    /// A view of an object.
    pub fn of(object: &ModelPlacement) -> Self {
        Self {
            resource_version: object.resource_version().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or(0),
            spec: object.spec.clone(),
            status: object.status.clone().unwrap_or_default(),
        }
    }

    /// The status answers exactly this spec.
    pub fn is_answered(&self) -> bool {
        self.status.observed_epoch == self.spec.epoch && self.status.observed_generation == Some(self.generation)
    }

    /// Counts of a class with respect to run `run`; zero where the status is about another run.
    pub fn counts(&self, class: &str, run: i64) -> ClassCounts {
        let same = self.status.run == run && self.spec.run == run;
        let counts = self.status.classes.get(class).filter(|_| same);
        counts.cloned().unwrap_or_default()
    }

    /// Nodes of a class that the order permits in run `run`.
    pub fn permitted(&self, class: &str, run: i64) -> i32 {
        let order = self.spec.classes.get(class).filter(|_| self.spec.run == run);
        order.map_or(0, |o: &ClassOrder| o.activate)
    }

    /// All classes that order or status name.
    pub fn classes(&self) -> impl Iterator<Item = &str> {
        let all: std::collections::BTreeSet<&str> = self
            .spec
            .classes
            .keys()
            .chain(self.status.classes.keys())
            .map(String::as_str)
            .collect();
        all.into_iter()
    }

    /// Sum of a count over all classes, whatever the run.
    pub fn sum(&self, count: impl Fn(&ClassCounts) -> i32) -> i32 {
        self.status.classes.values().map(count).sum()
    }
}

impl Observed {
    /// Where the version with this digest lies: from its ModelVersion, or from an order that names it.
    pub fn source(&self, digest: &Digest) -> Option<Source> {
        let version = self.versions.iter().find(|v| v.source.digest == *digest);
        let ordered = || {
            let placements = self.clusters.values().filter_map(|c| c.placement.as_ref());
            placements
                .flat_map(|p| [p.spec.source.as_ref(), p.spec.fallback.as_ref()])
                .flatten()
                .find(|s| s.digest == *digest)
                .cloned()
        };
        version.map(|v| v.source.clone()).or_else(ordered)
    }
}

/// The versions of a model, in order of publication.
pub fn versions(want: &Validated, all: impl IntoIterator<Item = ModelVersion>) -> Vec<Version> {
    let mut out: Vec<Version> = all
        .into_iter()
        .filter(|v| v.spec.model_name == want.model && v.namespace().as_deref() == Some(&want.namespace))
        .map(|v| Version {
            name: v.name_any(),
            sequence: v.spec.sequence,
            source: v.spec.source,
        })
        .collect();
    out.sort_by(|a, b| (a.sequence, &a.name).cmp(&(b.sequence, &b.name)));
    out
}

/// The actions on a rollout, by name.
pub fn actions(want: &Validated, all: impl IntoIterator<Item = RolloutAction>) -> Vec<ActionView> {
    let mut out: Vec<ActionView> = all
        .into_iter()
        .filter(|a| a.spec.rollout == want.name && a.namespace().as_deref() == Some(&want.namespace))
        .map(|a| ActionView {
            name: a.name_any(),
            run: a.spec.run,
            stage_hash: a.spec.stage_hash.clone(),
            action: a.spec.action,
            stage: a.spec.stage.clone(),
            by: a.spec.by.clone(),
            answered: a
                .status
                .is_some_and(|s| conditions::get(&s.conditions, conditions::READY).is_some()),
        })
        .collect();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

/// The clusters that matter to a rollout. `reachable_until` says it of a cluster by name.
pub fn clusters(
    want: &Validated,
    clusters: impl IntoIterator<Item = DeviceCluster>,
    placements: impl IntoIterator<Item = ModelPlacement>,
    mut reachable_until: impl FnMut(&str) -> Timestamp,
) -> BTreeMap<String, Cluster> {
    let mut out = BTreeMap::new();
    for object in clusters {
        let name = object.name_any();
        let allowed = &object.spec.allowed_namespaces;
        let matched = want.clusters.matches(object.labels())
            && (allowed.is_empty() || allowed.contains(&want.namespace))
            && object.metadata.deletion_timestamp.is_none();
        let registered = object.status.as_ref().is_some_and(|s| s.namespace.is_some());
        if matched {
            out.insert(
                name.clone(),
                Cluster {
                    matched,
                    registered,
                    reachable_until: reachable_until(&name),
                    placement: None,
                },
            );
        }
    }
    for object in placements {
        let spec = &object.spec;
        let namespace = object.namespace().unwrap_or_default();
        let cluster = namespace.strip_prefix(names::CLUSTER_NAMESPACE_PREFIX);
        let ours = spec.namespace == want.namespace && spec.model_name == want.model;
        let named = object.name_any() == names::placement_name(&want.namespace, &want.model);
        let (Some(cluster), true) = (cluster, ours && named) else {
            continue;
        };
        let entry = out.entry(cluster.to_owned()).or_insert_with(|| Cluster {
            matched: false,
            registered: true,
            reachable_until: reachable_until(cluster),
            placement: None,
        });
        entry.placement = Some(PlacementView::of(&object));
    }
    out
}
