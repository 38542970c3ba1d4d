//! The HTTP side of serving: health, metadata, inference and metrics. Bodies and queues are bounded, inference runs on
//! blocking threads, at most one a core, and every answer names the version that gave it.

use super::metrics::Metrics;
use super::protocol::{Request, metadata};
use super::table::{Fault, Found, Served, Table};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// Largest body of a request, in bytes.
pub const MAX_BODY: usize = 16 << 20;
/// Requests that may wait for a core.
const MAX_WAITING: usize = 64;
/// KiB of bodies that are held at a time, over all requests.
const MAX_HELD_KIB: usize = 64 << 10;
/// Header with the length of the JSON in front of binary tensors.
const BINARY_HEADER: &str = "inference-header-content-length";

/// What the handlers share.
pub struct Serving {
    table: Arc<Table>,
    metrics: Arc<Metrics>,
    ready: watch::Receiver<bool>,
    waiting: Semaphore,
    held: Semaphore,
    cores: Semaphore,
}

impl Serving {
    /// Serving of `table`.
    pub fn new(table: Arc<Table>, metrics: Arc<Metrics>, ready: watch::Receiver<bool>) -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Arc::new(Self {
            table,
            metrics,
            ready,
            waiting: Semaphore::new(cores + MAX_WAITING),
            held: Semaphore::new(MAX_HELD_KIB),
            cores: Semaphore::new(cores),
        })
    }
}

/// The routes.
pub fn router(serving: Arc<Serving>) -> Router {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(|| async { StatusCode::OK }))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{name}", get(model))
        .route("/v2/models/{name}/ready", get(model_ready))
        .route("/v2/models/{name}/infer", post(infer))
        .route("/v2/models/{name}/versions/{version}", get(model_version))
        .route("/v2/models/{name}/versions/{version}/ready", get(model_version_ready))
        .route("/v2/models/{name}/versions/{version}/infer", post(infer_version))
        .route("/metrics", get(metrics))
        .with_state(serving)
}

async fn server() -> Response {
    json_of(&json!({
        "name": "fleetune",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    }))
}

async fn ready(State(serving): State<Arc<Serving>>) -> Response {
    if *serving.ready.borrow() {
        StatusCode::OK.into_response()
    } else {
        error(StatusCode::SERVICE_UNAVAILABLE, "an active version does not serve yet")
    }
}

async fn metrics(State(serving): State<Arc<Serving>>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        serving.metrics.text(),
    )
        .into_response()
}

async fn model(State(serving): State<Arc<Serving>>, Path(name): Path<String>) -> Response {
    describe(find(&serving, &name, None))
}

async fn model_version(State(serving): State<Arc<Serving>>, Path((name, version)): Path<(String, String)>) -> Response {
    describe(find(&serving, &name, Some(&version)))
}

async fn model_ready(State(serving): State<Arc<Serving>>, Path(name): Path<String>) -> Response {
    acknowledge(find(&serving, &name, None))
}

async fn model_version_ready(
    State(serving): State<Arc<Serving>>,
    Path((name, version)): Path<(String, String)>,
) -> Response {
    acknowledge(find(&serving, &name, Some(&version)))
}

fn describe(found: Result<Arc<Served>, Absent>) -> Response {
    match found {
        Ok(served) => json_of(&metadata(
            &served.key.replace('/', "."),
            served.digest.as_str(),
            &served.predictor.description(),
        )),
        Err(absent) => absent.into_response(),
    }
}

fn acknowledge(found: Result<Arc<Served>, Absent>) -> Response {
    found.map_or_else(Absent::into_response, |_| StatusCode::OK.into_response())
}

async fn infer(
    State(serving): State<Arc<Serving>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    count(&serving, &name, answer(&serving, &name, None, &headers, body).await)
}

async fn infer_version(
    State(serving): State<Arc<Serving>>,
    Path((name, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    count(
        &serving,
        &name,
        answer(&serving, &name, Some(&version), &headers, body).await,
    )
}

/// Counts a request under its model's key; names that are no model share one label, so that clients cannot make series.
fn count(serving: &Serving, name: &str, response: Response) -> Response {
    let key = match serving.table.find(name) {
        Found::One(served) => served.key.clone(),
        _ => String::new(),
    };
    serving
        .metrics
        .requests
        .with_label_values(&[key.as_str(), response.status().as_str()])
        .inc();
    response
}

/// Why nothing answers to a name.
struct Absent(String);

impl IntoResponse for Absent {
    fn into_response(self) -> Response {
        error(StatusCode::NOT_FOUND, &self.0)
    }
}

fn find(serving: &Serving, name: &str, version: Option<&str>) -> Result<Arc<Served>, Absent> {
    let served = match serving.table.find(name) {
        Found::One(served) => served,
        Found::None => return Err(Absent(format!("no model {name:?} serves here"))),
        Found::Several(names) => return Err(Absent(format!("{name:?} is not unique here: {}", names.join(" or ")))),
    };
    match version {
        Some(version) if version != served.digest.as_str() => Err(Absent(format!(
            "version {version} of {name:?} does not serve here, {} does",
            served.digest
        ))),
        _ => Ok(served),
    }
}

async fn answer(
    serving: &Arc<Serving>,
    name: &str,
    version: Option<&str>,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    if let Err(absent) = find(serving, name, version) {
        return absent.into_response();
    }
    let too_many = || {
        error(
            StatusCode::TOO_MANY_REQUESTS,
            "too many requests wait here: try again later",
        )
    };
    let Ok(_waiting) = serving.waiting.try_acquire() else {
        return too_many();
    };
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(MAX_BODY);
    let too_large = || {
        error(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("a body has at most {MAX_BODY} bytes"),
        )
    };
    if length > MAX_BODY {
        // Read and forgotten, within reason: a client that is still sending would not see the answer.
        discard(body, 2 * MAX_BODY).await;
        return too_large();
    }
    let Ok(_held) = serving.held.try_acquire_many(length.div_ceil(1024) as u32) else {
        return too_many();
    };
    let Ok(body) = axum::body::to_bytes(body, length).await else {
        return too_large();
    };
    let header = match headers
        .get(BINARY_HEADER)
        .map(|value| value.to_str().unwrap_or_default().parse::<usize>())
    {
        None => None,
        Some(Ok(length)) => Some(length),
        Some(Err(_)) => {
            return error(
                StatusCode::BAD_REQUEST,
                "Inference-Header-Content-Length is not a number",
            );
        }
    };
    let Ok(_core) = serving.cores.acquire().await else {
        return too_many();
    };
    // Looked up only now, and once: the whole answer comes from one version, the one that serves when its turn comes.
    let served = match find(serving, name, version) {
        Ok(served) => served,
        Err(absent) => return absent.into_response(),
    };
    let shared = serving.clone();
    let work = tokio::task::spawn_blocking(move || run(&shared, &served, &body, header));
    work.await
        .unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "the inference was cut short"))
}

/// Reads at most `limit` bytes of a body and forgets them.
async fn discard(body: Body, limit: usize) {
    use futures::StreamExt;
    let mut stream = body.into_data_stream();
    let mut read = 0;
    while let Some(Ok(piece)) = stream.next().await {
        read += piece.len();
        if read > limit {
            return;
        }
    }
}

fn run(serving: &Serving, served: &Served, body: &[u8], header: Option<usize>) -> Response {
    let mut request = match Request::read(body, header, &served.predictor.description()) {
        Ok(request) => request,
        Err(bad) => return error(StatusCode::BAD_REQUEST, &bad.0),
    };
    let latency = serving.metrics.latency.with_label_values(&[&served.key]);
    let mut answers = Vec::with_capacity(request.samples.len());
    for sample in std::mem::take(&mut request.samples) {
        let timer = latency.start_timer();
        match served.infer(sample) {
            Ok(answer) => {
                timer.observe_duration();
                answers.push(answer);
            }
            Err(Fault::Client(why)) => {
                timer.stop_and_discard();
                return error(StatusCode::BAD_REQUEST, why.message());
            }
            Err(Fault::Version(why)) => {
                timer.stop_and_discard();
                serving.metrics.errors.with_label_values(&[&served.key]).inc();
                tracing::warn!(model = served.key, digest = %served.digest, error = %why, "inference error");
                return error(StatusCode::INTERNAL_SERVER_ERROR, why.message());
            }
        }
    }
    let (body, header) = request.reply(&served.key.replace('/', "."), served.digest.as_str(), &answers);
    match header {
        None => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Some(length) => (
            [
                (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
                (BINARY_HEADER, length.to_string()),
            ],
            body,
        )
            .into_response(),
    }
}

fn json_of(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn error(status: StatusCode, text: &str) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        json!({ "error": text }).to_string(),
    )
        .into_response()
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
