//! The trait through which everything above reaches the agent on a host.

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::base::{Hint, HostName};
use crate::wire::{DialAccess, DialTarget, Refusal, Reply, Request};

/// The agent of one host, reached somehow.
#[async_trait]
pub trait HostLink: Send + Sync {
    /// The host's name in the deck.
    fn host(&self) -> &HostName;

    /// Asks the agent; bounded in time by the link (30 s unless the request carries its own time).
    async fn request(&self, request: Request) -> Result<Reply, LinkError>;

    /// What the agent answers to the question that every host is asked with the first words
    /// ([`super::FleetOptions::first_question`]), once in each connection; none: it was not asked, or did not answer.
    async fn first_answer(&self) -> Option<Reply> {
        None
    }

    /// A byte stream to a socket on the host, through `gpudeck agent dial` on a channel of its own.
    async fn dial(
        &self,
        target: &DialTarget,
        access: DialAccess,
    ) -> Result<Box<dyn DialStream>, LinkError>;
}

/// A byte stream in both directions.
pub trait DialStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> DialStream for T {}

/// Why a request did not get a good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The host is not reached now; the link keeps trying.
    #[error("{host} is not reached: {why}")]
    Down {
        /// Which host.
        host: HostName,
        /// The named cause.
        why: String,
        /// What to do about it, where known.
        hint: Option<String>,
    },
    /// No answer in time; whether the request was carried out is not known.
    #[error("{host} did not answer in time")]
    Timeout {
        /// Which host.
        host: HostName,
    },
    /// The agent refused; nothing was changed.
    #[error("{host}: {refusal}")]
    Refused {
        /// Which host.
        host: HostName,
        /// Why.
        refusal: Refusal,
    },
    /// The agent answered something else than was asked.
    #[error("{host} sent an answer that does not fit: {what}")]
    Unexpected {
        /// Which host.
        host: HostName,
        /// What was wrong.
        what: String,
    },
}

impl Hint for LinkError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Down { hint, .. } => hint.clone(),
            Self::Timeout { host } => Some(format!("try `gpudeck hosts` to see how {host} is")),
            Self::Refused { refusal, .. } => refusal.hint(),
            Self::Unexpected { .. } => Some(
                "the agent may be of another version; run `gpudeck controller restart`".to_owned(),
            ),
        }
    }
}

impl Hint for Refusal {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Held { .. } => {
                "wait until the lease ends, or take over with `gpudeck controller take-over`"
                    .to_owned()
            }
            Self::MemoryBusy { .. } => {
                "stop what holds the memory, or place the service elsewhere".to_owned()
            }
            Self::NoDevice { .. } => {
                "run `gpudeck plan` again: the host's devices have changed".to_owned()
            }
            Self::PortInUse { .. } => {
                "stop what listens there, or set `first_engine_port` of the host in deck.toml"
                    .to_owned()
            }
            Self::PortLingers { .. } => {
                "set `first_engine_port` of the host in deck.toml outside of its \
                 net.ipv4.ip_local_port_range"
                    .to_owned()
            }
            Self::NoFile { path } => {
                format!("put the file there or correct `model` in the service's spec ({path})")
            }
            Self::NoKey { .. } => "put the key alone into the first line of the file, readable by who logs in there, or \
                                   correct `api_key_file` in the service's spec"
                .to_owned(),
            Self::NoSpace { .. } => "free space on the host's disk".to_owned(),
            Self::Protocol { .. } => {
                "restart the controller so that it installs its own agent".to_owned()
            }
            Self::Busy { .. } => "try again in a moment".to_owned(),
            Self::NoAnswer { .. } | Self::Failed { .. } => return None,
        })
    }
}
