//! A simulated OpenAI-compatible engine: real processes, no model.

use std::process::ExitCode;

/// `gpudeck sim-engine …`.
pub fn main(_args: &[String]) -> ExitCode {
    ExitCode::FAILURE
}
