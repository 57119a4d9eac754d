//! Secrets that a person gave: unlocked keys and passwords, in memory only, shared by all
//! connections so that one question is enough, and wiped when the ring goes.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use russh::keys::ssh_key::public::KeyData;
use russh::keys::{PrivateKey, decode_secret_key};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::queue::Queue;
use super::{Questions, short_scalar};
use crate::base::text;

/// Longest key or certificate file that is read, in bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// What was not answered is not asked for again for so long.
const DECLINED_FOR: Duration = Duration::from_mins(5);

/// Keys that were unlocked with a passphrase, and passwords that a server has taken.
#[derive(Default)]
pub struct KeyRing {
    slots: Mutex<HashMap<PathBuf, Arc<Queue<Slot>>>>,
    /// By `user@host:port`.
    passwords: Mutex<HashMap<String, Password>>,
    /// Host keys that were accepted and that no file keeps, by the host's name in its known-hosts
    /// files and by these files: another host at the same address may have others, and its own say.
    accepted: Mutex<HashMap<KnownAs, Vec<KeyData>>>,
}

/// A host's name in known-hosts files, and these files.
type KnownAs = (String, Vec<PathBuf>);

/// Most host keys that are remembered of one host.
const MAX_ACCEPTED: usize = 8;

#[derive(Default)]
enum Slot {
    #[default]
    Locked,
    Unlocked {
        key: Arc<PrivateKey>,
        /// Of the file that it was unlocked from.
        stamp: Stamp,
    },
    Declined(Instant),
}

/// What tells a file from the one that has taken its place.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.size(),
            changed: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

impl Slot {
    /// The unlocked key of `path`; one whose file was replaced is forgotten.
    fn key(&mut self, path: &Path) -> Option<Arc<PrivateKey>> {
        let Self::Unlocked { key, stamp } = &*self else { return None };
        if Stamp::of(path).as_ref() == Some(stamp) {
            return Some(Arc::clone(key));
        }
        *self = Self::Locked;
        None
    }
}

enum Password {
    Taken(SecretString),
    Declined(Instant),
}

impl KeyRing {
    /// From now on this key is no unknown one of the host that these files would know.
    pub(super) fn accept(&self, host: &str, files: &[PathBuf], key: &KeyData) {
        let mut all = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = all.entry((host.to_owned(), files.to_vec())).or_default();
        if !keys.contains(key) {
            keys.truncate(MAX_ACCEPTED - 1);
            keys.push(key.clone());
        }
    }

    /// The keys that were accepted of a host that these files would know, and that they do not keep.
    pub(super) fn accepted(&self, host: &str, files: &[PathBuf]) -> Vec<KeyData> {
        let all = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(host.to_owned(), files.to_vec())).cloned().unwrap_or_default()
    }

    fn slot(&self, path: &Path) -> Arc<Queue<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(path.to_owned()).or_default())
    }

    /// The key of `path` if it was unlocked before. Does not wait for a question in progress.
    pub(super) fn unlocked(&self, path: &Path) -> Option<Arc<PrivateKey>> {
        self.slot(path).try_turn().ok()?.key(path)
    }

    /// Unlocks the key of `path`, asking at most three times; none when nobody knows the
    /// passphrase. Others who need the same key wait for this answer.
    pub async fn unlock(&self, path: &Path, questions: &dyn Questions) -> Option<Arc<PrivateKey>> {
        let queue = self.slot(path);
        // A queue of askers, not a lock over state others need: every key has its own.
        let mut slot = queue.turn(questions).await;
        let questions = queue.asking(questions);
        if let Some(key) = slot.key(path) {
            return Some(key);
        }
        if matches!(&*slot, Slot::Declined(at) if at.elapsed() < DECLINED_FOR) {
            return None;
        }
        // Before it is read: what is replaced in between is asked about once more, and never kept.
        let file = path.to_owned();
        let read = move || Some((Stamp::of(&file)?, read_key_file(&file).ok()?));
        let (stamp, text) = tokio::task::spawn_blocking(read).await.ok()??;
        let text = Arc::new(text);
        let shown = text::clean(&path.display().to_string(), 120);
        let mut prompt = format!("passphrase of {shown}");
        for _ in 0..3 {
            let Some(secret) = questions.secret(&prompt).await else { break };
            let text = Arc::clone(&text);
            // Deriving the key from a passphrase is slow on purpose.
            let opened =
                tokio::task::spawn_blocking(move || decode(&text, Some(secret.expose_secret())))
                    .await;
            if let Ok(Ok(key)) = opened
                && !key.is_encrypted()
            {
                let key = Arc::new(key);
                *slot = Slot::Unlocked { key: Arc::clone(&key), stamp };
                return Some(key);
            }
            prompt = format!("wrong passphrase; passphrase of {shown}");
        }
        *slot = Slot::Declined(Instant::now());
        None
    }

    fn passwords(&self) -> std::sync::MutexGuard<'_, HashMap<String, Password>> {
        self.passwords.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The password that `whom` (`user@host:port`) has taken before.
    pub(super) fn password(&self, whom: &str) -> Option<SecretString> {
        match self.passwords().get(whom) {
            Some(Password::Taken(password)) => Some(password.clone()),
            _ => None,
        }
    }

    /// Keeps a password that was taken; none: it is not good any more.
    pub(super) fn keep_password(&self, whom: &str, password: Option<SecretString>) {
        let mut passwords = self.passwords();
        match password {
            Some(password) => passwords.insert(whom.to_owned(), Password::Taken(password)),
            None => passwords.remove(whom),
        };
    }

    /// A person did not answer `whom`'s question.
    pub(super) fn decline(&self, whom: &str) {
        self.passwords().insert(whom.to_owned(), Password::Declined(Instant::now()));
    }

    /// Whether it is too soon to ask on behalf of `whom` again.
    pub(super) fn declined(&self, whom: &str) -> bool {
        matches!(self.passwords().get(whom), Some(Password::Declined(at)) if at.elapsed() < DECLINED_FOR)
    }

    /// Forgets what was not answered, so that it is asked for again.
    pub fn ask_again(&self) {
        let slots: Vec<_> = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.values().cloned().collect()
        };
        for slot in slots {
            if let Ok(mut slot) = slot.try_turn()
                && matches!(*slot, Slot::Declined(_))
            {
                *slot = Slot::Locked;
            }
        }
        self.passwords().retain(|_, password| !matches!(password, Password::Declined(_)));
    }
}

/// The key in a key file's text, opened by its passphrase if there is one.
pub(super) fn decode(
    text: &str,
    passphrase: Option<&str>,
) -> Result<PrivateKey, russh::keys::Error> {
    decode_secret_key(text, passphrase)
        .or_else(|error| short_scalar::read(text, passphrase).ok_or(error))
}

/// A key file's text.
pub(super) fn read_key_file(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    fs::File::open(path)?.take(MAX_KEY_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
