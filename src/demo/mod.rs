//! A simulated fleet behind real SSH servers in this process.

pub mod engine;
