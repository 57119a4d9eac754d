//! The commands of `Match exec`, where a person has allowed them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than this no command may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Whether `command` ends with 0 in the person's shell. The error says why it could not be told.
pub(super) fn succeeds(command: &str) -> Result<bool, String> {
    let shell =
        std::env::var_os("SHELL").filter(|s| !s.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let mut child = Command::new(&shell)
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("Match exec: {error}"))?;
    let until = Instant::now() + LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("Match exec: no end within {} s", LIMIT.as_secs()));
            }
        }
    }
}
