//! Carries out a plan: EdgeNodes first, each conditional on the resourceVersion that the plan saw, then the reports.
//! Reports go only if every EdgeNode was written, so that the hub never hears of a pick that does not exist.

use super::metrics::EdgeMetrics;
use super::observe::ABSENT_SINCE;
use super::plan::Step;
use crate::runtime::error::{Class, Classify, class_of, ignore_not_found, reason_of};
use crate::runtime::patch;
use fleetune_crds::{EdgeNode, EdgeNodeSpec, ModelPlacement, ModelPlacementStatus, names};
use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest time of one call; a link that drops must not hold a pass for ever.
pub const CALL: Duration = Duration::from_secs(10);
/// EdgeNodes that are written at the same time.
const PARALLEL: usize = 8;

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An API server.
    #[error("{what}: the API server refused or did not answer")]
    Api {
        /// What was tried, and where.
        what: String,
        /// What it said.
        source: kube::Error,
    },
    /// No answer in time.
    #[error("{what}: no answer within {CALL:?}")]
    Timeout {
        /// What was tried, and where.
        what: String,
    },
    /// A spec could not be written as JSON.
    #[error("an order cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Api { source, .. } => class_of(source),
            Self::Timeout { .. } => Class::Transient,
            Self::Json(_) => Class::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => reason_of(source),
            Self::Timeout { .. } => "Timeout",
            Self::Json(_) => "UnwritableOrder",
        }
    }
}

/// One call, bounded and measured.
///
/// # Errors
/// What the server said, or that it said nothing in time.
pub async fn call<T>(
    metrics: &EdgeMetrics,
    verb: &'static str,
    what: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    let started = tokio::time::Instant::now();
    let result = match tokio::time::timeout(CALL, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::Api {
            what: what.to_owned(),
            source,
        }),
        Err(_) => Err(Error::Timeout { what: what.to_owned() }),
    };
    let outcome = match &result {
        Ok(_) => "success",
        Err(error) => error.reason(),
    };
    metrics.request(verb, outcome, started.elapsed());
    result
}

/// Writes for one cluster.
pub struct Applier<'a> {
    /// Client of the device cluster.
    pub device: &'a Client,
    /// Client of the hub.
    pub hub: &'a Client,
    /// Name of the cluster.
    pub cluster: &'a str,
    /// EdgeNodes that the plan saw.
    pub edge_nodes: &'a BTreeMap<String, EdgeNode>,
    /// Series.
    pub metrics: &'a EdgeMetrics,
}

impl Applier<'_> {
    /// Writes to the device cluster.
    ///
    /// # Errors
    /// The first write that failed, after all others were tried.
    pub async fn nodes(&self, steps: &[Step]) -> Result<(), Error> {
        let results: Vec<Result<(), Error>> = futures::stream::iter(steps.iter().cloned())
            .map(|step| async move { self.node(&step).await })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        results.into_iter().collect()
    }

    async fn node(&self, step: &Step) -> Result<(), Error> {
        let api: Api<EdgeNode> = Api::all(self.device.clone());
        match step {
            Step::CreateNode { name, class } => {
                let spec = EdgeNodeSpec {
                    class: class.clone(),
                    models: BTreeMap::new(),
                };
                let mut object = EdgeNode::new(name, spec);
                let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
                object.metadata.labels = Some(BTreeMap::from([
                    label("app.kubernetes.io/managed-by", names::MANAGER_EDGE),
                    label("app.kubernetes.io/part-of", "fleetune"),
                ]));
                let params = PostParams {
                    field_manager: Some(names::MANAGER_EDGE.to_owned()),
                    ..PostParams::default()
                };
                let what = format!("creating EdgeNode {name}");
                call(self.metrics, "create", &what, api.create(&params, &object)).await?;
                Ok(())
            }
            Step::WriteNode {
                name,
                resource_version,
                spec,
                absent_since,
            } => {
                let Some(old) = self.edge_nodes.get(name) else {
                    return Ok(());
                };
                let new = spec.as_ref().unwrap_or(&old.spec);
                let mut patch = patch::replace_spec(resource_version, &old.spec, new)?;
                if let Some(mark) = absent_since {
                    patch["metadata"]["annotations"] =
                        json!({ ABSENT_SINCE: mark.map(|at: Timestamp| at.to_string()) });
                }
                let params = PatchParams {
                    field_manager: Some(names::MANAGER_EDGE.to_owned()),
                    ..PatchParams::default()
                };
                let patch = Patch::Merge(patch);
                let what = format!("writing EdgeNode {name}");
                call(self.metrics, "patch", &what, api.patch(name, &params, &patch)).await?;
                Ok(())
            }
            Step::DeleteNode {
                name,
                uid,
                resource_version,
            } => {
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: Some(uid.clone()),
                        resource_version: Some(resource_version.clone()),
                    }),
                    ..DeleteParams::default()
                };
                let what = format!("deleting EdgeNode {name}");
                let request = async { ignore_not_found(api.delete(name, &params).await) };
                call(self.metrics, "delete", &what, request).await
            }
            Step::Report { .. } => Ok(()),
        }
    }

    /// Tells the hub about one placement.
    ///
    /// # Errors
    /// When the hub refuses or does not answer.
    pub async fn report(&self, placement: &str, status: &ModelPlacementStatus) -> Result<(), Error> {
        let namespace = names::cluster_namespace(self.cluster);
        let api: Api<ModelPlacement> = Api::namespaced(self.hub.clone(), &namespace);
        let patch = Patch::Apply(json!({
            "apiVersion": ModelPlacement::api_version(&()),
            "kind": ModelPlacement::kind(&()),
            "metadata": { "name": placement },
            "status": status,
        }));
        let params = PatchParams::apply(names::MANAGER_EDGE).force();
        let what = format!("reporting on placement {placement}");
        let request = async { ignore_not_found(api.patch_status(placement, &params, &patch).await) };
        call(self.metrics, "patch_status", &what, request).await
    }
}
