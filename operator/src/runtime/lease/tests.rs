//! The rule of taking over, by table.

use super::*;

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
    let timing = Timing {
        duration: Duration::from_secs(15),
        renew: Duration::from_secs(5),
    };
    assert!(timing.deadline() < timing.duration);
    assert!(timing.deadline() > timing.renew);
}
