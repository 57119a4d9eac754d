//! The far end as a whole: the real binary, its supervisors, its claims, its GPU readings.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "agent_far_end/claims.rs"]
mod claims;
#[path = "agent_far_end/dial.rs"]
mod dial;
#[path = "agent_far_end/gpus.rs"]
mod gpus;
#[path = "agent_far_end/harness.rs"]
mod harness;
#[path = "agent_far_end/ranks.rs"]
mod ranks;
