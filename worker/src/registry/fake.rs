//! A registry in this process, for tests: enough of the distribution specification to push and pull, and faults on
//! demand. It checks what a real one checks: digests of uploads, and that a manifest's blobs are there.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fleetune_crds::common::Digest;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
}

/// What goes wrong with the next request whose path contains the text.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status.
    Status(u16),
    /// The connection breaks after so many bytes of the body.
    CutAfter(usize),
    /// A redirect to this address.
    Redirect(String),
    /// Other bytes of the same length.
    Flip,
}

#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) manifests: BTreeMap<String, Vec<u8>>,
    pub(crate) faults: VecDeque<(String, Fault)>,
    pub(crate) seen: Vec<Seen>,
    /// What a request must carry, and what it is told otherwise.
    pub(crate) auth: Option<(String, String)>,
    /// Whether ranges are answered.
    pub(crate) no_ranges: bool,
    /// The token service's answer to `/token`, for the Basic header given.
    pub(crate) token: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) host: String,
    pub(crate) shelf: Arc<Mutex<Shelf>>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            host: listener.local_addr().unwrap().to_string(),
            shelf: Arc::default(),
        };
        let app = axum::Router::new().fallback(handle).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        fake
    }

    pub(crate) fn repository(&self) -> String {
        format!("{}/models/shirts", self.host)
    }

    pub(crate) fn fail(&self, path: &str, fault: Fault) {
        self.shelf.lock().unwrap().faults.push_back((path.to_owned(), fault));
    }

    pub(crate) fn count(&self, method: &Method, path: &str) -> usize {
        let all = self.shelf.lock().unwrap();
        all.seen
            .iter()
            .filter(|seen| seen.method == *method && seen.path.contains(path))
            .count()
    }

    pub(crate) fn client(&self) -> super::Registry {
        self.client_with(super::Credentials::default())
    }

    pub(crate) fn client_with(&self, credentials: super::Credentials) -> super::Registry {
        super::Registry::new([self.host.as_str()], credentials)
            .unwrap()
            .with_patience(super::Patience {
                attempts: 3,
                first: std::time::Duration::from_millis(1),
                longest: std::time::Duration::from_millis(5),
            })
    }
}

async fn handle(State(fake): State<Fake>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let text = |name: header::HeaderName| Some(parts.headers.get(name)?.to_str().ok()?.to_owned());
    let seen = Seen {
        method: parts.method.clone(),
        path: path.clone(),
        authorization: text(header::AUTHORIZATION),
        range: text(header::RANGE),
    };
    let body = axum::body::to_bytes(body, 1 << 30).await.unwrap_or_default();
    let mut shelf = fake.shelf.lock().unwrap();
    shelf.seen.push(seen.clone());
    if path == "/token" {
        let token = shelf.token.clone().unwrap_or_default();
        return axum::Json(serde_json::json!({ "token": token })).into_response();
    }
    if let Some((wanted, challenge)) = shelf.auth.clone()
        && seen.authorization.as_ref() != Some(&wanted)
    {
        return (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response();
    }
    let at = shelf.faults.iter().position(|(text, _)| path.contains(text.as_str()));
    let fault = at.and_then(|at| shelf.faults.remove(at)).map(|(_, fault)| fault);
    match fault {
        Some(Fault::Status(status)) => (StatusCode::from_u16(status).unwrap(), "as told").into_response(),
        Some(Fault::Redirect(to)) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
        fault => answer(
            &mut shelf,
            &parts.method,
            &path,
            parts.uri.query(),
            &parts.headers,
            &body,
            fault.as_ref(),
        ),
    }
}

fn answer(
    shelf: &mut Shelf,
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    body: &Bytes,
    fault: Option<&Fault>,
) -> Response {
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    if path.contains("/blobs/uploads/") {
        if method == Method::POST {
            let to = format!("{path}session?state=1");
            return (StatusCode::ACCEPTED, [(header::LOCATION, to)]).into_response();
        }
        let digest = query
            .and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("digest=")))
            .unwrap_or_default()
            .replace("%3A", ":");
        if Digest::of(body).as_str() != digest {
            return StatusCode::BAD_REQUEST.into_response();
        }
        shelf.blobs.insert(digest, body.to_vec());
        return StatusCode::CREATED.into_response();
    }
    let found = if path.contains("/manifests/") {
        if method == Method::PUT {
            let manifest = crate::artifact::Manifest::parse(body).unwrap();
            let all = manifest.layers.iter().chain([&manifest.config]);
            if !all
                .into_iter()
                .all(|blob| shelf.blobs.contains_key(blob.digest.as_str()))
            {
                return (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN").into_response();
            }
            shelf.manifests.insert(last, body.to_vec());
            shelf.manifests.insert(Digest::of(body).to_string(), body.to_vec());
            return StatusCode::CREATED.into_response();
        }
        shelf.manifests.get(&last)
    } else {
        shelf.blobs.get(&last)
    };
    let Some(mut bytes) = found.cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if let (Some(Fault::Flip), Some(byte)) = (fault, bytes.last_mut()) {
        *byte ^= 1;
    }
    let mut status = StatusCode::OK;
    let mut extra = HeaderMap::new();
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    if let Some(start) = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())
        && !shelf.no_ranges
    {
        let total = bytes.len();
        bytes.drain(..start.min(total));
        status = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {start}-{}/{total}", total - 1);
        extra.insert(header::CONTENT_RANGE, range.parse().unwrap());
    }
    extra.insert(header::CONTENT_LENGTH, bytes.len().into());
    let body = match (method, fault) {
        (&Method::HEAD, _) => Body::empty(),
        (_, Some(Fault::CutAfter(count))) => {
            bytes.truncate(*count);
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
    (status, extra, body).into_response()
}
