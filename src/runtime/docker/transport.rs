//! HTTP to a container engine over streams that the link dials: one stream a request.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bollard::{BollardRequest, Docker};
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;

use super::Answer;
use crate::fleet::{DialStream, HostLink};
use crate::wire::{DialAccess, DialTarget};

/// Most bytes an engine may answer; bollard gathers an answer whole.
const ANSWER_LIMIT: u64 = 16 << 20;
/// Most bytes of a log's stream: it is looked through, not gathered.
const LOG_LIMIT: u64 = 256 << 20;

/// A client whose requests each dial `socket` with `access`; an answer's head must come within
/// `timeout`. Its connections end with it.
pub fn client(
    link: &Arc<dyn HostLink>,
    socket: &str,
    access: DialAccess,
    timeout: Duration,
) -> Answer<Docker> {
    limited(link, socket, access, timeout, ANSWER_LIMIT)
}

/// Like [`client`], for answers that are as long as a log.
pub fn log_client(
    link: &Arc<dyn HostLink>,
    socket: &str,
    access: DialAccess,
    timeout: Duration,
) -> Answer<Docker> {
    limited(link, socket, access, timeout, LOG_LIMIT)
}

fn limited(
    link: &Arc<dyn HostLink>,
    socket: &str,
    access: DialAccess,
    timeout: Duration,
    limit: u64,
) -> Answer<Docker> {
    let link = Arc::clone(link);
    let target = DialTarget::Unix(socket.to_owned());
    let connections = Arc::new(Mutex::new(JoinSet::new()));
    let transport = move |request: BollardRequest| {
        let (link, target) = (Arc::clone(&link), target.clone());
        let connections = Arc::clone(&connections);
        async move {
            // Carried through bollard's error and taken out again in `error`.
            let stream = link.dial(&target, access).await.map_err(io::Error::other)?;
            let stream = TokioIo::new(Limited { stream, left: limit });
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            {
                let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
                connections.spawn(async move {
                    // A broken connection is reported by the request that it breaks.
                    let _ = connection.await;
                });
            }
            Ok(sender.send_request(origin_form(request)).await?)
        }
    };
    Docker::connect_with_custom_transport(
        transport,
        Some("http://engine"),
        timeout.as_secs().max(1),
        bollard::API_DEFAULT_VERSION,
    )
}

/// The request as an engine's socket wants it: path and query only (Podman answers anything else
/// with 400), and a Host header. bollard leaves the API version out of the path, so engines of
/// any age answer in their own.
fn origin_form(request: BollardRequest) -> BollardRequest {
    let (mut parts, body) = request.into_parts();
    if let Some(path) = parts.uri.path_and_query() {
        parts.uri = path.clone().into();
    }
    parts.headers.insert(HOST, HeaderValue::from_static("engine"));
    BollardRequest::from_parts(parts, body)
}

/// A stream that ends with an error after so many bytes were read.
struct Limited {
    stream: Box<dyn DialStream>,
    left: u64,
}

impl AsyncRead for Limited {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = (buffer.filled().len() - before) as u64;
        match self.left.checked_sub(read) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Err(io::Error::other("the engine's answer is too long"))),
        }
    }
}

impl AsyncWrite for Limited {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
