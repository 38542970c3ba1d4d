//! `train.portableKernels`: the job is done by kernels that every x86 machine with AVX2 and FMA has, as if the caller had
//! pinned them.

use super::fixture::{Fixture, finetune, worker};
use super::programs::Python;
use fleetune_worker::lineage::{ENV_ISA, Lineage, PORTABLE_ISA};
use std::path::Path;

fn read(out: &Path, name: &str) -> Vec<u8> {
    std::fs::read(out.join("version").join(name)).unwrap()
}

fn features(out: &Path) -> Vec<String> {
    let lineage: Lineage = serde_json::from_slice(&read(out, "lineage.json")).unwrap();
    lineage.worker.cpu_features
}

#[test]
fn portable_kernels_are_those_that_the_variable_pins() {
    let Some(python) = Python::find() else { return };
    let fixture = Fixture::new(&python);
    for (model, data, input) in [
        ("layers.onnx", "pictures.tar", "{image: {size: 16}}"),
        ("stack.onnx", "classes.csv", "{sensor: {window: 8, channels: 2}}"),
    ] {
        let train = |name: &str, more: &str, isa: Option<&str>| {
            let place = |file: &str| format!("{}/{file}", fixture.local());
            let rest = format!("  train: {{method: Full, epochs: 2, head: {{layers: [7]}}{more}}}\n");
            let name = format!("{model}-{name}");
            let job = fixture.job(&name, "Classification", input, &place(model), &place(data), &rest);
            let out = fixture.path(&name);
            let mut command = worker();
            command.env_remove(ENV_ISA);
            if let Some(isa) = isa {
                command.env(ENV_ISA, isa);
            }
            (finetune(&mut command, &job, &out), out)
        };
        let (portable, out) = train("portable", ", portableKernels: true", None);
        let (pinned, by_hand) = train("pinned", "", Some(PORTABLE_ISA));
        assert_eq!(portable, pinned, "{model}: the same version");
        assert_eq!(read(&out, "weights/tuned.bin"), read(&by_hand, "weights/tuned.bin"));
        assert!(
            features(&out).iter().all(|f| !f.starts_with("avx512")),
            "{:?}",
            features(&out)
        );
        let (_, native) = train("native", "", None);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(
            features(&native).iter().any(|f| f == "avx512f"),
            is_x86_feature_detected!("avx512f"),
            "without it the CPU's best kernels are used"
        );
        let _ = native;
    }
}
