//! A TCP connection that acknowledges at once while its first channel is opened.
//!
//! Until a command runs, a server's kernel holds a small message back until the one before it is
//! acknowledged (Nagle's algorithm), and ours waits 40 ms for something to send along with an
//! acknowledgement. After a login sshd tells its host keys, which need no answer, and then that the
//! channel is open: there the two would wait for each other.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Whether what comes is acknowledged at once.
#[derive(Clone, Debug, Default)]
pub(super) struct AtOnce(Arc<AtomicBool>);

impl AtOnce {
    pub(super) fn set(&self, at_once: bool) {
        self.0.store(at_once, Ordering::Relaxed);
    }
}

/// See the module.
pub(super) struct Prompt {
    stream: TcpStream,
    at_once: AtOnce,
}

impl Prompt {
    pub(super) fn new(stream: TcpStream, at_once: AtOnce) -> Self {
        Self { stream, at_once }
    }
}

impl AsyncRead for Prompt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() && self.at_once.0.load(Ordering::Relaxed) {
            // It does not last, and sends what is due. Without it all is merely slower.
            let _ = rustix::net::sockopt::set_tcp_quickack(&self.stream, true);
        }
        read
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
