//! The proxied traffic: one connection to a server a request, bodies streamed both ways, no retries.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, VIA};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::config::{Frontend, Rule};
use super::state::{Backends, End, InFlight};

/// HAProxy's `timeout connect`.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// Most client connections at once (HAProxy's `maxconn`).
const MAX_CONNECTIONS: usize = 4096;

type Answer = Either<Tracked, Full<Bytes>>;

/// Serves one frontend until it is dropped.
pub(super) async fn serve(listener: TcpListener, backends: Arc<Backends>, frontend: Arc<Frontend>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: those in use are given back in a while.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let backends = Arc::clone(&backends);
        let frontend = Arc::clone(&frontend);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let backends = Arc::clone(&backends);
                let frontend = Arc::clone(&frontend);
                async move {
                    let backend = choose(&request, &backends, &frontend);
                    Ok::<_, hyper::Error>(forward(request, &backends, backend).await)
                }
            });
            // An error here is a client that went away; the request's guard has counted it.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The backend of the first rule that holds, else the default one.
fn choose<'a>(request: &Request<Incoming>, backends: &Backends, frontend: &'a Frontend) -> &'a str {
    let holds = |rule: &&Rule| {
        let header = if rule.cookie { "cookie" } else { rule.name.as_str() };
        let values = request.headers().get_all(header);
        let said = values.iter().filter_map(|v| v.to_str().ok()).any(|text| {
            if rule.cookie {
                let pair =
                    |p: &str| p.trim().split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()));
                text.split(';').filter_map(pair).any(|(n, v)| n == rule.name && v == rule.value)
            } else {
                text.split(',').any(|v| v.trim() == rule.value)
            }
        });
        said && backends.has_server(&rule.backend)
    };
    frontend.rules.iter().find(holds).map_or(&frontend.default, |rule| &rule.backend)
}

async fn forward(
    request: Request<Incoming>,
    backends: &Arc<Backends>,
    backend: &str,
) -> Response<Answer> {
    let Some((address, mut in_flight)) = backends.take(backend) else {
        return failure(
            StatusCode::SERVICE_UNAVAILABLE,
            "No server is available to handle this request.",
        );
    };
    let connected = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await;
    let Ok(Ok(stream)) = connected else {
        in_flight.ends(End::NoConnection);
        return failure(StatusCode::SERVICE_UNAVAILABLE, "The server could not be reached.");
    };
    let _ = stream.set_nodelay(true);
    let broken = "The server returned an invalid or incomplete response.";
    let Ok((mut sender, connection)) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await
    else {
        in_flight.ends(End::Broken);
        return failure(StatusCode::BAD_GATEWAY, broken);
    };
    let mut connection = Owned(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let (mut head, body) = request.into_parts();
    // The server is asked for the path only, whatever form the client used.
    head.uri = head.uri.path_and_query().and_then(|p| p.as_str().parse().ok()).unwrap_or_default();
    strip_hop_by_hop(&mut head.headers);
    let Ok(response) = sender.send_request(Request::from_parts(head, body)).await else {
        in_flight.ends(End::Broken);
        connection.stop();
        return failure(StatusCode::BAD_GATEWAY, broken);
    };
    let (mut head, body) = response.into_parts();
    in_flight.head(head.status.as_u16());
    strip_hop_by_hop(&mut head.headers);
    head.headers.insert(VIA, HeaderValue::from_static("1.1 gpudeck-SIMULATED-gateway"));
    let mut tracked = Tracked { body, in_flight, _connection: connection };
    if tracked.body.is_end_stream() {
        tracked.in_flight.ends(End::Complete);
    }
    Response::from_parts(head, Either::Left(tracked))
}

fn failure(status: StatusCode, words: &str) -> Response<Answer> {
    let body = format!("<html><body><h1>{status}</h1>\n{words}\n</body></html>\n");
    let mut response = Response::new(Either::Right(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response
}

/// RFC 9110, section 7.6.1: what belongs to one connection is not forwarded.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "transfer-encoding",
    ] {
        headers.remove(name);
    }
}

/// A connection's task, ended with its owner.
struct Owned(tokio::task::JoinHandle<()>);

impl Owned {
    fn stop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A body on its way to the client, which knows how it ended.
struct Tracked {
    body: Incoming,
    in_flight: InFlight,
    _connection: Owned,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(_)) if !this.body.is_end_stream() => {}
            None | Some(Ok(_)) => this.in_flight.ends(End::Complete),
            Some(Err(_)) => this.in_flight.ends(End::Broken),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
