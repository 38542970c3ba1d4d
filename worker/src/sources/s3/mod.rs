//! `s3://BUCKET/KEY`: one object, or all objects under a prefix, with credentials and endpoint from the AWS variables.

use super::{FIRST_PAUSE, Limits, retried, safe_path};
use crate::error::{DENIED, INVALID_ADDRESS, NOT_FOUND, Result, UNREACHABLE, WorkerError};
use futures::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{
    BackoffConfig, ClientConfigKey, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig, path::Path as Key,
};
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt;

/// Objects that are read at the same time.
const PARALLEL: usize = 8;
/// Longest silence of a server.
const READ_TIMEOUT: &str = "60 seconds";
/// How often the client repeats one request, or resumes one body, before the transfer starts over.
const RETRIES: usize = 3;
/// Most objects under a prefix.
const MAX_OBJECTS: usize = 2_000_000;

/// Downloads the object, or all objects under the prefix, `rest` (without `s3://`).
pub async fn fetch(rest: &str, scratch: &Path, limits: &Limits) -> Result<PathBuf> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(WorkerError::bad(INVALID_ADDRESS, format!("s3://{rest}: name a bucket")));
    }
    fetch_from(&client(bucket)?, rest, key, scratch, limits).await
}

async fn fetch_from(store: &AmazonS3, rest: &str, key: &str, scratch: &Path, limits: &Limits) -> Result<PathBuf> {
    let prefix = Key::parse(key.trim_matches('/'))
        .map_err(|e| WorkerError::bad(INVALID_ADDRESS, format!("s3://{rest}: {e}")))?;
    if !key.is_empty() && !key.ends_with('/') {
        let head = retried(rest, || async { found(store.head(&prefix).await, rest) }).await?;
        if let Some(meta) = head {
            if meta.size > limits.max_bytes {
                return Err(limits.exceeded(&format!("s3://{rest}")));
            }
            let target = scratch.join(prefix.filename().unwrap_or("object"));
            download(store, &meta, &target, rest).await?;
            return Ok(target);
        }
    }
    folder(store, &prefix, rest, scratch, limits).await
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
    // Without credentials the bucket is public; asking the machine for some would only hang.
    let builder = || AmazonS3Builder::from_env().with_skip_signature(!signed);
    store(bucket, builder)
}

/// A client for `bucket` from a builder that knows endpoint and credentials.
fn store(bucket: &str, builder: impl Fn() -> AmazonS3Builder) -> Result<AmazonS3> {
    let builder = || {
        builder()
            .with_bucket_name(bucket)
            .with_retry(RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: FIRST_PAUSE,
                    ..BackoffConfig::default()
                },
                max_retries: RETRIES,
                ..RetryConfig::default()
            })
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
    match status(error) {
        Some(404) => WorkerError::bad(
            NOT_FOUND,
            format!("s3://{rest}: no such bucket or object: check the address: {error}"),
        ),
        Some(401 | 403) => WorkerError::bad(
            DENIED,
            format!("s3://{rest}: name credentials in credentialsSecret: {error}"),
        ),
        Some(300..=407 | 409..=428 | 430..=499) => WorkerError::bad(
            INVALID_ADDRESS,
            format!("s3://{rest}: check the address, AWS_ENDPOINT and AWS_REGION: {error}"),
        ),
        _ => WorkerError::transient(UNREACHABLE, format!("s3://{rest}: {error}")),
    }
}

/// The HTTP status of an answer that is an error.
fn status(error: &object_store::Error) -> Option<u16> {
    match error {
        object_store::Error::NotFound { .. } => Some(404),
        object_store::Error::PermissionDenied { .. } => Some(403),
        object_store::Error::Unauthenticated { .. } => Some(401),
        // An object that changed while it was read: to be read anew.
        object_store::Error::Precondition { .. } | object_store::Error::NotModified { .. } => None,
        // All errors of listing, and those without a variant, have the status in their text alone.
        other => {
            let text = other.to_string();
            let (_, code) = text.split_once("status code: ")?;
            code.get(..3)?.parse().ok()
        }
    }
}

#[cfg(test)]
mod tests;
