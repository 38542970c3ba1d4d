//! Who may do what with this project's kinds: the table of `docs/access.md` as data. The charts' RBAC is compared with
//! it by a test, and the tests against a real API server try every verb outside it.

/// One component that speaks to an API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// `fleetune-operator hub`, on the hub.
    Hub,
    /// `fleetune-operator edge` of one cluster, on the hub, in that cluster's namespace only.
    EdgeOnHub,
    /// An edge controller, there or on the hub, on the device cluster.
    Edge,
    /// What `fleetune-operator edge` has beside that on its own cluster.
    PullEdge,
    /// `fleetune-worker node`, on the device cluster.
    Node,
}

/// Where a right holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the whole cluster.
    Cluster,
    /// In the namespace of the operator alone.
    Operator,
    /// In the namespace of the node runtime alone.
    NodeRuntime,
    /// On the hub, in the namespace of the device cluster alone.
    DeviceCluster,
}

/// A rule in the form of RBAC: group, resource (with subresource) and verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub actor: Actor,
    /// Where.
    pub scope: Scope,
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Resource, with its subresource after a slash.
    pub resource: &'static str,
    /// The only object names that are meant; empty for all.
    pub names: &'static [&'static str],
    /// Verbs, sorted.
    pub verbs: &'static [&'static str],
}

const fn grant(actor: Actor, group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Grant {
    let scope = match actor {
        Actor::EdgeOnHub => Scope::DeviceCluster,
        Actor::Hub | Actor::Edge | Actor::PullEdge | Actor::Node => Scope::Cluster,
    };
    Grant {
        actor,
        scope,
        group,
        resource,
        names: &[],
        verbs,
    }
}

impl Grant {
    const fn within(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    const fn named(self, names: &'static [&'static str]) -> Self {
        Self { names, ..self }
    }
}

const READ: &[&str] = &["get", "list", "watch"];
const STATUS: &[&str] = &["patch"];
const WRITE: &[&str] = &["create", "delete", "get", "list", "patch", "watch"];
const ACCESS: &[&str] = &["create", "delete", "get", "patch"];
const EDGE_ACCESS: &[&str] = &[crate::names::EDGE_ACCOUNT];
const OURS: &str = crate::names::GROUP;

/// Every right that a component has; nothing else is granted by the charts.
pub const GRANTS: &[Grant] = &[
    // The hub controllers read what people write, and write versions, placements and status.
    grant(
        Actor::Hub,
        OURS,
        "finetunejobs",
        &["delete", "get", "list", "patch", "watch"],
    ),
    grant(Actor::Hub, OURS, "finetunejobs/status", STATUS),
    grant(Actor::Hub, OURS, "modelrollouts", &["get", "list", "patch", "watch"]),
    grant(Actor::Hub, OURS, "modelrollouts/status", STATUS),
    grant(Actor::Hub, OURS, "rolloutactions", READ),
    grant(Actor::Hub, OURS, "rolloutactions/status", STATUS),
    grant(Actor::Hub, OURS, "deviceclusters", &["get", "list", "patch", "watch"]),
    grant(Actor::Hub, OURS, "deviceclusters/status", STATUS),
    // Versions are immutable; which one is the latest is read from the list. Old ones go beyond a history limit.
    grant(
        Actor::Hub,
        OURS,
        "modelversions",
        &["create", "delete", "list", "watch"],
    ),
    grant(Actor::Hub, OURS, "modelplacements", WRITE),
    // Push mode runs the edge controller inside the hub operator.
    grant(Actor::Hub, OURS, "modelplacements/status", STATUS),
    grant(Actor::Hub, "batch", "jobs", WRITE),
    // What lies in a job's namespace goes with the job; at home there is no owner to follow.
    grant(Actor::Hub, "", "configmaps", &["create", "get"]),
    grant(Actor::Hub, "", "configmaps", &["delete"]).within(Scope::Operator),
    grant(Actor::Hub, "", "pods", &["list"]),
    grant(Actor::Hub, "", "namespaces", &["create", "get"]),
    // The access of Pull agents. All of it has one name and is made by server-side apply, whose right to create can be
    // limited to a name, which that of a POST cannot.
    grant(Actor::Hub, "", "serviceaccounts", ACCESS).named(EDGE_ACCESS),
    grant(Actor::Hub, "", "serviceaccounts/token", &["create"]).named(EDGE_ACCESS),
    grant(Actor::Hub, "rbac.authorization.k8s.io", "rolebindings", ACCESS).named(EDGE_ACCESS),
    grant(Actor::Hub, "", "secrets", ACCESS).named(EDGE_ACCESS),
    // Kubeconfigs of Push clusters are read at home.
    grant(Actor::Hub, "", "secrets", &["get"]).within(Scope::Operator),
    // Heartbeats are made and watched everywhere, and renewed for Push clusters; the own Lease is renewed at home.
    grant(
        Actor::Hub,
        "coordination.k8s.io",
        "leases",
        &["create", "get", "list", "watch"],
    ),
    grant(Actor::Hub, "coordination.k8s.io", "leases", &["patch"]).named(&[crate::names::LEASE_HEARTBEAT]),
    grant(Actor::Hub, "coordination.k8s.io", "leases", &["patch"])
        .named(&[crate::names::LEASE_HUB])
        .within(Scope::Operator),
    grant(Actor::Hub, "events.k8s.io", "events", &["create", "patch"]),
    // An edge controller on the hub: read its placements, report on them, beat its heart, and read the one Secret that
    // holds its own kubeconfig, whose token is renewed there. Nothing else, nowhere else.
    grant(Actor::EdgeOnHub, OURS, "modelplacements", READ),
    grant(Actor::EdgeOnHub, OURS, "modelplacements/status", STATUS),
    grant(Actor::EdgeOnHub, "coordination.k8s.io", "leases", &["get", "patch"]).named(&[crate::names::LEASE_HEARTBEAT]),
    grant(Actor::EdgeOnHub, "", "secrets", &["get"]).named(EDGE_ACCESS),
    // An edge controller at home.
    grant(Actor::Edge, OURS, "edgenodes", WRITE),
    grant(Actor::Edge, "", "nodes", READ),
    grant(Actor::Edge, "", "pods", READ).within(Scope::NodeRuntime),
    grant(
        Actor::Edge,
        "coordination.k8s.io",
        "leases",
        &["create", "get", "patch"],
    )
    .within(Scope::Operator),
    grant(Actor::Edge, "events.k8s.io", "events", &["create", "patch"]),
    // The renewed token is stored where the kubeconfig is mounted from.
    grant(Actor::PullEdge, "", "secrets", &["get", "patch"])
        .named(&[crate::names::HUB_KUBECONFIG])
        .within(Scope::Operator),
    // A node's runtime: its own EdgeNode, by name; the admission policy holds it to that.
    grant(Actor::Node, OURS, "edgenodes", READ),
    grant(Actor::Node, OURS, "edgenodes/status", STATUS),
];
