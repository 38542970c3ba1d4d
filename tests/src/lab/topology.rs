//! Who is in the lab and at which address. Pure data: every address, name and port of the lab is decided here.
//!
//! All addresses are unique over all clusters, pods included, so that plain routing is enough: a pod on an edge reaches
//! the hub and the registry, and the hub's Prometheus reaches a pod on an edge.

use anyhow::{Context, Result};

/// Port of every API server on its own address.
pub const API_PORT: u16 = 6443;
/// Port of the registry on the hub's address.
pub const REGISTRY_PORT: u16 = 5000;
/// Port of the data server on the hub's address.
pub const DATA_PORT: u16 = 8000;
/// Port of Prometheus on the hub's address.
pub const PROMETHEUS_PORT: u16 = 9090;
/// The NodePort at which the edge chart exposes the node runtime in the lab.
pub const NODE_PORT: u16 = 30080;

/// A cluster of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    /// Its name.
    pub name: &'static str,
    /// Number that its addresses are made of.
    pub index: u8,
    /// How many nodes it has.
    pub nodes: u8,
}

/// A node of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its cluster.
    pub cluster: ClusterSpec,
    /// Number within the cluster, from 1.
    pub number: u8,
}

/// A hub with one node, and two device clusters with two nodes each.
pub const CLUSTERS: [ClusterSpec; 3] = [
    ClusterSpec {
        name: "hub",
        index: 0,
        nodes: 1,
    },
    ClusterSpec {
        name: "edge-a",
        index: 1,
        nodes: 2,
    },
    ClusterSpec {
        name: "edge-b",
        index: 2,
        nodes: 2,
    },
];

/// The cluster that holds registry, data and Prometheus.
pub const HUB: ClusterSpec = CLUSTERS[0];

impl ClusterSpec {
    /// Address of the control plane and gateway of the nodes.
    pub fn address(self) -> String {
        format!("10.77.{}.1", self.index)
    }

    /// Range of the nodes.
    pub fn range(self) -> String {
        format!("10.77.{}.0/24", self.index)
    }

    /// Range of the Services.
    pub fn service_range(self) -> String {
        format!("10.96.{}.0/24", self.index)
    }

    /// Address of the Service `kubernetes`.
    pub fn service_address(self) -> String {
        format!("10.96.{}.1", self.index)
    }

    /// The two ends of the link to the wide area: the far end first.
    pub fn link(self) -> (String, String) {
        let net = 100 + self.index;
        (format!("10.77.{net}.1"), format!("10.77.{net}.2"))
    }

    /// Name of the link's far end, in the namespace of the wide area.
    pub fn link_name(self) -> String {
        format!("w{}", self.index)
    }

    /// URL of the API server inside the lab.
    pub fn server(self) -> String {
        format!("https://{}:{API_PORT}", self.address())
    }

    /// Port of loopback at which the machine reaches the API server.
    pub fn loopback_port(self) -> u16 {
        16443 + u16::from(self.index)
    }

    /// Its nodes.
    pub fn node_specs(self) -> impl Iterator<Item = NodeSpec> {
        (1..=self.nodes).map(move |number| NodeSpec { cluster: self, number })
    }
}

impl NodeSpec {
    /// The node's name.
    pub fn name(self) -> String {
        format!("{}-{}", self.cluster.name, self.number)
    }

    /// The node's address.
    pub fn address(self) -> String {
        format!("10.77.{}.{}", self.cluster.index, 10 + self.number)
    }

    /// Range of the node's pods.
    pub fn pod_range(self) -> String {
        format!("10.244.{}.0/24", 10 * self.cluster.index + self.number)
    }

    /// Name of its port on the cluster's bridge.
    pub fn port_name(self) -> String {
        format!("n{}", self.number)
    }

    /// Port of loopback at which the machine reaches the node's runtime: 18101, 18102 on the first device cluster,
    /// 18201, 18202 on the second.
    pub fn loopback_port(self) -> u16 {
        18000 + 100 * u16::from(self.cluster.index) + u16::from(self.number)
    }
}

/// The cluster of that name.
///
/// # Errors
/// When there is none.
pub fn cluster(name: &str) -> Result<ClusterSpec> {
    let found = CLUSTERS.into_iter().find(|c| c.name == name);
    found.with_context(|| {
        format!(
            "no cluster {name:?} in the lab: it has {}",
            CLUSTERS.map(|c| c.name).join(", ")
        )
    })
}

/// The node of that name.
///
/// # Errors
/// When there is none.
pub fn node(name: &str) -> Result<NodeSpec> {
    let all: Vec<NodeSpec> = CLUSTERS.into_iter().flat_map(ClusterSpec::node_specs).collect();
    let names: Vec<String> = all.iter().map(|n| n.name()).collect();
    let found = all.into_iter().find(|n| n.name() == name);
    found.with_context(|| format!("no node {name:?} in the lab: it has {}", names.join(", ")))
}

/// One port of loopback and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Port on 127.0.0.1 of the machine.
    pub port: u16,
    /// The network namespace in which the connection is made.
    pub namespace: &'static str,
    /// Address in the lab.
    pub target: String,
}

/// Everything that the machine reaches of the given clusters.
pub fn forwards(clusters: &[ClusterSpec]) -> Vec<Forward> {
    let mut all = Vec::new();
    for cluster in clusters {
        let mut add = |port: u16, target: String| {
            all.push(Forward {
                port,
                namespace: cluster.name,
                target,
            });
        };
        add(cluster.loopback_port(), format!("{}:{API_PORT}", cluster.address()));
        for node in cluster.node_specs() {
            add(node.loopback_port(), format!("{}:{NODE_PORT}", node.address()));
        }
        if *cluster == HUB {
            for (port, inner) in [(15000, REGISTRY_PORT), (18000, DATA_PORT), (19090, PROMETHEUS_PORT)] {
                add(port, format!("{}:{inner}", cluster.address()));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn nothing_is_given_twice() {
        let nodes: Vec<NodeSpec> = CLUSTERS.into_iter().flat_map(ClusterSpec::node_specs).collect();
        let addresses: BTreeSet<String> = nodes
            .iter()
            .map(|n| n.address())
            .chain(CLUSTERS.map(ClusterSpec::address))
            .collect();
        assert_eq!(addresses.len(), nodes.len() + CLUSTERS.len());
        let ranges: BTreeSet<String> = nodes.iter().map(|n| n.pod_range()).collect();
        assert_eq!(ranges.len(), nodes.len());
        let ports: BTreeSet<u16> = forwards(&CLUSTERS).iter().map(|f| f.port).collect();
        assert_eq!(ports.len(), forwards(&CLUSTERS).len());
    }

    #[test]
    fn names_lead_back() {
        assert_eq!(node("edge-b-2").unwrap().address(), "10.77.2.12");
        assert_eq!(node("edge-b-2").unwrap().pod_range(), "10.244.22.0/24");
        assert!(node("edge-b-3").unwrap_err().to_string().contains("edge-b-2"));
        assert!(cluster("edge-c").is_err());
    }
}
