//! Builds the objects of a job. Pure, and infallible because its input is validated.

use crate::config::HubConfig;
use crate::finetunejob::plan::Facts;
use crate::finetunejob::step::{WorkerStep, version_name};
use crate::finetunejob::validate::Validated;
use fleetune_crds::common::Digest;
use fleetune_crds::{FineTuneJob, ModelVersion, ModelVersionSpec, Source, names};
use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource,
    EnvVar, KeyToPath, LocalObjectReference, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec,
    PodTemplateSpec, SeccompProfile, SecretEnvSource, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the container of a worker pod.
pub const CONTAINER: &str = "worker";
/// User and group of worker pods.
const USER: i64 = 65532;
/// Where the registry credentials of a worker pod lie.
const REGISTRY_DIR: &str = "/etc/fleetune/registry";
/// Key of the job in the ConfigMap, and name of its file.
pub const JOB_KEY: &str = "job.yaml";

/// Labels of everything that is made for a job in the step.
pub fn labels(want: &Validated, step: WorkerStep) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "fleetune-worker"),
        ("app.kubernetes.io/component", step.name()),
        ("app.kubernetes.io/part-of", "fleetune"),
        ("app.kubernetes.io/managed-by", "fleetune-operator"),
        (names::LABEL_NAMESPACE, &want.namespace),
        (names::LABEL_JOB, &want.name),
        (names::LABEL_JOB_UID, &want.uid),
        (names::LABEL_MODEL, &want.spec.model_name),
        (names::LABEL_STEP, step.name()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// The job owns what lies in its namespace; an owner in another namespace would make the garbage collector delete it.
fn owners(want: &Validated, step: WorkerStep) -> Option<Vec<OwnerReference>> {
    (step != WorkerStep::Publish).then(|| {
        vec![OwnerReference {
            api_version: FineTuneJob::api_version(&()).into_owned(),
            kind: FineTuneJob::kind(&()).into_owned(),
            name: want.name.clone(),
            uid: want.uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }]
    })
}

/// The ConfigMap that the step's pod reads its job from. Immutable: all pods of a job read the same.
pub fn config(want: &Validated, step: WorkerStep) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(step.config_name(&want.namespace, &want.name)),
            labels: Some(labels(want, step)),
            owner_references: owners(want, step),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(JOB_KEY.to_owned(), want.manifest.clone())])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// The worker Job of a step.
pub fn job(want: &Validated, step: WorkerStep, facts: &Facts, config: &HubConfig) -> Job {
    let labels = labels(want, step);
    Job {
        metadata: ObjectMeta {
            name: Some(step.job_name(&want.namespace, &want.name)),
            labels: Some(labels.clone()),
            owner_references: owners(want, step),
            // Held until the outcome is in the status: deleted by hand or by anyone, it waits to be read.
            finalizers: Some(vec![names::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            parallelism: Some(1),
            completions: Some(1),
            backoff_limit: Some(want.spec.backoff_limit),
            pod_failure_policy: Some(PodFailurePolicy {
                rules: vec![PodFailurePolicyRule {
                    action: "FailJob".into(),
                    on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                        container_name: Some(CONTAINER.into()),
                        operator: "In".into(),
                        values: vec![fleetune_crds::outcome::EXIT_BAD_INPUT],
                    }),
                    on_pod_conditions: None,
                }],
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(scrape()),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(want, step, facts, config)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn scrape() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("prometheus.io/scrape".into(), "true".into()),
        ("prometheus.io/port".into(), names::WORKER_PORT.to_string()),
        ("prometheus.io/path".into(), "/metrics".into()),
    ])
}

fn pod(want: &Validated, step: WorkerStep, facts: &Facts, config: &HubConfig) -> PodSpec {
    let mut mounts = Mounts::default();
    mounts.add("tmp", "/tmp", false, |volume| {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    });
    mounts.add("job", &folder(names::JOB_FILE), true, |volume| {
        volume.config_map = Some(ConfigMapVolumeSource {
            name: step.config_name(&want.namespace, &want.name),
            ..ConfigMapVolumeSource::default()
        });
    });
    let mut env = vec![
        variable("TMPDIR", "/tmp"),
        variable(names::ENV_INSECURE_REGISTRIES, &config.insecure_registries.join(",")),
    ];
    let push_secret = match step {
        WorkerStep::Publish => config.publish_push_secret.as_ref(),
        WorkerStep::Finetune | WorkerStep::Validate => want.spec.output.push_secret.as_ref(),
    };
    if let Some(secret) = push_secret {
        mounts.secret("registry", REGISTRY_DIR, secret, ".dockerconfigjson", "config.json");
        env.push(variable(
            names::ENV_REGISTRY_CONFIG,
            &format!("{REGISTRY_DIR}/config.json"),
        ));
    }
    if step == WorkerStep::Publish {
        mounts.secret("key", &folder(names::KEY_FILE), &want.key_secret, "key.pem", "key.pem");
    } else {
        data_claims(&mut mounts, want, step);
    }
    let worker = &want.spec.worker;
    let shared = step != WorkerStep::Publish;
    let image = worker.image.as_ref().filter(|_| step == WorkerStep::Finetune);
    let resources = worker.resources.as_ref().filter(|_| shared);
    let pull: Vec<LocalObjectReference> = config
        .image_pull_secrets
        .iter()
        .map(|name| LocalObjectReference { name: name.clone() })
        .collect();
    PodSpec {
        restart_policy: Some("Never".into()),
        // Worker pods hold no API credentials: their outcome is the termination message.
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: (!pull.is_empty()).then_some(pull),
        node_selector: (shared && !worker.node_selector.is_empty()).then(|| worker.node_selector.clone()),
        tolerations: (shared && !worker.tolerations.is_empty()).then(|| worker.tolerations.clone()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            // Claims can hold millions of files: without this each start would walk all of them.
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![Container {
            name: CONTAINER.into(),
            image: Some(image.unwrap_or(&config.worker_image).clone()),
            args: Some(arguments(step, facts)),
            env: Some(env),
            env_from: environment(want, step),
            ports: Some(vec![ContainerPort {
                name: Some("http".into()),
                container_port: i32::from(names::WORKER_PORT),
                ..ContainerPort::default()
            }]),
            resources: Some(resources.unwrap_or(&config.worker_resources).clone()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".into()]),
                    add: None,
                }),
                ..SecurityContext::default()
            }),
            termination_message_policy: Some("File".into()),
            volume_mounts: Some(mounts.mounts),
            ..Container::default()
        }],
        volumes: Some(mounts.volumes),
        ..PodSpec::default()
    }
}

/// Claims with data, which are read, and in `finetune` the one for checkpoints, which is written.
fn data_claims(mounts: &mut Mounts, want: &Validated, step: WorkerStep) {
    for (index, claim) in want.claims.iter().enumerate() {
        let path = format!("{}/{claim}", names::CLAIMS_DIR);
        mounts.add(&format!("claim-{index}"), &path, true, |volume| {
            volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: Some(true),
            });
        });
    }
    if let Some(claim) = want
        .spec
        .worker
        .volume_claim
        .as_ref()
        .filter(|_| step == WorkerStep::Finetune)
    {
        mounts.add("work", names::WORK_DIR, false, |volume| {
            volume.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: None,
            });
        });
    }
}

fn arguments(step: WorkerStep, facts: &Facts) -> Vec<String> {
    let mut args = vec![step.name().to_owned(), "-f".into(), names::JOB_FILE.into()];
    let mut flag = |name: &str, value: Option<&Digest>| {
        if let Some(value) = value {
            args.extend([name.to_owned(), value.to_string()]);
        }
    };
    match step {
        WorkerStep::Finetune => {}
        WorkerStep::Validate => {
            flag("--candidate", facts.candidate.as_ref());
            flag("--data-manifest", facts.data_manifest.as_ref());
        }
        WorkerStep::Publish => {
            flag("--candidate", facts.candidate.as_ref());
            flag("--report", facts.report.as_ref());
            args.extend(["--key".into(), names::KEY_FILE.into()]);
        }
    }
    args
}

/// `publish` never touches the data, so it never gets the credentials for them.
fn environment(want: &Validated, step: WorkerStep) -> Option<Vec<EnvFromSource>> {
    let sources: Vec<EnvFromSource> = want
        .credentials
        .iter()
        .filter(|_| step != WorkerStep::Publish)
        .map(|name| EnvFromSource {
            secret_ref: Some(SecretEnvSource {
                name: name.clone(),
                optional: None,
            }),
            ..EnvFromSource::default()
        })
        .collect();
    (!sources.is_empty()).then_some(sources)
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: Some(value.into()),
        value_from: None,
    }
}

fn folder(file: &str) -> String {
    Path::new(file)
        .parent()
        .map_or_else(|| "/".into(), |parent| parent.display().to_string())
}

/// Volumes and where they are mounted.
#[derive(Default)]
struct Mounts {
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
}

impl Mounts {
    fn add(&mut self, name: &str, path: &str, read_only: bool, source: impl FnOnce(&mut Volume)) {
        let mut volume = Volume {
            name: name.into(),
            ..Volume::default()
        };
        source(&mut volume);
        self.volumes.push(volume);
        self.mounts.push(VolumeMount {
            name: name.into(),
            mount_path: path.into(),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        });
    }

    fn secret(&mut self, name: &str, path: &str, secret: &str, key: &str, file: &str) {
        self.add(name, path, true, |volume| {
            volume.secret = Some(SecretVolumeSource {
                secret_name: Some(secret.into()),
                items: Some(vec![KeyToPath {
                    key: key.into(),
                    path: file.into(),
                    mode: None,
                }]),
                ..SecretVolumeSource::default()
            });
        });
    }
}

/// The ModelVersion of a signed candidate; `None` where a fact is missing. No owner: it outlives its job.
pub fn version(
    want: &Validated,
    facts: &Facts,
    sequence: i64,
    signature: &Digest,
    now: Timestamp,
) -> Option<ModelVersion> {
    let (candidate, summary) = (facts.candidate.clone()?, facts.summary.clone()?);
    let spec = ModelVersionSpec {
        model_name: want.spec.model_name.clone(),
        sequence,
        task: want.spec.task,
        source: Source {
            repository: want.spec.output.repository.clone(),
            digest: candidate.clone(),
            report: facts.report.clone()?,
            signature: signature.clone(),
            contract: summary.contract.clone(),
        },
        summary,
        data_manifest: facts.data_manifest.clone()?,
        base_model_sha256: want.spec.base_model.sha256.clone(),
        job: want.name.clone(),
        published_at: Time(now),
    };
    let mut version = ModelVersion::new(&version_name(&want.spec.model_name, &candidate), spec);
    version.metadata.namespace = Some(want.namespace.clone());
    version.metadata.labels = Some(BTreeMap::from([
        (names::LABEL_MODEL.to_owned(), want.spec.model_name.clone()),
        (
            "app.kubernetes.io/managed-by".to_owned(),
            "fleetune-operator".to_owned(),
        ),
    ]));
    Some(version)
}
