//! Carries out a plan: the status first, conditional on what was read; then the placements, each conditional on what
//! was read of it. A cluster that fails does not hold up the others; the finalizer goes only if nothing failed.

use super::observe::Observed;
use super::plan::{Plan, Step};
use super::validate::Validated;
use crate::runtime::error::{class_of, ignore_not_found, is_not_found, reason_of};
use crate::runtime::{Class, Classify, patch};
use fleetune_crds::conditions::{self, READY, Wanted};
use fleetune_crds::{
    ModelPlacement, ModelPlacementSpec, ModelRollout, ModelRolloutStatus, RolloutAction, RolloutActionStatus, names,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use std::collections::BTreeMap;

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error("{what}: the API server refused or did not answer")]
    Api {
        /// What was tried, and where.
        what: String,
        /// What it said.
        source: kube::Error,
    },
    /// A spec could not be written as JSON.
    #[error("an order cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Api { source, .. } => class_of(source),
            Self::Json(_) => Class::Bug,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => reason_of(source),
            Self::Json(_) => "UnwritableOrder",
        }
    }
}

/// Names what was tried.
pub fn at(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let what = what.into();
    move |source| Error::Api { what, source }
}

/// Carries plans out for one rollout.
pub struct Applier<'a> {
    /// Client of the hub.
    pub client: &'a Client,
    /// What is asked for.
    pub want: &'a Validated,
    /// What the plan saw.
    pub seen: &'a Observed,
    /// The time of this pass.
    pub now: Timestamp,
}

impl Applier<'_> {
    /// Carries out `plan`; `rollout` follows the writes. Returns whether the status was written.
    ///
    /// # Errors
    /// The first write that failed, after all others that do not depend on it were tried.
    pub async fn apply(&self, rollout: &mut ModelRollout, plan: &Plan) -> Result<bool, Error> {
        let written = rollout.status.as_ref() != Some(&plan.status);
        if written {
            write_status(self.client, rollout, &plan.status).await?;
        }
        let mut first = None;
        for step in &plan.steps {
            if matches!(step, Step::RemoveFinalizer { .. }) && first.is_some() {
                continue;
            }
            if let Err(error) = self.step(rollout, step).await {
                tracing::debug!(?step, %error, "a step failed");
                first.get_or_insert(error);
            }
        }
        match first {
            Some(error) => Err(error),
            None => Ok(written),
        }
    }

    async fn step(&self, rollout: &mut ModelRollout, step: &Step) -> Result<(), Error> {
        match step {
            Step::AddFinalizer => set_finalizer(self.client, rollout, true).await,
            Step::RemoveFinalizer { .. } => set_finalizer(self.client, rollout, false).await,
            Step::Create { cluster, spec } => self.create(cluster, spec).await,
            Step::Write {
                cluster,
                resource_version,
                spec,
            } => self.write(cluster, resource_version, spec).await,
            Step::Delete {
                cluster,
                resource_version,
            } => self.delete(cluster, resource_version).await,
            Step::Answer { action, taken, message } => self.answer(action, *taken, message).await,
        }
    }

    fn placements(&self, cluster: &str) -> Api<ModelPlacement> {
        Api::namespaced(self.client.clone(), &names::cluster_namespace(cluster))
    }

    fn placement_name(&self) -> String {
        names::placement_name(&self.want.namespace, &self.want.model)
    }

    fn labels(&self, cluster: &str) -> BTreeMap<String, String> {
        BTreeMap::from([
            (
                "app.kubernetes.io/managed-by".to_owned(),
                names::MANAGER_ROLLOUT.to_owned(),
            ),
            ("app.kubernetes.io/part-of".to_owned(), "fleetune".to_owned()),
            (names::LABEL_MODEL.to_owned(), self.want.model.clone()),
            (names::LABEL_NAMESPACE.to_owned(), self.want.namespace.clone()),
            (names::LABEL_CLUSTER.to_owned(), cluster.to_owned()),
        ])
    }

    /// The claim. Whoever comes second gets a conflict and sees the owner at the next look.
    async fn create(&self, cluster: &str, spec: &ModelPlacementSpec) -> Result<(), Error> {
        let mut object = ModelPlacement::new(&self.placement_name(), spec.clone());
        object.metadata.labels = Some(self.labels(cluster));
        let params = PostParams {
            field_manager: Some(names::MANAGER_ROLLOUT.to_owned()),
            ..PostParams::default()
        };
        let created = self.placements(cluster).create(&params, &object).await;
        created.map_err(at(format!("claiming the model in cluster {cluster}")))?;
        Ok(())
    }

    async fn write(&self, cluster: &str, resource_version: &str, spec: &ModelPlacementSpec) -> Result<(), Error> {
        let Some(old) = self.seen.clusters.get(cluster).and_then(|c| c.placement.as_ref()) else {
            return Ok(());
        };
        let patch = patch::replace_spec(resource_version, &old.spec, spec)?;
        let params = PatchParams {
            field_manager: Some(names::MANAGER_ROLLOUT.to_owned()),
            ..PatchParams::default()
        };
        let api = self.placements(cluster);
        let written = api.patch(&self.placement_name(), &params, &Patch::Merge(&patch)).await;
        written.map_err(at(format!("writing the order of cluster {cluster}")))?;
        Ok(())
    }

    async fn delete(&self, cluster: &str, resource_version: &str) -> Result<(), Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: None,
                resource_version: Some(resource_version.to_owned()),
            }),
            ..DeleteParams::default()
        };
        let deleted = self.placements(cluster).delete(&self.placement_name(), &params).await;
        ignore_not_found(deleted).map_err(at(format!("deleting the placement of cluster {cluster}")))
    }

    async fn answer(&self, action: &str, taken: bool, message: &str) -> Result<(), Error> {
        let api: Api<RolloutAction> = Api::namespaced(self.client.clone(), &self.want.namespace);
        let reason = if taken { "Taken" } else { "Ignored" };
        let wanted = [Wanted::new(READY, Some(taken), reason, message)];
        // The spec is immutable: there is one generation.
        let status = RolloutActionStatus {
            observed_generation: Some(1),
            conditions: conditions::replace(&[], &wanted, 1, self.now),
        };
        let patch = json!({
            "apiVersion": RolloutAction::api_version(&()),
            "kind": RolloutAction::kind(&()),
            "status": status,
        });
        let params = PatchParams::apply(names::MANAGER_ROLLOUT).force();
        let written = api.patch_status(action, &params, &Patch::Apply(&patch)).await;
        ignore_not_found(written).map_err(at(format!("answering RolloutAction {action}")))
    }
}

/// Writes a whole status, if the rollout is still as it was read; the rollout follows.
///
/// # Errors
/// When the API server refuses, for example because the rollout changed.
pub async fn write_status(
    client: &Client,
    rollout: &mut ModelRollout,
    status: &ModelRolloutStatus,
) -> Result<(), Error> {
    let api: Api<ModelRollout> = Api::namespaced(client.clone(), &rollout.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": ModelRollout::api_version(&()),
        "kind": ModelRollout::kind(&()),
        "metadata": { "name": rollout.name_any(), "resourceVersion": rollout.resource_version() },
        "status": status,
    });
    let params = PatchParams::apply(names::MANAGER_ROLLOUT).force();
    let written = api
        .patch_status(&rollout.name_any(), &params, &Patch::Apply(&patch))
        .await;
    let written = written.map_err(at("writing the rollout's status"))?;
    rollout.metadata = written.metadata;
    rollout.status = Some(status.clone());
    Ok(())
}

async fn set_finalizer(client: &Client, rollout: &mut ModelRollout, on: bool) -> Result<(), Error> {
    let api: Api<ModelRollout> = Api::namespaced(client.clone(), &rollout.namespace().unwrap_or_default());
    let mut finalizers = rollout.finalizers().to_vec();
    finalizers.retain(|f| f != names::FINALIZER);
    if on {
        finalizers.push(names::FINALIZER.to_owned());
    }
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": rollout.resource_version(), "finalizers": finalizers },
    }));
    match api.patch(&rollout.name_any(), &PatchParams::default(), &patch).await {
        Ok(written) => rollout.metadata = written.metadata,
        Err(error) if is_not_found(&error) && !on => {}
        Err(error) => return Err(at("changing the rollout's finalizers")(error)),
    }
    Ok(())
}
