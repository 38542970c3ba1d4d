//! Where a step stands: one shared state that feeds `GET /progress` and `/metrics` in a pod, bars on a terminal, and
//! plain lines elsewhere. Also writes the termination message. It decides nothing.

use fleetune_crds::outcome::{MAX_TERMINATION_MESSAGE, Outcome, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write as _;
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

/// The termination message: JSON of at most [`MAX_TERMINATION_MESSAGE`] bytes. Beside code, reason, gate and digest it
/// carries a message, because the report is written for candidates and most failures have none, and the few numbers of
/// `validate` that status and metrics show, because the hub reads no registry. What these can take is bounded, so that
/// all of it fits; were it not so, the message would give way first.
pub fn termination_message(outcome: &Outcome) -> String {
    let text = |o: &Outcome| serde_json::to_string(o).unwrap_or_default();
    let mut short = outcome.clone();
    // JSON writes a control character in six bytes, and a condition has no use for it.
    short.message = outcome.message.replace(char::is_control, " ");
    let full = text(&short);
    if full.len() <= MAX_TERMINATION_MESSAGE {
        return full;
    }
    "see the log".clone_into(&mut short.message);
    let message = text(&short);
    if message.len() <= MAX_TERMINATION_MESSAGE {
        return message;
    }
    short.summary = None;
    text(&short)
}

/// Writes the termination message to the file at `path`, which only a container has: elsewhere there is nobody to read
/// it. Where that cannot be done it is logged, and the exit code still tells.
pub fn write_termination(path: &Path, outcome: &Outcome) {
    let file = std::fs::OpenOptions::new().write(true).truncate(true).open(path);
    let written = match file {
        Ok(mut file) => file.write_all(termination_message(outcome).as_bytes()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        tracing::error!(path = %path.display(), %error, "no termination message");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetune_crds::outcome::Code;
    use std::collections::BTreeMap;

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
    fn the_largest_termination_message_fits_and_keeps_all_of_it() {
        use fleetune_crds::common::{Decimal, Digest};
        use fleetune_crds::conditions::MAX_MESSAGE;
        use fleetune_crds::{Metric, outcome::Summary};
        let longest: Decimal = "-999999999.999999999".parse().unwrap();
        let metrics: BTreeMap<String, Decimal> = [
            Metric::Accuracy,
            Metric::MacroF1,
            Metric::MacroPrecision,
            Metric::MacroRecall,
            Metric::Mse,
            Metric::Mae,
            Metric::R2,
        ]
        .map(|metric| (metric.name().to_owned(), longest.clone()))
        .into();
        // Quotes are written in two bytes each; control characters would be written in six.
        for text in ["\"".repeat(2 * MAX_MESSAGE), "\u{1}".repeat(2 * MAX_MESSAGE)] {
            let mut outcome = Outcome::new(Code::Transient, "InputShapeMismatch", text);
            outcome.gate = Some("macroPrecision overBaseline".into());
            outcome.digest = Some(Digest::of(b"report"));
            outcome.data_manifest = Some(Digest::of(b"data"));
            outcome.summary = Some(Summary {
                samples: u32::MAX,
                metrics: metrics.clone(),
                baseline: "linearStatistics".into(),
                baseline_metrics: metrics.clone(),
                bytes: i64::MAX,
                p95_latency_ms: longest.clone(),
                peak_memory_bytes: i64::MAX,
                contract: Digest::of(b"contract"),
            });
            let message = termination_message(&outcome);
            assert!(message.len() <= MAX_TERMINATION_MESSAGE, "{}", message.len());
            let back: Outcome = serde_json::from_str(&message).unwrap();
            assert_eq!(back.message.chars().count(), outcome.message.chars().count());
            assert_eq!(back.summary, outcome.summary);
        }
    }

    #[test]
    fn last_words_are_written_where_there_is_a_file_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination-log");
        let outcome = Outcome::new(Code::BadInput, "DataEmpty", "m");
        write_termination(&path, &outcome);
        assert!(!path.exists());
        std::fs::write(
            &path,
            "what an earlier container left, which is longer than all that comes",
        )
        .unwrap();
        write_termination(&path, &outcome);
        let back: Outcome = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(back, outcome);
    }
}
