//! The tests of the kernels once more under valgrind: no kernel reads or writes outside its slices. Valgrind knows no
//! AVX-512, so those kernels are not among them; they are the same code over other lanes.

use std::process::Command;

/// Set for the run under valgrind, which must not start another.
const INSIDE: &str = "FLEETUNE_MEMCHECK";

#[test]
fn kernels_stay_inside_their_slices() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let run = Command::new("valgrind")
        .args(["--quiet", "--error-exitcode=9"])
        .arg(std::env::current_exe().unwrap())
        .args(["nhwc::", "--test-threads=1"])
        .env(INSIDE, "1")
        .output();
    let output = match run {
        Ok(output) => output,
        Err(error) => {
            let what = format!("valgrind does not run ({error}): `make tools` gets it");
            assert!(std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none(), "{what}");
            eprintln!("SKIPPED: {what}");
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for kernel in ["gemm::tests::every_kernel", "depthwise::tests::every_kernel"] {
        assert!(text.contains(kernel), "{kernel} did not run: {text}");
    }
}
