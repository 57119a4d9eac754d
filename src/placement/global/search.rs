//! Finds a good placement at once and better ones as long as it may: greedy first, then slots are put where they
//! would rather be, what is in the way is driven out and finds another place, and what makes the whole worse is
//! taken back (but for bytes, where a cooling temperature allows some).
#![allow(clippy::indexing_slicing)] // hosts, slots and kinds are numbered by `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

mod draw;
mod drive;
mod find;
mod first;
mod foresee;
mod walk;

use super::bar::Bar;
use super::bound::floors;
use super::compile::{NONE, Problem};
use super::state::{Levels, Position, State};

use self::foresee::{Foresight, Outlook};
use self::walk::grain;
pub(super) use self::walk::{Best, improve, improve_by};

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

/// What the dice begin with.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// So often is a host, or a slot, drawn that suits.
pub(super) const TRIES: u32 = 8;

/// Hosts that are asked between two looks at the clock.
const A_LOOK: u32 = 8;

/// Attempts on slots without a place after which it is unlikely that more can have one.
const MANY: u32 = 300;

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
    /// Slots that no host holds alone, by slot.
    is_wide: Vec<bool>,
    /// The slot of this attempt.
    slot: u32,
    /// What is to come of this attempt, where that was worked out.
    foresight: Foresight,
    /// Nothing can come of this attempt any more.
    is_dead: bool,
    /// One of the same priority has no place for it.
    lost_one: bool,
    /// Attempts on slots without a place since one of them found one.
    in_vain: u32,
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
            dice: Dice::new(SEED),
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
            is_wide: (0..p.slots.len() as u32).map(|slot| is_wide(p, slot)).collect(),
            slot: NONE,
            foresight: Foresight::default(),
            is_dead: false,
            lost_one: false,
            in_vain: 0,
        }
    }

    /// Throws other dice than that of other numbers; those of number 0 are the usual ones.
    pub fn throw_other_dice(&mut self, number: usize) {
        self.dice = Dice::new(SEED ^ (number as u64).wrapping_mul(0xD134_2543_DE82_EF95));
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

    /// Undoes the last attempt.
    pub(super) fn take_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Placed(slot) => drop(self.state.remove(slot)),
                Undo::Removed(slot, position) => {
                    self.state.place(slot, position);
                }
            }
        }
    }

    /// One attempt. `heat` is how many bytes more are now and then accepted.
    pub fn attempt(&mut self, heat: f64) {
        let p = self.p;
        self.undo.clear();
        if p.slots.is_empty() || p.hosts.is_empty() {
            return;
        }
        self.bar.set(&self.state, heat, &mut self.dice);
        self.owed = Levels::default();
        let slot = self.pick();
        (self.slot, self.is_dead, self.lost_one) = (slot, false, false);
        self.foresight.clear();
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
            // What finds no place for long is tried where others of its size are, which is quickly told.
            // The replicas of an earlier release need none.
            self.in_vain = self.in_vain.saturating_add(u32::from(!service.outgoing));
            let sides = if self.in_vain < MANY || service.outgoing { 2 } else { 8 };
            self.dice.below(sides) > 0 && self.supplant(slot)
        };
        if exchanges {
            if !self.bar.accepts(&self.state) {
                self.take_back();
            }
            return;
        }
        let depth = 1 + u32::from(self.dice.below(2) == 0) + u32::from(!self.placed);
        // What may come back to where it runs is not foreseen, nor who may go without a place for another.
        let outlook = if self.placed && self.strays.is_empty() {
            self.foresee(slot, host, depth)
        } else {
            Outlook::Unknown
        };
        match outlook {
            Outlook::Hopeless => return,
            Outlook::Open => self.drive_as_foreseen(slot, depth),
            Outlook::Unknown => {
                self.foresight.clear();
                self.drive(slot, host, depth);
            }
        }
        if self.is_dead {
            self.take_back();
            return;
        }
        if self.state.at[slot as usize].is_none() {
            self.settle(slot);
        }
        self.come_home();
        if !self.bar.accepts(&self.state) {
            self.take_back();
        }
    }
}
