//! What every reconcile is given: a client, the configuration, a clock, events and metrics.

use crate::runtime::clock::Clock;
use crate::runtime::events::Events;
use crate::runtime::health::Health;
use crate::runtime::metrics::Metrics;
use crate::runtime::shutdown::Shutdown;
use kube::Client;
use std::sync::Arc;

/// Shared by all controllers of one process; cheap to clone. `C` is the configuration.
pub struct Context<C> {
    /// Client of the cluster that the controllers' objects live in.
    pub client: Client,
    /// The configuration, read once at start.
    pub config: Arc<C>,
    /// Namespace of this process.
    pub namespace: Arc<str>,
    /// Name of this pod, unique among replicas.
    pub pod: Arc<str>,
    /// The wall clock.
    pub clock: Clock,
    /// Events.
    pub events: Events,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Readiness gates.
    pub health: Health,
    /// Thrown when the process ends or leadership is lost; no controller starts a reconcile after that.
    pub shutdown: Shutdown,
}

impl<C> Clone for Context<C> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            config: self.config.clone(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            clock: self.clock.clone(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            shutdown: self.shutdown.clone(),
        }
    }
}

impl<C> Context<C> {
    /// The same process with another configuration and client: what Push mode gives to the edge controller.
    pub fn with<D>(&self, config: D, client: Client) -> Context<D> {
        Context {
            client,
            config: Arc::new(config),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            clock: self.clock.clone(),
            events: self.events.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            shutdown: self.shutdown.clone(),
        }
    }
}
