//! A dialled stream: `gpudeck agent dial` on a channel of its own, its two pipes joined.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use crate::base::text;
use crate::ssh::{ExecChannel, ExecControl, ExitStatus};

/// Both directions of a dialled socket. The channel closes when it is dropped.
pub(super) struct Dialled {
    stdin: Box<dyn AsyncWrite + Send + Unpin>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    control: std::sync::Arc<ExecControl>,
    ending: Option<Pin<Box<dyn Future<Output = ExitStatus> + Send>>>,
    _permit: OwnedSemaphorePermit,
}

impl Dialled {
    pub(super) fn new(channel: ExecChannel, permit: OwnedSemaphorePermit) -> Self {
        let ExecChannel { stdin, stdout, control } = channel;
        Self { stdin, stdout, control: control.into(), ending: None, _permit: permit }
    }
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ending.is_none() {
            let before = buf.filled().len();
            match Pin::new(&mut self.stdout).poll_read(cx, buf) {
                Poll::Ready(Ok(())) if buf.filled().len() == before && buf.remaining() > 0 => {}
                other => return other,
            }
            let control = std::sync::Arc::clone(&self.control);
            self.ending = Some(Box::pin(async move { control.wait().await }));
        }
        // The end of the stream may be a failure to connect: only the exit code tells.
        let Some(ending) = &mut self.ending else { return Poll::Ready(Ok(())) };
        let status = std::task::ready!(ending.as_mut().poll(cx));
        let again = status.clone();
        self.ending = Some(Box::pin(std::future::ready(again)));
        if status.success() {
            return Poll::Ready(Ok(()));
        }
        let kind = match status {
            ExitStatus::Lost => io::ErrorKind::ConnectionReset,
            ExitStatus::Code(_) | ExitStatus::Signal(_) => io::ErrorKind::Other,
        };
        let words = text::clean(self.control.stderr_tail().trim(), 300);
        let words = if words.is_empty() { status.to_string() } else { words };
        Poll::Ready(Err(io::Error::new(kind, words)))
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}
