//! Steps that most tests take: run a job to its end, roll a version out to the end of its run.

use super::install::{Road, SHOP, apply, path};
use super::{follow, job_done, rollout_done};
use anyhow::{Context, Result, bail, ensure};
use fleetune_crds::{EdgeNode, FineTuneJob, ModelRollout, ModelVersion, conditions};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

impl Road {
    /// Objects of a kind in the example namespace on the hub.
    ///
    /// # Errors
    /// When the hub has no kubeconfig.
    pub async fn hub<K>(&self) -> Result<Api<K>>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Ok(Api::namespaced(self.lab.cluster("hub")?.client().await?, SHOP))
    }

    /// Applies an example job and follows it to its version. A job that has succeeded before is not run again.
    ///
    /// # Errors
    /// When the job fails, with its own words.
    pub async fn job(&self, file: &str, name: &str) -> Result<ModelVersion> {
        self.lab.cluster("hub")?.kubectl(&["apply", "-f", &path(file)?]).await?;
        self.job_version(name).await
    }

    /// Runs the job that made `version` once more, under another name and with some fields changed.
    ///
    /// # Errors
    /// When the first job is gone, or this one fails.
    pub async fn job_with(&self, version: &ModelVersion, name: &str, changes: &Value) -> Result<ModelVersion> {
        let first = self.hub::<FineTuneJob>().await?.get(&version.spec.job).await?;
        let mut job = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "FineTuneJob",
            "metadata": { "name": name, "namespace": SHOP },
            "spec": first.spec,
        });
        merge(&mut job["spec"], changes);
        apply(&self.lab, "hub", &job).await?;
        self.job_version(name).await
    }

    /// Follows an applied job to its version.
    ///
    /// # Errors
    /// When the job fails, with its own words.
    pub async fn job_version(&self, name: &str) -> Result<ModelVersion> {
        let jobs = self.hub::<FineTuneJob>().await?;
        follow(jobs.clone(), name, Duration::from_mins(15), job_done).await?;
        let status = jobs.get(name).await?.status.unwrap_or_default();
        let Some(version) = status.version else {
            let why = conditions::get(&status.conditions, conditions::SUCCEEDED);
            bail!(
                "{name} failed: {}",
                why.map(|c| format!("{}: {}", c.reason, c.message)).unwrap_or_default()
            );
        };
        Ok(self.hub::<ModelVersion>().await?.get(&version).await?)
    }

    /// Runs an example job without a cluster, in the hub's network, where its addresses lead: version and report are
    /// written into `out`.
    ///
    /// # Errors
    /// When the worker says no; the message holds what it printed.
    pub async fn local_job(&self, file: &str, out: &Path) -> Result<()> {
        let output = tokio::process::Command::new("nsenter")
            .arg(format!("--net={}", self.lab.network("hub")?.display()))
            .arg("--")
            .arg(self.images.binaries.join("fleetune-worker"))
            .args(["finetune", "-f", &path(file)?, "--local", "--out"])
            .arg(out)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .kill_on_drop(true)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "the local run of {file}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Applies a rollout of `version` and follows its run to the end.
    ///
    /// # Errors
    /// When the run does not end in time.
    pub async fn roll(&self, rollout: &Value, version: &ModelVersion) -> Result<ModelRollout> {
        let name = rollout["metadata"]["name"]
            .as_str()
            .context("a rollout without a name")?
            .to_owned();
        let mut rollout = rollout.clone();
        rollout["spec"]["version"] = json!(version.name_any());
        apply(&self.lab, "hub", &rollout).await?;
        let namespace = rollout["metadata"]["namespace"].as_str().context("no namespace")?;
        let rollouts: Api<ModelRollout> = Api::namespaced(self.lab.cluster("hub")?.client().await?, namespace);
        follow(
            rollouts.clone(),
            &name,
            Duration::from_mins(5),
            rollout_done(&version.name_any()),
        )
        .await?;
        Ok(rollouts.get(&name).await?)
    }

    /// Takes every model off the nodes again: deletes all rollouts with `deletionPolicy: Remove` and waits until the nodes
    /// have unloaded. A test starts with nodes that have room.
    ///
    /// # Errors
    /// When a rollout is still there after two minutes.
    pub async fn clear(&self) -> Result<()> {
        let client = self.lab.cluster("hub")?.client().await?;
        for rollout in Api::<ModelRollout>::all(client).list(&ListParams::default()).await? {
            self.remove(&rollout).await?;
        }
        Ok(())
    }

    /// Deletes a rollout with `deletionPolicy: Remove` and waits until its nodes have unloaded.
    ///
    /// # Errors
    /// When it is still there after two minutes.
    pub async fn remove(&self, rollout: &ModelRollout) -> Result<()> {
        let (name, namespace) = (rollout.name_any(), rollout.namespace().context("no namespace")?);
        let rollouts = Api::<ModelRollout>::namespaced(self.lab.cluster("hub")?.client().await?, &namespace);
        let remove = json!({ "spec": { "deletionPolicy": "Remove" } });
        rollouts
            .patch(&name, &PatchParams::default(), &Patch::Merge(&remove))
            .await?;
        rollouts.delete(&name, &DeleteParams::default()).await?;
        let gone = await_condition(rollouts, &name, |object: Option<&ModelRollout>| object.is_none());
        tokio::time::timeout(Duration::from_mins(2), gone)
            .await
            .with_context(|| format!("{name} stays"))??;
        Ok(())
    }

    /// The EdgeNodes of both device clusters.
    ///
    /// # Errors
    /// When a cluster does not answer.
    pub async fn edge_nodes(&self) -> Result<Vec<EdgeNode>> {
        let mut nodes = Vec::new();
        for cluster in ["edge-a", "edge-b"] {
            let client = self.lab.cluster(cluster)?.client().await?;
            nodes.extend(Api::<EdgeNode>::all(client).list(&ListParams::default()).await?);
        }
        Ok(nodes)
    }
}

/// A rollout of a model to all edge nodes; `stages` is `[(name, nodes, soak)]`. The version is set by [`Road::roll`].
pub fn rollout(model: &str, stages: &[(&str, &str, &str)]) -> Value {
    let stages: Vec<Value> = stages
        .iter()
        .map(|(name, nodes, soak)| json!({ "name": name, "nodes": nodes, "minSuccessTime": soak }))
        .collect();
    json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelRollout",
        "metadata": { "name": model, "namespace": SHOP },
        "spec": {
            "modelName": model,
            "targets": { "clusters": { "matchLabels": { "site": "shop" } } },
            "strategy": { "stages": stages, "progressDeadline": "60s" },
        },
    })
}

/// Lays `changes` over `value`, field by field.
fn merge(value: &mut Value, changes: &Value) {
    match (value, changes) {
        (Value::Object(value), Value::Object(changes)) => {
            for (key, change) in changes {
                merge(value.entry(key.clone()).or_insert(Value::Null), change);
            }
        }
        (value, change) => *value = change.clone(),
    }
}
