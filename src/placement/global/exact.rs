//! Every placement of a small world, as far as it could still be the best.
#![allow(clippy::indexing_slicing)] // tables of `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use super::compile::{NONE, Problem};
use super::search::Best;
use super::state::{Position, State};

/// More positions than this for all services together, and the world is not small.
const MAX_POSITIONS: usize = 4000;
const MAX_SLOTS: usize = 40;

/// Looks at everything; true if it came to the end, so that `best` is the best there is. `over` is asked now and then.
pub(super) fn search(p: &Problem<'_>, best: &mut Best, over: &mut dyn FnMut() -> bool) -> bool {
    if p.slots.len() > MAX_SLOTS {
        return false;
    }
    let Some(positions) = positions(p) else { return false };
    // The slots of one service one after another: they are alike, and take their positions in order.
    let mut order: Vec<u32> = (0..p.slots.len() as u32).collect();
    order.sort_by_key(|slot| {
        let s = p.slots[*slot as usize];
        let service = &p.services[s as usize];
        (service.outgoing, service.class, positions[s as usize].len(), s, *slot)
    });
    let spare: Vec<(i64, i64)> = p
        .services
        .iter()
        .map(|s| {
            let of = s.incumbents.iter().map(|i| &p.incumbents[*i as usize]);
            of.filter(|i| i.can_stay).fold((0, 0), |(r, d), i| (r + i.ranks, d + i.displaced))
        })
        .collect();
    let mut walk = Walk {
        p,
        positions: &positions,
        order: &order,
        state: State::new(p),
        best,
        over,
        steps: 0,
        stopped: false,
        spare,
        missing: vec![0; p.classes.len()],
    };
    walk.slot(0, 0);
    !walk.stopped
}

/// Every position of each service, those of incumbents first; none if there are too many.
fn positions(p: &Problem<'_>) -> Option<Vec<Vec<Position>>> {
    let mut total = 0;
    let mut all = Vec::new();
    for service in &p.services {
        let mut list = Vec::new();
        for i in &service.incumbents {
            let incumbent = &p.incumbents[*i as usize];
            if !incumbent.can_stay {
                continue;
            }
            let same = |k: &&u32| p.kinds[**k as usize].shape == incumbent.shape;
            list.push(Position {
                kind: service.kinds.iter().find(same).copied().unwrap_or(NONE),
                keep: *i,
                hosts: incumbent.pins.iter().map(|pin| pin.host).collect(),
            });
        }
        for kind in &service.kinds {
            let hosts: Vec<u32> =
                (0..p.hosts.len() as u32).filter(|h| p.eligible(*kind, *h) != 0).collect();
            for split in &p.kinds[*kind as usize].splits {
                let mut chosen = Vec::new();
                combine(&hosts, *split as usize, 0, &mut chosen, &mut |hosts| {
                    list.push(Position {
                        kind: *kind,
                        keep: NONE,
                        hosts: hosts.iter().copied().collect(),
                    });
                    list.len() <= MAX_POSITIONS
                });
            }
        }
        total += list.len();
        if total > MAX_POSITIONS {
            return None;
        }
        all.push(list);
    }
    Some(all)
}

/// Every choice of `count` hosts, in order, until `found` says to stop.
fn combine(
    hosts: &[u32],
    count: usize,
    from: usize,
    chosen: &mut Vec<u32>,
    found: &mut dyn FnMut(&[u32]) -> bool,
) -> bool {
    if chosen.len() == count {
        return found(chosen);
    }
    // Only where as many are left as are wanted yet.
    let wanted = count - chosen.len();
    for i in from..(hosts.len() + 1).saturating_sub(wanted) {
        chosen.push(hosts[i]);
        let go_on = combine(hosts, count, i + 1, chosen, found);
        chosen.pop();
        if !go_on {
            return false;
        }
    }
    true
}

struct Walk<'a, 'b> {
    p: &'a Problem<'a>,
    positions: &'b [Vec<Position>],
    order: &'b [u32],
    state: State<'a>,
    best: &'b mut Best,
    over: &'b mut dyn FnMut() -> bool,
    steps: u64,
    stopped: bool,
    /// Ranks of incumbents of a service that could stay and do not yet.
    spare: Vec<(i64, i64)>,
    /// Slots that were passed over, by priority.
    missing: Vec<i64>,
}

impl Walk<'_, '_> {
    /// No end of this branch is better than this.
    fn hopeless(&self, at: usize) -> bool {
        let mut levels = self.state.levels();
        let mut last = NONE;
        for slot in &self.order[at..] {
            let s = self.p.slots[*slot as usize];
            if s != last {
                levels.moves -= self.spare[s as usize].0;
                levels.displaced -= self.spare[s as usize].1;
                last = s;
            }
        }
        (self.missing.as_slice(), levels)
            >= (self.best.score.unplaced.as_slice(), self.best.score.levels)
    }

    fn slot(&mut self, at: usize, from: usize) {
        self.steps += 1;
        if self.stopped || (self.steps.is_multiple_of(256) && (self.over)()) {
            self.stopped = true;
            return;
        }
        if self.hopeless(at) {
            return;
        }
        let Some(slot) = self.order.get(at).copied() else {
            let score = self.state.score();
            if score < self.best.score {
                self.best.score = score;
                self.best.at.clone_from(&self.state.at);
            }
            return;
        };
        let s = self.p.slots[slot as usize] as usize;
        let next = self.order.get(at + 1).map(|n| self.p.slots[*n as usize] as usize);
        let positions = self.positions;
        let must: Option<usize> = positions[s].iter().position(|position| {
            position.keep != NONE
                && self.p.incumbents[position.keep as usize].must_stay
                && !self.state.stays(position.keep)
        });
        for (i, position) in positions[s].iter().enumerate().skip(from) {
            if must.is_some_and(|must| must != i) {
                continue;
            }
            if !self.state.place(slot, position.clone()) {
                continue;
            }
            let (ranks, displaced) = match position.keep {
                NONE => (0, 0),
                keep => {
                    let incumbent = &self.p.incumbents[keep as usize];
                    (incumbent.ranks, incumbent.displaced)
                }
            };
            self.spare[s].0 -= ranks;
            self.spare[s].1 -= displaced;
            // Two replicas may lie on the same host, so the same position comes again.
            let again = if must.is_some() { 0 } else { i };
            self.slot(at + 1, if next == Some(s) { again } else { 0 });
            self.spare[s].0 += ranks;
            self.spare[s].1 += displaced;
            self.state.remove(slot);
            if self.stopped {
                return;
            }
        }
        if must.is_some() {
            return;
        }
        // Without a place: then neither have the others of its service, which are alike.
        let class = self.p.services[s].class as usize;
        let rest = self.order[at..].iter().take_while(|o| self.p.slots[**o as usize] as usize == s);
        let rest = rest.count();
        let missing = if self.p.services[s].outgoing { 0 } else { rest as i64 };
        self.missing[class] += missing;
        self.slot(at + rest, 0);
        self.missing[class] -= missing;
    }
}
