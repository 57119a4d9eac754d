//! HTTP requests from the host to an engine on it.

use std::io;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes as Data, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::error::failed;
use crate::base::text::clean;
use crate::wire::{HttpReply, Refusal};

/// Longest body that is passed on.
const MAX_BODY: usize = 256 << 10;

/// Longest time a request may take.
const MAX_TIMEOUT: Duration = Duration::from_mins(10);

/// What is asked of an engine.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Port.
    pub port: u16,
    /// Address instead of 127.0.0.1.
    pub address: Option<String>,
    /// `GET` or `POST`.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// JSON body.
    pub body: Option<String>,
    /// Time allowed for all of it.
    pub timeout: Duration,
    /// What the engine wants to see before it answers; it is never shown.
    pub authorization: Option<HeaderValue>,
}

/// The header for an engine's key.
///
/// # Errors
/// It is no key that a header can carry.
pub fn bearer(key: &str) -> Result<HeaderValue, Refusal> {
    let mut value = HeaderValue::try_from(format!("Bearer {key}"))
        .map_err(|_| failed("the key cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Sends one request on a connection of its own and reads the answer.
///
/// # Errors
/// No answer in time, or no HTTP answer at all. A status of 500 is an answer.
pub async fn request(ask: Ask) -> Result<HttpReply, Refusal> {
    let timeout = ask.timeout.min(MAX_TIMEOUT);
    match tokio::time::timeout(timeout, exchange(ask)).await {
        Ok(result) => result,
        Err(_) => Err(no_answer(format!("no answer in {}", crate::base::time::short(timeout)))),
    }
}

fn no_answer(message: String) -> Refusal {
    Refusal::NoAnswer { message: clean(&message, 500) }
}

/// It was not reached; or this host has no descriptor or port left to ask with, which is not its fault.
fn not_connected(host: &str, error: &io::Error) -> Refusal {
    use io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut,
    };
    let message = format!("{host}: {error}");
    match error.kind() {
        ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | TimedOut => {
            no_answer(message)
        }
        _ => failed(message),
    }
}

async fn exchange(ask: Ask) -> Result<HttpReply, Refusal> {
    let began = Instant::now();
    let method = match ask.method.as_str() {
        "GET" => Method::GET,
        "POST" => Method::POST,
        _ => return Err(failed("only GET and POST are passed on")),
    };
    let address = ask.address.as_deref().unwrap_or("127.0.0.1");
    let host = if address.contains(':') {
        format!("[{address}]:{}", ask.port)
    } else {
        format!("{address}:{}", ask.port)
    };
    let mut request = Request::builder()
        .method(method)
        .uri(&ask.path)
        .header(HOST, &host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Data::from(ask.body.unwrap_or_default())))
        .map_err(|e| failed(format!("not a request: {e}")))?;
    if let Some(authorization) = ask.authorization {
        request.headers_mut().insert(AUTHORIZATION, authorization);
    }
    if request.uri().path_and_query().is_none() || !ask.path.starts_with('/') {
        return Err(failed("the path must begin with /"));
    }
    let stream =
        TcpStream::connect((address, ask.port)).await.map_err(|e| not_connected(&host, &e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(format!("{host}: {e}")))?;
    // The connection is driven here, not by a task of its own: it ends with this request.
    let mut connection = std::pin::pin!(connection);
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = read_body(response.into_body()).await?;
        Ok::<_, hyper::Error>((status, body))
    };
    let mut answer = std::pin::pin!(answer);
    let mut driving = true;
    let result = loop {
        tokio::select! {
            biased;
            result = &mut answer => break result,
            _ = &mut connection, if driving => driving = false,
        }
    };
    let (status, body) = result.map_err(|e| no_answer(format!("{host}: {e}")))?;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(HttpReply { status, body: String::from_utf8_lossy(&body).into_owned(), took_ms })
}

/// The body, cut at [`MAX_BODY`].
async fn read_body(mut body: Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut all: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        let room = MAX_BODY - all.len();
        all.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
        if all.len() >= MAX_BODY {
            break;
        }
    }
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn ask(port: u16, path: &str) -> Ask {
        Ask {
            port,
            address: None,
            method: "POST".to_owned(),
            path: path.to_owned(),
            body: Some("{}".to_owned()),
            timeout: Duration::from_secs(5),
            authorization: None,
        }
    }

    /// Answers one request with these bytes; what it was asked.
    async fn answering(answer: Vec<u8>) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let n = stream.read(&mut asked).await.unwrap();
            let _ = stream.write_all(&answer).await;
            String::from_utf8_lossy(&asked[..n]).into_owned()
        });
        (port, task)
    }

    #[tokio::test]
    async fn passes_on_request_and_answer() {
        let (port, asked) =
            answering(b"HTTP/1.1 503 Loading\r\ncontent-length: 4\r\n\r\nwait".to_vec()).await;
        let reply = request(ask(port, "/v1/x?y=1")).await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (503, "wait"));
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("POST /v1/x?y=1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{asked}");
        assert!(asked.ends_with("\r\n\r\n{}"), "{asked}");
    }

    #[tokio::test]
    async fn a_key_is_sent_and_never_shown() {
        let (port, asked) =
            answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
        let keyed = Ask { authorization: Some(bearer("sk-1").unwrap()), ..ask(port, "/metrics") };
        let shown = format!("{keyed:?}");
        assert!(!shown.contains("sk-1"), "{shown}");
        request(keyed).await.unwrap();
        let asked = asked.await.unwrap();
        assert!(asked.contains("authorization: Bearer sk-1\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn cuts_an_endless_body() {
        let mut answer = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        answer.resize(MAX_BODY + 4096, b'x');
        let (port, _task) = answering(answer).await;
        assert_eq!(request(ask(port, "/")).await.unwrap().body.len(), MAX_BODY);
    }

    #[tokio::test]
    async fn refuses_what_is_no_request_and_ends_in_time() {
        assert!(request(ask(1, "no-slash")).await.is_err());
        assert!(request(ask(1, "/a b")).await.is_err());
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut slow = ask(silent.local_addr().unwrap().port(), "/");
        slow.timeout = Duration::from_millis(50);
        assert!(request(slow).await.unwrap_err().to_string().contains("50ms"));
    }

    #[tokio::test]
    async fn who_answers_nothing_is_told_from_who_cannot_be_asked() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let mut slow = ask(port, "/");
        slow.timeout = Duration::from_millis(50);
        assert!(matches!(request(slow).await, Err(Refusal::NoAnswer { .. })));
        drop(silent);
        assert!(matches!(request(ask(port, "/")).await, Err(Refusal::NoAnswer { .. })));
        let full = io::Error::from_raw_os_error(24); // EMFILE
        assert!(matches!(not_connected("127.0.0.1:1", &full), Refusal::Failed { .. }));
    }
}
