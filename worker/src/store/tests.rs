//! The store, ended at every step of what it does and opened again.

use super::*;
use crate::artifact::pack;
use crate::registry::tests::version;
use std::os::unix::fs::MetadataExt;

struct Made {
    digest: Digest,
    packed: crate::artifact::Packed,
    _dir: tempfile::TempDir,
}

fn made(tuned: &[u8]) -> Made {
    let dir = tempfile::tempdir().unwrap();
    version(dir.path(), tuned);
    let packed = pack(dir.path()).unwrap();
    Made {
        digest: packed.digest(),
        packed,
        _dir: dir,
    }
}

/// What staging does, with the download replaced by a copy.
fn stage(store: &Store, made: &Made) -> Result<(), ArtifactError> {
    for layer in &made.packed.layers {
        if store.has_layer(&layer.digest) {
            continue;
        }
        let path = store.download_path(&layer.digest);
        let mut file = File::create(&path).unwrap();
        io::copy(&mut layer.reader().unwrap(), &mut file).unwrap();
        store.add_layer(layer.kind, &layer.digest)?;
    }
    store.add_version(&made.digest, &made.packed.manifest)
}

#[test]
fn versions_share_their_backbone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (one, two) = (made(b"one"), made(b"two"));
    stage(&store, &one).unwrap();
    stage(&store, &two).unwrap();
    let inode = |made: &Made| {
        fs::metadata(store.version_dir(&made.digest).join("weights/backbone.bin"))
            .unwrap()
            .ino()
    };
    assert_eq!(inode(&one), inode(&two));
    store.verify(&one.digest).unwrap();
    store
        .collect(&BTreeSet::from([two.digest.clone()]), &BTreeSet::new())
        .unwrap();
    assert!(!store.has_version(&one.digest));
    store.verify(&two.digest).unwrap();
    assert_eq!(store.names("layers").unwrap().len(), 3);
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn one_process_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let lock = store.try_lock().unwrap().unwrap();
    assert!(Store::open(dir.path()).unwrap().try_lock().unwrap().is_none());
    drop(lock);
    assert!(store.try_lock().unwrap().is_some());
}

#[test]
fn a_power_cut_at_any_step_of_staging_leaves_a_whole_store() {
    let (one, two) = (made(b"one"), made(b"two"));
    let mut steps = 0;
    loop {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        stage(&store, &one).unwrap();
        disk::faults::crash_after(steps);
        let result = stage(&store, &two);
        disk::faults::reboot();
        let crashed = result.is_err();
        let store = Store::open(dir.path()).unwrap();
        let _lock = store.try_lock().unwrap().unwrap();
        store.verify(&one.digest).unwrap();
        if store.has_version(&two.digest) {
            store.verify(&two.digest).unwrap();
        }
        let keep = BTreeSet::from([one.digest.clone(), two.digest.clone()]);
        store.collect(&keep, &BTreeSet::new()).unwrap();
        stage(&store, &two).unwrap();
        store.verify(&one.digest).unwrap();
        store.verify(&two.digest).unwrap();
        if !crashed {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20, "{steps} steps");
}

#[test]
fn a_power_cut_at_any_step_of_collecting_keeps_what_is_kept() {
    let (one, two) = (made(b"one"), made(b"two"));
    let keep = BTreeSet::from([two.digest.clone()]);
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        stage(&store, &one).unwrap();
        stage(&store, &two).unwrap();
        disk::faults::crash_after(steps);
        let _ = store.collect(&keep, &BTreeSet::new());
        let crashed = disk::faults::reboot();
        let store = Store::open(dir.path()).unwrap();
        let _lock = store.try_lock().unwrap().unwrap();
        store.verify(&two.digest).unwrap();
        if store.has_version(&one.digest) {
            store.verify(&one.digest).unwrap();
        }
        store.collect(&keep, &BTreeSet::new()).unwrap();
        store.verify(&two.digest).unwrap();
        assert_eq!(store.names("versions").unwrap(), std::slice::from_ref(&two.digest));
        assert_eq!(store.names("layers").unwrap().len(), 3);
        if !crashed {
            break;
        }
    }
}

#[test]
fn a_power_cut_while_a_journal_is_written_leaves_the_old_or_the_new_one() {
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut journal = Journal::new("shop/shirts");
        journal.epoch = 1;
        store.write_journal(&journal).unwrap();
        let old = journal.clone();
        journal.epoch = 2;
        disk::faults::crash_after(steps);
        let _ = store.write_journal(&journal);
        let crashed = disk::faults::reboot();
        let store = Store::open(dir.path()).unwrap();
        let found = store.journals().unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0] == old || found[0] == journal);
        if !crashed {
            assert_eq!(found[0], journal);
            break;
        }
    }
}

#[test]
fn what_rots_on_disk_is_found_and_discarded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let one = made(b"one");
    stage(&store, &one).unwrap();
    let file = store.version_dir(&one.digest).join("weights/backbone.bin");
    let mut bytes = fs::read(&file).unwrap();
    bytes[1234] ^= 1;
    // In place: the hard link in the layer changes with it.
    fs::write(&file, bytes).unwrap();
    assert_eq!(store.verify(&one.digest).unwrap_err().reason(), "DigestMismatch");
    store.discard(&one.digest).unwrap();
    assert!(!store.has_version(&one.digest) && store.names("layers").unwrap().is_empty());
    stage(&store, &one).unwrap();
    store.verify(&one.digest).unwrap();
}

#[test]
fn a_rotten_layer_is_not_built_upon() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (one, two) = (made(b"one"), made(b"two"));
    stage(&store, &one).unwrap();
    let backbone = &one.packed.layers[0].digest;
    let file = store.layer_dir(backbone).join("weights/backbone.bin");
    fs::write(&file, "rotten").unwrap();
    assert_eq!(stage(&store, &two).unwrap_err().reason(), "DigestMismatch");
    assert!(!store.has_layer(backbone));
    stage(&store, &two).unwrap();
    store.verify(&two.digest).unwrap();
}

#[test]
fn a_download_under_way_survives_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let one = made(b"one");
    let partial = crate::registry::partial_path(&store.download_path(&one.digest));
    fs::write(&partial, "some").unwrap();
    fs::write(store.tmp("journal-x"), "half").unwrap();
    let _lock = store.try_lock().unwrap().unwrap();
    assert!(partial.exists());
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 1);
}

#[test]
fn what_has_come_of_a_version_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let one = made(b"one");
    store.expect_version(&one.digest, &one.packed.manifest).unwrap();
    let [whole, begun, ..] = &one.packed.layers[..] else {
        panic!("a version has three layers")
    };
    let mut file = File::create(store.download_path(&whole.digest)).unwrap();
    io::copy(&mut whole.reader().unwrap(), &mut file).unwrap();
    store.add_layer(whole.kind, &whole.digest).unwrap();
    let partial = crate::registry::partial_path(&store.download_path(&begun.digest));
    fs::write(&partial, "some").unwrap();

    let store = Store::open(dir.path()).unwrap();
    let _lock = store.try_lock().unwrap().unwrap();
    let keep = BTreeSet::from([one.digest.clone()]);
    store.collect(&keep, &BTreeSet::new()).unwrap();
    assert!(store.has_layer(&whole.digest) && partial.exists());
    // Once nobody wants the version, nothing of it stays.
    store.collect(&BTreeSet::new(), &BTreeSet::new()).unwrap();
    assert!(!store.has_layer(&whole.digest) && !partial.exists());
    assert!(store.names("manifests").unwrap().is_empty());
}
