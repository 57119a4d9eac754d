//! A connection that is logged in: command lines on its channels, and its end.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use russh::client::{self, Handle};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect};
use tokio::io::{AsyncRead, AsyncReadExt, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::bytes::{Buf, Bytes};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::SshError;
use super::cut::Heard;
use super::exec::{Connection, ExecChannel, ExecParts, ExitStatus, control};
use super::handler::Client;
use super::prompt::AtOnce;
use super::way::Kept;
use crate::base::text;

/// Output of one command that is held for a reader who does not read; beyond it the channel is
/// closed. russh has one window for the whole connection, so that holding back is no choice: it
/// would stall every other channel.
pub const MAX_UNREAD_BYTES: usize = 64 << 20;

/// What a message costs besides its bytes: its place in the queue, its handle and the block that it lies in. With it
/// a server that sends byte after byte in messages of their own is as bounded as any other.
const MESSAGE_COST: usize = 256;

/// A server counts a session until it has looked at its end, also one of which we were told: one more is asked
/// for again, with pauses, when one of ours has ended this short a time ago.
const JUST_ENDED: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MOST_TRIES: u32 = 8;

/// A server that is there answers within this time.
const PONG: Duration = Duration::from_secs(5);

/// A connection that is logged in. Dropping it cuts the socket.
pub struct RusshConnection {
    handle: Arc<Handle<Client>>,
    end: watch::Receiver<Option<String>>,
    end_sender: watch::Sender<Option<String>>,
    cut: CancellationToken,
    channel_timeout: Duration,
    address: String,
    watchdog: tokio::task::JoinHandle<()>,
    /// Until the first channel is open.
    at_once: AtOnce,
    last_end: Arc<LastEnd>,
    _guard: DropGuard,
    /// What the connection goes over: it must not end before this one.
    _kept: Kept,
}

/// What a logged-in connection is made of.
pub(super) struct Parts {
    pub(super) handle: Handle<Client>,
    pub(super) end: watch::Receiver<Option<String>>,
    pub(super) end_sender: watch::Sender<Option<String>>,
    pub(super) cut: CancellationToken,
    pub(super) guard: DropGuard,
    pub(super) heard: Arc<Heard>,
    pub(super) kept: Kept,
    pub(super) at_once: AtOnce,
    pub(super) channel_timeout: Duration,
    pub(super) address: String,
    /// A server that is asked all the time whether it is there, and says nothing for so long, is
    /// dead.
    pub(super) silence: Duration,
}

impl Drop for RusshConnection {
    fn drop(&mut self) {
        self.watchdog.abort();
    }
}

fn fell_silent(cut: &CancellationToken, end: &watch::Sender<Option<String>>) {
    end.send_if_modified(|end| {
        let first = end.is_none();
        end.get_or_insert_with(|| "the host no longer answers".to_owned());
        first
    });
    cut.cancel();
}

/// Cuts a connection whose other end has fallen silent. russh has a timer of its own for that,
/// which does not run while it cannot write.
async fn watch_over(
    heard: Arc<Heard>,
    silence: Duration,
    cut: CancellationToken,
    end: watch::Sender<Option<String>>,
) {
    loop {
        let left = silence.saturating_sub(heard.silence());
        if left.is_zero() {
            fell_silent(&cut, &end);
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            () = cut.cancelled() => return,
        }
    }
}

impl RusshConnection {
    pub(super) fn new(parts: Parts) -> Self {
        parts.at_once.set(true);
        let end_sender = parts.end_sender.clone();
        let watch = watch_over(parts.heard, parts.silence, parts.cut.clone(), end_sender);
        Self {
            watchdog: tokio::spawn(watch),
            handle: Arc::new(parts.handle),
            end: parts.end,
            end_sender: parts.end_sender,
            cut: parts.cut,
            channel_timeout: parts.channel_timeout,
            address: parts.address,
            at_once: parts.at_once,
            last_end: Arc::default(),
            _guard: parts.guard,
            _kept: parts.kept,
        }
    }

    /// Whether it is known to have ended.
    pub(super) fn has_ended(&self) -> bool {
        self.end.borrow().is_some() || self.cut.is_cancelled() || self.handle.is_closed()
    }

    /// Why it ended, once it has.
    pub(super) fn end(&self) -> watch::Receiver<Option<String>> {
        self.end.clone()
    }

    /// A byte stream to another machine, made by the server.
    pub(super) async fn tunnel(
        &self,
        host: &str,
        port: u16,
    ) -> Result<russh::ChannelStream<client::Msg>, SshError> {
        let (handle, to) = (Arc::clone(&self.handle), host.to_owned());
        let opening = async move {
            handle.channel_open_direct_tcpip(to, u32::from(port), "127.0.0.1", 0).await
        };
        let opened = timeout(self.channel_timeout, in_the_end(opening)).await;
        self.at_once.set(false);
        match opened {
            Ok(Ok(channel)) => Ok(channel.into_stream()),
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => Err(SshError::JumpRefused {
                to: format!("{}:{port}", text::clean(host, 80)),
                why: reason.into(),
            }),
            Ok(Err(error)) => Err(SshError::of_library(&error)),
            Err(_) if !self.answers().await => Err(SshError::closed("it no longer answers")),
            // Not the jump host's address: that one answers.
            Err(_) => Err(SshError::Timeout {
                address: format!("{}:{port}", text::clean(host, 80)),
                phase: "opening the way to it".to_owned(),
                after: self.channel_timeout,
            }),
        }
    }

    /// Asks the other end whether it is there, and cuts the connection if it does not say so soon:
    /// its own keepalives would take a minute, in which nobody gets through.
    async fn answers(&self) -> bool {
        let pong = timeout(PONG.min(self.channel_timeout), self.handle.send_ping()).await;
        let answers = matches!(pong, Ok(Ok(()))) && !self.has_ended();
        if !answers {
            fell_silent(&self.cut, &self.end_sender);
        }
        answers
    }

    async fn open(&self, command: &str) -> Result<ExecChannel, SshError> {
        let channel = self.session().await.map_err(refused)?;
        self.at_once.set(false);
        let (mut read, write) = channel.split();
        let write = Unstarted(Some(write));
        write.exec(command).await?;
        loop {
            match read.wait().await {
                Some(ChannelMsg::Success) => break,
                Some(ChannelMsg::Failure) => {
                    return Err(SshError::ChannelRefused {
                        why: "it does not run the command".to_owned(),
                    });
                }
                Some(_) => {}
                None => return Err(SshError::closed("before the command ran")),
            }
        }
        let Some(write) = write.started() else { return Err(SshError::closed("no channel")) };
        let (control, parts) = control();
        let (stdin, feed) = tokio::io::duplex(256 << 10);
        // Bounded by `Unread`, in bytes: the pump must never wait for a reader, so a channel that makes its sender
        // wait, or counts messages, is no bound that fits.
        let (output, received) = mpsc::unbounded_channel();
        let unread = Arc::new(Unread::default());
        let inbox = Inbox { received, current: Bytes::new(), unread: Arc::clone(&unread) };
        let outbox = Outbox { output: Some(output), unread };
        tokio::spawn(pump(read, write, feed, outbox, parts, Arc::clone(&self.last_end)));
        Ok(ExecChannel { stdin: Box::new(stdin), stdout: Box::new(inbox), control })
    }

    async fn session(&self) -> Result<russh::Channel<client::Msg>, russh::Error> {
        let mut tries = 0;
        loop {
            let handle = Arc::clone(&self.handle);
            let opening = async move { handle.channel_open_session().await };
            match in_the_end(opening).await {
                Err(russh::Error::ChannelOpenFailure(_))
                    if tries < MOST_TRIES && self.last_end.is_within(JUST_ENDED) =>
                {
                    tokio::time::sleep(FIRST_PAUSE * 2u32.saturating_pow(tries)).await;
                    tries += 1;
                }
                opened => return opened,
            }
        }
    }
}

/// When a session of ours ended last, or was left.
#[derive(Default)]
struct LastEnd(Mutex<Option<Instant>>);

impl LastEnd {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_within(&self, limit: Duration) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < limit)
    }
}

fn refused(error: russh::Error) -> SshError {
    match error {
        russh::Error::ChannelOpenFailure(reason) => {
            SshError::ChannelRefused { why: format!("{reason:?}") }
        }
        other => SshError::of_library(&other),
    }
}

/// A channel that a server opens when nobody waits for it any more is closed: it would count as one of its
/// sessions (`MaxSessions`) for as long as the connection is there.
async fn in_the_end(
    opening: impl Future<Output = Result<russh::Channel<client::Msg>, russh::Error>> + Send + 'static,
) -> Result<russh::Channel<client::Msg>, russh::Error> {
    let (answer, answered) = oneshot::channel();
    tokio::spawn(async move {
        if let Err(Ok(late)) = answer.send(opening.await) {
            let _ = late.close().await;
        }
    });
    answered.await.unwrap_or(Err(russh::Error::Disconnect))
}

/// A channel that is closed unless its command runs.
struct Unstarted(Option<ChannelWriteHalf<client::Msg>>);

impl Unstarted {
    async fn exec(&self, command: &str) -> Result<(), SshError> {
        match &self.0 {
            Some(write) => write.exec(true, command).await.map_err(refused),
            None => Ok(()),
        }
    }

    fn started(mut self) -> Option<ChannelWriteHalf<client::Msg>> {
        self.0.take()
    }
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        if let Some(write) = self.0.take() {
            tokio::spawn(async move {
                let _ = write.close().await;
            });
        }
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

    async fn is_there(&self) -> bool {
        self.answers().await
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
    /// What the unread messages cost.
    bytes: AtomicUsize,
    overflow: AtomicBool,
}

fn cost(data: &Bytes) -> usize {
    data.len().saturating_add(MESSAGE_COST)
}

struct Outbox {
    output: Option<mpsc::UnboundedSender<Bytes>>,
    unread: Arc<Unread>,
}

impl Outbox {
    /// Whether there is still room.
    fn push(&mut self, data: Bytes) -> bool {
        let Some(output) = &self.output else { return true };
        let cost = cost(&data);
        let held = self.unread.bytes.fetch_add(cost, Ordering::Relaxed);
        if held.saturating_add(cost) > MAX_UNREAD_BYTES {
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
    last_end: Arc<LastEnd>,
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
    // Before anybody knows of it and asks for the next one.
    last_end.now();
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
                    self.unread.bytes.fetch_sub(cost(&data), Ordering::Relaxed);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn channel() -> (Outbox, Inbox) {
        let (output, received) = mpsc::unbounded_channel();
        let unread = Arc::new(Unread::default());
        let inbox = Inbox { received, current: Bytes::new(), unread: Arc::clone(&unread) };
        (Outbox { output: Some(output), unread }, inbox)
    }

    /// How many such messages are held for a reader who does not read.
    fn held(size: usize) -> usize {
        let (mut outbox, _inbox) = channel();
        let message = Bytes::from(vec![b'x'; size]);
        (0..MAX_UNREAD_BYTES).take_while(|_| outbox.push(message.clone())).count()
    }

    #[test]
    fn small_messages_are_bounded_by_what_they_cost_and_not_by_their_bytes() {
        let large = held(32 << 10);
        assert!((2_000..=2_048).contains(&large), "{large}");
        for size in [0, 1] {
            let small = held(size);
            assert!(small <= MAX_UNREAD_BYTES / MESSAGE_COST, "{small} of {size} bytes");
            assert!(small > 200_000, "{small}");
        }
    }

    #[tokio::test]
    async fn what_was_read_has_room_again_and_an_overflow_is_told_to_the_reader() {
        let (mut outbox, mut inbox) = channel();
        let mut buffer = [0; 8];
        for _ in 0..3 {
            assert!(outbox.push(Bytes::from_static(b"12345678")));
            inbox.read_exact(&mut buffer).await.unwrap();
        }
        assert_eq!(inbox.unread.bytes.load(Ordering::Relaxed), 0);
        assert!(outbox.push(Bytes::from_static(b"12345678")));
        assert!(!outbox.push(Bytes::from(vec![0; MAX_UNREAD_BYTES])));
        inbox.read_exact(&mut buffer).await.unwrap();
        let error = inbox.read_u8().await.unwrap_err();
        assert!(error.to_string().contains("were not read in time"), "{error}");
    }
}
