//! Sums over the series that nodes and API servers export, read from them directly.

use super::install::Road;
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// The nodes of both device clusters.
pub const NODES: [&str; 4] = ["edge-a-1", "edge-a-2", "edge-b-1", "edge-b-2"];

impl Road {
    /// The sum of all series of this name, by node.
    ///
    /// # Errors
    /// When a node's runtime does not answer.
    pub async fn node_series(&self, name: &str) -> Result<BTreeMap<&'static str, f64>> {
        self.node_series_with(name, "").await
    }

    /// The sum of all series of this name that have a label of this value (empty is any), by node.
    ///
    /// # Errors
    /// When a node's runtime does not answer.
    pub async fn node_series_with(&self, name: &str, label: &str) -> Result<BTreeMap<&'static str, f64>> {
        let label = if label.is_empty() {
            String::new()
        } else {
            format!("=\"{label}\"")
        };
        let http = crate::lab::http()?;
        let mut sums = BTreeMap::new();
        for node in NODES {
            let url = format!("http://{}/metrics", self.lab.runtime_addr(node)?);
            let text = http.get(url).send().await?.text().await?;
            let of_name = |line: &&str| {
                line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']) && line.contains(&label)
            };
            let values = text
                .lines()
                .filter(of_name)
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            sums.insert(node, values.sum());
        }
        Ok(sums)
    }

    /// Write requests so far by cluster, verb and resource, for what our components write but Leases and events.
    ///
    /// # Errors
    /// When an API server does not answer.
    pub async fn writes(&self) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for cluster in self.lab.clusters() {
            let text = cluster.kubectl(&["get", "--raw", "/metrics"]).await?;
            for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
                let label = |name: &str| {
                    let start = line.find(&format!(",{name}=\""))? + name.len() + 3;
                    Some(&line[start..start + line[start..].find('"')?])
                };
                let (Some(verb), Some(group), Some(resource)) = (label("verb"), label("group"), label("resource"))
                else {
                    continue;
                };
                let ours =
                    group == "fleetune.dev" || matches!(resource, "jobs" | "configmaps" | "secrets" | "rolebindings");
                if ours && matches!(verb, "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE") {
                    let count = line
                        .rsplit(' ')
                        .next()
                        .and_then(|n| n.parse::<f64>().ok())
                        .context("no number")?;
                    let key = format!(
                        "{} {verb} {resource}/{}",
                        cluster.name(),
                        label("subresource").unwrap_or_default()
                    );
                    *all.entry(key).or_insert(0) += count as u64;
                }
            }
        }
        Ok(all)
    }
}
