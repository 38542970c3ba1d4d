//! Fleets that simulations start from.

use super::model_cluster::{MODEL, World, digest};
use serde_json::{Value, json};

/// A spec that follows the latest version in three waves: one node, half, all.
pub fn three_waves() -> Value {
    json!({
        "modelName": MODEL,
        "follow": "LatestPassing",
        "strategy": {
            "stages": [
                { "name": "canary", "nodes": 1, "minSuccessTime": "30s" },
                { "name": "half", "nodes": "50%", "minSuccessTime": "20s" },
                { "name": "all", "nodes": "100%" },
            ],
            "progressDeadline": "120s",
            "maxUnavailable": 2,
        },
    })
}

/// Ten nodes of two classes in three clusters, with nothing on them.
pub fn ten_nodes() -> World {
    World::new(
        &[vec![("amd64", 3), ("arm64", 2)], vec![("arm64", 4)], vec![("amd64", 1)]],
        &three_waves(),
    )
}

/// The same, with version 1 proven everywhere.
pub fn with_first() -> World {
    proven(ten_nodes())
}

/// Publishes version 1 and rolls it out until it is proven everywhere.
pub fn proven(mut world: World) -> World {
    world.publish(1);
    world.settle(5, 600);
    assert_eq!(world.phase(), "Complete", "{:#?}", world.status());
    world
}

/// Every node serves version `n`.
pub fn all_serve(world: &World, n: u32) {
    for (node, active) in world.serving() {
        assert_eq!(active, Some(digest(n)), "{node}");
    }
}
