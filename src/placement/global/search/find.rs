//! Finding a place for a slot where nothing has to go for it.

use super::super::compile::{A_RACK, NONE, span_cost};
use super::super::few::Few;
use super::super::state::{Position, State};
use super::{A_LOOK, Search};

impl Search<'_> {
    /// Puts a slot where it fits best without driving anything out.
    pub(in crate::placement::global) fn settle(&mut self, slot: u32) -> bool {
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
        let least = span_cost(split as usize, 1);
        if near.as_ref().is_some_and(|(price, _)| price[0] == 0 && price[1] == least) {
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
        total[1] += span_cost(split as usize, 1);
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
            let far = others.first().is_some_and(|near| rack(*near) != rack(h));
            price[1] += if far { A_RACK } else { 0 };
            Some((price, h))
        };
        // Nothing better can come than what is as near and roomy as can be.
        let nearest = i64::from(k.nearest * units);
        let hurries = self.hurries;
        let mut asked = 0;
        let mut good = |price: &[i64; 5]| {
            // Looking at the clock takes as long as a price.
            asked += 1;
            hurries
                || (asked % A_LOOK == 0 && p.clock.hurries())
                || price[0] == 0 && price[1] <= nearest && (price[2] == 0 || !k.has_roomy)
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
}
