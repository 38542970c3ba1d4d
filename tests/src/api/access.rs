//! The access table as RBAC objects, for tests that run a component with exactly its rights.

use super::{HOME, make};
use anyhow::Result;
use fleetune_crds::access::{Actor, GRANTS, Scope};
use fleetune_crds::names;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::{Api, Client};
use serde_json::{Value, json};

fn rules(actor: Actor, scope: Scope) -> Value {
    let of = GRANTS.iter().filter(|g| g.actor == actor && g.scope == scope);
    of.map(|g| {
        let mut rule = json!({ "apiGroups": [g.group], "resources": [g.resource], "verbs": g.verbs });
        if !g.names.is_empty() {
            rule["resourceNames"] = json!(g.names);
        }
        rule
    })
    .collect()
}

/// Gives `user` the rights of `actor` in the whole cluster, at home and in the runtime's namespace, where those exist.
///
/// # Errors
/// When the server refuses.
pub async fn grant(client: &Client, actor: Actor, user: &str) -> Result<()> {
    let all = || client.clone();
    let subjects = json!([{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }]);
    let to = |kind: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user });
    let metadata = json!({ "name": user });
    let role = json!({ "metadata": metadata, "rules": rules(actor, Scope::Cluster) });
    make(&Api::<ClusterRole>::all(all()), role).await?;
    let binding = json!({ "metadata": metadata, "roleRef": to("ClusterRole"), "subjects": subjects });
    make(&Api::<ClusterRoleBinding>::all(all()), binding).await?;
    for (namespace, scope) in [(HOME, Scope::Operator), (names::NODE_NAMESPACE, Scope::NodeRuntime)] {
        let rules = rules(actor, scope);
        if rules.as_array().is_none_or(Vec::is_empty) {
            continue;
        }
        let role = json!({ "metadata": metadata, "rules": rules });
        make(&Api::<Role>::namespaced(all(), namespace), role).await?;
        let binding = json!({ "metadata": metadata, "roleRef": to("Role"), "subjects": subjects });
        make(&Api::<RoleBinding>::namespaced(all(), namespace), binding).await?;
    }
    Ok(())
}

/// Makes the `ClusterRole` that the hub binds to the agents of Pull clusters.
///
/// # Errors
/// When the server refuses.
pub async fn agents_role(client: &Client) -> Result<()> {
    let rules = rules(Actor::EdgeOnHub, Scope::DeviceCluster);
    let role = json!({ "metadata": { "name": names::EDGE_CLUSTER_ROLE }, "rules": rules });
    make(&Api::<ClusterRole>::all(client.clone()), role).await?;
    Ok(())
}
