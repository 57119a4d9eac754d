//! The far end: runs on a host, started over SSH (or locally), and is gone when its channel closes.
//!
//! [`serve()`] answers the requests of [`crate::wire`]: it samples the host, starts and stops ranks
//! under detached supervisors, and is the only thing that changes a host. `dial` splices a stream
//! to a socket on the host. Nothing here knows a rollout, a placement or an engine's name.

mod ageing;
mod checkup;
mod claim;
mod command;
mod containers;
mod dial;
mod error;
mod fence;
mod files;
pub mod gateway_config;
pub mod gpu;
mod group;
mod haproxy;
mod hardware;
mod host;
mod http;
mod kept;
mod key_file;
mod log;
mod login_user;
mod logout;
mod needs;
mod neighbours;
mod ports;
mod process;
mod programs;
mod rank;
mod rank_seen;
mod reads;
mod samples;
mod serve;
mod start;
mod state;
mod stop;
mod supervise;
pub mod users;

pub use command::main;
pub use serve::{AgentConfig, GpuChoice, serve};
