//! Which GPUs of a host nothing tells apart. Drivers never report the same free memory twice, so it does not
//! tell GPUs apart as such: what counts is which services find enough in it, with headroom and without.
#![allow(clippy::indexing_slicing)] // hosts and GPUs are numbered by the world

use std::collections::{BTreeMap, BTreeSet};

use super::compile::{fact, headroom, needed};
use super::file::{WorldFile, WorldGpu};
use crate::spec::Requirement;
use crate::spec::require::Fact;

/// What tells the GPUs of a world apart beside their links and models.
pub(super) struct Alike<'a> {
    world: &'a WorldFile,
    /// By total memory: what a GPU must have free for one service or another, ascending.
    steps: BTreeMap<u64, Vec<u64>>,
    /// The requirements that look at single GPUs, each once.
    single: Vec<&'a Requirement>,
}

/// GPUs of one model and host with equal marks are as good as each other for every service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// So many of the steps are free.
    steps: usize,
    /// Which requirements hold.
    holds: Vec<bool>,
}

impl<'a> Alike<'a> {
    /// `requirements` are those of the world's services, in their order.
    pub fn new(world: &'a WorldFile, requirements: &'a [Option<Requirement>]) -> Self {
        let totals: BTreeSet<u64> =
            world.hosts.iter().flat_map(|h| &h.gpus).map(|g| g.memory_total.0).collect();
        let steps = totals.into_iter().map(|total| {
            let mut steps: BTreeSet<u64> = BTreeSet::new();
            for service in &world.services {
                for shape in &service.shapes {
                    let least = needed(service, shape, total);
                    steps.extend([least, least.saturating_add(headroom(world, total))]);
                }
            }
            (total, steps.into_iter().collect())
        });
        let steps = steps.collect();
        let mut seen = BTreeSet::new();
        let texts = world.services.iter().map(|s| s.require.as_deref());
        let single = texts.zip(requirements).filter_map(|(text, requirement)| {
            let requirement = requirement.as_ref()?;
            // A switch tells GPUs apart only where it matters for links.
            let single = [Fact::GpuFree, Fact::GpuIndex, Fact::GpuPcieSwitch];
            let looks = single.iter().any(|f| requirement.mentions(f));
            (looks && seen.insert(text)).then_some(requirement)
        });
        let single = single.collect();
        Self { world, steps, single }
    }

    /// The mark of a GPU of the host at `host` with so much free memory.
    pub fn mark(&self, host: usize, gpu: &WorldGpu, free: u64) -> Mark {
        let steps = self.steps.get(&gpu.memory_total.0).map_or(&[][..], Vec::as_slice);
        let host = &self.world.hosts[host];
        let holds = |r: &&Requirement| r.holds(&|f| fact(host, gpu, free, f));
        Mark {
            steps: steps.partition_point(|step| *step <= free),
            holds: self.single.iter().map(holds).collect(),
        }
    }
}
