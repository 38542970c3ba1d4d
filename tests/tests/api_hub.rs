//! The hub against a real API server, as a user with exactly the rights of the access table: two replicas and one
//! leader, a job from apply to version, a device cluster from registration to revocation, and silence in between. No
//! controller manager and no kubelet run here: the test ends Jobs the way they would.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test may end it.

use anyhow::{Context, Result, bail};
use fleetune_crds::access::{Actor, GRANTS, Scope};
use fleetune_crds::common::Digest;
use fleetune_crds::conditions::get;
use fleetune_crds::{DeviceCluster, FineTuneJob, ModelVersion, names};
use fleetune_operator::cli::Process;
use fleetune_operator::config::HubConfig;
use fleetune_operator::{hub, process};
use fleetune_tests::lab::{ApiServer, client_from};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::time::{Duration, Instant};

const HOME: &str = "fleetune-system";
const USER: &str = "fleetune-hub-user";

/// The rules of an actor as RBAC objects have them.
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

async fn make<K>(api: Api<K>, object: Value) -> Result<K>
where
    K: DeserializeOwned + Clone + Debug + serde::Serialize,
{
    let object: K = serde_json::from_value(object)?;
    Ok(api.create(&PostParams::default(), &object).await?)
}

/// Gives the hub's user the rights of the table, and makes the ClusterRole of agents, as the chart does.
async fn grant(client: &Client) -> Result<()> {
    let all = || client.clone();
    for (name, actor, scope) in [
        ("fleetune-hub", Actor::Hub, Scope::Cluster),
        (names::EDGE_CLUSTER_ROLE, Actor::EdgeOnHub, Scope::DeviceCluster),
    ] {
        let role = json!({ "metadata": { "name": name }, "rules": rules(actor, scope) });
        make(Api::<ClusterRole>::all(all()), role).await?;
    }
    let user = json!([{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER }]);
    let to = |kind: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "fleetune-hub" });
    let metadata = json!({ "name": "fleetune-hub" });
    make(
        Api::<ClusterRoleBinding>::all(all()),
        json!({ "metadata": metadata, "roleRef": to("ClusterRole"), "subjects": user }),
    )
    .await?;
    make(
        Api::<Role>::namespaced(all(), HOME),
        json!({ "metadata": metadata, "rules": rules(Actor::Hub, Scope::Operator) }),
    )
    .await?;
    make(
        Api::<RoleBinding>::namespaced(all(), HOME),
        json!({ "metadata": metadata, "roleRef": to("Role"), "subjects": user }),
    )
    .await?;
    Ok(())
}

async fn install_crds(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (_, crd) in fleetune_crds::yaml::hub() {
        api.create(&PostParams::default(), &crd).await?;
    }
    Ok(())
}

/// Asks until the answer is there.
async fn eventually<T, F: Future<Output = Result<Option<T>>>>(what: &str, mut ask: impl FnMut() -> F) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(40);
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

/// One replica of the hub, in this process.
struct Replica {
    task: tokio::task::JoinHandle<Result<()>>,
    shutdown: fleetune_operator::runtime::Shutdown,
    url: String,
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn replica(name: &str, client: Client, url: &str) -> Result<Replica> {
    let port = free_port();
    let config: HubConfig = serde_yaml::from_str(&format!(
        "workerImage: worker\nlisten: 127.0.0.1:{port}\nlease: {{duration: 6s, renew: 1s}}\n\
         signingKeys: [{{name: main, secret: key, namespaces: [shop]}}]\ndefaultSigningKey: main\n\
         hub: {{url: '{url}'}}\nheartbeat: {{interval: 1s, unreachableAfter: 4s}}\n"
    ))?;
    let process = Process {
        config: "/dev/null".into(),
        pod_name: name.into(),
        pod_namespace: HOME.into(),
    };
    let ctx = process::context(config, &process, "fleetune-hub", client)?;
    let shutdown = ctx.shutdown.clone();
    Ok(Replica {
        task: tokio::spawn(process::run(ctx, names::LEASE_HUB, hub::needed(), hub::controllers)),
        shutdown,
        url: format!("http://127.0.0.1:{port}"),
    })
}

async fn page(replica: &Replica, path: &str) -> Result<(u16, String)> {
    let answer = reqwest::get(format!("{}{path}", replica.url)).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// Ends a worker Job and its pod the way the Job controller and the kubelet would.
async fn end_job(client: &Client, namespace: &str, name: &str, outcome: &Value) -> Result<()> {
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let job = eventually(name, || async { Ok(jobs.get_opt(name).await?) }).await?;
    let uid = job.uid().unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let template = serde_json::to_value(job.spec.unwrap().template.spec)?;
    let labels = json!({ "batch.kubernetes.io/controller-uid": uid });
    make(
        pods.clone(),
        json!({ "metadata": { "name": format!("{name}-x"), "labels": labels }, "spec": template }),
    )
    .await?;
    let terminated = json!({ "exitCode": 0, "reason": "Completed", "message": outcome.to_string() });
    let status = json!({ "status": { "phase": "Succeeded", "containerStatuses": [{
        "name": "worker", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
        "state": { "terminated": terminated },
    }] } });
    pods.patch_status(&format!("{name}-x"), &PatchParams::default(), &Patch::Merge(&status))
        .await?;
    let now = "2026-01-01T00:00:00Z";
    let condition = |type_: &str| json!({ "type": type_, "status": "True", "lastTransitionTime": now });
    let status = json!({ "status": {
        "startTime": now, "completionTime": now, "succeeded": 1, "uncountedTerminatedPods": {},
        "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
    } });
    jobs.patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
        .await?;
    Ok(())
}

fn job() -> Value {
    json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "FineTuneJob",
        "metadata": { "name": "shirts-1", "namespace": "shop" },
        "spec": {
            "modelName": "shirts", "task": "Classification",
            "baseModel": { "uri": "s3://models/base.onnx", "sha256": "9".repeat(64) },
            "input": { "image": { "size": 224 } },
            "dataset": { "uri": "pvc://data/shirts.tar" },
            "evaluation": { "gates": [{ "metric": "macroF1", "min": "0.80" }] },
            "output": { "repository": "registry.test:5000/models/shirts" },
        },
    })
}

async fn road(client: &Client) -> Result<()> {
    let jobs: Api<FineTuneJob> = Api::namespaced(client.clone(), "shop");
    make(jobs.clone(), job()).await?;
    let digest = |what: &str| Digest::of(what.as_bytes());
    let done =
        json!({ "code": "Done", "reason": "Done", "digest": digest("candidate"), "dataManifest": digest("data") });
    end_job(client, "shop", "shirts-1-finetune", &done).await?;
    let summary = json!({
        "samples": 300, "metrics": { "macroF1": "0.91" }, "baseline": "majority", "baselineMetrics": { "macroF1": "0.1" },
        "bytes": 1000, "p95LatencyMs": "12.5", "peakMemoryBytes": 100_000, "contract": digest("contract"),
    });
    let passed = json!({ "code": "Done", "reason": "Passed", "digest": digest("report"), "summary": summary });
    end_job(client, "shop", "shirts-1-validate", &passed).await?;
    let publish = fleetune_operator::finetunejob::step::WorkerStep::Publish.job_name("shop", "shirts-1");
    let signed = json!({ "code": "Done", "reason": "Done", "digest": digest("signature") });
    end_job(client, HOME, &publish, &signed).await?;
    let status = eventually("Succeeded", || async {
        let status = jobs.get("shirts-1").await?.status.unwrap_or_default();
        Ok(status.finished_at.is_some().then_some(status))
    })
    .await?;
    assert_eq!(status.phase.as_deref(), Some("Succeeded"), "{status:?}");
    let versions: Api<ModelVersion> = Api::namespaced(client.clone(), "shop");
    let version = versions.get(&status.version.unwrap()).await?;
    assert_eq!(version.spec.source.signature, digest("signature"));
    // A started job is immutable.
    let patch = json!({ "spec": { "modelName": "other" } });
    let refused = jobs
        .patch("shirts-1", &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 422));
    Ok(())
}

async fn deregister_job(client: &Client) -> Result<()> {
    let jobs: Api<FineTuneJob> = Api::namespaced(client.clone(), "shop");
    jobs.delete("shirts-1", &DeleteParams::default()).await?;
    eventually("the job's end", || async {
        Ok(jobs.get_opt("shirts-1").await?.is_none().then_some(()))
    })
    .await?;
    let workers: Api<Job> = Api::namespaced(client.clone(), HOME);
    let left = workers.list(&ListParams::default().labels(names::LABEL_STEP)).await?;
    // Background deletion waits for a garbage collector, which is not here: a deletion mark is all there can be.
    assert!(
        left.iter().all(|job| job.metadata.deletion_timestamp.is_some()),
        "{left:?}"
    );
    Ok(())
}

async fn ready_reason(api: &Api<DeviceCluster>) -> Result<String> {
    let status = api.get("berlin").await?.status.unwrap_or_default();
    Ok(get(&status.conditions, "Ready")
        .map(|c| c.reason.clone())
        .unwrap_or_default())
}

async fn cluster(client: &Client, ca: &str) -> Result<()> {
    let clusters: Api<DeviceCluster> = Api::all(client.clone());
    make(
        clusters.clone(),
        json!({ "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster",
                "metadata": { "name": "berlin", "labels": { "site": "shop" } }, "spec": { "mode": "Pull" } }),
    )
    .await?;
    let namespace = names::cluster_namespace("berlin");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let secret = eventually("the kubeconfig", || async {
        Ok(secrets.get_opt(names::EDGE_ACCOUNT).await?)
    })
    .await?;
    let text = String::from_utf8(secret.data.context("data")?["kubeconfig"].0.clone())?;
    // The server's own certificates are not in any ConfigMap here: add them as the test's chart values would.
    let mut kubeconfig: Value = serde_json::from_str(&text)?;
    kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"] = json!(ca);
    let agent = client_from(&kubeconfig.to_string()).await?;
    let heart: Api<Lease> = Api::namespaced(agent.clone(), &namespace);
    for second in 1..4 {
        let beat = json!({ "spec": { "renewTime": format!("2026-01-01T00:00:{second:02}.000000Z") } });
        heart
            .patch(names::LEASE_HEARTBEAT, &PatchParams::default(), &Patch::Merge(&beat))
            .await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eventually("Reachable", || async {
        Ok((ready_reason(&clusters).await? == "Reachable").then_some(()))
    })
    .await?;
    // Its rights end at its own door.
    let code = |result: Result<(), kube::Error>| match result {
        Ok(()) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
    };
    let placements = |namespace: &str| Api::<fleetune_crds::ModelPlacement>::namespaced(agent.clone(), namespace);
    let list = ListParams::default();
    assert_eq!(code(placements(&namespace).list(&list).await.map(|_| ())), 200);
    assert_eq!(code(placements("fleetune-dc-other").list(&list).await.map(|_| ())), 403);
    let secrets: Api<Secret> = Api::namespaced(agent.clone(), &namespace);
    assert_eq!(code(secrets.get(names::EDGE_ACCOUNT).await.map(|_| ())), 403);
    eventually("Unreachable", || async {
        Ok((ready_reason(&clusters).await? == "Unreachable").then_some(()))
    })
    .await?;
    clusters.delete("berlin", &DeleteParams::default()).await?;
    eventually("its end", || async {
        Ok(clusters.get_opt("berlin").await?.is_none().then_some(()))
    })
    .await?;
    // 403 at once, because the binding is gone; 401 once the server no longer remembers the token.
    let code = code(heart.get(names::LEASE_HEARTBEAT).await.map(|_| ()));
    assert!([401, 403].contains(&code), "revoked: {code}");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    assert!(namespaces.get(&namespace).await?.metadata.deletion_timestamp.is_none());
    Ok(())
}

/// A namespace that is taken, beside all else.
async fn taken(client: &Client) -> Result<()> {
    make(
        Api::<Namespace>::all(client.clone()),
        json!({ "metadata": { "name": "fleetune-dc-oslo" } }),
    )
    .await?;
    let clusters: Api<DeviceCluster> = Api::all(client.clone());
    let oslo = json!({ "metadata": { "name": "oslo" }, "spec": { "mode": "Pull" },
                       "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster" });
    make(clusters.clone(), oslo).await?;
    eventually("NamespaceTaken", || async {
        let status = clusters.get("oslo").await?.status.unwrap_or_default();
        Ok(get(&status.conditions, "Stalled")
            .filter(|c| c.reason == "NamespaceTaken")
            .map(|_| ()))
    })
    .await
}

/// Version of everything that the hub writes but Leases.
async fn versions(client: &Client) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let list = ListParams::default();
    for job in Api::<FineTuneJob>::all(client.clone()).list(&list).await? {
        all.push(job.resource_version().unwrap());
    }
    for cluster in Api::<DeviceCluster>::all(client.clone()).list(&list).await? {
        all.push(cluster.resource_version().unwrap());
    }
    for job in Api::<Job>::all(client.clone()).list(&list).await? {
        all.push(job.resource_version().unwrap());
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hub_on_a_real_api_server() -> Result<()> {
    let _ = tracing_subscriber::fmt()
        .with_env_filter("info,kube_client=off")
        .with_test_writer()
        .try_init();
    let server = ApiServer::start().await?;
    let admin = server.client().await?;
    for name in [HOME, "shop"] {
        make(
            Api::<Namespace>::all(admin.clone()),
            json!({ "metadata": { "name": name } }),
        )
        .await?;
    }
    grant(&admin).await?;
    let first = replica("hub-0", server.client_of(USER, None).await?, &server.url())?;
    let second = replica("hub-1", server.client_of(USER, None).await?, &server.url())?;
    eventually("a page", || async {
        Ok(page(&first, "/healthz").await.ok().map(|_| ()))
    })
    .await?;
    let (code, text) = page(&first, "/readyz").await?;
    assert!(code == 503 && text.contains("finetunejobs.fleetune.dev"), "{text}");
    let (_, text) = page(&first, "/metrics").await?;
    assert!(
        text.contains(r#"fleetune_crd_missing{crd="finetunejobs.fleetune.dev"} 1"#),
        "{text}"
    );
    install_crds(&admin).await?;
    for replica in [&first, &second] {
        eventually("ready", || async {
            Ok((page(replica, "/readyz").await?.0 == 200).then_some(()))
        })
        .await?;
    }
    let leads = |text: &str| text.contains("\nfleetune_leader 1");
    let leader = eventually("a leader", || async {
        let first_leads = leads(&page(&first, "/metrics").await?.1);
        let second_leads = leads(&page(&second, "/metrics").await?.1);
        assert!(!(first_leads && second_leads), "two leaders");
        Ok((first_leads || second_leads).then_some(first_leads))
    })
    .await?;
    let (leader, standby) = if leader { (first, second) } else { (second, first) };
    road(&admin).await?;
    taken(&admin).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = versions(&admin).await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(versions(&admin).await?, before, "converged means no writes");
    // The leader dies without a word.
    leader.task.abort();
    let died = Instant::now();
    eventually("another leader", || async {
        Ok(leads(&page(&standby, "/metrics").await?.1).then_some(()))
    })
    .await?;
    assert!(
        died.elapsed() > Duration::from_secs(3),
        "it waited for the lease to run out"
    );
    deregister_job(&admin).await?;
    let ca: Value = serde_yaml::from_str(&server.kubeconfig()?)?;
    let ca = ca["clusters"][0]["cluster"]["certificate-authority-data"]
        .as_str()
        .context("ca")?;
    cluster(&admin, ca).await?;
    let (_, text) = page(&standby, "/metrics").await?;
    assert!(
        text.contains(r#"fleetune_reconcile_total{kind="FineTuneJob",outcome="success"}"#),
        "{text}"
    );
    assert!(
        !text.contains(r#"reason="Forbidden""#),
        "the table lacks a right: {text}"
    );
    // The new leader leaves in order and gives the lease back.
    standby.shutdown.trigger();
    standby.task.await??;
    let lease: Lease = Api::namespaced(admin.clone(), HOME).get(names::LEASE_HUB).await?;
    assert_eq!(lease.spec.unwrap().holder_identity, None);
    Ok(())
}
