//! `gpudeck demo`.

use std::path::Path;

use super::args::Args;
use super::exit::{Failure, Success};

/// The simulated fleet, on the screen or as a script.
pub async fn run(_args: &Args, _script: bool, _dir: Option<&Path>) -> Result<Success, Failure> {
    Err(Failure::other("no demo"))
}
