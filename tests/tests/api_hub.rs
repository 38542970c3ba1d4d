//! The hub against a real API server, as a user with exactly the rights of the access table: two replicas and one
//! leader, a job from apply to version, a device cluster from registration to revocation, and silence in between. No
//! controller manager and no kubelet run here: the test ends Jobs the way they would.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test may end it.

use anyhow::{Context, Result};
use fleetune_crds::access::Actor;
use fleetune_crds::common::Digest;
use fleetune_crds::conditions::get;
use fleetune_crds::{DeviceCluster, FineTuneJob, ModelVersion, names};
use fleetune_operator::edge::metrics::EdgeMetrics;
use fleetune_operator::edge::renew::Renewal;
use fleetune_operator::runtime::metrics::Metrics;
use fleetune_tests::api::operator::Running;
use fleetune_tests::api::{HOME, access, code, eventually, logs, make};
use fleetune_tests::lab::{ApiServer, client_from};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const USER: &str = "fleetune-hub-user";

async fn install_crds(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (_, crd) in fleetune_crds::yaml::hub() {
        api.create(&PostParams::default(), &crd).await?;
    }
    Ok(())
}

/// One replica of the hub.
async fn replica(server: &ApiServer, name: &str) -> Result<Running> {
    let config = format!(
        "lease: {{duration: 6s, renew: 1s}}\n\
         signingKeys: [{{name: main, secret: key, namespaces: [shop]}}]\ndefaultSigningKey: main\n\
         hub: {{url: '{}'}}\nheartbeat: {{interval: 1s, unreachableAfter: 4s}}\n",
        server.url()
    );
    Running::hub(name, server.client_of(USER, None).await?, &config)
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
        &pods,
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
    make(&jobs, job()).await?;
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
        &clusters,
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
    let placements = |namespace: &str| Api::<fleetune_crds::ModelPlacement>::namespaced(agent.clone(), namespace);
    let list = ListParams::default();
    assert_eq!(code(placements(&namespace).list(&list).await)?, 200);
    assert_eq!(code(placements("fleetune-dc-other").list(&list).await)?, 403);
    a_renewed_token_comes_home(client, &agent, &kubeconfig).await?;
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
    let code = code(heart.get(names::LEASE_HEARTBEAT).await)?;
    assert!([401, 403].contains(&code), "revoked: {code}");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    assert!(namespaces.get(&namespace).await?.metadata.deletion_timestamp.is_none());
    Ok(())
}

/// The hub renews the token in its own Secret; the agent stores it in the one that it reads, and nothing else of it.
async fn a_renewed_token_comes_home(client: &Client, agent: &Client, kubeconfig: &Value) -> Result<()> {
    let own: Api<Secret> = Api::namespaced(client.clone(), HOME);
    let secret = json!({
        "metadata": { "name": names::HUB_KUBECONFIG }, "stringData": { "kubeconfig": kubeconfig.to_string() },
    });
    make(&own, secret).await?;
    let renewal = Renewal {
        cluster: "berlin".into(),
        hub: agent.clone(),
        device: client.clone(),
        namespace: HOME.into(),
        secret: names::HUB_KUBECONFIG.into(),
    };
    let metrics = EdgeMetrics::new(&Metrics::new()?.registry)?;
    assert!(!renewal.once(&metrics).await?, "it is the same token still");

    // More than a third of its life has passed.
    let theirs: Api<Secret> = Api::namespaced(client.clone(), &names::cluster_namespace("berlin"));
    let params = PatchParams::default();
    let issued = Timestamp::now() - SignedDuration::from_hours(89 * 24);
    let old = json!({ "metadata": { "annotations": { "fleetune.dev/token-issued-at": issued.to_string() } } });
    theirs.patch(names::EDGE_ACCOUNT, &params, &Patch::Merge(&old)).await?;
    let clusters: Api<DeviceCluster> = Api::all(client.clone());
    let changed = json!({ "spec": { "allowedNamespaces": ["shop"] } });
    clusters.patch("berlin", &params, &Patch::Merge(&changed)).await?;
    let token = |kubeconfig: &Value| kubeconfig["users"][0]["user"]["token"].clone();
    let renewed = eventually("a renewed token", || async {
        let now = text_of(&theirs.get(names::EDGE_ACCOUNT).await?)?;
        Ok((token(&now) != token(kubeconfig)).then_some(now))
    })
    .await?;
    assert!(renewal.once(&metrics).await?);
    let mut expected = kubeconfig.clone();
    expected["users"][0]["user"]["token"] = token(&renewed);
    assert_eq!(text_of(&own.get(names::HUB_KUBECONFIG).await?)?, expected);

    // One that the hub does not take is not kept.
    let mut broken = renewed.clone();
    broken["users"][0]["user"]["token"] = json!("broken");
    let patch = json!({ "stringData": { "kubeconfig": broken.to_string() } });
    theirs
        .patch(names::EDGE_ACCOUNT, &params, &Patch::Merge(&patch))
        .await?;
    assert!(renewal.once(&metrics).await.is_err());
    assert_eq!(text_of(&own.get(names::HUB_KUBECONFIG).await?)?, expected);
    Ok(())
}

/// The kubeconfig in a Secret.
fn text_of(secret: &Secret) -> Result<Value> {
    let data = secret
        .data
        .as_ref()
        .and_then(|d| d.get("kubeconfig"))
        .context("no kubeconfig")?;
    Ok(serde_yaml::from_slice(&data.0)?)
}

/// A namespace that is taken, beside all else.
async fn taken(client: &Client) -> Result<()> {
    make(
        &Api::<Namespace>::all(client.clone()),
        json!({ "metadata": { "name": "fleetune-dc-oslo" } }),
    )
    .await?;
    let clusters: Api<DeviceCluster> = Api::all(client.clone());
    let oslo = json!({ "metadata": { "name": "oslo" }, "spec": { "mode": "Pull" },
                       "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster" });
    make(&clusters, oslo).await?;
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
    logs();
    let server = ApiServer::start().await?;
    let admin = server.client().await?;
    for name in [HOME, "shop"] {
        make(
            &Api::<Namespace>::all(admin.clone()),
            json!({ "metadata": { "name": name } }),
        )
        .await?;
    }
    access::grant(&admin, Actor::Hub, USER).await?;
    access::agents_role(&admin).await?;
    let first = replica(&server, "hub-0").await?;
    let second = replica(&server, "hub-1").await?;
    eventually("a page", || async { Ok(first.page("/healthz").await.ok().map(|_| ())) }).await?;
    let (code, text) = first.page("/readyz").await?;
    assert!(code == 503 && text.contains("finetunejobs.fleetune.dev"), "{text}");
    let text = first.metrics().await?;
    assert!(
        text.contains(r#"fleetune_crd_missing{crd="finetunejobs.fleetune.dev"} 1"#),
        "{text}"
    );
    install_crds(&admin).await?;
    for replica in [&first, &second] {
        eventually("ready", || async {
            Ok((replica.page("/readyz").await?.0 == 200).then_some(()))
        })
        .await?;
    }
    let leads = |text: &str| text.contains("\nfleetune_leader 1");
    let leader = eventually("a leader", || async {
        let first_leads = leads(&first.metrics().await?);
        let second_leads = leads(&second.metrics().await?);
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
        Ok(leads(&standby.metrics().await?).then_some(()))
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
    let text = standby.metrics().await?;
    assert!(
        text.contains(r#"fleetune_reconcile_total{kind="FineTuneJob",outcome="success"}"#),
        "{text}"
    );
    assert!(
        !text.contains(r#"reason="Forbidden""#),
        "the table lacks a right: {text}"
    );
    // The new leader leaves in order and gives the lease back.
    standby.end().await?;
    let lease: Lease = Api::namespaced(admin.clone(), HOME).get(names::LEASE_HUB).await?;
    assert_eq!(lease.spec.unwrap().holder_identity, None);
    Ok(())
}
