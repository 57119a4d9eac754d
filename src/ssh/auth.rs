//! Logging in: the keys of the SSH agent first, then identity files.
//!
//! A passphrase is never asked for while a connection waits (servers hang up after two minutes):
//! the login ends with [`Login::Locked`], the key is unlocked in the [`KeyRing`], and the
//! connection is made again.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use russh::MethodKind;
use russh::client::{AuthResult, Handle, Handler};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, decode_secret_key};
use secrecy::ExposeSecret;
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::connection::Endpoint;
use super::{Questions, SshError};
use crate::base::text;

/// Longest private key file that is read, in bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// A passphrase that was not given is not asked for again for so long.
const DECLINED_FOR: Duration = Duration::from_mins(5);

/// Time for the agent to list its keys.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);

/// Keys that were unlocked with a passphrase, shared by all connections: one question, not one a
/// host. Keys are wiped when the ring goes.
#[derive(Default)]
pub struct KeyRing {
    slots: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<Slot>>>>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Locked,
    Unlocked(Arc<PrivateKey>),
    Declined(Instant),
}

impl KeyRing {
    fn slot(&self, path: &Path) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(path.to_owned()).or_default())
    }

    /// The key of `path` if it was unlocked before. Does not wait for a question in progress.
    fn unlocked(&self, path: &Path) -> Option<Arc<PrivateKey>> {
        match &*self.slot(path).try_lock().ok()? {
            Slot::Unlocked(key) => Some(Arc::clone(key)),
            Slot::Locked | Slot::Declined(_) => None,
        }
    }

    /// Unlocks the key of `path`, asking at most three times; none when nobody knows the
    /// passphrase. Others who need the same key wait for this answer.
    pub async fn unlock(&self, path: &Path, questions: &dyn Questions) -> Option<Arc<PrivateKey>> {
        let slot = self.slot(path);
        // A queue of askers, not a lock over state others need: every key has its own.
        let mut slot = slot.lock().await;
        match &*slot {
            Slot::Unlocked(key) => return Some(Arc::clone(key)),
            Slot::Declined(at) if at.elapsed() < DECLINED_FOR => return None,
            Slot::Locked | Slot::Declined(_) => {}
        }
        let text = Arc::new(read_key_file(path).ok()?);
        let shown = text::clean(&path.display().to_string(), 120);
        let mut prompt = format!("passphrase of {shown}");
        for _ in 0..3 {
            let Some(secret) = questions.secret(&prompt).await else { break };
            let text = Arc::clone(&text);
            // Deriving the key from a passphrase is slow on purpose.
            let opened = tokio::task::spawn_blocking(move || {
                decode_secret_key(&text, Some(secret.expose_secret()))
            })
            .await;
            if let Ok(Ok(key)) = opened
                && !key.is_encrypted()
            {
                let key = Arc::new(key);
                *slot = Slot::Unlocked(Arc::clone(&key));
                return Some(key);
            }
            prompt = format!("wrong passphrase; passphrase of {shown}");
        }
        *slot = Slot::Declined(Instant::now());
        None
    }

    /// Forgets that a passphrase was not given, so that it is asked for again.
    pub fn ask_again(&self) {
        let slots: Vec<_> = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.values().cloned().collect()
        };
        for slot in slots {
            if let Ok(mut slot) = slot.try_lock()
                && matches!(*slot, Slot::Declined(_))
            {
                *slot = Slot::Locked;
            }
        }
    }
}

/// What came of trying to log in.
pub(super) enum Login {
    /// We are in.
    In,
    /// These encrypted keys are left to try.
    Locked { files: Vec<PathBuf>, tried: Vec<String> },
    /// Nothing is left to try.
    Failed { tried: Vec<String> },
}

enum Identity {
    Open(Arc<PrivateKey>),
    Encrypted(Option<PublicKey>),
}

fn read_key_file(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    fs::File::open(path)?.take(MAX_KEY_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn load_identity(path: &Path) -> Result<Identity, String> {
    let text = read_key_file(path).map_err(|error| error.to_string())?;
    match decode_secret_key(&text, None) {
        Ok(key) if key.is_encrypted() => Ok(Identity::Encrypted(Some(key.public_key().clone()))),
        Ok(key) => Ok(Identity::Open(Arc::new(key))),
        Err(russh::keys::Error::KeyIsEncrypted) => {
            let public =
                PrivateKey::from_openssh(text.as_bytes()).ok().map(|k| k.public_key().clone());
            Ok(Identity::Encrypted(public))
        }
        Err(error) => Err(text::clean(&error.to_string(), 80)),
    }
}

/// Tries one key after the other on a fresh connection, and stops at the first that is taken:
/// russh hangs when it is asked to go on after a success.
pub(super) async fn authenticate<H: Handler>(
    handle: &mut Handle<H>,
    endpoint: &Endpoint,
    ring: &KeyRing,
) -> Result<Login, SshError> {
    let mut attempt = Attempt { endpoint, tried: Vec::new(), offered: Vec::new() };
    let mut locked = Vec::new();
    let mut identities = Vec::new();
    for path in &endpoint.identity_files {
        let identity = match ring.unlocked(path) {
            Some(key) => Ok(Identity::Open(key)),
            None => load_identity(path),
        };
        match identity {
            Ok(identity) => identities.push((path, identity)),
            // The default files need not be there.
            Err(_) if !endpoint.identity_files_named => {}
            Err(why) => attempt.tried.push(format!("{} ({why})", shown(path))),
        }
    }
    if let Some(socket) = &endpoint.agent_socket {
        match attempt.agent(handle, socket, &identities).await {
            Ok(Some(login)) => return Ok(login),
            Ok(None) => {}
            Err(why) => attempt.tried.push(format!("SSH agent ({why})")),
        }
    }
    for (path, identity) in identities {
        match identity {
            Identity::Open(key) => {
                if attempt.offered.contains(key.public_key().key_data()) {
                    continue;
                }
                attempt.tried.push(shown(path));
                if let Some(login) = attempt.offer_private(handle, &key).await? {
                    return Ok(login);
                }
            }
            Identity::Encrypted(public) => {
                let seen = public.is_some_and(|p| attempt.offered.contains(p.key_data()));
                if !seen {
                    locked.push(path.clone());
                }
            }
        }
    }
    if locked.is_empty() {
        return Ok(attempt.failed());
    }
    Ok(Login::Locked { files: locked, tried: attempt.tried })
}

fn shown(path: &Path) -> String {
    text::clean(&path.display().to_string(), 120)
}

struct Attempt<'a> {
    endpoint: &'a Endpoint,
    tried: Vec<String>,
    offered: Vec<KeyData>,
}

impl Attempt<'_> {
    fn failed(&mut self) -> Login {
        Login::Failed { tried: std::mem::take(&mut self.tried) }
    }

    /// Offers the agent's keys; `Err` says why the agent is of no use.
    async fn agent<H: Handler>(
        &mut self,
        handle: &mut Handle<H>,
        socket: &Path,
        identities: &[(&PathBuf, Identity)],
    ) -> Result<Option<Login>, String> {
        let list = async {
            let mut agent = AgentClient::<UnixStream>::connect_uds(socket)
                .await
                .map_err(|error| text::clean(&error.to_string(), 80))?;
            let keys = agent
                .request_identities()
                .await
                .map_err(|error| text::clean(&error.to_string(), 80))?;
            Ok::<_, String>((agent, keys))
        };
        let (mut agent, keys) = tokio::time::timeout(AGENT_PATIENCE, list)
            .await
            .map_err(|_| "does not answer".to_owned())??;
        let named: Vec<KeyData> = identities
            .iter()
            .filter_map(|(path, identity)| match identity {
                Identity::Open(key) => Some(key.public_key().key_data().clone()),
                Identity::Encrypted(Some(public)) => Some(public.key_data().clone()),
                Identity::Encrypted(None) => public_half(path),
            })
            // A public key alone may stand for one that only the agent holds.
            .chain(self.endpoint.identity_files.iter().filter_map(|path| public_half(path)))
            .collect();
        let mut wanted: Vec<(PublicKey, String)> = keys
            .into_iter()
            .filter_map(|identity| match identity {
                AgentIdentity::PublicKey { key, comment } => Some((key, comment)),
                AgentIdentity::Certificate { .. } => None,
            })
            .filter(|(key, _)| !self.endpoint.identities_only || named.contains(key.key_data()))
            .collect();
        // Named keys first: servers hang up after a few keys (MaxAuthTries).
        wanted.sort_by_key(|(key, _)| !named.contains(key.key_data()));
        for (key, comment) in wanted {
            self.tried.push(format!("agent key {}", text::clean(&comment, 60)));
            self.offered.push(key.key_data().clone());
            for hash in hashes(handle, key.algorithm().is_rsa()).await {
                let result = handle
                    .authenticate_publickey_with(
                        self.endpoint.user.clone(),
                        key.clone(),
                        hash,
                        &mut agent,
                    )
                    .await;
                match result {
                    Ok(result) => {
                        if let Some(login) = self.judge(handle, result) {
                            return Ok(Some(login));
                        }
                    }
                    // The agent would not sign with this key; the next one may do.
                    Err(_) => break,
                }
            }
        }
        Ok(None)
    }

    async fn offer_private<H: Handler>(
        &mut self,
        handle: &mut Handle<H>,
        key: &Arc<PrivateKey>,
    ) -> Result<Option<Login>, SshError> {
        self.offered.push(key.public_key().key_data().clone());
        for hash in hashes(handle, key.algorithm().is_rsa()).await {
            let result = handle
                .authenticate_publickey(
                    self.endpoint.user.clone(),
                    PrivateKeyWithHashAlg::new(Arc::clone(key), hash),
                )
                .await
                .map_err(|error| SshError::closed(&error.to_string()))?;
            if let Some(login) = self.judge(handle, result) {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    /// Whether the login is decided by this result.
    fn judge<H: Handler>(&mut self, handle: &Handle<H>, result: AuthResult) -> Option<Login> {
        match result {
            AuthResult::Success => Some(Login::In),
            AuthResult::Failure { partial_success: true, .. } => {
                self.tried.push("the key was taken, but a second factor is wanted".to_owned());
                Some(self.failed())
            }
            AuthResult::Failure { .. } if handle.is_closed() => {
                self.tried.push("then the server hung up".to_owned());
                Some(self.failed())
            }
            AuthResult::Failure { remaining_methods, .. } => {
                if remaining_methods.contains(&MethodKind::PublicKey) {
                    return None;
                }
                self.tried.push("the server takes no (more) keys".to_owned());
                Some(self.failed())
            }
        }
    }
}

/// The public key beside a private one (`FILE.pub`), or in the file itself.
fn public_half(path: &Path) -> Option<KeyData> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".pub");
    [PathBuf::from(beside), path.to_owned()].iter().find_map(|file| {
        let text = read_key_file(file).ok()?;
        PublicKey::from_openssh(text.trim()).ok().map(|key| key.key_data().clone())
    })
}

/// The signature hashes to try: for RSA what the server names, never SHA-1.
async fn hashes<H: Handler>(handle: &Handle<H>, rsa: bool) -> Vec<Option<HashAlg>> {
    if !rsa {
        return vec![None];
    }
    match handle.best_supported_rsa_hash().await {
        Ok(Some(Some(hash))) => vec![Some(hash)],
        // The server does not say (before OpenSSH 7.2 it cannot): try both.
        Ok(None) => vec![Some(HashAlg::Sha512), Some(HashAlg::Sha256)],
        Ok(Some(None)) | Err(_) => Vec::new(),
    }
}
