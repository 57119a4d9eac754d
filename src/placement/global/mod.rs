//! Places all services of a world at once, as well as can be, and says how well that is.
//!
//! [`file`] is the world as one JSON file and [`read`] checks it, `compile` makes tables of it, `layout` divides one
//! host, `state` keeps a placement and its worth, `search` finds good ones (`wide` where replicas lie on several hosts, `team`
//! with the caller's threads), `offers` which shapes a deck's services are asked about with,
//! `exact` all of a small world, `bound` says what cannot be bettered, `answer` and `why` tell it. The objective is
//! defined in `docs/placement.md`. No clock: the caller says through [`Control`] how much of its time is used.

// `read` bounds a world's hosts, GPUs and ranks: their counts fit every integer used here, and tables
// that belong together are walked by one index.
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::needless_range_loop)]
#![allow(clippy::type_complexity)]

mod alike;
pub mod answer;
mod bar;
mod bound;
mod clock;
mod compile;
mod exact;
mod few;
pub mod file;
mod layout;
mod leaves;
mod never;
mod offers;
mod places;
mod polish;
pub mod read;
mod search;
mod state;
mod team;
mod why;
mod wide;

pub use answer::{Answer, Level, Search as SearchFacts};
pub(super) use compile::{Joined, ON_NODE, ON_SWITCH, Share, headroom, link_cost, vacated};
pub use file::WorldFile;
pub(super) use offers::{Offers, solve_offering};
pub use read::{WorldError, Wrong, check, read};
pub use team::Helpers;

use self::search::{Best, improve};
use self::state::{Levels, Score};

/// How long to search, and who is told.
pub struct Control<'a> {
    /// The share of the time that is used, 1 or more: all of it.
    pub used: &'a mut dyn FnMut() -> f64,
    /// Called once, when the first placement is there.
    pub first: &'a mut dyn FnMut(),
    /// Attempts at most: with it alone the answer is the same on every machine.
    pub max_steps: u64,
    /// Name every host in the reasons, not just some.
    pub explain: bool,
    /// Threads to search with beside this one. Not asked where attempts are bounded, since with them no two answers need
    /// be the same.
    pub helpers: Option<Helpers<'a>>,
}

/// Attempts before every placement of a small world is looked at.
const STEPS_BEFORE_EXACT: u64 = 1024;
/// Of the time, the share after which the first placement is not to take much longer.
const PLACING: f64 = 0.25;
/// Of the time, the share for improving; what is left is for the bounds.
const IMPROVING: f64 = 0.87;
/// And until here for the bounds.
const BOUNDING: f64 = 0.92;
/// And until here for the reasons, so that the answer is there in time.
const TELLING: f64 = 0.98;

/// Places everything. The world must have passed [`check`], which is done again.
pub fn solve(world: &WorldFile, control: &mut Control<'_>) -> Result<Answer, Wrong> {
    solve_as(world, None, control)
}

/// The same, where how many replicas may share a failure domain is said by `asked`, a world with the same services: what
/// is held in `world` only so that it stays takes no domain away.
pub(super) fn solve_as(
    world: &WorldFile,
    asked: Option<&WorldFile>,
    control: &mut Control<'_>,
) -> Result<Answer, Wrong> {
    check(world)?;
    let clock = std::cell::RefCell::new(&mut *control.used);
    // It is asked by one at a time: whoever asks has it back at once.
    let used = || clock.try_borrow_mut().map_or(1.0, |mut used| used());
    let mut problem = compile::compile(world, clock::Clock::new(&used));
    if let Some(asked) = asked {
        check(asked)?;
        let asked = compile::compile(asked, clock::Clock::new(&used));
        for (service, asked) in problem.services.iter_mut().zip(&asked.services) {
            (service.quota, service.host_quota) = (asked.quota, asked.host_quota);
        }
    }
    let problem = problem;
    problem.clock.hurry_from(PLACING);
    let mut search = search::Search::new(&problem);
    search.construct(&mut || used() >= PLACING);
    (control.first)();
    problem.clock.hurry_from(BOUNDING);
    let ideal = bound::ideal(&problem);
    let max_steps = control.max_steps.max(1);
    let (mut best, mut steps) = improve(&mut search, &ideal, &mut |steps| {
        (steps as f64 / STEPS_BEFORE_EXACT.min(max_steps) as f64).max(used() / IMPROVING)
    });
    let mut proven = best.score == ideal;
    if !proven {
        // Half of what is left.
        let from = used();
        let until = f64::midpoint(from, IMPROVING);
        let mut looks = max_steps / 16;
        proven = exact::search(&problem, &mut best, &mut || {
            looks = looks.saturating_sub(1);
            looks == 0 || used() >= until
        });
        // What is known of a host that was not divided as well as can be proves nothing.
        proven &= !problem.guessed.get();
    }
    if !proven {
        search.start_from(&best);
        let from = used();
        let before = steps;
        let left = max_steps.saturating_sub(before).max(1);
        // They begin with tables of their own: where these took long, they would not be there in time.
        let helpers = control.helpers.filter(|_| max_steps == u64::MAX && from < PLACING);
        let (more, n) = match (helpers, team::fitting(&problem, helpers)) {
            (Some(helpers), count @ 1..) => {
                let until = team::Until { from, to: IMPROVING, hurry: BOUNDING };
                team::improve(world, &mut search, &ideal, (count, helpers), until, &used)
            }
            _ => improve(&mut search, &ideal, &mut |steps| {
                let time = (used() - from) / (IMPROVING - from).max(1e-9);
                (steps as f64 / left as f64).max(time)
            }),
        };
        steps += n;
        if more.score < best.score {
            best = more;
        }
        proven = best.score == ideal;
    }
    polish::polish(&mut search, &mut best, &mut || used() >= BOUNDING);
    let bounds = bounds(&problem, &best, ideal, proven, &mut || used() >= BOUNDING);
    let mut over = || used() >= TELLING;
    let mut answer = answer::tell(world, &problem, &best, &bounds, control.explain, &mut over);
    answer.search.steps = steps;
    let ended = match () {
        () if answer.proven_optimal => "proven",
        () if steps >= max_steps => "steps",
        () => "time",
    };
    ended.clone_into(&mut answer.search.ended);
    Ok(answer)
}

/// A bound for each level, given the levels before it.
fn bounds(
    problem: &compile::Problem<'_>,
    best: &Best,
    ideal: Score,
    proven: bool,
    over: &mut dyn FnMut() -> bool,
) -> Score {
    if proven {
        return best.score.clone();
    }
    let mut bounds = ideal;
    if bounds.unplaced != best.score.unplaced {
        bounds.levels = bound::levels(problem, &best.score.unplaced);
    }
    let upper = |l: &Levels| (l.crowded, l.moves, l.link, l.displaced, l.tight);
    let same = bounds.unplaced == best.score.unplaced
        && upper(&bounds.levels) == upper(&best.score.levels);
    if same && bounds.levels.bytes < best.score.levels.bytes {
        let priced = bound::bytes(problem, &best.score, 60, over);
        bounds.levels.bytes = bounds.levels.bytes.max(priced);
    }
    bounds
}

#[cfg(test)]
mod gang_tests;
#[cfg(test)]
mod odd_tests;
#[cfg(test)]
mod tests;
