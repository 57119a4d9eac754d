//! The container engine of the host, as far as telemetry needs it: its version, and which name a
//! container's id has. Only reads, over the engine's Unix socket, in bounded time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::base::text::clean;
use crate::wire::{ContainerEngine, Gpus};

/// One question to an engine; one that takes longer is busy or hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Longest answer that is read.
const MAX_ANSWER: u64 = 1 << 20;

/// A lookup that failed is tried again after so long, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));

/// Most containers whose names are remembered.
const MAX_KNOWN: usize = 4096;

/// Characters of an id that are shown where no name is known.
const SHORT_ID: usize = 12;

/// Where engines listen.
fn sockets() -> Vec<PathBuf> {
    let mut sockets: Vec<PathBuf> =
        ["/var/run/docker.sock", "/run/podman/podman.sock"].map(PathBuf::from).to_vec();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).or_else(|| {
        Some(PathBuf::from(format!("/run/user/{}", rustix::process::getuid().as_raw())))
    });
    sockets.extend(runtime.iter().map(|dir| dir.join("docker.sock")));
    sockets.extend(runtime.iter().map(|dir| dir.join("podman/podman.sock")));
    sockets
}

/// The engine that answers; with why not, where a socket is there and does not.
pub async fn engine() -> (Option<ContainerEngine>, Option<String>) {
    let mut trouble = None;
    for socket in sockets() {
        if !tokio::fs::try_exists(&socket).await.unwrap_or(false) {
            continue;
        }
        match get(&socket, "/version").await {
            Ok(answer) => return (Some(version(&answer)), None),
            Err(why) => {
                let why = format!("{}: {why}", socket.display());
                trouble.get_or_insert(clean(&why, 200));
            }
        }
    }
    let there = trouble.as_ref().map(|why| {
        let name = if why.contains("podman") { "podman" } else { "docker" };
        ContainerEngine { name: name.to_owned(), version: None }
    });
    (there, trouble)
}

/// Podman answers Docker's interface and says who it is among its components.
fn version(answer: &serde_json::Value) -> ContainerEngine {
    let components = answer.get("Components").and_then(|c| c.as_array());
    let is_podman = components.into_iter().flatten().any(|component| {
        let name = component.get("Name").and_then(|n| n.as_str()).unwrap_or_default();
        name.to_ascii_lowercase().contains("podman")
    });
    let version = answer.get("Version").and_then(|v| v.as_str()).map(|v| clean(v, 40));
    let name = if is_podman { "podman" } else { "docker" };
    ContainerEngine { name: name.to_owned(), version }
}

async fn get(socket: &Path, path: &str) -> Result<serde_json::Value, Failed> {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await?;
        // HTTP/1.0: the answer is not in chunks and ends with the connection.
        let request = format!("GET {path} HTTP/1.0\r\nHost: gpudeck\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = match timeout(PATIENCE, ask).await {
        Err(_) => return Err(Failed::Other("it does not answer".to_owned())),
        Ok(Err(error)) => return Err(Failed::Other(error.to_string())),
        Ok(Ok(answer)) => answer,
    };
    body(&answer)
}

/// Why there is no good answer.
#[derive(Debug)]
enum Failed {
    /// It says that there is no such thing.
    NotFound,
    /// Something else, in words.
    Other(String),
}

impl std::fmt::Display for Failed {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound => to.write_str("it does not know that"),
            Self::Other(why) => to.write_str(why),
        }
    }
}

/// The JSON of a good answer.
fn body(answer: &[u8]) -> Result<serde_json::Value, Failed> {
    let parts = || {
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(answer.get(..end)?);
        let status = head.lines().next()?.split_ascii_whitespace().nth(1)?.to_owned();
        Some((status, answer.get(end + 4..)?))
    };
    let other = || Failed::Other("it answers something else".to_owned());
    let (status, json) = parts().ok_or_else(other)?;
    match status.as_str() {
        "200" => serde_json::from_slice(json).map_err(|_| other()),
        "404" => Err(Failed::NotFound),
        _ => Err(other()),
    }
}

/// What came of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The container's name.
    Name(String),
    /// No engine knows it.
    Nowhere,
    /// An engine was busy, hangs or does not let us ask.
    Unknown,
}

/// Names of containers, by id. What is not known yet is looked up by whoever owns this.
#[derive(Clone, Debug, Default)]
pub struct Names {
    known: BTreeMap<String, Known>,
}

#[derive(Clone, Debug)]
enum Known {
    Name(String),
    /// There is no such container.
    Nowhere,
    /// Nobody has said; it is asked again then, and the next time after so long.
    Again(Instant, Duration),
}

impl Names {
    /// Puts names in the place of ids; answers with ids that are to be looked up.
    pub fn put_in(&self, gpus: &mut Gpus) -> Vec<String> {
        let Gpus::Some(gpus) = gpus else { return Vec::new() };
        let mut unknown = Vec::new();
        for process in gpus.iter_mut().flat_map(|gpu| &mut gpu.processes).flatten() {
            let Some(container) = &mut process.container else { continue };
            let due = match self.known.get(container.as_str()) {
                Some(Known::Name(name)) => {
                    *container = name.into();
                    continue;
                }
                Some(Known::Nowhere) => false,
                Some(Known::Again(at, _)) => *at <= Instant::now(),
                None => true,
            };
            if due && !unknown.iter().any(|id| id == container) {
                unknown.push(container.to_string());
            }
            // Ids are ASCII.
            *container = container.get(..SHORT_ID).unwrap_or(container).into();
        }
        unknown
    }

    /// Remembers what was found.
    pub fn learn(&mut self, found: Vec<(String, Found)>) {
        if self.known.len() + found.len() > MAX_KNOWN {
            self.known.clear();
        }
        for (id, found) in found {
            let known = match found {
                Found::Name(name) => Known::Name(name),
                Found::Nowhere => Known::Nowhere,
                Found::Unknown => {
                    let after = match self.known.get(&id) {
                        Some(Known::Again(_, after)) => (*after * 2).min(AGAIN.1),
                        _ => AGAIN.0,
                    };
                    Known::Again(Instant::now() + after, after)
                }
            };
            self.known.insert(id, known);
        }
    }
}

/// Looks up the names of containers.
pub async fn look_up(ids: Vec<String>) -> Vec<(String, Found)> {
    look_up_at(&sockets(), ids).await
}

async fn look_up_at(sockets: &[PathBuf], ids: Vec<String>) -> Vec<(String, Found)> {
    let mut all = Vec::new();
    for id in ids.into_iter().take(64) {
        let mut found = Found::Nowhere;
        for socket in sockets {
            if !tokio::fs::try_exists(socket).await.unwrap_or(true) {
                continue;
            }
            match get(socket, &format!("/containers/{id}/json")).await {
                Ok(answer) => {
                    let given = answer.get("Name").and_then(|n| n.as_str()).unwrap_or_default();
                    let name = clean(given.trim_start_matches('/'), 60);
                    if !name.is_empty() {
                        found = Found::Name(name);
                        break;
                    }
                }
                Err(Failed::NotFound) => {}
                Err(Failed::Other(_)) => found = Found::Unknown,
            }
        }
        all.push((id, found));
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::wire::{Gpu, GpuProcess};

    #[tokio::test]
    async fn asks_an_engine() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let answers = [
                "HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"Version\":\"4.3.1\",\"Components\":[{\"Name\":\"Podman Engine\"}]}",
                "HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"no\"}",
                "nonsense",
            ];
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = [0; 500];
                let _ = stream.read(&mut asked).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let engine = version(&get(&socket, "/version").await.unwrap());
        assert_eq!((engine.name.as_str(), engine.version.as_deref()), ("podman", Some("4.3.1")));
        assert!(get(&socket, "/containers/x/json").await.is_err());
        assert!(get(&socket, "/version").await.is_err());
        server.await.unwrap();
        let docker = version(&serde_json::json!({ "Version": "27.1" }));
        assert_eq!(docker.name, "docker");
    }

    #[test]
    fn names_stand_for_ids() {
        let id = |n: u8| char::from(b'a' + n).to_string().repeat(64);
        let process = |container: Option<String>| GpuProcess {
            container: container.map(Into::into),
            ..GpuProcess::default()
        };
        let processes = vec![process(Some(id(0))), process(Some(id(1))), process(None)];
        let mut gpus = Gpus::Some(vec![Gpu { processes: Some(processes), ..Gpu::default() }]);
        let mut names = Names::default();
        assert_eq!(names.put_in(&mut gpus.clone()), [id(0), id(1)]);
        names.learn(vec![(id(0), Found::Name("chat".to_owned())), (id(1), Found::Nowhere)]);
        assert!(names.put_in(&mut gpus).is_empty());
        let shown: Vec<_> = gpus.list()[0].listed().iter().map(|p| p.container.clone()).collect();
        assert_eq!(shown, [Some("chat".into()), Some("b".repeat(12).into()), None]);
    }

    #[tokio::test]
    async fn a_lookup_that_failed_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            for status in ["500 Internal Server Error", "404 Not Found", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = [0; 500];
                let _ = stream.read(&mut asked).await.unwrap();
                let answer = format!("HTTP/1.0 {status}\r\n\r\n{{\"Name\":\"/chat\"}}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let id = "a".repeat(64);
        let sockets = [socket, dir.path().join("none")];
        let mut found = Vec::new();
        for _ in 0..3 {
            found.extend(look_up_at(&sockets, vec![id.clone()]).await);
        }
        server.await.unwrap();
        let found: Vec<_> = found.into_iter().map(|(_, found)| found).collect();
        let name = Found::Name("chat".to_owned());
        assert_eq!(found, [Found::Unknown, Found::Nowhere, name]);

        // Not at once, and not never.
        let process = GpuProcess { container: Some(id.as_str().into()), ..GpuProcess::default() };
        let gpu = Gpu { processes: Some(vec![process]), ..Gpu::default() };
        let asked = |names: &Names| names.put_in(&mut Gpus::Some(vec![gpu.clone()]));
        let mut names = Names::default();
        names.learn(vec![(id.clone(), Found::Unknown)]);
        assert!(asked(&names).is_empty());
        names.known.insert(id.clone(), Known::Again(Instant::now(), AGAIN.0));
        assert_eq!(asked(&names), std::slice::from_ref(&id));
        names.learn(vec![(id.clone(), Found::Unknown)]);
        let Some(Known::Again(_, after)) = names.known.get(&id) else { panic!() };
        assert_eq!(*after, AGAIN.0 * 2);
    }
}
