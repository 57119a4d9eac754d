//! Command lines on a connection, and the trait that both kinds of connection implement.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::SshError;
use crate::base::text;

/// How much of a command's standard error is kept: its end.
pub const STDERR_KEPT_BYTES: usize = 16 << 10;

/// A machine on which command lines can be run, several at once.
#[async_trait]
pub trait Connection: Send + Sync {
    /// Runs a command line with the user's shell on the machine.
    async fn exec(&self, command: &str) -> Result<ExecChannel, SshError>;

    /// Whether the other end still answers; on one that does not, nothing is to be waited for any more.
    async fn is_there(&self) -> bool {
        true
    }

    /// Returns when the connection is lost, with what was seen of its end.
    async fn closed(&self) -> SshError;

    /// Says goodbye and closes; what runs on it loses its channels.
    async fn close(&self);
}

/// A running command. Dropping `control` closes the channel (and kills a local command); the
/// channel is drained all the time, so that an unread one does not stall its neighbours.
pub struct ExecChannel {
    /// Its standard input; shut it down to send the end.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Everything else about it.
    pub control: ExecControl,
}

/// The end of a command, its standard error, and its life.
pub struct ExecControl {
    exit: watch::Receiver<Option<ExitStatus>>,
    stderr: Stderr,
    _close_on_drop: DropGuard,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// By itself.
    Code(u32),
    /// By a signal, named without `SIG`.
    Signal(String),
    /// The channel or the connection ended before the command's end was seen.
    Lost,
}

impl ExitStatus {
    /// It ended by itself, with 0.
    pub fn success(&self) -> bool {
        *self == Self::Code(0)
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(name) => write!(f, "signal {name}"),
            Self::Lost => write!(f, "the connection was lost"),
        }
    }
}

impl ExecControl {
    /// Waits for the end of the command. Its output may still have to be read.
    pub async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(status) => status.clone().unwrap_or(ExitStatus::Lost),
            Err(_) => ExitStatus::Lost,
        }
    }

    /// A watch on the end, for those who poll.
    pub fn exit_watch(&self) -> watch::Receiver<Option<ExitStatus>> {
        self.exit.clone()
    }

    /// The end of what the command wrote to standard error, not cleaned.
    pub fn stderr_tail(&self) -> String {
        self.stderr.tail()
    }
}

/// The kept end of a standard error.
#[derive(Clone, Default)]
pub(super) struct Stderr(Arc<Mutex<Vec<u8>>>);

impl Stderr {
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        // Cut rarely: only when twice the wanted length has come together.
        if kept.len() > 2 * STDERR_KEPT_BYTES {
            let surplus = kept.len() - STDERR_KEPT_BYTES;
            kept.drain(..surplus);
        }
    }

    pub(super) fn tail(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = kept.len().saturating_sub(STDERR_KEPT_BYTES);
        String::from_utf8_lossy(kept.get(start..).unwrap_or_default()).into_owned()
    }
}

/// What an implementation needs to run a command: the two sides of an [`ExecControl`].
pub(super) struct ExecParts {
    pub(super) exit: watch::Sender<Option<ExitStatus>>,
    pub(super) stderr: Stderr,
    pub(super) cancel: CancellationToken,
}

pub(super) fn control() -> (ExecControl, ExecParts) {
    let (exit_sender, exit) = watch::channel(None);
    let stderr = Stderr::default();
    let cancel = CancellationToken::new();
    let parts = ExecParts { exit: exit_sender, stderr: stderr.clone(), cancel: cancel.clone() };
    (ExecControl { exit, stderr, _close_on_drop: cancel.drop_guard() }, parts)
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote, at most as much as was allowed.
    pub stdout: Vec<u8>,
    /// The end of its standard error, not cleaned.
    pub stderr: String,
}

/// Runs `command` to its end with `input` on its standard input, within `limit`. Output beyond
/// `max_output` bytes ends the command.
pub async fn run(
    connection: &dyn Connection,
    command: &str,
    input: &[u8],
    max_output: u64,
    limit: Duration,
) -> Result<Output, SshError> {
    let work = async {
        let ExecChannel { mut stdin, stdout, control } = connection.exec(command).await?;
        let feed = async move {
            // A command may end without reading all of its input; its exit code says more.
            let _ = stdin.write_all(input).await;
            let _ = stdin.shutdown().await;
        };
        let mut out = Vec::new();
        let mut limited = stdout.take(max_output.saturating_add(1));
        let read = async { limited.read_to_end(&mut out).await };
        let (read, ()) = tokio::join!(read, feed);
        read.map_err(|error| SshError::closed(&error.to_string()))?;
        if out.len() as u64 > max_output {
            return Err(SshError::Protocol {
                address: "the host".to_owned(),
                why: format!("a command wrote more than {max_output} bytes"),
            });
        }
        let status = control.wait().await;
        Ok(Output { status, stdout: out, stderr: control.stderr_tail() })
    };
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(SshError::Timeout {
            address: "the host".to_owned(),
            phase: format!("running `{}`", text::clean(command, 40)),
            after: limit,
        }),
    }
}
