//! The keys and certificates we have for a host, in the order in which OpenSSH tries them
//! (`pubkey_prepare` in its `sshconnect2.c`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{
    Algorithm, Certificate, HashAlg, PrivateKey, PublicKey, decode_secret_key, signature,
    ssh_encoding::Encode, ssh_key,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::agents::AgentStream;
use super::endpoint::{ConnectOptions, Endpoint};
use super::keyring::read_key_file;
use super::known_hosts;
use crate::base::text;

/// Time for the agents to list their keys.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// More keys are not tried: any server would have hung up long before.
const MAX_AGENT_KEYS: usize = 256;
/// As OpenSSH's `AGENT_MAX_LEN`.
const MAX_AGENT_MESSAGE: usize = 256 << 10;

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
/// In the name of a certificate's kind.
const CERTIFIED: &[u8] = b"-cert-v01@openssh.com";

/// An open agent.
pub(super) type Agent = AgentClient<Box<dyn AgentStream>>;

/// Who signs with a key.
#[derive(Clone)]
pub(super) enum Holder {
    /// The agent with this number.
    Agent(usize),
    /// We do.
    Us(Arc<PrivateKey>),
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
    pub(super) agents: Vec<Agent>,
    pub(super) list: Vec<Identity>,
    /// Encrypted keys for which nobody else signs.
    pub(super) locked: Vec<PathBuf>,
    /// What could not be used, for people.
    pub(super) notes: Vec<String>,
}

/// A key file, as far as it can be read without a passphrase.
struct File<'a> {
    path: &'a Path,
    public: Option<KeyData>,
    private: Option<Arc<PrivateKey>>,
    encrypted: bool,
}

fn shown(path: &Path) -> String {
    text::clean(&path.display().to_string(), 120)
}

fn load<'a>(path: &'a Path, options: &ConnectOptions) -> Result<File<'a>, String> {
    let beside = public_half(path);
    if let Some(key) = options.key_ring.unlocked(path) {
        let public = Some(key.public_key().key_data().clone());
        return Ok(File { path, public, private: Some(key), encrypted: false });
    }
    let text = match read_key_file(path) {
        Ok(text) => text,
        // The public half alone may stand for a key that only an agent holds.
        Err(_) if beside.is_some() => {
            return Ok(File { path, public: beside, private: None, encrypted: false });
        }
        Err(error) => return Err(error.to_string()),
    };
    match decode_secret_key(&text, None) {
        Ok(key) if !key.is_encrypted() => {
            let public = Some(key.public_key().key_data().clone());
            Ok(File { path, public, private: Some(Arc::new(key)), encrypted: false })
        }
        Ok(key) => {
            let public = Some(key.public_key().key_data().clone());
            Ok(File { path, public, private: None, encrypted: true })
        }
        Err(russh::keys::Error::KeyIsEncrypted) => {
            let own = PrivateKey::from_openssh(text.as_bytes()).ok();
            let public = own.map(|k| k.public_key().key_data().clone()).or(beside);
            Ok(File { path, public, private: None, encrypted: true })
        }
        Err(_) if beside.is_some() => {
            Ok(File { path, public: beside, private: None, encrypted: false })
        }
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

/// Gathers what can be offered to `endpoint`.
pub(super) async fn gather(endpoint: &Endpoint, options: &ConnectOptions) -> Identities {
    let config = &endpoint.config;
    let mut all = Identities::default();
    let mut files: Vec<File<'_>> = Vec::new();
    for path in &config.identity_files {
        match load(path, options) {
            Ok(file) => files.push(file),
            // The usual files need not be there.
            Err(_) if !config.identity_files_named => {}
            Err(why) => all.notes.push(format!("{} ({why})", shown(path))),
        }
    }
    let mut explicit: Vec<(String, Certificate)> = Vec::new();
    for path in &config.certificate_files {
        match load_certificate(path) {
            Ok(certificate) => explicit.push((shown(path), certificate)),
            Err(why) => all.notes.push(format!("certificate {} ({why})", shown(path))),
        }
    }
    // Certificates beside the keys count when none is named.
    let mut beside: Vec<(usize, String, Certificate)> = Vec::new();
    if config.certificate_files.is_empty() {
        for (index, file) in files.iter().enumerate() {
            let path = with_suffix(file.path, "-cert.pub");
            if let Ok(certificate) = load_certificate(&path) {
                beside.push((index, shown(&path), certificate));
            }
        }
    }
    let held = agent_keys(endpoint, options, &mut all).await;
    let wanted = |identity: &AgentIdentity| match identity {
        AgentIdentity::PublicKey { key, .. } => {
            files.iter().any(|f| f.public.as_ref() == Some(key.key_data()))
        }
        AgentIdentity::Certificate { certificate, .. } => {
            explicit.iter().any(|(_, c)| c == certificate)
                || beside.iter().any(|(_, _, c)| c == certificate)
        }
    };
    let from_agent = |number: usize, identity: &AgentIdentity| {
        let comment = text::clean(identity.comment(), 60);
        Identity {
            key: identity.public_key().into_owned(),
            certificate: match identity {
                AgentIdentity::Certificate { certificate, .. } => Some(certificate.clone()),
                AgentIdentity::PublicKey { .. } => None,
            },
            holder: Holder::Agent(number),
            label: format!("agent key {comment}"),
        }
    };
    let in_agent =
        |data: &KeyData| held.iter().find(|(_, identity)| identity.public_key().key_data() == data);
    let holder_of = |data: &KeyData| {
        let file = files.iter().find(|f| f.public.as_ref() == Some(data));
        let agent = || in_agent(data).map(|(number, _)| Holder::Agent(*number));
        agent().or_else(|| file?.private.clone().map(Holder::Us))
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
                let file = files
                    .iter()
                    .find(|f| f.encrypted && f.public.as_ref() == Some(certificate.public_key()));
                all.locked.extend(file.map(|f| f.path.to_owned()));
                if file.is_none() {
                    all.notes.push(format!("certificate {label} (its private key is not here)"));
                }
            }
        }
    }
    // Named keys that an agent holds, the agent's other keys, then the files.
    let (named, other): (Vec<_>, Vec<_>) = held.iter().partition(|(_, i)| wanted(i));
    for (number, identity) in named {
        all.list.push(from_agent(*number, identity));
    }
    if !config.identities_only {
        for (number, identity) in other {
            all.list.push(from_agent(*number, identity));
        }
    }
    for (index, file) in files.iter().enumerate() {
        let agent_has = file.public.as_ref().is_some_and(|data| in_agent(data).is_some());
        if !agent_has {
            if let Some(private) = &file.private {
                all.list.push(Identity {
                    key: private.public_key().clone(),
                    certificate: None,
                    holder: Holder::Us(Arc::clone(private)),
                    label: shown(file.path),
                });
            } else if file.encrypted {
                all.locked.push(file.path.to_owned());
            } else if config.identity_files_named {
                all.notes
                    .push(format!("{} (no private key, and no agent has it)", shown(file.path)));
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
    all
}

async fn agent_keys(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    all: &mut Identities,
) -> Vec<(usize, AgentIdentity)> {
    let opening = options.agents.open(&endpoint.agent);
    let Ok((streams, why)) = tokio::time::timeout(AGENT_PATIENCE, opening).await else {
        all.notes.push("SSH agent (does not answer)".to_owned());
        return Vec::new();
    };
    if streams.is_empty()
        && let Some(why) = why
    {
        all.notes.push(format!("SSH agent ({})", text::clean(&why, 120)));
    }
    let mut held = Vec::new();
    for mut stream in streams {
        match tokio::time::timeout(AGENT_PATIENCE, list(&mut stream)).await {
            Ok(Ok(keys)) => {
                let number = all.agents.len();
                held.extend(keys.into_iter().map(|key| (number, key)));
                all.agents.push(AgentClient::connect(stream));
            }
            Ok(Err(error)) => {
                all.notes.push(format!("SSH agent ({})", text::clean(&error.to_string(), 80)));
            }
            Err(_) => all.notes.push("SSH agent (does not answer)".to_owned()),
        }
    }
    held.truncate(MAX_AGENT_KEYS);
    held
}

/// Asks an agent for its keys. A key of a kind that is not known here is left out; russh's own asking
/// fails whole for one such key.
async fn list(stream: &mut Box<dyn AgentStream>) -> io::Result<Vec<AgentIdentity>> {
    stream.write_all(&[0, 0, 0, 1, REQUEST_IDENTITIES]).await?;
    stream.flush().await?;
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX_AGENT_MESSAGE {
        return Err(io::Error::other("its answer is too long"));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok(identities(&answer))
}

/// The keys in an agent's answer, as far as it makes sense.
fn identities(answer: &[u8]) -> Vec<AgentIdentity> {
    fn number(rest: &mut &[u8]) -> Option<usize> {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }
    let Some((&IDENTITIES_ANSWER, mut rest)) = answer.split_first() else { return Vec::new() };
    let Some(count) = number(&mut rest) else { return Vec::new() };
    let mut string = || {
        let length = number(&mut rest)?;
        let (head, tail) = rest.split_at_checked(length)?;
        rest = tail;
        Some(head)
    };
    let pairs = std::iter::from_fn(|| Some((string()?, string()?)));
    let identity = |(blob, comment): (&[u8], &[u8])| {
        let comment = String::from_utf8_lossy(comment).into_owned();
        if known_hosts::is_nested(blob) {
            return None;
        }
        // The kind stands first, with its length.
        let certified = blob.get(4..64.min(blob.len())).unwrap_or_default();
        if certified.windows(CERTIFIED.len()).any(|w| w == CERTIFIED)
            && let Ok(certificate) = Certificate::from_bytes(blob)
        {
            return Some(AgentIdentity::Certificate { certificate, comment });
        }
        let key = PublicKey::from_bytes(blob).ok()?;
        Some(AgentIdentity::PublicKey { key, comment })
    };
    pairs.take(count.min(MAX_AGENT_KEYS)).filter_map(identity).collect()
}

/// Signs for one identity, whoever holds its key.
pub(super) struct Signer<'a> {
    pub(super) identity: &'a Identity,
    pub(super) agents: &'a mut [Agent],
}

/// Why there is no signature.
#[derive(Debug)]
pub(super) struct NoSignature;

impl From<russh::SendError> for NoSignature {
    fn from(_: russh::SendError) -> Self {
        Self
    }
}

impl russh::Signer for Signer<'_> {
    type Error = NoSignature;

    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        hash: Option<HashAlg>,
        data: Vec<u8>,
    ) -> Result<Vec<u8>, Self::Error> {
        match &self.identity.holder {
            // An agent that holds only the plain key signs for its certificate as well.
            Holder::Agent(number) => {
                let agent = self.agents.get_mut(*number).ok_or(NoSignature)?;
                let plain = AgentIdentity::from(self.identity.key.clone());
                let held = match &self.identity.certificate {
                    Some(certificate) => {
                        let whole = AgentIdentity::from(certificate.clone());
                        if let Ok(signed) = agent.sign_request(&whole, hash, data.clone()).await {
                            return Ok(signed);
                        }
                        plain
                    }
                    None => plain,
                };
                agent.sign_request(&held, hash, data).await.map_err(|_| NoSignature)
            }
            Holder::Us(key) => sign(key, hash, data).map_err(|_| NoSignature),
        }
    }
}

/// `data` with our signature behind it.
fn sign(
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
