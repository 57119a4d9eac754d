//! One request over HTTP or HTTPS to a server of the user's, and its whole answer.

use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// Sends `request` (its path is its own) to the server of `to`; at most `most` bytes of an answer are taken. `roots`:
/// what is trusted; none: what this machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` say otherwise). `Err`: why
/// there is no answer. It has no time limit of its own.
pub(super) async fn send(
    to: &Uri,
    mut request: Request<Full<Bytes>>,
    roots: Option<RootCertStore>,
    most: usize,
) -> Result<Response<Bytes>, String> {
    let (secure, default_port) = match to.scheme_str() {
        Some("http") => (false, 80),
        Some("https") => (true, 443),
        _ => return Err("begins with neither http:// nor https://".to_owned()),
    };
    let host = to.host().ok_or("no host in it")?;
    let port = to.port_u16().unwrap_or(default_port);
    let authority =
        if to.port_u16().is_some() { format!("{host}:{port}") } else { host.to_owned() };
    let authority = HeaderValue::from_str(&authority).map_err(|e| format!("not a host: {e}"))?;
    request.headers_mut().insert(HOST, authority);
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((name, port)).await.map_err(|e| e.to_string())?;
    if !secure {
        return exchange(stream, request, most).await;
    }
    let roots = match roots {
        Some(roots) => roots,
        None => trusted().await?,
    };
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerName::try_from(name.to_owned()).map_err(|e| e.to_string())?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(server, stream).await.map_err(|e| {
        format!("{e} → what is trusted can be named with SSL_CERT_FILE where the controller starts")
    })?;
    exchange(stream, request, most).await
}

/// The certificates this machine trusts, read anew: a renewed one counts at once.
async fn trusted() -> Result<RootCertStore, String> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs)
        .await
        .map_err(|e| format!("the machine's certificates were not read: {e}"))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
        return Err(format!(
            "the controller's machine trusts no certificate{why} → install ca-certificates there, or \
             name a file with SSL_CERT_FILE"
        ));
    }
    Ok(roots)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<Response<Bytes>, String> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, most).collect().await.map_err(|e| e.to_string())?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    // The connection is driven here, not by a task of its own: it ends with this request.
    tokio::select! {
        biased;
        result = &mut exchange => result,
        _ = &mut connection => exchange.await,
    }
}
