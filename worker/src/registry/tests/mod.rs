//! The client against a registry in this process: what goes right, and every way to go wrong.

mod real;

use super::fake::{Fake, Fault};
use super::*;
use crate::artifact::{Descriptor, Kind, Manifest, VersionManifest, pack, verify};
use axum::http::Method;
use std::fs;

pub(crate) fn version(dir: &Path, tuned: &[u8]) {
    fs::create_dir_all(dir.join("weights")).unwrap();
    fs::create_dir_all(dir.join("selftest")).unwrap();
    fs::write(dir.join("weights/tuned.bin"), tuned).unwrap();
    fs::write(dir.join("weights/backbone.bin"), vec![7; 1_000_000]).unwrap();
    for name in [
        "model.onnx",
        "pipeline.json",
        "labels.json",
        "selftest/expected.json",
        "lineage.json",
    ] {
        fs::write(dir.join(name), name).unwrap();
    }
}

async fn pushed(fake: &Fake) -> (tempfile::TempDir, Digest) {
    let dir = tempfile::tempdir().unwrap();
    version(&dir.path().join("v"), b"tuned");
    let digest = fake
        .client()
        .push_candidate(&fake.repository(), &dir.path().join("v"))
        .await
        .unwrap();
    (dir, digest)
}

fn backbone(fake: &Fake, digest: &Digest) -> Descriptor {
    let shelf = fake.shelf.lock().unwrap();
    let manifest = VersionManifest::parse(&shelf.manifests[digest.as_str()]).unwrap();
    manifest
        .layers()
        .find(|(kind, _)| *kind == Kind::Backbone)
        .unwrap()
        .1
        .clone()
}

#[tokio::test]
async fn a_version_goes_up_and_comes_back() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    assert_eq!(digest, pack(&dir.path().join("v")).unwrap().digest());
    let into = dir.path().join("back");
    let stats = fake
        .client()
        .fetch_version(&fake.repository(), &digest, &into)
        .await
        .unwrap();
    verify(&into, &digest).unwrap();
    assert!(stats.bytes > 1_000_000);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no scratch is left");
}

#[tokio::test]
async fn what_is_there_is_not_sent_again_and_the_manifest_goes_last() {
    let fake = Fake::start().await;
    let (dir, _) = pushed(&fake).await;
    let uploads = fake.count(&Method::PUT, "/blobs/uploads/");
    assert_eq!(uploads, 4);
    {
        let shelf = fake.shelf.lock().unwrap();
        let puts: Vec<_> = shelf.seen.iter().filter(|seen| seen.method == Method::PUT).collect();
        assert!(puts.last().unwrap().path.contains("/manifests/sha256:"));
        assert!(puts.iter().rev().skip(1).all(|seen| seen.path.contains("/blobs/")));
    }
    fs::write(dir.path().join("v/weights/tuned.bin"), "another head").unwrap();
    fake.client()
        .push_candidate(&fake.repository(), &dir.path().join("v"))
        .await
        .unwrap();
    // The tuned layer, and the configuration that names it.
    assert_eq!(fake.count(&Method::PUT, "/blobs/uploads/"), uploads + 2);
}

#[tokio::test]
async fn an_upload_that_fails_leaves_no_manifest() {
    let fake = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    version(dir.path(), b"tuned");
    for _ in 0..3 {
        fake.fail("/blobs/uploads/session", Fault::Status(503));
    }
    let error = fake
        .client()
        .push_candidate(&fake.repository(), dir.path())
        .await
        .unwrap_err();
    assert_eq!(
        (error.class(), error.reason()),
        (Code::Transient, "RegistryUnavailable")
    );
    assert!(fake.shelf.lock().unwrap().manifests.is_empty());
    fake.client()
        .push_candidate(&fake.repository(), dir.path())
        .await
        .unwrap();
}

#[tokio::test]
async fn report_and_signature_are_about_the_candidate() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    let repository = fake.repository();
    fs::write(dir.path().join("report.json"), r#"{"selfTest": {"tolerance": 0.001}}"#).unwrap();
    fs::write(dir.path().join("report.html"), "<html>").unwrap();
    let client = fake.client();
    let report = client.push_report(&repository, &digest, dir.path()).await.unwrap();
    let value = client.fetch_report(&repository, &report, &digest).await.unwrap();
    assert_eq!(value["selfTest"]["tolerance"], 0.001);
    let signature = client.push_signature(&repository, &digest, b"{}").await.unwrap();
    assert_eq!(
        client
            .fetch_signature(&repository, &signature, &digest)
            .await
            .unwrap()
            .bundle,
        b"{}"
    );
    let manifest = Manifest::parse(&fake.shelf.lock().unwrap().manifests[report.as_str()]).unwrap();
    assert_eq!(manifest.subject.unwrap().digest, digest);
    let other = Digest::of(b"other");
    for (what, result) in [
        (
            "report",
            client.fetch_report(&repository, &report, &other).await.map(|_| ()),
        ),
        (
            "signature",
            client
                .fetch_signature(&repository, &signature, &other)
                .await
                .map(|_| ()),
        ),
    ] {
        assert_eq!(result.unwrap_err().reason(), "ArtifactInvalid", "{what}");
    }
    client.tag(&repository, &digest, "shirts-1").await.unwrap();
    let (_, tagged) = client.resolve(&format!("{repository}:shirts-1")).await.unwrap();
    assert_eq!(Digest::of(&tagged), digest);
}

#[tokio::test]
async fn errors_have_a_class_and_a_reason() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    for (status, class, reason, requests) in [
        (401, Code::BadInput, "RegistryUnauthorized", 1),
        (403, Code::BadInput, "RegistryUnauthorized", 1),
        (404, Code::BadInput, "ArtifactNotFound", 1),
        (418, Code::BadInput, "RegistryRefused", 1),
        (429, Code::Transient, "RegistryUnavailable", 3),
        (500, Code::Transient, "RegistryUnavailable", 3),
        (503, Code::Transient, "RegistryUnavailable", 3),
    ] {
        let before = fake.count(&Method::GET, "/manifests/");
        for _ in 0..requests {
            fake.fail("/manifests/", Fault::Status(status));
        }
        let into = dir.path().join(status.to_string());
        let error = fake
            .client()
            .fetch_version(&fake.repository(), &digest, &into)
            .await
            .unwrap_err();
        assert_eq!((error.class(), error.reason()), (class, reason), "{status}: {error}");
        assert_eq!(fake.count(&Method::GET, "/manifests/") - before, requests, "{status}");
    }
    let gone = Registry::new(["127.0.0.1:1"], Credentials::default())
        .unwrap()
        .with_patience(Patience {
            attempts: 1,
            ..Patience::default()
        });
    let error = gone.resolve("127.0.0.1:1/a/b:c").await.unwrap_err();
    assert_eq!(
        (error.class(), error.reason()),
        (Code::Transient, "RegistryUnreachable")
    );
    for text in [
        "a",
        "/a",
        "host/",
        "host/A",
        "host/a b",
        "host/../x",
        "ho st/a",
        "host//a",
    ] {
        assert!(text.parse::<Repository>().is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_passing_error_is_tried_again() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    fake.fail("/manifests/", Fault::Status(500));
    fake.fail("/blobs/", Fault::Status(502));
    let into = dir.path().join("back");
    fake.client()
        .fetch_version(&fake.repository(), &digest, &into)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_download_that_is_cut_resumes_where_it_broke_off() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    let blob = backbone(&fake, &digest);
    let repository: Repository = fake.repository().parse().unwrap();
    for cut in [600_000, 300_000, 50_000] {
        fake.fail(blob.digest.as_str(), Fault::CutAfter(cut));
    }
    let path = dir.path().join("blob");
    let stats = fake
        .client()
        .fetch_blob_file(&repository, &blob, &path, 1 << 30)
        .await
        .unwrap();
    assert_eq!(Digest::of(&fs::read(&path).unwrap()), blob.digest);
    assert_eq!(stats.bytes, blob.size, "no byte came twice");
    let ranges: Vec<_> = {
        let shelf = fake.shelf.lock().unwrap();
        shelf.seen.iter().filter_map(|seen| seen.range.clone()).collect()
    };
    assert_eq!(ranges, ["bytes=600000-", "bytes=900000-", "bytes=950000-"]);
    // There already: nothing moves.
    let again = fake
        .client()
        .fetch_blob_file(&repository, &blob, &path, 1 << 30)
        .await
        .unwrap();
    assert_eq!(again.bytes, 0);
}

#[tokio::test]
async fn a_partial_file_of_an_earlier_process_is_used_unless_it_is_wrong() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    let blob = backbone(&fake, &digest);
    let repository: Repository = fake.repository().parse().unwrap();
    let whole = fake.shelf.lock().unwrap().blobs[blob.digest.as_str()].clone();
    let path = dir.path().join("blob");
    let mut wrong = whole[..700_000].to_vec();
    wrong[5] ^= 1;
    let mut long = whole.clone();
    long.extend_from_slice(b"more");
    for (name, partial, bytes) in [
        ("a good start", whole[..700_000].to_vec(), blob.size - 700_000),
        ("all of it", whole.clone(), 0),
        ("a wrong start", wrong, 2 * blob.size - 700_000),
        ("too long", long, blob.size),
    ] {
        fs::write(pull::partial_path(&path), partial).unwrap();
        let stats = fake
            .client()
            .fetch_blob_file(&repository, &blob, &path, 1 << 30)
            .await
            .unwrap();
        assert_eq!(stats.bytes, bytes, "{name}");
        assert_eq!(fs::read(&path).unwrap(), whole, "{name}");
        fs::remove_file(&path).unwrap();
    }
    fake.shelf.lock().unwrap().no_ranges = true;
    fs::write(pull::partial_path(&path), &whole[..700_000]).unwrap();
    fake.client()
        .fetch_blob_file(&repository, &blob, &path, 1 << 30)
        .await
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), whole, "a registry without ranges");
}

#[tokio::test]
async fn changed_bytes_are_refused_and_not_kept() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    let blob = backbone(&fake, &digest);
    let repository: Repository = fake.repository().parse().unwrap();
    fake.fail(blob.digest.as_str(), Fault::Flip);
    let path = dir.path().join("blob");
    let error = fake
        .client()
        .fetch_blob_file(&repository, &blob, &path, 1 << 30)
        .await
        .unwrap_err();
    assert_eq!((error.class(), error.reason()), (Code::BadInput, "DigestMismatch"));
    assert!(!path.exists() && !pull::partial_path(&path).exists());
    fake.fail("/manifests/", Fault::Flip);
    let error = fake.client().fetch_manifest(&repository, &digest).await.unwrap_err();
    assert_eq!(error.reason(), "DigestMismatch");
}

#[tokio::test]
async fn sizes_are_bounded_before_anything_is_stored() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    let mut blob = backbone(&fake, &digest);
    let repository: Repository = fake.repository().parse().unwrap();
    let path = dir.path().join("blob");
    let client = fake.client();
    let error = client
        .fetch_blob_file(&repository, &blob, &path, 1000)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "ArtifactTooLarge");
    // The registry gives more than the manifest announced.
    blob.size = 1000;
    let error = client
        .fetch_blob_file(&repository, &blob, &path, 1 << 30)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "ArtifactTooLarge");
    assert!(!path.exists() && !pull::partial_path(&path).exists());
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    let elsewhere = Fake::start().await;
    let text = format!(
        r#"{{"auths": {{"{}": {{"username": "u", "password": "p"}}}}}}"#,
        fake.host
    );
    let credentials = Credentials::parse(&text).unwrap();
    fake.shelf.lock().unwrap().auth = Some(("Basic dTpw".into(), "Basic realm=\"r\"".into()));
    let into = dir.path().join("none");
    let error = fake
        .client()
        .fetch_version(&fake.repository(), &digest, &into)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "RegistryUnauthorized");
    assert!(error.to_string().contains(&fake.host), "{error}");
    let client = fake.client_with(credentials);
    client
        .fetch_version(&fake.repository(), &digest, &dir.path().join("back"))
        .await
        .unwrap();
    // A redirect to another host gives the bytes, and never sees the password.
    let blob = backbone(&fake, &digest);
    let bytes = fake.shelf.lock().unwrap().blobs[blob.digest.as_str()].clone();
    elsewhere
        .shelf
        .lock()
        .unwrap()
        .blobs
        .insert(blob.digest.to_string(), bytes);
    fake.fail(
        blob.digest.as_str(),
        Fault::Redirect(format!("http://{}/v2/x/blobs/{}", elsewhere.host, blob.digest)),
    );
    let repository: Repository = fake.repository().parse().unwrap();
    client
        .fetch_blob_file(&repository, &blob, &dir.path().join("blob"), 1 << 30)
        .await
        .unwrap();
    let seen = elsewhere.shelf.lock().unwrap().seen.clone();
    assert_eq!(seen.len(), 1);
    assert!(seen.iter().all(|seen| seen.authorization.is_none()));
}

#[tokio::test]
async fn tokens_come_from_the_service_with_only_its_own_credentials() {
    let fake = Fake::start().await;
    let (dir, digest) = pushed(&fake).await;
    let service = Fake::start().await;
    service.shelf.lock().unwrap().token = Some("t0ken".into());
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"r\"", service.host);
    fake.shelf.lock().unwrap().auth = Some(("Bearer t0ken".into(), challenge));
    let text = format!(
        r#"{{"auths": {{"{}": {{"username": "u", "password": "p"}}}}}}"#,
        fake.host
    );
    fake.client_with(Credentials::parse(&text).unwrap())
        .fetch_version(&fake.repository(), &digest, &dir.path().join("a"))
        .await
        .unwrap();
    assert!(
        service
            .shelf
            .lock()
            .unwrap()
            .seen
            .iter()
            .all(|seen| seen.authorization.is_none())
    );
    assert_eq!(service.shelf.lock().unwrap().seen.len(), 1, "the token is kept");
    assert!(
        fake.shelf
            .lock()
            .unwrap()
            .seen
            .iter()
            .all(|s| s.authorization.as_deref() != Some("Basic dTpw"))
    );
    let text = format!(
        r#"{{"auths": {{"{}": {{"username": "u", "password": "p"}}}}}}"#,
        service.host
    );
    fake.client_with(Credentials::parse(&text).unwrap())
        .fetch_version(&fake.repository(), &digest, &dir.path().join("b"))
        .await
        .unwrap();
    let seen = service.shelf.lock().unwrap().seen.last().unwrap().clone();
    assert_eq!(seen.authorization.as_deref(), Some("Basic dTpw"));
}
