//! Series of edge controllers: by cluster, verb and outcome, never by node. One process may run several (Push).

use prometheus::{HistogramOpts, HistogramVec, IntGaugeVec, Opts, Registry};
use std::time::Duration;

/// The series.
pub struct EdgeMetrics {
    requests: HistogramVec,
    hub_away: IntGaugeVec,
    orphaned: IntGaugeVec,
}

impl EdgeMetrics {
    /// Registers the series.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["cluster"]);
        let this = Self {
            requests: HistogramVec::new(
                HistogramOpts::new(
                    "fleetune_edge_request_seconds",
                    "Calls of edge controllers to API servers.",
                )
                .buckets(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
                &["verb", "outcome"],
            )?,
            hub_away: gauge(
                "fleetune_edge_hub_away",
                "1 while the hub's last answer is too old for new activations.",
            )?,
            orphaned: gauge(
                "fleetune_edge_orphaned_models",
                "Models on nodes that no placement in view speaks of; they serve on.",
            )?,
        };
        registry.register(Box::new(this.requests.clone()))?;
        registry.register(Box::new(this.hub_away.clone()))?;
        registry.register(Box::new(this.orphaned.clone()))?;
        Ok(this)
    }

    /// Counts one call.
    pub fn request(&self, verb: &str, outcome: &str, took: Duration) {
        self.requests
            .with_label_values(&[verb, outcome])
            .observe(took.as_secs_f64());
    }

    /// Shows what one pass found.
    pub fn show(&self, cluster: &str, hub_away: bool, orphaned: usize) {
        let orphaned = i64::try_from(orphaned).unwrap_or(i64::MAX);
        self.hub_away.with_label_values(&[cluster]).set(hub_away.into());
        self.orphaned.with_label_values(&[cluster]).set(orphaned);
    }

    /// Drops the series of a cluster. A series that was never shown is no error.
    pub fn forget(&self, cluster: &str) {
        let _ = self.hub_away.remove_label_values(&[cluster]);
        let _ = self.orphaned.remove_label_values(&[cluster]);
    }
}
