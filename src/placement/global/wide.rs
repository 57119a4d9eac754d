//! Replicas over several hosts. They are few, but each copies its weights to every host, and all of it must fit into one
//! rack at once: drawn at random, hosts for it are seldom found, and what is found drives out too much. In farms that are
//! full, most of what separates a good answer from the best is where these lie.
#![allow(clippy::indexing_slicing)] // hosts, slots and kinds are numbered by `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use super::compile::{NONE, span_cost};
use super::few::Few;
use super::search::{Search, TRIES};
use super::state::Position;

/// Hosts that are looked at for one replica.
const MOST: usize = 256;
/// Hosts of a rack that are looked at beside a given one.
const NEAR: usize = 32;

/// What it costs to drive a replica out, in mean bytes of a service's weights: one over several hosts, anyone,
/// and each GPU more than are wanted. Beside that goes what it would copy elsewhere.
const WIDE: f64 = 2.0;
const ANYONE: f64 = 0.3;
const SPARE: f64 = 0.1;
/// And what is drawn on top, so that it is not always the same one.
const CHANCE: f64 = 0.5;

impl Search<'_> {
    /// The cheapest hosts of one rack that have room.
    pub(super) fn in_one_rack(
        &mut self,
        slot: u32,
        kind: u32,
        split: u32,
    ) -> Option<([i64; 5], Few)> {
        let p = self.p;
        if self.hurries || p.clock.hurries() {
            return None;
        }
        let k = &p.kinds[kind as usize];
        let units = k.units / split;
        let (gpus, split) = (units * k.tensor, split as usize);
        let s = p.slots[slot as usize];
        let rack = |h: u32| p.hosts[h as usize].rack;
        let mut hosts = Vec::new();
        self.state.roomy(kind, gpus, self.dice.below(p.hosts.len()), MOST, &mut hosts);
        if hosts.len() < split {
            return None;
        }
        if hosts.len() == MOST {
            // There are more: those near the weights are among them.
            let homes = p.services[s as usize].homes.iter().take(4);
            hosts.extend(homes.flat_map(|h| p.in_rack[rack(*h) as usize].iter().take(NEAR)));
            hosts.sort_unstable();
            hosts.dedup();
        }
        hosts.sort_by_key(|h| rack(*h));
        let mut best: Option<([i64; 5], Few)> = None;
        let mut prices: Vec<([i64; 5], u32)> = Vec::new();
        for of_rack in hosts.chunk_by(|a, b| rack(*a) == rack(*b)) {
            if of_rack.len() < split {
                continue;
            }
            prices.clear();
            for h in of_rack {
                prices.extend(self.state.price(s, kind, units, *h).map(|price| (price, *h)));
            }
            prices.sort_unstable();
            let Some(chosen) = prices.get(..split) else { continue };
            let mut total = [0; 5];
            for (price, _) in chosen {
                for (t, p) in total.iter_mut().zip(price) {
                    *t += p;
                }
            }
            total[1] += span_cost(split, 1);
            if best.as_ref().is_none_or(|(b, _)| total < *b) {
                best = Some((total, chosen.iter().map(|(_, h)| *h).collect()));
            }
        }
        best
    }

    /// The hosts of a replica of which one is given: of the others in its rack those where it costs least to drive out
    /// what is in the way, and where its weights are. Its own places count as free. None if there are not so many.
    pub(super) fn cheap_targets(
        &mut self,
        slot: u32,
        kind: u32,
        units: u32,
        host: u32,
        split: usize,
    ) -> Option<Few> {
        let p = self.p;
        let gpus = units * p.kinds[kind as usize].tensor;
        let near = p.hosts[host as usize].rack;
        let rack = &p.in_rack[near as usize];
        let turn = self.dice.below(rack.len());
        let own: Few = match &self.state.at[slot as usize] {
            Some(at) => at.hosts.iter().copied().collect(),
            None => Few::default(),
        };
        let mine = own.iter().copied().filter(|h| p.hosts[*h as usize].rack == near);
        let others = (0..rack.len()).map(|i| rack[(i + turn) % rack.len()]);
        let others = others.filter(|h| !own.contains(h)).take(NEAR);
        let fits =
            |h: &u32| *h != host && p.eligible(kind, *h) != 0 && p.hosts[*h as usize].room >= gpus;
        let mut found: Vec<(f64, u32)> = Vec::new();
        for h in mine.chain(others).filter(fits) {
            let chance = self.bar.grain * CHANCE * self.dice.unit();
            found.push((self.clearing(slot, gpus, h) + chance, h));
        }
        if found.len() + 1 < split {
            return None;
        }
        found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let chosen = found.iter().take(split - 1).map(|(_, h)| *h);
        Some(std::iter::once(host).chain(chosen).collect())
    }

    /// What it costs, about, to have so many GPUs of a host for a slot, in bytes.
    fn clearing(&self, slot: u32, gpus: u32, host: u32) -> f64 {
        let p = self.p;
        let grain = self.bar.grain;
        let service = &p.services[p.slots[slot as usize] as usize];
        let copy = if service.has[host as usize] { 0.0 } else { service.bytes as f64 };
        let parts = self.state.parts(host);
        let mine = parts.iter().filter(|part| part.slot == slot);
        let own: u32 = mine.map(|part| part.gpus).sum();
        let short = gpus.saturating_sub(self.state.room(host) + own);
        if short == 0 {
            return copy;
        }
        let (mut one, mut all) = (f64::INFINITY, 0.0);
        for part in parts.iter().filter(|part| part.slot != slot) {
            let other = &p.services[p.slots[part.slot as usize] as usize];
            let size = part.gpus;
            let lies_wide =
                self.state.at[part.slot as usize].as_ref().is_some_and(|at| at.hosts.len() > 1);
            let home = if other.has[host as usize] { other.bytes as f64 } else { 0.0 };
            let cost = home
                + grain * if lies_wide { WIDE } else { 0.0 }
                + grain * SPARE * f64::from(size.abs_diff(short));
            all += cost;
            if size >= short {
                one = one.min(cost);
            }
        }
        copy + one.min(all) + grain * ANYONE
    }

    /// Two replicas over equally many hosts take each other's places: `slot` and one that lies in the rack of `host`.
    /// False, and nothing is changed, if there is none.
    pub(super) fn trade(&mut self, slot: u32, host: u32) -> bool {
        let p = self.p;
        let loose = |at: &&Position| at.keep == NONE;
        let Some(mine) = self.state.at[slot as usize].clone().filter(|at| loose(&at)) else {
            return false;
        };
        let near = p.hosts[host as usize].rack;
        let shape = |at: &Position| {
            let kind = &p.kinds[at.kind as usize];
            (kind.tensor, kind.units, at.hosts.len())
        };
        let kind_on = |slot: u32, hosts: &[u32]| {
            let kinds = &p.services[p.slots[slot as usize] as usize].kinds;
            kinds.iter().copied().find(|k| hosts.iter().all(|h| p.eligible(*k, *h) != 0))
        };
        let count = self.wide.len();
        let turn = self.dice.below(count);
        for n in 0..count {
            let other = self.wide[(n + turn) % count];
            let Some(at) = self.state.at[other as usize].as_ref().filter(loose) else { continue };
            let is_near = at.hosts.iter().any(|h| p.hosts[*h as usize].rack == near);
            if other == slot || !is_near || shape(at) != shape(&mine) {
                continue;
            }
            let theirs = at.clone();
            let kinds = (kind_on(slot, &theirs.hosts), kind_on(other, &mine.hosts));
            let (Some(kind), Some(other_kind)) = kinds else { continue };
            self.take(slot);
            self.take(other);
            // If one does not fit, what comes of it is not accepted.
            self.put(slot, Position { kind, ..theirs });
            self.put(other, Position { kind: other_kind, ..mine });
            return true;
        }
        false
    }

    /// One without a place takes the room of one that has no higher priority and finds another, or none. False, and
    /// nothing is changed, if none was found.
    pub(super) fn supplant(&mut self, slot: u32) -> bool {
        let p = self.p;
        let class = p.services[p.slots[slot as usize] as usize].class;
        for _ in 0..TRIES {
            let other = self.dice.below(p.slots.len()) as u32;
            let service = &p.services[p.slots[other as usize] as usize];
            let loose = self.state.at[other as usize].as_ref().is_some_and(|at| at.keep == NONE);
            if loose
                && service.class >= class
                && self.sizes[other as usize] >= self.sizes[slot as usize]
            {
                self.take(other);
                self.settle(slot);
                self.settle(other);
                return true;
            }
        }
        false
    }
}
