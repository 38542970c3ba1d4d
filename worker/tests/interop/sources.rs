//! The same job by every kind of address gives the same candidate.

use super::fixture::{Fixture, finetune, worker};
use super::programs::{Python, Registry, Server, run};
use fleetune_crds::names::{CLAIMS_DIR, ENV_INSECURE_REGISTRIES};
use std::process::Command;

#[test]
fn every_address_gives_the_same_candidate() {
    let (Some(python), Some(registry)) = (Python::find(), Registry::start()) else {
        return;
    };
    let fixture = Fixture::new(&python);
    let run_job = |name: &str, model: &str, data: &str, command: &mut Command| {
        finetune(command, &fixture.pictures(name, model, data), &fixture.path(name))
    };
    let local = fixture.local();
    let (model, data) = (format!("{local}/pictures.onnx"), format!("{local}/pictures.tar"));
    let digest = run_job("file", &model, &data, &mut worker());
    let web = python.web(fixture.dir.path());
    let port = web.said.split("port ").nth(1).unwrap().split(' ').next().unwrap();
    let address = format!("http://127.0.0.1:{port}");
    let by_http = run_job(
        "http",
        &format!("{address}/pictures.onnx"),
        &format!("{address}/pictures.tar"),
        &mut worker(),
    );
    assert_eq!(by_http, digest);
    let mut push = python.script("push_file.py");
    push.arg(&registry.host)
        .args(["models/pictures", "1"])
        .arg(fixture.path("pictures.onnx"));
    run(&mut push, 0);
    let by_oci = run_job(
        "oci",
        &format!("oci://{}/models/pictures:1", registry.host),
        &data,
        worker().env(ENV_INSECURE_REGISTRIES, &registry.host),
    );
    assert_eq!(by_oci, digest);
    let s3 = Server::start(python.script("s3.py").arg(fixture.dir.path()));
    let key: serde_json::Value = serde_json::from_str(&s3.said).unwrap();
    let signed = |secret: &str| {
        let mut command = worker();
        command
            .env("AWS_ENDPOINT", key["endpoint"].as_str().unwrap())
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", key["id"].as_str().unwrap())
            .env("AWS_SECRET_ACCESS_KEY", secret);
        command
    };
    let (model, data) = ("s3://data/pictures.onnx", "s3://data/pictures.tar");
    let by_s3 = run_job("s3", model, data, &mut signed(key["secret"].as_str().unwrap()));
    assert_eq!(by_s3, digest);
    // The server looks at signatures: with another secret it refuses, and the job ends as bad input.
    let job = fixture.pictures("refused", model, data);
    let mut refused = signed("another");
    refused
        .args(["finetune", "--local", "--out"])
        .arg(fixture.path("refused"))
        .arg("-f")
        .arg(job);
    let output = refused.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(
        log.contains("SourceDenied") && log.contains("spec.baseModel.uri"),
        "{log}"
    );
}

/// Claims are mounted at a fixed path, so the job runs in a mount namespace of its own.
#[test]
fn a_claim_that_is_mounted_gives_the_same_candidate() {
    let Some(python) = Python::find() else { return };
    let root = Command::new("id").arg("-u").output().unwrap();
    if root.stdout != b"0\n" {
        assert!(
            std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none(),
            "mounting takes root"
        );
        eprintln!("skipped: mounting takes root");
        return;
    }
    let fixture = Fixture::new(&python);
    let made = fixture.made();
    let job = fixture.pictures("pvc", "pvc://models/base/pictures.onnx", "pvc://data/pictures.tar");
    let parent = std::path::Path::new(CLAIMS_DIR).parent().unwrap();
    let script = format!(
        "set -e; mount -t tmpfs tmpfs {parent}; mkdir -p {CLAIMS_DIR}/models/base {CLAIMS_DIR}/data; \
         cp \"$0/pictures.onnx\" {CLAIMS_DIR}/models/base; cp \"$0/pictures.tar\" {CLAIMS_DIR}/data; exec \"$@\"",
        parent = parent.display()
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(fixture.dir.path())
        .arg(worker().get_program());
    let digest = finetune(&mut command, &job, &fixture.path("pvc"));
    let packed = fleetune_worker::artifact::pack(&made.join("version")).unwrap();
    assert_eq!(digest, packed.digest().to_string());
}
