//! Random rollouts with random faults, from a seed.

use std::time::{Duration, Instant};

use deciding::base::{ReleaseId, ReleaseNumber};
use deciding::rollout::{EventKind, Outcome, Release, RolloutKind};
use deciding::spec::{Count, RunSpec, StepSpec, Strategy};

use crate::build::{Place, Rng, canary, on_cpu, release, spec};
use crate::host_upgrade;
use crate::maintenance;
use crate::planted::{BUGS, Bug};
use crate::standstill::Standstill;
use crate::world::{Counts, Nature, World};

/// Longest time after the last fault in which everything must have come to rest.
pub const REST: Duration = Duration::from_hours(4);

fn places(rng: &mut Rng, replicas: u32, per_replica: u32, shift: u64) -> Vec<Vec<Place>> {
    // Four hosts of four GPUs; a replica has its GPUs on one host or on two.
    let all: Vec<Place> = (0..16).map(|i| (i % 4, i / 4)).collect();
    if rng.one_in(10) {
        return on_cpu(replicas);
    }
    (0..replicas)
        .map(|r| {
            (0..per_replica)
                .map(|g| {
                    all[usize::try_from((u64::from(r * per_replica + g) + shift) % 16).unwrap()]
                })
                .collect()
        })
        .collect()
}

fn steps(rng: &mut Rng) -> Vec<StepSpec> {
    match rng.below(6) {
        0 => Vec::new(),
        4 => vec![
            StepSpec::Scale(Count::Percent(1 + u32::try_from(rng.below(60)).unwrap())),
            StepSpec::Weight(5),
            StepSpec::Bake(Duration::from_secs(rng.below(100))),
            StepSpec::Scale(Count::Percent(100)),
            StepSpec::Weight(60),
        ],
        5 => vec![
            StepSpec::Weight(10 + u32::try_from(rng.below(40)).unwrap()),
            StepSpec::Run(command(rng)),
            StepSpec::Weight(60),
            StepSpec::Run(command(rng)),
        ],
        1 => canary(),
        2 => vec![
            StepSpec::Weight(1 + u32::try_from(rng.below(50)).unwrap()),
            StepSpec::Analyse("default".to_owned()),
            StepSpec::Weight(100),
            StepSpec::Bake(Duration::from_secs(rng.below(200))),
        ],
        _ => vec![StepSpec::Approve(rng.one_in(2)), StepSpec::Weight(40)],
    }
}

/// A command that does what its name says.
fn command(rng: &mut Rng) -> RunSpec {
    let name = match rng.below(8) {
        0 => "fails",
        1 => "fails-once",
        2 => "hangs",
        _ => "ok",
    };
    let timeout = Duration::from_secs(30 + rng.below(600));
    RunSpec { command: vec![name.to_owned()], timeout }
}

/// Makes some of the rollouts blue-green or recreate.
fn strategy(rng: &mut Rng, wanted: &mut deciding::spec::ServiceSpec) {
    let rollout = &mut wanted.rollout;
    match rng.below(8) {
        0 => {
            rollout.strategy = Some(Strategy::BlueGreen);
            rollout.steps = match rng.below(3) {
                0 => Vec::new(),
                1 => vec![StepSpec::Approve(true)],
                _ => vec![StepSpec::Bake(Duration::from_secs(rng.below(200)))],
            };
            rollout.scale_down_delay = Some(Duration::from_secs(rng.below(60)));
        }
        1 => {
            rollout.strategy = Some(Strategy::Recreate);
            rollout.steps = Vec::new();
        }
        _ => {}
    }
}

fn add(counts: &mut Counts, more: Counts) {
    for (what, n) in more {
        *counts.entry(what).or_default() += n;
    }
}

/// A random release with what its engines do, and what it is rolled out for.
pub fn draw(make: &mut Rng, number: u64, per_replica: u32) -> (Release, RolloutKind, Nature) {
    let replicas = 1 + u32::try_from(make.below(4)).unwrap();
    let per = if make.one_in(6) { 3 - per_replica } else { per_replica };
    let unavailable = 1 + u32::try_from(make.below(2)).unwrap();
    let surge = u32::try_from(make.below(2)).unwrap();
    let mut wanted = spec(replicas, unavailable, surge);
    wanted.rollout.steps = steps(make);
    wanted.rollout.auto_rollback = !make.one_in(4);
    wanted.rollout.min_healthy_time = Duration::from_secs(make.below(2) * 15);
    if make.one_in(8) {
        // No replica may be missing: works only where there are spare GPUs.
        wanted.rollout.max_unavailable = Count::Number(0);
        wanted.rollout.max_surge = Count::Number(1);
    }
    strategy(make, &mut wanted);
    let shift = make.below(3) * u64::from(replicas) * u64::from(per);
    let places = places(make, replicas, per, shift);
    let release = release(number, wanted, &places);
    let nature = match make.below(12) {
        0 => Nature::Crashes,
        1 => Nature::Hangs,
        2 => Nature::Never,
        3 => Nature::Errors,
        4 => Nature::DiesLater,
        _ => Nature::Good,
    };
    let kind = if make.one_in(6) { RolloutKind::Undo } else { RolloutKind::Apply };
    (release, kind, nature)
}

/// Plays one seed, with a planted bug if one is given.
pub fn seed(seed: u64, trace: bool, bug: Option<Bug>) -> Counts {
    seed_with(seed, trace, bug, false)
}

/// The same; `holds`: hosts refuse our login now and then.
fn seed_with(seed: u64, trace: bool, bug: Option<Bug>, holds: bool) -> Counts {
    let lends = !holds && bug.map_or(seed % 5 == 4, Bug::is_of_lending);
    if lends {
        return crate::lending::seed(seed, trace, bug);
    }
    if !holds && bug.is_none() && seed % 10 == 7 {
        return crate::together::seed(seed, trace, None);
    }
    let mut world = World::new(seed);
    world.holds = holds.then_some(Rng(seed ^ 0x401D));
    world.trace = trace;
    world.bug = bug;
    let mut make = Rng(seed ^ 0xABCD);
    let per_replica = 1 + u32::try_from(make.below(2)).unwrap();
    let rollouts = 2 + make.below(3);
    for _ in 1..=rollouts {
        let number = world.fresh_number();
        let (release, kind, nature) = draw(&mut make, number, per_replica);
        play(&mut world, &mut make, per_replica, &release, kind, nature);
        let outcome = world.state.rollout.as_ref().and_then(|r| r.outcome.clone());
        if make.one_in(5) && !matches!(outcome, None | Some(Outcome::Completed)) {
            // The person tries the same revision again, as a new rollout.
            *world.counts.entry("person retries what was taken back").or_default() += 1;
            let mut again = release;
            again.number = ReleaseNumber(world.fresh_number());
            again.id = ReleaseId(uuid::Uuid::from_u128(0x1000 + u128::from(again.number.0)));
            play(&mut world, &mut make, per_replica, &again, kind, nature);
        }
    }
    maintenance::take_out(&mut world, seed);
    let mut dice = Rng(seed ^ 0x4059);
    if !world.state.loans.is_empty() && dice.one_in(3) {
        // A rollout begins while something is out.
        *world.counts.entry("rollout while something is out").or_default() += 1;
        let number = world.fresh_number();
        let (release, kind, nature) = draw(&mut dice, number, per_replica);
        play(&mut world, &mut dice, per_replica, &release, kind, nature);
    }
    maintenance::bring_back(&mut world, seed);
    if maintenance::begin_moves(&mut world, seed) {
        let mut dice = Rng(seed ^ 0x30E5);
        if dice.one_in(2) {
            // A rollout begins in the middle of them.
            for _ in 0..dice.below(20) {
                world.turn();
            }
            let number = world.fresh_number();
            let (release, kind, nature) = draw(&mut dice, number, per_replica);
            play(&mut world, &mut dice, per_replica, &release, kind, nature);
        } else {
            maintenance::end_moves(&mut world, seed);
        }
    }
    world.check_replay();
    *world.counts.entry("events").or_default() += world.events();
    let mut counts = world.counts;
    if !holds && bug.is_none() && seed % 5 == 3 {
        add(&mut counts, host_upgrade::seed(seed, trace, host_upgrade::Mistake::Nothing));
    }
    counts
}

/// One rollout, with faults, what people do meanwhile, and the rest after it.
fn play(
    world: &mut World,
    make: &mut Rng,
    per_replica: u32,
    release: &Release,
    kind: RolloutKind,
    nature: Nature,
) {
    world.faults = !make.one_in(5);
    let nature = world.tellable(release, kind, nature);
    world.request(release, kind, nature);
    let turns = 30 + make.below(250);
    for turn in 0..turns {
        world.turn();
        if turn.is_multiple_of(20) {
            world.person();
        }
        if make.one_in(250) {
            let number = world.fresh_number();
            let (next, kind, nature) = draw(make, number, per_replica);
            world.wish(&next, kind, nature, make.one_in(2));
        }
    }
    if make.one_in(25) {
        world.by_ada(|by| EventKind::StopRequested { by });
    }
    world.calm();
    let end = world.now.plus(REST);
    let mut turn = 0u32;
    let mut standstill = Standstill::default();
    while world.now < end && !at_rest(world) {
        world.turn();
        standstill.look(world);
        turn += 1;
        if turn.is_multiple_of(5) {
            world.person();
        }
        // An engine that lies (serves errors, dies later) may have been promoted by the person;
        // once it is stable it behaves, or nothing would ever come to rest.
        if world.state.active_rollout().is_none() {
            world.all_behave();
        }
    }
    if world.held_by_the_floor() {
        // Faults and clashing shapes can lead here; it serves, and a person has to say that
        // it may serve less. The next rollout goes on from here.
        *world.counts.entry("held by the floor").or_default() += 1;
    } else {
        world.check_rest();
    }
    world.all_behave();
    let outcome = match world.state.rollout.as_ref().and_then(|r| r.outcome.as_ref()) {
        Some(Outcome::Completed) => "completed",
        Some(Outcome::RolledBack { .. }) => "rolled back",
        Some(Outcome::Aborted { .. }) => "aborted",
        Some(Outcome::Failed { .. }) => "failed",
        None => "none",
    };
    *world.counts.entry(outcome).or_default() += 1;
    if let Some(rollout) = world.state.rollout.as_ref().filter(|r| r.from.is_some())
        && rollout.outcome == Some(Outcome::Completed)
        && let Some(strategy) = world.state.releases[&rollout.to].spec.rollout.strategy
    {
        let what = match strategy {
            Strategy::BlueGreen => "blue-green completed",
            _ => "recreate completed",
        };
        *world.counts.entry(what).or_default() += 1;
    }
}

/// Nothing is under way, and what is wanted is there.
pub fn at_rest(world: &World) -> bool {
    use deciding::rollout::Phase;
    let state = &world.state;
    let whole = state.stable.is_none_or(|stable| state.ready(stable) == state.wanted(stable));
    world.quiet()
        && state.active_rollout().is_none()
        && !state.stopping
        && state.queued.is_none()
        && state.moves.is_empty()
        && whole
        && state
            .replicas
            .iter()
            .all(|(key, r)| r.phase == Phase::Ready && Some(key.release) == state.stable)
        // What was asked to go for a maintenance is gone.
        && state.replicas.keys().all(|key| !state.vacated.contains(key))
        && state.traffic_applied == state.traffic_version
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

#[test]
fn while_logins_are_lost_nothing_is_taken_out_and_afterwards_all_comes_to_rest() {
    let mut counts = Counts::new();
    for one in 0..150 {
        add(&mut counts, seed_with(one, false, None, true));
    }
    assert!(counts["login lost or back"] >= 300, "{counts:?}");
    assert!(counts["completed"] >= 100 && counts["rolled back"] >= 10, "{counts:?}");
}

#[test]
fn seeds() {
    if let Some(one) = number("GPUDECK_SIM_SEED") {
        let bug = std::env::var("GPUDECK_SIM_BUG").ok();
        let bug = bug.map(|name| *BUGS.iter().find(|b| format!("{b:?}") == name).unwrap());
        seed(one, std::env::var_os("GPUDECK_SIM_QUIET").is_none(), bug);
        return;
    }
    let from = number("GPUDECK_SIM_FROM").unwrap_or(0);
    let count = number("GPUDECK_SIM_SEEDS").unwrap_or(2_000);
    let began = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(8) as u64);
    let met: Vec<(Counts, Vec<u64>)> = std::thread::scope(|scope| {
        let run = |worker: u64| {
            let mut counts = Counts::new();
            let mut failed = Vec::new();
            for one in (from + worker..from + count).step_by(usize::try_from(workers).unwrap()) {
                match std::panic::catch_unwind(|| seed(one, false, None)) {
                    Ok(met) => add(&mut counts, met),
                    Err(_) if failed.len() < 3 => failed.push(one),
                    Err(_) => break,
                }
            }
            (counts, failed)
        };
        let running: Vec<_> = (0..workers).map(|w| scope.spawn(move || run(w))).collect();
        running.into_iter().map(|w| w.join().unwrap()).collect()
    });
    let mut counts = Counts::new();
    let mut failed = Vec::new();
    for (some_counts, some_failed) in met {
        add(&mut counts, some_counts);
        failed.extend(some_failed);
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    println!("{count} seeds, {rate:.0} a second; met: {counts:#?}");
    assert!(failed.is_empty(), "seeds {failed:?} failed: GPUDECK_SIM_SEED=N shows the trace");
    if count >= 2_000 {
        for what in [
            "completed",
            "rolled back",
            "aborted",
            "failed",
            "controller killed",
            "another controller takes over",
            "older epoch refused",
            "clock jumps",
            "disk full",
            "engine hangs after ready",
            "engine lies in /health",
            "gateway away",
            "host dies",
            "host noticed to be silent",
            "moved while a host is emptied",
            "out while a host is maintained",
            "rollout while something is out",
            "host not reached",
            "hung engine answers again",
            "hung engine stopped",
            "late or doubled event",
            "memory not yet free",
            "nobody there for long",
            "blue-green completed",
            "recreate completed",
            "borrowed and completed",
            "borrowed and taken back",
            "rank dies",
            "command ends well",
            "command fails",
            "command hangs",
            "command lost with its controller",
            "person retries",
            "person retries what was taken back",
            "person skips",
            "queued rollout refused",
            "rollout queued",
            "rollout replaced",
            "hosts: all upgraded",
            "hosts: command ends well",
            "hosts: command fails",
            "hosts: command hangs",
            "hosts: controller killed",
            "hosts: drain refused",
            "hosts: GPU is missing",
            "hosts: host does not come back",
            "hosts: host restarts",
            "hosts: host restarts after its command",
            "hosts: killed in between",
            "hosts: moved away",
            "hosts: rollout beside the upgrade",
            "hosts: stopped",
            "hosts: taken out",
            "hosts: uncordoned in the middle",
            "hosts: upgrade failed",
            "together: all well",
            "together: as far as it goes",
            "together: controller killed",
            "together: killed in between",
            "together: steered",
            "together: one taken back",
            "together: taken back",
        ] {
            assert!(
                counts.get(what).is_some_and(|n| *n >= 10),
                "{what} was hardly met: {counts:?}"
            );
        }
    }
}
