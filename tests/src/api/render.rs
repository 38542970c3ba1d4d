//! The charts as Helm renders them. Needs Helm and no cluster.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "helpers of a test may end it"
)]

use crate::lab::paths::{Paths, tree};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output};

/// The hub's chart.
pub const HUB: &str = "fleetune";
/// The chart of device clusters.
pub const EDGE: &str = "fleetune-edge";
/// The namespace that charts are rendered for.
pub const NAMESPACE: &str = "fleetune-system";

/// Helm, from the lab's cache or the machine; without it a test is skipped, unless the lab is required.
pub fn helm() -> Option<PathBuf> {
    let cached = Paths::from_env().and_then(|p| p.program("helm")).ok();
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join("helm"))
            .find(|file| file.is_file())
    };
    let found = cached.or_else(on_path);
    if found.is_none() {
        assert!(
            std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none_or(|v| v != "1"),
            "helm is missing: run `make tools`"
        );
        eprintln!("SKIPPED: helm is missing: run `make tools`");
    }
    found
}

/// Runs Helm with `values` on a chart.
pub fn run(helm: &PathBuf, command: &[&str], chart: &str, values: &Value) -> Output {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    serde_json::to_writer(&mut file, values).unwrap();
    Command::new(helm)
        .args(command)
        .arg(tree().join("charts").join(chart))
        .args(["--namespace", NAMESPACE, "--values"])
        .arg(file.path())
        .output()
        .unwrap()
}

/// The objects that a chart renders with `values`.
pub fn render(helm: &PathBuf, chart: &str, values: &Value) -> Vec<Value> {
    let output = run(helm, &["template", "release"], chart, values);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "helm template {chart}: {errors}\n{values}");
    let text = String::from_utf8(output.stdout).unwrap();
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

/// A public key, as PEM.
pub const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n";

/// The least that each chart needs, and everything that it can do.
pub fn all_values(chart: &str) -> Vec<Value> {
    let metrics =
        json!({"serviceMonitor": {"enabled": true, "labels": {"a": "b"}}, "prometheusRule": {"enabled": true}});
    let pod = json!({
        "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high", "podLabels": {"c": "d"}, "podAnnotations": {"e": "f"},
        "serviceAccount": {"annotations": {"g": "h"}},
    });
    let mut full = pod.clone();
    full["replicas"] = json!(2);
    full["metrics"] = metrics;
    full["imagePullSecrets"] = json!(["pull"]);
    full["insecureRegistries"] = json!(["10.77.0.1:5000"]);
    full["image"] = json!({"digest": format!("sha256:{}", "a".repeat(64))});
    if chart == HUB {
        full["metrics"]["dashboard"] = json!({"enabled": true});
        full["networkPolicy"] = json!({"enabled": true, "from": [{"podSelector": {}}]});
        full["worker"] = json!({"image": {"ref": "registry.lab:5000/worker@sha256:0"}});
        full["hub"] = json!({"url": "https://10.0.0.1:6443", "caBundle": "-----BEGIN CERTIFICATE-----\nMIIB\n"});
        full["signingKeys"] = json!([{"name": "default", "secret": "key", "namespaces": ["*"]}]);
        full["defaultSigningKey"] = json!("default");
        full["publishPushSecret"] = json!("push");
        return vec![json!({}), full];
    }
    full["cluster"] = json!("edge-a");
    full["networkPolicy"] =
        json!({"enabled": true, "scrapeFrom": [{"podSelector": {}}], "serveFrom": [{"podSelector": {}}]});
    full["trustedKeys"] = json!([{"name": "default", "publicKey": PUBLIC_KEY, "namespaces": ["shop"]}]);
    full["node"] = pod;
    full["node"]["service"] = json!({"nodePort": 30080});
    full["node"]["registrySecret"] = json!("registry");
    let mut push = full.clone();
    push["mode"] = json!("Push");
    vec![json!({"cluster": "edge-a"}), json!({"mode": "Push"}), full, push]
}

/// Every rendering of every chart.
pub fn everything(helm: &PathBuf) -> Vec<(String, Vec<Value>)> {
    let mut all = Vec::new();
    for chart in [HUB, EDGE] {
        for (number, values) in all_values(chart).iter().enumerate() {
            all.push((format!("{chart}, values {number}"), render(helm, chart, values)));
        }
    }
    all
}

/// The kind of an object.
pub fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or_default()
}

/// The name of an object.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The strings of a list; none where it is no list.
pub fn list(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// The object of this kind and name, which must be there.
pub fn find<'a>(objects: &'a [Value], of: &str, called: &str) -> &'a Value {
    let found = objects.iter().find(|o| kind(o) == of && name(o) == called);
    found.unwrap_or_else(|| panic!("no {of} {called}"))
}
