//! What is still started on a host after its cordon: what was planned, and agreed to, before it.

use super::CordonedGpu;
use crate::base::{HostName, ReleaseNumber, ReplicaKey};
use crate::rollout::{Direction, Phase, RankPlan, ServiceState};

/// Replicas of a service that come to a host though it is cordoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comes {
    /// A rollout under way starts so many of this release there.
    OfRollout {
        /// The release it goes to.
        to: ReleaseNumber,
        /// How many.
        replicas: usize,
    },
    /// So many move there.
    OfMoves {
        /// How many.
        replicas: usize,
    },
}

impl ServiceState {
    /// What comes to the host, or to just this GPU of it, by the plans under way.
    pub fn comes_despite(&self, host: &HostName, gpu: Option<&CordonedGpu>) -> Vec<Comes> {
        let is_there = |rank: &RankPlan| {
            rank.host == *host && gpu.is_none_or(|gpu| rank.devices.contains(&gpu.device))
        };
        let rollout = self.active_rollout().and_then(|rollout| {
            let to = match rollout.direction {
                Direction::Forward => rollout.to,
                Direction::Back { .. } => rollout.from?,
            };
            let plans = self.releases.get(&to).map_or(&[][..], |r| r.replicas.as_slice());
            let replicas = (0..).zip(plans).filter(|(replica, plan)| {
                let key = ReplicaKey { release: to, replica: *replica };
                plan.ranks.iter().any(is_there)
                    && !self.vacated.contains(&key)
                    && !self.is_begun(key)
            });
            Some(Comes::OfRollout { to, replicas: replicas.count() })
        });
        let moves = self.moves.iter().filter(|m| {
            m.plan.ranks.iter().any(is_there)
                && !m.to.is_some_and(|replica| {
                    self.is_begun(ReplicaKey { release: m.release, replica })
                })
        });
        let moves = Comes::OfMoves { replicas: moves.count() };
        rollout
            .into_iter()
            .chain([moves])
            .filter(|comes| match comes {
                Comes::OfRollout { replicas, .. } | Comes::OfMoves { replicas } => *replicas > 0,
            })
            .collect()
    }

    /// It was told to start: a cordon lets it go on.
    fn is_begun(&self, key: ReplicaKey) -> bool {
        self.replicas
            .get(&key)
            .is_some_and(|r| !matches!(r.phase, Phase::Pending { .. } | Phase::Stopped))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::play::{host, plan, served};
    use super::*;
    use crate::base::{DeviceId, Timestamp};
    use crate::rollout::{Event, EventKind, LimitRule, Release, RolloutKind, step};

    #[test]
    fn a_rollout_that_was_agreed_to_before_still_starts_what_it_planned() {
        let (_, mut state) = served("chat", 1, &["h1", "h2"]);
        assert!(state.comes_despite(&host("h3"), None).is_empty());
        let old = state.releases.values().next().unwrap();
        let release = Release {
            number: ReleaseNumber(2),
            replicas: vec![plan("h3", 0), plan("h3", 1)],
            ..Release::clone(old)
        };
        let kind = EventKind::RolloutRequested {
            release: Box::new(release),
            kind: RolloutKind::Apply,
            by: "ada".to_owned(),
            limits: LimitRule::PRESENT,
            of_group: None,
        };
        let _ = step(&mut state, &Event { at: Timestamp(50), kind });
        let begun = (0..2)
            .filter(|r| state.is_begun(ReplicaKey { release: ReleaseNumber(2), replica: *r }));
        let left = 2 - begun.count();
        assert!(left > 0, "max_surge lets one start at once");
        let to = ReleaseNumber(2);
        let comes = [Comes::OfRollout { to, replicas: left }];
        assert_eq!(state.comes_despite(&host("h3"), None), comes);
        assert!(state.comes_despite(&host("h1"), None).is_empty(), "what runs there is no news");
        let gpu = |device: &str| CordonedGpu { device: DeviceId::Gpu(device.to_owned()), index: 0 };
        assert_eq!(state.comes_despite(&host("h3"), Some(&gpu("GPU-h3-1"))).len(), 1);
        assert!(state.comes_despite(&host("h3"), Some(&gpu("GPU-h3-7"))).is_empty());
    }
}
