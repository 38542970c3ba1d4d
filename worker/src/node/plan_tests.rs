//! Tables for `plan`, and its invariants on a simulated node: random orders, bad versions, failing steps, ends of the
//! process at any point. The simulation keeps what a disk keeps (journal and store) and forgets the rest.

use super::*;
use fleetune_crds::Budget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use std::collections::BTreeSet;

const BUILD: &str = "b1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn source(name: u8) -> Source {
    Source {
        repository: "r/x".into(),
        digest: Digest::of(&[name]),
        report: Digest::of(&[name, 1]),
        signature: Digest::of(&[name, 2]),
        contract: Digest::of(b"c"),
    }
}

fn order(epoch: i64, version: Option<u8>, fallback: Option<u8>) -> ModelOrder {
    ModelOrder {
        epoch,
        run: 1,
        source: version.map(source),
        fallback: fallback.map(source),
        min_success_time: "10s".parse().unwrap(),
        progress_deadline: "1m".parse().unwrap(),
        picked_at: Time(at(0)),
        state: OrderState::Serve,
    }
}

fn remove(epoch: i64) -> ModelOrder {
    ModelOrder {
        state: OrderState::Remove,
        ..order(epoch, None, None)
    }
}

fn record(name: u8, tested: &str) -> Record {
    Record {
        source: source(name),
        tolerance: 0.001,
        budget: Vec::new(),
        bytes: 1000,
        peak_memory: 100,
        files: std::collections::BTreeMap::new(),
        tested: tested.into(),
    }
}

fn budget(class: &str, bytes: Option<&str>, p95: Option<&str>) -> Budget {
    Budget {
        class: class.into(),
        max_bytes: bytes.map(|text| text.parse().unwrap()),
        max_peak_memory: None,
        max_p95_latency: p95.map(|text| text.parse().unwrap()),
    }
}

/// A journal that has taken `order` and serves `active`.
fn journal(order: &ModelOrder, active: Option<u8>) -> Journal {
    let mut journal = Journal::new("shop/shirts");
    journal.take(order);
    if let Some(active) = active {
        let digest = source(active).digest;
        journal.records.insert(digest.clone(), record(active, BUILD));
        journal.proven.insert(digest.clone());
        journal.activated(&digest, 0, at(0));
    }
    journal
}

fn facts(stored: &[u8], serving: Option<u8>) -> Facts {
    Facts {
        build: BUILD.into(),
        class: Some("amd64".into()),
        stored: stored.iter().map(|name| source(*name).digest).collect(),
        serving: serving.map(|name| source(name).digest),
        ..Facts::default()
    }
}

fn digest(name: u8) -> Digest {
    source(name).digest
}

#[test]
fn orders_are_taken_by_epoch() {
    let held = journal(&order(5, Some(1), None), Some(1));
    let here = facts(&[1], Some(1));
    let cases = [
        ("the same", order(5, Some(1), None), false),
        ("lower", order(4, Some(2), None), false),
        ("higher", order(6, Some(2), None), true),
        ("equal, another fallback", order(5, Some(1), Some(2)), true),
        ("equal, none", order(5, None, None), false),
        ("higher, none", order(6, None, None), true),
        ("equal, remove", remove(5), false),
        ("lower, remove", remove(4), false),
        ("higher, remove", remove(6), true),
    ];
    for (name, order, taken) in cases {
        let step = plan(Some(&order), &held, &here, at(1)).step;
        assert_eq!(step == Some(Step::Take), taken, "{name}");
        if !taken {
            assert_eq!(step, None, "{name}");
        }
    }
    assert_eq!(plan(None, &held, &here, at(1)), Plan::default(), "absence is no order");
}

#[test]
fn a_version_goes_one_step_at_a_time() {
    let order = order(1, Some(1), None);
    let next = |journal: &Journal, facts: &Facts| plan(Some(&order), journal, facts, at(100)).step.unwrap();
    let mut journal = Journal::new("shop/shirts");
    assert_eq!(next(&journal, &facts(&[], None)), Step::Take);
    journal.take(&order);
    assert_eq!(next(&journal, &facts(&[], None)), Step::Check(source(1)));
    journal.records.insert(digest(1), record(1, ""));
    assert_eq!(next(&journal, &facts(&[], None)), Step::Stage(source(1)));
    assert_eq!(next(&journal, &facts(&[1], None)), Step::SelfTest(digest(1)));
    journal.records.insert(digest(1), record(1, "another build"));
    assert_eq!(next(&journal, &facts(&[1], None)), Step::SelfTest(digest(1)));
    journal.records.insert(digest(1), record(1, BUILD));
    assert_eq!(next(&journal, &facts(&[1], None)), Step::MarkTrial(digest(1)));
    journal.mark_trial(&digest(1), "boot");
    assert_eq!(next(&journal, &facts(&[1], None)), Step::Activate(digest(1)));
    journal.activated(&digest(1), 0, at(100));
    let soaking = plan(Some(&order), &journal, &facts(&[1], Some(1)), at(105));
    assert_eq!((soaking.step, soaking.wake), (None, Some(at(110))));
    assert_eq!(
        plan(Some(&order), &journal, &facts(&[1], Some(1)), at(110)).step,
        Some(Step::Prove)
    );
    journal.prove();
    assert_eq!(
        plan(Some(&order), &journal, &facts(&[1], Some(1)), at(111)),
        Plan::default()
    );
}

#[test]
fn a_hold_keeps_what_can_fail_again_and_nothing_else() {
    let held = Facts {
        hold_until: Some(at(50)),
        ..facts(&[], None)
    };
    let journal_ = journal(&order(1, Some(1), None), None);
    let waiting = plan(None, &journal_, &held, at(49));
    assert_eq!((waiting.step, waiting.wake), (None, Some(at(50))));
    assert_eq!(plan(None, &journal_, &held, at(50)).step, Some(Step::Check(source(1))));
    assert_eq!(
        plan(Some(&order(2, None, None)), &journal_, &held, at(1)).step,
        Some(Step::Take)
    );
}

#[test]
fn going_back_needs_no_byte_and_no_trial() {
    let mut journal = journal(&order(2, Some(2), Some(1)), Some(1));
    journal.records.insert(digest(2), record(2, BUILD));
    journal.mark_trial(&digest(2), "boot");
    journal.activated(&digest(2), 0, at(0));
    journal.take(&order(3, Some(1), None));
    let step = plan(None, &journal, &facts(&[1, 2], Some(2)), at(1)).step;
    assert_eq!(step, Some(Step::Activate(digest(1))));
}

#[test]
fn a_failed_trial_returns_to_the_fallback_or_to_nothing() {
    let trial = |fallback| {
        let mut journal = journal(&order(2, Some(2), fallback), Some(1));
        journal.records.insert(digest(2), record(2, BUILD));
        journal.activated(&digest(2), 0, at(0));
        journal.refuse(&digest(2), "Errors", "m", at(1));
        journal
    };
    let step = |journal: &Journal, facts: &Facts| plan(None, journal, facts, at(2)).step;
    assert_eq!(
        step(&trial(Some(1)), &facts(&[1, 2], Some(2))),
        Some(Step::Activate(digest(1)))
    );
    assert_eq!(step(&trial(None), &facts(&[1, 2], Some(2))), Some(Step::Unload));
    // A fallback that never was here: what failed stops, then the fallback is fetched.
    assert_eq!(step(&trial(Some(3)), &facts(&[1, 2], Some(2))), Some(Step::Unload));
    let mut stopped = trial(Some(3));
    stopped.unloaded();
    assert_eq!(step(&stopped, &facts(&[1, 2], None)), Some(Step::Check(source(3))));
    // After a start nothing is loaded: the fallback is the first that is.
    assert_eq!(
        step(&trial(Some(1)), &facts(&[1, 2], None)),
        Some(Step::Activate(digest(1)))
    );
}

#[test]
fn a_version_refused_before_it_served_leaves_what_serves() {
    for fallback in [None, Some(3)] {
        let mut journal = journal(&order(2, Some(2), fallback), Some(1));
        journal.refuse(&digest(2), "SelfTestFailed", "m", at(1));
        assert_eq!(plan(None, &journal, &facts(&[1], Some(1)), at(2)), Plan::default());
        let after_start = plan(None, &journal, &facts(&[1], None), at(2)).step;
        assert_eq!(after_start, Some(Step::Activate(digest(1))));
    }
}

#[test]
fn after_a_start_what_served_comes_first() {
    let mut journal = journal(&order(2, Some(2), Some(1)), Some(1));
    let step = |journal: &Journal, stored: &[u8]| plan(None, journal, &facts(stored, None), at(2)).step;
    assert_eq!(step(&journal, &[1]), Some(Step::Activate(digest(1))));
    // Under a new build it is tested before it serves.
    journal.order = Some(order(2, Some(1), None));
    journal.records.insert(digest(1), record(1, "old build"));
    assert_eq!(step(&journal, &[1]), Some(Step::SelfTest(digest(1))));
    // Its bytes are gone: they are fetched.
    assert_eq!(step(&journal, &[]), Some(Step::Stage(source(1))));
}

#[test]
fn unloading_and_removing() {
    let none = journal(&order(2, None, None), Some(1));
    assert_eq!(plan(None, &none, &facts(&[1], Some(1)), at(1)).step, Some(Step::Unload));
    let mut gone = journal(&remove(2), Some(1));
    assert_eq!(plan(None, &gone, &facts(&[1], Some(1)), at(1)).step, Some(Step::Forget));
    gone.forget();
    assert_eq!(plan(None, &gone, &facts(&[], None), at(1)), Plan::default());
    assert_eq!(gone.epoch, 2, "the epoch stays");
}

#[test]
fn budgets_and_room() {
    let with = |budget: Vec<Budget>| {
        let mut journal = journal(&order(2, Some(2), Some(1)), Some(1));
        let record = Record {
            budget,
            ..record(2, "")
        };
        journal.records.insert(digest(2), record);
        journal
    };
    let reason = |journal: &Journal, room: Option<u64>| {
        let facts = Facts {
            room,
            ..facts(&[1], Some(1))
        };
        match plan(None, journal, &facts, at(1)).step {
            Some(Step::Refuse { reason, .. }) => format!("refuse {reason}"),
            Some(Step::Skip { reason, .. }) => format!("skip {reason}"),
            Some(Step::Stage(_)) => "stage".into(),
            None => "wait".into(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason(&with(vec![]), None), "stage");
    assert_eq!(reason(&with(vec![]), Some(200)), "stage");
    assert_eq!(reason(&with(vec![]), Some(199)), "skip BudgetExceeded");
    assert_eq!(
        reason(&with(vec![budget("*", Some("999"), None)]), None),
        "refuse BudgetExceeded"
    );
    assert_eq!(reason(&with(vec![budget("*", Some("1000"), None)]), None), "stage");
    let own = vec![budget("*", Some("1"), None), budget("amd64", Some("1k"), None)];
    assert_eq!(reason(&with(own), None), "stage", "the node's own class counts");
    let mut skipped = with(vec![]);
    skipped.skip(&digest(2), "BudgetExceeded", "m", BUILD);
    assert_eq!(reason(&skipped, Some(199)), "wait");
    assert_eq!(reason(&skipped, Some(200)), "stage", "room came");
}

#[test]
fn a_soak_is_judged_by_errors_and_latency() {
    let mut journal = journal(&order(2, Some(2), Some(1)), Some(1));
    let record = Record {
        budget: vec![budget("*", None, Some("20ms"))],
        ..record(2, BUILD)
    };
    journal.records.insert(digest(2), record);
    journal.activated(&digest(2), 0, at(0));
    let verdict = |requests, errors, p95_ms| {
        let facts = Facts {
            soak: Soak {
                requests,
                errors,
                p95_ms,
            },
            ..facts(&[1, 2], Some(2))
        };
        match plan(None, &journal, &facts, at(1)).step {
            Some(Step::Refuse { reason, .. }) => reason,
            None => "",
            other => panic!("{other:?}"),
        }
    };
    for (requests, errors, p95, reason) in [
        (0, 0, 0.0, ""),
        (4, 4, 1.0, ""),
        (5, 1, 1.0, "Errors"),
        (100, 5, 1.0, ""),
        (100, 6, 1.0, "Errors"),
        (39, 0, 90.0, ""),
        (40, 0, 20.0, ""),
        (40, 0, 20.1, "Latency"),
    ] {
        assert_eq!(verdict(requests, errors, p95), reason, "{requests} {errors} {p95}");
    }
}

/// How a version behaves in the simulation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Nature {
    Good,
    Unsigned,
    Untrue,
    ErrsOnInput,
    EndsTheProcess,
}

const NATURES: [Nature; 6] = [
    Nature::Good,
    Nature::Unsigned,
    Nature::Untrue,
    Nature::ErrsOnInput,
    Nature::EndsTheProcess,
    Nature::Good,
];

#[derive(Clone, Debug)]
enum Event {
    /// The API has this order (whatever its epoch), or none can be read.
    Order(Option<Box<ModelOrder>>),
    /// The next step works, as far as the version's nature lets it.
    Step,
    /// The next step fails for a passing cause.
    Fail,
    /// The process ends before the next journal is written, and starts again.
    Crash,
    /// Real requests come.
    Requests,
    /// Seconds pass.
    Wait(i64),
}

/// A node: what is on disk, and what the process knows.
struct Sim {
    disk: Journal,
    stored: BTreeSet<Digest>,
    serving: Option<Digest>,
    soak: Soak,
    api: Option<ModelOrder>,
    now: i64,
    checked: BTreeSet<Digest>,
    passed: BTreeSet<Digest>,
    bad: BTreeSet<Digest>,
}

impl Sim {
    fn new() -> Self {
        Self {
            disk: Journal::new("shop/shirts"),
            stored: BTreeSet::new(),
            serving: None,
            soak: Soak::default(),
            api: None,
            now: 0,
            checked: BTreeSet::new(),
            passed: BTreeSet::new(),
            bad: BTreeSet::new(),
        }
    }

    fn plan(&self) -> Plan {
        let facts = Facts {
            build: BUILD.into(),
            stored: self.stored.iter().cloned().collect(),
            serving: self.serving.clone(),
            soak: self.soak,
            ..Facts::default()
        };
        plan(self.api.as_ref(), &self.disk, &facts, at(self.now))
    }

    fn nature(digest: &Digest) -> Nature {
        (0..NATURES.len())
            .find(|name| super::tests::digest(*name as u8) == *digest)
            .map_or(Nature::Good, |name| NATURES[name])
    }

    /// Does the next step. Without `commit` the process ends after the step and before the journal is written.
    fn step(&mut self, commit: bool) {
        let Some(step) = self.plan().step else { return };
        let mut journal = self.disk.clone();
        match step {
            Step::Take => {
                let order = self.api.clone().unwrap();
                assert!(order.epoch >= self.disk.epoch, "epochs only grow");
                let unloads = order.source.is_none() || order.state == OrderState::Remove;
                assert!(!unloads || order.epoch > self.disk.epoch || self.disk.order.is_none());
                journal.take(&order);
            }
            Step::Check(source) => {
                if Self::nature(&source.digest) == Nature::Unsigned {
                    self.refuse(&mut journal, &source.digest, "SignatureInvalid");
                } else {
                    self.checked.insert(source.digest.clone());
                    let mut record = record(0, "");
                    record.source = source.clone();
                    journal.records.insert(source.digest, record);
                }
            }
            Step::Stage(source) => {
                assert!(
                    self.checked.contains(&source.digest),
                    "bytes come after signature and report"
                );
                self.stored.insert(source.digest);
            }
            Step::SelfTest(digest) => {
                assert!(self.stored.contains(&digest));
                if Self::nature(&digest) == Nature::Untrue {
                    self.refuse(&mut journal, &digest, "SelfTestFailed");
                } else {
                    self.passed.insert(digest.clone());
                    journal.records.get_mut(&digest).unwrap().tested = BUILD.into();
                }
            }
            Step::MarkTrial(digest) => journal.mark_trial(&digest, "boot"),
            Step::Activate(digest) => {
                // Invariants 1 and 9.
                assert!(
                    self.checked.contains(&digest) && self.stored.contains(&digest) && self.passed.contains(&digest)
                );
                assert!(!self.bad.contains(&digest), "what was refused is never loaded");
                let marked = self.disk.trial.as_ref().is_some_and(|trial| trial.digest == digest);
                assert!(
                    marked || self.disk.proven.contains(&digest),
                    "a first time has its mark on disk"
                );
                self.serving = Some(digest.clone());
                self.soak = Soak::default();
                if journal.active.as_ref() != Some(&digest) {
                    journal.activated(&digest, 0, at(self.now));
                }
            }
            Step::Prove => journal.prove(),
            Step::Refuse { digest, reason, .. } => self.refuse(&mut journal, &digest, reason),
            Step::Skip { digest, reason, .. } => journal.skip(&digest, reason, "m", BUILD),
            Step::Unload | Step::Forget => {
                // Absence is never an order: either a newer epoch said so, or what serves has failed.
                let order = self.disk.order.clone().unwrap();
                let told = order.source.is_none() || order.state == OrderState::Remove;
                let failed = self
                    .disk
                    .active
                    .as_ref()
                    .is_some_and(|active| self.bad.contains(active))
                    || self.serving.as_ref().is_some_and(|serving| self.bad.contains(serving));
                assert!(told || failed);
                self.serving = None;
                if step == Step::Forget {
                    journal.forget();
                } else {
                    journal.unloaded();
                }
            }
        }
        if commit {
            journal.prune();
            assert!(journal.epoch >= self.disk.epoch);
            assert!(self.bad.iter().all(|digest| !journal.proven.contains(digest)));
            self.disk = journal;
            let kept = self.disk.kept();
            self.stored.retain(|digest| kept.contains(digest));
            if let Some(serving) = &self.serving {
                assert!(self.disk.active.as_ref() != Some(serving) || self.stored.contains(serving));
            }
        } else {
            self.start();
        }
    }

    fn refuse(&mut self, journal: &mut Journal, digest: &Digest, reason: &str) {
        journal.refuse(digest, reason, "m", at(self.now));
        self.bad.insert(digest.clone());
    }

    /// The process ends and starts.
    fn start(&mut self) {
        self.serving = None;
        self.soak = Soak::default();
        // What was refused but not written is not known any more.
        self.bad = self.disk.refused.keys().cloned().collect();
        self.disk.started("boot", at(self.now));
        self.bad = self.disk.refused.keys().cloned().collect();
    }

    fn requests(&mut self) {
        let Some(serving) = self.serving.clone() else { return };
        self.soak.requests += 20;
        match Self::nature(&serving) {
            Nature::ErrsOnInput => self.soak.errors += 20,
            Nature::EndsTheProcess => self.start(),
            _ => {}
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Order(order) => self.api = order.map(|order| *order),
            Event::Step => self.step(true),
            Event::Fail => {}
            Event::Crash => self.step(false),
            Event::Requests => self.requests(),
            Event::Wait(seconds) => self.now += seconds,
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let version = prop::option::weighted(0.9, 0..NATURES.len() as u8);
    let fallback = prop::option::of(prop::sample::select(vec![0_u8, 5]));
    let ordered = (0..20_i64, version, fallback, 0..12_u8).prop_map(|(epoch, version, fallback, removes)| {
        let order = if removes == 0 {
            remove(epoch)
        } else {
            order(epoch, version, fallback)
        };
        Event::Order(Some(Box::new(order)))
    });
    prop_oneof![
        3 => ordered,
        1 => Just(Event::Order(None)),
        20 => Just(Event::Step),
        2 => Just(Event::Fail),
        2 => Just(Event::Crash),
        4 => Just(Event::Requests),
        3 => (1..15_i64).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, the assertions of the simulation hold; and once nothing more comes, the node ends where the last
    /// order wants it, and has nothing left to do.
    #[test]
    fn invariants_hold_and_it_converges(events in prop::collection::vec(event(), 1..120)) {
        let mut sim = Sim::new();
        for event in events {
            let served = sim.serving.clone();
            let had_order = sim.disk.order.clone();
            sim.apply(event);
            if sim.api.is_none() && had_order == sim.disk.order && served.is_some() && sim.serving.is_none() {
                // Without an order only an end of the process or a failure of its own stops what serves.
                let stopped = served.as_ref().is_some_and(|served| sim.bad.contains(served));
                let told = had_order.as_ref().is_some_and(|o| o.source.is_none() || o.state == OrderState::Remove);
                let can_restart = sim.disk.active.is_some();
                prop_assert!(stopped || told || can_restart);
            }
        }
        // A final order that is above all others.
        sim.api = Some(order(100, Some(0), Some(5)));
        for round in 0..200 {
            // Now and then: a proven version that ends the process at each request leaves time for steps in between.
            if round % 20 == 0 {
                sim.requests();
            }
            sim.now += 5;
            sim.step(true);
        }
        prop_assert_eq!(sim.plan().step, None, "nothing left to do");
        prop_assert_eq!(&sim.serving, &sim.disk.active);
        // The wanted version, unless it was refused on the way; then whatever served before, or the fallback. Two ends of
        // the process during a trial refuse a good version too, so that both may be gone, and nothing serves.
        let Some(serving) = sim.serving.clone() else {
            prop_assert!(sim.bad.contains(&digest(0)) && sim.bad.contains(&digest(5)));
            return Ok(());
        };
        prop_assert!(!sim.bad.contains(&serving));
        prop_assert!(sim.bad.contains(&digest(0)) || serving == digest(0));
        prop_assert!(sim.disk.proven.contains(&serving));
    }
}
