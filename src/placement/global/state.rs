//! A whole placement and what it is worth, kept up to date as slots come and go.
#![allow(clippy::indexing_slicing)] // hosts, slots and kinds are numbered by `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use super::compile::{NONE, Problem, span_cost};
use super::few::Few;
use super::file::WorldSpread;
use super::layout::{HostCost, Part, divide};

/// Where a slot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub kind: u32,
    /// The incumbent that it continues, or [`NONE`].
    pub keep: u32,
    /// Its hosts in order; the groups are divided evenly.
    pub hosts: Few,
}

/// What a placement is worth, compared in this order; less is better.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    /// Slots without a place, by priority from the highest.
    pub unplaced: Vec<i64>,
    pub levels: Levels,
}

/// The levels after the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Levels {
    pub crowded: i64,
    pub moves: i64,
    pub link: i64,
    /// Ranks of earlier releases that must go first.
    pub displaced: i64,
    pub tight: i64,
    pub bytes: i64,
    /// 64 less the largest hole of all.
    pub closed: i64,
}

#[derive(Clone, Debug, Default)]
struct OnHost {
    parts: Vec<Part>,
    used: u32,
    cost: HostCost,
}

/// A placement.
#[derive(Clone, Debug)]
pub(super) struct State<'a> {
    pub p: &'a Problem<'a>,
    pub at: Vec<Option<Position>>,
    hosts: Vec<OnHost>,
    stays: Vec<bool>,
    score: Score,
    /// Hosts by the largest hole that they have.
    holes: [u32; 65],
    /// Parts of a service on a host, `[service * hosts + host]`.
    on: Vec<u16>,
    /// Replicas of a service in a failure domain, for services that are spread.
    within: Vec<Vec<u16>>,
    /// Hosts of each service.
    used: Vec<i64>,
    /// Hosts with so many free GPUs, as bits.
    by_room: Vec<u64>,
    words: usize,
    /// How many.
    with_room: [u32; 65],
    most_room: u32,
    scratch: Vec<Part>,
}

impl<'a> State<'a> {
    /// Nothing has a place.
    pub fn new(p: &'a Problem<'a>) -> Self {
        let mut holes = [0; 65];
        let hosts: Vec<OnHost> = (0..p.hosts.len() as u32)
            .map(|h| {
                let cost = divide(p, h, &[], None).unwrap_or_default();
                let cost = if p.hosts[h as usize].cells.is_empty() {
                    HostCost { closed: 64, ..cost }
                } else {
                    cost
                };
                holes[cost.hole() as usize] += 1;
                OnHost { parts: Vec::new(), used: 0, cost }
            })
            .collect();
        let mut with_room = [0; 65];
        let words = p.hosts.len().div_ceil(64);
        let mut by_room = vec![0u64; words * 65];
        for (h, host) in p.hosts.iter().enumerate() {
            by_room[host.room as usize * words + h / 64] |= 1 << (h % 64);
            with_room[host.room as usize] += 1;
        }
        let mut unplaced = vec![0; p.classes.len()];
        for service in p.slots.iter().map(|s| &p.services[*s as usize]).filter(|s| !s.outgoing) {
            unplaced[service.class as usize] += 1;
        }
        let displaced = p.incumbents.iter().filter(|i| i.can_stay).map(|i| i.displaced).sum();
        let moves = p.incumbents.iter().map(|i| i.ranks).sum();
        let within = p
            .services
            .iter()
            .map(|s| match s.spread {
                WorldSpread::None | WorldSpread::Pack => Vec::new(),
                WorldSpread::Host => vec![0; p.hosts.len()],
                WorldSpread::Rack => vec![0; p.racks as usize],
                WorldSpread::Zone => vec![0; p.zones as usize],
            })
            .collect();
        Self {
            p,
            at: vec![None; p.slots.len()],
            hosts,
            stays: vec![false; p.incumbents.len()],
            score: Score { unplaced, levels: Levels { moves, displaced, ..Levels::default() } },
            holes,
            on: vec![0; p.services.len() * p.hosts.len()],
            within,
            used: vec![0; p.services.len()],
            by_room,
            words,
            with_room,
            most_room: p.hosts.iter().map(|h| h.room).max().unwrap_or(0),
            scratch: Vec::new(),
        }
    }

    pub fn unplaced(&self) -> &[i64] {
        &self.score.unplaced
    }

    pub fn levels(&self) -> Levels {
        let hole = (0..=self.most_room as usize).rev().find(|n| self.holes[*n] > 0).unwrap_or(0);
        Levels { closed: 64 - hole as i64, ..self.score.levels }
    }

    pub fn score(&self) -> Score {
        Score { unplaced: self.score.unplaced.clone(), levels: self.levels() }
    }

    pub fn stays(&self, incumbent: u32) -> bool {
        self.stays[incumbent as usize]
    }

    pub fn parts(&self, host: u32) -> &[Part] {
        &self.hosts[host as usize].parts
    }

    pub fn cost(&self, host: u32) -> HostCost {
        self.hosts[host as usize].cost
    }

    /// Whether a host that a kind may use has so many free GPUs.
    pub fn has_room(&self, kind: u32, gpus: u32) -> bool {
        let may = &self.p.kinds[kind as usize].hosts;
        (gpus..=self.most_room).filter(|room| self.with_room[*room as usize] > 0).any(|room| {
            let with = &self.by_room[room as usize * self.words..][..self.words];
            with.iter().zip(may).any(|(with, may)| with & may != 0)
        })
    }

    /// What lying on these hosts costs beside the links on each.
    pub fn span(&self, hosts: &[u32]) -> i64 {
        let rack = |h: &u32| self.p.hosts[*h as usize].rack;
        let racks = (0..hosts.len())
            .filter(|i| hosts[..*i].iter().all(|h| rack(h) != rack(&hosts[*i])))
            .count();
        span_cost(hosts.len(), racks)
    }

    /// GPUs of a host that are free.
    pub fn room(&self, host: u32) -> u32 {
        self.p.hosts[host as usize].room - self.hosts[host as usize].used
    }

    /// The part of a slot on one host.
    fn part(&self, slot: u32, position: &Position, units: u32, host: u32) -> Part {
        let gpus = if position.keep == NONE {
            units * self.p.kinds[position.kind as usize].tensor
        } else {
            let pins = self.p.incumbents[position.keep as usize].pins.iter();
            pins.filter(|p| p.host == host).flat_map(|p| &p.cells).map(|(_, n)| n).sum()
        };
        Part { slot, kind: position.kind, units, pin: position.keep, gpus }
    }

    pub fn on(&self, service: u32, host: u32) -> u16 {
        self.on[service as usize * self.p.hosts.len() + host as usize]
    }

    /// GPUs of a part that lack headroom, on a host that is `whole`.
    fn tight(&self, host: u32, part: &Part) -> u32 {
        if part.pin == NONE && self.p.tight(part.kind, host) != 0 { part.gpus } else { 0 }
    }

    /// What the host would cost with one part more; none if it does not fit.
    fn with(&mut self, host: u32, part: Part) -> Option<HostCost> {
        let on = &self.hosts[host as usize];
        if self.p.hosts[host as usize].room < on.used + part.gpus {
            return None;
        }
        if self.p.hosts[host as usize].whole {
            // Whatever else is there, it lies in the one island.
            let free = self.room(host) - part.gpus;
            let tight = on.cost.tight + self.tight(host, &part);
            let fits = part.pin != NONE || self.p.eligible(part.kind, host) != 0;
            return fits.then_some(HostCost { link: 0, tight, closed: 64 - free });
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(&on.parts);
        scratch.push(part);
        let cost = divide(self.p, host, &scratch, None);
        self.scratch = scratch;
        cost
    }

    /// What a part of a service on this host would add: crowding, link, headroom, bytes, and the room it would leave.
    pub fn price(&mut self, s: u32, kind: u32, units: u32, host: u32) -> Option<[i64; 5]> {
        let k = &self.p.kinds[kind as usize];
        if self.p.eligible(kind, host) == 0 || self.room(host) < units * k.tensor {
            return None;
        }
        let gpus = units * k.tensor;
        let old = self.hosts[host as usize].cost;
        let cost = self.with(host, Part { slot: NONE, kind, units, pin: NONE, gpus })?;
        let service = &self.p.services[s as usize];
        let crowded = match service.spread {
            WorldSpread::None => 0,
            WorldSpread::Pack => i64::from(self.used[s as usize] > 0 && self.on(s, host) == 0),
            spread => {
                let domain = self.p.domain(spread, host) as usize;
                let over = i64::from(u32::from(self.within[s as usize][domain]) >= service.quota);
                match service.host_quota {
                    u32::MAX => over,
                    quota => 2 * over + i64::from(u32::from(self.on(s, host)) >= quota),
                }
            }
        };
        let copy = !service.has[host as usize] && self.on(s, host) == 0;
        Some([
            crowded,
            i64::from(cost.link) - i64::from(old.link),
            i64::from(cost.tight) - i64::from(old.tight),
            if copy { service.bytes } else { 0 },
            i64::from(self.room(host) - gpus),
        ])
    }

    /// Gives a slot its place; false, and nothing is changed, if it does not fit there.
    pub fn place(&mut self, slot: u32, position: Position) -> bool {
        debug_assert!(self.at[slot as usize].is_none(), "slot {slot} has a place");
        if position.keep != NONE && self.stays[position.keep as usize] {
            return false;
        }
        let units = self.p.kinds.get(position.kind as usize).map_or(0, |k| k.units);
        let each = units / (position.hosts.len() as u32).max(1);
        for (n, host) in position.hosts.iter().enumerate() {
            let part = self.part(slot, &position, each, *host);
            let fits = (position.keep != NONE || self.p.eligible(position.kind, *host) != 0)
                .then(|| self.with(*host, part))
                .flatten();
            let Some(cost) = fits else {
                for host in &position.hosts[..n] {
                    self.take_part(slot, *host);
                }
                return false;
            };
            self.hosts[*host as usize].parts.push(part);
            self.use_gpus(*host, i64::from(part.gpus));
            self.set_cost(*host, cost);
        }
        self.count(slot, &position, 1);
        self.at[slot as usize] = Some(position);
        true
    }

    /// Takes a slot's place away.
    pub fn remove(&mut self, slot: u32) -> Option<Position> {
        let position = self.at[slot as usize].take()?;
        for host in &position.hosts {
            self.take_part(slot, *host);
        }
        self.count(slot, &position, -1);
        Some(position)
    }

    fn take_part(&mut self, slot: u32, host: u32) {
        let parts = &self.hosts[host as usize].parts;
        let Some(i) = parts.iter().position(|p| p.slot == slot) else { return };
        let part = self.hosts[host as usize].parts.swap_remove(i);
        self.use_gpus(host, -i64::from(part.gpus));
        let cost = if self.p.hosts[host as usize].whole {
            let old = self.hosts[host as usize].cost;
            let tight = old.tight - self.tight(host, &part);
            HostCost { link: 0, tight, closed: 64 - self.room(host) }
        } else {
            divide(self.p, host, &self.hosts[host as usize].parts, None).unwrap_or_default()
        };
        self.set_cost(host, cost);
    }

    fn use_gpus(&mut self, host: u32, more: i64) {
        let (word, bit) = (host as usize / 64, 1u64 << (host % 64));
        let before = self.room(host) as usize;
        self.by_room[before * self.words + word] &= !bit;
        self.with_room[before] -= 1;
        let used = &mut self.hosts[host as usize].used;
        *used = used.saturating_add_signed(more as i32);
        let now = self.room(host) as usize;
        self.by_room[now * self.words + word] |= bit;
        self.with_room[now] += 1;
    }

    /// Hosts that a kind may use, from those with just enough free GPUs up. Among equals it begins at `turn`.
    /// Ends when `found` says so.
    pub fn by_room(
        &mut self,
        kind: u32,
        gpus: u32,
        turn: usize,
        found: &mut dyn FnMut(&mut Self, u32) -> bool,
    ) {
        let words = self.words;
        for room in gpus..=self.most_room {
            if self.with_room[room as usize] == 0 {
                continue;
            }
            // From the middle of the first word on, and its beginning at the end.
            for n in 0..=words {
                let word = (turn / 64 + n) % words;
                let part = match n {
                    0 => u64::MAX << (turn % 64),
                    n if n == words => !(u64::MAX << (turn % 64)),
                    _ => u64::MAX,
                };
                let of_kind = self.p.kinds[kind as usize].hosts[word];
                let mut bits = self.by_room[room as usize * self.words + word] & of_kind & part;
                while bits != 0 {
                    let host = word as u32 * 64 + bits.trailing_zeros();
                    bits &= bits - 1;
                    if found(self, host) {
                        return;
                    }
                }
            }
        }
    }

    /// Hosts that a kind may use and that have so many free GPUs, from `turn` on; at most so many.
    pub fn roomy(&self, kind: u32, gpus: u32, turn: usize, most: usize, out: &mut Vec<u32>) {
        let hosts = &self.p.kinds[kind as usize].hosts;
        let words = hosts.len();
        let enough = gpus.min(self.most_room) as usize..=self.most_room as usize;
        let with_room = enough.filter(|room| self.with_room[*room] > 0 && *room >= gpus as usize);
        for n in 0..words {
            let word = (turn / 64 + n) % words;
            let room = with_room
                .clone()
                .fold(0, |bits, room| bits | self.by_room[room * self.words + word]);
            let mut bits = room & hosts[word];
            while bits != 0 {
                if out.len() >= most {
                    return;
                }
                out.push(word as u32 * 64 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
    }

    /// What a host costs as it was divided in the end. In a hurry, less was known.
    pub fn divided(&mut self, host: u32, cost: HostCost) {
        if !self.p.hosts[host as usize].cells.is_empty() {
            self.set_cost(host, cost);
        }
    }

    fn set_cost(&mut self, host: u32, cost: HostCost) {
        let old = std::mem::replace(&mut self.hosts[host as usize].cost, cost);
        self.holes[old.hole() as usize] -= 1;
        self.holes[cost.hole() as usize] += 1;
        self.score.levels.link += i64::from(cost.link) - i64::from(old.link);
        self.score.levels.tight += i64::from(cost.tight) - i64::from(old.tight);
    }

    /// What does not depend on how hosts are divided.
    fn count(&mut self, slot: u32, position: &Position, sign: i64) {
        let s = self.p.slots[slot as usize];
        let service = &self.p.services[s as usize];
        if !service.outgoing {
            self.score.unplaced[service.class as usize] -= sign;
        }
        if position.keep == NONE && service.spread == WorldSpread::None {
            // Most of all: nothing but copies and how far its hosts are from each other.
            if position.hosts.len() > 1 {
                self.score.levels.link += sign * self.span(&position.hosts);
            }
            let row = s as usize * self.p.hosts.len();
            for host in &position.hosts {
                let on = &mut self.on[row + *host as usize];
                let before = *on;
                *on = before.saturating_add_signed(sign as i16);
                if (*on == 0) != (before == 0) {
                    self.used[s as usize] += sign;
                    if !service.has[*host as usize] {
                        self.score.levels.bytes += sign * service.bytes;
                    }
                }
            }
            return;
        }
        if position.keep == NONE {
            if position.hosts.len() > 1 {
                self.score.levels.link += sign * self.span(&position.hosts);
            }
        } else {
            let incumbent = &self.p.incumbents[position.keep as usize];
            self.stays[position.keep as usize] = sign > 0;
            self.score.levels.moves -= sign * incumbent.ranks;
            self.score.levels.displaced -= sign * incumbent.displaced;
            self.score.levels.link += sign * incumbent.link;
            self.score.levels.tight += sign * incumbent.tight;
        }
        for host in &position.hosts {
            let on = &mut self.on[s as usize * self.p.hosts.len() + *host as usize];
            let before = *on;
            *on = if sign > 0 { before + 1 } else { before - 1 };
            let copied =
                |n: u16| if n > 0 && !service.has[*host as usize] { service.bytes } else { 0 };
            self.score.levels.bytes += copied(*on) - copied(before);
            if service.host_quota != u32::MAX {
                let over = |n: u16| (i64::from(n) - i64::from(service.host_quota)).max(0);
                self.score.levels.crowded += over(*on) - over(before);
            }
            if (*on == 0) != (before == 0) {
                let used = &mut self.used[s as usize];
                let over = |n: i64| (n - 1).max(0);
                if service.spread == WorldSpread::Pack {
                    self.score.levels.crowded += over(*used + sign) - over(*used);
                }
                *used += sign;
            }
        }
        if !matches!(service.spread, WorldSpread::None | WorldSpread::Pack) {
            for (i, host) in position.hosts.iter().enumerate() {
                let domain = self.p.domain(service.spread, *host);
                let again =
                    position.hosts[..i].iter().any(|h| self.p.domain(service.spread, *h) == domain);
                if again {
                    continue;
                }
                let n = &mut self.within[s as usize][domain as usize];
                let over = |n: u16| (i64::from(n) - i64::from(service.quota)).max(0);
                let before = over(*n);
                *n = if sign > 0 { *n + 1 } else { *n - 1 };
                // A rack or zone counts for more than a host.
                let weight = if service.host_quota == u32::MAX { 1 } else { 2 };
                self.score.levels.crowded += weight * (over(*n) - before);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::clock::Clock;
    use super::super::compile::compile;
    use super::super::read::read;
    use super::super::search::Dice;
    use super::*;

    /// What is counted from part to part is what dividing the host anew gives.
    #[test]
    fn a_host_of_one_island_is_counted_as_it_would_be_divided() {
        let gpu = |host: usize, i: u32| {
            let island = if host % 4 == 3 { i / 4 } else { 0 };
            let free = format!("{}GiB", 60 + 19 * (host % 2));
            json!({"index": i, "memory_total": "80GiB", "memory_free": free, "numa": i / 4, "island": island})
        };
        let hosts: Vec<_> = (0..8)
            .map(|h| json!({"name": format!("h{h}"), "gpus": (0..8).map(|i| gpu(h, i)).collect::<Vec<_>>()}))
            .collect();
        let services: Vec<_> = (0..12)
            .map(|s| {
                let (memory, tensor) = (["20GiB", "57GiB", "78GiB"][s % 3], [1, 2, 4, 3][s % 4]);
                json!({"name": format!("s{s}"), "replicas": 3, "shapes": [{"tensor": tensor, "memory": memory}]})
            })
            .collect();
        let running = json!([{"service": "s0", "replica": 0, "memory": 0, "ranks": [{"host": "h0", "gpus": [5]}]}]);
        let mut world = json!({"hosts": hosts, "services": services, "placements": running});
        // A requirement that looks at links tells GPUs of one island apart.
        for picky in [false, true] {
            if picky {
                world["services"][1]["require"] = json!("host.name != 'h1' || gpu.numa == 0");
            }
            let p = compile(&read(&world.to_string(), "world").unwrap(), Clock::none());
            let whole = p.hosts.iter().filter(|h| h.whole).count();
            assert_eq!(whole, if picky { 5 } else { 6 });
            let mut state = State::new(&p);
            let mut dice = Dice::new(3);
            for _ in 0..2000 {
                let slot = dice.below(p.slots.len()) as u32;
                let service = &p.services[p.slots[slot as usize] as usize];
                state.remove(slot);
                let keep = service.incumbents.first().copied().filter(|_| dice.below(2) == 0);
                let position = Position {
                    kind: service.kinds[0],
                    keep: keep.unwrap_or(NONE),
                    hosts: std::iter::once(if keep.is_some() { 0 } else { dice.below(8) as u32 })
                        .collect(),
                };
                state.place(slot, position);
                for (h, on) in state.hosts.iter().enumerate() {
                    assert_eq!(Some(on.cost), divide(&p, h as u32, &on.parts, None));
                }
            }
        }
    }
}
