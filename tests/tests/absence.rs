//! Absence is never an order: whatever goes on the hub or leaves a cluster's list, nodes serve on. And models on one
//! node leave each other alone.

use anyhow::{Context, Result};
use fleetune_crds::{ModelRollout, ModelVersion, RunState, names};
use fleetune_tests::road::forge::Forge;
use fleetune_tests::road::hammer::Hammer;
use fleetune_tests::road::{Ask, NODES, Road, SHOP, apply, namespace, on_the_road, rollout, samples, until};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams};
use kube::runtime::wait::{await_condition, conditions::is_deleted};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use std::time::Duration;

/// Clients that ask each of `nodes` about one picture until they are stopped.
fn hammers<'a>(road: &Road, nodes: &[&'a str], model: &str) -> Result<Vec<(&'a str, Hammer)>> {
    let sample = samples::images(1)?.pop().context("no sample")?;
    let start = |node: &&'a str| {
        let ask = Ask::new(&road.lab.runtime_addr(node)?)?;
        Ok((*node, Hammer::start(ask, model.to_owned(), sample.encoded.clone())))
    };
    nodes.iter().map(start).collect()
}

/// Stops them: each request was answered, by `version` alone and always the same.
async fn only(hammers: Vec<(&str, Hammer)>, version: &ModelVersion) -> Result<()> {
    for (node, hammer) in hammers {
        let heard = hammer.stop().await?;
        heard.nothing_lost(node)?;
        assert!(heard.mixed().is_empty(), "{node}: mixed answers");
        assert_eq!(
            heard.answers.keys().collect::<Vec<_>>(),
            [version.spec.source.digest.as_str()]
        );
    }
    Ok(())
}

async fn complete(road: &Road, plan: &Value, version: &ModelVersion) -> Result<ModelRollout> {
    let done = road.roll(plan, version).await?;
    let state = done.status.as_ref().and_then(|s| s.run.as_ref()).map(|run| run.state);
    assert_eq!(state, Some(RunState::Complete), "{:#?}", done.status);
    Ok(done)
}

/// Asserts that no node answers for the model any more.
async fn nobody_serves(road: &Road, model: &str) -> Result<()> {
    let sample = samples::images(1)?.pop().context("no sample")?;
    for node in NODES {
        let gone = Ask::new(&road.lab.runtime_addr(node)?)?
            .image(model, &sample.encoded)
            .await;
        assert!(
            gone.is_err_and(|e| e.to_string().contains("404")),
            "{node} still serves"
        );
    }
    Ok(())
}

/// Each model of a node is by itself.
#[test]
fn two_models_on_a_node_leave_each_other_alone() -> Result<()> {
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let (left, right) = (forge.twin("left", "1").await?, forge.twin("right", "1").await?);
        let plan = |model: &str| rollout(model, &[("all", "100%", "0s")]);
        complete(&road, &plan("left"), &left).await?;
        complete(&road, &plan("right"), &right).await?;
        let key = names::model_key(SHOP, "left");
        let series = async || -> Result<_> {
            Ok((
                road.node_series_with("fleetune_node_switch_seconds_count", &key)
                    .await?,
                road.node_series_with("fleetune_node_fetched_bytes_total", &key).await?,
            ))
        };
        let before = series().await?;
        let asking = hammers(&road, &NODES, "left")?;
        let done = complete(&road, &plan("right"), &forge.twin("right", "2").await?).await?;
        road.remove(&done).await?;
        nobody_serves(&road, "right").await?;
        only(asking, &left).await?;
        assert_eq!(series().await?, before, "switches and bytes of the other model");
        Ok(())
    })
}

/// Deletes an object on the hub and waits until it is gone.
async fn delete<K>(api: Api<K>, name: &str) -> Result<()>
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    let object = api.get(name).await?;
    let uid = object.uid().context("no uid")?;
    api.delete(name, &DeleteParams::default()).await?;
    tokio::time::timeout(Duration::from_mins(2), await_condition(api, name, is_deleted(&uid)))
        .await
        .with_context(|| format!("{name} stays"))??;
    Ok(())
}

/// The rollout, the placements, the DeviceClusters, the namespaces on the hub, and a Node that registers
/// again as another.
#[test]
fn what_is_deleted_unloads_nothing() -> Result<()> {
    const SPACE: &str = "depot";
    const AGAIN: &str = "edge-b-1";
    on_the_road(|road| async move {
        let forge = Forge::new(&road)?;
        let hub = road.lab.cluster("hub")?.client().await?;
        apply(&road.lab, "hub", &namespace(SPACE)).await?;
        let version = forge.twin_in(SPACE, "stay", "1").await?;
        let mut plan = rollout("stay", &[("all", "100%", "0s")]);
        plan["metadata"]["namespace"] = json!(SPACE);
        complete(&road, &plan, &version).await?;
        let steady: Vec<&str> = NODES.into_iter().filter(|node| *node != AGAIN).collect();
        let asking = hammers(&road, &steady, "stay")?;

        delete::<ModelRollout>(Api::namespaced(hub.clone(), SPACE), "stay").await?;
        for cluster in ["edge-a", "edge-b"] {
            let home = names::cluster_namespace(cluster);
            let placements = Api::<fleetune_crds::ModelPlacement>::namespaced(hub.clone(), &home);
            delete(placements, &names::placement_name(SPACE, "stay")).await?;
            delete::<fleetune_crds::DeviceCluster>(Api::all(hub.clone()), cluster).await?;
            delete::<k8s_openapi::api::core::v1::Namespace>(Api::all(hub.clone()), &home).await?;
        }
        delete::<k8s_openapi::api::core::v1::Namespace>(Api::all(hub.clone()), SPACE).await?;

        let edge = road.lab.cluster("edge-b")?;
        let nodes = Api::<Node>::all(edge.client().await?);
        let before = nodes.get(AGAIN).await?.uid();
        road.lab.power_off(AGAIN).await?;
        delete(nodes.clone(), AGAIN).await?;
        road.lab.power_on(AGAIN).await?;
        edge.wait_node(AGAIN, true, Duration::from_mins(3)).await?;
        assert_ne!(nodes.get(AGAIN).await?.uid(), before, "the Node is another one");
        let sample = samples::images(1)?.pop().context("no sample")?;
        let ask = Ask::new(&road.lab.runtime_addr(AGAIN)?)?;
        let serves = async || {
            let answer = ask.image("stay", &sample.encoded).await?;
            Ok((answer.version == version.spec.source.digest.as_str()).then_some(()))
        };
        until("it serves again from its store", Duration::from_mins(3), serves).await?;

        // All of it comes back: the model is adopted as it serves, and obeys again.
        road.register_edges().await?;
        apply(&road.lab, "hub", &namespace(SPACE)).await?;
        let version = forge.twin_in(SPACE, "stay", "1").await?;
        let done = complete(&road, &plan, &version).await?;
        only(asking, &version).await?;
        road.remove(&done).await?;
        nobody_serves(&road, "stay").await
    })
}
