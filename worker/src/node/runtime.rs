//! What all drivers share, and how a runtime starts: it serves what its journals say before it knows any order, follows
//! the journals while another process holds the lock, and drives the models once it holds it.

use super::config::Config;
use super::driver::Driver;
use super::memory;
use super::metrics::Metrics;
use super::selftest::{Bounds, Verdict, program, run};
use super::stage::Fetching;
use super::table::{Predictor, Served, Table};
use crate::error::{Result, WorkerError};
use crate::registry::Registry;
use crate::sign::Keyring;
use crate::store::{Journal, Lock, Record, Store};
use crate::version::Version;
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelOrder, ModelState};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How often the journals are read while another process holds the lock.
const FOLLOW: Duration = Duration::from_millis(500);

/// How versions are opened and tested. The real one opens them with the engine and tests them in a child process.
pub trait Models: Send + Sync + 'static {
    /// Opens the version in `dir`: its contract, and what answers.
    fn open(&self, dir: &Path) -> Result<(Digest, Arc<dyn Predictor>)>;
    /// Runs its self-test.
    fn self_test(&self, dir: &Path, bounds: &Bounds) -> impl Future<Output = Verdict> + Send;
}

/// Versions as they are.
pub struct RealModels;

impl Models for RealModels {
    fn open(&self, dir: &Path) -> Result<(Digest, Arc<dyn Predictor>)> {
        let version = Version::open(dir)?;
        Ok((version.contract().clone(), Arc::new(version)))
    }

    async fn self_test(&self, dir: &Path, bounds: &Bounds) -> Verdict {
        run(&program(), dir, bounds).await
    }
}

/// What the API asks of this node. Empty until it has been read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Orders {
    /// The orders by NAMESPACE/MODEL.
    pub models: BTreeMap<String, ModelOrder>,
    /// The node's hardware class.
    pub class: Option<String>,
}

/// What all drivers share.
pub struct Shared<M> {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) registry: Registry,
    pub(super) keyring: Keyring,
    pub(super) models: M,
    /// What serves.
    pub table: Arc<Table>,
    /// What Prometheus reads.
    pub metrics: Arc<Metrics>,
    pub(super) build: String,
    pub(super) boot: String,
    pub(super) fetching: Fetching,
    /// What the API asks.
    pub orders: watch::Sender<Orders>,
    /// What is said of each model.
    pub states: watch::Sender<BTreeMap<String, ModelState>>,
    /// Whether every active version serves.
    pub ready: watch::Sender<bool>,
    /// Set once, when the process is told to stop.
    pub stopping: watch::Sender<bool>,
    /// Set once, when this process may write.
    pub locked: watch::Sender<bool>,
    journals: Mutex<BTreeMap<String, Journal>>,
    /// Versions that passed their self-test while another process held the lock.
    tested: Mutex<BTreeSet<Digest>>,
    /// One self-test at a time: two would disturb each other's latency, and share the memory that is left.
    testing: tokio::sync::Mutex<()>,
}

impl<M: Models> Shared<M> {
    /// A runtime over a store. `build` names this build, `boot` this boot of the machine.
    pub fn new(config: Config, registry: Registry, models: M, build: &str, boot: &str) -> Result<Arc<Self>> {
        let metrics =
            Metrics::new(build).map_err(|error| WorkerError::transient(crate::error::INTERNAL, error.to_string()))?;
        Ok(Arc::new(Self {
            store: Store::open(&config.store)?,
            keyring: config.keyring()?,
            registry,
            models,
            table: Arc::default(),
            metrics: Arc::new(metrics),
            build: build.to_owned(),
            boot: boot.to_owned(),
            fetching: Fetching::default(),
            orders: watch::channel(Orders::default()).0,
            states: watch::channel(BTreeMap::new()).0,
            ready: watch::channel(false).0,
            stopping: watch::channel(false).0,
            locked: watch::channel(false).0,
            journals: Mutex::default(),
            tested: Mutex::default(),
            testing: tokio::sync::Mutex::default(),
            config,
        }))
    }

    /// Runs until the process stops: follows, then drives.
    pub async fn run(self: Arc<Self>) -> Result<()> {
        let Some(_lock) = self.follow().await? else {
            return Ok(());
        };
        let mut stopping = self.stopping.subscribe();
        let now = Timestamp::now();
        let mut drivers = tokio::task::JoinSet::new();
        let mut driven = BTreeSet::new();
        for mut journal in self.store.journals()? {
            journal.started(&self.boot, now);
            self.credit(&mut journal);
            driven.insert(journal.model.clone());
            self.remember(&journal);
            // What the start counted is on disk before anything is loaded.
            self.store.write_journal(&journal)?;
            drivers.spawn(Driver::new(self.clone(), journal).run());
        }
        self.locked.send_replace(true);
        self.update_ready();
        self.collect().await;
        let mut orders = self.orders.subscribe();
        loop {
            let keys: Vec<String> = orders.borrow_and_update().models.keys().cloned().collect();
            for key in keys {
                if driven.insert(key.clone()) {
                    drivers.spawn(Driver::new(self.clone(), Journal::new(&key)).run());
                }
            }
            tokio::select! {
                changed = orders.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        while drivers.join_next().await.is_some() {}
        Ok(())
    }

    /// Serves what the journals say, until the lock is free. None where the process stops before.
    async fn follow(&self) -> Result<Option<Lock>> {
        let mut stopping = self.stopping.subscribe();
        let mut waited = false;
        loop {
            if let Some(lock) = self.store.try_lock()? {
                if waited {
                    tracing::info!("the store's lock is free: taking over");
                }
                return Ok(Some(lock));
            }
            if !waited {
                tracing::info!("another runtime holds the store's lock: serving from the store, writing nothing");
                waited = true;
            }
            for journal in self.store.journals()? {
                self.remember(&journal);
                self.serve_as(&journal).await;
            }
            self.update_ready();
            tokio::select! {
                () = tokio::time::sleep(FOLLOW) => {}
                _ = stopping.wait_for(|stop| *stop) => return Ok(None),
            }
        }
    }

    /// Serves the active version of another process's journal, if it is good under this build too.
    async fn serve_as(&self, journal: &Journal) {
        let Some(active) = journal
            .active
            .as_ref()
            .filter(|active| !journal.refused.contains_key(active))
        else {
            self.table.remove(&journal.model);
            return;
        };
        if self
            .table
            .get(&journal.model)
            .is_some_and(|served| served.digest == *active)
        {
            return;
        }
        let Some(record) = journal.records.get(active) else {
            return;
        };
        let known = self
            .tested
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(active);
        if record.tested != self.build && !known {
            let verdict = self.self_test(&journal.model, record, None).await;
            if verdict != Verdict::Passed {
                tracing::error!(model = journal.model, %active, ?verdict, "self-test failed under this build");
                return;
            }
            self.tested
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(active.clone());
        }
        match self.open(active) {
            Ok((_, predictor)) => {
                self.table.put(Served::new(&journal.model, active.clone(), predictor));
            }
            Err(error) => tracing::error!(model = journal.model, %active, %error, "cannot be loaded"),
        }
    }

    /// What was tested while following needs no second test.
    fn credit(&self, journal: &mut Journal) {
        let tested = self.tested.lock().unwrap_or_else(PoisonError::into_inner);
        for (digest, record) in &mut journal.records {
            if tested.contains(digest) {
                self.build.clone_into(&mut record.tested);
            }
        }
    }

    /// Checks a version's bytes and opens it.
    pub(super) fn open(&self, digest: &Digest) -> Result<(Digest, Arc<dyn Predictor>)> {
        self.store.verify(digest)?;
        self.models.open(&self.store.version_dir(digest))
    }

    /// Runs the self-test of a version of the store.
    pub(super) async fn self_test(&self, key: &str, record: &Record, class: Option<&str>) -> Verdict {
        let _one = self.testing.lock().await;
        let budget = record.budget_of(class);
        let bounds = Bounds {
            tolerance: record.tolerance,
            deadline: self.config.self_test.deadline(),
            memory: self.room(key),
            max_p95: budget.and_then(|budget| budget.max_p95_latency.clone()),
            max_peak: budget.and_then(|budget| budget.max_peak_memory.as_ref().map(fleetune_crds::common::Bytes::get)),
        };
        let verdict = self
            .models
            .self_test(&self.store.version_dir(&record.source.digest), &bounds)
            .await;
        let result = match verdict {
            Verdict::Passed => "passed",
            Verdict::Failed { .. } => "failed",
            Verdict::Skipped { .. } | Verdict::Inconclusive { .. } => "inconclusive",
        };
        self.metrics.self_tests.with_label_values(&[result]).inc();
        verdict
    }

    /// Memory for another version of `key`, beyond the reserve of this process and the room that every model needs to
    /// load its fallback again.
    pub(super) fn room(&self, key: &str) -> Option<u64> {
        let journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        let fallbacks: u64 = journals
            .values()
            .filter(|journal| journal.model != key)
            .filter_map(|journal| {
                let fallback = &journal.fallback()?.digest;
                let loaded = journal.active.as_ref() == Some(fallback);
                journal.records.get(fallback).filter(|_| !loaded).map(Record::memory)
            })
            .sum();
        memory::left().map(|left| left.saturating_sub(self.config.self_test.memory_reserve() + fallbacks))
    }

    /// Counts bytes that a model fetched.
    pub(super) fn count_fetched(&self, key: &str) -> impl Fn(u64) + use<M> {
        let counter = self.metrics.fetched.with_label_values(&[key]);
        move |bytes| counter.inc_by(bytes)
    }

    /// The next place in the order of first activation.
    pub(super) fn next_place(&self) -> u64 {
        let journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        journals
            .values()
            .filter_map(|journal| journal.admitted)
            .max()
            .map_or(0, |last| last + 1)
    }

    fn remember(&self, journal: &Journal) {
        self.journals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(journal.model.clone(), journal.clone());
    }

    /// Says what a journal says.
    pub(super) fn publish(&self, journal: &Journal) {
        self.remember(journal);
        self.update_ready();
        let Some(state) = &journal.state else { return };
        self.states.send_if_modified(|states| {
            let old = states.insert(journal.model.clone(), state.clone());
            let said = |state: &ModelState| (state.digest.clone(), state.state, state.reason.clone());
            if old.as_ref().map(said) != Some(said(state)) {
                self.metrics
                    .transitions
                    .with_label_values(&[
                        journal.model.as_str(),
                        &format!("{:?}", state.state),
                        state.reason.as_str(),
                    ])
                    .inc();
            }
            old.as_ref() != Some(state)
        });
    }

    /// Ready is: every active version that is not refused serves.
    fn update_ready(&self) {
        let journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = journals.values().all(|journal| match &journal.active {
            Some(active) if !journal.refused.contains_key(active) => self
                .table
                .get(&journal.model)
                .is_some_and(|served| served.digest == *active),
            _ => true,
        });
        drop(journals);
        self.metrics.ready.set(i64::from(ready));
        self.ready
            .send_if_modified(|old| std::mem::replace(old, ready) != ready);
    }

    /// Drops what no journal keeps.
    pub(super) async fn collect(self: &Arc<Self>) {
        let shared = self.clone();
        let result = tokio::task::spawn_blocking(move || {
            shared.fetching.collecting(|fetching| {
                let keep = shared
                    .journals
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .values()
                    .flat_map(Journal::kept)
                    .collect();
                shared.store.collect(&keep, fetching)
            })
        })
        .await;
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the store cannot be cleared"),
            Err(error) => tracing::warn!(%error, "the store cannot be cleared"),
        }
    }

    /// The journal of a model.
    #[cfg(test)]
    pub(super) fn journal(&self, key: &str) -> Option<Journal> {
        self.journals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }
}

/// An id of this boot of the machine.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// This build: the crate's version, and the revision where the build was told one.
pub fn build() -> String {
    match option_env!("FLEETUNE_REVISION") {
        Some(revision) if !revision.is_empty() => {
            format!("{}+{}", env!("CARGO_PKG_VERSION"), &revision[..revision.len().min(12)])
        }
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    }
}
