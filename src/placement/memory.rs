//! Replicas on host memory (`device = "cpu"`): a replica takes a part of one host's memory, so there is nothing to
//! solve. Taking the best host one replica at a time is complete.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::demand::{Demand, PlacedReplica, ShapeNeed};
use super::rules::excluded;
use super::world::HostCapacity;
use crate::base::{Bytes, DeviceId, ReplicaKey};
use crate::spec::Spread;

/// Places as many replicas as fit.
pub(super) fn place(
    hosts: &[&HostCapacity],
    demand: &Demand,
    need: ShapeNeed,
) -> Vec<PlacedReplica> {
    let factor = u64::try_from(need.devices()).unwrap_or(u64::MAX);
    let mut attempt = Attempt {
        hosts,
        demand,
        need: Bytes(need.memory_per_device.0.saturating_mul(factor)),
        promised: BTreeMap::new(),
        displaced: BTreeSet::new(),
        on: BTreeMap::new(),
    };
    for staying in &demand.staying {
        *attempt.on.entry(staying.host.as_str()).or_default() += 1;
    }
    let mut placed = Vec::new();
    for _ in 0..demand.replicas {
        let best = hosts
            .iter()
            .enumerate()
            .filter_map(|(at, host)| attempt.propose(at, host))
            .min_by(|a, b| a.rank.cmp(&b.rank));
        let Some(best) = best else { break };
        let (host, at) = (best.host, best.rank.host);
        *attempt.on.entry(host.name.as_str()).or_default() += 1;
        *attempt.promised.entry(at).or_default() += attempt.need.0;
        attempt.displaced.extend(best.in_place_of.iter().copied());
        placed.push(PlacedReplica {
            host: host.name.clone(),
            devices: vec![DeviceId::Cpu],
            memory_per_device: attempt.need,
            shape: need.shape,
            in_place_of: best.in_place_of.into_iter().collect(),
        });
    }
    placed
}

struct Proposal<'a> {
    host: &'a HostCapacity,
    in_place_of: BTreeSet<ReplicaKey>,
    rank: Rank,
}

/// Compared from the first field on; smaller is better.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// Replicas of the service already in the failure domain.
    domain: i64,
    /// Likewise on the host; negative to pack.
    crowd: i64,
    /// Present replicas that have to go for it.
    displaced: usize,
    free: Reverse<Bytes>,
    host: usize,
}

struct Attempt<'a> {
    hosts: &'a [&'a HostCapacity],
    demand: &'a Demand,
    need: Bytes,
    /// Host memory promised to replicas placed here, and present replicas that go for them.
    promised: BTreeMap<usize, u64>,
    displaced: BTreeSet<ReplicaKey>,
    on: BTreeMap<&'a str, i64>,
}

impl<'a> Attempt<'a> {
    fn propose(&self, at: usize, host: &'a HostCapacity) -> Option<Proposal<'a>> {
        if excluded(host, self.demand).is_some() {
            return None;
        }
        let promised = Bytes(self.promised.get(&at).copied().unwrap_or(0));
        // Present replicas that go for a replica placed before give their memory back.
        let given = |key: &ReplicaKey| self.displaced.contains(key);
        let here = || self.demand.reuse.iter().filter(|r| r.host == host.name);
        let returned: u64 = here()
            .filter(|r| given(&r.replica))
            .fold(0, |n, r| n.saturating_add(r.memory_per_device.0));
        let mut has = Bytes(host.memory_free.0.saturating_add(returned)).saturating_sub(promised);
        let mut in_place_of = BTreeSet::new();
        let mut rest: Vec<_> = here().filter(|r| !given(&r.replica)).collect();
        rest.sort_by_key(|r| (Reverse(r.memory_per_device), r.replica));
        for reuse in rest {
            if has >= self.need {
                break;
            }
            has = has.saturating_add(reuse.memory_per_device);
            in_place_of.insert(reuse.replica);
        }
        if has < self.need {
            return None;
        }
        let crowd = self.on.get(host.name.as_str()).copied().unwrap_or(0);
        let crowd = if self.demand.placement.spread == Spread::Pack { -crowd } else { crowd };
        let rank = Rank {
            domain: self.domain(host),
            crowd,
            displaced: in_place_of.len(),
            free: Reverse(has),
            host: at,
        };
        Some(Proposal { host, in_place_of, rank })
    }

    fn domain(&self, host: &HostCapacity) -> i64 {
        let key = match self.demand.placement.spread {
            Spread::Rack => "rack",
            Spread::Zone => "zone",
            Spread::Host | Spread::Pack => return 0,
        };
        let same = self.hosts.iter().filter(|h| h.labels.get(key) == host.labels.get(key));
        same.filter_map(|h| self.on.get(h.name.as_str())).sum()
    }
}
