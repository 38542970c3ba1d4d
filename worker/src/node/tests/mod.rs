//! The runtime in this process: a registry that speaks the protocol, real signatures, a real store; only the models are
//! fakes, told by their bytes how to behave.

mod starts;
mod switches;
mod versions;

use super::config::Config;
use super::runtime::{Models, Orders, Shared};
use super::selftest::{Bounds, Verdict};
use super::serve::{Serving, router};
use super::table::{Description, Predictor, RawKind, Sample};
use crate::error::{NOT_FINITE, Result, WorkerError};
use crate::pipeline::{Dtype, Prepared, TensorSpec};
use crate::registry::fake::{Fake, Fault};
use crate::registry::tests::version;
use crate::sign::{Claim, hash_files};
use crate::version::Answer;
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelOrder, ModelState, OrderState, Source, Task, VersionState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const KEY: &str = "shop/shirts";

/// Answers with the number in its tuned weights; some numbers have manners of their own.
struct Echo {
    value: f32,
}

/// Fails on real input.
const ERRS: &str = "-1";
/// Is too slow on real input.
const SLOW: &str = "-2";
/// Fails its self-test.
const UNTRUE: &str = "-3";
/// Finds no room for its self-test.
const LARGE: &str = "-4";

impl Predictor for Echo {
    fn description(&self) -> Description {
        Description {
            task: Task::Regression,
            raw: RawKind::Window,
            inputs: vec![TensorSpec {
                name: "window".into(),
                dtype: Dtype::Fp32,
                shape: vec![1, 1, 2],
            }],
            labels: 0,
        }
    }

    fn prepare(&self, sample: Sample) -> Result<Prepared> {
        match sample {
            Sample::Window(values) => Prepared::window(1, 2, values),
            _ => Err(WorkerError::bad("InvalidSample", "a window")),
        }
    }

    fn answer(&self, _: &Prepared) -> Result<Answer> {
        if (self.value + 1.0).abs() < f32::EPSILON {
            return Err(WorkerError::bad(NOT_FINITE, "as told"));
        }
        let pause = if (self.value + 2.0).abs() < f32::EPSILON { 30 } else { 3 };
        std::thread::sleep(Duration::from_millis(pause));
        Ok(Answer {
            probabilities: Vec::new(),
            label: None,
            value: Some(self.value),
        })
    }
}

#[derive(Clone, Default)]
struct Echoes {
    tests: Arc<AtomicUsize>,
}

fn contract() -> Digest {
    Digest::of(b"contract")
}

impl Models for Echoes {
    fn open(&self, dir: &Path) -> Result<(Digest, Arc<dyn Predictor>)> {
        let text = std::fs::read_to_string(dir.join("weights/tuned.bin")).unwrap();
        let value = text.trim().parse().unwrap();
        Ok((contract(), Arc::new(Echo { value })))
    }

    async fn self_test(&self, dir: &Path, _: &Bounds) -> Verdict {
        self.tests.fetch_add(1, Ordering::SeqCst);
        let text = std::fs::read_to_string(dir.join("weights/tuned.bin")).unwrap();
        if text == UNTRUE {
            return Verdict::Failed {
                reason: "SelfTestFailed",
                message: "as told".into(),
            };
        }
        if text == LARGE {
            return Verdict::Skipped {
                reason: "BudgetExceeded",
                message: "as told".into(),
            };
        }
        Verdict::Passed
    }
}

/// A registry and what is needed to publish to it.
struct Site {
    fake: Fake,
    dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        Self {
            fake: Fake::start().await,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    async fn publish_as(&self, value: &str, signer: u8, namespace: &str, budget: &str) -> Source {
        let registry = self.fake.client();
        let repository = self.fake.repository();
        let dir = tempfile::tempdir().unwrap();
        version(&dir.path().join("v"), value.as_bytes());
        let report = format!(r#"{{"selfTest": {{"tolerance": 0.001}}, "budget": {budget}}}"#);
        std::fs::write(dir.path().join("report.json"), report).unwrap();
        let digest = registry
            .push_candidate(&repository, &dir.path().join("v"))
            .await
            .unwrap();
        let report = registry.push_report(&repository, &digest, dir.path()).await.unwrap();
        let claim = Claim {
            namespace: namespace.into(),
            model_name: "shirts".into(),
            candidate: digest.clone(),
            report: report.clone(),
        };
        let files = hash_files(&dir.path().join("v")).unwrap();
        let bundle = crate::sign::tests::signer(signer).sign(&claim, &files).unwrap();
        let signature = registry.push_signature(&repository, &digest, &bundle).await.unwrap();
        Source {
            repository,
            digest,
            report,
            signature,
            contract: contract(),
        }
    }

    async fn publish(&self, value: &str) -> Source {
        self.publish_as(value, 1, "shop", "[]").await
    }

    /// A runtime over this site's store, as after a start of the process.
    fn start(&self, models: &Echoes, build: &str, boot: &str) -> Node {
        let mut config: Config = serde_yaml::from_str("{}").unwrap();
        config.store = self.dir.path().to_owned();
        config.keys = vec![super::config::Key {
            name: "k".into(),
            public_key: crate::sign::tests::signer(1).public_pem().unwrap(),
            namespaces: vec!["shop".into()],
        }];
        let shared = Shared::new(config, self.fake.client(), models.clone(), build, boot).unwrap();
        let task = tokio::spawn(shared.clone().run());
        Node { shared, task }
    }
}

struct Node {
    shared: Arc<Shared<Echoes>>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Node {
    fn order(&self, order: ModelOrder) {
        self.shared.orders.send_modify(|orders: &mut Orders| {
            orders.models.insert(KEY.into(), order);
        });
    }

    fn state(&self) -> Option<ModelState> {
        self.shared.states.borrow().get(KEY).cloned()
    }

    async fn until(&self, what: &str, done: impl Fn(&ModelState) -> bool) -> ModelState {
        let start = Instant::now();
        loop {
            if let Some(state) = self.state().filter(&done) {
                return state;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{what}: {:?}", self.state());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn serves(&self, source: Option<&Source>) {
        let start = Instant::now();
        loop {
            let serving = self.shared.table.get(KEY).map(|served| served.digest.clone());
            if serving.as_ref() == source.map(|source| &source.digest) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "serves {serving:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn ask(&self) -> std::result::Result<f32, ()> {
        let served = self.shared.table.get(KEY).ok_or(())?;
        served
            .infer(Sample::Window(vec![1.0, 2.0]))
            .map(|answer| answer.value.unwrap())
            .map_err(|_| ())
    }

    /// An end without warning: nothing is written any more.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        // The lock goes with the process; here with the last task that holds it.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    async fn stop(self) {
        self.shared.stopping.send_replace(true);
        self.task.await.unwrap().unwrap();
    }
}

fn order(epoch: i64, source: Option<&Source>, fallback: Option<&Source>, soak: &str) -> ModelOrder {
    ModelOrder {
        epoch,
        run: 1,
        source: source.cloned(),
        fallback: fallback.cloned(),
        min_success_time: soak.parse().unwrap(),
        progress_deadline: "10m".parse().unwrap(),
        picked_at: Time(Timestamp::from_second(0).unwrap()),
        state: OrderState::Serve,
    }
}

/// Waits until it is so.
async fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
