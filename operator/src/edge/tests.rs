//! Tables for what the model cluster does not vary: how Nodes and pods are read, what is refused, what is left alone.

use super::observe::{ABSENT_SINCE, OTHER_CLASS, Observed, node_views};
use super::plan::{Step, plan};
use super::validate::{Settings, validate};
use fleetune_crds::EdgeNode;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn node(name: &str, labels: &Value, ready: &str, since: i64) -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": labels },
        "status": {
            "nodeInfo": { "architecture": "arm64", "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "",
                          "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
                          "osImage": "", "systemUUID": "" },
            "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": at(since) }],
        },
    }))
    .unwrap()
}

fn pod(node: &str, ready: &str, since: i64) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "p" }, "spec": { "nodeName": node, "containers": [] },
        "status": { "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": at(since) }] },
    }))
    .unwrap()
}

#[test]
fn a_node_is_reachable_once_both_it_and_its_runtime_are_ready() {
    let nodes = [
        node("a", &json!({ "fleetune.dev/class": "jetson" }), "True", 10),
        node("b", &json!({}), "False", 10),
        node("c", &json!({}), "True", 10),
    ];
    // During a surge of the DaemonSet the old pod is Ready, the new one not yet.
    let pods = [pod("a", "False", 30), pod("a", "True", 20), pod("b", "True", 20)];
    let views = node_views(&nodes, &pods);
    assert!(views["a"].is_reachable() && views["a"].reachable_since == at(20));
    assert!(!views["b"].is_reachable() && views["b"].has_runtime);
    assert!(!views["c"].is_reachable() && !views["c"].has_runtime);
    assert_eq!(
        (views["a"].class.as_str(), views["b"].class.as_str()),
        ("jetson", "arm64")
    );
}

#[test]
fn a_seventeenth_class_is_called_other() {
    let class = |i: i32| json!({ "fleetune.dev/class": format!("k{i:02}") });
    let nodes: Vec<Node> = (0..17)
        .map(|i| node(&format!("n{i:02}"), &class(i), "True", 1))
        .collect();
    let views = node_views(&nodes, &[]);
    let classes: std::collections::BTreeSet<&str> = views.values().map(|v| v.class.as_str()).collect();
    assert_eq!(classes.len(), 16);
    assert_eq!(
        (views["n00"].class.as_str(), views["n16"].class.as_str()),
        ("k00", OTHER_CLASS)
    );
}

fn edge_node(models: &Value) -> EdgeNode {
    serde_json::from_value(json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "EdgeNode",
        "metadata": { "name": "a", "uid": "u", "resourceVersion": "7" },
        "spec": { "class": "arm64", "models": models },
    }))
    .unwrap()
}

fn order() -> Value {
    json!({ "epoch": 3, "run": 1, "minSuccessTime": "0s", "progressDeadline": "1m", "pickedAt": at(0), "state": "Serve" })
}

#[test]
fn absence_of_a_placement_or_one_that_is_refused_is_no_order() {
    let models = json!({ "shop/gone": order(), "shop/shirts": order() });
    let refused = json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelPlacement",
        "metadata": { "name": "shop.shirts", "generation": 2 },
        "spec": {
            "namespace": "shop", "modelName": "shirts", "epoch": 9, "minSuccessTime": "0s", "progressDeadline": "1m",
            "maxInFlight": 1, "maxFailed": 0, "state": "Remove",
            "nodeSelector": { "matchExpressions": [{ "key": "a", "operator": "Near" }] },
        },
    });
    let mut seen = Observed {
        placements: vec![serde_json::from_value(refused).unwrap()],
        nodes: node_views(&[node("a", &json!({}), "True", 1)], &[pod("a", "True", 1)]),
        hub_answered_at: Some(at(100)),
        ..Observed::default()
    };
    seen.edge_nodes.insert("a".into(), edge_node(&models));
    let done = plan(&validate(&seen.placements), &Settings::default(), &seen, at(100));
    assert_eq!(done.orphaned, 1);
    let [Step::Report { status, .. }] = &done.steps[..] else {
        panic!("{:?}", done.steps);
    };
    assert_eq!(status.conditions[1].reason, "Invalid");
}

#[test]
fn an_edge_node_outlives_its_node_by_an_hour() {
    let mut seen = Observed::default();
    let mut object = edge_node(&json!({ "shop/shirts": order() }));
    let steps = |seen: &Observed, now| plan(&validate(&[]), &Settings::default(), seen, at(now)).steps;
    seen.edge_nodes.insert("a".into(), object.clone());
    let [
        Step::WriteNode {
            spec: None,
            absent_since: Some(Some(since)),
            ..
        },
    ] = &steps(&seen, 50)[..]
    else {
        panic!("{:?}", steps(&seen, 50));
    };
    object.metadata.annotations = Some([(ABSENT_SINCE.to_owned(), since.to_string())].into());
    seen.edge_nodes.insert("a".into(), object);
    assert!(steps(&seen, 3649).is_empty());
    assert!(matches!(&steps(&seen, 3650)[..], [Step::DeleteNode { .. }]));
    // The Node registers again within the hour, with another uid: everything is as it was.
    seen.nodes = node_views(&[node("a", &json!({}), "True", 1)], &[pod("a", "True", 1)]);
    let back = steps(&seen, 3000);
    assert!(
        matches!(
            &back[..],
            [Step::WriteNode {
                spec: None,
                absent_since: Some(None),
                ..
            }]
        ),
        "{back:?}"
    );
}
