//! Versions that are not as they should be: a good one is changed, pushed, signed and registered the way `publish` and
//! the hub would do it, so that only the one thing that a test is about is wrong.

use super::install::{Road, SHOP};
use anyhow::{Context, Result};
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelVersion, ModelVersionSpec, Source};
use fleetune_worker::registry::{Credentials, Registry};
use fleetune_worker::sign::{Claim, Signer, hash_files};
use fleetune_worker::version::{LINEAGE, Version};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::Value;
use std::path::Path;

/// Makes versions out of a good one.
pub struct Forge<'a> {
    road: &'a Road,
    registry: Registry,
}

/// What to change.
pub struct Change<'a> {
    /// Namespace of the model that the version is for.
    pub namespace: &'a str,
    /// Name of the model that the version is for.
    pub model: &'a str,
    /// Changes the version's files.
    pub files: &'a (dyn Fn(&Path) -> Result<()> + Sync),
    /// Changes the report.
    pub report: &'a (dyn Fn(&mut Value) + Sync),
    /// Signs; by default the key that the edges trust.
    pub signer: Option<Signer>,
}

impl Default for Change<'_> {
    fn default() -> Self {
        Self {
            namespace: SHOP,
            model: "forged",
            files: &|_| Ok(()),
            report: &|_| (),
            signer: None,
        }
    }
}

impl<'a> Forge<'a> {
    /// A forge for the lab's registry, reached over loopback.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub fn new(road: &'a Road) -> Result<Self> {
        let registry = Registry::new([road.lab.registry_loopback()], Credentials::default())?;
        Ok(Self { road, registry })
    }

    /// A repository of the lab's registry as this process reaches it.
    fn outside(&self, repository: &str) -> String {
        repository.replacen(&self.road.lab.registry_addr(), self.road.lab.registry_loopback(), 1)
    }

    /// The files of a version, in a new folder.
    ///
    /// # Errors
    /// When the registry does not hand them out.
    pub async fn fetch(&self, version: &ModelVersion) -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        let source = &version.spec.source;
        self.registry
            .fetch_version(
                &self.outside(&source.repository),
                &source.digest,
                &folder.path().join("version"),
            )
            .await?;
        Ok(folder)
    }

    /// A version, opened in this process: what a node's answers are compared with.
    ///
    /// # Errors
    /// When it cannot be fetched or opened.
    pub async fn open(&self, version: &ModelVersion) -> Result<(Version, tempfile::TempDir)> {
        let folder = self.fetch(version).await?;
        Ok((Version::open(&folder.path().join("version"))?, folder))
    }

    /// A version of a model of its own, equal to that of the example job but for a marker, which makes its digest its own.
    ///
    /// # Errors
    /// When the example job fails, or the registry or the API server refuses.
    pub async fn twin(&self, model: &str, marker: &str) -> Result<ModelVersion> {
        self.twin_in(SHOP, model, marker).await
    }

    /// A twin in another namespace than that of the example.
    ///
    /// # Errors
    /// As [`Forge::twin`].
    pub async fn twin_in(&self, namespace: &str, model: &str, marker: &str) -> Result<ModelVersion> {
        let shirts = self.road.job("examples/shirts.yaml", "shirts-1").await?;
        let text = serde_json::json!({ "namespace": namespace, "model": model, "marker": marker }).to_string();
        let mark = |dir: &Path| Ok(std::fs::write(dir.join(LINEAGE), &text)?);
        let change = Change {
            namespace,
            model,
            files: &mark,
            ..Change::default()
        };
        self.make(&shirts, change).await
    }

    /// Makes a version out of `good` and registers it as the latest of its model.
    ///
    /// # Errors
    /// When the registry or the API server refuses.
    pub async fn make(&self, good: &ModelVersion, change: Change<'_>) -> Result<ModelVersion> {
        let folder = self.fetch(good).await?;
        let dir = folder.path().join("version");
        (change.files)(&dir)?;
        let repository = format!("{}/models/{}", self.road.lab.registry_addr(), change.model);
        let outside = self.outside(&repository);
        let digest = self.registry.push_candidate(&outside, &dir).await?;
        let old = &good.spec.source;
        let mut report = self
            .registry
            .fetch_report(&self.outside(&old.repository), &old.report, &old.digest)
            .await?;
        (change.report)(&mut report);
        std::fs::write(folder.path().join("report.json"), serde_json::to_vec(&report)?)?;
        let report = self.registry.push_report(&outside, &digest, folder.path()).await?;
        let claim = Claim {
            namespace: change.namespace.to_owned(),
            model_name: change.model.to_owned(),
            candidate: digest.clone(),
            report: report.clone(),
        };
        let signer = match change.signer {
            Some(signer) => signer,
            None => Signer::from_pem(&self.road.keys.private).map_err(anyhow::Error::msg)?,
        };
        let bundle = signer.sign(&claim, &hash_files(&dir)?)?;
        let signature = self.registry.push_signature(&outside, &digest, &bundle).await?;
        self.register(
            good,
            (change.namespace, change.model),
            Source {
                repository,
                digest,
                report,
                signature,
                contract: old.contract.clone(),
            },
        )
        .await
    }

    async fn register(
        &self,
        good: &ModelVersion,
        (namespace, model): (&str, &str),
        source: Source,
    ) -> Result<ModelVersion> {
        let client = self.road.lab.cluster("hub")?.client().await?;
        let api = Api::<ModelVersion>::namespaced(client, namespace);
        let of_model = ListParams::default().fields(&format!("spec.modelName={model}"));
        let latest = api
            .list(&of_model)
            .await?
            .iter()
            .map(|v| v.spec.sequence)
            .max()
            .unwrap_or(0);
        let name = format!("{model}-{}", source.digest.short());
        let spec = ModelVersionSpec {
            model_name: model.to_owned(),
            sequence: latest + 1,
            source,
            job: "forge".to_owned(),
            ..good.spec.clone()
        };
        // The same bytes have the same name: a test that runs again in the same lab finds its version.
        if let Some(known) = api.get_opt(&name).await? {
            return Ok(known);
        }
        api.create(&PostParams::default(), &ModelVersion::new(&name, spec))
            .await
            .with_context(|| format!("making ModelVersion {name}"))
    }

    /// The file in which the registry keeps a blob.
    pub fn blob_file(&self, digest: &Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        self.road
            .lab
            .registry_storage()
            .join("docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    /// The registry, reached over loopback.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}
