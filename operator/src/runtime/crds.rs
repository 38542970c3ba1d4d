//! Waits until the API server serves the kinds that a process needs, so that installing charts in any order works.

use crate::runtime::clock::jitter;
use crate::runtime::context::Context;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Resource};
use std::time::Duration;

/// How often the API server is asked again.
const PERIOD: Duration = Duration::from_secs(3);

/// A kind that must be served before controllers start.
#[derive(Clone, Debug)]
pub struct Needed(ApiResource);

/// The kind `K`.
pub fn needed<K: Resource<DynamicType = ()>>() -> Needed {
    Needed(ApiResource::erase::<K>(&()))
}

/// Returns once all kinds are served. While one is missing, its gate is closed and `fleetune_crd_missing` is 1.
pub async fn wait<C>(ctx: &Context<C>, client: &Client, kinds: &[Needed]) {
    for Needed(kind) in kinds {
        let crd = format!("{}.{}", kind.plural, kind.group);
        let gate = ctx.health.gate(format!("crd {crd}"));
        let gvk = GroupVersionKind::gvk(&kind.group, &kind.version, &kind.kind);
        loop {
            match kube::discovery::pinned_kind(client, &gvk).await {
                Ok(_) => break,
                Err(error) => {
                    ctx.metrics.crd_missing(&crd, true);
                    tracing::warn!(crd, %error, "waiting for the kind to be served: install the chart's CRDs");
                }
            }
            tokio::select! {
                () = ctx.shutdown.wait() => return,
                () = tokio::time::sleep(jitter(PERIOD, 0.2)) => {}
            }
        }
        ctx.metrics.crd_missing(&crd, false);
        gate.open();
    }
}
