//! How the parts on one host share its GPUs: the best division, exactly as long as that is cheap.
#![allow(clippy::indexing_slicing)] // cells are numbered by `compile`
#![allow(clippy::cast_possible_truncation)] // at most 64 GPUs

use std::cell::Cell as Flag;

use super::compile::{APART, Cell, Joined, NONE, ON_NODE, ON_SWITCH, Problem, link_cost};

/// The part of a slot on one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub slot: u32,
    pub kind: u32,
    /// Tensor-parallel groups.
    pub units: u32,
    /// The incumbent whose GPUs it keeps.
    pub pin: u32,
    /// GPUs that it takes from what could be free.
    pub gpus: u32,
}

/// What a division costs, the pinned parts aside; compared in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostCost {
    pub link: u32,
    pub tight: u32,
    /// 64 less the largest hole that is left: the most free GPUs of one pool (see [`Pools`]).
    pub closed: u32,
}

impl HostCost {
    pub fn hole(self) -> u32 {
        64 - self.closed.min(64)
    }
}

/// How long a division is looked for.
#[derive(Clone, Copy)]
struct Patience {
    /// More than this many steps and the best division so far is taken.
    steps: u32,
    /// And after so many it is given up: what is so entangled does not fit.
    most: u32,
}

/// Of a division that other hosts share.
const SHARED: Patience = Patience { steps: 30_000, most: 1_000_000 };

/// Of a host with GPUs that differ: what is found is of use there alone, and there may be hundreds of them.
const ALONE: Patience = Patience { steps: 2_000, most: 20_000 };

/// Once the time is over: the first division that comes.
const HURRIED: Patience = Patience { steps: 0, most: 4_000 };

/// Divisions of hosts with unlike GPUs that are remembered.
const MOST_KNOWN: usize = 100_000;

/// Steps between two looks at the clock.
const STEPS_A_LOOK: u32 = 2048;

/// Free GPUs by cell.
pub(super) type Counts = [u8; 64];

/// The best division of a host among parts; none if they do not fit. With `out`, the counts per cell of each
/// group of each unpinned part, in order.
pub(super) fn divide(
    problem: &Problem<'_>,
    host: u32,
    parts: &[Part],
    out: Option<&mut Vec<Vec<Counts>>>,
) -> Option<HostCost> {
    let cells = &problem.hosts[host as usize].cells;
    if cells.len() == 1 && out.is_none() {
        return one_cell(problem, host, parts, &cells[0]);
    }
    // Where GPUs differ only in their links, what counts is how many groups there are of which size.
    if out.is_none()
        && let Some((sizes, tight)) = sizes(problem, host, parts)
    {
        let key = (problem.hosts[host as usize].pattern, sizes);
        let known = problem.divided.borrow().get(&key).copied();
        let cost = known.unwrap_or_else(|| {
            let (cost, whole) = search(problem, host, parts, None);
            let cost = cost.map(|c| HostCost { tight: 0, ..c });
            if whole || cost.is_some() {
                problem.divided.borrow_mut().insert(key, cost);
            }
            cost
        });
        return cost.map(|c| HostCost { tight, ..c });
    }
    if out.is_some() {
        return search(problem, host, parts, out).0;
    }
    let mut what: Vec<(u32, u32, u32)> = parts.iter().map(|p| (p.kind, p.units, p.pin)).collect();
    what.sort_unstable();
    let mut known = problem.divided_unlike.borrow_mut();
    if let Some(cost) = known.get(&(host, what.clone())) {
        return *cost;
    }
    if known.len() > MOST_KNOWN {
        known.clear();
    }
    let (cost, whole) = search(problem, host, parts, None);
    // That nothing was found in a hurry says little.
    if whole || cost.is_some() {
        known.insert((host, what), cost);
    }
    cost
}

/// The number of groups of each size, four bits each, and GPUs without headroom; none if that does not say all.
fn sizes(problem: &Problem<'_>, host: u32, parts: &[Part]) -> Option<(u64, u32)> {
    if problem.hosts[host as usize].pattern == NONE {
        return None;
    }
    let cells = problem.hosts[host as usize].cells.len();
    let all = if cells == 64 { u64::MAX } else { (1 << cells) - 1 };
    let (mut sizes, mut tight) = (0u64, 0);
    for part in parts {
        let kind = problem.kinds.get(part.kind as usize)?;
        let fits = part.pin == NONE
            && kind.tensor <= 16
            && kind.max_link == APART
            && problem.eligible(part.kind, host) == all;
        let shift = (kind.tensor.max(1) - 1) * 4;
        if !fits || (sizes >> shift & 15) + u64::from(part.units) > 15 {
            return None;
        }
        sizes += u64::from(part.units) << shift;
        if problem.tight(part.kind, host) != 0 {
            tight += part.units * kind.tensor;
        }
    }
    Some((sizes, tight))
}

/// The best division, and whether there was time to look for it.
fn search(
    problem: &Problem<'_>,
    host: u32,
    parts: &[Part],
    out: Option<&mut Vec<Vec<Counts>>>,
) -> (Option<HostCost>, bool) {
    let patience = match problem.hosts[host as usize].pattern {
        // What was divided once is divided again.
        _ if out.is_none() && problem.clock.hurries() => HURRIED,
        NONE => ALONE,
        _ => SHARED,
    };
    let mut whole = patience.most > HURRIED.most;
    let cost = search_for(problem, host, parts, patience, &mut whole, out);
    (cost, whole)
}

fn search_for(
    problem: &Problem<'_>,
    host: u32,
    parts: &[Part],
    patience: Patience,
    whole: &mut bool,
    out: Option<&mut Vec<Vec<Counts>>>,
) -> Option<HostCost> {
    let cells = &problem.hosts[host as usize].cells;
    let mut free: Counts = [0; 64];
    for (f, cell) in free.iter_mut().zip(cells) {
        *f = cell.gpus.len() as u8;
    }
    for part in parts.iter().filter(|p| p.pin != NONE) {
        for pin in problem.incumbents[part.pin as usize].pins.iter().filter(|p| p.host == host) {
            for (cell, count) in &pin.cells {
                free[*cell as usize] = free[*cell as usize].checked_sub(*count as u8)?;
            }
        }
    }
    let mut groups: Vec<(u32, u32, usize)> = Vec::new();
    for (i, part) in parts.iter().enumerate().filter(|(_, p)| p.pin == NONE) {
        let tensor = problem.kinds[part.kind as usize].tensor;
        groups.extend((0..part.units).map(|_| (tensor, part.kind, i)));
    }
    let has = |mask: u64| -> u32 {
        let of_mask = free.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0);
        of_mask.map(|(_, f)| u32::from(*f)).sum()
    };
    // What may only be on some of the GPUs must find room on those.
    for mask in groups.iter().map(|g| problem.eligible(g.1, host)).chain([u64::MAX]) {
        let within = groups.iter().filter(|g| problem.eligible(g.1, host) & !mask == 0);
        if within.map(|g| g.0).sum::<u32>() > has(mask) {
            return None;
        }
    }
    // Those with the fewest choices first: few GPUs suffice for them, or they are large.
    groups.sort_by_key(|(tensor, kind, i)| {
        (has(problem.eligible(*kind, host)), std::cmp::Reverse(*tensor), *kind, *i)
    });
    let pools = Pools::new(cells, &free);
    let left = has(u64::MAX) - groups.iter().map(|g| g.0).sum::<u32>();
    let mut search = Search {
        problem,
        host,
        cells,
        groups: &groups,
        pools,
        left,
        near: [
            mates(cells, |j| j.island),
            mates(cells, |j| j.pcie_switch),
            mates(cells, |j| j.numa),
        ],
        free,
        now: HostCost::default(),
        chosen: vec![[0; 64]; groups.len()],
        best: None,
        best_chosen: Vec::new(),
        steps: 0,
        patience,
        cut: false,
        gave_up: Flag::new(false),
        keep: out.is_some(),
    };
    search.group(0);
    *whole &= !search.cut;
    if search.cut || search.gave_up.get() {
        problem.guessed.set(true);
    }
    let best = search.best?;
    if let Some(out) = out {
        *out = vec![Vec::new(); parts.len()];
        for ((_, _, part), counts) in groups.iter().zip(&search.best_chosen) {
            out[*part].push(*counts);
        }
        out.retain(|o| !o.is_empty());
    }
    Some(best)
}

/// All GPUs are alike: counting is enough.
fn one_cell(problem: &Problem<'_>, host: u32, parts: &[Part], cell: &Cell) -> Option<HostCost> {
    let mut cost = HostCost::default();
    let mut used = 0;
    for part in parts {
        if part.pin != NONE {
            for pin in problem.incumbents[part.pin as usize].pins.iter().filter(|p| p.host == host)
            {
                used += pin.cells.iter().map(|(_, n)| n).sum::<u32>();
            }
            continue;
        }
        if problem.eligible(part.kind, host) == 0 {
            return None;
        }
        let kind = &problem.kinds[part.kind as usize];
        let gpus = part.units * kind.tensor;
        used += gpus;
        if kind.tensor > 1 && cell.joined.island.is_none() {
            let link = link_cost([cell.joined; 2]);
            if link > kind.max_link {
                return None;
            }
            cost.link += link * part.units;
        }
        if problem.tight(part.kind, host) != 0 {
            cost.tight += gpus;
        }
    }
    let free = (cell.gpus.len() as u32).checked_sub(used)?;
    cost.closed = 64 - if cell.mig.is_none() { free } else { free.min(1) };
    Some(cost)
}

/// Free GPUs by pool, which is what a gang to come could have together: GPUs of one model and size that are in an island,
/// or in none on the host. An instance of a divided GPU takes replicas of one GPU only, so each is a pool of its own.
struct Pools {
    /// The pool of each cell, as a position in `free`; none for instances.
    of: Vec<Option<usize>>,
    free: Vec<u32>,
    instances: u32,
}

impl Pools {
    fn new(cells: &[Cell], free: &Counts) -> Self {
        let mut known: Vec<(Option<u32>, u32)> = Vec::new();
        let mut pools = Self { of: Vec::new(), free: Vec::new(), instances: 0 };
        for cell in cells {
            let key = (cell.joined.island, cell.model);
            let at = cell.mig.is_none().then(|| {
                known.iter().position(|k| *k == key).unwrap_or_else(|| {
                    known.push(key);
                    pools.free.push(0);
                    known.len() - 1
                })
            });
            pools.of.push(at);
        }
        for (cell, free) in (0..cells.len()).zip(free) {
            pools.give(cell, u32::from(*free));
        }
        pools
    }

    fn at(&mut self, cell: usize) -> &mut u32 {
        match self.of[cell] {
            Some(at) => &mut self.free[at],
            None => &mut self.instances,
        }
    }

    fn take(&mut self, cell: usize, count: u32) {
        *self.at(cell) -= count;
    }

    fn give(&mut self, cell: usize, count: u32) {
        *self.at(cell) += count;
    }

    /// The most free GPUs of one pool.
    fn hole(&self) -> u32 {
        self.free.iter().copied().max().unwrap_or(0).max(self.instances.min(1))
    }
}

/// For each cell those that have the same, itself among them.
fn mates(cells: &[Cell], of: fn(&Joined) -> Option<u32>) -> Vec<u64> {
    let same = |cell: &Cell| {
        let like = cells.iter().enumerate().filter(|(_, c)| of(&c.joined) == of(&cell.joined));
        like.fold(0, |mask, (i, _)| mask | 1 << i)
    };
    cells.iter().map(same).collect()
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    host: u32,
    cells: &'a [Cell],
    groups: &'a [(u32, u32, usize)],
    pools: Pools,
    /// GPUs that are free in the end, whatever the division.
    left: u32,
    /// For each cell those of its island, of its switch, and of its NUMA node.
    near: [Vec<u64>; 3],
    free: Counts,
    now: HostCost,
    chosen: Vec<Counts>,
    best: Option<HostCost>,
    best_chosen: Vec<Counts>,
    steps: u32,
    patience: Patience,
    /// The time was over before the patience.
    cut: bool,
    /// The patience was over before the end.
    gave_up: Flag<bool>,
    keep: bool,
}

impl Search<'_> {
    fn group(&mut self, at: usize) {
        let Some((tensor, kind, _)) = self.groups.get(at).copied() else {
            let cost = HostCost { closed: 64 - self.pools.hole(), ..self.now };
            if self.best.is_none_or(|best| cost < best) {
                self.best = Some(cost);
                if self.keep {
                    self.best_chosen.clone_from(&self.chosen);
                }
            }
            return;
        };
        let eligible = self.problem.eligible(kind, self.host);
        if eligible == 0 {
            return;
        }
        let max_link = self.problem.kinds[kind as usize].max_link;
        // Groups of one kind are alike: they take their first cells in order.
        let same = at > 0 && self.groups[at - 1].1 == kind;
        let from = if same { first(&self.chosen[at - 1]) } else { 0 };
        let mut done: u64 = 0;
        for i in 0..self.cells.len() {
            let island = self.cells[i].joined.island;
            let mates = match island {
                None if tensor == 1 => 1 << i,
                None => continue,
                Some(_) => self.near[0][i],
            };
            if done & (1 << i) != 0 {
                continue;
            }
            done |= mates;
            self.take_from(at, eligible & mates, from, 0);
        }
        if tensor == 1 {
            return;
        }
        let nearer: [(usize, u32, fn(&Joined) -> Option<u32>); 2] =
            [(1, ON_SWITCH, |j| j.pcie_switch), (2, ON_NODE, |j| j.numa)];
        for (near, link, of) in nearer.into_iter().filter(|(_, link, _)| *link <= max_link) {
            let mut done: u64 = 0;
            for i in 0..self.cells.len() {
                if of(&self.cells[i].joined).is_none() || done & (1 << i) != 0 {
                    continue;
                }
                let mates = self.near[near][i];
                done |= mates;
                self.take_from(at, eligible & mates, from, link);
            }
        }
        if max_link >= APART {
            self.take_from(at, eligible, from, APART);
        }
    }

    /// All ways to take the group from these cells whose link cost is just this.
    fn take_from(&mut self, at: usize, cells: u64, from: usize, link: u32) {
        let wanted = self.groups[at].0;
        let room: u32 = (0..self.cells.len())
            .filter(|i| cells & (1 << i) != 0)
            .map(|i| u32::from(self.free[i]))
            .sum();
        if room < wanted || self.hopeless(link) {
            return;
        }
        self.now.link += link;
        self.chosen[at] = [0; 64];
        self.take(at, cells, from, wanted, link);
        self.now.link -= link;
    }

    fn hopeless(&self, link: u32) -> bool {
        // Whatever comes can only add to link and tight; the hole is at best what is free of a pool now, and no more
        // than all that is free in the end.
        let now = HostCost { link: self.now.link + link, ..self.now };
        self.best.is_some_and(|best| {
            let late = self.steps > self.patience.steps;
            let hole = self.pools.hole().min(self.left);
            let worse = HostCost { closed: 64 - hole, ..now } >= best;
            self.gave_up.set(self.gave_up.get() || late && !worse);
            late || worse
        })
    }

    fn take(&mut self, at: usize, cells: u64, cell: usize, wanted: u32, link: u32) {
        if wanted == 0 {
            if self.link_of(at) != link {
                return;
            }
            self.group(at + 1);
            return;
        }
        self.steps += 1;
        if self.steps.is_multiple_of(STEPS_A_LOOK) && !self.keep && self.problem.clock.hurries() {
            (self.cut, self.patience) = (true, Patience { steps: 0, most: self.steps });
        }
        if cell >= self.cells.len() || self.hopeless(0) {
            return;
        }
        if self.steps > self.patience.most {
            self.gave_up.set(true);
            return;
        }
        let most =
            if cells & (1 << cell) == 0 { 0 } else { u32::from(self.free[cell]).min(wanted) };
        let tight = self.problem.tight(self.groups[at].1, self.host) & (1 << cell) != 0;
        // The first cell of a like group is at or after its predecessor's.
        for count in (0..=most).rev() {
            self.free[cell] -= count as u8;
            self.pools.take(cell, count);
            self.chosen[at][cell] = count as u8;
            self.now.tight += if tight { count } else { 0 };
            self.take(at, cells, cell + 1, wanted - count, link);
            self.now.tight -= if tight { count } else { 0 };
            self.chosen[at][cell] = 0;
            self.free[cell] += count as u8;
            self.pools.give(cell, count);
        }
    }

    fn link_of(&self, at: usize) -> u32 {
        let counts = &self.chosen[at];
        if self.groups[at].0 == 1 {
            return 0;
        }
        let used = self.cells.iter().zip(counts).filter(|(_, n)| **n > 0);
        // Of one cell there are two.
        link_cost(used.flat_map(|(cell, _)| [cell.joined; 2]))
    }
}

fn first(counts: &Counts) -> usize {
    counts.iter().position(|n| *n > 0).unwrap_or(0)
}
