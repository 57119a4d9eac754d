//! Endpoints for whatever balances without a gateway of ours: files, and an HTTP endpoint.

mod reload;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use self::reload::Reloads;
use super::core::now;
use crate::base::{ServiceName, TrafficServer};
use crate::gateway::Endpoints;
use crate::spec::EndpointsSpec;

/// Without a descriptor left nothing is accepted for this long.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// An address that is taken is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// Knows whether this controller may speak for a service.
#[async_trait]
pub trait Speaker: Send + Sync {
    /// `Err`: why not.
    async fn may_speak(&self, service: &ServiceName) -> Result<(), String>;
}

/// The endpoints of all services, as last decided; or why those of one are not told.
#[derive(Clone, Debug, Default)]
pub struct Published {
    all: Arc<Mutex<BTreeMap<ServiceName, Result<Endpoints, String>>>>,
    reloads: Arc<Reloads>,
}

impl Published {
    /// `notes`: a directory in which the processes of `reload` are noted while they run.
    pub fn new(notes: PathBuf) -> Self {
        Self { reloads: Arc::new(Reloads::new(notes)), ..Self::default() }
    }

    /// Has whoever balances told of the files of a service, unless they were told of these already. `Err`: why
    /// that failed.
    pub async fn reload(&self, spec: &EndpointsSpec, service: &ServiceName) -> Result<(), String> {
        let Some(Ok(endpoints)) = self.get(service) else { return Ok(()) };
        self.reloads.run(spec, &endpoints).await
    }

    /// Publishes a table. `Err`: a file could not be written; the HTTP endpoint has it.
    pub fn publish(
        &self,
        spec: &EndpointsSpec,
        service: &ServiceName,
        version: u64,
        servers: &[TrafficServer],
    ) -> Result<(), String> {
        let endpoints = {
            let mut all = self.all();
            match all.get(service) {
                Some(Ok(old)) if old.version == version && old.endpoints == servers => old.clone(),
                _ => {
                    let new = Endpoints {
                        service: service.clone(),
                        version,
                        changed: now(),
                        endpoints: servers.to_vec(),
                    };
                    all.insert(service.clone(), Ok(new.clone()));
                    new
                }
            }
        };
        // One that cannot be written keeps no other one as it was.
        let wrong: Vec<String> = files(spec, &endpoints)
            .iter()
            .filter_map(|(path, text)| {
                write_whole(path, text).err().map(|e| format!("{}: {e}", path.display()))
            })
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// Whether just this table is published, and nothing would be written.
    pub fn is_current(
        &self,
        spec: &EndpointsSpec,
        service: &ServiceName,
        version: u64,
        servers: &[TrafficServer],
    ) -> bool {
        let Some(Ok(endpoints)) = self.get(service) else { return false };
        endpoints.version == version
            && endpoints.endpoints == servers
            && files(spec, &endpoints).iter().all(|(path, text)| is_there(path, text))
            && self.reloads.has_told(spec, &endpoints)
    }

    /// Tells those of a service to nobody any more, and why. Its files stay as they are: others may write them.
    pub fn withhold(&self, service: &ServiceName, why: &str) {
        self.all().insert(service.clone(), Err(why.to_owned()));
    }

    fn get(&self, service: &ServiceName) -> Option<Result<Endpoints, String>> {
        self.all().get(service).cloned()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Result<Endpoints, String>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of a service and what is to be in them.
fn files(spec: &EndpointsSpec, endpoints: &Endpoints) -> Vec<(PathBuf, String)> {
    let Some(dir) = spec.dir.as_ref().map(Path::new) else { return Vec::new() };
    let service = &endpoints.service;
    let mut files = vec![
        (dir.join(format!("{service}.json")), endpoints.json()),
        (dir.join(format!("{service}.file_sd.json")), endpoints.file_sd()),
        (dir.join(format!("{service}.scrape.json")), endpoints.scrape()),
    ];
    if let Some(zone) = &spec.zone {
        files.push((dir.join(format!("{service}.zone")), endpoints.zone(zone)));
    }
    files
}

fn is_there(path: &Path, text: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|there| there == text)
}

/// A reader sees all of it or what was there before; what is there already is left alone.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    if is_there(path, text) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let beside = beside(path);
    let mut file = fs::File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

/// A name of its own for each file and each controller: two that write at once do not rename each other's half text.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.gpudeck-new-{}", std::process::id()))
}

/// Serves `GET /v1/endpoints` and `GET /v1/endpoints/SERVICE?format=json|file_sd|scrape|zone` for ever; 503 for what this
/// controller may not speak for.
pub async fn serve(
    listen: String,
    zone: Option<String>,
    published: Published,
    speaker: Arc<dyn Speaker>,
) {
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(&listen).await {
            Ok(listener) => break listener,
            Err(error) if !told => {
                tracing::error!(%listen, %error, "the endpoints cannot be served");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    };
    let shared = Arc::new(Shared { published, zone, speaker });
    let router = Router::new()
        .route("/v1/endpoints", get(list))
        .route("/v1/endpoints/{service}", get(one))
        .with_state(shared);
    answer_all(&listener, &router, Limits::default()).await;
}

/// How much of the controller those who ask for endpoints may have, whoever they are.
#[derive(Clone, Copy)]
struct Limits {
    /// Connections at a time; others wait in the kernel's queue.
    at_once: usize,
    /// For the head of a request, from the connection on.
    head: Duration,
    /// For all of it, the reading of the answer included.
    whole: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { at_once: 64, head: Duration::from_secs(5), whole: Duration::from_secs(15) }
    }
}

/// One request a connection.
async fn answer_all(listener: &TcpListener, router: &Router, limits: Limits) {
    let places = Arc::new(Semaphore::new(limits.at_once));
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection for endpoints was not accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // However it ends, it is its client's matter.
            let _ = tokio::time::timeout(limits.whole, connection).await;
            drop(place);
        });
    }
}

struct Shared {
    published: Published,
    zone: Option<String>,
    speaker: Arc<dyn Speaker>,
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    format: String,
}

const JSON: &str = "application/json";

async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let names: Vec<String> = shared.published.all().keys().map(ToString::to_string).collect();
    let text = serde_json::json!({ "services": names }).to_string() + "\n";
    ([(header::CONTENT_TYPE, JSON)], text).into_response()
}

async fn one(
    State(shared): State<Arc<Shared>>,
    UrlPath(service): UrlPath<String>,
    Query(asked): Query<Asked>,
) -> Response {
    let unknown = || (StatusCode::NOT_FOUND, "no such service\n").into_response();
    let Ok(service) = service.parse::<ServiceName>() else { return unknown() };
    let withheld = |why: &str| {
        let words = format!("the endpoints of {service} are not told here: {why}\n");
        (StatusCode::SERVICE_UNAVAILABLE, words).into_response()
    };
    // Asked at each time: what is in memory was true when it was written.
    if let Err(why) = shared.speaker.may_speak(&service).await {
        return withheld(&why);
    }
    let endpoints = match shared.published.get(&service) {
        Some(Ok(endpoints)) => endpoints,
        Some(Err(why)) => return withheld(&why),
        None => return unknown(),
    };
    match (asked.format.as_str(), &shared.zone) {
        ("" | "json", _) => ([(header::CONTENT_TYPE, JSON)], endpoints.json()).into_response(),
        ("file_sd" | "http_sd", _) => {
            ([(header::CONTENT_TYPE, JSON)], endpoints.file_sd()).into_response()
        }
        ("scrape", _) => ([(header::CONTENT_TYPE, JSON)], endpoints.scrape()).into_response(),
        ("zone", Some(zone)) => endpoints.zone(zone).into_response(),
        ("zone", None) => {
            (StatusCode::BAD_REQUEST, "deck.toml has no `zone` under [endpoints]\n").into_response()
        }
        _ => (StatusCode::BAD_REQUEST, "format is json, file_sd, scrape or zone\n").into_response(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::base::TrafficMode;

    pub(super) fn table(weight: u16) -> Vec<TrafficServer> {
        let replica = "r1-0-a1".parse().unwrap();
        let address = "10.0.0.1".to_owned();
        vec![TrafficServer {
            replica,
            address,
            port: 21000,
            weight,
            mode: TrafficMode::Ready,
            by_rule: false,
            taken_over_by: None,
        }]
    }

    /// May speak for all but one.
    struct AllBut(&'static str);

    #[async_trait]
    impl Speaker for AllBut {
        async fn may_speak(&self, service: &ServiceName) -> Result<(), String> {
            if service.as_str() == self.0 { Err("h1 is held by bob".to_owned()) } else { Ok(()) }
        }
    }

    async fn listening(limits: Limits) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        (address, tokio::spawn(async move { answer_all(&listener, &router, limits).await }))
    }

    /// Everything that is answered to these words.
    async fn answer(address: std::net::SocketAddr, words: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(words.as_bytes()).await;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        text
    }

    #[tokio::test]
    async fn who_says_nothing_keeps_nobody_else_from_being_answered_for_long() {
        let head = Duration::from_millis(50);
        let limits = Limits { at_once: 1, head, whole: Duration::from_secs(60) };
        let (address, server) = listening(limits).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        // It has the only place until its time for a head is over.
        let text = answer(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(text.ends_with("here"), "one request a connection: {text}");
        let mut rest = Vec::new();
        assert!(silent.read_to_end(&mut rest).await.is_ok(), "it was closed");
        server.abort();
    }

    #[tokio::test]
    async fn who_does_not_come_to_an_end_is_cut_off() {
        let whole = Duration::from_millis(50);
        let limits = Limits { at_once: 1, head: Duration::from_secs(60), whole };
        let (address, server) = listening(limits).await;
        let never_whole = "GET / HTTP/1.1\r\nhost: x\r\n";
        assert_eq!(answer(address, never_whole).await, "");
        server.abort();
    }

    #[tokio::test]
    async fn files_and_http_tell_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let spec = EndpointsSpec {
            dir: Some(dir.path().join("sd").to_str().unwrap().to_owned()),
            listen: None,
            zone: Some("llm.lan".to_owned()),
            reload: Vec::new(),
            settle: Duration::ZERO,
        };
        let published = Published::default();
        let chat: ServiceName = "chat".parse().unwrap();
        published.publish(&spec, &chat, 1, &table(100)).unwrap();
        published.publish(&spec, &chat, 2, &table(40)).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join("sd").join(name)).unwrap();
        assert!(read("chat.file_sd.json").contains("\"__meta_gpudeck_weight\": \"40\""));
        assert!(read("chat.zone").contains("_chat._tcp IN SRV 0 40 21000"));
        assert_eq!(fs::read_dir(dir.path().join("sd")).unwrap().count(), 4);

        let port = {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
            free.local_addr().unwrap().port()
        };
        let listen = format!("127.0.0.1:{port}");
        let fenced: ServiceName = "fenced".parse().unwrap();
        published.publish(&spec, &fenced, 1, &table(100)).unwrap();
        assert!(published.is_current(&spec, &fenced, 1, &table(100)));
        fs::write(dir.path().join("sd/fenced.json"), "another's").unwrap();
        assert!(!published.is_current(&spec, &fenced, 1, &table(100)));
        let speaker = Arc::new(AllBut("fenced"));
        let server = tokio::spawn(serve(listen.clone(), None, published.clone(), speaker));
        let ask = async |path: &str| {
            let end = tokio::time::Instant::now() + Duration::from_secs(30);
            let mut stream = loop {
                match TcpStream::connect(&listen).await {
                    Ok(stream) => break stream,
                    Err(e) => assert!(tokio::time::Instant::now() < end, "{e}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
        };
        assert_eq!(ask("/v1/endpoints/chat").await, ("200".into(), read("chat.json")));
        let sd = ask("/v1/endpoints/chat?format=file_sd").await;
        assert_eq!(sd, ("200".into(), read("chat.file_sd.json")));
        let scrape = ask("/v1/endpoints/chat?format=scrape").await;
        assert_eq!(scrape, ("200".into(), read("chat.scrape.json")));
        assert_eq!(ask("/v1/endpoints").await.1, "{\"services\":[\"chat\",\"fenced\"]}\n");
        let (code, why) = ask("/v1/endpoints/fenced").await;
        assert_eq!(code, "503");
        assert!(why.contains("h1 is held by bob"), "{why}");
        assert_eq!(ask("/v1/endpoints/other").await.0, "404");
        assert_eq!(ask("/v1/endpoints/chat?format=zone").await.0, "400");
        published.withhold(&chat, "because");
        assert_eq!(ask("/v1/endpoints/chat").await.0, "503");
        assert_eq!(read("chat.json").matches("r1-0-a1").count(), 1, "the file stays");
        server.abort();
    }
}
