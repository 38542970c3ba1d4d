//! ModelVersion: a published version, by digest. Immutable, written by the hub.

use crate::common::Digest;
use crate::finetunejob::Task;
use crate::outcome::Summary;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A version that passed its gates and was signed. Its name is the model's name and the first twelve hex digits of
/// the candidate's digest, so that publishing the same digest twice changes nothing.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "fleetune.dev",
    version = "v1alpha1",
    kind = "ModelVersion",
    plural = "modelversions",
    shortname = "mv",
    category = "fleetune",
    namespaced,
    derive = "PartialEq",
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.modelName"),
    printcolumn(name = "Sequence", type_ = "integer", json_path = ".spec.sequence"),
    printcolumn(name = "Job", type_ = "string", json_path = ".spec.job"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.modelName"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a version is immutable"))]
pub struct ModelVersionSpec {
    /// Name of the model.
    #[schemars(length(min = 1, max = 40))]
    pub model_name: String,
    /// Order of publication within the model: the latest version is the one with the largest.
    #[schemars(range(min = 1))]
    pub sequence: i64,
    /// Classification or Regression.
    pub task: Task,
    /// Where it lies, and by which digests.
    pub source: Source,
    /// What `validate` measured.
    pub summary: Summary,
    /// Digest of the list of samples it was trained on.
    pub data_manifest: Digest,
    /// SHA-256 of the base model's file.
    #[schemars(length(min = 64, max = 64))]
    pub base_model_sha256: String,
    /// Name of the FineTuneJob, which may be gone by now.
    #[schemars(length(min = 1, max = 253))]
    pub job: String,
    /// When it was published.
    pub published_at: Time,
}

/// Where a version lies. A node checks candidate, report and signature before it opens anything.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// OCI repository.
    #[schemars(length(min = 3, max = 255))]
    pub repository: String,
    /// Digest of the candidate's manifest: the version's identity.
    pub digest: Digest,
    /// Digest of the report's manifest.
    pub report: Digest,
    /// Digest of the signature's manifest.
    pub signature: Digest,
    /// Hash of inputs, shapes, units and labels.
    pub contract: Digest,
}
