//! Whole rollouts over the model cluster, driven by the pure functions of hub and edge. What must always hold is checked
//! by the model cluster at every write; here stands what must come out.

#![allow(clippy::unwrap_used, reason = "tests only")]

use fleetune_crds::{DeletionPolicy, RunState};
use fleetune_operator::testing::fleets::{all_serve, ten_nodes, three_waves, with_first};
use fleetune_operator::testing::model_cluster::{MODEL, digest};
use fleetune_operator::testing::model_node::Fate;

#[test]
fn a_good_version_reaches_every_node_in_three_waves() {
    let world = with_first();
    all_serve(&world, 1);
    let status = world.status();
    let run = status.run.unwrap();
    assert_eq!(run.waves.iter().map(|w| w.nodes).collect::<Vec<_>>(), [1, 5, 10]);
    assert_eq!(run.state, RunState::Complete);
    assert_eq!(status.proven.unwrap().digest, digest(1));
    assert_eq!((status.nodes.active, status.nodes.proven), (10, 10));
}

#[test]
fn nothing_left_to_do_means_no_writes() {
    let mut world = with_first();
    let before = world.writes;
    for _ in 0..200 {
        world.round();
    }
    assert_eq!(world.writes, before);
}

#[test]
fn a_bad_version_stops_at_the_canary_and_touches_nobody_else() {
    let mut world = with_first();
    world.fate(&digest(2), Fate::Refused);
    let before: Vec<_> = world.devices.values().map(|d| d.edge_nodes.clone()).collect();
    world.publish(2);
    world.settle(5, 300);
    assert_eq!(world.phase(), "RolledBack");
    all_serve(&world, 1);
    let touched = &world.ordered[digest(2).as_str()];
    assert_eq!(touched.len(), 1);
    for (device, before) in world.devices.values().zip(before) {
        for (name, edge_node) in &device.edge_nodes {
            assert!(touched.contains(name) || edge_node.spec == before[name].spec, "{name}");
        }
    }
    let status = world.status();
    assert_eq!(status.aborted, [digest(2)]);
    assert_eq!(status.nodes.failed, 1);
    assert!(status.run.unwrap().message.contains("SelfTestFailed"));
    world.publish(3);
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    all_serve(&world, 3);
}

#[test]
fn with_nothing_proven_the_way_back_is_no_version() {
    let mut world = ten_nodes();
    world.fate(&digest(1), Fate::Crashes);
    world.publish(1);
    world.settle(5, 300);
    assert_eq!(world.phase(), "RolledBack");
    assert!(world.serving().values().all(Option::is_none));
}

#[test]
fn a_slow_node_is_failed_once_its_deadline_has_passed_and_a_skipped_one_is_not() {
    let mut world = with_first();
    let names: Vec<String> = world.serving().into_keys().collect();
    for device in world.devices.values_mut() {
        for (name, node) in &mut device.nodes {
            if *name == names[0] || *name == names[4] {
                node.fate(&digest(2), Fate::Skipped);
            }
            node.fate(&digest(3), Fate::Slow);
        }
    }
    world.publish(2);
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    let on_second = world.serving().values().filter(|d| **d == Some(digest(2))).count();
    assert_eq!((on_second, world.status().nodes.skipped), (8, 2));
    world.publish(3);
    world.settle(15, 300);
    assert_eq!(world.phase(), "RolledBack");
    assert!(world.status().run.unwrap().message.contains("ProgressDeadlineExceeded"));
}

#[test]
fn a_cut_cluster_goes_on_serving_the_rest_goes_on_by_quorum_and_it_catches_up() {
    let mut world = with_first();
    world.calm = false;
    world.edit(|spec| spec.strategy.quorum = "50%".parse().unwrap());
    world.devices.get_mut("dc-0").unwrap().connected = false;
    for _ in 0..40 {
        world.round();
    }
    assert_eq!(world.status().clusters.unreachable, 1);
    world.publish(2);
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    let old = world.serving().values().filter(|d| **d == Some(digest(1))).count();
    assert_eq!(old, 5, "the cut cluster serves what it had");
    assert_eq!(world.status().nodes.unreachable, 5);
    world.devices.get_mut("dc-0").unwrap().connected = true;
    world.settle(5, 300);
    all_serve(&world, 2);
    assert_eq!(world.status().nodes.unreachable, 0);
}

#[test]
fn a_late_node_gets_the_proven_version_and_none_that_is_under_way() {
    let mut world = with_first();
    world.edit(|spec| spec.strategy.stages[1].approval = true);
    world.publish(2);
    world.settle(5, 300);
    assert_eq!(world.phase(), "WaitingForApproval");
    world.join("dc-2", "late", "arm64");
    world.settle(5, 300);
    assert_eq!(world.serving()["late"], Some(digest(1)));
    let run = world.status().run.unwrap();
    world.say("go", run.number, &run.stage_hash, Some("half"));
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    all_serve(&world, 2);
}

#[test]
fn another_version_in_the_middle_of_a_run_takes_unproven_nodes_back_first() {
    let mut world = with_first();
    world.edit(|spec| {
        spec.follow = None;
        spec.version = Some(format!("{MODEL}-2"));
    });
    world.publish(2);
    world.publish(3);
    for _ in 0..4 {
        world.round();
    }
    assert_eq!(world.status().run.unwrap().version, format!("{MODEL}-2"));
    world.edit(|spec| spec.version = Some(format!("{MODEL}-3")));
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    all_serve(&world, 3);
    assert_eq!(world.status().aborted, [digest(2)]);
}

#[test]
fn deleting_retains_and_the_next_rollout_adopts_and_returns_to_what_serves() {
    let mut world = with_first();
    world.delete_rollout();
    world.settle(5, 100);
    assert!(world.rollout.is_none());
    all_serve(&world, 1);
    world.fate(&digest(2), Fate::Refused);
    world.publish(2);
    world.make_rollout("uid-2", &three_waves());
    world.settle(5, 300);
    assert_eq!(world.phase(), "RolledBack");
    assert_eq!(world.status().proven.unwrap().digest, digest(1));
    all_serve(&world, 1);
}

#[test]
fn a_new_rollout_of_the_version_that_serves_is_complete() {
    let mut world = with_first();
    world.delete_rollout();
    world.settle(5, 100);
    world.make_rollout("uid-2", &three_waves());
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    assert_eq!(world.status().run.unwrap().digest, digest(1));
    all_serve(&world, 1);
}

#[test]
fn a_model_that_was_removed_can_be_rolled_out_again_although_nodes_remember_a_higher_epoch() {
    let mut world = with_first();
    world.calm = false;
    world.edit(|spec| spec.deletion_policy = DeletionPolicy::Remove);
    world.settle(5, 300);
    world.delete_rollout();
    for _ in 0..400 {
        world.round();
    }
    assert!(world.devices.values().all(|d| d.placement.is_none()));
    world.make_rollout("uid-2", &three_waves());
    world.settle(5, 300);
    assert_eq!(world.phase(), "Complete");
    all_serve(&world, 1);
}

#[test]
fn removing_unloads_everywhere_and_goes_after_an_hour_if_a_cluster_is_away() {
    for cut in [false, true] {
        let mut world = with_first();
        world.calm = false;
        world.edit(|spec| spec.deletion_policy = DeletionPolicy::Remove);
        world.settle(5, 300);
        world.devices.get_mut("dc-1").unwrap().connected = !cut;
        world.delete_rollout();
        for _ in 0..400 {
            world.round();
        }
        assert!(world.rollout.is_none());
        let left = world.serving().values().filter(|d| d.is_some()).count();
        assert_eq!(left, if cut { 4 } else { 0 });
        if cut {
            world.devices.get_mut("dc-1").unwrap().connected = true;
            world.settle(5, 100);
            assert!(
                world.serving().values().all(Option::is_none),
                "the order was left for it"
            );
        } else {
            assert!(world.devices.values().all(|d| d.placement.is_none()));
            assert!(
                world
                    .devices
                    .values()
                    .flat_map(|d| d.edge_nodes.values())
                    .all(|n| n.spec.models.is_empty())
            );
        }
    }
}

#[test]
fn a_claimed_model_names_its_owner_and_is_left_alone() {
    let mut world = with_first();
    world.others.insert("uid-1".into(), "first".into());
    world.make_rollout("uid-2", &three_waves());
    world.publish(2);
    world.settle(5, 100);
    let stalled = world
        .status()
        .conditions
        .iter()
        .find(|c| c.type_ == "Stalled")
        .cloned()
        .unwrap();
    assert_eq!(stalled.reason, "ClaimedBy");
    assert!(stalled.message.contains("first"));
    all_serve(&world, 1);
}

#[test]
fn a_pick_that_leaves_spends_its_slot_and_its_edge_node_goes_after_an_hour() {
    let mut world = with_first();
    world.calm = false;
    world.fate(&digest(2), Fate::Slow);
    world.edit(|spec| spec.strategy.progress_deadline = "6h".parse().unwrap());
    world.publish(2);
    world.settle(5, 300);
    let canary = world.ordered[digest(2).as_str()].iter().next().unwrap().clone();
    for device in world.devices.values_mut() {
        if let Some(node) = device.nodes.get_mut(&canary) {
            node.gone = true;
        }
    }
    for _ in 0..400 {
        world.round();
    }
    assert!(world.devices.values().all(|d| !d.edge_nodes.contains_key(&canary)));
    assert_eq!(
        world.ordered[digest(2).as_str()].len(),
        1,
        "no other node is picked in its place"
    );
    assert_eq!(world.status().nodes.unreachable, 1);
}
