#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;
use std::thread;

use serde_json::{Value, json};

use super::super::bound;
use super::super::compile::NONE;
use super::super::read::read;
use super::super::search::Dice;
use super::super::state::State;
use super::super::{Answer, Control, solve};
use super::*;

/// Gangs over one host and several, replicas that are kept apart or share copies, some of which run, on hosts that are
/// nearly full.
fn world(hosts: usize, services: usize) -> WorldFile {
    let gpus = |h: usize| -> Vec<Value> {
        let island = if h.is_multiple_of(3) { 4 } else { 8 };
        (0..8).map(|i| json!({"index": i, "model": "H100", "memory_total": "80GiB", "island": i / island, "numa": i / 4})).collect()
    };
    let host =
        |h: usize| json!({"name": format!("h{h}"), "rack": format!("r{}", h / 3), "gpus": gpus(h)});
    let service = |s: usize| {
        let (tensor, pipeline) = [(1, 1), (2, 1), (4, 1), (2, 3), (8, 1), (4, 3)][s % 6];
        let spread = ["none", "rack", "pack"][s % 3];
        json!({"name": format!("s{s}"), "replicas": 1 + u32::from(tensor < 4 && s.is_multiple_of(4)), "priority": s % 2,
            "shapes": [{"tensor": tensor, "pipeline": pipeline, "memory": "60GiB"}],
            "spread": spread, "weights_bytes": format!("{}GiB", 5 + s),
            "weights_on": [format!("h{}", s * 7 % hosts)]})
    };
    let running = json!([{"service": "s0", "replica": 0, "ranks": [{"host": "h1", "gpus": [3]}]},
        {"service": "s1", "replica": 0, "ranks": [{"host": "h2", "gpus": [0, 1]}]}]);
    let world = json!({"hosts": (0..hosts).map(host).collect::<Vec<_>>(), "placements": running,
        "services": (0..services).map(service).collect::<Vec<_>>()});
    read(&world.to_string(), "world").unwrap()
}

/// As many searches as asked for, from the same first placement.
fn searches<'a>(p: &'a Problem<'a>, count: usize) -> Vec<Search<'a>> {
    let begin = |number: usize| {
        let mut search = Search::new(p);
        search.construct(&mut || false);
        search.throw_other_dice(number);
        search
    };
    (0..count).map(begin).collect()
}

fn counted(p: &Problem<'_>, at: &[Option<Position>]) -> Score {
    let mut state = State::new(p);
    for keep in [true, false] {
        for (slot, at) in at.iter().enumerate() {
            if let Some(at) = at.as_ref().filter(|at| (at.keep != NONE) == keep) {
                assert!(state.place(u32::try_from(slot).unwrap(), at.clone()));
            }
        }
    }
    state.score()
}

/// However the attempts of several fall between each other, they have one placement, it is counted right, and nothing
/// is lost by it.
#[test]
fn members_have_one_placement_whoever_is_behind() {
    let p = compile(&world(9, 30), Clock::none());
    let mut all = searches(&p, 3);
    let shared = Shared::new(all[0].state.at.clone());
    let mut members: Vec<Member<'_>> = (0..3).map(|n| Member::new(n, &shared)).collect();
    let mut dice = Dice::new(7);
    let (mut written, mut taken_back) = (0, 0);
    let mut before = counted(&p, &shared.at());
    for n in 0..6000 {
        let one = dice.below(3);
        let (member, search) = (&mut members[one], &mut all[one]);
        if n % 16 == 0 {
            search.look_around();
        }
        // Often without a look at what the others did: as if they did it while this one attempted.
        if dice.below(10) == 0 {
            member.catch_up(search);
        }
        search.attempt(if n < 4000 { 1e10 } else { 0.0 });
        let changed = search.changed().len();
        let log = lock(&shared.journal).written();
        member.write_down(search);
        let wrote = lock(&shared.journal).written() > log;
        written += usize::from(wrote);
        taken_back += usize::from(changed > 0 && !wrote);
        if wrote || n % 8 == 0 {
            let now = counted(&p, &shared.at());
            assert!(now.unplaced <= before.unplaced);
            before = now;
        }
    }
    assert!(written > 100 && taken_back > 10, "{written} written, {taken_back} taken back");
    for (member, search) in members.iter_mut().zip(&mut all) {
        member.catch_up(search);
        assert!(!member.alone);
        assert_eq!(search.state.at, shared.at());
        assert_eq!(search.state.score(), before);
    }
}

#[test]
fn who_is_far_behind_takes_over_the_whole_placement() {
    let p = compile(&world(9, 30), Clock::none());
    let mut all = searches(&p, 2);
    let shared = Shared::new(all[0].state.at.clone());
    let (mut quick, mut slow) = (Member::new(0, &shared), Member::new(1, &shared));
    let begun = all[1].state.at.clone();
    while lock(&shared.journal).first < 5 {
        all[0].look_around();
        for _ in 0..64 {
            quick.attempt(&mut all[0], 1e11);
        }
    }
    assert_eq!(lock(&shared.journal).changes.len(), KEPT);
    assert_ne!(begun, shared.at());
    slow.attempt(&mut all[1], 0.0);
    quick.catch_up(&mut all[0]);
    assert_eq!(all[1].state.at, shared.at());
    assert_eq!(all[0].state.at, shared.at());
}

fn threads(count: usize, help: &(dyn Fn(usize) + Sync), own: &mut dyn FnMut()) {
    thread::scope(|scope| {
        for number in 0..count {
            scope.spawn(move || help(number));
        }
        own();
    });
}

fn placed(world: &WorldFile, max_steps: u64, helpers: Option<Helpers<'_>>) -> Answer {
    let mut asked = 0.0;
    let mut used = || {
        asked += 1.0;
        asked / 40_000.0
    };
    let mut control =
        Control { used: &mut used, first: &mut || (), max_steps, explain: false, helpers };
    solve(world, &mut control).unwrap()
}

#[test]
fn helpers_find_what_is_allowed() {
    let world = world(18, 64);
    let helped = AtomicUsize::new(0);
    let run = |count: usize, help: &(dyn Fn(usize) + Sync), own: &mut dyn FnMut()| {
        let counted = |number: usize| {
            helped.fetch_add(1, Ordering::Relaxed);
            help(number);
        };
        threads(count, &counted, own);
    };
    let answer = placed(&world, u64::MAX, Some(Helpers { count: 3, run: &run }));
    assert_eq!(helped.load(Ordering::Relaxed), 3);
    let ranks = answer.services.iter().flat_map(|s| &s.replicas).flat_map(|r| &r.ranks);
    let mut taken: Vec<(&str, u32)> =
        ranks.flat_map(|rank| rank.gpus.iter().map(|gpu| (rank.host.as_str(), *gpu))).collect();
    let all = taken.len();
    taken.sort_unstable();
    taken.dedup();
    assert!(taken.len() == all && all > 100, "{all}, each once: {}", taken.len());
    let alone = placed(&world, 1, None);
    assert!(answer.placed >= alone.placed && answer.search.steps > alone.search.steps);
}

/// With a bound on attempts the answer is the same everywhere, so nobody helps.
#[test]
fn bounded_attempts_are_made_alone() {
    let run = |_: usize, _: &(dyn Fn(usize) + Sync), _: &mut dyn FnMut()| panic!("was asked");
    let world = world(18, 64);
    let answer = placed(&world, 2000, Some(Helpers { count: 3, run: &run }));
    assert_eq!(answer, placed(&world, 2000, None));
}

/// The walk alone, with these helpers and this time, from the first placement of a world on that needs none better.
fn walked(count: usize, run: &Run<'_>, used: &dyn Fn() -> f64) -> (Best, Best) {
    let world = world(9, 6);
    let p = compile(&world, Clock::none());
    let mut search = searches(&p, 1).remove(0);
    let first = Best::of(&search.state);
    let until = Until { from: 0.0, to: 0.5, hurry: 0.9 };
    let helpers = (count, Helpers { count, run });
    let (best, _) = improve(&world, &mut search, &bound::ideal(&p), helpers, until, used);
    (first, best)
}

type Run<'a> = dyn Fn(usize, &(dyn Fn(usize) + Sync), &mut dyn FnMut()) + 'a;

#[test]
fn helpers_that_come_late_or_never_are_no_harm() {
    let asked = AtomicUsize::new(0);
    let used = || asked.fetch_add(1, Ordering::Relaxed) as f64 / 1000.0;
    let late = |_: usize, help: &(dyn Fn(usize) + Sync), own: &mut dyn FnMut()| {
        own();
        help(0);
    };
    let (first, best) = walked(3, &late, &used);
    assert!(best.score <= first.score);
    let (first, best) = walked(3, &|_, _, _| (), &|| 0.0);
    assert_eq!(best.score, first.score);
}

/// Whoever tells the time may panic: the others end, and the panic goes on.
#[test]
fn a_panic_ends_the_search_of_all() {
    let asked = AtomicUsize::new(0);
    let used = || {
        assert!(asked.fetch_add(1, Ordering::Relaxed) < 20, "no time any more");
        0.0
    };
    let world = world(18, 64);
    let p = compile(&world, Clock::none());
    let mut search = searches(&p, 1).remove(0);
    let until = Until { from: 0.0, to: 0.5, hurry: 0.9 };
    let ideal = bound::ideal(&p);
    let helpers = (2, Helpers { count: 2, run: &threads });
    let mut walk = || improve(&world, &mut search, &ideal, helpers, until, &used);
    assert!(catch_unwind(AssertUnwindSafe(&mut walk)).is_err());
}
