//! The hub's API server is killed and started again in the middle of a rollout: everything goes on by itself, and what is
//! published after it is seen.

use anyhow::Result;
use fleetune_tests::api::fleet::{Fleet, LONG_LEASE};
use fleetune_tests::api::logs;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_goes_on_after_the_hubs_api_server_was_restarted() -> Result<()> {
    logs();
    let mut fleet = Fleet::start(LONG_LEASE).await?;
    let stages = json!([
        { "name": "canary", "nodes": 1, "minSuccessTime": "3s" },
        { "name": "all", "nodes": "100%" },
    ]);
    fleet.roll_out(json!({ "stages": stages })).await?;
    fleet.publish(1, "contract").await?;
    fleet
        .until("a wave", |s| s.run.as_ref().is_some_and(|r| !r.waves.is_empty()))
        .await?;
    fleet.server.restart().await?;
    fleet.until_phase("Complete", 1).await?;
    assert_eq!(fleet.astray(1), [""; 0]);
    fleet.publish(2, "contract").await?;
    fleet.until_phase("Complete", 2).await?;
    assert_eq!(fleet.astray(2), [""; 0]);
    fleet.end().await
}
