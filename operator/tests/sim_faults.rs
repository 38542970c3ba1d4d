//! Rollouts over the model cluster under faults: controllers that die between any two writes, stale views, cut clusters,
//! dark, cordoned, slow, crashing, full and late nodes. The model cluster checks at every write what must always hold.

#![allow(clippy::unwrap_used, reason = "tests only")]

use fleetune_crds::common::Digest;
use fleetune_operator::testing::fleets::proven;
use fleetune_operator::testing::model_cluster::{MODEL, ROUND, World, digest};
use fleetune_operator::testing::model_node::{Fate, ModelNode};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

fn spec(max_failures: i32, max_unavailable: &serde_json::Value, quorum: &str) -> serde_json::Value {
    json!({
        "modelName": MODEL,
        "follow": "LatestPassing",
        "strategy": {
            "stages": [
                { "name": "canary", "nodes": 1, "minSuccessTime": "20s" },
                { "name": "some", "nodes": "30%", "minSuccessTime": "10s" },
                { "name": "all", "nodes": "100%" },
            ],
            "progressDeadline": "90s",
            "maxUnavailable": max_unavailable,
            "maxFailures": max_failures,
            "quorum": quorum,
        },
    })
}

/// What must be the same at the end, whatever happened on the way. Epochs and times may differ.
fn outcome(world: &World) -> (String, Option<Digest>, Vec<i32>, BTreeMap<String, Option<Digest>>) {
    let status = world.status();
    let waves = status
        .run
        .map(|r| r.waves.iter().map(|w| w.nodes).collect())
        .unwrap_or_default();
    (
        status.phase.unwrap_or_default(),
        status.proven.map(|p| p.digest),
        waves,
        world.serving(),
    )
}

fn small(bad: bool) -> World {
    let fleet = [vec![("amd64", 2), ("arm64", 1)], vec![("arm64", 2)]];
    let mut world = proven(World::new(&fleet, &spec(0, &json!(1), "90%")));
    if bad {
        world.fate(&digest(2), Fate::Crashes);
    }
    world.publish(2);
    world
}

/// Kills whoever writes after the n-th write, for every n; everyone starts again the next round.
fn kill_after_each_write(start: &World) {
    let mut undisturbed = start.clone();
    let before = undisturbed.writes;
    undisturbed.settle(3, 300);
    let all = undisturbed.writes - before;
    assert!(all > 10, "{all} writes");
    let expected = outcome(&undisturbed);
    for n in 0..all {
        let mut world = start.clone();
        world.until_death = Some(n);
        while world.until_death.is_some() {
            world.round();
            if world.until_death == Some(0) {
                // One more round in which nobody can write: the death falls into it.
                world.round();
                world.until_death = None;
            }
        }
        world.settle(3, 300);
        assert_eq!(outcome(&world), expected, "killed after write {n}");
    }
}

#[test]
fn a_death_after_any_write_of_a_good_rollout_changes_nothing_but_time() {
    kill_after_each_write(&small(false));
}

#[test]
fn a_death_after_any_write_of_a_bad_rollout_changes_nothing_but_time() {
    kill_after_each_write(&small(true));
}

#[test]
fn a_death_after_any_write_of_the_first_rollout_changes_nothing_but_time() {
    let fleet = [vec![("amd64", 2)], vec![("arm64", 2)]];
    let mut world = World::new(&fleet, &spec(0, &json!("50%"), "90%"));
    world.publish(1);
    kill_after_each_write(&world);
}

#[derive(Clone, Debug)]
enum Fault {
    HubDies(usize),
    EdgeDies(usize, usize),
    HubIsStale,
    EdgeIsStale(usize),
    Cut(usize, usize),
    Dark(usize, usize),
    Cordon(usize, usize),
    NodeLeaves(usize),
    NodeJoins(usize),
}

fn faults(network: bool) -> impl Strategy<Value = Vec<(usize, Fault)>> {
    let mut all = vec![
        (0..6usize).prop_map(Fault::HubDies).boxed(),
        ((0..3usize), (0..4usize))
            .prop_map(|(d, n)| Fault::EdgeDies(d, n))
            .boxed(),
        Just(Fault::HubIsStale).boxed(),
        (0..3usize).prop_map(Fault::EdgeIsStale).boxed(),
        (0..40usize).prop_map(Fault::NodeJoins).boxed(),
    ];
    if network {
        all.extend([
            ((0..3usize), (1..60usize)).prop_map(|(d, n)| Fault::Cut(d, n)).boxed(),
            ((0..40usize), (1..40usize))
                .prop_map(|(d, n)| Fault::Dark(d, n))
                .boxed(),
            ((0..40usize), (1..20usize))
                .prop_map(|(d, n)| Fault::Cordon(d, n))
                .boxed(),
            (0..40usize).prop_map(Fault::NodeLeaves).boxed(),
        ]);
    }
    prop::collection::vec((0..80usize, prop::strategy::Union::new(all)), 0..12)
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        12 => Just(Fate::Good),
        1 => Just(Fate::Refused),
        1 => Just(Fate::Crashes),
        1 => Just(Fate::Slow),
        1 => Just(Fate::Skipped),
    ]
}

/// The i-th node of all.
fn node(world: &mut World, i: usize) -> &mut ModelNode {
    let mut all: Vec<&mut ModelNode> = world.devices.values_mut().flat_map(|d| d.nodes.values_mut()).collect();
    let n = i % all.len();
    all.swap_remove(n)
}

fn set_connected(world: &mut World, i: usize, connected: bool) {
    let n = i % world.devices.len();
    world.devices.values_mut().nth(n).unwrap().connected = connected;
}

fn begin(world: &mut World, fault: &Fault) {
    let now = world.now;
    match fault {
        Fault::Dark(i, _) => node(world, *i).set_dark(true, now),
        Fault::Cordon(i, _) => node(world, *i).cordoned = true,
        Fault::NodeLeaves(i) => node(world, *i).gone = true,
        Fault::NodeJoins(i) => {
            let cluster = format!("dc-{}", i % world.devices.len());
            let name = format!("{cluster}-late-{}", world.serving().len());
            world.join(&cluster, &name, if i % 2 == 0 { "amd64" } else { "arm64" });
        }
        Fault::Cut(i, _) => set_connected(world, *i, false),
        _ => {}
    }
}

fn end(world: &mut World, fault: &Fault) {
    let now = world.now;
    match fault {
        Fault::Dark(i, _) => node(world, *i).set_dark(false, now),
        Fault::Cordon(i, _) => node(world, *i).cordoned = false,
        Fault::Cut(i, _) => set_connected(world, *i, true),
        _ => {}
    }
}

/// Rounds that a fault lasts.
fn length(fault: &Fault) -> usize {
    match fault {
        Fault::Dark(_, n) | Fault::Cordon(_, n) | Fault::Cut(_, n) => *n,
        _ => 0,
    }
}

/// Runs with faults for a while, then lets everything heal.
fn drive(world: &mut World, faults: &[(usize, Fault)]) {
    let devices: Vec<String> = world.devices.keys().cloned().collect();
    for round in 0..160 {
        world.now += ROUND;
        for (_, fault) in faults.iter().filter(|(at, f)| at + length(f) == round) {
            end(world, fault);
        }
        let due: Vec<&Fault> = faults.iter().filter(|(at, _)| *at == round).map(|(_, f)| f).collect();
        for fault in &due {
            begin(world, fault);
        }
        world.until_death = due.iter().find_map(|f| match f {
            Fault::HubDies(n) => Some(*n),
            _ => None,
        });
        world.hub(due.iter().any(|f| matches!(f, Fault::HubIsStale)));
        for (i, name) in devices.iter().enumerate() {
            let here = |d: &usize| d % devices.len() == i;
            world.until_death = due.iter().find_map(|f| match f {
                Fault::EdgeDies(d, n) if here(d) => Some(*n),
                _ => None,
            });
            world.edge(name, due.iter().any(|f| matches!(f, Fault::EdgeIsStale(d) if here(d))));
            world.until_death = None;
            world.runtimes(name);
        }
    }
    let now = world.now;
    for device in world.devices.values_mut() {
        device.connected = true;
        for node in device.nodes.values_mut() {
            node.set_dark(false, now);
            node.cordoned = false;
        }
    }
}

fn fleet(sizes: &[(u32, u32)], max_failures: i32, max_unavailable: &serde_json::Value, quorum: &str) -> World {
    let clusters: Vec<Vec<(&str, u32)>> = sizes.iter().map(|(a, b)| vec![("amd64", *a), ("arm64", *b)]).collect();
    proven(World::new(&clusters, &spec(max_failures, max_unavailable, quorum)))
}

/// What must have come out once everything has healed and nothing is written any more.
fn check_end(world: &World) {
    let phase = world.phase();
    let able = |n: &ModelNode| !n.gone && n.fates.get(digest(2).as_str()) != Some(&Fate::Skipped);
    let nobody = !world.devices.values().flat_map(|d| d.nodes.values()).any(able);
    if nobody && phase == "Pending" {
        return; // An empty wave is inconclusive: it waits.
    }
    let left = world.devices.values().flat_map(|d| d.nodes.values()).any(|n| n.gone);
    let conditions = world.status().conditions;
    if left && conditions.iter().any(|c| c.reason == "QuorumNotReached") {
        return; // Too many picks left for good: inconclusive too, until a person aborts.
    }
    assert!(
        phase == "Complete" || phase == "RolledBack",
        "{phase}: {:#?}",
        world.status()
    );
    let run = world.status().run.unwrap();
    for (name, node) in world.devices.values().flat_map(|d| &d.nodes) {
        if node.gone {
            continue;
        }
        let fate = node.fates.get(digest(2).as_str()).copied().unwrap_or(Fate::Good);
        let expected = match (phase.as_str(), fate) {
            ("Complete", Fate::Good) => digest(2),
            _ => digest(1),
        };
        assert_eq!(
            node.state.active.as_ref(),
            Some(&expected),
            "{name} ({fate:?}) after {phase}"
        );
        // Nobody opens a version that was not ordered there; nobody outside the waves was ordered it.
        if node.opened.contains(digest(2).as_str()) {
            assert!(world.ordered[digest(2).as_str()].contains(name));
        }
    }
    if phase == "RolledBack" && run.waves.len() < 3 {
        let skipped = |n: &str| {
            let mut nodes = world.devices.values().filter_map(|d| d.nodes.get(n));
            nodes.any(|n| n.fates.get(digest(2).as_str()) == Some(&Fate::Skipped))
        };
        let ordered = world.ordered.get(digest(2).as_str());
        let touched = ordered.map_or(0, |all| all.iter().filter(|n| !skipped(n)).count());
        let most = run.waves.last().map_or(0, |w| w.nodes);
        assert!(
            touched <= usize::try_from(most).unwrap(),
            "{touched} nodes touched in a wave of {most}"
        );
    }
}

fn case(
    sizes: &[(u32, u32)],
    fates: &[Fate],
    faults: &[(usize, Fault)],
    max_failures: i32,
    max_unavailable: &serde_json::Value,
    quorum: &str,
    calm: bool,
) {
    let mut world = fleet(sizes, max_failures, max_unavailable, quorum);
    world.calm = calm;
    let mut fates = fates.iter().cycle();
    for node in world.devices.values_mut().flat_map(|d| d.nodes.values_mut()) {
        node.fate(&digest(2), *fates.next().unwrap());
    }
    world.publish(2);
    drive(&mut world, faults);
    // Longer than the hour after which the EdgeNode of a Node that left is removed.
    world.settle(400, 4000);
    check_end(&world);
    let before = world.writes;
    for _ in 0..100 {
        world.round();
    }
    assert_eq!(world.writes, before, "nothing left to do means no writes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// Deaths, stale views and nodes that come late alone: the limit over all clusters holds at every write.
    #[test]
    fn controllers_die_and_look_at_the_past(
        sizes in prop::collection::vec((0..4u32, 1..4u32), 1..4),
        fates in prop::collection::vec(fate(), 1..12),
        faults in faults(false),
        max_failures in 0..3i32,
        max_unavailable in prop_oneof![Just(json!(1)), Just(json!(3)), Just(json!("25%")), Just(json!("100%"))],
    ) {
        // With a quorum of 1 % the failures that are allowed do not keep a wave from passing.
        case(&sizes, &fates, &faults, max_failures, &max_unavailable, "1%", true);
    }

    /// Everything at once.
    #[test]
    fn everything_breaks_at_once(
        sizes in prop::collection::vec((0..4u32, 1..4u32), 1..4),
        fates in prop::collection::vec(fate(), 1..12),
        faults in faults(true),
        max_failures in 0..3i32,
        max_unavailable in prop_oneof![Just(json!(1)), Just(json!("25%"))],
    ) {
        case(&sizes, &fates, &faults, max_failures, &max_unavailable, "1%", false);
    }
}
