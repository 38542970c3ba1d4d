//! What holds, and everything else, which is refused.

use super::statement::statement;
use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::SigningKey;
use p256::pkcs8::{EncodePrivateKey as _, LineEnding};

pub(crate) fn signer(seed: u8) -> Signer {
    Signer(SigningKey::from_slice(&[seed; 32]).unwrap())
}

pub(crate) fn private_pem(signer: &Signer) -> String {
    signer.0.to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
}

fn claim() -> Claim {
    Claim {
        namespace: "shop".into(),
        model_name: "shirts".into(),
        candidate: Digest::of(b"candidate"),
        report: Digest::of(b"report"),
    }
}

fn files() -> Files {
    Files::from([("model.onnx".to_owned(), Digest::of(b"m").hex().to_owned())])
}

fn ring(signer: &Signer, namespaces: &[&str]) -> Keyring {
    let namespaces = namespaces.iter().map(|n| (*n).to_owned()).collect();
    Keyring::new(vec![
        TrustedKey::new("k", &signer.public_pem().unwrap(), namespaces).unwrap(),
    ])
}

#[test]
fn a_good_signature_holds_and_is_the_same_each_time() {
    let bundle = signer(1).sign(&claim(), &files()).unwrap();
    assert_eq!(bundle, signer(1).sign(&claim(), &files()).unwrap());
    for namespaces in [&["*"][..], &["shop"], &["other", "shop"]] {
        assert_eq!(ring(&signer(1), namespaces).verify(&bundle, &claim()).unwrap(), files());
    }
}

#[test]
fn keys_survive_pem() {
    let pem = signer(1).0.to_pkcs8_pem(LineEnding::LF).unwrap();
    let read = Signer::from_pem(&pem).unwrap();
    assert_eq!(read.public_pem().unwrap(), signer(1).public_pem().unwrap());
    assert!(Signer::from_pem("nonsense").is_err());
    assert_eq!(
        TrustedKey::new("k", "nonsense", vec![]).unwrap_err().reason(),
        "SigningKeyInvalid"
    );
}

#[test]
fn everything_else_is_refused() {
    let bundle = signer(1).sign(&claim(), &files()).unwrap();
    let good = ring(&signer(1), &["*"]);
    let other = |change: &dyn Fn(&mut Claim)| {
        let mut claim = claim();
        change(&mut claim);
        claim
    };
    let cases = [
        ("another key", ring(&signer(2), &["*"]), claim(), "pinned keys"),
        ("no key", Keyring::default(), claim(), "0 pinned keys"),
        (
            "a namespace the key may not sign for",
            ring(&signer(1), &["lab"]),
            claim(),
            "may not sign",
        ),
        (
            "another namespace",
            good.clone(),
            other(&|c| c.namespace = "lab".into()),
            "made for namespace",
        ),
        (
            "another model",
            good.clone(),
            other(&|c| c.model_name = "x".into()),
            "made for model",
        ),
        (
            "another candidate",
            good.clone(),
            other(&|c| c.candidate = Digest::of(b"x")),
            "made for candidate",
        ),
        (
            "another report",
            good.clone(),
            other(&|c| c.report = Digest::of(b"x")),
            "made for report",
        ),
    ];
    for (name, ring, claim, text) in cases {
        let error = ring.verify(&bundle, &claim).unwrap_err();
        assert_eq!(error.reason(), "SignatureInvalid", "{name}");
        assert!(error.to_string().contains(text), "{name}: {error}");
    }
}

#[test]
fn a_changed_payload_or_envelope_is_refused() {
    let bundle = signer(1).sign(&claim(), &files()).unwrap();
    let good = ring(&signer(1), &["*"]);
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value = serde_json::from_slice(&bundle).unwrap();
        change(&mut value);
        good.verify(&serde_json::to_vec(&value).unwrap(), &claim())
            .unwrap_err()
            .to_string()
    };
    let payload = STANDARD.encode(serde_json::to_vec(&statement(&claim(), &Files::new())).unwrap());
    assert!(change(&|v| v["dsseEnvelope"]["payload"] = payload.clone().into()).contains("pinned"));
    assert!(change(&|v| v["dsseEnvelope"]["payloadType"] = "text/plain".into()).contains("type"));
    assert!(change(&|v| v["mediaType"] = "x".into()).contains("type"));
    assert!(change(&|v| v["dsseEnvelope"]["signatures"] = serde_json::json!([])).contains("one signature"));
    assert!(change(&|v| v["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA".into()).contains("ECDSA"));
    assert!(good.verify(b"{}", &claim()).is_err());
    assert!(good.verify(&vec![b' '; MAX_BUNDLE + 1], &claim()).is_err());
}

#[test]
fn files_must_be_those_that_were_signed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "a").unwrap();
    std::fs::write(dir.path().join("b"), "b").unwrap();
    let signed = hash_files(dir.path()).unwrap();
    check_files(dir.path(), &signed).unwrap();
    std::fs::write(dir.path().join("c"), "c").unwrap();
    assert!(
        check_files(dir.path(), &signed)
            .unwrap_err()
            .to_string()
            .contains("file c")
    );
    std::fs::remove_file(dir.path().join("c")).unwrap();
    std::fs::remove_file(dir.path().join("a")).unwrap();
    assert!(
        check_files(dir.path(), &signed)
            .unwrap_err()
            .to_string()
            .contains("file a")
    );
}
