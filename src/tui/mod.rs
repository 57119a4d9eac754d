//! The full screen: state, update, view.
//!
//! [`update`](update::update) takes a [`Message`](message::Message) into the
//! [`State`](state::State) and returns [`Effect`](message::Effect)s; [`view`](view::view) draws the state;
//! [`run`](run::run) is the loop around them. Everything that is shown comes through `crate::api`; only
//! `run` and `terminal` know a clock, a task or a terminal.

pub mod act;
pub mod ascii;
pub mod command;
pub mod dialogs;
pub mod draw;
pub mod field;
pub mod filter;
pub mod key;
pub mod keymap;
pub mod layout;
mod letters;
pub mod logs;
pub mod message;
pub mod panels;
pub mod picture;
pub mod run;
pub mod state;
mod strip;
pub mod sums;
pub mod terminal;
pub mod theme;
pub mod update;
pub mod view;
pub mod words;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use run::{StartController, TuiError, TuiOptions, run};
