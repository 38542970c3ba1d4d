//! Builds the objects of a registration. Pure.

use crate::devicecluster::observe::{ANNOTATION_EXPIRES, ANNOTATION_HASH, ANNOTATION_ISSUED, MANAGED_BY};
use crate::devicecluster::plan::TOKEN_LIFE;
use crate::devicecluster::validate::{Hub, Validated};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetune_crds::names;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;

/// Name and namespace of the thing, and the labels that say whose it is.
fn metadata(cluster: &str, name: &str, namespace: Option<String>) -> ObjectMeta {
    let labels = [
        (names::LABEL_CLUSTER, cluster),
        ("app.kubernetes.io/part-of", "fleetune"),
        MANAGED_BY,
    ];
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace,
        labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()),
        ..ObjectMeta::default()
    }
}

fn inside(cluster: &str, name: &str) -> ObjectMeta {
    metadata(cluster, name, Some(names::cluster_namespace(cluster)))
}

/// The namespace of a cluster. No pod belongs into it, so it demands the most of them.
pub fn namespace(cluster: &str) -> Namespace {
    let mut metadata = metadata(cluster, &names::cluster_namespace(cluster), None);
    let labels = metadata.labels.get_or_insert_default();
    labels.insert("pod-security.kubernetes.io/enforce".into(), "restricted".into());
    Namespace {
        metadata,
        ..Namespace::default()
    }
}

/// The heartbeat Lease, before the first beat.
pub fn heartbeat(cluster: &str) -> Lease {
    Lease {
        metadata: inside(cluster, names::LEASE_HEARTBEAT),
        spec: Some(LeaseSpec::default()),
    }
}

/// The account of a cluster's agent. Nothing runs under it here, so no pod gets its token.
pub fn account(cluster: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: inside(cluster, names::EDGE_ACCOUNT),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// What the agent may do, and only in its own namespace.
pub fn binding(cluster: &str) -> RoleBinding {
    RoleBinding {
        metadata: inside(cluster, names::EDGE_ACCOUNT),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "ClusterRole".into(),
            name: names::EDGE_CLUSTER_ROLE.into(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: names::EDGE_ACCOUNT.into(),
            namespace: Some(names::cluster_namespace(cluster)),
            api_group: None,
        }]),
    }
}

/// The request for the agent's token.
pub fn token_request() -> TokenRequest {
    TokenRequest {
        spec: TokenRequestSpec {
            audiences: Vec::new(),
            bound_object_ref: None,
            expiration_seconds: i64::try_from(TOKEN_LIFE.as_secs()).ok(),
        },
        ..TokenRequest::default()
    }
}

/// A token that the API server gave.
pub struct Token {
    /// The token.
    pub token: String,
    /// When it was asked for.
    pub issued_at: Timestamp,
    /// When it ends; the server may grant less than was asked for.
    pub expires_at: Timestamp,
}

/// The Secret with the kubeconfig for the chart `fleetune-edge`.
pub fn secret(want: &Validated, hub: &Hub, cluster_ca: Option<&str>, token: &Token) -> Secret {
    let ca = hub.ca_bundle.as_deref().or(cluster_ca);
    let mut metadata = inside(&want.name, names::EDGE_ACCOUNT);
    metadata.annotations = Some(BTreeMap::from([
        (ANNOTATION_HASH.to_owned(), hub.hash()),
        (ANNOTATION_ISSUED.to_owned(), token.issued_at.to_string()),
        (ANNOTATION_EXPIRES.to_owned(), token.expires_at.to_string()),
    ]));
    let text = kubeconfig(&want.namespace, &hub.url, ca, &token.token);
    Secret {
        metadata,
        type_: Some("Opaque".into()),
        data: Some(BTreeMap::from([(
            "kubeconfig".to_owned(),
            ByteString(text.into_bytes()),
        )])),
        ..Secret::default()
    }
}

/// A kubeconfig of one cluster, one user and one namespace, without plugins or file references. JSON is YAML.
fn kubeconfig(namespace: &str, url: &str, ca: Option<&str>, token: &str) -> String {
    let mut cluster = json!({ "server": url });
    if let Some(ca) = ca {
        cluster["certificate-authority-data"] = json!(STANDARD.encode(ca));
    }
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "hub",
        "clusters": [{ "name": "hub", "cluster": cluster }],
        "users": [{ "name": "edge", "user": { "token": token } }],
        "contexts": [{ "name": "hub", "context": { "cluster": "hub", "user": "edge", "namespace": namespace } }],
    });
    config.to_string()
}
