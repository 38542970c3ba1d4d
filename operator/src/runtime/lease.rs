//! Leader election by a Lease. Every write carries the resourceVersion that was read, so of two candidates one gets a
//! conflict. A holder counts as gone when the Lease has not changed for its duration by this process's own monotonic
//! clock (the rule of client-go): clocks of other machines are never compared with ours.

use crate::runtime::clock::{Clock, jitter};
use crate::runtime::error::{chain, is_conflict, is_not_found};
use crate::runtime::shutdown::Shutdown;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// How a Lease is held.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Without a renewal for this long, another candidate may take it.
    pub duration: Duration,
    /// How often the holder renews it and candidates look at it.
    pub renew: Duration,
}

impl Timing {
    /// When a holder that could not renew must stop writing: well before another candidate may start.
    pub fn deadline(self) -> Duration {
        self.duration * 2 / 3
    }
}

/// A Lease as it was last seen to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its version; any write changes it.
    pub resource_version: String,
    /// Who holds it; empty where nobody does.
    pub holder: String,
    /// Duration that the holder announced.
    pub duration: Duration,
    /// Times that it changed hands.
    pub transitions: i32,
    /// When this process first saw this version.
    pub since: Instant,
}

/// What a candidate may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// There is no Lease: make it.
    Create,
    /// Nobody holds it, or the holder is gone: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Another one holds it.
    Wait,
}

/// What `me` may do about a Lease as it was last `seen` to change.
pub fn decide(me: &str, seen: Option<&Seen>, now: Instant) -> Move {
    match seen {
        None => Move::Create,
        Some(lease) if lease.holder == me => Move::Renew,
        Some(lease) if lease.holder.is_empty() || now >= lease.since + lease.duration => Move::Take,
        Some(_) => Move::Wait,
    }
}

/// A candidate for one Lease. The identity must be unique among running processes; a pod's name is.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    me: String,
    timing: Timing,
    clock: Clock,
    seen: Option<Seen>,
    /// Start of the last write that was accepted.
    held_since: Option<Instant>,
}

impl Elector {
    /// A candidate named `me` for the Lease `namespace/name`.
    pub fn new(client: Client, namespace: &str, name: &str, me: &str, timing: Timing, clock: Clock) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            me: me.to_owned(),
            timing,
            clock,
            seen: None,
            held_since: None,
        }
    }

    /// Returns true once the Lease is held, false when the switch is thrown first. Errors are logged and tried again.
    pub async fn acquire(&mut self, shutdown: &Shutdown) -> bool {
        loop {
            if shutdown.is_triggered() {
                return false;
            }
            match self.attempt(self.timing.deadline()).await {
                Ok(true) => {
                    tracing::info!(lease = self.name, identity = self.me, "became the leader");
                    return true;
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(lease = self.name, %error, "the lease cannot be claimed"),
            }
            tokio::select! {
                () = shutdown.wait() => return false,
                () = tokio::time::sleep(jitter(self.timing.renew, 0.2)) => {}
            }
        }
    }

    /// Renews the Lease; returns only when it is lost. The caller must then stop writing at once.
    pub async fn keep(&mut self) -> Lost {
        loop {
            tokio::time::sleep(jitter(self.timing.renew, 0.1)).await;
            if let Err(lost) = self.renew().await {
                return lost;
            }
        }
    }

    /// Renews once, trying again until the deadline.
    async fn renew(&mut self) -> Result<(), Lost> {
        loop {
            let Some(left) = self
                .held_since
                .and_then(|since| (since + self.timing.deadline()).checked_duration_since(Instant::now()))
                .filter(|left| !left.is_zero())
            else {
                return Err(Lost::Expired);
            };
            match self.attempt(left).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    let holder = self.seen.as_ref().map(|s| s.holder.clone()).unwrap_or_default();
                    return Err(Lost::Taken { holder });
                }
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "the lease was not renewed");
                    tokio::time::sleep(jitter(self.timing.renew / 5, 0.2).min(left)).await;
                }
            }
        }
    }

    /// Gives the Lease back, so that the next leader need not wait. Best effort.
    pub async fn vacate(&mut self) {
        if self.held_since.take().is_none() {
            return;
        }
        let Some(seen) = &self.seen else { return };
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": seen.resource_version },
            "spec": { "holderIdentity": null },
        }));
        let params = PatchParams::default();
        let write = self.api.patch(&self.name, &params, &patch);
        match tokio::time::timeout(self.timing.renew, write).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "gave the lease back"),
            Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "the lease was not given back"),
            Err(_) => tracing::warn!(lease = self.name, "the lease was not given back in time"),
        }
    }

    /// One look and, where that is allowed, one write; true when the Lease is ours after it.
    async fn attempt(&mut self, limit: Duration) -> Result<bool, ElectionError> {
        tokio::time::timeout(limit, self.look_and_write())
            .await
            .unwrap_or(Err(ElectionError::Timeout))
    }

    async fn look_and_write(&mut self) -> Result<bool, ElectionError> {
        let start = Instant::now();
        let read = match self.api.get(&self.name).await {
            Ok(lease) => Some(lease),
            Err(error) if is_not_found(&error) => None,
            Err(error) => return Err(error.into()),
        };
        self.note(read.as_ref());
        let written = match decide(&self.me, self.seen.as_ref(), Instant::now()) {
            Move::Wait => return Ok(false),
            Move::Create => self.api.create(&PostParams::default(), &self.first()).await,
            claim @ (Move::Take | Move::Renew) => {
                let patch = self.claim(claim == Move::Take);
                let params = PatchParams::default();
                self.api.patch(&self.name, &params, &Patch::Merge(patch)).await
            }
        };
        match written {
            Ok(lease) => {
                self.note(Some(&lease));
                self.held_since = Some(start);
                Ok(true)
            }
            // Another candidate wrote between our look and our write. Whether we lead is seen at the next look.
            Err(error) if is_conflict(&error) => Err(ElectionError::Raced),
            Err(error) => Err(error.into()),
        }
    }

    /// Remembers what was read, and since when it has been so.
    fn note(&mut self, lease: Option<&Lease>) {
        let Some(lease) = lease else {
            self.seen = None;
            return;
        };
        let version = lease.resource_version().unwrap_or_default();
        if self.seen.as_ref().is_some_and(|seen| seen.resource_version == version) {
            return;
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        self.seen = Some(Seen {
            resource_version: version,
            holder: spec.holder_identity.unwrap_or_default(),
            duration: seconds.map_or(self.timing.duration, Duration::from_secs),
            transitions: spec.lease_transitions.unwrap_or(0),
            since: Instant::now(),
        });
    }

    fn seconds(&self) -> i32 {
        i32::try_from(self.timing.duration.as_secs().max(1)).unwrap_or(i32::MAX)
    }

    fn first(&self) -> Lease {
        let now = MicroTime(self.clock.now());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: Some(self.seconds()),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        }
    }

    fn claim(&self, take: bool) -> serde_json::Value {
        let now = MicroTime(self.clock.now());
        let seen = self.seen.as_ref();
        let mut spec = json!({
            "holderIdentity": self.me,
            "leaseDurationSeconds": self.seconds(),
            "renewTime": now,
        });
        if take {
            spec["acquireTime"] = json!(now);
            spec["leaseTransitions"] = json!(seen.map_or(0, |s| s.transitions.saturating_add(1)));
        }
        json!({ "metadata": { "resourceVersion": seen.map(|s| s.resource_version.clone()) }, "spec": spec })
    }
}

/// Why leadership ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Another candidate holds the Lease.
    #[error("leadership lost: the lease is held by {holder:?}")]
    Taken {
        /// Who.
        holder: String,
    },
    /// The Lease could not be renewed in time.
    #[error("leadership lost: the lease could not be renewed in time")]
    Expired,
}

#[derive(Debug, thiserror::Error)]
enum ElectionError {
    #[error("{}", chain(.0))]
    Api(#[from] kube::Error),
    #[error("another candidate wrote first")]
    Raced,
    #[error("no answer in time")]
    Timeout,
}

#[cfg(test)]
mod tests;
