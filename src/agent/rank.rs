//! The directory of a rank: what lies in it, and how the rank is, read from it by any agent.
//!
//! `rank.json` (which rank; written before anything starts) · `status.json` (the processes, and
//! how it ended; written by the supervisor) · `stop` (it shall not start any more) · `gate` (lock
//! between the supervisor's start and a stop) · `log` · `supervisor.log`. The environment is
//! never written down: it may hold secrets.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::error::{failed, io_refusal};
use super::group::Group;
use super::state::{self, StateDir};
use super::{log, process};
use crate::base::{Bytes, DeckId, RankId, Timestamp};
use crate::wire::{RankReport, RankStatus, Refusal};

/// Format of `rank.json` and `status.json`.
pub const VERSION: u32 = 1;

/// A supervisor that has not started its engine by then does not do so any more.
pub const START_WITHIN: Duration = Duration::from_secs(15);

/// Ranks of a service that ended by themselves and are kept on a host.
const ENDED_KEPT: usize = 16;

/// `rank.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RankFile {
    /// Format.
    pub version: u32,
    /// Which rank.
    pub rank: RankId,
    /// Program and arguments, for people.
    pub argv: Vec<String>,
    /// The numbers that the driver gave its GPUs then, where it was asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_numbers: Option<String>,
    /// Log kept.
    pub log_limit: Bytes,
    /// The boot it was made in.
    pub boot_id: String,
    /// When, in milliseconds since that boot.
    pub created_ms: u64,
}

/// `status.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusFile {
    /// Format.
    pub version: u32,
    /// The boot its processes belong to.
    pub boot_id: String,
    /// Its processes.
    pub group: Group,
    /// When the engine was started, by the host's clock.
    pub since: Timestamp,
    /// How the engine ended.
    pub exit: Option<ExitRecord>,
}

/// How an engine process ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// When, by the host's clock.
    pub at: Timestamp,
    /// The last lines it logged.
    pub last_lines: String,
}

impl RankFile {
    /// Reads it from a rank's directory.
    pub fn read(dir: &Path) -> Option<Self> {
        state::read_json(&dir.join("rank.json")).ok().flatten()
    }

    /// Its supervisor may still be about to start the engine.
    pub fn may_still_start(&self) -> bool {
        self.boot_id == process::boot_id()
            && process::since_boot_ms().saturating_sub(self.created_ms)
                < u64::try_from(START_WITHIN.as_millis()).unwrap_or(u64::MAX)
    }
}

impl StatusFile {
    /// Reads it from a rank's directory.
    pub fn read(dir: &Path) -> Option<Self> {
        state::read_json(&dir.join("status.json")).ok().flatten()
    }

    /// Its processes can still be there: the host was not restarted since.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot_id == process::boot_id()
    }

    /// How the rank is now.
    pub fn status(&self) -> RankStatus {
        if let Some(exit) = &self.exit {
            return RankStatus::Exited {
                code: exit.code,
                signal: exit.signal,
                at: exit.at,
                last_lines: exit.last_lines.clone(),
            };
        }
        // A supervisor that lives is about to write how its engine ended.
        let lives = self.is_of_this_boot()
            && (self.group.engine.is_alive() || self.group.supervisor.is_alive());
        if lives {
            RankStatus::Running { pid: self.group.engine.pid, since: self.since }
        } else {
            RankStatus::Lost
        }
    }
}

/// The ranks of this host, read cheaply again and again: what has ended is read once.
#[derive(Debug)]
pub struct RankWatch {
    dir: PathBuf,
    known: BTreeMap<OsString, Known>,
}

#[derive(Debug)]
struct Known {
    rank: RankFile,
    status: Option<(SystemTime, StatusFile)>,
}

impl RankWatch {
    /// Watches the ranks below a state directory.
    pub fn new(state: &StateDir) -> Self {
        Self { dir: state.ranks(), known: BTreeMap::new() }
    }

    /// How all ranks are now, by directory name.
    ///
    /// # Errors
    /// The directory of ranks cannot be read.
    pub fn read(&mut self) -> Result<Vec<RankReport>, Refusal> {
        let entries = fs::read_dir(&self.dir).map_err(|e| io_refusal(&e, "read", &self.dir))?;
        let mut seen = BTreeMap::new();
        let mut reports = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let dir = self.dir.join(&name);
            let known = self.known.remove(&name);
            let Some(mut known) =
                known.or_else(|| RankFile::read(&dir).map(|rank| Known { rank, status: None }))
            else {
                continue;
            };
            if let Some(status) = known.look(&dir) {
                reports.push((name.clone(), RankReport { rank: known.rank.rank.clone(), status }));
            }
            seen.insert(name, known);
        }
        self.known = seen;
        reports.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(reports.into_iter().map(|(_, report)| report).collect())
    }
}

impl Known {
    /// `None` while its supervisor is about to start it.
    fn look(&mut self, dir: &Path) -> Option<RankStatus> {
        let written = fs::metadata(dir.join("status.json")).and_then(|m| m.modified()).ok();
        if let Some(written) = written
            && self.status.as_ref().is_none_or(|(read, _)| *read != written)
            && let Some(file) = StatusFile::read(dir)
        {
            self.status = Some((written, file));
        }
        let Some((_, file)) = &self.status else {
            return (!self.rank.may_still_start()).then_some(RankStatus::Lost);
        };
        let status = file.status();
        if matches!(status, RankStatus::Running { .. }) && !file.group.supervisor.is_alive() {
            // Its supervisor was killed: somebody must keep the log bounded.
            let _ = log::trim(dir, self.rank.log_limit);
        }
        Some(status)
    }
}

/// How all ranks of a deck (or of all) are now.
///
/// # Errors
/// The directory of ranks cannot be read.
pub fn list(state: &StateDir, deck: Option<DeckId>) -> Result<Vec<RankReport>, Refusal> {
    let mut reports = RankWatch::new(state).read()?;
    reports.retain(|r| deck.is_none_or(|deck| r.rank.deck == deck));
    Ok(reports)
}

/// The command lines with which the ranks of a deck were started.
///
/// # Errors
/// The ranks cannot be listed.
pub fn commands(state: &StateDir, deck: DeckId) -> Result<Vec<(RankId, Vec<String>)>, Refusal> {
    let reports = list(state, Some(deck))?;
    Ok(reports
        .into_iter()
        .filter_map(|r| {
            let file = RankFile::read(&state.rank(&r.rank))?;
            Some((r.rank, file.argv))
        })
        .collect())
}

/// Forgets the oldest ended ranks of a deck's service, all but the newest few; to be called under the host's
/// lock. A rank that was stopped is removed by whoever stopped it. One that ended by itself stays, so that its
/// log can be read and no second start of it succeeds: a service that fails again and again must not fill the
/// disk with them.
pub fn prune(state: &StateDir, of: &RankId) {
    let Ok(mut ended) = list(state, Some(of.deck)) else { return };
    ended.retain(|r| {
        r.rank.service == of.service && !matches!(r.status, RankStatus::Running { .. })
    });
    let at = |r: &RankReport| match r.status {
        RankStatus::Exited { at, .. } => at,
        _ => Timestamp(0),
    };
    ended.sort_by_key(|r| std::cmp::Reverse((at(r), r.rank.clone())));
    for report in ended.iter().skip(ENDED_KEPT) {
        if let Err(error) = remove(state, &report.rank) {
            tracing::debug!(rank = %report.rank, %error, "an ended rank was not removed");
        }
    }
}

/// Forgets a rank that has ended.
///
/// # Errors
/// It still runs (or something of it), or its directory cannot be removed.
pub fn remove(state: &StateDir, rank: &RankId) -> Result<(), Refusal> {
    let dir = state.rank(rank);
    if !dir.exists() {
        return Ok(());
    }
    match StatusFile::read(&dir) {
        Some(file) => {
            // A supervisor alone is no rank: on a full disk it tries for a minute to write how its engine ended,
            // and meanwhile nobody would know that the engine's devices are free.
            let group = &file.group;
            let may_run = file.exit.is_none() && group.engine.is_alive();
            if file.is_of_this_boot() && (may_run || !group.members().is_empty()) {
                return Err(failed(format!("{rank} still runs; stop it before it is removed")));
            }
        }
        None if RankFile::read(&dir).is_some_and(|r| r.may_still_start()) => {
            return Err(failed(format!("{rank} is just being started")));
        }
        None => {}
    }
    // Out of sight in one step, so that no half of it is ever seen.
    let trash = state.ranks().join(format!(".removed-{}", rank.unit_name()));
    let _ = fs::remove_dir_all(&trash);
    fs::rename(&dir, &trash).map_err(|e| io_refusal(&e, "remove", &dir))?;
    fs::remove_dir_all(&trash).map_err(|e| io_refusal(&e, "remove", &trash))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::agent::process::ProcessId;
    use crate::base::{Attempt, ReleaseId, ReleaseNumber, ReplicaId};

    #[test]
    fn a_rank_is_forgotten_while_its_supervisor_cannot_write_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let rank = RankId {
            deck: DeckId(uuid::Uuid::from_u128(7)),
            service: "chat".parse().unwrap(),
            release_id: ReleaseId(uuid::Uuid::from_u128(8)),
            replica: ReplicaId { release: ReleaseNumber(1), replica: 0, attempt: Attempt::FIRST },
            rank: 0,
        };
        let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
        let supervisor = ProcessId::of(sleeper.id()).unwrap();
        let status = |engine| StatusFile {
            version: VERSION,
            boot_id: process::boot_id().to_owned(),
            group: Group { supervisor, engine, own_session: false },
            since: Timestamp(1),
            exit: None,
        };
        let place = state.rank(&rank);
        fs::create_dir_all(&place).unwrap();
        let file = place.join("status.json");
        // Its engine lives …
        state::write_json(&file, &status(supervisor)).unwrap();
        let refused = remove(&state, &rank);
        // … and is gone: another process has its number now.
        let gone = ProcessId { start_ticks: supervisor.start_ticks + 1, ..supervisor };
        state::write_json(&file, &status(gone)).unwrap();
        let removed = remove(&state, &rank);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(refused.is_err(), "a running engine is not forgotten");
        assert_eq!(removed, Ok(()));
        assert!(!place.exists());
    }
}
