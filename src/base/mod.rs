//! The words and small types every floor shares: names, ids, sizes, times, hints, text hygiene.
//!
//! Nothing here knows a clock, a disk, a network, or what a rollout is.

pub mod bytes;
pub mod cause;
pub mod epoch_cell;
pub mod hint;
pub mod id;
pub mod last_words;
pub mod quote;
pub mod text;
pub mod time;
pub mod traffic;
pub mod wrap;

pub use bytes::{Bytes, ParseBytesError};
pub use cause::DownCause;
pub use epoch_cell::EpochCell;
pub use hint::Hint;
pub use id::{
    Attempt, DeckId, DeviceId, Epoch, HostName, RankId, ReleaseId, ReleaseNumber, ReplicaId,
    ReplicaKey, Revision, ServiceName,
};
pub use time::Timestamp;
pub use traffic::{TrafficMode, TrafficServer};

/// In the environment of what became root by a host's `become`. Who merely runs a program of ours with `sudo` wants root.
pub const BECOME_VARIABLE: &str = "GPUDECK_BECOME";
