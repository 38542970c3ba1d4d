//! What `publish` signs is what the verifier of OpenSSF Model Signing accepts, with the public key alone.

use super::fixture::{Fixture, worker};
use super::programs::{self, Python, run};
use fleetune_crds::common::Digest;
use fleetune_crds::names::ENV_INSECURE_REGISTRIES;
use fleetune_worker::registry::{Credentials, Registry};
use fleetune_worker::sign::Signer;
use p256::ecdsa::SigningKey;
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};

#[tokio::test(flavor = "multi_thread")]
async fn published_versions_pass_the_verifier_of_openssf() {
    let (Some(python), Some(server)) = (Python::find(), programs::Registry::start()) else {
        return;
    };
    let fixture = Fixture::new(&python);
    let made = fixture.made();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = Registry::new([server.host.as_str()], Credentials::default()).unwrap();
    let repository = format!("{}/models/tiny", server.host);
    let candidate = registry
        .push_candidate(&repository, &made.join("version"))
        .await
        .unwrap();
    let report = registry
        .push_report(&repository, &candidate, &made.join("report"))
        .await
        .unwrap();
    let key = |seed: u8| {
        SigningKey::from_slice(&[seed; 32])
            .unwrap()
            .to_pkcs8_pem(LineEnding::LF)
            .unwrap()
    };
    std::fs::write(fixture.path("key.pem"), key(7).as_bytes()).unwrap();
    let job = std::fs::read_to_string(fixture.path("made.yaml")).unwrap();
    std::fs::write(
        fixture.path("job.yaml"),
        job.replace("registry.lab:5000/tiny", &repository),
    )
    .unwrap();
    let mut publish = worker();
    publish
        .env(ENV_INSECURE_REGISTRIES, &server.host)
        .args([
            "publish",
            "--candidate",
            candidate.as_str(),
            "--report",
            report.as_str(),
            "-f",
        ])
        .arg(fixture.path("job.yaml"))
        .arg("--key")
        .arg(fixture.path("key.pem"));
    run(&mut publish, 0);
    let tag = format!("{repository}:tiny-{}.sig", candidate.short());
    let signature = Digest::of(&registry.resolve(&tag).await.unwrap().1);
    let signed = registry
        .fetch_signature(&repository, &signature, &candidate)
        .await
        .unwrap();
    std::fs::write(fixture.path("bundle.json"), &signed.bundle).unwrap();

    // What anybody downloads, and the two files that the verifier needs.
    let version = fixture.path("downloaded");
    registry.fetch_version(&repository, &candidate, &version).await.unwrap();
    let public = |seed: u8| Signer::from_pem(&key(seed)).unwrap().public_pem().unwrap();
    std::fs::write(fixture.path("public.pem"), public(7)).unwrap();
    std::fs::write(fixture.path("other.pem"), public(8)).unwrap();
    let verify = |key: &str, code: i32| {
        let mut command = python.script("verify_signature.py");
        command
            .arg(&version)
            .arg(fixture.path("bundle.json"))
            .arg(fixture.path(key));
        run(&mut command, code)
    };
    verify("public.pem", 0);
    assert!(verify("other.pem", 3).contains("Key mismatch"));
    let labels = version.join("labels.json");
    let whole = std::fs::read(&labels).unwrap();
    std::fs::write(&labels, "[]").unwrap();
    assert!(verify("public.pem", 3).contains("labels.json"));
    std::fs::write(&labels, whole).unwrap();
    std::fs::write(version.join("extra"), "").unwrap();
    assert!(verify("public.pem", 3).contains("extra"));
    std::fs::remove_file(version.join("extra")).unwrap();
    verify("public.pem", 0);
}
