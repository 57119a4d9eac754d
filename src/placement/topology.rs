//! Which GPUs of a host are near each other.

use std::collections::BTreeMap;

use super::world::GpuCapacity;
use crate::base::ReplicaKey;

/// How near the GPUs of a replica are to each other, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Distance {
    /// One GPU, host memory, or GPUs of one `NVLink` island.
    Near,
    /// On one NUMA node.
    Numa,
    /// Anywhere on the host.
    Far,
}

/// A GPU that can be used for the need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    /// The GPU.
    pub gpu: &'a GpuCapacity,
    /// The present replica that must go first.
    pub occupant: Option<ReplicaKey>,
}

/// GPUs that are near each other.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// How near.
    pub distance: Distance,
    /// The GPUs.
    pub members: Vec<Candidate<'a>>,
}

/// The groups from which `wanted` GPUs may be taken: islands; where none has enough, NUMA nodes;
/// where none has either, the whole host.
pub(super) fn groups<'a>(all: &[Candidate<'a>], wanted: usize) -> Vec<Group<'a>> {
    let mut out = by(all, wanted, Distance::Near, |g| g.island);
    if wanted == 1 {
        // A single GPU splits up least where it is alone.
        let alone = all.iter().filter(|c| c.gpu.island.is_none());
        out.extend(alone.map(|c| Group { distance: Distance::Near, members: vec![*c] }));
    }
    if out.is_empty() {
        out = by(all, wanted, Distance::Numa, |g| g.numa);
    }
    if out.is_empty() && all.len() >= wanted {
        out.push(Group { distance: Distance::Far, members: all.to_vec() });
    }
    out
}

fn by<'a>(
    all: &[Candidate<'a>],
    wanted: usize,
    distance: Distance,
    key: impl Fn(&GpuCapacity) -> Option<u32>,
) -> Vec<Group<'a>> {
    let mut map: BTreeMap<u32, Vec<Candidate<'a>>> = BTreeMap::new();
    for candidate in all {
        if let Some(key) = key(candidate.gpu) {
            map.entry(key).or_default().push(*candidate);
        }
    }
    map.into_values()
        .filter(|members| members.len() >= wanted)
        .map(|members| Group { distance, members })
        .collect()
}
