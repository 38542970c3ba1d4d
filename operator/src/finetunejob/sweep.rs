//! Lets worker Jobs go whose FineTuneJob is gone. In the ordinary way a job's own finalizer sees to that; this is for a
//! finalizer that someone took off by force, and for a Job that a deposed leader made too late: our finalizer on the Job
//! would hold it, and its namespace, for ever.

use crate::config::HubConfig;
use crate::finetunejob::Error;
use crate::runtime::error::{ignore_not_found, is_not_found};
use crate::runtime::{Context, Wake};
use fleetune_crds::{FineTuneJob, names};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

/// One look at a worker Job that we hold.
pub async fn sweep(worker: &Job, ctx: &Context<HubConfig>) -> Result<Wake, Error> {
    let held = worker.finalizers().iter().any(|f| f == names::FINALIZER);
    let labels = worker.labels();
    let (Some(name), Some(namespace), true) = (labels.get(names::LABEL_JOB), labels.get(names::LABEL_NAMESPACE), held)
    else {
        return Ok(Wake::Resync);
    };
    let jobs: Api<FineTuneJob> = Api::namespaced(ctx.client.clone(), namespace);
    match jobs.get(name).await {
        Ok(job) if job.uid().as_ref() == labels.get(names::LABEL_JOB_UID) => return Ok(Wake::Resync),
        Ok(_) => {}
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error.into()),
    }
    let home = worker.namespace().unwrap_or_default();
    let workers: Api<Job> = Api::namespaced(ctx.client.clone(), &home);
    if worker.metadata.deletion_timestamp.is_none() {
        ignore_not_found(workers.delete(&worker.name_any(), &DeleteParams::background()).await)?;
        // The deletion changes the Job, and so wakes this again.
        return Ok(Wake::Resync);
    }
    let rest: Vec<&String> = worker.finalizers().iter().filter(|f| *f != names::FINALIZER).collect();
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": worker.resource_version(), "finalizers": rest },
    }));
    ignore_not_found(workers.patch(&worker.name_any(), &PatchParams::default(), &patch).await)?;
    tracing::info!("let a worker Job go whose FineTuneJob is gone");
    Ok(Wake::Resync)
}
