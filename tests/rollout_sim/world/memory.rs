//! What was asked of the service and what became of it, by what the world saw and not by the decider's books.

use super::*;
use deciding::rollout::ReplicaPlan;
use deciding::spec::ServiceSpec;

/// A rollout that began.
#[derive(Clone, Debug)]
struct Begun {
    from: Option<ReleaseNumber>,
    to: ReleaseNumber,
    kind: RolloutKind,
    over: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// As they were asked for.
    releases: BTreeMap<ReleaseNumber, Release>,
    pub(super) stable: Option<ReleaseNumber>,
    rollout: Option<Begun>,
    pub(super) stopping: bool,
    /// Places that were asked for beyond those of the releases: successors, and where what was lent comes back.
    elsewhere: Vec<(ReleaseNumber, ReplicaPlan)>,
    /// Replicas that were asked to go, for a while or for good.
    asked_away: BTreeSet<ReplicaKey>,
    /// Those of them that are out for a while.
    out: BTreeSet<ReplicaKey>,
    /// To whom what was started under a name belongs, where that is another.
    owners: BTreeMap<ReplicaKey, ReplicaKey>,
    /// The rollout under way goes back: who had lost replicas has them again.
    goes_back: bool,
}

impl World {
    /// What a person wrote about how a release is rolled out.
    pub fn policy(&self, release: ReleaseNumber) -> &deciding::spec::RolloutSpec {
        &self.memory.spec(release).rollout
    }
}

impl Memory {
    /// Before the decider is told: what a person or another service asks for.
    pub(super) fn hear(&mut self, event: &EventKind) {
        match event {
            EventKind::RolloutRequested { release, .. } => {
                self.releases.entry(release.number).or_insert_with(|| (**release).clone());
            }
            EventKind::MovesRequested { release, moves, .. } => {
                for asked in moves {
                    self.away(*release, asked.replica);
                    self.elsewhere.push((*release, asked.plan.clone()));
                }
            }
            EventKind::Lent { what, .. } => {
                for lent in &what.replicas {
                    self.away(what.of, lent.replica);
                    self.elsewhere.extend(lent.back.clone().map(|plan| (what.of, plan)));
                }
            }
            EventKind::TakenOut { release, replicas, .. } => {
                replicas.iter().for_each(|replica| self.away(*release, *replica));
            }
            _ => {}
        }
    }

    fn away(&mut self, release: ReleaseNumber, replica: u32) {
        self.asked_away.insert(ReplicaKey { release, replica });
    }

    /// After the decider was told: which rollouts began and ended, and what is served after that.
    pub(super) fn follow(&mut self, event: &EventKind, state: &ServiceState) {
        if let EventKind::RolloutRequested { release, kind, .. } = event
            // It may be over at once, where nothing is to be started.
            && let Some(begun) = state.rollout.as_ref().filter(|r| r.to == release.number)
            && self.rollout.as_ref().is_none_or(|r| r.to != begun.to)
        {
            assert_eq!(begun.from, self.stable, "{} comes from what is not stable", begun.to);
            assert!(!self.is_rolling(), "{} begins beside another rollout", begun.to);
            let (from, to) = (self.stable, begun.to);
            self.rollout = Some(Begun { from, to, kind: *kind, over: false });
            self.goes_back = false;
            for (old, new) in self.kept_by(to) {
                self.hand_over(old, new);
            }
        }
        let back = state.rollout.as_ref().filter(|r| r.direction != Direction::Forward);
        if let Some(to) = back.map(|r| r.to).filter(|_| self.is_rolling() && !self.goes_back) {
            self.goes_back = true;
            for (old, new) in self.kept_by(to) {
                self.hand_over(new, old);
            }
        }
        if let Some(rollout) = self.rollout.as_mut().filter(|r| !r.over)
            && let Some(ended) = state.rollout.as_ref().filter(|r| r.to == rollout.to)
            && let Some(outcome) = &ended.outcome
        {
            rollout.over = true;
            self.stable =
                if *outcome == Outcome::Completed { Some(rollout.to) } else { rollout.from };
        }
        let stops = matches!(event, EventKind::StopRequested { .. });
        assert!(self.stopping || stops || !state.stopping, "the service stops by itself");
        // It may be over at once, where nothing of it is there any more.
        if (self.stopping || stops) && !state.stopping {
            self.stable = None;
        }
        self.stopping = state.stopping;
        assert_eq!(state.stable, self.stable, "another release is taken for stable");
        let out = state.loans.iter().map(|loan| loan.replica);
        self.out = out.filter(|key| self.asked_away.contains(key)).collect();
    }

    /// What a release takes over, as it was called and as it is called there.
    fn kept_by(&self, release: ReleaseNumber) -> Vec<(ReplicaKey, ReplicaKey)> {
        let keeps = &self.releases[&release].keeps;
        keeps.iter().map(|(new, old)| (*old, *new)).collect()
    }

    fn hand_over(&mut self, from: ReplicaKey, to: ReplicaKey) {
        let mut names: Vec<ReplicaKey> = self
            .owners
            .iter()
            .filter(|(_, owner)| **owner == from)
            .map(|(name, _)| *name)
            .collect();
        if self.owner(from) == from {
            names.push(from);
        }
        for name in names {
            self.owners.insert(name, to);
        }
    }

    /// The replica that has what was started under this name.
    pub(super) fn owner(&self, name: ReplicaKey) -> ReplicaKey {
        self.owners.get(&name).copied().unwrap_or(name)
    }

    /// The release takes this start over from the one before it.
    pub(super) fn takes_over(&self, release: ReleaseNumber, id: ReplicaId) -> bool {
        let owner = self.owner(id.key());
        self.kept_by(release).iter().any(|(old, new)| owner == *old || owner == *new)
    }

    /// It takes over what runs.
    pub(super) fn keeps_any(&self, release: ReleaseNumber) -> bool {
        !self.releases[&release].keeps.is_empty()
    }

    fn is_rolling(&self) -> bool {
        self.rollout.as_ref().is_some_and(|r| !r.over)
    }

    /// What a person wrote about a release.
    pub(super) fn spec(&self, release: ReleaseNumber) -> &ServiceSpec {
        &self.releases[&release].spec
    }

    fn wanted(&self, release: ReleaseNumber) -> u32 {
        self.spec(release).replicas.get()
    }

    /// The fewest ready replicas that an action may leave. Not more than stable has while some of it are out.
    pub(super) fn floor(&self) -> u32 {
        let out = self.out.iter().filter(|key| Some(key.release) == self.stable).count();
        let has = self.stable.map_or(0, |stable| self.wanted(stable));
        self.whole_floor().min(has.saturating_sub(u32::try_from(out).unwrap()))
    }

    /// The same, though some may be out.
    pub(super) fn whole_floor(&self) -> u32 {
        if self.stopping {
            return 0;
        }
        let least =
            |release, desired: u32| desired - may_be_missing(&self.spec(release).rollout, desired);
        let Some(rollout) = self.rollout.as_ref().filter(|r| !r.over) else {
            return self.stable.map_or(0, |stable| least(stable, self.wanted(stable)));
        };
        let Some(from) = rollout.from else { return 0 };
        let desired = self.wanted(from).min(self.wanted(rollout.to));
        match (self.spec(rollout.to).rollout.strategy, rollout.kind) {
            _ if self.keeps_any(rollout.to) => least(rollout.to, desired),
            // The person accepted its outage.
            (Some(Strategy::Recreate), _) => 0,
            (Some(Strategy::BlueGreen), RolloutKind::Apply) => desired,
            _ => least(rollout.to, desired),
        }
    }

    /// The stable release once more, all of which may be missing.
    pub(super) fn serves_less(&self) -> Option<Release> {
        let mut release = self.releases.get(&self.stable?)?.clone();
        release.keeps.clear();
        let rollout = &mut release.spec.rollout;
        rollout.max_unavailable = deciding::spec::Count::Percent(100);
        rollout.strategy = None;
        rollout.steps = Vec::new();
        Some(release)
    }

    /// That a rank is started where its release, or whoever moves its replica, says.
    pub(super) fn check_place(&self, rank: &RankId, plan: &RankPlan) {
        let release = &self.releases[&rank.replica.release];
        assert_eq!(rank.release_id, release.id, "{rank:?} is of another release");
        let index = usize::try_from(rank.rank).unwrap();
        let is_it = |there: &ReplicaPlan| there.ranks.get(index) == Some(plan);
        let is_right = match release.replica(rank.replica.replica) {
            Some(planned) => is_it(planned),
            None => {
                self.elsewhere.iter().any(|(of, there)| *of == rank.replica.release && is_it(there))
            }
        };
        assert!(is_right, "{rank:?} does not run where it was planned: {plan:?}");
    }

    /// That every replica of the stable release is there, but those that were asked to go.
    pub(super) fn check_whole(&self, running: &BTreeMap<RankId, Rank>) {
        let there = running.iter().filter(|(_, r)| r.running);
        let mut ranks: BTreeMap<ReplicaKey, usize> = BTreeMap::new();
        for (rank, entry) in there {
            self.check_place(rank, &entry.plan);
            let owner = self.owner(rank.replica.key());
            *ranks.entry(owner).or_default() += 1;
            let release = owner.release;
            assert_eq!(Some(release), self.stable, "{rank:?} runs, and is not of what is stable");
        }
        let Some(release) = self.stable else { return };
        for (replica, plan) in (0..).zip(&self.releases[&release].replicas) {
            let key = ReplicaKey { release, replica };
            let has = ranks.get(&key).copied();
            let is_whole = has == Some(plan.ranks.len());
            let is_away = has.is_none() && self.asked_away.contains(&key);
            assert!(
                is_whole || is_away,
                "{key} has {has:?} ranks: the hosts hold less than planned"
            );
        }
    }
}

/// What the person allowed to be missing: Kubernetes' rule, written once more.
fn may_be_missing(policy: &deciding::spec::RolloutSpec, desired: u32) -> u32 {
    use deciding::spec::Count;
    let of = |percent: u32| u64::from(percent) * u64::from(desired);
    let unavailable = match policy.max_unavailable {
        Count::Number(n) => n,
        Count::Percent(percent) => u32::try_from(of(percent) / 100).unwrap(),
    };
    let no_surge = match policy.max_surge {
        Count::Number(n) => n == 0,
        Count::Percent(percent) => of(percent) == 0,
    };
    let least = u32::from(no_surge && unavailable == 0);
    unavailable.max(least).min(desired)
}
