//! One number from a user's Prometheus: `POST /api/v1/query` over plain HTTP.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::base::text;

/// Longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// Time for one query.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Asks for an instant vector of one element, or a scalar. `Err`: why there is no number.
pub async fn query(url: &str, query: &str) -> Result<f64, String> {
    match tokio::time::timeout(TIMEOUT, ask(url, query)).await {
        Ok(answer) => read(&answer?),
        Err(_) => Err(format!("{} gave no answer in {}s", text::clean(url, 80), TIMEOUT.as_secs())),
    }
}

async fn ask(url: &str, query: &str) -> Result<String, String> {
    let shown = text::clean(url, 80);
    let uri: hyper::Uri = url.parse().map_err(|e| format!("`{shown}` is not an address: {e}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("`{shown}`: only http:// is supported"));
    }
    let host = uri.host().ok_or_else(|| format!("`{shown}` has no host"))?;
    let port = uri.port_u16().unwrap_or(80);
    let authority =
        if uri.port_u16().is_some() { format!("{host}:{port}") } else { host.to_owned() };
    let path = format!("{}/api/v1/query", uri.path().trim_end_matches('/'));
    let request = Request::post(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(format!("query={}", percent(query)))))
        .map_err(|e| format!("not a request: {e}"))?;
    let failed =
        |e: &dyn std::fmt::Display| format!("{shown}: {}", text::clean(&e.to_string(), 200));
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((name, port)).await.map_err(|e| failed(&e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| failed(&e))?.to_bytes();
        // Errors of the query come with a status of 400 or 422 and the same JSON.
        Ok(String::from_utf8_lossy(&body).into_owned())
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

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

    #[tokio::test]
    async fn asks_as_prometheus_wants_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = String::new();
            while !asked.contains("query=") {
                let mut piece = [0; 4096];
                let n = stream.read(&mut piece).await.unwrap();
                assert!(n > 0, "{asked}");
                asked.push_str(&String::from_utf8_lossy(&piece[..n]));
            }
            let body = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"3"]}}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            asked
        });
        let url = format!("http://{address}/prom/");
        assert_eq!(query(&url, "rate(x{a=\"b\"}[1m])").await, Ok(3.0));
        let asked = server.await.unwrap();
        assert!(asked.starts_with("POST /prom/api/v1/query HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with("query=rate%28x%7Ba%3D%22b%22%7D%5B1m%5D%29"), "{asked}");
        let gone = query(&format!("http://{address}"), "up").await;
        assert!(gone.is_err());
        assert!(query("https://p", "up").await.unwrap_err().contains("only http://"));
    }
}
