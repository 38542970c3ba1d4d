//! An OCI image from files, without a container engine: gzip layers, a config, a manifest. The same files give the same
//! digest.

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::Write as _;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Group and user that every process of our images has.
pub const NON_ROOT: u32 = 65532;

/// One thing in a layer; its parents are made.
pub enum Entry {
    /// A file with its mode.
    File(u32, Vec<u8>),
    /// A folder with its mode.
    Folder(u32),
    /// A symbolic link to a path.
    Link(String),
}

/// Bytes with their digest and media type.
pub struct Blob {
    /// `sha256:…`.
    pub digest: String,
    /// The bytes.
    pub bytes: Vec<u8>,
    media_type: &'static str,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            digest: digest(&bytes),
            bytes,
            media_type,
        }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// An image.
pub struct Image {
    /// The manifest; its digest is the image's.
    pub manifest: Blob,
    /// The config.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

impl Image {
    /// An image of one layer a map, that runs `entrypoint` as `user`.
    ///
    /// # Errors
    /// When a path is too long for an archive.
    pub fn new(layers: &[BTreeMap<String, Entry>], entrypoint: &[&str], user: u32) -> Result<Self> {
        let mut blobs = Vec::new();
        let mut diff_ids = Vec::new();
        for entries in layers {
            let tar = archive(entries)?;
            diff_ids.push(digest(&tar));
            let mut zip = GzBuilder::new().write(Vec::new(), Compression::best());
            zip.write_all(&tar)?;
            blobs.push(Blob::new(LAYER, zip.finish()?));
        }
        let config = json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                "User": format!("{user}:{user}"),
                "Entrypoint": entrypoint,
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Blob::new(CONFIG, serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": blobs.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(MANIFEST, serde_json::to_vec(&manifest)?);
        Ok(Self {
            manifest,
            config,
            layers: blobs,
        })
    }

    /// What a node downloads.
    pub fn compressed_bytes(&self) -> usize {
        self.layers
            .iter()
            .chain([&self.config, &self.manifest])
            .map(|b| b.bytes.len())
            .sum()
    }

    /// An OCI layout in one tar, as `ctr images import` reads it, under the given name.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn layout(&self, name: &str) -> Result<Vec<u8>> {
        let mut descriptor = self.manifest.descriptor();
        descriptor["annotations"] = json!({ "io.containerd.image.name": name });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
        let mut entries = BTreeMap::new();
        entries.insert(
            "oci-layout".to_owned(),
            Entry::File(0o644, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        );
        entries.insert("index.json".to_owned(), Entry::File(0o644, serde_json::to_vec(&index)?));
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            let path = format!("blobs/{}", blob.digest.replace(':', "/"));
            entries.insert(path, Entry::File(0o644, blob.bytes.clone()));
        }
        archive(&entries)
    }

    /// Pushes the image to a registry over plain HTTP and returns its digest. What is there already is not sent.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub async fn push(&self, registry: &str, repository: &str) -> Result<String> {
        let http = crate::lab::http()?;
        let base = format!("http://{registry}/v2/{repository}");
        for blob in self.layers.iter().chain([&self.config]) {
            let there = http.head(format!("{base}/blobs/{}", blob.digest)).send().await?;
            if there.status().is_success() {
                continue;
            }
            let started = http
                .post(format!("{base}/blobs/uploads/"))
                .send()
                .await?
                .error_for_status()?;
            let location = started
                .headers()
                .get("location")
                .context("the registry names no place to upload to")?;
            let mut url = started.url().join(location.to_str()?)?;
            url.query_pairs_mut().append_pair("digest", &blob.digest);
            let put = http
                .put(url)
                .header("content-type", "application/octet-stream")
                .body(blob.bytes.clone());
            put.timeout(std::time::Duration::from_mins(2))
                .send()
                .await?
                .error_for_status()?;
        }
        let url = format!("{base}/manifests/{}", self.manifest.digest);
        let put = http
            .put(url)
            .header("content-type", MANIFEST)
            .body(self.manifest.bytes.clone());
        put.send().await?.error_for_status()?;
        Ok(self.manifest.digest.clone())
    }
}

fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("no OCI name is known for the architecture {other}"),
    }
}

/// A folder that is there because something is in it.
static PARENT: Entry = Entry::Folder(0o755);

/// A tar of the entries: sorted, no times, owned by root.
fn archive(entries: &BTreeMap<String, Entry>) -> Result<Vec<u8>> {
    let mut all: BTreeMap<String, &Entry> = BTreeMap::new();
    for (path, entry) in entries {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            all.entry(path[..at].to_owned()).or_insert(&PARENT);
        }
        all.insert(path.to_owned(), entry);
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, entry) in all {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        match entry {
            Entry::File(mode, bytes) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, &path, bytes.as_slice())?;
            }
            Entry::Folder(mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Entry::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                tar.append_link(&mut header, &path, target)?;
            }
        }
    }
    Ok(tar.into_inner()?)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> BTreeMap<String, Entry> {
        BTreeMap::from([
            ("/usr/bin/program".to_owned(), Entry::File(0o755, b"program".to_vec())),
            ("/bin".to_owned(), Entry::Link("usr/bin".into())),
            ("/tmp".to_owned(), Entry::Folder(0o1777)),
        ])
    }

    #[test]
    fn the_same_files_give_the_same_digest() {
        let image = |user| Image::new(&[files()], &["/usr/bin/program"], user).unwrap();
        assert_eq!(image(1).manifest.digest, image(1).manifest.digest);
        assert_ne!(image(1).manifest.digest, image(2).manifest.digest);
    }

    #[test]
    fn parents_come_before_what_is_in_them() {
        let tar = archive(&files()).unwrap();
        let mut reader = tar::Archive::new(tar.as_slice());
        let paths: Vec<String> = reader
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(paths, ["bin", "tmp/", "usr/", "usr/bin/", "usr/bin/program"]);
    }
}
