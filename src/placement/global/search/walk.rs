//! A walk from placement to placement: hot at the beginning, cold at the end, and the best that it came by.

use super::super::compile::{NONE, Problem};
use super::super::state::{Position, Score, State};
use super::{Search, Undo};

/// The temperature at the beginning and at the end, in mean bytes of a service's weights, and the share of the time that is hot. Found by
/// trying on the worlds of `tests/placement_oracle`.
const HOTTEST: f64 = 0.9;
const COOLEST: f64 = 0.04;
const HOT: f64 = 0.94;

/// The mean bytes of the weights of a service that has any.
pub(super) fn grain(p: &Problem<'_>) -> f64 {
    let sizes: Vec<f64> = p.services.iter().map(|s| s.bytes as f64).filter(|b| *b > 0.0).collect();
    if sizes.is_empty() { 1.0 } else { sizes.iter().sum::<f64>() / sizes.len() as f64 }
}

/// The best placement so far.
#[derive(Clone, Debug)]
pub(in crate::placement::global) struct Best {
    pub score: Score,
    pub at: Vec<Option<Position>>,
}

impl Best {
    pub fn of(state: &State<'_>) -> Self {
        Self { score: state.score(), at: state.at.clone() }
    }
}

/// Searches until `progress` (0 at the beginning, 1 at the end) says that it is over or nothing can be better than
/// `ideal`. Gives the best and the number of attempts.
pub(in crate::placement::global) fn improve(
    search: &mut Search<'_>,
    ideal: &Score,
    progress: &mut dyn FnMut(u64) -> f64,
) -> (Best, u64) {
    improve_by(search, ideal, progress, &mut |search, heat| search.attempt(heat))
}

/// The same, where an attempt is more than that of the search alone.
pub(in crate::placement::global) fn improve_by<'a>(
    search: &mut Search<'a>,
    ideal: &Score,
    progress: &mut dyn FnMut(u64) -> f64,
    attempt: &mut dyn FnMut(&mut Search<'a>, f64),
) -> (Best, u64) {
    let mut best = Best::of(&search.state);
    let grain = search.bar.grain;
    let mut steps = 0;
    let mut done = progress(0);
    while done < 1.0 && best.score > *ideal {
        // The last part is cold: downhill only, all levels strictly in their order.
        let heat =
            if done > HOT { 0.0 } else { grain * HOTTEST * (COOLEST / HOTTEST).powf(done / HOT) };
        search.look_around();
        for n in 1..=64 {
            attempt(search, heat);
            steps += 1;
            // Where GPUs differ much, an attempt can take a millisecond.
            if n % 8 == 0 && progress(steps) >= 1.0 {
                break;
            }
        }
        let now = (search.state.unplaced(), search.state.levels());
        if now < (best.score.unplaced.as_slice(), best.score.levels) {
            best = Best::of(&search.state);
        }
        done = progress(steps);
    }
    (best, steps)
}

impl Search<'_> {
    /// Goes on from this placement.
    pub fn start_from(&mut self, best: &Best) {
        let all: Vec<u32> = (0..self.p.slots.len() as u32).collect();
        self.adopt(&all, |slot| best.at[slot as usize].as_ref());
    }

    /// Puts these slots where `at` says, those that stay first: the others are fitted around them. False if one does not
    /// fit, which then has no place.
    pub fn adopt<'b>(&mut self, slots: &[u32], at: impl Fn(u32) -> Option<&'b Position>) -> bool {
        for slot in slots {
            self.state.remove(*slot);
        }
        let mut all = true;
        for keep in [true, false] {
            for slot in slots {
                if let Some(position) = at(*slot).filter(|at| (at.keep != NONE) == keep) {
                    all &= self.state.place(*slot, position.clone());
                }
            }
        }
        all
    }

    /// The slots that the last attempt changed, and where each was before.
    pub fn changed(&self) -> Vec<(u32, Option<Position>)> {
        let mut all: Vec<(u32, Option<Position>)> = Vec::new();
        for undo in &self.undo {
            let (slot, was) = match undo {
                Undo::Placed(slot) => (*slot, None),
                Undo::Removed(slot, position) => (*slot, Some(position)),
            };
            if all.iter().all(|(known, _)| *known != slot) {
                all.push((slot, was.cloned()));
            }
        }
        all.retain(|(slot, was)| self.state.at[*slot as usize] != *was);
        all
    }
}
