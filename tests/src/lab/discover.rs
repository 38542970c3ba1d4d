//! Tells Prometheus which pods ask to be scraped, as a file of targets for each cluster. Debian's Prometheus is built
//! without discovery by the Kubernetes API; the annotations and labels here are the usual ones.

use super::cluster::Cluster;
use super::paths::Paths;
use super::topology::ClusterSpec;
use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// The file of a cluster's targets.
pub fn file(paths: &Paths, cluster: ClusterSpec) -> PathBuf {
    paths.lab().join("targets").join(format!("{}.json", cluster.name))
}

/// Follows a cluster's pods and keeps its file as they are, for ever. An API server that is away changes nothing.
pub async fn follow(paths: Paths, spec: ClusterSpec) {
    loop {
        if let Err(error) = follow_once(&paths, spec).await {
            eprintln!("targets of {}: {error:#}", spec.name);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow_once(paths: &Paths, spec: ClusterSpec) -> Result<()> {
    let cluster = Cluster {
        spec,
        paths: paths.clone(),
    };
    let pods: Api<Pod> = Api::all(cluster.client().await?);
    let (store, writer) = reflector::store();
    let stream = watcher(pods, watcher::Config::default())
        .default_backoff()
        .modify(|pod| pod.managed_fields_mut().clear())
        .reflect(writer)
        .touched_objects();
    // What comes within a tenth of a second is written once.
    let mut batches = std::pin::pin!(stream.map_ok(|_| ()).ready_chunks(1000));
    let mut last = None;
    while let Some(batch) = batches.next().await {
        if let Some(Err(error)) = batch.into_iter().find(Result::is_err) {
            eprintln!("targets of {}: {error}", spec.name);
        }
        let mut targets: Vec<Value> = store.state().iter().filter_map(|pod| target(spec.name, pod)).collect();
        targets.sort_by_key(ToString::to_string);
        let text = serde_json::to_string_pretty(&targets)?;
        if last.as_ref() != Some(&text) {
            let file = file(paths, spec);
            let new = file.with_extension("new");
            std::fs::write(&new, &text)?;
            std::fs::rename(&new, file)?;
            last = Some(text);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The target that a pod is: one, at the annotated port, however many containers it has.
fn target(cluster: &str, pod: &Pod) -> Option<Value> {
    let annotation = |name: &str| pod.annotations().get(&format!("prometheus.io/{name}"));
    if annotation("scrape")? != "true" {
        return None;
    }
    let status = pod.status.as_ref()?;
    let port: u16 = annotation("port")?.parse().ok()?;
    if status.phase.as_deref() != Some("Running") {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    Some(json!({
        "targets": [format!("{}:{port}", status.pod_ip.as_ref()?)],
        "labels": {
            "__metrics_path__": annotation("path").map_or("/metrics", String::as_str),
            "cluster": cluster,
            "namespace": pod.namespace()?,
            "pod": pod.name_any(),
            "node": spec.node_name.clone().unwrap_or_default(),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: &Value, phase: &str) -> Pod {
        let pod = json!({
            "metadata": { "name": "p", "namespace": "n", "annotations": annotations },
            "spec": { "nodeName": "edge-a-1", "containers": [] },
            "status": { "phase": phase, "podIP": "10.244.11.5" }
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn only_running_pods_that_ask_are_targets() {
        let asks = json!({ "prometheus.io/scrape": "true", "prometheus.io/port": "8080" });
        let found = target("edge-a", &pod(&asks, "Running")).unwrap();
        assert_eq!(found["targets"][0], "10.244.11.5:8080");
        assert_eq!(found["labels"]["__metrics_path__"], "/metrics");
        assert_eq!(found["labels"]["cluster"], "edge-a");
        assert!(target("edge-a", &pod(&asks, "Succeeded")).is_none());
        assert!(target("edge-a", &pod(&json!({ "prometheus.io/scrape": "true" }), "Running")).is_none());
        assert!(target("edge-a", &pod(&json!({}), "Running")).is_none());
    }
}
