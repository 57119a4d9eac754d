//! The container engine of the host, as far as telemetry needs it: its version, and which name a
//! container's id has. Only reads, over the engine's Unix socket, in bounded time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::base::text::clean;
use crate::wire::{ContainerEngine, Gpus};

/// One question to an engine; one that takes longer is busy or hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Longest answer that is read.
const MAX_ANSWER: u64 = 1 << 20;

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

async fn get(socket: &Path, path: &str) -> Result<serde_json::Value, String> {
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
        Err(_) => return Err("it does not answer".to_owned()),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(answer)) => answer,
    };
    body(&answer).ok_or_else(|| "it answers something else".to_owned())
}

/// The JSON of a good answer.
fn body(answer: &[u8]) -> Option<serde_json::Value> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(answer.get(..end)?);
    let status = head.lines().next()?.split_ascii_whitespace().nth(1)?;
    let json = answer.get(end + 4..)?;
    if status == "200" { serde_json::from_slice(json).ok() } else { None }
}

/// Names of containers, by id. What is not known yet is looked up by whoever owns this.
#[derive(Clone, Debug, Default)]
pub struct Names {
    known: BTreeMap<String, Option<String>>,
}

impl Names {
    /// Puts names in the place of ids; answers with ids that are to be looked up.
    pub fn put_in(&self, gpus: &mut Gpus) -> Vec<String> {
        let Gpus::Some(gpus) = gpus else { return Vec::new() };
        let mut unknown = Vec::new();
        for process in gpus.iter_mut().flat_map(|gpu| &mut gpu.processes).flatten() {
            let Some(container) = &mut process.container else { continue };
            match self.known.get(container.as_str()) {
                Some(Some(name)) => *container = name.into(),
                known => {
                    if known.is_none() && !unknown.iter().any(|id| id == container) {
                        unknown.push(container.to_string());
                    }
                    // Ids are ASCII.
                    *container = container.get(..SHORT_ID).unwrap_or(container).into();
                }
            }
        }
        unknown
    }

    /// Remembers what was found.
    pub fn learn(&mut self, found: Vec<(String, Option<String>)>) {
        if self.known.len() + found.len() > MAX_KNOWN {
            self.known.clear();
        }
        self.known.extend(found);
    }
}

/// Looks up the names of containers, none for those that no engine knows.
pub async fn look_up(ids: Vec<String>) -> Vec<(String, Option<String>)> {
    let sockets = sockets();
    let mut found = Vec::new();
    for id in ids.into_iter().take(64) {
        let mut name = None;
        for socket in &sockets {
            let Ok(answer) = get(socket, &format!("/containers/{id}/json")).await else { continue };
            let given = answer.get("Name").and_then(|n| n.as_str());
            name = given.map(|n| clean(n.trim_start_matches('/'), 60)).filter(|n| !n.is_empty());
            if name.is_some() {
                break;
            }
        }
        found.push((id, name));
    }
    found
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
        names.learn(vec![(id(0), Some("chat".to_owned())), (id(1), None)]);
        assert!(names.put_in(&mut gpus).is_empty());
        let shown: Vec<_> = gpus.list()[0].listed().iter().map(|p| p.container.clone()).collect();
        assert_eq!(shown, [Some("chat".into()), Some("b".repeat(12).into()), None]);
    }
}
