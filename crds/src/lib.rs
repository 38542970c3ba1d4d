//! The API of Fleetune (group `fleetune.dev`, version `v1alpha1`): seven kinds, the names that every part shares, the
//! helpers for conditions, and the small messages that worker pods hand to the operator.
//!
//! This crate holds no client and no runtime, so that the worker can read a job without linking a Kubernetes client.
//! The generated YAML lies beside it (`crds/*.yaml`) and is compared with these types by a test.

pub mod access;
pub mod common;
pub mod conditions;
mod devicecluster;
mod edgenode;
mod finetunejob;
mod modelplacement;
mod modelrollout;
mod modelversion;
pub mod names;
pub mod outcome;
pub mod reference;
mod rolloutaction;
pub mod yaml;

pub use devicecluster::*;
pub use edgenode::*;
pub use finetunejob::*;
pub use modelplacement::*;
pub use modelrollout::*;
pub use modelversion::*;
pub use rolloutaction::*;
