//! The Fleetune operator: controllers of the hub and of device clusters, on one runtime.

pub mod cli;
pub mod config;
pub mod devicecluster;
pub mod edge;
pub mod finetunejob;
pub mod hub;
pub mod modelrollout;
pub mod modelversion;
pub mod process;
pub mod runtime;
#[cfg(feature = "testing")]
pub mod testing;
