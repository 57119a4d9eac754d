//! The SSH agents that can be asked for signatures: those that doors lend, and the sockets of this
//! person.
//!
//! A controller outlives the login session that started it, and that session's agent with it. So
//! there may be several agents, the newest first, and none of them is there for ever. An agent that waits
//! for somebody to touch a key answers nobody else meanwhile: what each has listed last is remembered.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use russh::keys::agent::AgentIdentity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::config::Place;

/// Sockets of which lists are remembered.
const MAX_SOCKETS: usize = 64;

/// A stream on which the agent's protocol is spoken.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> AgentStream for S {}

/// An agent that is lent for a while.
#[async_trait]
pub trait LentAgent: Send + Sync {
    /// Opens a stream to it.
    async fn open(&self) -> io::Result<Box<dyn AgentStream>>;
}

/// Which agent a host's configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityAgent {
    /// The person's, wherever it is now.
    Usual,
    /// No agent.
    None,
    /// The one at this socket.
    Socket(PathBuf),
}

impl IdentityAgent {
    /// From the value of `IdentityAgent`, already expanded.
    pub(super) fn of(value: Option<&str>, place: &Place) -> Self {
        match value {
            None | Some("SSH_AUTH_SOCK") => Self::Usual,
            Some(none) if none.eq_ignore_ascii_case("none") => Self::None,
            Some(value) => match value.strip_prefix('$') {
                Some(name) => (place.env)(name)
                    .filter(|v| !v.is_empty())
                    .map_or(Self::None, |path| Self::Socket(path.into())),
                None => Self::Socket(value.into()),
            },
        }
    }
}

/// What is known of an agent.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// What it has listed last.
    pub(super) keys: Option<Vec<AgentIdentity>>,
    /// A login has given up waiting for its list, and it has not answered since.
    pub(super) is_late: bool,
}

#[derive(Default)]
struct Inner {
    /// The newest last.
    lent: Vec<(u64, Arc<dyn LentAgent>, Known)>,
    /// This process's own.
    own: Option<PathBuf>,
    sockets: HashMap<PathBuf, Known>,
    last: u64,
}

/// All agents there are.
#[derive(Default)]
pub struct Agents {
    inner: Mutex<Inner>,
}

/// Takes a lent agent back when it goes.
pub struct Lease {
    id: u64,
    of: Arc<Agents>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of.lock().lent.retain(|(id, ..)| *id != self.id);
    }
}

impl Agents {
    /// With the socket of this process's environment, if it has one.
    pub fn new(own: Option<PathBuf>) -> Self {
        Self { inner: Mutex::new(Inner { own, ..Inner::default() }) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends an agent until the lease is dropped.
    pub fn lend(self: &Arc<Self>, agent: Arc<dyn LentAgent>) -> Lease {
        let mut inner = self.lock();
        inner.last += 1;
        let id = inner.last;
        inner.lent.push((id, agent, Known::default()));
        Lease { id, of: Arc::clone(self) }
    }

    /// The agents for a host, in the order in which they are asked: the newest lent one first.
    pub(super) fn sources(&self, wanted: &IdentityAgent) -> Vec<Source> {
        match wanted {
            IdentityAgent::None => Vec::new(),
            IdentityAgent::Socket(path) => vec![Source::Socket(path.clone())],
            IdentityAgent::Usual => {
                let inner = self.lock();
                let newest = inner.lent.iter().rev();
                let lent = newest.map(|(id, agent, _)| Source::Lent(*id, Arc::clone(agent)));
                lent.chain(inner.own.iter().cloned().map(Source::Socket)).collect()
            }
        }
    }

    /// What is known of an agent.
    pub(super) fn known(&self, source: &Source) -> Known {
        self.lock().known(source).cloned().unwrap_or_default()
    }

    /// What an agent has answered, which is not late any more; none: nothing.
    pub(super) fn answered(&self, source: &Source, keys: Option<&[AgentIdentity]>) {
        if let Some(known) = self.lock().known(source) {
            known.is_late = false;
            if let Some(keys) = keys {
                known.keys = Some(keys.to_vec());
            }
        }
    }

    /// An agent is not waited for any longer, unless `has_answered` this very moment.
    pub(super) fn given_up(&self, source: &Source, has_answered: impl FnOnce() -> bool) {
        let mut inner = self.lock();
        if let Some(known) = inner.known(source) {
            known.is_late = !has_answered();
        }
    }
}

impl Inner {
    /// None: an agent that is not lent any more.
    fn known(&mut self, source: &Source) -> Option<&mut Known> {
        match source {
            Source::Lent(wanted, _) => {
                let lent = self.lent.iter_mut().find(|(id, ..)| id == wanted);
                lent.map(|(.., known)| known)
            }
            Source::Socket(path) => {
                if self.sockets.len() >= MAX_SOCKETS && !self.sockets.contains_key(path) {
                    self.sockets.clear();
                }
                Some(self.sockets.entry(path.clone()).or_default())
            }
        }
    }
}

/// Where an agent is.
#[derive(Clone)]
pub(super) enum Source {
    /// The one that was lent with this number.
    Lent(u64, Arc<dyn LentAgent>),
    Socket(PathBuf),
}

impl Source {
    pub(super) fn is_lent(&self) -> bool {
        matches!(self, Self::Lent(..))
    }

    /// Opens a stream to it.
    pub(super) async fn open(&self) -> io::Result<Box<dyn AgentStream>> {
        match self {
            Self::Lent(_, agent) => agent.open().await,
            Self::Socket(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(io::Error::other(format!("{}: {error}", path.display()))),
            },
        }
    }
}
