//! Which replicas want the same GPUs.
//!
//! That follows from the releases alone, which hardly ever change, and is asked for at every event: so it
//! is found once and kept beside the releases it was found for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::release::{Release, ReplicaPlan};
use super::shared::Shared;
use super::state::{Phase, ServiceState};
use crate::base::{DeviceId, HostName, ReleaseNumber, ReplicaKey};

/// The neighbours of every replica of some releases. Derived: it is neither written nor compared.
#[derive(Clone, Default)]
pub struct Neighbours(Option<Arc<Found>>);

struct Found {
    /// What it was found for. Holding them keeps their places in memory from being used again.
    releases: Vec<Shared<Release>>,
    by_release: BTreeMap<ReleaseNumber, Vec<Vec<ReplicaKey>>>,
}

impl Neighbours {
    /// Finds them again if these are not the releases they were found for.
    fn refresh(&mut self, releases: &BTreeMap<ReleaseNumber, Shared<Release>>) {
        let is_fresh = self.0.as_ref().is_some_and(|found| {
            found.releases.len() == releases.len()
                && found.releases.iter().zip(releases.values()).all(|(a, b)| a.is_same(b))
        });
        if !is_fresh {
            let by_release = find(releases);
            let releases = releases.values().cloned().collect();
            self.0 = Some(Arc::new(Found { releases, by_release }));
        }
    }

    /// Those of each replica of a release, by index.
    fn of_release(&self, release: ReleaseNumber) -> &[Vec<ReplicaKey>] {
        let found = self.0.as_ref().and_then(|found| found.by_release.get(&release));
        found.map_or(&[], Vec::as_slice)
    }

    /// The other replicas that have one of its GPUs in their plan, in order, whether they are there or not.
    pub(super) fn of(&self, key: ReplicaKey) -> &[ReplicaKey] {
        at(self.of_release(key.release), key.replica)
    }
}

fn at(neighbours: &[Vec<ReplicaKey>], replica: u32) -> &[ReplicaKey] {
    let index = usize::try_from(replica).ok();
    index.and_then(|index| neighbours.get(index)).map_or(&[], Vec::as_slice)
}

fn find(
    releases: &BTreeMap<ReleaseNumber, Shared<Release>>,
) -> BTreeMap<ReleaseNumber, Vec<Vec<ReplicaKey>>> {
    let mut holders: BTreeMap<(&HostName, &DeviceId), Vec<ReplicaKey>> = BTreeMap::new();
    for (number, release) in releases {
        for (replica, plan) in (0..).zip(&release.replicas) {
            for gpu in plan.gpus() {
                holders.entry(gpu).or_default().push(ReplicaKey { release: *number, replica });
            }
        }
    }
    let of = |key: ReplicaKey, plan: &ReplicaPlan| -> Vec<ReplicaKey> {
        let together = plan.gpus().filter_map(|gpu| holders.get(&gpu)).flatten();
        let others: BTreeSet<ReplicaKey> = together.filter(|k| **k != key).copied().collect();
        others.into_iter().collect()
    };
    let all = releases.iter().map(|(number, release)| {
        let plans = (0..).zip(&release.replicas);
        let key = |replica| ReplicaKey { release: *number, replica };
        (*number, plans.map(|(replica, plan)| of(key(replica), plan)).collect())
    });
    all.collect()
}

impl PartialEq for Neighbours {
    /// Two states with the same releases are the same, whatever was already found for one of them.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Neighbours")
    }
}

/// A wanted replica of the release that is coming and of which nothing runs.
pub(super) struct Candidate {
    /// Which.
    pub key: ReplicaKey,
    /// Of the others on its GPUs so many are ready and not on their way out.
    pub ready: u32,
    /// So many, ready or not, are not on their way out.
    pub staying: u32,
    /// It is entered as pending.
    pub is_there: bool,
    /// It is to be started again after a failure.
    pub failed: bool,
    others: Range<usize>,
}

/// The candidates for a start.
pub(super) struct Candidates {
    /// In order.
    pub list: Vec<Candidate>,
    /// So many of the wanted replicas are chosen for good: they live, or have lived.
    pub committed: u32,
    /// Who is on the GPUs of the candidates.
    pub others: Others,
}

/// Who is on the GPUs of each candidate, as it was when they were looked for.
pub(super) struct Others(Vec<ReplicaKey>);

impl Others {
    /// The other replicas on its GPUs, in order.
    pub(super) fn of(&self, candidate: &Candidate) -> &[ReplicaKey] {
        self.0.get(candidate.others.clone()).unwrap_or(&[])
    }
}

impl ServiceState {
    /// The neighbours of every replica of its releases.
    pub(super) fn neighbours(&mut self) -> Neighbours {
        self.neighbours.refresh(&self.releases);
        self.neighbours.clone()
    }

    /// Who of the wanted replicas (at most `full`) of the release that is coming may be started.
    pub(super) fn candidates(&mut self, coming: ReleaseNumber, full: u32) -> Candidates {
        let neighbours = self.neighbours();
        let neighbours = neighbours.of_release(coming);
        let (mut list, mut committed, mut others) = (Vec::new(), 0, Vec::new());
        let mut there = self.of(coming).peekable();
        for replica in self.wanted_indexes(coming, full) {
            let key = ReplicaKey { release: coming, replica };
            while there.next_if(|(other, _)| **other < key).is_some() {}
            let entry = there.next_if(|(other, _)| **other == key).map(|(_, entry)| entry);
            if entry.is_some_and(|r| !matches!(r.phase, Phase::Pending { .. })) {
                committed += 1;
                continue;
            }
            let failed = entry.is_some_and(|r| r.failures > 0);
            committed += u32::from(failed);
            let begin = others.len();
            let (mut ready, mut staying) = (0, 0);
            for other in at(neighbours, replica) {
                let Some(holder) = self.replicas.get(other) else { continue };
                others.push(*other);
                if !holder.retiring {
                    ready += u32::from(holder.phase == Phase::Ready);
                    staying += 1;
                }
            }
            let others = begin..others.len();
            list.push(Candidate { key, ready, staying, is_there: entry.is_some(), failed, others });
        }
        Candidates { list, committed, others: Others(others) }
    }
}
