//! Several walks on one placement (simulated annealing with asynchronous trials). Each member has the placement for itself
//! and attempts as it would alone. What an attempt changed it writes down in a journal that all share, and before each
//! attempt it takes over what the others wrote. Of two that changed the same host at the same time the second takes its own
//! back. Few attempts change anything, so that is rare, and together they get as far as one in so many times the time.
//!
//! No threads of its own and no clock: the caller lends threads ([`Helpers`]) and says how much of the time is used.
#![allow(clippy::indexing_slicing)] // slots are numbered by `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::clock::Clock;
use super::compile::{Problem, compile};
use super::file::{WorldFile, WorldSpread};
use super::search::{Best, Search, improve_by};
use super::state::{Position, Score};

/// Changes that are kept for those who are behind. Who is further behind takes over the whole placement.
const KEPT: usize = 4096;
/// Pairs of service and host that all members together may have tables for, of some ten bytes each.
const MOST_PAIRS: usize = 1 << 24;

/// Threads that the caller lends to a search.
#[derive(Clone, Copy)]
pub struct Helpers<'a> {
    /// How many, beside the one that asks.
    pub count: usize,
    /// Calls the last argument here and the second, with each number below the first, on threads beside it, or some of them
    /// if there are not so many. Comes back when all of them did.
    pub run: &'a dyn Fn(usize, &(dyn Fn(usize) + Sync), &mut dyn FnMut()),
}

/// When the search is to end.
#[derive(Clone, Copy)]
pub(super) struct Until {
    /// Shares of the time: at the beginning, at the end, and that from which on what is under way is hurried.
    pub from: f64,
    pub to: f64,
    pub hurry: f64,
}

/// What one attempt changed: where each of these slots is now.
#[derive(Debug)]
struct Change {
    by: usize,
    slots: Vec<(u32, Option<Position>)>,
}

/// What all of them changed, in order.
struct Journal {
    /// The number of the first change that is still here.
    first: u64,
    changes: VecDeque<Arc<Change>>,
    /// Where every slot is after the last change.
    at: Vec<Option<Position>>,
}

impl Journal {
    fn written(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    /// The changes from this number on; none if some of them are not here any more.
    fn since(&self, seen: u64) -> Option<Vec<Arc<Change>>> {
        let skipped = usize::try_from(seen.checked_sub(self.first)?).ok()?;
        Some(self.changes.iter().skip(skipped).cloned().collect())
    }
}

/// What the members share.
pub(super) struct Shared {
    journal: Mutex<Journal>,
    /// How many changes were written: most attempts begin with nothing new, and need no lock to know.
    written: AtomicU64,
    /// The share of the time that is used, as the bits of a float: only one may ask the caller.
    used: AtomicU64,
    over: AtomicBool,
    found: Mutex<Vec<(usize, Best, u64)>>,
}

/// What is kept is whole between two calls, so that it is good after a panic elsewhere.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(at: Vec<Option<Position>>) -> Self {
        let journal = Journal { first: 0, changes: VecDeque::new(), at };
        Self {
            journal: Mutex::new(journal),
            written: AtomicU64::new(0),
            used: AtomicU64::new(0.0f64.to_bits()),
            over: AtomicBool::new(false),
            found: Mutex::default(),
        }
    }

    fn used(&self) -> f64 {
        if self.over.load(Ordering::Relaxed) {
            return f64::INFINITY;
        }
        f64::from_bits(self.used.load(Ordering::Relaxed))
    }

    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn tell_used(&self, share: f64) {
        self.used.store(share.to_bits(), Ordering::Relaxed);
    }

    #[cfg(test)]
    pub fn at(&self) -> Vec<Option<Position>> {
        lock(&self.journal).at.clone()
    }
}

/// Ends the search of all, also where the one who tells the time panics.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// One of those who search.
pub(super) struct Member<'a> {
    number: usize,
    shared: &'a Shared,
    /// Changes that its placement has.
    seen: u64,
    /// Its placement is not that of the others any more: it goes on by itself.
    alone: bool,
}

impl<'a> Member<'a> {
    pub fn new(number: usize, shared: &'a Shared) -> Self {
        Self { number, shared, seen: 0, alone: false }
    }

    /// An attempt that the others learn of.
    pub fn attempt(&mut self, search: &mut Search<'_>, heat: f64) {
        self.catch_up(search);
        search.attempt(heat);
        self.write_down(search);
    }

    /// Takes over what the others changed.
    pub fn catch_up(&mut self, search: &mut Search<'_>) {
        if self.alone || self.shared.written.load(Ordering::Acquire) == self.seen {
            return;
        }
        let journal = lock(&self.shared.journal);
        let written = journal.written();
        if let Some(news) = journal.since(self.seen) {
            drop(journal);
            self.take_over(search, &news);
        } else {
            let at = journal.at.clone();
            drop(journal);
            let differs = |slot: &u32| search.state.at[*slot as usize] != at[*slot as usize];
            let slots: Vec<u32> = (0..at.len() as u32).filter(differs).collect();
            self.alone |= !search.adopt(&slots, |slot| at[slot as usize].as_ref());
        }
        self.seen = written;
    }

    fn take_over(&mut self, search: &mut Search<'_>, news: &[Arc<Change>]) {
        for change in news.iter().filter(|change| change.by != self.number) {
            let slots: Vec<u32> = change.slots.iter().map(|(slot, _)| *slot).collect();
            let at = |slot: u32| change.slots.iter().find(|(s, _)| *s == slot)?.1.as_ref();
            self.alone |= !search.adopt(&slots, at);
        }
    }

    /// Writes down what the last attempt changed, or takes it back where another was there first.
    pub fn write_down(&mut self, search: &mut Search<'_>) {
        let mine = search.changed();
        if self.alone || mine.is_empty() {
            return;
        }
        let mut journal = lock(&self.shared.journal);
        let Some(news) = journal.since(self.seen).filter(|news| !clash(search, &mine, news)) else {
            drop(journal);
            search.take_back();
            self.catch_up(search);
            return;
        };
        let now = |slot: &u32| search.state.at[*slot as usize].clone();
        let slots: Vec<_> = mine.iter().map(|(slot, _)| (*slot, now(slot))).collect();
        for (slot, at) in &slots {
            journal.at[*slot as usize].clone_from(at);
        }
        journal.changes.push_back(Arc::new(Change { by: self.number, slots }));
        if journal.changes.len() > KEPT {
            journal.changes.pop_front();
            journal.first += 1;
        }
        self.seen = journal.written();
        self.shared.written.store(self.seen, Ordering::Release);
        drop(journal);
        self.take_over(search, &news);
    }
}

/// Whether what others changed since this attempt began has to do with what it changed: the same hosts, or replicas that
/// count together.
fn clash(search: &Search<'_>, mine: &[(u32, Option<Position>)], news: &[Arc<Change>]) -> bool {
    let p = search.p;
    fn hosts(at: Option<&Position>) -> &[u32] {
        at.map_or(&[], |at| &at.hosts)
    }
    let here = |slot: u32| search.state.at[slot as usize].as_ref();
    let own: Vec<u32> = mine
        .iter()
        .flat_map(|(slot, was)| hosts(was.as_ref()).iter().chain(hosts(here(*slot))))
        .copied()
        .collect();
    let bound = |a: u32, b: u32| {
        let service = &p.services[p.slots[a as usize] as usize];
        let counted = service.spread != WorldSpread::None || !service.incumbents.is_empty();
        a == b || counted && p.slots[a as usize] == p.slots[b as usize]
    };
    // Where a slot was that another moved is not written down, but this placement has it still.
    let touches = |slot: u32, now: Option<&Position>| {
        let mut theirs = hosts(now).iter().chain(hosts(here(slot)));
        theirs.any(|host| own.contains(host)) || mine.iter().any(|(m, _)| bound(*m, slot))
    };
    news.iter().flat_map(|change| &change.slots).any(|(slot, now)| touches(*slot, now.as_ref()))
}

/// As many helpers as there is memory for.
pub(super) fn fitting(p: &Problem<'_>, helpers: Option<Helpers<'_>>) -> usize {
    let pairs = (p.services.len() * p.hosts.len()).max(1);
    helpers.map_or(0, |helpers| helpers.count.min(MOST_PAIRS / pairs))
}

/// Searches as [`improve_by`] does, from the placement of `search` on, with so many helpers beside.
pub(super) fn improve(
    world: &WorldFile,
    search: &mut Search<'_>,
    ideal: &Score,
    helpers: (usize, Helpers<'_>),
    until: Until,
    used: &dyn Fn() -> f64,
) -> (Best, u64) {
    let first = Best::of(&search.state);
    let shared = Shared::new(first.at.clone());
    shared.tell_used(until.from);
    let progress = |used: f64| (used - until.from) / (until.to - until.from).max(1e-9);
    let walk = |search: &mut Search<'_>, number: usize, used: &dyn Fn() -> f64| {
        let mut member = Member::new(number, &shared);
        let mut attempt = |search: &mut Search<'_>, heat| member.attempt(search, heat);
        let (best, steps) = improve_by(search, ideal, &mut |_| progress(used()), &mut attempt);
        // Nothing is better: then the others need not look for it.
        if best.score <= *ideal {
            shared.end();
        }
        lock(&shared.found).push((number, best, steps));
    };
    let help = |number: usize| {
        let told = || shared.used();
        // Tables of its own: what was worked out is remembered in them.
        let problem = compile(world, Clock::new(&told));
        problem.clock.hurry_from(until.hurry);
        let mut search = Search::new(&problem);
        search.throw_other_dice(number + 1);
        search.start_from(&first);
        walk(&mut search, number + 1, &told);
    };
    let mut own = || {
        let _end = End(&shared);
        let told = || {
            shared.tell_used(used());
            shared.used()
        };
        walk(search, 0, &told);
    };
    (helpers.1.run)(helpers.0, &help, &mut own);
    let found = std::mem::take(&mut *lock(&shared.found));
    let steps = found.iter().map(|(_, _, steps)| steps).sum();
    let best = found.into_iter().min_by(|a, b| (&a.1.score, a.0).cmp(&(&b.1.score, b.0)));
    (best.map_or(first, |(_, best, _)| best), steps)
}

#[cfg(test)]
mod tests;
