//! The hosts of a deck: one link per host, kept alive, and what was last heard on it.

pub mod link;

pub use link::{DialStream, HostLink, LinkError};
