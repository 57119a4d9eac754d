//! Which replicas a release takes over while they run: those whose engines it would start in the very same way.

use std::collections::{BTreeMap, BTreeSet};

use super::super::core::Core;
use super::super::{borrowing, world};
use super::lay::{command_for, order_of};
use super::place::demand;
use super::{Draft, place::place_on};
use crate::api::ApiError;
use crate::base::{ReleaseNumber, ReplicaKey};
use crate::engine;
use crate::placement::{self, ShapeNeed};
use crate::rollout::{Phase, Release, ReplicaPlan, ReplicaState, ServiceState};
use crate::spec::{ParallelShape, RuntimeSpec, ServiceSpec};

/// Replicas that run on, by their index in the new release.
pub(super) type Kept = BTreeMap<u32, (ReplicaKey, ReplicaPlan)>;

/// Whether two specs start engines in the same way and at the same places: only how many there are, how a release is
/// rolled out and judged, and what is shown may differ.
pub(super) fn same_engines(served: &ServiceSpec, spec: &ServiceSpec) -> bool {
    let as_before = ServiceSpec {
        replicas: served.replicas,
        url: served.url.clone(),
        rollout: served.rollout.clone(),
        analysis: served.analysis.clone(),
        ..spec.clone()
    };
    as_before == *served
}

/// What the release of this number can take over of the one that is served.
///
/// # Errors
/// Why that is nothing, for people; none: the spec is another one.
pub(super) fn kept(
    core: &Core,
    draft: &Draft,
    state: &ServiceState,
    number: ReleaseNumber,
) -> Result<Kept, Option<String>> {
    let served = state.stable.and_then(|n| state.releases.get(&n));
    let served = served.filter(|r| same_engines(&r.spec, &draft.spec)).ok_or(None)?;
    let nothing = |why: &str| Err(Some(why.to_owned()));
    if state.active_rollout().is_some() || state.stopping {
        return nothing("it is changing already");
    }
    // What is lent or moved has two places. (What is out for its host's maintenance has none.)
    if state.binding_loan().is_some() || !state.moves.is_empty() {
        return nothing("some are lent or being moved");
    }
    let mut there: Vec<(ReplicaKey, &ReplicaState, &ReplicaPlan)> = state
        .replicas
        .iter()
        .filter(|(key, r)| {
            key.release == served.number
                && !r.retiring
                && !state.vacated.contains(key)
                && goes_on(core, served, **key, r)
        })
        .filter_map(|(key, r)| Some((*key, &**r, served.replica(key.replica)?)))
        .collect();
    if there.is_empty() {
        return nothing("none of them is ready");
    }
    // Where there are to be fewer, those that serve stay.
    there.sort_by_key(|(key, r, _)| (r.phase != Phase::Ready, key.replica));
    there.truncate(usize::try_from(draft.spec.replicas.get()).unwrap_or(usize::MAX));
    let replicas = draft.spec.replicas.get();
    // Its own index where it can have it, so that it is called the same.
    let own: BTreeSet<u32> =
        there.iter().map(|(k, ..)| k.replica).filter(|i| *i < replicas).collect();
    let mut others = (0..replicas).filter(|i| !own.contains(i));
    let mut kept = Kept::new();
    for (key, _, plan) in there {
        let index = if key.replica < replicas { Some(key.replica) } else { others.next() };
        let Some(index) = index.filter(|i| starts_alike(core, draft, plan, (number, *i))) else {
            continue;
        };
        kept.insert(index, (key, plan.clone()));
    }
    if kept.is_empty() {
        return nothing("their command or address would be another one");
    }
    Ok(kept)
}

/// It serves, or comes up as it should. (One that fails gets another place, where there is one.)
fn goes_on(core: &Core, release: &Release, key: ReplicaKey, replica: &ReplicaState) -> bool {
    let hosts = || {
        let ranks = release.replica(key.replica).into_iter().flat_map(|plan| &plan.ranks);
        ranks.map(|rank| &rank.host).collect::<Vec<_>>()
    };
    let are_up = || {
        core.hub.with(|s| hosts().iter().all(|host| s.hosts.get(*host).is_some_and(world::is_up)))
    };
    let comes = matches!(replica.phase, Phase::Starting | Phase::Waiting { .. } | Phase::Loading);
    replica.phase == Phase::Ready || comes && replica.failures == 0 && are_up()
}

/// Whether the new release would start it with the same command, at the same address: this binary may be another one
/// than the one that planned it, and a command of the user's may name its release.
fn starts_alike(
    core: &Core,
    draft: &Draft,
    plan: &ReplicaPlan,
    (release, replica): (ReleaseNumber, u32),
) -> bool {
    plan.ranks.iter().all(|rank| {
        let place = placement::PlacedReplica {
            host: rank.host.clone(),
            devices: rank.devices.clone(),
            memory_per_device: rank.memory_per_device,
            shape: plan.shape(),
            in_place_of: Vec::new(),
        };
        let address = world::engine_address(&core.deck, &rank.host);
        // A driver that hangs, or that was not asked yet, does not tell how it counts them: they are where they were.
        let unordered = matches!(draft.spec.runtime, RuntimeSpec::Docker(_))
            && order_of(core, &rank.host, &rank.devices).is_none();
        command_for(core, draft, (release, replica), &place, rank.port).is_ok_and(|command| {
            let now = (&command.argv, &command.files);
            now == (&rank.argv, &rank.files)
                && is_same(&command.env, &rank.env, unordered)
                && address == rank.address
        })
    })
}

/// Whether two environments are the same, but for the order of GPUs where that is not known.
fn is_same(
    some: &BTreeMap<String, String>,
    other: &BTreeMap<String, String>,
    unordered: bool,
) -> bool {
    let counts = |name: &str| !unordered || !engine::OF_ORDER.contains(&name);
    let one = some.iter().filter(|(name, _)| counts(name));
    one.eq(other.iter().filter(|(name, _)| counts(name)))
}

/// Places those that are missing beside what runs on.
pub(super) fn place_missing(
    core: &Core,
    draft: &Draft,
    kept: &Kept,
) -> Result<placement::Placement, ApiError> {
    let running = u32::try_from(kept.len()).unwrap_or(u32::MAX);
    let missing = draft.spec.replicas.get().saturating_sub(running);
    if missing == 0 {
        return Ok(placement::Placement { replicas: Vec::new(), reasons: Vec::new() });
    }
    // What does not run on gives way where there is no other room.
    let (staying, leaving): (Vec<_>, Vec<_>) = world::reusable(&core.state, &draft.service)
        .into_iter()
        .partition(|there| kept.values().any(|(key, _)| *key == there.replica));
    let mut hosts = core.capacities(None);
    for there in &leaving {
        borrowing::release_devices(&mut hosts, &there.host, &there.devices);
    }
    let mut demand = demand(core, draft, missing, &hosts)?;
    // Those that stay are counted in their failure domains.
    (demand.staying, demand.reuse) = (staying, leaving);
    let most = usize::try_from(missing).unwrap_or(usize::MAX);
    demand.indexes = (0..).filter(|index| !kept.contains_key(index)).take(most).collect();
    as_they_are(&mut demand.shapes, kept.values().map(|(_, plan)| plan.shape()));
    place_on(core, hosts, &demand)
}

/// The shapes of those that run come first, so that all replicas have one as long as that has a place.
fn as_they_are(shapes: &mut [ShapeNeed], running: impl Iterator<Item = ParallelShape>) {
    let running: BTreeSet<ParallelShape> = running.collect();
    shapes.sort_by_key(|need| !running.contains(&need.shape));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;
    use crate::base::Bytes;

    #[test]
    fn the_order_of_gpus_is_no_difference_where_it_is_not_known() {
        let env = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let bare = env(&[("MODE", "a")]);
        let told = env(&[
            ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
            ("CUDA_VISIBLE_DEVICES", "0,2,1,3"),
            ("MODE", "a"),
        ]);
        assert!(is_same(&bare, &told, true) && is_same(&told, &bare, true));
        assert!(!is_same(&bare, &told, false) && is_same(&told, &told, false));
        let other = env(&[("CUDA_VISIBLE_DEVICES", "0,2,1,3"), ("MODE", "b")]);
        assert!(!is_same(&bare, &other, true), "what else differs does");
    }

    #[test]
    fn those_that_are_missing_take_the_shape_of_those_that_run() {
        let two = ParallelShape::of_tensor(2);
        let all = [
            ParallelShape::of_tensor(4),
            ParallelShape { pipeline: two.tensor, ..two },
            ParallelShape { data: two.tensor, ..two },
        ];
        let tried = |running: &[ParallelShape]| {
            let need = |shape: &ParallelShape| ShapeNeed {
                shape: *shape,
                memory_per_device: Bytes::gib(1),
            };
            let mut shapes: Vec<ShapeNeed> = all.iter().map(need).collect();
            as_they_are(&mut shapes, running.iter().copied());
            shapes.iter().map(|need| need.shape.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(tried(&[]), ["tp4", "tp2 pp2", "tp2 dp2"]);
        assert_eq!(tried(&[all[2]]), ["tp2 dp2", "tp4", "tp2 pp2"]);
        // Where they differ already, in the order of the spec.
        assert_eq!(tried(&[all[2], all[1]]), ["tp2 pp2", "tp2 dp2", "tp4"]);
    }
}
