//! An upgrade of hosts with random faults: the decider of `rollout::maintenance` above a world for each service, hosts
//! that restart or lose a GPU, a controller that is killed between what it does and what it writes down, and people.

mod checks;
mod hosts;
mod mistakes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deciding::base::{DeviceId, HostName, ReleaseId, ServiceName, Timestamp};
use deciding::rollout::maintenance::drain::{self, DrainStep};
use deciding::rollout::maintenance::{
    Cordon, FleetMaintenance, Seen, Upgrade, UpgradeEntry, UpgradeHost, UpgradeMove, UpgradeSteer,
    Watch,
};
use deciding::rollout::{EventKind, ReplicaPlan, RequestedMove, RolloutKind, ServiceState};
use uuid::Uuid;

use crate::build::{Place, Rng, release, spec};
use crate::rest::{REST, at_rest};
use crate::world::{Counts, Nature, World};
use hosts::Machine;
pub use mistakes::Mistake;

/// Longest time after the last fault in which an upgrade must be over.
const UPGRADE: Duration = Duration::from_hours(12);

/// Longest a host may be away, and longest its command may run.
const PATIENCE: Duration = Duration::from_mins(20);

/// GPUs of a host.
const GPUS: u32 = 4;

/// A line of the deck's journal about its hosts.
#[derive(Clone, Debug)]
enum Line {
    Cordoned(HostName),
    Uncordoned(HostName),
    DrainBegun(HostName),
    DrainEnded(HostName, Option<String>),
    Went(HostName, UpgradeHost),
    Steered(UpgradeSteer),
}

/// What is being done for a host and answers later.
#[derive(Clone, Copy, Debug)]
enum Job {
    /// Its drain is planned until then.
    Plan(Timestamp),
    /// Its command is looked after.
    Command,
    /// It is told to forget the command, and answers then.
    Forget(Timestamp),
}

struct HostUpgrade {
    worlds: BTreeMap<ServiceName, World>,
    machines: BTreeMap<HostName, Machine>,
    kept: FleetMaintenance,
    begun_as: FleetMaintenance,
    journal: Vec<(Timestamp, Line)>,
    jobs: BTreeMap<HostName, Job>,
    watch: Watch,
    /// Drains that were looked at, and until when they are let be.
    looked: BTreeMap<HostName, Timestamp>,
    /// Hosts that a person cordoned before, and that stay so.
    persons: BTreeSet<HostName>,
    /// A person stopped it.
    stopped: bool,
    now: Timestamp,
    rng: Rng,
    faults: bool,
    trace: bool,
    counts: Counts,
    mistake: Mistake,
}

impl HostUpgrade {
    fn new(seed: u64, trace: bool, mistake: Mistake) -> Self {
        let mut rng = Rng(seed ^ 0x0575);
        let hosts: Vec<HostName> =
            (0..3 + rng.below(2)).map(|n| format!("h{n}").parse().unwrap()).collect();
        let mut play = Self {
            worlds: BTreeMap::new(),
            machines: hosts.iter().map(|host| (host.clone(), Machine::new())).collect(),
            kept: FleetMaintenance::default(),
            begun_as: FleetMaintenance::default(),
            journal: Vec::new(),
            jobs: BTreeMap::new(),
            watch: Watch::default(),
            looked: BTreeMap::new(),
            persons: BTreeSet::new(),
            stopped: false,
            now: Timestamp(0),
            rng,
            faults: false,
            trace,
            counts: Counts::new(),
            mistake,
        };
        let services = 1 + play.rng.below(2);
        for index in 0..services {
            let name: ServiceName = ["a", "b"][usize::try_from(index).unwrap()].parse().unwrap();
            play.add(&name, seed.wrapping_add(0x5EED * (index + 1)));
        }
        play.now = play.worlds.values().map(|w| w.now).max().unwrap();
        let mut listed = hosts;
        if play.rng.one_in(3) {
            listed.pop();
        }
        let entry = |host: HostName| UpgradeEntry::waiting(host, play.now);
        let millis = u64::try_from(PATIENCE.as_millis()).unwrap();
        play.kept.upgrade = Some(Upgrade {
            id: ReleaseId(Uuid::from_u128(9)),
            command: "reboot".to_owned(),
            hosts: listed.into_iter().map(entry).collect(),
            max_parallel: 1 + u32::try_from(play.rng.below(2)).unwrap(),
            timeout_ms: millis,
            return_ms: millis,
            by: "ada".to_owned(),
            began: play.now,
            ended: None,
            paused: None,
            stopped: None,
        });
        play.begun_as = play.kept.clone();
        if play.rng.one_in(3) {
            let host = play.any_host();
            play.persons.insert(host.clone());
            play.write(Line::Cordoned(host));
        }
        play
    }

    /// A service that is served on these hosts.
    fn add(&mut self, name: &ServiceName, seed: u64) {
        let mut world = World::of(name.clone(), seed);
        world.trace = self.trace;
        world.one_clock = true;
        let replicas = 1 + u32::try_from(self.rng.below(4)).unwrap();
        let (unavailable, surge) = (u32::try_from(self.rng.below(2)).unwrap(), 1);
        let mut wanted = spec(replicas, unavailable, surge);
        wanted.rollout.auto_rollback = true;
        let hosts: Vec<HostName> = self.machines.keys().cloned().collect();
        let places = self.places(&hosts, replicas);
        let mut first = release(world.fresh_number(), wanted, &places);
        first.service = name.clone();
        world.request(&first, RolloutKind::Apply, Nature::Good);
        assert!(world.run_until(REST, at_rest));
        self.worlds.insert(name.clone(), world);
    }

    /// A GPU for each replica, anywhere on these hosts.
    fn places(&mut self, hosts: &[HostName], replicas: u32) -> Vec<Vec<Place>> {
        let shift = self.rng.below(8);
        let place = |n: u32| {
            let n = u64::from(n) + shift;
            let host = &hosts[usize::try_from(n % hosts.len() as u64).unwrap()];
            let gpu = u32::try_from(n / hosts.len() as u64).unwrap() % GPUS;
            vec![(number(host), gpu)]
        };
        (0..replicas).map(place).collect()
    }

    fn any_host(&mut self) -> HostName {
        let hosts: Vec<&HostName> = self.machines.keys().collect();
        hosts[self.rng.index(hosts.len())].clone()
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn write(&mut self, line: Line) {
        if self.trace {
            println!("{:>8} ** {line:?}", self.now.0 / 1_000);
        }
        self.check_line(&line);
        take(&mut self.kept, &line, self.now);
        self.journal.push((self.now, line));
    }

    fn upgrade(&self) -> &Upgrade {
        self.kept.upgrade.as_ref().unwrap()
    }

    fn turn(&mut self) {
        let behind = self.worlds.values_mut().min_by_key(|w| w.now).unwrap();
        behind.turn();
        self.now = self.now.max(behind.now);
        self.machines_go_on();
        if self.faults && self.rng.one_in(120) {
            self.person();
        }
        if self.faults && self.rng.one_in(60) {
            self.count("hosts: controller killed");
            self.die();
        }
        self.tend();
        self.check_hosts();
    }

    /// People look after the fleet, or ask for something at a bad moment.
    fn person(&mut self) {
        if self.disk_is_full() {
            return;
        }
        match self.rng.below(7) {
            0 => {
                let draining = |e: &&UpgradeEntry| matches!(e.state, UpgradeHost::Draining { .. });
                let host = self.upgrade().hosts.iter().find(draining).map(|e| e.host.clone());
                let Some(host) = host.filter(|host| self.kept.host_cordon(host).is_some()) else {
                    return;
                };
                self.count("hosts: uncordoned in the middle");
                self.persons.remove(&host);
                self.write(Line::Uncordoned(host.clone()));
                if self.killed_in_between() {
                    return;
                }
                for world in self.worlds.values_mut().filter(|w| w.state.moves_from(&host)) {
                    world.catch_up(self.now);
                    world.by_ada(|by| EventKind::MovesCancelled { by });
                }
            }
            1 if self.rng.one_in(3) => self.stop(),
            2 => self.roll_out(),
            3 => {
                let paused = self.upgrade().paused.is_some();
                let what = if paused { UpgradeSteer::Resume } else { UpgradeSteer::Pause };
                self.steer(what, "hosts: held or let go on");
            }
            4 => {
                let failed = self.upgrade().failures().next().map(|(host, _)| host.clone());
                let Some(host) = failed else { return };
                if self.steer(UpgradeSteer::Retry { host: host.clone() }, "hosts: tried again") {
                    self.forget_last_command(&host);
                }
            }
            5 => {
                let host = self.any_host();
                self.steer(UpgradeSteer::Skip { host }, "hosts: left out");
            }
            _ => {}
        }
    }

    /// Whether what a person wants changes anything.
    fn steer(&mut self, what: UpgradeSteer, count: &'static str) -> bool {
        let takes = self.upgrade().takes(&what) == Ok(true);
        if takes {
            self.count(count);
            if let UpgradeSteer::Retry { host } = &what {
                self.watch.went(host);
            }
            self.write(Line::Steered(what));
        }
        takes
    }

    /// The hosts whose turn has not come stay as they are.
    fn stop(&mut self) {
        self.stopped |= self.steer(UpgradeSteer::Stop, "hosts: stopped");
    }

    /// A new release, on hosts that take new ranks.
    fn roll_out(&mut self) {
        let open = self.machines.keys().filter(|host| self.kept.host_cordon(host).is_none());
        let open: Vec<HostName> = open.cloned().collect();
        let names: Vec<ServiceName> = self.worlds.keys().cloned().collect();
        let name = names[self.rng.index(names.len())].clone();
        let state = &self.worlds[&name].state;
        if open.is_empty() || state.active_rollout().is_some() || state.stopping {
            return;
        }
        self.count("hosts: rollout beside the upgrade");
        let replicas = 1 + u32::try_from(self.rng.below(3)).unwrap();
        let places = self.places(&open, replicas);
        let nature = if self.rng.one_in(4) { Nature::Crashes } else { Nature::Good };
        let world = self.world(&name);
        let mut next = release(world.fresh_number(), spec(replicas, 1, 1), &places);
        next.service = name;
        world.request(&next, RolloutKind::Apply, nature);
    }

    /// The world of a service, at the fleet's present.
    fn world(&mut self, service: &ServiceName) -> &mut World {
        let world = self.worlds.get_mut(service).unwrap();
        world.catch_up(self.now);
        world
    }

    fn killed_in_between(&mut self) -> bool {
        let killed = self.faults && self.rng.one_in(5);
        if killed {
            self.count("hosts: killed in between");
            self.die();
        }
        killed
    }

    /// A controller that knows nothing but the journal.
    fn die(&mut self) {
        let mut again = self.begun_as.clone();
        for (at, line) in &self.journal {
            take(&mut again, line, *at);
        }
        assert_eq!(again, self.kept, "replay differs");
        let text = serde_json::to_string(&again).unwrap();
        self.kept = serde_json::from_str(&text).unwrap();
        assert_eq!(again, self.kept, "JSON differs");
        self.jobs.clear();
        self.looked.clear();
        self.watch = Watch::default();
    }

    fn disk_is_full(&self) -> bool {
        self.worlds.values().any(World::disk_is_full)
    }

    fn services(&self) -> BTreeMap<ServiceName, ServiceState> {
        self.worlds.iter().map(|(name, world)| (name.clone(), world.state.clone())).collect()
    }

    /// What the controller does of itself.
    fn tend(&mut self) {
        if self.disk_is_full() {
            return;
        }
        self.tend_jobs();
        self.tend_drains();
        for (service, replica) in self.kept.coming_back(&self.services()) {
            self.world(&service).tell(EventKind::LentReturned { replica, elsewhere: false });
        }
        for _ in 0..8 {
            if self.disk_is_full() {
                return;
            }
            let (services, mut hosts) = (self.services(), self.hosts_seen());
            let mut kept = self.kept.clone();
            self.mistake.blind(&mut kept, &mut hosts);
            self.watch.busy = self.jobs.keys().cloned().collect();
            let seen = Seen { now: self.now, hosts: &hosts, services: &services };
            let Some(next) = kept.next_of_upgrade(&seen, &mut self.watch) else { return };
            let wait = Duration::from_millis(self.rng.below(4_000));
            match next {
                UpgradeMove::Went { host, state } => {
                    self.watch.went(&host);
                    self.write(Line::Went(host, state));
                    if self.killed_in_between() {
                        return;
                    }
                }
                UpgradeMove::Drain { host } => {
                    if self.kept.host_cordon(&host).is_none() {
                        self.write(Line::Cordoned(host.clone()));
                    }
                    if self.killed_in_between() {
                        return;
                    }
                    self.jobs.insert(host, Job::Plan(self.now.plus(wait)));
                }
                UpgradeMove::Run { host } => {
                    self.jobs.insert(host, Job::Command);
                }
                UpgradeMove::Forget { host } => {
                    self.jobs.insert(host, Job::Forget(self.now.plus(wait)));
                }
            }
        }
    }

    fn tend_jobs(&mut self) {
        for (host, job) in self.jobs.clone() {
            let now = self.now;
            match job {
                Job::Plan(until) | Job::Forget(until) if until > now => continue,
                Job::Plan(_) => {
                    self.jobs.remove(&host);
                    if !self.kept.awaits_drain(&host) {
                        // Met a few times in 2,000 seeds.
                        self.count("hosts: uncordoned while its drain was planned");
                        continue;
                    }
                    if let Err(why) = self.begin_drain(&host) {
                        let state = self.kept.refused(&host, &why, &mut self.watch);
                        self.count(match state {
                            UpgradeHost::Waiting => "hosts: drain put off",
                            _ => "hosts: drain refused",
                        });
                        self.write(Line::Went(host, state));
                    }
                }
                Job::Forget(_) => {
                    self.jobs.remove(&host);
                    let has = self.is_reached(&host) && !self.rng.one_in(6);
                    self.watch.told_to_forget(&host, has);
                }
                Job::Command => {
                    if let Some(state) = self.look_after_command(&host) {
                        self.jobs.remove(&host);
                        self.watch.went(&host);
                        self.write(Line::Went(host, state));
                    }
                }
            }
        }
    }

    fn tend_drains(&mut self) {
        let active = self.kept.drains.iter().filter(|(_, drain)| drain.ended.is_none());
        let active: Vec<HostName> = active.map(|(host, _)| host.clone()).collect();
        for host in active {
            match drain::next(&host, &self.services()) {
                None => {}
                Some(DrainStep::Ended { trouble }) => self.write(Line::DrainEnded(host, trouble)),
                Some(DrainStep::Place) => {
                    let waits = self.looked.get(&host).is_some_and(|until| *until > self.now);
                    if waits {
                        continue;
                    }
                    self.looked.insert(host.clone(), self.now.plus(Duration::from_secs(2)));
                    match self.leaving(&host) {
                        Ok(asked) if asked.is_empty() => {
                            if let Some(left) = drain::left_behind(&host, &self.services()) {
                                self.write(Line::DrainEnded(host, Some(left)));
                            }
                        }
                        Ok(asked) => self.ask(asked),
                        Err(why) => self.write(Line::DrainEnded(host, Some(why))),
                    }
                }
            }
        }
    }

    fn begin_drain(&mut self, host: &HostName) -> Result<(), String> {
        let asked = self.leaving(host)?;
        self.write(Line::DrainBegun(host.clone()));
        if !self.killed_in_between() {
            self.ask(asked);
        }
        Ok(())
    }

    fn ask(&mut self, asked: Vec<(ServiceName, EventKind)>) {
        for (service, kind) in asked {
            if self.killed_in_between() {
                return;
            }
            self.world(&service).tell(kind);
        }
    }

    /// What is asked of each service so that it leaves the host: to move, or where there is no other place to stop.
    fn leaving(&mut self, host: &HostName) -> Result<Vec<(ServiceName, EventKind)>, String> {
        let mut asked = Vec::new();
        for (service, world) in &self.worlds {
            let state = &world.state;
            if let Some(obstacle) = state.keeps_from_draining(host) {
                return Err(format!("{obstacle:?}"));
            }
            let leaving = state.leaving(host);
            let Some(stable) = state.stable.filter(|_| !leaving.is_empty()) else { continue };
            if state.moves_from(host) {
                continue;
            }
            let mut free = self.free(state, host);
            // Often there is less room than that.
            if world.now.0.is_multiple_of(3) {
                free.truncate(usize::try_from(world.now.0 % 4).unwrap());
            }
            let places = leaving.len().min(free.len());
            let out = leaving.len() - places;
            if out > usize::try_from(state.may_stop_of(&leaving)).unwrap() {
                return Err(format!("{service} has no other place"));
            }
            let spec = state.releases[&stable].spec.clone();
            let there: Vec<Vec<Place>> = free.into_iter().map(|place| vec![place]).collect();
            let plans = release(stable.0, spec, &there).replicas;
            let to_move = leaving.iter().zip(plans);
            let moves: Vec<RequestedMove> =
                to_move.map(|(key, plan)| RequestedMove { replica: key.replica, plan }).collect();
            let (by, why) = ("ada".to_owned(), format!("{host} is drained"));
            asked.push((
                service.clone(),
                if moves.is_empty() {
                    let replicas = leaving.iter().map(|key| key.replica).collect();
                    EventKind::TakenOut { release: stable, replicas, host: host.clone() }
                } else {
                    EventKind::MovesRequested { release: stable, moves, by, why }
                },
            ));
        }
        for (_, kind) in &asked {
            let out = matches!(kind, EventKind::TakenOut { .. });
            self.count(if out { "hosts: taken out" } else { "hosts: moved away" });
        }
        Ok(asked)
    }

    /// GPUs that nothing of the service has or may come back to, on other hosts that take new ranks.
    fn free(&self, state: &ServiceState, host: &HostName) -> Vec<Place> {
        let mut taken: BTreeSet<DeviceId> = BTreeSet::new();
        let mut take = |plan: &ReplicaPlan| {
            taken.extend(plan.ranks.iter().flat_map(|rank| rank.devices.iter().cloned()));
        };
        let live = state.replicas.keys();
        let out = state.loans.iter().map(|loan| &loan.replica);
        for key in live.chain(out) {
            state.releases.get(&key.release).and_then(|r| r.replica(key.replica)).map(&mut take);
        }
        let others = state.moves.iter().map(|m| &m.plan);
        others.chain(state.loans.iter().filter_map(|loan| loan.back.as_ref())).for_each(take);
        let open = self
            .machines
            .keys()
            .filter(|on| *on != host && self.kept.host_cordon(on).is_none() && self.is_reached(on));
        open.flat_map(|on| (0..GPUS).map(move |gpu| (number(on), gpu)))
            .filter(|(on, gpu)| !taken.contains(&DeviceId::Gpu(format!("GPU-{on}-{gpu}"))))
            .collect()
    }

    fn is_over(&self) -> bool {
        self.upgrade().ended.is_some()
            && self.jobs.is_empty()
            && self.kept.drains.values().all(|drain| drain.ended.is_some())
    }
}

fn number(host: &HostName) -> u32 {
    host.as_str()[1..].parse().unwrap()
}

fn take(kept: &mut FleetMaintenance, line: &Line, at: Timestamp) {
    match line {
        Line::Cordoned(host) => {
            let (by, since) = ("ada".to_owned(), at);
            kept.cordoned(host, Cordon { gpu: None, by, reason: None, since });
        }
        Line::Uncordoned(host) => kept.uncordoned(host, None, at),
        Line::DrainBegun(host) => kept.drain_begun(host, "ada", at),
        Line::DrainEnded(host, trouble) => kept.drain_ended(host, trouble.as_deref(), at),
        Line::Went(host, state) => kept.upgrade_went(host, state, at),
        Line::Steered(what) => kept.upgrade_steered(what, "ada", Some("she wants it"), at),
    }
}

/// Plays one seed, with a mistake in the decider if one is given.
pub fn seed(seed: u64, trace: bool, mistake: Mistake) -> Counts {
    let mut play = HostUpgrade::new(seed, trace, mistake);
    play.faults = true;
    for world in play.worlds.values_mut() {
        world.faults = !play.rng.one_in(3);
    }
    for turn in 0..30 + play.rng.below(300) {
        play.turn();
        if turn.is_multiple_of(20) {
            play.worlds.values_mut().for_each(World::person);
        }
    }
    play.faults = false;
    play.worlds.values_mut().for_each(World::calm);
    play.steer(UpgradeSteer::Resume, "hosts: held or let go on");
    play.until(UPGRADE, HostUpgrade::is_over);
    play.check_end();
    play.put_right();
    play.until(REST, |play| play.worlds.values().all(|w| at_rest(w) || w.held_by_the_floor()));
    play.die();
    for world in play.worlds.values() {
        if !world.held_by_the_floor() {
            assert!(world.state.loans.is_empty(), "still out: {:?}", world.state.loans);
            world.check_rest();
        }
        world.check_replay();
        *play.counts.entry("events").or_default() += world.events();
    }
    for world in play.worlds.values() {
        for (what, n) in &world.counts {
            *play.counts.entry(what).or_default() += n;
        }
    }
    play.counts
}

impl HostUpgrade {
    /// Turns without faults until it is so, or for so long.
    fn until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now.plus(limit);
        let mut turn = 0u32;
        while self.now < end && !done(self) {
            self.turn();
            turn += 1;
            for world in self.worlds.values_mut() {
                if turn.is_multiple_of(5) {
                    world.person();
                }
                if world.state.active_rollout().is_none() {
                    world.all_behave();
                }
            }
        }
    }

    /// Whoever looks after the fleet repairs what is broken, and lets every host be used again.
    fn put_right(&mut self) {
        self.repair();
        let cordoned: Vec<HostName> = self.kept.cordons.keys().cloned().collect();
        for host in cordoned {
            self.write(Line::Uncordoned(host));
        }
    }
}
