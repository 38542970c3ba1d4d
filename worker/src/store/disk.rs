//! Writes that survive a power cut: everything is written and synced under another name, then renamed, and the directory
//! is synced. In tests each step can be the last one of a process.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// A step after which a crash is possible. Does nothing outside tests.
#[cfg(not(test))]
#[allow(clippy::unnecessary_wraps)]
pub(super) fn step(_: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use faults::step;

/// Syncs a directory, so that names made or removed in it stay so.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    step("sync")?;
    File::open(dir)?.sync_all()
}

/// Syncs a directory and all below it.
pub(super) fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_dir(dir)
}

/// Renames and syncs the directory of the new name.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step("rename")?;
    fs::rename(from, to)?;
    sync_dir(to.parent().unwrap_or(to))
}

/// Writes a file by way of `scratch`, so that a reader sees the old content or the new one, never a part.
pub(super) fn write(scratch: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    step("write")?;
    let mut file = File::create(scratch)?;
    // Half of it, then the crash: what a power cut leaves.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    file.write_all(first)?;
    step("write")?;
    file.write_all(second)?;
    step("sync")?;
    file.sync_all()?;
    rename(scratch, path)
}

/// Removes a directory so that a crash never leaves a part of it under its name.
pub(super) fn remove_dir(dir: &Path, scratch: &Path) -> io::Result<()> {
    step("rename")?;
    match fs::rename(dir, scratch) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    sync_dir(dir.parent().unwrap_or(dir))?;
    step("remove")?;
    fs::remove_dir_all(scratch)
}

#[cfg(test)]
pub(crate) mod faults {
    //! Ends a process at its n-th step: from there on every step of this thread fails, and nothing cleans up.

    use std::cell::Cell;
    use std::io;

    thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// The next `steps` steps work, all later ones fail.
    pub(crate) fn crash_after(steps: usize) {
        LEFT.set(Some(steps));
    }

    /// All steps work again. True where a step has failed.
    pub(crate) fn reboot() -> bool {
        LEFT.take() == Some(0)
    }

    pub(crate) fn step(_: &str) -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("power cut")),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}
