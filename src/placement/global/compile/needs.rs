//! What a shape needs of a GPU and costs in links, whatever the host.

use super::super::file::{Running, WorldFile, WorldGpu, WorldLink, WorldService, WorldShape};
use crate::base::Bytes;

/// Link cost of a group on one `PCIe` switch. That of one in an island is 0.
pub(in crate::placement) const ON_SWITCH: u32 = 1;
/// The same on one NUMA node,
pub(in crate::placement) const ON_NODE: u32 = 2;
/// and anywhere else on a host.
pub(in crate::placement) const APART: u32 = 4;
/// Link cost of each host beyond the first, more than that of any group within one,
const A_HOST: i64 = 6;
/// and of each rack.
pub(in crate::placement::global) const A_RACK: i64 = 2;

/// What the GPUs of a group are joined by, if they have it in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::placement) struct Joined {
    /// The `NVLink` island.
    pub island: Option<u32>,
    /// The `PCIe` switch.
    pub pcie_switch: Option<u32>,
    /// The NUMA node.
    pub numa: Option<u32>,
}

impl Joined {
    /// A MIG instance is in no island.
    pub fn of(gpu: &WorldGpu) -> Self {
        let island = gpu.island.filter(|_| gpu.mig.is_none());
        Self { island, pcie_switch: gpu.pcie_switch, numa: gpu.numa }
    }
}

/// The link cost of a tensor-parallel group on these GPUs or cells.
pub(in crate::placement) fn link_cost(group: impl IntoIterator<Item = Joined>) -> u32 {
    let mut group = group.into_iter();
    let (Some(mut all), mut alone) = (group.next(), true) else { return 0 };
    let both = |a: Option<u32>, b: Option<u32>| a.filter(|_| a == b);
    for one in group {
        alone = false;
        all = Joined {
            island: both(all.island, one.island),
            pcie_switch: both(all.pcie_switch, one.pcie_switch),
            numa: both(all.numa, one.numa),
        };
    }
    match all {
        _ if alone => 0,
        Joined { island: Some(_), .. } => 0,
        Joined { pcie_switch: Some(_), .. } => ON_SWITCH,
        Joined { numa: Some(_), .. } => ON_NODE,
        _ => APART,
    }
}

/// The highest link cost of a group that a service allows.
pub(in crate::placement::global) const fn most_link(link: WorldLink) -> u32 {
    match link {
        WorldLink::Nvlink => 0,
        WorldLink::PcieSwitch => ON_SWITCH,
        WorldLink::Numa => ON_NODE,
        WorldLink::Any => APART,
    }
}

/// The link cost of lying on more hosts and racks than one.
pub(in crate::placement::global) fn span_cost(hosts: usize, racks: usize) -> i64 {
    A_HOST * (hosts as i64 - 1) + A_RACK * (racks as i64 - 1)
}

/// Memory on each GPU of a shape: KV heads beyond the tensor-parallel degree are replicated.
pub(in crate::placement::global) fn need(service: &WorldService, shape: &WorldShape) -> u64 {
    let divided = service.kv_heads.map_or(shape.tensor, |kv| kv.min(shape.tensor));
    let over = u64::from(divided) * u64::from(shape.pipeline) * u64::from(shape.data);
    shape.memory.0.saturating_add(service.kv_bytes.0.div_ceil(over.max(1)))
}

/// Why a shape cannot be at all.
pub(in crate::placement::global) fn shape_trouble(
    service: &WorldService,
    shape: &WorldShape,
) -> Option<String> {
    let tensor = shape.tensor;
    if let Some(heads) = service.heads.filter(|heads| !heads.is_multiple_of(tensor)) {
        return Some(format!("{heads} attention heads cannot be divided by {tensor}"));
    }
    let kv = service.kv_heads?;
    let fits = if tensor <= kv { kv % tensor == 0 } else { tensor.is_multiple_of(kv) };
    (!fits).then(|| format!("{kv} KV heads can be neither divided by {tensor} nor copied evenly"))
}

/// The shape a replica runs with: as it says, else the first of its service's with the same degrees, or, where it says
/// nothing, with as many GPUs. Where there is none of these, it is one stage a GPU that needs nothing.
#[allow(clippy::cast_possible_truncation)] // `read` bounds hosts and GPUs
pub(in crate::placement::global) fn running_shape(
    service: &WorldService,
    running: &Running,
) -> WorldShape {
    let count: usize = running.ranks.iter().map(|r| r.gpus.len()).sum();
    let same = |shape: &&WorldShape| shape.gpus() == count as u64;
    match running.shape {
        Some(shape) => {
            let degrees = |s: &WorldShape| (s.tensor, s.pipeline, s.data);
            let like = service.shapes.iter().find(|s| degrees(s) == degrees(&shape)).copied();
            let known = service.shapes.contains(&shape);
            if known { shape } else { like.unwrap_or(shape) }
        }
        None => service.shapes.iter().find(same).copied().unwrap_or(WorldShape {
            tensor: 1,
            pipeline: count as u32,
            data: 1,
            memory: Bytes::ZERO,
        }),
    }
}

/// What an engine takes of each GPU.
#[derive(Clone, Copy, Debug)]
pub(in crate::placement) struct Share {
    /// This share of its memory whatever the model needs.
    pub of_total: Option<f64>,
    /// And no more: the need has to fit into it.
    pub holds_need: bool,
}

impl Share {
    /// What a GPU of so much memory must have free for a need. More than it has where the need does not fit into
    /// the share: the least that a GPU would have to have.
    #[allow(clippy::cast_sign_loss)] // shares are between 0 and 1
    pub fn needed(self, need: u64, total: u64) -> u64 {
        let Some(share) = self.of_total.map(|s| s.clamp(0.0, 1.0)) else {
            return need;
        };
        let taken = (total as f64 * share) as u64;
        if !self.holds_need || need <= taken {
            return need.max(taken);
        }
        ((need as f64 / share).ceil() as u64).max(total.saturating_add(1))
    }
}

/// What a GPU of so much memory must have free for a shape of a service.
pub(in crate::placement::global) fn needed(
    service: &WorldService,
    shape: &WorldShape,
    total: u64,
) -> u64 {
    let share = Share { of_total: service.memory_share, holds_need: service.within_share };
    share.needed(need(service, shape), total)
}

/// Free memory beyond its need with which a GPU has headroom.
pub(in crate::placement) fn headroom(world: &WorldFile, total: u64) -> u64 {
    let share = u128::from(total) * u128::from(world.headroom_percent);
    u64::try_from(share.div_ceil(100)).unwrap_or(u64::MAX)
}

pub(super) fn lacks_headroom(world: &WorldFile, total: u64, free: u64, needed: u64) -> bool {
    free < needed.saturating_add(headroom(world, total))
}
