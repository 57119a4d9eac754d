//! A stand-in for HAProxy in this process: an HTTP reverse proxy with weights, and a Unix socket
//! that understands the run-time commands gpudeck uses, with HAProxy 2.6's words and counting.
//!
//! `tests/gateway_conformance.rs` holds it to what the real one does. It says what it is: its
//! `show info` calls it SIMULATED, and so does the `via` header of what it proxies.

mod commands;
mod config;
mod proxy;
mod state;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

pub(crate) use state::Backends;

/// A running stand-in; everything of it ends when it is dropped.
#[derive(Debug)]
pub struct SimGateway {
    socket: PathBuf,
    frontends: Vec<(String, SocketAddr)>,
    backends: Arc<Backends>,
    _tasks: JoinSet<()>,
}

impl SimGateway {
    /// Starts it with its run-time socket at `socket` (one that is there is replaced) and one
    /// frontend a backend; port 0 takes a free port ([`Self::address`]).
    pub async fn start(socket: PathBuf, backends: &[(&str, SocketAddr)]) -> io::Result<Self> {
        Self::start_with(socket, backends, None).await
    }

    /// The same, with what the `*.cfg` files of a directory say besides.
    pub async fn start_with(
        socket: PathBuf,
        backends: &[(&str, SocketAddr)],
        sections: Option<&std::path::Path>,
    ) -> io::Result<Self> {
        let configured = sections.map(config::load).transpose()?.unwrap_or_default();
        let names = backends.iter().map(|(name, _)| *name);
        let state =
            Arc::new(Backends::new(names.chain(configured.backends.keys().map(String::as_str))));
        for (backend, servers) in &configured.backends {
            for (name, address, weight) in servers {
                state.configure_ours(backend, name, *address, *weight);
            }
        }
        let mut entrances: Vec<config::Frontend> = backends
            .iter()
            .map(|(name, address)| config::Frontend {
                name: (*name).to_owned(),
                bind: Some(*address),
                rules: Vec::new(),
                default: (*name).to_owned(),
            })
            .collect();
        entrances.extend(configured.frontends);
        let mut tasks = JoinSet::new();
        let mut frontends = Vec::new();
        for entrance in entrances {
            let Some(address) = entrance.bind else { continue };
            let listener = TcpListener::bind(address).await?;
            frontends.push((entrance.name.clone(), listener.local_addr()?));
            tasks.spawn(proxy::serve(listener, Arc::clone(&state), Arc::new(entrance)));
        }
        match std::fs::remove_file(&socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        tasks.spawn(commands::serve(listener, Arc::clone(&state)));
        Ok(Self { socket, frontends, backends: state, _tasks: tasks })
    }

    /// Its run-time socket.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Where clients reach a backend.
    pub fn address(&self, backend: &str) -> Option<SocketAddr> {
        self.frontends.iter().find(|(name, _)| name == backend).map(|(_, address)| *address)
    }

    /// `http://127.0.0.1:PORT` of a backend.
    pub fn url(&self, backend: &str) -> Option<String> {
        self.address(backend).map(|address| format!("http://{address}"))
    }

    /// Puts a server there as a configuration file would, in service with weight 1.
    pub fn configure_server(&self, backend: &str, name: &str, address: SocketAddr) {
        self.backends.configure(backend, name, address);
    }
}

impl Drop for SimGateway {
    fn drop(&mut self) {
        // Best effort: a socket left behind is replaced by the next start.
        let _ = std::fs::remove_file(&self.socket);
    }
}
