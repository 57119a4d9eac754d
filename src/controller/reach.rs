//! How the deck's remote is reached: by our own SSH, with its agents and keys, and over HTTPS.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, USER_AGENT, WWW_AUTHENTICATE,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::https;
use crate::base::{Hint, quote, text};
use crate::fleet::Fleet;
use crate::revision::reach::{
    Conversation, HttpAnswer, HttpRequest, Login, Reach, SshPlace, Unreached,
};
use crate::ssh::{
    self, ConnectOptions, Connection, Endpoint, ExecChannel, NoQuestions, Questions,
    RusshConnection, SshError, Target,
};

/// A remote may be silent for so long: it counts and packs what it has.
const PATIENCE: Duration = Duration::from_mins(2);

/// Nothing that is asked of a remote takes longer as a whole.
const LONGEST: Duration = Duration::from_mins(10);

/// A request with less to send is answered within [`PATIENCE`].
const SHORT: usize = 1 << 20;

/// What one conversation over SSH may bring.
const MAX_TALK: usize = 256 << 20;

/// The end of a command is awaited for so long once it has closed its output.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Some servers look at the first word.
const WHO: &str = concat!("git/2.0 (gpudeck ", env!("CARGO_PKG_VERSION"), ")");

/// Somebody at a terminal. Both calls block.
pub trait Person: Send + Sync {
    /// Asks for yes or no.
    fn agrees(&self, question: &str) -> bool;
    /// Asks for something that is not shown; none when nothing is given.
    fn secret(&self, prompt: &str) -> Option<SecretString>;
}

struct AtTerminal(Arc<dyn Person>);

#[async_trait]
impl Questions for AtTerminal {
    async fn host_key(&self, host: &str, key_type: &str, fingerprint: &str) -> Option<bool> {
        let question =
            format!("The key of {host} is not known yet: {key_type} {fingerprint}. Is it right?");
        let (person, question) = (Arc::clone(&self.0), text::clean(&question, 400));
        tokio::task::spawn_blocking(move || person.agrees(&question)).await.ok()
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        let (person, prompt) = (Arc::clone(&self.0), text::clean(prompt, 300));
        tokio::task::spawn_blocking(move || person.secret(&prompt)).await.ok().flatten()
    }
}

/// The way to a deck's remote. Its calls block: not to be used on a thread of the runtime.
pub struct OwnReach {
    options: ConnectOptions,
    questions: Arc<dyn Questions>,
    runtime: Handle,
    /// One push talks to its server several times.
    open: Mutex<Option<(SshPlace, Arc<RusshConnection>)>>,
}

impl OwnReach {
    /// With the keys and agents of this process's session; `person` is asked where only a person can answer.
    pub fn of_session(person: Option<Arc<dyn Person>>) -> Arc<Self> {
        Arc::new(Self {
            options: ConnectOptions::from_env(None),
            questions: match person {
                Some(person) => Arc::new(AtTerminal(person)),
                None => Arc::new(NoQuestions),
            },
            runtime: Handle::current(),
            open: Mutex::default(),
        })
    }

    /// With the fleet's configuration, unlocked keys and lent agents. Nobody is asked: it is sent unasked.
    pub(super) fn of_fleet(fleet: &Fleet) -> Arc<Self> {
        Arc::new(Self {
            options: fleet.ssh_options(),
            questions: Arc::new(NoQuestions),
            runtime: Handle::current(),
            open: Mutex::default(),
        })
    }

    async fn connect(&self, place: &SshPlace) -> Result<Arc<RusshConnection>, SshError> {
        let target = Target {
            name: place.host.clone(),
            user: place.user.clone(),
            port: place.port,
            ..Target::default()
        };
        let (endpoint, in_vain) = Endpoint::find(&target, &self.options).await?;
        for warning in in_vain.warnings {
            tracing::warn!(host = %target.name, %warning, "SSH configuration");
        }
        let connected = ssh::connect(&endpoint, &self.options, &*self.questions, &|_| {}).await;
        connected.map(Arc::new)
    }

    fn opened(&self, place: &SshPlace) -> Option<Arc<RusshConnection>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().filter(|(to, _)| to == place).map(|(_, c)| Arc::clone(c))
    }
}

fn unreached(error: &SshError) -> Unreached {
    let hint = match error {
        SshError::HostKeyUnknown { .. } => Some(
            "run `gpudeck deck fetch` in a terminal, compare the fingerprint and answer there"
                .to_owned(),
        ),
        SshError::AuthFailed { host, user, .. } => Some(format!(
            "load its key with `ssh-add`, or name it with IdentityFile in the SSH configuration; try `ssh {}`",
            quote::shell_word(&format!("{user}@{host}"))
        )),
        other => other.hint(),
    };
    Unreached { why: error.to_string(), hint }
}

impl Reach for OwnReach {
    fn ssh(&self, place: &SshPlace, command: &str) -> Result<Box<dyn Conversation>, Unreached> {
        self.runtime.block_on(async {
            let runtime = self.runtime.clone();
            if let Some(connection) = self.opened(place)
                && let Ok(channel) = connection.exec(command).await
            {
                return Ok(Box::new(Talk::new(channel, connection, runtime)) as Box<_>);
            }
            let connection = self.connect(place).await.map_err(|e| unreached(&e))?;
            let channel = connection.exec(command).await.map_err(|e| unreached(&e))?;
            *self.open.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((place.clone(), Arc::clone(&connection)));
            Ok(Box::new(Talk::new(channel, connection, runtime)) as Box<_>)
        })
    }

    fn http(&self, request: HttpRequest) -> Result<HttpAnswer, Unreached> {
        let sent = request.post.as_ref().map_or(0, |(_, body)| body.len());
        let limit = if sent < SHORT { PATIENCE } else { LONGEST };
        self.runtime.block_on(async {
            match timeout(limit, http(request)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer in {} s", limit.as_secs()).into()),
            }
        })
    }
}

/// A command that runs on an SSH server, for those who block.
struct Talk {
    channel: ExecChannel,
    _connection: Arc<RusshConnection>,
    runtime: Handle,
    until: Instant,
    left: usize,
}

impl Talk {
    fn new(channel: ExecChannel, connection: Arc<RusshConnection>, runtime: Handle) -> Self {
        let until = Instant::now() + LONGEST;
        Self { channel, _connection: connection, runtime, until, left: MAX_TALK }
    }

    /// How long the next piece may take.
    fn patience(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() || self.left == 0 {
            return Err(io::Error::other("the remote does not come to an end"));
        }
        Ok(left.min(PATIENCE))
    }

    /// What to say when nothing more comes: nothing, if the command has ended well.
    fn ended(&self) -> Result<usize, String> {
        let end = self.runtime.block_on(timeout(END_PATIENCE, self.channel.control.wait()));
        match end {
            Ok(status) if !status.success() => {
                let said = self.channel.control.stderr_tail();
                let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
                let last = text::clean(last.trim(), 200);
                Err(if last.is_empty() { status.to_string() } else { format!("{last} ({status})") })
            }
            _ => Ok(0),
        }
    }
}

fn late() -> io::Error {
    io::Error::other(format!("the remote was silent for {} s", PATIENCE.as_secs()))
}

impl Read for Talk {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let patience = self.patience()?;
        let stdout = &mut self.channel.stdout;
        let read = self.runtime.block_on(async { timeout(patience, stdout.read(into)).await });
        match read.map_err(|_| late())?? {
            0 => self.ended().map_err(io::Error::other),
            n => {
                self.left = self.left.saturating_sub(n);
                Ok(n)
            }
        }
    }
}

impl Write for Talk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let patience = self.patience()?;
        let stdin = &mut self.channel.stdin;
        let written = self.runtime.block_on(async {
            timeout(patience, async {
                let n = stdin.write(bytes).await?;
                stdin.flush().await?;
                Ok(n)
            })
            .await
        });
        written.map_err(|_| late())?
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn http(asked: HttpRequest) -> Result<HttpAnswer, Unreached> {
    let uri: hyper::Uri = asked.url.parse().map_err(|e| format!("not an address: {e}"))?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = match &asked.post {
        None => Request::get(path),
        Some((kind, _)) => Request::post(path).header(CONTENT_TYPE, kind),
    };
    let request = request.header(USER_AGENT, WHO).header(ACCEPT, asked.accept);
    let body = asked.post.map(|(_, body)| body).unwrap_or_default();
    let mut request =
        request.body(Full::new(Bytes::from(body))).map_err(|e| format!("not a request: {e}"))?;
    if let Some(login) = &asked.login {
        request.headers_mut().insert(AUTHORIZATION, basic(login)?);
    }
    let sent = https::send(&uri, request, None, asked.most).await;
    // Our own words may have the next step in them.
    let answer = sent.map_err(|why| match why.split_once(" → ") {
        Some((why, hint)) => Unreached { why: why.to_owned(), hint: Some(hint.to_owned()) },
        None => why.into(),
    })?;
    let header = |name| {
        let value: Option<&HeaderValue> = answer.headers().get(name);
        value.and_then(|v| v.to_str().ok()).map(str::to_owned)
    };
    Ok(HttpAnswer {
        status: answer.status().as_u16(),
        content_type: header(CONTENT_TYPE).unwrap_or_default(),
        wants: header(WWW_AUTHENTICATE),
        location: header(LOCATION),
        body: answer.into_body().into(),
    })
}

fn basic(login: &Login) -> Result<HeaderValue, String> {
    let pair = Zeroizing::new(format!("{}:{}", login.user, login.password.expose_secret()));
    let line = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
    let mut value =
        HeaderValue::from_str(&line).map_err(|_| "user or password cannot be sent".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}
