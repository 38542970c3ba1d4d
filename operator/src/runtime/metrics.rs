//! Prometheus metrics of the operator, in a registry of its own. Labels hold kinds, outcomes, reasons and phases, never
//! names of devices.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How a reconcile ended, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did what there was to do.
    Success,
    /// It ended with an error.
    Error,
}

type Count = Box<dyn Fn() -> BTreeMap<String, i64> + Send + Sync>;

/// Counts the objects of each kind by phase, from the caches, when it is scraped.
#[derive(Clone)]
struct Objects {
    gauge: IntGaugeVec,
    kinds: Arc<Mutex<BTreeMap<&'static str, Count>>>,
}

impl Collector for Objects {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.reset();
        for (kind, count) in self.kinds.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (phase, number) in count() {
                self.gauge.with_label_values(&[*kind, phase.as_str()]).set(number);
            }
        }
        self.gauge.collect()
    }
}

/// All series of this process.
pub struct Metrics {
    /// The registry that `/metrics` prints; controllers add series of their own.
    pub registry: Registry,
    reconciles: IntCounterVec,
    durations: HistogramVec,
    errors: IntCounterVec,
    in_backoff: IntGaugeVec,
    watch_errors: IntCounterVec,
    crd_missing: IntGaugeVec,
    leader: IntGauge,
    objects: Objects,
}

impl Metrics {
    /// Registers all series.
    ///
    /// # Errors
    /// When two series have the same name, which is a fault of this program.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let gauges = |name: &str, help: &str, labels: &[&str]| IntGaugeVec::new(Opts::new(name, help), labels);
        let this = Self {
            reconciles: counters(
                "fleetune_reconcile_total",
                "Reconciles by kind and outcome.",
                &["kind", "outcome"],
            )?,
            durations: HistogramVec::new(
                HistogramOpts::new("fleetune_reconcile_duration_seconds", "Duration of reconciles.")
                    .buckets(vec![0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
                &["kind"],
            )?,
            errors: counters(
                "fleetune_reconcile_errors_total",
                "Errors of reconciles by reason.",
                &["kind", "reason"],
            )?,
            in_backoff: gauges(
                "fleetune_objects_in_backoff",
                "Objects whose last reconcile failed.",
                &["kind"],
            )?,
            watch_errors: counters("fleetune_watch_errors_total", "Errors of watches.", &["kind"])?,
            crd_missing: gauges(
                "fleetune_crd_missing",
                "1 while a CustomResourceDefinition is not served.",
                &["crd"],
            )?,
            leader: IntGauge::new("fleetune_leader", "1 while this process is the leader.")?,
            objects: Objects {
                gauge: gauges("fleetune_objects", "Objects by kind and phase.", &["kind", "phase"])?,
                kinds: Arc::default(),
            },
            registry,
        };
        for collector in [
            Box::new(this.reconciles.clone()) as Box<dyn Collector>,
            Box::new(this.durations.clone()),
            Box::new(this.errors.clone()),
            Box::new(this.in_backoff.clone()),
            Box::new(this.watch_errors.clone()),
            Box::new(this.crd_missing.clone()),
            Box::new(this.leader.clone()),
            Box::new(this.objects.clone()),
        ] {
            this.registry.register(collector)?;
        }
        Ok(this)
    }

    /// Counts one reconcile.
    pub fn reconciled(&self, kind: &str, outcome: Outcome, took: Duration) {
        let outcome = match outcome {
            Outcome::Success => "success",
            Outcome::Error => "error",
        };
        self.reconciles.with_label_values(&[kind, outcome]).inc();
        self.durations.with_label_values(&[kind]).observe(took.as_secs_f64());
    }

    /// Counts one error of a reconcile.
    pub fn failed(&self, kind: &str, reason: &str) {
        self.errors.with_label_values(&[kind, reason]).inc();
    }

    /// Says how many objects wait after an error.
    pub fn backing_off(&self, kind: &str, number: i64) {
        self.in_backoff.with_label_values(&[kind]).set(number);
    }

    /// Counts one error of a watch.
    pub fn watch_failed(&self, kind: &str) {
        self.watch_errors.with_label_values(&[kind]).inc();
    }

    /// Says whether a CustomResourceDefinition is missing.
    pub fn crd_missing(&self, crd: &str, missing: bool) {
        self.crd_missing.with_label_values(&[crd]).set(i64::from(missing));
    }

    /// Says whether this process leads.
    pub fn leading(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Lets `count` say, at each scrape, how many objects of `kind` are in which phase.
    pub fn track(&self, kind: &'static str, count: impl Fn() -> BTreeMap<String, i64> + Send + Sync + 'static) {
        let mut kinds = self.objects.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.insert(kind, Box::new(count));
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When a series cannot be printed.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_appear_and_objects_follow_the_cache() {
        let metrics = Metrics::new().unwrap();
        metrics.reconciled("FineTuneJob", Outcome::Success, Duration::from_millis(3));
        metrics.failed("FineTuneJob", "Conflict");
        let phases = Arc::new(Mutex::new(BTreeMap::from([("Pending".to_owned(), 2)])));
        let seen = phases.clone();
        metrics.track("FineTuneJob", move || seen.lock().unwrap().clone());
        let text = || String::from_utf8(metrics.text().unwrap()).unwrap();
        assert!(text().contains(r#"fleetune_reconcile_total{kind="FineTuneJob",outcome="success"} 1"#));
        assert!(text().contains(r#"fleetune_reconcile_errors_total{kind="FineTuneJob",reason="Conflict"} 1"#));
        assert!(text().contains(r#"fleetune_objects{kind="FineTuneJob",phase="Pending"} 2"#));
        phases.lock().unwrap().clear();
        assert!(
            !text().contains("phase=\"Pending\""),
            "a phase that nothing is in has no series"
        );
    }
}
