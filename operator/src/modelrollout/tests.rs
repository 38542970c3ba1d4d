//! The controller over an API server in memory: which requests it makes, in which order, and what it does when they fail.

use super::apply::Error;
use super::{State, reconcile};
use crate::config::HubConfig;
use crate::runtime::{Class, Classify, Context, Wake};
use crate::testing::builders::{TestClock, context, hub_config};
use crate::testing::mock_api::MockApi;
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelRollout, names};
use serde_json::{Value, json};

const ROLLOUT: &str = "/apis/fleetune.dev/v1alpha1/namespaces/shop/modelrollouts/shirts";

fn placement(cluster: &str) -> String {
    format!("/apis/fleetune.dev/v1alpha1/namespaces/fleetune-dc-{cluster}/modelplacements/shop.shirts")
}

struct Lab {
    api: MockApi,
    clock: TestClock,
    ctx: Context<HubConfig>,
    state: State,
}

impl Lab {
    /// Two clusters, one version, one rollout.
    fn new() -> Self {
        let (api, clock) = (MockApi::default(), TestClock::default());
        clock.advance(1_000_000);
        let ctx = context(&api, &clock, hub_config());
        let state = State::new(&ctx).unwrap();
        for cluster in ["a", "b"] {
            let object = json!({
                "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster", "metadata": { "name": cluster },
                "spec": { "mode": "Pull" }, "status": { "namespace": names::cluster_namespace(cluster) },
            });
            api.put(&format!("/apis/fleetune.dev/v1alpha1/deviceclusters/{cluster}"), object);
        }
        let digest = Digest::of(b"1");
        let version = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelVersion", "metadata": { "name": "shirts-1" },
            "spec": {
                "modelName": "shirts", "sequence": 1, "task": "Classification", "job": "j", "dataManifest": digest,
                "baseModelSha256": "0".repeat(64), "publishedAt": "2026-01-01T00:00:00Z",
                "source": { "repository": "r.test/m", "digest": digest, "report": digest, "signature": digest,
                            "contract": digest },
                "summary": { "samples": 1, "metrics": {}, "baseline": "majority", "baselineMetrics": {}, "bytes": 1,
                             "p95LatencyMs": "1", "peakMemoryBytes": 1, "contract": digest },
            },
        });
        api.put(
            "/apis/fleetune.dev/v1alpha1/namespaces/shop/modelversions/shirts-1",
            version,
        );
        let this = Self { api, clock, ctx, state };
        this.make("shirts", "uid-1");
        this
    }

    fn make(&self, name: &str, uid: &str) {
        let object = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelRollout", "metadata": { "name": name, "uid": uid },
            "spec": { "modelName": "shirts", "follow": "LatestPassing" },
        });
        let path = format!("/apis/fleetune.dev/v1alpha1/namespaces/shop/modelrollouts/{name}");
        self.api.put(&path, object);
    }

    async fn pass(&self) -> Result<Wake, Error> {
        self.pass_of("shirts").await
    }

    async fn pass_of(&self, name: &str) -> Result<Wake, Error> {
        self.clock.advance(1);
        let path = ROLLOUT.replace("/shirts", &format!("/{name}"));
        let cached: ModelRollout = serde_json::from_value(self.api.get(&path).unwrap()).unwrap();
        reconcile(&cached, &self.ctx, &self.state).await
    }

    /// Passes until one writes nothing but events.
    async fn rest(&self) {
        for _ in 0..20 {
            let before = self.writes().len();
            self.pass().await.unwrap();
            if self.writes().len() == before {
                return;
            }
        }
        panic!("it never rests: {:#?}", self.writes());
    }

    fn writes(&self) -> Vec<(String, String)> {
        let all = self.api.writes().into_iter();
        all.filter(|w| !w.path.contains("events"))
            .map(|w| (w.method, w.path))
            .collect()
    }

    fn spec(&self, cluster: &str) -> Value {
        self.api.get(&placement(cluster)).unwrap()["spec"].clone()
    }
}

#[tokio::test]
async fn finalizer_then_claims_then_the_run_and_then_rest() {
    let lab = Lab::new();
    lab.pass().await.unwrap();
    let status = format!("{ROLLOUT}/status");
    assert_eq!(
        lab.writes(),
        [("PATCH".into(), status), ("PATCH".into(), ROLLOUT.into())]
    );
    lab.pass().await.unwrap();
    for cluster in ["a", "b"] {
        assert_eq!(lab.spec(cluster)["classes"], json!({}), "a claim has zero counts");
        assert_eq!(lab.spec(cluster)["rolloutUid"], "uid-1");
    }
    lab.rest().await;
    let rollout = lab.api.get(ROLLOUT).unwrap();
    assert_eq!(rollout["status"]["run"]["version"], "shirts-1");
    assert_eq!(rollout["status"]["conditions"][0]["reason"], "WaitingForClusters");
    assert_eq!(
        lab.spec("a")["epoch"],
        rollout["status"]["epoch"],
        "status first, then orders"
    );
    let manager = lab
        .api
        .writes()
        .into_iter()
        .find(|w| w.path == placement("a").rsplit_once('/').unwrap().0);
    assert_eq!(manager.unwrap().manager.as_deref(), Some(names::MANAGER_ROLLOUT));
    let before = lab.writes().len();
    for _ in 0..5 {
        lab.pass().await.unwrap();
    }
    assert_eq!(lab.writes().len(), before, "nothing changed, nothing is written");
}

#[tokio::test]
async fn a_cluster_that_fails_holds_up_nobody_else() {
    for (code, class) in [(409, Class::Conflict), (404, Class::Transient), (500, Class::Transient)] {
        let lab = Lab::new();
        lab.pass().await.unwrap();
        lab.api.fail_next("fleetune-dc-a/modelplacements", code);
        let error = lab.pass().await.unwrap_err();
        assert_eq!(error.class(), class, "{code}");
        assert!(lab.api.get(&placement("a")).is_none() && lab.api.get(&placement("b")).is_some());
        lab.rest().await;
        assert_eq!(lab.spec("a")["rolloutUid"], "uid-1");
    }
}

#[tokio::test]
async fn a_status_that_lost_a_race_writes_no_order() {
    let lab = Lab::new();
    lab.pass().await.unwrap();
    lab.api.fail_next("modelrollouts/shirts/status", 409);
    assert_eq!(lab.pass().await.unwrap_err().class(), Class::Conflict);
    assert!(lab.api.get(&placement("a")).is_none());
    lab.rest().await;
}

#[tokio::test]
async fn the_second_rollout_of_a_model_is_told_who_owns_it() {
    let lab = Lab::new();
    lab.rest().await;
    lab.make("late", "uid-2");
    for _ in 0..4 {
        lab.pass_of("late").await.unwrap();
    }
    let late = lab.api.get(&ROLLOUT.replace("/shirts", "/late")).unwrap();
    assert_eq!(late["status"]["phase"], "Stalled");
    let conditions = late["status"]["conditions"].to_string();
    assert!(
        conditions.contains("ClaimedBy") && conditions.contains("ModelRollout shirts"),
        "{conditions}"
    );
    assert_eq!(lab.spec("a")["rolloutUid"], "uid-1");
}

#[tokio::test]
async fn deletion_releases_every_placement_before_the_finalizer_goes() {
    let lab = Lab::new();
    lab.rest().await;
    lab.api.delete(ROLLOUT);
    lab.api.fail_next("fleetune-dc-b/modelplacements", 500);
    lab.pass().await.unwrap_err();
    assert!(
        lab.api.get(ROLLOUT).is_some(),
        "one placement still says that it is ours"
    );
    lab.pass().await.unwrap();
    assert!(lab.api.get(ROLLOUT).is_none());
    for cluster in ["a", "b"] {
        assert_eq!(lab.spec(cluster)["rolloutUid"], "");
        assert_eq!(lab.spec(cluster)["state"], "Hold");
    }
}

#[tokio::test]
async fn a_selector_that_means_nothing_is_said_so() {
    let lab = Lab::new();
    lab.api.change(ROLLOUT, |r| {
        r["spec"]["targets"] = json!({ "nodes": { "matchExpressions": [{ "key": "a", "operator": "Near" }] } });
    });
    assert_eq!(lab.pass().await.unwrap(), Wake::Resync);
    let rollout = lab.api.get(ROLLOUT).unwrap();
    assert_eq!(rollout["status"]["conditions"][1]["reason"], "InvalidSelector");
    assert_eq!(lab.api.paths("modelplacements").len(), 0);
}

#[tokio::test]
async fn hearts_are_read_and_not_only_watched_and_a_silent_cluster_is_asked_again_soon() {
    let lab = Lab::new();
    let beat = |second: i64| {
        let spec = json!({ "renewTime": format!("2026-01-01T00:00:{second:02}.000000Z") });
        for cluster in ["a", "b"] {
            let namespace = names::cluster_namespace(cluster);
            let name = names::LEASE_HEARTBEAT;
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}");
            lab.api
                .put(&path, json!({ "metadata": { "name": name }, "spec": spec }));
        }
    };
    let unreachable = || lab.api.get(ROLLOUT).unwrap()["status"]["clusters"]["unreachable"].clone();
    beat(1);
    lab.rest().await;
    assert_eq!(unreachable(), 0);
    lab.clock.advance(600);
    lab.rest().await;
    assert_eq!(unreachable(), 2);
    let Wake::After(wake) = lab.pass().await.unwrap() else {
        panic!("nobody looks again");
    };
    assert!(wake <= std::time::Duration::from_secs(30), "{wake:?}");
    beat(2);
    lab.rest().await;
    assert_eq!(unreachable(), 0, "no watch has told, and yet it is known");
}

#[tokio::test]
async fn a_version_that_does_not_exist_is_named_and_nothing_is_ordered() {
    let lab = Lab::new();
    lab.api.change(ROLLOUT, |r| {
        r["spec"] = json!({ "modelName": "shirts", "version": "shirts-2" });
    });
    lab.rest().await;
    let rollout = lab.api.get(ROLLOUT).unwrap();
    assert_eq!(rollout["status"]["phase"], "Stalled");
    let ready = &rollout["status"]["conditions"][0];
    assert_eq!(ready["reason"], "VersionNotFound");
    assert!(ready["message"].as_str().unwrap().contains("shirts-2"), "{ready}");
    for cluster in ["a", "b"] {
        assert_eq!(lab.spec(cluster)["classes"], json!({}), "a claim, and no order");
    }
}

#[tokio::test]
async fn a_selector_that_matches_no_cluster_is_said_so_and_nothing_is_claimed() {
    let lab = Lab::new();
    lab.api.change(ROLLOUT, |r| {
        r["spec"]["targets"] = json!({ "clusters": { "matchLabels": { "site": "nowhere" } } });
    });
    lab.rest().await;
    let rollout = lab.api.get(ROLLOUT).unwrap();
    assert_eq!(rollout["status"]["phase"], "Pending");
    let ready = &rollout["status"]["conditions"][0];
    assert_eq!(ready["reason"], "NoClusterMatches");
    assert!(
        ready["message"].as_str().unwrap().contains("spec.targets.clusters"),
        "{ready}"
    );
    assert!(lab.api.get(&placement("a")).is_none() && lab.api.get(&placement("b")).is_none());
}
