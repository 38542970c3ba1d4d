//! The Fleetune operator.
