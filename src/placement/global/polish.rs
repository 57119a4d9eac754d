//! The last touch: of places that are worth the same, the smallest GPUs that suffice. Nothing that the objective counts
//! becomes worse.
#![allow(clippy::indexing_slicing)] // hosts, slots and kinds are numbered by `compile`
#![allow(clippy::cast_possible_truncation)] // counts that `read` bounds

use super::compile::{NONE, Problem};
use super::search::{Best, Search};
use super::state::{Position, State};

/// Tries every other host for every replica that lies on one and was placed now, until `over`.
pub(super) fn polish(search: &mut Search<'_>, best: &mut Best, over: &mut dyn FnMut() -> bool) {
    search.start_from(best);
    let state = &mut search.state;
    let p = state.p;
    for slot in 0..p.slots.len() as u32 {
        let loose = |at: &&Position| at.keep == NONE && at.hosts.len() == 1;
        let Some(old) = state.at[slot as usize].as_ref().filter(loose).cloned() else { continue };
        if over() {
            break;
        }
        better(state, slot, old, over);
    }
    let score = state.score();
    if score <= best.score {
        best.at.clone_from(&state.at);
        best.score = score;
    }
}

/// Finds a slot the position with the least that is worth as much.
fn better(state: &mut State<'_>, slot: u32, old: Position, over: &mut dyn FnMut() -> bool) {
    let p = state.p;
    let s = p.slots[slot as usize];
    let worth = state.score();
    let shape = p.kinds[old.kind as usize].shape;
    state.remove(slot);
    let mut least = size(p, &old);
    let mut chosen = old;
    for kind in &p.services[s as usize].kinds {
        if p.kinds[*kind as usize].shape != shape {
            continue;
        }
        for h in 0..p.hosts.len() as u32 {
            let position =
                Position { kind: *kind, keep: NONE, hosts: std::iter::once(h).collect() };
            if p.eligible(*kind, h) == 0 || size(p, &position) >= least {
                continue;
            }
            if state.place(slot, position.clone()) {
                if state.score() <= worth {
                    least = size(p, &position);
                    chosen = position;
                }
                state.remove(slot);
            }
            if h % 64 == 63 && over() {
                break;
            }
        }
    }
    state.place(slot, chosen);
}

/// The memory of its GPUs.
fn size(p: &Problem<'_>, at: &Position) -> u64 {
    let host = at.hosts[0];
    let eligible = p.eligible(at.kind, host);
    let cells = p.hosts[host as usize].cells.iter().enumerate();
    let total = cells.filter(|(c, _)| eligible & (1 << c) != 0).map(|(_, c)| c.total).max();
    total.unwrap_or(u64::MAX)
}
