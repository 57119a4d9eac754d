//! What is rolled out: random releases, and what their engines do.

use std::time::Duration;

use deciding::rollout::{Release, RolloutKind};
use deciding::spec::{Count, RunSpec, ServiceSpec, StepSpec, Strategy};

use crate::build::{Place, Rng, canary, on_cpu, release, spec};
use crate::world::Nature;

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
fn strategy(rng: &mut Rng, wanted: &mut ServiceSpec) {
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

/// Counts as percentages, and deadlines other than the defaults, in some of the rollouts.
fn policy(rng: &mut Rng, wanted: &mut ServiceSpec) {
    let rollout = &mut wanted.rollout;
    if rng.one_in(4) {
        rollout.max_unavailable = Count::Percent([10, 25, 50, 100][rng.index(4)]);
        rollout.max_surge = Count::Percent([0, 25, 50][rng.index(3)]);
    }
    if rng.one_in(4) {
        rollout.healthy_deadline = Duration::from_mins(5 + rng.below(16));
        rollout.drain_deadline = Duration::from_secs(10 + rng.below(900));
        let more = Duration::from_mins(5 + rng.below(30));
        rollout.progress_deadline =
            if rng.one_in(4) { Duration::ZERO } else { rollout.healthy_deadline + more };
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
    policy(make, &mut wanted);
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
