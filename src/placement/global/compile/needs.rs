//! What a shape needs of a GPU and costs in links, whatever the host.

use super::super::file::{Running, WorldFile, WorldService, WorldShape};
use crate::base::Bytes;

/// The link cost of a tensor-parallel group on these cells.
pub(in crate::placement) fn link_cost(group: &[(Option<u32>, Option<u32>)]) -> u32 {
    let same = |of: fn(&(Option<u32>, Option<u32>)) -> Option<u32>| {
        let first = group.first().and_then(of);
        first.is_some() && group.iter().all(|g| of(g) == first)
    };
    match group.len() {
        0 | 1 => 0,
        _ if same(|g| g.0) => 0,
        _ if same(|g| g.1) => 1,
        _ => 2,
    }
}

/// The link cost of lying on more hosts and racks than one.
pub(in crate::placement::global) fn span_cost(hosts: usize, racks: usize) -> i64 {
    3 * (hosts as i64 - 1) + (racks as i64 - 1)
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
pub(in crate::placement::global) fn headroom(world: &WorldFile, total: u64) -> u64 {
    let share = u128::from(total) * u128::from(world.headroom_percent);
    u64::try_from(share.div_ceil(100)).unwrap_or(u64::MAX)
}

pub(super) fn lacks_headroom(world: &WorldFile, total: u64, free: u64, needed: u64) -> bool {
    free < needed.saturating_add(headroom(world, total))
}
