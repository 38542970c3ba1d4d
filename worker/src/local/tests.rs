//! Whole jobs on tiny models: data and base model in, version and report out.

mod texts;

use super::*;
use crate::data::testing::{job_text, pictures, tar_of};
use crate::engine::testing::{encoded, picture_model, window_model};
use crate::error::{DATA_CHANGED, EXTERNAL_DATA, INVALID_VERSION, NOT_ONNX};
use crate::pipeline::Raw;
use crate::pipeline::testing::tiny_tokenizer;
use crate::version::Version;
use crate::{report, selftest, version};
use std::fmt::Write;
use std::sync::mpsc;

pub(super) struct Files {
    pub(super) folder: tempfile::TempDir,
    pub(super) job: Job,
}

pub(super) fn files(
    task: &str,
    input: &str,
    dataset: &str,
    model: &crate::engine::pb::ModelProto,
    data: &[u8],
    more: &str,
) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, hash) = encoded(model);
    std::fs::write(folder.path().join("model.onnx"), bytes).unwrap();
    std::fs::write(folder.path().join("data"), data).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tiny_tokenizer()).unwrap();
    let place = |name: &str| format!("file://{}", folder.path().join(name).display());
    let text = job_text(task, input, &format!("{{uri: 'DATA'{dataset}}}"), &hash, more)
        .replace("file:///model.onnx", &place("model.onnx"))
        .replace("file:///tokenizer.json", &place("tokenizer.json"))
        .replace("DATA", &place("data"));
    Files {
        job: Job::parse(&text).unwrap(),
        folder,
    }
}

fn picture_files(more: &str) -> Files {
    let pictures = pictures(60);
    let list: Vec<(&str, &[u8])> = pictures.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    files(
        "Classification",
        "{image: {size: 16}}",
        "",
        &picture_model(),
        &tar_of(&list),
        &format!("  train: {{epochs: 40, batchSize: 8, optimizer: {{learningRate: '0.01'}}{more}}}\n"),
    )
}

fn window_files(task: &str, target: impl Fn(&[f32]) -> String, more: &str) -> Files {
    let mut text = "label".to_owned();
    for i in 0..16 {
        let _ = write!(text, ",v{i}");
    }
    for row in 0..300u32 {
        let values: Vec<f32> = (0..16)
            .map(|i| ((row * 37 + i * i * (row % 11) + row * row * i) % 199) as f32 / 100.0 - 1.0)
            .collect();
        let _ = write!(text, "\n{}", target(&values));
        for v in values {
            let _ = write!(text, ",{v}");
        }
    }
    files(
        task,
        "{sensor: {window: 8, channels: 2}}",
        "",
        &window_model(),
        text.as_bytes(),
        more,
    )
}

/// Runs a job on so many threads.
fn run_on(threads: usize, files: &Files, out: &str) -> Result<Local> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (sender, receiver) = mpsc::channel();
    let (job, out) = (files.job.clone(), files.folder.path().join(out));
    pool.spawn(move || {
        // Everything that `run` does after fetching happens on this pool: `make` is called on it.
        let fetched = futures::executor::block_on(fetch(
            &job,
            &out.with_extension("scratch"),
            true,
            true,
            &Tracker::new(false),
        ));
        let end = fetched.and_then(|fetched| {
            let folder = out.join(CHECKPOINTS);
            make(
                &job,
                &fetched,
                &out,
                None,
                &Storage::under(&folder),
                &Tracker::new(false),
            )
        });
        sender.send(end).unwrap();
    });
    receiver.recv().unwrap()
}

#[test]
fn a_job_on_pictures_ends_in_the_same_digest_on_any_number_of_threads() {
    let files = picture_files(", head: {layers: [6], activation: Tanh, dropout: '0.1'}");
    let one = run_on(1, &files, "one").unwrap();
    let two = run_on(2, &files, "two").unwrap();
    let five = run_on(5, &files, "five").unwrap();
    assert_eq!(one.digest, two.digest);
    assert_eq!(one.digest, five.digest);
    assert_eq!(one.data_manifest, two.data_manifest);
    assert_eq!(one.verdict.reason, "Inconclusive", "few test rows: {:?}", one.verdict);
    assert!(one.summary.metrics["accuracy"].get() > 0.9, "{:?}", one.summary);
    assert!(one.text(Path::new("out")).contains("accuracy"));
    let dir = files.folder.path().join("one").join(VERSION);
    let version = Version::open(&dir).unwrap();
    assert_eq!(version.labels(), ["blue", "red"]);
    let blue = crate::data::testing::png(20, 20, |x, y| [40, (x * 3 % 60) as u8, 190 + (y % 50) as u8]);
    let answer = version.answer(version.run(&version.prepare(Raw::Image(&blue)).unwrap()).unwrap());
    assert_eq!(answer.label.as_deref(), Some("blue"));
    let html = std::fs::read_to_string(files.folder.path().join("one").join(REPORT).join(report::HTML)).unwrap();
    assert!(html.contains("Confusion matrix") && html.contains("linearGrey32") && html.contains("<polyline"));
    assert!(
        !html.contains("<script") && !html.contains("http://") && !html.contains("https://"),
        "self-contained"
    );
    let again = run_on(1, &files, "one");
    assert_eq!(
        again.unwrap_err().reason(),
        INVALID_JOB,
        "what is there is not written over"
    );
}

#[test]
fn hostile_names_stay_text_in_the_report() {
    let hostile = ["<img src=x onerror=alert(1)>", "\u{202e}\"'&amp;"];
    let pictures = pictures(60);
    let named: Vec<(String, &[u8])> = pictures
        .iter()
        .map(|(name, bytes)| {
            let name = name.replace("red", hostile[0]).replace("blue", hostile[1]);
            (name, bytes.as_slice())
        })
        .collect();
    let list: Vec<(&str, &[u8])> = named.iter().map(|(n, b)| (n.as_str(), *b)).collect();
    let files = files(
        "Classification",
        "{image: {size: 16}}",
        "",
        &picture_model(),
        &tar_of(&list),
        "  train: {epochs: 2}\n",
    );
    run_on(2, &files, "out").unwrap();
    let report = files.folder.path().join("out").join(REPORT);
    let html = std::fs::read_to_string(report.join(report::HTML)).unwrap();
    assert!(html.contains("&lt;img src=x onerror=alert(1)&gt;") && html.contains("\u{fffd}&quot;&#39;&amp;amp;"));
    assert!(!html.contains("<img") && !html.contains('\u{202e}'));
    let text = std::fs::read(report.join(report::JSON)).unwrap();
    let report: report::Report = serde_json::from_slice(&text).unwrap();
    assert!(
        report.classes.contains_key(hostile[1]),
        "the JSON keeps names as they are"
    );
}

#[test]
fn a_classification_on_windows_beats_what_statistics_cannot_see() {
    // The order of two values within a channel: statistics of the channel do not tell.
    let files = window_files(
        "Classification",
        |v| if v[1] > v[6] { "falls" } else { "rises" }.to_owned(),
        "  evaluation: {gates: [{metric: accuracy, overBaseline: '0.1'}]}\n",
    );
    let made = run_on(2, &files, "out").unwrap();
    assert_eq!(made.verdict.reason, "Passed", "{:?} {:?}", made.verdict, made.summary);
}

#[test]
fn a_regression_answers_in_its_unit_and_is_gated_by_r2() {
    let files = window_files(
        "Regression",
        |v| (1000.0 + 50.0 * v[0] - 20.0 * v[9]).to_string(),
        "  train: {optimizer: {learningRate: '0.01'}}\n  evaluation: {gates: [{metric: r2, min: '0.8'}, {metric: mae, overBaseline: '5'}]}\n",
    );
    let made = run_on(2, &files, "out").unwrap();
    assert_eq!(made.verdict.reason, "Passed", "{:?} {:?}", made.verdict, made.summary);
    let version = Version::open(&files.folder.path().join("out").join(VERSION)).unwrap();
    let values = [0.5f32; 16];
    let answer = version.answer(version.run(&version.prepare(Raw::Window(&values)).unwrap()).unwrap());
    assert!((answer.value.unwrap() - 1015.0).abs() < 40.0, "{answer:?}");
    assert!(answer.label.is_none() && version.labels().is_empty());
}

#[test]
fn a_failed_gate_names_itself_and_keeps_its_report() {
    let files = window_files(
        "Classification",
        |v| if v[1] > v[6] { "falls" } else { "rises" }.to_owned(),
        "  evaluation: {gates: [{metric: macroF1, min: '0.9999'}]}\n",
    );
    let made = run_on(2, &files, "out").unwrap();
    assert_eq!(
        (made.verdict.reason.as_str(), made.verdict.gate.as_deref()),
        ("GateFailed", Some("macroF1 min"))
    );
    let text = std::fs::read(files.folder.path().join("out").join(REPORT).join(report::JSON)).unwrap();
    let report: report::Report = serde_json::from_slice(&text).unwrap();
    assert!(!report.gates[0].ok);
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert!(value["selfTest"]["tolerance"].as_f64().unwrap() >= 1e-3);
    assert!(value["budget"].is_array(), "nodes read the budgets from here");
}

#[test]
fn a_seed_changes_the_tuned_weights_and_nothing_of_the_backbone() {
    let one = run_on(2, &picture_files(""), "out").unwrap();
    let files = picture_files(", seed: 1");
    let two = run_on(2, &files, "out").unwrap();
    assert_ne!(one.digest, two.digest);
    assert_eq!(one.data_manifest, two.data_manifest);
    assert_eq!(one.summary.contract, two.summary.contract);
}

#[test]
fn a_self_test_finds_other_weights() {
    let (one, two) = (picture_files(""), picture_files(", seed: 1"));
    run_on(2, &one, "out").unwrap();
    run_on(2, &two, "out").unwrap();
    let (a, b) = (
        one.folder.path().join("out").join(VERSION),
        two.folder.path().join("out").join(VERSION),
    );
    let result = |dir: &Path| selftest::run(&Version::open(dir).unwrap(), dir, 1e-3).unwrap();
    let good = result(&a);
    assert!(good.ok && good.worst <= 1e-6 && good.p95_ms > 0.0, "{good:?}");
    std::fs::copy(b.join(version::TUNED), a.join(version::TUNED)).unwrap();
    let bad = result(&a);
    assert!(!bad.ok, "{bad:?}");
}

#[test]
fn a_version_that_was_tampered_with_is_no_version() {
    let files = picture_files("");
    run_on(2, &files, "out").unwrap();
    let dir = files.folder.path().join("out").join(VERSION);
    let spoil = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        let kept = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let reason = Version::open(&dir).map(|_| ()).unwrap_err().reason();
        std::fs::write(&path, kept).unwrap();
        reason
    };
    assert_eq!(spoil(version::LABELS, b"[\"only\"]"), INVALID_VERSION);
    assert_eq!(spoil(version::PIPELINE, b"{}"), INVALID_VERSION);
    assert_eq!(
        spoil(version::PIPELINE, b"{\"version\": 99}"),
        crate::error::UNSUPPORTED_FORMAT
    );
    assert_eq!(spoil(version::MODEL, b"no graph"), NOT_ONNX);
    assert_eq!(spoil(version::TUNED, b""), EXTERNAL_DATA);
    assert!(Version::open(&dir).is_ok());
    std::fs::remove_file(dir.join(version::LABELS)).unwrap();
    assert_eq!(Version::open(&dir).map(|_| ()).unwrap_err().reason(), INVALID_VERSION);
}

#[test]
fn validate_refuses_a_candidate_of_another_job_and_data_that_changed() {
    let files = picture_files("");
    let made = run_on(2, &files, "out").unwrap();
    let other = crate::data::manifest::same(&made.data_manifest, &Digest::of(b"other"));
    assert_eq!(other.unwrap_err().reason(), DATA_CHANGED);
    let mut job = files.job.clone();
    job.spec.base_model.sha256 = "1".repeat(64);
    let data = crate::data::load(&files.job, &files.folder.path().join("data"), &Tracker::new(false)).unwrap();
    let dir = files.folder.path().join("out").join(VERSION);
    let candidate = Candidate {
        dir: &dir,
        digest: &made.digest,
        program: None,
    };
    let refused = evaluate(
        &job,
        &candidate,
        &data,
        &files.folder.path().join("again"),
        &Tracker::new(false),
    );
    assert_eq!(refused.unwrap_err().reason(), INVALID_VERSION);
}

/// The folder of `files` over HTTP.
async fn http(files: &Files) -> String {
    let root = files.folder.path().to_owned();
    let app = axum::Router::new().fallback(move |uri: axum::http::Uri| {
        let path = root.join(uri.path().trim_start_matches('/'));
        async move { std::fs::read(path).map_err(|_| axum::http::StatusCode::NOT_FOUND) }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

/// Both pods of a job, over a registry and a web server, and a local run: one digest.
#[tokio::test(flavor = "multi_thread")]
async fn pods_and_a_local_run_make_the_same_candidate() {
    let registry = crate::registry::fake::Fake::start().await;
    let files = picture_files("");
    let server = http(&files).await;
    let mut job = files.job.clone();
    job.spec.base_model.uri = format!("{server}/model.onnx");
    job.spec.dataset.uri = format!("{server}/data");
    job.spec.output.repository = registry.repository();
    let tracker = Tracker::new(false);
    let trained = crate::finetune::run_with(&registry.client(), job.clone(), tracker.clone())
        .await
        .unwrap();
    let (candidate, manifest) = (trained.digest.unwrap(), trained.data_manifest.unwrap());
    let local = super::run(
        files.job.clone(),
        &files.folder.path().join("out"),
        None,
        Tracker::new(false),
    )
    .await
    .unwrap();
    assert_eq!(candidate, local.digest);
    assert_eq!(manifest, local.data_manifest);
    assert!(tracker.snapshot().metrics.contains_key("validation.macroF1"));

    let validate = |manifest: Digest| {
        let (client, job, candidate) = (registry.client(), job.clone(), candidate.clone());
        async move { crate::validate::run_with(&client, job, candidate, manifest, None, Tracker::new(false)).await }
    };
    let judged = validate(manifest.clone()).await.unwrap();
    assert_eq!(judged.reason, "Inconclusive");
    assert_eq!(judged.code.exit(), 0, "a verdict is work done");
    let report = judged.digest.unwrap();
    let told = registry
        .client()
        .fetch_report(&registry.repository(), &report, &candidate)
        .await
        .unwrap();
    assert_eq!(told["candidate"], candidate.as_str());
    assert_eq!(judged.summary.unwrap().metrics, local.summary.metrics);

    let pictures = pictures(61);
    let list: Vec<(&str, &[u8])> = pictures.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    std::fs::write(files.folder.path().join("data"), tar_of(&list)).unwrap();
    assert_eq!(validate(manifest).await.unwrap_err().reason(), DATA_CHANGED);
    job.spec.dataset.uri = format!("{server}/gone.tar");
    let gone = crate::finetune::run_with(&registry.client(), job, tracker)
        .await
        .unwrap_err();
    assert_eq!(gone.reason(), crate::error::NOT_FOUND);
    assert!(gone.message().contains("spec.dataset.uri"), "{gone}");
}
