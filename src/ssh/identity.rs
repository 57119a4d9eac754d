//! The keys and certificates we have for a host, in the order in which OpenSSH tries them
//! (`pubkey_prepare` in its `sshconnect2.c`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::agent::AgentIdentity;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{
    Algorithm, Certificate, HashAlg, PrivateKey, PublicKey, signature, ssh_encoding::Encode,
    ssh_key,
};

use super::SshError;
use super::agent_keys::{self, Agent};
use super::endpoint::{ConnectOptions, Endpoint, aside};
use super::handler::rsa_bits;
use super::keyring::{KeyRing, decode, read_key_file};
use crate::base::{quote, text};

/// Who signs with a key.
#[derive(Clone)]
pub(super) enum Holder {
    /// The agents with these numbers: the first that will.
    Agents(Vec<usize>),
    /// We do.
    Us(Arc<PrivateKey>),
    /// We would, if somebody gave the passphrase of this file: asked for once a server wants the key.
    Locked(PathBuf),
}

/// Something that can be offered to a server.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) key: PublicKey,
    pub(super) certificate: Option<Certificate>,
    pub(super) holder: Holder,
    /// For people: a file's name, or an agent's comment.
    pub(super) label: String,
}

/// Everything there is to offer.
#[derive(Default)]
pub(super) struct Identities {
    /// None: it has not answered a question in time, and what it says now would be taken for the answer to another.
    pub(super) agents: Vec<Option<Agent>>,
    pub(super) list: Vec<Identity>,
    /// Encrypted keys of which nothing is known without a passphrase: not even a server can be asked whether
    /// it would take them.
    pub(super) locked: Vec<PathBuf>,
    /// What could not be used, for people.
    pub(super) notes: Vec<String>,
}

/// A key file, as far as it can be read without a passphrase.
struct File {
    path: PathBuf,
    public: Option<KeyData>,
    private: Option<Arc<PrivateKey>>,
    encrypted: bool,
    /// The private key is there and may not be used.
    exposed: bool,
}

/// Whether others may read a private key of ours: then they may have it, and it is not used
/// (`sshkey_perm_ok` in OpenSSH). What belongs to somebody else is theirs to look after.
fn is_exposed(path: &Path) -> bool {
    let us = rustix::process::getuid().as_raw();
    fs::metadata(path).is_ok_and(|meta| meta.uid() == us && meta.mode() & 0o077 != 0)
}

fn shown(path: &Path) -> String {
    text::clean(&path.display().to_string(), 120)
}

fn load(path: &Path, key_ring: &KeyRing) -> Result<File, String> {
    let file = load_any(path, key_ring)?;
    if (file.private.is_some() || file.encrypted) && is_exposed(path) {
        // An agent may still have the key: which one is wanted is known.
        return Ok(File { private: None, encrypted: false, exposed: true, ..file });
    }
    Ok(file)
}

fn load_any(path: &Path, key_ring: &KeyRing) -> Result<File, String> {
    let beside = public_half(path);
    let file = |public, private, encrypted| {
        Ok(File { path: path.to_owned(), public, private, encrypted, exposed: false })
    };
    if let Some(key) = key_ring.unlocked(path) {
        let public = Some(key.public_key().key_data().clone());
        return file(public, Some(key), false);
    }
    let text = match read_key_file(path) {
        Ok(text) => text,
        // The public half alone may stand for a key that only an agent holds.
        Err(_) if beside.is_some() => {
            return file(beside, None, false);
        }
        Err(error) => return Err(error.to_string()),
    };
    match decode(&text, None) {
        Ok(key) if !key.is_encrypted() => {
            let public = Some(key.public_key().key_data().clone());
            file(public, Some(Arc::new(key)), false)
        }
        Ok(key) => {
            let public = Some(key.public_key().key_data().clone());
            file(public, None, true)
        }
        Err(russh::keys::Error::KeyIsEncrypted) => {
            let own = PrivateKey::from_openssh(text.as_bytes()).ok();
            let public = own.map(|k| k.public_key().key_data().clone()).or(beside);
            file(public, None, true)
        }
        Err(_) if beside.is_some() => file(beside, None, false),
        Err(error) => Err(text::clean(&error.to_string(), 80)),
    }
}

/// The public key beside a private one (`FILE.pub`), or in the file itself.
fn public_half(path: &Path) -> Option<KeyData> {
    [with_suffix(path, ".pub"), path.to_owned()].iter().find_map(|file| {
        let text = read_key_file(file).ok()?;
        PublicKey::from_openssh(text.trim()).ok().map(|key| key.key_data().clone())
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn load_certificate(path: &Path) -> Result<Certificate, String> {
    let text = read_key_file(path).map_err(|error| error.to_string())?;
    Certificate::from_openssh(text.trim()).map_err(|error| text::clean(&error.to_string(), 80))
}

/// What files have to offer.
#[derive(Default)]
struct Files {
    keys: Vec<File>,
    /// Certificates that were named.
    explicit: Vec<(String, Certificate)>,
    /// Those beside a key, by its place, if none was named.
    beside: Vec<(usize, String, Certificate)>,
    /// What could not be used, for people.
    notes: Vec<String>,
}

impl Files {
    /// `named`: a key that is missing is worth a word, since the usual files need not be there.
    fn read(keys: &[PathBuf], named: bool, certificates: &[PathBuf], key_ring: &KeyRing) -> Self {
        let mut all = Self::default();
        for path in keys {
            match load(path, key_ring) {
                Ok(file) => all.keys.push(file),
                Err(_) if !named => {}
                Err(why) => all.notes.push(format!("{} ({why})", shown(path))),
            }
        }
        for path in certificates {
            match load_certificate(path) {
                Ok(certificate) => all.explicit.push((shown(path), certificate)),
                Err(why) => all.notes.push(format!("certificate {} ({why})", shown(path))),
            }
        }
        if certificates.is_empty() {
            for (index, file) in all.keys.iter().enumerate() {
                let path = with_suffix(&file.path, "-cert.pub");
                if let Ok(certificate) = load_certificate(&path) {
                    all.beside.push((index, shown(&path), certificate));
                }
            }
        }
        all
    }
}

/// Gathers what can be offered to `endpoint`.
pub(super) async fn gather(
    endpoint: &Endpoint,
    options: &ConnectOptions,
) -> Result<Identities, SshError> {
    let config = &endpoint.config;
    let (keys, named) = (config.identity_files.clone(), config.identity_files_named);
    let (certificates, key_ring) =
        (config.certificate_files.clone(), Arc::clone(&options.key_ring));
    let read = move || Ok(Files::read(&keys, named, &certificates, &key_ring));
    let Files { keys: files, explicit, beside, notes } = aside(read).await?;
    let mut all = Identities { notes, ..Identities::default() };
    let held = agent_keys::all(endpoint, options, &mut all).await;
    let wanted = |identity: &AgentIdentity| match identity {
        AgentIdentity::PublicKey { key, .. } => {
            files.iter().any(|f| f.public.as_ref() == Some(key.key_data()))
        }
        AgentIdentity::Certificate { certificate, .. } => {
            explicit.iter().any(|(_, c)| c == certificate)
                || beside.iter().any(|(_, _, c)| c == certificate)
        }
    };
    // Whichever way it knows the key: who has it plain signs for its certificate, too.
    let agents_of = |data: &KeyData| {
        let having = held.iter().filter(|held| held.identity.public_key().key_data() == data);
        let mut agents: Vec<usize> = having.flat_map(|held| held.agents.iter().copied()).collect();
        agents.sort_unstable();
        agents.dedup();
        agents
    };
    let in_agent = |data: &KeyData| !agents_of(data).is_empty();
    let from_agent = |identity: &AgentIdentity| {
        let comment = text::clean(identity.comment(), 60);
        Identity {
            key: identity.public_key().into_owned(),
            certificate: match identity {
                AgentIdentity::Certificate { certificate, .. } => Some(certificate.clone()),
                AgentIdentity::PublicKey { .. } => None,
            },
            holder: Holder::Agents(agents_of(identity.public_key().key_data())),
            label: format!("agent key {comment}"),
        }
    };
    let holder_of = |data: &KeyData| {
        let file = files.iter().find(|f| f.public.as_ref() == Some(data));
        let agents = agents_of(data);
        if !agents.is_empty() {
            return Some(Holder::Agents(agents));
        }
        let file = file?;
        match &file.private {
            Some(private) => Some(Holder::Us(Arc::clone(private))),
            None => file.encrypted.then(|| Holder::Locked(file.path.clone())),
        }
    };
    let certified = |label: &str, certificate: &Certificate| {
        let holder = holder_of(certificate.public_key())?;
        let key = PublicKey::new(certificate.public_key().clone(), "");
        let label = label.to_owned();
        Some(Identity { key, certificate: Some(certificate.clone()), holder, label })
    };
    for (label, certificate) in &explicit {
        match certified(label, certificate) {
            Some(identity) => all.list.push(identity),
            None => {
                all.notes.push(format!("certificate {label} (its private key is not here)"));
            }
        }
    }
    // Named keys that an agent holds, the agent's other keys, then the files.
    let held_keys = held.iter().map(|held| &held.identity);
    let (named, other): (Vec<_>, Vec<_>) = held_keys.partition(|identity| wanted(identity));
    all.list.extend(named.into_iter().map(from_agent));
    if !config.identities_only {
        all.list.extend(other.into_iter().map(from_agent));
    }
    for (index, file) in files.iter().enumerate() {
        let agent_has = file.public.as_ref().is_some_and(in_agent);
        if !agent_has {
            if let Some(private) = &file.private {
                all.list.push(Identity {
                    key: private.public_key().clone(),
                    certificate: None,
                    holder: Holder::Us(Arc::clone(private)),
                    label: shown(&file.path),
                });
            } else if file.encrypted {
                match &file.public {
                    Some(public) => all.list.push(Identity {
                        key: PublicKey::new(public.clone(), ""),
                        certificate: None,
                        holder: Holder::Locked(file.path.clone()),
                        label: shown(&file.path),
                    }),
                    None => all.locked.push(file.path.clone()),
                }
            } else if file.exposed {
                let path = quote::shell_word(&file.path.display().to_string());
                let path = text::clean(&path, 120);
                all.notes.push(format!(
                    "{} (not used: others may read it; run `chmod 600 {path}`)",
                    shown(&file.path)
                ));
            } else if config.identity_files_named {
                all.notes
                    .push(format!("{} (no private key, and no agent has it)", shown(&file.path)));
            }
        }
        for (_, label, certificate) in beside.iter().filter(|(of, ..)| *of == index) {
            all.list.extend(certified(label, certificate));
        }
    }
    all.locked.dedup();
    // The same thing is offered once.
    let mut seen: Vec<(KeyData, Option<Certificate>)> = Vec::new();
    all.list.retain(|identity| {
        let what = (identity.key.key_data().clone(), identity.certificate.clone());
        let new = !seen.contains(&what);
        if new {
            seen.push(what);
        }
        new
    });
    let Identities { list, notes, .. } = &mut all;
    list.retain(|identity| match too_short(identity, config.required_rsa_size) {
        Some(why) => {
            notes.push(why);
            false
        }
        None => true,
    });
    // Last what somebody must be asked for.
    all.list.sort_by_key(|identity| matches!(identity.holder, Holder::Locked(_)));
    Ok(all)
}

/// Why an RSA key is not offered: it is shorter than the configuration wants keys to be, ours as well as a host's
/// (`sshkey_check_rsa_length` in OpenSSH's `pubkey_prepare`).
fn too_short(identity: &Identity, required: u32) -> Option<String> {
    let bits = rsa_bits(identity.key.key_data()).filter(|bits| *bits < required)?;
    let label = &identity.label;
    Some(format!("{label} (not used: {bits} bits, and RequiredRSASize is {required})"))
}

/// `data` with our signature behind it.
pub(super) fn sign(
    key: &PrivateKey,
    hash: Option<HashAlg>,
    mut data: Vec<u8>,
) -> Result<Vec<u8>, ssh_key::Error> {
    use signature::Signer as _;
    let signed: ssh_key::Signature = match key.key_data() {
        ssh_key::private::KeypairData::Rsa(rsa) => (rsa, hash).try_sign(&data)?,
        other => other.try_sign(&data)?,
    };
    let mut blob = Vec::new();
    signed.encode(&mut blob)?;
    blob.encode(&mut data)?;
    Ok(data)
}

/// The name under which an identity is offered, for `PubkeyAcceptedAlgorithms`.
pub(super) fn algorithm_name(identity: &Identity, hash: Option<HashAlg>) -> String {
    let algorithm = match identity.key.algorithm() {
        Algorithm::Rsa { .. } => Algorithm::Rsa { hash },
        other => other,
    };
    if identity.certificate.is_some() {
        algorithm.to_certificate_type()
    } else {
        algorithm.as_str().to_owned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{ConfigFiles, Target};
    use super::*;

    #[tokio::test]
    async fn a_key_on_a_disk_that_is_slow_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let slow = dir.path().join("key.pub");
        let made = std::process::Command::new("mkfifo").arg(&slow).status().unwrap();
        assert!(made.success());
        let mut options = ConnectOptions::from_env(None);
        let text =
            format!("IdentityFile {}\nIdentityAgent none\n", dir.path().join("key").display());
        options.config = ConfigFiles::Text(text.as_str().into());
        let target = Target { name: "box".to_owned(), ..Target::default() };
        let endpoint = Endpoint::resolve(&target, &options).unwrap();
        // It is read when somebody writes to it, and that is done on the same thread.
        let reading = gather(&endpoint, &options);
        let writing = async { fs::write(&slow, "").unwrap() };
        let (found, ()) = tokio::join!(biased; reading, writing);
        assert_eq!(found.unwrap().notes.len(), 1);
    }
}
