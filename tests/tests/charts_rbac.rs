//! What the charts grant, as Helm renders them: the access table, in both directions. Needs Helm and no cluster.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test may end it.

use fleetune_crds::access::{Actor, GRANTS, Scope};
use fleetune_crds::names;
use fleetune_tests::api::render::{EDGE, HUB, NAMESPACE, all_values, everything, find, helm, kind, list, render};
use serde_json::Value;
use std::collections::BTreeSet;

/// One right: where, group, resource, name or nothing, verb.
type Right = (&'static str, String, String, String, String);

fn rights(rules: &Value, place: &'static str, into: &mut BTreeSet<Right>) {
    for rule in rules.as_array().into_iter().flatten() {
        assert!(rule["nonResourceURLs"].is_null(), "{rule}");
        let names = list(&rule["resourceNames"]);
        let names = if names.is_empty() { vec![""] } else { names };
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                for name in &names {
                    for verb in list(&rule["verbs"]) {
                        let right = (place, group.into(), resource.into(), (*name).into(), verb.into());
                        assert!(into.insert(right), "granted twice: {rule}");
                    }
                }
            }
        }
    }
}

/// What the bindings of a rendering give to the ServiceAccount `account`.
fn granted(objects: &[Value], account: &str) -> BTreeSet<Right> {
    let mut found = BTreeSet::new();
    for binding in objects.iter().filter(|o| kind(o).ends_with("RoleBinding")) {
        let subjects = binding["subjects"].as_array().unwrap();
        assert_eq!(subjects.len(), 1, "{binding}");
        assert_eq!(subjects[0]["kind"], "ServiceAccount", "{binding}");
        if subjects[0]["name"] != account {
            continue;
        }
        let place = match (kind(binding), binding["metadata"]["namespace"].as_str()) {
            ("ClusterRoleBinding", _) => "cluster",
            (_, Some(NAMESPACE)) => "operator",
            (_, Some(names::NODE_NAMESPACE)) => "node",
            (_, other) => panic!("a binding in {other:?}"),
        };
        let role = objects.iter().find(|o| {
            o["metadata"]["namespace"] == binding["metadata"]["namespace"]
                && o["kind"] == binding["roleRef"]["kind"]
                && o["metadata"]["name"] == binding["roleRef"]["name"]
        });
        rights(
            &role.unwrap_or_else(|| panic!("no role for {binding}"))["rules"],
            place,
            &mut found,
        );
    }
    found
}

fn table(actor: Actor) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for grant in GRANTS.iter().filter(|g| g.actor == actor) {
        let place = match grant.scope {
            Scope::Cluster => "cluster",
            Scope::Operator => "operator",
            Scope::NodeRuntime => "node",
            Scope::DeviceCluster => "device cluster",
        };
        let names = if grant.names.is_empty() { &[""][..] } else { grant.names };
        for name in names {
            for verb in grant.verbs {
                let right = (
                    place,
                    grant.group.into(),
                    grant.resource.into(),
                    (*name).into(),
                    (*verb).into(),
                );
                rights.insert(right);
            }
        }
    }
    rights
}

fn equal(what: &str, rendered: &BTreeSet<Right>, expected: &BTreeSet<Right>) {
    let missing: Vec<_> = expected.difference(rendered).collect();
    let extra: Vec<_> = rendered.difference(expected).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{what}: the chart lacks {missing:#?}, and has beside {extra:#?}"
    );
}

#[test]
fn rbac_is_the_access_table_in_both_directions() {
    let Some(helm) = helm() else { return };
    for values in all_values(HUB) {
        let objects = render(&helm, HUB, &values);
        equal("hub", &granted(&objects, "fleetune-hub"), &table(Actor::Hub));
        let mut edges = BTreeSet::new();
        let role = find(&objects, "ClusterRole", names::EDGE_CLUSTER_ROLE);
        rights(&role["rules"], "device cluster", &mut edges);
        equal("edges on the hub", &edges, &table(Actor::EdgeOnHub));
        let bound = objects.iter().filter(|o| kind(o).ends_with("RoleBinding"));
        assert!(
            bound
                .into_iter()
                .all(|b| b["roleRef"]["name"] != names::EDGE_CLUSTER_ROLE),
            "the hub binds it, per cluster"
        );
    }
    for values in all_values(EDGE) {
        let objects = render(&helm, EDGE, &values);
        let mut edge = table(Actor::Edge);
        if values["mode"] != "Push" {
            edge.extend(table(Actor::PullEdge));
        }
        equal("edge", &granted(&objects, "fleetune-edge"), &edge);
        equal("node", &granted(&objects, "fleetune-node"), &table(Actor::Node));
    }
}

#[test]
fn no_role_holds_a_wildcard_and_no_account_mounts_its_token_unasked() {
    let Some(helm) = helm() else { return };
    for (what, objects) in everything(&helm) {
        for role in objects.iter().filter(|o| kind(o).ends_with("Role")) {
            assert!(!role["rules"].to_string().contains('*'), "{what}: {role}");
        }
        for account in objects.iter().filter(|o| kind(o) == "ServiceAccount") {
            assert_eq!(account["automountServiceAccountToken"], false, "{what}: {account}");
        }
    }
}
