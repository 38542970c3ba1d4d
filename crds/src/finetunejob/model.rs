//! `baseModel`: the pretrained model to start from.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A pretrained model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BaseModel {
    /// ONNX file: `s3://`, `http(s)://`, `pvc://CLAIM/PATH`, `file://` (local runs only) or `oci://` (an artifact whose
    /// first layer is the file).
    #[schemars(length(min = 1, max = 1024))]
    pub uri: String,
    /// SHA-256 of the file, 64 hex digits. Anything else is refused with ModelMismatch.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// Name of the tensor whose values are the features. Default: the input of the last MatMul or Gemm by topology; for
    /// texts, where an output has one vector a token, that output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub features: Option<String>,
    /// Secret in the job's namespace with credentials for the address (see `dataset.credentialsSecret`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret: Option<String>,
}
