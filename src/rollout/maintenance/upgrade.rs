//! An upgrade of hosts, and how far each is.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::steer;
use crate::base::{Attempt, HostName, ReleaseId, Timestamp};
use crate::rollout::group::Steered;

/// An upgrade of hosts: each is drained, a command is run there, and it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// Its identity: the command runs on each host under this name, once.
    pub id: ReleaseId,
    /// The command, for `sh -c` on the host.
    pub command: String,
    /// The hosts in order, and how far each is.
    pub hosts: Vec<UpgradeEntry>,
    /// So many hosts at a time.
    pub max_parallel: u32,
    /// Longest the command may run, milliseconds.
    pub timeout_ms: u64,
    /// Longest a host may be away after it, milliseconds.
    pub return_ms: u64,
    /// Who asked.
    pub by: String,
    /// When it began.
    pub began: Timestamp,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// A person holds it: no further host is begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Steered>,
    /// A person had no further host begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Steered>,
}

/// One host of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeEntry {
    /// The host.
    pub host: HostName,
    /// How far it is.
    pub state: UpgradeHost,
    /// Since when.
    pub since: Timestamp,
    /// How often a person had it tried again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
    /// Of one that failed: whether it was cordoned before its turn came. Known until it is uncordoned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned_before: Option<bool>,
    /// GPUs that were well there before its first command: one that was lost then is missed after a further try, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus_before: Option<u32>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl UpgradeEntry {
    /// A host whose turn has not come.
    pub const fn waiting(host: HostName, since: Timestamp) -> Self {
        Self {
            host,
            state: UpgradeHost::Waiting,
            since,
            retries: 0,
            cordoned_before: None,
            gpus_before: None,
        }
    }

    /// The name of the command's present start there: each runs once.
    pub const fn attempt(&self) -> Attempt {
        Attempt(Attempt::FIRST.0.saturating_add(self.retries))
    }
}

/// How far the upgrade of one host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum UpgradeHost {
    /// Its turn has not come.
    Waiting,
    /// It is cordoned, and its replicas move away.
    Draining {
        /// It was cordoned before, and stays so afterwards.
        cordoned_before: bool,
    },
    /// The command runs there.
    Running {
        /// GPUs that it had before.
        gpus: u32,
        /// The host's boot before the command.
        boot: Option<String>,
        /// See `Draining`.
        cordoned_before: bool,
    },
    /// The command is over or cut the link; the host is waited for.
    Returning {
        /// GPUs that it had before.
        gpus: u32,
        /// What the command said last.
        said: String,
        /// See `Draining`.
        cordoned_before: bool,
    },
    /// It is back, with its GPUs.
    Done,
    /// It failed; the host stays cordoned.
    Failed {
        /// Why.
        why: String,
    },
    /// Another host failed before its turn, or a person left it out.
    Skipped {
        /// The host that failed: it is not left out any more when that one is tried again or left out itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        behind: Option<HostName>,
        /// Who left it out, and why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
}

impl UpgradeHost {
    /// In a word.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "to be upgraded",
            Self::Draining { .. } => "draining",
            Self::Running { .. } => "upgrading",
            Self::Returning { .. } => "returning",
            Self::Done => "upgraded",
            Self::Failed { .. } => "UPGRADE FAILED",
            Self::Skipped { .. } => "not upgraded",
        }
    }

    /// Why it failed or was left out, in words.
    pub fn why(&self) -> Option<String> {
        match self {
            Self::Failed { why } | Self::Skipped { why: Some(why), .. } => Some(why.clone()),
            Self::Skipped { behind: Some(host), .. } => Some(format!("{host} failed before")),
            _ => None,
        }
    }

    /// Whether something is being done to it now.
    pub const fn is_under_way(&self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Running { .. } | Self::Returning { .. })
    }

    /// Whether it was cordoned before its turn came, while something is being done to it.
    pub const fn cordoned_before(&self) -> Option<bool> {
        match self {
            Self::Draining { cordoned_before }
            | Self::Running { cordoned_before, .. }
            | Self::Returning { cordoned_before, .. } => Some(*cordoned_before),
            Self::Waiting | Self::Done | Self::Failed { .. } | Self::Skipped { .. } => None,
        }
    }

    /// Whether nothing more happens to it.
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Done | Self::Failed { .. } | Self::Skipped { .. })
    }
}

impl Upgrade {
    /// A host has come further. After a failure no further host is begun.
    pub fn went(&mut self, host: &HostName, state: &UpgradeHost, at: Timestamp) {
        let state = self.as_it_stands(host, state);
        let failed = matches!(state, UpgradeHost::Failed { .. });
        for entry in &mut self.hosts {
            if entry.host == *host {
                if failed {
                    entry.cordoned_before = entry.state.cordoned_before().or(entry.cordoned_before);
                }
                if let UpgradeHost::Running { gpus, .. } = state {
                    entry.gpus_before = entry.gpus_before.max(Some(gpus));
                }
                entry.state = state.clone();
                entry.since = at;
            } else if failed && entry.state == UpgradeHost::Waiting {
                entry.state = UpgradeHost::Skipped { behind: Some(host.clone()), why: None };
                entry.since = at;
            }
        }
        self.settle(at);
    }

    /// Whoever steps back into the row finds out what has become of the row meanwhile.
    fn as_it_stands(&self, host: &HostName, state: &UpgradeHost) -> UpgradeHost {
        // One that a person had tried again has its turn whatever has become of the others.
        let retried = self.entry(host).is_some_and(|entry| entry.retries > 0);
        if *state != UpgradeHost::Waiting || retried {
            return state.clone();
        }
        if let Some(stopped) = &self.stopped {
            return UpgradeHost::Skipped { behind: None, why: Some(steer::stopped_words(stopped)) };
        }
        let failed = self.failures().map(|(failed, _)| failed).find(|failed| *failed != host);
        match failed {
            Some(failed) => UpgradeHost::Skipped { behind: Some(failed.clone()), why: None },
            None => UpgradeHost::Waiting,
        }
    }

    /// What follows from how far each is.
    pub(super) fn settle(&mut self, at: Timestamp) {
        if self.hosts.iter().all(|h| h.state.is_over()) {
            self.ended.get_or_insert(at);
        } else {
            self.ended = None;
        }
        if self.hosts.iter().all(|h| h.state != UpgradeHost::Waiting) {
            self.paused = None;
        }
    }

    /// One of its hosts.
    pub fn entry(&self, host: &HostName) -> Option<&UpgradeEntry> {
        self.hosts.iter().find(|entry| entry.host == *host)
    }

    /// Nobody looked after it for so long: what is under way began later by that.
    pub fn missed(&mut self, time: Duration) {
        for entry in self.hosts.iter_mut().filter(|entry| entry.state.is_under_way()) {
            entry.since = entry.since.plus(time);
        }
    }

    /// Another host may be begun beside those under way.
    pub fn has_room(&self) -> bool {
        let under_way = self.hosts.iter().filter(|entry| entry.state.is_under_way()).count();
        under_way < usize::try_from(self.max_parallel).unwrap_or(1)
    }

    /// Longest a host may be away.
    pub const fn patience(&self) -> Duration {
        Duration::from_millis(self.return_ms)
    }

    /// The hosts that failed, with the reason.
    pub fn failures(&self) -> impl Iterator<Item = (&HostName, &str)> {
        self.hosts.iter().filter_map(|h| match &h.state {
            UpgradeHost::Failed { why } => Some((&h.host, why.as_str())),
            _ => None,
        })
    }
}
