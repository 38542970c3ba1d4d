//! What the runtime tells Prometheus. Models are labels, devices are not.

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// The runtime's series.
pub struct Metrics {
    registry: Registry,
    /// Requests by model and HTTP status.
    pub requests: IntCounterVec,
    /// Inference errors by model.
    pub errors: IntCounterVec,
    /// Time for one sample, by model.
    pub latency: HistogramVec,
    /// 1 for the version that serves, by model and digest.
    pub active: IntGaugeVec,
    /// Time from the start of loading a version to its serving, by model.
    pub switch: HistogramVec,
    /// Bytes fetched from registries, by model.
    pub fetched: IntCounterVec,
    /// Self-tests by result: passed, failed, inconclusive.
    pub self_tests: IntCounterVec,
    /// State changes of versions, by model, state and reason.
    pub transitions: IntCounterVec,
    /// Status writes.
    pub status_writes: IntCounter,
    /// Whether every active version serves.
    pub ready: IntGauge,
}

impl Metrics {
    /// The series, registered.
    pub fn new(build: &str) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let series = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(series.clone()))?;
            Ok::<_, prometheus::Error>(series)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let series = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &["model"])?;
            registry.register(Box::new(series.clone()))?;
            Ok::<_, prometheus::Error>(series)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let series = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(series.clone()))?;
            Ok::<_, prometheus::Error>(series)
        };
        let metrics = Self {
            requests: counter(
                "fleetune_node_requests_total",
                "Inference requests by model and HTTP status.",
                &["model", "code"],
            )?,
            errors: counter(
                "fleetune_node_inference_errors_total",
                "Inference errors by model.",
                &["model"],
            )?,
            latency: histogram(
                "fleetune_node_inference_seconds",
                "Time for one sample, raw sample to answer.",
                &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0],
            )?,
            active: gauge(
                "fleetune_node_active_version",
                "1 for the version that serves.",
                &["model", "version"],
            )?,
            switch: histogram(
                "fleetune_node_switch_seconds",
                "Time from the start of loading a version to its serving.",
                &[0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0],
            )?,
            fetched: counter(
                "fleetune_node_fetched_bytes_total",
                "Bytes fetched from registries.",
                &["model"],
            )?,
            self_tests: counter("fleetune_node_selftests_total", "Self-tests by result.", &["result"])?,
            transitions: counter(
                "fleetune_node_transitions_total",
                "State changes of versions by model, state and reason.",
                &["model", "state", "reason"],
            )?,
            status_writes: IntCounter::new("fleetune_node_status_writes_total", "Writes of the EdgeNode's status.")?,
            ready: IntGauge::new("fleetune_node_ready", "Whether every active version serves.")?,
            registry: registry.clone(),
        };
        registry.register(Box::new(metrics.status_writes.clone()))?;
        registry.register(Box::new(metrics.ready.clone()))?;
        let info = gauge("fleetune_node_build_info", "The runtime's build.", &["build"])?;
        info.with_label_values(&[build]).set(1);
        for result in ["passed", "failed", "inconclusive"] {
            metrics.self_tests.with_label_values(&[result]).reset();
        }
        Ok(metrics)
    }

    /// The text that Prometheus scrapes.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        // Encoding into memory cannot fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}
