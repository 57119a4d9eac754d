//! Command lines that run as root: the same connection, with `sudo` before each.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Connection, ExecChannel, SshError};
use crate::base::{BECOME_VARIABLE, quote};

/// A connection whose command lines run as root through `sudo -n`, which never asks for a password: where it would,
/// a command ends at once, and its standard error says why.
pub struct AsRoot(pub Arc<dyn Connection>);

#[async_trait]
impl Connection for AsRoot {
    async fn exec(&self, command: &str) -> Result<ExecChannel, SshError> {
        let command = quote::shell_word(command);
        self.0.exec(&format!("exec sudo -n -- env {BECOME_VARIABLE}=sudo sh -c {command}")).await
    }

    async fn is_there(&self) -> bool {
        self.0.is_there().await
    }

    async fn closed(&self) -> SshError {
        self.0.closed().await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}
