//! How a version gets into the store: manifest, signature and report first, bytes after. Everything is checked before it
//! gets a name; nothing is opened as a model.

use crate::artifact::{ArtifactError, VersionManifest};
use crate::registry::{Registry, RegistryError, Repository};
use crate::sign::{Claim, Keyring, SignError, check_files};
use crate::store::{Record, Store};
use fleetune_crds::common::Digest;
use fleetune_crds::{Budget, Source};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Why a version is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The registry, the artifact or the disk.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The signature.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The report has not what a node needs.
    #[error("report {report}: {what}")]
    Report {
        /// The report's digest.
        report: Digest,
        /// What is missing.
        what: String,
    },
}

impl From<ArtifactError> for StageError {
    fn from(error: ArtifactError) -> Self {
        Self::Registry(error.into())
    }
}

/// What follows from an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// The version is bad: never again.
    Refuse,
    /// This node cannot take it.
    Skip,
    /// Something else is in the way: later.
    Retry,
}

impl StageError {
    /// A PascalCase word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Registry(error) => error.reason(),
            Self::Sign(error) => error.reason(),
            Self::Report { .. } => "ReportInvalid",
        }
    }

    /// What follows from it. Only what the bytes themselves say is held against a version: a registry that is down,
    /// refuses the node or has lost something may do better later.
    pub fn consequence(&self) -> Consequence {
        match self.reason() {
            "UnsupportedFormat" => Consequence::Skip,
            "DigestMismatch" | "SignatureInvalid" | "ArtifactInvalid" | "ArtifactTooLarge" | "NotAVersion"
            | "ReportInvalid" => Consequence::Refuse,
            _ => Consequence::Retry,
        }
    }
}

/// Locks by layer, and the layers that are being fetched: two models with the same backbone fetch it once, and nothing
/// under way is collected.
#[derive(Default)]
pub struct Fetching {
    locks: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    wanted: Mutex<BTreeMap<Digest, usize>>,
}

/// Layers that must not be collected while this lives.
pub struct Claimed<'a> {
    fetching: &'a Fetching,
    layers: Vec<Digest>,
}

impl Fetching {
    fn claim(&self, layers: Vec<Digest>) -> Claimed<'_> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in &layers {
            *wanted.entry(layer.clone()).or_default() += 1;
        }
        Claimed { fetching: self, layers }
    }

    fn lock_of(&self, layer: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(layer.clone()).or_default().clone()
    }

    /// Runs `collect` with the layers under way; none is added meanwhile.
    pub fn collecting<T>(&self, collect: impl FnOnce(&BTreeSet<Digest>) -> T) -> T {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        collect(&wanted.keys().cloned().collect())
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        let mut wanted = self.fetching.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in &self.layers {
            if let Some(count) = wanted.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    wanted.remove(layer);
                }
            }
        }
    }
}

/// Fetches and checks what is known of a version before its bytes: manifest, signature, report. `fetched` counts bytes.
pub async fn check(
    registry: &Registry,
    keyring: &Keyring,
    key: &str,
    source: &Source,
    fetched: impl Fn(u64),
) -> Result<Record, StageError> {
    let repository: Repository = source.repository.parse()?;
    let manifest = registry.fetch_manifest(&repository, &source.digest).await?;
    fetched(manifest.len() as u64);
    let version = VersionManifest::parse(&manifest)?;
    let (namespace, model_name) = key.split_once('/').unwrap_or(("", key));
    let claim = Claim {
        namespace: namespace.to_owned(),
        model_name: model_name.to_owned(),
        candidate: source.digest.clone(),
        report: source.report.clone(),
    };
    let signature = registry
        .fetch_signature(&source.repository, &source.signature, &source.digest)
        .await?;
    fetched(signature.bytes);
    let files = keyring.verify(&signature.bundle, &claim)?;
    let report = registry
        .fetch_report(&source.repository, &source.report, &source.digest)
        .await?;
    fetched(report.to_string().len() as u64);
    let bad = |what: String| StageError::Report {
        report: source.report.clone(),
        what,
    };
    let tolerance = report["selfTest"]["tolerance"]
        .as_f64()
        .filter(|tolerance| tolerance.is_finite() && *tolerance >= 0.0)
        .ok_or_else(|| bad("selfTest.tolerance is missing".into()))?;
    let budget: Vec<Budget> = match report.get("budget") {
        None | Some(serde_json::Value::Null) => Vec::new(),
        Some(value) => serde_json::from_value(value.clone()).map_err(|error| bad(format!("budget: {error}")))?,
    };
    Ok(Record {
        source: source.clone(),
        tolerance: tolerance as f32,
        budget,
        bytes: version.bytes(),
        peak_memory: peak_memory(&report),
        files,
        tested: String::new(),
    })
}

/// What `validate` measured; 0 where the report does not say.
fn peak_memory(report: &serde_json::Value) -> u64 {
    report["cost"]["peakMemoryBytes"].as_u64().unwrap_or(0)
}

/// Downloads what is missing of a checked version and assembles it.
pub async fn stage(
    registry: &Registry,
    store: &Store,
    fetching: &Fetching,
    record: &Record,
    fetched: impl Fn(u64),
) -> Result<(), StageError> {
    let source = &record.source;
    let repository: Repository = source.repository.parse()?;
    let manifest = registry.fetch_manifest(&repository, &source.digest).await?;
    fetched(manifest.len() as u64);
    let version = VersionManifest::parse(&manifest)?;
    let layers: Vec<_> = version.layers().map(|(kind, layer)| (kind, layer.clone())).collect();
    let _claim = fetching.claim(layers.iter().map(|(_, layer)| layer.digest.clone()).collect());
    {
        let (store, digest, manifest) = (store.clone(), source.digest.clone(), manifest.clone());
        blocking(move || store.expect_version(&digest, &manifest)).await?;
    }
    for (kind, layer) in layers {
        let guard = fetching.lock_of(&layer.digest).lock_owned().await;
        if store.has_layer(&layer.digest) {
            continue;
        }
        let path = store.download_path(&layer.digest);
        let stats = registry
            .fetch_blob_file(&repository, &layer, &path, kind.limit())
            .await?;
        fetched(stats.bytes);
        let store = store.clone();
        blocking(move || {
            // Held by the thread that writes, which outlives a cancelled task.
            let _guard = guard;
            store.add_layer(kind, &layer.digest)
        })
        .await?;
    }
    let guard = fetching.lock_of(&source.digest).lock_owned().await;
    let (store, digest, files) = (store.clone(), source.digest.clone(), record.files.clone());
    blocking(move || {
        let _guard = guard;
        store.add_version(&digest, &manifest)?;
        check_files(&store.version_dir(&digest), &files).map_err(StageError::from)
    })
    .await
}

async fn blocking<E>(work: impl FnOnce() -> Result<(), E> + Send + 'static) -> Result<(), StageError>
where
    E: Into<StageError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(ArtifactError::Io {
            path: "worker thread".into(),
            source: std::io::Error::other(error),
        }
        .into()),
    }
}
