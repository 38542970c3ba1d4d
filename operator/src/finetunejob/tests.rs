//! Tests of the controller: tables for the pure parts, and the whole loop over an API server in memory.

mod road;
mod tables;
