//! Where replicas go: pure, deterministic, with reasons.
//!
//! [`world`] is what the hosts have and [`demand`] what a service wants; [`translate`] makes a world for the solver of it
//! ([`global`], the only one for GPUs), `service` places one service with it, `memory` those that run on host memory,
//! `what_if` answers what would be if, `unread` keeps what runs where a driver hangs, and `explain` says why a host was passed over. In a deck a replica stays on one host.

pub mod demand;
mod explain;
pub mod global;
mod memory;
mod rules;
mod service;
pub mod translate;
pub mod unread;
pub mod what_if;
pub mod world;

pub use demand::{Demand, PlacedReplica, Placement, Refusal, Reuse, ShapeNeed};
pub use explain::not_as;
pub use service::{Budget, place, sorted};
pub use world::{GpuCapacity, HostCapacity, Instance, World};

#[cfg(test)]
mod tests;
