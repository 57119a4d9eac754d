//! SSH on russh: configuration, authentication, host keys, channels.
//!
//! What lives here can log in to a machine and run command lines there, nothing more. It does not
//! know what a GPU or an agent is. russh's one catch-all error is turned into [`SshError`] here
//! and nowhere else.

mod agent_keys;
pub mod agents;
mod as_root;
mod auth;
pub mod channel;
pub mod config;
pub mod connection;
mod cut;
pub mod endpoint;
pub mod error;
pub mod exec;
mod handler;
mod hang_up;
mod identity;
pub mod in_process;
pub mod jumps;
pub mod keyring;
pub mod known_hosts;
pub mod local;
pub mod pace;
mod prompt;
mod proposal;
pub mod questions;
mod queue;
mod refusal;
mod short_scalar;
mod signer;
mod way;

pub use agents::Agents;
pub use as_root::AsRoot;
pub use channel::RusshConnection;
pub use config::{ConfigFiles, HostConfig, Place, StrictHostKeyChecking};
pub use connection::{Phase, connect};
pub use endpoint::{ConnectOptions, Endpoint, InVain, Target, Timeouts};
pub use error::SshError;
pub use exec::{Connection, ExecChannel, ExecControl, ExitStatus, Output, run};
pub use in_process::{InProcessConnection, Program};
pub use jumps::Jumps;
pub use keyring::KeyRing;
pub use local::LocalConnection;
pub use pace::Pace;
pub use questions::{NoQuestions, Questions};
pub use refusal::JumpRefusal;
