//! The road itself: two real jobs, a rollout in three stages over both device clusters, a head-only update under load.
//! The tests share the lab and run one after the other.

use anyhow::{Context, Result};
use fleetune_crds::common::Decimal;
use fleetune_crds::{Metric, ModelRollout, ModelVersion, RunState, VersionState, names};
use fleetune_tests::road::forge::Forge;
use fleetune_tests::road::hammer::Hammer;
use fleetune_tests::road::{Ask, NODES, Road, SHOP, on_the_road, rollout, samples};
use fleetune_worker::pipeline::Raw;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;

fn metric(version: &ModelVersion, metric: Metric) -> (f64, f64) {
    let summary = &version.spec.summary;
    let of = |metrics: &BTreeMap<String, Decimal>| metrics.get(metric.name()).map_or(f64::NAN, Decimal::get);
    (of(&summary.metrics), of(&summary.baseline_metrics))
}

/// Both jobs beat their baseline, and each step ran as one Job.
#[test]
fn two_real_jobs_succeed_and_beat_their_baselines() -> Result<()> {
    on_the_road(|road| async move {
        for (file, name) in [
            ("examples/shirts.yaml", "shirts-1"),
            ("examples/motion.yaml", "motion-1"),
        ] {
            let version = road.job(file, name).await?;
            let (value, baseline) = metric(&version, Metric::MacroF1);
            assert!(value > baseline, "{name}: macro F1 {value} against {baseline}");
            assert!(
                version.spec.summary.samples >= 100,
                "{name}: {} test rows",
                version.spec.summary.samples
            );
            let jobs = road
                .hub::<Job>()
                .await?
                .list(&ListParams::default().labels(&format!("{}={name}", names::LABEL_JOB)))
                .await?;
            let mut steps: Vec<_> = jobs.iter().map(ResourceExt::name_any).collect();
            steps.sort();
            assert_eq!(steps, [format!("{name}-finetune"), format!("{name}-validate")]);
        }
        Ok(())
    })
}

/// The same job gives the same bytes, in the cluster again and on a machine by itself.
#[test]
fn the_same_job_gives_the_same_digest_again_and_locally() -> Result<()> {
    on_the_road(|road| async move {
        let first = road.job("examples/shirts.yaml", "shirts-1").await?;
        let again = road.job_with(&first, "shirts-again", &json!({})).await?;
        assert_eq!(first.spec.source.digest, again.spec.source.digest);
        let folder = tempfile::tempdir()?;
        let out = folder.path().join("out");
        road.local_job("examples/shirts.yaml", &out).await?;
        let local = fleetune_worker::artifact::pack(&out.join("version"))?;
        assert_eq!(first.spec.source.digest, local.digest());
        Ok(())
    })
}

/// Waves in order, a small update, and nobody who asks notices.
#[test]
fn a_rollout_goes_in_order_and_a_head_only_update_is_small_and_unnoticed() -> Result<()> {
    on_the_road(|road| async move {
        let first = road.job("examples/shirts.yaml", "shirts-1").await?;
        let plan = rollout(
            "shirts",
            &[("canary", "1", "5s"), ("half", "50%", "3s"), ("all", "100%", "0s")],
        );
        let done = road.roll(&plan, &first).await?;
        waves_in_order(&done, &[1, 2, 4], &[5, 3, 0])?;
        serving(&road, &first).await?;
        predictions_agree(&road, &first).await?;

        // The same model with another head: only the tuned weights differ.
        let forge = Forge::new(&road)?;
        let before = road.node_series("fleetune_node_fetched_bytes_total").await?;
        let second = road
            .job_with(&first, "shirts-2", &json!({ "train": { "seed": 7, "epochs": 3 } }))
            .await?;
        assert_ne!(first.spec.source.digest, second.spec.source.digest);
        let sample = samples::images(1)?.pop().context("no sample")?;
        let hammers: Vec<Hammer> = NODES
            .iter()
            .map(|node| {
                let ask = Ask::new(&road.lab.runtime_addr(node)?)?;
                Ok(Hammer::start(ask, "shirts".into(), sample.encoded.clone()))
            })
            .collect::<Result<_>>()?;
        let done = road.roll(&plan, &second).await?;
        waves_in_order(&done, &[1, 2, 4], &[5, 3, 0])?;
        let after = road.node_series("fleetune_node_fetched_bytes_total").await?;
        let switches = Switches::read(&road).await?;
        let back = road.roll(&plan, &first).await?;
        writeln!(
            std::io::stderr(),
            "back on the first version: {}",
            Switches::read(&road).await?.since(&switches)
        )?;
        // Every node has proven that version already, so there is nothing to soak.
        waves_in_order(&back, &[1, 2, 4], &[0, 0, 0])?;
        let last = road.node_series("fleetune_node_fetched_bytes_total").await?;
        let versions: Vec<String> = [&first, &second]
            .iter()
            .map(|v| v.spec.source.digest.to_string())
            .collect();
        for (hammer, node) in hammers.into_iter().zip(NODES) {
            let heard = hammer.stop().await?;
            heard.nothing_lost(node)?;
            assert!(heard.mixed().is_empty(), "{node}: mixed answers of {:?}", heard.mixed());
            let mut seen: Vec<_> = heard.answers.keys().cloned().collect();
            seen.sort();
            let mut want = versions.clone();
            want.sort();
            assert_eq!(seen, want, "{node} answered with exactly the two versions");
        }
        for (node, bytes) in &after {
            let moved = bytes - before.get(node).copied().unwrap_or_default();
            let whole = first.spec.summary.bytes as f64;
            assert!(
                moved > 0.0 && moved < 0.02 * whole,
                "{node} fetched {moved} bytes of {whole} for a new head"
            );
            assert!(
                last[node] <= *bytes,
                "{node} fetched bytes for going back to a version that it holds"
            );
        }
        drop(forge);
        serving(&road, &first).await
    })
}

/// Seconds that all switches of each node took, and their number.
struct Switches(BTreeMap<&'static str, f64>, BTreeMap<&'static str, f64>);

impl Switches {
    async fn read(road: &Road) -> Result<Self> {
        Ok(Self(
            road.node_series("fleetune_node_switch_seconds_sum").await?,
            road.node_series("fleetune_node_switch_seconds_count").await?,
        ))
    }

    /// For people: what a switch took on each node since `before`.
    fn since(&self, before: &Self) -> String {
        let took = |node: &&str| (self.0[node] - before.0[node]) / (self.1[node] - before.1[node]).max(1.0);
        let each: Vec<String> = NODES.iter().map(|node| format!("{node} {:.3} s", took(node))).collect();
        each.join(", ")
    }
}

fn waves_in_order(rollout: &ModelRollout, nodes: &[i32], soak: &[i64]) -> Result<()> {
    let run = rollout.status.as_ref().and_then(|s| s.run.as_ref()).context("no run")?;
    assert_eq!(run.state, RunState::Complete, "{:#?}", rollout.status);
    assert_eq!(run.waves.iter().map(|w| w.nodes).collect::<Vec<_>>(), nodes);
    let mut previous = run.started_at.0;
    for (wave, soak) in run.waves.iter().zip(soak) {
        let passed = wave.passed_at.as_ref().context("a wave that has not passed")?.0;
        assert!(
            wave.started_at.0 >= previous,
            "{} started before the wave before it passed",
            wave.name
        );
        assert!(
            passed.as_second() - wave.started_at.0.as_second() >= *soak,
            "{} did not soak {soak} s",
            wave.name
        );
        previous = passed;
    }
    Ok(())
}

async fn serving(road: &Road, version: &ModelVersion) -> Result<()> {
    let key = names::model_key(SHOP, &version.spec.model_name);
    let nodes = road.edge_nodes().await?;
    assert_eq!(nodes.len(), NODES.len());
    for node in nodes {
        let state = node
            .status
            .as_ref()
            .and_then(|s| s.models.get(&key))
            .cloned()
            .context("no state")?;
        assert_eq!(state.state, VersionState::Proven, "{}: {state:?}", node.name_any());
        assert_eq!(
            state.active.as_ref(),
            Some(&version.spec.source.digest),
            "{}",
            node.name_any()
        );
    }
    Ok(())
}

async fn predictions_agree(road: &Road, version: &ModelVersion) -> Result<()> {
    let (here, _folder) = Forge::new(road)?.open(version).await?;
    for node in NODES {
        let ask = Ask::new(&road.lab.runtime_addr(node)?)?;
        for sample in samples::images(20)? {
            let there = ask.image(&version.spec.model_name, &sample.encoded).await?;
            let answer = here.answer(here.run(&here.prepare(Raw::Image(&sample.encoded))?)?);
            assert_eq!(there.version, version.spec.source.digest.to_string());
            assert_eq!(Some(&there.label), answer.label.as_ref(), "{node}: {}", sample.name);
            for (there, here) in there.probabilities.iter().zip(&answer.probabilities) {
                assert!(
                    (there - here).abs() < 1e-4,
                    "{node}: {}: {there} against {here}",
                    sample.name
                );
            }
        }
    }
    Ok(())
}
