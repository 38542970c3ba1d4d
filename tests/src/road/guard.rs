//! When a lab test runs: it needs root. Without it the test says loudly that it was skipped, and with
//! `FLEETUNE_REQUIRE_LAB` set, as in `make test` and CI, it fails instead.

use super::{Road, Show};
use anyhow::{Result, ensure};
use std::io::Write;
use std::sync::Mutex;

/// The lab is one: tests of a program take turns.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test on Fleetune in the lab, one at a time.
///
/// # Errors
/// The test's own, or that the lab cannot run and is required.
pub fn on_the_road<F>(test: impl FnOnce(Road) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    // A test that failed has left its turn to the next one all the same.
    let _turn = ONE_AT_A_TIME.lock();
    if !nix::unistd::geteuid().is_root() {
        ensure!(
            std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none(),
            "this test needs root"
        );
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: this test needs root, for the lab's network namespaces and cgroups"
        );
        return Ok(());
    }
    crate::lab::install_crypto();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let road = Road::ready(&mut Show::default()).await?;
            road.clear().await?;
            test(road).await
        })
}
