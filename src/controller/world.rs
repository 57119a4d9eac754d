//! What placement has to know, from what the hosts last said and what is reserved.

use std::collections::{BTreeMap, BTreeSet};

use super::record::DeckState;
use crate::api::{HostLinkState, HostView};
use crate::base::{DeviceId, HostName, ServiceName};
use crate::rollout::Phase;
use crate::spec::DeckSpec;

/// The GPUs that replicas of ours hold, by host, with the service that holds them.
pub fn reservations(state: &DeckState) -> BTreeMap<(HostName, DeviceId), ServiceName> {
    let mut held = BTreeMap::new();
    for (service, service_state) in &state.services {
        for (key, replica) in &service_state.replicas {
            if replica.phase == Phase::Stopped {
                continue;
            }
            let plan = service_state.releases.get(&key.release).and_then(|r| r.replica(key.replica));
            for (host, device) in plan.iter().flat_map(|p| p.gpus()) {
                held.insert((host.clone(), device.clone()), service.clone());
            }
        }
    }
    held
}

/// Engine ports in use by releases that live, by the address they are bound on.
pub fn used_ports(state: &DeckState) -> BTreeSet<(String, u16)> {
    state
        .services
        .values()
        .flat_map(|s| s.releases.values())
        .flat_map(|r| &r.replicas)
        .flat_map(|r| &r.ranks)
        .map(|rank| (rank.address.clone(), rank.port))
        .collect()
}

/// Whether a host can be given something now.
pub fn is_up(host: &HostView) -> bool {
    host.link == HostLinkState::Up && host.sample.is_some()
}

/// The address under which other hosts reach a host's engines.
pub fn engine_address(deck: &DeckSpec, host: &HostName) -> String {
    let Some(spec) = deck.hosts.get(host) else { return host.to_string() };
    if let Some(address) = &spec.engine_address {
        return address.clone();
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
