//! Where a step stands: one shared state that feeds `GET /progress` and `/metrics` in a pod, bars on a terminal, and
//! plain lines elsewhere. Also writes the termination message. It decides nothing.

use fleetune_crds::outcome::{MAX_TERMINATION_MESSAGE, Outcome, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Where Kubernetes reads the termination message.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// The shared state. Cloning shares it.
#[derive(Clone)]
pub struct Tracker {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    done: AtomicU64,
    bars: bool,
}

struct State {
    progress: Progress,
    since: Instant,
    bar: Option<ProgressBar>,
}

impl Tracker {
    /// A tracker; with `bars` it draws on the terminal (plain nothing where standard error is none).
    pub fn new(bars: bool) -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    progress: Progress::default(),
                    since: Instant::now(),
                    bar: None,
                }),
                done: AtomicU64::new(0),
                bars,
            }),
        }
    }

    /// Starts a stage of `total` units (samples or epochs).
    pub fn stage(&self, name: &str, total: u64) {
        let mut state = self.state();
        if let Some(bar) = state.bar.take() {
            bar.finish();
        }
        name.clone_into(&mut state.progress.stage);
        state.progress.total = total;
        state.since = Instant::now();
        self.inner.done.store(0, Ordering::Relaxed);
        if self.inner.bars {
            let style = ProgressStyle::with_template("{msg:>10} {bar:30} {pos}/{len} {per_sec} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            state.bar = Some(ProgressBar::new(total).with_style(style).with_message(name.to_owned()));
        }
        tracing::info!(stage = name, total, "stage started");
    }

    /// Counts `n` more units as done.
    pub fn add(&self, n: u64) {
        self.inner.done.fetch_add(n, Ordering::Relaxed);
        if self.inner.bars
            && let Some(bar) = &self.state().bar
        {
            bar.inc(n);
        }
    }

    /// Notes a metric, such as `validation.macroF1`.
    pub fn metric(&self, name: &str, value: f64) {
        if value.is_finite() {
            self.state().progress.metrics.insert(name.to_owned(), value);
        }
    }

    /// Ends the last stage.
    pub fn finish(&self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish();
        }
    }

    /// A picture of the state now.
    pub fn snapshot(&self) -> Progress {
        let state = self.state();
        let mut progress = state.progress.clone();
        progress.done = self.inner.done.load(Ordering::Relaxed);
        let seconds = state.since.elapsed().as_secs_f64();
        progress.samples_per_second = (progress.done > 0 && seconds > 0.0).then(|| progress.done as f64 / seconds);
        progress
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is plain data: a panic elsewhere leaves it readable.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of `/metrics`.
fn metrics(progress: &Progress) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let stage = &progress.stage;
    let _ = writeln!(text, "# TYPE fleetune_worker_stage_units gauge");
    let _ = writeln!(
        text,
        "fleetune_worker_stage_units{{stage=\"{stage}\",kind=\"done\"}} {}",
        progress.done
    );
    let _ = writeln!(
        text,
        "fleetune_worker_stage_units{{stage=\"{stage}\",kind=\"total\"}} {}",
        progress.total
    );
    if let Some(rate) = progress.samples_per_second {
        let _ = writeln!(text, "# TYPE fleetune_worker_units_per_second gauge");
        let _ = writeln!(text, "fleetune_worker_units_per_second{{stage=\"{stage}\"}} {rate}");
    }
    let _ = writeln!(text, "# TYPE fleetune_worker_metric gauge");
    for (name, value) in &progress.metrics {
        let (split, metric) = name.split_once('.').unwrap_or(("", name));
        let _ = writeln!(
            text,
            "fleetune_worker_metric{{split=\"{split}\",metric=\"{metric}\"}} {value}"
        );
    }
    text
}

/// Answers `/progress` and `/metrics` on `listen` until the process ends. A port that is taken costs progress, not the
/// job.
pub async fn serve(tracker: Tracker, listen: std::net::SocketAddr) {
    use axum::{Json, Router, routing::get};
    let listener = match tokio::net::TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%listen, %error, "no progress endpoint");
            return;
        }
    };
    let (a, b) = (tracker.clone(), tracker);
    let app = Router::new()
        .route("/progress", get(move || async move { Json(a.snapshot()) }))
        .route("/metrics", get(move || async move { metrics(&b.snapshot()) }));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::warn!(%error, "the progress endpoint ended");
    }
}

/// The termination message: JSON of at most [`MAX_TERMINATION_MESSAGE`] bytes; its message gives way where it is longer.
pub fn termination_message(outcome: &Outcome) -> String {
    let text = |o: &Outcome| serde_json::to_string(o).unwrap_or_default();
    let full = text(outcome);
    if full.len() <= MAX_TERMINATION_MESSAGE {
        return full;
    }
    let mut short = outcome.clone();
    "see the log".clone_into(&mut short.message);
    let message = text(&short);
    if message.len() <= MAX_TERMINATION_MESSAGE {
        return message;
    }
    short.summary = None;
    text(&short)
}

/// Writes the termination message to `path`; where that cannot be done it is logged, and the exit code still tells.
pub fn write_termination(path: &Path, outcome: &Outcome) {
    if let Err(error) = std::fs::write(path, termination_message(outcome)) {
        tracing::warn!(path = %path.display(), %error, "no termination message");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetune_crds::outcome::Code;

    #[test]
    fn a_stage_counts_from_nothing() {
        let tracker = Tracker::new(false);
        tracker.stage("data", 10);
        tracker.add(4);
        tracker.stage("features", 7);
        tracker.add(2);
        tracker.metric("validation.macroF1", 0.5);
        tracker.metric("validation.loss", f64::NAN);
        let seen = tracker.snapshot();
        assert_eq!((seen.stage.as_str(), seen.done, seen.total), ("features", 2, 7));
        assert_eq!(seen.metrics.len(), 1, "JSON has no NaN");
        assert!(metrics(&seen).contains("fleetune_worker_metric{split=\"validation\",metric=\"macroF1\"} 0.5"));
    }

    #[test]
    fn the_termination_message_fits() {
        let mut outcome = Outcome::new(Code::BadInput, "DataEmpty", "\u{1}".repeat(1000));
        outcome.gate = Some("g".into());
        assert!(termination_message(&outcome).len() <= MAX_TERMINATION_MESSAGE);
        let back: Outcome = serde_json::from_str(&termination_message(&outcome)).unwrap();
        assert_eq!(back.reason, "DataEmpty");
    }
}
