//! The first placement: what runs stays, the rest goes by priority.

use super::Search;

impl Search<'_> {
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
}
