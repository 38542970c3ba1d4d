//! What the frozen part of a model gave for each row, kept on the job's volume, so that a pod that is tried again, and the
//! next job on the same data with another rate or method, need not run it again. A file is named by the hash of
//! all that decides about its bytes, and ends in their hash. No trouble with it fails a job: rows that cannot be read are
//! computed again.

use crate::config::{AugmentRule, Job};
use crate::data::{DataSet, Row};
use crate::error::Result;
use crate::lineage::cpu_features;
use crate::pipeline::{Preparer, json};
use crate::progress::Tracker;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// First bytes of a file.
const MAGIC: &[u8; 8] = b"ftrows01";
/// Bytes of a hash.
const HASH: usize = 32;
/// How often a file's bytes must fit into what is free on the volume, so that checkpoints find room after it.
const ROOM: u64 = 2;
/// All files take at most one part of so many of the volume, which may be a folder of a node's own disk.
const SHARE: u64 = 4;

/// Names rows: equal keys, equal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u8; HASH]);

impl Key {
    /// The key of what the base model gives at `cut` for `rows` of `data` and their variants. `cut` names all that a key has
    /// to tell apart beside job and data, such as the tensors and the length of texts.
    pub fn of(
        (job, preparer): (&Job, &Preparer),
        cut: &[&str],
        (data, rows): (&DataSet, &[&Row]),
        augment: Option<&AugmentRule>,
    ) -> Result<Self> {
        let rows: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
        let variants = augment.map(|_| (&job.spec.train.augmentation, job.train.seed));
        let text = json(&(
            (&job.spec.base_model.sha256, cut, &job.spec.input),
            (preparer.pipeline(), &data.manifest, rows, variants),
            (
                env!("CARGO_PKG_VERSION"),
                option_env!("FLEETUNE_REVISION"),
                cpu_features(),
            ),
        ))?;
        Ok(Self(Sha256::digest(&text).into()))
    }
}

/// A folder of such files.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The files in `dir`, which is made when the first one is written.
    pub fn in_folder(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The rows of `key`, `count` of `bytes` bytes each: those that are there, as `read` makes them of their bytes, else those
    /// that `compute` gives, which are kept as the bytes that `write` makes of them. `tracker` counts rows that were read.
    pub fn rows<T, R: AsRef<[u8]>>(
        &self,
        key: &Key,
        form: (usize, usize),
        (read, write): (impl Fn(&[u8]) -> Option<T>, impl Fn(&T) -> R),
        tracker: &Tracker,
        compute: impl FnOnce() -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        if let Some(found) = self.read(key, form, read) {
            tracker.add(found.len() as u64);
            return Ok(found);
        }
        let made = compute()?;
        self.write(key, form.1, made.iter().map(write));
        Ok(made)
    }

    /// The rows of `key`, `count` of `bytes` bytes each, as `row` makes them of their bytes; `None` where they are not there
    /// as they were written.
    fn read<T>(&self, key: &Key, (count, bytes): (usize, usize), row: impl Fn(&[u8]) -> Option<T>) -> Option<Vec<T>> {
        let path = self.path(key);
        match read(&path, key, (count, bytes), row) {
            Ok(rows) => {
                tracing::info!(path = %path.display(), rows = count, "rows of the frozen part were computed before");
                Some(rows)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "rows of the frozen part are computed again");
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Writes the rows of `key`, all of `bytes` bytes, if they fit: room is made by removing the files that were read least
    /// lately.
    fn write<R: AsRef<[u8]>>(&self, key: &Key, bytes: usize, rows: impl ExactSizeIterator<Item = R>) {
        let size = size(rows.len(), bytes).unwrap_or(u64::MAX);
        if let Err(error) = fs::create_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "rows of the frozen part are not kept");
            return;
        }
        let fits = |taken: u64| {
            let (free, whole) = volume(&self.dir);
            free >= size.saturating_mul(ROOM) && whole / SHARE >= taken.saturating_add(size)
        };
        if !make_room(&self.dir, fits) {
            tracing::info!(
                bytes = size,
                "rows of the frozen part are not kept: the volume is too small"
            );
            return;
        }
        if let Err(error) = write(&self.dir, &self.path(key), key, bytes, rows) {
            tracing::warn!(dir = %self.dir.display(), %error, "rows of the frozen part are not kept");
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}.rows", &hex::encode(key.0)[..24]))
    }
}

/// Bytes of a file: magic, key, number and bytes of its rows, the rows, the hash of all that.
fn size(count: usize, bytes: usize) -> Option<u64> {
    let rows = (count as u64).checked_mul(bytes as u64)?;
    rows.checked_add((MAGIC.len() + 2 * HASH + 16) as u64)
}

fn head(key: &Key, count: usize, bytes: usize) -> Vec<u8> {
    let numbers = [count as u64, bytes as u64].map(u64::to_le_bytes);
    [MAGIC.as_slice(), &key.0, numbers.as_flattened()].concat()
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read<T>(
    path: &Path,
    key: &Key,
    (count, bytes): (usize, usize),
    row: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    let file = File::open(path)?;
    // Before memory is taken: a file of another length is not what was written.
    if Some(file.metadata()?.len()) != size(count, bytes) {
        return Err(damaged("it has another length"));
    }
    // What was read lately stays longest; a volume that cannot note it costs nothing else.
    let _ = file.set_modified(SystemTime::now());
    let mut file = BufReader::new(file);
    let (want, mut hash) = (head(key, count, bytes), Sha256::new());
    let mut found = vec![0; want.len()];
    file.read_exact(&mut found)?;
    if found != want {
        return Err(damaged("it has other rows"));
    }
    hash.update(&found);
    let mut rows = Vec::with_capacity(count);
    let mut buffer = vec![0; bytes];
    for _ in 0..count {
        file.read_exact(&mut buffer)?;
        hash.update(&buffer);
        rows.push(row(&buffer).ok_or_else(|| damaged("a row has another form"))?);
    }
    let mut end = [0; HASH];
    file.read_exact(&mut end)?;
    if end[..] == hash.finalize()[..] {
        Ok(rows)
    } else {
        Err(damaged("its hash is another"))
    }
}

fn write<R: AsRef<[u8]>>(
    dir: &Path,
    path: &Path,
    key: &Key,
    bytes: usize,
    rows: impl ExactSizeIterator<Item = R>,
) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    let (head, mut hash) = (head(key, rows.len(), bytes), Sha256::new());
    let mut out = BufWriter::new(file.as_file_mut());
    hash.update(&head);
    out.write_all(&head)?;
    for row in rows {
        let row = row.as_ref();
        if row.len() != bytes {
            return Err(damaged("rows differ in length"));
        }
        hash.update(row);
        out.write_all(row)?;
    }
    out.write_all(&hash.finalize())?;
    out.flush()?;
    drop(out);
    // Not synced: a file that a crash cut off does not end in its hash.
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Removes files in `dir`, the oldest first, until what all of them take `fits`; whether it does.
fn make_room(dir: &Path, fits: impl Fn(u64) -> bool) -> bool {
    let mut files: Vec<(SystemTime, PathBuf, u64)> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some((meta.modified().ok()?, entry.path(), meta.len()))
        })
        .collect();
    files.sort();
    let mut taken: u64 = files.iter().map(|file| file.2).sum();
    let mut oldest = files.into_iter();
    while !fits(taken) {
        let Some((_, path, bytes)) = oldest.next() else {
            return false;
        };
        if fs::remove_file(path).is_ok() {
            taken -= bytes;
        }
    }
    true
}

/// Bytes of the volume of `dir` that are free, and all it has.
fn volume(dir: &Path) -> (u64, u64) {
    nix::sys::statvfs::statvfs(dir).map_or((0, 0), |volume| {
        let block = volume.fragment_size();
        (volume.blocks_available() * block, volume.blocks() * block)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const KEY: Key = Key([7; HASH]);

    fn row(bytes: &[u8]) -> Option<Vec<u8>> {
        (bytes.len() == 3).then(|| bytes.to_vec())
    }

    fn filled() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(&folder.path().join("rows"));
        cache.write(&KEY, 3, [[1u8, 2, 3], [4, 5, 6]].iter());
        (folder, cache)
    }

    #[test]
    fn rows_come_back_as_they_were_written_and_only_by_their_key_and_form() {
        let (_folder, cache) = filled();
        let want = Some(vec![vec![1, 2, 3], vec![4, 5, 6]]);
        assert_eq!(cache.read(&KEY, (2, 3), row), want);
        assert_eq!(cache.read(&Key([8; HASH]), (2, 3), row), None);
        // A key that begins with the same bytes has the same name and still not these rows.
        let mut close = [7; HASH];
        close[HASH - 1] = 8;
        assert_eq!(cache.read(&Key(close), (2, 3), row), None);
        assert_eq!(
            cache.read(&KEY, (2, 3), row),
            None,
            "and what was found in their place is gone"
        );
    }

    #[test]
    fn any_flipped_or_missing_byte_is_found() {
        let (_folder, cache) = filled();
        let whole = fs::read(cache.path(&KEY)).unwrap();
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 0x10;
            fs::write(cache.path(&KEY), &damaged).unwrap();
            assert_eq!(cache.read(&KEY, (2, 3), row), None, "byte {i}");
            fs::write(cache.path(&KEY), &whole[..i]).unwrap();
            assert_eq!(cache.read(&KEY, (2, 3), row), None, "{i} bytes");
        }
        fs::write(cache.path(&KEY), &whole).unwrap();
        assert!(cache.read(&KEY, (2, 3), row).is_some());
        assert_eq!(
            cache.read(&KEY, (usize::MAX, usize::MAX), row),
            None,
            "no memory is taken for it"
        );
    }

    #[test]
    fn rows_of_another_length_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::in_folder(folder.path());
        cache.write(&KEY, 3, [vec![1u8, 2, 3], vec![4]].iter());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_read_least_lately_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let files = ["new", "old", "middle"].map(|name| folder.path().join(name));
        for (path, age) in files.iter().zip([10, 30, 20]) {
            fs::write(path, [0; 10]).unwrap();
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        }
        let there = || files.each_ref().map(|file| file.exists());
        assert!(make_room(folder.path(), |taken| taken <= 20));
        assert_eq!(there(), [true, false, true], "it took no more than it needed");
        assert!(make_room(folder.path(), |taken| taken <= 10));
        assert_eq!(there(), [true, false, false]);
        assert!(
            !make_room(folder.path(), |_| false),
            "an empty folder makes no more room"
        );
        assert_eq!(there(), [false; 3]);
    }

    #[test]
    fn reading_makes_a_file_young() {
        let (_folder, cache) = filled();
        let file = File::options().write(true).open(cache.path(&KEY)).unwrap();
        let hour = Duration::from_hours(1);
        let before = SystemTime::now() - hour;
        file.set_modified(before).unwrap();
        cache.read(&KEY, (2, 3), row).unwrap();
        assert!(file.metadata().unwrap().modified().unwrap() > before + hour / 2);
    }
}
