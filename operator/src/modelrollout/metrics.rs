//! Series of rollouts: by namespace and name of the rollout, never by cluster or node. Dropped with the rollout.

use fleetune_crds::ModelRolloutStatus;
use prometheus::{IntGaugeVec, Opts, Registry};

/// The series.
pub struct RolloutMetrics {
    nodes: IntGaugeVec,
    clusters: IntGaugeVec,
    wave: IntGaugeVec,
}

const NODE_STATES: [&str; 7] = [
    "eligible",
    "picked",
    "active",
    "proven",
    "failed",
    "skipped",
    "unreachable",
];
const CLUSTER_STATES: [&str; 3] = ["matched", "unreachable", "claimed"];

impl RolloutMetrics {
    /// Registers the series.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        Ok(Self {
            nodes: gauge(
                "fleetune_rollout_nodes",
                "Nodes of a rollout by state; a node can be in several.",
                &["namespace", "rollout", "state"],
            )?,
            clusters: gauge(
                "fleetune_rollout_clusters",
                "Device clusters of a rollout by state.",
                &["namespace", "rollout", "state"],
            )?,
            wave: gauge(
                "fleetune_rollout_wave",
                "Number of the running wave, from 1; 0 before the first.",
                &["namespace", "rollout"],
            )?,
        })
    }

    /// Shows a status that has been written.
    pub fn show(&self, namespace: &str, rollout: &str, status: &ModelRolloutStatus) {
        let n = &status.nodes;
        let counts = [
            n.eligible,
            n.picked,
            n.active,
            n.proven,
            n.failed,
            n.skipped,
            n.unreachable,
        ];
        for (state, count) in NODE_STATES.iter().zip(counts) {
            self.nodes
                .with_label_values(&[namespace, rollout, *state])
                .set(count.into());
        }
        let c = &status.clusters;
        for (state, count) in CLUSTER_STATES.iter().zip([c.matched, c.unreachable, c.claimed]) {
            self.clusters
                .with_label_values(&[namespace, rollout, *state])
                .set(count.into());
        }
        let wave = status.run.as_ref().map_or(0, |r| r.waves.len());
        let wave = i64::try_from(wave).unwrap_or(i64::MAX);
        self.wave.with_label_values(&[namespace, rollout]).set(wave);
    }

    /// Drops the series of a rollout that is gone. A series that was never shown is no error.
    pub fn forget(&self, namespace: &str, rollout: &str) {
        for state in NODE_STATES {
            let _ = self.nodes.remove_label_values(&[namespace, rollout, state]);
        }
        for state in CLUSTER_STATES {
            let _ = self.clusters.remove_label_values(&[namespace, rollout, state]);
        }
        let _ = self.wave.remove_label_values(&[namespace, rollout]);
    }
}
