//! The Fleetune worker: fine-tunes, validates and publishes models, and serves them on edge nodes.

pub mod artifact;
pub mod baseline;
pub mod cli;
pub mod config;
pub mod data;
pub mod engine;
pub mod error;
pub mod features;
pub mod finetune;
pub mod gates;
pub mod lineage;
pub mod local;
pub mod measure;
pub mod pipeline;
pub mod prepare_store;
pub mod progress;
pub mod publish;
pub mod registry;
pub mod report;
pub mod selftest;
pub mod sign;
pub mod sources;
pub mod synthetic;
pub mod train;
pub mod validate;
pub mod version;
