//! Starts of the process: what it serves before it is asked, and who caught whom when it ends badly.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn after_a_start_it_serves_before_it_is_asked() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let models = Echoes::default();
    let node = site.start(&models, "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let before = node.state();
    node.kill().await;
    // Registry and API are gone.
    site.fake.shelf.lock().unwrap().manifests.clear();
    let requests = site.fake.shelf.lock().unwrap().seen.len();
    let node = site.start(&models, "b1", "another boot");
    node.serves(Some(&one)).await;
    assert_eq!(node.ask(), Ok(1.0));
    assert!(*node.shared.ready.borrow());
    assert_eq!(
        models.tests.load(Ordering::SeqCst),
        1,
        "the same build need not test again"
    );
    assert_eq!(node.state(), before, "nothing new to say");
    assert_eq!(site.fake.shelf.lock().unwrap().seen.len(), requests);
    node.stop().await;
    let node = site.start(&models, "b2", "another boot");
    node.serves(Some(&one)).await;
    assert_eq!(models.tests.load(Ordering::SeqCst), 2, "another build tests first");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_ends_the_process_is_caught_by_its_trial_mark() {
    let site = Site::new().await;
    let (one, two) = (site.publish("1").await, site.publish("2").await);
    let models = Echoes::default();
    let mut node = site.start(&models, "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    let trial = order(2, Some(&two), Some(&one), "1h");
    node.order(trial.clone());
    node.until("on trial", |s| s.active.as_ref() == Some(&two.digest)).await;
    // A reboot and an orderly stop are not the version's fault.
    node.kill().await;
    node = site.start(&models, "b1", "second boot");
    node.serves(Some(&two)).await;
    node.stop().await;
    for _ in 0..crate::store::FORGIVEN_EXITS {
        node = site.start(&models, "b1", "second boot");
        node.serves(Some(&two)).await;
        node.kill().await;
    }
    node = site.start(&models, "b1", "second boot");
    node.serves(Some(&two)).await;
    node.kill().await;
    node = site.start(&models, "b1", "second boot");
    node.order(trial);
    let state = node
        .until("caught", |s| {
            s.state == VersionState::Failed && s.active.as_ref() == Some(&one.digest)
        })
        .await;
    assert_eq!(state.reason, "CrashLoop");
    assert_eq!(node.ask(), Ok(1.0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_runtime_serves_along_and_takes_over() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let models = Echoes::default();
    let old = site.start(&models, "b1", "boot");
    old.order(order(1, Some(&one), None, "0s"));
    old.until("proven", |s| s.state == VersionState::Proven).await;
    let new = site.start(&models, "b2", "boot");
    new.serves(Some(&one)).await;
    assert!(new.shared.ready.borrow().to_owned());
    assert!(!new.shared.locked.borrow().to_owned(), "the old one holds the lock");
    // What the old one switches to, the new one serves too.
    let two = site.publish("2").await;
    old.order(order(2, Some(&two), Some(&one), "0s"));
    new.serves(Some(&two)).await;
    old.stop().await;
    new.shared.locked.subscribe().wait_for(|locked| *locked).await.unwrap();
    new.until("goes on", |s| s.state == VersionState::Proven && s.epoch == 2)
        .await;
    assert_eq!(
        models.tests.load(Ordering::SeqCst),
        4,
        "each version once under each build"
    );
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_rot_are_fetched_again() {
    let site = Site::new().await;
    let one = site.publish("1").await;
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.order(order(1, Some(&one), None, "0s"));
    node.until("proven", |s| s.state == VersionState::Proven).await;
    node.stop().await;
    let file = site
        .dir
        .path()
        .join("versions")
        .join(one.digest.hex())
        .join("weights/tuned.bin");
    std::fs::write(file, "9").unwrap();
    let node = site.start(&Echoes::default(), "b1", "boot");
    node.serves(Some(&one)).await;
    assert_eq!(node.ask(), Ok(1.0));
    node.stop().await;
}
