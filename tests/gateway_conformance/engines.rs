//! Engines behind the gateway, and those who ask them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use gpudeck::base::{TrafficMode, TrafficServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A small HTTP server that says its name and does what the path asks for.
pub struct Engine {
    pub address: SocketAddr,
    pub name: &'static str,
    _task: JoinSet<()>,
}

impl Engine {
    pub async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut requests = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                requests.spawn(answer(stream, name));
            }
        });
        Self { address, name, _task: task }
    }

    pub fn server(&self, replica: &str, weight: u16) -> TrafficServer {
        TrafficServer {
            replica: replica.parse().unwrap(),
            address: self.address.ip().to_string(),
            port: self.address.port(),
            weight,
            mode: TrafficMode::Ready,
            by_rule: false,
            taken_over_by: None,
        }
    }

    /// The same, and reached by the canary's rule.
    pub fn by_rule(&self, replica: &str, weight: u16) -> TrafficServer {
        TrafficServer { by_rule: true, ..self.server(replica, weight) }
    }
}

async fn answer(mut stream: TcpStream, name: &'static str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let plain = |status: &str| {
        format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}",
            name.len()
        )
    };
    match path {
        "/500" => stream.write_all(plain("500 Internal Server Error").as_bytes()).await.unwrap(),
        "/404" => stream.write_all(plain("404 Not Found").as_bytes()).await.unwrap(),
        "/early" => {}
        "/break" => {
            let cut = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf";
            stream.write_all(cut.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        "/stream" => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..20 {
                let chunk = format!("{:x}\r\n{name}\r\n", name.len());
                stream.write_all(chunk.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
        _ => stream.write_all(plain("200 OK").as_bytes()).await.unwrap(),
    }
}

/// A request on a connection of its own; status 0 when there was no whole answer.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    get_with(address, path, "").await
}

pub async fn get_with(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(address).await else { return (0, String::new()) };
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: test\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// Who answered `count` requests, by name in the body.
pub async fn answers(
    address: SocketAddr,
    count: usize,
    engines: &[&Engine],
) -> BTreeMap<&'static str, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let (status, body) = get(address, "/").await;
        assert_eq!(status, 200, "{body}");
        let engine = engines.iter().find(|e| body.contains(e.name)).expect(&body);
        *seen.entry(engine.name).or_default() += 1;
    }
    seen
}
