//! Why a host is not reached: one of a small set of names, the same in the program's words, in JSON and
//! in the documentation.

use serde::{Deserialize, Serialize};

/// The named cause for which a host is not reached.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum DownCause {
    /// The name has no address.
    NameNotFound,
    /// Nothing listens there.
    Refused,
    /// No answer in time, in whatever phase.
    NoAnswer,
    /// There is no way there: the network, a jump host that lets nobody through, a `ProxyCommand`.
    NoRoute,
    /// What answers is no SSH server that we can talk to.
    NotSsh,
    /// The host key is unknown, changed, revoked or not to be relied upon.
    HostKey,
    /// The host is there and does not let us in (any more).
    LoginLost,
    /// A mistake in the SSH configuration, or a file of it that cannot be read or written.
    Configuration,
    /// We are in, and the server opens no (further) channel.
    ChannelRefused,
    /// The connection was there and is lost.
    ConnectionLost,
    /// The host is reached, and the agent is not to be installed, or does not run.
    Agent,
    /// Said by a version that had no names for it.
    #[default]
    #[serde(other)]
    Unnamed,
}

impl DownCause {
    /// All causes that have a name.
    pub const ALL: [Self; 11] = [
        Self::NameNotFound,
        Self::Refused,
        Self::NoAnswer,
        Self::NoRoute,
        Self::NotSsh,
        Self::HostKey,
        Self::LoginLost,
        Self::Configuration,
        Self::ChannelRefused,
        Self::ConnectionLost,
        Self::Agent,
    ];

    /// Its name, as in JSON: `login-lost`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NameNotFound => "name-not-found",
            Self::Refused => "refused",
            Self::NoAnswer => "no-answer",
            Self::NoRoute => "no-route",
            Self::NotSsh => "not-ssh",
            Self::HostKey => "host-key",
            Self::LoginLost => "login-lost",
            Self::Configuration => "configuration",
            Self::ChannelRefused => "channel-refused",
            Self::ConnectionLost => "connection-lost",
            Self::Agent => "agent",
            Self::Unnamed => "unnamed",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_json() {
        for cause in DownCause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.name());
        }
        let newer: DownCause = serde_json::from_str("\"of a newer version\"").unwrap();
        assert_eq!(newer, DownCause::Unnamed);
    }
}
