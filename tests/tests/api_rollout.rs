//! Rollouts over real API servers: a hub and two device clusters, one Pull, one Push, each component with exactly the
//! rights of the access table. No kubelet runs here: Nodes and runtime pods are objects, and the runtimes' part is played
//! by the node of the model cluster, which writes EdgeNode statuses as the runtime would.
#![allow(clippy::unwrap_used, clippy::panic, clippy::too_many_lines)] // Helpers of a test may end it; one story is one test.

use anyhow::{Context, Result, bail};
use fleetune_crds::access::{Actor, GRANTS, Scope};
use fleetune_crds::common::Digest;
use fleetune_crds::{DeviceCluster, EdgeNode, ModelPlacement, ModelRollout, ModelVersion, RolloutAction, names};
use fleetune_operator::cli::Process;
use fleetune_operator::config::{EdgeConfig, HubConfig};
use fleetune_operator::runtime::{Shutdown, crds};
use fleetune_operator::testing::model_node::{Fate, ModelNode};
use fleetune_operator::{edge, hub, process};
use fleetune_tests::lab::ApiServer;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const HOME: &str = "fleetune-system";
const KEY: &str = "shop/shirts";

async fn make<K>(api: Api<K>, object: Value) -> Result<K>
where
    K: DeserializeOwned + Clone + Debug + serde::Serialize,
{
    let object: K = serde_json::from_value(object)?;
    Ok(api.create(&PostParams::default(), &object).await?)
}

async fn eventually<T, F: Future<Output = Result<Option<T>>>>(what: &str, mut ask: impl FnMut() -> F) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("never came: {what}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn rules(actor: Actor, scope: Scope) -> Value {
    let of = GRANTS.iter().filter(|g| g.actor == actor && g.scope == scope);
    of.map(|g| {
        let mut rule = json!({ "apiGroups": [g.group], "resources": [g.resource], "verbs": g.verbs });
        if !g.names.is_empty() {
            rule["resourceNames"] = json!(g.names);
        }
        rule
    })
    .collect()
}

/// Gives `user` an actor's rights: cluster-wide, in its home, and in the runtime's namespace.
async fn grant(client: &Client, actor: Actor, user: &str) -> Result<()> {
    let subjects = json!([{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }]);
    let to = |kind: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user });
    let metadata = json!({ "name": user });
    let role = json!({ "metadata": metadata, "rules": rules(actor, Scope::Cluster) });
    make(Api::<ClusterRole>::all(client.clone()), role).await?;
    let binding = json!({ "metadata": metadata, "roleRef": to("ClusterRole"), "subjects": subjects });
    make(Api::<ClusterRoleBinding>::all(client.clone()), binding).await?;
    for (namespace, scope) in [(HOME, Scope::Operator), (names::NODE_NAMESPACE, Scope::NodeRuntime)] {
        let role = json!({ "metadata": metadata, "rules": rules(actor, scope) });
        make(Api::<Role>::namespaced(client.clone(), namespace), role).await?;
        let binding = json!({ "metadata": metadata, "roleRef": to("Role"), "subjects": subjects });
        make(Api::<RoleBinding>::namespaced(client.clone(), namespace), binding).await?;
    }
    Ok(())
}

async fn prepare(client: &Client, kinds: Vec<(&str, CustomResourceDefinition)>) -> Result<()> {
    for name in [HOME, "shop", names::NODE_NAMESPACE] {
        make(
            Api::<Namespace>::all(client.clone()),
            json!({ "metadata": { "name": name } }),
        )
        .await?;
    }
    for (_, crd) in kinds {
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        api.create(&PostParams::default(), &crd).await?;
    }
    Ok(())
}

/// A Ready Node with a Ready runtime pod.
async fn node(client: &Client, name: &str, arch: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    make(nodes.clone(), json!({ "metadata": { "name": name } })).await?;
    let now = Timestamp::now();
    let info = json!({
        "architecture": arch, "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
        "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
    });
    let ready = json!({ "type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": now, "lastHeartbeatTime": now });
    let status = Patch::Merge(json!({ "status": { "nodeInfo": info, "conditions": [ready] } }));
    nodes.patch_status(name, &PatchParams::default(), &status).await?;
    let taints = Patch::Merge(json!({ "spec": { "taints": null, "unschedulable": null } }));
    nodes.patch(name, &PatchParams::default(), &taints).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), names::NODE_NAMESPACE);
    let pod = json!({
        "metadata": { "name": format!("runtime-{name}"), "labels": { "app.kubernetes.io/name": "fleetune-node" } },
        "spec": { "nodeName": name, "containers": [{ "name": "node", "image": "worker" }] },
    });
    make(pods.clone(), pod).await?;
    let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": now });
    let status = Patch::Merge(json!({ "status": { "phase": "Running", "conditions": [ready] } }));
    pods.patch_status(&format!("runtime-{name}"), &PatchParams::default(), &status)
        .await?;
    Ok(())
}

/// The runtimes of one cluster, as the model cluster has them.
type Runtimes = Arc<Mutex<BTreeMap<String, ModelNode>>>;

fn play_runtimes(client: Client, runtimes: Runtimes) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let api: Api<EdgeNode> = Api::all(client);
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let Ok(all) = api.list(&ListParams::default()).await else {
                continue;
            };
            for edge_node in all {
                let name = edge_node.name_any();
                let state = {
                    let mut runtimes = runtimes.lock().unwrap();
                    let Some(node) = runtimes.get_mut(&name) else { continue };
                    node.look(edge_node.spec.models.get(KEY), Timestamp::now());
                    node.was_told().then(|| node.state.clone())
                };
                let Some(state) = state else { continue };
                let old = edge_node.status.unwrap_or_default();
                if old.models.get(KEY) == Some(&state) {
                    continue;
                }
                let status = json!({
                    "apiVersion": EdgeNode::api_version(&()), "kind": EdgeNode::kind(&()),
                    "status": { "build": "0.1.0", "models": { KEY: state } },
                });
                let params = PatchParams::apply(names::MANAGER_NODE).force();
                let _ = api.patch_status(&name, &params, &Patch::Apply(&status)).await;
            }
        }
    })
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn process_of(name: &str) -> Process {
    Process {
        config: "/dev/null".into(),
        pod_name: name.into(),
        pod_namespace: HOME.into(),
    }
}

const COMMON: &str = "lease: {duration: 3s, renew: 500ms}\nheartbeat: {interval: 1s, unreachableAfter: 10s}\n";

struct Running {
    task: tokio::task::JoinHandle<Result<()>>,
    shutdown: Shutdown,
    url: String,
}

fn run_hub(name: &str, client: Client, url: &str) -> Result<Running> {
    let port = free_port();
    let text = format!("workerImage: worker\nlisten: 127.0.0.1:{port}\nhub: {{url: '{url}'}}\n{COMMON}");
    let config: HubConfig = serde_yaml::from_str(&text)?;
    let ctx = process::context(config, &process_of(name), "fleetune-hub", client)?;
    Ok(Running {
        shutdown: ctx.shutdown.clone(),
        task: tokio::spawn(process::run(ctx, names::LEASE_HUB, hub::needed(), hub::controllers)),
        url: format!("http://127.0.0.1:{port}"),
    })
}

fn run_edge(cluster: &str, client: Client, kubeconfig: &std::path::Path) -> Result<Running> {
    let port = free_port();
    let path = kubeconfig.display();
    let text = format!("cluster: {cluster}\nhubKubeconfig: {path}\nlisten: 127.0.0.1:{port}\n{COMMON}");
    let config: EdgeConfig = serde_yaml::from_str(&text)?;
    let ctx = process::context(config, &process_of("edge-0"), "fleetune-edge", client)?;
    Ok(Running {
        shutdown: ctx.shutdown.clone(),
        task: tokio::spawn(process::run(
            ctx,
            names::LEASE_EDGE,
            vec![crds::needed::<EdgeNode>()],
            edge::start,
        )),
        url: format!("http://127.0.0.1:{port}"),
    })
}

async fn page(running: &Running) -> Result<String> {
    Ok(reqwest::get(format!("{}/metrics", running.url)).await?.text().await?)
}

fn digest(n: u32) -> Digest {
    Digest::of(&n.to_be_bytes())
}

async fn publish(client: &Client, n: u32) -> Result<()> {
    let (digest, contract) = (digest(n), Digest::of(b"contract"));
    let version = json!({
        "metadata": { "name": format!("shirts-{n}"), "namespace": "shop" },
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelVersion",
        "spec": {
            "modelName": "shirts", "sequence": n, "task": "Classification", "job": "j", "dataManifest": digest,
            "baseModelSha256": "0".repeat(64), "publishedAt": "2026-01-01T00:00:00Z",
            "source": { "repository": "registry.test/m", "digest": digest, "report": digest, "signature": digest, "contract": contract },
            "summary": { "samples": 1, "metrics": {}, "baseline": "majority", "baselineMetrics": {}, "bytes": 1,
                         "p95LatencyMs": "1", "peakMemoryBytes": 1, "contract": contract },
        },
    });
    make(Api::<ModelVersion>::namespaced(client.clone(), "shop"), version).await?;
    Ok(())
}

async fn phase(client: &Client) -> Result<String> {
    let api: Api<ModelRollout> = Api::namespaced(client.clone(), "shop");
    let status = api.get("shirts").await?.status.unwrap_or_default();
    Ok(status.phase.unwrap_or_default())
}

async fn until_phase(client: &Client, wanted: &str, version: u32) -> Result<fleetune_crds::ModelRolloutStatus> {
    let api: Api<ModelRollout> = Api::namespaced(client.clone(), "shop");
    let name = format!("shirts-{version}");
    let result = eventually(wanted, || async {
        let status = api.get("shirts").await?.status.unwrap_or_default();
        let same = status.run.as_ref().is_some_and(|r| r.version == name);
        Ok((same && status.phase.as_deref() == Some(wanted)).then_some(status))
    })
    .await;
    if result.is_err() {
        bail!("no {wanted} of {name}: {:#?}", api.get("shirts").await?.status);
    }
    result
}

fn all_serve(clusters: &[&Runtimes], n: u32) {
    for (name, node) in clusters.iter().flat_map(|c| c.lock().unwrap().clone()) {
        assert_eq!(node.state.active, Some(digest(n)), "{name}");
    }
}

async fn versions_of(hub: &Client, devices: [&Client; 2]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let list = ListParams::default();
    for object in Api::<ModelRollout>::all(hub.clone()).list(&list).await? {
        all.push(object.resource_version().unwrap());
    }
    for object in Api::<ModelPlacement>::all(hub.clone()).list(&list).await? {
        all.push(object.resource_version().unwrap());
    }
    for object in Api::<DeviceCluster>::all(hub.clone()).list(&list).await? {
        all.push(object.resource_version().unwrap());
    }
    for device in devices {
        for object in Api::<EdgeNode>::all(device.clone()).list(&list).await? {
            all.push(object.resource_version().unwrap());
        }
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_over_real_api_servers() -> Result<()> {
    let _ = tracing_subscriber::fmt()
        .with_env_filter("info,kube_client=off")
        .with_test_writer()
        .try_init();
    let hub_server = ApiServer::start().await?;
    let (pull_server, push_server) = (ApiServer::start().await?, ApiServer::start().await?);
    let (admin, pull, push) = (
        hub_server.client().await?,
        pull_server.client().await?,
        push_server.client().await?,
    );
    prepare(&admin, fleetune_crds::yaml::hub()).await?;
    grant(&admin, Actor::Hub, "hub-user").await?;
    let agents = json!({ "metadata": { "name": names::EDGE_CLUSTER_ROLE }, "rules": rules(Actor::EdgeOnHub, Scope::DeviceCluster) });
    make(Api::<ClusterRole>::all(admin.clone()), agents).await?;
    let mut runtimes: Vec<Runtimes> = Vec::new();
    let mut players = Vec::new();
    for (client, cluster) in [(&pull, "alpha"), (&push, "beta")] {
        prepare(client, fleetune_crds::yaml::edge()).await?;
        grant(client, Actor::Edge, "edge-user").await?;
        let mut nodes = BTreeMap::new();
        // Pods are admitted with a ServiceAccount only where no controller makes one.
        let account: Api<ServiceAccount> = Api::namespaced(client.clone(), names::NODE_NAMESPACE);
        make(account, json!({ "metadata": { "name": "default" } })).await?;
        for (n, arch) in [(0, "amd64"), (1, "arm64"), (2, "amd64")] {
            let name = format!("{cluster}-{n}");
            node(client, &name, arch).await?;
            nodes.insert(name, ModelNode::new(arch, Timestamp::now()));
        }
        let nodes: Runtimes = Arc::new(Mutex::new(nodes));
        players.push(play_runtimes(client.clone(), nodes.clone()));
        runtimes.push(nodes);
    }
    let both = [&runtimes[0], &runtimes[1]];

    let hub_client = || hub_server.client_of("hub-user", None);
    let first_hub = run_hub("hub-0", hub_client().await?, &hub_server.url())?;
    let secret = json!({
        "metadata": { "name": "beta", "namespace": HOME },
        "stringData": { "kubeconfig": push_server.kubeconfig_of("edge-user", None)? },
    });
    make(Api::<Secret>::namespaced(admin.clone(), HOME), secret).await?;
    let clusters: Api<DeviceCluster> = Api::all(admin.clone());
    let cluster = |name: &str, spec: Value| {
        json!({ "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster",
                "metadata": { "name": name, "labels": { "site": "shop" } }, "spec": spec })
    };
    make(clusters.clone(), cluster("alpha", json!({ "mode": "Pull" }))).await?;
    make(
        clusters.clone(),
        cluster("beta", json!({ "mode": "Push", "kubeconfigSecret": "beta" })),
    )
    .await?;

    // The Pull agent gets what registration made for it, and nothing else.
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), &names::cluster_namespace("alpha"));
    let secret = eventually("the agent's kubeconfig", || async {
        Ok(secrets.get_opt(names::EDGE_ACCOUNT).await?)
    })
    .await?;
    let mut kubeconfig: Value = serde_json::from_slice(&secret.data.context("data")?["kubeconfig"].0)?;
    let ca: Value = serde_yaml::from_str(&hub_server.kubeconfig()?)?;
    let authority = &ca["clusters"][0]["cluster"]["certificate-authority-data"];
    kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"] = authority.clone();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), kubeconfig.to_string())?;
    let agent = run_edge("alpha", pull_server.client_of("edge-user", None).await?, file.path())?;

    let rollout = json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelRollout", "metadata": { "name": "shirts", "namespace": "shop" },
        "spec": {
            "modelName": "shirts", "follow": "LatestPassing", "targets": { "clusters": { "matchLabels": { "site": "shop" } } },
            "strategy": { "maxUnavailable": 2, "stages": [
                { "name": "canary", "nodes": 1, "minSuccessTime": "1s" },
                { "name": "half", "nodes": "50%" },
                { "name": "all", "nodes": "100%" },
            ] },
        },
    });
    let rollouts: Api<ModelRollout> = Api::namespaced(admin.clone(), "shop");
    make(rollouts.clone(), rollout).await?;
    publish(&admin, 1).await?;
    let started = Instant::now();
    let status = until_phase(&admin, "Complete", 1).await?;
    tracing::info!(elapsed = ?started.elapsed(), "the first version is proven");
    let waves = status.run.unwrap().waves;
    assert_eq!(waves.iter().map(|w| w.nodes).collect::<Vec<_>>(), [1, 3, 6]);
    assert!(
        waves
            .windows(2)
            .all(|w| w[0].passed_at.as_ref().unwrap() <= &w[1].started_at)
    );
    all_serve(&both, 1);

    // Converged means no writes.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = versions_of(&admin, [&pull, &push]).await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(versions_of(&admin, [&pull, &push]).await?, before);

    // A bad version, and the hub dies in the middle of it.
    for node in both
        .iter()
        .flat_map(|c| c.lock().unwrap().keys().cloned().collect::<Vec<_>>())
    {
        for cluster in both {
            if let Some(node) = cluster.lock().unwrap().get_mut(&node) {
                node.fate(&digest(2), Fate::Crashes);
            }
        }
    }
    publish(&admin, 2).await?;
    eventually("a run", || async {
        Ok((phase(&admin).await? != "Complete").then_some(()))
    })
    .await?;
    first_hub.task.abort();
    let second_hub = run_hub("hub-1", hub_client().await?, &hub_server.url())?;
    let status = until_phase(&admin, "RolledBack", 2).await?;
    assert!(
        status.run.unwrap().message.contains("CrashLoop"),
        "{:?}",
        status.conditions
    );
    assert_eq!((status.nodes.failed, status.aborted), (1, vec![digest(2)]));
    all_serve(&both, 1);
    let opened = both
        .iter()
        .flat_map(|c| c.lock().unwrap().values().cloned().collect::<Vec<_>>());
    assert_eq!(
        opened.filter(|n| n.opened.contains(digest(2).as_str())).count(),
        1,
        "the canary alone"
    );

    // An approval for another run changes nothing; the right one lets the wave start.
    let approval = Patch::Merge(json!({ "spec": { "strategy": { "stages": [
        { "name": "canary", "nodes": 1 }, { "name": "all", "nodes": "100%", "approval": true },
    ] } } }));
    rollouts.patch("shirts", &PatchParams::default(), &approval).await?;
    publish(&admin, 3).await?;
    let run = until_phase(&admin, "WaitingForApproval", 3).await?.run.unwrap();
    let actions: Api<RolloutAction> = Api::namespaced(admin.clone(), "shop");
    for (name, number) in [("wrong", run.number + 1), ("right", run.number)] {
        let action = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "RolloutAction", "metadata": { "name": name, "namespace": "shop" },
            "spec": { "rollout": "shirts", "run": number, "stageHash": run.stage_hash, "action": "Approve", "stage": "all", "by": "me" },
        });
        make(actions.clone(), action).await?;
        eventually("an answer", || async {
            let status = actions.get(name).await?.status;
            Ok(status.filter(|s| !s.conditions.is_empty()))
        })
        .await?;
    }
    assert_eq!(
        actions.get("wrong").await?.status.unwrap().conditions[0].reason,
        "Ignored"
    );
    until_phase(&admin, "Complete", 3).await?;
    all_serve(&both, 3);

    // Seen from outside.
    let text = page(&second_hub).await?;
    for series in [
        r#"fleetune_rollout_nodes{namespace="shop",rollout="shirts",state="active"} 6"#,
        r#"fleetune_rollout_wave{namespace="shop",rollout="shirts"} 2"#,
        r#"fleetune_edge_request_seconds_count{outcome="success",verb="heartbeat"}"#,
    ] {
        assert!(text.contains(series), "{series}\n{text}");
    }
    assert!(
        !text.contains(r#"reason="Forbidden""#) && !text.contains(r#"outcome="Forbidden""#),
        "{text}"
    );
    let text = page(&agent).await?;
    assert!(text.contains(r#"fleetune_edge_hub_away{cluster="alpha"} 0"#), "{text}");
    assert!(!text.contains(r#"outcome="Forbidden""#), "{text}");

    // Deleting the rollout unloads nothing; the placements stay, nobody's.
    rollouts.delete("shirts", &DeleteParams::default()).await?;
    eventually("its end", || async {
        Ok(rollouts.get_opt("shirts").await?.is_none().then_some(()))
    })
    .await?;
    let left = Api::<ModelPlacement>::all(admin.clone())
        .list(&ListParams::default())
        .await?;
    assert_eq!(left.items.len(), 2);
    assert!(left.iter().all(|p| p.spec.rollout_uid.is_empty()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    all_serve(&both, 3);

    for running in [agent, second_hub] {
        running.shutdown.trigger();
        tokio::time::timeout(Duration::from_secs(15), running.task).await???;
    }
    players.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}
