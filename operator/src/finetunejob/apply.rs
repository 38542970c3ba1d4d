//! Carries out the steps of a plan, in order, and stops at the first error. Every step can be done twice.

use crate::config::HubConfig;
use crate::finetunejob::plan::{Plan, Step};
use crate::finetunejob::step::WorkerStep;
use crate::finetunejob::validate::Validated;
use crate::finetunejob::{Error, State, build, observe};
use crate::runtime::Context;
use crate::runtime::error::{ignore_not_found, is_conflict};
use fleetune_crds::{FineTuneJob, FineTuneJobStatus, ModelVersion, names};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

/// What steps are carried out with.
pub struct Applier<'a> {
    /// The operator.
    pub ctx: &'a Context<HubConfig>,
    /// What this controller keeps in memory.
    pub state: &'a State,
    /// What was seen.
    pub seen: &'a observe::Observed,
    /// The time of this pass.
    pub now: Timestamp,
}

impl Applier<'_> {
    /// Carries out `plan` for `job`, whose metadata and status follow each write. `want` is absent for a job that is
    /// over or going, whose plans build nothing.
    pub async fn apply(&self, job: &mut FineTuneJob, want: Option<&Validated>, plan: &Plan) -> Result<(), Error> {
        for step in &plan.steps {
            tracing::debug!(?step, "applying");
            match (step, want) {
                (Step::AddFinalizer, _) => self.set_finalizer(job, true).await?,
                (Step::RemoveFinalizer, _) => self.set_finalizer(job, false).await?,
                (Step::RecordStart, _) => {
                    let mut status = job.status.clone().unwrap_or_default();
                    status.started_at = Some(Time(self.now));
                    write_status(self.ctx, job, &status).await?;
                }
                (Step::EnsureConfig(step), Some(want)) => self.ensure_config(want, *step).await?,
                (Step::CreateJob(step), Some(want)) => self.create_job(want, plan, *step).await?,
                (Step::Suspend(step, suspend), _) => {
                    let spec = json!({ "suspend": suspend });
                    self.patch_job(job, *step, json!({ "spec": spec })).await?;
                }
                (Step::ReleaseJob(step), _) => self.release(job, *step).await?,
                (Step::DeleteJob(step), _) => self.delete_job(job, *step).await?,
                (Step::CreateVersion { sequence, signature }, Some(want)) => {
                    let version = build::version(want, &plan.facts, *sequence, signature, self.now);
                    self.create_version(version.ok_or(Error::Unplanned)?).await?;
                }
                (Step::DeleteConfig, _) => {
                    let namespace = job.namespace().unwrap_or_default();
                    let name = WorkerStep::Publish.config_name(&namespace, &job.name_any());
                    self.delete_config(job, &name).await?;
                }
                (Step::DeleteSelf, _) => {
                    let params = precise(&job.uid().unwrap_or_default());
                    ignore_not_found(self.jobs_api(job).delete(&job.name_any(), &params).await)?;
                }
                (Step::EnsureConfig(_) | Step::CreateJob(_) | Step::CreateVersion { .. }, None) => {
                    return Err(Error::Unplanned);
                }
            }
        }
        Ok(())
    }

    fn jobs_api(&self, job: &FineTuneJob) -> Api<FineTuneJob> {
        Api::namespaced(self.ctx.client.clone(), &job.namespace().unwrap_or_default())
    }

    async fn set_finalizer(&self, job: &mut FineTuneJob, on: bool) -> Result<(), Error> {
        let mut finalizers: Vec<String> = job.finalizers().to_vec();
        finalizers.retain(|f| f != names::FINALIZER);
        if on {
            finalizers.push(names::FINALIZER.to_owned());
        }
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": job.resource_version(), "finalizers": finalizers },
        }));
        let params = PatchParams::default();
        let result = self.jobs_api(job).patch(&job.name_any(), &params, &patch).await;
        if on {
            job.metadata = result?.metadata;
        } else {
            ignore_not_found(result)?;
        }
        Ok(())
    }

    async fn ensure_config(&self, want: &Validated, step: WorkerStep) -> Result<(), Error> {
        let home = observe::home(self.ctx, step, &want.namespace);
        self.create(home, &build::config(want, step), &want.uid).await
    }

    async fn create_job(&self, want: &Validated, plan: &Plan, step: WorkerStep) -> Result<(), Error> {
        let home = observe::home(self.ctx, step, &want.namespace);
        let job = build::job(want, step, &plan.facts, &self.ctx.config);
        self.create(home, &job, &want.uid).await?;
        tracing::info!(step = step.name(), "made the worker Job");
        Ok(())
    }

    /// Creates an object of a deterministic name. One that exists is fine if it is ours, and otherwise left alone.
    async fn create<K>(&self, namespace: &str, object: &K, uid: &str) -> Result<(), Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug,
        K: serde::Serialize + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.ctx.client.clone(), namespace);
        match api.create(&PostParams::default(), object).await {
            Ok(_) => Ok(()),
            Err(error) if is_conflict(&error) => {
                let found = api.get(&object.name_any()).await?;
                if found.labels().get(names::LABEL_JOB_UID).map(String::as_str) == Some(uid) {
                    return Ok(());
                }
                Err(Error::NameTaken {
                    kind: K::kind(&()).into_owned(),
                    namespace: namespace.to_owned(),
                    name: object.name_any(),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A write on a worker Job that holds only if the Job is as it was seen.
    async fn patch_job(&self, job: &FineTuneJob, step: WorkerStep, mut patch: serde_json::Value) -> Result<(), Error> {
        let Some(seen) = self.seen.jobs.get(&step) else {
            return Ok(());
        };
        patch["metadata"]["resourceVersion"] = json!(seen.resource_version);
        let api = self.workers(job, step);
        let params = PatchParams::default();
        ignore_not_found(api.patch(&seen.name, &params, &Patch::Merge(patch)).await)?;
        Ok(())
    }

    /// Takes our finalizer off. A deletion just before changed the Job's version, so that is not asked for here: the
    /// test of the old list is what makes the write safe.
    async fn release(&self, job: &FineTuneJob, step: WorkerStep) -> Result<(), Error> {
        let Some(seen) = self.seen.jobs.get(&step) else {
            return Ok(());
        };
        let api: Api<Job> = self.workers(job, step);
        let found = match api.get(&seen.name).await {
            Ok(found) if found.uid().as_deref() == Some(&seen.uid) => found,
            Ok(_) => return Ok(()),
            Err(error) => return Ok(ignore_not_found::<()>(Err(error))?),
        };
        let rest: Vec<&String> = found.finalizers().iter().filter(|f| *f != names::FINALIZER).collect();
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": found.resource_version(), "finalizers": rest },
        }));
        ignore_not_found(api.patch(&seen.name, &PatchParams::default(), &patch).await)?;
        Ok(())
    }

    async fn delete_job(&self, job: &FineTuneJob, step: WorkerStep) -> Result<(), Error> {
        let Some(seen) = self.seen.jobs.get(&step) else {
            return Ok(());
        };
        let api: Api<Job> = self.workers(job, step);
        ignore_not_found(api.delete(&seen.name, &precise(&seen.uid)).await)?;
        Ok(())
    }

    fn workers(&self, job: &FineTuneJob, step: WorkerStep) -> Api<Job> {
        let namespace = job.namespace().unwrap_or_default();
        Api::namespaced(self.ctx.client.clone(), observe::home(self.ctx, step, &namespace))
    }

    async fn delete_config(&self, job: &FineTuneJob, name: &str) -> Result<(), Error> {
        let api: Api<ConfigMap> = Api::namespaced(self.ctx.client.clone(), &self.ctx.namespace);
        let Some(found) = api.get_opt(name).await? else {
            return Ok(());
        };
        if found.labels().get(names::LABEL_JOB_UID) == job.uid().as_ref() {
            ignore_not_found(api.delete(name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }

    /// Creates a version. Within this process, two jobs of one model take turns, so that they never get the same place
    /// in the order; a version that came since the plan was made means plan again.
    async fn create_version(&self, version: ModelVersion) -> Result<(), Error> {
        let _turn = self.state.publishing.lock().await;
        let namespace = version.namespace().unwrap_or_default();
        let known = observe::observe_versions(&self.ctx.client, &namespace, &version.spec.model_name).await?;
        if known.iter().any(|other| other.sequence >= version.spec.sequence) {
            return Err(Error::Outrun);
        }
        let api: Api<ModelVersion> = Api::namespaced(self.ctx.client.clone(), &namespace);
        match api.create(&PostParams::default(), &version).await {
            Ok(_) => {
                tracing::info!(version = version.name_any(), "published");
                Ok(())
            }
            Err(error) if is_conflict(&error) => Err(Error::Outrun),
            Err(error) => Err(error.into()),
        }
    }
}

/// Deletes this very object and then, in the background, what it owns.
fn precise(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::background()
    }
}

/// Writes a whole status, if the job is still as it was read; the job follows.
pub async fn write_status(
    ctx: &Context<HubConfig>,
    job: &mut FineTuneJob,
    status: &FineTuneJobStatus,
) -> Result<(), Error> {
    let api: Api<FineTuneJob> = Api::namespaced(ctx.client.clone(), &job.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": FineTuneJob::api_version(&()),
        "kind": FineTuneJob::kind(&()),
        "metadata": { "name": job.name_any(), "resourceVersion": job.resource_version() },
        "status": status,
    });
    let params = PatchParams::apply(names::MANAGER_JOB).force();
    let written = api
        .patch_status(&job.name_any(), &params, &Patch::Apply(&patch))
        .await?;
    job.metadata = written.metadata;
    job.status = Some(status.clone());
    Ok(())
}
