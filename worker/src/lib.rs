//! The Fleetune worker.
