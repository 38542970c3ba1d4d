//! One model on this node: asks `plan`, does the step, writes the journal, says what changed, and waits. Each model has
//! a driver of its own, so that one that cannot be fetched holds up no other.

use super::plan::{Facts, Plan, Step, plan};
use super::runtime::{Models, Shared};
use super::selftest::Verdict;
use super::stage::{self, Consequence};
use super::table::Served;
use crate::store::Journal;
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelOrder, VersionState};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Wait after the first passing failure; it doubles from there.
const FIRST_HOLD: Duration = Duration::from_secs(1);
/// Longest wait after a passing failure.
const LONGEST_HOLD: Duration = Duration::from_mins(1);
/// How often a trial is looked at where nothing else happens.
const TRIAL_PERIOD: Duration = Duration::from_secs(1);

/// What became of a step.
enum Done {
    /// The journal was changed.
    Changed,
    /// A passing failure: reason and message.
    Held(String, String),
    /// A newer order came: the step was dropped.
    Dropped,
}

/// The driver of one model.
pub struct Driver<M> {
    shared: Arc<Shared<M>>,
    key: String,
    journal: Journal,
    orders: tokio::sync::watch::Receiver<super::runtime::Orders>,
    failures: u32,
    hold_until: Option<Timestamp>,
    trouble: Option<(String, String)>,
}

impl<M: Models> Driver<M> {
    /// A driver that goes on from `journal`.
    pub fn new(shared: Arc<Shared<M>>, journal: Journal) -> Self {
        Self {
            orders: shared.orders.subscribe(),
            key: journal.model.clone(),
            shared,
            journal,
            failures: 0,
            hold_until: None,
            trouble: None,
        }
    }

    /// Runs until the process stops.
    pub async fn run(mut self) {
        let mut stopping = self.shared.stopping.subscribe();
        self.commit(self.journal.clone()).await;
        loop {
            if *stopping.borrow() {
                let mut journal = self.journal.clone();
                journal.stopped();
                self.commit(journal).await;
                return;
            }
            let order = self.order();
            let plan = plan(order.as_ref(), &self.journal, &self.facts(), Timestamp::now());
            match plan {
                Plan { step: Some(step), .. } => {
                    let done = self.execute(&step, order.as_ref()).await;
                    self.settle(&step, done).await;
                }
                Plan { wake, .. } => self.wait(wake, &mut stopping).await,
            }
        }
    }

    fn order(&self) -> Option<ModelOrder> {
        self.orders.borrow().models.get(&self.key).cloned()
    }

    fn facts(&self) -> Facts {
        let serving = self.shared.table.get(&self.key);
        let candidates = [self.journal.active.as_ref()]
            .into_iter()
            .chain([self.journal.wanted(), self.journal.fallback()].map(|source| source.map(|s| &s.digest)))
            .flatten();
        Facts {
            build: self.shared.build.clone(),
            class: self.orders.borrow().class.clone(),
            stored: candidates
                .filter(|d| self.shared.store.has_version(d))
                .cloned()
                .collect(),
            soak: serving.as_ref().map(|served| served.soak()).unwrap_or_default(),
            serving: serving.map(|served| served.digest.clone()),
            room: self.shared.room(&self.key),
            hold_until: self.hold_until,
        }
    }

    async fn wait(&mut self, wake: Option<Timestamp>, stopping: &mut tokio::sync::watch::Receiver<bool>) {
        let serving = self
            .shared
            .table
            .get(&self.key)
            .filter(|_| self.journal.soak_from.is_some());
        let mut longest = match wake {
            Some(at) => Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO),
            None => Duration::from_hours(1),
        };
        if serving.is_some() {
            longest = longest.min(TRIAL_PERIOD);
        }
        let failed = async {
            match &serving {
                Some(served) => served.failed.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.orders.changed() => {}
            () = failed => {}
            () = tokio::time::sleep(longest.max(Duration::from_millis(10))) => {}
            _ = stopping.wait_for(|stop| *stop) => {}
        }
    }

    /// Does a work that can take long, and drops it when a newer order comes or the process stops.
    async fn unless_overtaken<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut orders = self.orders.clone();
        let held = self.journal.order.clone();
        let overtaken = async {
            loop {
                if orders.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                let order = orders.borrow_and_update().models.get(&self.key).cloned();
                let newer = order.as_ref().is_some_and(|order| order.epoch >= self.journal.epoch);
                if newer && order != held {
                    return;
                }
            }
        };
        // A version on trial is judged also while the next one is on its way.
        let condemned = async {
            loop {
                tokio::time::sleep(TRIAL_PERIOD).await;
                let plan = plan(self.order().as_ref(), &self.journal, &self.facts(), Timestamp::now());
                if matches!(&plan.step, Some(Step::Refuse { digest, .. }) if self.journal.active.as_ref() == Some(digest))
                {
                    return;
                }
            }
        };
        let mut stopping = self.shared.stopping.subscribe();
        tokio::select! {
            result = work => Some(result),
            () = overtaken => None,
            () = condemned => None,
            _ = stopping.wait_for(|stop| *stop) => None,
        }
    }

    async fn execute(&mut self, step: &Step, order: Option<&ModelOrder>) -> Done {
        let now = Timestamp::now();
        let shared = self.shared.clone();
        let mut journal = self.journal.clone();
        match step {
            Step::Take => {
                let Some(order) = order else { return Done::Dropped };
                let other = journal.wanted().map(|s| &s.digest) != order.source.as_ref().map(|s| &s.digest);
                tracing::info!(model = self.key, epoch = order.epoch, source = ?order.source.as_ref().map(|s| &s.digest), "order taken");
                journal.take(order);
                if other {
                    self.failures = 0;
                    self.hold_until = None;
                    self.trouble = None;
                }
            }
            Step::Check(source) => {
                let fetched = shared.count_fetched(&self.key);
                let work = stage::check(&shared.registry, &shared.keyring, &self.key, source, fetched);
                match self.unless_overtaken(work).await {
                    None => return Done::Dropped,
                    Some(Ok(record)) => {
                        journal.records.insert(source.digest.clone(), record);
                    }
                    Some(Err(error)) => {
                        if let Some(held) = self.blame(&mut journal, &source.digest, &error, now) {
                            return held;
                        }
                    }
                }
            }
            Step::Stage(source) => {
                let Some(record) = journal.records.get(&source.digest).cloned() else {
                    return Done::Dropped;
                };
                let fetched = shared.count_fetched(&self.key);
                let work = stage::stage(&shared.registry, &shared.store, &shared.fetching, &record, fetched);
                match self.unless_overtaken(work).await {
                    None => return Done::Dropped,
                    Some(Ok(())) => {}
                    Some(Err(error)) => {
                        if let Some(held) = self.blame(&mut journal, &source.digest, &error, now) {
                            return held;
                        }
                    }
                }
            }
            Step::SelfTest(digest) => {
                let Some(record) = journal.records.get(digest).cloned() else {
                    return Done::Dropped;
                };
                let class = self.orders.borrow().class.clone();
                let Some(verdict) = self
                    .unless_overtaken(shared.self_test(&self.key, &record, class.as_deref()))
                    .await
                else {
                    return Done::Dropped;
                };
                if let Some(held) = self.learn(&mut journal, digest, verdict, now) {
                    self.commit(journal).await;
                    return held;
                }
            }
            Step::MarkTrial(digest) => journal.mark_trial(digest, &shared.boot),
            Step::Activate(digest) => {
                if let Some(held) = self.activate(&mut journal, digest, now).await {
                    return held;
                }
            }
            Step::Prove => {
                journal.prove();
                tracing::info!(model = self.key, digest = ?journal.active, "proven");
            }
            Step::Refuse {
                digest,
                reason,
                message,
            } => {
                self.refuse(&mut journal, digest, reason, message, now);
            }
            Step::Skip {
                digest,
                reason,
                message,
            } => self.skip(&mut journal, digest, reason, message),
            Step::Unload | Step::Forget => {
                self.switched(None);
                shared.table.remove(&self.key);
                match step {
                    Step::Unload => journal.unloaded(),
                    _ => journal.forget(),
                }
                tracing::info!(model = self.key, "unloaded");
            }
        }
        self.commit(journal).await;
        Done::Changed
    }

    fn refuse(&self, journal: &mut Journal, digest: &Digest, reason: &str, message: &str, now: Timestamp) {
        tracing::error!(model = self.key, %digest, reason, detail = message, "version refused");
        journal.refuse(digest, reason, message, now);
    }

    fn skip(&self, journal: &mut Journal, digest: &Digest, reason: &str, message: &str) {
        tracing::warn!(model = self.key, %digest, reason, detail = message, "version skipped");
        journal.skip(digest, reason, message, &self.shared.build);
    }

    /// What a failed download means for the version. None where the journal has the answer now.
    fn blame(&self, journal: &mut Journal, digest: &Digest, error: &stage::StageError, now: Timestamp) -> Option<Done> {
        match error.consequence() {
            // What serves, or has served, was good: its bytes are fetched again until they are right.
            Consequence::Refuse if journal.active.as_ref() != Some(digest) => {
                self.refuse(journal, digest, error.reason(), &error.to_string(), now);
                None
            }
            Consequence::Skip => {
                self.skip(journal, digest, error.reason(), &error.to_string());
                None
            }
            _ => Some(Done::Held(error.reason().to_owned(), error.to_string())),
        }
    }

    /// What a self-test's verdict means. None where the journal has the answer now.
    fn learn(&self, journal: &mut Journal, digest: &Digest, verdict: Verdict, now: Timestamp) -> Option<Done> {
        // A version that has proven itself here is not condemned by a new build of the runtime: the build is, by never
        // becoming ready.
        let known = journal.active.as_ref() == Some(digest) && journal.proven.contains(digest);
        match verdict {
            Verdict::Passed => {
                if let Some(record) = journal.records.get_mut(digest) {
                    self.shared.build.clone_into(&mut record.tested);
                }
                None
            }
            Verdict::Failed { reason, message } if !known => {
                self.refuse(journal, digest, reason, &message, now);
                None
            }
            Verdict::Skipped { reason, message } if journal.active.as_ref() != Some(digest) => {
                self.skip(journal, digest, reason, &message);
                // Looked at again after a while.
                Some(Done::Held(reason.to_owned(), message))
            }
            Verdict::Failed { reason, message } | Verdict::Skipped { reason, message } => {
                Some(Done::Held(reason.to_owned(), message))
            }
            Verdict::Inconclusive { message } => Some(Done::Held("SelfTestInconclusive".to_owned(), message)),
        }
    }

    /// Loads a version and switches to it. None where it serves.
    async fn activate(&self, journal: &mut Journal, digest: &Digest, now: Timestamp) -> Option<Done> {
        let start = Instant::now();
        let shared = self.shared.clone();
        let held = |reason: &str, message: String| Some(Done::Held(reason.to_owned(), message));
        let contract = journal.records.get(digest).map(|record| record.source.contract.clone());
        let opened = {
            let (shared, digest) = (shared.clone(), digest.clone());
            tokio::task::spawn_blocking(move || shared.open(&digest)).await
        };
        let predictor = match opened {
            Ok(Ok((found, predictor))) => {
                if let Some(contract) = contract.filter(|contract| *contract != found) {
                    let message = format!("contract is {found}, the order says {contract}");
                    self.refuse(journal, digest, "ContractMismatch", &message, now);
                    return None;
                }
                predictor
            }
            Ok(Err(error)) if error.reason() == "DigestMismatch" => {
                tracing::error!(model = self.key, %digest, %error, "bytes changed on disk: fetching them again");
                if let Err(error) = shared.store.discard(digest) {
                    return held(error.reason(), error.to_string());
                }
                return held(
                    "DigestMismatch",
                    "the bytes changed on disk; they are fetched again".into(),
                );
            }
            Ok(Err(error)) => return held(error.reason(), error.message().to_owned()),
            Err(error) => return held("LoadFailed", error.to_string()),
        };
        self.switched(Some(digest));
        shared.table.put(Served::new(&self.key, digest.clone(), predictor));
        let took = start.elapsed();
        shared
            .metrics
            .switch
            .with_label_values(&[&self.key])
            .observe(took.as_secs_f64());
        tracing::info!(model = self.key, %digest, took_ms = took.as_millis() as u64, "serving");
        let first = journal.active.as_ref() != Some(digest);
        if first {
            journal.activated(digest, shared.next_place(), now);
        }
        None
    }

    /// Keeps the gauge of what serves in line.
    fn switched(&self, to: Option<&Digest>) {
        let gauge = &self.shared.metrics.active;
        if let Some(old) = self.shared.table.get(&self.key) {
            let _ = gauge.remove_label_values(&[&self.key, old.digest.as_str()]);
        }
        if let Some(digest) = to {
            gauge.with_label_values(&[&self.key, digest.as_str()]).set(1);
        }
    }

    async fn settle(&mut self, step: &Step, done: Done) {
        match done {
            Done::Dropped => {}
            Done::Changed => {
                if !matches!(step, Step::Take | Step::MarkTrial(_)) {
                    self.failures = 0;
                    self.hold_until = None;
                }
            }
            Done::Held(reason, message) => {
                let wait = FIRST_HOLD.saturating_mul(1 << self.failures.min(10)).min(LONGEST_HOLD);
                self.failures += 1;
                self.hold_until = SignedDuration::try_from(wait)
                    .ok()
                    .and_then(|wait| Timestamp::now().checked_add(wait).ok());
                tracing::warn!(
                    model = self.key,
                    reason,
                    detail = message,
                    wait_s = wait.as_secs(),
                    "held up"
                );
                self.trouble = Some((reason, message));
                self.commit(self.journal.clone()).await;
            }
        }
    }

    /// Writes a journal and says what it says. Nothing acts on it before it is on disk.
    async fn commit(&mut self, mut journal: Journal) {
        let now = Timestamp::now();
        if journal.order.is_none() {
            return;
        }
        journal.prune();
        journal.refresh(self.trouble.as_ref(), &self.shared.build, now);
        if journal
            .state
            .as_ref()
            .is_some_and(|state| state.state != VersionState::Staging)
        {
            self.trouble = None;
        }
        if journal != self.journal || journal.state.is_none() {
            loop {
                let (store, copy) = (self.shared.store.clone(), journal.clone());
                match tokio::task::spawn_blocking(move || store.write_journal(&copy)).await {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => tracing::error!(model = self.key, %error, "the journal cannot be written"),
                    Err(error) => tracing::error!(model = self.key, %error, "the journal cannot be written"),
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
        let collect = journal.kept() != self.journal.kept();
        self.journal = journal;
        self.shared.publish(&self.journal);
        if collect {
            self.shared.collect().await;
        }
    }
}
