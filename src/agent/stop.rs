//! Stopping a rank: SIGTERM under the host's lock, then waiting and SIGKILL outside of it, so that
//! the ranks of a gang end together and a long grace holds nobody up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{blocking, failed, io_refusal};
use super::fence;
use super::group::Group;
use super::process::ProcessId;
use super::rank::StatusFile;
use super::state::{self, StateDir};
use crate::base::RankId;
use crate::wire::Refusal;

/// How long a rank may resist SIGKILL (a process stuck in a driver) before that is said.
const KILL_WAIT: Duration = Duration::from_secs(20);

/// So long before the end of the grace (a quarter of a short one) all processes are asked, not the engine's first alone:
/// a script around an engine may keep the signal to itself.
const LAST_CALL: Duration = Duration::from_secs(2);

/// Longest grace.
const MAX_GRACE: Duration = Duration::from_hours(1);

/// A rank that was asked to end.
#[derive(Debug)]
pub struct Stopping {
    dir: PathBuf,
    group: Group,
}

/// Asks the rank to end; to be called under the host's lock. `None`: there is nothing to wait for.
///
/// # Errors
/// Its directory cannot be written.
pub fn begin(state: &StateDir, rank: &RankId) -> Result<Option<Stopping>, Refusal> {
    let dir = state.rank(rank);
    if !dir.exists() {
        // Its start may still be under way.
        fence::raise(state, rank)?;
        return Ok(None);
    }
    // From here on its supervisor will not start it, if it has not yet.
    let _between_start_and_stop = state::lock_file(&dir.join("gate"), Duration::from_secs(10))?;
    let mark = dir.join("stop");
    let marked = fs::write(&mark, b"").map_err(|e| io_refusal(&e, "write", &mark));
    let Some(status) = StatusFile::read(&dir).filter(StatusFile::is_of_this_boot) else {
        return marked.map(|()| None);
    };
    // It was started already: a full disk is no reason to let it run.
    let group = status.group;
    group.terminate();
    Ok(Some(Stopping { dir, group }))
}

impl Stopping {
    /// Waits until nothing of the rank is left, with SIGKILL after `grace`.
    ///
    /// # Errors
    /// Something of it survived SIGKILL.
    pub async fn finish(self, grace: Duration) -> Result<(), Refusal> {
        let group = self.group;
        let grace = grace.min(MAX_GRACE);
        let began = Instant::now();
        let grace_ends = began + grace;
        let last_call = began + grace.saturating_sub(LAST_CALL.min(grace / 4));
        let mut called = false;
        let gives_up = grace_ends + KILL_WAIT;
        let mut known: Vec<ProcessId> = Vec::new();
        loop {
            // All of /proc is read only when nothing of what was seen there last is left.
            known.retain(ProcessId::is_alive);
            let now = Instant::now();
            if known.is_empty() {
                known = blocking(move || Ok(group.members())).await?;
                if known.is_empty() {
                    break;
                }
            }
            if now >= gives_up {
                let pids: Vec<String> = known.iter().map(|k| k.pid.to_string()).collect();
                return Err(failed(format!(
                    "processes {} do not end, not even by SIGKILL (a hung driver?)",
                    pids.join(", ")
                )));
            }
            // What a supervisor that is gone would ask when its engine has ended.
            let orphaned = !group.engine.is_alive() && !group.supervisor.is_alive();
            if !called && (now >= last_call || orphaned) {
                called = true;
                blocking(move || {
                    group.terminate_all();
                    Ok(())
                })
                .await?;
            }
            if now >= grace_ends {
                blocking(move || {
                    group.kill();
                    Ok(())
                })
                .await?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        await_record(&self.dir, &group).await;
        Ok(())
    }
}

/// The supervisor writes down how the engine ended and leaves; whoever asks next shall see that.
async fn await_record(dir: &Path, group: &Group) {
    let deadline = Instant::now() + Duration::from_secs(3);
    while group.supervisor.is_alive() && Instant::now() < deadline {
        if StatusFile::read(dir).is_none_or(|s| s.exit.is_some()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
