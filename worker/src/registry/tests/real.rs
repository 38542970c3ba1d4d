//! The client against the registry that most people run.

use super::*;

/// A real registry on loopback, ended with this value. None where this machine has not got the program.
struct Real {
    child: std::process::Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn real() -> Option<Real> {
    let cache = std::env::var_os("FLEETUNE_CACHE").map(std::path::PathBuf::from);
    let cache = cache.or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".cache/fleetune")))?;
    let program = cache.join("bin/docker-registry");
    if !program.is_file() {
        eprintln!("skipped: {} is not there (the lab makes it)", program.display());
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let host = format!("127.0.0.1:{port}");
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}'}}\n",
        dir.path().display()
    );
    std::fs::write(dir.path().join("config.yml"), config).unwrap();
    let child = std::process::Command::new(program)
        .arg("serve")
        .arg(dir.path().join("config.yml"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    Some(Real { child, host, _dir: dir })
}

#[tokio::test]
async fn a_real_registry_takes_and_gives_all_of_it() {
    let Some(real) = real() else { return };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Registry::new([real.host.as_str()], Credentials::default()).unwrap();
    let repository = format!("{}/models/shirts", real.host);
    let dir = tempfile::tempdir().unwrap();
    version(&dir.path().join("v"), b"tuned");
    fs::write(dir.path().join("report.json"), r#"{"a": 1}"#).unwrap();
    fs::write(dir.path().join("report.html"), "<html>").unwrap();
    // Refused connections while it starts are passing errors.
    let digest = client.push_candidate(&repository, &dir.path().join("v")).await.unwrap();
    let report = client.push_report(&repository, &digest, dir.path()).await.unwrap();
    let signature = client.push_signature(&repository, &digest, b"{}").await.unwrap();
    client.tag(&repository, &digest, "shirts-1").await.unwrap();
    let into = dir.path().join("back");
    client.fetch_version(&repository, &digest, &into).await.unwrap();
    verify(&into, &digest).unwrap();
    assert_eq!(
        client.fetch_report(&repository, &report, &digest).await.unwrap()["a"],
        1
    );
    assert_eq!(
        client
            .fetch_signature(&repository, &signature, &digest)
            .await
            .unwrap()
            .bundle,
        b"{}"
    );
    let (_, tagged) = client.resolve(&format!("{repository}:shirts-1")).await.unwrap();
    assert_eq!(Digest::of(&tagged), digest);
    // Resumed by a range.
    let blob = VersionManifest::parse(&tagged).unwrap().manifest.layers[0].clone();
    let path = dir.path().join("blob");
    let place: Repository = repository.parse().unwrap();
    client.fetch_blob_file(&place, &blob, &path, 1 << 30).await.unwrap();
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(pull::partial_path(&path), &whole[..900_000]).unwrap();
    let stats = client.fetch_blob_file(&place, &blob, &path, 1 << 30).await.unwrap();
    assert_eq!(stats.bytes, blob.size - 900_000);
    let missing = client
        .fetch_manifest(&place, &Digest::of(b"missing"))
        .await
        .unwrap_err();
    assert_eq!(missing.reason(), "ArtifactNotFound");
}
