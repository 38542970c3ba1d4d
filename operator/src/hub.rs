//! `fleetune-operator hub`: which controllers it runs and which kinds they need.

use crate::config::HubConfig;
use crate::process::Controllers;
use crate::runtime::{Context, crds};
use crate::{devicecluster, edge, finetunejob, modelrollout, modelversion};
use fleetune_crds::{DeviceCluster, FineTuneJob, ModelPlacement, ModelRollout, ModelVersion, RolloutAction};
use futures::FutureExt;
use futures::future::join_all;

/// The kinds that must be served before the controllers start.
pub fn needed() -> Vec<crds::Needed> {
    vec![
        crds::needed::<FineTuneJob>(),
        crds::needed::<ModelVersion>(),
        crds::needed::<ModelRollout>(),
        crds::needed::<RolloutAction>(),
        crds::needed::<DeviceCluster>(),
        crds::needed::<ModelPlacement>(),
    ]
}

/// All controllers of the hub; one line each.
///
/// # Errors
/// When a controller cannot be set up.
pub fn controllers(ctx: &Context<HubConfig>) -> anyhow::Result<Controllers> {
    let all: Vec<Controllers> = vec![
        finetunejob::start(ctx)?,
        modelrollout::start(ctx)?,
        modelversion::start(ctx),
        devicecluster::start(ctx),
        edge::pool::start(ctx)?,
    ];
    Ok(join_all(all).map(|_| ()).boxed())
}
