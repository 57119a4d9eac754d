//! The command line: one file per command.

use std::process::ExitCode;

/// Every door but the far end.
pub fn main(_args: &[String]) -> ExitCode {
    ExitCode::FAILURE
}
