//! The client against a bucket in this process: enough of the protocol to read, and faults on demand. Signatures are
//! checked by the server of other people's that whole jobs are run against.

use super::*;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Status(u16),
    /// The connection breaks after so many bytes of the body.
    CutAfter(usize),
}

#[derive(Default)]
struct Shelf {
    objects: BTreeMap<String, Vec<u8>>,
    /// For the next requests, in order.
    faults: VecDeque<Fault>,
    /// For all requests that find no other.
    always: Option<u16>,
    ranges: Vec<String>,
}

#[derive(Clone)]
struct Bucket {
    store: AmazonS3,
    shelf: Arc<Mutex<Shelf>>,
}

impl Bucket {
    async fn start(objects: &[(&str, &[u8])]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let shelf = Arc::new(Mutex::new(Shelf {
            objects: objects.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect(),
            ..Shelf::default()
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(answer).with_state(shelf.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let builder = || {
            AmazonS3Builder::new()
                .with_endpoint(&endpoint)
                .with_allow_http(true)
                .with_access_key_id("id")
                .with_secret_access_key("secret")
        };
        Self {
            store: store("b", builder).unwrap(),
            shelf,
        }
    }

    async fn fetch(&self, key: &str, max_bytes: u64) -> (tempfile::TempDir, Result<PathBuf>) {
        let scratch = tempfile::tempdir().unwrap();
        let limits = Limits {
            max_bytes,
            too_large: crate::error::DATA_TOO_LARGE,
            local: false,
        };
        let path = fetch_from(&self.store, &format!("b/{key}"), key, scratch.path(), &limits).await;
        (scratch, path)
    }
}

async fn answer(State(shelf): State<Arc<Mutex<Shelf>>>, request: Request) -> Response {
    let mut shelf = shelf.lock().unwrap();
    let key = request
        .uri()
        .path()
        .trim_start_matches("/b")
        .trim_start_matches('/')
        .to_owned();
    let fault = shelf.faults.pop_front();
    let status = match fault {
        Some(Fault::Status(status)) => Some(status),
        _ => shelf.always,
    };
    if let Some(status) = status {
        return (
            StatusCode::from_u16(status).unwrap(),
            "<Error><Code>AsTold</Code></Error>",
        )
            .into_response();
    }
    if key.is_empty() {
        let query = request.uri().query().unwrap_or_default();
        let prefix = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("prefix="))
            .unwrap_or_default()
            .replace("%2F", "/");
        let mut text = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
        for (key, value) in shelf.objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            let _ = write!(
                text,
                "<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00Z</LastModified><ETag>\"e\"</ETag>\
                 <Size>{}</Size></Contents>",
                value.len()
            );
        }
        text.push_str("</ListBucketResult>");
        return text.into_response();
    }
    let Some(mut bytes) = shelf.objects.get(&key).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut response = Response::builder()
        .header(header::LAST_MODIFIED, "Mon, 01 Jan 2024 00:00:00 GMT")
        .header(header::ETAG, "\"e\"");
    if let Some(range) = request.headers().get(header::RANGE).and_then(|r| r.to_str().ok()) {
        shelf.ranges.push(range.to_owned());
        let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let (start, total) = (start.parse::<usize>().unwrap(), bytes.len());
        let end = end.parse::<usize>().map_or(total, |end| total.min(end + 1));
        bytes = bytes[start..end].to_vec();
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{total}", end - 1));
    }
    response = response.header(header::CONTENT_LENGTH, bytes.len());
    let body = match (request.method(), fault) {
        (&Method::HEAD, _) => Body::empty(),
        (_, Some(Fault::CutAfter(count))) => {
            bytes.truncate(count);
            // A pause, so that what came before the cut is not lost with it.
            Body::from_stream(futures::stream::unfold(Some(bytes), |state| async move {
                match state {
                    Some(bytes) if !bytes.is_empty() => Some((Ok(Bytes::from(bytes)), Some(Vec::new()))),
                    Some(_) => {
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        Some((Err(std::io::Error::other("cut")), None))
                    }
                    None => None,
                }
            }))
        }
        _ => Body::from(bytes),
    };
    response.body(body).unwrap()
}

#[tokio::test]
async fn an_object_and_a_prefix_come_as_file_and_folder() {
    let bucket = Bucket::start(&[
        ("data.tar", b"all of it"),
        ("pictures/red/1.png", b"one"),
        ("pictures/blue/2.png", b"two"),
        ("pictures/blue/", b""),
        ("pictures2/3.png", b"another prefix"),
    ])
    .await;
    let (_dir, path) = bucket.fetch("data.tar", 100).await;
    let path = path.unwrap();
    assert!(path.ends_with("data.tar"));
    assert_eq!(std::fs::read(path).unwrap(), b"all of it");
    for key in ["pictures", "pictures/"] {
        let (_dir, folder) = bucket.fetch(key, 100).await;
        let folder = folder.unwrap();
        assert_eq!(std::fs::read(folder.join("red/1.png")).unwrap(), b"one", "{key}");
        assert_eq!(std::fs::read(folder.join("blue/2.png")).unwrap(), b"two", "{key}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "{key}");
    }
}

#[tokio::test]
async fn sizes_are_bounded_before_anything_is_stored() {
    let bucket = Bucket::start(&[("data.tar", &[0; 1000]), ("p/a", &[0; 600]), ("p/b", &[0; 600])]).await;
    for (key, max) in [("data.tar", 999), ("p", 1199)] {
        let (dir, error) = bucket.fetch(key, max).await;
        let error = error.unwrap_err();
        assert_eq!(error.reason(), crate::error::DATA_TOO_LARGE, "{key}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{key}");
    }
}

#[tokio::test]
async fn every_refusal_has_its_reason_and_says_what_to_do() {
    use crate::error::Class;
    let bucket = Bucket::start(&[("data.tar", b"all of it")]).await;
    for (status, class, reason, word) in [
        (400, Class::BadInput, INVALID_ADDRESS, "AWS_REGION"),
        (401, Class::BadInput, DENIED, "credentialsSecret"),
        (403, Class::BadInput, DENIED, "credentialsSecret"),
        (404, Class::BadInput, NOT_FOUND, "check the address"),
        (429, Class::Transient, UNREACHABLE, "s3://b/data"),
        (500, Class::Transient, UNREACHABLE, "s3://b/data"),
        (503, Class::Transient, UNREACHABLE, "s3://b/data"),
    ] {
        bucket.shelf.lock().unwrap().always = Some(status);
        // An object is asked for its size first, a prefix is listed.
        for key in ["data.tar", "data/"] {
            let error = bucket.fetch(key, 100).await.1.unwrap_err();
            assert_eq!(
                (error.class(), error.reason()),
                (class, reason),
                "{status}, {key}: {error}"
            );
            assert!(error.message().contains(word), "{status}, {key}: {error}");
        }
    }
    bucket.shelf.lock().unwrap().always = None;
    let absent = bucket.fetch("absent.tar", 100).await.1.unwrap_err();
    assert_eq!(absent.reason(), NOT_FOUND);
    let gone = || {
        AmazonS3Builder::new()
            .with_endpoint("http://127.0.0.1:1")
            .with_allow_http(true)
            .with_skip_signature(true)
    };
    let bucket = Bucket {
        store: store("b", gone).unwrap(),
        ..bucket
    };
    let error = bucket.fetch("data.tar", 100).await.1.unwrap_err();
    assert_eq!((error.class(), error.reason()), (Class::Transient, UNREACHABLE));
}

#[tokio::test]
async fn passing_errors_and_cuts_are_tried_again_from_where_they_broke_off() {
    let whole: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    let bucket = Bucket::start(&[("data.tar", &whole)]).await;
    {
        // The first is asked for the size, the rest for the bytes.
        let mut shelf = bucket.shelf.lock().unwrap();
        shelf.faults = [Fault::Status(503), Fault::Status(500)].into();
    }
    let (_dir, path) = bucket.fetch("data.tar", 1 << 20).await;
    assert!(std::fs::read(path.unwrap()).unwrap() == whole);
    {
        let mut shelf = bucket.shelf.lock().unwrap();
        // No fault for the size: a status that is no error.
        shelf.faults = [
            Fault::CutAfter(usize::MAX),
            Fault::CutAfter(40_000),
            Fault::CutAfter(20_000),
        ]
        .into();
        shelf.ranges.clear();
    }
    let (_dir, path) = bucket.fetch("data.tar", 1 << 20).await;
    assert!(std::fs::read(path.unwrap()).unwrap() == whole);
    let resumed = bucket.shelf.lock().unwrap().ranges.clone();
    assert!(!resumed.is_empty(), "the bytes that came are not asked for again");
    assert!(
        resumed.iter().all(|range| !range.starts_with("bytes=0-")),
        "{resumed:?}"
    );
}
