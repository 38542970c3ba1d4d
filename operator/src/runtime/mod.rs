//! What every controller stands on: leadership, context, errors, backoff, metrics, health, events, shutdown. Nothing
//! here knows a kind of this project.

pub mod backoff;
pub mod client;
pub mod clock;
pub mod context;
pub mod controller;
pub mod crds;
pub mod error;
pub mod events;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod patch;
pub mod shutdown;
pub mod watch;

pub use clock::Clock;
pub use context::Context;
pub use controller::Wake;
pub use error::{Class, Classify};
pub use shutdown::Shutdown;
