//! The three worker Jobs of a FineTuneJob and their deterministic names.

use fleetune_crds::common::Digest;

/// A worker Job. The order is the order of the road.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkerStep {
    /// Trains a candidate and pushes it.
    Finetune,
    /// Loads the candidate back, measures it and applies the gates.
    Validate,
    /// Signs and tags; the only one with a signing key, in the operator's namespace.
    Publish,
}

impl WorkerStep {
    /// All steps, in order.
    pub const ALL: [Self; 3] = [Self::Finetune, Self::Validate, Self::Publish];

    /// The subcommand of the worker, and the value of the step label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finetune => "finetune",
            Self::Validate => "validate",
            Self::Publish => "publish",
        }
    }

    /// The step of a label's value.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|step| step.name() == name)
    }

    /// The phase of a job whose step this is.
    pub fn phase(self) -> &'static str {
        match self {
            Self::Finetune => "FineTuning",
            Self::Validate => "Validating",
            Self::Publish => "Publishing",
        }
    }

    /// The name of the worker Job of `namespace/job`. Steps in the job's namespace carry the job's name; `publish` lives
    /// among those of all namespaces, so a hash tells them apart.
    pub fn job_name(self, namespace: &str, job: &str) -> String {
        match self {
            Self::Finetune | Self::Validate => format!("{job}-{}", self.name()),
            Self::Publish => {
                let hash = Digest::of(format!("{namespace}/{job}").as_bytes());
                let readable: String = job.chars().take(40).collect();
                format!("{}-publish-{}", readable.trim_end_matches(['-', '.']), hash.short())
            }
        }
    }

    /// The name of the ConfigMap that the step's pod reads its job from.
    pub fn config_name(self, namespace: &str, job: &str) -> String {
        match self {
            Self::Finetune | Self::Validate => format!("{job}-fleetune"),
            Self::Publish => self.job_name(namespace, job),
        }
    }
}

/// The name of a ModelVersion: publishing the same digest twice names the same object.
pub fn version_name(model: &str, candidate: &Digest) -> String {
    format!("{model}-{}", candidate.short())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_jobs_apart() {
        let long = "a".repeat(52);
        for step in WorkerStep::ALL {
            assert!(step.job_name("shop", &long).len() <= 63, "{step:?}");
            assert_eq!(WorkerStep::from_name(step.name()), Some(step));
        }
        let name = |namespace, job| WorkerStep::Publish.job_name(namespace, job);
        assert_ne!(name("a", "b"), name("b", "b"));
        assert_ne!(name("a", &format!("{long}1")), name("a", &format!("{long}2")));
        assert_eq!(WorkerStep::Finetune.job_name("a", "b"), "b-finetune");
    }
}
