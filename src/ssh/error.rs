//! The named causes for which a host is not reached, each with its next step.

use std::path::PathBuf;
use std::time::Duration;

use super::proposal::supported;
use super::refusal::JumpRefusal;
use crate::base::{DownCause, Hint, quote, text, time};

/// Why a connection, or something on it, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SshError {
    /// The name has no address.
    #[error("the name `{host}` is not found")]
    NameNotFound {
        /// The name that was looked up.
        host: String,
    },
    /// Nothing listens there.
    #[error("{address} refuses the connection")]
    Refused {
        /// `host:port`.
        address: String,
    },
    /// Something did not answer in time.
    #[error("no answer from {address} within {} while {phase}", time::short(*after))]
    Timeout {
        /// `host:port`.
        address: String,
        /// What was being done.
        phase: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// There is no way there.
    #[error("{address} cannot be reached: {why}")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// The system's words.
        why: String,
    },
    /// What answers is not an SSH server we can talk to.
    #[error("{address} does not speak SSH with us: {why}")]
    Protocol {
        /// `host:port`.
        address: String,
        /// What was wrong.
        why: String,
    },
    /// Nobody has said yet that this is the host's key: nobody can be asked, or has answered.
    #[error("unknown host key of {host}: {key_type} {fingerprint}")]
    HostKeyUnknown {
        /// As `known_hosts` names it: `host` or `[host]:port`.
        host: String,
        /// `ssh-ed25519`.
        key_type: String,
        /// `SHA256:…`.
        fingerprint: String,
        /// Where the key would be written.
        file: PathBuf,
    },
    /// The host shows another key than the one that is known.
    #[error(
        "the host key of {host} has CHANGED: it now shows {shown}, but {}:{line} says {known}; \
         somebody may be listening in, or the host was installed anew",
        file.display()
    )]
    HostKeyChanged {
        /// As `known_hosts` names it: `host` or `[host]:port`.
        host: String,
        /// The key shown now: `ssh-ed25519 SHA256:…`.
        shown: String,
        /// The key that is known: `ssh-ed25519 SHA256:…`.
        known: String,
        /// Where it is known.
        file: PathBuf,
        /// Line in it, from 1.
        line: usize,
    },
    /// The key is marked `@revoked`.
    #[error("the host key of {host} is revoked ({}{})", file.display(), at_line(*line))]
    HostKeyRevoked {
        /// As `known_hosts` names it.
        host: String,
        /// Where it is revoked.
        file: PathBuf,
        /// Line in it, from 1; 0: the file as a whole lists keys.
        line: usize,
    },
    /// A person said that this is not the host's key.
    #[error("the host key of {host} ({fingerprint}) was not accepted")]
    HostKeyRejected {
        /// As `known_hosts` names it.
        host: String,
        /// `SHA256:…`.
        fingerprint: String,
    },
    /// The server takes none of our keys.
    #[error("{host} does not let `{user}` in (tried: {})", if tried.is_empty() { "nothing, no key was found".to_owned() } else { tried.join(", ") })]
    AuthFailed {
        /// Which host.
        host: String,
        /// Which user.
        user: String,
        /// What was tried, for people.
        tried: Vec<String>,
    },
    /// The server did not wait for what a person had to do.
    #[error("{host} hung up after {} of waiting for {what}", time::short(*after))]
    Unanswered {
        /// Which host.
        host: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// A host key or host certificate that cannot be relied upon.
    #[error("the host key of {host} cannot be relied upon: {why}")]
    HostKeyBad {
        /// As `known_hosts` names it.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// A mistake in an SSH configuration file, which stops everything, as it does `ssh`.
    #[error("a mistake in the SSH configuration: {0}")]
    Config(#[from] super::config::ConfigError),
    /// The name of a host or a user with characters that mean something to a shell.
    #[error(
        "`{name}` is no name of a host or a user: it has characters that a shell could misread"
    )]
    UnsafeName {
        /// The name, cleaned.
        name: String,
    },
    /// Of the algorithms that the configuration asks for, none is there.
    #[error("{keyword} {asked}: none of them is supported")]
    Algorithms {
        /// `Ciphers` and the like.
        keyword: String,
        /// What is asked for.
        asked: String,
    },
    /// The server and we share no algorithm of a kind.
    #[error("{address} and we have no {keyword} in common; it takes {theirs}")]
    NothingInCommon {
        /// `host:port`.
        address: String,
        /// `Ciphers` and the like.
        keyword: &'static str,
        /// What the server offers.
        theirs: String,
    },
    /// Jumps that lead round to where they began.
    #[error("ProxyJump leads in a circle: {names}")]
    JumpLoop {
        /// The places in order.
        names: String,
    },
    /// A way over more places than anybody has.
    #[error("ProxyJump leads over more than {most} places")]
    TooManyJumps {
        /// So many are gone over.
        most: usize,
    },
    /// A name that no host has, such as one that grows from place to place.
    #[error("ProxyJump leads to a name of {length} bytes: {}…", text::clean(name, 40))]
    JumpName {
        /// How it begins.
        name: String,
        /// All of it.
        length: usize,
    },
    /// Something about the place that is jumped over.
    #[error("jump host {via}: {error}")]
    Jump {
        /// Its name.
        via: String,
        /// What.
        error: Box<SshError>,
    },
    /// The place that is jumped over does not make the way to the host.
    #[error("it does not let us through to {to}: {why}")]
    JumpRefused {
        /// `host:port`.
        to: String,
        /// Its reason.
        why: JumpRefusal,
    },
    /// A `ProxyCommand` that does not run.
    #[error("the ProxyCommand: {why}")]
    ProxyCommand {
        /// What it or the system said.
        why: String,
    },
    /// A file of the user cannot be read.
    #[error("{} cannot be read: {why}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The server opens no further channel, or refuses the command.
    #[error("the server refuses a channel: {why}")]
    ChannelRefused {
        /// Its reason.
        why: String,
    },
    /// The connection is gone.
    #[error("the connection was lost: {why}")]
    Closed {
        /// What was seen of the end.
        why: String,
    },
}

impl SshError {
    /// A lost connection, in words that are safe to show.
    pub fn closed(why: &str) -> Self {
        Self::Closed { why: text::clean(why, 200) }
    }

    /// The same, of what our SSH library says: its own words are its programmers'.
    pub(super) fn of_library(error: &russh::Error) -> Self {
        Self::closed(&library_words(error))
    }

    /// Which of the named causes it is.
    pub fn cause(&self) -> DownCause {
        match self {
            Self::NameNotFound { .. } => DownCause::NameNotFound,
            Self::Refused { .. } | Self::JumpRefused { why: JumpRefusal::CannotConnect, .. } => {
                DownCause::Refused
            }
            Self::Timeout { .. } => DownCause::NoAnswer,
            Self::Unreachable { .. } | Self::JumpRefused { .. } | Self::ProxyCommand { .. } => {
                DownCause::NoRoute
            }
            Self::Protocol { .. } => DownCause::NotSsh,
            Self::HostKeyUnknown { .. }
            | Self::HostKeyChanged { .. }
            | Self::HostKeyRevoked { .. }
            | Self::HostKeyRejected { .. }
            | Self::HostKeyBad { .. } => DownCause::HostKey,
            Self::AuthFailed { .. } | Self::Unanswered { .. } => DownCause::LoginLost,
            Self::Config(_)
            | Self::UnsafeName { .. }
            | Self::Algorithms { .. }
            | Self::NothingInCommon { .. }
            | Self::JumpLoop { .. }
            | Self::TooManyJumps { .. }
            | Self::JumpName { .. }
            | Self::File { .. } => DownCause::Configuration,
            Self::Jump { error, .. } => error.cause(),
            Self::ChannelRefused { .. } => DownCause::ChannelRefused,
            Self::Closed { .. } => DownCause::ConnectionLost,
        }
    }

    /// A person has said no to a host key, of the host or of one on the way.
    pub fn is_rejected(&self) -> bool {
        match self {
            Self::HostKeyRejected { .. } => true,
            Self::Jump { error, .. } => error.is_rejected(),
            _ => false,
        }
    }

    /// Trying again soon cannot help: a person has to change something first.
    pub fn needs_a_person(&self) -> bool {
        matches!(
            self,
            Self::HostKeyUnknown { .. }
                | Self::HostKeyChanged { .. }
                | Self::HostKeyRevoked { .. }
                | Self::HostKeyRejected { .. }
                | Self::AuthFailed { .. }
                | Self::HostKeyBad { .. }
                | Self::Config(_)
                | Self::UnsafeName { .. }
                | Self::Algorithms { .. }
                | Self::NothingInCommon { .. }
                | Self::JumpLoop { .. }
                | Self::TooManyJumps { .. }
                | Self::JumpName { .. }
                | Self::File { .. }
        ) || matches!(self, Self::Jump { error, .. } if error.needs_a_person())
    }

    /// The login is lost: the host is there, and lets us in no more (or not yet). What runs on it
    /// is not touched until it does.
    pub fn login_lost(&self) -> bool {
        self.cause() == DownCause::LoginLost
    }
}

/// What an error of our SSH library is in plain words, cleaned.
pub(super) fn library_words(error: &russh::Error) -> String {
    use russh::Error as E;
    match error {
        E::Disconnect | E::HUP | E::SendError | E::RecvError => "the server hung up".to_owned(),
        E::KeepaliveTimeout | E::ConnectionTimeout | E::InactivityTimeout | E::Elapsed(_) => {
            "the host no longer answers".to_owned()
        }
        E::DecryptionError | E::PacketSize(_) => "what came over it was damaged".to_owned(),
        other => text::clean(&other.to_string(), 160),
    }
}

impl Hint for SshError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NameNotFound { host } => {
                format!("correct the name, or set `address` of the host in deck.toml ({host})")
            }
            Self::Refused { .. } => {
                "start sshd on the host, or correct `port` in deck.toml or ~/.ssh/config".to_owned()
            }
            Self::Timeout { address, .. } => {
                format!("check that the host is up and that no firewall drops {address}")
            }
            Self::Unreachable { .. } => "check the network and the route to the host".to_owned(),
            Self::Protocol { .. } => {
                "check that `port` is the SSH server's, and that the server is not outdated"
                    .to_owned()
            }
            Self::HostKeyUnknown { host, file, .. } => {
                let (name, port) = split_name(host);
                let port = port.map(|p| format!("-p {p} ")).unwrap_or_default();
                format!(
                    "answer in the terminal UI, or check the key with the host's keeper and run `ssh-keyscan {port}{} >> {}`",
                    quote::shell_word(name),
                    quote::shell_word(&file.display().to_string())
                )
            }
            Self::HostKeyChanged { host, file, .. } => format!(
                "if you know why it changed, run `ssh-keygen -R {} -f {}` and connect again",
                quote::shell_word(host),
                quote::shell_word(&file.display().to_string())
            ),
            Self::HostKeyRevoked { .. } => {
                "do not connect; ask the host's keeper for its new key".to_owned()
            }
            Self::HostKeyRejected { .. } => {
                "compare the fingerprint with the host's keeper and reconnect".to_owned()
            }
            Self::AuthFailed { host, user, .. } => format!(
                "load its key with `ssh-add` and attach again (`gpudeck`): the agent is lent to the \
                 controller; or set `identity_files` of the host, and try `ssh {}`",
                quote::shell_word(&format!("{user}@{host}"))
            ),
            Self::Unanswered { .. } => {
                "it is asked again by itself; answer sooner, or raise LoginGraceTime in the \
                 host's sshd_config"
                    .to_owned()
            }
            Self::HostKeyBad { .. } => {
                "ask the host's keeper for a new host key or certificate".to_owned()
            }
            Self::Config(_) => {
                "correct the line; `gpudeck ssh-config HOST` shows the result".to_owned()
            }
            Self::UnsafeName { .. } => {
                "correct `address` and `user` of the host in deck.toml, HostName in the SSH \
                 configuration, or the address of the deck's remote"
                    .to_owned()
            }
            Self::Algorithms { keyword, .. } => {
                format!("name one of these for {keyword}: {}", supported(keyword))
            }
            Self::NothingInCommon { keyword, .. } => format!(
                "allow one that both have with {keyword} in the SSH configuration or in the host's \
                 sshd_config; we have {}",
                supported(keyword)
            ),
            Self::JumpLoop { .. } | Self::TooManyJumps { .. } | Self::JumpName { .. } => {
                "correct ProxyJump in the SSH configuration".to_owned()
            }
            Self::Jump { error, .. } => return error.hint(),
            Self::JumpRefused { to, why } => why.hint(to),
            Self::ProxyCommand { .. } => {
                "run the command by hand; `gpudeck ssh-config HOST` shows it".to_owned()
            }
            Self::File { .. } => {
                "correct the path, make the file readable, or shorten it".to_owned()
            }
            Self::ChannelRefused { .. } => {
                "look at MaxSessions and ForceCommand in the host's sshd_config".to_owned()
            }
            Self::Closed { .. } => {
                "it is connected again by itself; if it goes on, look at the network and at the \
                 host's sshd log"
                    .to_owned()
            }
        })
    }
}

/// Where in a file: nothing of line 0.
fn at_line(line: usize) -> String {
    if line == 0 { String::new() } else { format!(":{line}") }
}

/// `[host]:port` or `host` as a name and a port.
fn split_name(host: &str) -> (&str, Option<&str>) {
    match host.strip_prefix('[').and_then(|h| h.rsplit_once("]:")) {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn every_kind() -> Vec<SshError> {
        let text = || "x".to_owned();
        let file = || PathBuf::from("/f");
        let config =
            super::super::config::ConfigError { file: file(), line: 1, why: "x".to_owned() };
        let refused = SshError::AuthFailed { host: text(), user: text(), tried: Vec::new() };
        vec![
            SshError::NameNotFound { host: text() },
            SshError::Refused { address: text() },
            SshError::Timeout { address: text(), phase: text(), after: Duration::ZERO },
            SshError::Unreachable { address: text(), why: text() },
            SshError::Protocol { address: text(), why: text() },
            SshError::HostKeyUnknown {
                host: text(),
                key_type: text(),
                fingerprint: text(),
                file: file(),
            },
            SshError::HostKeyChanged {
                host: text(),
                shown: text(),
                known: text(),
                file: file(),
                line: 1,
            },
            SshError::HostKeyRevoked { host: text(), file: file(), line: 1 },
            SshError::Unanswered { host: text(), what: "x", after: Duration::ZERO },
            SshError::HostKeyRejected { host: text(), fingerprint: text() },
            SshError::HostKeyBad { host: text(), why: text() },
            SshError::Config(config),
            SshError::UnsafeName { name: text() },
            SshError::Algorithms { keyword: text(), asked: text() },
            SshError::NothingInCommon { address: text(), keyword: "Ciphers", theirs: text() },
            SshError::JumpLoop { names: text() },
            SshError::TooManyJumps { most: 1 },
            SshError::JumpName { name: text(), length: 1026 },
            SshError::Jump { via: text(), error: Box::new(refused.clone()) },
            SshError::JumpRefused { to: text(), why: JumpRefusal::Forbidden },
            SshError::JumpRefused { to: text(), why: JumpRefusal::CannotConnect },
            SshError::JumpRefused { to: text(), why: JumpRefusal::UnknownKind },
            SshError::JumpRefused { to: text(), why: JumpRefusal::Shortage },
            SshError::ProxyCommand { why: text() },
            SshError::File { file: file(), why: text() },
            SshError::ChannelRefused { why: text() },
            SshError::Closed { why: text() },
            refused,
        ]
    }

    #[test]
    fn what_our_library_says_is_told_in_plain_words() {
        use russh::Error as E;
        for (error, words) in [
            (E::Disconnect, "the server hung up"),
            (E::HUP, "the server hung up"),
            (E::SendError, "the server hung up"),
            (E::KeepaliveTimeout, "the host no longer answers"),
            (E::DecryptionError, "what came over it was damaged"),
            (E::IO(std::io::Error::other("broken pipe")), "broken pipe"),
        ] {
            let told = SshError::of_library(&error).to_string();
            assert_eq!(told, format!("the connection was lost: {words}"));
        }
    }

    #[test]
    fn every_error_has_a_named_cause_and_a_next_step() {
        let mut named = std::collections::BTreeSet::new();
        for error in every_kind() {
            assert_ne!(error.cause(), DownCause::Unnamed, "{error}");
            let hint = error.hint().unwrap();
            assert!(hint.len() > 20, "{error}: {hint}");
            assert_eq!(error.login_lost(), error.cause() == DownCause::LoginLost);
            named.insert(error.cause());
        }
        // What is left is said of our own agent on the host.
        named.insert(DownCause::Agent);
        assert_eq!(named, DownCause::ALL.into());
    }

    #[test]
    fn a_bastion_that_refuses_us_is_a_lost_login_and_a_closed_way_is_not() {
        let refused =
            SshError::AuthFailed { host: "b".to_owned(), user: "u".to_owned(), tried: Vec::new() };
        let over = SshError::Jump { via: "b".to_owned(), error: Box::new(refused) };
        assert!(over.login_lost() && over.needs_a_person());
        let closed = SshError::JumpRefused { to: "h:22".to_owned(), why: JumpRefusal::Forbidden };
        let over = SshError::Jump { via: "b".to_owned(), error: Box::new(closed) };
        assert!(!over.login_lost() && over.cause() == DownCause::NoRoute);
    }
}
