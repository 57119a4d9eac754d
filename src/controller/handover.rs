//! Giving way to another build of gpudeck, between two steps.
//!
//! The old controller begins nothing new, lets the starts and stops under way come to their end, writes
//! its whole state into the journal and ends. What is awaited then is what the new one begins with.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::core::{Core, now};
use crate::api::{ApiError, DeckConditionKind, IntentReply};

/// Longest time that starts and stops under way are waited for: they are asked for again anyway.
const PATIENCE: Duration = Duration::from_secs(30);

impl Core {
    /// Begins to give way.
    pub(super) fn hand_over(&mut self) -> Result<IntentReply, ApiError> {
        self.takes_new_work()?;
        let words = "this controller gives way to another build; nothing new is begun".to_owned();
        let hint = Some("try again in a moment".to_owned());
        self.set_condition(DeckConditionKind::HandingOver, Some((words, hint)));
        Ok(IntentReply::Accepted)
    }

    /// Whether actions are left to the next controller.
    pub(super) fn is_handing_over(&self) -> bool {
        self.conditions.contains_key(&DeckConditionKind::HandingOver)
    }

    /// Ends once nothing is under way and everything is written down.
    pub(super) fn end_hand_over(&mut self) {
        let Some(condition) = self.conditions.get(&DeckConditionKind::HandingOver) else { return };
        let quiet = self.actions.is_quiet() && self.runs.is_quiet();
        if !quiet && now().since(condition.since) < PATIENCE {
            return;
        }
        let written = self.write_checkpoint();
        self.journal_answered(written.as_ref().err());
        if let Err(error) = written {
            // Nothing is lost: every event is in the journal already.
            tracing::warn!(%error, "no checkpoint before the hand-over");
        }
        tracing::info!("gives way to another build");
        self.shutdown = true;
    }
}

/// Whether a process runs the same build as this one; also where that cannot be told.
pub fn is_same_build(pid: u32) -> bool {
    let own = PathBuf::from("/proc/self/exe");
    let other = PathBuf::from(format!("/proc/{pid}/exe"));
    let (Ok(ours), Ok(theirs)) = (std::fs::metadata(&own), std::fs::metadata(&other)) else {
        return true;
    };
    if (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()) {
        return true;
    }
    if ours.len() != theirs.len() {
        return false;
    }
    match (hash(&own), hash(&other)) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        _ => true,
    }
}

fn hash(path: &Path) -> std::io::Result<blake3::Hash> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        };
    }
}
