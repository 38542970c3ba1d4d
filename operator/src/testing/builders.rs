//! Objects for tests, as short as they can be.

use crate::config::HubConfig;
use crate::runtime::events::Events;
use crate::runtime::health::Health;
use crate::runtime::metrics::Metrics;
use crate::runtime::{Clock, Context, Shutdown};
use crate::testing::mock_api::MockApi;
use fleetune_crds::FineTuneJob;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A clock that a test moves, in seconds since the epoch.
#[derive(Clone, Default)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    /// Moves the clock forward.
    pub fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }

    /// The time it shows; never a whole second, like a real clock.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::SeqCst) * 1000 + 123).unwrap()
    }

    /// The same as a clock for a context.
    pub fn clock(&self) -> Clock {
        let this = self.clone();
        Clock::from_fn(move || this.now())
    }
}

/// A context over a server in memory, for a process in the namespace `fleetune-system`.
pub fn context<C>(api: &MockApi, clock: &TestClock, config: C) -> Context<C> {
    // Any HTTP client asks for a TLS provider, even one that speaks plain HTTP; a second install is no harm here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = api.client("fleetune-system");
    Context {
        events: Events::new(client.clone(), "test", "pod-0"),
        client,
        config: Arc::new(config),
        namespace: "fleetune-system".into(),
        pod: "pod-0".into(),
        clock: clock.clock(),
        metrics: Arc::new(Metrics::new().unwrap()),
        health: Health::default(),
        shutdown: Shutdown::default(),
    }
}

/// A hub's configuration with one signing key for the namespace `shop`.
pub fn hub_config() -> HubConfig {
    let text = "workerImage: registry.test/worker@sha256:0\n\
                workerResources: {limits: {memory: 1Gi}}\n\
                insecureRegistries: ['registry.test:5000']\n\
                signingKeys: [{name: main, secret: signing-main, namespaces: [shop]}]\n\
                defaultSigningKey: main\n\
                publishPushSecret: push\n\
                hub: {url: 'https://hub.test:6443', caBundle: CA}";
    serde_yaml::from_str(text).unwrap()
}

/// The job `shop/shirts-1` of the model `shirts`.
pub fn finetune_job() -> FineTuneJob {
    serde_json::from_value(json!({
        "apiVersion": "fleetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": { "name": "shirts-1", "namespace": "shop", "uid": "job-uid", "generation": 1 },
        "spec": {
            "modelName": "shirts",
            "task": "Classification",
            "baseModel": { "uri": "s3://models/base.onnx", "sha256": "9".repeat(64) },
            "input": { "image": { "size": 224 } },
            "dataset": { "uri": "s3://data/shirts.tar" },
            "evaluation": { "gates": [{ "metric": "macroF1", "min": "0.80" }] },
            "output": { "repository": "registry.test:5000/models/shirts" },
        },
    }))
    .unwrap()
}
