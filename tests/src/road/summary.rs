//! What came of a job and its rollout, read back from the clusters.

use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use fleetune_crds::{EdgeNode, FineTuneJob, ModelRollout, ModelVersion, RunState, VersionState, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use std::fmt::Write;

/// Reads job, version, rollout and nodes back and renders them; checks on the way that all of it is so.
///
/// # Errors
/// When anything of the road is not as it should be: the job not succeeded, the rollout not complete, a node that does
/// not serve the digest.
pub async fn summary(lab: &Lab, namespace: &str, job: &str, rollout: &str) -> Result<String> {
    let hub = lab.cluster("hub")?.client().await?;
    let job = Api::<FineTuneJob>::namespaced(hub.clone(), namespace).get(job).await?;
    let version = job
        .status
        .as_ref()
        .and_then(|s| s.version.clone())
        .context("the job names no version")?;
    let version = Api::<ModelVersion>::namespaced(hub.clone(), namespace)
        .get(&version)
        .await?;
    let rollout = Api::<ModelRollout>::namespaced(hub, namespace).get(rollout).await?;
    let mut text = String::new();
    job_part(&mut text, &job, &version)?;
    rollout_part(&mut text, &rollout, &version)?;
    let key = names::model_key(namespace, &version.spec.model_name);
    for cluster in ["edge-a", "edge-b"] {
        let api = Api::<EdgeNode>::all(lab.cluster(cluster)?.client().await?);
        for node in api.list(&ListParams::default()).await? {
            let state = node.status.as_ref().and_then(|s| s.models.get(&key));
            let state = state.with_context(|| format!("{} says nothing of {key}", node.name_any()))?;
            let active = state.active.as_ref().context("no active version")?;
            ensure!(
                *active == version.spec.source.digest && state.state == VersionState::Proven,
                "{} serves {active}, state {:?} {} {}",
                node.name_any(),
                state.state,
                state.reason,
                state.message
            );
            writeln!(
                text,
                "  node {:<10} {:<8} serves {}",
                node.name_any(),
                cluster,
                active.short()
            )?;
        }
    }
    Ok(text)
}

fn job_part(text: &mut String, job: &FineTuneJob, version: &ModelVersion) -> Result<()> {
    let summary = &version.spec.summary;
    writeln!(text, "  job {}: version {}", job.name_any(), version.name_any())?;
    writeln!(text, "    digest    {}", version.spec.source.digest)?;
    writeln!(text, "    report    {}", version.spec.source.report)?;
    writeln!(
        text,
        "    {:<16} {:>10} {:>10}",
        "test metric", "model", &summary.baseline
    )?;
    for (name, value) in &summary.metrics {
        let baseline = summary
            .baseline_metrics
            .get(name)
            .map(ToString::to_string)
            .unwrap_or_default();
        writeln!(text, "    {name:<16} {value:>10} {baseline:>10}")?;
    }
    writeln!(
        text,
        "    {} test samples, {} bytes, p95 {} ms, peak memory {} MB",
        summary.samples,
        summary.bytes,
        summary.p95_latency_ms,
        summary.peak_memory_bytes / 1_000_000
    )?;
    Ok(())
}

fn rollout_part(text: &mut String, rollout: &ModelRollout, version: &ModelVersion) -> Result<()> {
    let status = rollout.status.as_ref().context("the rollout has no status")?;
    let run = status.run.as_ref().context("the rollout has no run")?;
    ensure!(
        run.state == RunState::Complete && run.digest == version.spec.source.digest,
        "run {} of {} is {:?}",
        run.number,
        run.version,
        run.state
    );
    writeln!(
        text,
        "  rollout {}: run {} of {}, {:?}",
        rollout.name_any(),
        run.number,
        run.version,
        run.state
    )?;
    for wave in &run.waves {
        let passed = wave
            .passed_at
            .as_ref()
            .with_context(|| format!("wave {} has not passed", wave.name))?;
        writeln!(
            text,
            "    wave {:<8} {:>2} nodes  {}  passed after {}",
            wave.name,
            wave.nodes,
            clock(&wave.started_at),
            span(&wave.started_at, passed)
        )?;
    }
    Ok(())
}

fn clock(time: &Time) -> String {
    time.0.strftime("%H:%M:%S").to_string()
}

fn span(from: &Time, to: &Time) -> String {
    format!("{} s", to.0.as_second() - from.0.as_second())
}
