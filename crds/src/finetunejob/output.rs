//! `output` and `worker`: where versions go, and the pods that make them.

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where versions go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// OCI repository, `HOST[:PORT]/PATH` without a tag.
    #[schemars(
        length(min = 3, max = 255),
        regex(pattern = r"^[a-z0-9.-]+(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$")
    )]
    pub repository: String,
    /// Secret of type kubernetes.io/dockerconfigjson in the job's namespace, for pushing candidates and reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub push_secret: Option<String>,
    /// Name of a signing key that the chart allows to this namespace. Default: the chart's `defaultSigningKey`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub signing_key: Option<String>,
}

/// The worker pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPod {
    /// Image of the `finetune` pod. Default: the chart's. `validate` and `publish` always run the chart's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// Requests and limits of the `finetune` and `validate` pods. Default: the chart's `worker.resources`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Node labels that the pods need.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tolerations: Vec<Toleration>,
    /// PersistentVolumeClaim in the job's namespace, in which the `finetune` pod keeps its checkpoints and what the frozen
    /// part gave: a pod that is tried again goes on where the last one was, and later jobs on the same data need not run that
    /// part again. Default: none, and a new pod starts over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub volume_claim: Option<String>,
}
