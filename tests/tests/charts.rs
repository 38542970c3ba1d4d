//! The two charts as Helm renders them: how their pods are confined, what their schemas refuse, and that the binaries read
//! the configuration that they write. Needs Helm and no cluster.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test may end it.

use fleetune_crds::names;
use fleetune_operator::config::{EdgeConfig, HubConfig};
use fleetune_tests::api::render::{EDGE, HUB, PUBLIC_KEY, all_values, everything, find, helm, kind, name, render, run};
use fleetune_tests::lab::paths::tree;
use fleetune_worker::node::config::Config as NodeConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn charts_pass_lint() {
    let Some(helm) = helm() else { return };
    for chart in [HUB, EDGE] {
        for values in all_values(chart) {
            let output = run(&helm, &["lint", "--strict"], chart, &values);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{chart}: {text}\n{values}");
        }
    }
}

/// The pod specs of a rendering, each with the name of its object.
fn pods(objects: &[Value]) -> Vec<(&str, &Value)> {
    let of = |o: &'_ Value| match kind(o) {
        "Pod" => Some("/spec"),
        "Deployment" | "DaemonSet" => Some("/spec/template/spec"),
        _ => None,
    };
    objects
        .iter()
        .filter_map(|o| Some((name(o), o.pointer(of(o)?)?)))
        .collect()
}

#[test]
fn every_container_is_restricted_but_the_one_that_prepares_the_store() {
    let Some(helm) = helm() else { return };
    for (what, objects) in everything(&helm) {
        let pods = pods(&objects);
        assert!(pods.len() >= 2, "{what}");
        for (owner, pod) in pods {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{what}: {owner}");
            assert_eq!(
                pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
                "{what}: {owner}"
            );
            for key in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
                assert!(pod[key].is_null(), "{what}: {owner} sets {key}");
            }
            let containers = [&pod["containers"], &pod["initContainers"]];
            for container in containers.into_iter().flat_map(|c| c.as_array().into_iter().flatten()) {
                let context = &container["securityContext"];
                let told = format!("{what}: {owner}: {}", container["name"]);
                assert_eq!(context["allowPrivilegeEscalation"], false, "{told}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{told}");
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{told}");
                assert!(context["privileged"].is_null(), "{told}");
                assert!(
                    container["resources"]["limits"]["memory"].is_string(),
                    "{told}: no memory limit"
                );
                assert!(container["ports"].to_string().find("hostPort").is_none(), "{told}");
                if container["name"] == "prepare-store" {
                    assert_eq!(context["capabilities"]["add"], json!(["CHOWN"]), "{told}");
                } else {
                    assert_eq!(context["runAsNonRoot"], true, "{told}");
                    assert!(context["capabilities"]["add"].is_null(), "{told}");
                }
            }
            let paths = pod["volumes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v["hostPath"]["path"].as_str());
            let expected: &[&str] = if owner == "fleetune-node" {
                &[names::NODE_STORE]
            } else {
                &[]
            };
            assert_eq!(paths.collect::<Vec<_>>(), expected, "{what}: {owner}");
        }
    }
}

#[test]
fn the_binaries_read_the_configuration_that_the_charts_write() {
    let Some(helm) = helm() else { return };
    let config = |objects: &[Value], called: &str| {
        find(objects, "ConfigMap", called)["data"]["config.yaml"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    for values in all_values(HUB) {
        let text = config(&render(&helm, HUB, &values), "fleetune-hub");
        let read: HubConfig = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert_eq!(read.hub.url.as_deref(), values["hub"]["url"].as_str());
        assert_eq!(
            read.signing_keys.len(),
            values["signingKeys"].as_array().map_or(0, Vec::len)
        );
        assert_eq!(read.common.node_namespace, names::NODE_NAMESPACE);
    }
    for values in all_values(EDGE) {
        let objects = render(&helm, EDGE, &values);
        if values["mode"] != "Push" {
            let text = config(&objects, "fleetune-edge");
            let read: EdgeConfig = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
            assert_eq!(read.cluster, "edge-a");
        }
        let text = config(&objects, "fleetune-node");
        let node: NodeConfig = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        assert_eq!(node.store, Path::new(names::NODE_STORE));
        assert_eq!(node.listen.port(), names::NODE_PORT);
        if let Some(keys) = values["trustedKeys"].as_array() {
            assert_eq!(node.keys[0].public_key, PUBLIC_KEY, "a key keeps its line breaks");
            assert_eq!(node.keys.len(), keys.len());
        }
    }
}

#[test]
fn a_runtime_is_replaced_after_its_successor_is_ready_and_asked_on_its_own_node() {
    let Some(helm) = helm() else { return };
    for values in all_values(EDGE) {
        let objects = render(&helm, EDGE, &values);
        let runtime = find(&objects, "DaemonSet", "fleetune-node");
        assert_eq!(runtime["metadata"]["namespace"], names::NODE_NAMESPACE);
        let update = &runtime["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!(update, &json!({"maxSurge": 1, "maxUnavailable": 0}));
        let labels = &runtime["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], "fleetune-node");
        let service = find(&objects, "Service", "fleetune-node");
        assert_eq!(service["spec"]["internalTrafficPolicy"], "Local");
        let node_port = values.pointer("/node/service/nodePort").cloned().unwrap_or_default();
        assert_eq!(service["spec"]["ports"][0]["nodePort"], node_port);
        let external = if node_port.is_null() {
            Value::Null
        } else {
            json!("Local")
        };
        assert_eq!(service["spec"]["externalTrafficPolicy"], external);
        let pull = values["mode"] != "Push";
        assert_eq!(
            objects.iter().any(|o| kind(o) == "Deployment"),
            pull,
            "the edge controller runs here for Pull alone"
        );
        assert_eq!(
            objects.iter().any(|o| kind(o) == "Secret"),
            !pull,
            "a token for the hub is made for Push alone"
        );
    }
}

#[test]
fn what_is_off_is_absent_and_what_deletes_data_is_kept() {
    let Some(helm) = helm() else { return };
    for (chart, least) in [(HUB, json!({})), (EDGE, json!({"cluster": "edge-a"}))] {
        let objects = render(&helm, chart, &least);
        for off in [
            "ServiceMonitor",
            "PrometheusRule",
            "NetworkPolicy",
            "PodDisruptionBudget",
        ] {
            assert!(objects.iter().all(|o| kind(o) != off), "{chart}: {off}");
        }
        for crd in objects
            .iter()
            .filter(|o| matches!(kind(o), "CustomResourceDefinition" | "Namespace"))
        {
            assert_eq!(
                crd["metadata"]["annotations"]["helm.sh/resource-policy"],
                "keep",
                "{chart}: {}",
                name(crd)
            );
        }
        let mut bare = least.clone();
        bare["crds"] = json!({"install": false});
        assert!(
            render(&helm, chart, &bare)
                .iter()
                .all(|o| kind(o) != "CustomResourceDefinition")
        );
        let full = render(&helm, chart, &all_values(chart)[all_values(chart).len().min(3) - 1]);
        for on in [
            "ServiceMonitor",
            "PrometheusRule",
            "NetworkPolicy",
            "PodDisruptionBudget",
        ] {
            assert!(full.iter().any(|o| kind(o) == on), "{chart}: {on}");
        }
    }
}

#[test]
fn the_schemas_refuse_nonsense() {
    let Some(helm) = helm() else { return };
    let edge = |mut values: Value| {
        values["cluster"] = json!("edge-a");
        values
    };
    let key = |key: &str, namespaces: Value| {
        edge(json!({"trustedKeys": [{"name": "a", "publicKey": key, "namespaces": namespaces}]}))
    };
    let table = [
        (HUB, json!({"replica": 2}), "replica"),
        (HUB, json!({"replicas": -1}), "replicas"),
        (HUB, json!({"image": {"pullPolicy": "Sometimes"}}), "pullPolicy"),
        (HUB, json!({"image": {"digest": "latest"}}), "digest"),
        (HUB, json!({"hub": {"url": "http://10.0.0.1"}}), "url"),
        (HUB, json!({"hub": {"caBundle": "MIIB"}}), "caBundle"),
        (
            HUB,
            json!({"signingKeys": [{"name": "a", "secret": "b"}]}),
            "namespaces",
        ),
        (
            HUB,
            json!({"signingKeys": [{"name": "a", "secret": "", "namespaces": ["*"]}]}),
            "secret",
        ),
        (HUB, json!({"heartbeat": {"interval": "often"}}), "interval"),
        (HUB, json!({"insecureRegistries": ["http://a"]}), "insecureRegistries"),
        (EDGE, json!({}), "cluster"),
        (EDGE, edge(json!({"mode": "Pushed"})), "mode"),
        (EDGE, edge(json!({"node": {"service": {"nodePort": 0}}})), "nodePort"),
        (
            EDGE,
            edge(json!({"node": {"selfTest": {"memoryReserve": "much"}}})),
            "memoryReserve",
        ),
        (
            EDGE,
            key(
                "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----",
                json!(["*"]),
            ),
            "publicKey",
        ),
        (EDGE, key(PUBLIC_KEY, json!([])), "namespaces"),
        (EDGE, edge(json!({"hub": {"kubeconfigSecret": ""}})), "kubeconfigSecret"),
    ];
    for (chart, values, word) in table {
        let output = run(&helm, &["template", "release"], chart, &values);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{chart} takes {values}");
        assert!(
            errors.contains(word),
            "{chart}, {values}: {errors} does not name {word}"
        );
    }
}

#[test]
fn k3s_versions_are_admitted_and_old_ones_refused() {
    let Some(helm) = helm() else { return };
    for (version, admitted) in [("v1.33.0+k3s1", true), ("v1.36.3", true), ("v1.32.9", false)] {
        for (chart, values) in [(HUB, json!({})), (EDGE, json!({"cluster": "edge-a"}))] {
            let output = run(
                &helm,
                &["template", "release", "--kube-version", version],
                chart,
                &values,
            );
            assert_eq!(output.status.success(), admitted, "{chart} on {version}");
        }
    }
}

/// Every series that alerts and dashboard ask for, checked against the names in the sources.
#[test]
fn alerts_and_dashboard_ask_for_series_that_exist() {
    let mut sources = String::new();
    let mut folders = vec![tree().join("operator/src"), tree().join("worker/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    for file in [
        "fleetune/files/alerts.yaml",
        "fleetune/files/dashboard.json",
        "fleetune-edge/files/alerts.yaml",
    ] {
        let text = std::fs::read_to_string(tree().join("charts").join(file)).unwrap();
        let parsed: Value = serde_yaml::from_str(&text).unwrap();
        assert!(parsed.is_object(), "{file}");
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let series: BTreeSet<_> = words.filter(|w| w.starts_with("fleetune_")).collect();
        assert!(!series.is_empty(), "{file}");
        for name in series {
            let name = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(
                sources.contains(&format!("\"{name}\"")),
                "{file} asks for {name}, which nothing exports"
            );
        }
    }
}

#[test]
fn every_alert_says_what_to_do_and_stands_in_the_docs() {
    let page = std::fs::read_to_string(tree().join("docs/operations.md")).unwrap();
    let mut named = 0;
    for file in ["fleetune/files/alerts.yaml", "fleetune-edge/files/alerts.yaml"] {
        let text = std::fs::read_to_string(tree().join("charts").join(file)).unwrap();
        let groups: Value = serde_yaml::from_str(&text).unwrap();
        for rule in groups["groups"][0]["rules"].as_array().unwrap() {
            let alert = rule["alert"].as_str().unwrap();
            assert!(page.contains(alert), "docs/operations.md lacks {alert}");
            for key in ["summary", "description"] {
                assert!(rule["annotations"][key].is_string(), "{alert}: {key}");
            }
            assert!(rule["labels"]["severity"].is_string(), "{alert}");
            named += 1;
        }
    }
    assert!(named >= 10);
}

/// The examples name models by digest; the script that makes the models knows the same digests.
#[test]
fn examples_name_the_models_that_the_script_makes() {
    let script = std::fs::read_to_string(tree().join("examples/prepare.py")).unwrap();
    let mut jobs = 0;
    for entry in std::fs::read_dir(tree().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).unwrap();
            let Some(sha256) = object.pointer("/spec/baseModel/sha256").and_then(Value::as_str) else {
                continue;
            };
            let model = object["spec"]["baseModel"]["uri"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap();
            let data = object["spec"]["dataset"]["uri"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap();
            let tokenizer = object
                .pointer("/spec/input/text/tokenizer")
                .map_or(Vec::new(), |tokenizer| {
                    let name = tokenizer["uri"].as_str().unwrap().rsplit('/').next().unwrap();
                    vec![name, tokenizer["sha256"].as_str().unwrap()]
                });
            for needed in [model, data, sha256].into_iter().chain(tokenizer) {
                assert!(
                    script.contains(&format!("\"{needed}\"")),
                    "{}: {needed}",
                    path.display()
                );
            }
            let job: fleetune_crds::FineTuneJob = serde_json::from_value(object).unwrap();
            assert_eq!(job.metadata.namespace.as_deref(), Some("shop"));
            jobs += 1;
        }
    }
    assert!(jobs >= 4);
}
