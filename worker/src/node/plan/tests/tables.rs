//! Tables for `plan`.

use super::*;

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
