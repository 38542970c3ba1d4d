//! What breaks on the way changes nothing but time: the operator killed, a node without power, a cluster cut off, the
//! hub's API server restarted.

use anyhow::{Context, Result};
use fleetune_crds::{ModelRollout, ModelRolloutStatus, ModelVersion, RunState};
use fleetune_tests::road::forge::Forge;
use fleetune_tests::road::hammer::Hammer;
use fleetune_tests::road::{Ask, Road, apply, follow, on_the_road, process, rollout, rollout_done, samples, until};
use kube::ResourceExt;
use kube::api::Api;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

/// Applies a rollout of `version` and waits until its run has reached wave `wave` (from 0).
async fn start(
    road: &Road,
    manifest: &serde_json::Value,
    version: &ModelVersion,
    wave: i32,
) -> Result<Api<ModelRollout>> {
    let mut manifest = manifest.clone();
    manifest["spec"]["version"] = json!(version.name_any());
    apply(&road.lab, "hub", &manifest).await?;
    let rollouts = road.hub::<ModelRollout>().await?;
    let name = version.spec.model_name.as_str();
    follow(
        rollouts.clone(),
        name,
        Duration::from_mins(2),
        |rollout: &ModelRollout| match rollout.status.as_ref().and_then(|s| s.run.as_ref()) {
            Some(run) if run.version == version.name_any() && run.wave >= wave && !run.waves.is_empty() => {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        },
    )
    .await?;
    Ok(rollouts)
}

async fn end(rollouts: &Api<ModelRollout>, version: &ModelVersion) -> Result<ModelRolloutStatus> {
    let name = version.spec.model_name.as_str();
    follow(
        rollouts.clone(),
        name,
        Duration::from_mins(4),
        rollout_done(&version.name_any()),
    )
    .await?;
    rollouts.get(name).await?.status.context("no status")
}

/// The process that runs `fleetune-operator hub` in the lab.
fn operator() -> Result<Pid> {
    process("fleetune-operator", "hub")
}

/// Killed in the first, the second and the last wave.
#[test]
fn a_killed_operator_goes_on_where_it_was() -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let plan = rollout(
            "kill",
            &[("one", "1", "2s"), ("half", "50%", "2s"), ("all", "100%", "1s")],
        );
        for wave in 0..3 {
            let version = forge.twin("kill", &wave.to_string()).await?;
            let rollouts = start(&road, &plan, &version, wave).await?;
            kill(operator()?, Signal::SIGKILL)?;
            let status = end(&rollouts, &version).await?;
            let run = status.run.context("no run")?;
            assert_eq!(run.state, RunState::Complete);
            assert_eq!(run.number, i64::from(wave) + 1, "no run was started twice");
            assert_eq!(run.waves.iter().map(|w| w.nodes).collect::<Vec<_>>(), [1, 2, 4]);
            for pair in run.waves.windows(2) {
                let passed = pair[0].passed_at.as_ref().context("a wave that has not passed")?;
                assert!(pair[1].started_at.0 >= passed.0, "wave {} did not wait", pair[1].name);
            }
        }
        Ok(())
    })
}

/// The power goes while the bytes are on their way over a slow link. What came before is not fetched again.
#[test]
fn a_node_that_loses_power_in_its_download_goes_on_where_it_was() -> Result<()> {
    const NODE: &str = "edge-b-2";
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let version = forge.twin("power", "1").await?;
        let mut plan = rollout("power", &[("all", "100%", "1s")]);
        plan["spec"]["strategy"]["quorum"] = json!("100%");
        plan["spec"]["strategy"]["progressDeadline"] = json!("5m");
        let store = road.lab.node_disk(NODE)?.join("lib/fleetune");
        // 1 MB/s, for 19 MB.
        road.lab.slow(NODE, "8mbit").await?;
        let rollouts = start(&road, &plan, &version, 0).await?;
        let some = async || Ok(Some(downloaded(&store)?).filter(|bytes| *bytes > 2_000_000));
        until("bytes are on their way", Duration::from_mins(2), some).await?;
        road.lab.power_off(NODE).await?;
        let kept = downloaded(&store)?;
        let whole = u64::try_from(version.spec.summary.bytes)?;
        assert!(kept > 0 && kept < whole, "{kept} of {whole} bytes had come");
        road.lab.power_on(NODE).await?;
        let status = end(&rollouts, &version).await?;
        assert_eq!(status.run.map(|run| run.state), Some(RunState::Complete));
        assert_eq!((status.nodes.proven, status.nodes.failed), (4, 0));
        // Counted since the start of the process, which is the start of the node.
        let fetched = road.node_series("fleetune_node_fetched_bytes_total").await?[NODE];
        // Tar headers, manifest, report and signature come on top of the files.
        let rest = (whole - kept) as f64 + 500_000.0;
        assert!(fetched < rest, "{fetched} bytes came after {kept} of {whole}");
        Ok(())
    })
}

/// Bytes of the downloads that a node's store has begun.
fn downloaded(store: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(store.join("tmp"))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|ending| ending == "partial") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

#[test]
fn a_cluster_that_is_cut_off_serves_on_is_counted_and_catches_up() -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let first = forge.twin("cut", "1").await?;
        let plan = rollout("cut", &[("one", "1", "1s"), ("all", "100%", "1s")]);
        let done = road.roll(&plan, &first).await?.status.context("no status")?;
        assert_eq!(done.run.map(|run| run.state), Some(RunState::Complete));

        let sample = samples::images(1)?.pop().context("no sample")?;
        let ask = Ask::new(&road.lab.runtime_addr("edge-b-1")?)?;
        let hammer = Hammer::start(ask, "cut".into(), sample.encoded);
        let second = forge.twin("cut", "2").await?;
        let mut plan = plan;
        plan["spec"]["strategy"]["quorum"] = json!("50%");
        road.lab.cut("edge-b").await?;
        let rollouts = start(&road, &plan, &second, 0).await?;
        let status = end(&rollouts, &second).await?;
        assert_eq!(
            status.run.as_ref().map(|run| run.state),
            Some(RunState::Complete),
            "{status:#?}"
        );
        assert_eq!(status.nodes.failed, 0);
        assert_eq!(status.clusters.unreachable, 1, "{status:#?}");
        let heard = hammer.stop().await?;
        heard.nothing_lost("edge-b-1")?;
        assert_eq!(
            heard.answers.keys().collect::<Vec<_>>(),
            [first.spec.source.digest.as_str()]
        );

        road.lab.heal("edge-b").await?;
        follow(rollouts, "cut", Duration::from_mins(3), |rollout: &ModelRollout| {
            let proven = rollout
                .status
                .as_ref()
                .is_some_and(|s| s.nodes.proven == 4 && s.clusters.unreachable == 0);
            if proven {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .await
    })
}

#[test]
fn a_restart_of_the_hubs_api_server_loses_nothing() -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let version = forge.twin("restart", "1").await?;
        let plan = rollout("restart", &[("one", "1", "3s"), ("all", "100%", "1s")]);
        let rollouts = start(&road, &plan, &version, 0).await?;
        road.lab.restart_apiserver("hub").await?;
        let status = end(&rollouts, &version).await?;
        assert_eq!(status.run.map(|run| run.state), Some(RunState::Complete));
        Ok(())
    })
}
