//! This very machine as a connection: `sh -c` as child processes, killed when dropped.

use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::SshError;
use super::exec::{Connection, ExecChannel, ExecParts, ExitStatus, control};

/// Commands on this machine, without SSH.
#[derive(Debug, Default)]
pub struct LocalConnection {
    closed: CancellationToken,
}

impl LocalConnection {
    /// A connection that is up until it is closed.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Drop for LocalConnection {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

#[async_trait]
impl Connection for LocalConnection {
    async fn exec(&self, command: &str) -> Result<ExecChannel, SshError> {
        if self.closed.is_cancelled() {
            return Err(SshError::closed("closed on this side"));
        }
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: the command goes with its children, and Ctrl-C stays with us.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| SshError::ChannelRefused { why: format!("sh: {error}") })?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(SshError::ChannelRefused { why: "no pipes to sh".to_owned() });
        };
        let (control, parts) = control();
        tokio::spawn(attend(child, parts, self.closed.child_token()));
        let stdin = Stdin(Some(stdin));
        Ok(ExecChannel { stdin: Box::new(stdin), stdout: Box::new(stdout), control })
    }

    async fn closed(&self) -> SshError {
        self.closed.cancelled().await;
        SshError::closed("closed on this side")
    }

    async fn close(&self) {
        self.closed.cancel();
    }
}

/// A child's input that ends when it is shut down: tokio's own only ends when it is dropped.
struct Stdin(Option<ChildStdin>);

impl AsyncWrite for Stdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(stdin) => Pin::new(stdin).poll_write(cx, buf),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(stdin) => Pin::new(stdin).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.as_mut().poll_flush(cx);
        if flushed.is_ready() {
            self.0 = None;
        }
        flushed
    }
}

/// Owns a child until it is reaped; ends when the child, the channel or the connection does.
async fn attend(mut child: Child, parts: ExecParts, closed: CancellationToken) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let stderr = child.stderr.take();
    let drain = async {
        let Some(mut stderr) = stderr else { return };
        let mut buffer = vec![0; 8192];
        while let Ok(n @ 1..) = stderr.read(&mut buffer).await {
            parts.stderr.push(buffer.get(..n).unwrap_or_default());
        }
    };
    tokio::pin!(drain);
    let mut drained = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break Some(status),
            () = &mut drain, if !drained => drained = true,
            () = parts.cancel.cancelled() => break None,
            () = closed.cancelled() => break None,
        }
    };
    if let Some(status) = status {
        if !drained {
            // What it wrote last is in the pipe already; a grandchild may hold the pipe open.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), &mut drain).await;
        }
        parts.exit.send_replace(Some(exit_status(status.ok())));
        return;
    }
    // Not reaped yet, so the group id is still the child's.
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait().await;
    parts.exit.send_replace(Some(exit_status(status.ok())));
}

fn exit_status(status: Option<std::process::ExitStatus>) -> ExitStatus {
    use std::os::unix::process::ExitStatusExt;
    let Some(status) = status else { return ExitStatus::Lost };
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Code(code.unsigned_abs()),
        (None, Some(signal)) => ExitStatus::Signal(signal_name(signal)),
        (None, None) => ExitStatus::Lost,
    }
}

/// The names that SSH uses (RFC 4254, 6.10), numbers for the rest.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        4 => "ILL",
        6 => "ABRT",
        8 => "FPE",
        9 => "KILL",
        11 => "SEGV",
        13 => "PIPE",
        14 => "ALRM",
        15 => "TERM",
        other => return other.to_string(),
    };
    name.to_owned()
}
