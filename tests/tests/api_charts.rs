//! The charts on a real API server: that Helm installs them twice without a change, that the examples are taken, and
//! that the admission policies hold whom they should.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test may end it.

use anyhow::{Context, Result};
use fleetune_crds::{EdgeNode, names};
use fleetune_tests::api::helm::{install, ready, runtime, tool};
use fleetune_tests::lab::ApiServer;
use fleetune_tests::lab::paths::tree;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// The error of a request that must be refused.
fn refused<T>(what: &str, result: Result<T, kube::Error>) -> String {
    match result {
        Ok(_) => panic!("{what}: accepted"),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => status.message,
        Err(other) => panic!("{what}: {other}"),
    }
}

/// A policy is enforced a moment after it is made: tries until the server refuses, a few seconds at most.
async fn enforced(pods: &Api<Pod>, bad: &Pod) {
    for _ in 0..40 {
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        if pods.create(&params, bad).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("the admission policies are not enforced after ten seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn charts_install_and_their_policies_hold() -> Result<()> {
    if !ready()? {
        return Ok(());
    }
    let server = ApiServer::start().await?;
    let kubeconfig = server.kubeconfig_path()?;
    for round in 0..2 {
        for (chart, values) in [("fleetune", "replicas=1"), ("fleetune-edge", "cluster=edge-a")] {
            install(&kubeconfig, chart, values).with_context(|| format!("round {round}"))?;
        }
    }
    let client = server.client().await?;
    examples(&kubeconfig, &client).await?;
    pods(&client).await?;
    edge_nodes(&server, &client).await
}

async fn examples(kubeconfig: &Path, client: &Client) -> Result<()> {
    let shop: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &shop).await?;
    for entry in std::fs::read_dir(tree().join("examples"))? {
        let path = entry?.path();
        let file = path.to_str().context("the path is not UTF-8")?;
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        if file.ends_with("action.yaml") {
            let other = tool("kubectl", kubeconfig, &["apply", "-f", file]);
            assert!(
                other.unwrap_err().to_string().contains("spec.by must be"),
                "an action in another's name"
            );
            let own = [
                "apply",
                "-f",
                file,
                "--as",
                "kubernetes-admin",
                "--as-group",
                "system:masters",
            ];
            tool("kubectl", kubeconfig, &own)?;
        } else {
            tool("kubectl", kubeconfig, &["apply", "-f", file])?;
        }
    }
    Ok(())
}

/// What is done to a good pod.
type Change<'a> = &'a dyn Fn(&mut Value);

async fn pods(client: &Client) -> Result<()> {
    let runtime: DaemonSet = Api::namespaced(client.clone(), names::NODE_NAMESPACE)
        .get("fleetune-node")
        .await?;
    let template = serde_json::to_value(&runtime.spec.context("no spec")?.template)?;
    let pod = |name: &str, change: Change| -> Result<Pod> {
        let mut spec = template["spec"].clone();
        change(&mut spec);
        let labels = &template["metadata"]["labels"];
        Ok(serde_json::from_value(
            json!({"metadata": {"name": name, "labels": labels}, "spec": spec}),
        )?)
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), names::NODE_NAMESPACE);
    let container =
        |key: &'static str, value: Value| move |spec: &mut Value| spec["containers"][0][key] = value.clone();
    let path = |spec: &mut Value| spec["volumes"][0]["hostPath"]["path"] = json!("/etc");
    enforced(&api, &pod("other-path", &path)?).await;
    let second = |spec: &mut Value| {
        let volume = json!({"name": "more", "hostPath": {"path": "/var/lib/kubelet"}});
        spec["volumes"].as_array_mut().unwrap().push(volume);
    };
    let capability = |spec: &mut Value| {
        spec["initContainers"][0]["securityContext"]["capabilities"]["add"] = json!(["CHOWN", "SYS_ADMIN"]);
    };
    let root = |spec: &mut Value| {
        spec["containers"][0]["securityContext"]["runAsNonRoot"] = json!(false);
    };
    let sidecar = |spec: &mut Value| {
        let more = spec["containers"][0].clone();
        spec["containers"].as_array_mut().unwrap().push(more);
        spec["containers"][1]["name"] = json!("more");
    };
    let bad: [(&str, Change, &str); 9] = [
        ("other-path", &path, "hostPath"),
        ("second-path", &second, "hostPath"),
        ("other-image", &container("image", json!("busybox")), "image"),
        ("shell", &container("command", json!(["sh"])), "image"),
        ("other-command", &container("args", json!(["inspect"])), "commands"),
        ("capability", &capability, "CHOWN"),
        ("root", &root, "not root"),
        ("sidecar", &sidecar, "only the node runtime"),
        (
            "host-network",
            &|spec| spec["hostNetwork"] = json!(true),
            "namespace of the host",
        ),
    ];
    for (name, change, word) in bad {
        let message = refused(name, api.create(&PostParams::default(), &pod(name, change)?).await);
        assert!(message.contains(word), "{name}: {message}");
    }
    let good = api.create(&PostParams::default(), &pod("runtime", &|_| ())?).await?;
    let image = json!({"spec": {"containers": [{"name": "runtime", "image": "busybox"}]}});
    let change = api
        .patch(&good.name_any(), &PatchParams::default(), &Patch::Strategic(image))
        .await;
    refused("another image, later", change);
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    api.patch(&good.name_any(), &PatchParams::default(), &Patch::Merge(label))
        .await?;
    Ok(())
}

async fn edge_nodes(server: &ApiServer, client: &Client) -> Result<()> {
    let all: Api<EdgeNode> = Api::all(client.clone());
    for name in ["node-1", "node-2"] {
        let node = serde_json::from_value(json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "EdgeNode",
            "metadata": {"name": name}, "spec": {"class": "amd64"},
        }))?;
        all.create(&PostParams::default(), &node).await?;
    }
    let status = json!({"status": {"build": "1"}});
    let (merge, params) = (Patch::Merge(&status), PatchParams::default());
    let own: Api<EdgeNode> = Api::all(runtime(server, Some("node-1")).await?);
    own.patch_status("node-1", &params, &merge).await?;
    let message = refused("another node", own.patch_status("node-2", &params, &merge).await);
    assert!(message.contains("own EdgeNode alone"), "{message}");
    let spec = json!({"spec": {"class": "arm64"}});
    refused("its own spec", own.patch("node-1", &params, &Patch::Merge(&spec)).await);
    let nobody: Api<EdgeNode> = Api::all(runtime(server, None).await?);
    refused(
        "a token without a node",
        nobody.patch_status("node-1", &params, &merge).await,
    );
    Ok(())
}
