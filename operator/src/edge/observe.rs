//! What the edge controller has seen: placements of its cluster on the hub; Nodes, runtime pods and EdgeNodes at home.
//! Facts only; what follows from them is decided in `plan`.

use fleetune_crds::{EdgeNode, ModelPlacement, names};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Most hardware classes of a cluster; the rest is called [`OTHER_CLASS`].
pub const MAX_CLASSES: usize = 16;
/// The class of nodes that would make a seventeenth.
pub const OTHER_CLASS: &str = "other";
/// Annotation on an EdgeNode: since when its Node has been absent.
pub const ABSENT_SINCE: &str = "fleetune.dev/absent-since";

/// One reading of both clusters.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Placements as last read from the hub.
    pub placements: Vec<ModelPlacement>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeView>,
    /// EdgeNodes by name, listed after everything else.
    pub edge_nodes: BTreeMap<String, EdgeNode>,
    /// When the hub last answered a heartbeat.
    pub hub_answered_at: Option<Timestamp>,
}

/// What matters of a Node and its runtime pod.
#[allow(clippy::struct_excessive_bools, reason = "independent facts of two objects")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Hardware class.
    pub class: String,
    /// Labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Node condition Ready is True.
    pub ready: bool,
    /// A runtime pod is on the node.
    pub has_runtime: bool,
    /// A runtime pod is Ready.
    pub runtime_ready: bool,
    /// Cordoned, or being deleted.
    pub cordoned: bool,
    /// Since when both Node and runtime have been Ready; the time of the later of the two transitions.
    pub reachable_since: Timestamp,
}

impl NodeView {
    /// Node and runtime are Ready.
    pub fn is_reachable(&self) -> bool {
        self.ready && self.runtime_ready
    }
}

/// Nodes with their runtime pods. Pods that are being deleted do not count while another one is there.
pub fn node_views(nodes: &[Node], pods: &[Pod]) -> BTreeMap<String, NodeView> {
    let mut runtime: BTreeMap<&str, (bool, Timestamp)> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) else {
            continue;
        };
        let ready = pod_ready_since(pod);
        let entry = runtime.entry(node).or_insert((false, Timestamp::MIN));
        if let Some(since) = ready {
            // During a surge two pods are Ready for a moment: the node has been reachable since the earlier one.
            entry.1 = if entry.0 { entry.1.min(since) } else { since };
            entry.0 = true;
        }
    }
    let classes = class_names(nodes);
    nodes
        .iter()
        .filter_map(|node| {
            let name = node.metadata.name.clone()?;
            let (ready, node_since) = node_ready_since(node);
            let pod = runtime.get(name.as_str()).copied();
            let class = raw_class(node);
            let view = NodeView {
                class: if classes.contains(&class) {
                    class
                } else {
                    OTHER_CLASS.to_owned()
                },
                labels: node.metadata.labels.clone().unwrap_or_default(),
                ready,
                has_runtime: pod.is_some(),
                runtime_ready: pod.is_some_and(|(ready, _)| ready),
                cordoned: node.metadata.deletion_timestamp.is_some()
                    || node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false),
                reachable_since: node_since.max(pod.map_or(Timestamp::MIN, |(_, since)| since)),
            };
            Some((name, view))
        })
        .collect()
}

fn raw_class(node: &Node) -> String {
    let label = node.metadata.labels.as_ref().and_then(|l| l.get(names::LABEL_CLASS));
    let architecture = || Some(node.status.as_ref()?.node_info.as_ref()?.architecture.clone());
    label
        .cloned()
        .or_else(architecture)
        .filter(|class| !class.is_empty() && class.len() <= 63)
        .unwrap_or_else(|| OTHER_CLASS.to_owned())
}

fn class_names(nodes: &[Node]) -> BTreeSet<String> {
    let all: BTreeSet<String> = nodes.iter().map(raw_class).collect();
    if all.len() <= MAX_CLASSES {
        return all;
    }
    all.into_iter().take(MAX_CLASSES - 1).collect()
}

fn node_ready_since(node: &Node) -> (bool, Timestamp) {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready");
    let since = ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
    (
        ready.is_some_and(|c| c.status == "True"),
        since.unwrap_or(Timestamp::MIN),
    )
}

fn pod_ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|c| c.type_ == "Ready")?;
    (ready.status == "True").then(|| ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0))
}
