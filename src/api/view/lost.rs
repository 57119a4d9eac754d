//! Replicas on GPUs that have fallen off the bus, as their hosts say.

use super::{ReplicaView, ServiceView, Snapshot};
use crate::base::HostName;
use crate::rollout::Condition;
use crate::wire::GpuHealth;

impl Snapshot {
    /// The lost GPUs among those that a replica holds: on which host, and their numbers there.
    pub fn lost_gpus<'a>(&'a self, replica: &'a ReplicaView) -> Vec<(&'a HostName, u32)> {
        let of_rank = |rank: &'a super::RankView| {
            let sample = self.hosts.get(&rank.host).and_then(|host| host.sample.as_ref());
            let gpus = sample.map_or(&[][..], |sample| sample.gpus.list());
            let held = move |gpu: &&crate::wire::Gpu| {
                gpu.health == GpuHealth::Lost && rank.devices.iter().any(|d| gpu.has(d))
            };
            gpus.iter().filter(held).map(move |gpu| (&rank.host, gpu.index))
        };
        replica.ranks.iter().flat_map(of_rank).collect()
    }

    /// Which of a service's replicas hold GPUs that are lost, in words, and the first host; none: none does.
    pub fn lost<'a>(&'a self, service: &'a ServiceView) -> Option<(String, &'a HostName)> {
        if service.condition == Condition::Elsewhere {
            return None;
        }
        let mut hit = service.replicas.iter().filter_map(|replica| {
            let lost = self.lost_gpus(replica);
            let (host, index) = lost.first().copied()?;
            let key = replica.key();
            let words = match lost.len() {
                1 => format!("GPU {index} of {host} is LOST, {key} holds it"),
                n => format!("GPU {index} of {host} and {} more are LOST, {key} holds them", n - 1),
            };
            Some((words, host))
        });
        let (first, host) = hit.next()?;
        let words = match hit.count() {
            0 => first,
            1 => format!("{first}; 1 more replica has lost one"),
            n => format!("{first}; {n} more replicas have lost some"),
        };
        Some((words, host))
    }
}
