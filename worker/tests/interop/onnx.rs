//! A version's folder, and the one file that `export` makes of it, pass the ONNX checker and answer in ONNX Runtime like
//! the worker does. A new way to train, or a new kind of input, is one more line in [`CASES`].

use super::fixture::{Fixture, finetune, worker};
use super::programs::{Python, run};
use fleetune_worker::pipeline::{Dtype, Prepared};
use fleetune_worker::version::Version;

/// Largest difference between the two runtimes: absolute, or relative to values above 1.
const TOLERANCE: f32 = 1e-4;
/// Samples that both answer.
const SAMPLES: usize = 5;

struct Case {
    name: &'static str,
    task: &'static str,
    input: &'static str,
    model: &'static str,
    data: &'static str,
    train: &'static str,
}

const PICTURES: Case = Case {
    name: "pictures",
    task: "Classification",
    input: "{image: {size: 16}}",
    model: "pictures.onnx",
    data: "pictures.tar",
    train: "{}",
};
const WINDOWS: Case = Case {
    name: "windows",
    task: "Classification",
    input: "{sensor: {window: 8, channels: 2}}",
    model: "windows.onnx",
    data: "classes.csv",
    train: "{}",
};
const CASES: [Case; 5] = [
    PICTURES,
    Case {
        name: "hidden",
        train: "{head: {layers: [12, 7], activation: Tanh, dropout: '0.1'}}",
        ..PICTURES
    },
    WINDOWS,
    Case {
        name: "sigmoids",
        train: "{loss: BinaryCrossEntropy, head: {layers: [9], activation: Sigmoid}}",
        ..WINDOWS
    },
    Case {
        name: "value",
        task: "Regression",
        data: "values.csv",
        train: "{head: {layers: [8]}}",
        ..WINDOWS
    },
];

/// Bytes that look random and are always the same, as values of the input lie in memory.
fn samples(version: &Version) -> Vec<Vec<u8>> {
    let values: usize = version.pipeline().inputs[0].shape.iter().product();
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    (0..SAMPLES)
        .map(|_| match version.pipeline().inputs[0].dtype {
            Dtype::Uint8 => (0..values).map(|_| next() as u8).collect(),
            Dtype::Fp32 => (0..values)
                .flat_map(|_| (next() as f32 / 8_388_608.0 - 1.0).to_le_bytes())
                .collect(),
            Dtype::Int64 => unreachable!("no case has texts"),
        })
        .collect()
}

#[test]
fn versions_answer_alike_in_onnx_runtime() {
    let Some(python) = Python::find() else { return };
    let fixture = Fixture::new(&python);
    for case in CASES {
        let place = |file: &str| format!("{}/{file}", fixture.local());
        let rest = format!("  train: {}\n", case.train);
        let job = fixture.job(
            case.name,
            case.task,
            case.input,
            &place(case.model),
            &place(case.data),
            &rest,
        );
        let out = fixture.path(case.name);
        finetune(&mut worker(), &job, &out);
        let single = out.join("single.onnx");
        run(worker().arg("export").arg(out.join("version")).arg(&single), 0);
        let version = Version::open(&out.join("version")).unwrap();
        let samples = samples(&version);
        let input = &version.pipeline().inputs[0];
        let wanted: Vec<Vec<f32>> = samples
            .iter()
            .map(|bytes| {
                let prepared = Prepared::from_bytes(input.dtype, &input.shape, bytes).unwrap();
                version.run(&prepared).unwrap()
            })
            .collect();
        let file = fixture.path("samples");
        std::fs::write(&file, samples.concat()).unwrap();
        for model in [single, out.join("version/model.onnx")] {
            let text = run(python.script("run_onnx.py").arg(&model).arg(&file), 0);
            let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answer["input"], input.name.as_str(), "{}", case.name);
            let outputs: Vec<Vec<f32>> = serde_json::from_value(answer["outputs"].clone()).unwrap();
            assert_eq!(outputs.len(), SAMPLES);
            for (got, want) in outputs.iter().zip(&wanted) {
                let near = |(g, w): (&f32, &f32)| (g - w).abs() <= TOLERANCE * w.abs().max(1.0);
                assert!(
                    got.len() == want.len() && got.iter().zip(want).all(near),
                    "{}, {}: {got:?}, here {want:?}",
                    case.name,
                    model.display()
                );
            }
        }
    }
}
