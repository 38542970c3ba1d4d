//! A version's folder, and the one file that `export` makes of it, pass the ONNX checker and answer in ONNX Runtime like
//! the worker does. A new way to train, or a new kind of input, is one more line in [`CASES`].

use super::fixture::{Fixture, finetune, worker};
use super::programs::{Python, run};
use fleetune_crds::common::Digest;
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
const LAYERS: Case = Case {
    model: "layers.onnx",
    ..PICTURES
};
const STACK: Case = Case {
    model: "stack.onnx",
    ..WINDOWS
};
/// `TOKENIZER` stands for the file's address, `SHA256` for its hash.
const TEXTS: Case = Case {
    name: "texts",
    task: "Classification",
    input: "{text: {maxTokens: 10, tokenizer: {uri: 'TOKENIZER', sha256: 'SHA256'}}}",
    model: "words.onnx",
    data: "texts.csv",
    train: "{epochs: 20}",
};
const CASES: [Case; 15] = [
    PICTURES,
    Case {
        name: "hidden",
        train: "{head: {layers: [12, 7], activation: Tanh, dropout: '0.1'}}",
        ..PICTURES
    },
    Case {
        name: "pictures-last-layers",
        train: "{method: LastLayers, lastLayers: {count: 2}, epochs: 2}",
        ..LAYERS
    },
    Case {
        name: "pictures-full",
        train: "{method: Full, epochs: 2, head: {layers: [6]}}",
        ..LAYERS
    },
    Case {
        name: "pictures-lora",
        train: "{method: Lora, lora: {rank: 2, targets: [one, two]}, epochs: 2}",
        ..LAYERS
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
    Case {
        name: "windows-last-layers",
        train: "{method: LastLayers, lastLayers: {count: 1}, epochs: 3}",
        ..STACK
    },
    Case {
        name: "windows-full",
        task: "Regression",
        data: "values.csv",
        train: "{method: Full, epochs: 3}",
        ..STACK
    },
    Case {
        name: "windows-lora",
        train: "{method: Lora, lora: {rank: 3}, epochs: 3}",
        ..STACK
    },
    TEXTS,
    Case {
        name: "texts-last-layers",
        train: "{method: LastLayers, lastLayers: {count: 2}, epochs: 2}",
        ..TEXTS
    },
    Case {
        name: "texts-full",
        train: "{method: Full, epochs: 2}",
        ..TEXTS
    },
    Case {
        name: "texts-lora",
        train: "{method: Lora, lora: {rank: 2, targets: [query, key]}, epochs: 2}",
        ..TEXTS
    },
];

/// Numbers that look random and are always the same.
struct Noise(u32);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }
}

/// A sample: for each input of the graph its values as they lie in memory, and the same for the worker.
fn sample(version: &Version, random: &mut Noise) -> (Vec<Vec<u8>>, Prepared) {
    let input = &version.pipeline().inputs[0];
    let values: usize = input.shape.iter().product();
    let bytes: Vec<u8> = match input.dtype {
        Dtype::Uint8 => (0..values).map(|_| random.next() as u8).collect(),
        Dtype::Fp32 => (0..values)
            .flat_map(|_| (random.next() as f32 / 8_388_608.0 - 1.0).to_le_bytes())
            .collect(),
        Dtype::Int64 => return text(values, version, random),
    };
    let prepared = Prepared::from_bytes(input.dtype, &input.shape, &bytes).unwrap();
    (vec![bytes], prepared)
}

/// A text of some tokens, and padding behind them.
fn text(tokens: usize, version: &Version, random: &mut Noise) -> (Vec<Vec<u8>>, Prepared) {
    let own = 3 + random.next() as usize % (tokens - 3);
    let last = version.preparer().last_token().unwrap() as u32;
    let ids: Vec<i64> = (0..tokens)
        .map(|i| {
            if i < own {
                i64::from(1 + random.next() % last)
            } else {
                0
            }
        })
        .collect();
    let mask: Vec<i64> = (0..tokens).map(|i| i64::from(i < own)).collect();
    let bytes = |values: &[i64]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (vec![bytes(&ids), bytes(&mask)], Prepared::tokens(ids, mask).unwrap())
}

#[test]
fn versions_answer_alike_in_onnx_runtime() {
    let Some(python) = Python::find() else { return };
    let fixture = Fixture::new(&python);
    for case in CASES {
        let place = |file: &str| format!("{}/{file}", fixture.local());
        let rest = format!("  train: {}\n", case.train);
        let tokenizer = std::fs::read(fixture.path("tokenizer.json")).unwrap();
        let input = case
            .input
            .replace("TOKENIZER", &place("tokenizer.json"))
            .replace("SHA256", Digest::of(&tokenizer).hex());
        let job = fixture.job(
            case.name,
            case.task,
            &input,
            &place(case.model),
            &place(case.data),
            &rest,
        );
        let out = fixture.path(case.name);
        finetune(&mut worker(), &job, &out);
        let single = out.join("single.onnx");
        run(worker().arg("export").arg(out.join("version")).arg(&single), 0);
        let version = Version::open(&out.join("version")).unwrap();
        let mut random = Noise(1);
        let samples: Vec<_> = (0..SAMPLES).map(|_| sample(&version, &mut random)).collect();
        let wanted: Vec<Vec<f32>> = samples.iter().map(|(_, s)| version.run(s).unwrap()).collect();
        let mut given = Vec::new();
        for (i, input) in version.pipeline().inputs.iter().enumerate() {
            let file = fixture.path(&format!("samples-{i}"));
            let bytes: Vec<u8> = samples.iter().flat_map(|(bytes, _)| bytes[i].clone()).collect();
            std::fs::write(&file, bytes).unwrap();
            given.push(format!("{}={}", input.name, file.display()));
        }
        for model in [single, out.join("version/model.onnx")] {
            let text = run(python.script("run_onnx.py").arg(&model).args(&given), 0);
            let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answer["inputs"].as_array().unwrap().len(), given.len(), "{}", case.name);
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
