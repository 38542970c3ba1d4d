//! Reads what exists of a registration: namespace, account, binding, kubeconfig, and the heartbeat. The first four
//! change rarely and are read again only after a change or a while; the heartbeat comes from a watch.

use crate::config::HubConfig;
use crate::devicecluster::State;
use crate::edge::kubeconfig::{self, KubeconfigError};
use crate::runtime::Context;
use fleetune_crds::{DeviceCluster, Mode, names};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Annotation of the kubeconfig's Secret: hash of the hub's address that it was written with.
pub const ANNOTATION_HASH: &str = "fleetune.dev/hub-hash";
/// Annotation of the kubeconfig's Secret: when its token was made.
pub const ANNOTATION_ISSUED: &str = "fleetune.dev/token-issued-at";
/// Annotation of the kubeconfig's Secret: when its token ends.
pub const ANNOTATION_EXPIRES: &str = "fleetune.dev/token-expires-at";
/// Label value of what this operator made.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "fleetune-operator");

/// What exists of a registration.
#[allow(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Whether it carries the finalizer.
    pub finalizer: bool,
    /// Its namespace.
    pub home: Home,
    /// Whether the heartbeat Lease exists.
    pub heartbeat: bool,
    /// Whether the agent's account exists.
    pub account: bool,
    /// Whether it is bound to the chart's ClusterRole.
    pub binding: bool,
    /// The kubeconfig's Secret.
    pub secret: Option<SeenSecret>,
    /// Of Push: the kubeconfig that reaches the cluster.
    pub kubeconfig: Kubeconfig,
    /// The heartbeat.
    pub beat: Beat,
}

/// The kubeconfig of a Push cluster, in the operator's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kubeconfig {
    /// The cluster needs none, or it can be used.
    #[default]
    Usable,
    /// There is no such Secret.
    Absent,
    /// It cannot be used.
    Unusable(KubeconfigError),
}

/// The namespace of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// There is none.
    #[default]
    Absent,
    /// This operator made it for this cluster.
    Ours,
    /// It is being deleted.
    Going,
    /// Someone else made it.
    Foreign,
}

/// The kubeconfig's Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenSecret {
    /// Hash of the hub's address that it was written with.
    pub hash: String,
    /// When its token was made.
    pub issued_at: Option<Timestamp>,
    /// When its token ends.
    pub expires_at: Option<Timestamp>,
}

/// The heartbeat, by this process's own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beat {
    /// Never renewed.
    #[default]
    Never,
    /// As it was when this process first saw it.
    Still {
        /// Time since then.
        since: Duration,
    },
    /// This process saw it renewed.
    Moved {
        /// Time since the last renewal that it saw.
        since: Duration,
    },
}

/// The heartbeats of all clusters, by this process's own monotonic clock: clocks at the edge are never trusted.
#[derive(Default)]
pub struct Beats(Mutex<HashMap<String, Seen>>);

struct Seen {
    renewed: String,
    since: Instant,
    moved: bool,
}

impl Beats {
    /// Notes the renewal time of a cluster's Lease and says how old the last change is.
    pub fn note(&self, cluster: &str, renewed: Option<&str>, now: Instant) -> Beat {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(renewed) = renewed else {
            // The next beat is then a change that we saw.
            seen.insert(
                cluster.to_owned(),
                Seen {
                    renewed: String::new(),
                    since: now,
                    moved: true,
                },
            );
            return Beat::Never;
        };
        let entry = seen.entry(cluster.to_owned()).or_insert_with(|| Seen {
            renewed: renewed.to_owned(),
            since: now,
            moved: false,
        });
        if entry.renewed != renewed {
            *entry = Seen {
                renewed: renewed.to_owned(),
                since: now,
                moved: true,
            };
        }
        let since = now.duration_since(entry.since);
        if entry.moved {
            Beat::Moved { since }
        } else {
            Beat::Still { since }
        }
    }

    /// Forgets a cluster that is no longer registered.
    pub fn forget(&self, cluster: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
    }
}

/// The renewal time of a heartbeat Lease, as text; only whether it changes matters.
pub fn renewed(lease: &Lease) -> Option<String> {
    let time = lease.spec.as_ref()?.renew_time.as_ref()?;
    Some(time.0.to_string())
}

/// Everything that `plan` needs to see.
pub async fn observe(
    ctx: &Context<HubConfig>,
    state: &State,
    cluster: &DeviceCluster,
) -> Result<Observed, kube::Error> {
    let name = cluster.name_any();
    let lease = (state.heartbeat)(&name).await;
    // What was complete is so no longer once its Lease is gone.
    let mut seen = match state.remembered(cluster).filter(|_| lease.is_some()) {
        Some(seen) => seen,
        None => observe_access(ctx, &name).await?,
    };
    seen.kubeconfig = observe_kubeconfig(ctx, cluster).await?;
    seen.finalizer = cluster.finalizers().iter().any(|f| f == names::FINALIZER);
    let renewed = lease.as_deref().and_then(renewed);
    seen.beat = state.beats.note(&name, renewed.as_deref(), Instant::now());
    Ok(seen)
}

async fn observe_access(ctx: &Context<HubConfig>, cluster: &str) -> Result<Observed, kube::Error> {
    let namespace = names::cluster_namespace(cluster);
    let client = || ctx.client.clone();
    let mut seen = Observed::default();
    let Some(found) = Api::<Namespace>::all(client()).get_opt(&namespace).await? else {
        return Ok(seen);
    };
    seen.home = home(&found, cluster);
    if seen.home != Home::Ours {
        return Ok(seen);
    }
    let account = names::EDGE_ACCOUNT;
    let leases: Api<Lease> = Api::namespaced(client(), &namespace);
    seen.heartbeat = leases.get_opt(names::LEASE_HEARTBEAT).await?.is_some();
    let accounts: Api<ServiceAccount> = Api::namespaced(client(), &namespace);
    seen.account = accounts
        .get_opt(account)
        .await?
        .is_some_and(|a| a.metadata.deletion_timestamp.is_none());
    let bindings: Api<RoleBinding> = Api::namespaced(client(), &namespace);
    let expected = crate::devicecluster::build::binding(cluster);
    seen.binding = bindings
        .get_opt(account)
        .await?
        .is_some_and(|found| found.role_ref == expected.role_ref && found.subjects == expected.subjects);
    let secrets: Api<Secret> = Api::namespaced(client(), &namespace);
    seen.secret = secrets.get_opt(account).await?.as_ref().map(see_secret);
    Ok(seen)
}

/// Read at each pass: people put it there and change it, and nothing watches Secrets.
async fn observe_kubeconfig(ctx: &Context<HubConfig>, cluster: &DeviceCluster) -> Result<Kubeconfig, kube::Error> {
    let push = cluster.spec.mode == Mode::Push;
    let Some(name) = cluster.spec.kubeconfig_secret.as_ref().filter(|_| push) else {
        return Ok(Kubeconfig::Usable);
    };
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &ctx.namespace);
    let Some(secret) = secrets.get_opt(name).await? else {
        return Ok(Kubeconfig::Absent);
    };
    let checked = match kubeconfig::of_secret(&secret) {
        Ok(text) => kubeconfig::check(text).await,
        Err(error) => Err(error),
    };
    Ok(checked.map_or_else(Kubeconfig::Unusable, |()| Kubeconfig::Usable))
}

/// Certificates of the hub's own cluster, which Kubernetes puts into every namespace.
pub async fn cluster_ca(ctx: &Context<HubConfig>) -> Result<Option<String>, kube::Error> {
    let roots: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &ctx.namespace);
    let found = roots.get_opt("kube-root-ca.crt").await?;
    Ok(found.and_then(|map| map.data?.remove("ca.crt")))
}

/// Whose a namespace is.
pub fn home(namespace: &Namespace, cluster: &str) -> Home {
    let labels = namespace.labels();
    let ours = labels.get(names::LABEL_CLUSTER).map(String::as_str) == Some(cluster)
        && labels.get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1);
    match (ours, namespace.metadata.deletion_timestamp.is_some()) {
        (false, _) => Home::Foreign,
        (true, true) => Home::Going,
        (true, false) => Home::Ours,
    }
}

fn see_secret(secret: &Secret) -> SeenSecret {
    let text = |key: &str| secret.annotations().get(key).cloned();
    let time = |key: &str| text(key)?.parse().ok();
    SeenSecret {
        hash: text(ANNOTATION_HASH).unwrap_or_default(),
        issued_at: time(ANNOTATION_ISSUED),
        expires_at: time(ANNOTATION_EXPIRES),
    }
}
