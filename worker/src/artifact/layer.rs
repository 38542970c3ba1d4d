//! One tar layer: files in sorted order, no times, no owners, one mode. A layer is read as a stream from its files, so
//! that nothing of the size of a model is held in memory or written twice.

use super::{ArtifactError, BACKBONE, MAX_BACKBONE, MAX_FILES, MAX_REST, MAX_TUNED, TUNED};
use fleetune_crds::common::Digest;
use sha2::Digest as _;
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::{Component, Path, PathBuf};

/// The size of a block of a tar file.
const BLOCK: u64 = 512;

/// Which part of a version a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The frozen weights; every version tuned from the same base model shares them.
    Backbone,
    /// The tuned weights.
    Tuned,
    /// Graph, pipeline, labels, self-test, lineage.
    Rest,
}

impl Kind {
    /// In the order of a manifest.
    pub const ALL: [Self; 3] = [Self::Backbone, Self::Tuned, Self::Rest];

    /// The kind of layer that a path of a version belongs to.
    pub fn of(path: &str) -> Self {
        match path {
            BACKBONE => Self::Backbone,
            TUNED => Self::Tuned,
            _ => Self::Rest,
        }
    }

    /// Most bytes of a layer of this kind.
    pub fn limit(self) -> u64 {
        match self {
            Self::Backbone => MAX_BACKBONE,
            Self::Tuned => MAX_TUNED,
            Self::Rest => MAX_REST,
        }
    }

    /// What the layer's annotation calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Backbone => BACKBONE,
            Self::Tuned => TUNED,
            Self::Rest => ".",
        }
    }
}

/// A file of a layer.
#[derive(Clone, Debug)]
struct Entry {
    header: Box<tar::Header>,
    file: PathBuf,
    size: u64,
}

/// A layer over files on disk.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What it holds.
    pub kind: Kind,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    entries: Vec<Entry>,
}

impl Layer {
    /// The layer of these files of `dir`, given by their paths in the version, which must be sorted.
    pub(super) fn of(dir: &Path, kind: Kind, paths: &[String]) -> Result<Self, ArtifactError> {
        let mut entries = Vec::with_capacity(paths.len());
        for path in paths {
            let file = dir.join(path);
            let size = fs::metadata(&file)
                .map_err(|source| ArtifactError::io(&file, source))?
                .len();
            let mut header = Box::new(tar::Header::new_ustar());
            header.set_path(path).map_err(|error| ArtifactError::NotAVersion {
                path: file.clone(),
                what: format!("the path does not fit a tar header: {error}"),
            })?;
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(size);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_cksum();
            entries.push(Entry { header, file, size });
        }
        let size = 2 * BLOCK
            + entries
                .iter()
                .map(|e| BLOCK + e.size.next_multiple_of(BLOCK))
                .sum::<u64>();
        if size > kind.limit() {
            return Err(ArtifactError::NotAVersion {
                path: dir.to_owned(),
                what: format!("{} would have {size} bytes, more than {}", kind.title(), kind.limit()),
            });
        }
        let mut layer = Self {
            kind,
            digest: Digest::from_sha256([0; 32]),
            size,
            entries,
        };
        let mut hash = sha2::Sha256::new();
        let mut reader = layer.reader().map_err(|source| ArtifactError::io(dir, source))?;
        let copied = io::copy(&mut reader, &mut hash).map_err(|source| ArtifactError::io(dir, source))?;
        if copied != size {
            return Err(ArtifactError::NotAVersion {
                path: dir.to_owned(),
                what: "a file changed while it was read".into(),
            });
        }
        layer.digest = Digest::from_sha256(hash.finalize().into());
        Ok(layer)
    }

    /// The bytes of the layer as a stream.
    pub fn reader(&self) -> io::Result<Box<dyn Read + Send>> {
        let mut all: Box<dyn Read + Send> = Box::new(io::empty());
        for entry in &self.entries {
            let file = File::open(&entry.file)?;
            let padding = entry.size.next_multiple_of(BLOCK) - entry.size;
            all = Box::new(
                all.chain(Cursor::new(*entry.header.as_bytes()))
                    .chain(file.take(entry.size))
                    .chain(io::repeat(0).take(padding)),
            );
        }
        Ok(Box::new(all.chain(io::repeat(0).take(2 * BLOCK))))
    }
}

/// Writes the files of a layer below `into`, each synced. Only plain files at paths that belong to `kind` are taken.
pub fn extract(reader: impl Read, kind: Kind, into: &Path) -> Result<(), ArtifactError> {
    let bad = |what: String| ArtifactError::BadLayer(what);
    let mut archive = tar::Archive::new(reader.take(kind.limit()));
    let entries = archive.entries().map_err(|error| bad(error.to_string()))?.raw(true);
    for (count, entry) in entries.enumerate() {
        let mut entry = entry.map_err(|error| bad(error.to_string()))?;
        if count >= MAX_FILES {
            return Err(bad(format!("more than {MAX_FILES} files")));
        }
        let path = checked_path(&entry.path_bytes()).map_err(bad)?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(bad(format!("{path} is not a plain file")));
        }
        if Kind::of(&path) != kind {
            return Err(bad(format!("{path} does not belong into this layer")));
        }
        let target = into.join(&path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|source| ArtifactError::io(parent, source))?;
        }
        let mut file = File::create_new(&target).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => bad(format!("{path} comes twice")),
            _ => ArtifactError::io(&target, source),
        })?;
        io::copy(&mut entry, &mut file).map_err(|source| ArtifactError::io(&target, source))?;
        file.sync_all().map_err(|source| ArtifactError::io(&target, source))?;
    }
    Ok(())
}

/// A relative path of plain names, or why it is none.
fn checked_path(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "a path is not UTF-8".to_owned())?;
    let plain = Path::new(text)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !plain || text.is_empty() || text.contains(['\\', '\0']) || text.contains("//") || text.ends_with('/') {
        return Err(format!("{text:?} is not a path inside a version"));
    }
    Ok(text.to_owned())
}
