//! `/healthz` (the process runs), `/readyz` (every gate is open; lists those that are not) and `/metrics`.

use crate::runtime::Shutdown;
use crate::runtime::metrics::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The gates of this process. A gate is closed from its making until it is opened.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, bool>>>);

/// One reason to be not ready.
#[derive(Clone)]
pub struct Gate {
    health: Health,
    name: String,
}

impl Health {
    /// Makes a closed gate; a gate of that name that exists is closed again.
    pub fn gate(&self, name: impl Into<String>) -> Gate {
        let gate = Gate {
            health: self.clone(),
            name: name.into(),
        };
        gate.set(false);
        gate
    }

    /// Names of the closed gates.
    pub fn pending(&self) -> Vec<String> {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates
            .iter()
            .filter(|(_, open)| !**open)
            .map(|(name, _)| name.clone())
            .collect()
    }
}

impl Gate {
    /// Opens the gate.
    pub fn open(&self) {
        self.set(true);
    }

    fn set(&self, open: bool) {
        let mut gates = self.health.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates.insert(self.name.clone(), open);
    }
}

/// Serves the three pages until the switch is thrown.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    listen: SocketAddr,
    health: Health,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    tracing::info!(%listen, "serving metrics and health");
    axum::serve(listener, router(health, metrics))
        .with_graceful_shutdown(shutdown.wait())
        .await
}

fn router(health: Health, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(health)
        .merge(Router::new().route("/metrics", get(print)).with_state(metrics))
}

async fn ready(State(health): State<Health>) -> Response {
    let pending = health.pending();
    if pending.is_empty() {
        return "ok\n".into_response();
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("waiting for: {}\n", pending.join(", ")),
    )
        .into_response()
}

async fn print(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_lists_what_is_pending() {
        let health = Health::default();
        let (a, b) = (health.gate("a"), health.gate("b"));
        assert_eq!(health.pending(), ["a", "b"]);
        a.open();
        assert_eq!(health.pending(), ["b"]);
        b.open();
        assert!(health.pending().is_empty());
    }
}
