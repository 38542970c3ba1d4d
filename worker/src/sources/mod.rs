//! Where a job's files come from: `s3://`, `http(s)://`, `pvc://CLAIM/PATH`, `file://` (local runs only) and, for base
//! models, `oci://`. Each brings a file or a folder onto this machine within a bound on bytes, retrying what can pass.
//! It looks into no file.

mod http;
mod s3;

use crate::error::{Class, INVALID_ADDRESS, NOT_FOUND, Result, UNSAFE_PATH, WorkerError};
use crate::registry::{Registry, RegistryError};
use fleetune_crds::names;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How often a transfer is tried in all.
const ATTEMPTS: u32 = 5;
/// Pause after the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 500 });

/// What may be read and how much.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes in all.
    pub max_bytes: u64,
    /// Reason of the error where there are more.
    pub too_large: &'static str,
    /// Whether `file://` is allowed.
    pub local: bool,
}

impl Limits {
    fn exceeded(&self, what: &str) -> WorkerError {
        WorkerError::bad(
            self.too_large,
            format!(
                "{what} has more than the {} bytes that are allowed: use less, or raise the bound",
                self.max_bytes
            ),
        )
    }
}

/// Brings what lies at `address` onto this machine: the path of a file, or of a folder where the address is a prefix.
/// What has to be copied is put under `scratch`.
pub async fn fetch(address: &str, scratch: &Path, limits: &Limits) -> Result<PathBuf> {
    let Some((scheme, rest)) = address.split_once("://") else {
        return Err(WorkerError::bad(
            INVALID_ADDRESS,
            format!("{address:?} is no address: write s3://, http(s)://, pvc://CLAIM/PATH or file://"),
        ));
    };
    match scheme {
        "s3" => s3::fetch(rest, scratch, limits).await,
        "http" | "https" => http::fetch(address, scratch, limits).await,
        "pvc" => claim(rest, Path::new(names::CLAIMS_DIR)),
        "oci" => layer(&Registry::from_env()?, rest, scratch, limits).await,
        "file" if limits.local => existing(Path::new(rest)),
        "file" => Err(WorkerError::bad(
            INVALID_ADDRESS,
            format!("{address}: file:// works in local runs only; in a cluster use s3://, http(s):// or pvc://"),
        )),
        _ => Err(WorkerError::bad(
            INVALID_ADDRESS,
            format!("{address}: the scheme {scheme:?} is not supported here"),
        )),
    }
}

/// The first layer of the artifact that `reference` names, as a file.
async fn layer(registry: &Registry, reference: &str, scratch: &Path, limits: &Limits) -> Result<PathBuf> {
    let target = scratch.join("layer");
    match registry.fetch_first_layer(reference, &target, limits.max_bytes).await {
        Ok(_) => Ok(target),
        Err(RegistryError::TooLarge { .. }) => Err(limits.exceeded(&format!("oci://{reference}"))),
        Err(error) => Err(error.into()),
    }
}

/// The path of `CLAIM/PATH` under the folder where claims are mounted.
fn claim(rest: &str, root: &Path) -> Result<PathBuf> {
    let (name, inner) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() || name == "." || name == ".." {
        return Err(WorkerError::bad(INVALID_ADDRESS, format!("pvc://{rest}: name a claim")));
    }
    let mount = root.join(name);
    let inner = if inner.is_empty() {
        PathBuf::new()
    } else {
        safe_path(inner)?
    };
    let path = existing(&mount.join(inner))?;
    // A link inside a claim may lead out of it.
    let real = path.canonicalize().map_err(|e| WorkerError::io("reading", &path, &e))?;
    let home = mount
        .canonicalize()
        .map_err(|e| WorkerError::io("reading", &mount, &e))?;
    if real.starts_with(&home) {
        Ok(real)
    } else {
        Err(WorkerError::bad(
            UNSAFE_PATH,
            format!("pvc://{rest} is a link that leads out of the claim"),
        ))
    }
}

fn existing(path: &Path) -> Result<PathBuf> {
    match path.try_exists() {
        Ok(true) => Ok(path.to_owned()),
        Ok(false) => Err(WorkerError::bad(
            NOT_FOUND,
            format!("{} does not exist: check the address", path.display()),
        )),
        Err(e) => Err(WorkerError::io("reading", path, &e)),
    }
}

/// A relative path that stays inside: names only, no `..`, no root, no drive.
pub fn safe_path(name: &str) -> Result<PathBuf> {
    let bad = || {
        WorkerError::bad(
            UNSAFE_PATH,
            format!("the path {name:?} leads out of its folder: only relative paths without .. are read"),
        )
    };
    if name.contains('\0') || name.contains('\\') {
        return Err(bad());
    }
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return Err(bad()),
        }
    }
    if path.as_os_str().is_empty() {
        Err(bad())
    } else {
        Ok(path)
    }
}

/// Runs `attempt` until it succeeds, fails for good, or has failed `ATTEMPTS` times.
pub async fn retried<T, F, Fut>(what: &str, mut attempt: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut pause = FIRST_PAUSE;
    for tried in 1.. {
        match attempt().await {
            Err(e) if e.class() == Class::Transient && tried < ATTEMPTS => {
                tracing::warn!(what, tried, error = %e, "trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            end => return end,
        }
    }
    Err(WorkerError::transient(crate::error::INTERNAL, "no attempt was made"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_out_are_refused() {
        for name in ["../x", "a/../../x", "/etc/passwd", "", ".", "a\\..\\x", "a\0b"] {
            assert_eq!(safe_path(name).unwrap_err().reason(), UNSAFE_PATH, "{name:?}");
        }
        assert_eq!(safe_path("./a/b.png").unwrap(), Path::new("a/b.png"));
    }

    #[test]
    fn a_claim_is_read_where_it_is_mounted_and_links_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("data/sub")).unwrap();
        std::fs::write(root.path().join("data/sub/x"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("data/out")).unwrap();
        assert!(claim("data/sub/x", root.path()).unwrap().ends_with("sub/x"));
        assert!(claim("data", root.path()).is_ok());
        assert_eq!(claim("data/y", root.path()).unwrap_err().reason(), NOT_FOUND);
        assert_eq!(claim("data/../x", root.path()).unwrap_err().reason(), UNSAFE_PATH);
        assert_eq!(claim("data/out/hosts", root.path()).unwrap_err().reason(), UNSAFE_PATH);
        assert_eq!(claim("../x", root.path()).unwrap_err().reason(), INVALID_ADDRESS);
    }

    #[tokio::test]
    async fn schemes_are_checked() {
        let scratch = tempfile::tempdir().unwrap();
        let limits = Limits {
            max_bytes: 1,
            too_large: crate::error::DATA_TOO_LARGE,
            local: false,
        };
        for address in ["file:///etc/hosts", "ftp://x/y", "x.tar"] {
            let error = fetch(address, scratch.path(), &limits).await.unwrap_err();
            assert_eq!(error.reason(), INVALID_ADDRESS, "{address}");
        }
    }

    #[tokio::test]
    async fn a_model_comes_out_of_a_registry_or_says_why_not() {
        use crate::artifact::{Descriptor, Manifest};
        use crate::error::MODEL_TOO_LARGE;
        use crate::registry::fake::{Fake, Fault};
        use fleetune_crds::common::Digest;
        let fake = Fake::start().await;
        let model = vec![7; 100_000];
        let put = |tag: &str, layers: Vec<Descriptor>| {
            let config = Descriptor::of("application/vnd.oci.empty.v1+json", b"{}");
            let manifest = serde_json::to_vec(&Manifest::new(config, layers)).unwrap();
            let mut shelf = fake.shelf.lock().unwrap();
            shelf.manifests.insert(tag.to_owned(), manifest);
        };
        put("1", vec![Descriptor::of("application/onnx", &model)]);
        put("empty", Vec::new());
        let digest = Digest::of(&model).to_string();
        fake.shelf.lock().unwrap().blobs.insert(digest.clone(), model.clone());
        let fetch = |tag: &'static str, max_bytes: u64| {
            let (registry, reference) = (fake.client(), format!("{}:{tag}", fake.repository()));
            async move {
                let scratch = tempfile::tempdir().unwrap();
                let limits = Limits {
                    max_bytes,
                    too_large: MODEL_TOO_LARGE,
                    local: false,
                };
                let path = layer(&registry, &reference, scratch.path(), &limits).await?;
                Ok::<_, WorkerError>(std::fs::read(path).unwrap())
            }
        };
        fake.fail(&digest, Fault::CutAfter(60_000));
        fake.fail(&digest, Fault::Status(500));
        assert!(fetch("1", 100_000).await.unwrap() == model, "a cut and a passing error");
        let (bad, passing) = (Class::BadInput, Class::Transient);
        for (what, tag, max, fault, class, reason) in [
            ("absent", "2", 100_000, None, bad, "ArtifactNotFound"),
            ("no layer", "empty", 100_000, None, bad, "ArtifactInvalid"),
            ("over the size limit", "1", 99_999, None, bad, MODEL_TOO_LARGE),
            (
                "401",
                "1",
                100_000,
                Some(Fault::Status(401)),
                bad,
                "RegistryUnauthorized",
            ),
            (
                "403",
                "1",
                100_000,
                Some(Fault::Status(403)),
                bad,
                "RegistryUnauthorized",
            ),
            (
                "503",
                "1",
                100_000,
                Some(Fault::Status(503)),
                passing,
                "RegistryUnavailable",
            ),
            ("other bytes", "1", 100_000, Some(Fault::Flip), bad, "DigestMismatch"),
        ] {
            // As often as the client asks.
            let faults = if class == passing {
                3
            } else {
                usize::from(fault.is_some())
            };
            for _ in 0..faults {
                fake.fail(&digest, fault.clone().unwrap());
            }
            let error = fetch(tag, max).await.unwrap_err();
            assert_eq!((error.class(), error.reason()), (class, reason), "{what}: {error}");
        }
    }

    #[tokio::test]
    async fn only_passing_causes_are_tried_again() {
        let mut tries = 0;
        let bad: Result<()> = retried("t", || {
            tries += 1;
            async { Err(WorkerError::bad(NOT_FOUND, "gone")) }
        })
        .await;
        assert_eq!((bad.unwrap_err().reason(), tries), (NOT_FOUND, 1));
        let mut tries = 0;
        let passing: Result<()> = retried("t", || {
            tries += 1;
            async { Err(WorkerError::transient(crate::error::UNREACHABLE, "down")) }
        })
        .await;
        assert!(passing.is_err());
        assert_eq!(tries, ATTEMPTS);
    }
}
