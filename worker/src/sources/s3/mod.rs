//! `s3://BUCKET/KEY`: one object, or all objects under a prefix, with credentials and endpoint from the AWS variables.

use super::{Limits, retried, safe_path};
use crate::error::{DENIED, INVALID_ADDRESS, NOT_FOUND, Result, UNREACHABLE, WorkerError};
use futures::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ClientConfigKey, ObjectMeta, ObjectStore, ObjectStoreExt, path::Path as Key};
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;

/// Objects that are read at the same time.
const PARALLEL: usize = 8;
/// Longest silence of a server.
const READ_TIMEOUT: &str = "60 seconds";
/// Most objects under a prefix.
const MAX_OBJECTS: usize = 2_000_000;

/// Downloads the object, or all objects under the prefix, `rest` (without `s3://`).
pub async fn fetch(rest: &str, scratch: &Path, limits: &Limits) -> Result<PathBuf> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(WorkerError::bad(INVALID_ADDRESS, format!("s3://{rest}: name a bucket")));
    }
    let store = client(bucket)?;
    let prefix = Key::parse(key.trim_matches('/'))
        .map_err(|e| WorkerError::bad(INVALID_ADDRESS, format!("s3://{rest}: {e}")))?;
    if !key.is_empty() && !key.ends_with('/') {
        let head = retried(rest, || async { found(store.head(&prefix).await, rest) }).await?;
        if let Some(meta) = head {
            if meta.size > limits.max_bytes {
                return Err(limits.exceeded(&format!("s3://{rest}")));
            }
            let target = scratch.join(prefix.filename().unwrap_or("object"));
            download(&store, &meta, &target, rest).await?;
            return Ok(target);
        }
    }
    folder(&store, &prefix, rest, scratch, limits).await
}

async fn folder(store: &AmazonS3, prefix: &Key, rest: &str, scratch: &Path, limits: &Limits) -> Result<PathBuf> {
    let metas = retried(rest, || list(store, prefix, rest, limits)).await?;
    if metas.is_empty() {
        return Err(WorkerError::bad(
            NOT_FOUND,
            format!("s3://{rest}: no object and no prefix of that name: check the address"),
        ));
    }
    let root = scratch.join("objects");
    let mut jobs = Vec::with_capacity(metas.len());
    for meta in metas {
        let name: PathBuf = meta
            .location
            .prefix_match(prefix)
            .into_iter()
            .flatten()
            .map(|part| part.as_ref().to_owned())
            .collect();
        let target = root.join(safe_path(&name.to_string_lossy())?);
        jobs.push((meta, target));
    }
    let mut running = futures::stream::iter(jobs)
        .map(|(meta, target)| async move { download(store, &meta, &target, rest).await })
        .buffer_unordered(PARALLEL);
    while let Some(done) = running.next().await {
        done?;
    }
    Ok(root)
}

fn client(bucket: &str) -> Result<AmazonS3> {
    let signed = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ]
    .iter()
    .any(|name| std::env::var_os(name).is_some());
    let builder = || {
        AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            // Without credentials the bucket is public; asking the machine for some would only hang.
            .with_skip_signature(!signed)
            // A large object takes as long as it takes; what ends a transfer is silence.
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), "7 days")
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ReadTimeout), READ_TIMEOUT)
    };
    builder()
        .build()
        .or_else(|error| {
            tracing::warn!(%error, "no certificates on this machine: only plain HTTP endpoints can be reached");
            builder()
                .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::NoSystemCertificates), "true")
                .build()
        })
        .map_err(|e| WorkerError::bad(INVALID_ADDRESS, format!("s3://{bucket}: {e}")))
}

async fn list(store: &AmazonS3, prefix: &Key, rest: &str, limits: &Limits) -> Result<Vec<ObjectMeta>> {
    let mut metas = Vec::new();
    let mut total = 0u64;
    let mut stream = store.list(Some(prefix));
    while let Some(meta) = stream.next().await {
        let meta = meta.map_err(|e| failed(&e, rest))?;
        // Some tools make empty objects that stand for folders.
        if meta.size == 0 {
            continue;
        }
        total = total.saturating_add(meta.size);
        if total > limits.max_bytes || metas.len() >= MAX_OBJECTS {
            return Err(limits.exceeded(&format!("s3://{rest}")));
        }
        metas.push(meta);
    }
    Ok(metas)
}

async fn download(store: &AmazonS3, meta: &ObjectMeta, target: &Path, rest: &str) -> Result<()> {
    retried(rest, || async {
        let io = |e: std::io::Error| WorkerError::io("writing", target, &e);
        if let Some(parent) = target.parent() {
            tokio::fs::create_dir_all(parent).await.map_err(io)?;
        }
        let object = store.get(&meta.location).await.map_err(|e| failed(&e, rest))?;
        let mut file = tokio::fs::File::create(target).await.map_err(io)?;
        let mut body = object.into_stream();
        let mut total = 0u64;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| failed(&e, rest))?;
            total += chunk.len() as u64;
            if total > meta.size {
                break;
            }
            file.write_all(&chunk).await.map_err(io)?;
        }
        file.flush().await.map_err(io)?;
        if total == meta.size {
            Ok(())
        } else {
            Err(WorkerError::transient(
                UNREACHABLE,
                format!("{} changed while it was read", meta.location),
            ))
        }
    })
    .await
}

fn found(result: object_store::Result<ObjectMeta>, rest: &str) -> Result<Option<ObjectMeta>> {
    match result {
        Ok(meta) => Ok(Some(meta)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(failed(&e, rest)),
    }
}

fn failed(error: &object_store::Error, rest: &str) -> WorkerError {
    match error {
        object_store::Error::NotFound { .. } => WorkerError::bad(NOT_FOUND, format!("s3://{rest}: {error}")),
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => WorkerError::bad(
            DENIED,
            format!("s3://{rest}: name credentials in credentialsSecret: {error}"),
        ),
        _ => WorkerError::transient(UNREACHABLE, format!("s3://{rest}: {error}")),
    }
}
