//! What a node knows of one model, on disk: the highest epoch and the order it came with, what serves, what it can
//! return to, what it must never load again, and whether a trial is under way. Transitions are pure; the store writes
//! the result before anything acts on it.

use fleetune_crds::common::Digest;
use fleetune_crds::{Budget, ModelOrder, ModelState, OrderState, Source, VersionState, conditions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Unexplained ends of the process during one trial that are forgiven. One may be somebody's `kill -9`; with the second
/// it is the version's.
pub const FORGIVEN_EXITS: u32 = 1;
/// Most refused versions of a model that are remembered; beyond that the oldest is forgotten.
const MAX_REFUSED: usize = 256;

/// A node's memory of one model.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Journal {
    /// NAMESPACE/MODEL.
    pub model: String,
    /// Highest epoch taken. Lower ones are refused, whoever sends them.
    pub epoch: i64,
    /// The order of that epoch.
    pub order: Option<ModelOrder>,
    /// The version that serves.
    pub active: Option<Digest>,
    /// The version that served before.
    pub previous: Option<Digest>,
    /// Since when `active` has served without a fault; none once proven.
    pub soak_from: Option<Timestamp>,
    /// Versions that served through their soak here, and are still in the store.
    pub proven: BTreeSet<Digest>,
    /// Written before a version is activated for the first time, cleared when its soak ends.
    pub trial: Option<Trial>,
    /// Versions that are never loaded again.
    pub refused: BTreeMap<Digest, Refusal>,
    /// The version of the order, if this node cannot take it.
    pub skipped: Option<Skip>,
    /// Place in the order of first activation among the models of the node.
    pub admitted: Option<u64>,
    /// What is known of versions whose signature and report were checked.
    pub records: BTreeMap<Digest, Record>,
    /// What was last said of the model.
    pub state: Option<ModelState>,
}

/// A version under trial.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Trial {
    /// The version.
    pub digest: Digest,
    /// Unexplained ends of the process since the trial began.
    pub exits: u32,
    /// The boot in which the process runs; an end by reboot is not the version's.
    pub boot: String,
    /// The process ended because it was told to.
    #[serde(default)]
    pub clean: bool,
}

/// Why a version is never loaded again.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A PascalCase word.
    pub reason: String,
    /// What, where and what to do.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// Why this node cannot take a version.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The version.
    pub digest: Digest,
    /// A PascalCase word.
    pub reason: String,
    /// What, where and what to do.
    pub message: String,
    /// The build that could not take it.
    pub build: String,
}

/// What is known of a version whose signature and report were checked.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Where it comes from.
    pub source: Source,
    /// Largest deviation of the self-test.
    pub tolerance: f32,
    /// Budgets by class.
    #[serde(default)]
    pub budget: Vec<Budget>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Peak memory of a process that loads it, as `validate` measured it; 0 where it did not.
    #[serde(default)]
    pub peak_memory: u64,
    /// The files that were signed, with their SHA-256.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// The build under which it passed its self-test here; empty before.
    #[serde(default)]
    pub tested: String,
}

impl Record {
    /// Memory that a process needs to load and run it, in bytes: what was measured, or a cautious guess.
    pub fn memory(&self) -> u64 {
        match self.peak_memory {
            0 => self.bytes.saturating_mul(3).saturating_add(32 << 20),
            peak => peak,
        }
    }

    /// The budget of a class, or the default one.
    pub fn budget_of(&self, class: Option<&str>) -> Option<&Budget> {
        let of = |name: &str| self.budget.iter().find(|budget| budget.class == name);
        class.and_then(of).or_else(|| of("*"))
    }
}

impl Journal {
    /// An empty journal.
    pub fn new(model: &str) -> Self {
        Self {
            model: model.to_owned(),
            ..Self::default()
        }
    }

    /// The version that the order asks for.
    pub fn wanted(&self) -> Option<&Source> {
        let order = self.order.as_ref()?;
        match order.state {
            OrderState::Serve => order.source.as_ref(),
            OrderState::Remove => None,
        }
    }

    /// What the order falls back to.
    pub fn fallback(&self) -> Option<&Source> {
        self.order.as_ref()?.fallback.as_ref()
    }

    /// Whether the order says to unload.
    pub fn is_removed(&self) -> bool {
        self.order
            .as_ref()
            .is_some_and(|order| order.state == OrderState::Remove)
    }

    /// Versions that must stay in the store.
    pub fn kept(&self) -> BTreeSet<Digest> {
        if self.is_removed() && self.active.is_none() {
            return BTreeSet::new();
        }
        let refused = |digest: &Digest| self.refused.contains_key(digest);
        let orders = [self.wanted(), self.fallback()]
            .into_iter()
            .flatten()
            .map(|source| &source.digest);
        self.active
            .iter()
            .chain(&self.previous)
            .chain(orders)
            .filter(|digest| !refused(digest) || self.active.as_ref() == Some(digest))
            .cloned()
            .collect()
    }

    /// Takes an order.
    pub fn take(&mut self, order: &ModelOrder) {
        self.epoch = order.epoch;
        self.order = Some(order.clone());
        self.skipped = None;
    }

    /// A version is never loaded again.
    pub fn refuse(&mut self, digest: &Digest, reason: &str, message: &str, now: Timestamp) {
        while self.refused.len() >= MAX_REFUSED {
            let Some(oldest) = self.refused.iter().min_by_key(|(_, r)| r.at).map(|(d, _)| d.clone()) else {
                break;
            };
            self.refused.remove(&oldest);
        }
        self.refused.insert(
            digest.clone(),
            Refusal {
                reason: reason.to_owned(),
                message: conditions::cut(message.to_owned()),
                at: now,
            },
        );
        self.proven.remove(digest);
        self.records.remove(digest);
        if self.trial.as_ref().is_some_and(|trial| trial.digest == *digest) {
            self.trial = None;
        }
        if self.previous.as_ref() == Some(digest) {
            self.previous = None;
        }
    }

    /// This node cannot take a version.
    pub fn skip(&mut self, digest: &Digest, reason: &str, message: &str, build: &str) {
        self.skipped = Some(Skip {
            digest: digest.clone(),
            reason: reason.to_owned(),
            message: conditions::cut(message.to_owned()),
            build: build.to_owned(),
        });
    }

    /// A version is about to serve for the first time.
    pub fn mark_trial(&mut self, digest: &Digest, boot: &str) {
        self.trial = Some(Trial {
            digest: digest.clone(),
            exits: 0,
            boot: boot.to_owned(),
            clean: false,
        });
    }

    /// A version serves.
    pub fn activated(&mut self, digest: &Digest, place: u64, now: Timestamp) {
        let old = self.active.replace(digest.clone());
        if old.as_ref() != Some(digest) {
            self.previous = old.filter(|old| !self.refused.contains_key(old));
        }
        self.skipped = None;
        self.admitted.get_or_insert(place);
        if self.proven.contains(digest) {
            self.trial = None;
            self.soak_from = None;
        } else {
            self.soak_from = Some(now);
        }
    }

    /// The active version served through its soak.
    pub fn prove(&mut self) {
        self.trial = None;
        self.soak_from = None;
        if let Some(active) = &self.active {
            self.proven.insert(active.clone());
        }
    }

    /// Nothing serves any more.
    pub fn unloaded(&mut self) {
        let old = self.active.take();
        self.previous = old
            .filter(|old| !self.refused.contains_key(old))
            .or(self.previous.take());
        self.soak_from = None;
        self.trial = None;
    }

    /// Nothing serves any more and no version is kept. Epoch and refusals stay.
    pub fn forget(&mut self) {
        self.active = None;
        self.previous = None;
        self.soak_from = None;
        self.trial = None;
        self.skipped = None;
        self.admitted = None;
        self.proven.clear();
        self.records.clear();
    }

    /// The process starts. An unexplained end within a trial counts against the version; too many end the trial.
    pub fn started(&mut self, boot: &str, now: Timestamp) {
        let Some(trial) = &mut self.trial else { return };
        if !trial.clean && trial.boot == boot {
            trial.exits += 1;
        }
        trial.clean = false;
        boot.clone_into(&mut trial.boot);
        let (digest, exits) = (trial.digest.clone(), trial.exits);
        if exits > FORGIVEN_EXITS {
            let message = format!("the runtime ended {exits} times while {digest} was on trial");
            self.refuse(&digest, "CrashLoop", &message, now);
        } else if self.soak_from.is_some() {
            self.soak_from = Some(now);
        }
    }

    /// The process ends because it was told to.
    pub fn stopped(&mut self) {
        if let Some(trial) = &mut self.trial {
            trial.clean = true;
        }
    }

    /// Forgets what is known of versions that left the store.
    pub fn prune(&mut self) {
        let kept = self.kept();
        self.records.retain(|digest, _| kept.contains(digest));
        self.proven.retain(|digest| kept.contains(digest));
    }

    /// Brings `state` in line with the rest. `trouble` is what keeps a version from getting further at the moment.
    pub fn refresh(&mut self, trouble: Option<&(String, String)>, build: &str, now: Timestamp) {
        let (digest, state, reason, message) = self.said(trouble, build);
        let mut next = ModelState {
            epoch: self.epoch,
            digest,
            state,
            reason,
            message,
            // Whole seconds: what the API server hands back must be equal.
            since: Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
            active: self.active.clone(),
        };
        if let Some(old) = &self.state
            && (&old.digest, old.state, &old.reason) == (&next.digest, next.state, &next.reason)
        {
            next.since = old.since.clone();
            // A message that only counts attempts is no news.
            next.message.clone_from(&old.message);
        }
        self.state = Some(next);
    }

    fn said(&self, trouble: Option<&(String, String)>, build: &str) -> (Option<Digest>, VersionState, String, String) {
        let none = String::new;
        if self.is_removed() {
            let state = match self.active {
                Some(_) => VersionState::Active,
                None => VersionState::Removed,
            };
            return (None, state, none(), none());
        }
        let Some(source) = self.wanted() else {
            return (None, VersionState::Idle, none(), none());
        };
        let digest = &source.digest;
        let (state, reason, message) = if let Some(refusal) = self.refused.get(digest) {
            (VersionState::Failed, refusal.reason.clone(), refusal.message.clone())
        } else if self.active.as_ref() == Some(digest) {
            if self.proven.contains(digest) {
                (VersionState::Proven, none(), none())
            } else {
                (VersionState::Active, none(), none())
            }
        } else if let Some(skip) = self.skipped.as_ref().filter(|skip| skip.digest == *digest) {
            (VersionState::Skipped, skip.reason.clone(), skip.message.clone())
        } else if self.records.get(digest).is_some_and(|record| record.tested == build) {
            (VersionState::Staged, none(), none())
        } else {
            let (reason, message) = trouble.cloned().unwrap_or_default();
            (VersionState::Staging, reason, conditions::cut(message))
        };
        (Some(digest.clone()), state, reason, message)
    }
}
