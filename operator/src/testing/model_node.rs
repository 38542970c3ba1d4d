//! A node of the model cluster: how its runtime takes orders, and how a version fares on it.

use crate::edge::observe::NodeView;
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelOrder, ModelState, OrderState, VersionState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// How a version fares on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Serves.
    Good,
    /// Fails its self-test.
    Refused,
    /// Serves, and fails in its soak.
    Crashes,
    /// Never becomes active.
    Slow,
    /// Does not fit.
    Skipped,
}

/// One node.
#[derive(Clone, Debug)]
pub struct ModelNode {
    /// Hardware class.
    pub class: String,
    /// Off, or cut from its API server.
    pub dark: bool,
    /// Its Node object is gone.
    pub gone: bool,
    /// Cordoned.
    pub cordoned: bool,
    /// What its runtime says of the model.
    pub state: ModelState,
    /// How versions fare, by digest; the rest are good.
    pub fates: BTreeMap<String, Fate>,
    /// Versions that were opened here, by self-test or serving.
    pub opened: BTreeSet<String>,
    proven: BTreeSet<String>,
    failed: BTreeSet<String>,
    since: Timestamp,
}

impl ModelNode {
    /// A node of a class, with nothing on it.
    pub fn new(class: &str, now: Timestamp) -> Self {
        Self {
            class: class.to_owned(),
            dark: false,
            gone: false,
            cordoned: false,
            state: ModelState {
                epoch: 0,
                digest: None,
                state: VersionState::Idle,
                reason: String::new(),
                message: String::new(),
                since: Time(now),
                active: None,
            },
            fates: BTreeMap::new(),
            opened: BTreeSet::new(),
            proven: BTreeSet::new(),
            failed: BTreeSet::new(),
            since: now,
        }
    }

    /// Says how a version fares here.
    pub fn fate(&mut self, digest: &Digest, fate: Fate) {
        self.fates.insert(digest.to_string(), fate);
    }

    /// Turns it off, or on again at `now`.
    pub fn set_dark(&mut self, dark: bool, now: Timestamp) {
        if self.dark && !dark {
            self.since = now;
        }
        self.dark = dark;
    }

    /// What the edge controller sees of it.
    pub fn view(&self) -> NodeView {
        NodeView {
            class: self.class.clone(),
            labels: BTreeMap::from([("class".to_owned(), self.class.clone())]),
            ready: !self.dark,
            has_runtime: true,
            runtime_ready: !self.dark,
            cordoned: self.cordoned,
            reachable_since: self.since,
        }
    }

    /// Its runtime has taken an order for this model.
    pub fn was_told(&self) -> bool {
        self.state.epoch > 0
    }

    /// Its runtime looks at its order, once.
    pub fn look(&mut self, order: Option<&ModelOrder>, now: Timestamp) {
        let Some(order) = order else { return };
        if order.epoch < self.state.epoch {
            // Refused, and the status names the epoch. Only after a removal can nobody have known it.
            assert_eq!(
                self.state.state,
                VersionState::Removed,
                "a node was ordered to go back in time"
            );
            return;
        }
        if order.epoch > self.state.epoch {
            self.take(order, now);
            return;
        }
        let Some(source) = order.source.as_ref().filter(|_| order.state == OrderState::Serve) else {
            return;
        };
        let name = source.digest.to_string();
        let fate = self.fates.get(&name).copied().unwrap_or(Fate::Good);
        let served = now.duration_since(self.state.since.0);
        let soak = SignedDuration::try_from(order.min_success_time.get()).unwrap();
        match (self.state.state, fate) {
            (VersionState::Staging, Fate::Good | Fate::Crashes) => {
                self.state.active = Some(source.digest.clone());
                self.now_is(VersionState::Active, "", now);
            }
            (VersionState::Staging, Fate::Refused) => {
                self.failed.insert(name);
                self.now_is(VersionState::Failed, "SelfTestFailed", now);
            }
            (VersionState::Staging, Fate::Skipped) => self.now_is(VersionState::Skipped, "BudgetExceeded", now),
            (VersionState::Active, Fate::Crashes) => {
                self.failed.insert(name);
                self.state.active = order.fallback.as_ref().map(|s| s.digest.clone());
                self.now_is(VersionState::Failed, "CrashLoop", now);
            }
            (VersionState::Active, _) if served >= soak => {
                self.proven.insert(name);
                self.now_is(VersionState::Proven, "", now);
            }
            _ => {}
        }
    }

    fn take(&mut self, order: &ModelOrder, now: Timestamp) {
        self.state.epoch = order.epoch;
        self.state.digest = order.source.as_ref().map(|s| s.digest.clone());
        let Some(digest) = self.state.digest.clone().filter(|_| order.state == OrderState::Serve) else {
            self.state.active = None;
            let removed = order.state == OrderState::Remove;
            let state = if removed {
                VersionState::Removed
            } else {
                VersionState::Idle
            };
            self.now_is(state, "", now);
            return;
        };
        let name = digest.to_string();
        if self.failed.contains(&name) {
            self.now_is(VersionState::Failed, "FailedBefore", now);
        } else if self.state.active.as_ref() == Some(&digest) && self.proven.contains(&name) {
            self.now_is(VersionState::Proven, "", now);
        } else {
            self.opened.insert(name);
            self.now_is(VersionState::Staging, "", now);
        }
    }

    fn now_is(&mut self, state: VersionState, reason: &str, now: Timestamp) {
        self.state.state = state;
        reason.clone_into(&mut self.state.reason);
        self.state.since = Time(now);
    }
}
