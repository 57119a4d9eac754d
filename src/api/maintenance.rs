//! Hosts under maintenance as doors see them: cordons, drains, upgrades.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::{DeviceId, HostName, ReplicaKey, ServiceName, Timestamp};

use super::plan::PlanPlace;

/// What is done for the maintenance of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Maintenance {
    /// The host or GPUs of it get no new ranks.
    pub cordons: Vec<Cordon>,
    /// It is being emptied, or was and is cordoned still.
    pub drain: Option<Drain>,
    /// How far its upgrade is, while one is under way or after it failed.
    pub upgrade: Option<UpgradeHost>,
}

impl Maintenance {
    /// The cordon of the whole host.
    pub fn host_cordon(&self) -> Option<&Cordon> {
        self.cordons.iter().find(|c| c.gpu.is_none())
    }

    /// In a word or two: `cordoned`, `draining`, `drained`, `GPU 3 cordoned`; none: nothing is done.
    pub fn word(&self) -> Option<String> {
        if let Some(upgrade) = &self.upgrade
            && !matches!(upgrade, UpgradeHost::Done)
        {
            return Some(upgrade.word().to_owned());
        }
        match (&self.drain, self.host_cordon()) {
            (Some(Drain { ended: None, .. }), _) => return Some("draining".to_owned()),
            (Some(Drain { trouble: Some(_), .. }), _) => return Some("NOT drained".to_owned()),
            (Some(_), Some(_)) => return Some("drained".to_owned()),
            (_, Some(_)) => return Some("cordoned".to_owned()),
            _ => {}
        }
        let mut gpus: Vec<u32> =
            self.cordons.iter().filter_map(|c| c.gpu.as_ref()).map(|g| g.index).collect();
        gpus.sort_unstable();
        let list: Vec<String> = gpus.iter().map(ToString::to_string).collect();
        (!list.is_empty()).then(|| format!("GPU {} cordoned", list.join(",")))
    }
}

/// A GPU by its UUID, and by the index that the person used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CordonedGpu {
    /// The device.
    pub device: DeviceId,
    /// Its index when it was cordoned.
    pub index: u32,
}

/// Why a host or a GPU gets no new ranks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    /// Only this GPU; none: the whole host.
    pub gpu: Option<CordonedGpu>,
    /// Who asked.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

/// A host that is being emptied, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Who asked.
    pub by: String,
    /// Since when.
    pub since: Timestamp,
    /// When it was over.
    pub ended: Option<Timestamp>,
    /// Why it is not empty although it is over.
    pub trouble: Option<String>,
}

/// What a drain of a host would do. `GET /v1/hosts/HOST/drain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainPlan {
    /// The host.
    pub host: HostName,
    /// Where each replica goes, in order; those of one service one after the other.
    pub moves: Vec<DrainMove>,
    /// What stops until the host is uncordoned, since there is no other place for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub out: Vec<DrainOut>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// A replica that is out while its host is maintained, as far as its service's floor allows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainOut {
    /// The service.
    pub service: ServiceName,
    /// The replica on the host.
    pub replica: ReplicaKey,
    /// Where it is.
    pub from: Vec<PlanPlace>,
}

/// A replica that is moved: its successor starts elsewhere and is ready before it is drained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrainMove {
    /// The service.
    pub service: ServiceName,
    /// The replica on the host.
    pub replica: ReplicaKey,
    /// The replica that takes its place.
    pub successor: ReplicaKey,
    /// Where it is.
    pub from: Vec<PlanPlace>,
    /// Where it goes.
    pub to: Vec<PlanPlace>,
    /// How long the successor loads, as measured; none: never measured.
    pub load_ms: Option<u64>,
}

/// An upgrade of hosts: each is drained, a command is run there, and it comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// Its identity: the command runs on each host under this name, once.
    pub id: crate::base::ReleaseId,
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
    /// Another host failed before its turn.
    Skipped,
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
            Self::Skipped => "not upgraded",
        }
    }

    /// Whether something is being done to it now.
    pub const fn is_under_way(&self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Running { .. } | Self::Returning { .. })
    }

    /// Whether nothing more happens to it.
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Done | Self::Failed { .. } | Self::Skipped)
    }
}

impl Upgrade {
    /// A host has come further. After a failure no further host is begun.
    pub fn went(&mut self, host: &HostName, state: &UpgradeHost, at: Timestamp) {
        let failed = matches!(state, UpgradeHost::Failed { .. });
        for entry in &mut self.hosts {
            if entry.host == *host {
                entry.state = state.clone();
                entry.since = at;
            } else if failed && entry.state == UpgradeHost::Waiting {
                entry.state = UpgradeHost::Skipped;
                entry.since = at;
            }
        }
        if self.hosts.iter().all(|h| h.state.is_over()) {
            self.ended = Some(at);
        }
    }

    /// Nobody looked after it for so long: what is under way began later by that.
    pub fn missed(&mut self, time: Duration) {
        for entry in self.hosts.iter_mut().filter(|entry| entry.state.is_under_way()) {
            entry.since = entry.since.plus(time);
        }
    }

    /// The hosts that failed, with the reason.
    pub fn failures(&self) -> impl Iterator<Item = (&HostName, &str)> {
        self.hosts.iter().filter_map(|h| match &h.state {
            UpgradeHost::Failed { why } => Some((&h.host, why.as_str())),
            _ => None,
        })
    }
}
