//! What the frozen part gives, kept beyond a run: the same bytes with and without it, and never those of another cut, pipeline
//! or data set.

use super::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

const HEAD_BYTES: usize = 8 + 32 + 16;
const HASH_BYTES: usize = 32;

struct Volume(tempfile::TempDir);

impl Volume {
    fn run(&self, files: &Files, threads: usize, out: &str) -> String {
        let cache = Cache::in_folder(self.0.path());
        digest(&run_with(files, threads, out, &|_| true, Some(cache)).unwrap())
    }

    /// The files by their names.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let read = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
        entries.map(|entry| read(entry.unwrap().path())).collect()
    }
}

fn layers(more: &str) -> Files {
    picture_files(&format!(
        "{{method: LastLayers, lastLayers: {{count: 1}}, {SHORT}{more}}}"
    ))
}

#[test]
fn a_run_on_rows_of_another_run_ends_in_the_same_bytes() {
    for more in ["", ", augmentation: {copies: 1, image: {flip: true}}"] {
        let volume = Volume(tempfile::tempdir().unwrap());
        let files = layers(more);
        let want = digest(&run(&files, 2, "without").unwrap());
        assert_eq!(volume.run(&files, 2, "first"), want);
        let kept = volume.files();
        assert_eq!(kept.len(), 4, "features and rows at the border, of two parts");
        assert_eq!(volume.run(&files, 1, "second"), want);
        assert_eq!(volume.files(), kept);
        // Rows with other values and their right hash: the result changes, so they are what is trained on.
        for (path, mut bytes) in kept {
            let end = bytes.len() - HASH_BYTES;
            bytes[HEAD_BYTES..end].fill(0);
            let hash = Sha256::digest(&bytes[..end]);
            bytes[end..].copy_from_slice(&hash);
            std::fs::write(path, bytes).unwrap();
        }
        assert_ne!(volume.run(&files, 2, "other"), want);
        // And those that were damaged are not.
        for (path, mut bytes) in volume.files() {
            bytes[HEAD_BYTES] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
        assert_eq!(volume.run(&files, 2, "third"), want);
    }
}

#[test]
fn jobs_share_rows_where_base_model_cut_pipeline_and_data_are_the_same() {
    let volume = Volume(tempfile::tempdir().unwrap());
    let added = |files: &Files, out: &str| {
        let before = volume.files().len();
        let want = digest(&run(files, 2, "without").unwrap());
        assert_eq!(volume.run(files, 2, out), want, "{out}");
        volume.files().len() - before
    };
    assert_eq!(added(&layers(""), "first"), 4);
    assert_eq!(added(&layers(", weightDecay: '0.1'"), "another rule"), 0);
    assert_eq!(added(&picture_files("{method: Head, epochs: 2}"), "head"), 0);
    let variants = ", augmentation: {copies: 1, image: {flip: true}}";
    assert_eq!(added(&layers(variants), "variants"), 2, "validation rows do not vary");
    assert_eq!(added(&layers(&format!("{variants}, seed: 5")), "other variants"), 2);
    let deeper = "{method: LastLayers, lastLayers: {count: 2}, epochs: 1}";
    assert_eq!(
        added(&picture_files(deeper), "another cut"),
        2,
        "the features are the same"
    );
    let mut split = layers("");
    split.job.split.seed = 3;
    assert_eq!(added(&split, "another split"), 4);
    let mut size = layers("");
    size.job.spec.input.image.as_mut().unwrap().size = 24;
    assert_eq!(added(&size, "another size"), 4);
}
