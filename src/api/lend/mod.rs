//! A door lends its SSH agent to the controller, for as long as it is attached.

pub mod message;
