//! The node's store: layers by digest, versions assembled from them with hard links, one journal a model. Everything is
//! written under another name, synced and renamed, so that whatever is there under its name is whole, at any moment and
//! after any end. One process holds the lock and writes; others may read. It decides nothing about what to serve.

mod disk;
mod journal;
#[cfg(test)]
mod tests;

pub use journal::{FORGIVEN_EXITS, Journal, Record, Refusal, Skip, Trial};

use crate::artifact::{ArtifactError, Kind, VersionManifest, extract, verify};
use fleetune_crds::common::Digest;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Largest journal that is read, in bytes.
const MAX_JOURNAL: u64 = 4 << 20;

/// A store on disk.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// The right to write. Ends with the process, whatever ends it.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code)] File);

impl Store {
    /// The store below `root`, made if it is not there.
    pub fn open(root: &Path) -> Result<Self, ArtifactError> {
        let store = Self { root: root.to_owned() };
        for name in ["journal", "layers", "manifests", "versions", "tmp"] {
            let dir = root.join(name);
            fs::create_dir_all(&dir).map_err(|source| ArtifactError::io(&dir, source))?;
        }
        Ok(store)
    }

    /// Takes the lock, or says that another process has it. What an interrupted writer left is cleared, but for
    /// downloads that can go on.
    pub fn try_lock(&self) -> Result<Option<Lock>, ArtifactError> {
        let path = self.root.join("lock");
        let error = |source| ArtifactError::io(&path, source);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(source)) => return Err(error(source)),
        }
        let tmp = self.root.join("tmp");
        let error = |source| ArtifactError::io(&tmp, source);
        for entry in fs::read_dir(&tmp).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path.is_dir() {
                fs::remove_dir_all(&path).map_err(error)?;
            } else if path.extension().is_none_or(|extension| extension != "partial") {
                fs::remove_file(&path).map_err(error)?;
            }
        }
        Ok(Some(Lock(file)))
    }

    /// The directory of a version, whether or not it is there.
    pub fn version_dir(&self, digest: &Digest) -> PathBuf {
        self.root.join("versions").join(digest.hex())
    }

    /// Whether a version is there, whole.
    pub fn has_version(&self, digest: &Digest) -> bool {
        self.version_dir(digest).is_dir()
    }

    /// Whether a layer is there, whole.
    pub fn has_layer(&self, digest: &Digest) -> bool {
        self.layer_dir(digest).is_dir()
    }

    fn layer_dir(&self, digest: &Digest) -> PathBuf {
        self.root.join("layers").join(digest.hex())
    }

    /// Where the bytes of a layer are downloaded to.
    pub fn download_path(&self, digest: &Digest) -> PathBuf {
        self.tmp(&format!("blob-{}", digest.hex()))
    }

    fn tmp(&self, name: &str) -> PathBuf {
        self.root.join("tmp").join(name)
    }

    /// Unpacks the downloaded bytes of a layer, whose digest has been checked, and drops them.
    pub fn add_layer(&self, kind: Kind, digest: &Digest) -> Result<(), ArtifactError> {
        let blob = self.download_path(digest);
        let scratch = self.tmp(&format!("layer-{}", digest.hex()));
        let error = |source| ArtifactError::io(&scratch, source);
        clear(&scratch).map_err(error)?;
        disk::step("create")
            .and_then(|()| fs::create_dir(&scratch))
            .map_err(error)?;
        let reader = File::open(&blob).map_err(|source| ArtifactError::io(&blob, source))?;
        extract(io::BufReader::new(reader), kind, &scratch)?;
        disk::step("extract")
            .and_then(|()| disk::sync_tree(&scratch))
            .and_then(|()| disk::rename(&scratch, &self.layer_dir(digest)))
            .and_then(|()| fs::remove_file(&blob))
            .map_err(error)
    }

    /// Writes down what a version is made of, before its layers come: what has come of it outlives a restart.
    pub fn expect_version(&self, digest: &Digest, manifest: &[u8]) -> Result<(), ArtifactError> {
        let path = self.manifest_path(digest);
        disk::write(&self.tmp(&format!("manifest-{}", digest.hex())), &path, manifest)
            .map_err(|source| ArtifactError::io(&path, source))
    }

    /// Assembles a version from its layers with hard links, and checks the whole of it against its digest before it gets
    /// its name.
    pub fn add_version(&self, digest: &Digest, manifest: &[u8]) -> Result<(), ArtifactError> {
        if self.has_version(digest) {
            return Ok(());
        }
        let version = VersionManifest::parse(manifest)?;
        let scratch = self.tmp(&format!("version-{}", digest.hex()));
        let error = |source| ArtifactError::io(&scratch, source);
        clear(&scratch).map_err(error)?;
        disk::step("create")
            .and_then(|()| fs::create_dir(&scratch))
            .map_err(error)?;
        for (_, layer) in version.layers() {
            link_tree(&self.layer_dir(&layer.digest), &scratch).map_err(error)?;
        }
        if let Err(mismatch) = verify(&scratch, digest) {
            // A layer on disk is not what it was: none of them is used again.
            for (_, layer) in version.layers() {
                self.drop_layer(&layer.digest)?;
            }
            return Err(mismatch);
        }
        self.expect_version(digest, manifest)?;
        disk::sync_tree(&scratch)
            .and_then(|()| disk::rename(&scratch, &self.version_dir(digest)))
            .map_err(error)
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("manifests").join(digest.hex())
    }

    /// Checks a version's files against its digest.
    pub fn verify(&self, digest: &Digest) -> Result<(), ArtifactError> {
        verify(&self.version_dir(digest), digest)
    }

    /// Drops a version and its layers, because its files are not what they were.
    pub fn discard(&self, digest: &Digest) -> Result<(), ArtifactError> {
        if let Ok(manifest) = fs::read(self.manifest_path(digest))
            && let Ok(version) = VersionManifest::parse(&manifest)
        {
            for (_, layer) in version.layers() {
                self.drop_layer(&layer.digest)?;
            }
        }
        self.drop_version(digest)
    }

    fn drop_layer(&self, digest: &Digest) -> Result<(), ArtifactError> {
        let dir = self.layer_dir(digest);
        disk::remove_dir(&dir, &self.tmp(&format!("gone-l-{}", digest.hex())))
            .map_err(|source| ArtifactError::io(&dir, source))
    }

    fn drop_version(&self, digest: &Digest) -> Result<(), ArtifactError> {
        let dir = self.version_dir(digest);
        disk::remove_dir(&dir, &self.tmp(&format!("gone-v-{}", digest.hex())))
            .map_err(|source| ArtifactError::io(&dir, source))?;
        let manifest = self.manifest_path(digest);
        match fs::remove_file(&manifest) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ArtifactError::io(&manifest, source)),
            _ => Ok(()),
        }
    }

    /// Drops every version that is not in `keep`, and every layer and download of a layer that no version in `keep` has.
    /// What is under way beyond that is named in `fetching`.
    pub fn collect(&self, keep: &BTreeSet<Digest>, fetching: &BTreeSet<Digest>) -> Result<(), ArtifactError> {
        let mut layers = fetching.clone();
        for digest in self.names("versions")? {
            if !keep.contains(&digest) {
                self.drop_version(&digest)?;
            }
        }
        // There is a manifest also of a version that is not whole yet.
        for digest in self.names("manifests")? {
            let path = self.manifest_path(&digest);
            let error = |source| ArtifactError::io(&path, source);
            if !keep.contains(&digest) {
                fs::remove_file(&path).map_err(error)?;
                continue;
            }
            let manifest = fs::read(&path).map_err(error)?;
            layers.extend(
                VersionManifest::parse(&manifest)?
                    .layers()
                    .map(|(_, layer)| layer.digest.clone()),
            );
        }
        for digest in self.names("layers")? {
            if !layers.contains(&digest) {
                self.drop_layer(&digest)?;
            }
        }
        // Downloads that nobody goes on with.
        let tmp = self.root.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(|source| ArtifactError::io(&tmp, source))? {
            let path = entry.map_err(|source| ArtifactError::io(&tmp, source))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let hex = name
                .strip_prefix("blob-")
                .map(|rest| rest.split('.').next().unwrap_or(rest));
            if hex.is_some_and(|hex| !layers.iter().any(|digest| digest.hex() == hex)) {
                fs::remove_file(&path).map_err(|source| ArtifactError::io(&path, source))?;
            }
        }
        Ok(())
    }

    fn names(&self, folder: &str) -> Result<Vec<Digest>, ArtifactError> {
        let dir = self.root.join(folder);
        let error = |source| ArtifactError::io(&dir, source);
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            if let Some(digest) = name.to_str().and_then(|hex| format!("sha256:{hex}").parse().ok()) {
                names.push(digest);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// All journals, by name of the model. One that cannot be read is an error: its epoch and refusals must not be lost.
    pub fn journals(&self) -> Result<Vec<Journal>, ArtifactError> {
        let dir = self.root.join("journal");
        let mut journals = Vec::new();
        for entry in fs::read_dir(&dir).map_err(|source| ArtifactError::io(&dir, source))? {
            let path = entry.map_err(|source| ArtifactError::io(&dir, source))?.path();
            let error = |source| ArtifactError::io(&path, source);
            if fs::metadata(&path).map_err(error)?.len() > MAX_JOURNAL {
                return Err(error(io::Error::other(format!("more than {MAX_JOURNAL} bytes"))));
            }
            let text = fs::read(&path).map_err(error)?;
            let journal: Journal = serde_json::from_slice(&text).map_err(|e| error(io::Error::other(e)))?;
            journals.push(journal);
        }
        journals.sort_by(|a, b| a.model.cmp(&b.model));
        Ok(journals)
    }

    /// Writes a journal.
    pub fn write_journal(&self, journal: &Journal) -> Result<(), ArtifactError> {
        // NAMESPACE and MODEL are DNS labels: the name is unambiguous and a plain file name.
        let name = journal.model.replace('/', ".");
        let path = self.root.join("journal").join(format!("{name}.json"));
        let error = |source| ArtifactError::io(&path, source);
        let text = serde_json::to_vec(journal).map_err(|e| error(io::Error::other(e)))?;
        disk::write(&self.tmp(&format!("journal-{name}")), &path, &text).map_err(error)
    }
}

fn clear(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            link_tree(&entry.path(), &target)?;
        } else {
            disk::step("link")?;
            fs::hard_link(entry.path(), &target)?;
        }
    }
    Ok(())
}
