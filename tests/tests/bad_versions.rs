//! Bad versions stop where they should: each is wrong in one thing only, none ever serves, the run ends RolledBack, and
//! no node outside the wave is touched. What serves meanwhile loses no request.

use anyhow::{Context, Result};
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelPlacement, ModelRollout, ModelVersion, RunState, VersionState, names};
use fleetune_tests::lab::{Throttle, oom_kills};
use fleetune_tests::road::flaw::{self, Flaw};
use fleetune_tests::road::forge::{Change, Forge};
use fleetune_tests::road::hammer::Hammer;
use fleetune_tests::road::{
    Ask, Keys, NODES, Road, SHOP, apply, on_the_road, rollout, rollout_done, runtime, samples, until,
};
use fleetune_worker::sign::Signer;
use fleetune_worker::version::LINEAGE;
use kube::{Api, ResourceExt};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// A model of its own that serves a good version everywhere, so that there is something to lose.
async fn good(road: &Road, forge: &Forge<'_>, model: &str) -> Result<ModelVersion> {
    let version = forge.twin(model, "good").await?;
    let done = road.roll(&rollout(model, &[("all", "100%", "0s")]), &version).await?;
    assert_eq!(
        done.status.and_then(|s| s.run).map(|run| run.state),
        Some(RunState::Complete)
    );
    Ok(version)
}

/// Rolls `bad` out with a canary of one node and checks that it stops there, for `reason`. Returns the node's words.
async fn stops(road: &Road, good: &ModelVersion, bad: &ModelVersion, reason: &str) -> Result<String> {
    let model = good.spec.model_name.as_str();
    let sample = samples::images(1)?.pop().context("no sample")?;
    let nodes: Vec<String> = road.edge_nodes().await?.iter().map(ResourceExt::name_any).collect();
    let mut hammers = Vec::new();
    for node in &nodes {
        let ask = Ask::new(&road.lab.runtime_addr(node)?)?;
        hammers.push(Hammer::start(ask, model.to_owned(), sample.encoded.clone()));
    }
    let plan = rollout(model, &[("canary", "1", "1s"), ("all", "100%", "0s")]);
    let ended = road.roll(&plan, bad).await?.status.context("no status")?;
    assert_eq!(
        ended.run.as_ref().map(|run| run.state),
        Some(RunState::RolledBack),
        "{ended:#?}"
    );
    assert!(ended.aborted.contains(&bad.spec.source.digest));
    for (hammer, node) in hammers.into_iter().zip(&nodes) {
        let heard = hammer.stop().await?;
        heard.nothing_lost(node)?;
        let answered: Vec<&String> = heard.answers.keys().collect();
        assert_eq!(
            answered,
            [good.spec.source.digest.as_str()],
            "{node} served something else than the good version"
        );
    }
    let message = failed_once(road, bad, reason).await?;
    let key = names::model_key(SHOP, model);
    let touched = road
        .edge_nodes()
        .await?
        .iter()
        .filter(|node| {
            node.status
                .as_ref()
                .and_then(|s| s.models.get(&key))
                .is_some_and(|m| m.state == VersionState::Failed)
        })
        .count();
    assert!(touched <= 1, "{touched} nodes say Failed");
    Ok(message)
}

/// The words of the one failure of the model's last run over both clusters, which is of `bad` and for `reason`.
async fn failed_once(road: &Road, bad: &ModelVersion, reason: &str) -> Result<String> {
    let client = road.lab.cluster("hub")?.client().await?;
    let mut all = Vec::new();
    for cluster in ["edge-a", "edge-b"] {
        let api = Api::<ModelPlacement>::namespaced(client.clone(), &names::cluster_namespace(cluster));
        let placement = api.get(&names::placement_name(SHOP, &bad.spec.model_name)).await?;
        all.extend(placement.status.unwrap_or_default().failures);
    }
    assert_eq!(all.len(), 1, "one node was touched: {all:?}");
    let failure = all.swap_remove(0);
    assert_eq!(
        (failure.reason.as_str(), &failure.digest),
        (reason, &bad.spec.source.digest),
        "{failure:?}"
    );
    Ok(failure.message)
}

/// Other weights, of each model its own: the registry keeps one blob for the same bytes, so a test that spoils a blob
/// would spoil it for another that made the same one.
fn noise(model: &str) -> impl Fn(&Path) -> Result<()> + Sync {
    let salt: usize = model.bytes().map(usize::from).sum();
    move |dir| {
        let file = dir.join("weights/tuned.bin");
        let mut weights = std::fs::read(&file)?;
        for (index, weight) in weights.chunks_exact_mut(4).enumerate() {
            #[allow(clippy::cast_precision_loss)]
            weight.copy_from_slice(&(((index + salt) % 7) as f32 - 3.0 + salt as f32).to_le_bytes());
        }
        Ok(std::fs::write(file, weights)?)
    }
}

#[test]
fn a_blob_that_was_changed_in_the_registry_is_refused_by_its_digest() -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let good = good(&road, &forge, "blob").await?;
        let bad = forge
            .make(
                &good,
                Change {
                    model: "blob",
                    files: &noise("blob"),
                    ..Change::default()
                },
            )
            .await?;
        let repository =
            bad.spec
                .source
                .repository
                .replacen(&road.lab.registry_addr(), road.lab.registry_loopback(), 1);
        let manifest = forge
            .registry()
            .fetch_manifest(&repository.parse()?, &bad.spec.source.digest)
            .await?;
        let manifest: Value = serde_json::from_slice(&manifest)?;
        let tuned: Digest = manifest["layers"][1]["digest"]
            .as_str()
            .context("no second layer")?
            .parse()?;
        let file = std::fs::File::options().write(true).open(forge.blob_file(&tuned))?;
        file.write_all_at(b"changed on the registry's disk", 1024)?;
        stops(&road, &good, &bad, "DigestMismatch").await?;
        Ok(())
    })
}

#[test]
fn another_key_is_refused_by_the_signature() -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let good = good(&road, &forge, "key").await?;
        let signer = Signer::from_pem(&Keys::generate()?.private).map_err(anyhow::Error::msg)?;
        let bad = forge
            .make(
                &good,
                Change {
                    model: "key",
                    files: &noise("key"),
                    signer: Some(signer),
                    ..Change::default()
                },
            )
            .await?;
        stops(&road, &good, &bad, "SignatureInvalid").await?;
        Ok(())
    })
}

#[test]
fn recorded_outputs_of_other_weights_are_found_by_the_self_test() -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let good = good(&road, &forge, "outputs").await?;
        let bad = forge
            .make(
                &good,
                Change {
                    model: "outputs",
                    files: &noise("outputs"),
                    ..Change::default()
                },
            )
            .await?;
        stops(&road, &good, &bad, "SelfTestFailed").await?;
        Ok(())
    })
}

/// A version that serves, and one of the same model with a flaw.
async fn good_and_flawed(
    road: &Road,
    forge: &Forge<'_>,
    model: &str,
    flaw: Flaw,
) -> Result<(ModelVersion, ModelVersion)> {
    let good = good(road, forge, model).await?;
    let spoil = |dir: &Path| flaw.put_into(dir);
    let change = Change {
        model,
        files: &spoil,
        ..Change::default()
    };
    let bad = forge.make(&good, change).await?;
    Ok((good, bad))
}

/// A version with a flaw that only shows when it runs: the child dies of it, and nobody else notices.
fn dies_in_the_child(model: &'static str, flaw: Flaw) -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let (good, bad) = good_and_flawed(&road, &forge, model, flaw).await?;
        let runtimes = NODES.map(runtime).into_iter().collect::<Result<Vec<_>>>()?;
        let message = stops(&road, &good, &bad, "SelfTestFailed").await?;
        assert!(message.contains("signal: 6"), "the child was not aborted: {message}");
        for (node, pid) in NODES.into_iter().zip(runtimes) {
            assert_eq!(runtime(node)?, pid, "the runtime of {node} has restarted");
            assert_eq!(oom_kills(pid)?, 0, "the kernel killed in the container of {node}");
        }
        Ok(())
    })
}

#[test]
fn a_model_that_eats_memory_is_stopped_by_the_childs_limit() -> Result<()> {
    dies_in_the_child("memory", Flaw::EatsMemory)
}

#[test]
fn a_model_that_aborts_takes_nobody_with_it() -> Result<()> {
    dies_in_the_child("abort", Flaw::Aborts)
}

/// The budget holds on any node but one whose container gets too little processor time: a sample there waits for its turn
/// longer than the budget allows.
#[test]
fn a_latency_budget_that_a_slow_node_cannot_keep_is_found_on_that_node() -> Result<()> {
    const SLOW: &str = "edge-a-1";
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let mut plan = rollout("budget", &[("all", "100%", "0s")]);
        plan["spec"]["targets"]["nodes"] = json!({ "matchLabels": { "kubernetes.io/hostname": SLOW } });
        plan["spec"]["strategy"]["progressDeadline"] = json!("5m");
        let budget = |report: &mut Value| report["budget"] = json!([{ "class": "*", "maxP95Latency": "400ms" }]);
        let bounded = async |marker: &'static str| {
            let mark = move |dir: &Path| {
                Ok(std::fs::write(
                    dir.join(LINEAGE),
                    format!("{{\"marker\":\"{marker}\"}}"),
                )?)
            };
            let change = Change {
                model: "budget",
                files: &mark,
                report: &budget,
                ..Change::default()
            };
            forge.make(&forge.twin("budget", "base").await?, change).await
        };
        // The budget is one that this node keeps, as long as it has its processor.
        let good = bounded("good").await?;
        let state = |done: ModelRollout| done.status.and_then(|s| s.run).map(|run| run.state);
        assert_eq!(state(road.roll(&plan, &good).await?), Some(RunState::Complete));
        let bad = bounded("slow").await?;
        {
            let (quota, period) = (Duration::from_millis(50), Duration::from_millis(500));
            let _throttle = Throttle::new(runtime(SLOW)?, quota, period)?;
            assert_eq!(state(road.roll(&plan, &bad).await?), Some(RunState::RolledBack));
        }
        failed_once(&road, &bad, "BudgetExceeded").await?;
        let sample = samples::images(1)?.pop().context("no sample")?;
        let answer = Ask::new(&road.lab.runtime_addr(SLOW)?)?
            .image("budget", &sample.encoded)
            .await?;
        assert_eq!(answer.version, good.spec.source.digest.to_string());
        Ok(())
    })
}

/// A version passes its self-test and goes wrong on real input in its soak. Its node returns to the
/// fallback by itself and never loads it again. With `survives` its runtime lives on, and then no request is lost that
/// the version could answer.
fn falls_in_its_soak(model: &'static str, flaw: Flaw, reason: &'static str, survives: bool) -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let (good, bad) = good_and_flawed(&road, &forge, model, flaw).await?;
        let (good_digest, bad_digest) = (&good.spec.source.digest, &bad.spec.source.digest);
        let sample = samples::images(1)?.pop().context("no sample")?;
        let mut hammers = Vec::new();
        for node in NODES {
            let ask = Ask::new(&road.lab.runtime_addr(node)?)?;
            hammers.push(Hammer::start(ask, model.to_owned(), sample.encoded.clone()));
        }
        // Nothing but its own fault ends the soak of the canary.
        let mut plan = rollout(model, &[("canary", "1", "1h"), ("all", "100%", "0s")]);
        plan["spec"]["version"] = json!(bad.name_any());
        apply(&road.lab, "hub", &plan).await?;
        let key = names::model_key(SHOP, model);
        let at = async |state: VersionState| -> Result<Option<String>> {
            let nodes = road.edge_nodes().await?;
            let found = nodes.iter().find(|node| {
                let model = node.status.as_ref().and_then(|s| s.models.get(&key));
                model.is_some_and(|m| m.digest.as_ref() == Some(bad_digest) && m.state == state)
            });
            Ok(found.map(ResourceExt::name_any))
        };
        let on_trial = async || at(VersionState::Active).await;
        let canary = until("the bad version is on trial", Duration::from_mins(2), on_trial).await?;
        let ask = Ask::new(&road.lab.runtime_addr(&canary)?)?;
        // A busy machine may hear of the trial before a hammer's turn has come: the fault waits for an answer of the bad
        // version.
        let on_trial = async || {
            let answer = ask.image(model, &sample.encoded).await?;
            Ok((answer.version == bad_digest.as_str()).then_some(()))
        };
        until(
            "the bad version answers on its canary",
            Duration::from_mins(1),
            on_trial,
        )
        .await?;
        let black = flaw::black()?;
        let (rollouts, version) = (road.hub::<ModelRollout>().await?, bad.name_any());
        let ended = async || {
            let _ = ask.image(model, &black).await;
            Ok(rollout_done(&version)(&rollouts.get(model).await?).break_value())
        };
        let ended = until("the run has ended", Duration::from_mins(5), ended).await?;
        assert_eq!(ended, RunState::RolledBack);
        failed_once(&road, &bad, reason).await?;
        for (hammer, node) in hammers.into_iter().zip(NODES) {
            let heard = hammer.stop().await?;
            if survives || node != canary {
                heard.nothing_lost(node)?;
            }
            let served = heard.answers.contains_key(bad_digest.as_str());
            assert!(!served || node == canary, "the bad version on {node}: {heard:?}");
        }
        // Not even a start of the runtime brings it back.
        kill(runtime(&canary)?, Signal::SIGKILL)?;
        let returned = async || {
            let answer = ask.image(model, &black).await?;
            Ok((answer.version == good_digest.as_str()).then_some(()))
        };
        until("the node serves the good version", Duration::from_mins(4), returned).await?;
        let served = road.node_series("fleetune_node_active_version").await?;
        assert!((served[canary.as_str()] - 1.0).abs() < 1e-9, "{served:?}");
        Ok(())
    })
}

#[test]
fn a_version_that_errs_on_real_input_falls_in_its_soak() -> Result<()> {
    falls_in_its_soak("errs", Flaw::ErrsOnBlack, "Errors", true)
}

#[test]
fn a_version_that_crashes_on_real_input_falls_in_its_soak() -> Result<()> {
    falls_in_its_soak("crashes", Flaw::AbortsOnBlack, "CrashLoop", false)
}
