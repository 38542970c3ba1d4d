//! Downloads: manifests by digest, blobs into files that resume, versions into directories.

use super::http::{Access, Request, bounded, chain};
use super::{Registry, RegistryError, Repository};
use crate::artifact::{
    ArtifactError, BUNDLE_TYPE, Descriptor, MANIFEST_TYPE, MAX_MANIFEST, Manifest, VersionManifest, extract, verify,
};
use fleetune_crds::common::Digest;
use fleetune_crds::outcome::Code;
use reqwest::header::{ACCEPT, CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode};
use sha2::Digest as _;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// Largest `report.json`, in bytes.
const MAX_REPORT: u64 = 32 << 20;
/// Largest signature bundle, in bytes.
const MAX_BUNDLE: u64 = 1 << 20;

/// What a download moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Bytes that came over the network.
    pub bytes: u64,
}

/// A signature as it was fetched; nothing about it has been checked but its digest and its subject.
#[derive(Clone, Debug)]
pub struct FetchedSignature {
    /// The Sigstore bundle.
    pub bundle: Vec<u8>,
    /// Bytes that came over the network.
    pub bytes: u64,
}

impl Registry {
    /// The manifest with this digest, checked against it.
    pub async fn fetch_manifest(&self, repository: &Repository, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let bytes = self.fetch_reference(repository, digest.as_str()).await?;
        Self::check(repository, digest, &bytes)?;
        Ok(bytes)
    }

    /// The manifest under a tag or digest. Only a digest says which one that is.
    pub(super) async fn fetch_reference(
        &self,
        repository: &Repository,
        reference: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let url = format!("{}/manifests/{reference}", self.base(repository));
        let what = format!("manifest {reference} of {repository}");
        self.patiently(async || {
            let request =
                Request::new(repository, Access::Pull, Method::GET, &url, &what)?.header(ACCEPT, MANIFEST_TYPE);
            let response = self.send(&request, &[]).await?;
            bounded(response, MAX_MANIFEST as usize)
                .await
                .map_err(|cause| request.unreachable(cause))
        })
        .await
    }

    /// A small blob, checked against its digest and size.
    pub async fn fetch_small(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let what = format!("blob {} of {repository}", blob.digest);
        Self::bound(repository, &what, blob.size, limit)?;
        let url = format!("{}/blobs/{}", self.base(repository), blob.digest);
        let bytes = self
            .patiently(async || {
                let request = Request::new(repository, Access::Pull, Method::GET, &url, &what)?;
                let response = self.send(&request, &[]).await?;
                let bytes = bounded(response, blob.size as usize)
                    .await
                    .map_err(|cause| request.unreachable(cause))?;
                if (bytes.len() as u64) < blob.size {
                    return Err(request.unreachable(format!("{} of {} bytes came", bytes.len(), blob.size)));
                }
                Ok(bytes)
            })
            .await?;
        Self::check(repository, &blob.digest, &bytes)?;
        Ok(bytes)
    }

    /// Downloads a blob into `path`: resumes what an earlier attempt left in `path.partial`, takes at most the announced
    /// bytes, checks the digest, and only then gives the file its name. Returns the bytes that came over the network; a
    /// file that is there already costs none.
    pub async fn fetch_blob_file(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        path: &Path,
        limit: u64,
    ) -> Result<FetchStats, RegistryError> {
        let what = format!("blob {} of {repository}", blob.digest);
        Self::bound(repository, &what, blob.size, limit)?;
        if tokio::fs::try_exists(path).await.map_err(|source| io(path, source))? {
            return Ok(FetchStats::default());
        }
        let partial = partial_path(path);
        let mut stats = FetchStats::default();
        let mut idle = 0;
        let mut fresh = false;
        loop {
            let before = stats.bytes;
            match self
                .download(repository, blob, &partial, &what, &mut stats, &mut fresh)
                .await
            {
                Ok(()) => break,
                Err(error) if error.class() != Code::Transient => {
                    // What is there is part of the refused bytes: the next attempt must not build on it.
                    if matches!(
                        error,
                        RegistryError::DigestMismatch { .. } | RegistryError::TooLarge { .. }
                    ) {
                        let _ = tokio::fs::remove_file(&partial).await;
                    }
                    // The start of the file may stem from an earlier, broken attempt.
                    if matches!(error, RegistryError::DigestMismatch { .. }) && !fresh {
                        continue;
                    }
                    return Err(error);
                }
                Err(error) => {
                    idle = if stats.bytes > before { 0 } else { idle + 1 };
                    if idle >= self.patience.attempts {
                        return Err(error);
                    }
                    let wait = self.patience.wait(idle);
                    tracing::warn!(%error, wait_ms = wait.as_millis() as u64, "registry: resuming the download");
                    tokio::time::sleep(wait).await;
                }
            }
        }
        tokio::fs::rename(&partial, path)
            .await
            .map_err(|source| io(path, source))?;
        sync_parent(path).await?;
        Ok(stats)
    }

    /// One attempt. `fresh` becomes true when the bytes are from the first to the last of this attempt.
    async fn download(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        partial: &Path,
        what: &str,
        stats: &mut FetchStats,
        fresh: &mut bool,
    ) -> Result<(), RegistryError> {
        let mut file = tokio::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(partial)
            .await
            .map_err(|source| io(partial, source))?;
        let (mut hash, mut have) = hash_of(&mut file, partial).await?;
        if have > blob.size {
            have = 0;
        }
        *fresh = have == 0;
        if have < blob.size || blob.size == 0 {
            let url = format!("{}/blobs/{}", self.base(repository), blob.digest);
            let mut request = Request::new(repository, Access::Pull, Method::GET, &url, what)?;
            if have > 0 {
                request = request.header(RANGE, &format!("bytes={have}-"));
            }
            let mut response = self.send(&request, &[416]).await?;
            let resumes = response.status() == StatusCode::PARTIAL_CONTENT
                && response
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|value| value.to_str().ok())
                    .is_some_and(|value| value.starts_with(&format!("bytes {have}-")));
            if !resumes {
                have = 0;
                *fresh = true;
                hash = sha2::Sha256::new();
                if response.status() != StatusCode::OK {
                    // The registry does not take the range: from the start, then.
                    file.set_len(0).await.map_err(|source| io(partial, source))?;
                    return Err(request.unreachable(format!("status {} to a range", response.status())));
                }
            }
            file.set_len(have).await.map_err(|source| io(partial, source))?;
            file.seek(std::io::SeekFrom::Start(have))
                .await
                .map_err(|source| io(partial, source))?;
            loop {
                let chunk = match response.chunk().await {
                    Ok(Some(chunk)) => chunk,
                    Ok(None) => break,
                    Err(error) => {
                        // Keep what came for the next attempt.
                        file.flush().await.map_err(|source| io(partial, source))?;
                        return Err(request.unreachable(chain(&error)));
                    }
                };
                stats.bytes += chunk.len() as u64;
                have += chunk.len() as u64;
                if have > blob.size {
                    return Err(RegistryError::TooLarge {
                        host: repository.host.clone(),
                        what: what.to_owned(),
                        limit: blob.size,
                    });
                }
                hash.update(&chunk);
                file.write_all(&chunk).await.map_err(|source| io(partial, source))?;
            }
            file.flush().await.map_err(|source| io(partial, source))?;
            if have < blob.size {
                return Err(request.unreachable(format!("{have} of {} bytes came", blob.size)));
            }
        }
        let found = Digest::from_sha256(hash.finalize().into());
        if found != blob.digest {
            return Err(RegistryError::DigestMismatch {
                host: repository.host.clone(),
                expected: blob.digest.clone(),
                found,
            });
        }
        file.sync_all().await.map_err(|source| io(partial, source))
    }

    /// Downloads a version into the directory `into`, which must be empty or absent, and checks that its files are those
    /// of `digest`.
    pub async fn fetch_version(
        &self,
        repository: &str,
        digest: &Digest,
        into: &Path,
    ) -> Result<FetchStats, RegistryError> {
        let repository: Repository = repository.parse()?;
        let bytes = self.fetch_manifest(&repository, digest).await?;
        let mut stats = FetchStats {
            bytes: bytes.len() as u64,
        };
        let version = VersionManifest::parse(&bytes)?;
        std::fs::create_dir_all(into).map_err(|source| ArtifactError::io(into, source))?;
        let scratch = tempfile::Builder::new()
            .prefix(".fetch-")
            .tempdir_in(into.parent().unwrap_or(into))
            .map_err(|source| ArtifactError::io(into, source))?;
        for (kind, layer) in version.layers() {
            let file = scratch.path().join(layer.digest.hex());
            stats.bytes += self
                .fetch_blob_file(&repository, layer, &file, kind.limit())
                .await?
                .bytes;
            let into = into.to_owned();
            blocking(move || {
                let reader = std::fs::File::open(&file).map_err(|source| ArtifactError::io(&file, source))?;
                extract(std::io::BufReader::new(reader), kind, &into)
            })
            .await?;
        }
        let (into, digest) = (into.to_owned(), digest.clone());
        blocking(move || verify(&into, &digest)).await?;
        Ok(stats)
    }

    /// The report's JSON, checked to be about `candidate`.
    pub async fn fetch_report(
        &self,
        repository: &str,
        report: &Digest,
        candidate: &Digest,
    ) -> Result<serde_json::Value, RegistryError> {
        let repository: Repository = repository.parse()?;
        let manifest = self.fetch_about(&repository, report, candidate).await?.0;
        let layer = only(&manifest, "application/json")?;
        let bytes = self.fetch_small(&repository, layer, MAX_REPORT).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| ArtifactError::BadManifest(format!("report.json of {report}: {error}")).into())
    }

    /// The signature's bundle, checked to be attached to `candidate`.
    pub async fn fetch_signature(
        &self,
        repository: &str,
        signature: &Digest,
        candidate: &Digest,
    ) -> Result<FetchedSignature, RegistryError> {
        let repository: Repository = repository.parse()?;
        let (manifest, bytes) = self.fetch_about(&repository, signature, candidate).await?;
        let layer = only(&manifest, BUNDLE_TYPE)?;
        let bundle = self.fetch_small(&repository, layer, MAX_BUNDLE).await?;
        Ok(FetchedSignature {
            bytes: bytes + bundle.len() as u64,
            bundle,
        })
    }

    /// Downloads the first layer of an artifact into `path`. `reference` is `HOST/PATH@sha256:…` or `HOST/PATH:TAG`.
    pub async fn fetch_first_layer(
        &self,
        reference: &str,
        path: &Path,
        limit: u64,
    ) -> Result<FetchStats, RegistryError> {
        let (repository, bytes) = self.resolve(reference).await?;
        let manifest = Manifest::parse(&bytes)?;
        let layer = manifest
            .layers
            .first()
            .ok_or_else(|| ArtifactError::BadManifest(format!("{reference} has no layer")))?;
        let mut stats = self.fetch_blob_file(&repository, layer, path, limit).await?;
        stats.bytes += bytes.len() as u64;
        Ok(stats)
    }

    /// Repository and manifest of `HOST/PATH@sha256:…` or `HOST/PATH:TAG` (default tag `latest`).
    pub async fn resolve(&self, reference: &str) -> Result<(Repository, Vec<u8>), RegistryError> {
        let invalid = || RegistryError::InvalidReference(reference.to_owned());
        if let Some((repository, digest)) = reference.split_once('@') {
            let repository: Repository = repository.parse()?;
            let digest: Digest = digest.parse().map_err(|_| invalid())?;
            let bytes = self.fetch_manifest(&repository, &digest).await?;
            return Ok((repository, bytes));
        }
        let (name, tag) = match reference.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (reference, "latest"),
        };
        if !is_tag(tag) {
            return Err(invalid());
        }
        let repository: Repository = name.parse()?;
        let bytes = self.fetch_reference(&repository, tag).await?;
        Ok((repository, bytes))
    }

    /// A manifest with this digest whose subject is `candidate`, and its size.
    async fn fetch_about(
        &self,
        repository: &Repository,
        digest: &Digest,
        candidate: &Digest,
    ) -> Result<(Manifest, u64), RegistryError> {
        let bytes = self.fetch_manifest(repository, digest).await?;
        let manifest = Manifest::parse(&bytes)?;
        match &manifest.subject {
            Some(subject) if subject.digest == *candidate => Ok((manifest, bytes.len() as u64)),
            subject => Err(ArtifactError::BadManifest(format!(
                "{digest} is about {}, not about {candidate}",
                subject.as_ref().map_or("nothing", |s| s.digest.as_str())
            ))
            .into()),
        }
    }

    fn check(repository: &Repository, expected: &Digest, bytes: &[u8]) -> Result<(), RegistryError> {
        let found = Digest::of(bytes);
        if found == *expected {
            return Ok(());
        }
        Err(RegistryError::DigestMismatch {
            host: repository.host.clone(),
            expected: expected.clone(),
            found,
        })
    }

    fn bound(repository: &Repository, what: &str, size: u64, limit: u64) -> Result<(), RegistryError> {
        if size <= limit {
            return Ok(());
        }
        Err(RegistryError::TooLarge {
            host: repository.host.clone(),
            what: what.to_owned(),
            limit,
        })
    }
}

/// The layer of this media type.
fn only<'a>(manifest: &'a Manifest, media_type: &str) -> Result<&'a Descriptor, ArtifactError> {
    manifest
        .layers
        .iter()
        .find(|layer| layer.media_type == media_type)
        .ok_or_else(|| ArtifactError::BadManifest(format!("no layer of type {media_type}")))
}

/// Whether the text is a tag by the distribution specification.
pub(super) fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

pub(super) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<ArtifactError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ArtifactError::io(Path::new("worker thread"), std::io::Error::other(error)).into()),
    }
}

async fn hash_of(file: &mut tokio::fs::File, path: &Path) -> Result<(sha2::Sha256, u64), RegistryError> {
    let mut hash = sha2::Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer).await.map_err(|source| io(path, source))?;
        if count == 0 {
            return Ok((hash, length));
        }
        hash.update(&buffer[..count]);
        length += count as u64;
    }
}

/// Where the bytes of a download lie until they are all there.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

async fn sync_parent(path: &Path) -> Result<(), RegistryError> {
    let parent = path.parent().unwrap_or(path).to_owned();
    let dir = tokio::fs::File::open(&parent)
        .await
        .map_err(|source| io(&parent, source))?;
    dir.sync_all().await.map_err(|source| io(&parent, source))
}

fn io(path: &Path, source: std::io::Error) -> RegistryError {
    ArtifactError::io(path, source).into()
}
