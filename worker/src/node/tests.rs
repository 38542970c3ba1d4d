//! The runtime in this process: a registry that speaks the protocol, real signatures, a real store; only the models are
//! fakes, told by their bytes how to behave.

use super::config::Config;
use super::runtime::{Models, Orders, Shared};
use super::selftest::{Bounds, Verdict};
use super::serve::{Serving, router};
use super::table::{Description, Predictor, Sample};
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
            image: false,
            input: TensorSpec {
                name: "window".into(),
                dtype: Dtype::Fp32,
                shape: vec![1, 1, 2],
            },
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

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_staged_tested_served_and_proven() {
    let site = Site::new().await;
    let models = Echoes::default();
    let one = site.publish("1").await;
    let node = site.start(&models, "b1", "boot");
    node.order(order(1, Some(&one), None, "300ms"));
    let state = node.until("active", |s| s.state == VersionState::Active).await;
    assert_eq!(
        (state.digest.as_ref(), state.active.as_ref()),
        (Some(&one.digest), Some(&one.digest))
    );
    assert_eq!(node.ask(), Ok(1.0));
    assert!(
        node.shared.journal(KEY).unwrap().trial.is_some(),
        "the trial mark stands while the soak lasts"
    );
    node.until("proven", |s| s.state == VersionState::Proven).await;
    assert!(node.shared.journal(KEY).unwrap().trial.is_none());
    assert_eq!(models.tests.load(Ordering::SeqCst), 1);
    // An older epoch is nobody's order.
    let two = site.publish("2").await;
    node.order(order(0, Some(&two), None, "0s"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(node.ask(), Ok(1.0));
    // Neither is an order to unload with the epoch that serves.
    let mut remove = order(1, None, None, "0s");
    node.order(remove.clone());
    remove.state = OrderState::Remove;
    node.order(remove.clone());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(node.ask(), Ok(1.0));
    remove.epoch = 2;
    node.order(remove);
    node.until("removed", |s| s.state == VersionState::Removed).await;
    assert_eq!(node.ask(), Err(()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(std::fs::read_dir(site.dir.path().join("layers")).unwrap().count(), 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_only_update_fetches_little_and_going_back_nothing() {
    let site = Site::new().await;
    let models = Echoes::default();
    let (one, two) = (site.publish("1").await, site.publish("2").await);
    let node = site.start(&models, "b1", "boot");
    let fetched = || node.shared.metrics.fetched.with_label_values(&[KEY]).get();
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let first = fetched();
    assert!(first > 1_000_000);
    node.order(order(2, Some(&two), Some(&one), "10s"));
    node.until("active", |s| s.active.as_ref() == Some(&two.digest)).await;
    let second = fetched() - first;
    assert!(second * 50 < first, "{second} of {first}");
    let (requests, start) = (site.fake.shelf.lock().unwrap().seen.len(), Instant::now());
    node.order(order(3, Some(&one), None, "10s"));
    node.until("back", |s| s.epoch == 3 && s.state == VersionState::Proven)
        .await;
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(node.ask(), Ok(1.0));
    assert_eq!(
        site.fake.shelf.lock().unwrap().seen.len(),
        requests,
        "nothing is asked of the registry"
    );
    assert_eq!(
        models.tests.load(Ordering::SeqCst),
        2,
        "what passed here need not pass again"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_versions_never_serve() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let large = r#"[{"class": "*", "maxBytes": "1k"}]"#;
    let other_report = Source {
        report: one.report.clone(),
        ..site.publish("4").await
    };
    let other_contract = Source {
        contract: Digest::of(b"other"),
        ..site.publish("5").await
    };
    let flipped = site.publish("6").await;
    {
        let mut shelf = site.fake.shelf.lock().unwrap();
        let manifest = crate::artifact::Manifest::parse(&shelf.manifests[flipped.digest.as_str()]).unwrap();
        shelf.blobs.get_mut(manifest.layers[1].digest.as_str()).unwrap()[600] ^= 1;
    }
    let cases = [
        (
            "another key",
            site.publish_as("2", 2, "shop", "[]").await,
            "SignatureInvalid",
        ),
        (
            "another namespace",
            site.publish_as("3", 1, "lab", "[]").await,
            "SignatureInvalid",
        ),
        ("another report", other_report, "SignatureInvalid"),
        ("changed bytes", flipped, "DigestMismatch"),
        ("another contract", other_contract, "ContractMismatch"),
        ("untrue outputs", site.publish(UNTRUE).await, "SelfTestFailed"),
        (
            "over its budget",
            site.publish_as("7", 1, "shop", large).await,
            "BudgetExceeded",
        ),
    ];
    for (epoch, (name, source, reason)) in (2..).zip(cases) {
        node.order(order(epoch, Some(&source), Some(&one), "0s"));
        let state = node
            .until(name, |s| s.epoch == epoch && s.state == VersionState::Failed)
            .await;
        assert_eq!(state.reason, reason, "{name}: {}", state.message);
        assert_eq!(state.active.as_ref(), Some(&one.digest), "{name}");
        assert_eq!(node.ask(), Ok(1.0), "{name}");
        // Asked again, it is refused without a look.
        let requests = site.fake.shelf.lock().unwrap().seen.len();
        node.order(order(epoch, Some(&source), None, "1s"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(site.fake.shelf.lock().unwrap().seen.len(), requests, "{name}");
        assert_eq!(node.ask(), Ok(1.0), "{name}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_skipped() {
    let site = Site::new().await;
    let mut one = site.publish("1").await;
    {
        let mut shelf = site.fake.shelf.lock().unwrap();
        let text = String::from_utf8(shelf.manifests[one.digest.as_str()].clone()).unwrap();
        let newer = text.replace(r#""fleetune.dev/format":"1""#, r#""fleetune.dev/format":"2""#);
        one.digest = Digest::of(newer.as_bytes());
        shelf.manifests.insert(one.digest.to_string(), newer.into_bytes());
    }
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    let state = node.until("skipped", |s| s.state == VersionState::Skipped).await;
    assert_eq!(state.reason, "UnsupportedFormat");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_a_version_is_skipped_and_what_serves_stays() {
    let site = Site::new().await;
    let (one, large) = (site.publish("1").await, site.publish(LARGE).await);
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    node.order(order(2, Some(&large), Some(&one), "0s"));
    let state = node.until("skipped", |s| s.state == VersionState::Skipped).await;
    assert_eq!(
        (state.reason.as_str(), state.active.as_ref()),
        ("BudgetExceeded", Some(&one.digest))
    );
    assert_eq!(node.ask(), Ok(1.0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_models_do_not_touch_each_other() {
    let site = Site::new().await;
    let (one, two) = (site.publish("1").await, site.publish("2").await);
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let before = node.state();
    // Signed for another model: refused there, no matter here.
    node.shared.orders.send_modify(|orders| {
        orders
            .models
            .insert("shop/coats".into(), order(1, Some(&two), None, "0s"));
    });
    let other = || node.shared.states.borrow().get("shop/coats").map(|state| state.state);
    while other() != Some(VersionState::Failed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut remove = order(2, None, None, "0s");
    remove.state = OrderState::Remove;
    node.shared.orders.send_modify(|orders| {
        orders.models.insert("shop/coats".into(), remove);
    });
    while other() != Some(VersionState::Removed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.state(), before);
    assert_eq!(node.ask(), Ok(1.0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_waited_for() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    for _ in 0..3 {
        site.fake.fail("/manifests/", Fault::Status(503));
    }
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    let state = node.until("trouble", |s| !s.reason.is_empty()).await;
    assert_eq!(
        (state.state, state.reason.as_str()),
        (VersionState::Staging, "RegistryUnavailable")
    );
    node.until("proven", |s| s.state == VersionState::Proven).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_ends_with_errors_or_latency() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let slow = r#"[{"class": "*", "maxP95Latency": "20ms"}]"#;
    for (epoch, source, reason) in [
        (2, site.publish(ERRS).await, "Errors"),
        (3, site.publish_as(SLOW, 1, "shop", slow).await, "Latency"),
    ] {
        node.order(order(epoch, Some(&source), Some(&one), "1h"));
        node.until("on trial", |s| s.active.as_ref() == Some(&source.digest))
            .await;
        for _ in 0..60 {
            let _ = node.ask();
            if node.state().unwrap().state == VersionState::Failed {
                break;
            }
            tokio::task::yield_now().await;
        }
        let state = node
            .until(reason, |s| {
                s.state == VersionState::Failed && s.active.as_ref() == Some(&one.digest)
            })
            .await;
        assert_eq!(state.reason, reason, "{}", state.message);
        node.serves(Some(&one)).await;
        assert_eq!(node.ask(), Ok(1.0));
        assert!(
            !site.dir.path().join("versions").join(source.digest.hex()).exists(),
            "it is never loaded again"
        );
    }
    // Without a fallback, what failed leaves nothing.
    let bad = site.publish_as(ERRS, 1, "shop", "[{\"class\": \"x\"}]").await;
    node.order(order(4, Some(&bad), None, "1h"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        node.state().unwrap().state,
        VersionState::Failed,
        "refused for ever, whatever its report says"
    );
    node.serves(Some(&one)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_start_it_serves_before_it_is_asked() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let models = Echoes::default();
    let node = site.start(&models, "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let before = node.state();
    node.kill().await;
    // Registry and API are gone.
    site.fake.shelf.lock().unwrap().manifests.clear();
    let requests = site.fake.shelf.lock().unwrap().seen.len();
    let node = site.start(&models, "b1", "another boot");
    node.serves(Some(&one)).await;
    assert_eq!(node.ask(), Ok(1.0));
    assert!(*node.shared.ready.borrow());
    assert_eq!(
        models.tests.load(Ordering::SeqCst),
        1,
        "the same build need not test again"
    );
    assert_eq!(node.state(), before, "nothing new to say");
    assert_eq!(site.fake.shelf.lock().unwrap().seen.len(), requests);
    node.stop().await;
    let node = site.start(&models, "b2", "another boot");
    node.serves(Some(&one)).await;
    assert_eq!(models.tests.load(Ordering::SeqCst), 2, "another build tests first");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_ends_the_process_is_caught_by_its_trial_mark() {
    let site = Site::new().await;
    let (one, two) = (site.publish("1").await, site.publish("2").await);
    let models = Echoes::default();
    let mut node = site.start(&models, "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let trial = order(2, Some(&two), Some(&one), "1h");
    node.order(trial.clone());
    node.until("on trial", |s| s.active.as_ref() == Some(&two.digest)).await;
    // A reboot and an orderly stop are not the version's fault.
    node.kill().await;
    node = site.start(&models, "b1", "second boot");
    node.serves(Some(&two)).await;
    node.stop().await;
    for _ in 0..crate::store::FORGIVEN_EXITS {
        node = site.start(&models, "b1", "second boot");
        node.serves(Some(&two)).await;
        node.kill().await;
    }
    node = site.start(&models, "b1", "second boot");
    node.serves(Some(&two)).await;
    node.kill().await;
    node = site.start(&models, "b1", "second boot");
    node.order(trial);
    let state = node
        .until("caught", |s| {
            s.state == VersionState::Failed && s.active.as_ref() == Some(&one.digest)
        })
        .await;
    assert_eq!(state.reason, "CrashLoop");
    assert_eq!(node.ask(), Ok(1.0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_runtime_serves_along_and_takes_over() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let models = Echoes::default();
    let old = site.start(&models, "b1", "boot");
    old.order(order(1, Some(&one), None, "0s"));
    old.until("proven", |s| s.state == VersionState::Proven).await;
    let new = site.start(&models, "b2", "boot");
    new.serves(Some(&one)).await;
    assert!(new.shared.ready.borrow().to_owned());
    assert!(!new.shared.locked.borrow().to_owned(), "the old one holds the lock");
    // What the old one switches to, the new one serves too.
    let two = site.publish("2").await;
    old.order(order(2, Some(&two), Some(&one), "0s"));
    new.serves(Some(&two)).await;
    old.stop().await;
    new.shared.locked.subscribe().wait_for(|locked| *locked).await.unwrap();
    new.until("goes on", |s| s.state == VersionState::Proven && s.epoch == 2)
        .await;
    assert_eq!(
        models.tests.load(Ordering::SeqCst),
        4,
        "each version once under each build"
    );
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_rot_are_fetched_again() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    node.stop().await;
    let file = site
        .dir
        .path()
        .join("versions")
        .join(one.digest.hex())
        .join("weights/tuned.bin");
    std::fs::write(file, "9").unwrap();
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.serves(Some(&one)).await;
    assert_eq!(node.ask(), Ok(1.0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn switches_lose_and_mix_no_answer() {
    let site = Site::new().await;
    let (one, two) = (site.publish("1").await, site.publish("2").await);
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let serving = Serving::new(
        node.shared.table.clone(),
        node.shared.metrics.clone(),
        node.shared.ready.subscribe(),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v2/models/shop.shirts/infer", listener.local_addr().unwrap());
    let server = tokio::spawn(async move { axum::serve(listener, router(serving)).await });
    let done = Arc::new(AtomicUsize::new(0));
    let asked = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (url, done, asked) = (url.clone(), done.clone(), asked.clone());
            let versions = [(one.digest.to_string(), 1.0), (two.digest.to_string(), 2.0)];
            tokio::spawn(async move {
                let client = reqwest::Client::new();
                let body =
                    r#"{"inputs": [{"name": "window", "datatype": "FP32", "shape": [2, 1, 2], "data": [1, 2, 3, 4]}]}"#;
                while done.load(Ordering::SeqCst) == 0 {
                    let answer = client.post(&url).body(body).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                    let text = answer.text().await.unwrap();
                    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let version = answer["model_version"].as_str().unwrap();
                    let value = versions.iter().find(|(digest, _)| digest == version).unwrap().1;
                    assert_eq!(answer["outputs"][0]["data"], serde_json::json!([value, value]), "mixed");
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for epoch in 2..12 {
        let source = if epoch % 2 == 0 { &two } else { &one };
        node.order(order(epoch, Some(source), None, "0s"));
        node.until("switched", |s| s.epoch == epoch && s.state == VersionState::Proven)
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    done.store(1, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    assert!(asked.load(Ordering::SeqCst) > 100);
    server.abort();
    node.stop().await;
}
