//! The life of a process: serve health, wait for the kinds, become the leader, run the controllers, give the Lease back.
//! Only the leader's controllers run, so only the leader writes.

use crate::cli::Process;
use crate::config::Common;
use crate::runtime::lease::Elector;
use crate::runtime::metrics::Metrics;
use crate::runtime::{Clock, Context, Shutdown, crds, events::Events, health};
use kube::Client;
use std::sync::Arc;

/// The controllers of one process, running until the context's switch is thrown.
pub type Controllers = futures::future::BoxFuture<'static, ()>;

/// Makes the context of a process.
///
/// # Errors
/// When metrics cannot be registered or signals not handled.
pub fn context<C>(config: C, process: &Process, component: &str, client: Client) -> anyhow::Result<Context<C>> {
    Ok(Context {
        events: Events::new(client.clone(), component, &process.pod_name),
        client,
        config: Arc::new(config),
        namespace: process.pod_namespace.as_str().into(),
        pod: process.pod_name.as_str().into(),
        clock: Clock::system(),
        metrics: Arc::new(Metrics::new()?),
        health: health::Health::default(),
        shutdown: Shutdown::on_signals()?,
    })
}

/// Runs `controllers` while this process holds the Lease `lease` in its namespace.
///
/// # Errors
/// When the address of health and metrics cannot be served, or when leadership is lost: the process must then end at
/// once, because another one writes now.
pub async fn run<C: AsRef<Common> + Send + Sync + 'static>(
    ctx: Context<C>,
    lease: &str,
    needed: Vec<crds::Needed>,
    controllers: impl FnOnce(&Context<C>) -> anyhow::Result<Controllers>,
) -> anyhow::Result<()> {
    let common = ctx.config.as_ref().as_ref().clone();
    let pages = tokio::spawn(health::serve(
        common.listen,
        ctx.health.clone(),
        ctx.metrics.clone(),
        ctx.shutdown.clone(),
    ));
    let work = async {
        crds::wait(&ctx, &ctx.client, &needed).await;
        let mut elector = Elector::new(
            ctx.client.clone(),
            &ctx.namespace,
            lease,
            &ctx.pod,
            common.lease.timing(),
            ctx.clock.clone(),
        );
        if !elector.acquire(&ctx.shutdown).await {
            return Ok(());
        }
        ctx.metrics.leading(true);
        let controllers = controllers(&ctx)?;
        let outcome = tokio::select! {
            () = controllers => Ok(()),
            lost = elector.keep() => Err(anyhow::Error::new(lost)),
        };
        ctx.metrics.leading(false);
        if outcome.is_ok() {
            elector.vacate().await;
        }
        outcome
    };
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => done,
        served = pages => {
            served??;
            anyhow::ensure!(ctx.shutdown.is_triggered(), "the health server stopped");
            // The pages end with the switch; the controllers finish what they have begun, and the Lease is given back.
            work.await
        }
    }
}
