//! Replicas on hosts that are reached and whose GPUs cannot be read, as where a driver hangs: they run on, as far as
//! anybody knows, and stay where they are. What is not seen there is put in as GPUs that take nothing new.

use std::collections::BTreeSet;

use super::demand::{Demand, Reuse};
use super::world::{GpuCapacity, HostCapacity};
use crate::base::{DeviceId, ReplicaKey};

/// What is said of such a GPU.
const NOT_SEEN: &str = "it is not seen: the driver does not answer";

/// Takes the present replicas that touch one of the hosts that are `unread` out of what may be moved: they stay, beside
/// the others that are wanted.
pub fn stay_where_unread(
    hosts: &mut [HostCapacity],
    unread: &BTreeSet<String>,
    demand: &mut Demand,
) {
    let touches = |part: &Reuse| unread.contains(part.host.as_str());
    let staying: BTreeSet<ReplicaKey> =
        demand.reuse.iter().filter(|part| touches(part)).map(|part| part.replica).collect();
    let (stay, may_move): (Vec<Reuse>, Vec<Reuse>) =
        std::mem::take(&mut demand.reuse).into_iter().partition(|p| staying.contains(&p.replica));
    for part in stay.iter().filter(|part| touches(part)) {
        if let Some(host) = hosts.iter_mut().find(|host| host.name == part.host) {
            add_unseen(host, part);
        }
    }
    let count = u32::try_from(staying.len()).unwrap_or(u32::MAX);
    demand.replicas = demand.replicas.saturating_sub(count);
    demand.reuse = may_move;
    demand.staying.extend(stay);
}

/// The GPUs that a rank holds, as far as they are not among those that are seen.
fn add_unseen(host: &mut HostCapacity, part: &Reuse) {
    for device in &part.devices {
        let DeviceId::Gpu(uuid) = device else { continue };
        if host.gpus.iter().any(|gpu| gpu.device() == *device) {
            continue;
        }
        let index = host.gpus.iter().map(|gpu| gpu.index.saturating_add(1)).max().unwrap_or(0);
        host.gpus.push(GpuCapacity {
            uuid: uuid.clone(),
            index,
            instance: None,
            name: "GPU not seen".to_owned(),
            total: part.memory_per_device,
            free: crate::base::Bytes::ZERO,
            foreign: crate::base::Bytes::ZERO,
            healthy: Err(NOT_SEEN.to_owned()),
            cordoned: None,
            island: None,
            pcie_switch: None,
            numa: None,
            reserved_by: None,
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::{Bytes, ReleaseNumber};
    use crate::placement::tests;
    use crate::placement::translate::{Present, Wanted, world_file};
    use crate::placement::what_if::{WhatIf, answer};
    use crate::spec::ParallelShape;

    fn host(name: &str) -> HostCapacity {
        let none = BTreeMap::new();
        let name = name.parse().unwrap();
        let seen = HostCapacity::observed(name, BTreeMap::new(), true, None, None, &none);
        HostCapacity { up: true, ..seen }
    }

    fn part(replica: u32, host: &str, gpu: u32) -> Reuse {
        Reuse {
            replica: ReplicaKey { release: ReleaseNumber(1), replica },
            host: host.parse().unwrap(),
            devices: vec![DeviceId::Gpu(format!("{host}-{gpu}"))],
            memory_per_device: Bytes::gib(70),
            shape: ParallelShape::of_tensor(1),
        }
    }

    fn demand(reuse: Vec<Reuse>) -> Demand {
        Demand { reuse, ..tests::demand(2, vec![tests::need(1, 70)]) }
    }

    #[test]
    fn what_runs_where_a_driver_hangs_is_placed_there_and_not_started_elsewhere() {
        let mut free = host("b");
        add_unseen(&mut free, &part(9, "b", 0));
        free.gpus[0].healthy = Ok(());
        (free.gpus[0].total, free.gpus[0].free) = (Bytes::gib(80), Bytes::gib(80));
        let mut hosts = vec![host("a"), free];
        let mut demand = demand(vec![part(0, "a", 3), part(1, "a", 5)]);
        stay_where_unread(&mut hosts, &BTreeSet::from(["a".to_owned()]), &mut demand);
        assert_eq!((demand.replicas, demand.reuse.len(), demand.staying.len()), (0, 0, 2));
        let seen: Vec<&HostCapacity> = hosts.iter().collect();
        let wanted = Wanted { demand: &demand, shapes: &demand.shapes, present: Present::MayStay };
        let world = world_file(&seen, &[wanted]);
        let view = answer(world, &WhatIf::default(), &mut || 0.0, 1000, None).unwrap();
        let service = &view.answer.services[0];
        assert_eq!((service.placed, service.wanted), (2, 2));
        assert!(service.replicas.iter().all(|r| r.state == "stays"), "{service:?}");
        assert!(service.replicas.iter().all(|r| r.ranks[0].host == "a"), "{service:?}");
        assert_eq!(view.world.placements.len(), 2, "the map shows them");
    }

    #[test]
    fn what_is_seen_may_be_moved_as_before() {
        let mut hosts = vec![host("a")];
        let mut demand = demand(vec![part(0, "a", 0)]);
        stay_where_unread(&mut hosts, &BTreeSet::new(), &mut demand);
        assert_eq!((demand.replicas, demand.reuse.len(), demand.staying.len()), (2, 1, 0));
        assert!(hosts[0].gpus.is_empty());
    }
}
