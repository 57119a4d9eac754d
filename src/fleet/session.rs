//! One run of the agent on one connection: the handshake, the requests under way, what it tells.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::dial::Dialled;
use super::facts::WatchedFacts;
use super::following::{Attention, Picture};
use super::install::AgentCommand;
use super::lines::LineReader;
use super::outbox::Outbox;
use super::{FleetEvent, LinkError};
use crate::base::{HostName, text};
use crate::ssh::{Connection, ExecChannel, ExecControl, ExitStatus, SshError};
use crate::wire::packed::read_line;
use crate::wire::{
    DialAccess, DialTarget, FromAgent, HostFacts, MAX_LINE_BYTES, PROTOCOL_VERSION, Refusal, Reply,
    Request, ToAgent, Verb,
};

/// Channels beside the agent's own on one connection: sshd allows ten by default.
const MAX_DIALS: usize = 6;
const HELLO_PATIENCE: Duration = Duration::from_secs(20);
/// An agent that is subscribed to and says nothing for so long hangs.
const SILENCE: Duration = Duration::from_mins(1);
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);
const DIAL_PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks at the host's clock.
const CLOCK_AGAIN: Duration = Duration::from_mins(1);
/// Questions in one look; the one with the shortest way counts.
const CLOCK_TRIES: usize = 3;
/// Lines before the first answer that are no JSON: what a login shell's start-up files print.
const MAX_CHATTER_LINES: usize = 200;

/// Messages before its hello that are kept.
const MAX_EARLY: usize = 16;

/// Requests about samples carry this id: nobody waits for their answers.
const SAMPLES: u64 = 2;

/// The question that went out with the first words ([`super::FleetOptions::first_question`]).
const FIRST_QUESTION: u64 = 3;

type Answer = Result<Reply, Refusal>;

/// Waits for something again and again, each time no longer than this. One timer serves all of it: it is
/// looked at when it goes off, and not set anew for each message of each host.
struct Patience {
    longest: Duration,
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl Patience {
    fn new(longest: Duration) -> Self {
        Self { longest, timer: Box::pin(tokio::time::sleep(longest)) }
    }

    /// What comes of it; none: it took too long.
    async fn wait_for<T>(&mut self, what: impl Future<Output = T>) -> Option<T> {
        let until = tokio::time::Instant::now() + self.longest;
        let mut what = pin!(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Some(done),
                () = &mut self.timer => {
                    if tokio::time::Instant::now() >= until {
                        return None;
                    }
                    self.timer.as_mut().reset(until);
                }
            }
        }
    }
}

/// A running agent that has said hello.
pub(super) struct Session {
    pub(super) host: HostName,
    connection: Arc<dyn Connection>,
    command: AgentCommand,
    lines: mpsc::Sender<Vec<u8>>,
    /// None once the link is lost: nobody may wait then.
    pending: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    next_id: AtomicU64,
    dials: Arc<Semaphore>,
    attention: watch::Receiver<Attention>,
    /// The answer to the question that went out with the first words, when it comes.
    first_answer: Mutex<Option<oneshot::Receiver<Answer>>>,
}

/// The two pipes of a running agent.
pub(super) struct Running {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    reader: LineReader<Box<dyn AsyncRead + Send + Unpin>>,
    /// What it said before its hello: a sample may be ready sooner than all facts.
    early: Vec<FromAgent>,
    control: ExecControl,
    lines: mpsc::Receiver<Vec<u8>>,
}

/// Why an agent could not be talked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionError {
    /// The connection.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// It ended, or never began.
    #[error("the agent ended: {0}")]
    Ended(String),
    /// It does not speak.
    #[error("the agent does not say hello")]
    Silent,
    /// It spoke, and nothing was heard of it for so long.
    #[error("nothing was heard for {} s", .0.as_secs())]
    Quiet(Duration),
    /// It speaks another language.
    #[error("{0}")]
    Refused(Refusal),
    /// It speaks nonsense.
    #[error("the agent answers nonsense: {0}")]
    Nonsense(String),
}

/// Forgets a request however the waiting for it ends.
struct Waiting<'a> {
    id: u64,
    of: &'a Session,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut pending = self.of.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = pending.as_mut() {
            pending.remove(&self.id);
        }
    }
}

/// An agent that runs and was told the first words; its answer is awaited.
pub(super) struct Begun {
    pub(super) command: AgentCommand,
    pub(super) stdin: Box<dyn AsyncWrite + Send + Unpin>,
    pub(super) reader: LineReader<Box<dyn AsyncRead + Send + Unpin>>,
    pub(super) control: ExecControl,
    /// There was a question among the first words.
    pub(super) asked: bool,
}

/// What an agent is told at once: hello, what to send, and what is asked first. Its first sample and that answer then come
/// without another round trip.
pub(super) fn first_words(
    attention: &mut watch::Receiver<Attention>,
    question: Option<&Request>,
) -> Result<String, SessionError> {
    let mut words = line_of(1, Request::Hello { protocol: PROTOCOL_VERSION })?;
    words.extend(line_of(SAMPLES, attention.borrow_and_update().request())?);
    if let Some(question) = question {
        words.extend(line_of(FIRST_QUESTION, question.clone())?);
    }
    String::from_utf8(words).map_err(|error| SessionError::Nonsense(error.to_string()))
}

impl Session {
    /// Runs the agent and shakes hands with it.
    pub(super) async fn start(
        host: HostName,
        connection: Arc<dyn Connection>,
        command: AgentCommand,
        mut attention: watch::Receiver<Attention>,
        question: Option<Request>,
    ) -> Result<(Self, HostFacts, Running), SessionError> {
        let first = first_words(&mut attention, question.as_ref())?;
        let ExecChannel { mut stdin, stdout, control } =
            connection.exec(&command.agent_line()).await?;
        // An agent that ended already says why by its end.
        if stdin.write_all(first.as_bytes()).await.is_ok() {
            let _ = stdin.flush().await;
        }
        let reader = LineReader::new(stdout, MAX_LINE_BYTES);
        let begun = Begun { command, stdin, reader, control, asked: question.is_some() };
        Self::shake_hands(host, connection, begun, attention).await
    }

    /// Hears the answer of an agent that was told the first words.
    pub(super) async fn shake_hands(
        host: HostName,
        connection: Arc<dyn Connection>,
        begun: Begun,
        attention: watch::Receiver<Attention>,
    ) -> Result<(Self, HostFacts, Running), SessionError> {
        Self::hear(host, connection, begun, attention, HELLO_PATIENCE).await
    }

    async fn hear(
        host: HostName,
        connection: Arc<dyn Connection>,
        begun: Begun,
        attention: watch::Receiver<Attention>,
        patience: Duration,
    ) -> Result<(Self, HostFacts, Running), SessionError> {
        let Begun { command, stdin, mut reader, control, asked } = begun;
        let hello = read_hello(&mut reader, &control, &*connection);
        let (facts, early) = match timeout(patience, hello).await {
            Ok(hello) => hello?,
            Err(_) if connection.is_there().await => return Err(SessionError::Silent),
            // It is not the agent that is silent.
            Err(_) => return Err(no_answer(host.as_str(), "starting the agent", patience)),
        };
        let (lines, receiver) = mpsc::channel(64);
        let mut pending = HashMap::new();
        let first_answer = asked.then(|| {
            let (sender, answer) = oneshot::channel();
            pending.insert(FIRST_QUESTION, sender);
            answer
        });
        let session = Self {
            host,
            connection,
            command,
            lines,
            pending: Mutex::new(Some(pending)),
            next_id: AtomicU64::new(10),
            dials: Arc::new(Semaphore::new(MAX_DIALS)),
            attention,
            first_answer: Mutex::new(first_answer),
        };
        Ok((session, facts, Running { stdin, reader, early, control, lines: receiver }))
    }

    /// Carries messages until the agent or the connection is lost; returns why.
    pub(super) async fn serve(
        &self,
        running: Running,
        facts: WatchedFacts,
        outbox: &Outbox,
    ) -> SessionError {
        let Running { mut stdin, mut reader, early, control, mut lines } = running;
        let write = async {
            while let Some(line) = lines.recv().await {
                if stdin.write_all(&line).await.is_err() || stdin.flush().await.is_err() {
                    break;
                }
            }
            // The reader sees the end too, and knows more about it.
            std::future::pending::<()>().await;
        };
        let read = async {
            let mut picture = Picture::default();
            for message in early {
                self.take(message, &mut picture, outbox);
            }
            let mut patience = Patience::new(SILENCE);
            loop {
                match patience.wait_for(reader.next()).await {
                    None => {
                        return SessionError::Quiet(SILENCE);
                    }
                    Some(Err(error)) => {
                        return SessionError::Nonsense(text::clean(&error.to_string(), 200));
                    }
                    Some(Ok(None)) => return end_of(&control, &*self.connection).await,
                    Some(Ok(Some(line))) => match picture.line(line) {
                        Some(sample) => {
                            outbox.put(FleetEvent::Sample { host: self.host.clone(), sample });
                        }
                        None => match read_line(line) {
                            Ok(message) => self.take(message, &mut picture, outbox),
                            Err(error) => {
                                let shown = text::clean(&String::from_utf8_lossy(line), 80);
                                return SessionError::Nonsense(format!("{error}: {shown}"));
                            }
                        },
                    },
                }
            }
        };
        let lost = async { SessionError::Ssh(self.connection.closed().await) };
        // Each of them is asked only when it is woken itself, and not with every message of the host.
        let mut beside = FuturesUnordered::from_iter([
            lost.boxed(),
            write.map(|()| SessionError::Silent).boxed(),
            self.pay_attention().map(|()| SessionError::Silent).boxed(),
            self.watch_clock(outbox).map(|()| SessionError::Silent).boxed(),
            self.watch_facts(facts, outbox).map(|()| SessionError::Silent).boxed(),
        ]);
        let why = tokio::select! {
            biased;
            why = read => why,
            Some(why) = beside.next() => why,
        };
        drop(beside);
        self.fail_all();
        why
    }

    /// Tells the agent how closely it is followed, whenever that changes.
    async fn pay_attention(&self) {
        let mut attention = self.attention.clone();
        while attention.changed().await.is_ok() {
            let request = attention.borrow_and_update().request();
            if let Ok(line) = line_of(SAMPLES, request)
                && self.lines.send(line).await.is_err()
            {
                break;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Compares the host's clock with ours, now and then.
    async fn watch_clock(&self, outbox: &Outbox) {
        loop {
            let mut best: Option<(Duration, i64)> = None;
            for _ in 0..CLOCK_TRIES {
                let asked = Instant::now();
                let before = SystemTime::now();
                let Ok(Some(Reply::Clock { at, .. })) = self.request(Request::Clock).await else {
                    break;
                };
                let way = asked.elapsed();
                let ours = before.duration_since(UNIX_EPOCH).unwrap_or_default() + way / 2;
                let ours = i64::try_from(ours.as_millis()).unwrap_or(i64::MAX);
                let offset = i64::try_from(at.0).unwrap_or(i64::MAX).saturating_sub(ours);
                if best.is_none_or(|(shortest, _)| way < shortest) {
                    best = Some((way, offset));
                }
            }
            if let Some((way, offset_ms)) = best {
                let round_trip_us = u64::try_from(way.as_micros()).unwrap_or(u64::MAX);
                let host = self.host.clone();
                outbox.put(FleetEvent::Clock { host, offset_ms, round_trip_us });
            }
            tokio::time::sleep(CLOCK_AGAIN).await;
        }
    }

    fn take(&self, message: FromAgent, picture: &mut Picture, outbox: &Outbox) {
        let host = self.host.clone();
        match message {
            FromAgent::Reply { id, result } => {
                let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(asker) = pending.as_mut().and_then(|p| p.remove(&id)) {
                    // An asker that gave up needs no answer.
                    let _ = asker.send(result);
                }
            }
            FromAgent::Sample(sample) => {
                let sample = Arc::from(sample);
                picture.whole(Arc::clone(&sample));
                outbox.put(FleetEvent::Sample { host, sample });
            }
            FromAgent::Change { since_ms, change } => match picture.change(since_ms, change) {
                Some(sample) => outbox.put(FleetEvent::Sample { host, sample }),
                None => {
                    // Asked again, it begins with a whole one. A full queue: the next change
                    // does not fit either.
                    if let Ok(line) = line_of(SAMPLES, self.attention.borrow().request()) {
                        let _ = self.lines.try_send(line);
                    }
                }
            },
            FromAgent::Ranks(ranks) => outbox.put(FleetEvent::Ranks { host, ranks }),
            // Lines are read unpacked.
            FromAgent::Packed(_) => {}
        }
    }

    /// From now on nobody waits here.
    pub(super) fn fail_all(&self) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Asks the agent. `Ok(None)`: the link was lost meanwhile.
    pub(super) async fn request(&self, request: Request) -> Result<Option<Reply>, LinkError> {
        let patience = patience(&request);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = line_of(id, request).map_err(|error| LinkError::Unexpected {
            host: self.host.clone(),
            what: error.to_string(),
        })?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(pending) = pending.as_mut() else { return Ok(None) };
            pending.insert(id, sender);
        }
        let _waiting = Waiting { id, of: self };
        let exchange = async {
            if self.lines.send(line).await.is_err() {
                return None;
            }
            receiver.await.ok()
        };
        match timeout(patience, exchange).await {
            Err(_) => Err(LinkError::Timeout { host: self.host.clone() }),
            Ok(None) => Ok(None),
            Ok(Some(Ok(reply))) => Ok(Some(reply)),
            Ok(Some(Err(refusal))) => Err(LinkError::Refused { host: self.host.clone(), refusal }),
        }
    }

    /// The answer to the question that went out with the first words; none if it was heard already, or not given.
    pub(super) async fn first_answer(&self) -> Option<Reply> {
        let answer = self.first_answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        timeout(REQUEST_PATIENCE, answer?).await.ok()?.ok()?.ok()
    }

    /// A byte stream to a socket on the host.
    pub(super) async fn dial(
        &self,
        target: &DialTarget,
        access: DialAccess,
    ) -> Result<Dialled, DialError> {
        let permit = timeout(DIAL_PATIENCE, Arc::clone(&self.dials).acquire_owned())
            .await
            .map_err(|_| DialError::Busy)?
            .map_err(|_| DialError::Busy)?;
        let channel = self.connection.exec(&self.command.dial_line(target, access)).await?;
        Ok(Dialled::new(channel, permit))
    }
}

/// Why a stream could not be opened.
pub(super) enum DialError {
    /// All channels are in use.
    Busy,
    /// The connection.
    Ssh(SshError),
}

impl From<SshError> for DialError {
    fn from(error: SshError) -> Self {
        Self::Ssh(error)
    }
}

fn line_of(id: u64, request: Request) -> Result<Vec<u8>, SessionError> {
    let nonsense = |error: serde_json::Error| SessionError::Nonsense(error.to_string());
    let mut line = serde_json::to_vec(&ToAgent { id, request }).map_err(nonsense)?;
    line.push(b'\n');
    if line.len() > MAX_LINE_BYTES {
        return Err(SessionError::Nonsense("the request is too long".to_owned()));
    }
    Ok(line)
}

/// How long an answer may take: what the request itself allows, and something for the way.
fn patience(request: &Request) -> Duration {
    match request {
        Request::Http { timeout_ms, .. } => {
            Duration::from_millis(*timeout_ms).saturating_add(Duration::from_secs(5))
        }
        Request::Act { verb: Verb::StopRank { grace_ms, .. }, .. } => {
            Duration::from_millis(*grace_ms).saturating_add(REQUEST_PATIENCE)
        }
        _ => REQUEST_PATIENCE,
    }
}

async fn read_hello<R: AsyncRead + Unpin>(
    reader: &mut LineReader<R>,
    control: &ExecControl,
    connection: &dyn Connection,
) -> Result<(HostFacts, Vec<FromAgent>), SessionError> {
    let mut early = Vec::new();
    for _ in 0..MAX_CHATTER_LINES {
        let line = reader
            .next()
            .await
            .map_err(|error| SessionError::Nonsense(text::clean(&error.to_string(), 200)))?;
        let Some(line) = line else { return Err(end_of(control, connection).await) };
        match read_line(line) {
            Ok(FromAgent::Reply { id: 1, result: Ok(Reply::Hello { protocol, facts }) }) => {
                if protocol != PROTOCOL_VERSION {
                    return Err(SessionError::Refused(Refusal::Protocol {
                        agent: protocol,
                        asked: PROTOCOL_VERSION,
                    }));
                }
                return Ok((*facts, early));
            }
            Ok(FromAgent::Reply { id: 1, result: Err(refusal) }) => {
                return Err(SessionError::Refused(refusal));
            }
            Ok(message) if early.len() < MAX_EARLY => early.push(message),
            Ok(_) | Err(_) => {}
        }
    }
    Err(SessionError::Nonsense("no hello among its first lines".to_owned()))
}

/// The host itself has fallen silent.
pub(super) fn no_answer(host: &str, phase: &str, after: Duration) -> SessionError {
    let (address, phase) = (host.to_owned(), phase.to_owned());
    SessionError::Ssh(SshError::Timeout { address, phase, after })
}

/// The agent's output has ended: was it the connection, or the agent?
async fn end_of(control: &ExecControl, connection: &dyn Connection) -> SessionError {
    match timeout(Duration::from_secs(2), control.wait()).await {
        Ok(ExitStatus::Lost) | Err(_) => {
            match timeout(Duration::from_secs(2), connection.closed()).await {
                Ok(error) => SessionError::Ssh(error),
                Err(_) => SessionError::Ended("its output was closed".to_owned()),
            }
        }
        Ok(status) => {
            let words = text::clean(control.stderr_tail().trim(), 200);
            SessionError::Ended(if words.is_empty() {
                status.to_string()
            } else {
                format!("{status}: {words}")
            })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use async_trait::async_trait;
    use futures::future::BoxFuture;
    use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

    use super::super::following::Attention;
    use super::*;
    use crate::ssh::{InProcessConnection, Program};

    /// An agent that never says anything.
    struct Silence;

    impl Program for Silence {
        fn run(
            &self,
            _: String,
            stdin: ReadHalf<DuplexStream>,
            stdout: WriteHalf<DuplexStream>,
        ) -> BoxFuture<'static, u32> {
            Box::pin(async move {
                let _held = (stdin, stdout);
                std::future::pending().await
            })
        }
    }

    /// A host that is there, or is not any more.
    struct Host {
        connection: InProcessConnection,
        there: bool,
    }

    #[async_trait]
    impl Connection for Host {
        async fn exec(&self, command: &str) -> Result<ExecChannel, SshError> {
            self.connection.exec(command).await
        }

        async fn is_there(&self) -> bool {
            self.there
        }

        async fn closed(&self) -> SshError {
            self.connection.closed().await
        }

        async fn close(&self) {
            self.connection.close().await;
        }
    }

    #[tokio::test]
    async fn a_host_that_falls_silent_is_not_taken_for_a_silent_agent() {
        let told = |there| async move {
            let runtime = tokio::runtime::Handle::current();
            let connection = InProcessConnection::new(Arc::new(Silence), runtime);
            let connection: Arc<dyn Connection> = Arc::new(Host { connection, there });
            let ExecChannel { stdin, stdout, control } = connection.exec("agent").await.unwrap();
            let reader = LineReader::new(stdout, MAX_LINE_BYTES);
            let (binary, state_dir) = ("/a".to_owned(), "/s".to_owned());
            let command = AgentCommand { binary, state_dir, env: BTreeMap::new() };
            let begun = Begun { command, stdin, reader, control, asked: false };
            let (_sender, attention) = watch::channel(Attention::default());
            let host = "box".parse().unwrap();
            let patience = Duration::from_millis(20);
            Session::hear(host, connection, begun, attention, patience).await.err().unwrap()
        };
        assert_eq!(told(true).await, SessionError::Silent);
        let silent = told(false).await;
        let SessionError::Ssh(error) = &silent else { unreachable!("{silent}") };
        assert_eq!(error.cause(), crate::base::DownCause::NoAnswer);
        assert!(error.to_string().contains("starting the agent"), "{error}");
    }
}
