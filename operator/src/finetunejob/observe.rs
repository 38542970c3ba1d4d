//! Reads what exists: the job itself, its worker Jobs and their pods, the model's versions, and the progress of the pod
//! that runs. Everything is read fresh, never from a cache: what is planned from it cannot be taken back.

use crate::config::HubConfig;
use crate::finetunejob::State;
use crate::finetunejob::step::WorkerStep;
use crate::finetunejob::verdict::Trouble;
use crate::runtime::Context;
use crate::runtime::error::is_not_found;
use fleetune_crds::common::Digest;
use fleetune_crds::outcome::Progress;
use fleetune_crds::{FineTuneJob, ModelVersion, names};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use std::collections::BTreeMap;

/// What exists of a job.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Whether the job carries the finalizer.
    pub finalizer: bool,
    /// Worker Jobs by step, ours and those that only have our names.
    pub jobs: BTreeMap<WorkerStep, SeenJob>,
    /// Versions of the model; read only when the `publish` Job is complete.
    pub versions: Vec<SeenVersion>,
    /// What the running pod says of itself.
    pub progress: Option<Progress>,
}

/// A worker Job.
#[allow(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
#[derive(Clone, Debug, Default)]
pub struct SeenJob {
    /// Its name.
    pub name: String,
    /// Its uid, for deletion.
    pub uid: String,
    /// Its version, for conditional writes.
    pub resource_version: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Whether it belongs to this very job, not to an earlier one of the same name.
    pub ours: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it carries our finalizer: it cannot vanish before its outcome is recorded.
    pub held: bool,
    /// All its finalizers.
    pub finalizers: Vec<String>,
    /// Whether it is suspended.
    pub suspended: bool,
    /// How it ended.
    pub end: Option<JobEnd>,
    /// Its pods, oldest first.
    pub pods: Vec<SeenPod>,
}

impl SeenJob {
    /// One word for `fleetune_objects`.
    pub fn phase(&self) -> &'static str {
        match (&self.end, self.suspended) {
            (Some(JobEnd::Complete), _) => "Complete",
            (Some(JobEnd::Failed { .. }), _) => "Failed",
            (None, true) => "Suspended",
            (None, false) => "Active",
        }
    }
}

/// How a Job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// Condition Complete.
    Complete,
    /// Condition Failed.
    Failed {
        /// The condition's reason.
        reason: String,
        /// The condition's message.
        message: String,
    },
}

/// A pod of a worker Job.
#[derive(Clone, Debug, Default)]
pub struct SeenPod {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Whether it has a node and its container has not run yet.
    pub starting: bool,
    /// Address of a running pod.
    pub ip: Option<String>,
    /// Whether its phase is Failed.
    pub failed: bool,
    /// The pod's own reason, such as Evicted.
    pub reason: Option<String>,
    /// The pod's own message.
    pub message: Option<String>,
    /// How its container ended.
    pub end: Option<ContainerEnd>,
    /// What it waits for.
    pub trouble: Option<Trouble>,
}

/// How a container ended.
#[derive(Clone, Debug, Default)]
pub struct ContainerEnd {
    /// Exit code.
    pub exit_code: i32,
    /// The kubelet's reason, such as OOMKilled.
    pub reason: String,
    /// The termination message.
    pub message: String,
}

/// A ModelVersion.
#[derive(Clone, Debug)]
pub struct SeenVersion {
    /// Its name.
    pub name: String,
    /// Its place in the order of publication.
    pub sequence: i64,
    /// The candidate's digest.
    pub digest: Digest,
}

/// The job as it is now; `None` where it is gone or another of its name has come.
pub async fn observe_job(ctx: &Context<HubConfig>, cached: &FineTuneJob) -> Result<Option<FineTuneJob>, kube::Error> {
    let api: Api<FineTuneJob> = Api::namespaced(ctx.client.clone(), &cached.namespace().unwrap_or_default());
    match api.get(&cached.name_any()).await {
        Ok(job) if job.uid() == cached.uid() => Ok(Some(job)),
        Ok(_) => Ok(None),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Everything that `plan` needs to see.
pub async fn observe(ctx: &Context<HubConfig>, state: &State, job: &FineTuneJob) -> Result<Observed, kube::Error> {
    let namespace = job.namespace().unwrap_or_default();
    let mut seen = Observed {
        finalizer: job.finalizers().iter().any(|f| f == names::FINALIZER),
        ..Observed::default()
    };
    for step in WorkerStep::ALL {
        let home = home(ctx, step, &namespace);
        let name = step.job_name(&namespace, &job.name_any());
        let api: Api<Job> = Api::namespaced(ctx.client.clone(), home);
        match api.get(&name).await {
            Ok(found) => {
                seen.jobs.insert(step, observe_worker(ctx, home, job, &found).await?);
            }
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let published = seen.jobs.get(&WorkerStep::Publish);
    if published.is_some_and(|publish| publish.end == Some(JobEnd::Complete)) {
        seen.versions = observe_versions(&ctx.client, &namespace, &job.spec.model_name).await?;
    }
    let running = seen.jobs.values().filter(|job| job.ours && job.end.is_none());
    if let Some(ip) = running.flat_map(|job| &job.pods).find_map(|pod| pod.ip.as_deref()) {
        seen.progress = state.poller.poll(ip).await;
    }
    Ok(seen)
}

/// The namespace that a step's Job lives in.
pub fn home<'a>(ctx: &'a Context<HubConfig>, step: WorkerStep, namespace: &'a str) -> &'a str {
    match step {
        WorkerStep::Finetune | WorkerStep::Validate => namespace,
        WorkerStep::Publish => &ctx.namespace,
    }
}

/// The versions of a model, fresh.
pub async fn observe_versions(
    client: &kube::Client,
    namespace: &str,
    model: &str,
) -> Result<Vec<SeenVersion>, kube::Error> {
    let api: Api<ModelVersion> = Api::namespaced(client.clone(), namespace);
    let list = api
        .list(&ListParams::default().fields(&format!("spec.modelName={model}")))
        .await?;
    Ok(list
        .into_iter()
        .map(|version| SeenVersion {
            name: version.name_any(),
            sequence: version.spec.sequence,
            digest: version.spec.source.digest,
        })
        .collect())
}

async fn observe_worker(
    ctx: &Context<HubConfig>,
    home: &str,
    job: &FineTuneJob,
    found: &Job,
) -> Result<SeenJob, kube::Error> {
    let uid = job.uid().unwrap_or_default();
    let ours = found.labels().get(names::LABEL_JOB_UID) == Some(&uid);
    let mut seen = see_job(found, ours);
    // Pods matter while an outcome can still be read from them.
    if ours && seen.held {
        let api: Api<Pod> = Api::namespaced(ctx.client.clone(), home);
        let selector = format!("batch.kubernetes.io/controller-uid={}", seen.uid);
        let mut pods: Vec<SeenPod> = api
            .list(&ListParams::default().labels(&selector))
            .await?
            .iter()
            .map(see_pod)
            .collect();
        pods.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        seen.pods = pods;
    }
    Ok(seen)
}

/// What matters of a Job.
pub fn see_job(job: &Job, ours: bool) -> SeenJob {
    let conditions = job
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let end = conditions
        .iter()
        .filter(|condition| condition.status == "True")
        .find_map(|condition| match condition.type_.as_str() {
            "Complete" => Some(JobEnd::Complete),
            "Failed" => Some(JobEnd::Failed {
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
            }),
            _ => None,
        });
    SeenJob {
        name: job.name_any(),
        uid: job.uid().unwrap_or_default(),
        resource_version: job.resource_version().unwrap_or_default(),
        created: job.metadata.creation_timestamp.as_ref().map(|t| t.0),
        ours,
        deleting: job.metadata.deletion_timestamp.is_some(),
        held: job.finalizers().iter().any(|f| f == names::FINALIZER),
        finalizers: job.finalizers().to_vec(),
        suspended: job.spec.as_ref().and_then(|s| s.suspend).unwrap_or(false),
        end,
        pods: Vec::new(),
    }
}

/// What matters of a pod.
pub fn see_pod(pod: &Pod) -> SeenPod {
    let status = pod.status.clone().unwrap_or_default();
    let state = status
        .container_statuses
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|container| container.name == crate::finetunejob::build::CONTAINER)
        .and_then(|container| container.state.clone())
        .unwrap_or_default();
    let unschedulable = status
        .conditions
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False")
        .map(|c| {
            let text = c.message.as_deref().unwrap_or("no node fits");
            Trouble::new(
                "Unschedulable",
                format!("pod {} waits for a node: {text}", pod.name_any()),
            )
        });
    let waiting = state.waiting.and_then(|waiting| {
        // These two are the ordinary way of every pod.
        let reason = waiting
            .reason
            .filter(|r| r != "ContainerCreating" && r != "PodInitializing")?;
        let text = waiting.message.unwrap_or_default();
        Some(Trouble::new(
            &reason,
            format!("pod {} cannot start: {text}", pod.name_any()),
        ))
    });
    SeenPod {
        name: pod.name_any(),
        created: pod.metadata.creation_timestamp.as_ref().map(|t| t.0),
        starting: status.phase.as_deref() == Some("Pending") && unschedulable.is_none(),
        ip: status.pod_ip.filter(|_| state.running.is_some()),
        failed: status.phase.as_deref() == Some("Failed"),
        reason: status.reason,
        message: status.message,
        end: state.terminated.map(|end| ContainerEnd {
            exit_code: end.exit_code,
            reason: end.reason.unwrap_or_default(),
            message: end.message.unwrap_or_default(),
        }),
        trouble: waiting.or(unschedulable),
    }
}
