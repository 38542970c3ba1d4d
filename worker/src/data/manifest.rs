//! The data manifest: sorted (key, size, sha256) of every file of the data set, and its digest. Later pods read exactly
//! these bytes or end with DataChanged. Keys do not depend on where the files were fetched from.

use super::FileRef;
use crate::error::{INTERNAL, Result, WorkerError};
use fleetune_crds::common::Digest;
use serde::Serialize;

#[derive(Serialize)]
struct Entry<'a> {
    key: &'a str,
    size: u64,
    sha256: String,
}

/// The digest of the manifest of `files`, which are sorted by key already.
pub fn digest(files: &[FileRef]) -> Result<Digest> {
    let entries: Vec<Entry<'_>> = files
        .iter()
        .map(|f| Entry {
            key: &f.key,
            size: f.size,
            sha256: hex::encode(f.sha256),
        })
        .collect();
    let text = serde_json::to_vec(&entries).map_err(|e| WorkerError::bad(INTERNAL, format!("data manifest: {e}")))?;
    Ok(Digest::of(&text))
}

/// Ends with DataChanged unless `seen` is the manifest that `finetune` wrote down.
pub fn same(seen: &Digest, wanted: &Digest) -> Result<()> {
    if seen == wanted {
        return Ok(());
    }
    Err(WorkerError::bad(
        crate::error::DATA_CHANGED,
        format!("the data set now has the manifest {seen}, training read {wanted}: make a new job for the new data"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(key: &str, size: u64, byte: u8) -> FileRef {
        FileRef {
            key: key.into(),
            path: "/nowhere".into(),
            offset: 0,
            size,
            sha256: [byte; 32],
        }
    }

    #[test]
    fn the_digest_is_of_keys_sizes_and_contents() {
        let one = digest(&[file("a", 1, 1), file("b", 2, 2)]).unwrap();
        // Computed by hand from the JSON text of the two entries.
        let text = format!(
            r#"[{{"key":"a","size":1,"sha256":"{}"}},{{"key":"b","size":2,"sha256":"{}"}}]"#,
            "01".repeat(32),
            "02".repeat(32)
        );
        assert_eq!(one, Digest::of(text.as_bytes()));
        assert_ne!(one, digest(&[file("a", 1, 1), file("b", 2, 3)]).unwrap());
        assert_ne!(one, digest(&[file("a", 1, 1)]).unwrap());
        assert_eq!(same(&one, &Digest::of(b"x")).unwrap_err().reason(), "DataChanged");
    }
}
