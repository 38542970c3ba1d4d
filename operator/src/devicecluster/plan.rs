//! Decides what a registration lacks, and whether its cluster can be reached. Pure.

use crate::devicecluster::observe::{Beat, Home, Kubeconfig, Observed, SeenSecret};
use crate::devicecluster::validate::{Hub, Invalid, Validated};
use crate::runtime::Wake;
use crate::runtime::clock::between;
use fleetune_crds::conditions::{READY, get};
use fleetune_crds::{DeviceClusterStatus, names};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// How long an agent's token is asked to live.
pub const TOKEN_LIFE: Duration = Duration::from_hours(90 * 24);
/// How soon a namespace that is being deleted, or a kubeconfig that cannot be used, is looked at again.
const RETRY: Duration = Duration::from_secs(10);

/// Reason of a cluster whose heart beats.
pub const REACHABLE: &str = "Reachable";
/// Reason of a cluster whose heart stopped.
pub const UNREACHABLE: &str = "Unreachable";
/// Reason of a cluster that has never been heard of.
pub const AWAITING: &str = "AwaitingHeartbeat";

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put the finalizer on the registration.
    AddFinalizer,
    /// Make the namespace.
    CreateNamespace,
    /// Make the heartbeat Lease, which the agent may only renew.
    CreateHeartbeat,
    /// Make the agent's account.
    EnsureAccount,
    /// Bind it to the chart's ClusterRole, in this namespace.
    EnsureBinding,
    /// Ask for a token and write the kubeconfig.
    IssueToken,
    /// Delete account, binding and kubeconfig: every token of the agent is void.
    Revoke,
    /// Take the finalizer off.
    RemoveFinalizer,
}

/// Where a registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing will change without a person.
    Stalled {
        /// The reason.
        reason: &'static str,
        /// What, where and what to do.
        message: String,
    },
    /// The namespace is on its way out and must go first.
    NamespaceGoing,
    /// Never heard of since it was registered.
    Awaiting,
    /// Its heart beats.
    Reachable,
    /// Its heart stopped.
    Unreachable,
    /// Going: nothing is written about it any more.
    Deregistered,
}

/// What to do, and where that leaves the registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// Where it stands.
    pub stage: Stage,
    /// When to look again.
    pub wake: Wake,
}

/// What to do for a registration that can be carried out.
pub fn plan(want: &Validated, seen: &Observed, prev: &DeviceClusterStatus, now: Timestamp) -> Plan {
    let mut steps = Vec::new();
    if !seen.finalizer {
        steps.push(Step::AddFinalizer);
    }
    match seen.home {
        Home::Foreign => {
            let stage = Stage::Stalled {
                reason: "NamespaceTaken",
                message: format!(
                    "the namespace {} exists and was not made for this cluster: delete it, or register the cluster \
                     under another name",
                    want.namespace
                ),
            };
            return Plan {
                steps,
                stage,
                wake: Wake::Resync,
            };
        }
        Home::Going => {
            return Plan {
                steps,
                stage: Stage::NamespaceGoing,
                wake: Wake::After(RETRY),
            };
        }
        Home::Absent => steps.push(Step::CreateNamespace),
        Home::Ours => {}
    }
    if !seen.heartbeat {
        steps.push(Step::CreateHeartbeat);
    }
    let renewal = want.hub.as_ref().and_then(|hub| access(hub, seen, now, &mut steps));
    if want.hub.is_none() && (seen.account || seen.binding || seen.secret.is_some()) {
        steps.push(Step::Revoke);
    }
    let (mut stage, judge) = judge(&seen.beat, want.unreachable_after, prev);
    let mut wake = [renewal, judge].into_iter().flatten().min();
    if let Some(unusable) = unusable(want, &seen.kubeconfig) {
        stage = unusable;
        wake = Some(wake.map_or(RETRY, |wake| wake.min(RETRY)));
    }
    Plan {
        steps,
        stage,
        wake: wake.map_or(Wake::Resync, Wake::After),
    }
}

/// Why a Push cluster cannot be reached whatever its heart does.
fn unusable(want: &Validated, kubeconfig: &Kubeconfig) -> Option<Stage> {
    let secret = want.kubeconfig.as_deref().unwrap_or_default();
    match kubeconfig {
        Kubeconfig::Usable => None,
        Kubeconfig::Absent => Some(Stage::Stalled {
            reason: "KubeconfigMissing",
            message: format!(
                "the Secret {secret} does not exist: make it, with the cluster's kubeconfig in the key `kubeconfig`"
            ),
        }),
        Kubeconfig::Unusable(error) => Some(Stage::Stalled {
            reason: error.reason(),
            message: format!("Secret {secret}: {error}"),
        }),
    }
}

/// What an agent's access lacks; the time until its token is renewed.
fn access(hub: &Hub, seen: &Observed, now: Timestamp, steps: &mut Vec<Step>) -> Option<Duration> {
    if !seen.account {
        steps.push(Step::EnsureAccount);
    }
    if !seen.binding {
        steps.push(Step::EnsureBinding);
    }
    // A new account has a new uid, so tokens of the old one are void.
    let secret = seen
        .secret
        .as_ref()
        .filter(|secret| seen.account && secret.hash == hub.hash());
    let left = secret.and_then(|secret| until_renewal(secret, now));
    if left.is_none() {
        steps.push(Step::IssueToken);
    }
    left
}

/// Time until a third of the token's life is over; `None` where that is now.
fn until_renewal(secret: &SeenSecret, now: Timestamp) -> Option<Duration> {
    let (issued, expires) = (secret.issued_at?, secret.expires_at?);
    let third = between(issued, expires) / 3;
    third.checked_sub(between(issued, now)).filter(|left| !left.is_zero())
}

/// Whether the cluster can be reached, and when that may change without a beat. Only changes that this process saw
/// count, so that a new leader calls nobody unreachable before one full period of its own.
fn judge(beat: &Beat, limit: Duration, prev: &DeviceClusterStatus) -> (Stage, Option<Duration>) {
    let was = get(&prev.conditions, READY).map(|ready| ready.reason.as_str());
    match beat {
        Beat::Never => (Stage::Awaiting, None),
        Beat::Still { since } if *since >= limit => (Stage::Unreachable, None),
        Beat::Still { since } => {
            let stage = match was {
                Some(REACHABLE) => Stage::Reachable,
                Some(UNREACHABLE) => Stage::Unreachable,
                _ => Stage::Awaiting,
            };
            (stage, Some(limit.saturating_sub(*since)))
        }
        Beat::Moved { since } if *since >= limit => (Stage::Unreachable, None),
        Beat::Moved { since } => (Stage::Reachable, Some(limit.saturating_sub(*since))),
    }
}

/// A registration that cannot be carried out as it stands.
pub fn refused(invalid: &Invalid) -> Plan {
    Plan {
        steps: Vec::new(),
        stage: Stage::Stalled {
            reason: invalid.reason(),
            message: invalid.to_string(),
        },
        wake: Wake::Resync,
    }
}

/// What to do for a registration that is being deleted: the agent's access ends, and everything else stays, so that no
/// node unloads anything.
pub fn cleanup(seen: &Observed) -> Plan {
    let mut steps = Vec::new();
    if seen.finalizer {
        if matches!(seen.home, Home::Ours | Home::Going) {
            steps.push(Step::Revoke);
        }
        steps.push(Step::RemoveFinalizer);
    }
    Plan {
        steps,
        stage: Stage::Deregistered,
        wake: Wake::Resync,
    }
}

/// Names of what an agent's access consists of, for messages.
pub fn access_name(namespace: &str) -> String {
    format!("{namespace}/{}", names::EDGE_ACCOUNT)
}
