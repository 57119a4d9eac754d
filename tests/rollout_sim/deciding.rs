//! The sources of the rollout decider and of what it stands on, as a crate of their own: so the simulation
//! plays its thousands of worlds on optimised code while everything else is built quickly.
//!
//! No more than these may be needed to decide: nothing of models, connections, the clock or disks.

// What the decider does not use of these sources, and what is documented where they belong.
#![allow(dead_code, missing_docs)]

#[path = "../../src/base/mod.rs"]
pub mod base;
pub mod engine;
#[path = "../../src/rollout/mod.rs"]
pub mod rollout;
#[path = "../../src/spec/mod.rs"]
pub mod spec;
