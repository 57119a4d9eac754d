//! The rollout decider in worlds made for it: scenarios told one by one, and a deterministic
//! simulation with random rollouts and faults.
//!
//! `tests/sim` runs other seeds, and replays one with its trace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(missing_docs)]

mod build;
mod chance;
mod clocks;
mod draw;
mod foreseen;
mod host_upgrade;
mod lending;
mod maintenance;
mod met;
mod moves;
mod planted;
mod rest;
mod scaling;
mod scenarios;
mod simulation;
mod standstill;
mod steering;
mod strategies;
mod together;
mod world;
