//! The invariants of `plan` on a simulated node: random orders, bad versions, failing steps, ends of the process at any
//! point. The simulation keeps what a disk keeps (journal and store) and forgets the rest.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

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
            .find(|name| super::digest(*name as u8) == *digest)
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
