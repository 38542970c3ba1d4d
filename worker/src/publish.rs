//! The `publish` step: makes a candidate a version. It downloads the candidate, hashes its files, signs them together
//! with namespace, model, candidate and report, pushes the signature and gives the tags. It holds the signing key and so
//! never opens a model: everything it reads is bytes.

use crate::error::{Result, WorkerError};
use crate::registry::Registry;
use crate::sign::{Claim, Signer, hash_files};
use fleetune_crds::FineTuneJob;
use fleetune_crds::common::Digest;
use fleetune_crds::outcome::{Code, Outcome, REASON_DONE};
use std::path::Path;

/// What to publish.
#[derive(Clone, Debug)]
pub struct Order {
    /// Digest of the candidate's manifest.
    pub candidate: Digest,
    /// Digest of the report's manifest.
    pub report: Digest,
}

/// Publishes a candidate of `job`. Doing it again makes the same signature under the same digest.
pub async fn run(registry: &Registry, job: &FineTuneJob, order: &Order, key: &Path) -> Result<Outcome> {
    let signer = Signer::read(key)?;
    let repository = job.spec.output.repository.as_str();
    let (Some(namespace), model) = (job.metadata.namespace.as_deref(), job.spec.model_name.as_str()) else {
        return Err(WorkerError::bad(
            crate::error::INVALID_JOB,
            "metadata.namespace is missing: it is part of what is signed",
        ));
    };
    // Before anything is signed: the report exists, and it is about this candidate.
    registry
        .fetch_report(repository, &order.report, &order.candidate)
        .await?;
    let scratch =
        tempfile::tempdir().map_err(|error| WorkerError::io("making", Path::new("scratch folder"), &error))?;
    let dir = scratch.path().join("version");
    registry.fetch_version(repository, &order.candidate, &dir).await?;
    let files = tokio::task::spawn_blocking(move || hash_files(&dir))
        .await
        .map_err(|error| WorkerError::transient(crate::error::INTERNAL, error.to_string()))??;
    let claim = Claim {
        namespace: namespace.to_owned(),
        model_name: model.to_owned(),
        candidate: order.candidate.clone(),
        report: order.report.clone(),
    };
    let bundle = signer.sign(&claim, &files)?;
    let signature = registry.push_signature(repository, &order.candidate, &bundle).await?;
    // Tags keep all three from a registry's garbage collection. The version's own tag is the last: who sees it finds
    // the rest.
    let tag = format!("{model}-{}", order.candidate.short());
    registry
        .tag(repository, &order.report, &format!("{tag}.report"))
        .await?;
    registry.tag(repository, &signature, &format!("{tag}.sig")).await?;
    registry.tag(repository, &order.candidate, &tag).await?;
    tracing::info!(%repository, %tag, candidate = %order.candidate, %signature, "published");
    let mut outcome = Outcome::new(Code::Done, REASON_DONE, format!("published as {repository}:{tag}"));
    outcome.digest = Some(signature);
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fake::Fake;
    use crate::registry::tests::version;
    use crate::sign::{Keyring, TrustedKey, check_files};

    fn job(repository: &str) -> FineTuneJob {
        serde_yaml::from_str(&format!(
            "apiVersion: fleetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: j, namespace: shop}}
spec:
  modelName: shirts
  task: Classification
  baseModel: {{uri: 's3://m/x.onnx', sha256: {}}}
  input: {{image: {{size: 224}}}}
  dataset: {{uri: 's3://d/x.tar'}}
  output: {{repository: '{repository}'}}
",
            "0".repeat(64)
        ))
        .unwrap()
    }

    #[tokio::test]
    async fn a_published_version_verifies_with_the_public_key() {
        let fake = Fake::start().await;
        let dir = tempfile::tempdir().unwrap();
        version(&dir.path().join("v"), b"tuned");
        std::fs::write(dir.path().join("report.json"), "{}").unwrap();
        let registry = fake.client();
        let repository = fake.repository();
        let candidate = registry
            .push_candidate(&repository, &dir.path().join("v"))
            .await
            .unwrap();
        let report = registry.push_report(&repository, &candidate, dir.path()).await.unwrap();
        let key = dir.path().join("key.pem");
        let signer = crate::sign::tests::signer(3);
        std::fs::write(&key, crate::sign::tests::private_pem(&signer)).unwrap();
        let order = Order {
            candidate: candidate.clone(),
            report: report.clone(),
        };
        let job = job(&repository);
        let outcome = run(&registry, &job, &order, &key).await.unwrap();
        let again = run(&registry, &job, &order, &key).await.unwrap();
        assert_eq!(outcome, again);
        let signature = outcome.digest.unwrap();
        let bundle = registry
            .fetch_signature(&repository, &signature, &candidate)
            .await
            .unwrap()
            .bundle;
        let ring = Keyring::new(vec![
            TrustedKey::new("k", &signer.public_pem().unwrap(), vec!["shop".into()]).unwrap(),
        ]);
        let claim = Claim {
            namespace: "shop".into(),
            model_name: "shirts".into(),
            candidate: candidate.clone(),
            report,
        };
        let files = ring.verify(&bundle, &claim).unwrap();
        check_files(&dir.path().join("v"), &files).unwrap();
        let tag = format!("{repository}:shirts-{}", candidate.short());
        assert_eq!(Digest::of(&registry.resolve(&tag).await.unwrap().1), candidate);
        // A report about another candidate is not signed.
        std::fs::write(dir.path().join("v/labels.json"), "[1]").unwrap();
        let other = registry
            .push_candidate(&repository, &dir.path().join("v"))
            .await
            .unwrap();
        let order = Order {
            candidate: other,
            report: order.report,
        };
        let error = run(&registry, &job, &order, &key).await.unwrap_err();
        assert_eq!(error.reason(), "ArtifactInvalid");
    }
}
