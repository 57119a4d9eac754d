//! The far end: runs on a host, started over SSH.

use std::process::ExitCode;

/// `gpudeck agent …`: the far end.
pub fn main(_args: &[String]) -> ExitCode {
    ExitCode::FAILURE
}
