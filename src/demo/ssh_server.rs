//! SSH servers on loopback, one a simulated host: russh's server side, real processes behind it.
//!
//! One client key is let in; `exec` is the only thing that can be asked for. A host knows nothing
//! of GPUs here: what makes it a GPU host is its environment.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, MethodKind, MethodSet,
};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Most bytes that wait for a process which does not read its standard input. More ends it.
///
/// russh grants its window when bytes arrive, not when they are used; were they left in the
/// channel, a slow reader would stall every other channel of the connection, its own output
/// included. So they are taken out at once and wait here.
const MAX_STDIN_WAITING: usize = 1 << 30;

/// Piece in which a process's output is read.
const PIECE: usize = 32 << 10;

/// Connections to one host at once.
const MAX_CONNECTIONS: usize = 64;

/// What a host's processes are given.
#[derive(Clone, Debug)]
pub struct HostSetup {
    /// Its name.
    pub name: String,
    /// Its home directory; processes start there.
    pub home: PathBuf,
    /// The whole environment of its processes, besides `HOME`, `USER` and `PATH`.
    pub env: BTreeMap<String, String>,
}

/// A simulated host's SSH server; it and everything it runs in the foreground end on drop.
#[derive(Debug)]
pub struct SimHost {
    /// The host's name.
    pub name: String,
    /// Where its server listens.
    pub addr: SocketAddr,
    /// Its host key.
    pub host_key: PublicKey,
    /// Its home directory.
    pub home: PathBuf,
    _task: JoinSet<()>,
}

impl SimHost {
    /// Starts the server on a free port of 127.0.0.1. Only `client` is let in, as any user.
    pub async fn start(setup: HostSetup, client: PublicKey) -> io::Result<Self> {
        std::fs::create_dir_all(&setup.home)?;
        let key = new_key()?;
        let host_key = key.public_key().clone();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let config = Arc::new(Config {
            methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
            auth_rejection_time: Duration::from_millis(200),
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![key],
            inactivity_timeout: None,
            nodelay: true,
            ..Config::default()
        });
        let (name, home) = (setup.name.clone(), setup.home.clone());
        let mut task = JoinSet::new();
        task.spawn(serve(listener, config, Arc::new(setup), client));
        Ok(Self { name, addr, host_key, home, _task: task })
    }

    /// The host's line for a `known_hosts` file.
    pub fn known_hosts_line(&self) -> io::Result<String> {
        let key = self.host_key.to_openssh().map_err(io::Error::other)?;
        Ok(format!("[{}]:{} {key}\n", self.addr.ip(), self.addr.port()))
    }
}

/// A new ed25519 key.
pub fn new_key() -> io::Result<PrivateKey> {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)
        .map_err(io::Error::other)
}

/// Writes a private key in OpenSSH's format, for its owner only, and its public half beside it.
pub fn write_key(key: &PrivateKey, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    let public = key.public_key().to_openssh().map_err(io::Error::other)?;
    std::fs::write(path.with_extension("pub"), format!("{public}\n"))
}

async fn serve(
    listener: TcpListener,
    config: Arc<Config>,
    setup: Arc<HostSetup>,
    client: PublicKey,
) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let connection = Connection {
            setup: Arc::clone(&setup),
            client: client.clone(),
            opened: HashMap::new(),
            processes: JoinSet::new(),
        };
        let config = Arc::clone(&config);
        connections.spawn(async move {
            let Ok(session) = russh::server::run_stream(config, stream, connection).await else {
                return;
            };
            // Dropped with the server, the guard ends russh's own task too.
            let handle = session.handle();
            let _guard = Disconnect(handle);
            let _ = session.await;
        });
    }
}

/// russh runs a connection in a task of its own, which nobody else can end.
struct Disconnect(russh::server::Handle);

impl Drop for Disconnect {
    fn drop(&mut self) {
        let handle = self.0.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = handle
                    .disconnect(russh::Disconnect::ByApplication, String::new(), String::new())
                    .await;
            });
        }
    }
}

/// One client's connection.
struct Connection {
    setup: Arc<HostSetup>,
    client: PublicKey,
    /// Channels that have asked for nothing yet.
    opened: HashMap<ChannelId, Channel<Msg>>,
    processes: JoinSet<()>,
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        // Comments are no part of a key.
        let known = key.public_key.key_data() == self.client.key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        // OpenSSH's MaxSessions.
        while self.processes.try_join_next().is_some() {}
        if self.opened.len() + self.processes.len() < 10 {
            self.opened.insert(channel.id(), channel);
            reply.accept().await;
        } else {
            reply.reject(russh::ChannelOpenFailure::ResourceShortage).await;
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let command = std::str::from_utf8(data).ok().map(str::to_owned);
        match (self.opened.remove(&id), command) {
            (Some(channel), Some(command)) => {
                session.channel_success(id)?;
                self.processes.spawn(run(Arc::clone(&self.setup), command, channel));
                Ok(())
            }
            _ => session.channel_failure(id),
        }
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.opened.remove(&id);
        Ok(())
    }
}

/// A child in a process group of its own, ended with its owner. What has left the group (a daemon
/// with a session of its own) lives on, as on any host.
struct Group {
    child: tokio::process::Child,
    pid: Option<Pid>,
}

impl Group {
    fn kill(&mut self) {
        // Once the leader is reaped its number may be somebody else's.
        if self.child.id().is_some()
            && let Some(pid) = self.pid
        {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn run(setup: Arc<HostSetup>, command: String, channel: Channel<Msg>) {
    let (read, write) = channel.split();
    let status = match start(&setup, &command) {
        Ok(group) => serve_process(group, read, &write).await,
        Err(error) => {
            let words = format!("{}: {error}\n", setup.name);
            let _ = write.extended_data_bytes(1, words.into_bytes()).await;
            Some(126)
        }
    };
    let _ = write.eof().await;
    if let Some(status) = status {
        let _ = write.exit_status(status).await;
    }
    let _ = write.close().await;
}

fn start(setup: &HostSetup, command: &str) -> io::Result<Group> {
    let child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .current_dir(&setup.home)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
        .env("HOME", &setup.home)
        .env("USER", "demo")
        .envs(&setup.env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    Ok(Group { child, pid })
}

/// Carries everything both ways until the process has ended and its output is out; its status
/// (128 + signal when it was killed), or none when the client left first.
async fn serve_process(
    mut group: Group,
    read: ChannelReadHalf,
    write: &ChannelWriteHalf<Msg>,
) -> Option<u32> {
    let stdin = group.child.stdin.take()?;
    let mut stdout = group.child.stdout.take()?;
    let mut stderr = group.child.stderr.take()?;
    let waiting = AtomicUsize::new(0);
    let (to_stdin, for_stdin) = mpsc::unbounded_channel();
    let output = async {
        tokio::join!(copy(&mut stdout, write, None), copy(&mut stderr, write, Some(1)));
    };
    let ended = async {
        let (status, ()) = tokio::join!(group.child.wait(), output);
        status.ok().map(|status| {
            use std::os::unix::process::ExitStatusExt as _;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            u32::try_from(code).unwrap_or(255)
        })
    };
    let input =
        async { tokio::join!(feed(stdin, for_stdin, &waiting), std::future::pending::<()>()).1 };
    let status = tokio::select! {
        status = ended => Some(status),
        () = client_leaves(read, to_stdin, &waiting) => None,
        () = input => None,
    };
    group.kill();
    status.flatten()
}

/// One stream of output, as fast as the client's window takes it.
async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &ChannelWriteHalf<Msg>,
    kind: Option<u32>,
) {
    let mut writer = to.make_writer_ext(kind);
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let Some(bytes) = piece.get(..length) else { return };
                if writer.write_all(bytes).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Takes what the client sends out of the channel at once; returns when the client has left, or
/// when too much waits.
async fn client_leaves(
    mut read: ChannelReadHalf,
    to_stdin: mpsc::UnboundedSender<Vec<u8>>,
    waiting: &AtomicUsize,
) {
    let mut to_stdin = Some(to_stdin);
    loop {
        match read.wait().await {
            Some(ChannelMsg::Data { data }) => {
                let before = waiting.fetch_add(data.len(), Ordering::Relaxed);
                if before > MAX_STDIN_WAITING {
                    return;
                }
                // The process may have closed its input; then the bytes are of no use.
                if let Some(sender) = &to_stdin {
                    let _ = sender.send(data.to_vec());
                }
            }
            Some(ChannelMsg::Eof) => to_stdin = None,
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    }
}

/// Writes to the process what waits for it, and closes its input after the client's end of file.
async fn feed(
    mut stdin: tokio::process::ChildStdin,
    mut pieces: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting: &AtomicUsize,
) {
    while let Some(piece) = pieces.recv().await {
        let written = stdin.write_all(&piece).await;
        waiting.fetch_sub(piece.len(), Ordering::Relaxed);
        if written.is_err() {
            return;
        }
    }
}
