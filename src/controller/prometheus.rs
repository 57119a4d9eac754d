//! One number from a user's Prometheus: `POST /api/v1/query` over HTTP or HTTPS.

use std::path::Path;
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio_rustls::rustls::RootCertStore;
use zeroize::Zeroizing;

use super::https;
use crate::base::text;
use crate::spec::PrometheusCheck;

/// Longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// Longest file with an `Authorization` header.
const MAX_AUTHORIZATION: u64 = 16 << 10;

/// Time for one query.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Asks for an instant vector of one element, or a scalar. `Err`: why there is no number.
pub async fn query(check: &PrometheusCheck, query: &str) -> Result<f64, String> {
    ask_and_read(check, query, None).await
}

async fn ask_and_read(
    check: &PrometheusCheck,
    query: &str,
    roots: Option<RootCertStore>,
) -> Result<f64, String> {
    let shown = text::clean(&check.url, 80);
    match tokio::time::timeout(TIMEOUT, ask(check, query, roots)).await {
        Ok(Ok(answer)) => read(&answer),
        Ok(Err(why)) => Err(format!("{shown}: {}", text::clean(&why, 300))),
        Err(_) => Err(format!("{shown} gave no answer in {}s", TIMEOUT.as_secs())),
    }
}

async fn ask(
    check: &PrometheusCheck,
    query: &str,
    roots: Option<RootCertStore>,
) -> Result<String, String> {
    let uri: hyper::Uri = check.url.parse().map_err(|e| format!("not an address: {e}"))?;
    let path = format!("{}/api/v1/query", uri.path().trim_end_matches('/'));
    let mut request = Request::post(path)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(format!("query={}", percent(query)))))
        .map_err(|e| format!("not a request: {e}"))?;
    if let Some(file) = &check.authorization_file {
        request.headers_mut().insert(AUTHORIZATION, authorization(file).await?);
    }
    let answer = https::send(&uri, request, roots, MAX_ANSWER).await?;
    let status = answer.status();
    if matches!(status.as_u16(), 401 | 403) {
        return Err(format!("{status} → name a file with what it asks for as authorization_file"));
    }
    // Errors of the query come with a status of 400 or 422 and the same JSON.
    Ok(String::from_utf8_lossy(answer.body()).into_owned())
}

/// The header's value, from a file on the controller's machine.
async fn authorization(file: &Path) -> Result<HeaderValue, String> {
    let failed = |e: &dyn std::fmt::Display| format!("authorization_file {}: {e}", file.display());
    let open = tokio::fs::File::open(file).await.map_err(|e| failed(&e))?;
    let mut secret = Zeroizing::new(String::new());
    open.take(MAX_AUTHORIZATION).read_to_string(&mut secret).await.map_err(|e| failed(&e))?;
    let mut value = Some(secret.trim())
        .filter(|line| !line.is_empty())
        .and_then(|line| HeaderValue::from_str(line).ok())
        .ok_or_else(|| failed(&"not one line → write `Bearer TOKEN` or `Basic BASE64` into it"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Everything but letters, digits and `-_.~` as `%XX`.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The number in an answer.
fn read(answer: &str) -> Result<f64, String> {
    let shown = || text::clean(answer, 160);
    let Ok(answer) = serde_json::from_str::<Value>(answer) else {
        return Err(format!("not an answer of Prometheus: {}", shown()));
    };
    if answer.get("status").and_then(Value::as_str) != Some("success") {
        let why = answer.get("error").and_then(Value::as_str).map(str::to_owned);
        return Err(text::clean(&why.unwrap_or_else(shown), 300));
    }
    let data = answer.get("data");
    let result = data.and_then(|d| d.get("result"));
    let pair = match data.and_then(|d| d.get("resultType")).and_then(Value::as_str) {
        Some("scalar") => result,
        Some("vector") => match result.and_then(Value::as_array).map(Vec::as_slice) {
            Some([one]) => one.get("value"),
            Some([]) => return Err("the query gave no series".to_owned()),
            Some(many) => {
                return Err(format!(
                    "the query gave {} series; aggregate them, with sum() for example",
                    many.len()
                ));
            }
            None => None,
        },
        Some(other) => {
            return Err(format!("the query gave a {}, not one number", text::clean(other, 40)));
        }
        None => None,
    };
    let number = pair.and_then(|p| p.get(1)).and_then(Value::as_str);
    match number {
        Some("+Inf") => Ok(f64::INFINITY),
        Some("-Inf") => Ok(f64::NEG_INFINITY),
        Some(number) => number.parse().map_err(|_| format!("not a number: {}", shown())),
        None => Err(format!("no number in the answer: {}", shown())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::rustls::crypto;

    use super::*;

    #[test]
    fn reads_one_number_and_says_why_there_is_none() {
        let vector = |result: &str| {
            format!(
                r#"{{"status":"success","data":{{"resultType":"vector","result":[{result}]}}}}"#
            )
        };
        let one = r#"{"metric":{},"value":[1700000000.1,"0.25"]}"#;
        assert_eq!(read(&vector(one)), Ok(0.25));
        assert_eq!(read(&vector(&one.replace("0.25", "+Inf"))), Ok(f64::INFINITY));
        assert!(read(&vector(&one.replace("0.25", "NaN"))).unwrap().is_nan());
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#;
        assert_eq!(read(scalar), Ok(3.0));
        for (answer, says) in [
            (vector(""), "no series"),
            (vector(&format!("{one},{one}")), "2 series"),
            (
                r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#.into(),
                "parse error",
            ),
            (r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#.into(), "matrix"),
            ("<html>".into(), "not an answer"),
            (vector("7"), "no number"),
        ] {
            let error = read(&answer).unwrap_err();
            assert!(error.contains(says), "{answer}: {error}");
        }
    }

    fn check(url: &str) -> PrometheusCheck {
        let text = format!("url = \"{url}\"\nquery = \"up\"\nsuccess = \"result > 0\"");
        toml::from_str(&text).unwrap()
    }

    const THREE: &str = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#;

    /// Answers one request; what was asked.
    async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, status: &str) -> String {
        let mut asked = String::new();
        while !asked.contains("query=") {
            let mut piece = [0; 4096];
            let n = stream.read(&mut piece).await.unwrap();
            assert!(n > 0, "{asked}");
            asked.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", THREE.len());
        stream.write_all(format!("{head}{THREE}").as_bytes()).await.unwrap();
        asked
    }

    #[tokio::test]
    async fn asks_as_prometheus_wants_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let first = answer(listener.accept().await.unwrap().0, "200 OK").await;
            answer(listener.accept().await.unwrap().0, "401 Unauthorized").await;
            first
        });
        let check = |path: &str| check(&format!("http://{address}{path}"));
        assert_eq!(query(&check("/prom/"), "rate(x{a=\"b\"}[1m])").await, Ok(3.0));
        let refused = query(&check(""), "up").await.unwrap_err();
        assert!(refused.contains("401") && refused.contains("authorization_file"), "{refused}");
        let asked = server.await.unwrap();
        assert!(asked.starts_with("POST /prom/api/v1/query HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with("query=rate%28x%7Ba%3D%22b%22%7D%5B1m%5D%29"), "{asked}");
        assert!(!asked.contains("authorization"), "{asked}");
        assert!(query(&check(""), "up").await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn tls_is_checked_and_the_secret_comes_from_a_file() {
        use tokio_rustls::TlsAcceptor;
        use tokio_rustls::rustls::ServerConfig;
        use tokio_rustls::rustls::pki_types::PrivateKeyDer;

        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let asked = answer(acceptor.accept(stream).await.unwrap(), "200 OK").await;
            // Who does not trust us, or means another host, hangs up.
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                assert!(acceptor.accept(stream).await.is_err());
            }
            asked
        });
        let mut trusted = RootCertStore::empty();
        trusted.add(certificate).unwrap();
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "Bearer s3cret\n").unwrap();
        let mut check = check(&format!("https://localhost:{port}"));
        check.authorization_file = Some(secret.path().to_owned());
        assert_eq!(ask_and_read(&check, "up", Some(trusted.clone())).await, Ok(3.0));
        let unknown = ask_and_read(&check, "up", Some(RootCertStore::empty())).await;
        assert!(unknown.unwrap_err().contains("SSL_CERT_FILE"));
        check.url = format!("https://127.0.0.1:{port}");
        assert!(ask_and_read(&check, "up", Some(trusted)).await.is_err());
        let asked = server.await.unwrap();
        assert!(asked.contains("authorization: Bearer s3cret\r\n"), "{asked}");
        std::fs::write(secret.path(), "two\nlines").unwrap();
        let refused = query(&check, "up").await.unwrap_err();
        assert!(refused.contains("Bearer TOKEN") && !refused.contains("lines\""), "{refused}");
    }
}
