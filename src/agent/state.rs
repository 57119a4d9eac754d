//! The agent's directory on the host: where things lie, whole-file writes, and the host's lock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::io_refusal;
use crate::base::{DeckId, RankId};
use crate::wire::Refusal;

/// How long an action waits for the host's lock.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Largest file of ours that is read back.
const MAX_STATE_FILE: u64 = 4 << 20;

/// The agent's state directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// The host's lock, held until dropped. Closed on exec, so that no supervisor inherits it.
#[derive(Debug)]
pub struct HostLock {
    _file: File,
}

impl StateDir {
    /// Opens the directory, making what is missing. What is made is the user's alone; a directory
    /// that exists keeps its mode, so that two remote users can share one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(root: &Path) -> io::Result<Self> {
        if !root.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        }
        // A supervisor and the sampler run elsewhere: all paths are absolute.
        let root = fs::canonicalize(root)?;
        for part in ["decks", "ranks"] {
            fs::create_dir_all(root.join(part))?;
        }
        Ok(Self { root })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the ranks' directories are.
    pub fn ranks(&self) -> PathBuf {
        self.root.join("ranks")
    }

    /// The directory of one rank.
    pub fn rank(&self, rank: &RankId) -> PathBuf {
        self.ranks().join(rank.unit_name())
    }

    /// The directory of one deck.
    pub fn deck(&self, deck: DeckId) -> PathBuf {
        self.root.join("decks").join(deck.to_string())
    }

    /// Takes the host's lock, waiting at most `wait`.
    ///
    /// # Errors
    /// Somebody else held it all that time, or it cannot be opened.
    pub async fn lock(&self, wait: Duration) -> Result<HostLock, Refusal> {
        let path = self.root.join("lock");
        let file = open_lock(&path)?;
        let deadline = Instant::now() + wait;
        loop {
            if try_lock(&file, &path)? {
                return Ok(HostLock { _file: file });
            }
            if Instant::now() >= deadline {
                return Err(lock_busy(wait));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// [`Self::lock`] for a thread of its own.
    ///
    /// # Errors
    /// As [`Self::lock`].
    pub fn lock_blocking(&self, wait: Duration) -> Result<HostLock, Refusal> {
        lock_file(&self.root.join("lock"), wait)
    }
}

/// Locks a file of any path, making it; waits at most `wait`.
///
/// # Errors
/// Somebody else held it all that time, or it cannot be opened.
pub fn lock_file(path: &Path, wait: Duration) -> Result<HostLock, Refusal> {
    let file = open_lock(path)?;
    let deadline = Instant::now() + wait;
    loop {
        if try_lock(&file, path)? {
            return Ok(HostLock { _file: file });
        }
        if Instant::now() >= deadline {
            return Err(lock_busy(wait));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn lock_busy(wait: Duration) -> Refusal {
    let wait = crate::base::time::short(wait);
    Refusal::Busy { message: format!("another action has held the host's lock for {wait}") }
}

fn open_lock(path: &Path) -> Result<File, Refusal> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o660)
        .open(path)
        .map_err(|e| io_refusal(&e, "open", path))
}

fn try_lock(file: &File, path: &Path) -> Result<bool, Refusal> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(io_refusal(&error.into(), "lock", path)),
    }
}

/// Replaces a file: whoever reads it sees the old or the new content, also after a power cut.
///
/// # Errors
/// It cannot be written; the old content is still there.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temp = path.with_file_name(format!(".{name}.{}.{count}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o640).open(&temp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
        return written;
    }
    sync_parent(path)
}

/// Makes a rename or a removal in the parent directory of `path` lasting.
///
/// # Errors
/// The directory cannot be synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Replaces a file with `value` as JSON.
///
/// # Errors
/// As [`write_whole`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_whole(path, &serde_json::to_vec(value)?)
}

/// Reads a file of ours; `None` if it is not there.
///
/// # Errors
/// It cannot be read, is larger than 4 MiB, or is not a `T`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = Vec::new();
    file.take(MAX_STATE_FILE).read_to_end(&mut content)?;
    Ok(Some(serde_json::from_slice(&content)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_lock_is_exclusive_and_waits_no_longer_than_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let held = state.lock(LOCK_WAIT).await.unwrap();
        assert!(state.lock(Duration::from_millis(60)).await.is_err());
        drop(held);
        assert!(state.lock(Duration::from_millis(60)).await.is_ok());
    }

    #[test]
    fn writes_whole_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        write_json(&path, &7).unwrap();
        write_json(&path, &8).unwrap();
        assert_eq!(read_json::<u32>(&path).unwrap(), Some(8));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
