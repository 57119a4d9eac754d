//! Where replicas go: pure, deterministic, with reasons.
//!
//! [`world`] is what the hosts have, [`demand`] what a service wants, [`solve`] decides and
//! [`explain`] says why a host was passed over. A replica stays on one host.

pub mod demand;
mod explain;
pub mod global;
pub mod solve;
mod topology;
pub mod world;

pub use demand::{Demand, PlacedReplica, Placement, Refusal, Reuse, ShapeNeed};
pub use solve::place;
pub use world::{GpuCapacity, HostCapacity, World};

#[cfg(test)]
mod tests;
