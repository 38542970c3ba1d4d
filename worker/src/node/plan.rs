//! What a node does next about one model: one pure function from the order, the journal and the facts to the next step.
//! It reads no clock, no disk and no network. After each step the journal is written and the function asked again, so a
//! crash between any two steps changes nothing but time.
//!
//! Absence is never an order: without an order the journal's last one holds. A version is activated only after its
//! signature and report were checked (there is a record), its bytes are in the store (which checks their digest), and it
//! passed its self-test under this build. An order to unload needs a newer epoch than the one that serves.

use crate::store::{Journal, Record};
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelOrder, OrderState, Source};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// Fewest requests before errors can end a trial.
const MIN_REQUESTS: u64 = 5;
/// Share of inference errors, in percent, above which a trial has failed.
const MAX_ERROR_PERCENT: u64 = 5;
/// Fewest requests before latency can end a trial: with fewer, the 95th percentile is one outlier.
const MIN_LATENCY_REQUESTS: u64 = 40;
/// How often a version that did not fit is looked at again.
const RECHECK: SignedDuration = SignedDuration::from_secs(30);

/// What the node knows besides order and journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// This build of the runtime: a self-test counts for one build.
    pub build: String,
    /// The node's hardware class, once it is known.
    pub class: Option<String>,
    /// Versions that are whole in the store.
    pub stored: Vec<Digest>,
    /// The version that this process serves.
    pub serving: Option<Digest>,
    /// What the serving version did since its trial began.
    pub soak: Soak,
    /// Memory for another version and its self-test, in bytes, beyond what is reserved; none where nothing bounds it.
    pub room: Option<u64>,
    /// After a passing failure: nothing that can fail the same way before this time.
    pub hold_until: Option<Timestamp>,
}

/// What a version did since its trial began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Soak {
    /// Answered requests, good or bad, but for those that were the client's fault.
    pub requests: u64,
    /// Of these, inference errors.
    pub errors: u64,
    /// 95th percentile of the time for one sample, in milliseconds, over the last requests.
    pub p95_ms: f64,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Take the order: its epoch and content go to disk.
    Take,
    /// Fetch manifest, report and signature, and check them.
    Check(Source),
    /// Download what is missing and assemble the version.
    Stage(Source),
    /// Run the self-test in a child process.
    SelfTest(Digest),
    /// Write the trial mark.
    MarkTrial(Digest),
    /// Load the version and switch serving to it.
    Activate(Digest),
    /// The soak is over.
    Prove,
    /// Never load this version again.
    Refuse {
        /// The version.
        digest: Digest,
        /// A PascalCase word.
        reason: &'static str,
        /// What, where and what to do.
        message: String,
    },
    /// This node cannot take the version.
    Skip {
        /// The version.
        digest: Digest,
        /// A PascalCase word.
        reason: &'static str,
        /// What, where and what to do.
        message: String,
    },
    /// Stop serving, keep what is in the store.
    Unload,
    /// Stop serving and drop all versions.
    Forget,
}

/// The next step, or when to ask again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The next step.
    pub step: Option<Step>,
    /// Without a step: when to ask again at the latest.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn step(step: Step) -> Self {
        Self {
            step: Some(step),
            wake: None,
        }
    }

    fn wake(at: Option<Timestamp>) -> Self {
        Self { step: None, wake: at }
    }
}

/// The next step for one model.
pub fn plan(order: Option<&ModelOrder>, journal: &Journal, facts: &Facts, now: Timestamp) -> Plan {
    if let Some(order) = order
        && takes(order, journal)
    {
        return Plan::step(Step::Take);
    }
    if journal.order.is_none() {
        return Plan::default();
    }
    if journal.is_removed() {
        return if journal.active.is_some() || facts.serving.is_some() || !journal.records.is_empty() {
            Plan::step(Step::Forget)
        } else {
            Plan::default()
        };
    }
    let Some(wanted) = journal.wanted() else {
        return if journal.active.is_some() || facts.serving.is_some() {
            Plan::step(Step::Unload)
        } else {
            Plan::default()
        };
    };
    let refused = |digest: &Digest| journal.refused.contains_key(digest);
    let active_is_bad = journal.active.as_ref().is_some_and(refused);
    if !refused(&wanted.digest) {
        if active_is_bad && !ready(&wanted.digest, journal, facts) {
            // The order has a good version, but it is not here yet: what failed stops now, the fallback stands in.
            if let Some(step) = stand_in(journal, facts) {
                return Plan::step(step);
            }
            if facts.serving.as_ref().is_some_and(refused) {
                return Plan::step(Step::Unload);
            }
        }
        return towards(wanted, journal, facts, now);
    }
    // The wanted version is bad. What serves goes on serving, unless it is that one.
    if let Some(active) = journal.active.as_ref().filter(|_| !active_is_bad) {
        return keep_serving(journal, facts, now).unwrap_or_else(|| judge(active, journal, facts, now));
    }
    match journal.fallback().filter(|fallback| !refused(&fallback.digest)) {
        Some(fallback) => {
            if !ready(&fallback.digest, journal, facts) && facts.serving.is_some() {
                return Plan::step(Step::Unload);
            }
            towards(fallback, journal, facts, now)
        }
        None if journal.active.is_some() || facts.serving.is_some() => Plan::step(Step::Unload),
        None => Plan::default(),
    }
}

/// Whether an order changes anything. A lower epoch never does; an equal one may not unload.
fn takes(order: &ModelOrder, journal: &Journal) -> bool {
    let unloads = order.state == OrderState::Remove || order.source.is_none();
    match &journal.order {
        None => order.epoch >= journal.epoch,
        Some(held) => order.epoch > journal.epoch || (order.epoch == journal.epoch && order != held && !unloads),
    }
}

/// Whether a version could be activated at once.
fn ready(digest: &Digest, journal: &Journal, facts: &Facts) -> bool {
    facts.stored.contains(digest)
        && journal
            .records
            .get(digest)
            .is_some_and(|record| record.tested == facts.build)
}

/// Takes the fallback, if that can be done at once.
fn stand_in(journal: &Journal, facts: &Facts) -> Option<Step> {
    let fallback = journal.fallback()?;
    let good = !journal.refused.contains_key(&fallback.digest) && ready(&fallback.digest, journal, facts);
    good.then(|| load(&fallback.digest, journal))
}

/// What serves, served: loads it after a start. None where it already serves.
fn keep_serving(journal: &Journal, facts: &Facts, now: Timestamp) -> Option<Plan> {
    let active = journal.active.as_ref()?;
    if facts.serving.as_ref() == Some(active) {
        return None;
    }
    let record = journal.records.get(active)?;
    if let Some(plan) = prepare(&record.source, record, facts, now) {
        return Some(plan);
    }
    Some(Plan::step(load(active, journal)))
}

/// Loads a version, after its trial mark where it has not proven itself yet: also one whose mark was written over by the
/// next version, before the process ended.
fn load(digest: &Digest, journal: &Journal) -> Step {
    let marked = journal.trial.as_ref().is_some_and(|trial| trial.digest == *digest);
    if marked || journal.proven.contains(digest) {
        Step::Activate(digest.clone())
    } else {
        Step::MarkTrial(digest.clone())
    }
}

/// Bytes and self-test of a checked version. None where both are there.
fn prepare(source: &Source, record: &Record, facts: &Facts, now: Timestamp) -> Option<Plan> {
    if !facts.stored.contains(&source.digest) {
        return Some(held(Step::Stage(source.clone()), facts, now));
    }
    if record.tested != facts.build {
        return Some(held(Step::SelfTest(source.digest.clone()), facts, now));
    }
    None
}

/// A step that can fail for a passing cause waits until the last failure is over.
fn held(step: Step, facts: &Facts, now: Timestamp) -> Plan {
    match facts.hold_until {
        Some(until) if until > now => Plan::wake(Some(until)),
        _ => Plan::step(step),
    }
}

/// One step from wherever things are to serving `source`.
fn towards(source: &Source, journal: &Journal, facts: &Facts, now: Timestamp) -> Plan {
    let digest = &source.digest;
    if journal.active.as_ref() == Some(digest) {
        return keep_serving(journal, facts, now).unwrap_or_else(|| judge(digest, journal, facts, now));
    }
    // After a start what served before serves first, whatever else has been ordered meanwhile.
    if journal
        .active
        .as_ref()
        .is_some_and(|active| !journal.refused.contains_key(active))
        && let Some(plan) = keep_serving(journal, facts, now)
        && matches!(plan.step, Some(Step::Activate(_) | Step::MarkTrial(_)))
    {
        return plan;
    }
    // What serves while the next version is on its way is still judged.
    let on_trial = |active: &&Digest| facts.serving.as_ref() == Some(*active) && !journal.refused.contains_key(*active);
    if let Some(active) = journal.active.as_ref().filter(on_trial) {
        let verdict = judge(active, journal, facts, now);
        if verdict.step.is_some() {
            return verdict;
        }
    }
    let Some(record) = journal.records.get(digest) else {
        let skipped = journal
            .skipped
            .as_ref()
            .is_some_and(|s| s.digest == *digest && s.build == facts.build);
        return if skipped {
            Plan::default()
        } else {
            held(Step::Check(source.clone()), facts, now)
        };
    };
    if let Some(plan) = admit(digest, record, journal, facts, now) {
        return plan;
    }
    if let Some(plan) = prepare(source, record, facts, now) {
        return plan;
    }
    held(load(digest, journal), facts, now)
}

/// Whether the version fits this node. None where it does.
fn admit(digest: &Digest, record: &Record, journal: &Journal, facts: &Facts, now: Timestamp) -> Option<Plan> {
    let class = facts.class.as_deref();
    if let Some(budget) = record.budget_of(class) {
        let class = class.unwrap_or("*");
        let refuse = |message: String| {
            Some(Plan::step(Step::Refuse {
                digest: digest.clone(),
                reason: "BudgetExceeded",
                message,
            }))
        };
        if let Some(most) = budget.max_bytes.as_ref().map(fleetune_crds::common::Bytes::get)
            && record.bytes > most
        {
            return refuse(format!("{} bytes, the budget of class {class} is {most}", record.bytes));
        }
        if let Some(most) = budget.max_peak_memory.as_ref().map(fleetune_crds::common::Bytes::get)
            && record.peak_memory > most
        {
            return refuse(format!(
                "peak memory of {} bytes, the budget of class {class} is {most}",
                record.peak_memory
            ));
        }
    }
    // One to serve and one to be self-tested; what was tested only has to be loaded.
    let need = if record.tested == facts.build {
        record.memory()
    } else {
        record.memory().saturating_mul(2)
    };
    let room = facts.room?;
    if room >= need {
        return None;
    }
    let skipped = journal.skipped.as_ref().is_some_and(|skip| skip.digest == *digest);
    if skipped {
        return Some(Plan::wake(now.checked_add(RECHECK).ok()));
    }
    Some(Plan::step(Step::Skip {
        digest: digest.clone(),
        reason: "BudgetExceeded",
        message: format!(
            "{} MiB of memory are left for it, {} MiB are needed to self-test and load it: raise the runtime's memory \
             limit or take another model off the node",
            room >> 20,
            need >> 20
        ),
    }))
}

/// The soak of the version that serves.
fn judge(digest: &Digest, journal: &Journal, facts: &Facts, now: Timestamp) -> Plan {
    if journal.proven.contains(digest) {
        return Plan::default();
    }
    let Soak {
        requests,
        errors,
        p95_ms,
    } = facts.soak;
    let refuse = |reason, message| {
        Plan::step(Step::Refuse {
            digest: digest.clone(),
            reason,
            message,
        })
    };
    if requests >= MIN_REQUESTS && errors * 100 > requests * MAX_ERROR_PERCENT {
        return refuse(
            "Errors",
            format!("{errors} of {requests} requests ended in an inference error, more than {MAX_ERROR_PERCENT} %"),
        );
    }
    let bound = journal
        .records
        .get(digest)
        .and_then(|record| record.budget_of(facts.class.as_deref())?.max_p95_latency.as_ref())
        .map(|span| span.get().as_secs_f64() * 1e3);
    if let Some(bound) = bound
        && requests >= MIN_LATENCY_REQUESTS
        && p95_ms > bound
    {
        return refuse(
            "Latency",
            format!("95 % of {requests} requests took up to {p95_ms:.1} ms, the budget is {bound:.1} ms"),
        );
    }
    let soak = journal
        .order
        .as_ref()
        .map(|order| order.min_success_time.get())
        .unwrap_or_default();
    let from = journal.soak_from.unwrap_or(now);
    let over = SignedDuration::try_from(soak)
        .ok()
        .and_then(|soak| from.checked_add(soak).ok());
    match over {
        Some(over) if over <= now => Plan::step(Step::Prove),
        other => Plan::wake(other),
    }
}

#[cfg(test)]
mod tests;
