//! From a version's directory to its layers, configuration and manifest.

use super::{
    ArtifactError, BACKBONE, CONFIG_TYPE, Descriptor, GRAPH, Kind, LAYER_TYPE, Layer, MAX_FILES, Manifest, TUNED,
};
use fleetune_crds::common::Digest;
use fleetune_crds::names::{ANNOTATION_FORMAT, ARTIFACT_FORMAT};
use std::fs;
use std::path::Path;

/// A version, ready to be pushed: its bytes stay in the directory it was packed from.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The layers, in the manifest's order.
    pub layers: Vec<Layer>,
    /// The configuration.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
}

impl Packed {
    /// The version's identity: the digest of its manifest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Bytes of all layers.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// Packs a directory. Reads every file once to hash it; links and special files are refused.
pub fn pack(dir: &Path) -> Result<Packed, ArtifactError> {
    let paths = files(dir)?;
    for needed in [GRAPH, BACKBONE, TUNED, "pipeline.json", "labels.json"] {
        if !paths.iter().any(|path| path == needed) {
            return Err(ArtifactError::NotAVersion {
                path: dir.to_owned(),
                what: format!("{needed} is missing"),
            });
        }
    }
    let mut layers = Vec::with_capacity(Kind::ALL.len());
    for kind in Kind::ALL {
        let of_kind: Vec<String> = paths.iter().filter(|path| Kind::of(path) == kind).cloned().collect();
        layers.push(Layer::of(dir, kind, &of_kind)?);
    }
    let config = config(&layers)?;
    let manifest = manifest(&layers, &config).to_bytes()?;
    Ok(Packed {
        layers,
        config,
        manifest,
    })
}

/// Checks that the files of `dir` are those of the version with this digest, by packing them again. Because packing is
/// deterministic, this finds a changed, missing or additional byte anywhere, also long after the download.
pub fn verify(dir: &Path, expected: &Digest) -> Result<(), ArtifactError> {
    let found = pack(dir)?.digest();
    if found == *expected {
        return Ok(());
    }
    Err(ArtifactError::DigestMismatch {
        path: dir.to_owned(),
        found: found.to_string(),
        expected: expected.to_string(),
    })
}

/// The paths of all files below `dir`, sorted. Links and special files are refused.
pub fn files(dir: &Path) -> Result<Vec<String>, ArtifactError> {
    let mut paths = Vec::new();
    list(dir, "", &mut paths)?;
    paths.sort_unstable();
    Ok(paths)
}

fn list(dir: &Path, prefix: &str, paths: &mut Vec<String>) -> Result<(), ArtifactError> {
    for entry in fs::read_dir(dir).map_err(|source| ArtifactError::io(dir, source))? {
        let entry = entry.map_err(|source| ArtifactError::io(dir, source))?;
        let path = entry.path();
        let refuse = |what: &str| ArtifactError::NotAVersion {
            path: path.clone(),
            what: what.into(),
        };
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| refuse("the name is not UTF-8"))?;
        let relative = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}/{name}")
        };
        let kind = entry.file_type().map_err(|source| ArtifactError::io(&path, source))?;
        if kind.is_dir() {
            list(&path, &relative, paths)?;
        } else if kind.is_file() {
            paths.push(relative);
        } else {
            return Err(refuse("neither a plain file nor a directory"));
        }
        if paths.len() > MAX_FILES {
            return Err(refuse(&format!("more than {MAX_FILES} files")));
        }
    }
    Ok(())
}

/// An image configuration, so that containerd can mount the version. A version is for every architecture, but the field
/// must hold one, and it must not depend on the machine that packs. Keys are written sorted, whatever the map type is.
fn config(layers: &[Layer]) -> Result<Vec<u8>, ArtifactError> {
    let value = serde_json::json!({
        "architecture": "amd64",
        "config": {},
        "os": "linux",
        "rootfs": { "diff_ids": layers.iter().map(|layer| layer.digest.as_str()).collect::<Vec<_>>(), "type": "layers" },
    });
    serde_json::to_vec(&value).map_err(|error| ArtifactError::BadManifest(error.to_string()))
}

fn manifest(layers: &[Layer], config: &[u8]) -> Manifest {
    let descriptors = layers
        .iter()
        .map(|layer| {
            let mut descriptor = Descriptor::new(LAYER_TYPE, layer.digest.clone(), layer.size);
            descriptor
                .annotations
                .insert("org.cncf.model.filepath".into(), layer.kind.title().into());
            descriptor
        })
        .collect();
    let mut manifest = Manifest::new(Descriptor::of(CONFIG_TYPE, config), descriptors);
    manifest
        .annotations
        .insert(ANNOTATION_FORMAT.into(), ARTIFACT_FORMAT.to_string());
    manifest
}

#[cfg(test)]
mod tests {
    use super::super::{VersionManifest, extract};
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    pub(crate) fn version(dir: &Path, tuned: &[u8]) {
        fs::create_dir_all(dir.join("weights")).unwrap();
        fs::create_dir_all(dir.join("selftest")).unwrap();
        fs::write(dir.join(TUNED), tuned).unwrap();
        fs::write(dir.join(BACKBONE), vec![7; 100_000]).unwrap();
        for name in [
            "model.onnx",
            "pipeline.json",
            "labels.json",
            "selftest/inputs.bin",
            "lineage.json",
        ] {
            fs::write(dir.join(name), name).unwrap();
        }
    }

    #[test]
    fn same_directory_same_digest() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        version(a.path(), b"tuned");
        version(b.path(), b"tuned");
        fs::File::open(b.path().join(GRAPH))
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        let (a, b) = (pack(a.path()).unwrap(), pack(b.path()).unwrap());
        assert_eq!(a.digest(), b.digest());
        // Pinned: a change of the packing would change every digest of every version out there.
        assert_eq!(
            a.digest().as_str(),
            "sha256:74884b2c28b9fe4577e1969a74c3ee65a3daa0d7370d324b445fb83c874fbc62"
        );
        assert_eq!(a.layers[0].size, 512 + 100_352 + 1024);
    }

    #[test]
    fn only_the_tuned_layer_of_another_head_differs() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        version(a.path(), b"one");
        version(b.path(), b"two");
        let (a, b) = (pack(a.path()).unwrap(), pack(b.path()).unwrap());
        let same: Vec<bool> = a
            .layers
            .iter()
            .zip(&b.layers)
            .map(|(a, b)| a.digest == b.digest)
            .collect();
        assert_eq!(same, [true, false, true]);
        assert_ne!(a.digest(), b.digest());
    }

    #[test]
    fn a_layer_unpacks_to_the_same_files() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        version(from.path(), b"tuned");
        let packed = pack(from.path()).unwrap();
        for layer in &packed.layers {
            let mut bytes = Vec::new();
            layer.reader().unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, layer.size);
            assert_eq!(Digest::of(&bytes), layer.digest);
            extract(bytes.as_slice(), layer.kind, to.path()).unwrap();
        }
        verify(to.path(), &packed.digest()).unwrap();
        fs::write(to.path().join("labels.json"), "changed").unwrap();
        assert_eq!(
            verify(to.path(), &packed.digest()).unwrap_err().reason(),
            "DigestMismatch"
        );
    }

    #[test]
    fn what_is_no_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        version(dir.path(), b"tuned");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        assert_eq!(pack(dir.path()).unwrap_err().reason(), "NotAVersion");
        fs::remove_file(dir.path().join("link")).unwrap();
        fs::remove_file(dir.path().join(BACKBONE)).unwrap();
        assert!(pack(dir.path()).unwrap_err().to_string().contains("backbone"));
    }

    fn tar_of(entries: &[(&[u8], tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path);
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o4777);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    #[test]
    fn hostile_layers_are_refused() {
        use tar::EntryType as T;
        type File<'a> = (&'a [u8], T, &'a [u8]);
        let cases: &[(&str, &[File])] = &[
            ("parent", &[(b"../evil", T::Regular, b"x")]),
            ("inner parent", &[(b"a/../../evil", T::Regular, b"x")]),
            ("absolute", &[(b"/etc/evil", T::Regular, b"x")]),
            ("symlink", &[(b"a", T::Symlink, b"")]),
            ("hard link", &[(b"a", T::Link, b"")]),
            ("device", &[(b"a", T::Char, b"")]),
            ("directory", &[(b"a", T::Directory, b"")]),
            ("long name", &[(b"././@LongLink", T::GNULongName, b"a")]),
            ("pax header", &[(b"PaxHeader", T::XHeader, b"20 path=../../evil\n")]),
            ("twice", &[(b"a", T::Regular, b"x"), (b"a", T::Regular, b"y")]),
            (
                "weights in the wrong layer",
                &[(b"weights/tuned.bin", T::Regular, b"x")],
            ),
            ("not utf-8", &[(b"\xff\xfe", T::Regular, b"x")]),
            ("dot", &[(b"./a", T::Regular, b"x")]),
        ];
        for (name, entries) in cases {
            let dir = tempfile::tempdir().unwrap();
            let into = dir.path().join("deep/er");
            fs::create_dir_all(&into).unwrap();
            let result = extract(tar_of(entries).as_slice(), Kind::Rest, &into);
            assert_eq!(result.unwrap_err().reason(), "ArtifactInvalid", "{name}");
            assert!(
                !dir.path().join("evil").exists() && !dir.path().join("deep/evil").exists(),
                "{name}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let mut cut = tar_of(&[(b"a", T::Regular, &[1; 2000])]);
        cut.truncate(1500);
        assert!(extract(cut.as_slice(), Kind::Rest, dir.path()).is_err());
    }

    #[test]
    fn manifests_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        version(dir.path(), b"tuned");
        let good = Manifest::parse(&pack(dir.path()).unwrap().manifest).unwrap();
        let check = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = good.clone();
            change(&mut manifest);
            VersionManifest::parse(&manifest.to_bytes().unwrap())
                .map(|_| ())
                .map_err(|error| error.reason())
        };
        let format = |text: &'static str| {
            move |manifest: &mut Manifest| {
                manifest.annotations = BTreeMap::from([(ANNOTATION_FORMAT.to_owned(), text.to_owned())]);
            }
        };
        assert_eq!(check(&|_| {}), Ok(()));
        assert_eq!(check(&format("2")), Err("UnsupportedFormat"));
        assert_eq!(check(&format("0")), Err("ArtifactInvalid"));
        assert_eq!(check(&format("x")), Err("ArtifactInvalid"));
        assert_eq!(check(&|m| m.annotations.clear()), Err("ArtifactInvalid"));
        assert_eq!(check(&|m| drop(m.layers.pop())), Err("ArtifactInvalid"));
        assert_eq!(check(&|m| m.layers[2].size = u64::MAX), Err("ArtifactInvalid"));
        assert_eq!(
            check(&|m| m.layers[0].media_type = "text/plain".into()),
            Err("ArtifactInvalid")
        );
        assert_eq!(VersionManifest::parse(b"{}").unwrap_err().reason(), "ArtifactInvalid");
    }
}
