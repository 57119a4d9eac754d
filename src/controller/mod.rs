//! The only owner of changing state: intents in, actions out, events told.
//!
//! One loop ([`core`]) takes inputs in order. What happens to a service becomes an event; the event
//! is journaled, then `rollout::step` decides, then the actions are carried out by tasks
//! ([`actions`]) whose results come back as inputs. Nothing else changes anything.

pub mod actions;
pub mod attention;
pub mod claims;
pub mod core;
pub mod desk;
pub mod health;
pub mod narrate;
pub mod observe;
pub mod paths;
pub mod planning;
pub mod record;
pub mod service_view;
pub mod start;
pub mod traffic;
pub mod world;

pub use crate::spec::DeckSpec as Deck;
pub use core::Options;
pub use paths::Paths;
pub use planning::init_repository;
pub use start::{
    ControllerError, Running, attach, connect, read_deck, start_background, start_in_process,
    start_on_this_machine,
};
