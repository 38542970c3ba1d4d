//! Samples of the example data sets, for asking nodes.

use crate::lab::paths::Paths;
use anyhow::{Context, Result};
use std::io::Read;

/// A picture and its true label.
pub struct ImageSample {
    /// Name in the archive, `CLASS/FILE.png`.
    pub name: String,
    /// PNG bytes.
    pub encoded: Vec<u8>,
    /// The class.
    pub label: String,
}

/// Every k-th picture of the Fashion-MNIST archive, so that all classes are among the `count`.
///
/// # Errors
/// When the archive is not there: `make data` makes it.
pub fn images(count: usize) -> Result<Vec<ImageSample>> {
    let path = Paths::from_env()?.data().join("fashion-mnist.tar");
    let open = || std::fs::File::open(&path).with_context(|| format!("{}: `make data` makes it", path.display()));
    let total = tar::Archive::new(open()?).entries()?.count();
    let step = (total / count.max(1)).max(1);
    let mut samples = Vec::with_capacity(count);
    for (index, entry) in tar::Archive::new(open()?).entries()?.enumerate() {
        let mut entry = entry?;
        if index % step != 0 || !entry.header().entry_type().is_file() || samples.len() == count {
            continue;
        }
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut encoded = Vec::new();
        entry.read_to_end(&mut encoded)?;
        let label = name.split('/').next().unwrap_or_default().to_owned();
        samples.push(ImageSample { name, encoded, label });
    }
    Ok(samples)
}
