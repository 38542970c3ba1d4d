//! The ModelRollout controller: allots the fleet to waves and writes one placement per device cluster, as counts.

pub mod build;
pub mod deletion;
pub mod observe;
pub mod place;
pub mod plan;
pub mod run;
pub mod status;
pub mod validate;
pub mod waves;
