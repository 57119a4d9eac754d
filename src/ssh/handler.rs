//! Our side of russh's callbacks: judges the host key, refuses whatever the server wants to open.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use russh::client::{self, DisconnectReason, Handler};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Channel, Disconnect};
use tokio::sync::watch;

use super::error::library_words;
use super::known_hosts::{KnownHosts, Verdict};
use crate::base::text;

/// What a host key is judged by.
pub(super) struct Judge {
    pub(super) known: KnownHosts,
    /// Keys of this host that were accepted before and that no file keeps.
    pub(super) accepted: Vec<KeyData>,
    pub(super) host: String,
    pub(super) port: u16,
    /// Keys that are refused whoever shows them.
    pub(super) revoked: Vec<KeyData>,
    pub(super) revoked_file: std::path::PathBuf,
    pub(super) ca_algorithms: Vec<String>,
    pub(super) required_rsa_bits: u32,
    /// This machine itself, whose key need not be checked.
    pub(super) trusted: bool,
}

impl Judge {
    fn judge(&self, shown: &PublicKeyOrCertificate) -> (PublicKey, Verdict) {
        let key = shown.public_key();
        let revoked = |data: &KeyData| self.revoked.contains(data);
        let authority = shown.certificate().map(russh::keys::Certificate::signature_key);
        let whole = shown.certificate().map(|c| KeyData::Certificate(Box::new(c.clone())));
        if revoked(key.key_data())
            || authority.is_some_and(revoked)
            || whole.as_ref().is_some_and(revoked)
        {
            return (key, Verdict::Revoked { file: self.revoked_file.clone(), line: 0 });
        }
        if self.trusted {
            return (key, Verdict::Known);
        }
        if rsa_bits(key.key_data()).is_some_and(|bits| bits < self.required_rsa_bits) {
            let why = format!("its RSA key has fewer than {} bits", self.required_rsa_bits);
            return (key, Verdict::Bad { why });
        }
        let verdict = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                self.known.check(&self.host, self.port, key)
            }
            PublicKeyOrCertificate::Certificate(certificate) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.known.check_certificate(
                    &self.host,
                    self.port,
                    certificate,
                    now.as_secs(),
                    &self.ca_algorithms,
                )
            }
        };
        match verdict {
            Verdict::Unknown { .. } if self.accepted.contains(key.key_data()) => {
                (key, Verdict::Known)
            }
            verdict => (key, verdict),
        }
    }
}

/// How long an RSA key is; none: it is of another kind.
pub(super) fn rsa_bits(key: &KeyData) -> Option<u32> {
    key.rsa().map(russh::keys::ssh_key::public::RsaPublicKey::key_size)
}

/// What was shown, and what came of it.
pub(super) type Shown = Arc<Mutex<Option<(PublicKey, Verdict)>>>;

/// Our side of the callbacks.
pub(super) struct Client {
    pub(super) judge: Judge,
    pub(super) shown: Shown,
    /// What the server says before the login, cleaned.
    pub(super) banner: Arc<Mutex<Option<String>>>,
    pub(super) end: watch::Sender<Option<String>>,
    /// It has hung up because of our login, and said so.
    pub(super) refused: Arc<AtomicBool>,
}

/// Whether a server hangs up because it does not let us in. sshd says so with a protocol error's number
/// (`auth_maxtries_exceeded` in `auth.c`).
fn is_refusal(reason: &Disconnect, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let of_login =
        matches!(reason, Disconnect::NoMoreAuthMethodsAvailable | Disconnect::IllegalUserName);
    of_login || message.contains("too many auth") || message.contains("authentication failure")
}

impl Drop for Client {
    /// However the session ends, those who wait for its end are told.
    fn drop(&mut self) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert_with(|| "the server hung up".to_owned());
            first
        });
    }
}

// Every channel a server could ask us to open is refused: russh accepts them by default.
impl Handler for Client {
    type Error = russh::Error;

    async fn auth_banner(
        &mut self,
        banner: &str,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        *self.banner.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(text::clean(banner.trim(), 200));
        Ok(())
    }

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let (key, verdict) = self.judge.judge(shown);
        let good = verdict == Verdict::Known;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some((key, verdict));
        Ok(good)
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        let (words, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                // Before the end is told.
                self.refused.store(is_refusal(&info.reason_code, &info.message), Ordering::Release);
                (format!("the server said: {}", text::clean(&info.message, 160)), Ok(()))
            }
            DisconnectReason::Error(error) => (library_words(&error), Err(error)),
        };
        // What cut the connection on this side knows better.
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(words);
            first
        });
        result
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _channel: Channel<client::Msg>,
        _connected_address: &str,
        _connected_port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _channel: Channel<client::Msg>,
        _socket_path: &str,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _channel: Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<client::Msg>,
        _host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<client::Msg>,
        _socket_path: &str,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<client::Msg>,
        _originator_address: &str,
        _originator_port: u32,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        refuse(reply).await
    }
}

async fn refuse(reply: client::ChannelOpenHandle) -> Result<(), russh::Error> {
    reply.reject(russh::ChannelOpenFailure::AdministrativelyProhibited).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_of_the_login_refuses_it() {
        let sshd = &Disconnect::ProtocolError;
        assert!(is_refusal(sshd, "Too many authentication failures"));
        assert!(is_refusal(sshd, "Too many authentication failures for root"));
        assert!(is_refusal(&Disconnect::NoMoreAuthMethodsAvailable, ""));
        assert!(!is_refusal(sshd, "Packet corrupt"));
        assert!(!is_refusal(&Disconnect::ByApplication, "shutting down"));
        assert!(!is_refusal(&Disconnect::ConnectionLost, ""));
    }
}
