//! A connection to code in this very process: what it "runs" is a task of ours. For simulated
//! hosts; nothing leaves the process.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf, split};
use tokio_util::sync::CancellationToken;

use super::SshError;
use super::exec::{Connection, ExecChannel, ExitStatus, control};

/// Bytes that may lie in either direction of a command.
const PIPE_BYTES: usize = 64 << 10;

/// What a command is: a task that reads its input and writes its output.
pub trait Program: Send + Sync {
    /// Runs `command` until its input ends; returns its exit code.
    fn run(
        &self,
        command: String,
        stdin: ReadHalf<DuplexStream>,
        stdout: WriteHalf<DuplexStream>,
    ) -> BoxFuture<'static, u32>;
}

/// A connection whose commands are tasks in this process.
pub struct InProcessConnection {
    program: Arc<dyn Program>,
    runtime: tokio::runtime::Handle,
    closed: CancellationToken,
}

impl InProcessConnection {
    /// A connection that is up until it is closed; its commands are tasks of `runtime`.
    pub fn new(program: Arc<dyn Program>, runtime: tokio::runtime::Handle) -> Self {
        Self { program, runtime, closed: CancellationToken::new() }
    }
}

impl Drop for InProcessConnection {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

#[async_trait]
impl Connection for InProcessConnection {
    async fn exec(&self, command: &str) -> Result<ExecChannel, SshError> {
        if self.closed.is_cancelled() {
            return Err(SshError::closed("closed on this side"));
        }
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let (far_in, far_out) = split(far);
        let (control, parts) = control();
        let run = self.program.run(command.to_owned(), far_in, far_out);
        let closed = self.closed.clone();
        // Ends with its channel or its connection.
        self.runtime.spawn(async move {
            let status = tokio::select! {
                code = run => ExitStatus::Code(code),
                () = closed.cancelled() => ExitStatus::Lost,
                () = parts.cancel.cancelled() => ExitStatus::Lost,
            };
            // Whoever asked may be gone.
            let _ = parts.exit.send(Some(status));
        });
        let (stdout, stdin) = split(near);
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
