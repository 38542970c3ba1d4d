//! Real Kubernetes on one machine: control planes and nodes from their own programs, each in namespaces of its own.

mod apiserver;
pub mod paths;
mod pki;

pub use apiserver::{ApiServer, client_from, wait_ready};

/// Installs the process's TLS provider; a second call changes nothing.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
