//! What an attempt will come to at least, worked out before anything is changed: most attempts come to nothing, and to
//! change a placement and change it back takes several times as long as to tell that.
//!
//! What cannot be told by counting is taken for as cheap as it could be, so that hardly anything costs less than was foreseen:
//! where a host is divided otherwise than was counted, others have to go, and may end where they cost less. What is told to
//! be hopeless is so for the slot itself: that somebody gains by having to go is found when that one is tried.

use super::super::compile::NONE;
use super::super::few::Few;
use super::super::file::WorldSpread;
use super::super::state::Levels;
use super::Search;

/// A slot that is to be driven onto these hosts.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub slot: u32,
    pub kind: u32,
    /// Groups on each host.
    pub units: u32,
    pub hosts: Few,
}

/// What an attempt would do.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    /// Who is driven where, the slot of the attempt first.
    targets: Vec<Target>,
    /// Who goes for the target of this number.
    victims: Vec<(usize, u32)>,
    /// Who is not where it was any more.
    gone: Vec<u32>,
    /// GPUs by which hosts have more room, or less.
    rooms: Vec<(u32, i64)>,
    /// What is added at least.
    more: Levels,
}

impl Foresight {
    pub fn clear(&mut self) {
        self.targets.clear();
        self.victims.clear();
        self.gone.clear();
        self.rooms.clear();
        self.more = Levels::default();
    }

    /// Where this slot is to be driven, and who is to go for it; once, since what is driven back has to go elsewhere.
    pub fn take(&mut self, slot: u32) -> Option<(Target, Vec<u32>)> {
        let number = self.targets.iter().position(|target| target.slot == slot)?;
        let target = self.targets.get_mut(number)?;
        let taken = target.clone();
        target.slot = NONE;
        let victims = self.victims.iter().filter(|(n, _)| *n == number);
        Some((taken, victims.map(|(_, victim)| *victim).collect()))
    }

    /// Whether this slot is not where it was.
    pub fn is_gone(&self, slot: u32) -> bool {
        self.gone.contains(&slot)
    }

    fn change_room(&mut self, host: u32, gpus: i64) {
        match self.rooms.iter_mut().find(|(h, _)| *h == host) {
            Some((_, more)) => *more += gpus,
            None => self.rooms.push((host, gpus)),
        }
    }

    fn add(&mut self, levels: &Levels) {
        self.more.link += levels.link;
        self.more.tight += levels.tight;
        self.more.bytes += levels.bytes;
    }

    fn subtract(&mut self, levels: &Levels) {
        self.more.link -= levels.link;
        self.more.tight -= levels.tight;
        self.more.bytes -= levels.bytes;
    }
}

/// What can be told of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// Nothing can come of it.
    Hopeless,
    /// It may do, as it was foreseen.
    Open,
    /// Counting is not enough.
    Unknown,
}

impl Search<'_> {
    /// What comes of driving a slot that has a place onto a host. What it would do is kept in `foresight`.
    pub(super) fn foresee(&mut self, slot: u32, host: u32, depth: u32) -> Outlook {
        self.foresight.clear();
        self.foresee_drive(slot, host, depth)
    }

    /// Does what was foreseen of this slot.
    pub(super) fn drive_as_foreseen(&mut self, slot: u32, depth: u32) {
        if let Some((target, victims)) = self.foresight.take(slot) {
            self.drive_to(&target, victims, depth);
        }
    }

    /// The same for one of those that this drives out, as deep as `depth`.
    fn foresee_drive(&mut self, slot: u32, host: u32, depth: u32) -> Outlook {
        let p = self.p;
        let Some(target) = self.choose(slot, host) else { return Outlook::Hopeless };
        let Some(saved) = self.saved(slot) else { return Outlook::Unknown };
        let gpus = target.units * p.kinds[target.kind as usize].tensor;
        let floor = self.floors[slot as usize];
        if self.foresight.gone.contains(&slot) {
            // It was driven out, and is counted as if it were as cheap as it can be.
            self.foresight.subtract(&floor);
        } else {
            self.foresight.subtract(&saved);
            self.leave(slot);
        }
        let new = self.new_cost(&target, gpus);
        self.foresight.add(&new);
        // What others would gain by having to go is found when they are tried themselves.
        if !self.bar.promises(&self.state, &self.foresight.more) {
            return Outlook::Hopeless;
        }
        let number = self.foresight.targets.len();
        let from = self.foresight.victims.len();
        for host in &target.hosts {
            for _ in 0..=p.hosts[*host as usize].room {
                let room = self.room_then(*host);
                if room >= i64::from(gpus) {
                    break;
                }
                let wanted = (i64::from(gpus) - room).unsigned_abs() as u32;
                // Only those are left that were driven here.
                let Some(victim) = self.victim(*host, wanted, true) else {
                    return Outlook::Unknown;
                };
                let Some(saved) = self.saved(victim) else { return Outlook::Unknown };
                if !p.services[p.slots[victim as usize] as usize].incumbents.is_empty() {
                    return Outlook::Unknown;
                }
                self.foresight.subtract(&saved);
                let least = self.floors[victim as usize];
                self.foresight.add(&least);
                self.leave(victim);
                self.foresight.victims.push((number, victim));
            }
            self.foresight.change_room(*host, -i64::from(gpus));
        }
        self.foresight.targets.push(target);
        if !self.bar.promises(&self.state, &self.foresight.more) {
            return Outlook::Hopeless;
        }
        let until = self.foresight.victims.len();
        self.foresight.victims[from..until]
            .sort_by_key(|(_, victim)| std::cmp::Reverse(self.sizes[*victim as usize]));
        for n in from..until {
            let (_, victim) = self.foresight.victims[n];
            if self.could_settle(victim) {
                continue;
            }
            if depth == 0 {
                return Outlook::Hopeless;
            }
            let Some(to) = self.next_host(victim) else { return Outlook::Hopeless };
            let outlook = self.foresee_drive(victim, to, depth - 1);
            if outlook != Outlook::Open {
                return outlook;
            }
        }
        if self.bar.promises(&self.state, &self.foresight.more) {
            Outlook::Open
        } else {
            Outlook::Hopeless
        }
    }

    /// Counts a slot as gone from where it is.
    fn leave(&mut self, slot: u32) {
        self.foresight.gone.push(slot);
        let Some(at) = &self.state.at[slot as usize] else { return };
        for host in &at.hosts {
            let part = self.state.parts(*host).iter().find(|part| part.slot == slot);
            self.foresight.change_room(*host, part.map_or(0, |part| i64::from(part.gpus)));
        }
    }

    /// GPUs of a host that would be free.
    fn room_then(&self, host: u32) -> i64 {
        let more =
            self.foresight.rooms.iter().find(|(h, _)| *h == host).map_or(0, |(_, more)| *more);
        i64::from(self.state.room(host)) + more
    }

    /// What a slot costs where it is, at most; none where that is not for it alone.
    fn saved(&self, slot: u32) -> Option<Levels> {
        let s = self.p.slots[slot as usize];
        let service = &self.p.services[s as usize];
        let at = self.state.at[slot as usize].as_ref()?;
        if at.keep != NONE || service.spread != WorldSpread::None {
            return None;
        }
        let mut saved = Levels { link: self.state.span(&at.hosts), ..Levels::default() };
        for host in &at.hosts {
            // With others of its service there the copy is saved only if these go as well.
            let alone = self.state.on(s, *host) == 1 || service.replicas > 1;
            if !service.has[*host as usize] && alone {
                saved.bytes += service.bytes;
            }
            // How its GPUs would be divided without it is not known.
            let cost = self.state.cost(*host);
            saved.link += i64::from(cost.link);
            saved.tight += i64::from(cost.tight);
        }
        Some(saved)
    }

    /// What a slot costs on the hosts of its target, at least.
    fn new_cost(&self, target: &Target, gpus: u32) -> Levels {
        let p = self.p;
        let s = p.slots[target.slot as usize];
        let service = &p.services[s as usize];
        let own = self.state.at[target.slot as usize].as_ref().map_or(&[][..], |at| &at.hosts[..]);
        let mut new = Levels { link: self.state.span(&target.hosts), ..Levels::default() };
        for host in &target.hosts {
            let mine = u16::from(own.contains(host));
            let of_service = |target: &&Target| p.slots.get(target.slot as usize) == Some(&s);
            let mut others = self.foresight.targets.iter().filter(of_service);
            let copied = others.any(|other| other.hosts.contains(host));
            if !service.has[*host as usize] && self.state.on(s, *host) == mine && !copied {
                new.bytes += service.bytes;
            }
            if p.hosts[*host as usize].whole {
                let tight = p.tight(target.kind, *host) != 0;
                new.tight += if tight { i64::from(gpus) } else { 0 };
            } else {
                let cost = self.state.cost(*host);
                new.link -= i64::from(cost.link);
                new.tight -= i64::from(cost.tight);
            }
        }
        new
    }

    /// Whether there would be room for one that was driven out; what it would cost there at least is then counted.
    fn could_settle(&mut self, slot: u32) -> bool {
        let p = self.p;
        let service = &p.services[p.slots[slot as usize] as usize];
        // On as many hosts as it may be divided over: where that is one, the whole of it.
        let parts = service.kinds.iter().map(|kind| {
            let k = &p.kinds[*kind as usize];
            let split = k.splits.last().copied().unwrap_or(1);
            (*kind, split, k.units / split * k.tensor)
        });
        let anywhere = parts.clone().any(|(kind, _, gpus)| self.state.has_room(kind, gpus));
        let there = |kind: u32, gpus: u32, host: u32| {
            p.eligible(kind, host) != 0 && self.room_then(host) >= i64::from(gpus)
        };
        if self.is_wide[slot as usize] {
            let enough = |(kind, split, gpus): (u32, u32, u32)| {
                let hosts = self.foresight.rooms.iter().map(|(host, _)| *host);
                hosts.filter(|host| there(kind, gpus, *host)).count() >= split as usize
            };
            return anywhere || parts.clone().any(enough);
        }
        let at = |host: u32| parts.clone().any(|(kind, _, gpus)| there(kind, gpus, host));
        if service.homes.iter().any(|host| at(*host)) {
            return true;
        }
        let found = anywhere || self.foresight.rooms.iter().any(|(host, _)| at(*host));
        // Others of its service may have copied the weights.
        if found && service.replicas == 1 {
            let more = (service.bytes - self.floors[slot as usize].bytes).max(0);
            self.foresight.more.bytes += more;
        }
        found
    }
}

#[cfg(test)]
#[path = "foresee_tests.rs"]
mod tests;
