//! What the search knows of a world: cells, hosts, kinds, services and what runs.

use std::cell::{Cell as Flag, RefCell};
use std::collections::{BTreeMap, HashMap};

use super::super::alike::Mark;
use super::super::clock::Clock;
use super::super::file::{WorldShape, WorldSpread};
use super::super::layout::HostCost;
use super::needs::Joined;

/// No incumbent.
pub(in crate::placement::global) const NONE: u32 = u32::MAX;

/// GPUs of one host that nothing tells apart.
#[derive(Clone, Debug)]
pub(in crate::placement::global) struct Cell {
    /// What it is joined by; the switch only where that can matter.
    pub joined: Joined,
    pub model: u32,
    pub total: u64,
    /// Free once what may be moved is gone, on the GPU of them that has most.
    pub free: u64,
    pub(super) mark: Mark,
    pub mig: Option<String>,
    /// Positions in the host's list.
    pub gpus: Vec<u32>,
}

impl Cell {
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.joined, self.model, self.total) == (other.joined, other.model, other.total)
            && self.mark == other.mark
            && self.mig == other.mig
    }
}

/// A host.
#[derive(Clone, Debug)]
pub(in crate::placement::global) struct Host {
    pub cells: Vec<Cell>,
    pub rack: u32,
    pub zone: u32,
    /// GPUs in cells.
    pub room: u32,
    /// Hosts whose cells differ in nothing but their links, and have the same links, have the same number (those of MIG
    /// instances others than those of GPUs); [`NONE`] for a host whose GPUs differ otherwise.
    pub pattern: u32,
    /// All of it is one island of one model, and every kind may use all of it or nothing: counting GPUs is enough.
    pub whole: bool,
}

/// One way to divide a replica, on one GPU model.
#[derive(Clone, Debug)]
pub(in crate::placement::global) struct Kind {
    pub tensor: u32,
    /// Tensor-parallel groups.
    pub units: u32,
    pub shape: WorldShape,
    /// Highest link cost of a group that is allowed.
    pub max_link: u32,
    /// Numbers of hosts that it may be divided over, fewest first.
    pub splits: Vec<u32>,
    /// Memory that a GPU of this kind must have, the engine's share aside.
    pub need: u64,
    /// The hosts that it may use, as bits.
    pub hosts: Vec<u64>,
    /// There is a host on which it has headroom.
    pub has_roomy: bool,
    /// The least link cost that a group of it has on any host.
    pub nearest: u32,
}

/// A service.
#[derive(Clone, Debug)]
pub(in crate::placement::global) struct Service {
    /// Its priority's rank, the highest 0.
    pub class: u32,
    pub kinds: Vec<u32>,
    pub spread: WorldSpread,
    /// Replicas that each failure domain may hold before it counts as crowded.
    pub quota: u32,
    /// Likewise each host, where replicas are kept apart by rack or zone and lie on one host each.
    pub host_quota: u32,
    pub bytes: i64,
    /// Hosts that have the weights, or whose replica has them.
    pub has: Vec<bool>,
    pub homes: Vec<u32>,
    pub incumbents: Vec<u32>,
    /// Its first slot, and how many.
    pub first: u32,
    pub replicas: u32,
    /// Not a service of the world but the replicas of an earlier release of one: they stay or give way.
    pub outgoing: bool,
}

/// The part of an incumbent on one host.
#[derive(Clone, Debug)]
pub(in crate::placement::global) struct Pin {
    pub host: u32,
    /// Cell and count; GPUs outside cells (cordoned, immovable) take no room.
    pub cells: Vec<(u32, u32)>,
    /// All its GPUs there, as positions.
    pub gpus: Vec<u32>,
}

/// A replica that runs.
#[derive(Clone, Debug)]
pub(in crate::placement::global) struct Incumbent {
    pub service: u32,
    pub replica: u32,
    pub shape: WorldShape,
    pub pins: Vec<Pin>,
    /// What staying costs.
    pub link: i64,
    pub tight: i64,
    /// Ranks that stop when it does not stay; 0 if it serves no more.
    pub ranks: i64,
    /// The same for a replica of an earlier release.
    pub displaced: i64,
    pub can_stay: bool,
    pub must_stay: bool,
}

/// The tables.
#[derive(Clone, Debug)]
pub(in crate::placement::global) struct Problem<'a> {
    /// How much of the time is used.
    pub clock: Clock<'a>,
    pub hosts: Vec<Host>,
    pub kinds: Vec<Kind>,
    pub services: Vec<Service>,
    pub incumbents: Vec<Incumbent>,
    /// The service of each slot.
    pub slots: Vec<u32>,
    /// Priorities, highest first.
    pub classes: Vec<i32>,
    /// Cells that a kind may use and those on which it lacks headroom: `[kind * hosts + host]`.
    pub(super) eligible: Vec<u64>,
    pub(super) tight: Vec<u64>,
    pub racks: u32,
    pub zones: u32,
    /// The hosts of each rack.
    pub in_rack: Vec<Vec<u32>>,
    /// GPUs outside cells, with the reason.
    pub outside: Vec<BTreeMap<u32, String>>,
    /// Divisions that were worked out, by pattern and sizes.
    pub divided: RefCell<BTreeMap<(u32, u64), Option<HostCost>>>,
    /// The same for hosts with unlike GPUs, by host and parts (kind, groups, incumbent).
    pub divided_unlike: RefCell<HashMap<(u32, Vec<(u32, u32, u32)>), Option<HostCost>>>,
    /// A division was not looked for to its end: there may be a better one.
    pub guessed: Flag<bool>,
}

impl Problem<'_> {
    pub fn eligible(&self, kind: u32, host: u32) -> u64 {
        self.eligible[kind as usize * self.hosts.len() + host as usize]
    }

    pub fn tight(&self, kind: u32, host: u32) -> u64 {
        self.tight[kind as usize * self.hosts.len() + host as usize]
    }

    /// The failure domain of a host for a service.
    pub fn domain(&self, spread: WorldSpread, host: u32) -> u32 {
        match spread {
            WorldSpread::None | WorldSpread::Pack => 0,
            WorldSpread::Host => host,
            WorldSpread::Rack => self.hosts[host as usize].rack,
            WorldSpread::Zone => self.hosts[host as usize].zone,
        }
    }
}
