//! Decks for tests: a busy one in the middle of a canary, with everything that can be wrong, and a
//! fleet of any size.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod asked;
mod decks;
mod hosts;
mod parts;
mod services;

pub use asked::{plan, question};
pub use decks::{calm, fleet, rich};
pub use hosts::{gpu, host};
pub use parts::{NOW, host_name, rank, service_name};

use super::key::Key;
use super::message::{Effect, Message};
use super::state::{Look, State};
use super::update::update;
use crate::api::{Delta, Snapshot};

/// A state of this size that has just received `snapshot`.
pub fn state(snapshot: Snapshot, size: (u16, u16)) -> State {
    let mut state = State::new(Look::default(), size, NOW);
    update(&mut state, Message::Delta(Box::new(Delta::Snapshot(Box::new(snapshot)))));
    state
}

/// Presses keys written as `jj/gpu<enter>`; returns all effects.
pub fn press(state: &mut State, keys: &str) -> Vec<Effect> {
    let keys = Key::parse(keys).expect("keys");
    keys.into_iter().flat_map(|k| update(state, Message::Key(k))).collect()
}
