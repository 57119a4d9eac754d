//! One suite for every runtime: the process runtime through an agent, the docker runtime through a
//! real Docker Engine (needs root, dockerd and a static busybox).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

#[path = "common_link.rs"]
mod common_link;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common_link::any_link;
use gpudeck::base::{
    Attempt, Bytes, DeckId, Epoch, EpochCell, Hint, RankId, ReleaseId, ReleaseNumber, ReplicaId,
};
use gpudeck::fleet::HostLink;
use gpudeck::runtime::docker::setup::Setup;
use gpudeck::runtime::{Difference, DockerRuntime, ProcessRuntime, Runtime, RuntimeError};
use gpudeck::spec;
use gpudeck::wire::{RankReport, RankStart, RankStatus};
use tempfile::TempDir;
use uuid::Uuid;

const POLITE: &str = "trap 'echo bye >&2; exit 3' TERM; echo started $WORD; \
                      while :; do sleep 1 & wait $!; done";
const STUBBORN: &str = "trap '' TERM; echo started; while :; do sleep 1; done";

fn rank(deck: DeckId, number: u32) -> RankId {
    RankId {
        deck,
        service: "chat".parse().unwrap(),
        release_id: ReleaseId(Uuid::now_v7()),
        replica: ReplicaId { release: ReleaseNumber(12), replica: number, attempt: Attempt::FIRST },
        rank: 0,
    }
}

fn shell(rank: &RankId, script: &str) -> RankStart {
    RankStart {
        rank: rank.clone(),
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: [("WORD".to_owned(), "it's \"quoted\" $HOME".to_owned())].into(),
        needs: Vec::new(),
        ports: Vec::new(),
        files: Vec::new(),
        key_file: None,
        log_limit: Bytes::mib(1),
    }
}

async fn report(runtime: &dyn Runtime, rank: &RankId) -> Option<RankReport> {
    runtime.list().await.unwrap().into_iter().find(|r| r.rank == *rank)
}

/// Waits until the rank's log holds `words`, and returns all of it.
async fn logged(runtime: &dyn Runtime, rank: &RankId, words: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let chunk = runtime.read_log(rank, Some(0), 4096).await.unwrap();
        if chunk.text.contains(words) {
            return chunk.text;
        }
        assert!(Instant::now() < deadline, "never logged {words:?}: {chunk:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn exited(runtime: &dyn Runtime, rank: &RankId) -> (Option<i32>, Option<i32>, String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match report(runtime, rank).await.map(|r| r.status) {
            Some(RankStatus::Exited { code, signal, at, last_lines }) => {
                assert!(at.0 > 1_600_000_000_000, "{at}");
                return (code, signal, last_lines);
            }
            other => assert!(Instant::now() < deadline, "never ended: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What every runtime must do.
async fn conforms(runtime: &dyn Runtime, deck: DeckId) {
    // Nothing is there, and stopping or removing what never was is success.
    assert_eq!(runtime.list().await.unwrap(), []);
    let never = rank(deck, 90);
    runtime.stop(&never, Duration::from_secs(1)).await.unwrap();
    runtime.remove(&never).await.unwrap();

    // It starts once, however often it is told to.
    let polite = rank(deck, 0);
    let start = shell(&polite, POLITE);
    runtime.start(&start).await.unwrap();
    let log = logged(runtime, &polite, "started").await;
    assert!(log.contains("started it's \"quoted\" $HOME"), "{log:?}");
    let first = report(runtime, &polite).await.expect("it is listed");
    let RankStatus::Running { pid, since } = first.status else { panic!("{first:?}") };
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "pid {pid}");
    assert!(since.0 > 1_600_000_000_000, "{since}");
    runtime.start(&start).await.unwrap();
    assert_eq!(runtime.list().await.unwrap(), [first]);
    // How it was started can be told from it.
    let running = runtime.running().await.unwrap();
    let seen: Vec<_> = running.iter().map(|r| (&r.rank, r.argv.as_ref())).collect();
    assert_eq!(seen, [(&polite, Some(&start.argv))]);
    assert!(runtime.differences(&start).await.unwrap().is_none_or(|all| all.is_empty()));

    // Its log can be followed by offset, and its end asked for.
    let whole = runtime.read_log(&polite, Some(0), 4096).await.unwrap();
    assert_eq!(whole.offset, 0);
    assert_eq!(whole.text.matches("started").count(), 1);
    let piece = runtime.read_log(&polite, Some(0), 4).await.unwrap();
    assert_eq!((piece.text.as_str(), piece.next_offset), ("star", 4));
    let rest = runtime.read_log(&polite, Some(piece.next_offset), 4096).await.unwrap();
    assert_eq!(format!("star{}", rest.text), whole.text);
    let end = runtime.read_log(&polite, None, 6).await.unwrap();
    assert!(end.text.len() <= 6 && whole.text.ends_with(&end.text), "{end:?}");
    assert_eq!(end.next_offset, whole.next_offset);

    // SIGTERM is enough for one that listens; its end is told with code and last words.
    let began = Instant::now();
    runtime.stop(&polite, Duration::from_secs(30)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let (code, signal, last) = exited(runtime, &polite).await;
    assert_eq!((code, signal), (Some(3), None));
    assert!(last.contains("bye"), "{last:?}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let rest = runtime.read_log(&polite, Some(whole.next_offset), 4096).await.unwrap();
    assert!(rest.text.ends_with("bye\n"), "{rest:?}");
    runtime.stop(&polite, Duration::from_secs(1)).await.unwrap();
    // What ended was started already: it is not started again.
    runtime.start(&start).await.unwrap();
    assert_eq!(exited(runtime, &polite).await.0, Some(3));

    // SIGKILL for one that does not listen, and not before its time.
    let stubborn = rank(deck, 1);
    runtime.start(&shell(&stubborn, STUBBORN)).await.unwrap();
    logged(runtime, &stubborn, "started").await;
    let began = Instant::now();
    runtime.stop(&stubborn, Duration::from_secs(1)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    let (code, signal, _) = exited(runtime, &stubborn).await;
    assert_eq!((code, signal), (None, Some(9)));

    // One that ends by itself is told as it ended.
    let brief = rank(deck, 2);
    runtime.start(&shell(&brief, "echo one; echo last words >&2; exit 7")).await.unwrap();
    let (code, signal, last) = exited(runtime, &brief).await;
    assert_eq!((code, signal), (Some(7), None));
    assert!(last.contains("last words"), "{last:?}");

    // Forgotten is forgotten.
    for rank in [&polite, &stubborn, &brief] {
        runtime.remove(rank).await.unwrap();
        runtime.remove(rank).await.unwrap();
    }
    assert_eq!(runtime.list().await.unwrap(), []);

    // Refusals come before anything is started, and asking again does not help.
    let mut missing = shell(&rank(deck, 3), POLITE);
    missing.files = vec!["/nonexistent/model.gguf".to_owned()];
    let error = refused(runtime, &missing).await;
    assert!(error.to_string().contains("/nonexistent/model.gguf"), "{error}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut busy = shell(&rank(deck, 4), POLITE);
    busy.ports = vec![listener.local_addr().unwrap().port()];
    let error = refused(runtime, &busy).await;
    assert!(error.to_string().contains("in use"), "{error}");
    drop(listener);
    let mut nothing = shell(&rank(deck, 5), "");
    nothing.argv = vec!["/nonexistent/program".to_owned()];
    refused_or_ended(runtime, &nothing).await;
}

async fn refused(runtime: &dyn Runtime, start: &RankStart) -> RuntimeError {
    let error = runtime.start(start).await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
    assert!(error.hint().is_some(), "{error}");
    assert_eq!(report(runtime, &start.rank).await, None, "{error}: nothing is left");
    error
}

/// A program that is not there shows at the start, or as an end right after it.
async fn refused_or_ended(runtime: &dyn Runtime, start: &RankStart) {
    if let Err(error) = runtime.start(start).await {
        assert!(!error.is_transient(), "{error}");
        assert_eq!(report(runtime, &start.rank).await, None, "{error}: nothing is left");
        return;
    }
    let (code, _, _) = exited(runtime, &start.rank).await;
    assert_ne!(code, Some(0));
    runtime.remove(&start.rank).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_runtime_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let deck = DeckId(Uuid::now_v7());
    let (link, cell) = any_link(dir.path(), deck).await;
    conforms(&ProcessRuntime::new(link, deck, cell), deck).await;
}

/// A Docker Engine of the test's own, in a network and mount namespace of its own.
struct Dockerd {
    child: Child,
    dir: TempDir,
}

impl Dockerd {
    /// None where it cannot be had; then the reason was printed.
    fn start() -> Option<Self> {
        let missing = if !rustix::process::geteuid().is_root() {
            Some("root")
        } else if !on_path("dockerd") {
            Some("dockerd (Debian: docker.io)")
        } else if busybox().is_none() {
            Some("a static busybox (Debian: busybox-static)")
        } else {
            None
        };
        if let Some(missing) = missing {
            let lab = std::env::var("GPUDECK_LAB").is_ok_and(|v| v == "1");
            assert!(!lab, "the lab needs {missing}");
            eprintln!("skipped: needs {missing}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let log = std::fs::File::create(at("dockerd.log")).unwrap();
        let child = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", "ip link set lo up; exec dockerd \"$@\"", "sh"])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("pid"), "-H", &format!("unix://{}", at("socket"))])
            .args(["--bridge", "none", "--iptables=false", "--storage-driver", "vfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let dockerd = Self { child, dir };
        let deadline = Instant::now() + Duration::from_mins(1);
        while !dockerd.http("GET", "/_ping", b"").is_some_and(|answer| answer.contains("OK")) {
            let log = std::fs::read_to_string(dockerd.dir.path().join("dockerd.log"));
            assert!(Instant::now() < deadline, "dockerd is not ready: {log:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(dockerd)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// One request as plain as can be; the whole answer.
    fn http(&self, method: &str, path: &str, body: &[u8]) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: test\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
            if body.first() == Some(&b'{') { "application/json" } else { "application/x-tar" },
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer).into_owned())
    }

    /// An image with a shell and nothing else.
    fn import_busybox(&self) {
        let root = self.dir.path().join("root");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::copy(busybox().unwrap(), root.join("bin/busybox")).unwrap();
        for name in ["sh", "sleep"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        let tar = Command::new("tar").arg("-c").arg("-C").arg(&root).arg(".").output().unwrap();
        assert!(tar.status.success());
        let answer = self
            .http("POST", "/images/create?fromSrc=-&repo=gpudeck-test&tag=1", &tar.stdout)
            .unwrap();
        assert!(answer.contains("sha256:"), "{answer}");
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // SIGTERM lets it end its containers and its containerd.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait().is_ok_and(|s| s.is_none()) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// A busybox that needs no libraries; one that does would not run in the image.
fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .map(PathBuf::from)
        .find(|path| std::fs::read(path).is_ok_and(|elf| !has_interpreter(&elf)))
}

/// Whether a 64-bit little-endian ELF file names a dynamic loader (`PT_INTERP`).
fn has_interpreter(elf: &[u8]) -> bool {
    let number = |at: usize, size: usize| {
        elf[at..at + size].iter().rev().fold(0_usize, |n, b| n << 8 | usize::from(*b))
    };
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).any(|i| number(table + i * size, 4) == 3)
}

/// The host and the claim on it.
type Link = (Arc<dyn HostLink>, EpochCell);

fn docker(
    link: &Link,
    deck: DeckId,
    socket: &Path,
    image: &str,
    mounts: &[&Path],
) -> DockerRuntime {
    let spec = spec::DockerRuntime {
        image: image.to_owned(),
        socket: socket.display().to_string(),
        mounts: mounts.iter().map(|m| m.display().to_string()).collect(),
    };
    DockerRuntime::new(Arc::clone(&link.0), deck, link.1.clone(), &spec)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_docker_runtime_conforms() {
    let Some(dockerd) = Dockerd::start() else { return };
    dockerd.import_busybox();
    let deck = DeckId(Uuid::now_v7());
    let dir = tempfile::tempdir().unwrap();
    let (link, cell) = any_link(dir.path(), deck).await;
    let link = (link, cell);
    let runtime = docker(&link, deck, &dockerd.socket(), "gpudeck-test:1", &[]);
    conforms(&runtime, deck).await;
    files_are_mounted(&link, deck, &dockerd, dir.path()).await;
    what_was_begun_is_adopted(&link, deck, &dockerd).await;
    two_starts_at_once_are_one(&runtime, deck).await;
    mistakes_are_told_apart(&link, deck, &dockerd).await;
    a_replaced_controller_changes_nothing(&link, deck, &dockerd).await;
}

async fn a_replaced_controller_changes_nothing(link: &Link, deck: DeckId, dockerd: &Dockerd) {
    // The stand-in grants no epoch: there is nothing to be older than.
    let Some(older) = link.1.get().0.checked_sub(1) else { return };
    let replaced = (Arc::clone(&link.0), EpochCell::new(Epoch(older)));
    let runtime = docker(&replaced, deck, &dockerd.socket(), "gpudeck-test:1", &[]);
    let id = rank(deck, 60);
    let error = runtime.start(&shell(&id, POLITE)).await.unwrap_err();
    assert!(error.to_string().contains("held by"), "{error}");
    assert!(error.hint().unwrap().contains("take over"), "{error}");
    assert_eq!(runtime.list().await.unwrap(), [], "looking is still allowed");
}

async fn files_are_mounted(link: &Link, deck: DeckId, dockerd: &Dockerd, dir: &Path) {
    let model = dir.join("models");
    let cache = dir.join("cache");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::write(model.join("m.gguf"), "weights").unwrap();
    let runtime = docker(link, deck, &dockerd.socket(), "gpudeck-test:1", &[&cache]);
    let id = rank(deck, 20);
    let file = model.join("m.gguf").display().to_string();
    let mut start = shell(
        &id,
        &format!(
            "read line < {file}; echo \"$line\"; echo no > {file} || echo refused; \
             echo yes > {}/written; echo done; exec sleep 60",
            cache.display()
        ),
    );
    start.files = vec![file];
    runtime.start(&start).await.unwrap();
    let log = logged(&runtime, &id, "done").await;
    assert!(log.contains("weights\n") && log.contains("refused"), "{log:?}");
    assert_eq!(std::fs::read_to_string(cache.join("written")).unwrap(), "yes\n");
    // As the engine tells of it, it is as it was to be; otherwise it is told how it differs.
    let seen = runtime.running().await.unwrap().into_iter().find(|r| r.rank == id).unwrap();
    let differences = |start: &RankStart, mounts: &[&Path]| {
        let spec = spec::DockerRuntime {
            image: "gpudeck-test:1".to_owned(),
            socket: dockerd.socket().display().to_string(),
            mounts: mounts.iter().map(|m| m.display().to_string()).collect(),
        };
        Setup::wanted(start, &spec).unwrap().differences(seen.setup.as_ref().unwrap())
    };
    assert_eq!(differences(&start, &[&cache]), []);
    start.env.insert("WORD".to_owned(), "another".to_owned());
    let cache_too = format!("{} is mounted, too", cache.display());
    assert_eq!(
        differences(&start, &[]),
        [
            Difference::Environment("WORD has another value".to_owned()),
            Difference::Mounts(cache_too)
        ]
    );
    runtime.stop(&id, Duration::from_millis(100)).await.unwrap();
    runtime.remove(&id).await.unwrap();
}

/// Another controller, later: it finds what runs, and what was created and never started.
async fn what_was_begun_is_adopted(link: &Link, deck: DeckId, dockerd: &Dockerd) {
    let first = docker(link, deck, &dockerd.socket(), "gpudeck-test:1", &[]);
    let id = rank(deck, 30);
    first.start(&shell(&id, POLITE)).await.unwrap();
    logged(&first, &id, "started").await;
    drop(first);
    let later = docker(link, deck, &dockerd.socket(), "gpudeck-test:1", &[]);
    assert!(matches!(report(&later, &id).await.unwrap().status, RankStatus::Running { .. }));
    let stranger = DeckId(Uuid::now_v7());
    let others = docker(link, stranger, &dockerd.socket(), "gpudeck-test:1", &[]);
    assert_eq!(others.list().await.unwrap(), [], "another deck's ranks are not listed");
    later.stop(&id, Duration::from_secs(10)).await.unwrap();
    later.remove(&id).await.unwrap();

    let half = rank(deck, 31);
    let start = shell(&half, POLITE);
    let spec = spec::DockerRuntime {
        image: "gpudeck-test:1".to_owned(),
        socket: String::new(),
        mounts: Vec::new(),
    };
    let body = gpudeck::runtime::docker::create::body(
        &start,
        &spec,
        gpudeck::runtime::docker::create::Kind::default(),
    )
    .unwrap();
    let path = format!("/containers/create?name={}", half.unit_name());
    let answer = dockerd.http("POST", &path, &serde_json::to_vec(&body).unwrap()).unwrap();
    assert!(answer.contains(" 201 "), "{answer}");
    let (code, signal, last) = exited_once(&later, &half).await;
    assert_eq!((code, signal), (None, None));
    assert!(last.contains("never started"), "{last}");
    later.start(&start).await.unwrap();
    logged(&later, &half, "started").await;
    assert!(matches!(report(&later, &half).await.unwrap().status, RankStatus::Running { .. }));
    later.stop(&half, Duration::from_secs(10)).await.unwrap();
    later.remove(&half).await.unwrap();
}

async fn exited_once(runtime: &dyn Runtime, rank: &RankId) -> (Option<i32>, Option<i32>, String) {
    match report(runtime, rank).await.unwrap().status {
        RankStatus::Exited { code, signal, last_lines, .. } => (code, signal, last_lines),
        other => panic!("{other:?}"),
    }
}

async fn two_starts_at_once_are_one(runtime: &dyn Runtime, deck: DeckId) {
    let id = rank(deck, 40);
    let start = shell(&id, POLITE);
    let (one, two, three) =
        tokio::join!(runtime.start(&start), runtime.start(&start), runtime.start(&start));
    assert_eq!((one, two, three), (Ok(()), Ok(()), Ok(())));
    let log = logged(runtime, &id, "started").await;
    assert_eq!(log.matches("started").count(), 1);
    assert_eq!(runtime.list().await.unwrap().len(), 1);
    let error = runtime.remove(&id).await.unwrap_err();
    assert!(error.to_string().contains("still runs"), "{error}");
    runtime.stop(&id, Duration::from_secs(10)).await.unwrap();
    runtime.remove(&id).await.unwrap();
}

async fn mistakes_are_told_apart(link: &Link, deck: DeckId, dockerd: &Dockerd) {
    let id = rank(deck, 50);
    let start = shell(&id, POLITE);
    let expect = async |runtime: &DockerRuntime, start: &RankStart, message: &str, hint: &str| {
        let error = runtime.start(start).await.unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{:?}", error.hint());
        error
    };
    let no_image = docker(link, deck, &dockerd.socket(), "vllm/nowhere:v1", &[]);
    let error = expect(&no_image, &start, "no image", "docker pull vllm/nowhere:v1 on here").await;
    assert!(!error.is_transient());
    let no_socket = docker(link, deck, Path::new("/nonexistent/docker.sock"), "x", &[]);
    let error = expect(&no_socket, &start, "no socket", "install Docker").await;
    assert!(!error.is_transient());
    assert!(no_socket.list().await.is_err());
    let dir = tempfile::tempdir().unwrap();
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let dead = docker(link, deck, &dead, "x", &[]);
    let error = expect(&dead, &start, "nothing answers", "systemctl start docker").await;
    assert!(error.is_transient());
    // Somebody else's container under the rank's name.
    let good = docker(link, deck, &dockerd.socket(), "gpudeck-test:1", &[]);
    let path = format!("/containers/create?name={}", id.unit_name());
    let answer =
        dockerd.http("POST", &path, br#"{"Image":"gpudeck-test:1","Cmd":["/bin/sh"]}"#).unwrap();
    assert!(answer.contains(" 201 "), "{answer}");
    let error = expect(&good, &start, "is taken", "docker rm").await;
    assert!(!error.is_transient());
    assert!(good.stop(&id, Duration::from_secs(1)).await.is_err());
    assert!(good.remove(&id).await.is_err(), "it is not ours to remove");
    assert_eq!(good.list().await.unwrap(), []);
}
