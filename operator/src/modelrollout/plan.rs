//! Decides what a rollout does next. Pure: no client, no clock, no randomness.
//!
//! The new status is written before any placement: what has been decided (a run, a wave and its size, a rollback) lies
//! in the status, and placements follow from it, so that a crash between any two writes changes nothing but time.

use super::observe::{Cluster, Observed, PlacementView, Version};
use super::validate::Validated;
use super::{deletion, place, run, status};
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelPlacementSpec, ModelRolloutStatus, Run, RunState, Source, VersionRef};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// How soon the clusters are looked at again while a run is under way or one of them is not to be reached. Their watches
/// wake sooner; but a watch can be blind for minutes after its server was away, and the rollout must not stand for that.
const LOOK: SignedDuration = SignedDuration::from_secs(30);

/// One write, after the status.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Deletion must wait for this controller from now on.
    AddFinalizer,
    /// Claims a cluster: whoever creates the placement owns the model there.
    Create {
        /// The cluster.
        cluster: String,
        /// An order with zero counts.
        spec: Box<ModelPlacementSpec>,
    },
    /// Changes an order, if it is still as it was read.
    Write {
        /// The cluster.
        cluster: String,
        /// Version of the placement that this plan saw.
        resource_version: String,
        /// The whole order.
        spec: Box<ModelPlacementSpec>,
    },
    /// Removes a placement whose nodes have all unloaded.
    Delete {
        /// The cluster.
        cluster: String,
        /// Version of the placement that this plan saw.
        resource_version: String,
    },
    /// Says what became of a RolloutAction.
    Answer {
        /// Name of the action.
        action: String,
        /// Taken, or ignored.
        taken: bool,
        /// Why.
        message: String,
    },
    /// Lets the rollout go.
    RemoveFinalizer {
        /// What still serves, if the deadline passed.
        left: Option<String>,
    },
}

/// Why something does not happen now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// No DeviceCluster matches the selector and allows the namespace.
    NoClusters,
    /// None of the clusters that match has its namespace yet, or all are claimed.
    NoPlacement,
    /// Clusters that have not answered their order yet.
    Reports(Vec<String>),
    /// No node could take the version: inconclusive, never passed.
    NoEligibleNodes,
    /// The stage waits for a RolloutAction.
    Approval(String),
    /// Picked nodes have not answered, or wait for their turn.
    Activating,
    /// All picked nodes serve; some are in their soak.
    Soak,
    /// Too many nodes cannot be reached.
    Quorum {
        /// Proven nodes.
        proven: i32,
        /// Nodes of the wave.
        nodes: i32,
    },
    /// `spec.paused`.
    Paused,
    /// Nodes are on their way back.
    RollingBack,
    /// Nodes are unloading.
    Removal(Vec<String>),
}

/// What stands in the way until a person changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A PascalCase word.
    pub reason: &'static str,
    /// What, where and what to do.
    pub message: String,
    /// Nothing will change without a person.
    pub stalled: bool,
}

/// When to look again at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// As soon as the writes have been seen.
    Soon,
    /// At a time.
    At(Timestamp),
    /// With the next resync.
    Resync,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// To be written first, if it differs.
    pub status: ModelRolloutStatus,
    /// Then these, in order; stop at the first error.
    pub steps: Vec<Step>,
    /// Why nothing more happens.
    pub waiting: Vec<Waiting>,
    /// When to look again.
    pub wake: Wake,
}

/// Whose a placement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// This rollout's.
    Ours,
    /// Nobody's: retained by a rollout that is gone.
    Nobody,
    /// Another rollout's.
    Other(&'a str),
}

/// Decides.
pub fn plan(want: &Validated, seen: &Observed, prev: &ModelRolloutStatus, now: Timestamp) -> Plan {
    let mut p = Planner {
        want,
        seen,
        now,
        next: prev.clone(),
        steps: Vec::new(),
        waiting: Vec::new(),
        problem: None,
    };
    if want.deleted_at.is_some() {
        deletion::plan(&mut p);
    } else if want.has_finalizer {
        p.inherit();
        p.go_on_from_higher_epochs();
        run::advance(&mut p);
        place::place(&mut p);
        run::answer(&mut p, prev.run.as_ref());
    } else {
        p.steps.push(Step::AddFinalizer);
    }
    status::summarise(&mut p, prev);
    let moved = p.next.run != prev.run || p.next.epoch != prev.epoch;
    Plan {
        wake: if moved || !p.steps.is_empty() {
            Wake::Soon
        } else {
            p.wake()
        },
        status: p.next,
        steps: p.steps,
        waiting: p.waiting,
    }
}

/// The working state of one plan.
pub struct Planner<'a> {
    /// What is asked for.
    pub want: &'a Validated,
    /// What was seen.
    pub seen: &'a Observed,
    /// Now.
    pub now: Timestamp,
    /// The status that will be written.
    pub next: ModelRolloutStatus,
    /// The writes after it.
    pub steps: Vec<Step>,
    /// Why nothing more happens.
    pub waiting: Vec<Waiting>,
    /// What a person must change.
    pub problem: Option<Problem>,
}

impl<'a> Planner<'a> {
    /// Whose a placement is. An owner that no longer exists owns nothing.
    pub fn owner(&self, placement: &PlacementView) -> Owner<'a> {
        let uid = &placement.spec.rollout_uid;
        if *uid == self.want.uid {
            return Owner::Ours;
        }
        match self.seen.rollouts.get(uid) {
            Some(name) => Owner::Other(name),
            None => Owner::Nobody,
        }
    }

    /// The placements of this rollout.
    pub fn ours(&self) -> impl Iterator<Item = (&'a str, &'a Cluster, &'a PlacementView)> + use<'a> {
        let uid = &self.want.uid;
        let of = |(name, cluster): (&'a String, &'a Cluster)| {
            let placement = cluster.placement.as_ref()?;
            Some((name.as_str(), cluster, placement))
        };
        let all = self.seen.clusters.iter().filter_map(of);
        all.filter(move |(_, _, p)| p.spec.rollout_uid == *uid)
    }

    /// The heart of the cluster has beaten lately.
    pub fn is_reachable(&self, cluster: &Cluster) -> bool {
        self.now < cluster.reachable_until
    }

    /// The running or last run.
    pub fn run(&self) -> Option<&Run> {
        self.next.run.as_ref()
    }

    /// The run while its waves are being activated.
    pub fn active_run(&self) -> Option<&Run> {
        self.run()
            .filter(|r| matches!(r.state, RunState::Progressing | RunState::Failed))
    }

    /// Where a version lies; names the problem where nobody knows it any more.
    pub fn source(&mut self, digest: &Digest) -> Option<Source> {
        let found = self.seen.source(digest);
        if found.is_none() {
            self.problem = Some(Problem {
                reason: "VersionGone",
                message: format!(
                    "no ModelVersion in {} has the digest {digest}, which this rollout needs; publish it again",
                    self.want.namespace
                ),
                stalled: true,
            });
        }
        found
    }

    /// The version of this name.
    pub fn version(&self, name: &str) -> Option<&'a Version> {
        self.seen.versions.iter().find(|v| v.name == name)
    }

    /// A new rollout that finds placements which nobody owns takes over what their nodes are known to serve: it is the
    /// version to return to.
    fn inherit(&mut self) {
        if self.next.proven.is_some() || self.next.run.is_some() {
            return;
        }
        let placements = self.seen.clusters.values().filter_map(|c| c.placement.as_ref());
        let retained = placements.filter(|p| self.owner(p) == Owner::Nobody);
        let proven = retained.filter_map(|p| p.spec.fallback.as_ref()).map(|source| {
            let version = self.seen.versions.iter().find(|v| v.source.digest == source.digest);
            let name = version.map_or_else(
                || format!("{}-{}", self.want.model, source.digest.short()),
                |v| v.name.clone(),
            );
            (version.map_or(0, |v| v.sequence), name, source.digest.clone())
        });
        if let Some((_, name, digest)) = proven.max() {
            self.next.proven = Some(VersionRef { name, digest });
        }
    }

    /// Epochs only grow: whoever has seen a higher one is told one above it.
    fn go_on_from_higher_epochs(&mut self) {
        let mut highest = self.next.epoch;
        for placement in self.seen.clusters.values().filter_map(|c| c.placement.as_ref()) {
            let (spec, told) = (placement.spec.epoch, &placement.status);
            let seen = spec.max(told.observed_epoch).max(told.highest_epoch);
            match self.owner(placement) {
                Owner::Ours if seen > self.next.epoch => highest = highest.max(seen + 1),
                // What is adopted gets an order of its own.
                Owner::Nobody if seen >= self.next.epoch => highest = highest.max(seen + 1),
                _ => {}
            }
        }
        self.next.epoch = highest;
    }

    fn wake(&self) -> Wake {
        let deletion = self.want.deleted_at.map(|at| at + deletion::DEADLINE);
        let hearts = self.seen.clusters.values().map(|c| c.reachable_until);
        let busy = matches!(
            self.run().map(|r| r.state),
            Some(RunState::Progressing | RunState::RollingBack)
        );
        let away = self.seen.clusters.values().any(|c| !self.is_reachable(c));
        let look = (busy || away).then(|| self.now + LOOK);
        let next = hearts.chain(deletion).chain(look).filter(|at| *at > self.now).min();
        next.map_or(Wake::Resync, Wake::At)
    }
}

impl Wake {
    /// The time from `now`; `None` is the next resync.
    pub fn after(self, now: Timestamp) -> Option<Duration> {
        match self {
            Self::Soon => Some(Duration::from_secs(1)),
            Self::At(at) => Some(crate::runtime::clock::between(now, at).max(Duration::from_secs(1))),
            Self::Resync => None,
        }
    }
}
