//! `http(s)://`: one file, streamed to disk within the bound. A broken transfer goes on where it stopped if the server
//! can, and starts over if it cannot.

use super::{Limits, retried};
use crate::error::{DENIED, INVALID_ADDRESS, NOT_FOUND, Result, UNREACHABLE, WorkerError};
use futures::StreamExt;
use reqwest::{StatusCode, header};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Longest silence of a server.
const READ_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Downloads `address` to a file in `scratch`.
pub async fn fetch(address: &str, scratch: &Path, limits: &Limits) -> Result<PathBuf> {
    let url = url::Url::parse(address)
        .map_err(|e| WorkerError::bad(INVALID_ADDRESS, format!("{address} is no address: {e}")))?;
    // The name keeps its ending, which says what the file is.
    let name = url.path_segments().and_then(|mut s| s.next_back()).unwrap_or_default();
    let name: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .collect();
    let target = scratch.join(format!("download-{name}"));
    let client = client()?;
    retried(address, || download(&client, &url, &target, limits)).await?;
    Ok(target)
}

fn client() -> Result<reqwest::Client> {
    let builder = || {
        reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
    };
    builder()
        .build()
        .or_else(|error| {
            tracing::warn!(%error, "no certificates on this machine: only plain HTTP can be reached");
            builder().tls_certs_only([]).build()
        })
        .map_err(|e| WorkerError::transient(UNREACHABLE, format!("no HTTP client: {e}")))
}

async fn download(client: &reqwest::Client, url: &url::Url, target: &Path, limits: &Limits) -> Result<()> {
    let have = tokio::fs::metadata(target).await.map_or(0, |m| m.len());
    let mut request = client.get(url.clone());
    if have > 0 {
        request = request.header(header::RANGE, format!("bytes={have}-"));
    }
    let answer = request.send().await.map_err(|e| broken(url, &e))?;
    let status = answer.status();
    let start = match status {
        StatusCode::PARTIAL_CONTENT => have,
        StatusCode::RANGE_NOT_SATISFIABLE => {
            // What lies here is not a beginning of what lies there: start over.
            let _ = tokio::fs::remove_file(target).await;
            return Err(WorkerError::transient(
                UNREACHABLE,
                format!("{url} changed while it was read"),
            ));
        }
        s if s.is_success() => 0,
        s => return Err(refused(url, s)),
    };
    if answer
        .content_length()
        .is_some_and(|n| start.saturating_add(n) > limits.max_bytes)
    {
        return Err(limits.exceeded(url.as_str()));
    }
    let io = |e: std::io::Error| WorkerError::io("writing", target, &e);
    let mut file = tokio::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(start == 0)
        .append(start > 0)
        .open(target)
        .await
        .map_err(io)?;
    let mut total = start;
    let mut body = answer.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(e) => {
                // What came so far must be on disk before the next attempt asks for the rest.
                file.flush().await.map_err(io)?;
                return Err(broken(url, &e));
            }
        };
        total += chunk.len() as u64;
        if total > limits.max_bytes {
            return Err(limits.exceeded(url.as_str()));
        }
        file.write_all(&chunk).await.map_err(io)?;
    }
    file.flush().await.map_err(io)
}

fn broken(url: &url::Url, error: &reqwest::Error) -> WorkerError {
    WorkerError::transient(UNREACHABLE, format!("{url} does not answer, or broke off: {error:?}"))
}

fn refused(url: &url::Url, status: StatusCode) -> WorkerError {
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            WorkerError::bad(NOT_FOUND, format!("{url}: {status}: check the address"))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            WorkerError::bad(DENIED, format!("{url}: {status}: the address asks for credentials"))
        }
        s if s.is_server_error() || s == StatusCode::TOO_MANY_REQUESTS || s == StatusCode::REQUEST_TIMEOUT => {
            WorkerError::transient(UNREACHABLE, format!("{url}: {status}"))
        }
        s => WorkerError::bad(INVALID_ADDRESS, format!("{url}: {s}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, body::Body, http::HeaderMap, response::IntoResponse, routing::get};
    use std::sync::atomic::{AtomicUsize, Ordering};

    static BROKEN_ONCE: AtomicUsize = AtomicUsize::new(0);

    async fn server() -> String {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let app = Router::new()
            .route("/whole.tar", get(|| async { vec![7u8; 1000] }))
            .route("/denied", get(|| async { StatusCode::UNAUTHORIZED }))
            .route("/forbidden", get(|| async { StatusCode::FORBIDDEN }))
            .route("/busy", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
            .route(
                "/breaks",
                get(|headers: HeaderMap| async move {
                    if BROKEN_ONCE.fetch_add(1, Ordering::SeqCst) == 0 {
                        let parts = futures::stream::unfold(0, |n| async move {
                            // The server sends nothing of a body that breaks before its first flush.
                            tokio::time::sleep(Duration::from_millis(100 * n)).await;
                            let part = if n == 0 {
                                Ok(vec![1u8; 300])
                            } else {
                                Err(std::io::Error::other("cut"))
                            };
                            Some((part, n + 1))
                        });
                        return Body::from_stream(parts).into_response();
                    }
                    assert_eq!(headers[header::RANGE], "bytes=300-");
                    (StatusCode::PARTIAL_CONTENT, vec![2u8; 700]).into_response()
                }),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn files_are_read_bounded_and_resumed() {
        let scratch = tempfile::tempdir().unwrap();
        let base = server().await;
        let limits = |max_bytes| Limits {
            max_bytes,
            too_large: crate::error::DATA_TOO_LARGE,
            local: false,
        };
        let path = fetch(&format!("{base}/whole.tar"), scratch.path(), &limits(1000))
            .await
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap().len(), 1000);
        let path = fetch(&format!("{base}/breaks"), scratch.path(), &limits(1000))
            .await
            .unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!((bytes.len(), bytes[299], bytes[300]), (1000, 1, 2));
        for (name, max, reason) in [
            ("whole.tar", 999, crate::error::DATA_TOO_LARGE),
            ("absent", 10, NOT_FOUND),
            ("denied", 10, DENIED),
            ("forbidden", 10, DENIED),
            ("busy", 10, UNREACHABLE),
        ] {
            let fresh = tempfile::tempdir().unwrap();
            let error = fetch(&format!("{base}/{name}"), fresh.path(), &limits(max))
                .await
                .unwrap_err();
            assert_eq!(error.reason(), reason, "{name}");
        }
    }
}
