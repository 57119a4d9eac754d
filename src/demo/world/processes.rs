//! Finds and ends what was started on the simulated hosts.
//!
//! A process is one of ours when its environment names a state directory below the world's root
//! (agents, and what they start, inherit it), or when it told an allocation there and is an
//! engine of ours. Nothing is ended by its name alone.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How long the processes may take to be gone after SIGKILL.
const DEADLINE: Duration = Duration::from_secs(5);

/// Ends all of them; how many there were.
pub(super) fn end_all(root: &Path, allocations: &[PathBuf]) -> usize {
    let end = Instant::now() + DEADLINE;
    let mut ended = BTreeSet::new();
    loop {
        let found = find(root, allocations);
        for pid in &found {
            if let Some(pid) = Pid::from_raw(*pid) {
                // It may have ended by itself meanwhile.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        // Looked at again until nothing is left: one may have started another just before.
        if found.is_empty() || Instant::now() > end {
            return ended.len();
        }
        ended.extend(found);
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn find(root: &Path, allocations: &[PathBuf]) -> BTreeSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let by_environment = numbers(Path::new("/proc"), "").into_iter().filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| {
            entry
                .strip_prefix(b"GPUDECK_STATE_DIR=")
                .is_some_and(|value| names_state_dir(value, root))
        })
    });
    let by_allocation =
        allocations.iter().flat_map(|directory| numbers(directory, ".json")).filter(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).nth(1) == Some(b"sim-engine")
        });
    by_environment.chain(by_allocation).filter(|pid| *pid != own && *pid > 1).collect()
}

/// Exactly `ROOT/hosts/NAME/state`, not merely something that begins so.
fn names_state_dir(value: &[u8], root: &Path) -> bool {
    let hosts = root.join("hosts");
    let path = Path::new(std::ffi::OsStr::from_bytes(value));
    path.strip_prefix(hosts).is_ok_and(|rest| {
        let parts: Vec<_> = rest.components().collect();
        parts.len() == 2 && rest.ends_with("state")
    })
}

/// The entries of a directory that are a number followed by `suffix`.
fn numbers(directory: &Path, suffix: &str) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(suffix)?.parse().ok())
        .collect()
}
