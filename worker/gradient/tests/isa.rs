//! The environment variable that pins the engine's kernels pins those of convolutions too. It is read once, so each case is
//! a process of its own: this test program again, with the one test that tells what was chosen.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test may end itself; what was chosen is read from its output.

use fleetune_gradient::nhwc::Isa;
use std::process::Command;

const TOLD: &str = "kernels: ";

/// Run by the other test.
#[test]
fn tells() {
    println!("{TOLD}{:?}", Isa::native());
}

/// What a process chooses with this value of the variable.
fn chosen(value: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tells", "--nocapture"])
        .env("TRACT_CPU_ISA", value)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once(TOLD)).unwrap();
    line.1.to_owned()
}

#[test]
fn the_variable_pins_the_kernels_of_convolutions() {
    let portable = if Isa::available().contains(&Isa::Avx2) {
        Isa::Avx2
    } else {
        Isa::Portable
    };
    assert_eq!(chosen("-avx512f,-avx512vnni,-avx512fp16"), format!("{portable:?}"));
    assert_eq!(chosen("-avx512f,-avx2"), "Portable");
}
