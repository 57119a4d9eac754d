//! Finds a good placement at once and better ones as long as it may: greedy first, then slots are put where they
//! would rather be, what is in the way is driven out and finds another place, and what makes the whole worse is
//! taken back (but for bytes, where a cooling temperature allows some).
#![allow(clippy::indexing_slicing)] // hosts, slots and kinds are numbered by `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use super::compile::{NONE, Problem};
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
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The search and what it knows.
pub(super) struct Search<'a> {
    pub state: State<'a>,
    p: &'a Problem,
    dice: Dice,
    /// What was done in this attempt, to take it back.
    undo: Vec<Undo>,
    /// Before this attempt.
    before: Vec<i64>,
}

enum Undo {
    Placed(u32),
    Removed(u32, Position),
}

/// GPUs of a slot at least.
fn gpus(p: &Problem, slot: u32) -> u32 {
    let kinds = &p.services[p.slots[slot as usize] as usize].kinds;
    kinds.iter().map(|k| &p.kinds[*k as usize]).map(|k| k.tensor * k.units).min().unwrap_or(0)
}

impl<'a> Search<'a> {
    pub fn new(p: &'a Problem) -> Self {
        Self {
            state: State::new(p),
            p,
            dice: Dice::new(0x9E37_79B9_7F4A_7C15),
            undo: Vec::new(),
            before: Vec::new(),
        }
    }

    /// A first placement: what runs stays, the rest goes by priority, the largest first. Of a priority for which
    /// there is not room the smallest are tried.
    pub fn construct(&mut self) {
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
            slots.sort_by_key(|s| (gpus(p, *s), *s));
            let (mut now, mut later) = (Vec::new(), Vec::new());
            for slot in slots {
                let size = i64::from(gpus(p, slot));
                if size <= room {
                    room -= size;
                    now.push(slot);
                } else {
                    later.push(slot);
                }
            }
            now.sort_by_key(|s| (std::cmp::Reverse(gpus(p, *s)), *s));
            for slot in now.into_iter().chain(later) {
                self.settle(slot);
            }
            room = (0..p.hosts.len() as u32).map(|h| i64::from(self.state.room(h))).sum();
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

    fn put(&mut self, slot: u32, position: Position) -> bool {
        let done = self.state.place(slot, position);
        if done {
            self.undo.push(Undo::Placed(slot));
        }
        done
    }

    fn take(&mut self, slot: u32) {
        if let Some(position) = self.state.remove(slot) {
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
    fn settle(&mut self, slot: u32) -> bool {
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
    ) -> Option<([i64; 5], Vec<u32>)> {
        let units = self.p.kinds[kind as usize].units / split;
        let mut hosts: Vec<u32> = Vec::with_capacity(split as usize);
        let mut total = [0; 5];
        if let Some(first) = first {
            total = self.state.price(slot, kind, units, first)?;
            hosts.push(first);
        }
        let count = self.p.hosts.len();
        while hosts.len() < split as usize {
            let turn = self.dice.below(count);
            let mut best: Option<([i64; 5], u32)> = None;
            let home = !self.p.services[self.p.slots[slot as usize] as usize].homes.is_empty();
            for n in 0..count {
                let h = ((n + turn) % count) as u32;
                if hosts.contains(&h) {
                    continue;
                }
                let Some(mut price) = self.state.price(slot, kind, units, h) else { continue };
                if let Some(near) = hosts.first() {
                    let rack = |h: u32| self.p.hosts[h as usize].rack;
                    price[1] += i64::from(rack(*near) != rack(h));
                }
                if best.is_none_or(|(b, _)| price < b) {
                    best = Some((price, h));
                    if !home && price[..3] == [0, 0, 0] && price[4] == 0 {
                        break;
                    }
                }
            }
            let (price, h) = best?;
            for (t, p) in total.iter_mut().zip(price) {
                *t += p;
            }
            hosts.push(h);
        }
        total[1] += 3 * (i64::from(split) - 1);
        Some((total, hosts))
    }

    /// Drives `slot` onto `host`: what is in the way goes elsewhere. The state is changed, for better or worse.
    fn drive(&mut self, slot: u32, host: u32, depth: u32) {
        let p = self.p;
        let service = &p.services[p.slots[slot as usize] as usize];
        let kinds = service.kinds.iter().copied().filter(|k| p.eligible(*k, host) != 0);
        let kinds: Vec<u32> = kinds.collect();
        let Some(kind) = kinds.get(self.dice.below(kinds.len())).copied() else { return };
        let k = &p.kinds[kind as usize];
        let room = p.hosts[host as usize].room;
        let fits = |m: &&u32| k.units / **m * k.tensor <= room;
        let Some(split) = k.splits.iter().find(fits).copied() else { return };
        self.take(slot);
        let mut out: Vec<u32> = Vec::new();
        for _ in 0..=room {
            let found = self.cheapest_from(slot, kind, split, host);
            if let Some(hosts) = found
                && self.put(slot, Position { kind, keep: NONE, hosts })
            {
                break;
            }
            // Who goes: at random, rather one that is just large enough.
            let wanted = (k.units / split * k.tensor).saturating_sub(self.state.room(host)).max(1);
            let parts = self.state.parts(host);
            if parts.is_empty() {
                break;
            }
            let turn = self.dice.below(parts.len());
            let parts = self.state.parts(host);
            let victim = (0..parts.len())
                .map(|i| &parts[(i + turn) % parts.len()])
                .filter(|part| part.pin == NONE || !p.incumbents[part.pin as usize].must_stay)
                .min_by_key(|part| {
                    let size = self.state.size(host, part);
                    (part.pin != NONE, size.abs_diff(wanted))
                })
                .map(|part| part.slot);
            let any = self.dice.below(3) == 0;
            let victim = match parts.get(turn).filter(|part| part.pin == NONE && any) {
                Some(part) => Some(part.slot),
                None => victim,
            };
            let Some(victim) = victim else { break };
            self.take(victim);
            out.push(victim);
        }
        out.sort_by_key(|s| std::cmp::Reverse(gpus(p, *s)));
        for other in out {
            if self.settle(other) || depth == 0 {
                continue;
            }
            let hosts = &p.services[p.slots[other as usize] as usize].homes;
            let to = if hosts.is_empty() || self.dice.below(2) == 0 {
                self.dice.below(p.hosts.len()) as u32
            } else {
                hosts[self.dice.below(hosts.len())]
            };
            self.drive(other, to, depth - 1);
        }
    }

    fn cheapest_from(&mut self, slot: u32, kind: u32, split: u32, host: u32) -> Option<Vec<u32>> {
        if split == 1 {
            let units = self.p.kinds[kind as usize].units;
            return self.state.price(slot, kind, units, host).map(|_| vec![host]);
        }
        self.cheapest(slot, kind, split, Some(host)).map(|(_, hosts)| hosts)
    }

    /// One attempt. `heat` is how many bytes more are now and then accepted.
    pub fn attempt(&mut self, heat: f64) {
        let p = self.p;
        if p.slots.is_empty() || p.hosts.is_empty() {
            return;
        }
        self.before.clear();
        self.before.extend_from_slice(self.state.unplaced());
        let levels = self.state.levels();
        let slot = self.pick();
        let service = &p.services[p.slots[slot as usize] as usize];
        if matches!(&self.state.at[slot as usize],
            Some(Position { keep, .. }) if *keep != NONE && p.incumbents[*keep as usize].must_stay)
        {
            return;
        }
        let host = if service.homes.is_empty() || self.dice.below(4) == 0 {
            self.dice.below(p.hosts.len()) as u32
        } else {
            service.homes[self.dice.below(service.homes.len())]
        };
        let here = |at: &Position| at.hosts.contains(&host);
        if self.state.at[slot as usize].as_ref().is_some_and(here) {
            return;
        }
        self.undo.clear();
        let depth =
            u32::from(self.dice.below(3) == 0) + u32::from(self.state.at[slot as usize].is_none());
        self.drive(slot, host, depth);
        if self.state.at[slot as usize].is_none() {
            self.settle(slot);
        }
        if !self.accepts(levels, heat) {
            self.take_back();
        }
    }

    fn accepts(&mut self, before: Levels, heat: f64) -> bool {
        let now = self.state.levels();
        let upper = |l: &Levels| (l.crowded, l.moves, l.link, l.tight);
        let order = self.state.unplaced().cmp(self.before.as_slice());
        let order = order.then_with(|| upper(&now).cmp(&upper(&before)));
        if order.is_ne() {
            return order.is_lt();
        }
        let more = now.bytes - before.bytes;
        if heat <= 0.0 {
            return (now.bytes, now.closed) <= (before.bytes, before.closed);
        }
        more <= 0 || self.dice.unit() < (-(more as f64) / heat).exp()
    }

    /// A slot that has a reason to be elsewhere, mostly.
    fn pick(&mut self) -> u32 {
        let count = self.p.slots.len();
        let mut slot = 0;
        for _ in 0..8 {
            slot = self.dice.below(count) as u32;
            let Some(at) = &self.state.at[slot as usize] else { return slot };
            let service = &self.p.services[self.p.slots[slot as usize] as usize];
            let away = service.bytes > 0 && at.hosts.iter().any(|h| !service.has[*h as usize]);
            if (away && !service.homes.is_empty()) || self.dice.below(8) == 0 {
                return slot;
            }
        }
        slot
    }

    /// The mean bytes of a service that has any: what a temperature is measured in.
    pub fn grain(&self) -> f64 {
        let sizes: Vec<f64> =
            self.p.services.iter().map(|s| s.bytes as f64).filter(|b| *b > 0.0).collect();
        if sizes.is_empty() { 0.0 } else { sizes.iter().sum::<f64>() / sizes.len() as f64 }
    }
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
    let grain = search.grain();
    let mut steps = 0;
    let mut done = progress(0);
    while done < 1.0 && best.score > *ideal {
        // The last fifth is cold: downhill only, with the hole.
        let heat = if done > 0.8 { 0.0 } else { grain * 0.5 * (0.01f64).powf(done / 0.8) };
        for _ in 0..64 {
            search.attempt(heat);
            steps += 1;
        }
        let now = (search.state.unplaced(), search.state.levels());
        if now < (best.score.unplaced.as_slice(), best.score.levels) {
            best = Best { score: search.state.score(), at: search.state.at.clone() };
        }
        done = progress(steps);
    }
    (best, steps)
}
