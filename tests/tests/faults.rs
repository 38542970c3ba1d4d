//! What breaks on the way changes nothing but time: the operator killed, a node without power, a cluster cut off, the
//! hub's API server restarted.

use anyhow::{Context, Result, ensure};
use fleetune_crds::{ModelRollout, ModelRolloutStatus, ModelVersion, RunState, names};
use fleetune_tests::road::forge::{Change, Forge};
use fleetune_tests::road::hammer::Hammer;
use fleetune_tests::road::{Ask, Road, SHOP, apply, follow, on_the_road, processes, rollout, rollout_done, samples};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A version of a model of its own, equal to the good one but for a marker.
async fn version(road: &Road, forge: &Forge<'_>, model: &str, marker: &str) -> Result<ModelVersion> {
    let shirts = road.job("examples/shirts.yaml", "shirts-1").await?;
    let text = format!("{{\"marker\":\"{model} {marker}\"}}");
    let mark = |dir: &Path| Ok(std::fs::write(dir.join("lineage.json"), &text)?);
    forge
        .make(
            &shirts,
            Change {
                model,
                files: &mark,
                ..Change::default()
            },
        )
        .await
}

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
    let found = processes("fleetune-operator", "hub")?;
    ensure!(found.len() == 1, "one operator runs on the hub's node: {found:?}");
    Ok(found[0])
}

/// Issue point 6: killed in the first, the second and the last wave.
#[test]
fn a_killed_operator_goes_on_where_it_was() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock();
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let plan = rollout(
            "kill",
            &[("one", "1", "2s"), ("half", "50%", "2s"), ("all", "100%", "1s")],
        );
        for wave in 0..3 {
            let version = version(&road, &forge, "kill", &wave.to_string()).await?;
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

#[test]
fn a_node_that_loses_power_in_its_wave_finishes_when_it_is_back() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock();
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let version = version(&road, &forge, "power", "1").await?;
        let mut plan = rollout("power", &[("all", "100%", "1s")]);
        plan["spec"]["strategy"]["quorum"] = json!("100%");
        plan["spec"]["strategy"]["progressDeadline"] = json!("3m");
        let rollouts = start(&road, &plan, &version, 0).await?;
        road.lab.power_off("edge-b-2").await?;
        road.lab.power_on("edge-b-2").await?;
        let status = end(&rollouts, &version).await?;
        assert_eq!(status.run.map(|run| run.state), Some(RunState::Complete));
        assert_eq!((status.nodes.proven, status.nodes.failed), (4, 0));
        Ok(())
    })
}

#[test]
fn a_cluster_that_is_cut_off_serves_on_is_counted_and_catches_up() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock();
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let first = version(&road, &forge, "cut", "1").await?;
        let plan = rollout("cut", &[("one", "1", "1s"), ("all", "100%", "1s")]);
        let done = road.roll(&plan, &first).await?.status.context("no status")?;
        assert_eq!(done.run.map(|run| run.state), Some(RunState::Complete));

        let sample = samples::images(1)?.pop().context("no sample")?;
        let ask = Ask::new(&road.lab.runtime_addr("edge-b-1")?)?;
        let hammer = Hammer::start(ask, "cut".into(), sample.encoded);
        let second = version(&road, &forge, "cut", "2").await?;
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
    let _turn = ONE_AT_A_TIME.lock();
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let version = version(&road, &forge, "restart", "1").await?;
        let plan = rollout("restart", &[("one", "1", "3s"), ("all", "100%", "1s")]);
        let rollouts = start(&road, &plan, &version, 0).await?;
        road.lab.restart_apiserver("hub").await?;
        let status = end(&rollouts, &version).await?;
        assert_eq!(status.run.map(|run| run.state), Some(RunState::Complete));
        Ok(())
    })
}

/// Issue point 9: absence is never an order.
#[test]
fn what_is_deleted_on_the_hub_unloads_nothing() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock();
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let version = version(&road, &forge, "stay", "1").await?;
        let plan = rollout("stay", &[("all", "100%", "0s")]);
        road.roll(&plan, &version).await?;
        let rollouts = road.hub::<ModelRollout>().await?;
        rollouts.delete("stay", &DeleteParams::default()).await?;
        kube::runtime::wait::await_condition(rollouts, "stay", |object: Option<&ModelRollout>| object.is_none())
            .await?;
        let key = names::model_key(SHOP, "stay");
        // The rollout has gone, and with it everything that its controller would have said: orders and answers are as before.
        let sample = samples::images(1)?.pop().context("no sample")?;
        for node in road.edge_nodes().await? {
            let model = node
                .spec
                .models
                .get(&key)
                .with_context(|| format!("{} has lost the order", node.name_any()))?;
            assert_eq!(
                model.source.as_ref().map(|s| &s.digest),
                Some(&version.spec.source.digest)
            );
            let answer = Ask::new(&road.lab.runtime_addr(&node.name_any())?)?
                .image("stay", &sample.encoded)
                .await?;
            assert_eq!(answer.version, version.spec.source.digest.to_string());
        }
        // The next rollout of the model adopts what was retained.
        let again = road.roll(&plan, &version).await?.status.context("no status")?;
        assert_eq!(again.run.map(|run| run.state), Some(RunState::Complete));
        let rollouts = road.hub::<ModelRollout>().await?;
        let remove = json!({ "spec": { "deletionPolicy": "Remove" } });
        rollouts
            .patch("stay", &PatchParams::default(), &Patch::Merge(&remove))
            .await?;
        rollouts.delete("stay", &DeleteParams::default()).await?;
        kube::runtime::wait::await_condition(rollouts, "stay", |object: Option<&ModelRollout>| object.is_none())
            .await?;
        for node in road.edge_nodes().await? {
            let gone = Ask::new(&road.lab.runtime_addr(&node.name_any())?)?
                .image("stay", &sample.encoded)
                .await;
            assert!(
                gone.is_err_and(|e| e.to_string().contains("404")),
                "{} still serves",
                node.name_any()
            );
        }
        Ok(())
    })
}
