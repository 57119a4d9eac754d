//! The journey of a service from one release to the next, as a pure state machine.
//!
//! [`step`](step::step) takes a service's state and an event and changes the state; the actions it
//! returns are carried out by `runtime` and `gateway`, and what happens comes back as events. No
//! clock, no disk, no network: time arrives inside the events.

pub mod action;
pub mod analysis;
pub mod count;
pub mod event;
pub mod forecast;
pub mod release;
pub mod state;
pub mod step;

pub use action::Action;
pub use analysis::{Verdict, Window};
pub use event::{Event, EventKind, StartRefusal};
pub use release::{RankPlan, Release, ReplicaPlan};
pub use state::{
    Condition, Direction, Gate, Outcome, Phase, ReplicaState, Rollout, RolloutKind, ServiceState,
};
