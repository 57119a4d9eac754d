//! Rollouts that change only how many replicas there are, or how releases are rolled out: what runs is taken over.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use deciding::base::ReplicaKey;
use deciding::rollout::{Phase, Release, ReplicaPlan, ReplicaState, ServiceState};

use crate::build::{Rng, release};
use crate::world::World;

/// Now and then what is rolled out is the stable release with another number of replicas, and maybe another policy,
/// instead of what was drawn.
pub fn instead(world: &mut World, drawn: &Release, dice: &mut Rng) -> Release {
    let rests = world.state.active_rollout().is_none() && !world.state.stopping;
    let is_plain = world.state.binding_loan().is_none() && world.state.moves.is_empty();
    if !rests || !is_plain || !dice.one_in(4) {
        return drawn.clone();
    }
    let replicas = 1 + u32::try_from(dice.below(5)).unwrap();
    let policy = dice.one_in(2).then_some(drawn);
    match scaled(&world.state, drawn.number.0, replicas, policy) {
        Some(release) => {
            *world.counts.entry("scaled").or_default() += 1;
            release
        }
        None => drawn.clone(),
    }
}

/// The stable release with so many replicas, and the policy of another one if that is given; none: there is no room.
pub fn scaled(
    state: &ServiceState,
    number: u64,
    replicas: u32,
    policy: Option<&Release>,
) -> Option<Release> {
    let served = state.releases.get(&state.stable?)?;
    let goes_on = |key: &ReplicaKey, r: &ReplicaState| {
        let comes = matches!(r.phase, Phase::Starting | Phase::Waiting { .. } | Phase::Loading);
        let is_well = r.phase == Phase::Ready || comes && r.failures == 0;
        key.release == served.number && !r.retiring && is_well && !state.vacated.contains(key)
    };
    let mut there: Vec<ReplicaKey> =
        state.replicas.iter().filter(|(key, r)| goes_on(key, r)).map(|(key, _)| *key).collect();
    there.sort_by_key(|key| (state.replicas[key].phase != Phase::Ready, *key));
    there.truncate(usize::try_from(replicas).unwrap());
    if there.is_empty() {
        return None;
    }
    let mut spec = served.spec.clone();
    spec.replicas = NonZeroU32::new(replicas)?;
    if let Some(other) = policy {
        spec.rollout = other.spec.rollout.clone();
    }
    let mut made = release(number, spec, &[]);
    let own: BTreeSet<u32> = there.iter().map(|k| k.replica).filter(|i| *i < replicas).collect();
    let mut others = (0..replicas).filter(|index| !own.contains(index));
    for key in there {
        let index = if key.replica < replicas { key.replica } else { others.next()? };
        made.keeps.insert(ReplicaKey { release: made.number, replica: index }, key);
    }
    let mut taken: Vec<&ReplicaPlan> = Vec::new();
    for key in state.replicas.keys() {
        taken.extend(state.releases.get(&key.release).and_then(|r| r.replica(key.replica)));
    }
    let like = served.replicas.first()?;
    let free = (0..16).map(|i| (i % 4, i / 4)).filter(|(host, gpu)| {
        let place = ReplicaPlan { ranks: plan_on(&[(*host, *gpu)]), shape: None };
        !taken.iter().any(|plan| plan.conflicts_with(&place))
    });
    let mut free = free.collect::<Vec<_>>().into_iter();
    let on_cpu = like.gpus().next().is_none();
    let gpus = like.gpus().count();
    for index in 0..replicas {
        let plan = match made.keeps.get(&ReplicaKey { release: made.number, replica: index }) {
            Some(key) => served.replica(key.replica)?.clone(),
            None if on_cpu => ReplicaPlan { ranks: plan_on(&[(0, 99)]), shape: None },
            None => {
                let places: Vec<_> = free.by_ref().take(gpus).collect();
                if places.len() < gpus {
                    return None;
                }
                ReplicaPlan { ranks: plan_on(&places), shape: None }
            }
        };
        made.replicas.push(plan);
    }
    Some(made)
}

fn plan_on(places: &[(u32, u32)]) -> Vec<deciding::rollout::RankPlan> {
    let made = release(0, crate::build::spec(1, 1, 0), &[places.to_vec()]);
    made.replicas.into_iter().next().unwrap().ranks
}
