//! The status of a registration, from what was planned and done. Pure.

use crate::devicecluster::observe::{Home, Observed};
use crate::devicecluster::plan::{AWAITING, Plan, REACHABLE, Stage, Step, UNREACHABLE, access_name};
use crate::runtime::clock::whole_seconds;
use fleetune_crds::conditions::{self, READY, RECONCILING, STALLED, Wanted};
use fleetune_crds::{DeviceCluster, DeviceClusterStatus, Mode, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

/// The status after `plan` was applied.
pub fn status(cluster: &DeviceCluster, seen: &Observed, plan: &Plan, now: Timestamp) -> DeviceClusterStatus {
    let prev = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation.unwrap_or_default();
    let issued = plan.steps.contains(&Step::IssueToken);
    let known = seen.secret.as_ref().and_then(|secret| secret.issued_at);
    let ours = seen.home == Home::Ours || plan.steps.contains(&Step::CreateNamespace);
    let pull = cluster.spec.mode == Mode::Pull;
    DeviceClusterStatus {
        observed_generation: Some(generation),
        namespace: ours.then(|| names::cluster_namespace(&cluster.name_any())),
        token_issued_at: if issued { Some(now) } else { known }
            .filter(|_| pull && ours)
            .map(|at| Time(whole_seconds(at))),
        conditions: conditions::replace(&prev.conditions, &wanted(cluster, plan), generation, now),
    }
}

fn wanted(cluster: &DeviceCluster, plan: &Plan) -> Vec<Wanted> {
    let namespace = names::cluster_namespace(&cluster.name_any());
    let one = |status, reason: &str, message: String| vec![Wanted::new(READY, Some(status), reason, message)];
    match &plan.stage {
        Stage::Stalled { reason, message } => vec![
            Wanted::new(READY, Some(false), reason, message),
            Wanted::new(STALLED, Some(true), reason, message),
        ],
        Stage::NamespaceGoing => {
            let message = format!("the namespace {namespace} is being deleted; it is made anew once it is gone");
            vec![
                Wanted::new(READY, Some(false), "NamespaceTerminating", &message),
                Wanted::new(RECONCILING, Some(true), "NamespaceTerminating", message),
            ]
        }
        Stage::Awaiting => {
            let message = match cluster.spec.mode {
                Mode::Pull => format!(
                    "no heartbeat yet: install the chart fleetune-edge in the cluster with the kubeconfig of the \
                     Secret {}",
                    access_name(&namespace)
                ),
                Mode::Push => "no heartbeat yet: check that the kubeconfigSecret reaches the cluster".to_owned(),
            };
            one(false, AWAITING, message)
        }
        Stage::Reachable => one(true, REACHABLE, "the cluster's heart beats".to_owned()),
        Stage::Unreachable => one(
            false,
            UNREACHABLE,
            "no heartbeat for too long: check the link and the cluster's fleetune-edge; its nodes serve on".to_owned(),
        ),
        Stage::Deregistered => Vec::new(),
    }
}

/// Whether a write of `next` over `prev` is worth an event: the reason of Ready changed.
pub fn transition(prev: &DeviceClusterStatus, next: &DeviceClusterStatus) -> Option<(bool, String, String)> {
    let ready = conditions::get(&next.conditions, READY)?;
    let before = conditions::get(&prev.conditions, READY);
    if before.is_some_and(|before| before.reason == ready.reason) {
        return None;
    }
    let good = ready.status == "True" || ready.reason == AWAITING;
    Some((!good, ready.reason.clone(), ready.message.clone()))
}
