//! Seen from outside: Prometheus answers for every kind of series, and a converged system writes nothing.

use anyhow::Result;
use fleetune_tests::road::{on_the_road, rollout};
use std::collections::BTreeMap;
use std::time::Duration;

/// Prometheus really scrapes.
#[test]
fn prometheus_answers_for_jobs_rollouts_gates_nodes_and_reconciles() -> Result<()> {
    on_the_road(|road| async move {
        let version = road.job("examples/shirts.yaml", "shirts-1").await?;
        road.roll(&rollout("shirts", &[("all", "100%", "0s")]), &version)
            .await?;
        for query in [
            "fleetune_job_metric{namespace=\"shop\", finetunejob=\"shirts-1\", split=\"test\", metric=\"macroF1\"} > 0.5",
            "max_over_time(fleetune_job_samples_per_second{finetunejob=\"shirts-1\"}[15m]) > 0",
            "sum(fleetune_jobs_finished_total) > 0",
            "sum(fleetune_job_gate_verdicts_total) > 0",
            "sum(fleetune_rollout_nodes{state=\"proven\"}) >= 4",
            "sum(fleetune_reconcile_total{kind=\"ModelRollout\"}) > 0",
            "sum(fleetune_reconcile_total{kind=\"FineTuneJob\"}) > 0",
            "count(count by (cluster, instance) (fleetune_node_active_version)) == 4",
            "sum(fleetune_node_fetched_bytes_total) > 0",
        ] {
            fleetune_tests::lab::wait(query, Duration::from_mins(1), || async {
                Ok(!road.lab.prometheus_query(query).await?.is_empty())
            })
            .await?;
        }
        Ok(())
    })
}

/// Over a minute of quiet nobody writes one of our objects, a worker Job or a ConfigMap.
#[test]
fn converged_means_no_writes() -> Result<()> {
    on_the_road(|road| async move {
        let version = road.job("examples/shirts.yaml", "shirts-1").await?;
        road.roll(&rollout("shirts", &[("all", "100%", "0s")]), &version)
            .await?;
        // The last status writes of the rollout may still be on their way: quiet begins after five seconds without one.
        let mut before = road.writes().await?;
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let now = road.writes().await?;
            if std::mem::replace(&mut before, now.clone()) == now {
                break;
            }
        }
        tokio::time::sleep(Duration::from_mins(1)).await;
        let after = road.writes().await?;
        assert_eq!(before, after, "{:?}", difference(&before, &after));
        Ok(())
    })
}

fn difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<String> {
    let changed = after.iter().filter(|(key, count)| before.get(*key) != Some(*count));
    changed
        .map(|(key, count)| format!("{key}: {} -> {count}", before.get(key).copied().unwrap_or_default()))
        .collect()
}
