//! The only owner of changing state: intents in, actions out, events told.
//!
//! One loop ([`core`]) takes inputs in order. What happens to a service becomes an event; the event
//! is journaled, then `rollout::step` decides, then the actions are carried out by tasks
//! ([`actions`]) whose results come back as inputs. Nothing else changes anything.

mod absence;
pub mod actions;
pub mod attention;
pub mod auditor;
mod begin;
pub mod behind;
mod borrowing;
pub mod calibration;
mod checkup;
pub mod claims;
pub mod clock;
pub mod company;
pub mod conditions;
pub mod core;
pub mod deck_ledger;
pub mod desk;
pub mod drift;
pub mod durability;
mod engine_at;
mod engines_on;
pub mod fence;
pub mod gateways;
pub mod group;
pub mod handover;
mod happening;
pub mod health;
mod https;
mod identity;
mod lasting;
pub mod ledger;
mod left_out;
pub mod lent;
pub mod logins;
pub mod maintenance;
pub mod measured;
pub mod narrate;
mod not_here;
pub mod observe;
mod owed;
mod packed;
pub mod paths;
pub mod plan_steps;
pub mod planning;
mod previous_log;
pub mod probes;
pub mod prometheus;
pub mod publish;
mod pulse;
mod queued_plan;
pub mod reach;
pub mod record;
mod restarts;
mod run_command;
mod runs;
pub mod sampling;
pub mod saved;
pub mod saved_deck;
pub mod search_threads;
pub mod service_view;
pub mod sharing;
mod stale_views;
pub mod start;
mod steer;
mod strays;
pub mod take_over;
mod taken_back;
pub mod throughput;
mod together;
pub mod traffic;
mod turns;
mod unnoted;
pub mod upgrade;
mod upgrade_plan;
mod vigil;
pub mod what_if;
pub mod world;

pub use crate::spec::DeckSpec as Deck;
pub use core::Options;
pub use paths::Paths;
pub use planning::init_repository;
pub use start::{
    ControllerError, Running, attach, connect, read_deck, start_background, start_in_process,
    start_on_this_machine,
};
