//! Random maintenance of hosts: replicas that are out for a while, and replicas that move away. With dice of its own,
//! so that other plays stay as they are.

use deciding::base::DeviceId;
use deciding::rollout::{EventKind, ReplicaPlan, RequestedMove};

use crate::build::{Place, Rng, release};
use crate::rest::{at_rest, come_to_rest};
use crate::world::World;

/// A host is maintained: what is there stops as far as the floor allows, with faults.
pub fn take_out(world: &mut World, seed: u64) {
    let mut dice = Rng(seed ^ 0x4057);
    let Some(stable) = world.state.stable.filter(|_| at_rest(world)) else { return };
    let plans = &world.state.releases[&stable].replicas;
    let plan = &plans[dice.index(plans.len())];
    let host = plan.ranks[0].host.clone();
    let there = |plan: &ReplicaPlan| plan.ranks.iter().any(|r| r.host == host);
    let replicas = (0..).zip(plans).filter(|(_, plan)| there(plan)).map(|(n, _)| n).collect();
    world.faults = dice.one_in(2);
    world.tell(EventKind::TakenOut { release: stable, replicas, host });
    for _ in 0..dice.below(60) {
        world.turn();
    }
}

/// What is out comes back, with faults, and everything comes to rest when they are over.
pub fn bring_back(world: &mut World, seed: u64) {
    let mut dice = Rng(seed ^ 0x4058);
    world.faults = !dice.one_in(3);
    let out: Vec<_> = world.state.loans.iter().map(|loan| loan.replica).collect();
    *world.counts.entry("out while a host is maintained").or_default() += out.len() as u64;
    for replica in out {
        world.tell(EventKind::LentReturned { replica, elsewhere: false });
        for _ in 0..dice.below(20) {
            world.turn();
        }
    }
    world.calm();
    // What happened while the disk was full is told now.
    let out: Vec<_> = world.state.loans.iter().map(|loan| loan.replica).collect();
    for replica in out {
        world.tell(EventKind::LentReturned { replica, elsewhere: false });
    }
    come_to_rest(world, false);
}

/// All replicas on a host are asked to move to GPUs that nobody has; whether there was anything to ask.
pub fn begin_moves(world: &mut World, seed: u64) -> bool {
    let mut dice = Rng(seed ^ 0x770E);
    let Some(stable) = world.state.stable.filter(|_| at_rest(world)) else { return false };
    let now = &world.state.releases[&stable];
    let own: Vec<_> = world.state.replicas.keys().filter(|key| key.release == stable).collect();
    let mut taken: Vec<DeviceId> = Vec::new();
    for key in &own {
        let ranks = &now.replica(key.replica).unwrap().ranks;
        taken.extend(ranks.iter().flat_map(|rank| rank.devices.iter().cloned()));
    }
    let chosen = now.replica(own[dice.index(own.len())].replica).unwrap();
    let host = chosen.ranks[0].host.clone();
    // One more host than releases are placed on: there is room.
    let mut free: Vec<Place> = (0..20).map(|i| (i % 5, i / 5)).collect();
    free.retain(|(on, gpu)| {
        let device = DeviceId::Gpu(format!("GPU-{on}-{gpu}"));
        *on != host.as_str()[1..].parse::<u32>().unwrap() && !taken.contains(&device)
    });
    let mut moves = Vec::new();
    for key in own {
        let plan = now.replica(key.replica).unwrap();
        let gpus: usize = plan.ranks.iter().map(|rank| rank.devices.len()).sum();
        let on_cpu = plan.ranks.iter().any(|rank| rank.devices.contains(&DeviceId::Cpu));
        if on_cpu || free.len() < gpus || !plan.ranks.iter().any(|rank| rank.host == host) {
            continue;
        }
        let there: Vec<Place> = free.split_off(free.len() - gpus);
        let there = release(stable.0, now.spec.clone(), &[there]);
        moves.extend(
            there.replicas.into_iter().map(|plan| RequestedMove { replica: key.replica, plan }),
        );
    }
    if moves.is_empty() {
        return false;
    }
    *world.counts.entry("moved while a host is emptied").or_default() += moves.len() as u64;
    world.faults = !dice.one_in(3);
    let why = format!("{host} is drained");
    world.tell(EventKind::MovesRequested { release: stable, moves, by: "ada".to_owned(), why });
    true
}

/// With faults, and then without, until everything is at rest.
pub fn end_moves(world: &mut World, seed: u64) {
    let mut dice = Rng(seed ^ 0x0E7D);
    for _ in 0..dice.below(200) {
        world.turn();
    }
    world.calm();
    come_to_rest(world, false);
    if world.state.move_trouble.is_some() {
        *world.counts.entry("move given up").or_default() += 1;
    }
}
