//! One switch that ends the process in order: on SIGTERM, SIGINT, or when leadership is lost.

use std::sync::Arc;
use tokio::sync::watch;

/// A switch that is thrown once. Clones share it.
#[derive(Clone)]
pub struct Shutdown(Arc<watch::Sender<bool>>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Shutdown {
    /// A switch that SIGTERM and SIGINT throw.
    ///
    /// # Errors
    /// When the process may not handle signals.
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let this = Self::default();
        let switch = this.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            tracing::info!("shutting down");
            switch.trigger();
        });
        Ok(this)
    }

    /// Throws the switch.
    pub fn trigger(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was thrown.
    pub fn is_triggered(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once it is thrown. Owns its handle, so that it can be given away.
    pub fn wait(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let mut receiver = self.0.subscribe();
        let keep = self.0.clone();
        async move {
            let _ = receiver.wait_for(|thrown| *thrown).await;
            drop(keep);
        }
    }
}
