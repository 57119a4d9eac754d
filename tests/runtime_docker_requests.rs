//! What the docker runtime asks of an engine, seen by a recording socket: the requests for GPUs
//! (no GPU is here to be given), who may look and who may change, and hostile answers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use gpudeck::base::{
    Attempt, Bytes, DeckId, DeviceId, Epoch, EpochCell, Hint, HostName, RankId, ReleaseId,
    ReleaseNumber, ReplicaId, Timestamp,
};
use gpudeck::fleet::{DialStream, HostLink, LinkError};
use gpudeck::runtime::{DockerRuntime, Runtime, RuntimeError};
use gpudeck::spec;
use gpudeck::wire::{
    DeviceNeed, DialAccess, DialTarget, DirEntry, RankStart, Refusal, Reply, Request,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use uuid::Uuid;

/// One request as the engine saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    path: String,
    host: bool,
    body: Value,
    access: DialAccess,
}

type Answer = Box<dyn Fn(&Seen) -> (u16, String) + Send + Sync>;

/// An engine that writes down what it is asked and answers as told.
struct Recorder {
    name: HostName,
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Answer>,
    needs: Mutex<Result<Reply, Refusal>>,
    asked: Mutex<Vec<Request>>,
    held: Mutex<Epoch>,
}

impl Recorder {
    fn new(answer: impl Fn(&Seen) -> (u16, String) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            name: "gpu1".parse().unwrap(),
            seen: Arc::default(),
            answer: Arc::new(Box::new(answer)),
            needs: Mutex::new(Ok(Reply::Done)),
            asked: Mutex::default(),
            held: Mutex::new(Epoch(7)),
        })
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|s| format!("{} {}", s.method, s.path)).collect()
    }
}

#[async_trait]
impl HostLink for Recorder {
    fn host(&self) -> &HostName {
        &self.name
    }

    async fn request(&self, request: Request) -> Result<Reply, LinkError> {
        self.asked.lock().unwrap().push(request.clone());
        match request {
            Request::CheckNeeds { .. } => self.needs.lock().unwrap().clone(),
            Request::ListDir { .. } => Ok(Reply::Entries(
                ["chat.gguf", "hf"]
                    .map(|n| DirEntry { name: n.to_owned(), size: Bytes(1), is_dir: false })
                    .to_vec(),
            )),
            other => panic!("{other:?}"),
        }
        .map_err(|refusal| LinkError::Refused { host: self.name.clone(), refusal })
    }

    async fn dial(
        &self,
        target: &DialTarget,
        access: DialAccess,
    ) -> Result<Box<dyn DialStream>, LinkError> {
        assert_eq!(*target, DialTarget::Unix("/run/docker.sock".to_owned()));
        if let DialAccess::Act { epoch, .. } = access
            && epoch < *self.held.lock().unwrap()
        {
            let refusal = Refusal::Held {
                held: *self.held.lock().unwrap(),
                holder: "ada@elsewhere".to_owned(),
                until: Timestamp(0),
            };
            return Err(LinkError::Refused { host: self.name.clone(), refusal });
        }
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        tokio::spawn(serve(theirs, access, Arc::clone(&self.seen), Arc::clone(&self.answer)));
        Ok(Box::new(ours))
    }
}

async fn serve(
    mut stream: DuplexStream,
    access: DialAccess,
    seen: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Answer>,
) {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await.unwrap();
        if n == 0 {
            return;
        }
        bytes.extend_from_slice(&piece[..n]);
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head
                .lines()
                .filter_map(|l| l.split_once(": "))
                .find(|(k, _)| k.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, v)| v.parse().unwrap());
            bytes.drain(..end + 4);
            break (head, length);
        }
    };
    while bytes.len() < length {
        let mut piece = [0; 4096];
        let n = stream.read(&mut piece).await.unwrap();
        assert_ne!(n, 0);
        bytes.extend_from_slice(&piece[..n]);
    }
    let mut first = head.lines().next().unwrap().split(' ');
    let request = Seen {
        method: first.next().unwrap().to_owned(),
        path: first.next().unwrap().to_owned(),
        host: head.to_ascii_lowercase().contains("\r\nhost: "),
        body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        access,
    };
    let (status, body) = answer(&request);
    seen.lock().unwrap().push(request);
    let reply = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // The reader may have had enough before it is all written.
    let _ = stream.write_all(reply.as_bytes()).await;
}

fn start() -> RankStart {
    RankStart {
        rank: RankId {
            deck: DeckId(Uuid::from_u128(1)),
            service: "chat".parse().unwrap(),
            release_id: ReleaseId(Uuid::from_u128(2)),
            replica: ReplicaId {
                release: ReleaseNumber(12),
                replica: 3,
                attempt: Attempt::FIRST.next(),
            },
            rank: 1,
        },
        argv: ["{gpudeck}", "sim-engine", "--model", "{gpudeck}x"].map(str::to_owned).to_vec(),
        env: [("NCCL_DEBUG".to_owned(), "INFO".to_owned())].into(),
        needs: ["GPU-aaaa", "GPU-bbbb"]
            .map(|g| DeviceNeed {
                device: DeviceId::Gpu(g.to_owned()),
                memory: Bytes::gib(70),
                healthy: false,
            })
            .to_vec(),
        ports: vec![21_000, 21_001],
        files: vec!["/models/chat.gguf".to_owned(), "/models/hf/".to_owned()],
        key_file: None,
        log_limit: Bytes::mib(16),
    }
}

fn runtime(link: &Arc<Recorder>, cell: &EpochCell) -> DockerRuntime {
    let spec = spec::DockerRuntime {
        image: "vllm/vllm-openai:v0.11.0".to_owned(),
        socket: "/run/docker.sock".to_owned(),
        mounts: vec!["/var/cache/vllm".to_owned()],
    };
    let link: Arc<dyn HostLink> = Arc::clone(link) as _;
    DockerRuntime::new(link, DeckId(Uuid::from_u128(1)), cell.clone(), &spec)
}

/// An engine without the container that creates and starts whatever it is asked to.
fn willing(request: &Seen) -> (u16, String) {
    let path = request.path.split('?').next().unwrap();
    match (request.method.as_str(), path) {
        ("GET", "/containers/json") => (200, "[]".to_owned()),
        ("GET", "/version") => {
            (200, json!({ "Components": [{ "Name": "Engine", "Version": "29" }] }).to_string())
        }
        ("GET", "/info") => (200, json!({ "SecurityOptions": ["name=seccomp"] }).to_string()),
        ("GET", p) if p.starts_with("/containers/") => {
            (404, json!({ "message": "No such container" }).to_string())
        }
        ("GET", p) if p.starts_with("/images/") => (200, "{}".to_owned()),
        ("POST", "/containers/create") => (201, json!({ "Id": "c1", "Warnings": [] }).to_string()),
        ("POST", p) if p.ends_with("/start") => (204, String::new()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_rank_with_gpus_asks_for_just_them() {
    let link = Recorder::new(willing);
    let cell = EpochCell::new(Epoch(7));
    runtime(&link, &cell).start(&start()).await.unwrap();
    let seen = link.seen();
    let create = seen.iter().find(|s| s.path.starts_with("/containers/create")).unwrap();
    let named = format!("/containers/create?name={}&", start().rank.unit_name());
    assert!(create.path.starts_with(&named), "{}", create.path);
    let expected = json!({
        "Image": "vllm/vllm-openai:v0.11.0",
        "Entrypoint": ["/gpudeck"],
        "Cmd": ["sim-engine", "--model", "{gpudeck}x"],
        "Env": ["NCCL_DEBUG=INFO"],
        "Labels": {
            "gpudeck.deck": "00000000-0000-0000-0000-000000000001",
            "gpudeck.service": "chat",
            "gpudeck.release": "r12",
            "gpudeck.release_id": "00000000-0000-0000-0000-000000000002",
            "gpudeck.attempt": "2",
            "gpudeck.replica": "3",
            "gpudeck.rank": "1",
            "gpudeck.port": "21000",
        },
        "HostConfig": {
            "NetworkMode": "host",
            "IpcMode": "host",
            "RestartPolicy": { "Name": "no" },
            "Init": true,
            "Mounts": [
                { "Type": "bind", "Source": "/models", "Target": "/models", "ReadOnly": true },
                {
                    "Type": "bind",
                    "Source": "/var/cache/vllm",
                    "Target": "/var/cache/vllm",
                    "ReadOnly": false,
                },
            ],
            "Ulimits": [{ "Name": "memlock", "Soft": -1, "Hard": -1 }],
            "DeviceRequests": [{
                "Driver": "nvidia",
                "DeviceIDs": ["GPU-aaaa", "GPU-bbbb"],
                "Capabilities": [["gpu"]],
            }],
            "LogConfig": {
                "Type": "json-file",
                "Config": { "max-size": "8388608", "max-file": "2" },
            },
        },
    });
    assert_eq!(create.body, expected, "{:#}", create.body);
    assert!(seen.iter().all(|s| s.host && s.path.starts_with('/')), "origin form and Host");
    // The memory gate is asked with just what the rank needs.
    let asked = link.asked.lock().unwrap().clone();
    assert!(asked.contains(&Request::CheckNeeds { needs: start().needs, ports: start().ports }));
}

#[tokio::test]
async fn a_rank_without_gpus_gets_none() {
    let link = Recorder::new(willing);
    let mut start = start();
    start.needs = vec![DeviceNeed { device: DeviceId::Cpu, memory: Bytes::gib(1), healthy: false }];
    runtime(&link, &EpochCell::new(Epoch(7))).start(&start).await.unwrap();
    let create = link.seen().into_iter().find(|s| s.path.contains("/create")).unwrap();
    assert_eq!(create.body["HostConfig"]["DeviceRequests"], Value::Null);
    assert_eq!(create.body["HostConfig"]["Ulimits"], Value::Null);
    assert!(create.body["Env"].as_array().unwrap().contains(&json!("NVIDIA_VISIBLE_DEVICES=void")));
}

#[tokio::test]
async fn looking_takes_no_lock_and_changing_carries_the_epoch_of_the_moment() {
    let link = Recorder::new(willing);
    let cell = EpochCell::new(Epoch(6));
    let runtime = runtime(&link, &cell);
    let error = runtime.start(&start()).await.unwrap_err();
    assert!(
        matches!(
            error,
            RuntimeError::Link(LinkError::Refused { refusal: Refusal::Held { .. }, .. })
        ),
        "{error:?}"
    );
    assert!(!link.lines().iter().any(|l| l.starts_with("POST")), "nothing was changed");
    cell.set(Epoch(8));
    runtime.start(&start()).await.unwrap();
    for seen in link.seen() {
        let act = DialAccess::Act { deck: DeckId(Uuid::from_u128(1)), epoch: Epoch(8) };
        let expected = if seen.method == "GET" { DialAccess::Read } else { act };
        assert_eq!(seen.access, expected, "{} {}", seen.method, seen.path);
    }
}

#[tokio::test]
async fn memory_that_is_not_free_stops_the_start_before_it_begins() {
    let link = Recorder::new(willing);
    *link.needs.lock().unwrap() = Err(Refusal::MemoryBusy {
        device: DeviceId::Gpu("GPU-aaaa".to_owned()),
        free: Bytes::gib(3),
        needed: Bytes::gib(70),
        holders: vec!["pid 9 python 66.0 GiB".to_owned()],
    });
    let error = runtime(&link, &EpochCell::new(Epoch(7))).start(&start()).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("pid 9 python"), "{error}");
    assert!(!link.lines().iter().any(|l| l.starts_with("POST")), "{:?}", link.lines());
}

#[tokio::test]
async fn a_container_that_cannot_be_started_is_taken_away() {
    let started = Mutex::new(false);
    let link = Recorder::new(move |request| {
        let path = request.path.split('?').next().unwrap();
        match (request.method.as_str(), path) {
            ("POST", p) if p.ends_with("/start") => {
                *started.lock().unwrap() = true;
                let message =
                    "could not select device driver \"nvidia\" with capabilities: [[gpu]]";
                (500, json!({ "message": message }).to_string())
            }
            ("GET", p) if p.starts_with("/containers/") && *started.lock().unwrap() => {
                let labels = json!({
                    "gpudeck.deck": "00000000-0000-0000-0000-000000000001",
                    "gpudeck.service": "chat",
                    "gpudeck.release": "r12",
                    "gpudeck.release_id": "00000000-0000-0000-0000-000000000002",
                    "gpudeck.attempt": "2",
                    "gpudeck.replica": "3",
                    "gpudeck.rank": "1",
                });
                let state = json!({ "Status": "created", "StartedAt": "0001-01-01T00:00:00Z" });
                (200, json!({ "State": state, "Config": { "Labels": labels } }).to_string())
            }
            ("DELETE", _) => (204, String::new()),
            _ => willing(request),
        }
    });
    let error = runtime(&link, &EpochCell::new(Epoch(7))).start(&start()).await.unwrap_err();
    assert!(!error.is_transient());
    assert!(error.hint().unwrap().contains("NVIDIA Container Toolkit"), "{error}");
    let last = link.lines().pop().unwrap();
    assert!(last.starts_with("DELETE /containers/gpudeck-chat-r12-3-a2-1-"), "{last}");
}

#[tokio::test]
async fn hostile_answers_are_bounded_and_cleaned() {
    let message = format!("\u{1b}]0;owned\u{7}\u{1b}[31m{}", "x".repeat(100_000));
    let link = Recorder::new(move |_| (500, json!({ "message": message }).to_string()));
    let error = runtime(&link, &EpochCell::new(Epoch(7))).list().await.unwrap_err();
    let text = error.to_string();
    assert!(text.len() < 1_000 && !text.contains(char::is_control), "{text:?}");

    let huge = format!("[\"{}\"]", "x".repeat(20 << 20));
    let link = Recorder::new(move |_| (200, huge.clone()));
    let runtime_ = runtime(&link, &EpochCell::new(Epoch(7)));
    let answer = tokio::time::timeout(Duration::from_mins(1), runtime_.list()).await.unwrap();
    assert!(answer.unwrap_err().to_string().contains("too long"));

    for nonsense in ["", "{", "[{\"Id\": 5}]", "<html>"] {
        let link = Recorder::new(move |_| (200, nonsense.to_owned()));
        assert!(runtime(&link, &EpochCell::default()).list().await.is_err(), "{nonsense:?}");
    }
    // Labels of somebody who only pretends are passed over.
    let link = Recorder::new(|_| {
        let labels = json!({ "gpudeck.deck": "00000000-0000-0000-0000-000000000001" });
        (200, json!([{ "Id": "c1", "State": "running", "Labels": labels }]).to_string())
    });
    assert_eq!(runtime(&link, &EpochCell::default()).list().await.unwrap(), []);
}

/// The labels of the rank of [`start`] in that attempt.
fn labels(attempt: u32) -> Value {
    json!({
        "gpudeck.deck": "00000000-0000-0000-0000-000000000001",
        "gpudeck.service": "chat",
        "gpudeck.release": "r12",
        "gpudeck.release_id": "00000000-0000-0000-0000-000000000002",
        "gpudeck.attempt": attempt.to_string(),
        "gpudeck.replica": "3",
        "gpudeck.rank": "1",
    })
}

/// An engine with an ended container of each of these attempts, the later the newer.
fn with_ended(attempts: std::ops::RangeInclusive<u32>, request: &Seen) -> Option<(u16, String)> {
    let path = request.path.split('?').next().unwrap();
    if path == "/containers/json" {
        let all: Vec<Value> = attempts
            .map(|n| {
                json!({ "Id": format!("c{n}"), "State": "exited", "Created": 1_700_000_000 + n,
                    "Labels": labels(n) })
            })
            .collect();
        return Some((200, json!(all).to_string()));
    }
    let id = path.strip_prefix("/containers/")?.strip_suffix("/json")?;
    let attempt = match id.strip_prefix("gpudeck-chat-r12-3-a") {
        Some(rest) => rest.split('-').next()?,
        None => id.strip_prefix('c')?,
    };
    let attempt: u32 = attempt.parse().ok().filter(|n| attempts.contains(n))?;
    let state = json!({ "Status": "exited", "ExitCode": 1, "StartedAt": "2026-01-01T00:00:00Z",
        "FinishedAt": "2026-01-01T00:01:00Z" });
    Some((200, json!({ "State": state, "Config": { "Labels": labels(attempt) } }).to_string()))
}

/// A look that was broken off (a log that does not come, a host that went away) is not begun anew each time.
#[tokio::test]
async fn what_was_found_out_of_containers_is_kept_when_a_look_ends_early() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let mend = Arc::clone(&broken);
    let link = Recorder::new(move |request| {
        let path = request.path.split('?').next().unwrap();
        let is_broken = broken.load(std::sync::atomic::Ordering::SeqCst);
        match path {
            "/containers/c2/json" if is_broken => (500, json!({ "message": "busy" }).to_string()),
            p if p.ends_with("/logs") => (500, json!({ "message": "no log driver" }).to_string()),
            _ => with_ended(1..=2, request).unwrap(),
        }
    });
    let runtime = runtime(&link, &EpochCell::new(Epoch(7)));
    assert!(runtime.list().await.is_err());
    mend.store(false, std::sync::atomic::Ordering::SeqCst);
    let reports = runtime.list().await.unwrap();
    // Neither is one whose log is lost.
    assert_eq!(reports.len(), 2);
    let asked = |what: &str| link.lines().iter().filter(|line| line.contains(what)).count();
    assert_eq!((asked("/containers/c1/json"), asked("/containers/c2/json")), (1, 2));
    runtime.list().await.unwrap();
    assert_eq!((asked("/containers/c1/json"), asked("/containers/c2/json")), (1, 2));
}

/// A service that fails again and again.
#[tokio::test]
async fn a_start_leaves_sixteen_ended_containers_of_its_service() {
    let link = Recorder::new(|request| {
        if request.method == "DELETE" {
            return (204, String::new());
        }
        with_ended(11..=28, request).unwrap_or_else(|| willing(request))
    });
    runtime(&link, &EpochCell::new(Epoch(7))).start(&start()).await.unwrap();
    let gone: Vec<String> = link
        .lines()
        .iter()
        .filter_map(|line| line.strip_prefix("DELETE /containers/gpudeck-chat-r12-3-"))
        .map(|rest| rest.split('-').next().unwrap().to_owned())
        .collect();
    assert_eq!(gone, ["a12", "a11"]);
}

/// A Docker Engine that runs without root can raise no limits, and refuses who asks for it.
#[tokio::test]
async fn an_engine_without_root_is_not_asked_for_locked_memory() {
    let link = Recorder::new(|request| match request.path.as_str() {
        "/info" => (
            200,
            json!({ "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"] })
                .to_string(),
        ),
        _ => willing(request),
    });
    let runtime = runtime(&link, &EpochCell::new(Epoch(7)));
    runtime.start(&start()).await.unwrap();
    runtime.start(&start()).await.unwrap();
    let creates: Vec<Seen> =
        link.seen().into_iter().filter(|s| s.path.contains("/create")).collect();
    assert_eq!(creates.len(), 2);
    assert_eq!(creates[0].body["HostConfig"]["Ulimits"], Value::Null);
    assert_ne!(creates[0].body["HostConfig"]["DeviceRequests"], Value::Null);
    assert_eq!(link.lines().iter().filter(|line| *line == "GET /info").count(), 1, "asked once");
}

/// It would start the rank without them.
#[tokio::test]
async fn podman_is_given_no_rank_with_gpus() {
    let link = Recorder::new(|request| match request.path.as_str() {
        "/version" => {
            let components = json!([{ "Name": "Podman Engine", "Version": "5.4.0" }]);
            (200, json!({ "Components": components }).to_string())
        }
        _ => willing(request),
    });
    let runtime = runtime(&link, &EpochCell::new(Epoch(7)));
    let error = runtime.start(&start()).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("Podman"), "{error}");
    assert!(error.hint().unwrap().contains("Docker Engine"), "{error}");
    assert!(!link.lines().iter().any(|line| line.starts_with("POST")), "{:?}", link.lines());
    let on_memory = RankStart { needs: Vec::new(), ..start() };
    runtime.start(&on_memory).await.unwrap();
    let create = link.seen().into_iter().find(|s| s.path.contains("/create")).unwrap();
    assert_eq!(create.body["HostConfig"]["Init"], Value::Null);
}

#[tokio::test]
async fn an_engine_without_an_init_starts_ranks_without_one() {
    let created = Arc::new(Mutex::new(Vec::<bool>::new()));
    let asked = Arc::clone(&created);
    let link = Recorder::new(move |request| {
        let path = request.path.split('?').next().unwrap();
        let mut created = created.lock().unwrap();
        match (request.method.as_str(), path) {
            ("POST", "/containers/create") => {
                created.push(request.body["HostConfig"]["Init"] == json!(true));
                willing(request)
            }
            ("POST", p) if p.ends_with("/start") && created.last() == Some(&true) => {
                let message = "exec: \"docker-init\": executable file not found in $PATH";
                (400, json!({ "message": message }).to_string())
            }
            _ => willing(request),
        }
    });
    let runtime = runtime(&link, &EpochCell::new(Epoch(7)));
    runtime.start(&start()).await.unwrap();
    runtime.start(&start()).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), [true, false, false]);
}

/// A stop that came while a container was being created found none, and the start that would have started it was
/// ended.
#[tokio::test]
async fn what_was_created_and_forgotten_is_taken_away() {
    let age = Arc::new(std::sync::atomic::AtomicI64::new(30));
    let older = Arc::clone(&age);
    let link = Recorder::new(move |request| {
        let path = request.path.split('?').next().unwrap();
        let age = age.load(std::sync::atomic::Ordering::SeqCst);
        let created = jiff::Timestamp::now().as_second() - age;
        match (request.method.as_str(), path) {
            ("GET", "/containers/json") => {
                let one = json!({ "Id": "c2", "State": "created", "Created": created, "Labels": labels(2) });
                (200, json!([one]).to_string())
            }
            ("GET", p) if p.starts_with("/containers/") => {
                let state = json!({ "Status": "created", "StartedAt": "0001-01-01T00:00:00Z" });
                (200, json!({ "State": state, "Config": { "Labels": labels(2) } }).to_string())
            }
            ("DELETE", _) => (204, String::new()),
            _ => willing(request),
        }
    });
    let runtime = runtime(&link, &EpochCell::new(Epoch(7)));
    assert_eq!(runtime.list().await.unwrap().len(), 1, "it may still be started");
    assert!(!link.lines().iter().any(|line| line.starts_with("DELETE")));
    older.store(400, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(runtime.list().await.unwrap(), []);
    assert!(
        link.lines()
            .iter()
            .any(|line| line.starts_with("DELETE /containers/gpudeck-chat-r12-3-a2-1-"))
    );
}
