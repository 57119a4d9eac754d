//! Several services in one rollout, with random faults: the group's decider above a world for each service, a controller
//! that is killed between what it does and what it writes down, a person who holds it or takes it back, and others who do
//! something to one of the services (`people`).

mod people;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deciding::base::{ReleaseId, ReleaseNumber, ServiceName, Timestamp};
use deciding::rollout::group::{
    Answer, Begin, Group, GroupEntry, GroupMove, GroupState, GroupSteer, forward, order,
};
use deciding::rollout::{EventKind, Outcome, Release, RolloutKind, ServiceState};
use uuid::Uuid;

use crate::build::{Rng, single, spec};
use crate::draw::draw;
use crate::rest::{REST, at_rest};
use crate::world::{Counts, Nature, World};

/// Seeds within which every planted mistake must be caught.
const WITHIN: u64 = 500;

/// A mistake that somebody could make in the decider of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// The next one begins during a pause.
    ForgetPause,
    /// What comes after one that failed is begun.
    ForgetAfter,
    /// One that failed takes nothing back.
    ForgetFailure,
    /// An abort takes nothing back.
    ForgetAbort,
    /// The first one is taken back first.
    FirstBack,
    /// What had begun when the controller was killed is begun again.
    ForgetBegun,
    /// What a person stopped is begun, or taken back.
    IgnoreStop,
    /// What a person rolled out since is taken back.
    UndoNewer,
    /// A spec that was edited since is rolled out.
    TakeEdited,
    /// None at all: what is caught then is the play's own doing.
    Nothing,
}

const MISTAKES: [Mistake; 9] = [
    Mistake::ForgetPause,
    Mistake::ForgetAfter,
    Mistake::ForgetFailure,
    Mistake::ForgetAbort,
    Mistake::FirstBack,
    Mistake::ForgetBegun,
    Mistake::IgnoreStop,
    Mistake::UndoNewer,
    Mistake::TakeEdited,
];

impl Mistake {
    /// The group as a decider with this mistake sees it.
    fn blind(self, group: &mut Group) {
        match self {
            Self::ForgetPause => group.paused = None,
            Self::ForgetAfter => group.services.iter_mut().for_each(|e| e.after.clear()),
            Self::ForgetFailure => {
                for entry in &mut group.services {
                    if matches!(entry.state, GroupState::Failed { .. }) {
                        entry.state = GroupState::NothingToDo;
                    }
                }
            }
            Self::ForgetAbort => group.aborted = None,
            Self::FirstBack if group.goes_back() => group.services.reverse(),
            Self::TakeEdited => group.services.iter_mut().for_each(|e| e.digest = None),
            Self::FirstBack | Self::IgnoreStop | Self::UndoNewer | Self::Nothing => {}
            Self::ForgetBegun => group.began = Timestamp(u64::MAX / 2),
        }
    }
}

/// A line of the deck's journal about the group.
#[derive(Clone, Debug)]
enum Line {
    Went(ServiceName, GroupState),
    Steered(GroupSteer),
}

struct Together {
    worlds: BTreeMap<ServiceName, World>,
    group: Group,
    begun_as: Group,
    journal: Vec<(Timestamp, Line)>,
    /// A rollout that is being asked for, and until when: planning takes its time.
    asking: Option<(Begin, Timestamp)>,
    /// What is to be rolled out.
    wanted: BTreeMap<ServiceName, (Release, Nature)>,
    /// What was served before.
    before: BTreeMap<ServiceName, Option<ReleaseNumber>>,
    /// Services whose rollout has begun.
    begun: BTreeSet<ServiceName>,
    /// Services whose undo was refused.
    refused: BTreeSet<ServiceName>,
    /// Services whose undo has begun.
    undone: BTreeSet<ServiceName>,
    /// What others did.
    others: people::Others,
    /// Everything that was ever rolled out, as it was asked for.
    releases: BTreeMap<(ServiceName, ReleaseNumber), Release>,
    /// By the controller's one clock, which never goes back.
    now: Timestamp,
    rng: Rng,
    faults: bool,
    trace: bool,
    counts: Counts,
    mistake: Option<Mistake>,
}

impl Together {
    fn new(seed: u64, trace: bool, mistake: Option<Mistake>) -> Self {
        let mut rng = Rng(seed ^ 0x706E);
        let names: Vec<ServiceName> =
            ["a", "b", "c"].iter().take(2 + rng.index(2)).map(|n| n.parse().unwrap()).collect();
        let mut after = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            let of = names[..index].iter().filter(|_| rng.one_in(2)).cloned().collect::<Vec<_>>();
            after.insert(name.clone(), of);
        }
        let services = order(&after).unwrap().into_iter().map(|service| GroupEntry {
            after: after[&service].clone(),
            service,
            state: GroupState::Waiting,
            since: Timestamp(0),
            digest: Some(people::AGREED.to_owned()),
            accept_outage: None,
        });
        let group = Group {
            services: services.collect(),
            atomic: rng.one_in(2),
            by: "ada".to_owned(),
            reason: None,
            accept_outage: true,
            began: Timestamp(0),
            ended: None,
            paused: None,
            aborted: None,
        };
        let mut play = Self {
            worlds: BTreeMap::new(),
            begun_as: group.clone(),
            group,
            journal: Vec::new(),
            asking: None,
            wanted: BTreeMap::new(),
            before: BTreeMap::new(),
            begun: BTreeSet::new(),
            refused: BTreeSet::new(),
            undone: BTreeSet::new(),
            others: people::Others::default(),
            releases: BTreeMap::new(),
            now: Timestamp(0),
            rng,
            faults: false,
            trace,
            counts: Counts::new(),
            mistake,
        };
        for (index, name) in names.iter().enumerate() {
            play.add(name, seed.wrapping_add(0x5EED * (index as u64 + 1)));
        }
        play.now = play.worlds.values().map(|w| w.now).max().unwrap();
        play.group.began = play.now;
        for entry in &mut play.group.services {
            entry.since = play.now;
        }
        play.begun_as = play.group.clone();
        play
    }

    /// A service that is served, or not yet, and what is to be rolled out of it.
    fn add(&mut self, name: &ServiceName, seed: u64) {
        let mut world = World::of(name.clone(), seed);
        world.trace = self.trace;
        world.one_clock = true;
        if self.rng.one_in(2) {
            let replicas = 1 + u32::try_from(self.rng.below(3)).unwrap();
            let mut first = crate::build::release(
                world.fresh_number(),
                spec(replicas, 1, 0),
                &single(0, replicas),
            );
            first.service = name.clone();
            self.keep(&first);
            world.request(&first, RolloutKind::Apply, Nature::Good);
            assert!(world.run_until(REST, at_rest));
        }
        let mut make = Rng(seed ^ 0xABCD);
        let (mut release, _, nature) = draw(&mut make, world.fresh_number(), 1);
        release.service = name.clone();
        if release.spec.rollout.progress_deadline.is_zero() {
            // Nobody loses patience here, and all has to end.
            release.spec.rollout.progress_deadline = Duration::from_mins(30);
        }
        // So that more than the first one is often reached.
        let nature = if self.rng.one_in(2) { Nature::Good } else { nature };
        let nature = world.tellable(&release, RolloutKind::Apply, nature);
        self.keep(&release);
        self.wanted.insert(name.clone(), (release, nature));
        self.before.insert(name.clone(), world.state.stable);
        self.worlds.insert(name.clone(), world);
    }

    fn keep(&mut self, release: &Release) {
        self.releases.insert((release.service.clone(), release.number), release.clone());
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn write(&mut self, line: Line) {
        if self.trace {
            println!("{:>8} ** {line:?}", self.now.0 / 1_000);
        }
        take(&mut self.group, &line, self.now);
        self.journal.push((self.now, line));
    }

    /// The one that is rolled out is held, or goes on, before that is written down of the group.
    fn steer(&mut self, what: GroupSteer) {
        let over = self.group.ended.is_some();
        if over || self.group.goes_back() || self.group.aborted.is_some() {
            return;
        }
        let rolling = self.group.services.iter().find_map(|entry| match entry.state {
            GroupState::Rolling { release } => Some((entry.service.clone(), release)),
            _ => None,
        });
        if let Some((service, release)) = rolling {
            let world = self.world(&service);
            let paused = forward(&world.state, release).map(|r| r.paused.is_some());
            match (what, paused) {
                (GroupSteer::Pause, Some(false)) => {
                    world.by_ada(|by| EventKind::Paused { by, reason: None })
                }
                (GroupSteer::Resume, Some(true)) => {
                    world.by_ada(|by| EventKind::Resumed { by, reason: None })
                }
                _ => {}
            }
            if self.killed_in_between() {
                return;
            }
        }
        self.write(Line::Steered(what));
    }

    fn turn(&mut self) {
        let behind = self.worlds.values_mut().min_by_key(|w| w.now).unwrap();
        behind.turn();
        self.now = self.now.max(behind.now);
        if self.faults && self.rng.one_in(60) {
            // A person: now and then for good, mostly for a while.
            let what = match self.rng.below(8) {
                0 => GroupSteer::Abort,
                n if n % 2 == 0 => GroupSteer::Pause,
                _ => GroupSteer::Resume,
            };
            self.count("together: steered");
            self.steer(what);
        }
        let often = if self.others.acts > 0 && self.theirs_is_served() { 5 } else { 25 };
        if self.others.acts > 0 && self.rng.one_in(often) {
            self.meddle();
        }
        if self.faults && self.rng.one_in(80) {
            self.count("together: controller killed");
            self.die();
        }
        self.tend();
    }

    /// A controller that knows nothing but the journal.
    fn die(&mut self) {
        let mut again = self.begun_as.clone();
        for (at, line) in &self.journal {
            take(&mut again, line, *at);
        }
        assert_eq!(again, self.group, "replay differs");
        let text = serde_json::to_string(&again).unwrap();
        self.group = serde_json::from_str(&text).unwrap();
        assert_eq!(again, self.group, "JSON differs");
        self.asking = None;
    }

    fn tend(&mut self) {
        if let Some((begin, due)) = self.asking.take() {
            if due > self.now {
                self.asking = Some((begin, due));
            } else {
                self.begin(&begin);
            }
        }
        let (seen, services) = self.seen();
        let next = match self.asking {
            Some(_) => seen.follows(&services),
            None => seen.next(&services),
        };
        match next {
            None => {}
            Some(GroupMove::Went { service, state }) => self.write(Line::Went(service, state)),
            Some(GroupMove::Abort { service, by, reason }) => {
                let world = self.world(&service);
                if !world.disk_is_full() {
                    world.tell(EventKind::Aborted { by, reason });
                }
            }
            Some(GroupMove::Stop { service }) => {
                self.check_back(&service);
                let world = self.world(&service);
                if world.disk_is_full() {
                    return;
                }
                world.tell(EventKind::StopRequested { by: "ada".to_owned(), reason: None });
                self.count("together: one taken back");
                if !self.killed_in_between() {
                    self.write(Line::Went(service, GroupState::Undoing));
                }
            }
            Some(GroupMove::Begin(begin)) => {
                let due = self.now.plus(Duration::from_millis(self.rng.below(5_000)));
                self.asking = Some((begin, due));
            }
        }
    }

    /// What the decider is given; with a mistake it sees less than there is.
    fn seen(&self) -> (Group, BTreeMap<ServiceName, ServiceState>) {
        let mut group = self.group.clone();
        let mut services: BTreeMap<_, _> =
            self.worlds.iter().map(|(name, world)| (name.clone(), world.state.clone())).collect();
        if let Some(mistake) = self.mistake {
            mistake.blind(&mut group);
            mistake.blind_to_people(&group, &mut services);
        }
        (group, services)
    }

    /// The world of a service, at the group's present.
    fn world(&mut self, service: &ServiceName) -> &mut World {
        let world = self.worlds.get_mut(service).unwrap();
        world.catch_up(self.now);
        world
    }

    fn killed_in_between(&mut self) -> bool {
        let killed = self.faults && self.rng.one_in(4);
        if killed {
            self.count("together: killed in between");
            self.die();
        }
        killed
    }

    /// Its plan has been made: it begins, is refused, or is asked for again in a moment.
    fn begin(&mut self, begin: &Begin) {
        let (seen, services) = self.seen();
        if !seen.still(begin, &services) {
            return;
        }
        let dice = self.rng.below(24);
        let as_agreed = begin.kind != RolloutKind::Apply || self.is_as_agreed(&seen, begin);
        // Asked for again, and meanwhile its own time goes on.
        let state = &self.worlds[&begin.service].state;
        if state.active_rollout().is_some() || state.stopping {
            return;
        }
        if self.world(&begin.service).disk_is_full() {
            return;
        }
        let answer = match dice {
            _ if !as_agreed => Answer::Refused { why: "its spec was changed".to_owned() },
            0 => Answer::Refused { why: "it does not fit".to_owned() },
            1 if begin.kind == RolloutKind::Apply => Answer::NothingToDo,
            // No room yet.
            2..6 => return,
            _ => Answer::Begun(self.request(begin)),
        };
        if begin.kind == RolloutKind::Undo && matches!(answer, Answer::Refused { .. }) {
            self.refused.insert(begin.service.clone());
        }
        let begun = matches!(answer, Answer::Begun(_));
        if !(begun && self.killed_in_between()) {
            self.write(Line::Went(begin.service.clone(), begin.answered(answer)));
        }
    }

    fn request(&mut self, begin: &Begin) -> ReleaseNumber {
        let service = &begin.service;
        let (release, nature) = match begin.kind {
            RolloutKind::Undo => {
                self.check_back(service);
                assert!(self.undone.insert(service.clone()), "{service} is undone twice");
                self.count("together: one taken back");
                let old = self.releases[&(service.clone(), begin.to.unwrap())].clone();
                let number = self.world(service).fresh_number();
                let id = ReleaseId(Uuid::from_u128(0x1000 + u128::from(number)));
                (Release { number: ReleaseNumber(number), id, ..old }, Nature::Good)
            }
            _ => {
                self.check_forward(service);
                assert!(self.begun.insert(service.clone()), "{service} is begun twice");
                self.wanted[service].clone()
            }
        };
        self.keep(&release);
        let began = self.group.began;
        let world = self.world(service);
        world.of_group = Some(began);
        world.request(&release, begin.kind, nature);
        world.of_group = None;
        release.number
    }

    // ---- what must always be true -------------------------------------------------------------

    fn check_forward(&self, service: &ServiceName) {
        let group = &self.group;
        assert!(group.paused.is_none(), "{service} begins during a pause");
        assert!(group.aborted.is_none(), "{service} begins after an abort");
        assert!(!group.goes_back(), "{service} begins after a failure");
        self.others.check_forward(service);
        let entry = group.services.iter().find(|e| e.service == *service).unwrap();
        for other in &group.services {
            let rolls = matches!(other.state, GroupState::Rolling { .. });
            assert!(!rolls, "{service} begins beside {}", other.service);
            if entry.after.contains(&other.service) {
                assert!(other.state.is_good(), "{service} begins after {other:?}");
            }
        }
    }

    fn check_back(&self, service: &ServiceName) {
        let group = &self.group;
        assert!(group.goes_back(), "{service} is taken back without a cause");
        self.others.check_back(&self.worlds[service].state);
        let later = group.services.iter().rev().take_while(|e| e.service != *service);
        for other in later {
            let there = matches!(other.state, GroupState::Done { .. } | GroupState::Undoing);
            assert!(!there, "{service} is taken back before {}", other.service);
        }
    }

    fn check_end(&self) {
        let group = &self.group;
        let states = || self.worlds.values().map(|w| (w.state.stopping, w.state.active_rollout()));
        let states = || states().collect::<Vec<_>>();
        assert!(group.ended.is_some(), "the group has not ended: {group:#?} {:#?}", states());
        for entry in &group.services {
            let world = &self.worlds[&entry.service];
            let stable = world.state.stable;
            let content =
                |number: ReleaseNumber| &self.releases[&(entry.service.clone(), number)].revision;
            let as_before = || {
                let before = self.before[&entry.service];
                assert_eq!(stable.map(content), before.map(content), "{entry:?}");
            };
            if self.others.touched(&entry.service) {
                self.others.check_end(&world.state);
                continue;
            }
            match &entry.state {
                GroupState::Done { release, .. } => {
                    assert!(!group.goes_back(), "{} was not taken back", entry.service);
                    assert_eq!(stable, Some(*release), "{entry:?}");
                }
                GroupState::Undone
                | GroupState::NothingToDo
                | GroupState::Failed { .. }
                | GroupState::Skipped { .. } => as_before(),
                GroupState::NotUndone { .. } => {
                    let last = world.state.rollout.as_ref();
                    let undone = last.is_some_and(|r| {
                        r.kind == RolloutKind::Undo && r.outcome == Some(Outcome::Completed)
                    });
                    let why = self.refused.contains(&entry.service) || !undone;
                    assert!(why, "{} is undone, and said not to be", entry.service);
                }
                other => panic!("{} is still {other:?}", entry.service),
            }
        }
    }

    fn at_rest(&self) -> bool {
        let settled = |world: &World| at_rest(world) || world.held_by_the_floor();
        self.group.ended.is_some() && self.asking.is_none() && self.worlds.values().all(settled)
    }
}

fn take(group: &mut Group, line: &Line, at: Timestamp) {
    match line {
        Line::Went(service, state) => group.went(service, state, at),
        Line::Steered(what) => group.steered(*what, "bob", None, at),
    }
}

/// Plays one seed, with a mistake in the group's decider if one is given.
pub fn seed(seed: u64, trace: bool, mistake: Option<Mistake>) -> Counts {
    let mut play = Together::new(seed, trace, mistake);
    play.faults = true;
    play.others.acts = if play.rng.one_in(3) { 2 + play.rng.below(3) } else { 0 };
    play.others.patient = play.rng.one_in(2);
    for world in play.worlds.values_mut() {
        world.faults = !play.rng.one_in(3);
    }
    for turn in 0..30 + play.rng.below(400) {
        play.turn();
        if turn.is_multiple_of(20) {
            play.worlds.values_mut().for_each(World::person);
        }
    }
    play.faults = false;
    play.steer(GroupSteer::Resume);
    play.worlds.values_mut().for_each(World::calm);
    let end = play.now.plus(REST);
    let mut turn = 0u32;
    while play.now < end && !play.at_rest() {
        play.turn();
        turn += 1;
        for world in play.worlds.values_mut() {
            if turn.is_multiple_of(5) {
                world.person();
            }
            if world.state.active_rollout().is_none() {
                world.all_behave();
            }
        }
    }
    play.die();
    play.check_end();
    let bad = play.group.failed() || play.group.goes_back();
    let what = match (bad, play.group.atomic) {
        (false, _) => "together: all well",
        (true, true) => "together: taken back",
        (true, false) => "together: as far as it goes",
    };
    play.count(what);
    for world in play.worlds.values() {
        if !world.held_by_the_floor() {
            world.check_rest();
        }
        world.check_replay();
        *play.counts.entry("events").or_default() += world.events();
    }
    play.counts
}

/// Who rolls several services out may roll one of them out alone meanwhile: that one is not the group's, which has none
/// of it then.
#[test]
fn a_rollout_of_ones_own_is_not_taken_for_the_groups() {
    let name: ServiceName = "a".parse().unwrap();
    let mut world = World::of(name.clone(), 1);
    let began = world.now;
    let entry = GroupEntry {
        service: name.clone(),
        after: Vec::new(),
        state: GroupState::Waiting,
        since: began,
        digest: None,
        accept_outage: None,
    };
    let group = Group {
        services: vec![entry],
        atomic: true,
        by: "ada".to_owned(),
        reason: None,
        accept_outage: true,
        began,
        ended: None,
        paused: None,
        aborted: None,
    };
    for (of_group, ours) in [(Some(began), true), (None, false), (Some(began.plus(REST)), false)] {
        let mut of_one = crate::build::release(world.fresh_number(), spec(1, 1, 0), &single(0, 1));
        of_one.service = name.clone();
        world.of_group = of_group;
        world.request(&of_one, RolloutKind::Apply, Nature::Good);
        let services = BTreeMap::from([(name.clone(), world.state.clone())]);
        let why = format!("{} is being rolled out since, as ada asked", of_one.number);
        let state = match ours {
            true => GroupState::Rolling { release: of_one.number },
            false => GroupState::Skipped { why },
        };
        let went = GroupMove::Went { service: name.clone(), state };
        assert_eq!(group.follows(&services), Some(went), "{of_group:?}");
        assert!(world.run_until(REST, at_rest));
    }
}

#[test]
fn mistakes_of_the_group_are_caught() {
    for one in 0..WITHIN {
        seed(one, false, Some(Mistake::Nothing));
    }
    for mistake in MISTAKES {
        let caught = (0..WITHIN)
            .find(|one| std::panic::catch_unwind(|| seed(*one, false, Some(mistake))).is_err());
        println!("{mistake:?}: {caught:?}");
        assert!(caught.is_some(), "{mistake:?} is not caught within {WITHIN} seeds");
    }
}
