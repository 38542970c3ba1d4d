//! Pipelines for tests.

use super::Pipeline;
use fleetune_crds::Task;

/// The pipeline of a Classification with three labels over `input`, a job's `spec.input` in YAML.
pub(crate) fn pipeline(input: &str) -> Pipeline {
    Pipeline::for_job(&serde_yaml::from_str(input).unwrap(), Task::Classification, 3).unwrap()
}
