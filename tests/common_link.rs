//! Links to this very machine for tests: the real agent as a child process ([`ChildLink`]), and a
//! plain stand-in for what of it a test of something else needs ([`LocalLink`]).
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::missing_panics_doc,
    missing_docs
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use gpudeck::base::{Bytes, DeckId, EpochCell, HostName, RankId, Timestamp};
use gpudeck::fleet::{DialStream, HostLink, LinkError};
use gpudeck::wire::{
    DialAccess, DialTarget, DirEntry, FromAgent, LogChunk, PROTOCOL_VERSION, RankReport, RankStart,
    RankStatus, Refusal, Reply, Request, ToAgent, Verb,
};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

fn host() -> HostName {
    "here".parse().unwrap()
}

fn refused(refusal: Refusal) -> LinkError {
    LinkError::Refused { host: host(), refusal }
}

/// Connects to a Unix socket without an agent, with an agent's refusals.
pub async fn dial_directly(target: &DialTarget) -> Result<Box<dyn DialStream>, LinkError> {
    let DialTarget::Unix(path) = target else { panic!("only sockets are dialled here") };
    match tokio::net::UnixStream::connect(path).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(refused(Refusal::NoFile { path: path.clone() }))
        }
        Err(e) => Err(refused(Refusal::Failed { message: format!("cannot connect: {e}") })),
    }
}

type Waiting = Arc<Mutex<BTreeMap<u64, oneshot::Sender<Result<Reply, Refusal>>>>>;

/// `gpudeck agent` as a child process, its requests multiplexed.
pub struct ChildLink {
    name: HostName,
    next_id: AtomicU64,
    stdin: tokio::sync::Mutex<ChildStdin>,
    waiting: Waiting,
    reader: tokio::task::JoinHandle<()>,
    state_dir: PathBuf,
    _child: Child,
}

impl ChildLink {
    /// Starts the agent; an error if it ends or does not say hello.
    pub async fn start(state_dir: &Path) -> Result<Self, String> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
            .args(["agent", "--state-dir"])
            .arg(state_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| e.to_string())?;
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let waiting = Waiting::default();
        let answered = Arc::clone(&waiting);
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(FromAgent::Reply { id, result }) = serde_json::from_str(&line)
                    && let Some(asker) = answered.lock().unwrap().remove(&id)
                {
                    let _ = asker.send(result);
                }
            }
            // Dropping the askers tells them that the agent is gone.
            answered.lock().unwrap().clear();
        });
        let link = Self {
            name: host(),
            next_id: AtomicU64::new(1),
            stdin: tokio::sync::Mutex::new(stdin),
            waiting,
            reader,
            state_dir: state_dir.to_owned(),
            _child: child,
        };
        match link.request(Request::Hello { protocol: PROTOCOL_VERSION }).await {
            Ok(Reply::Hello { .. }) => Ok(link),
            other => Err(format!("{other:?}")),
        }
    }
}

impl Drop for ChildLink {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[async_trait]
impl HostLink for ChildLink {
    fn host(&self) -> &HostName {
        &self.name
    }

    async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, sender);
        let mut line = serde_json::to_vec(&ToAgent { id, request }).unwrap();
        line.push(b'\n');
        let down = |why: &str| LinkError::Down { host: host(), why: why.to_owned(), hint: None };
        self.stdin.lock().await.write_all(&line).await.map_err(|e| down(&e.to_string()))?;
        match tokio::time::timeout(Duration::from_mins(1), answer).await {
            Ok(Ok(result)) => result.map_err(refused),
            Ok(Err(_)) => Err(down("the agent has ended")),
            Err(_) => Err(LinkError::Timeout { host: host() }),
        }
    }

    async fn dial(
        &self,
        target: &DialTarget,
        access: DialAccess,
    ) -> Result<Box<dyn DialStream>, LinkError> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpudeck"));
        command.args(["agent", "--state-dir"]).arg(&self.state_dir).arg("dial");
        if let DialAccess::Act { deck, epoch } = access {
            command.args(["--deck", &deck.to_string(), "--epoch", &epoch.0.to_string()]);
        }
        command.arg(match target {
            DialTarget::Unix(path) => format!("unix:{path}"),
            DialTarget::Tcp(port) => format!("tcp:{port}"),
        });
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Ok(Box::new(ChildStream {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().unwrap(),
            stderr: child.stderr.take().unwrap(),
            said: Vec::new(),
            silent: true,
            _child: child,
        }))
    }
}

/// The two pipes of a dial. One that ends before it said anything was refused: then reading fails
/// with what its standard error says.
struct ChildStream {
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: ChildStderr,
    said: Vec<u8>,
    silent: bool,
    _child: Child,
}

impl AsyncRead for ChildStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stdout).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.silent = false;
        }
        if !self.silent {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut piece = [0; 1024];
            let mut read = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.stderr).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                break;
            }
            let piece = read.filled().to_vec();
            self.said.extend_from_slice(&piece);
        }
        let message = String::from_utf8_lossy(&self.said).trim().to_owned();
        if message.is_empty() {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(std::io::Error::other(refused(Refusal::Failed { message }))))
    }
}

impl AsyncWrite for ChildStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let Some(stdin) = &mut self.stdin else { return Poll::Ready(Ok(0)) };
        match ready!(Pin::new(stdin).poll_write(cx, bytes)) {
            // The dial has ended: why is found by reading.
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Poll::Ready(Ok(bytes.len())),
            other => Poll::Ready(other),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}

/// The agent, with its host claimed for the deck, or the stand-in if this binary has no agent.
pub async fn any_link(state_dir: &Path, deck: DeckId) -> (Arc<dyn HostLink>, EpochCell) {
    let link = match ChildLink::start(state_dir).await {
        Ok(link) => link,
        Err(why) => {
            println!("no agent ({why}): the stand-in is used");
            return (Arc::new(LocalLink::new(state_dir)), EpochCell::default());
        }
    };
    let claim = Request::Claim {
        deck,
        epoch: None,
        holder: "test".to_owned(),
        lease_ms: 60_000,
        force: false,
    };
    match link.request(claim).await {
        Ok(Reply::Claimed { epoch }) => (Arc::new(link), EpochCell::new(epoch)),
        other => panic!("{other:?}"),
    }
}

struct LocalRank {
    child: std::process::Child,
    since: Timestamp,
    log: PathBuf,
    ended: Option<RankStatus>,
}

/// Keeps processes itself and answers as an agent would; knows no lock and no epoch.
pub struct LocalLink {
    name: HostName,
    dir: PathBuf,
    ranks: Mutex<BTreeMap<RankId, LocalRank>>,
}

impl LocalLink {
    pub fn new(dir: &Path) -> Self {
        Self { name: host(), dir: dir.to_owned(), ranks: Mutex::default() }
    }

    fn start(&self, start: RankStart) -> Result<Reply, Refusal> {
        let mut ranks = self.ranks.lock().unwrap();
        if ranks.contains_key(&start.rank) {
            return Ok(Reply::Done);
        }
        for path in &start.files {
            if !Path::new(path).exists() {
                return Err(Refusal::NoFile { path: path.clone() });
            }
        }
        check_ports(&start.ports)?;
        let log = self.dir.join(start.rank.unit_name());
        let output = File::create(&log).unwrap();
        let child = std::process::Command::new(&start.argv[0])
            .args(&start.argv[1..])
            .envs(&start.env)
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .process_group(0)
            .spawn()
            .map_err(|e| Refusal::Failed { message: e.to_string() })?;
        ranks.insert(start.rank, LocalRank { child, since: now(), log, ended: None });
        Ok(Reply::Done)
    }

    fn status(&self, rank: &RankId) -> Option<RankStatus> {
        let mut ranks = self.ranks.lock().unwrap();
        let rank = ranks.get_mut(rank)?;
        if rank.ended.is_none()
            && let Some(status) = rank.child.try_wait().unwrap()
        {
            let last_lines = std::fs::read_to_string(&rank.log).unwrap_or_default();
            rank.ended = Some(RankStatus::Exited {
                code: status.code(),
                signal: status.signal(),
                at: now(),
                last_lines,
            });
        }
        Some(
            rank.ended
                .clone()
                .unwrap_or(RankStatus::Running { pid: rank.child.id(), since: rank.since }),
        )
    }

    async fn stop(&self, rank: &RankId, grace: Duration) -> Reply {
        for (signal, limit) in [
            (rustix::process::Signal::TERM, grace),
            (rustix::process::Signal::KILL, Duration::from_secs(10)),
        ] {
            let deadline = Instant::now() + limit;
            let Some(RankStatus::Running { pid, .. }) = self.status(rank) else { break };
            let group = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            let _ = rustix::process::kill_process_group(group, signal);
            while Instant::now() < deadline {
                if !matches!(self.status(rank), Some(RankStatus::Running { .. })) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Reply::Done
    }

    fn read_log(&self, rank: &RankId, offset: Option<u64>, length: u32) -> Result<Reply, Refusal> {
        let ranks = self.ranks.lock().unwrap();
        let missing = || Refusal::NoFile { path: rank.unit_name() };
        let text = std::fs::read(&ranks.get(rank).ok_or_else(missing)?.log).unwrap();
        let length = length as usize;
        let from = offset
            .map_or(text.len().saturating_sub(length), |o| usize::try_from(o).unwrap())
            .min(text.len());
        let to = (from + length).min(text.len());
        Ok(Reply::Log(LogChunk {
            offset: from as u64,
            next_offset: to as u64,
            text: String::from_utf8_lossy(&text[from..to]).into_owned(),
        }))
    }
}

impl Drop for LocalLink {
    fn drop(&mut self) {
        for rank in self.ranks.lock().unwrap().values_mut() {
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

fn check_ports(ports: &[u16]) -> Result<(), Refusal> {
    for port in ports {
        if std::net::TcpListener::bind(("127.0.0.1", *port)).is_err() {
            return Err(Refusal::PortInUse { port: *port, holder: None });
        }
    }
    Ok(())
}

#[async_trait]
impl HostLink for LocalLink {
    fn host(&self) -> &HostName {
        &self.name
    }

    async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        match request {
            Request::Act { verb: Verb::StartRank(start), .. } => self.start(*start),
            Request::Act { verb: Verb::StopRank { rank, grace_ms }, .. } => {
                Ok(self.stop(&rank, Duration::from_millis(grace_ms)).await)
            }
            Request::Act { verb: Verb::RemoveRank { rank }, .. } => {
                self.ranks.lock().unwrap().remove(&rank);
                Ok(Reply::Done)
            }
            Request::Ranks { deck } => {
                let ids: Vec<RankId> = self.ranks.lock().unwrap().keys().cloned().collect();
                Ok(Reply::Ranks(
                    ids.into_iter()
                        .filter(|id| deck.is_none_or(|d| id.deck == d))
                        .filter_map(|rank| {
                            self.status(&rank).map(|status| RankReport { rank, status })
                        })
                        .collect(),
                ))
            }
            Request::ReadLog { rank, offset, length } => self.read_log(&rank, offset, length),
            Request::CheckNeeds { ports, .. } => check_ports(&ports).map(|()| Reply::Done),
            Request::ListDir { path } => match std::fs::read_dir(&path) {
                Err(_) => Err(Refusal::NoFile { path }),
                Ok(entries) => Ok(Reply::Entries(
                    entries
                        .map(|e| DirEntry {
                            name: e.unwrap().file_name().into_string().unwrap(),
                            size: Bytes::ZERO,
                            is_dir: false,
                        })
                        .collect(),
                )),
            },
            other => Err(Refusal::Failed { message: format!("not in the stand-in: {other:?}") }),
        }
        .map_err(refused)
    }

    async fn dial(
        &self,
        target: &DialTarget,
        _access: DialAccess,
    ) -> Result<Box<dyn DialStream>, LinkError> {
        dial_directly(target).await
    }
}
