//! When each device cluster was last heard. Judged by when this process saw the Lease change, never by the time that is
//! written in it: clocks differ. In memory only, so that a new leader calls nobody unreachable before one full period.

use fleetune_crds::names;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The heartbeats that this process has seen.
pub struct Heartbeats {
    unreachable_after: SignedDuration,
    seen: Mutex<HashMap<String, Beat>>,
}

#[derive(Clone)]
struct Beat {
    written: Option<MicroTime>,
    seen_at: Timestamp,
}

impl Heartbeats {
    /// None seen yet.
    pub fn new(unreachable_after: Duration) -> Self {
        Self {
            unreachable_after: SignedDuration::try_from(unreachable_after).unwrap_or(SignedDuration::MAX),
            seen: Mutex::default(),
        }
    }

    /// Takes note of a Lease. True where its cluster was unreachable until now.
    pub fn note(&self, lease: &Lease, now: Timestamp) -> bool {
        let namespace = lease.namespace().unwrap_or_default();
        let Some(cluster) = namespace.strip_prefix(names::CLUSTER_NAMESPACE_PREFIX) else {
            return false;
        };
        let written = lease.spec.as_ref().and_then(|s| s.renew_time.clone());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(cluster) {
            Some(beat) if beat.written == written => false,
            Some(beat) => {
                let was_unreachable = now >= self.until(beat.seen_at);
                *beat = Beat { written, seen_at: now };
                was_unreachable
            }
            None => {
                seen.insert(cluster.to_owned(), Beat { written, seen_at: now });
                false
            }
        }
    }

    /// Until when the cluster counts as reachable. One that was never heard has a full period from now.
    pub fn reachable_until(&self, cluster: &str, now: Timestamp) -> Timestamp {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let beat = seen.entry(cluster.to_owned()).or_insert(Beat {
            written: None,
            seen_at: now,
        });
        self.until(beat.seen_at)
    }

    fn until(&self, seen_at: Timestamp) -> Timestamp {
        seen_at.saturating_add(self.unreachable_after).unwrap_or(Timestamp::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ObjectMeta;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn lease(renewed: i64) -> Lease {
        Lease {
            metadata: ObjectMeta {
                namespace: Some("fleetune-dc-a".into()),
                ..ObjectMeta::default()
            },
            spec: Some(k8s_openapi::api::coordination::v1::LeaseSpec {
                renew_time: Some(MicroTime(at(renewed))),
                ..Default::default()
            }),
        }
    }

    #[test]
    fn only_a_change_that_we_see_counts() {
        let hearts = Heartbeats::new(Duration::from_mins(5));
        assert!(
            !hearts.note(&lease(7), at(1000)),
            "a new leader gives everyone a full period"
        );
        assert_eq!(hearts.reachable_until("a", at(1000)), at(1300));
        assert!(!hearts.note(&lease(7), at(1200)), "the same beat again is no beat");
        assert_eq!(hearts.reachable_until("a", at(1200)), at(1300));
        assert!(
            hearts.note(&lease(2), at(1400)),
            "another beat, whatever its clock says"
        );
        assert_eq!(hearts.reachable_until("a", at(1400)), at(1700));
        assert_eq!(hearts.reachable_until("never", at(50)), at(350));
        assert_eq!(hearts.reachable_until("never", at(90)), at(350));
    }
}
