//! The hosts of a deck: one link per host, kept alive, and what was last heard on it.
//!
//! A link connects (`ssh`), puts the agent there ([`install`]), runs it and speaks `wire` with it.
//! What happens on the links comes out as [`FleetEvent`]s; what is wanted of a host goes in
//! through [`HostLink`]. Nothing is decided here.

pub mod binary;
mod desk;
mod dial;
pub mod event;
mod facts;
mod fallback;
pub mod following;
mod host_task;
pub mod install;
mod lines;
pub mod link;
mod manager;
mod outbox;
mod quick;
pub mod readers;
mod roll;
mod session;
pub mod smi;

pub use binary::AgentBinary;
pub use event::{FleetEvent, LinkState, QuestionKind};
pub use following::Attention;
pub use install::InstallError;
pub use link::{DialStream, HostLink, LinkError};
pub use manager::{Fleet, FleetOptions, InProcessHosts};
