//! A stream that can be cut from outside, that says when something was heard last, and that hands
//! on its first bytes only when it is its connection's turn.
//!
//! russh's session task owns its socket and outlives the handle; without a cut, a handshake that
//! was given up or a dead peer would keep a task and a socket alive.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// When the other end was heard last.
pub(super) struct Heard {
    since: Instant,
    last_ms: AtomicU64,
    /// What came first.
    first: Mutex<Vec<u8>>,
    /// More is not kept of it.
    is_known: AtomicBool,
}

/// So much of what comes first is kept: a greeting, and what may stand before it.
const FIRST: usize = 4096;

impl Heard {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            last_ms: AtomicU64::new(0),
            first: Mutex::default(),
            is_known: AtomicBool::new(false),
        })
    }

    /// Something was.
    pub(super) fn now(&self) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    /// So it was, and this.
    fn piece(&self, bytes: &[u8]) {
        self.now();
        if self.is_known.load(Ordering::Relaxed) {
            return;
        }
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let room = FIRST.saturating_sub(first.len());
        first.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        if first.len() >= FIRST {
            self.is_known.store(true, Ordering::Relaxed);
        }
    }

    /// What the other end said first: it tells what it is.
    pub(super) fn first(&self) -> Vec<u8> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long nothing was heard.
    pub(super) fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(last)
    }
}

/// So much is read at once.
const PIECE: usize = 4096;

type Turn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// `S` until the token is cancelled, then the end of the stream.
pub(super) struct Cuttable<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    is_cut: bool,
    heard: Arc<Heard>,
    /// What the first bytes wait for.
    turn: Option<Turn>,
    /// What was read and not asked for yet.
    ahead: Vec<u8>,
}

impl<S> Cuttable<S> {
    pub(super) fn new(
        stream: S,
        token: CancellationToken,
        heard: Arc<Heard>,
        turn: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            stream,
            cut: Box::pin(token.cancelled_owned()),
            is_cut: false,
            heard,
            turn: Some(Box::pin(turn)),
            ahead: Vec::new(),
        }
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> bool {
        self.is_cut = self.is_cut || self.cut.as_mut().poll(cx).is_ready();
        self.is_cut
    }
}

fn cut_error() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection was closed on this side")
}

impl<S: AsyncRead + Unpin> AsyncRead for Cuttable<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.poll_cut(cx) {
            return Poll::Ready(Ok(()));
        }
        if self.turn.is_some() && self.ahead.is_empty() {
            let mut piece = [0; PIECE];
            let mut read = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.ahead = read.filled().to_vec();
            self.heard.piece(&self.ahead);
        }
        if let Some(turn) = &mut self.turn {
            ready!(turn.as_mut().poll(cx));
            self.turn = None;
        }
        if !self.ahead.is_empty() {
            let n = self.ahead.len().min(buf.remaining());
            let rest = self.ahead.split_off(n);
            buf.put_slice(&self.ahead);
            self.ahead = rest;
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() < PIECE {
            // russh asks for the four bytes of a packet's length, and then for the packet: what is
            // there of it is taken at once.
            let mut piece = [0; PIECE];
            let mut read = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            let n = read.filled().len().min(buf.remaining());
            let (now, later) = read.filled().split_at(n);
            buf.put_slice(now);
            if !later.is_empty() {
                self.ahead = later.to_vec();
            }
            if !read.filled().is_empty() {
                self.heard.piece(read.filled());
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Some(piece) = buf.filled().get(before..).filter(|piece| !piece.is_empty()) {
            self.heard.piece(piece);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cuttable<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.poll_cut(cx) {
            return Poll::Ready(Err(cut_error()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.poll_cut(cx) {
            return Poll::Ready(Err(cut_error()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.poll_cut(cx) {
            return Poll::Ready(Ok(()));
        }
        // Of one that the other end has closed already it fails, and russh would not tell what was
        // said before.
        let _ = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        Poll::Ready(Ok(()))
    }
}
