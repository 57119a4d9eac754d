//! What the result of an attempt has to meet to be kept: simulated annealing, whose draw is made before the attempt, so
//! that what can no longer meet it is broken off (Kirkpatrick, Gelatt and Vecchi 1983; Metropolis' rule).

use super::search::Dice;
use super::state::{Levels, State};

/// What the levels weigh while it is hot, in mean bytes of a service's weights.
const TIGHT: f64 = 2.0;
const LINK: f64 = 3.0;
const DISPLACED: f64 = 4.0;
const MOVE: f64 = 40.0;
const CROWD: f64 = 160.0;

/// The bar of an attempt.
#[derive(Debug)]
pub(super) struct Bar {
    /// The mean bytes of a service that has any: what the other levels are weighed in.
    pub grain: f64,
    /// Before the attempt.
    unplaced: Vec<i64>,
    levels: Levels,
    /// How much worse it may become while it is hot, weighed; none once it is cold.
    worse: Option<f64>,
}

impl Bar {
    pub fn new(grain: f64) -> Self {
        Self { grain, unplaced: Vec::new(), levels: Levels::default(), worse: None }
    }

    /// Before an attempt. `heat` is how many bytes more are now and then accepted.
    pub fn set(&mut self, state: &State<'_>, heat: f64, dice: &mut Dice) {
        self.unplaced.clear();
        self.unplaced.extend_from_slice(state.unplaced());
        self.levels = state.levels();
        self.worse = (heat > 0.0).then(|| -heat * dice.unit().max(f64::MIN_POSITIVE).ln());
    }

    /// Whether what an attempt made of it is kept. Replicas are never given up; as long as it is hot, the other levels
    /// are weighed against each other, the more important the heavier.
    pub fn accepts(&self, state: &State<'_>) -> bool {
        let order = state.unplaced().cmp(self.unplaced.as_slice());
        order.is_lt() || order.is_eq() && self.meets(state.levels())
    }

    /// Whether an attempt under way on a slot that had a place can still meet the bar: what is yet to find another
    /// costs what it is `owed` at best, unless something that runs may come back.
    pub fn promises(&self, state: &State<'_>, owed: &Levels) -> bool {
        let mut now = state.levels();
        now.link += owed.link;
        now.tight += owed.tight;
        now.bytes += owed.bytes;
        now.moves > self.levels.moves || now.displaced > self.levels.displaced || self.meets(now)
    }

    fn meets(&self, now: Levels) -> bool {
        let before = &self.levels;
        let Some(worse) = self.worse else { return now <= *before };
        let weighed = (now.tight - before.tight) as f64 * TIGHT
            + (now.displaced - before.displaced) as f64 * DISPLACED
            + (now.link - before.link) as f64 * LINK
            + (now.moves - before.moves) as f64 * MOVE
            + (now.crowded - before.crowded) as f64 * CROWD;
        (now.bytes - before.bytes) as f64 + weighed * self.grain <= worse
    }
}
