//! What was stopped before it was started is never started.
//!
//! A controller that gives a start up can be too late to take its request back: the stop may overtake
//! it, find nothing and be answered, and then the start would be carried out with nobody left to end
//! it. So a stop of a rank that is not there leaves a mark for the start that may still come. No
//! attempt is ever used twice, so the mark hinders nothing else; after a day it is swept.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::error::io_refusal;
use super::state::StateDir;
use crate::base::RankId;
use crate::wire::Refusal;

/// Marks are kept so long: no request is under way for longer.
const KEEP: Duration = Duration::from_hours(24);

fn dir(state: &StateDir) -> PathBuf {
    // Ranks do not begin with a point, so nobody takes it for one.
    state.ranks().join(".stopped")
}

/// Marks a rank as stopped; to be called under the host's lock.
///
/// # Errors
/// The mark cannot be written: then the stop is not done.
pub fn raise(state: &StateDir, rank: &RankId) -> Result<(), Refusal> {
    let dir = dir(state);
    let mark = dir.join(rank.unit_name());
    let made = (|| -> io::Result<()> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)?.flatten() {
            let age = entry.metadata().and_then(|m| m.modified()).ok();
            if age.and_then(|t| t.elapsed().ok()).is_some_and(|age| age > KEEP) {
                let _ = fs::remove_file(entry.path());
            }
        }
        fs::write(&mark, b"")
    })();
    made.map_err(|e| io_refusal(&e, "write", &mark))
}

/// Whether the rank was stopped before it was started.
pub fn is_raised(state: &StateDir, rank: &RankId) -> bool {
    dir(state).join(rank.unit_name()).exists()
}
