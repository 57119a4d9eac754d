//! A host that is emptied: what of each service leaves it, what keeps it, and when it is over.

use std::collections::BTreeMap;

use super::FleetMaintenance;
use crate::base::{HostName, ReleaseNumber, ReplicaKey, ServiceName};
use crate::rollout::{LentTo, Loan, Phase, ReplicaPlan, ServiceState};

/// The services of a deck.
type Services = BTreeMap<ServiceName, ServiceState>;

/// What is to be done for a host that is being emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainStep {
    /// It is over: to be journaled.
    Ended {
        /// Why the host is not empty.
        trouble: Option<String>,
    },
    /// Something stays there that nothing is being done about: another place is to be found for it.
    Place,
}

/// Why a host cannot be emptied now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Obstacle<'a> {
    /// A replica that is out may come back there at any moment.
    Loan(&'a Loan),
    /// A rollout is under way that has to do with the host.
    Rollout {
        /// To which release.
        to: ReleaseNumber,
        /// Nothing is there yet: it will start a replica there.
        starts: bool,
    },
}

/// What is next for a host that is being emptied. None: something is under way.
pub fn next(host: &HostName, services: &Services) -> Option<DrainStep> {
    let concerns = |s: &ServiceState| !s.on_host(host).is_empty() || s.goes_to(host);
    let here: Vec<_> = services.iter().filter(|(_, state)| concerns(state)).collect();
    let busy = |s: &ServiceState| s.active_rollout().is_some() || s.stopping || !s.moves.is_empty();
    if here.iter().any(|(_, state)| busy(state)) {
        return None;
    }
    let trouble = here
        .iter()
        .filter(|(_, state)| stays(state, host))
        .find_map(|(name, s)| s.move_trouble.as_ref().map(|why| format!("{name}: {why}")));
    let any_stays = here.iter().any(|(_, state)| stays(state, host));
    // The host may be dead: it will not say that the rest has stopped.
    let overdue = || {
        let mut late = here.iter().map(|(name, s)| (name, s.overdue_stop_on(host)));
        late.find_map(|(name, why)| Some(format!("{name}: {}", why?)))
    };
    let trouble = trouble.or_else(|| if any_stays { None } else { overdue() });
    if here.is_empty() || trouble.is_some() {
        return Some(DrainStep::Ended { trouble });
    }
    any_stays.then_some(DrainStep::Place)
}

/// What is on the host and that a drain does not move, in words.
pub fn left_behind(host: &HostName, services: &Services) -> Option<String> {
    services.iter().find_map(|(service, state)| {
        let stays = |key: &ReplicaKey| {
            Some(key.release) != state.stable
                && state.replicas.get(key).is_some_and(|r| !r.retiring)
        };
        let key = state.on_host(host).into_iter().find(stays)?;
        Some(format!("{service} {key} is left of a rollout, until the stable release is whole"))
    })
}

/// Something of a service that was on this host is not ready there yet.
pub fn is_coming_back(host: &HostName, services: &Services) -> bool {
    services.values().any(|state| {
        let out = |l: &Loan| matches!(&l.to, LentTo::Maintenance { host: of } if of == host);
        let loads = |key: &ReplicaKey| {
            state.replicas.get(key).is_some_and(|r| r.phase != Phase::Ready && !r.retiring)
        };
        state.loans.iter().any(out) || state.on_host(host).iter().any(loads)
    })
}

/// Whoever is vacated or retiring only has its end to come.
fn stays(state: &ServiceState, host: &HostName) -> bool {
    state.on_host(host).iter().any(|key| {
        !state.vacated.contains(key) && state.replicas.get(key).is_some_and(|r| !r.retiring)
    })
}

impl FleetMaintenance {
    /// What was out while its host was maintained, and comes back since the host is uncordoned. A host that is not in
    /// the deck for a while is not yet: somebody may still be at work there.
    pub fn coming_back(&self, services: &Services) -> Vec<(ServiceName, ReplicaKey)> {
        let mut back = Vec::new();
        for (service, state) in services {
            for loan in &state.loans {
                let LentTo::Maintenance { host } = &loan.to else { continue };
                if self.host_cordon(host).is_none() {
                    back.push((service.clone(), loan.replica));
                }
            }
        }
        back
    }
}

impl ServiceState {
    /// The replicas that have a rank on a host and have not ended.
    pub fn on_host(&self, host: &HostName) -> Vec<ReplicaKey> {
        let here = |key: &ReplicaKey| {
            let plan = self.releases.get(&key.release).and_then(|r| r.replica(key.replica));
            plan.is_some_and(|plan| is_there(plan, host))
        };
        let lives = self.replicas.iter().filter(|(_, r)| r.phase != Phase::Stopped);
        lives.map(|(key, _)| *key).filter(here).collect()
    }

    /// The replicas that have to leave a host that is emptied. Where not all have another place, those that serve
    /// nothing are the first to stop: they are last.
    pub fn leaving(&self, host: &HostName) -> Vec<ReplicaKey> {
        let mut leaving = self.on_host(host);
        leaving.retain(|k| Some(k.release) == self.stable && !self.vacated.contains(k));
        leaving.sort_by_key(|k| self.is_idle(*k));
        leaving
    }

    /// Of these, so many may stop under the floor: what serves nothing is not missed.
    pub fn may_stop_of(&self, leaving: &[ReplicaKey]) -> u32 {
        let idle = leaving.iter().filter(|k| self.is_idle(**k)).count();
        self.can_lend().saturating_add(u32::try_from(idle).unwrap_or(u32::MAX))
    }

    /// Something of it is on its way from the host.
    pub fn moves_from(&self, host: &HostName) -> bool {
        self.moves.iter().any(|m| {
            let plan = self.releases.get(&m.release).and_then(|r| r.replica(m.from));
            plan.is_some_and(|plan| is_there(plan, host))
        })
    }

    /// Something of it is on its way to the host.
    pub fn moves_to(&self, host: &HostName) -> bool {
        self.moves.iter().any(|m| is_there(&m.plan, host))
    }

    /// Something of it is to be started on the host: a move that is not over, or what a rollout under way starts or
    /// would go back to.
    pub fn goes_to(&self, host: &HostName) -> bool {
        let planned = |number: ReleaseNumber| {
            let plans = self.releases.get(&number).map_or(&[][..], |r| r.replicas.as_slice());
            (0..).zip(plans).any(|(replica, plan)| {
                is_there(plan, host)
                    && !self.vacated.contains(&ReplicaKey { release: number, replica })
            })
        };
        let rollout = self.active_rollout();
        self.moves_to(host) || rollout.is_some_and(|r| planned(r.to) || r.from.is_some_and(planned))
    }

    /// Why a host that something of it has to do with cannot be emptied now.
    pub fn keeps_from_draining(&self, host: &HostName) -> Option<Obstacle<'_>> {
        if let Some(loan) = self.loans.iter().find(|loan| self.comes_back_to(loan, host)) {
            return Some(Obstacle::Loan(loan));
        }
        let starts = self.on_host(host).is_empty();
        let rollout = self.active_rollout().filter(|_| !starts || self.goes_to(host))?;
        Some(Obstacle::Rollout { to: rollout.to, starts })
    }

    /// Whether a replica that is lent may come back to this host at any moment.
    fn comes_back_to(&self, loan: &Loan, host: &HostName) -> bool {
        if matches!(&loan.to, LentTo::Maintenance { host: of } if of == host) {
            return false;
        }
        let own = self.releases.get(&loan.replica.release);
        let own = own.and_then(|r| r.replica(loan.replica.replica));
        own.into_iter().chain(&loan.back).any(|plan| is_there(plan, host))
    }
}

fn is_there(plan: &ReplicaPlan, host: &HostName) -> bool {
    plan.ranks.iter().any(|rank| rank.host == *host)
}
