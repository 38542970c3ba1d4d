//! Which versions go, over an API server in memory.

use super::reconcile;
use crate::config::HubConfig;
use crate::testing::builders::{TestClock, context, hub_config};
use crate::testing::mock_api::MockApi;
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelVersion, names};
use serde_json::{Value, json};

const VERSIONS: &str = "/apis/fleetune.dev/v1alpha1/namespaces/shop/modelversions";

fn source(n: u32) -> Value {
    let digest = Digest::of(&n.to_be_bytes());
    json!({ "repository": "r.test/m", "digest": digest, "report": digest, "signature": digest, "contract": digest })
}

/// Versions 1 to 8 of `shirts`, one of another model, and a history limit of 3.
fn lab() -> (MockApi, HubConfig) {
    let api = MockApi::default();
    for (name, model, n) in
        (1..=8)
            .map(|n| (format!("shirts-{n}"), "shirts", n))
            .chain([("shoes-1".into(), "shoes", 1)])
    {
        let version = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelVersion", "metadata": { "name": name },
            "spec": {
                "modelName": model, "sequence": n, "task": "Classification", "job": "j", "dataManifest": Digest::of(b"d"),
                "baseModelSha256": "0".repeat(64), "publishedAt": "2026-01-01T00:00:00Z", "source": source(n),
                "summary": { "samples": 1, "metrics": {}, "baseline": "majority", "baselineMetrics": {}, "bytes": 1,
                             "p95LatencyMs": "1", "peakMemoryBytes": 1, "contract": Digest::of(b"c") },
            },
        });
        api.put(&format!("{VERSIONS}/{name}"), version);
    }
    let mut config = hub_config();
    config.version_history_limit = 3;
    (api, config)
}

async fn left_after_a_pass(api: &MockApi, config: HubConfig) -> Vec<String> {
    let ctx = context(api, &TestClock::default(), config);
    let newest: ModelVersion = serde_json::from_value(api.get(&format!("{VERSIONS}/shirts-8")).unwrap()).unwrap();
    reconcile(&newest, &ctx).await.unwrap();
    let paths = api.paths("modelversions").into_iter();
    paths.map(|path| path.rsplit_once('/').unwrap().1.to_owned()).collect()
}

#[tokio::test]
async fn the_oldest_go_first_and_those_of_other_models_stay() {
    let (api, config) = lab();
    assert_eq!(
        left_after_a_pass(&api, config).await,
        ["shirts-6", "shirts-7", "shirts-8", "shoes-1"]
    );
    let gone: Vec<String> = api.writes().into_iter().map(|w| w.path).collect();
    assert_eq!(gone, [1, 2, 3, 4, 5].map(|n| format!("{VERSIONS}/shirts-{n}")));
}

#[tokio::test]
async fn what_a_rollout_or_a_placement_names_stays() {
    let (api, config) = lab();
    let digest = |n: u32| source(n)["digest"].clone();
    let rollout = json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelRollout", "metadata": { "name": "shirts" },
        "spec": { "modelName": "shirts", "version": "shirts-1" },
        "status": {
            "epoch": 1, "proven": { "name": "shirts-2", "digest": digest(2) },
            "run": { "number": 1, "version": "shirts-3", "digest": digest(3), "stageHash": "h", "wave": 0, "waves": [],
                     "startedAt": "2026-01-01T00:00:00Z", "state": "Progressing", "message": "" },
        },
    });
    api.put(
        "/apis/fleetune.dev/v1alpha1/namespaces/shop/modelrollouts/shirts",
        rollout,
    );
    let placement = json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelPlacement",
        "metadata": { "name": "shop.shirts", "labels": { names::LABEL_NAMESPACE: "shop", names::LABEL_MODEL: "shirts" } },
        "spec": { "namespace": "shop", "modelName": "shirts", "epoch": 0, "minSuccessTime": "0s", "progressDeadline": "1m",
                  "maxInFlight": 1, "maxFailed": 0, "state": "Hold", "fallback": source(4) },
    });
    let path = "/apis/fleetune.dev/v1alpha1/namespaces/fleetune-dc-a/modelplacements/shop.shirts";
    api.put(path, placement);
    let left = left_after_a_pass(&api, config).await;
    assert_eq!(
        left,
        [
            "shirts-1", "shirts-2", "shirts-3", "shirts-4", "shirts-6", "shirts-7", "shirts-8", "shoes-1"
        ]
    );
}
