//! gpudeck: one binary that runs large models on your own GPU machines from a terminal.
//!
//! The modules are floors of a house; a floor uses only floors below it. `docs/architecture.md`
//! is the map and `tests/architecture.rs` enforces it.

// doors
pub mod cli;
pub mod tui;

// the front desk
pub mod api;
pub mod controller;

// deciding: no clock, no disk, no network
pub mod engine;
pub mod model;
pub mod placement;
pub mod rollout;

// doing: each behind a small trait
pub mod fleet;
pub mod gateway;
pub mod journal;
pub mod revision;
pub mod runtime;
pub mod ssh;
pub mod weights;

// the far end
pub mod agent;
pub mod demo;
pub mod wire;

// words everyone shares
pub mod base;
pub mod spec;
