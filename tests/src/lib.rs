//! The lab, and what the tests, the demo and the benchmarks share.

pub mod api;
pub mod images;
pub mod lab;
pub mod road;
