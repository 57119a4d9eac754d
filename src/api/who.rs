//! Who asks: the Unix user as the kernel says, and the SSH session as the door says.

use std::sync::OnceLock;

use base64::Engine as _;
use serde::{Deserialize, Serialize};

use crate::base::text;

/// Header with the fingerprint of the key that opened the door's SSH session.
pub const KEY_HEADER: &str = "x-gpudeck-ssh-key";

/// Header with the other end of the door's SSH connection.
pub const FROM_HEADER: &str = "x-gpudeck-ssh-from";

/// Who is at the other end of the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// The Unix user's name, from the socket's peer credentials.
    pub user: String,
    /// The user's number, from the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The door's process, from the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Fingerprint of the SSH key that opened the door's session, `SHA256:…`. The door says so
    /// (from sshd's `ExposeAuthInfo`), so it is worth as much as the Unix user is trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_key: Option<String>,
    /// Address and port that the door's SSH session comes from; the door says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_from: Option<String>,
}

/// The SSH session of this very process, if it runs in one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// See [`Who::ssh_key`].
    pub key: Option<String>,
    /// See [`Who::ssh_from`].
    pub from: Option<String>,
}

/// The session as sshd left it in the environment, read once.
pub fn own_session() -> &'static Session {
    static SESSION: OnceLock<Session> = OnceLock::new();
    SESSION.get_or_init(|| Session {
        key: std::env::var_os("SSH_USER_AUTH")
            .and_then(|file| read_short(std::path::Path::new(&file)))
            .and_then(|info| key_of(&info)),
        from: std::env::var("SSH_CONNECTION").ok().and_then(|c| from_of(&c)),
    })
}

/// At most a few keys' worth of a file.
fn read_short(path: &std::path::Path) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(64 << 10).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The fingerprint of the key in sshd's authentication information (`publickey ssh-ed25519 AAAA…`),
/// in the form of `ssh-keygen -l`.
fn key_of(info: &str) -> Option<String> {
    info.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "publickey").then_some(())?;
        let blob = base64::engine::general_purpose::STANDARD.decode(words.nth(1)?).ok()?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &blob);
        let print = base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest.as_ref());
        Some(format!("SHA256:{print}"))
    })
}

/// `client-address client-port server-address server-port` → the first two.
fn from_of(connection: &str) -> Option<String> {
    let mut words = connection.split_whitespace();
    let (address, port) = (words.next()?, words.next()?);
    Some(claimed(&format!("{address} port {port}")))
}

/// A word of a door: short and plain, whatever it sent.
pub fn claimed(word: &str) -> String {
    let plain: String = word.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    text::clean(&plain, 120)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_sshd_exposes() {
        // `ssh-keygen -lf` says this fingerprint of this key.
        let info = "publickey ssh-ed25519 \
                    AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl\n";
        assert_eq!(key_of(info).unwrap(), "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU");
        assert_eq!(key_of("password\n"), None);
        assert_eq!(key_of("publickey ssh-ed25519 ???"), None);
        assert_eq!(from_of("10.0.0.7 50122 10.0.0.1 22").unwrap(), "10.0.0.7 port 50122");
        assert_eq!(claimed("a\u{1b}[31mb\nü"), "a[31mb");
    }
}
