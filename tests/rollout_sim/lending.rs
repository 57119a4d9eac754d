//! Two services of which one borrows from the other for its rollouts: told, and with random faults.

use std::collections::BTreeMap;
use std::time::Duration;

use deciding::base::{ReleaseNumber, ReplicaKey, ServiceName};
use deciding::rollout::{
    Borrowing, Condition, EventKind, Gate, LentReplica, Outcome, Phase, Release, RolloutKind,
    Timings, forecast, forecast_with, lending,
};
use deciding::spec::{StepSpec, Strategy};

use crate::build::{Place, Rng, release, single, spec};
use crate::planted::Bug;
use crate::world::{Counts, Nature, World};

const HOUR: Duration = Duration::from_hours(1);
/// The lender's release.
const BATCH: ReleaseNumber = ReleaseNumber(100);

fn batch() -> ServiceName {
    "batch".parse().unwrap()
}

fn gpu(index: u32) -> Vec<Place> {
    vec![(0, index)]
}

/// The lender has two replicas, on GPU 3 and 4; one of them it can do without.
fn lenders_release() -> Release {
    let mut made = release(BATCH.0, spec(2, 1, 0), &[gpu(3), gpu(4)]);
    made.service = batch();
    made
}

/// A release of the borrower that has GPU 3 of the lender, and 0 and 1 in place of the old ones: GPU 2
/// is free in the end, and the lender comes back there.
fn borrowers_release(number: u64) -> Release {
    let mut made = release(number, spec(3, 0, 1), &[gpu(3), gpu(0), gpu(1)]);
    let lent = lenders_release().replicas.remove(0);
    let mut back = lent.clone();
    let there = release(1, spec(1, 0, 1), &[gpu(2)]);
    back.ranks[0].devices.clone_from(&there.replicas[0].ranks[0].devices);
    let replicas = vec![LentReplica { replica: 0, plan: lent, back: Some(back) }];
    made.borrowing = Some(Box::new(Borrowing { lender: batch(), of: BATCH, replicas }));
    made
}

/// It serves, all of it is in the gateway's table, and nothing is under way.
fn rests(world: &World) -> bool {
    let state = &world.state;
    world.quiet()
        && state.active_rollout().is_none()
        && state.condition() == Condition::Serving
        && state
            .replicas
            .iter()
            .all(|(key, r)| Some(key.release) == state.stable && r.phase == Phase::Ready)
        && state.traffic_applied == state.traffic_version
}

struct Pair {
    borrower: World,
    lender: World,
    bug: Option<Bug>,
}

impl Pair {
    /// Both serve; the borrower three replicas of r1 on GPU 0, 1 and 2.
    fn serving(seed: u64) -> Self {
        let mut borrower = World::new(seed);
        borrower.request(
            &release(1, spec(3, 0, 1), &single(0, 3)),
            RolloutKind::Apply,
            Nature::Good,
        );
        let mut lender = World::of(batch(), seed ^ 0xBA7C);
        lender.request(&lenders_release(), RolloutKind::Apply, Nature::Good);
        let mut pair = Self { borrower, lender, bug: None };
        assert!(pair.run_until(Self::at_rest));
        pair.borrower.lowest_ready = u32::MAX;
        pair.lender.lowest_ready = u32::MAX;
        pair.borrower.actions.clear();
        pair.lender.actions.clear();
        pair
    }

    fn turn(&mut self) {
        if self.borrower.now <= self.lender.now {
            self.borrower.turn();
        } else {
            self.lender.turn();
        }
        self.bridge();
        let held = self.lender.held();
        for (device, rank) in self.borrower.held() {
            let other = held.get(&device);
            assert!(other.is_none(), "{rank:?} and {other:?} both run on {device:?}");
        }
    }

    /// What the controller does for loans at every tick.
    fn bridge(&mut self) {
        let services: BTreeMap<ServiceName, _> = [&self.borrower, &self.lender]
            .into_iter()
            .map(|w| (w.state.service.clone(), w.state.clone()))
            .collect();
        let mut due = lending::due(&services);
        match self.bug {
            Some(Bug::ForgetReturn) => {
                due.retain(|(_, kind)| !matches!(kind, EventKind::LentReturned { .. }));
            }
            Some(Bug::ReturnEarly) => {
                if let Some(loan) = self.lender.state.loans.first()
                    && !self.lender.state.replicas.contains_key(&loan.replica)
                    && self.borrower.state.ready(ReleaseNumber(2)) > 0
                {
                    let kind = EventKind::LentReturned { replica: loan.replica, elsewhere: false };
                    due.push((batch(), kind));
                }
            }
            Some(Bug::StartOnBorrowed) => {
                let rollout = self.borrower.state.active_rollout();
                if let Some(release) = rollout.map(|r| r.to)
                    && self.borrower.state.borrowed != Some(release)
                {
                    let kind = EventKind::LoanReady { release };
                    due.push((self.borrower.state.service.clone(), kind));
                }
            }
            _ => {}
        }
        for (service, kind) in due {
            let world = if service == batch() { &mut self.lender } else { &mut self.borrower };
            // While it cannot be written down it is not asked for again and again.
            if !world.disk_is_full() {
                world.tell(kind);
            }
        }
    }

    fn run_until(&mut self, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.borrower.now.plus(HOUR * 4);
        while self.borrower.now < end {
            if done(self) {
                return true;
            }
            self.turn();
            self.borrower.person();
        }
        done(self)
    }

    fn at_rest(&self) -> bool {
        rests(&self.borrower) && rests(&self.lender) && self.lender.state.loans.is_empty()
    }

    /// The borrower was stopped, the gateway knows it, and the lender has everything back.
    fn stopped(&self) -> bool {
        let borrower = &self.borrower.state;
        borrower.condition() == Condition::Stopped
            && borrower.traffic_applied == borrower.traffic_version
            && self.borrower.quiet()
            && rests(&self.lender)
            && self.lender.state.loans.is_empty()
    }

    fn check(&self) {
        for world in [&self.borrower, &self.lender] {
            world.check_rest();
            world.check_replay();
        }
        assert_eq!(self.lender.state.ready_total(), 2, "what was lent is back");
    }

    fn ask(&mut self, nature: Nature) {
        self.borrower.request(&borrowers_release(2), RolloutKind::Apply, nature);
        self.bridge();
    }

    fn outcome(&self) -> &Outcome {
        self.borrower.state.rollout.as_ref().unwrap().outcome.as_ref().unwrap()
    }

    /// Whether the lender's first replica runs again, and at home.
    fn is_home(&self) -> bool {
        self.lender.state.replicas.contains_key(&ReplicaKey { release: BATCH, replica: 0 })
    }
}

#[test]
fn a_deadlock_is_no_deadlock_with_something_borrowed() {
    let mut pair = Pair::serving(1);
    let next = borrowers_release(2);
    let mut alone = next.clone();
    alone.borrowing = None;
    alone.replicas = release(2, spec(3, 0, 1), &single(0, 3)).replicas;
    assert!(forecast(&pair.borrower.state, &alone, RolloutKind::Apply).is_err());
    let foreseen = forecast(&pair.borrower.state, &next, RolloutKind::Apply).unwrap();
    assert_eq!((foreseen.lowest_ready, foreseen.floor), (3, 3));
    // What lends its place drains and stops in its own time.
    let total = |timings: &Timings| {
        let foreseen =
            forecast_with(&pair.borrower.state, &next, RolloutKind::Apply, timings).unwrap();
        Duration::from_millis(foreseen.stages.iter().map(|stage| stage.took_ms).sum())
    };
    let minute = Duration::from_mins(1);
    let own = Timings { drain: Some(minute), stop: Some(minute), ..Timings::default() };
    let lenders = Timings { lender: (Some(7 * minute), Some(2 * minute)), ..own.clone() };
    assert_eq!(total(&lenders) - total(&own), 9 * minute);

    pair.ask(Nature::Good);
    let drains = |p: &Pair| {
        p.lender.state.condition() == Condition::Serving && p.lender.state.ready_total() == 1
    };
    assert!(drains(&pair), "one of two is lent, and that is as it should be");
    // No apply and no further loan of the lender meanwhile.
    let own = forecast(&pair.lender.state, &lenders_release(), RolloutKind::Apply).unwrap_err();
    assert!(own.reason.contains("is lent to chat"), "{own}");
    assert_eq!(pair.lender.state.can_lend(), 0);
    assert!(pair.run_until(Pair::at_rest));
    assert_eq!(*pair.outcome(), Outcome::Completed);
    assert_eq!((pair.borrower.lowest_ready, pair.lender.lowest_ready), (3, 1));
    // The new release stayed on GPU 3: the lender is back where the old one was.
    assert!(!pair.is_home());
    pair.check();
}

#[test]
fn what_was_borrowed_comes_home_when_the_rollout_is_taken_back() {
    for nature in [Nature::Crashes, Nature::Never, Nature::Hangs] {
        let mut pair = Pair::serving(2);
        pair.ask(nature);
        assert!(pair.run_until(Pair::at_rest), "{nature:?}");
        assert!(matches!(pair.outcome(), Outcome::RolledBack { .. }));
        assert!(pair.is_home());
        assert_eq!((pair.borrower.lowest_ready, pair.lender.lowest_ready), (3, 1));
        pair.check();
    }
}

#[test]
fn an_abort_while_the_lender_drains_lets_it_serve_on() {
    let mut pair = Pair::serving(3);
    pair.ask(Nature::Good);
    pair.borrower.by_ada(|by| EventKind::Aborted { by, reason: None });
    assert!(pair.run_until(Pair::at_rest));
    let attempts: Vec<u32> =
        pair.lender.state.replicas.values().map(|r| r.attempt.0.get()).collect();
    assert_eq!(attempts, [1, 1], "nothing of it was stopped");
    pair.check();
}

#[test]
fn a_lender_that_cannot_do_without_lends_nothing_and_the_rollout_ends() {
    let mut pair = Pair::serving(4);
    let rank = pair.lender.running()[0].clone();
    pair.lender.natures.insert(BATCH, Nature::Hangs);
    pair.lender.kill(&rank, "killed");
    pair.ask(Nature::Good);
    assert!(pair.lender.state.loans.is_empty());
    assert!(pair.run_until(|p| p.borrower.state.active_rollout().is_none()));
    let Outcome::RolledBack { why } = pair.outcome() else { panic!("{:?}", pair.outcome()) };
    assert!(why.contains("batch has not given over what is borrowed from it"), "{why}");
    pair.lender.natures.insert(BATCH, Nature::Good);
    assert!(pair.run_until(Pair::at_rest));
    pair.check();
}

#[test]
fn a_held_rollout_keeps_what_it_borrowed_and_a_stopped_borrower_gives_it_back() {
    let mut pair = Pair::serving(5);
    let mut next = borrowers_release(2);
    next.spec.rollout.steps = vec![StepSpec::Weight(30), StepSpec::Approve(true)];
    pair.borrower.request(&next, RolloutKind::Apply, Nature::Good);
    let waits = |p: &Pair| {
        let gate = p.borrower.state.active_rollout().and_then(|r| r.gate.as_ref());
        matches!(gate, Some(Gate::Approve))
    };
    let end = pair.borrower.now.plus(HOUR);
    while pair.borrower.now < end {
        pair.turn();
    }
    assert!(waits(&pair));
    assert_eq!(pair.lender.state.loans.len(), 1);
    pair.borrower.by_ada(|by| EventKind::StopRequested { by, reason: None });
    assert!(pair.run_until(Pair::stopped));
    assert!(pair.is_home() && pair.lender.state.loans.is_empty());
    pair.lender.check_rest();
}

/// Plays one seed, with a planted bug if one is given.
pub fn seed(seed: u64, trace: bool, bug: Option<Bug>) -> Counts {
    let mut pair = Pair::serving(seed);
    pair.bug = bug;
    let mut make = Rng(seed ^ 0x1E4D);
    for world in [&mut pair.borrower, &mut pair.lender] {
        world.trace = trace;
        world.faults = !make.one_in(5);
    }
    let mut next = borrowers_release(2);
    match make.below(4) {
        0 => next.spec.rollout.steps = vec![StepSpec::Weight(30), StepSpec::Approve(true)],
        1 => next.spec.rollout.strategy = Some(Strategy::Recreate),
        _ => {}
    }
    let nature = match make.below(8) {
        0 => Nature::Crashes,
        1 => Nature::Hangs,
        2 => Nature::Never,
        _ => Nature::Good,
    };
    pair.borrower.request(&next, RolloutKind::Apply, nature);
    let turns = 60 + make.below(400);
    for turn in 0..turns {
        pair.turn();
        if turn.is_multiple_of(20) {
            pair.borrower.person();
        }
    }
    let lent = !pair.lender.state.loans.is_empty() || pair.borrower.state.borrowed.is_some();
    if make.one_in(25) {
        pair.borrower.by_ada(|by| EventKind::StopRequested { by, reason: None });
    }
    for world in [&mut pair.borrower, &mut pair.lender] {
        world.calm();
    }
    let done = pair.run_until(|p| p.at_rest() || p.stopped());
    if !done && pair.borrower.held_by_the_floor() {
        // A person has to say that less may serve; what holds a borrowed place serves meanwhile.
        *pair.borrower.counts.entry("held by the floor").or_default() += 1;
        pair.borrower.check_replay();
        pair.lender.check_replay();
        if pair.lender.state.loans.is_empty() && rests(&pair.lender) {
            pair.lender.check_rest();
        }
    } else {
        assert!(done, "no rest: {:#?} {:#?}", pair.borrower.state, pair.lender.state);
        pair.check();
    }
    let completed = pair.borrower.state.rollout.as_ref().and_then(|r| r.outcome.as_ref())
        == Some(&Outcome::Completed);
    let mut counts = std::mem::take(&mut pair.borrower.counts);
    for (what, n) in std::mem::take(&mut pair.lender.counts) {
        *counts.entry(what).or_default() += n;
    }
    let what = match (lent, completed) {
        (true, true) => "borrowed and completed",
        (true, false) => "borrowed and taken back",
        (false, _) => "nothing borrowed",
    };
    *counts.entry(what).or_default() += 1;
    *counts.entry("events").or_default() += pair.borrower.events() + pair.lender.events();
    counts
}
