//! Hosts under maintenance: which get no new ranks, which are being emptied, and how far an upgrade of hosts is.
//!
//! What is kept of it is here; what becomes of a host that is emptied is in `drain`, how an upgrade goes in `upgrade`,
//! what people ask for in the middle of it in `steer`, which hosts may be away at the same time in `beside`, what is to be
//! done for it in `next`. Where replicas find another place, who asks, and who carries it out, is elsewhere.

mod beside;
mod despite;
pub mod drain;
mod next;
mod steer;
mod upgrade;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#[path = "tests.rs"]
mod play;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::{DeviceId, HostName, Timestamp};

pub use beside::{AwaitedByNext, shared};
pub use despite::Comes;
pub use next::{HostSeen, Reach, Seen, UpgradeMove, Watch};
pub use steer::UpgradeSteer;
pub use upgrade::{Upgrade, UpgradeEntry, UpgradeHost};

/// All that is kept of the maintenance of a fleet's hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetMaintenance {
    /// Where no new ranks go.
    pub cordons: BTreeMap<HostName, Vec<Cordon>>,
    /// Hosts that are being emptied, or were and are cordoned still.
    pub drains: BTreeMap<HostName, Drain>,
    /// The upgrade of hosts under way, or the last one.
    pub upgrade: Option<Upgrade>,
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

impl FleetMaintenance {
    /// The whole host gets no new ranks.
    pub fn host_cordon(&self, host: &HostName) -> Option<&Cordon> {
        self.cordons.get(host)?.iter().find(|c| c.gpu.is_none())
    }

    /// The upgrade of hosts that is under way.
    pub fn present_upgrade(&self) -> Option<&Upgrade> {
        self.upgrade.as_ref().filter(|upgrade| upgrade.ended.is_none())
    }

    /// How far a host's upgrade is, as long as that matters to the host: of one that failed or was left out nothing is
    /// left to do once the upgrade is over and somebody has uncordoned it. The upgrade itself still tells of it.
    pub fn upgrade_of(&self, host: &HostName) -> Option<&UpgradeHost> {
        let upgrade = self.upgrade.as_ref()?;
        let entry = upgrade.entry(host)?;
        let state = &entry.state;
        let is_left = matches!(state, UpgradeHost::Failed { .. } | UpgradeHost::Skipped { .. });
        // A cordon of later is not the upgrade's.
        let is_open = self.host_cordon(host).is_none() || entry.cordoned_before.is_none();
        let is_done_with = is_left && upgrade.ended.is_some() && is_open;
        (!is_done_with).then_some(state)
    }

    /// No new ranks on a host, or on a GPU of it.
    pub fn cordoned(&mut self, host: &HostName, cordon: Cordon) {
        let cordons = self.cordons.entry(host.clone()).or_default();
        cordons.retain(|c| c.gpu != cordon.gpu);
        cordons.push(cordon);
    }

    /// New ranks are welcome again; a drain of the host ends, and its upgrade if that has not done anything to it yet.
    pub fn uncordoned(&mut self, host: &HostName, gpu: Option<&CordonedGpu>, at: Timestamp) {
        if let Some(cordons) = self.cordons.get_mut(host) {
            cordons.retain(|c| c.gpu.as_ref() != gpu);
            if cordons.is_empty() {
                self.cordons.remove(host);
            }
        }
        if gpu.is_some() {
            return;
        }
        self.drains.remove(host);
        let drains = |entry: &UpgradeEntry| {
            entry.host == *host && matches!(entry.state, UpgradeHost::Draining { .. })
        };
        if let Some(upgrade) = self.upgrade.as_mut().filter(|u| u.hosts.iter().any(drains)) {
            let why = "it was uncordoned meanwhile".to_owned();
            upgrade.went(host, &UpgradeHost::Failed { why }, at);
        }
        // If it is cordoned again, that is not the upgrade's doing.
        for entry in self.upgrade.iter_mut().flat_map(|u| &mut u.hosts) {
            if entry.host == *host {
                entry.cordoned_before = None;
            }
        }
    }

    /// A host is being emptied.
    pub fn drain_begun(&mut self, host: &HostName, by: &str, at: Timestamp) {
        let drain = Drain { by: by.to_owned(), since: at, ended: None, trouble: None };
        self.drains.insert(host.clone(), drain);
    }

    /// Nothing of ours is left there, or it could not be emptied.
    pub fn drain_ended(&mut self, host: &HostName, trouble: Option<&str>, at: Timestamp) {
        if let Some(drain) = self.drains.get_mut(host) {
            drain.ended = Some(at);
            drain.trouble = trouble.map(str::to_owned);
        }
    }

    /// A host of the upgrade has come further. One that is done, or waits again, is uncordoned in the same stroke, unless it
    /// was cordoned before: nobody may find it done and closed, or open and not done.
    pub fn upgrade_went(&mut self, host: &HostName, state: &UpgradeHost, at: Timestamp) {
        let Some(upgrade) = &mut self.upgrade else { return };
        let before = upgrade.hosts.iter().find(|entry| entry.host == *host);
        let opens = matches!(state, UpgradeHost::Done | UpgradeHost::Waiting)
            && before.is_some_and(|entry| entry.state.cordoned_before() == Some(false));
        upgrade.went(host, state, at);
        if opens {
            self.uncordoned(host, None, at);
        }
    }

    /// A person asked for something in the middle of the upgrade of hosts.
    pub fn upgrade_steered(
        &mut self,
        what: &UpgradeSteer,
        by: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) {
        let Some(upgrade) = &mut self.upgrade else { return };
        upgrade.steered(what, by, reason, at);
        // It is emptied anew: what came of the last time says nothing.
        if let UpgradeSteer::Retry { host } = what {
            self.drains.retain(|of, drain| of != host || drain.ended.is_none());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn upgrade(state: UpgradeHost) -> FleetMaintenance {
        let entry = |host: &str, state| UpgradeEntry {
            state,
            ..UpgradeEntry::waiting(host.parse().unwrap(), Timestamp(1))
        };
        let upgrade = Upgrade {
            id: crate::base::ReleaseId(uuid::Uuid::from_u128(1)),
            command: "true".to_owned(),
            hosts: vec![entry("h1", state), entry("h2", UpgradeHost::Waiting)],
            max_parallel: 1,
            timeout_ms: 1,
            return_ms: 1,
            by: "ada".to_owned(),
            began: Timestamp(1),
            ended: None,
            paused: None,
            stopped: None,
        };
        let mut kept = FleetMaintenance { upgrade: Some(upgrade), ..FleetMaintenance::default() };
        let cordon = Cordon { gpu: None, by: "ada".to_owned(), reason: None, since: Timestamp(1) };
        kept.cordoned(&"h1".parse().unwrap(), cordon);
        kept.drain_begun(&"h1".parse().unwrap(), "ada", Timestamp(1));
        kept
    }

    #[test]
    fn a_host_that_is_done_opens_in_the_same_stroke() {
        let h1 = "h1".parse().unwrap();
        for cordoned_before in [false, true] {
            let said = String::new();
            let mut kept = upgrade(UpgradeHost::Returning { gpus: 8, said, cordoned_before });
            kept.upgrade_went(&h1, &UpgradeHost::Done, Timestamp(2));
            assert_eq!(kept.host_cordon(&h1).is_some(), cordoned_before);
            assert_eq!(kept.drains.contains_key(&h1), cordoned_before);
        }
        // As an older controller wrote it, with a person's cordon between the two: that stays.
        let mut kept = upgrade(UpgradeHost::Done);
        kept.upgrade_went(&h1, &UpgradeHost::Done, Timestamp(2));
        assert!(kept.host_cordon(&h1).is_some());
    }

    #[test]
    fn a_host_that_is_uncordoned_before_its_command_is_not_upgraded() {
        let h1 = "h1".parse().unwrap();
        let mut kept = upgrade(UpgradeHost::Draining { cordoned_before: false });
        kept.uncordoned(&h1, None, Timestamp(2));
        let hosts = &kept.upgrade.as_ref().unwrap().hosts;
        assert!(matches!(hosts[0].state, UpgradeHost::Failed { .. }), "{hosts:?}");
        let skipped = UpgradeHost::Skipped { behind: Some(h1.clone()), why: None };
        assert_eq!(hosts[1].state, skipped);
        assert!(kept.present_upgrade().is_none());
        // While the command runs it is not taken back by that.
        let mut kept =
            upgrade(UpgradeHost::Running { gpus: 8, boot: None, cordoned_before: false });
        kept.uncordoned(&h1, None, Timestamp(2));
        assert!(kept.present_upgrade().is_some());
    }

    #[test]
    fn who_uncordons_a_host_that_failed_is_told_no_more_of_it_there() {
        let h1: HostName = "h1".parse().unwrap();
        let mut kept = upgrade(UpgradeHost::Returning {
            gpus: 8,
            said: String::new(),
            cordoned_before: false,
        });
        let failed = UpgradeHost::Failed { why: "a GPU is missing".to_owned() };
        kept.upgrade_went(&h1, &failed, Timestamp(2));
        assert!(kept.present_upgrade().is_none(), "the other one is left out");
        assert_eq!(kept.upgrade_of(&h1), Some(&failed), "it stays cordoned");
        assert_eq!(kept.upgrade_of(&"h2".parse().unwrap()), None, "nothing was done to it");
        kept.uncordoned(&h1, None, Timestamp(3));
        assert_eq!(kept.upgrade_of(&h1), None);
        let upgrade = kept.upgrade.unwrap();
        assert_eq!(
            upgrade.entry(&h1).map(|entry| &entry.state),
            Some(&failed),
            "it can be tried again"
        );
    }

    #[test]
    fn what_a_ledger_kept_before_is_read() {
        let text = r#"{"cordons":{"h1":[{"gpu":null,"by":"ada","reason":null,"since":1}]}}"#;
        let kept: FleetMaintenance = serde_json::from_str(text).unwrap();
        assert!(kept.host_cordon(&"h1".parse().unwrap()).is_some());
        assert!(kept.drains.is_empty() && kept.upgrade.is_none());
    }
}
