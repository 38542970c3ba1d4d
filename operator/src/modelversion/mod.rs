//! The ModelVersion controller: keeps the list of a model's versions short. A version is deleted once enough newer ones
//! exist and nobody names it. Its artifacts stay in the registry; what they cost there is the registry's to say.

pub mod plan;

use crate::config::HubConfig;
use crate::process::Controllers;
use crate::runtime::controller::{Options, controller, run};
use crate::runtime::error::ignore_not_found;
use crate::runtime::{Context, Wake};
use fleetune_crds::{ModelPlacement, ModelRollout, ModelVersion, names};
use futures::FutureExt;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use plan::Observed;

/// Models that are looked at at the same time.
const CONCURRENCY: u16 = 2;

/// The controller, running until the context's switch is thrown. Each version that is published is a reason to look at
/// its model; one that a rollout has let go of goes with the next resync.
pub fn start(ctx: &Context<HubConfig>) -> Controllers {
    let api: Api<ModelVersion> = Api::all(ctx.client.clone());
    let versions = controller(ctx, "ModelVersion", api, watcher::Config::default());
    let options = Options {
        kind: "ModelVersion",
        concurrency: CONCURRENCY,
        resync: ctx.config.common.resync.get(),
        phase: |_: &ModelVersion| "Published".into(),
    };
    run(ctx.clone(), options, versions, |version, ctx| async move {
        reconcile(&version, &ctx).await
    })
    .boxed()
}

/// One pass over the model of `version`: what is too old and unnamed goes, oldest first.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn reconcile(version: &ModelVersion, ctx: &Context<HubConfig>) -> Result<Wake, kube::Error> {
    let (namespace, model) = (version.namespace().unwrap_or_default(), &version.spec.model_name);
    let versions: Api<ModelVersion> = Api::namespaced(ctx.client.clone(), &namespace);
    let placements: Api<ModelPlacement> = Api::all(ctx.client.clone());
    let rollouts: Api<ModelRollout> = Api::namespaced(ctx.client.clone(), &namespace);
    let placed = format!("{}={namespace},{}={model}", names::LABEL_NAMESPACE, names::LABEL_MODEL);
    let of_model = ListParams::default().fields(&format!("spec.modelName={model}"));
    // Versions first: whoever begins to name one while this reads is seen.
    let seen = Observed {
        versions: versions.list(&of_model).await?.items,
        placements: placements.list(&ListParams::default().labels(&placed)).await?.items,
        rollouts: rollouts.list(&ListParams::default()).await?.items,
    };
    for old in plan::plan(model, &seen, ctx.config.version_history_limit) {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: old.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        ignore_not_found(versions.delete(&old.name_any(), &params).await)?;
        tracing::info!(
            namespace,
            name = old.name_any(),
            "a version beyond the history limit is gone"
        );
    }
    Ok(Wake::Resync)
}

#[cfg(test)]
mod tests;
