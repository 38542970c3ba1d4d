//! Decides which versions of a model go. Pure.

use fleetune_crds::common::Digest;
use fleetune_crds::{ModelPlacement, ModelRollout, ModelVersion};
use kube::ResourceExt;
use std::collections::BTreeSet;

/// What a decision rests on.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Versions of the model.
    pub versions: Vec<ModelVersion>,
    /// Placements of the model, on all clusters.
    pub placements: Vec<ModelPlacement>,
    /// Rollouts of the model's namespace.
    pub rollouts: Vec<ModelRollout>,
}

/// The versions of `model` that go, oldest first: those that have at least `limit` newer ones and that no rollout and no
/// placement names. The newest never goes.
pub fn plan<'a>(model: &str, seen: &'a Observed, limit: u32) -> Vec<&'a ModelVersion> {
    let (by_name, by_digest) = named(model, seen);
    let mut versions: Vec<&ModelVersion> = seen.versions.iter().collect();
    versions.sort_by_key(|v| (v.spec.sequence, v.name_any()));
    let kept = usize::try_from(limit.max(1)).unwrap_or(usize::MAX);
    versions.truncate(versions.len().saturating_sub(kept));
    versions.retain(|v| !by_name.contains(&v.name_any()) && !by_digest.contains(&v.spec.source.digest));
    versions
}

/// Names and digests that somebody needs: what rollouts ask for, run and return to, and what placements order.
fn named<'a>(model: &str, seen: &'a Observed) -> (BTreeSet<String>, BTreeSet<&'a Digest>) {
    let (mut names, mut digests) = (BTreeSet::new(), BTreeSet::new());
    for rollout in seen.rollouts.iter().filter(|r| r.spec.model_name == model) {
        names.extend(rollout.spec.version.clone());
        let Some(status) = &rollout.status else { continue };
        digests.extend(status.run.as_ref().map(|run| &run.digest));
        digests.extend(status.proven.as_ref().map(|version| &version.digest));
    }
    for placement in &seen.placements {
        let sources = [&placement.spec.source, &placement.spec.fallback];
        digests.extend(sources.into_iter().flatten().map(|source| &source.digest));
    }
    (names, digests)
}
