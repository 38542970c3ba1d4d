//! The files of a data set: a tar, a folder, or one file, listed by key with sizes and hashes. Paths that lead out,
//! links, devices and sizes over the bound are refused before anything is read into memory. Nothing is unpacked: a
//! sample is read from its place in the archive.

use crate::error::{DATA_EMPTY, DATA_FORMAT, DATA_TOO_LARGE, DECOMPRESSION_BOMB, Result, UNSAFE_PATH, WorkerError};
use crate::sources::safe_path;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Most files of a data set.
const MAX_FILES: usize = 2_000_000;
/// Longest extended header of an archive: a name or attributes of one entry.
const MAX_HEADER: u64 = 64 << 10;

/// A file of a data set and where its bytes lie.
#[derive(Clone, Debug)]
pub struct FileRef {
    /// Relative path with `/`.
    pub key: String,
    /// The file on this machine that holds it.
    pub path: PathBuf,
    /// Where it begins in there.
    pub offset: u64,
    /// Its length.
    pub size: u64,
    /// Hash of its bytes.
    pub sha256: [u8; 32],
}

impl FileRef {
    /// Its bytes, at most `max` of them.
    pub fn read(&self, max: u64) -> Result<Vec<u8>> {
        if self.size > max {
            return Err(WorkerError::bad(
                DECOMPRESSION_BOMB,
                format!("{} has {} bytes, at most {max} are read", self.key, self.size),
            ));
        }
        let mut bytes = Vec::with_capacity(self.size as usize);
        let io = |e: std::io::Error| WorkerError::io("reading", &self.path, &e);
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        file.take(self.size).read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    }
}

/// The files in the tar or folder at `path`, sorted by key.
pub fn list(path: &Path, max_bytes: u64) -> Result<Vec<FileRef>> {
    let meta = std::fs::metadata(path).map_err(|e| WorkerError::io("reading", path, &e))?;
    let mut files = if meta.is_dir() {
        let mut files = Vec::new();
        walk(path, path, &mut files, &mut 0, max_bytes)?;
        files
    } else {
        archive(path, meta.len(), max_bytes)?
    };
    if files.is_empty() {
        return Err(WorkerError::bad(
            DATA_EMPTY,
            "the data set holds no files: put the samples there",
        ));
    }
    files.sort_by(|a, b| a.key.cmp(&b.key));
    if let Some(twice) = files.windows(2).find(|pair| pair[0].key == pair[1].key) {
        return Err(WorkerError::bad(
            DATA_FORMAT,
            format!("the archive holds {:?} twice", twice[0].key),
        ));
    }
    hash(&mut files)?;
    Ok(files)
}

/// The one file of a table; its key does not depend on its name.
pub fn single(path: &Path, max_bytes: u64) -> Result<Vec<FileRef>> {
    let meta = std::fs::metadata(path).map_err(|e| WorkerError::io("reading", path, &e))?;
    if !meta.is_file() {
        return Err(WorkerError::bad(
            DATA_FORMAT,
            "the address of a table must be one CSV or Parquet file, not a folder",
        ));
    }
    let mut files = vec![FileRef {
        key: "table".to_owned(),
        path: path.to_owned(),
        offset: 0,
        size: bounded(0, meta.len(), max_bytes)?,
        sha256: [0; 32],
    }];
    hash(&mut files)?;
    Ok(files)
}

fn bounded(total: u64, more: u64, max_bytes: u64) -> Result<u64> {
    match total.checked_add(more) {
        Some(sum) if sum <= max_bytes => Ok(sum),
        _ => Err(WorkerError::bad(
            DATA_TOO_LARGE,
            format!(
                "the data set has more than {max_bytes} bytes: use less, or raise spec.dataset.requirements.maxBytes"
            ),
        )),
    }
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<FileRef>, total: &mut u64, max_bytes: u64) -> Result<()> {
    let io = |e: std::io::Error| WorkerError::io("listing", folder, &e);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        let meta = std::fs::symlink_metadata(&path).map_err(io)?;
        let key = path
            .strip_prefix(root)
            .ok()
            .and_then(Path::to_str)
            .ok_or_else(|| WorkerError::bad(DATA_FORMAT, format!("{} has a name that is not UTF-8", path.display())))?
            .to_owned();
        if hidden(&key) {
            continue;
        }
        if meta.is_dir() {
            walk(root, &path, files, total, max_bytes)?;
        } else if meta.is_file() {
            *total = bounded(*total, meta.len(), max_bytes)?;
            files.push(FileRef {
                key,
                path,
                offset: 0,
                size: meta.len(),
                sha256: [0; 32],
            });
        } else {
            return Err(link(&key));
        }
        if files.len() > MAX_FILES {
            return Err(too_many());
        }
    }
    Ok(())
}

fn archive(path: &Path, length: u64, max_bytes: u64) -> Result<Vec<FileRef>> {
    if length == 0 {
        return Err(WorkerError::bad(
            DATA_EMPTY,
            "the data set is an empty file: copy it again",
        ));
    }
    bounded(0, length, max_bytes)?;
    let broken = |e: std::io::Error| {
        WorkerError::bad(
            DATA_FORMAT,
            format!("not a tar archive, or cut short: {e}; write an uncompressed tar with class folders"),
        )
    };
    headers(path).map_err(broken)?.map_or(Ok(()), Err)?;
    let file = File::open(path).map_err(|e| WorkerError::io("reading", path, &e))?;
    let mut archive = tar::Archive::new(file);
    let mut files = Vec::new();
    let mut total = 0;
    for entry in archive.entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        let name = String::from_utf8(entry.path_bytes().into_owned())
            .map_err(|_| WorkerError::bad(DATA_FORMAT, "the archive holds a name that is not UTF-8"))?;
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        if !kind.is_file() {
            return Err(link(&name));
        }
        let key = safe_path(&name)?.to_string_lossy().into_owned();
        if hidden(&key) {
            continue;
        }
        let (offset, size) = (entry.raw_file_position(), entry.size());
        total = bounded(total, size, max_bytes)?;
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(WorkerError::bad(
                DATA_FORMAT,
                format!("the archive is cut short in {key:?}: copy it again"),
            ));
        }
        if files.len() >= MAX_FILES {
            return Err(too_many());
        }
        files.push(FileRef {
            key,
            path: path.to_owned(),
            offset,
            size,
            sha256: [0; 32],
        });
    }
    Ok(files)
}

/// Looks at the raw headers first: a name or attribute block is read into memory whole by the archive reader, so its
/// size is bounded before that.
fn headers(path: &Path) -> std::io::Result<Option<WorkerError>> {
    let mut archive = tar::Archive::new(File::open(path)?);
    for entry in archive.entries_with_seek()?.raw(true) {
        let entry = entry?;
        let kind = entry.header().entry_type();
        let extended = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if extended && entry.size() > MAX_HEADER {
            return Ok(Some(WorkerError::bad(
                DECOMPRESSION_BOMB,
                format!(
                    "the archive holds a header of {} bytes, at most {MAX_HEADER} are read",
                    entry.size()
                ),
            )));
        }
        if kind.is_gnu_sparse() {
            return Ok(Some(WorkerError::bad(
                DECOMPRESSION_BOMB,
                "the archive holds a sparse file, which can claim any size: write it without sparse files",
            )));
        }
    }
    Ok(None)
}

fn hidden(key: &str) -> bool {
    key.rsplit('/').next().is_none_or(|name| name.starts_with('.'))
}

fn link(key: &str) -> WorkerError {
    WorkerError::bad(
        UNSAFE_PATH,
        format!("{key:?} is a link or a device: only plain files are read"),
    )
}

fn too_many() -> WorkerError {
    WorkerError::bad(DATA_TOO_LARGE, format!("the data set has more than {MAX_FILES} files"))
}

fn hash(files: &mut [FileRef]) -> Result<()> {
    files.par_iter_mut().try_for_each(|entry| {
        let io = |e: std::io::Error| WorkerError::io("reading", &entry.path, &e);
        let mut file = File::open(&entry.path).map_err(io)?;
        file.seek(SeekFrom::Start(entry.offset)).map_err(io)?;
        let mut rest = file.take(entry.size);
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        let mut seen = 0u64;
        loop {
            let n = rest.read(&mut buffer).map_err(io)?;
            if n == 0 {
                break;
            }
            seen += n as u64;
            hasher.update(&buffer[..n]);
        }
        if seen != entry.size {
            return Err(WorkerError::bad(
                DATA_FORMAT,
                format!(
                    "{:?} ends after {seen} of {} bytes: copy the data again",
                    entry.key, entry.size
                ),
            ));
        }
        entry.sha256 = hasher.finalize().into();
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::tar_of;

    fn reason(bytes: &[u8], max: u64) -> &'static str {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        list(file.path(), max).unwrap_err().reason()
    }

    fn entry(name: &str, kind: tar::EntryType, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([0; 512]);
        bytes.extend([0; 1024]);
        bytes
    }

    #[test]
    fn hostile_archives_are_refused() {
        use tar::EntryType as T;
        for (what, bytes, want) in [
            ("a path that leads out", entry("../x.png", T::Regular, 10), UNSAFE_PATH),
            (
                "a path that leads out later",
                entry("a/../../x.png", T::Regular, 10),
                UNSAFE_PATH,
            ),
            ("an absolute path", entry("/x.png", T::Regular, 10), UNSAFE_PATH),
            ("a symbolic link", entry("x.png", T::Symlink, 0), UNSAFE_PATH),
            ("a hard link", entry("x.png", T::Link, 0), UNSAFE_PATH),
            ("a device", entry("x.png", T::Char, 0), UNSAFE_PATH),
            (
                "more bytes than there are",
                entry("x.png", T::Regular, 1 << 20),
                DATA_FORMAT,
            ),
            (
                "a size beyond all bounds",
                entry("x.png", T::Regular, 1 << 32),
                DATA_TOO_LARGE,
            ),
            (
                "a header of a gigabyte",
                entry("x", T::GNULongName, 1 << 30),
                DECOMPRESSION_BOMB,
            ),
            ("no archive", b"hello, this is no archive".to_vec(), DATA_FORMAT),
            ("gzip", [vec![0x1f, 0x8b, 8, 0], vec![1; 600]].concat(), DATA_FORMAT),
            ("nothing", Vec::new(), DATA_EMPTY),
            ("no entries", vec![0; 1024], DATA_EMPTY),
        ] {
            assert_eq!(reason(&bytes, 1 << 24), want, "{what}");
        }
        assert_eq!(reason(&tar_of(&[("a/x.png", &[0; 100])]), 50), DATA_TOO_LARGE);
    }

    #[test]
    fn a_tar_and_a_folder_of_the_same_files_list_the_same() {
        let files: [(&str, &[u8]); 3] = [("b/2.png", b"two"), ("a/1.png", b"one"), ("a/.hidden", b"no")];
        let tar = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(tar.path(), tar_of(&files)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let (one, two) = (
            list(tar.path(), 1 << 20).unwrap(),
            list(folder.path(), 1 << 20).unwrap(),
        );
        assert_eq!(
            super::super::manifest::digest(&one).unwrap(),
            super::super::manifest::digest(&two).unwrap()
        );
        assert_eq!(one.len(), 2);
        assert_eq!(one[0].key, "a/1.png");
        assert_eq!(one[1].read(10).unwrap(), b"two");
        assert_eq!(two[1].read(10).unwrap(), b"two");
        std::os::unix::fs::symlink("/etc/hosts", folder.path().join("b/link.png")).unwrap();
        assert_eq!(list(folder.path(), 1 << 20).unwrap_err().reason(), UNSAFE_PATH);
    }
}
