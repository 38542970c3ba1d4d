//! Gives the store's folder to the runtime's user. The kubelet makes a hostPath for root; this runs before the runtime,
//! as root with CHOWN alone. It touches that one folder, never what lies in it, and follows no link.

use crate::error::{Result, WorkerError};
use nix::unistd::{Gid, Uid, chown};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Reason: the store's folder is not a folder that may be given away.
const STORE_INVALID: &str = "StoreInvalid";

/// Makes `uid` (and the group of the same number) the owner of the folder `path`, which nobody else may enter from then
/// on. A folder that already belongs to it stays as it is.
///
/// # Errors
/// When `path` is not a folder, is a link, or its owner cannot be changed.
pub fn run(path: &Path, uid: u32) -> Result<()> {
    let found = path
        .symlink_metadata()
        .map_err(|error| WorkerError::io("looking at the store", path, &error))?;
    if !found.is_dir() {
        let what = "is not a folder: remove it, or point the chart at another path";
        return Err(WorkerError::bad(STORE_INVALID, format!("{} {what}", path.display())));
    }
    if found.uid() == uid {
        return Ok(());
    }
    // The mode first: once the folder is given away, only its new owner may change it.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .map_err(|error| WorkerError::io("closing the store to others", path, &error))?;
    chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)))
        .map_err(|error| WorkerError::io("giving away the store", path, &error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_belongs_to_the_user_stays_and_anything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let me = nix::unistd::getuid().as_raw();
        run(dir.path(), me).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(run(&file, me).unwrap_err().reason(), STORE_INVALID);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(run(&link, me).unwrap_err().reason(), STORE_INVALID);
        assert!(run(&dir.path().join("absent"), me).is_err());
    }

    #[test]
    fn root_gives_the_folder_away_and_closes_it() {
        if !nix::unistd::getuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 65_532).unwrap();
        let found = dir.path().metadata().unwrap();
        assert_eq!(
            (found.uid(), found.gid(), found.mode() & 0o777),
            (65_532, 65_532, 0o700)
        );
        run(dir.path(), 65_532).unwrap();
    }
}
