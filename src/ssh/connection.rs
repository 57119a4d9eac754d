//! Making an SSH connection, phase by phase, and running command lines on it.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use russh::client::{self, DisconnectReason, Handle, Handler};
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{
    Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect, Preferred, cipher,
};
use tokio::io::{AsyncRead, AsyncReadExt, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::bytes::{Buf, Bytes};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::auth::{self, KeyRing, Login};
use super::config::{self, StrictHostKeyChecking};
use super::cut::Cuttable;
use super::exec::{Connection, ExecChannel, ExecParts, ExitStatus, control};
use super::known_hosts::{self, KnownHosts, Verdict};
use super::{Questions, SshError};
use crate::base::text;

/// Output of one command that is held for a reader who does not read; beyond it the channel is
/// closed. russh has one window for the whole connection, so that holding back is no choice: it
/// would stall every other channel.
pub const MAX_UNREAD_BYTES: usize = 64 << 20;

/// A host as a person named it; what is left out comes from the SSH configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The name, as `ssh` would be given it.
    pub name: String,
    /// Address to connect to instead.
    pub address: Option<String>,
    /// Port of the server.
    pub port: Option<u16>,
    /// User to log in as.
    pub user: Option<String>,
    /// Keys to offer before those of the configuration.
    pub identity_files: Vec<String>,
    /// The known-hosts file to use instead of the user's.
    pub known_hosts: Option<String>,
}

/// What all connections of a person share.
#[derive(Clone)]
pub struct ConnectOptions {
    /// Text of the SSH configuration.
    pub config_text: Arc<str>,
    /// The person's home directory.
    pub home: PathBuf,
    /// Who logs in when nothing else is said.
    pub local_user: String,
    /// Socket of the SSH agent.
    pub agent_socket: Option<PathBuf>,
    /// Keys that were unlocked.
    pub key_ring: Arc<KeyRing>,
    /// Patience in each phase.
    pub timeouts: Timeouts,
}

/// How long each phase may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Looking up the name and connecting.
    pub tcp: Duration,
    /// From the first byte to an encrypted connection.
    pub handshake: Duration,
    /// Logging in.
    pub auth: Duration,
    /// Opening a channel and starting a command on it.
    pub channel: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp: Duration::from_secs(10),
            handshake: Duration::from_secs(15),
            auth: Duration::from_secs(15),
            channel: Duration::from_secs(15),
        }
    }
}

impl ConnectOptions {
    /// From the environment of this process; `config` instead of `~/.ssh/config`.
    pub fn from_env(config: Option<&Path>) -> Result<Self, SshError> {
        let home = etcetera::home_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let path = config.map_or_else(|| home.join(".ssh/config"), Path::to_owned);
        let text = config::load(&path)
            .map_err(|error| SshError::File { file: path, why: error.to_string() })?;
        let local_user = ["USER", "LOGNAME"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
            .unwrap_or_else(|| "root".to_owned());
        let agent_socket =
            std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty()).map(PathBuf::from);
        Ok(Self {
            config_text: text.into(),
            home,
            local_user,
            agent_socket,
            key_ring: Arc::default(),
            timeouts: Timeouts::default(),
        })
    }
}

/// A target with everything decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The name a person uses.
    pub name: String,
    /// Name or address to connect to.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// User to log in as.
    pub user: String,
    /// Private keys in order.
    pub identity_files: Vec<PathBuf>,
    /// They were named by somebody, so that a missing one is worth a word.
    pub identity_files_named: bool,
    /// Offer no other keys than these.
    pub identities_only: bool,
    /// Socket of the SSH agent.
    pub agent_socket: Option<PathBuf>,
    /// Files of known keys; the first is written to.
    pub known_hosts_files: Vec<PathBuf>,
    /// The name under which the host key is known.
    pub host_key_name: String,
    /// The port under which the host key is known.
    pub host_key_port: u16,
    /// What to do with an unknown key.
    pub strict: StrictHostKeyChecking,
    /// The way that is asked for and not supported.
    pub proxy: Option<String>,
    /// What the configuration asks for and does not get.
    pub warnings: Vec<String>,
}

impl Endpoint {
    /// Decides everything about `target` from the options.
    pub fn resolve(target: &Target, options: &ConnectOptions) -> Self {
        let found = config::resolve(&options.config_text, &target.name, &options.home);
        let home = &options.home;
        let host =
            target.address.clone().or(found.host_name).unwrap_or_else(|| target.name.clone());
        let port = target.port.or(found.port).unwrap_or(22);
        let user = target.user.clone().or(found.user).unwrap_or_else(|| options.local_user.clone());
        let mut identity_files: Vec<PathBuf> =
            target.identity_files.iter().map(|f| config::expand_home(f, home)).collect();
        for file in found.identity_files {
            if !identity_files.contains(&file) {
                identity_files.push(file);
            }
        }
        let identity_files_named = !identity_files.is_empty();
        if !identity_files_named {
            identity_files = ["id_ed25519", "id_ecdsa", "id_rsa"]
                .iter()
                .map(|name| home.join(".ssh").join(name))
                .collect();
        }
        let known_hosts_files = if let Some(file) = &target.known_hosts {
            vec![config::expand_home(file, home)]
        } else {
            let mut files = found.user_known_hosts_files;
            if files.is_empty() {
                files = vec![home.join(".ssh/known_hosts"), home.join(".ssh/known_hosts2")];
            }
            files.push(PathBuf::from("/etc/ssh/ssh_known_hosts"));
            files
        };
        let agent_socket = match found.identity_agent.as_deref() {
            None | Some("SSH_AUTH_SOCK") => options.agent_socket.clone(),
            Some(none) if none.eq_ignore_ascii_case("none") => None,
            Some(socket) => Some(PathBuf::from(socket)),
        };
        let (host_key_name, host_key_port) = match found.host_key_alias {
            Some(alias) => (alias, 22),
            None => (host.clone(), port),
        };
        // A jump is for reaching the configured name; an address of the deck's own is direct.
        let proxy = if target.address.is_some() { None } else { found.proxy };
        Self {
            name: target.name.clone(),
            host,
            port,
            user,
            identity_files,
            identity_files_named,
            identities_only: found.identities_only,
            agent_socket,
            known_hosts_files,
            host_key_name,
            host_key_port,
            strict: found.strict_host_key_checking.unwrap_or_default(),
            proxy,
            warnings: found.warnings,
        }
    }

    /// `host:port`, for messages.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn known_hosts_file(&self) -> PathBuf {
        self.known_hosts_files.first().cloned().unwrap_or_else(|| PathBuf::from("known_hosts"))
    }

    fn key_name(&self) -> String {
        known_hosts::entry_name(&self.host_key_name, self.host_key_port)
    }
}

/// Where a connection is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Looking up the name and connecting.
    Tcp,
    /// Agreeing on keys, checking the host's.
    Handshake,
    /// Proving who we are.
    Auth,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "connecting",
            Self::Handshake => "shaking hands",
            Self::Auth => "logging in",
        })
    }
}

/// Why an attempt ended; two reasons are no errors but work for a person.
enum Stop {
    Error(SshError),
    UnknownKey(Box<PublicKey>),
    Locked { files: Vec<PathBuf>, tried: Vec<String> },
}

impl From<SshError> for Stop {
    fn from(error: SshError) -> Self {
        Self::Error(error)
    }
}

/// Connects and logs in. Questions are asked between attempts, never while a server waits.
pub async fn connect(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    questions: &dyn Questions,
    on_phase: &(dyn Fn(Phase) + Send + Sync),
) -> Result<RusshConnection, SshError> {
    if let Some(what) = &endpoint.proxy {
        return Err(SshError::ProxyUnsupported { host: endpoint.name.clone(), what: what.clone() });
    }
    // One attempt for the host key, one for each locked key, and some for keys that change
    // between attempts.
    let mut attempts_left = endpoint.identity_files.len().saturating_add(3);
    loop {
        attempts_left = attempts_left.saturating_sub(1);
        match attempt(endpoint, options, on_phase).await {
            Ok(connection) => return Ok(connection),
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::UnknownKey(key)) => {
                accept_key(endpoint, &key, questions, attempts_left > 0).await?;
            }
            Err(Stop::Locked { files, mut tried }) => {
                let mut unlocked = false;
                for file in files {
                    let key = if questions.can_ask() && attempts_left > 0 {
                        options.key_ring.unlock(&file, questions).await
                    } else {
                        None
                    };
                    if key.is_some() {
                        unlocked = true;
                        break;
                    }
                    tried.push(format!("{} (encrypted, no passphrase given)", file.display()));
                }
                if !unlocked {
                    return Err(SshError::AuthFailed {
                        host: endpoint.name.clone(),
                        user: endpoint.user.clone(),
                        tried,
                    });
                }
            }
        }
    }
}

async fn accept_key(
    endpoint: &Endpoint,
    key: &PublicKey,
    questions: &dyn Questions,
    again: bool,
) -> Result<(), SshError> {
    let file = endpoint.known_hosts_file();
    let host = endpoint.key_name();
    let key_type = key.algorithm().to_string();
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    let without_asking = endpoint.strict == StrictHostKeyChecking::AcceptNew;
    let may_ask = endpoint.strict == StrictHostKeyChecking::Ask && questions.can_ask();
    if !again || !(without_asking || may_ask) {
        return Err(SshError::HostKeyUnknown { host, key_type, fingerprint, file });
    }
    if !without_asking && !questions.host_key(&host, &key_type, &fingerprint).await {
        return Err(SshError::HostKeyRejected { host, fingerprint });
    }
    known_hosts::append(&file, &endpoint.host_key_name, endpoint.host_key_port, key)
        .map_err(|error| SshError::KnownHosts { file, why: error.to_string() })
}

async fn attempt(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    on_phase: &(dyn Fn(Phase) + Send + Sync),
) -> Result<RusshConnection, Stop> {
    let limits = options.timeouts;
    let known = KnownHosts::load(&endpoint.known_hosts_files)
        .map_err(|(file, error)| SshError::File { file, why: error.to_string() })?;
    on_phase(Phase::Tcp);
    let socket = tcp(endpoint, limits.tcp).await?;

    on_phase(Phase::Handshake);
    let config = client_config(known.algorithms(&endpoint.host_key_name, endpoint.host_key_port));
    let shown: Arc<Mutex<Option<(PublicKey, Verdict)>>> = Arc::default();
    let (end_sender, end) = watch::channel(None);
    let handler = Client {
        known,
        host: endpoint.host_key_name.clone(),
        port: endpoint.host_key_port,
        shown: Arc::clone(&shown),
        end: end_sender,
    };
    let cut = CancellationToken::new();
    let guard = cut.clone().drop_guard();
    let stream = Cuttable::new(socket, cut.clone());
    let handshake = client::connect_stream(Arc::new(config), stream, handler);
    let mut handle = match timeout(limits.handshake, handshake).await {
        Err(_) => return Err(timed_out(endpoint, Phase::Handshake, limits.handshake).into()),
        Ok(Ok(handle)) => handle,
        Ok(Err(error)) => {
            let shown = shown.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(refused_key(endpoint, shown)
                .unwrap_or_else(|| Stop::Error(handshake_error(endpoint, &error))));
        }
    };

    on_phase(Phase::Auth);
    let login = auth::authenticate(&mut handle, endpoint, &options.key_ring);
    match timeout(limits.auth, login).await {
        Err(_) => Err(timed_out(endpoint, Phase::Auth, limits.auth).into()),
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(Login::In)) => Ok(RusshConnection {
            handle,
            end,
            cut,
            channel_timeout: limits.channel,
            address: endpoint.address(),
            _guard: guard,
        }),
        Ok(Ok(Login::Locked { files, tried })) => Err(Stop::Locked { files, tried }),
        Ok(Ok(Login::Failed { tried })) => Err(SshError::AuthFailed {
            host: endpoint.name.clone(),
            user: endpoint.user.clone(),
            tried,
        }
        .into()),
    }
}

fn timed_out(endpoint: &Endpoint, phase: Phase, after: Duration) -> SshError {
    SshError::Timeout { address: endpoint.address(), phase: phase.to_string(), after }
}

async fn tcp(endpoint: &Endpoint, limit: Duration) -> Result<TcpStream, SshError> {
    let deadline = tokio::time::Instant::now() + limit;
    let lookup = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port));
    let addresses: Vec<_> = match tokio::time::timeout_at(deadline, lookup).await {
        Err(_) => return Err(timed_out(endpoint, Phase::Tcp, limit)),
        Ok(Err(_)) => {
            return Err(SshError::NameNotFound { host: text::clean(&endpoint.host, 120) });
        }
        Ok(Ok(found)) => found.take(8).collect(),
    };
    let mut last = SshError::NameNotFound { host: text::clean(&endpoint.host, 120) };
    let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    for address in addresses {
        // One silent address must not use up the time of the others.
        let until = deadline.min(tokio::time::Instant::now() + share);
        match tokio::time::timeout_at(until, TcpStream::connect(address)).await {
            Err(_) => last = timed_out(endpoint, Phase::Tcp, limit),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                last = SshError::Refused { address: endpoint.address() };
            }
            Ok(Err(error)) => {
                last = SshError::Unreachable {
                    address: endpoint.address(),
                    why: text::clean(&error.to_string(), 120),
                };
            }
            Ok(Ok(socket)) => {
                // Small messages back and forth: waiting to fill packets costs 40 ms each.
                let _ = socket.set_nodelay(true);
                return Ok(socket);
            }
        }
    }
    Err(last)
}

fn client_config(known: Vec<Algorithm>) -> client::Config {
    // What is known first, then what is left; SHA-1 signatures not at all.
    let mut keys: Vec<Algorithm> = Vec::new();
    let all = Preferred::DEFAULT.key;
    for algorithm in known {
        keys.extend(all.iter().filter(|a| known_hosts::same_kind(a, &algorithm)).cloned());
    }
    for algorithm in all.iter() {
        if !keys.contains(algorithm) {
            keys.push(algorithm.clone());
        }
    }
    keys.retain(|a| *a != Algorithm::Rsa { hash: None });
    client::Config {
        nodelay: true,
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 3,
        maximum_packet_size: 65_535,
        preferred: Preferred {
            key: Cow::Owned(keys),
            // AES-GCM has hardware; russh's own order is 1.5 times slower.
            cipher: Cow::Borrowed(&[
                cipher::AES_256_GCM,
                cipher::AES_128_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    }
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
    })
}

fn handshake_error(endpoint: &Endpoint, error: &russh::Error) -> SshError {
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

/// Our side of russh's callbacks: judges the host key, refuses whatever the server wants to open.
struct Client {
    known: KnownHosts,
    host: String,
    port: u16,
    shown: Arc<Mutex<Option<(PublicKey, Verdict)>>>,
    end: watch::Sender<Option<String>>,
}

// Every channel a server could ask us to open is refused: russh accepts them by default.
impl Handler for Client {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        let verdict = self.known.check(&self.host, self.port, key);
        let good = verdict == Verdict::Known;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some((key.clone(), verdict));
        Ok(good)
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        let (words, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                (format!("the server said: {}", text::clean(&info.message, 160)), Ok(()))
            }
            DisconnectReason::Error(russh::Error::KeepaliveTimeout) => {
                ("the host no longer answers".to_owned(), Err(russh::Error::KeepaliveTimeout))
            }
            DisconnectReason::Error(error) => (text::clean(&error.to_string(), 160), Err(error)),
        };
        self.end.send_replace(Some(words));
        result
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<client::Msg>,
        _connected_address: &str,
        _connected_port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _channel: Channel<client::Msg>,
        _socket_path: &str,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _channel: Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<client::Msg>,
        _host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<client::Msg>,
        _socket_path: &str,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<client::Msg>,
        _originator_address: &str,
        _originator_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }
}

async fn refuse(reply: client::ChannelOpenHandle) -> Result<(), russh::Error> {
    reply.reject(russh::ChannelOpenFailure::AdministrativelyProhibited).await;
    Ok(())
}

/// A connection that is logged in. Dropping it cuts the socket.
pub struct RusshConnection {
    handle: Handle<Client>,
    end: watch::Receiver<Option<String>>,
    cut: CancellationToken,
    channel_timeout: Duration,
    address: String,
    _guard: DropGuard,
}

impl RusshConnection {
    async fn open(&self, command: &str) -> Result<ExecChannel, SshError> {
        let refused = |error: russh::Error| match error {
            russh::Error::ChannelOpenFailure(reason) => {
                SshError::ChannelRefused { why: format!("{reason:?}") }
            }
            other => SshError::closed(&other.to_string()),
        };
        let channel = self.handle.channel_open_session().await.map_err(refused)?;
        let (mut read, write) = channel.split();
        write.exec(true, command).await.map_err(refused)?;
        loop {
            match read.wait().await {
                Some(ChannelMsg::Success) => break,
                Some(ChannelMsg::Failure) => {
                    let _ = write.close().await;
                    return Err(SshError::ChannelRefused {
                        why: "it does not run the command".to_owned(),
                    });
                }
                Some(_) => {}
                None => return Err(SshError::closed("before the command ran")),
            }
        }
        let (control, parts) = control();
        let (stdin, feed) = tokio::io::duplex(256 << 10);
        let (output, received) = mpsc::unbounded_channel();
        let unread = Arc::new(Unread::default());
        let inbox = Inbox { received, current: Bytes::new(), unread: Arc::clone(&unread) };
        tokio::spawn(pump(read, write, feed, Outbox { output: Some(output), unread }, parts));
        Ok(ExecChannel { stdin: Box::new(stdin), stdout: Box::new(inbox), control })
    }
}

#[async_trait]
impl Connection for RusshConnection {
    async fn exec(&self, command: &str) -> Result<ExecChannel, SshError> {
        match timeout(self.channel_timeout, self.open(command)).await {
            Ok(opened) => opened,
            Err(_) => Err(SshError::Timeout {
                address: self.address.clone(),
                phase: "opening a channel".to_owned(),
                after: self.channel_timeout,
            }),
        }
    }

    async fn closed(&self) -> SshError {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(why) => SshError::closed(why.as_deref().unwrap_or_default()),
            Err(_) => SshError::closed("the server hung up"),
        }
    }

    async fn close(&self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "en");
        if let Ok(Ok(())) = timeout(Duration::from_secs(1), goodbye).await {
            let _ = timeout(Duration::from_secs(1), self.closed()).await;
        }
        self.cut.cancel();
    }
}

/// What a channel's pump and its reader share.
#[derive(Default)]
struct Unread {
    bytes: AtomicUsize,
    overflow: AtomicBool,
}

struct Outbox {
    output: Option<mpsc::UnboundedSender<Bytes>>,
    unread: Arc<Unread>,
}

impl Outbox {
    /// Whether there is still room.
    fn push(&mut self, data: Bytes) -> bool {
        let Some(output) = &self.output else { return true };
        let held = self.unread.bytes.fetch_add(data.len(), Ordering::Relaxed);
        if held.saturating_add(data.len()) > MAX_UNREAD_BYTES {
            self.unread.overflow.store(true, Ordering::Release);
            self.output = None;
            return false;
        }
        if output.send(data).is_err() {
            // Nobody reads any more: the rest is drained and dropped.
            self.output = None;
        }
        true
    }
}

/// Owns a channel: drains it always, feeds it, closes it when its user is gone.
async fn pump(
    mut read: ChannelReadHalf,
    write: ChannelWriteHalf<client::Msg>,
    input: DuplexStream,
    mut outbox: Outbox,
    parts: ExecParts,
) {
    let mut status = ExitStatus::Lost;
    let ended_by_server = {
        let feeding = feed_stdin(input, &write);
        tokio::pin!(feeding);
        let mut fed = false;
        loop {
            tokio::select! {
                message = read.wait() => match message {
                    Some(ChannelMsg::Data { data }) => {
                        if !outbox.push(data) {
                            break false;
                        }
                    }
                    Some(ChannelMsg::ExtendedData { data, .. }) => parts.stderr.push(&data),
                    Some(ChannelMsg::Eof) => outbox.output = None,
                    Some(ChannelMsg::ExitStatus { exit_status }) => {
                        status = ExitStatus::Code(exit_status);
                    }
                    Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                        status = ExitStatus::Signal(signal(&signal_name));
                    }
                    Some(ChannelMsg::Close) | None => break true,
                    Some(_) => {}
                },
                () = &mut feeding, if !fed => fed = true,
                () = parts.cancel.cancelled() => break false,
            }
        }
    };
    outbox.output = None;
    parts.exit.send_replace(Some(status));
    if !ended_by_server {
        let _ = timeout(Duration::from_secs(5), write.close()).await;
        // What was on its way is drained, so that it stalls nobody.
        let drain = async { while read.wait().await.is_some() {} };
        let _ = timeout(Duration::from_mins(1), drain).await;
    }
}

async fn feed_stdin(mut input: DuplexStream, write: &ChannelWriteHalf<client::Msg>) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(n @ 1..) = input.read(&mut buffer).await {
        let piece = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
        if write.data_bytes(piece).await.is_err() {
            return;
        }
    }
    let _ = write.eof().await;
}

fn signal(signal: &russh::Sig) -> String {
    text::clean(
        &match signal {
            russh::Sig::Custom(name) => name.clone(),
            known => format!("{known:?}"),
        },
        20,
    )
}

/// The reader's end of a channel's output.
struct Inbox {
    received: mpsc::UnboundedReceiver<Bytes>,
    current: Bytes,
    unread: Arc<Unread>,
}

impl AsyncRead for Inbox {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.current.is_empty() {
            match self.received.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(data)) => {
                    self.unread.bytes.fetch_sub(data.len(), Ordering::Relaxed);
                    self.current = data;
                }
                Poll::Ready(None) if self.unread.overflow.load(Ordering::Acquire) => {
                    return Poll::Ready(Err(std::io::Error::other(format!(
                        "more than {MAX_UNREAD_BYTES} bytes were not read in time"
                    ))));
                }
                Poll::Ready(None) => return Poll::Ready(Ok(())),
            }
        }
        let n = self.current.len().min(buf.remaining());
        buf.put_slice(self.current.get(..n).unwrap_or_default());
        self.current.advance(n);
        Poll::Ready(Ok(()))
    }
}
