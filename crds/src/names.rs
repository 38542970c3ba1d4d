//! Names that more than one part uses: labels, annotations, finalizers, field managers, Leases, namespaces.

/// API group.
pub const GROUP: &str = "fleetune.dev";
/// API version.
pub const VERSION: &str = "v1alpha1";

/// Server-side apply field manager of the FineTuneJob controller.
pub const MANAGER_JOB: &str = "fleetune-finetunejob";
/// Server-side apply field manager of the ModelRollout controller.
pub const MANAGER_ROLLOUT: &str = "fleetune-modelrollout";
/// Server-side apply field manager of the edge controller.
pub const MANAGER_EDGE: &str = "fleetune-edge";
/// Server-side apply field manager of the DeviceCluster registration.
pub const MANAGER_CLUSTER: &str = "fleetune-devicecluster";
/// Server-side apply field manager of a node's runtime.
pub const MANAGER_NODE: &str = "fleetune-node";

/// Finalizer of this project's objects.
pub const FINALIZER: &str = "fleetune.dev/cleanup";

/// Label with the name of the FineTuneJob that an object belongs to.
pub const LABEL_JOB: &str = "fleetune.dev/job";
/// Label with the uid of the FineTuneJob that an object belongs to.
pub const LABEL_JOB_UID: &str = "fleetune.dev/job-uid";
/// Label with the step of a worker Job: `finetune`, `validate` or `publish`.
pub const LABEL_STEP: &str = "fleetune.dev/step";
/// Label with a model's name.
pub const LABEL_MODEL: &str = "fleetune.dev/model";
/// Label with the namespace of a model, on objects outside that namespace.
pub const LABEL_NAMESPACE: &str = "fleetune.dev/namespace";
/// Label with the uid of the rollout that owns a placement.
pub const LABEL_ROLLOUT_UID: &str = "fleetune.dev/rollout-uid";
/// Label with the name of a DeviceCluster, on its namespace and what lies in it.
pub const LABEL_CLUSTER: &str = "fleetune.dev/cluster";
/// Node label with the hardware class; its value defaults to the node's architecture.
pub const LABEL_CLASS: &str = "fleetune.dev/class";

/// Prefix of the hub namespace that belongs to one device cluster.
pub const CLUSTER_NAMESPACE_PREFIX: &str = "fleetune-dc-";
/// Name of the Lease by which edge controllers elect the writer, in the device cluster's operator namespace.
pub const LEASE_EDGE: &str = "fleetune-edge";
/// Name of the Lease by which hub replicas elect a leader.
pub const LEASE_HUB: &str = "fleetune-hub";
/// Name of the heartbeat Lease in the cluster's hub namespace.
pub const LEASE_HEARTBEAT: &str = "fleetune-heartbeat";
/// Name of the ServiceAccount (and of the Secret with its kubeconfig) in the cluster's hub namespace.
pub const EDGE_ACCOUNT: &str = "fleetune-edge";
/// Name of the Secret in the agent's own namespace that holds its kubeconfig for the hub; the chart's default.
pub const HUB_KUBECONFIG: &str = "fleetune-hub";
/// Name of the chart-made ClusterRole that each cluster's RoleBinding refers to.
pub const EDGE_CLUSTER_ROLE: &str = "fleetune-edge-hub";
/// Namespace of the node runtime's DaemonSet on a device cluster.
pub const NODE_NAMESPACE: &str = "fleetune-node";
/// The folder on a node that holds the runtime's store.
pub const NODE_STORE: &str = "/var/lib/fleetune";

/// Annotation on an OCI manifest with the version of the artifact's format.
pub const ANNOTATION_FORMAT: &str = "fleetune.dev/format";
/// The artifact format that this build reads and writes.
pub const ARTIFACT_FORMAT: u32 = 1;

/// Environment variable with the registries that are reached over plain HTTP, separated by commas.
pub const ENV_INSECURE_REGISTRIES: &str = "FLEETUNE_INSECURE_REGISTRIES";
/// Environment variable with the path of a docker-style `config.json` for registries.
pub const ENV_REGISTRY_CONFIG: &str = "FLEETUNE_REGISTRY_CONFIG";
/// Path of the job, as a FineTuneJob manifest, in a worker pod.
pub const JOB_FILE: &str = "/etc/fleetune/job/job.yaml";
/// Path of the signing key (PKCS#8 PEM, P-256) in the publish pod.
pub const KEY_FILE: &str = "/etc/fleetune/key/key.pem";
/// Folder in a worker pod under which each `pvc://CLAIM/PATH` is mounted, by the claim's name.
pub const CLAIMS_DIR: &str = "/var/lib/fleetune-claims";
/// Folder in a `finetune` pod on which `worker.volumeClaim` is mounted.
pub const WORK_DIR: &str = "/var/lib/fleetune-work";
/// Port on which a worker pod answers `/progress` and `/metrics`.
pub const WORKER_PORT: u16 = 8080;
/// Port on which the node runtime serves models, health and metrics.
pub const NODE_PORT: u16 = 8080;

/// The hub namespace of a device cluster.
pub fn cluster_namespace(cluster: &str) -> String {
    format!("{CLUSTER_NAMESPACE_PREFIX}{cluster}")
}

/// The key of a model in an EdgeNode: `NAMESPACE/MODEL`.
pub fn model_key(namespace: &str, model: &str) -> String {
    format!("{namespace}/{model}")
}

/// The name of the placement of a model in a cluster's namespace. Namespaces and model names are DNS labels and so hold
/// no dot, which makes the name unambiguous.
pub fn placement_name(namespace: &str, model: &str) -> String {
    format!("{namespace}.{model}")
}
