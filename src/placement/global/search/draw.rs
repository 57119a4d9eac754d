//! Drawing the slot of an attempt and a host for it: those that have a reason to move, mostly.

use super::super::compile::{NONE, Service};
use super::{Search, TRIES};

impl Search<'_> {
    /// A host that a slot may use, if there is one.
    pub(super) fn any_host(&mut self, slot: u32) -> u32 {
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

    /// A slot that has a reason to be elsewhere, mostly. Those without a place are few and count for most.
    pub(super) fn pick(&mut self) -> u32 {
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
        let waited = self.waiting.len();
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
        if self.waiting.len() != waited {
            self.in_vain = 0;
        }
    }

    /// A replica that runs, could stay, and does not.
    pub(super) fn could_stay(&self, service: &Service) -> Option<u32> {
        let mut of = service.incumbents.iter().copied();
        of.find(|i| self.p.incumbents[*i as usize].can_stay && !self.state.stays(*i))
    }
}
