//! The two gateways, each with the backend `chat` (ours) and its server `foreign`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gpudeck::demo::SimGateway;
use tokio::net::TcpListener;

use super::{DEADLINE, until};

/// A gateway that can be restarted, with the backends `chat` (ours) and its server `foreign`.
#[async_trait]
pub trait Rig: Send + Sync {
    fn socket(&self) -> &Path;
    fn address(&self) -> SocketAddr;
    /// It is started anew with what its configuration says.
    async fn restart(&mut self);
    async fn stop(&mut self);
    /// Where sections lie that it reads when it starts.
    fn sections(&self) -> PathBuf;
}

pub struct Haproxy {
    dir: tempfile::TempDir,
    pub socket: PathBuf,
    pub address: SocketAddr,
    child: Option<Child>,
}

impl Haproxy {
    pub async fn start(foreign: SocketAddr) -> Option<Self> {
        if Command::new("haproxy").arg("-v").output().is_err() {
            assert!(
                std::env::var("GPUDECK_LAB").as_deref() != Ok("1"),
                "GPUDECK_LAB=1 and haproxy is not installed"
            );
            println!("skipped: needs haproxy");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("haproxy.sock");
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let config = format!(
            "global\n  stats socket {} mode 600 level admin\ndefaults\n  mode http\n  retries 0\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\nfrontend chat\n  bind {address}\n  default_backend chat\nbackend chat\n  balance roundrobin\n  server foreign {foreign} weight 1\n",
            socket.display()
        );
        std::fs::write(dir.path().join("haproxy.cfg"), config).unwrap();
        std::fs::create_dir(dir.path().join("gpudeck.d")).unwrap();
        let mut rig = Self { dir, socket, address, child: None };
        rig.restart().await;
        Some(rig)
    }
}

#[async_trait]
impl Rig for Haproxy {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn restart(&mut self) {
        self.stop().await;
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(self.dir.path().join("haproxy.cfg"))
            .arg("-f")
            .arg(self.sections())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let socket = self.socket.clone();
        until("haproxy listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    }

    fn sections(&self) -> PathBuf {
        self.dir.path().join("gpudeck.d")
    }

    async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub struct Sim {
    dir: tempfile::TempDir,
    pub socket: PathBuf,
    pub address: SocketAddr,
    foreign: SocketAddr,
    pub gateway: Option<SimGateway>,
}

impl Sim {
    pub async fn start(foreign: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("gateway.sock");
        let any = "127.0.0.1:0".parse().unwrap();
        let gateway = SimGateway::start(socket.clone(), &[("chat", any)]).await.unwrap();
        let address = gateway.address("chat").unwrap();
        gateway.configure_server("chat", "foreign", foreign);
        Self { dir, socket, address, foreign, gateway: Some(gateway) }
    }
}

#[async_trait]
impl Rig for Sim {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn restart(&mut self) {
        self.stop().await;
        let deadline = Instant::now() + DEADLINE;
        let gateway = loop {
            let (socket, sections) = (self.socket.clone(), self.sections());
            let backends = [("chat", self.address)];
            match SimGateway::start_with(socket, &backends, Some(&sections)).await {
                Ok(gateway) => break gateway,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        gateway.configure_server("chat", "foreign", self.foreign);
        self.gateway = Some(gateway);
    }

    fn sections(&self) -> PathBuf {
        let sections = self.dir.path().join("gpudeck.d");
        std::fs::create_dir_all(&sections).unwrap();
        sections
    }

    async fn stop(&mut self) {
        self.gateway = None;
        let _ = std::fs::remove_file(&self.socket);
    }
}
