//! Bad versions stop where they should: each is wrong in one thing only, none ever serves, the run ends RolledBack, and
//! no node outside the wave is touched. What serves meanwhile loses no request.

use anyhow::{Context, Result};
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelPlacement, ModelVersion, RunState, VersionState, names};
use fleetune_tests::road::forge::{Change, Forge};
use fleetune_tests::road::hammer::Hammer;
use fleetune_tests::road::{Ask, Keys, Road, SHOP, on_the_road, rollout, samples};
use fleetune_worker::sign::Signer;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A model of its own that serves a good version everywhere, so that there is something to lose.
async fn good(road: &Road, forge: &Forge<'_>, model: &str) -> Result<ModelVersion> {
    let shirts = road.job("examples/shirts.yaml", "shirts-1").await?;
    // A marker makes the digest the model's own; the files that count stay.
    let mark = |dir: &Path| {
        Ok(std::fs::write(
            dir.join("lineage.json"),
            format!("{{\"marker\":\"{model}\"}}"),
        )?)
    };
    let version = forge
        .make(
            &shirts,
            Change {
                model,
                files: &mark,
                ..Change::default()
            },
        )
        .await?;
    let done = road.roll(&rollout(model, &[("all", "100%", "0s")]), &version).await?;
    assert_eq!(
        done.status.and_then(|s| s.run).map(|run| run.state),
        Some(RunState::Complete)
    );
    Ok(version)
}

/// Rolls `bad` out with a canary of one node and checks that it stops there, for `reason`.
async fn stops(road: &Road, good: &ModelVersion, bad: &ModelVersion, reason: &str) -> Result<()> {
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
    let failures = failures(road, model).await?;
    assert_eq!(failures.len(), 1, "one node was touched: {failures:?}");
    assert_eq!(
        (failures[0].0.as_str(), &failures[0].1),
        (reason, &bad.spec.source.digest),
        "{failures:?}"
    );
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
    Ok(())
}

/// Reason and digest of each failure of the model's last run, over both clusters.
async fn failures(road: &Road, model: &str) -> Result<Vec<(String, Digest)>> {
    let client = road.lab.cluster("hub")?.client().await?;
    let mut all = Vec::new();
    for cluster in ["edge-a", "edge-b"] {
        let api = Api::<ModelPlacement>::namespaced(client.clone(), &names::cluster_namespace(cluster));
        let placement = api.get(&names::placement_name(SHOP, model)).await?;
        all.extend(
            placement
                .status
                .unwrap_or_default()
                .failures
                .into_iter()
                .map(|f| (f.reason, f.digest)),
        );
    }
    Ok(all)
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
    let _turn = ONE_AT_A_TIME.lock();
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
        stops(&road, &good, &bad, "DigestMismatch").await
    })
}

#[test]
fn another_key_is_refused_by_the_signature() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock();
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
        stops(&road, &good, &bad, "SignatureInvalid").await
    })
}

#[test]
fn recorded_outputs_of_other_weights_are_found_by_the_self_test() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock();
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
        stops(&road, &good, &bad, "SelfTestFailed").await
    })
}

#[test]
fn a_latency_budget_that_the_device_cannot_keep_is_found_on_the_device() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock();
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let good = good(&road, &forge, "budget").await?;
        let mark = |dir: &Path| Ok(std::fs::write(dir.join("lineage.json"), "{\"marker\":\"tight\"}")?);
        let tight = |report: &mut Value| report["budget"] = json!([{ "class": "*", "maxP95Latency": "1ms" }]);
        let bad = forge
            .make(
                &good,
                Change {
                    model: "budget",
                    files: &mark,
                    report: &tight,
                    ..Change::default()
                },
            )
            .await?;
        stops(&road, &good, &bad, "BudgetExceeded").await
    })
}
