//! What placement has to know, from what the hosts last said and what is reserved.

use std::collections::{BTreeMap, BTreeSet};

use super::record::DeckState;
use crate::api::{HostLinkState, HostView};
use crate::base::{DeviceId, HostName, ReleaseNumber, ReplicaKey, ServiceName};
use crate::placement::{HostCapacity, Reuse};
use crate::rollout::{Phase, ReplicaPlan};
use crate::spec::DeckSpec;
use crate::wire::Gpus;

/// What each host has, as placement sees it. GPUs of other services than this are reserved; without one everything
/// that any replica holds is.
pub fn hosts_beside<'a>(
    views: impl Iterator<Item = &'a HostView>,
    state: &DeckState,
    service: Option<&ServiceName>,
) -> Vec<HostCapacity> {
    let reserved = reservations(state, service);
    let none = BTreeMap::new();
    views
        .map(|host| {
            let mut capacity = HostCapacity::observed(
                host.name.clone(),
                host.labels.clone(),
                is_up(host),
                host.facts.as_ref(),
                host.sample.as_deref(),
                reserved.get(&host.name).unwrap_or(&none),
            );
            apply_cordons(&mut capacity, state);
            capacity
        })
        .collect()
}

/// No new ranks on a cordoned host, and none on a cordoned GPU.
fn apply_cordons(capacity: &mut HostCapacity, state: &DeckState) {
    let cordons =
        state.ledger.maintenance.cordons.get(&capacity.name).map(Vec::as_slice).unwrap_or_default();
    let drain = state.ledger.maintenance.drains.get(&capacity.name);
    capacity.draining = drain.is_some_and(|d| d.ended.is_none());
    let upgrade = state.ledger.maintenance.present_upgrade();
    let its_turn = upgrade.and_then(|upgrade| upgrade.entry(&capacity.name));
    capacity.upgrading = its_turn.is_some_and(|entry| entry.state.cordoned_before().is_some());
    for cordon in cordons {
        let Some(gpu) = &cordon.gpu else {
            capacity.cordoned = true;
            continue;
        };
        for found in capacity.gpus.iter_mut().filter(|g| g.is_of(&gpu.device)) {
            found.cordoned = Some(cordon.by.clone());
        }
    }
}

/// Why the hosts that are not reached are not, and what to do about it: a line each.
pub fn why_down<'a>(views: impl Iterator<Item = &'a HostView>) -> Vec<String> {
    views
        .filter_map(|host| match &host.link {
            HostLinkState::Down { cause, hint: Some(hint), .. } => {
                Some(format!("{}: {cause} → {hint}", host.name))
            }
            HostLinkState::Down { cause, hint: None, .. } => {
                Some(format!("{}: {cause}", host.name))
            }
            HostLinkState::Limited { why, .. } => {
                Some(format!("{}: it can only be looked at, no agent: {why}", host.name))
            }
            _ => None,
        })
        .collect()
}

/// The GPUs that replicas of other services than `service` hold, by host, with who holds them.
fn reservations(
    state: &DeckState,
    service: Option<&ServiceName>,
) -> BTreeMap<HostName, BTreeMap<DeviceId, String>> {
    let mut held: BTreeMap<HostName, BTreeMap<DeviceId, String>> = BTreeMap::new();
    let others = |holder: &ServiceName| service.is_none_or(|s| s != holder);
    let held_or_meant = held_plans(state).chain(meant_plans(state));
    for (holder, key, plan) in held_or_meant.filter(|(holder, _, _)| others(holder)) {
        for (host, device) in plan.gpus() {
            held.entry(host.clone()).or_default().insert(device.clone(), format!("{holder} {key}"));
        }
    }
    // What is going to move somewhere has its place there already.
    for (holder, state) in state.services.iter().filter(|(holder, _)| others(holder)) {
        for entry in state.moves.iter().filter(|m| m.to.is_none()) {
            for (host, device) in entry.plan.gpus() {
                let by = format!("{holder}, which moves there");
                held.entry(host.clone()).or_default().insert(device.clone(), by);
            }
        }
        // What is lent comes back here or there.
        for loan in &state.loans {
            let own = state.releases.get(&loan.replica.release);
            let own = own.and_then(|r| r.replica(loan.replica.replica));
            for (host, device) in own.into_iter().chain(&loan.back).flat_map(ReplicaPlan::gpus) {
                let by = format!("{holder} {}, {}", loan.replica, loan.to);
                held.entry(host.clone()).or_default().entry(device.clone()).or_insert(by);
            }
        }
    }
    held
}

/// What rollouts that come first will have changed on the hosts when a later one begins: what only the hosts
/// themselves say, memory, is as it will be then. Who holds which GPU is in the state.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    gone: Vec<Reuse>,
    come: Vec<Reuse>,
    /// The rollout under way of which only a forecast says how it ends.
    foreseen: Option<(ServiceName, ReleaseNumber)>,
}

impl Ahead {
    /// A service holds this instead of that.
    pub fn goes(&mut self, before: Vec<Reuse>, after: Vec<Reuse>) {
        self.gone.extend(before.iter().filter(|held| !after.contains(held)).cloned());
        self.come.extend(after.into_iter().filter(|held| !before.contains(held)));
    }

    /// How this rollout ends is foreseen, and has not happened.
    pub fn foresees(&mut self, service: &ServiceName, to: ReleaseNumber) {
        self.foreseen = Some((service.clone(), to));
    }

    /// Whether the end of this rollout is only foreseen.
    pub fn is_foreseen(&self, service: &ServiceName, to: ReleaseNumber) -> bool {
        self.foreseen.as_ref().is_some_and(|(of, release)| of == service && *release == to)
    }

    /// The hosts as they will be.
    pub fn on(&self, hosts: &mut [HostCapacity]) {
        for (held, gone) in
            self.gone.iter().map(|r| (r, true)).chain(self.come.iter().map(|r| (r, false)))
        {
            let Some(host) = hosts.iter_mut().find(|h| h.name == held.host) else { continue };
            if held.devices == [DeviceId::Cpu] {
                let (free, memory) = (host.memory_free, held.memory_per_device);
                host.memory_free =
                    if gone { free.saturating_add(memory) } else { free.saturating_sub(memory) };
            }
            for gpu in host.gpus.iter_mut().filter(|g| gone && held.devices.contains(&g.device())) {
                gpu.free = gpu.total.saturating_sub(gpu.foreign).max(gpu.free);
            }
        }
    }
}

/// What the present replicas of a service hold and a new release may take over.
pub fn reusable(state: &DeckState, service: &ServiceName) -> Vec<Reuse> {
    held_plans(state)
        .filter(|(holder, _, _)| *holder == service)
        .flat_map(|(_, key, plan)| {
            plan.ranks.iter().map(move |rank| Reuse {
                replica: key,
                host: rank.host.clone(),
                devices: rank.devices.clone(),
                memory_per_device: rank.memory_per_device,
                shape: plan.shape(),
            })
        })
        .collect()
}

/// The replicas of a service that are to go on: of the release that is served or rolled out.
pub fn serving(state: &DeckState, service: &ServiceName) -> Vec<Reuse> {
    let Some(of) = state.services.get(service) else { return Vec::new() };
    let release = of.active_rollout().map(|r| r.to).or(of.stable);
    let goes_on = |key: &ReplicaKey| {
        Some(key.release) == release
            && !of.vacated.contains(key)
            && of.replicas.get(key).is_some_and(|r| !r.retiring)
    };
    let mut all = reusable(state, service);
    all.retain(|r| goes_on(&r.replica));
    all
}

/// The places of replicas that are not there (yet): a rollout under way takes them step by step, and goes back to those of
/// the release before; what is served comes back to its own after a crash.
fn meant_plans(
    state: &DeckState,
) -> impl Iterator<Item = (&ServiceName, ReplicaKey, &ReplicaPlan)> {
    state.services.iter().filter(|(_, of)| !of.stopping).flat_map(|(service, of)| {
        let releases: BTreeSet<_> =
            of.active_rollout().map(|r| r.to).into_iter().chain(of.stable).collect();
        releases.into_iter().filter_map(|number| of.releases.get(&number)).flat_map(
            move |release| {
                let plans = (0..).zip(&release.replicas);
                let keyed = plans.map(move |(replica, plan)| {
                    (ReplicaKey { release: release.number, replica }, plan)
                });
                keyed
                    .filter(|(key, _)| !of.vacated.contains(key))
                    .map(move |(key, plan)| (service, key, plan))
            },
        )
    })
}

fn held_plans(state: &DeckState) -> impl Iterator<Item = (&ServiceName, ReplicaKey, &ReplicaPlan)> {
    state.services.iter().flat_map(|(service, service_state)| {
        service_state
            .replicas
            .iter()
            .filter(|(_, replica)| replica.phase != Phase::Stopped)
            .filter_map(move |(key, _)| {
                let release = service_state.releases.get(&key.release)?;
                Some((service, *key, release.replica(key.replica)?))
            })
    })
}

/// Engine ports in use by releases that live, by the address they are bound on.
pub fn used_ports(state: &DeckState) -> BTreeSet<(String, u16)> {
    let releases = || state.services.values().flat_map(|s| s.releases.values());
    let borrowed = releases().filter_map(|r| r.borrowing.as_ref()).flat_map(|b| &b.replicas);
    releases()
        .flat_map(|r| &r.replicas)
        .chain(borrowed.filter_map(|lent| lent.back.as_ref()))
        .chain(state.services.values().flat_map(|s| s.moves.iter().map(|m| &m.plan)))
        .flat_map(|r| &r.ranks)
        .map(|rank| (rank.address.clone(), rank.port))
        .collect()
}

/// Whether a host can be given something now.
pub fn is_up(host: &HostView) -> bool {
    host.link == HostLinkState::Up && host.sample.is_some()
}

/// The hosts that are reached and whose GPUs cannot be read: a driver hangs there.
pub fn unread<'a>(views: impl Iterator<Item = &'a HostView>) -> BTreeSet<String> {
    let hangs = |host: &&HostView| {
        let sample = host.sample.as_ref();
        is_up(host) && sample.is_some_and(|s| matches!(s.gpus, Gpus::Hung { .. }))
    };
    views.filter(hangs).map(|host| host.name.to_string()).collect()
}

/// The address under which other hosts reach a host's engines.
pub fn engine_address(deck: &DeckSpec, host: &HostName) -> String {
    let Some(spec) = deck.hosts.get(host) else { return host.to_string() };
    if let Some(address) = &spec.engine_address {
        return address.clone();
    }
    if let Some(address) = spec.engine_listen.filter(|a| !a.is_unspecified()) {
        return address.to_string();
    }
    match spec.transport {
        crate::spec::Transport::Local => "127.0.0.1".to_owned(),
        crate::spec::Transport::Ssh => spec.address.clone().unwrap_or_else(|| host.to_string()),
    }
}

/// The first engine port of a host.
pub fn first_port(deck: &DeckSpec, host: &HostName) -> u16 {
    deck.hosts.get(host).and_then(|h| h.first_engine_port).unwrap_or(21_000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::base::Bytes;

    #[test]
    fn how_a_rollout_under_way_ends_is_no_fact() {
        let (chat, other): (ServiceName, ServiceName) =
            ("chat".parse().unwrap(), "code".parse().unwrap());
        let mut ahead = Ahead::default();
        assert!(!ahead.is_foreseen(&chat, ReleaseNumber(3)));
        ahead.foresees(&chat, ReleaseNumber(3));
        assert!(ahead.is_foreseen(&chat, ReleaseNumber(3)));
        assert!(!ahead.is_foreseen(&chat, ReleaseNumber(2)));
        assert!(!ahead.is_foreseen(&other, ReleaseNumber(3)));
    }

    #[test]
    fn what_comes_first_has_left_its_memory_and_holds_what_it_took() {
        let key =
            |release: u64| ReplicaKey { release: crate::base::ReleaseNumber(release), replica: 0 };
        let held = |release, gib| Reuse {
            replica: key(release),
            host: "h".parse().unwrap(),
            devices: vec![DeviceId::Cpu],
            memory_per_device: Bytes::gib(gib),
            shape: crate::spec::ParallelShape::of_tensor(1),
        };
        let none = BTreeMap::new();
        let mut hosts = vec![HostCapacity::observed(
            "h".parse().unwrap(),
            BTreeMap::new(),
            true,
            None,
            None,
            &none,
        )];
        hosts[0].memory_free = Bytes::gib(10);
        let mut ahead = Ahead::default();
        // What stays as it is changes nothing.
        ahead.goes(vec![held(1, 4), held(9, 1)], vec![held(2, 7), held(9, 1)]);
        ahead.on(&mut hosts);
        assert_eq!(hosts[0].memory_free, Bytes::gib(7));
    }
}
