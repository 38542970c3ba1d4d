//! Where the lab keeps things: one cache folder outside the tree, with programs, data, images and the state of a run.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The cache folder and what lies in it.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// The folder that `FLEETUNE_CACHE` names, else `fleetune` in the user's cache folder.
    ///
    /// # Errors
    /// When neither `FLEETUNE_CACHE`, `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn from_env() -> Result<Self> {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = var("FLEETUNE_CACHE")
            .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("fleetune")))
            .or_else(|| var("HOME").map(|home| home.join(".cache/fleetune")))
            .context("no cache folder: set FLEETUNE_CACHE to a folder outside the tree")?;
        Ok(Self {
            root: std::path::absolute(root)?,
        })
    }

    /// That folder.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The cache folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of the programs.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// A program, which must be there.
    ///
    /// # Errors
    /// When it is not; the message says how to get it.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin().join(name);
        anyhow::ensure!(path.is_file(), "{} is missing: run `make tools`", path.display());
        Ok(path)
    }

    /// Data sets and base models, which the lab serves over HTTP.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Everything of one run of the lab; gone after `down`.
    pub fn lab(&self) -> PathBuf {
        self.root.join("lab")
    }

    /// What `up` made, for `down` and for tests that attach.
    pub fn state(&self) -> PathBuf {
        self.lab().join("state.json")
    }
}

/// The root of the source tree, where `tests/tools` and the other crates lie.
pub fn tree() -> PathBuf {
    PathBuf::from(env!("FLEETUNE_ROOT"))
}

/// `$PATH` of the daemons: our programs first, then the machine's, with the sbin folders that a user's PATH may lack.
pub fn search_path(bin: &Path) -> String {
    format!(
        "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        bin.display()
    )
}
