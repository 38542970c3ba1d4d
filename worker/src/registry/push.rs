//! Uploads: what is there is not sent again, blobs before the manifest that names them, manifests by digest. Only
//! `publish` gives a tag.

use super::http::{Access, Request, location};
use super::pull::{blocking, is_tag};
use super::{Registry, RegistryError, Repository};
use crate::artifact::{
    ArtifactError, BUNDLE_TYPE, CONFIG_TYPE, Descriptor, EMPTY_TYPE, LAYER_TYPE, Layer, MANIFEST_TYPE, Manifest,
    REPORT_TYPE, pack,
};
use bytes::Bytes;
use fleetune_crds::common::Digest;
use futures::stream;
use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use std::io::Read;
use std::path::Path;

/// Bytes of one piece of an upload.
const PIECE: usize = 128 << 10;
/// Largest file of a report, in bytes.
const MAX_REPORT_FILE: u64 = 32 << 20;

impl Registry {
    /// Packs `dir` and pushes it by digest, without a tag.
    pub async fn push_candidate(&self, repository: &str, dir: &Path) -> Result<Digest, RegistryError> {
        let repository: Repository = repository.parse()?;
        let dir = dir.to_owned();
        let packed = blocking(move || pack(&dir)).await?;
        for layer in &packed.layers {
            let blob = Descriptor::new(LAYER_TYPE, layer.digest.clone(), layer.size);
            self.push_blob(&repository, &blob, || layer_body(layer)).await?;
        }
        self.push_bytes(&repository, CONFIG_TYPE, &packed.config).await?;
        self.push_manifest(&repository, &packed.digest(), packed.manifest.clone())
            .await
    }

    /// Pushes `report.json` and, where there is one, `report.html` of `dir`, as an artifact about `candidate`.
    pub async fn push_report(&self, repository: &str, candidate: &Digest, dir: &Path) -> Result<Digest, RegistryError> {
        let mut files = Vec::new();
        for (name, media_type) in [("report.json", "application/json"), ("report.html", "text/html")] {
            let path = dir.join(name);
            if name == "report.json" || path.exists() {
                files.push((name, media_type, read(&path)?));
            }
        }
        self.push_about(repository, candidate, REPORT_TYPE, &files).await
    }

    /// Pushes a Sigstore bundle as an artifact about `candidate`.
    pub async fn push_signature(
        &self,
        repository: &str,
        candidate: &Digest,
        bundle: &[u8],
    ) -> Result<Digest, RegistryError> {
        let files = [("signature.sigstore.json", BUNDLE_TYPE, bundle.to_vec())];
        self.push_about(repository, candidate, BUNDLE_TYPE, &files).await
    }

    /// Gives the manifest with this digest a tag. A tag that is there is moved.
    pub async fn tag(&self, repository: &str, digest: &Digest, tag: &str) -> Result<(), RegistryError> {
        let repository: Repository = repository.parse()?;
        if !is_tag(tag) {
            return Err(RegistryError::InvalidReference(format!("{repository}:{tag}")));
        }
        let bytes = self.fetch_manifest(&repository, digest).await?;
        self.put_manifest(&repository, tag, bytes).await
    }

    async fn push_about(
        &self,
        repository: &str,
        candidate: &Digest,
        artifact_type: &str,
        files: &[(&str, &str, Vec<u8>)],
    ) -> Result<Digest, RegistryError> {
        let repository: Repository = repository.parse()?;
        let subject = self.fetch_manifest(&repository, candidate).await?;
        let mut layers = Vec::new();
        for (name, media_type, bytes) in files {
            let mut layer = self.push_bytes(&repository, media_type, bytes).await?;
            layer
                .annotations
                .insert("org.opencontainers.image.title".into(), (*name).into());
            layers.push(layer);
        }
        let config = self.push_bytes(&repository, EMPTY_TYPE, b"{}").await?;
        let mut manifest = Manifest::new(config, layers);
        manifest.artifact_type = Some(artifact_type.to_owned());
        manifest.subject = Some(Descriptor::new(MANIFEST_TYPE, candidate.clone(), subject.len() as u64));
        let bytes = manifest.to_bytes()?;
        self.push_manifest(&repository, &Digest::of(&bytes), bytes).await
    }

    async fn push_bytes(
        &self,
        repository: &Repository,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Descriptor, RegistryError> {
        let blob = Descriptor::of(media_type, bytes);
        let bytes = Bytes::copy_from_slice(bytes);
        self.push_blob(repository, &blob, || reqwest::Body::from(bytes.clone()))
            .await?;
        Ok(blob)
    }

    async fn push_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        body: impl Fn() -> reqwest::Body,
    ) -> Result<(), RegistryError> {
        let base = self.base(repository);
        let what = format!("upload of blob {} to {repository}", blob.digest);
        let head = format!("{base}/blobs/{}", blob.digest);
        let start = format!("{base}/blobs/uploads/");
        self.patiently(async || {
            let request = Request::new(repository, Access::Push, Method::HEAD, &head, &what)?;
            if self.send(&request, &[404]).await?.status().is_success() {
                return Ok(());
            }
            let request =
                Request::new(repository, Access::Push, Method::POST, &start, &what)?.header(CONTENT_LENGTH, "0");
            let response = self.send(&request, &[]).await?;
            let mut target =
                location(&request.url, &response).ok_or_else(|| request.protocol("no location for the upload"))?;
            if target.scheme() != request.url.scheme() && target.scheme() != "https" {
                return Err(request.protocol(format!("an upload by {}", target.scheme())));
            }
            target.query_pairs_mut().append_pair("digest", blob.digest.as_str());
            let request = Request::new(repository, Access::Push, Method::PUT, target.as_str(), &what)?
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, &blob.size.to_string());
            self.send_body(&request, &[], &body).await?;
            Ok(())
        })
        .await
    }

    async fn push_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
        bytes: Vec<u8>,
    ) -> Result<Digest, RegistryError> {
        self.put_manifest(repository, digest.as_str(), bytes).await?;
        Ok(digest.clone())
    }

    async fn put_manifest(
        &self,
        repository: &Repository,
        reference: &str,
        bytes: Vec<u8>,
    ) -> Result<(), RegistryError> {
        let url = format!("{}/manifests/{reference}", self.base(repository));
        let what = format!("upload of manifest {reference} to {repository}");
        let bytes = Bytes::from(bytes);
        self.patiently(async || {
            let request =
                Request::new(repository, Access::Push, Method::PUT, &url, &what)?.header(CONTENT_TYPE, MANIFEST_TYPE);
            self.send_body(&request, &[], || reqwest::Body::from(bytes.clone()))
                .await?;
            Ok(())
        })
        .await
    }
}

/// A layer's bytes, read on a thread of their own. A file that cannot be read breaks the upload off.
fn layer_body(layer: &Layer) -> reqwest::Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(4);
    let layer = layer.clone();
    tokio::task::spawn_blocking(move || {
        let mut reader = match layer.reader() {
            Ok(reader) => reader,
            Err(error) => return drop(sender.blocking_send(Err(error))),
        };
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            match reader.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
                Ok(0) => return,
                Ok(_) => {
                    if sender.blocking_send(Ok(Bytes::from(piece))).is_err() {
                        return;
                    }
                }
                Err(error) => return drop(sender.blocking_send(Err(error))),
            }
        }
    });
    reqwest::Body::wrap_stream(stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    }))
}

fn read(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    let error = |source| ArtifactError::io(path, source);
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(error)?
        .take(MAX_REPORT_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    if bytes.len() as u64 > MAX_REPORT_FILE {
        return Err(ArtifactError::NotAVersion {
            path: path.to_owned(),
            what: format!("more than {MAX_REPORT_FILE} bytes"),
        });
    }
    Ok(bytes)
}
