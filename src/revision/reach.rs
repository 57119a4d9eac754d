//! The trait by which a remote's machine is reached.
//!
//! Git's protocol is spoken by libgit2 (`transport`); how bytes get to another machine is told to the
//! repository from outside, because SSH and HTTPS are not this floor's.

use std::io::{Read, Write};

use secrecy::SecretString;

/// A command's standard output to read and its standard input to write.
pub trait Conversation: Read + Write + Send {}

impl<T: Read + Write + Send> Conversation for T {}

/// Why another machine was not reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// For a person; it may hold what the other side said.
    pub why: String,
    /// What to do, in words of our own.
    pub hint: Option<String>,
}

impl From<String> for Unreached {
    fn from(why: String) -> Self {
        Self { why, hint: None }
    }
}

impl From<&str> for Unreached {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// How other machines are reached. Calls block.
pub trait Reach: Send + Sync {
    /// Runs `command` on an SSH server. A failure of it is the error of the read at its end.
    fn ssh(&self, place: &SshPlace, command: &str) -> Result<Box<dyn Conversation>, Unreached>;

    /// Sends one request over HTTP or HTTPS and gives the whole answer, whatever its status.
    fn http(&self, request: HttpRequest) -> Result<HttpAnswer, Unreached>;
}

/// An SSH server as an address names it; what is left out comes from the SSH configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshPlace {
    /// User to log in as.
    pub user: Option<String>,
    /// The name, as `ssh` would be given it.
    pub host: String,
    /// Port of the server.
    pub port: Option<u16>,
}

/// User and password for a server.
#[derive(Clone, Debug)]
pub struct Login {
    /// Who.
    pub user: String,
    /// The password, or the token that takes its place.
    pub password: SecretString,
}

/// One request.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// `http://…` or `https://…`, without user and password.
    pub url: String,
    /// For basic authentication; none: nothing is said of who asks.
    pub login: Option<Login>,
    /// What kind of answer is wanted.
    pub accept: String,
    /// The kind and the bytes of what is posted; none: a `GET`.
    pub post: Option<(String, Vec<u8>)>,
    /// Longest answer that is taken, in bytes.
    pub most: usize,
}

/// Its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpAnswer {
    /// 200 when all is well.
    pub status: u16,
    /// What kind the body is.
    pub content_type: String,
    /// What login it wants (`WWW-Authenticate`).
    pub wants: Option<String>,
    /// Where it is instead.
    pub location: Option<String>,
    /// All of it.
    pub body: Vec<u8>,
}
