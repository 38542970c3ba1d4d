//! EfficientNet-Lite0 with convolutions of our own gives what tract's own path gives, for every set of instructions that
//! this CPU has. The model comes from `examples/prepare.py`; without it the test says loudly that it was skipped, and with
//! `FLEETUNE_REQUIRE_LAB` set, as in `make test`, it fails instead.
#![allow(clippy::unwrap_used, clippy::panic)] // A test may end itself.

use fleetune_crds::{Input, Task};
use fleetune_gradient::nhwc::Isa;
use fleetune_worker::engine::{Base, Graph, build};
use fleetune_worker::pipeline::{Pipeline, Prepared};
use std::io::Write;
use std::path::PathBuf;

const SIZE: usize = 224;

fn model() -> Option<Vec<u8>> {
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/fleetune"));
    let cache = std::env::var_os("FLEETUNE_CACHE").map(PathBuf::from).or_else(home)?;
    std::fs::read(cache.join("data/efficientnet-lite0.onnx")).ok()
}

/// A picture with edges and noise, the same everywhere.
fn picture(seed: usize) -> Prepared {
    let value = |i: usize| {
        let (y, x, c) = (i / 3 / SIZE, i / 3 % SIZE, i % 3);
        ((y * (c + 2) + x * 3 + (i * 2_654_435_761 + seed) % 97 + (x / 40 + y / 30 + seed) % 2 * 120) % 256) as u8
    };
    Prepared::Pixels {
        height: SIZE as u32,
        width: SIZE as u32,
        data: (0..SIZE * SIZE * 3).map(value).collect(),
    }
}

#[test]
fn lite0_gives_the_features_of_tracts_own_path() {
    let Some(bytes) = model() else {
        assert!(
            std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none(),
            "this test needs efficientnet-lite0.onnx of examples/prepare.py"
        );
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: there is no efficientnet-lite0.onnx of examples/prepare.py"
        );
        return;
    };
    let input: Input = serde_yaml::from_str("{image: {size: 224}}").unwrap();
    let tensor = Pipeline::for_job(&input, Task::Classification, 2).unwrap().inputs;
    let backbone = Base::parse(&bytes).unwrap().cut(None, &input, &tensor).unwrap();
    let model = build::features_model(&backbone, &input, &tensor).unwrap();
    let plain = Graph::build_with(&model, None, &tensor, None).unwrap();
    assert_eq!((plain.outputs(), plain.convolutions()), (1280, 0));
    let pictures = [picture(1), picture(5)];
    for &isa in Isa::available() {
        let ours = Graph::build_with(&model, None, &tensor, Some(isa)).unwrap();
        assert_eq!(ours.convolutions(), 49, "every convolution is covered");
        for picture in &pictures {
            let (have, want) = (ours.run(picture).unwrap(), plain.run(picture).unwrap());
            let scale = want.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            assert!(scale > 0.1, "features that are all zero show nothing");
            for (h, w) in have.iter().zip(&want) {
                assert!((h - w).abs() <= 1e-5 * scale, "{isa:?}: {h} is not {w}");
            }
        }
    }
}
