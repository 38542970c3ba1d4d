//! Rollouts over real API servers: a hub and two device clusters, one Pull, one Push, each component with exactly the
//! rights of the access table. No kubelet runs here: `fleetune_tests::api::runtimes` plays the nodes.

use anyhow::{Context, Result};
use fleetune_crds::{DeviceCluster, EdgeNode, ModelPlacement, ModelRollout, ModelRolloutStatus, RolloutAction, Run};
use fleetune_operator::testing::model_node::Fate;
use fleetune_tests::api::fleet::{Fleet, SHORT_LEASE, digest};
use fleetune_tests::api::{eventually, logs, make};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::time::Duration;

/// The parts are one story: what each leaves is what the next one finds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_over_real_api_servers() -> Result<()> {
    logs();
    let mut fleet = Fleet::start(SHORT_LEASE).await?;
    the_first_version_is_proven_in_three_waves(&fleet).await?;
    converged_means_no_writes(&fleet).await?;
    a_bad_version_is_taken_back_although_the_hub_dies(&mut fleet).await?;
    only_a_word_on_this_run_and_these_stages_counts(&fleet).await?;
    an_abort_takes_back_what_was_begun(&fleet).await?;
    another_contract_needs_a_word(&fleet).await?;
    it_is_seen_from_outside(&fleet).await?;
    deleting_it_unloads_nothing(&fleet).await?;
    fleet.end().await
}

async fn the_first_version_is_proven_in_three_waves(fleet: &Fleet) -> Result<()> {
    let stages = json!([
        { "name": "canary", "nodes": 1, "minSuccessTime": "1s" },
        { "name": "half", "nodes": "50%" },
        { "name": "all", "nodes": "100%" },
    ]);
    fleet.roll_out(json!({ "maxUnavailable": 2, "stages": stages })).await?;
    fleet.publish(1, "contract").await?;
    let status = fleet.until_phase("Complete", 1).await?;
    let waves = run_of(status)?.waves;
    assert_eq!(waves.iter().map(|w| w.nodes).collect::<Vec<_>>(), [1, 3, 6]);
    for pair in waves.windows(2) {
        let passed = pair[0].passed_at.as_ref().context("a wave that has not passed")?;
        assert!(*passed <= pair[1].started_at);
    }
    assert_eq!(fleet.astray(1), [""; 0]);
    Ok(())
}

async fn converged_means_no_writes(fleet: &Fleet) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = versions(fleet).await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(versions(fleet).await?, before);
    Ok(())
}

/// The resourceVersion of everything that the operator writes but Leases.
async fn versions(fleet: &Fleet) -> Result<Vec<String>> {
    async fn of<K>(client: &Client) -> Result<Vec<String>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let all = Api::<K>::all(client.clone()).list(&ListParams::default()).await?;
        Ok(all.iter().filter_map(ResourceExt::resource_version).collect())
    }
    let mut all = of::<ModelRollout>(&fleet.admin).await?;
    all.extend(of::<ModelPlacement>(&fleet.admin).await?);
    all.extend(of::<DeviceCluster>(&fleet.admin).await?);
    for device in &fleet.devices {
        all.extend(of::<EdgeNode>(device).await?);
    }
    Ok(all)
}

async fn a_bad_version_is_taken_back_although_the_hub_dies(fleet: &mut Fleet) -> Result<()> {
    for runtimes in &fleet.runtimes {
        runtimes.fate(&digest(2), Fate::Crashes);
    }
    fleet.publish(2, "contract").await?;
    fleet.until("a run", |s| s.phase.as_deref() != Some("Complete")).await?;
    fleet.replace_hub("hub-1").await?;
    let status = fleet.until_phase("RolledBack", 2).await?;
    assert_eq!((status.nodes.failed, &status.aborted[..]), (1, &[digest(2)][..]));
    let message = run_of(status)?.message;
    assert!(message.contains("CrashLoop"), "{message}");
    assert_eq!(fleet.astray(1), [""; 0]);
    assert_eq!(opened(fleet, 2), 1, "the canary alone");
    Ok(())
}

async fn only_a_word_on_this_run_and_these_stages_counts(fleet: &Fleet) -> Result<()> {
    stages(
        fleet,
        json!([{ "name": "canary", "nodes": 1 }, { "name": "all", "nodes": "100%", "approval": true }]),
    )
    .await?;
    fleet.publish(3, "contract").await?;
    let run = run_of(fleet.until_phase("WaitingForApproval", 3).await?)?;
    let other = Run {
        number: run.number + 1,
        ..run.clone()
    };
    assert_eq!(answer(fleet, "other-run", &other, "Approve").await?, "Ignored");

    // The list of stages changes in the middle of the run: what was said of the old one counts no more.
    let longer = json!([
        { "name": "canary", "nodes": 1 }, { "name": "more", "nodes": 2 }, { "name": "all", "nodes": "100%", "approval": true },
    ]);
    stages(fleet, longer).await?;
    let changed = fleet
        .until("the new stages", |s| {
            let new = s
                .run
                .as_ref()
                .is_some_and(|r| r.stage_hash != run.stage_hash && r.waves.len() == 2);
            new && s.phase.as_deref() == Some("WaitingForApproval")
        })
        .await?;
    let changed = run_of(changed)?;
    assert_eq!(changed.number, run.number, "the same run goes on");
    assert_eq!(answer(fleet, "old-stages", &run, "Approve").await?, "Ignored");
    let events: Api<Event> = Api::namespaced(fleet.admin.clone(), "shop");
    let told = eventually("an event", || async {
        let all = events.list(&ListParams::default()).await?;
        Ok(all.into_iter().find(|e| {
            let note = e.note.as_deref().unwrap_or_default();
            e.reason.as_deref() == Some("ActionIgnored") && note.contains("old-stages")
        }))
    })
    .await?;
    assert_eq!(told.type_.as_deref(), Some("Warning"));
    assert_eq!(
        told.related.and_then(|related| related.name).as_deref(),
        Some("old-stages")
    );
    assert_eq!(answer(fleet, "right", &changed, "Approve").await?, "Taken");
    fleet.until_phase("Complete", 3).await?;
    assert_eq!(fleet.astray(3), [""; 0]);
    Ok(())
}

async fn an_abort_takes_back_what_was_begun(fleet: &Fleet) -> Result<()> {
    fleet.publish(4, "contract").await?;
    let run = run_of(fleet.until_phase("WaitingForApproval", 4).await?)?;
    assert_eq!(opened(fleet, 4), 2);
    assert_eq!(answer(fleet, "stop", &run, "Abort").await?, "Taken");
    let status = fleet.until_phase("RolledBack", 4).await?;
    assert_eq!(status.aborted.first(), Some(&digest(4)));
    let message = run_of(status)?.message;
    assert!(message.contains("aborted by me"), "{message}");
    assert_eq!(fleet.astray(3), [""; 0]);
    Ok(())
}

async fn another_contract_needs_a_word(fleet: &Fleet) -> Result<()> {
    stages(fleet, json!([{ "name": "all", "nodes": "100%" }])).await?;
    fleet.publish(5, "another contract").await?;
    let stalled = |s: &ModelRolloutStatus| {
        s.conditions
            .iter()
            .any(|c| c.type_ == "Stalled" && c.reason == "ContractChanged")
    };
    fleet.until("ContractChanged", stalled).await?;
    assert_eq!(fleet.astray(3), [""; 0]);
    change(fleet, json!({ "allowContractChange": true })).await?;
    fleet.until_phase("Complete", 5).await?;
    assert_eq!(fleet.astray(5), [""; 0]);
    Ok(())
}

async fn it_is_seen_from_outside(fleet: &Fleet) -> Result<()> {
    let text = fleet.hub.metrics().await?;
    for series in [
        r#"fleetune_rollout_nodes{namespace="shop",rollout="shirts",state="active"} 6"#,
        r#"fleetune_rollout_wave{namespace="shop",rollout="shirts"} 1"#,
        r#"fleetune_edge_request_seconds_count{outcome="success",verb="heartbeat"}"#,
    ] {
        assert!(text.contains(series), "{series}\n{text}");
    }
    let refused = |text: &str| text.contains(r#"reason="Forbidden""#) || text.contains(r#"outcome="Forbidden""#);
    assert!(!refused(&text), "the table lacks a right: {text}");
    let text = fleet.agent.metrics().await?;
    assert!(text.contains(r#"fleetune_edge_hub_away{cluster="alpha"} 0"#), "{text}");
    assert!(!refused(&text), "the table lacks a right: {text}");
    Ok(())
}

/// The placements stay, nobody's.
async fn deleting_it_unloads_nothing(fleet: &Fleet) -> Result<()> {
    let rollouts = fleet.rollouts();
    rollouts.delete("shirts", &DeleteParams::default()).await?;
    eventually("its end", || async {
        Ok(rollouts.get_opt("shirts").await?.is_none().then_some(()))
    })
    .await?;
    let placements: Api<ModelPlacement> = Api::all(fleet.admin.clone());
    let left = placements.list(&ListParams::default()).await?;
    assert_eq!(left.items.len(), 2);
    assert!(left.iter().all(|p| p.spec.rollout_uid.is_empty()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fleet.astray(5), [""; 0]);
    Ok(())
}

fn run_of(status: ModelRolloutStatus) -> Result<Run> {
    status.run.context("no run")
}

/// How many nodes ever opened version `n`.
fn opened(fleet: &Fleet, n: u32) -> usize {
    let nodes = fleet.nodes();
    nodes
        .values()
        .filter(|node| node.opened.contains(digest(n).as_str()))
        .count()
}

async fn change(fleet: &Fleet, spec: Value) -> Result<()> {
    let patch = Patch::Merge(json!({ "spec": spec }));
    fleet
        .rollouts()
        .patch("shirts", &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

async fn stages(fleet: &Fleet, stages: Value) -> Result<()> {
    change(fleet, json!({ "strategy": { "stages": stages } })).await
}

/// Says a word on a run, and returns the reason of the answer.
async fn answer(fleet: &Fleet, name: &str, run: &Run, action: &str) -> Result<String> {
    let mut spec = json!({
        "rollout": "shirts", "run": run.number, "stageHash": run.stage_hash, "action": action, "by": "me",
    });
    if action == "Approve" {
        spec["stage"] = json!("all");
    }
    let object = json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "RolloutAction", "spec": spec,
        "metadata": { "name": name, "namespace": "shop" },
    });
    let actions: Api<RolloutAction> = Api::namespaced(fleet.admin.clone(), "shop");
    make(&actions, object).await?;
    eventually("an answer", || async {
        let conditions = actions.get(name).await?.status.unwrap_or_default().conditions;
        Ok(conditions.first().map(|c| c.reason.clone()))
    })
    .await
}
