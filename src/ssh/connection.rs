//! Making an SSH connection, phase by phase.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client;
use russh::keys::{HashAlg, PublicKey};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::auth::{self, Ended, Login};
use super::channel::{Parts, RusshConnection};
use super::config::StrictHostKeyChecking;
use super::cut::{Cuttable, Heard};
use super::endpoint::{ConnectOptions, Endpoint, aside};
use super::handler::{Client, Judge};
use super::known_hosts::{self, KnownHosts, TooLong, Verdict};
use super::pace::Doors;
use super::proposal::{Certificates, KnownKinds, NothingLeft, proposal};
use super::way::{self, Way};
use super::{KeyRing, Questions, SshError};
use crate::base::text;

/// A connection is asked so often whether it is still there, unless the configuration says
/// otherwise.
const ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Where a connection is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looking up the name and connecting.
    Tcp,
    /// Waiting for the place that is jumped over.
    Jump,
    /// Agreeing on keys, checking the host's.
    Handshake,
    /// Proving who we are.
    Auth,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "connecting",
            Self::Jump => "waiting for the jump host",
            Self::Handshake => "shaking hands",
            Self::Auth => "logging in",
        })
    }
}

/// Why an attempt ended; two reasons are no errors but work for a person.
enum Stop {
    Error(SshError),
    UnknownKey(Box<PublicKey>),
    Locked { files: Vec<std::path::PathBuf>, tried: Vec<String> },
}

impl From<SshError> for Stop {
    fn from(error: SshError) -> Self {
        Self::Error(error)
    }
}

/// Connects and logs in. Questions about keys are asked between attempts, never while a server
/// waits.
pub async fn connect(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    questions: &dyn Questions,
    on_phase: &(dyn Fn(Phase) + Send + Sync),
) -> Result<RusshConnection, SshError> {
    if let Some(fault) = &endpoint.config.fault {
        return Err(fault.clone().into());
    }
    // One attempt for the host key, one for each locked key, and some for keys that change
    // between attempts.
    let mut attempts_left = endpoint.config.identity_files.len().saturating_add(3);
    let can_ask = questions.can_ask() && !endpoint.config.batch_mode;
    let mut skip_locked = !can_ask;
    loop {
        attempts_left = attempts_left.saturating_sub(1);
        match attempt(endpoint, options, questions, on_phase, skip_locked).await {
            Ok(connection) => return Ok(connection),
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::UnknownKey(key)) => {
                accept_key(endpoint, options, &key, questions, attempts_left > 0).await?;
            }
            Err(Stop::Locked { files, tried }) => {
                let mut unlocked = false;
                for file in files {
                    if attempts_left > 0
                        && options.key_ring.unlock(&file, questions).await.is_some()
                    {
                        unlocked = true;
                        break;
                    }
                }
                if !unlocked && attempts_left == 0 {
                    return Err(SshError::AuthFailed {
                        host: endpoint.name.clone(),
                        user: endpoint.config.user.clone(),
                        tried,
                    });
                }
                // Without the keys there may still be another way in.
                skip_locked = !unlocked;
            }
        }
    }
}

async fn accept_key(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    key: &PublicKey,
    questions: &dyn Questions,
    again: bool,
) -> Result<(), SshError> {
    let host = endpoint.key_name();
    let key_type = key.algorithm().to_string();
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    let config = &endpoint.config;
    let without_asking = config.strict_host_key_checking == StrictHostKeyChecking::AcceptNew;
    let may_ask = config.strict_host_key_checking == StrictHostKeyChecking::Ask
        && questions.can_ask()
        && !config.batch_mode;
    let said = if !again || !(without_asking || may_ask) {
        None
    } else if without_asking {
        Some(true)
    } else {
        questions.host_key(&host, &key_type, &fingerprint).await
    };
    match said {
        Some(true) => {}
        Some(false) => return Err(SshError::HostKeyRejected { host, fingerprint }),
        None => {
            let file = endpoint.known_hosts_file.clone();
            let file = file.unwrap_or_else(|| PathBuf::from("known_hosts"));
            return Err(SshError::HostKeyUnknown { host, key_type, fingerprint, file });
        }
    }
    let (endpoint, key_ring, key) = (endpoint.clone(), Arc::clone(&options.key_ring), key.clone());
    aside(move || {
        keep_key(&endpoint, &key_ring, &key);
        Ok(())
    })
    .await
}

/// Writes an accepted key down.
fn keep_key(endpoint: &Endpoint, key_ring: &KeyRing, key: &PublicKey) {
    let (name, port) = (&endpoint.host_key_name, endpoint.host_key_port);
    let host = endpoint.key_name();
    if let Some(file) = &endpoint.known_hosts_file
        && let Err(error) =
            known_hosts::append(file, name, port, endpoint.config.hash_known_hosts, key)
    {
        let file = file.display();
        tracing::warn!(%host, %file, %error, "the accepted host key could not be written down");
    }
    // What is written down counts as long as it stands there. `/dev/null` keeps nothing, and a file
    // that cannot be written is no reason to stay away: only then is memory what is left.
    let files = &endpoint.known_hosts_files;
    let kept = KnownHosts::load(files, name, port)
        .is_ok_and(|known| known.check(name, port, key) == Verdict::Known);
    if !kept {
        key_ring.accept(&host, files, key.key_data());
    }
}

/// Reads what the host's key is judged by.
fn judge(
    endpoint: &Endpoint,
    key_ring: &KeyRing,
    loopback: bool,
) -> Result<(Judge, KnownKinds), SshError> {
    let (host, port) = (endpoint.host_key_name.clone(), endpoint.host_key_port);
    let known = KnownHosts::load(&endpoint.known_hosts_files, &host, port)
        .map_err(|TooLong { file, why }| SshError::File { file, why })?;
    let config = &endpoint.config;
    let (revoked, revoked_file) = match &config.revoked_host_keys {
        None => (Vec::new(), std::path::PathBuf::new()),
        Some(file) => {
            let keys = known_hosts::read_revoked(file)
                .map_err(|error| SshError::File { file: file.clone(), why: error.to_string() })?;
            (keys, file.clone())
        }
    };
    let kinds = KnownKinds {
        keys: known.algorithms(&host, port),
        certificates: if known.has_authority(&host, port) {
            Certificates::All
        } else if !revoked.is_empty() || known.has_revocation(&host, port) {
            Certificates::OfKnownKinds
        } else {
            Certificates::None
        },
    };
    // Strictly, only what stands in a file counts.
    let accepted = match config.strict_host_key_checking {
        StrictHostKeyChecking::Yes => Vec::new(),
        _ => key_ring.accepted(&endpoint.key_name(), &endpoint.known_hosts_files),
    };
    let judge = Judge {
        accepted,
        known,
        host,
        port,
        revoked,
        revoked_file,
        ca_algorithms: config.ca_signature_algorithms.clone(),
        required_rsa_bits: config.required_rsa_size,
        trusted: config.no_host_authentication_for_localhost && loopback,
    };
    Ok((judge, kinds))
}

async fn attempt(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    questions: &dyn Questions,
    on_phase: &(dyn Fn(Phase) + Send + Sync),
    skip_locked: bool,
) -> Result<RusshConnection, Stop> {
    let doors = Arc::new(options.pace.doors());
    // Boxed: with a jump over a jump they lie within each other on one stack.
    let work = Box::pin(go_in(endpoint, options, questions, on_phase, &doors, skip_locked));
    doors.during(work).await
}

async fn go_in(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    questions: &dyn Questions,
    on_phase: &(dyn Fn(Phase) + Send + Sync),
    doors: &Arc<Doors>,
    skip_locked: bool,
) -> Result<RusshConnection, Stop> {
    let limits = endpoint.timeouts(options);
    on_phase(Phase::Tcp);
    let Way { stream, mut kept, loopback, at_once, hang_up } =
        way::open(endpoint, options, questions, on_phase, doors).await?;

    on_phase(Phase::Handshake);
    let (to, key_ring) = (endpoint.clone(), Arc::clone(&options.key_ring));
    let (judge, kinds) = aside(move || judge(&to, &key_ring, loopback)).await?;
    let config = client_config(endpoint, &kinds)?;
    let alive = config.keepalive_interval.unwrap_or(ALIVE_INTERVAL);
    let count = u32::try_from(config.keepalive_max).unwrap_or(3);
    let shown: Arc<Mutex<Option<(PublicKey, Verdict)>>> = Arc::default();
    let banner: Arc<Mutex<Option<String>>> = Arc::default();
    let (end_sender, end) = watch::channel(None);
    let refused = Arc::<AtomicBool>::default();
    let handler = Client {
        judge,
        shown: Arc::clone(&shown),
        banner: Arc::clone(&banner),
        end: end_sender.clone(),
        refused: Arc::clone(&refused),
    };
    let cut = CancellationToken::new();
    let guard = cut.clone().drop_guard();
    kept.end_together(cut.clone(), end_sender.clone());
    let turn = Arc::new(options.pace.turn());
    let heard = Heard::new();
    let waiting = options.pace.shake_hands(Arc::clone(&turn), Arc::clone(doors));
    let stream = Cuttable::new(stream, cut.clone(), Arc::clone(&heard), waiting);
    let work = async {
        let handshake = Box::pin(client::connect_stream(Arc::new(config), stream, handler));
        let mut handle = match turn.within(limits.handshake, handshake).await {
            // What speaks, and not SSH, is not silent.
            None => {
                let late = || timed_out(endpoint, Phase::Handshake, limits.handshake);
                return Err(not_ssh(endpoint, &heard.first()).unwrap_or_else(late).into());
            }
            Some(Ok(handle)) => handle,
            Some(Err(error)) => {
                let shown = shown.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(stop) = refused_key(endpoint, shown) {
                    return Err(stop);
                }
                let first = heard.first();
                if let Some(why) = kept.said(first.is_empty()).await {
                    return Err(SshError::ProxyCommand { why }.into());
                }
                return Err(handshake_error(endpoint, &error, &first).into());
            }
        };
        on_phase(Phase::Auth);
        let ended = Ended { why: end.clone(), refused, hang_up };
        let login =
            auth::authenticate(&mut handle, endpoint, options, questions, ended, skip_locked)
                .await?;
        Ok((handle, login))
    };
    let (handle, login) = Box::pin(turn.while_heard(&heard, work)).await?;
    match login {
        Login::In => Ok(RusshConnection::new(Parts {
            handle,
            end,
            end_sender,
            cut,
            guard,
            heard,
            kept,
            at_once,
            channel_timeout: limits.channel,
            address: endpoint.address(),
            silence: alive * (count + 1) + limits.channel,
        })),
        Login::Locked { files, tried } => Err(Stop::Locked { files, tried }),
        Login::Failed { mut tried } => {
            let said = banner.lock().unwrap_or_else(PoisonError::into_inner).take();
            tried.extend(said.map(|said| format!("the host says: {said}")));
            Err(SshError::AuthFailed {
                host: endpoint.name.clone(),
                user: endpoint.config.user.clone(),
                tried,
            }
            .into())
        }
    }
}

pub(super) fn timed_out(endpoint: &Endpoint, phase: Phase, after: Duration) -> SshError {
    SshError::Timeout { address: endpoint.address(), phase: phase.to_string(), after }
}

fn client_config(endpoint: &Endpoint, known: &KnownKinds) -> Result<client::Config, SshError> {
    let config = &endpoint.config;
    let preferred = proposal(config, known).map_err(|NothingLeft { keyword, asked }| {
        SshError::Algorithms { keyword: keyword.to_owned(), asked: text::clean(&asked, 120) }
    })?;
    let mut limits = russh::Limits::default();
    if let Some(bytes) = config.rekey_bytes {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        limits.rekey_read_limit = bytes;
        limits.rekey_write_limit = bytes;
    }
    if let Some(time) = config.rekey_interval {
        limits.rekey_time_limit = time.max(Duration::from_secs(1));
    }
    Ok(client::Config {
        nodelay: true,
        keepalive_interval: Some(config.server_alive_interval.unwrap_or(ALIVE_INTERVAL)),
        keepalive_max: usize::try_from(config.server_alive_count_max).unwrap_or(3),
        maximum_packet_size: 65_535,
        limits,
        preferred,
        ..client::Config::default()
    })
}

fn refused_key(endpoint: &Endpoint, shown: Option<(PublicKey, Verdict)>) -> Option<Stop> {
    let (key, verdict) = shown?;
    let host = endpoint.key_name();
    Some(match verdict {
        Verdict::Known => return None,
        Verdict::Unknown { .. } => Stop::UnknownKey(Box::new(key)),
        Verdict::Changed { file, line, known } => Stop::Error(SshError::HostKeyChanged {
            host,
            shown: format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256)),
            known,
            file,
            line,
        }),
        Verdict::Revoked { file, line } => {
            Stop::Error(SshError::HostKeyRevoked { host, file, line })
        }
        Verdict::Bad { why } => Stop::Error(SshError::HostKeyBad { host, why }),
    })
}

/// What sshd says instead of a greeting when it is too busy for us: it is one all the same.
const BUSY: [&str; 2] = ["Exceeded MaxStartups", "Not allowed at this time"];

/// How a server of SSH 2 greets (RFC 4253, 4.2 and 5.1).
const GREETINGS: [&[u8]; 2] = [b"SSH-2.0-", b"SSH-1.99-"];

/// The line by which an answer is not of SSH 2, that of another version before the first one; a server may say other
/// things before its greeting.
fn other_greeting(first: &[u8]) -> Option<String> {
    let lines = || first.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|l| !l.is_empty());
    // The last line may not be whole yet.
    let is_ours =
        |line: &[u8]| GREETINGS.iter().any(|g| line.starts_with(g) || g.starts_with(line));
    if lines().any(is_ours) {
        return None;
    }
    let line = lines().find(|line| line.starts_with(b"SSH-")).or_else(|| lines().next())?;
    Some(text::clean(&String::from_utf8_lossy(line), 120))
}

/// That a server has said something, and not that it speaks SSH 2; one that is too busy does.
fn not_ssh(endpoint: &Endpoint, first: &[u8]) -> Option<SshError> {
    let said = other_greeting(first)?;
    if BUSY.iter().any(|words| said.starts_with(words)) {
        return Some(SshError::Closed { why: format!("the server said: {said}") });
    }
    let why = format!("it answers `{said}`");
    Some(SshError::Protocol { address: endpoint.address(), why })
}

/// `first` is what the server said first.
fn handshake_error(endpoint: &Endpoint, error: &russh::Error, first: &[u8]) -> SshError {
    if let russh::Error::NoCommonAlgo { kind, theirs, .. } = error {
        return SshError::NothingInCommon {
            address: endpoint.address(),
            keyword: keyword_of(kind),
            theirs: text::clean(&theirs.join(","), 200),
        };
    }
    if let Some(other) = not_ssh(endpoint, first) {
        return other;
    }
    match error {
        russh::Error::IO(_) | russh::Error::Disconnect | russh::Error::HUP => {
            SshError::Closed { why: "the server hung up during the handshake".to_owned() }
        }
        other => SshError::Protocol {
            address: endpoint.address(),
            why: text::clean(&other.to_string(), 200),
        },
    }
}

/// The keyword that decides about such algorithms.
fn keyword_of(kind: &russh::AlgorithmKind) -> &'static str {
    match kind {
        russh::AlgorithmKind::Kex => "KexAlgorithms",
        russh::AlgorithmKind::Key => "HostKeyAlgorithms",
        russh::AlgorithmKind::Cipher => "Ciphers",
        russh::AlgorithmKind::Compression => "Compression",
        russh::AlgorithmKind::Mac => "MACs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_greeting_of_ssh_is_told_by_its_first_line() {
        for (first, said) in [
            ("SSH-2.0-OpenSSH_9.2\r\n", None),
            ("debug1: hello\r\nSSH-2.0-x\r\n", None),
            ("", None),
            ("\r\n", None),
            ("HTTP/1.1 400 Bad\r\nServer: x\r\n", Some("HTTP/1.1 400 Bad")),
            ("\r\n220 mail ESMTP\r\n", Some("220 mail ESMTP")),
            ("Exceeded MaxStartups\r\n", Some("Exceeded MaxStartups")),
            ("SSH-1.99-Cisco\r\n", None),
            ("hello\r\nSSH-2", None),
            ("SSH-1.5-old\r\n", Some("SSH-1.5-old")),
            ("hello\r\nSSH-3.0-new\r\n", Some("SSH-3.0-new")),
        ] {
            assert_eq!(other_greeting(first.as_bytes()).as_deref(), said, "{first}");
        }
    }
}
