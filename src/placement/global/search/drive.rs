//! Driving out what is in the way, and finding other places for it.

use super::super::compile::NONE;
use super::super::few::Few;
use super::super::layout::Part;
use super::super::state::Position;
use super::Search;
use super::foresee::Target;

impl Search<'_> {
    /// Drives `slot` onto `host`: what is in the way goes elsewhere. The state is changed, for better or worse.
    pub(super) fn drive(&mut self, slot: u32, host: u32, depth: u32) {
        if let Some(target) = self.choose(slot, host) {
            self.drive_to(&target, Vec::new(), depth);
        }
    }

    /// Where exactly a slot is driven that is to be on this host; none if it cannot be there.
    pub(super) fn choose(&mut self, slot: u32, host: u32) -> Option<Target> {
        let p = self.p;
        let service = &p.services[p.slots[slot as usize] as usize];
        let kinds = || service.kinds.iter().copied().filter(|k| p.eligible(*k, host) != 0);
        let turn = self.dice.below(kinds().count());
        let kind = kinds().nth(turn)?;
        let k = &p.kinds[kind as usize];
        let room = p.hosts[host as usize].room;
        let fits = |m: &&u32| k.units / **m * k.tensor <= room;
        let split = k.splits.iter().find(fits).copied()?;
        let units = k.units / split;
        let near = if split > 1 && self.dice.below(4) > 0 {
            self.cheap_targets(slot, kind, units, host, split as usize)
        } else {
            None
        };
        let hosts = near.or_else(|| self.targets(kind, units, host, split as usize))?;
        Some(Target { slot, kind, units, hosts })
    }

    /// Drives a slot onto the hosts of its target: first those go that were foreseen, then whoever is still in the way.
    pub(super) fn drive_to(&mut self, target: &Target, foreseen: Vec<u32>, depth: u32) {
        let p = self.p;
        let (slot, kind, units) = (target.slot, target.kind, target.units);
        let s = p.slots[slot as usize];
        let gpus = units * p.kinds[kind as usize].tensor;
        self.take(slot);
        let mut out = foreseen;
        // One that had to go before is found a place by whom it had to go for.
        out.retain(|victim| self.state.at[*victim as usize].is_some());
        for victim in &out {
            self.take(*victim);
        }
        for host in &target.hosts {
            for _ in 0..=p.hosts[*host as usize].room {
                if self.state.price(s, kind, units, *host).is_some() {
                    break;
                }
                let wanted = gpus.saturating_sub(self.state.room(*host)).max(1);
                let Some(victim) = self.victim(*host, wanted, false) else { break };
                self.take(victim);
                out.push(victim);
            }
        }
        self.put(slot, Position { kind, keep: NONE, hosts: target.hosts.clone() });
        self.resettle(out, depth);
    }

    /// Finds other places for those that were driven out, as long as that can still come to any good.
    fn resettle(&mut self, mut out: Vec<u32>, depth: u32) {
        out.sort_by_key(|s| std::cmp::Reverse(self.sizes[*s as usize]));
        for other in out {
            if self.placed && !self.bar.promises(&self.state, &self.owed) {
                return;
            }
            if self.settle(other) {
                continue;
            }
            if depth == 0 {
                if self.gives_up(other) {
                    return;
                }
                continue;
            }
            if let Some((target, victims)) = self.foresight.take(other) {
                self.drive_to(&target, victims, depth - 1);
            } else if let Some(to) = self.next_host(other) {
                self.drive(other, to, depth - 1);
            }
            if self.is_dead || (self.state.at[other as usize].is_none() && self.gives_up(other)) {
                return;
            }
        }
    }

    /// A host for one that was driven out and for which there is no room: where the slot of this attempt was, one that
    /// has its weights, or any.
    pub(super) fn next_host(&mut self, other: u32) -> Option<u32> {
        let p = self.p;
        let service = &p.services[p.slots[other as usize] as usize];
        let hosts = &service.homes;
        let left = if self.left.is_empty() || self.dice.below(2) == 0 {
            None
        } else {
            self.left.get(self.dice.below(self.left.len())).copied()
        };
        let may = |h: &u32| service.kinds.iter().any(|k| p.eligible(*k, *h) != 0);
        match left.filter(may) {
            Some(left) => Some(left),
            None if hosts.is_empty() || self.dice.below(2) == 0 => Some(self.any_host(other)),
            None => hosts.get(self.dice.below(hosts.len())).copied(),
        }
    }

    /// Whether nothing can come of an attempt that leaves this one without a place.
    fn gives_up(&mut self, other: u32) -> bool {
        let p = self.p;
        let service = |slot: u32| &p.services[p.slots[slot as usize] as usize];
        // The slot of the attempt is looked after at its end.
        if service(other).outgoing || other == self.slot {
            return false;
        }
        let (lost, won) = (service(other).class, service(self.slot).class);
        self.is_dead |= self.placed || lost < won || (lost == won && self.lost_one);
        self.lost_one |= lost == won;
        self.is_dead
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
    /// then just anyone. `foreseen`: nobody who will be gone already.
    pub(super) fn victim(&mut self, host: u32, wanted: u32, foreseen: bool) -> Option<u32> {
        let p = self.p;
        let count = self.state.parts(host).len();
        let turn = self.dice.below(count);
        let any = self.dice.below(3) == 0;
        let parts = self.state.parts(host);
        let is_there = |part: &Part| !foreseen || !self.foresight.is_gone(part.slot);
        let first = parts.get(turn).filter(|part| any && part.pin == NONE && is_there(part));
        if let Some(part) = first {
            return Some(part.slot);
        }
        (0..count)
            .map(|i| &parts[(i + turn) % count])
            .filter(|part| part.pin == NONE || !p.incumbents[part.pin as usize].must_stay)
            .filter(|part| is_there(part))
            .min_by_key(|part| {
                let service = &p.services[p.slots[part.slot as usize] as usize];
                let home = service.bytes > 0 && service.has[host as usize];
                (part.pin != NONE, home, part.gpus.abs_diff(wanted))
            })
            .map(|part| part.slot)
    }

    /// Replicas that had to move for the slot of this attempt stay after all, now that it is elsewhere.
    pub(super) fn come_home(&mut self) {
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
    pub(super) fn drive_back(&mut self, slot: u32, incumbent: u32) {
        let p = self.p;
        self.take(slot);
        let mut out = Vec::new();
        let pins = &p.incumbents[incumbent as usize].pins;
        let position = self.staying(p.slots[slot as usize], incumbent);
        for pin in pins {
            let wanted: u32 = pin.cells.iter().map(|(_, n)| n).sum();
            while self.state.room(pin.host) < wanted {
                let short = wanted - self.state.room(pin.host);
                let Some(victim) = self.victim(pin.host, short, false) else { break };
                self.take(victim);
                out.push(victim);
            }
        }
        // Where the GPUs differ, more may have to go.
        while !self.put(slot, position.clone()) {
            let loose = pins.iter().find_map(|pin| self.victim(pin.host, 1, false));
            let Some(victim) = loose else { break };
            self.take(victim);
            out.push(victim);
        }
        self.resettle(out, 0);
    }
}
