//! Finds a good placement at once and better ones as long as it may: greedy first, then slots are put where they
//! would rather be, what is in the way is driven out and finds another place, and what makes the whole worse is
//! taken back (but for bytes, where a cooling temperature allows some).
#![allow(clippy::indexing_slicing)] // hosts, slots and kinds are numbered by `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use super::bar::Bar;
use super::bound::floors;
use super::compile::{NONE, Problem, Service};
use super::few::Few;
use super::state::{Levels, Position, Score, State};

/// A small generator of numbers that look random: the same on every machine (Vigna's xorshift64*).
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Less than `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// From 0 to less than 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The temperature at the beginning and at the end, in mean bytes of a service's weights, and the share of the time that is hot. Found by
/// trying on the worlds of `tests/placement_oracle`.
const HOTTEST: f64 = 0.9;
const COOLEST: f64 = 0.04;
const HOT: f64 = 0.85;

/// So often is a host, or a slot, drawn that suits.
pub(super) const TRIES: u32 = 8;

/// Hosts that are asked between two looks at the clock.
const A_LOOK: u32 = 8;

/// The search and what it knows.
pub(super) struct Search<'a> {
    pub state: State<'a>,
    pub(super) p: &'a Problem<'a>,
    pub(super) dice: Dice,
    /// What was done in this attempt, to take it back.
    undo: Vec<Undo>,
    /// What the result of this attempt has to meet.
    pub(super) bar: Bar,
    /// The least that each slot costs wherever it is.
    floors: Vec<Levels>,
    /// What those that were driven out in this attempt and have no place yet will cost at least.
    owed: Levels,
    /// GPUs of each slot at least.
    pub(super) sizes: Vec<u32>,
    /// Slots that no host holds alone.
    pub(super) wide: Vec<u32>,
    /// The slot of this attempt had a place: then all have to keep theirs.
    placed: bool,
    /// Where it was.
    left: Vec<u32>,
    /// Slots that have a reason to be elsewhere, as of the last look.
    restless: Vec<u32>,
    /// Those of them that run elsewhere and could stay there.
    strays: Vec<(u32, u32)>,
    /// Those of them that have no place.
    waiting: Vec<u32>,
    /// The first host will do.
    pub(super) hurries: bool,
}

enum Undo {
    Placed(u32),
    Removed(u32, Position),
}

/// GPUs of a slot at least.
fn gpus(p: &Problem<'_>, slot: u32) -> u32 {
    let kinds = &p.services[p.slots[slot as usize] as usize].kinds;
    kinds.iter().map(|k| &p.kinds[*k as usize]).map(|k| k.tensor * k.units).min().unwrap_or(0)
}

/// Of a slot that has to lie on several hosts.
fn is_wide(p: &Problem<'_>, slot: u32) -> bool {
    let kinds = &p.services[p.slots[slot as usize] as usize].kinds;
    !kinds.is_empty()
        && kinds.iter().all(|k| p.kinds[*k as usize].splits.first().is_some_and(|split| *split > 1))
}

impl<'a> Search<'a> {
    pub fn new(p: &'a Problem<'a>) -> Self {
        Self {
            state: State::new(p),
            p,
            dice: Dice::new(0x9E37_79B9_7F4A_7C15),
            undo: Vec::new(),
            bar: Bar::new(grain(p)),
            floors: floors(p),
            owed: Levels::default(),
            sizes: (0..p.slots.len() as u32).map(|slot| gpus(p, slot)).collect(),
            wide: (0..p.slots.len() as u32).filter(|slot| is_wide(p, *slot)).collect(),
            placed: false,
            left: Vec::new(),
            restless: Vec::new(),
            strays: Vec::new(),
            waiting: Vec::new(),
            hurries: false,
        }
    }

    /// A first placement: what runs stays, the rest goes by priority, the largest first. Of a priority for which
    /// there is not room the smallest are tried. Once `hurry` says so, each goes to the first host where it fits.
    pub fn construct(&mut self, hurry: &mut dyn FnMut() -> bool) {
        let p = self.p;
        for (s, service) in p.services.iter().enumerate() {
            let mut stay: Vec<u32> = service
                .incumbents
                .iter()
                .copied()
                .filter(|i| p.incumbents[*i as usize].can_stay)
                .collect();
            // Those that must stay, then those with most ranks.
            stay.sort_by_key(|i| {
                let incumbent = &p.incumbents[*i as usize];
                (!incumbent.must_stay, -incumbent.ranks, incumbent.link, *i)
            });
            for (slot, incumbent) in (service.first..service.first + service.replicas).zip(stay) {
                let position = self.staying(s as u32, incumbent);
                self.state.place(slot, position);
            }
        }
        let mut room: i64 = (0..p.hosts.len() as u32).map(|h| i64::from(self.state.room(h))).sum();
        for class in 0..p.classes.len() {
            let is =
                |slot: &u32| p.services[p.slots[*slot as usize] as usize].class as usize == class;
            let mut slots: Vec<u32> = (0..p.slots.len() as u32)
                .filter(|s| is(s) && self.state.at[*s as usize].is_none())
                .collect();
            slots.sort_by_key(|s| (self.sizes[*s as usize], *s));
            let (mut now, mut later) = (Vec::new(), Vec::new());
            for slot in slots {
                let size = i64::from(self.sizes[slot as usize]);
                if size <= room {
                    room -= size;
                    now.push(slot);
                } else {
                    later.push(slot);
                }
            }
            now.sort_by_key(|s| (std::cmp::Reverse(self.sizes[*s as usize]), *s));
            for slot in now.into_iter().chain(later) {
                self.hurries = self.hurries || hurry();
                self.settle(slot);
            }
            room = (0..p.hosts.len() as u32).map(|h| i64::from(self.state.room(h))).sum();
        }
        self.take_over();
        self.hurries = false;
    }

    /// What has no place yet takes that of replicas of earlier releases: of one host, or else of all.
    fn take_over(&mut self) {
        let p = self.p;
        if !p.services.iter().any(|s| s.outgoing) {
            return;
        }
        let gives_way = |search: &Self, host: u32| -> Vec<u32> {
            let parts = search.state.parts(host).iter().map(|part| part.slot);
            parts.filter(|slot| p.services[p.slots[*slot as usize] as usize].outgoing).collect()
        };
        let mut waiting: Vec<u32> = (0..p.slots.len() as u32)
            .filter(|slot| self.state.at[*slot as usize].is_none())
            .filter(|slot| !p.services[p.slots[*slot as usize] as usize].outgoing)
            .collect();
        waiting.sort_by_key(|slot| {
            let class = p.services[p.slots[*slot as usize] as usize].class;
            (class, std::cmp::Reverse(self.sizes[*slot as usize]), *slot)
        });
        for slot in waiting {
            let hosts = 0..p.hosts.len() as u32;
            let tries = hosts.clone().map(|h| h..h + 1).chain(std::iter::once(hosts));
            for hosts in tries {
                self.undo.clear();
                let mut out: Vec<u32> = hosts.flat_map(|h| gives_way(self, h)).collect();
                out.dedup();
                if out.is_empty() {
                    continue;
                }
                for victim in &out {
                    self.take(*victim);
                }
                if self.settle(slot) {
                    for victim in out {
                        self.settle(victim);
                    }
                    break;
                }
                self.take_back();
            }
        }
    }

    /// The position of a slot that continues an incumbent.
    pub fn staying(&self, service: u32, incumbent: u32) -> Position {
        let i = &self.p.incumbents[incumbent as usize];
        let same = |k: &&u32| self.p.kinds[**k as usize].shape == i.shape;
        let kind = self.p.services[service as usize].kinds.iter().find(same).copied();
        Position {
            kind: kind.unwrap_or(NONE),
            keep: incumbent,
            hosts: i.pins.iter().map(|p| p.host).collect(),
        }
    }

    /// Goes on from this placement.
    pub fn start_from(&mut self, best: &Best) {
        for slot in 0..self.p.slots.len() as u32 {
            self.state.remove(slot);
        }
        for keep in [true, false] {
            for (slot, at) in best.at.iter().enumerate() {
                if let Some(position) = at.as_ref().filter(|at| (at.keep != NONE) == keep) {
                    self.state.place(slot as u32, position.clone());
                }
            }
        }
    }

    pub(super) fn put(&mut self, slot: u32, position: Position) -> bool {
        let done = self.state.place(slot, position);
        if done {
            let floor = &self.floors[slot as usize];
            self.owed.link -= floor.link;
            self.owed.tight -= floor.tight;
            self.owed.bytes -= floor.bytes;
            self.undo.push(Undo::Placed(slot));
        }
        done
    }

    pub(super) fn take(&mut self, slot: u32) {
        if let Some(position) = self.state.remove(slot) {
            let floor = &self.floors[slot as usize];
            self.owed.link += floor.link;
            self.owed.tight += floor.tight;
            self.owed.bytes += floor.bytes;
            self.undo.push(Undo::Removed(slot, position));
        }
    }

    fn take_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Placed(slot) => drop(self.state.remove(slot)),
                Undo::Removed(slot, position) => {
                    self.state.place(slot, position);
                }
            }
        }
    }

    /// Puts a slot where it fits best without driving anything out.
    pub(super) fn settle(&mut self, slot: u32) -> bool {
        let service = &self.p.services[self.p.slots[slot as usize] as usize];
        for incumbent in &service.incumbents {
            let i = &self.p.incumbents[*incumbent as usize];
            if i.can_stay && !self.state.stays(*incumbent) {
                let position = self.staying(i.service, *incumbent);
                if self.put(slot, position) {
                    return true;
                }
            }
        }
        let mut best: Option<([i64; 5], Position)> = None;
        for kind in &service.kinds {
            for split in &self.p.kinds[*kind as usize].splits {
                let found = self.cheapest(slot, *kind, *split, None);
                let Some((price, hosts)) = found else { continue };
                if best.as_ref().is_none_or(|(b, _)| price < *b) {
                    best = Some((price, Position { kind: *kind, keep: NONE, hosts }));
                }
                // More hosts only cost more.
                break;
            }
        }
        best.is_some_and(|(_, position)| self.put(slot, position))
    }

    /// The cheapest hosts for a slot, from `first` on if that is given.
    fn cheapest(
        &mut self,
        slot: u32,
        kind: u32,
        split: u32,
        first: Option<u32>,
    ) -> Option<([i64; 5], Few)> {
        let units = self.p.kinds[kind as usize].units / split;
        let near =
            if split > 1 && first.is_none() { self.in_one_rack(slot, kind, split) } else { None };
        if near.as_ref().is_some_and(|(price, _)| price[1] == 3 * (i64::from(split) - 1)) {
            return near;
        }
        let far = self.one_by_one(slot, kind, units, split, first);
        match (near, far) {
            (Some(near), Some(far)) => Some(if far.0 < near.0 { far } else { near }),
            (near, far) => near.or(far),
        }
    }

    /// The cheapest host, then the cheapest beside it.
    fn one_by_one(
        &mut self,
        slot: u32,
        kind: u32,
        units: u32,
        split: u32,
        first: Option<u32>,
    ) -> Option<([i64; 5], Few)> {
        let mut hosts = Few::default();
        let mut total = [0; 5];
        if let Some(first) = first {
            total = self.state.price(self.p.slots[slot as usize], kind, units, first)?;
            hosts.push(first);
        }
        while hosts.len() < split as usize {
            let best = self.cheapest_one(slot, kind, units, &hosts);
            let (price, h) = best?;
            for (t, p) in total.iter_mut().zip(price) {
                *t += p;
            }
            hosts.push(h);
        }
        total[1] += 3 * (i64::from(split) - 1);
        Some((total, hosts))
    }

    /// The cheapest host for a part, besides those that its replica already lies on.
    fn cheapest_one(
        &mut self,
        slot: u32,
        kind: u32,
        units: u32,
        others: &[u32],
    ) -> Option<([i64; 5], u32)> {
        let p = self.p;
        let s = p.slots[slot as usize];
        let k = &p.kinds[kind as usize];
        let rack = |h: u32| p.hosts[h as usize].rack;
        let price = |state: &mut State<'_>, h: u32| {
            if others.contains(&h) {
                return None;
            }
            let mut price = state.price(s, kind, units, h)?;
            price[1] += others.first().map_or(0, |near| i64::from(rack(*near) != rack(h)));
            Some((price, h))
        };
        // Nothing better can come than what is as near and roomy as can be.
        let hurries = self.hurries;
        let mut asked = 0;
        let mut good = |price: &[i64; 5]| {
            // Looking at the clock takes as long as a price.
            asked += 1;
            hurries
                || (asked % A_LOOK == 0 && p.clock.hurries())
                || price[0] == 0
                    && (price[1] == 0 || !k.has_near)
                    && (price[2] == 0 || !k.has_roomy)
        };
        let homes = &p.services[s as usize].homes;
        let mut best: Option<([i64; 5], u32)> = None;
        for home in homes {
            if let Some(new) = price(&mut self.state, *home) {
                best = Some(best.map_or(new, |b| b.min(new)));
            }
        }
        if best.as_ref().is_some_and(|(b, _)| good(b)) {
            return best;
        }
        let turn = self.dice.below(p.hosts.len());
        self.state.by_room(kind, units * k.tensor, turn, &mut |state, h| {
            let Some(new) = price(state, h) else { return false };
            if best.as_ref().is_none_or(|(b, _)| new.0 < *b) {
                best = Some(new);
            }
            // Those that have the weights were asked before.
            good(&new.0)
        });
        best
    }

    /// Drives `slot` onto `host`: what is in the way goes elsewhere. The state is changed, for better or worse.
    fn drive(&mut self, slot: u32, host: u32, depth: u32) {
        let p = self.p;
        let service = &p.services[p.slots[slot as usize] as usize];
        let kinds = || service.kinds.iter().copied().filter(|k| p.eligible(*k, host) != 0);
        let turn = self.dice.below(kinds().count());
        let Some(kind) = kinds().nth(turn) else { return };
        let k = &p.kinds[kind as usize];
        let room = p.hosts[host as usize].room;
        let fits = |m: &&u32| k.units / **m * k.tensor <= room;
        let Some(split) = k.splits.iter().find(fits).copied() else { return };
        let units = k.units / split;
        let near = if split > 1 && self.dice.below(4) > 0 {
            self.cheap_targets(slot, kind, units, host, split as usize)
        } else {
            None
        };
        let hosts = near.or_else(|| self.targets(kind, units, host, split as usize));
        let Some(hosts) = hosts else { return };
        self.take(slot);
        let mut out: Vec<u32> = Vec::new();
        for host in &hosts {
            for _ in 0..=p.hosts[*host as usize].room {
                let s = p.slots[slot as usize];
                if self.state.price(s, kind, units, *host).is_some() {
                    break;
                }
                let wanted = (units * k.tensor).saturating_sub(self.state.room(*host)).max(1);
                let Some(victim) = self.victim(*host, wanted) else { break };
                self.take(victim);
                out.push(victim);
            }
        }
        self.put(slot, Position { kind, keep: NONE, hosts });
        self.resettle(out, depth);
    }

    /// Finds other places for those that were driven out, as long as that can still come to any good.
    fn resettle(&mut self, mut out: Vec<u32>, depth: u32) {
        let p = self.p;
        out.sort_by_key(|s| std::cmp::Reverse(self.sizes[*s as usize]));
        for other in out {
            if self.placed && !self.bar.promises(&self.state, &self.owed) {
                return;
            }
            if self.settle(other) {
                continue;
            }
            if depth == 0 {
                if self.placed {
                    return;
                }
                continue;
            }
            let service = &p.services[p.slots[other as usize] as usize];
            let hosts = &service.homes;
            let left = if self.left.is_empty() || self.dice.below(2) == 0 {
                None
            } else {
                Some(self.left[self.dice.below(self.left.len())])
            };
            let may = |h: &u32| service.kinds.iter().any(|k| p.eligible(*k, *h) != 0);
            let to = if let Some(left) = left.filter(may) {
                left
            } else if hosts.is_empty() || self.dice.below(2) == 0 {
                self.any_host(other)
            } else {
                hosts[self.dice.below(hosts.len())]
            };
            self.drive(other, to, depth - 1);
        }
    }

    /// A host that a slot may use, if there is one.
    fn any_host(&mut self, slot: u32) -> u32 {
        let p = self.p;
        let kinds = &p.services[p.slots[slot as usize] as usize].kinds;
        let mut host = self.dice.below(p.hosts.len()) as u32;
        for _ in 0..TRIES {
            if kinds.iter().any(|k| p.eligible(*k, host) != 0) {
                break;
            }
            host = self.dice.below(p.hosts.len()) as u32;
        }
        host
    }

    /// The hosts of a replica of which one is given: the others in its rack, if that has so many.
    fn targets(&mut self, kind: u32, units: u32, host: u32, split: usize) -> Option<Few> {
        let p = self.p;
        let mut hosts = Few::default();
        hosts.push(host);
        let gpus = units * p.kinds[kind as usize].tensor;
        let fits = |h: u32| p.eligible(kind, h) != 0 && p.hosts[h as usize].room >= gpus;
        for near in [true, false] {
            let rack = &p.in_rack[p.hosts[host as usize].rack as usize];
            let count = if near { rack.len() } else { p.hosts.len() };
            if hosts.len() == split {
                break;
            }
            let turn = self.dice.below(count);
            for n in 0..count {
                let n = (n + turn) % count;
                let h = if near { rack[n] } else { n as u32 };
                if hosts.len() < split && !hosts.contains(&h) && fits(h) {
                    hosts.push(h);
                }
            }
        }
        (hosts.len() == split).then_some(hosts)
    }

    /// Who goes to make room for so many GPUs: one that would rather be elsewhere and is just large enough, now and
    /// then just anyone.
    fn victim(&mut self, host: u32, wanted: u32) -> Option<u32> {
        let p = self.p;
        let count = self.state.parts(host).len();
        let turn = self.dice.below(count);
        let any = self.dice.below(3) == 0;
        let parts = self.state.parts(host);
        if let Some(part) = parts.get(turn).filter(|part| any && part.pin == NONE) {
            return Some(part.slot);
        }
        (0..count)
            .map(|i| &parts[(i + turn) % count])
            .filter(|part| part.pin == NONE || !p.incumbents[part.pin as usize].must_stay)
            .min_by_key(|part| {
                let service = &p.services[p.slots[part.slot as usize] as usize];
                let home = service.bytes > 0 && service.has[host as usize];
                (part.pin != NONE, home, self.state.size(host, part).abs_diff(wanted))
            })
            .map(|part| part.slot)
    }

    /// One attempt. `heat` is how many bytes more are now and then accepted.
    pub fn attempt(&mut self, heat: f64) {
        let p = self.p;
        if p.slots.is_empty() || p.hosts.is_empty() {
            return;
        }
        self.bar.set(&self.state, heat, &mut self.dice);
        self.owed = Levels::default();
        let slot = self.pick();
        self.left.clear();
        if let Some(at) = &self.state.at[slot as usize] {
            self.left.extend_from_slice(&at.hosts);
        }
        self.placed = self.state.at[slot as usize].is_some();
        let service = &p.services[p.slots[slot as usize] as usize];
        if matches!(&self.state.at[slot as usize],
            Some(Position { keep, .. }) if *keep != NONE && p.incumbents[*keep as usize].must_stay)
        {
            return;
        }
        let wide = matches!(&self.state.at[slot as usize], Some(at) if at.hosts.len() > 1);
        let at_random = service.homes.is_empty() || self.dice.below(4) == 0;
        let host = if at_random || (wide && self.dice.below(2) == 0) {
            self.any_host(slot)
        } else {
            // One where it is not.
            let (homes, turn) = (&service.homes, self.dice.below(service.homes.len()));
            let mut from = (0..homes.len()).map(|i| homes[(i + turn) % homes.len()]);
            from.find(|h| !self.left.contains(h)).unwrap_or(homes[turn])
        };
        let here = |at: &Position| at.hosts.contains(&host);
        if self.state.at[slot as usize].as_ref().is_some_and(here) {
            return;
        }
        self.undo.clear();
        let moved = self.state.at[slot as usize].as_ref().is_none_or(|at| at.keep == NONE);
        let back = if moved { self.could_stay(service) } else { None };
        if let Some(incumbent) = back
            && self.dice.below(2) == 0
        {
            self.drive_back(slot, incumbent);
            if !self.bar.accepts(&self.state) {
                self.take_back();
            }
            return;
        }
        let exchanges = if self.placed {
            wide && self.dice.below(5) < 2 && self.trade(slot, host)
        } else {
            self.dice.below(2) == 0 && self.supplant(slot)
        };
        if exchanges {
            if !self.bar.accepts(&self.state) {
                self.take_back();
            }
            return;
        }
        let depth = 1
            + u32::from(self.dice.below(2) == 0)
            + u32::from(self.state.at[slot as usize].is_none());
        self.drive(slot, host, depth);
        if self.state.at[slot as usize].is_none() {
            self.settle(slot);
        }
        self.come_home();
        if !self.bar.accepts(&self.state) {
            self.take_back();
        }
    }

    /// A slot that has a reason to be elsewhere, mostly. Those without a place are few and count for most.
    fn pick(&mut self) -> u32 {
        if !self.waiting.is_empty() && self.dice.below(10) == 0 {
            return self.waiting[self.dice.below(self.waiting.len())];
        }
        if self.restless.is_empty() || self.dice.below(8) == 0 {
            return self.dice.below(self.p.slots.len()) as u32;
        }
        let one = self.restless[self.dice.below(self.restless.len())];
        if self.dice.below(3) == 0 {
            return one;
        }
        let other = self.restless[self.dice.below(self.restless.len())];
        if self.copied(other) > self.copied(one) { other } else { one }
    }

    /// Bytes that a slot copies where it is, whoever shares them.
    fn copied(&self, slot: u32) -> i64 {
        let service = &self.p.services[self.p.slots[slot as usize] as usize];
        let Some(at) = &self.state.at[slot as usize] else { return i64::MAX };
        service.bytes * at.hosts.iter().filter(|h| !service.has[**h as usize]).count() as i64
    }

    /// Looks for the slots that have a reason to be elsewhere.
    pub fn look_around(&mut self) {
        let p = self.p;
        self.restless.clear();
        self.waiting.clear();
        self.strays.clear();
        for (slot, at) in self.state.at.iter().enumerate() {
            let service = &p.services[p.slots[slot] as usize];
            let moved = at.as_ref().is_some_and(|at| at.keep == NONE);
            let stray = if moved { self.could_stay(service) } else { None };
            self.strays.extend(stray.map(|incumbent| (slot as u32, incumbent)));
            let restless = at.as_ref().is_none_or(|at| {
                let rack = |h: &u32| p.hosts[*h as usize].rack;
                let away = |h: &u32| service.bytes > 0 && !service.has[*h as usize];
                at.keep == NONE
                    && ((!service.homes.is_empty() && at.hosts.iter().any(away))
                        || at.hosts.iter().any(|h| rack(h) != rack(&at.hosts[0]))
                        || stray.is_some())
            });
            if restless {
                self.restless.push(slot as u32);
                if at.is_none() && !service.outgoing {
                    self.waiting.push(slot as u32);
                }
            }
        }
    }

    /// A replica that runs, could stay, and does not.
    fn could_stay(&self, service: &Service) -> Option<u32> {
        let mut of = service.incumbents.iter().copied();
        of.find(|i| self.p.incumbents[*i as usize].can_stay && !self.state.stays(*i))
    }

    /// Replicas that had to move for the slot of this attempt stay after all, now that it is elsewhere.
    fn come_home(&mut self) {
        let p = self.p;
        for n in 0..self.strays.len() {
            let (slot, incumbent) = self.strays[n];
            let pins = &p.incumbents[incumbent as usize].pins;
            if self.state.stays(incumbent) || !pins.iter().any(|pin| self.left.contains(&pin.host))
            {
                continue;
            }
            let Some(old) = self.state.at[slot as usize].clone() else { continue };
            if old.keep == NONE {
                self.take(slot);
                let position = self.staying(p.slots[slot as usize], incumbent);
                if !self.put(slot, position) {
                    self.put(slot, old);
                }
            }
        }
    }

    /// Lets a replica that runs stay after all: what lies on its GPUs goes elsewhere.
    fn drive_back(&mut self, slot: u32, incumbent: u32) {
        let p = self.p;
        self.take(slot);
        let mut out = Vec::new();
        let pins = &p.incumbents[incumbent as usize].pins;
        let position = self.staying(p.slots[slot as usize], incumbent);
        for pin in pins {
            let wanted: u32 = pin.cells.iter().map(|(_, n)| n).sum();
            while self.state.room(pin.host) < wanted {
                let short = wanted - self.state.room(pin.host);
                let Some(victim) = self.victim(pin.host, short) else { break };
                self.take(victim);
                out.push(victim);
            }
        }
        // Where the GPUs differ, more may have to go.
        while !self.put(slot, position.clone()) {
            let loose = pins.iter().find_map(|pin| self.victim(pin.host, 1));
            let Some(victim) = loose else { break };
            self.take(victim);
            out.push(victim);
        }
        self.resettle(out, 0);
    }
}

fn grain(p: &Problem<'_>) -> f64 {
    let sizes: Vec<f64> = p.services.iter().map(|s| s.bytes as f64).filter(|b| *b > 0.0).collect();
    if sizes.is_empty() { 1.0 } else { sizes.iter().sum::<f64>() / sizes.len() as f64 }
}

/// The best placement so far.
pub(super) struct Best {
    pub score: Score,
    pub at: Vec<Option<Position>>,
}

/// Searches until `progress` (0 at the beginning, 1 at the end) says that it is over or nothing can be better than
/// `ideal`. Gives the best and the number of attempts.
pub(super) fn improve(
    search: &mut Search<'_>,
    ideal: &Score,
    progress: &mut dyn FnMut(u64) -> f64,
) -> (Best, u64) {
    let mut best = Best { score: search.state.score(), at: search.state.at.clone() };
    let grain = search.bar.grain;
    let mut steps = 0;
    let mut done = progress(0);
    while done < 1.0 && best.score > *ideal {
        // The last part is cold: downhill only, all levels strictly in their order.
        let heat =
            if done > HOT { 0.0 } else { grain * HOTTEST * (COOLEST / HOTTEST).powf(done / HOT) };
        search.look_around();
        for n in 1..=64 {
            search.attempt(heat);
            steps += 1;
            // Where GPUs differ much, an attempt can take a millisecond.
            if n % 8 == 0 && progress(steps) >= 1.0 {
                break;
            }
        }
        let now = (search.state.unplaced(), search.state.levels());
        if now < (best.score.unplaced.as_slice(), best.score.levels) {
            best = Best { score: search.state.score(), at: search.state.at.clone() };
        }
        done = progress(steps);
    }
    (best, steps)
}
