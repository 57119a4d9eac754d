//! A simulated fleet behind real SSH servers in this process: what the real program is shown.
//!
//! Everything here says that it is simulated. The story itself (controller and screens) is told
//! by the doors; here are its places and its people.

pub mod engine;
pub mod gateway;
pub mod in_process;
pub mod load;
pub mod ssh_server;
pub mod world;

pub use gateway::SimGateway;
pub use in_process::{BigFleet, BigFleetShape};
pub use load::{Load, LoadCounts, LoadShape};
pub use ssh_server::{HostSetup, SimHost};
pub use world::World;
