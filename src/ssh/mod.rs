//! SSH on russh: configuration, authentication, host keys, channels.
//!
//! What lives here can log in to a machine and run command lines there, nothing more. It does not
//! know what a GPU or an agent is. russh's one catch-all error is turned into [`SshError`] here
//! and nowhere else.

pub mod auth;
pub mod config;
pub mod connection;
mod cut;
pub mod error;
pub mod exec;
pub mod in_process;
pub mod known_hosts;
pub mod local;
pub mod questions;

pub use auth::KeyRing;
pub use config::{HostConfig, StrictHostKeyChecking, resolve};
pub use connection::{ConnectOptions, Endpoint, Phase, RusshConnection, Target, connect};
pub use error::SshError;
pub use exec::{Connection, ExecChannel, ExecControl, ExitStatus, Output, run};
pub use in_process::{InProcessConnection, Program};
pub use local::LocalConnection;
pub use questions::{NoQuestions, Questions};
