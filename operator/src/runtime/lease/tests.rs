//! The rule of taking over by table, and two candidates over an API server in memory.

use super::*;
use crate::testing::builders::TestClock;
use crate::testing::mock_api::MockApi;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/system/leases/leader";
const TIMING: Timing = Timing {
    duration: Duration::from_secs(15),
    renew: Duration::from_secs(5),
};

fn candidate(api: &MockApi, me: &str) -> Elector {
    // Each look at the clock is a second later, so that each renewal changes the Lease.
    let clock = TestClock::default();
    let ticking = Clock::from_fn(move || {
        clock.advance(1);
        clock.now()
    });
    Elector::new(api.client("system"), "system", "leader", me, TIMING, ticking)
}

async fn attempt(elector: &mut Elector) -> Result<bool, String> {
    let limit = Duration::from_secs(5);
    elector.attempt(limit).await.map_err(|error| error.to_string())
}

#[test]
fn a_lease_is_taken_only_when_it_stood_still() {
    let t0 = Instant::now();
    let seen = |holder: &str| Seen {
        resource_version: "1".into(),
        holder: holder.into(),
        duration: Duration::from_secs(15),
        transitions: 0,
        since: t0,
    };
    let after = |secs| t0 + Duration::from_secs(secs);
    assert_eq!(decide("a", None, t0), Move::Create);
    assert_eq!(decide("a", Some(&seen("a")), after(100)), Move::Renew);
    assert_eq!(decide("a", Some(&seen("")), t0), Move::Take);
    assert_eq!(decide("a", Some(&seen("b")), after(14)), Move::Wait);
    assert_eq!(decide("a", Some(&seen("b")), after(15)), Move::Take);
}

#[test]
fn a_holder_stops_before_another_may_start() {
    assert!(TIMING.deadline() < TIMING.duration);
    assert!(TIMING.deadline() > TIMING.renew);
}

#[tokio::test(start_paused = true)]
async fn of_two_candidates_one_leads_until_it_stands_still() {
    let api = MockApi::default();
    let (mut a, mut b) = (candidate(&api, "a"), candidate(&api, "b"));
    assert_eq!(attempt(&mut a).await, Ok(true));
    for _ in 0..10 {
        assert_eq!(attempt(&mut b).await, Ok(false));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(attempt(&mut a).await, Ok(true), "renewed");
    }
    assert_eq!(attempt(&mut b).await, Ok(false), "b counts from what it saw change");
    tokio::time::advance(Duration::from_secs(14)).await;
    assert_eq!(attempt(&mut b).await, Ok(false));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(attempt(&mut b).await, Ok(true));
    assert_eq!(api.get(LEASE).unwrap()["spec"]["leaseTransitions"], 1);
    assert_eq!(attempt(&mut a).await, Ok(false), "a learns that it lost");
}

#[tokio::test(start_paused = true)]
async fn a_write_on_what_has_changed_is_refused() {
    let api = MockApi::default();
    let mut a = candidate(&api, "a");
    assert_eq!(attempt(&mut a).await, Ok(true));
    // b takes the Lease between a's look and a's write: the answer to a's write is a conflict.
    let stale = a.claim(false);
    api.change(LEASE, |lease| lease["spec"]["holderIdentity"] = "b".into());
    let written = a
        .api
        .patch("leader", &PatchParams::default(), &Patch::Merge(stale))
        .await;
    assert!(is_conflict(&written.unwrap_err()));
    assert_eq!(a.renew().await, Err(Lost::Taken { holder: "b".into() }));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_stops_in_time() {
    let api = MockApi::default();
    let mut a = candidate(&api, "a");
    assert_eq!(attempt(&mut a).await, Ok(true));
    let start = Instant::now();
    api.crash_after(1);
    assert_eq!(a.keep().await, Lost::Expired);
    let took = start.elapsed();
    assert!(took <= TIMING.deadline() + Duration::from_secs(2), "{took:?}");
    assert!(took < TIMING.duration);
}

#[tokio::test(start_paused = true)]
async fn a_lease_given_back_is_free_at_once() {
    let api = MockApi::default();
    let (mut a, mut b) = (candidate(&api, "a"), candidate(&api, "b"));
    assert_eq!(attempt(&mut a).await, Ok(true));
    assert_eq!(attempt(&mut b).await, Ok(false));
    a.vacate().await;
    assert_eq!(attempt(&mut b).await, Ok(true));
    a.vacate().await;
    assert_eq!(
        api.get(LEASE).unwrap()["spec"]["holderIdentity"],
        "b",
        "only its own is given back"
    );
}
