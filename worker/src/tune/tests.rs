//! Whole jobs of each method on tiny models: the written version against what was trained, the same bytes on any number
//! of threads and after a stop, and every refusal by its reason.

use super::*;
use crate::data::testing::{job_text, pictures, tar_of};
use crate::engine::build::{floats, int, node};
use crate::engine::testing::{attention_model, conv_model, encoded, model, noise, window_model};
use crate::engine::{Graph, pb};
use crate::error::{
    CHECKPOINT_MISMATCH, LORA_NOT_POSSIBLE, LORA_TARGET_NOT_FOUND, MEMORY_TOO_SMALL, NOT_FINITE, NOTHING_TO_TRAIN,
    UNSUPPORTED_OPERATOR,
};
use crate::finetune::{Fetched, Storage, build};
use crate::version::{BACKBONE, MODEL, TUNED, Version, folder_bytes};
use prost::Message;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

mod asked;
mod cached;

struct Files {
    folder: tempfile::TempDir,
    job: Job,
}

const SENSOR: &str = "{sensor: {window: 8, channels: 2}}";
const PICTURE: &str = "{image: {size: 16}}";

fn files(task: &str, input: &str, model: &pb::ModelProto, data: &[u8], train: &str, more: &str) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, hash) = encoded(model);
    std::fs::write(folder.path().join("model.onnx"), bytes).unwrap();
    std::fs::write(folder.path().join("data"), data).unwrap();
    let text = job_text(
        task,
        input,
        "{uri: 'file:///data'}",
        &hash,
        &format!("  train: {train}\n{more}"),
    );
    Files {
        job: Job::parse(&text).unwrap(),
        folder,
    }
}

/// 240 windows; the label is what `label` says of one.
fn windows(label: impl Fn(&[f32]) -> String) -> Vec<u8> {
    let mut text = "label".to_owned();
    for i in 0..16 {
        let _ = write!(text, ",v{i}");
    }
    for row in 0..240u32 {
        let values: Vec<f32> = (0..16)
            .map(|i| ((row * 37 + i * i * (row % 11) + row * row * i) % 199) as f32 / 100.0 - 1.0)
            .collect();
        let _ = write!(text, "\n{}", label(&values));
        for v in values {
            let _ = write!(text, ",{v}");
        }
    }
    text.into_bytes()
}

/// Two classes that depend on a product of two values, which no head on these features sees well.
fn product(v: &[f32]) -> String {
    if v[1] * v[6] + 0.2 * v[9] > 0.0 {
        "same"
    } else {
        "other"
    }
    .to_owned()
}

fn sensor_files(model: &pb::ModelProto, train: &str) -> Files {
    files("Classification", SENSOR, model, &windows(product), train, "")
}

fn picture_files(train: &str) -> Files {
    let pictures = pictures(40);
    let list: Vec<(&str, &[u8])> = pictures.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    files("Classification", PICTURE, &conv_model(), &tar_of(&list), train, "")
}

/// Runs a job and gives its version's folder; `go_on` as in [`Setup`], a checkpoint after every step.
fn run_by(files: &Files, threads: usize, out: &str, go_on: &(dyn Fn(u64) -> bool + Sync)) -> Result<PathBuf> {
    run_with(files, threads, out, go_on, None)
}

fn run_with(
    files: &Files,
    threads: usize,
    out: &str,
    go_on: &(dyn Fn(u64) -> bool + Sync),
    cache: Option<Cache>,
) -> Result<PathBuf> {
    let dir = files.folder.path().join(out);
    std::fs::create_dir_all(&dir).unwrap();
    let fetched = Fetched {
        tokenizer: None,
        model: Some(files.folder.path().join("model.onnx")),
        data: files.folder.path().join("data"),
    };
    let storage = Storage {
        cache,
        dir: &files.folder.path().join("checkpoints"),
        every: Duration::ZERO,
        go_on,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| build(&files.job, &fetched, &dir, &storage, &Tracker::new(false)))?;
    Ok(dir)
}

fn run(files: &Files, threads: usize, out: &str) -> Result<PathBuf> {
    run_by(files, threads, out, &|_| true)
}

fn refused(files: &Files) -> WorkerError {
    run(files, 2, "refused").unwrap_err()
}

fn digest(dir: &Path) -> String {
    crate::artifact::pack(dir).unwrap().digest().to_string()
}

fn history(dir: &Path) -> Vec<Epoch> {
    serde_json::from_slice(&std::fs::read(dir.join(crate::finetune::HISTORY)).unwrap()).unwrap()
}

/// Any number of threads, and a stop after any step, end in the same bytes.
fn same_bytes(files: &Files) {
    let dir = run(files, 1, "one").unwrap();
    let want = digest(&dir);
    assert_eq!(digest(&run(files, 2, "two").unwrap()), want, "two threads");
    assert_eq!(digest(&run(files, 5, "five").unwrap()), want, "five threads");
    let epochs = history(&dir);
    assert!(epochs.len() > 1 && epochs[0].epoch == 0);
    assert!(
        epochs[1..]
            .iter()
            .all(|e| e.gradient_norm > 0.0 && e.learning_rate > 0.0)
    );
    for stop in [0, 7, 11] {
        let end = run_by(files, 2, "stopped", &|step| step != stop).unwrap_err();
        assert_eq!(end.reason(), "Terminated");
        let steps = AtomicU64::new(u64::MAX);
        let resumed = run_by(files, 1, &format!("after-{stop}"), &|step| {
            steps.fetch_min(step, Ordering::Relaxed);
            true
        });
        assert_eq!(digest(&resumed.unwrap()), want, "stopped after step {stop}");
        assert_eq!(steps.into_inner(), stop + 1, "it goes on where it stopped");
    }
    let left = std::fs::read_dir(files.folder.path().join("checkpoints"));
    assert_eq!(
        left.map_or(0, Iterator::count),
        0,
        "a job that is done leaves no checkpoint"
    );
}

const SHORT: &str = "epochs: 3, batchSize: 32, optimizer: {learningRate: '0.01'}";

#[test]
fn all_weights_of_a_net_on_windows() {
    let files = sensor_files(
        &window_model(),
        "{method: Full, epochs: 12, batchSize: 32, head: {layers: [8], dropout: '0.1'}, labelSmoothing: '0.1', \
         optimizer: {learningRate: '0.01'}}",
    );
    let dir = run(&files, 2, "out").unwrap();
    let epochs = history(&dir);
    let best = epochs.iter().map(|e| e.objective).fold(0.0, f64::max);
    assert!(best > epochs[0].objective + 0.05, "deeper is better here: {epochs:?}");
    let last = epochs.last().unwrap();
    assert!(last.train_loss < epochs[1].train_loss, "{epochs:?}");
    assert_eq!(
        std::fs::metadata(dir.join(BACKBONE)).unwrap().len(),
        0,
        "all weights moved"
    );
    let lineage = std::fs::read_to_string(dir.join("lineage.json")).unwrap();
    assert!(lineage.contains("\"method\": \"Full\""), "{lineage}");
}

#[test]
fn full_is_the_same_on_any_number_of_threads_and_after_a_stop() {
    same_bytes(&sensor_files(
        &attention_model(),
        &format!("{{method: Full, {SHORT}, head: {{dropout: '0.2'}}, augmentation: {{sensor: {{jitter: '0.1'}}}}}}"),
    ));
}

#[test]
fn last_layers_are_the_same_on_any_number_of_threads_and_after_a_stop() {
    same_bytes(&sensor_files(
        &attention_model(),
        &format!(
            "{{method: LastLayers, lastLayers: {{count: 2}}, {SHORT}, augmentation: {{copies: 1, sensor: {{shift: 1}}}}}}"
        ),
    ));
}

#[test]
fn adapters_are_the_same_on_any_number_of_threads_and_after_a_stop() {
    same_bytes(&sensor_files(
        &attention_model(),
        &format!("{{method: Lora, lora: {{rank: 2, targets: ['query*', 'up/w']}}, {SHORT}}}"),
    ));
}

#[test]
fn a_convolutional_net_by_all_methods() {
    for (train, tuned) in [
        (
            "{method: Full, epochs: 2}",
            vec!["one/w", "one/b", "deep/w", "two/w", "two/b", "three/w", "three/b"],
        ),
        (
            "{method: LastLayers, lastLayers: {count: 1}, epochs: 2}",
            vec!["three/w", "three/b"],
        ),
        (
            "{method: LastLayers, lastLayers: {count: 2}, epochs: 2}",
            vec!["two/w", "two/b", "three/w", "three/b"],
        ),
        (
            "{method: Lora, lora: {rank: 2, targets: ['three', 'two']}, epochs: 2}",
            vec!["two/w.lora.a", "two/w.lora.b", "three/w.lora.a", "three/w.lora.b"],
        ),
    ] {
        let files = picture_files(train);
        let dir = run(&files, 2, "out").unwrap();
        let model = pb::ModelProto::decode(&*std::fs::read(dir.join(MODEL)).unwrap()).unwrap();
        let mut moved: Vec<String> = model
            .graph
            .unwrap()
            .initializer
            .into_iter()
            .filter_map(|t| {
                let outside = t.external_data.iter().any(|e| e.value == TUNED);
                (outside && t.name.starts_with("base/")).then(|| t.name["base/".len()..].to_owned())
            })
            .collect();
        moved.sort();
        let mut want: Vec<String> = tuned.iter().map(|n| (*n).to_owned()).collect();
        want.sort();
        assert_eq!(moved, want, "{train}");
    }
}

#[test]
fn a_regression_is_trained_in_standard_units_and_answers_in_its_own() {
    for loss in ["MeanSquaredError", "MeanAbsoluteError", "Huber"] {
        let data = windows(|v| (1000.0 + 50.0 * v[0] * v[1] - 20.0 * v[9]).to_string());
        let files = files(
            "Regression",
            SENSOR,
            &window_model(),
            &data,
            &format!("{{method: Full, loss: {loss}, epochs: 20, optimizer: {{learningRate: '0.01'}}}}"),
            "",
        );
        let dir = run(&files, 2, "out").unwrap();
        let epochs = history(&dir);
        let best = epochs.iter().map(|e| e.objective).fold(f64::INFINITY, f64::min);
        assert!(best < epochs[0].objective, "{loss}: {epochs:?}");
        let version = Version::open(&dir).unwrap();
        let answer = version
            .run(&crate::pipeline::Prepared::window(2, 8, vec![0.0; 16]).unwrap())
            .unwrap();
        assert!((answer[0] - 1000.0).abs() < 60.0, "{loss}: {answer:?}");
    }
}

/// A wide net, of which rank-4 adapters are small: at most 5 % of the bytes are a node's own.
#[test]
fn adapters_are_a_small_part_of_a_version_and_fold_into_its_weights() {
    let scaled = |n: usize| noise(n).iter().map(|v| v * 0.1).collect::<Vec<f32>>();
    let wide = model(
        &[-1, 2, 8],
        vec![
            node("Flatten", &["x"], "flat", vec![int("axis", 1)]),
            node("MatMul", &["flat", "in"], "a", vec![]),
            node("Tanh", &["a"], "at", vec![]),
            node("MatMul", &["at", "mid"], "b", vec![]),
            node("Tanh", &["b"], "bt", vec![]),
            node("MatMul", &["bt", "out"], "c", vec![]),
            node("Tanh", &["c"], "hidden", vec![]),
            node("MatMul", &["hidden", "old"], "logits", vec![]),
        ],
        vec![
            floats("in", &[16, 256], &scaled(16 * 256)),
            floats("mid", &[256, 256], &scaled(256 * 256)),
            floats("out", &[256, 40], &scaled(256 * 40)),
            floats("old", &[40, 3], &noise(120)),
        ],
        "logits",
    );
    let files = sensor_files(&wide, "{method: Lora, lora: {rank: 4, targets: [mid]}, epochs: 2}");
    let dir = run(&files, 2, "out").unwrap();
    let tuned = std::fs::metadata(dir.join(TUNED)).unwrap().len();
    let all = std::fs::metadata(dir.join(BACKBONE)).unwrap().len() + tuned;
    assert!(tuned * 20 <= all, "{tuned} of {all} bytes");
    assert!(folder_bytes(&dir).unwrap() > all);

    // The folded graph, the graph as it is written, and one file of it: the same answers.
    let version = Version::open(&dir).unwrap();
    let inputs = &version.pipeline().inputs;
    let single = files.folder.path().join("one.onnx");
    crate::export::run(&dir, &single).unwrap();
    let plain = pb::ModelProto::decode(&*std::fs::read(single).unwrap()).unwrap();
    let adds = |m: &pb::ModelProto| {
        m.graph
            .as_ref()
            .unwrap()
            .node
            .iter()
            .filter(|n| n.op_type == "Add")
            .count()
    };
    assert_eq!(adds(&plain), 1, "W + s A B stands in the graph");
    let unfolded = Graph::build(&plain, None, inputs).unwrap();
    for seed in 0..4 {
        let values = (0..16)
            .map(|i| ((i * 31 + seed * 17) % 13) as f32 / 6.0 - 1.0)
            .collect();
        let sample = crate::pipeline::Prepared::window(2, 8, values).unwrap();
        let (a, b) = (version.run(&sample).unwrap(), unfolded.run(&sample).unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
    }
    // Another rank or seed leaves the frozen bytes as they are.
    let other = sensor_files(&wide, "{method: Lora, lora: {rank: 2}, epochs: 1, seed: 3}");
    let other = run(&other, 2, "out").unwrap();
    let frozen = |dir: &Path| std::fs::read(dir.join(BACKBONE)).unwrap();
    assert_eq!(frozen(&dir), frozen(&other));
}

#[test]
fn what_cannot_be_trained_is_refused_with_what_would_work() {
    let lstm = sensor_files(&recurrent(), "{method: Full, epochs: 1}");
    let error = refused(&lstm);
    assert_eq!(error.reason(), UNSUPPORTED_OPERATOR, "{error}");
    assert!(
        error.message().contains("\"lstm\"") && error.message().contains("lastLayers.count of at most 1"),
        "{error}"
    );

    let none = sensor_files(&window_model(), "{method: Lora, lora: {targets: [nowhere]}}");
    let error = refused(&none);
    assert_eq!(error.reason(), LORA_TARGET_NOT_FOUND);
    assert!(error.message().contains("\"linear\""), "names what there is: {error}");

    let grouped = picture_files("{method: Lora, lora: {targets: [deep]}}");
    let error = refused(&grouped);
    assert_eq!(error.reason(), LORA_NOT_POSSIBLE);
    assert!(error.message().contains("\"deep\""), "{error}");

    let empty = model(
        &[-1, 2, 8],
        vec![
            node("Tanh", &["x"], "active", vec![]),
            node("Flatten", &["active"], "flat", vec![int("axis", 1)]),
            node("MatMul", &["flat", "old"], "logits", vec![]),
        ],
        vec![floats("old", &[16, 3], &noise(48))],
        "logits",
    );
    for method in ["Full", "LastLayers, lastLayers: {count: 3}"] {
        let error = refused(&sensor_files(&empty, &format!("{{method: {method}, epochs: 1}}")));
        assert_eq!(error.reason(), NOTHING_TO_TRAIN, "{method}: {error}");
    }

    let mut spoiled = attention_model();
    let weights = &mut spoiled.graph.as_mut().unwrap().initializer[0];
    weights.raw_data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = refused(&sensor_files(&spoiled, "{method: Full, epochs: 1}"));
    assert_eq!(error.reason(), NOT_FINITE);
}

/// Windows through an LSTM, then a linear layer in front of the features.
fn recurrent() -> pb::ModelProto {
    let perm = pb::AttributeProto {
        name: "perm".to_owned(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ints: vec![2, 0, 1],
        ..Default::default()
    };
    let scaled = |n: usize| noise(n).iter().map(|v| v * 0.3).collect::<Vec<f32>>();
    let mut lstm = node("LSTM", &["steps", "lstm/w", "lstm/r"], "", vec![int("hidden_size", 8)]);
    lstm.output = vec![String::new(), "last".to_owned()];
    lstm.name = "lstm".to_owned();
    model(
        &[-1, 2, 8],
        vec![
            node("Transpose", &["x"], "steps", vec![perm]),
            lstm,
            node("Squeeze", &["last", "axis"], "state", vec![]),
            node("MatMul", &["state", "w"], "linear", vec![]),
            node("Tanh", &["linear"], "hidden", vec![]),
            node("MatMul", &["hidden", "old"], "logits", vec![]),
        ],
        vec![
            floats("lstm/w", &[1, 32, 2], &scaled(64)),
            floats("lstm/r", &[1, 32, 8], &scaled(256)),
            pb::TensorProto {
                name: "axis".to_owned(),
                dims: vec![1],
                data_type: pb::tensor_proto::DataType::Int64 as i32,
                raw_data: 0i64.to_le_bytes().to_vec(),
                ..Default::default()
            },
            floats("w", &[8, 16], &scaled(128)),
            floats("old", &[16, 3], &scaled(48)),
        ],
        "logits",
    )
}

#[test]
fn below_the_cut_any_operator_may_lie() {
    let files = sensor_files(&recurrent(), "{method: LastLayers, lastLayers: {count: 1}, epochs: 2}");
    run(&files, 2, "out").unwrap();
}

#[test]
fn more_memory_than_the_pod_has_is_refused_before_training() {
    let tight = files(
        "Classification",
        SENSOR,
        &window_model(),
        &windows(product),
        "{method: Full, epochs: 1}",
        "  worker: {resources: {limits: {memory: 1Mi}}}\n",
    );
    let error = refused(&tight);
    assert_eq!(error.reason(), MEMORY_TOO_SMALL, "{error}");
}

#[test]
fn a_checkpoint_of_another_job_is_refused_and_a_damaged_one_starts_over() {
    let files = sensor_files(&window_model(), &format!("{{method: Full, {SHORT}}}"));
    let want = digest(&run(&files, 1, "whole").unwrap());
    run_by(&files, 2, "stopped", &|step| step != 4).unwrap_err();
    let folder = || {
        let entries = std::fs::read_dir(files.folder.path().join("checkpoints")).unwrap();
        entries.map(|e| e.unwrap().path()).next().unwrap()
    };
    let latest = folder().join("latest");
    let kept = std::fs::read(&latest).unwrap();
    std::fs::write(&latest, &kept[..kept.len() / 2]).unwrap();
    assert_eq!(
        digest(&run(&files, 2, "torn").unwrap()),
        want,
        "half a file is as good as none"
    );

    let other = sensor_files(&window_model(), &format!("{{method: Full, seed: 9, {SHORT}}}"));
    run_by(&other, 2, "stopped", &|step| step != 4).unwrap_err();
    let place = std::fs::read_dir(other.folder.path().join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .next()
        .unwrap();
    std::fs::write(place.join("latest"), kept).unwrap();
    let error = refused(&other);
    assert_eq!(error.reason(), CHECKPOINT_MISMATCH, "{error}");
}

#[test]
fn a_rate_that_explodes_names_the_tensor_and_the_step() {
    let files = sensor_files(
        &window_model(),
        "{method: Full, epochs: 50, clipNorm: '999999', optimizer: {name: Sgd, learningRate: '999', weightDecay: '999'}}",
    );
    let error = refused(&files);
    assert_eq!(error.reason(), TRAINING_DIVERGED, "{error}");
    assert!(
        error.message().contains("step") && error.message().contains("weight"),
        "{error}"
    );
}

#[test]
fn variants_over_a_frozen_part_need_copies() {
    let jitter = "augmentation: {sensor: {jitter: '0.1'}}";
    let files = sensor_files(
        &attention_model(),
        &format!("{{method: Lora, lora: {{targets: ['down/w']}}, epochs: 1, {jitter}}}"),
    );
    let error = refused(&files);
    assert_eq!(error.reason(), INVALID_JOB, "{error}");
    assert!(error.message().contains("copies"), "{error}");
}
