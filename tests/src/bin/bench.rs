//! `bench`: figures of the road as it runs in the lab, as a table and in `target/bench/road.json`. Nothing here passes or
//! fails: a figure is a figure of this machine and this run.

use anyhow::{Context, Result};
use fleetune_crds::{FineTuneJob, ModelVersion, names};
use fleetune_tests::images;
use fleetune_tests::lab::paths::tree;
use fleetune_tests::road::hammer::Hammer;
use fleetune_tests::road::{Ask, NODES, Road, SHOP, SYSTEM, Show, processes, resident_bytes, rollout, samples};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;

#[tokio::main]
async fn main() -> Result<()> {
    fleetune_tests::lab::install_crypto();
    let mut show = Show::default();
    let road = Road::ready(&mut show).await?;
    let mut figures = Map::new();
    let mut note = |key: &str, value: f64| figures.insert(key.to_owned(), json!((value * 1e4).round() / 1e4));

    show.step("a job");
    let first = road.job("examples/shirts.yaml", "shirts-1").await?;
    note("apply_overhead_s", apply_overhead(&road, "shirts-1").await?);
    let rate = road
        .lab
        .prometheus_query("max(max_over_time(fleetune_job_samples_per_second{finetunejob=\"shirts-1\"}[30m]))")
        .await?;
    if let Some(rate) = rate
        .first()
        .and_then(|series| series["value"][1].as_str()?.parse().ok())
    {
        note("feature_samples_per_s", rate);
    }

    show.step("a rollout of it, then of one with another head");
    let plan = rollout("shirts", &[("canary", "1", "1s"), ("all", "100%", "0s")]);
    road.roll(&plan, &first).await?;
    let second = road
        .job_with(&first, "shirts-2", &json!({ "train": { "seed": 7 } }))
        .await?;
    let (bytes, writes, switches) = (fetched(&road).await?, edge_writes(&road).await?, switched(&road).await?);
    let failed = roll_under_load(&road, &plan, &second).await?;
    note("switch_failed_requests", f64::from(failed));
    let moved: f64 = fetched(&road).await?.values().sum::<f64>() - bytes.values().sum::<f64>();
    note(
        "head_only_bytes_ratio",
        moved / (NODES.len() as f64 * first.spec.summary.bytes as f64),
    );
    note(
        "api_writes_per_node",
        (edge_writes(&road).await? - writes) / NODES.len() as f64,
    );
    let (sum, count) = switched(&road).await?;
    note("switch_s", (sum - switches.0) / (count - switches.1).max(1.0));

    show.step("and back to the first");
    let before = road.node_series("fleetune_node_switch_seconds_sum").await?;
    road.roll(&plan, &first).await?;
    let after = road.node_series("fleetune_node_switch_seconds_sum").await?;
    let slowest = after.iter().map(|(node, sum)| sum - before.get(node).unwrap_or(&0.0));
    note("switch_back_slowest_node_s", slowest.fold(0.0, f64::max));

    show.step("sizes");
    let mb = |bytes: f64| bytes / 1e6;
    let built = images::build(&road.lab).await?;
    note("worker_image_mb", mb(built.worker.compressed_bytes as f64));
    note("operator_image_mb", mb(built.operator.compressed_bytes as f64));
    let largest = |program: &str, command: &str| -> Result<f64> {
        Ok(processes(program, command)?
            .into_iter()
            .map(resident_bytes)
            .max()
            .unwrap_or_default() as f64)
    };
    note("node_rss_mb", mb(largest("fleetune-worker", "node")?));
    note("operator_rss_mb", mb(largest("fleetune-operator", "hub")?));
    note("lab_up_s", road.lab.up_secs()?);
    print(&Value::Object(figures))
}

/// Time from the job's creation to its end beyond what its worker containers ran, in seconds.
async fn apply_overhead(road: &Road, name: &str) -> Result<f64> {
    let job = road.hub::<FineTuneJob>().await?.get(name).await?;
    let created = job.metadata.creation_timestamp.context("no creation time")?.0;
    let finished = job
        .status
        .and_then(|s| s.finished_at)
        .context("the job has not ended")?
        .0;
    let client = road.lab.cluster("hub")?.client().await?;
    let of_job = ListParams::default().labels(&format!("{}={name}", names::LABEL_JOB));
    let mut computing = 0;
    for namespace in [SHOP, SYSTEM] {
        for pod in Api::<Pod>::namespaced(client.clone(), namespace).list(&of_job).await? {
            let statuses = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
            for ended in statuses.into_iter().filter_map(|s| s.state?.terminated) {
                if let (Some(start), Some(end)) = (ended.started_at, ended.finished_at) {
                    computing += end.0.as_second() - start.0.as_second();
                }
            }
        }
    }
    Ok((finished.as_second() - created.as_second() - computing) as f64)
}

/// Rolls `version` out while every node is asked 50 times a second; returns the requests that failed.
async fn roll_under_load(road: &Road, plan: &Value, version: &ModelVersion) -> Result<u32> {
    let sample = samples::images(1)?.pop().context("no sample")?;
    let mut hammers = Vec::new();
    for node in NODES {
        let ask = Ask::new(&road.lab.runtime_addr(node)?)?;
        hammers.push(Hammer::start(
            ask,
            version.spec.model_name.clone(),
            sample.encoded.clone(),
        ));
    }
    road.roll(plan, version).await?;
    let mut failed = 0;
    for hammer in hammers {
        failed += u32::try_from(hammer.stop().await?.failed.len())?;
    }
    Ok(failed)
}

async fn fetched(road: &Road) -> Result<BTreeMap<&'static str, f64>> {
    road.node_series("fleetune_node_fetched_bytes_total").await
}

/// Sum and number of switch durations over all nodes.
async fn switched(road: &Road) -> Result<(f64, f64)> {
    let sum = road
        .node_series("fleetune_node_switch_seconds_sum")
        .await?
        .values()
        .sum();
    let count = road
        .node_series("fleetune_node_switch_seconds_count")
        .await?
        .values()
        .sum();
    Ok((sum, count))
}

/// Writes of EdgeNodes so far, spec and status.
async fn edge_writes(road: &Road) -> Result<f64> {
    let writes = road.writes().await?;
    Ok(writes
        .iter()
        .filter(|(key, _)| key.contains(" edgenodes/"))
        .map(|(_, count)| *count as f64)
        .sum())
}

fn print(figures: &Value) -> Result<()> {
    let mut out = std::io::stdout();
    for (key, value) in figures.as_object().into_iter().flatten() {
        writeln!(out, "{key:<24} {value}")?;
    }
    let folder = tree().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("road.json"), serde_json::to_vec_pretty(figures)?)?;
    writeln!(out, "written to {}", folder.join("road.json").display())?;
    Ok(())
}
