//! The ModelPlacement controller: turns the placements of one device cluster into EdgeNodes and reports counts. The
//! same code runs in the device cluster (Pull) and in the hub (Push).

pub mod observe;
pub mod pick;
pub mod plan;
pub mod standing;
pub mod status;
pub mod validate;
