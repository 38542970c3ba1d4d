//! The CustomResourceDefinitions against a real API server: that it takes them, that it refuses bad specs with a message
//! that names the field, and that it takes the short manifests of the README.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test may end it.
#![allow(clippy::too_many_lines)] // A table is long.

use anyhow::Result;
use fleetune_tests::lab::ApiServer;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::sync::Mutex;

const NAMESPACE: &str = "shop";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Server {
    _api: ApiServer,
    client: kube::Client,
    /// Everything that was not as it should be, so that one run shows all of it.
    problems: Mutex<Vec<String>>,
}

impl Server {
    async fn start() -> Result<Self> {
        let server = ApiServer::start().await?;
        let client = server.client().await?;
        server.install_crds().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces
            .create(
                &PostParams::default(),
                &serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?,
            )
            .await?;
        Ok(Self {
            _api: server,
            client,
            problems: Mutex::default(),
        })
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let kind = object["kind"].as_str().unwrap();
        let resource = ApiResource {
            group: "fleetune.dev".into(),
            version: "v1alpha1".into(),
            api_version: "fleetune.dev/v1alpha1".into(),
            kind: kind.into(),
            plural: format!("{}s", kind.to_lowercase()),
        };
        match kind {
            "DeviceCluster" | "EdgeNode" => Api::all_with(self.client.clone(), &resource),
            _ => Api::namespaced_with(self.client.clone(), NAMESPACE, &resource),
        }
    }

    /// What `kubectl apply` does: create, or a merge patch of what is there.
    async fn apply(&self, object: &Value) -> Result<(), kube::Error> {
        let name = object["metadata"]["name"].as_str().unwrap();
        let api = self.api(object);
        let typed: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        match api.create(&PostParams::default(), &typed).await {
            Err(kube::Error::Api(status)) if status.code == 409 => api
                .patch(name, &PatchParams::default(), &Patch::Merge(object))
                .await
                .map(|_| ()),
            other => other.map(|_| ()),
        }
    }

    fn problem(&self, text: String) {
        self.problems.lock().unwrap().push(text);
    }

    async fn accept(&self, object: &Value) {
        if let Err(error) = self.apply(object).await {
            self.problem(format!("refused, and should not be: {error}\n{object}"));
        }
    }

    /// The server must refuse, and say why in words that hold `message`.
    async fn refuse(&self, what: &str, object: &Value, message: &str) {
        match self.apply(object).await {
            Ok(()) => self.problem(format!("{what}: accepted\n{object}")),
            Err(kube::Error::Api(status)) if status.code == 422 => {
                if !status.message.contains(message) {
                    self.problem(format!("{what}: {:?} lacks {message:?}", status.message));
                }
            }
            Err(other) => self.problem(format!("{what}: {other}")),
        }
    }

    async fn set_status(&self, object: &Value, status: Value) {
        let mut body = object.clone();
        body.as_object_mut().unwrap().remove("spec");
        body["status"] = status;
        let name = object["metadata"]["name"].as_str().unwrap();
        let params = PatchParams::apply("test").force();
        self.api(object)
            .patch_status(name, &params, &Patch::Apply(&body))
            .await
            .unwrap();
    }
}

/// `base` with the field at `pointer` set to `value`; the parents are made.
fn with(base: &Value, pointer: &str, value: Value) -> Value {
    let mut object = base.clone();
    let mut at = &mut object;
    for key in pointer.split('/').skip(1) {
        at = match key.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[key],
        };
    }
    *at = value;
    object
}

fn without(base: &Value, parent: &str, key: &str) -> Value {
    let mut object = base.clone();
    object.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
    object
}

fn job() -> Value {
    let text = format!(
        r#"
apiVersion: fleetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: shirts-1, namespace: shop}}
spec:
  modelName: shirts
  task: Classification
  baseModel: {{uri: "s3://models/efficientnet-lite0.onnx", sha256: {}}}
  input: {{image: {{size: 224}}}}
  dataset: {{uri: "s3://data/shirts.tar"}}
  evaluation: {{gates: [{{metric: macroF1, min: "0.80"}}]}}
  output: {{repository: "registry.lab:5000/models/shirts"}}
"#,
        "9f2c".repeat(16)
    );
    serde_yaml::from_str(&text).unwrap()
}

fn rollout() -> Value {
    let text = r#"
apiVersion: fleetune.dev/v1alpha1
kind: ModelRollout
metadata: {name: shirts, namespace: shop}
spec:
  modelName: shirts
  follow: LatestPassing
  targets: {clusters: {matchLabels: {site: shop}}}
  strategy:
    stages:
      - {name: canary, nodes: 1, minSuccessTime: 10m}
      - {name: tenth, nodes: "10%", minSuccessTime: 1h}
      - {name: all, nodes: "100%"}
"#;
    serde_yaml::from_str(text).unwrap()
}

fn source() -> Value {
    json!({"repository": "registry.lab:5000/models/shirts", "digest": DIGEST, "report": DIGEST, "signature": DIGEST,
        "contract": DIGEST})
}

fn placement() -> Value {
    json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelPlacement",
        "metadata": {"name": "shop.shirts", "namespace": NAMESPACE},
        "spec": {"namespace": "shop", "modelName": "shirts", "epoch": 5, "run": 1, "source": source(),
            "classes": {"amd64": {"activate": 1}}, "minSuccessTime": "10s", "progressDeadline": "10m",
            "maxInFlight": 1, "maxFailed": 0, "state": "Run"}
    })
}

fn edge_node() -> Value {
    json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "EdgeNode", "metadata": {"name": "edge-a-1"},
        "spec": {"class": "amd64", "models": {"shop/shirts": {"epoch": 5, "run": 1, "source": source(),
            "minSuccessTime": "10s", "progressDeadline": "10m", "pickedAt": "2026-01-01T00:00:00Z", "state": "Serve"}}}
    })
}

fn version() -> Value {
    json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelVersion",
        "metadata": {"name": "shirts-0123456789ab", "namespace": NAMESPACE},
        "spec": {"modelName": "shirts", "sequence": 1, "task": "Classification", "source": source(),
            "summary": {"samples": 300, "metrics": {"macroF1": "0.85"}, "baseline": "grey-linear", "baselineMetrics": {"macroF1": "0.7"},
                "bytes": 18_000_000, "p95LatencyMs": "12.5", "peakMemoryBytes": 60_000_000, "contract": DIGEST},
            "dataManifest": DIGEST, "baseModelSha256": "9f2c".repeat(16), "job": "shirts-1",
            "publishedAt": "2026-01-01T00:00:00Z"}
    })
}

fn action() -> Value {
    json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "RolloutAction",
        "metadata": {"name": "approve-1", "namespace": NAMESPACE},
        "spec": {"rollout": "shirts", "run": 1, "stageHash": "abc", "action": "Approve", "stage": "tenth", "by": "kim"}
    })
}

fn cluster() -> Value {
    json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster", "metadata": {"name": "edge-a"},
        "spec": {"mode": "Pull"}
    })
}

/// One server for the whole file: its start costs more than all the requests together.
#[tokio::test]
async fn the_server_enforces_the_api() -> Result<()> {
    let server = Server::start().await?;
    good_specs(&server).await;
    bad_jobs(&server).await;
    bad_rollouts(&server).await;
    bad_other_kinds(&server).await;
    immutable_fields(&server).await;
    epochs(&server).await;
    let problems = server.problems.into_inner()?;
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n\n")
    );
    Ok(())
}

async fn good_specs(server: &Server) {
    for object in [
        job(),
        rollout(),
        placement(),
        edge_node(),
        version(),
        action(),
        cluster(),
    ] {
        server.accept(&object).await;
    }
    let sensor = json!({"apiVersion": "fleetune.dev/v1alpha1", "kind": "FineTuneJob",
        "metadata": {"name": "vibration-1", "namespace": NAMESPACE},
        "spec": {"modelName": "vibration", "task": "Regression",
            "baseModel": {"uri": "https://models.lab/encoder.onnx", "sha256": "0a".repeat(32)},
            "input": {"sensor": {"window": 500, "channels": 3, "stride": 250}},
            "dataset": {"uri": "pvc://data/fordb.parquet", "format": "Series",
                "columns": {"label": "y", "group": "machine", "time": "t", "values": ["x", "y", "z"]},
                "split": {"by": "Group", "fractions": {"train": "0.6", "validation": "0.2", "test": "0.2"}, "seed": 7},
                "requirements": {"minPerClass": 10, "maxBadFraction": "0.01", "maxBytes": "1Gi"}},
            "train": {"head": {"layers": [64, 32], "activation": "Tanh", "dropout": "0.1"}, "loss": "MeanSquaredError",
                "optimizer": {"name": "Sgd", "learningRate": "0.05", "momentum": "0.9", "weightDecay": "0.0001"},
                "epochs": 50, "batchSize": 16, "earlyStopping": {"patience": 5}, "seed": 1},
            "evaluation": {"objective": "mae", "gates": [{"metric": "mae", "max": "0.5"}, {"metric": "r2", "min": "0.7"}],
                "minSamples": 50},
            "budget": [{"class": "*", "maxBytes": "20Mi", "maxPeakMemory": "256Mi", "maxP95Latency": "50ms"}],
            "output": {"repository": "registry.lab:5000/models/vibration", "signingKey": "team"},
            "worker": {"resources": {"limits": {"memory": "1Gi"}}},
            "activeDeadline": "2h", "backoffLimit": 1, "ttlAfterFinished": "24h"}});
    server.accept(&sensor).await;
    for (number, train) in deep_trainings().into_iter().enumerate() {
        // Each its own object: an apply leaves the fields of the one before as they are.
        let sensor = with(&sensor, "/metadata/name", json!(format!("deep-{number}")));
        server.accept(&with(&sensor, "/spec/train", train)).await;
    }
    let pinned = json!({"apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelRollout",
        "metadata": {"name": "vibration", "namespace": NAMESPACE},
        "spec": {"modelName": "vibration", "version": "vibration-0123456789ab", "deletionPolicy": "Remove", "paused": true,
            "strategy": {"stages": [{"name": "all", "nodes": "100%", "approval": true}], "maxUnavailable": 2,
                "maxFailures": 1, "progressDeadline": "5m", "quorum": "100%", "onFailure": "Pause"}}});
    server.accept(&pinned).await;
    // Defaults are the server's: a spec as short as this one works.
    let shortest = json!({"apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelRollout",
        "metadata": {"name": "shortest", "namespace": NAMESPACE},
        "spec": {"modelName": "shirts", "follow": "LatestPassing"}});
    server.accept(&shortest).await;
    let push = with(
        &with(&cluster(), "/metadata/name", json!("edge-b")),
        "/spec",
        json!({"mode": "Push",
        "kubeconfigSecret": "edge-b", "allowedNamespaces": ["shop"]}),
    );
    server.accept(&push).await;
}

/// One of each method, with the fields that go with it.
fn deep_trainings() -> [Value; 4] {
    [
        json!({"method": "LastLayers", "lastLayers": {"count": 2}, "loss": "Huber", "huberDelta": "0.5", "clipNorm": "1",
            "augmentation": {"copies": 2, "sensor": {"jitter": "0.1", "scale": "0.2", "shift": 5}}}),
        json!({"method": "Full", "loss": "MeanAbsoluteError", "schedule": {"name": "OneCycle"},
            "augmentation": {"sensor": {"jitter": "0.1"}}}),
        json!({"method": "Lora", "schedule": {"name": "Cosine", "warmUp": "5%"}}),
        json!({"method": "Lora", "lora": {"rank": 4, "alpha": "16", "targets": ["*query*"]},
            "optimizer": {"name": "Sgd", "nesterov": true},
            "schedule": {"name": "Step", "every": 3, "factor": "0.5", "warmUp": "100"}}),
    ]
}

async fn bad_jobs(server: &Server) {
    let base = with(&job(), "/metadata/name", json!("bad"));
    let fractions = |a: &str, b: &str, c: &str| json!({"train": a, "validation": b, "test": c});
    #[rustfmt::skip] // One case a line.
    let cases = [
        ("fractions above 1", "/spec/dataset/split/fractions", fractions("0.7", "0.2", "0.2"), "must add up to 1"),
        ("fractions below 1", "/spec/dataset/split/fractions", fractions("0.5", "0.2", "0.2"), "must add up to 1"),
        ("an empty share", "/spec/dataset/split/fractions", fractions("0.8", "0.2", "0"), "above 0"),
        ("zero epochs", "/spec/train/epochs", json!(0), "spec.train.epochs"),
        ("a batch of nothing", "/spec/train/batchSize", json!(0), "spec.train.batchSize"),
        ("an unknown metric", "/spec/evaluation/gates/0/metric", json!("auc"), "spec.evaluation.gates[0].metric"),
        ("a metric of the other task", "/spec/evaluation/gates/0/metric", json!("mse"), "belong to Regression"),
        ("a gate without a bound", "/spec/evaluation/gates", json!([{"metric": "accuracy"}]), "needs min, max"),
        ("the same gate twice", "/spec/evaluation/gates", json!([{"metric": "accuracy", "min": "0.5"}, {"metric": "accuracy", "max": "0.9"}]), "Duplicate value"),
        ("a bound that is no decimal", "/spec/evaluation/gates/0/min", json!("much"), "spec.evaluation.gates[0].min"),
        ("image and sensor", "/spec/input/sensor", json!({"window": 100}), "exactly one of image, sensor and text"),
        ("image and text", "/spec/input/text", json!({"tokenizer": {"uri": "s3://m/tokenizer.json", "sha256": "0".repeat(64)}}), "exactly one of image, sensor and text"),
        ("no input", "/spec/input", json!({}), "exactly one of image, sensor and text"),
        ("a text without a tokenizer", "/spec/input", json!({"text": {}}), "spec.input.text.tokenizer"),
        ("a text of no tokens", "/spec/input", json!({"text": {"maxTokens": 3, "tokenizer": {"uri": "s3://m/tokenizer.json", "sha256": "0".repeat(64)}}}), "spec.input.text.maxTokens"),
        ("a tokenizer with a short sha256", "/spec/input", json!({"text": {"tokenizer": {"uri": "s3://m/tokenizer.json", "sha256": "9f2c"}}}), "spec.input.text.tokenizer.sha256"),
        ("an unknown task", "/spec/task", json!("Ranking"), "spec.task"),
        ("a loss of the other task", "/spec/train/loss", json!("MeanSquaredError"), "CrossEntropy or BinaryCrossEntropy"),
        ("an unknown method", "/spec/train", json!({"method": "Prompt"}), "spec.train.method"),
        ("last layers without a count", "/spec/train", json!({"method": "LastLayers"}), "train.lastLayers"),
        ("a count of another method", "/spec/train", json!({"lastLayers": {"count": 1}}), "train.lastLayers"),
        ("no layers", "/spec/train", json!({"method": "LastLayers", "lastLayers": {"count": 0}}), "spec.train.lastLayers.count"),
        ("adapters of another method", "/spec/train", json!({"method": "Full", "lora": {}}), "train.lora"),
        ("a rank of 65", "/spec/train", json!({"method": "Lora", "lora": {"rank": 65}}), "spec.train.lora.rank"),
        ("smoothing of another loss", "/spec/train", json!({"loss": "BinaryCrossEntropy", "labelSmoothing": "0.1"}), "train.labelSmoothing"),
        ("a smoothing of 1", "/spec/train", json!({"labelSmoothing": "1"}), "spec.train.labelSmoothing"),
        ("a delta of another loss", "/spec/train", json!({"huberDelta": "1"}), "train.huberDelta"),
        ("AdamW that looks ahead", "/spec/train", json!({"optimizer": {"nesterov": true}}), "train.optimizer.nesterov"),
        ("a factor of another schedule", "/spec/train", json!({"schedule": {"name": "Cosine", "factor": "0.5"}}), "train.schedule"),
        ("a factor of 2", "/spec/train", json!({"schedule": {"name": "Step", "factor": "2"}}), "spec.train.schedule.factor"),
        ("variants of a frozen part", "/spec/train", json!({"augmentation": {"image": {"flip": true}}}), "train.augmentation.copies"),
        ("variants of another input", "/spec/train", json!({"method": "Full", "augmentation": {"sensor": {"jitter": "0.1"}}}), "train.augmentation"),
        ("variants of two kinds", "/spec/train", json!({"method": "Full", "augmentation": {"image": {}, "sensor": {}}}), "exactly one of image and sensor"),
        ("a claim with a slash", "/spec/worker", json!({"volumeClaim": "a/b"}), "spec.worker.volumeClaim"),
        ("a model's name with a dot", "/spec/modelName", json!("a.b"), "spec.modelName"),
        ("a short sha256", "/spec/baseModel/sha256", json!("9f2c"), "spec.baseModel.sha256"),
        ("a repository with a tag", "/spec/output/repository", json!("r.lab:5000/a:v1"), "spec.output.repository"),
        ("the same class twice", "/spec/budget", json!([{"class": "*", "maxBytes": "1Mi"}, {"class": "*", "maxBytes": "2Mi"}]), "Duplicate value"),
        ("a duration without a unit", "/spec/activeDeadline", json!("10"), "spec.activeDeadline"),
        ("an empty duration", "/spec/activeDeadline", json!(""), "spec.activeDeadline"),
        ("a dropout of 1", "/spec/train/head/dropout", json!("1"), "spec.train.head.dropout"),
        ("a layer of nothing", "/spec/train/head/layers", json!([0]), "spec.train.head.layers[0]"),
        ("a name too long for pods", "/metadata/name", json!("n".repeat(60)), "at most 52 characters"),
    ];
    for (what, pointer, value, message) in cases {
        server.refuse(what, &with(&base, pointer, value), message).await;
    }
    for field in ["baseModel", "input", "dataset", "output", "modelName", "task"] {
        let what = format!("no {field}");
        server
            .refuse(&what, &without(&base, "/spec", field), &format!("spec.{field}"))
            .await;
    }
}

async fn bad_rollouts(server: &Server) {
    let base = with(&rollout(), "/metadata/name", json!("bad"));
    #[rustfmt::skip] // One case a line.
    let cases = [
        ("both version and follow", "/spec/version", json!("shirts-0123456789ab"), "exactly one of version and follow"),
        ("the same stage twice", "/spec/strategy/stages/1/name", json!("canary"), "Duplicate value"),
        ("percent over 100", "/spec/strategy/stages/1/nodes", json!("101%"), "spec.strategy.stages[1].nodes"),
        ("a negative count", "/spec/strategy/stages/1/nodes", json!(-1), "spec.strategy.stages[1].nodes"),
        ("no stages", "/spec/strategy/stages", json!([]), "spec.strategy.stages"),
        ("a quorum of 0", "/spec/strategy/quorum", json!("0%"), "spec.strategy.quorum"),
        ("a quorum over 100", "/spec/strategy/quorum", json!("120%"), "spec.strategy.quorum"),
        ("maxUnavailable over 100", "/spec/strategy/maxUnavailable", json!("200%"), "spec.strategy.maxUnavailable"),
        ("negative failures", "/spec/strategy/maxFailures", json!(-1), "spec.strategy.maxFailures"),
        ("a soak that is no duration", "/spec/strategy/stages/0/minSuccessTime", json!("soon"), "minSuccessTime"),
        ("an unknown policy", "/spec/strategy/onFailure", json!("Retry"), "spec.strategy.onFailure"),
    ];
    for (what, pointer, value, message) in cases {
        server.refuse(what, &with(&base, pointer, value), message).await;
    }
    server
        .refuse(
            "neither version nor follow",
            &without(&base, "/spec", "follow"),
            "exactly one of version and follow",
        )
        .await;
}

async fn bad_other_kinds(server: &Server) {
    let name = |object: Value| with(&object, "/metadata/name", json!("bad"));
    let push = name(with(&cluster(), "/spec/mode", json!("Push")));
    server.refuse("Push without a Secret", &push, "kubeconfigSecret").await;
    let pull = name(with(&cluster(), "/spec/kubeconfigSecret", json!("edge-a")));
    server.refuse("Pull with a Secret", &pull, "kubeconfigSecret").await;
    let long = with(&cluster(), "/metadata/name", json!("c".repeat(52)));
    server
        .refuse("a cluster's name too long", &long, "at most 51 characters")
        .await;
    let approve = name(without(&action(), "/spec", "stage"));
    server
        .refuse("an Approve of no stage", &approve, "names the stage")
        .await;
    let reject = name(with(&action(), "/spec/action", json!("Reject")));
    server.refuse("an unknown action", &reject, "spec.action").await;
    let digest = name(with(&placement(), "/spec/source/digest", json!("latest")));
    server.refuse("a tag for a digest", &digest, "spec.source.digest").await;
}

async fn immutable_fields(server: &Server) {
    // Before the start a job may change, after it no more, but for what holds it or ends it.
    let epochs = with(&job(), "/spec/train/epochs", json!(30));
    server.accept(&epochs).await;
    server
        .set_status(&epochs, json!({"startedAt": "2026-01-01T00:00:00Z"}))
        .await;
    for (what, pointer, value) in [
        ("epochs", "/spec/train/epochs", json!(40)),
        ("the data set", "/spec/dataset/uri", json!("s3://data/other.tar")),
        ("the base model", "/spec/baseModel/sha256", json!("00".repeat(32))),
        ("a gate", "/spec/evaluation/gates/0/min", json!("0.10")),
        (
            "the repository",
            "/spec/output/repository",
            json!("registry.lab:5000/models/other"),
        ),
        ("the budget", "/spec/budget", json!([{"class": "*", "maxBytes": "1Mi"}])),
        ("the worker", "/spec/worker/image", json!("registry.lab:5000/mine:1")),
    ] {
        let what = format!("a started job's change of {what}");
        server
            .refuse(&what, &with(&epochs, pointer, value), "a started job is immutable")
            .await;
    }
    let held = with(
        &with(&epochs, "/spec/suspend", json!(true)),
        "/spec/activeDeadline",
        json!("1h"),
    );
    server.accept(&with(&held, "/spec/ttlAfterFinished", json!("1h"))).await;

    let moved = with(&rollout(), "/spec/modelName", json!("trousers"));
    server
        .refuse("a rollout's model", &moved, "modelName is immutable")
        .await;
    let other = with(&version(), "/spec/sequence", json!(2));
    server.refuse("a version", &other, "a version is immutable").await;
    let other = with(&action(), "/spec/action", json!("Abort"));
    server.refuse("an action", &other, "an action is immutable").await;
    let other = with(&placement(), "/spec/modelName", json!("trousers"));
    server
        .refuse("a placement's model", &other, "a placement's model is immutable")
        .await;
}

async fn epochs(server: &Server) {
    server
        .refuse(
            "a lower epoch",
            &with(&placement(), "/spec/epoch", json!(4)),
            "epochs only grow",
        )
        .await;
    server.accept(&with(&placement(), "/spec/epoch", json!(6))).await;
    let lower = |epoch: i64| {
        let mut node = edge_node();
        node["spec"]["models"]["shop/shirts"]["epoch"] = json!(epoch);
        node
    };
    server
        .refuse("a lower epoch on a node", &lower(4), "epochs only grow")
        .await;
    server.accept(&lower(5)).await;
    server.accept(&lower(6)).await;
    // A status is not a way around it, and a key that goes away is no error.
    server.accept(&with(&lower(6), "/spec/models", json!({}))).await;
}
