//! For tests of this crate and of the workspace: objects, and an API server in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests only"
)]

pub mod builders;
pub mod fleets;
pub mod mock_api;
pub mod model_cluster;
pub mod model_node;
