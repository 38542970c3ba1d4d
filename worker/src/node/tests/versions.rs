//! Orders and versions: what is staged, served, refused, skipped, and returned from.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_staged_tested_served_and_proven() {
    let site = Site::new().await;
    let models = Echoes::default();
    let one = site.publish("1").await;
    let node = site.start(&models, "b1", "boot");
    node.order(order(1, Some(&one), None, "300ms"));
    let state = node.until("active", |s| s.state == VersionState::Active).await;
    assert_eq!(
        (state.digest.as_ref(), state.active.as_ref()),
        (Some(&one.digest), Some(&one.digest))
    );
    assert_eq!(node.ask(), Ok(1.0));
    assert!(
        node.shared.journal(KEY).unwrap().trial.is_some(),
        "the trial mark stands while the soak lasts"
    );
    node.until("proven", |s| s.state == VersionState::Proven).await;
    assert!(node.shared.journal(KEY).unwrap().trial.is_none());
    assert_eq!(models.tests.load(Ordering::SeqCst), 1);
    // An older epoch is nobody's order.
    let two = site.publish("2").await;
    node.order(order(0, Some(&two), None, "0s"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(node.ask(), Ok(1.0));
    // Neither is an order to unload with the epoch that serves.
    let mut remove = order(1, None, None, "0s");
    node.order(remove.clone());
    remove.state = OrderState::Remove;
    node.order(remove.clone());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(node.ask(), Ok(1.0));
    remove.epoch = 2;
    node.order(remove);
    node.until("removed", |s| s.state == VersionState::Removed).await;
    assert_eq!(node.ask(), Err(()));
    eventually("the store is empty", || {
        std::fs::read_dir(site.dir.path().join("layers")).unwrap().count() == 0
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_only_update_fetches_little_and_going_back_nothing() {
    let site = Site::new().await;
    let models = Echoes::default();
    let (one, two) = (site.publish("1").await, site.publish("2").await);
    let node = site.start(&models, "b1", "boot");
    let fetched = || node.shared.metrics.fetched.with_label_values(&[KEY]).get();
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let first = fetched();
    assert!(first > 1_000_000);
    node.order(order(2, Some(&two), Some(&one), "10s"));
    node.until("active", |s| s.active.as_ref() == Some(&two.digest)).await;
    let second = fetched() - first;
    assert!(second * 50 < first, "{second} of {first}");
    let (requests, start) = (site.fake.shelf.lock().unwrap().seen.len(), Instant::now());
    node.order(order(3, Some(&one), None, "10s"));
    node.until("back", |s| s.epoch == 3 && s.state == VersionState::Proven)
        .await;
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(node.ask(), Ok(1.0));
    assert_eq!(
        site.fake.shelf.lock().unwrap().seen.len(),
        requests,
        "nothing is asked of the registry"
    );
    assert_eq!(
        models.tests.load(Ordering::SeqCst),
        2,
        "what passed here need not pass again"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_versions_never_serve() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let large = r#"[{"class": "*", "maxBytes": "1k"}]"#;
    let other_report = Source {
        report: one.report.clone(),
        ..site.publish("4").await
    };
    let other_contract = Source {
        contract: Digest::of(b"other"),
        ..site.publish("5").await
    };
    let flipped = site.publish("6").await;
    {
        let mut shelf = site.fake.shelf.lock().unwrap();
        let manifest = crate::artifact::Manifest::parse(&shelf.manifests[flipped.digest.as_str()]).unwrap();
        shelf.blobs.get_mut(manifest.layers[1].digest.as_str()).unwrap()[600] ^= 1;
    }
    let cases = [
        (
            "another key",
            site.publish_as("2", 2, "shop", "[]").await,
            "SignatureInvalid",
        ),
        (
            "another namespace",
            site.publish_as("3", 1, "lab", "[]").await,
            "SignatureInvalid",
        ),
        ("another report", other_report, "SignatureInvalid"),
        ("changed bytes", flipped, "DigestMismatch"),
        ("another contract", other_contract, "ContractMismatch"),
        ("untrue outputs", site.publish(UNTRUE).await, "SelfTestFailed"),
        (
            "over its budget",
            site.publish_as("7", 1, "shop", large).await,
            "BudgetExceeded",
        ),
    ];
    for (epoch, (name, source, reason)) in (2..).zip(cases) {
        node.order(order(epoch, Some(&source), Some(&one), "0s"));
        let state = node
            .until(name, |s| s.epoch == epoch && s.state == VersionState::Failed)
            .await;
        assert_eq!(state.reason, reason, "{name}: {}", state.message);
        assert_eq!(state.active.as_ref(), Some(&one.digest), "{name}");
        assert_eq!(node.ask(), Ok(1.0), "{name}");
        // Asked again, it is refused without a look.
        let requests = site.fake.shelf.lock().unwrap().seen.len();
        node.order(order(epoch, Some(&source), None, "1s"));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(site.fake.shelf.lock().unwrap().seen.len(), requests, "{name}");
        assert_eq!(node.ask(), Ok(1.0), "{name}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_skipped() {
    let site = Site::new().await;
    let mut one = site.publish("1").await;
    {
        let mut shelf = site.fake.shelf.lock().unwrap();
        let text = String::from_utf8(shelf.manifests[one.digest.as_str()].clone()).unwrap();
        let newer = text.replace(r#""fleetune.dev/format":"1""#, r#""fleetune.dev/format":"2""#);
        one.digest = Digest::of(newer.as_bytes());
        shelf.manifests.insert(one.digest.to_string(), newer.into_bytes());
    }
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    let state = node.until("skipped", |s| s.state == VersionState::Skipped).await;
    assert_eq!(state.reason, "UnsupportedFormat");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_a_version_is_skipped_and_what_serves_stays() {
    let site = Site::new().await;
    let (one, large) = (site.publish("1").await, site.publish(LARGE).await);
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    node.order(order(2, Some(&large), Some(&one), "0s"));
    let state = node.until("skipped", |s| s.state == VersionState::Skipped).await;
    assert_eq!(
        (state.reason.as_str(), state.active.as_ref()),
        ("BudgetExceeded", Some(&one.digest))
    );
    assert_eq!(node.ask(), Ok(1.0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_models_do_not_touch_each_other() {
    let site = Site::new().await;
    let (one, two) = (site.publish("1").await, site.publish("2").await);
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let before = node.state();
    // Signed for another model: refused there, no matter here.
    node.shared.orders.send_modify(|orders| {
        orders
            .models
            .insert("shop/coats".into(), order(1, Some(&two), None, "0s"));
    });
    let other = || node.shared.states.borrow().get("shop/coats").map(|state| state.state);
    while other() != Some(VersionState::Failed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut remove = order(2, None, None, "0s");
    remove.state = OrderState::Remove;
    node.shared.orders.send_modify(|orders| {
        orders.models.insert("shop/coats".into(), remove);
    });
    while other() != Some(VersionState::Removed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(node.state(), before);
    assert_eq!(node.ask(), Ok(1.0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_away_is_waited_for() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    for _ in 0..3 {
        site.fake.fail("/manifests/", Fault::Status(503));
    }
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    let state = node.until("trouble", |s| !s.reason.is_empty()).await;
    assert_eq!(
        (state.state, state.reason.as_str()),
        (VersionState::Staging, "RegistryUnavailable")
    );
    node.until("proven", |s| s.state == VersionState::Proven).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_ends_with_errors_or_latency() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let slow = r#"[{"class": "*", "maxP95Latency": "20ms"}]"#;
    for (epoch, source, reason) in [
        (2, site.publish(ERRS).await, "Errors"),
        (3, site.publish_as(SLOW, 1, "shop", slow).await, "Latency"),
    ] {
        node.order(order(epoch, Some(&source), Some(&one), "1h"));
        node.until("on trial", |s| s.active.as_ref() == Some(&source.digest))
            .await;
        for _ in 0..60 {
            let _ = node.ask();
            if node.state().unwrap().state == VersionState::Failed {
                break;
            }
            tokio::task::yield_now().await;
        }
        let state = node
            .until(reason, |s| {
                s.state == VersionState::Failed && s.active.as_ref() == Some(&one.digest)
            })
            .await;
        assert_eq!(state.reason, reason, "{}", state.message);
        node.serves(Some(&one)).await;
        assert_eq!(node.ask(), Ok(1.0));
        assert!(
            !site.dir.path().join("versions").join(source.digest.hex()).exists(),
            "it is never loaded again"
        );
    }
    // Without a fallback, what failed leaves nothing.
    let bad = site.publish_as(ERRS, 1, "shop", "[{\"class\": \"x\"}]").await;
    node.order(order(4, Some(&bad), None, "1h"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        node.state().unwrap().state,
        VersionState::Failed,
        "refused for ever, whatever its report says"
    );
    node.serves(Some(&one)).await;
    node.stop().await;
}
