//! Which hosts of an upgrade may be away at the same time: two that would together take a service under its floor go one
//! after the other. What is ready now counts, and what is on its way out from the hosts that are begun.

use std::collections::{BTreeMap, BTreeSet};

use super::{FleetMaintenance, Seen, Upgrade, UpgradeEntry, UpgradeHost, Watch, drain};
use crate::base::{HostName, ReplicaKey, ServiceName};
use crate::rollout::{LentTo, ServiceState};

/// What the next host waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AwaitedByNext {
    /// What stopped for this host is to serve again.
    ComesBack {
        /// Which host.
        host: HostName,
    },
    /// Beside the hosts that are begun it would take too much from a service.
    Service {
        /// The next host.
        next: HostName,
        /// Of which service.
        service: ServiceName,
    },
    /// Beside the hosts that are begun it could not be emptied.
    Room {
        /// The next host.
        next: HostName,
    },
}

impl AwaitedByNext {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Self::ComesBack { host } => {
                format!("the next host waits until what stopped for {host} serves again")
            }
            Self::Service { next, service } => format!(
                "{next} waits for the hosts that are begun: together they would take {service} under its floor, or its replicas still move"
            ),
            Self::Room { next } => format!(
                "{next} waits for the hosts that are begun: beside them it cannot be emptied"
            ),
        }
    }
}

impl Upgrade {
    /// The host whose turn is next, if one may be begun at all.
    pub(super) fn next_in_row(&self) -> Option<&UpgradeEntry> {
        if self.paused.is_some() || !self.has_room() {
            return None;
        }
        let next = self.hosts.iter().find(|entry| entry.state == UpgradeHost::Waiting)?;
        // A failure ends the row, but for what a person has tried again.
        (next.retries > 0 || self.failures().next().is_none()).then_some(next)
    }
}

impl FleetMaintenance {
    /// What the next host of the upgrade waits for, if it is for other hosts: what stopped for one is to serve again
    /// before more is stopped, for as long as a host may be away (on one that stays cordoned nothing comes back), and those
    /// that are begun come first where it may not go beside them.
    pub fn upgrade_waits_for(&self, seen: &Seen<'_>, watch: &Watch) -> Option<AwaitedByNext> {
        let upgrade = self.present_upgrade()?;
        let next = &upgrade.next_in_row()?.host;
        let done = upgrade.hosts.iter().filter(|entry| entry.state == UpgradeHost::Done);
        let coming = done
            .filter(|entry| seen.now <= entry.since.plus(upgrade.patience()))
            .map(|entry| &entry.host)
            .filter(|host| self.host_cordon(host).is_none())
            .find(|host| drain::is_coming_back(host, seen.services));
        if let Some(host) = coming {
            return Some(AwaitedByNext::ComesBack { host: host.clone() });
        }
        let away = self.away(next);
        if let Some(service) = shared(next, &away, seen.services) {
            return Some(AwaitedByNext::Service { next: next.clone(), service: service.clone() });
        }
        watch.is_put_off(next, &away).then(|| AwaitedByNext::Room { next: next.clone() })
    }

    /// The other hosts that are away, or on their way to it: those of the upgrade, and whatever is drained beside it.
    pub(super) fn away(&self, next: &HostName) -> BTreeSet<HostName> {
        let begun = self.present_upgrade().into_iter().flat_map(|upgrade| &upgrade.hosts);
        let begun = begun.filter(|entry| entry.state.is_under_way()).map(|entry| &entry.host);
        let drains = self.drains.iter().filter(|(_, drain)| drain.ended.is_none());
        begun.chain(drains.map(|(host, _)| host)).filter(|host| *host != next).cloned().collect()
    }

    /// The upgrade is to empty the host, still: nobody has uncordoned it while its drain was planned.
    pub fn awaits_drain(&self, host: &HostName) -> bool {
        let entry = self.present_upgrade().and_then(|upgrade| upgrade.entry(host));
        entry.is_some_and(|e| matches!(e.state, UpgradeHost::Draining { .. }))
            && self.host_cordon(host).is_some()
    }

    /// How far a host is that could not be emptied: beside others it waits for them, alone it has failed.
    pub fn refused(&self, host: &HostName, why: &str, watch: &mut Watch) -> UpgradeHost {
        let away = self.away(host);
        let draining = self.present_upgrade().and_then(|upgrade| upgrade.entry(host));
        let draining = draining.is_some_and(|e| matches!(e.state, UpgradeHost::Draining { .. }));
        if away.is_empty() || !draining {
            return UpgradeHost::Failed { why: crate::base::text::clean(why, 400) };
        }
        watch.put_off(host, away);
        UpgradeHost::Waiting
    }
}

/// A service of which too much would be missing with the next host away beside the others. One that only the next host
/// has is its own matter.
pub fn shared<'a>(
    next: &HostName,
    away: &BTreeSet<HostName>,
    services: &'a BTreeMap<ServiceName, ServiceState>,
) -> Option<&'a ServiceName> {
    let clashes = |state: &ServiceState| {
        if !away.is_empty() && state.moves_to(next) {
            return true;
        }
        let leaving = state.leaving(next);
        if leaving.is_empty() {
            return false;
        }
        // On its way out: still there, and not vacated.
        let others: Vec<ReplicaKey> = away.iter().flat_map(|host| state.leaving(host)).collect();
        let missed = state
            .loans
            .iter()
            .any(|loan| matches!(&loan.to, LentTo::Maintenance { host } if away.contains(host)));
        let moves = away.iter().any(|host| state.moves_from(host));
        if others.is_empty() && !missed && !moves {
            return false;
        }
        let all: BTreeSet<ReplicaKey> = leaving.into_iter().chain(others).collect();
        let all: Vec<ReplicaKey> = all.into_iter().collect();
        all.len() > usize::try_from(state.may_stop_of(&all)).unwrap_or(usize::MAX)
    };
    services.iter().find(|(_, state)| clashes(state)).map(|(service, _)| service)
}
