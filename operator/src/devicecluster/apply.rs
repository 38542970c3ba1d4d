//! Carries out the steps of a plan, in order, and stops at the first error. Every step can be done twice.

use crate::config::HubConfig;
use crate::devicecluster::observe::{self, MANAGED_BY};
use crate::devicecluster::plan::Step;
use crate::devicecluster::validate::Validated;
use crate::devicecluster::{Error, build};
use crate::runtime::Context;
use crate::runtime::error::{ignore_not_found, is_conflict};
use fleetune_crds::{DeviceCluster, DeviceClusterStatus, names};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::RoleBinding;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

/// Carries out `steps` for `cluster`, whose metadata follow. `want` is absent for a registration that is going.
pub async fn apply(
    ctx: &Context<HubConfig>,
    cluster: &mut DeviceCluster,
    want: Option<&Validated>,
    steps: &[Step],
    now: Timestamp,
) -> Result<(), Error> {
    let name = cluster.name_any();
    for step in steps {
        tracing::debug!(?step, "applying");
        match (step, want) {
            (Step::AddFinalizer, _) => set_finalizer(ctx, cluster, true).await?,
            (Step::RemoveFinalizer, _) => set_finalizer(ctx, cluster, false).await?,
            (Step::CreateNamespace, _) => {
                let api: Api<Namespace> = Api::all(ctx.client.clone());
                // A conflict means that someone was first: whose it is, the next pass sees.
                api.create(&PostParams::default(), &build::namespace(&name)).await?;
            }
            (Step::CreateHeartbeat, _) => {
                let api: Api<Lease> = within(ctx, &name);
                match api.create(&PostParams::default(), &build::heartbeat(&name)).await {
                    Err(error) if !is_conflict(&error) => return Err(error.into()),
                    _ => {}
                }
            }
            (Step::EnsureAccount, _) => ensure(ctx, &name, &build::account(&name)).await?,
            (Step::EnsureBinding, _) => ensure_binding(ctx, &name).await?,
            (Step::IssueToken, Some(want)) => issue(ctx, want, now).await?,
            (Step::IssueToken, None) => return Err(Error::Unplanned),
            (Step::Revoke, _) => {
                // The account first: from then on every token is void, whatever happens next.
                remove::<ServiceAccount>(ctx, &name).await?;
                remove::<RoleBinding>(ctx, &name).await?;
                remove::<Secret>(ctx, &name).await?;
                tracing::info!("revoked the agent's access");
            }
        }
    }
    Ok(())
}

fn within<K>(ctx: &Context<HubConfig>, cluster: &str) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(ctx.client.clone(), &names::cluster_namespace(cluster))
}

/// Applies one of our objects of the agent's access. All of them have the same name, which the right to do so is
/// limited to.
async fn ensure<K>(ctx: &Context<HubConfig>, cluster: &str, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug,
    K: serde::Serialize + serde::de::DeserializeOwned,
{
    let params = PatchParams::apply(names::MANAGER_CLUSTER).force();
    let api: Api<K> = within(ctx, cluster);
    api.patch(names::EDGE_ACCOUNT, &params, &Patch::Apply(object)).await?;
    Ok(())
}

/// A binding's role cannot be changed: one of another role is replaced.
async fn ensure_binding(ctx: &Context<HubConfig>, cluster: &str) -> Result<(), Error> {
    let want = build::binding(cluster);
    let api: Api<RoleBinding> = within(ctx, cluster);
    let found = api.get_opt(names::EDGE_ACCOUNT).await?;
    if found.is_some_and(|found| found.role_ref != want.role_ref) {
        ignore_not_found(api.delete(names::EDGE_ACCOUNT, &DeleteParams::default()).await)?;
    }
    ensure(ctx, cluster, &want).await
}

/// Asks for a token and writes it down. A crash in between costs a token that nobody has.
async fn issue(ctx: &Context<HubConfig>, want: &Validated, now: Timestamp) -> Result<(), Error> {
    let Some(hub) = &want.hub else {
        return Err(Error::Unplanned);
    };
    let accounts: Api<ServiceAccount> = within(ctx, &want.name);
    let request = build::token_request();
    let answer = accounts
        .create_token_request(names::EDGE_ACCOUNT, &PostParams::default(), &request)
        .await?;
    let granted = answer.status.ok_or(Error::NoToken)?;
    let token = build::Token {
        token: granted.token,
        issued_at: now,
        expires_at: granted.expiration_timestamp.0,
    };
    let cluster_ca = match hub.ca_bundle {
        Some(_) => None,
        None => observe::cluster_ca(ctx).await?,
    };
    let secret = build::secret(want, hub, cluster_ca.as_deref(), &token);
    ensure(ctx, &want.name, &secret).await?;
    tracing::info!("issued a token for the agent");
    Ok(())
}

/// Deletes one object of the agent's access, if this operator made it.
async fn remove<K>(ctx: &Context<HubConfig>, cluster: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug,
    K: serde::de::DeserializeOwned,
{
    let api: Api<K> = within(ctx, cluster);
    let Some(found) = api.get_opt(names::EDGE_ACCOUNT).await? else {
        return Ok(());
    };
    if found.labels().get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1) {
        ignore_not_found(api.delete(names::EDGE_ACCOUNT, &DeleteParams::default()).await)?;
    }
    Ok(())
}

async fn set_finalizer(ctx: &Context<HubConfig>, cluster: &mut DeviceCluster, on: bool) -> Result<(), Error> {
    let mut finalizers: Vec<String> = cluster.finalizers().to_vec();
    finalizers.retain(|f| f != names::FINALIZER);
    if on {
        finalizers.push(names::FINALIZER.to_owned());
    }
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": cluster.resource_version(), "finalizers": finalizers },
    }));
    let api: Api<DeviceCluster> = Api::all(ctx.client.clone());
    let result = api.patch(&cluster.name_any(), &PatchParams::default(), &patch).await;
    if on {
        cluster.metadata = result?.metadata;
    } else {
        ignore_not_found(result)?;
    }
    Ok(())
}

/// Writes a whole status, if the registration is still as it was read.
pub async fn write_status(
    ctx: &Context<HubConfig>,
    cluster: &DeviceCluster,
    status: &DeviceClusterStatus,
) -> Result<(), Error> {
    let api: Api<DeviceCluster> = Api::all(ctx.client.clone());
    let patch = json!({
        "apiVersion": DeviceCluster::api_version(&()),
        "kind": DeviceCluster::kind(&()),
        "metadata": { "name": cluster.name_any(), "resourceVersion": cluster.resource_version() },
        "status": status,
    });
    let params = PatchParams::apply(names::MANAGER_CLUSTER).force();
    api.patch_status(&cluster.name_any(), &params, &Patch::Apply(&patch))
        .await?;
    Ok(())
}
