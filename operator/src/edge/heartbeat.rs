//! The heartbeat: renews the cluster's Lease on the hub, and remembers when the hub last answered. Without an answer for
//! long enough nothing new is activated; what serves goes on serving.

use super::apply::{Error, call};
use super::run::EdgeContext;
use crate::runtime::clock::jitter;
use crate::runtime::error::{chain, is_not_found};
use fleetune_crds::names;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// When the hub last answered.
#[derive(Default)]
pub struct Answered(Mutex<Option<Timestamp>>);

impl Answered {
    /// The time of the last answer.
    pub fn at(&self) -> Option<Timestamp> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, now: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }
}

/// Beats until the future is dropped. `looked` is woken after each beat that was answered.
pub async fn beat(ctx: &EdgeContext, answered: &Answered, looked: &Notify) {
    let mut failures: u32 = 0;
    loop {
        // The time before the call: an answer says that the hub was there after this.
        let started = ctx.clock.now();
        match once(ctx, started).await {
            Ok(()) => {
                if failures > 0 {
                    tracing::info!(cluster = ctx.cluster, "the hub answers again");
                }
                failures = 0;
                answered.note(started);
                looked.notify_one();
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                let error = chain(&error);
                tracing::warn!(
                    cluster = ctx.cluster,
                    failures,
                    error,
                    "the hub did not take the heartbeat"
                );
            }
        }
        // A failed beat is tried again sooner, so that one lost packet does not cost a whole period.
        let period = if failures > 0 { ctx.heartbeat / 4 } else { ctx.heartbeat };
        tokio::time::sleep(jitter(period, 0.1)).await;
    }
}

async fn once(ctx: &EdgeContext, now: Timestamp) -> Result<(), Error> {
    let namespace = names::cluster_namespace(&ctx.cluster);
    let api: Api<Lease> = Api::namespaced(ctx.hub.clone(), &namespace);
    let spec = json!({ "holderIdentity": ctx.identity, "renewTime": MicroTime(now) });
    let patch = Patch::Merge(json!({ "spec": spec }));
    let params = PatchParams::default();
    let name = names::LEASE_HEARTBEAT;
    let request = api.patch(name, &params, &patch);
    match call(&ctx.metrics, "heartbeat", "renewing the heartbeat", request).await {
        Err(Error::Api { source, .. }) if is_not_found(&source) => {
            // Registration makes the Lease; where this process may do it too (Push), it does.
            let lease = json!({ "metadata": { "name": name }, "spec": spec });
            let lease: Lease = serde_json::from_value(lease)?;
            let params = PostParams::default();
            let request = api.create(&params, &lease);
            call(&ctx.metrics, "heartbeat", "making the heartbeat's Lease", request).await?;
            Ok(())
        }
        other => other.map(|_| ()),
    }
}
