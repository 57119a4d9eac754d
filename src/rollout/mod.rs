//! The journey of a service from one release to the next, as a pure state machine.
//!
//! [`step`](step::step) takes a service's state and an event and changes the state; the actions it
//! returns are carried out by `runtime` and `gateway`, and what happens comes back as events. No
//! clock, no disk, no network: time arrives inside the events.
//!
//! The decider is *level-triggered*: an event only writes down what happened (`apply`), and then
//! everything that is to be done follows from the state alone (`replicas`, `capacity`, `traffic`,
//! `journey`). A lost, doubled or late event therefore cannot lead it astray for long, and a
//! restarted controller goes on from the replayed state and [`outstanding`](step::outstanding).
//!
//! The rules are told for people in `docs/rollouts.md`.

pub mod action;
pub mod analysis;
mod apply;
pub mod by_hand;
mod capacity;
pub mod checks;
pub mod count;
mod engine_limits;
pub mod engine_samples;
pub mod event;
pub mod excess;
pub mod fisher;
pub mod forecast;
pub mod group;
pub mod hold;
mod journey;
mod keeping;
pub mod lending;
pub mod maintenance;
mod means;
mod minimum;
pub mod moves;
mod neighbours;
pub mod offers;
pub mod rank_test;
mod rehearsal;
pub mod release;
mod remedy;
mod replicas;
mod roles;
pub mod run_step;
pub mod shared;
pub mod shares;
pub mod state;
pub mod step;
mod told;
mod traffic;

pub use action::Action;
pub use analysis::{AnalysisRun, LimitRule, Verdict, VerdictOf, Window};
pub use by_hand::{Futile, QueuedRollout, SkippedGate, Stop};
pub use checks::{CheckResult, CheckRun};
pub use engine_samples::{EngineSamples, GpuSignals};
pub use event::{Event, EventKind, StartRefusal};
pub use forecast::{Forecast, ForecastError, Stage, Timings, forecast, forecast_with};
pub use hold::{Hold, HoldCause};
pub use lending::{Borrowing, LentReplica, LentTo, Loan};
pub use minimum::Terms;
pub use moves::{ReplicaMove, RequestedMove};
pub use release::{RankPlan, Release, ReplicaPlan};
pub use run_step::{RunEnd, StepRun};
pub use shared::Shared;
pub use state::{
    Condition, Direction, Drain, Gate, Outcome, Phase, ReplicaState, Rollout, RolloutKind,
    ServiceState,
};
pub use step::{next_wake, outstanding, step};
pub use told::{uncounted_analyses, untold_limits};
