//! What people say and change in the middle of a rollout, over the model cluster: abort, pause, another list of stages,
//! another contract, names and selectors that lead nowhere, and versions that no node can take.

#![allow(clippy::unwrap_used, reason = "tests only")]

use fleetune_crds::conditions::{READY, STALLED, get};
use fleetune_crds::{OnFailure, Run, RunState};
use fleetune_operator::testing::fleets::{all_serve, ten_nodes, with_first};
use fleetune_operator::testing::model_cluster::{MODEL, World, digest};
use fleetune_operator::testing::model_node::Fate;
use std::collections::BTreeMap;

fn reason(world: &World, type_: &str) -> Option<String> {
    get(&world.status().conditions, type_).map(|c| c.reason.clone())
}

fn run(world: &World) -> Run {
    world.status().run.unwrap()
}

/// How many nodes were ever ordered to have version `n`.
fn ordered(world: &World, n: u32) -> usize {
    world
        .ordered
        .get(digest(n).as_str())
        .map_or(0, std::collections::BTreeSet::len)
}

/// Version 1 serves everywhere, version 2 has passed its first wave and waits for approval.
fn waiting() -> World {
    let mut world = with_first();
    world.edit(|spec| spec.strategy.stages[1].approval = true);
    world.publish(2);
    world.settle(5, 300);
    assert_eq!(reason(&world, READY).as_deref(), Some("WaitingForApproval"));
    world
}

#[test]
fn an_abort_takes_back_what_was_begun_and_the_version_is_not_tried_again() {
    let mut world = waiting();
    let now = run(&world);
    world.say("stop", now.number, &now.stage_hash, None);
    world.settle(5, 300);
    assert_eq!(world.phase(), "RolledBack");
    assert_eq!(reason(&world, STALLED).as_deref(), Some("RolledBack"));
    all_serve(&world, 1);
    assert_eq!(world.status().aborted, [digest(2)]);
    assert!(
        run(&world).message.contains("aborted by someone"),
        "{}",
        run(&world).message
    );
    assert!(world.answers["stop"].0);
    for _ in 0..100 {
        world.round();
    }
    assert_eq!((run(&world).number, ordered(&world, 2)), (now.number, 1));
}

#[test]
fn a_word_counts_for_its_run_and_its_stages_alone() {
    let mut world = waiting();
    let now = run(&world);
    world.say("other-run", now.number + 1, &now.stage_hash, Some("half"));
    world.say("other-stages", now.number, "0000", Some("half"));
    world.say("other-abort", now.number - 1, &now.stage_hash, None);
    world.say("no-such-stage", now.number, &now.stage_hash, Some("canary"));
    world.settle(5, 300);
    for (name, why) in [
        ("other-run", "for run 3"),
        ("other-stages", "list of stages 0000"),
        ("other-abort", "for run 1"),
        ("no-such-stage", "no stage \"canary\" waits"),
    ] {
        let (taken, message) = &world.answers[name];
        assert!(
            !taken && message.starts_with("ignored: ") && message.contains(why),
            "{name}: {message}"
        );
    }
    assert_eq!((world.phase(), ordered(&world, 2)), ("WaitingForApproval".into(), 1));
    world.say("go", now.number, &now.stage_hash, Some("half"));
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    world.say("late", now.number, &now.stage_hash, None);
    world.settle(5, 300);
    assert_eq!(world.answers["late"], (false, "ignored: the run is complete".into()));
    all_serve(&world, 2);
}

#[test]
fn another_list_of_stages_begins_anew_with_what_is_picked_and_old_words_are_void() {
    let mut world = waiting();
    let old = run(&world);
    world.edit(|spec| spec.strategy.stages[1].nodes = "30%".parse().unwrap());
    world.say("go", old.number, &old.stage_hash, Some("half"));
    world.settle(5, 300);
    let new = run(&world);
    assert_eq!(world.phase(), "WaitingForApproval");
    assert_eq!(new.number, old.number);
    assert_ne!(new.stage_hash, old.stage_hash);
    assert!(!world.answers["go"].0, "{:?}", world.answers["go"]);
    assert_eq!(ordered(&world, 2), 1, "the canary is the one that it was");
    world.say("go-again", new.number, &new.stage_hash, Some("half"));
    world.settle(5, 300);
    assert_eq!(
        run(&world).waves.iter().map(|w| w.nodes).collect::<Vec<_>>(),
        [1, 3, 10]
    );
    all_serve(&world, 2);
}

#[test]
fn a_failed_run_stands_still_where_a_person_is_to_decide() {
    for (decision, phase, serves) in [("abort", "RolledBack", 1), ("go on", "Complete", 2)] {
        let mut world = with_first();
        world.edit(|spec| spec.strategy.on_failure = OnFailure::Pause);
        world.publish(2);
        world.round();
        // The canary fails, whichever it is; all others would be well.
        world.fate(&digest(2), Fate::Crashes);
        world.settle(5, 300);
        assert_eq!((world.phase(), run(&world).state), ("Paused".into(), RunState::Failed));
        assert_eq!(reason(&world, STALLED).as_deref(), Some("RunFailed"));
        assert_eq!((ordered(&world, 2), world.status().aborted), (1, vec![]));
        all_serve(&world, 1);
        world.fate(&digest(2), Fate::Good);
        let now = run(&world);
        if decision == "abort" {
            world.say("stop", now.number, &now.stage_hash, None);
        } else {
            world.edit(|spec| {
                spec.strategy.max_failures = 1;
                spec.strategy.quorum = "1%".parse().unwrap();
                // A canary of one that has failed proves nothing.
                spec.strategy.stages.remove(0);
            });
        }
        world.settle(5, 300);
        assert_eq!(world.phase(), phase, "{decision}");
        let right = world.serving().values().filter(|d| **d == Some(digest(serves))).count();
        assert_eq!(right, if decision == "abort" { 10 } else { 9 }, "{decision}");
    }
}

#[test]
fn another_contract_is_refused_until_it_is_allowed() {
    let mut world = with_first();
    world.publish_with_contract(2, "another");
    world.settle(5, 300);
    assert_eq!(reason(&world, STALLED).as_deref(), Some("ContractChanged"));
    assert_eq!((world.phase(), ordered(&world, 2)), ("Stalled".into(), 0));
    world.edit(|spec| spec.allow_contract_change = true);
    world.settle(5, 300);
    assert_eq!((world.phase(), reason(&world, STALLED)), ("Complete".into(), None));
    all_serve(&world, 2);
}

#[test]
fn nothing_begins_while_it_is_paused() {
    let mut world = with_first();
    world.edit(|spec| spec.paused = true);
    world.publish(2);
    world.settle(5, 300);
    assert_eq!(
        (run(&world).number, ordered(&world, 2)),
        (1, 0),
        "what came of the last run stands"
    );
    assert_eq!(
        reason(&world, READY).as_deref(),
        Some("Paused"),
        "what is wanted does not serve yet"
    );
    all_serve(&world, 1);
    world.edit(|spec| spec.paused = false);
    while run(&world).waves.is_empty() || ordered(&world, 2) == 0 {
        world.round();
    }
    world.edit(|spec| spec.paused = true);
    world.settle(5, 300);
    assert_eq!(
        (reason(&world, READY).as_deref(), ordered(&world, 2)),
        (Some("Paused"), 1)
    );
    assert_eq!(run(&world).waves.len(), 1, "no wave begins");
    world.edit(|spec| spec.paused = false);
    world.settle(5, 300);
    all_serve(&world, 2);
}

#[test]
fn a_version_that_is_not_there_stands_still_and_in_a_run_takes_nothing_back() {
    let named = |world: &mut World, n: u32| {
        world.edit(|spec| {
            spec.follow = None;
            spec.version = Some(format!("{MODEL}-{n}"));
        });
    };
    let mut world = with_first();
    named(&mut world, 9);
    world.settle(5, 300);
    assert_eq!(reason(&world, STALLED).as_deref(), Some("VersionNotFound"));
    all_serve(&world, 1);
    let mut world = waiting();
    let before = run(&world);
    named(&mut world, 9);
    world.settle(5, 300);
    assert_eq!(reason(&world, STALLED).as_deref(), Some("VersionNotFound"));
    let on_second = world.serving().values().filter(|d| **d == Some(digest(2))).count();
    assert_eq!(
        (on_second, run(&world).number),
        (1, before.number),
        "a typing error takes nothing back"
    );
    named(&mut world, 2);
    world.settle(5, 300);
    assert_eq!(
        (world.phase(), run(&world).number),
        ("WaitingForApproval".into(), before.number)
    );
}

#[test]
fn a_selector_that_matches_no_cluster_waits_for_one() {
    let select = |world: &mut World, name: &str| {
        let labels = BTreeMap::from([("name".to_owned(), name.to_owned())]);
        world.edit(|spec| spec.targets.clusters.match_labels = Some(labels));
    };
    let mut world = ten_nodes();
    select(&mut world, "nowhere");
    world.publish(1);
    world.settle(5, 300);
    assert_eq!(
        (world.phase(), reason(&world, READY).as_deref()),
        ("Pending".into(), Some("NoClusterMatches"))
    );
    assert!(world.devices.values().all(|d| d.placement.is_none()));
    select(&mut world, "dc-1");
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    let serving = world.serving().into_iter().filter(|(_, digest)| digest.is_some());
    assert!(
        serving
            .map(|(name, _)| name)
            .eq((0..4).map(|n| format!("dc-1-arm64-{n}")))
    );
}

#[test]
fn a_version_that_no_node_can_take_is_inconclusive() {
    let mut world = with_first();
    world.fate(&digest(2), Fate::Skipped);
    world.publish(2);
    world.settle(5, 300);
    assert_eq!(
        (world.phase(), reason(&world, READY).as_deref()),
        ("Pending".into(), Some("NoEligibleNodes"))
    );
    assert!(
        run(&world).waves.iter().all(|w| w.passed_at.is_none()),
        "an empty wave never passes"
    );
    assert_eq!((world.status().nodes.failed, world.status().nodes.skipped), (0, 10));
    all_serve(&world, 1);
    world.publish(3);
    let now = run(&world);
    world.say("stop", now.number, &now.stage_hash, None);
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    all_serve(&world, 3);
}
