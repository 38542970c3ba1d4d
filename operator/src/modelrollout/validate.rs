//! A rollout whose fields can be acted on. What the CRD's schema refuses already is not checked again.

use fleetune_crds::common::{Amount, Span};
use fleetune_crds::{DeletionPolicy, ModelRollout, OnFailure, Stage, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::Selector;
use sha2::Digest as _;

/// What a person has asked for.
#[derive(Clone, Debug)]
pub struct Validated {
    /// Name of the rollout.
    pub name: String,
    /// Its namespace, which is the model's.
    pub namespace: String,
    /// Its uid, by which it claims placements.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// Name of the model.
    pub model: String,
    /// The version that is named; none follows the latest.
    pub version: Option<String>,
    /// Which device clusters.
    pub clusters: Selector,
    /// Which nodes in them.
    pub nodes: LabelSelector,
    /// The waves.
    pub stages: Vec<Stage>,
    /// Hash of `stages`.
    pub stage_hash: String,
    /// Nodes told to activate that have not reported yet.
    pub max_unavailable: Amount,
    /// Failed nodes that do not end a run yet.
    pub max_failures: i32,
    /// Time from pick to Active.
    pub progress_deadline: Span,
    /// Share of a wave's nodes, in percent, that must be proven.
    pub quorum: i64,
    /// What ends a failed run.
    pub on_failure: OnFailure,
    /// A version with another contract is taken too.
    pub allow_contract_change: bool,
    /// What becomes of the nodes' models.
    pub deletion_policy: DeletionPolicy,
    /// No new wave, no new activation.
    pub paused: bool,
    /// When deletion began.
    pub deleted_at: Option<Timestamp>,
    /// This controller's finalizer is there.
    pub has_finalizer: bool,
}

/// Why a rollout cannot be acted on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// A label selector that means nothing.
    #[error("spec.targets.{field} is not a label selector: {message}; correct it")]
    Selector {
        /// Which one.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The server's object lacks what every server sets.
    #[error("the object has no {0}; it was not read from an API server")]
    Incomplete(&'static str),
}

impl ValidationError {
    /// The reason for condition, event and metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Selector { .. } => "InvalidSelector",
            Self::Incomplete(_) => "IncompleteObject",
        }
    }
}

/// Checks a rollout.
///
/// # Errors
/// When a selector cannot be read or the object lacks a uid.
pub fn validate(rollout: &ModelRollout) -> Result<Validated, ValidationError> {
    let spec = &rollout.spec;
    let selector = |field, selector: &LabelSelector| {
        Selector::try_from(selector.clone()).map_err(|error| ValidationError::Selector {
            field,
            message: error.to_string(),
        })
    };
    selector("nodes", &spec.targets.nodes)?;
    let quorum = match spec.strategy.quorum.get() {
        Amount::Percent(percent) => i64::from(percent),
        Amount::Count(_) => 100,
    };
    Ok(Validated {
        name: rollout.name_any(),
        namespace: rollout.namespace().ok_or(ValidationError::Incomplete("namespace"))?,
        uid: rollout.uid().ok_or(ValidationError::Incomplete("uid"))?,
        generation: rollout.metadata.generation.unwrap_or(0),
        model: spec.model_name.clone(),
        version: spec.version.clone(),
        clusters: selector("clusters", &spec.targets.clusters)?,
        nodes: spec.targets.nodes.clone(),
        stages: spec.strategy.stages.clone(),
        stage_hash: stage_hash(&spec.strategy.stages),
        max_unavailable: spec.strategy.max_unavailable.get(),
        max_failures: spec.strategy.max_failures,
        progress_deadline: spec.strategy.progress_deadline.clone(),
        quorum,
        on_failure: spec.strategy.on_failure,
        allow_contract_change: spec.allow_contract_change,
        deletion_policy: spec.deletion_policy,
        paused: spec.paused,
        deleted_at: rollout.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        has_finalizer: rollout.finalizers().iter().any(|f| f == names::FINALIZER),
    })
}

/// Hash of a list of stages: a changed list is another list, whatever its length.
pub fn stage_hash(stages: &[Stage]) -> String {
    let text = serde_json::to_vec(stages).unwrap_or_default();
    hex::encode(&sha2::Sha256::digest(text)[..8])
}
