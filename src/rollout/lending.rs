//! Borrowing: replicas of a service of lower priority stop for the time of a rollout, so that it has
//! room beside what serves, and come back when the rollout is over, however it ended.
//!
//! A loan is part of the borrower's release, so the journal has it from the first moment. Everything
//! else follows from the states of the two services ([`due`]): a controller that was killed at any
//! moment goes on from there. Each service writes down its own side, as events of its own.
//!
//! The lender's side is like a move: a replica that is lent is not wanted (`vacated`), and it is
//! drained under the lender's floor. It comes back to its own devices; when the new release stays on
//! them, to the place that the plan found for it (where the borrower's old release was).
//!
//! A host that is drained takes replicas in the same way when there is no other place for them: they are out until the
//! host is uncordoned. A rollout that begins meanwhile does without that host; when it is completed, nothing of the release
//! before comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::count;
use super::event::EventKind;
use super::release::{Release, ReplicaPlan};
use super::state::{Direction, Phase, ServiceState};
use super::step::Decider;
use crate::base::{DeviceId, HostName, ReleaseNumber, ReplicaKey, ServiceName};

/// What a release borrows while it is rolled out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Borrowing {
    /// From which service.
    pub lender: ServiceName,
    /// Of which release of the lender.
    pub of: ReleaseNumber,
    /// Which replicas stop for it.
    pub replicas: Vec<LentReplica>,
}

/// A replica that is to stop for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LentReplica {
    /// Its index.
    pub replica: u32,
    /// Where it is.
    pub plan: ReplicaPlan,
    /// Where it comes back when the new release stays there.
    pub back: Option<ReplicaPlan>,
}

/// A replica that a service has lent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loan {
    /// What for.
    #[serde(flatten)]
    pub to: LentTo,
    /// Which replica of ours.
    pub replica: ReplicaKey,
    /// Where it comes back when its own devices are another's.
    pub back: Option<ReplicaPlan>,
}

/// What a replica is lent for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LentTo {
    /// Another service's rollout.
    Rollout {
        /// Which service.
        borrower: ServiceName,
        /// To this release.
        to: ReleaseNumber,
    },
    /// The maintenance of its host.
    Maintenance {
        /// Which host.
        host: HostName,
    },
}

impl LentTo {
    /// How it ends, for people.
    pub fn way_back(&self) -> String {
        match self {
            Self::Rollout { .. } => {
                "wait for the end of that rollout, or take it back with `gpudeck rollout abort`"
                    .to_owned()
            }
            Self::Maintenance { host } => format!("`gpudeck uncordon {host}` brings it back"),
        }
    }
}

impl fmt::Display for LentTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rollout { borrower, .. } => {
                write!(f, "lent to {borrower} until its rollout is over")
            }
            Self::Maintenance { host } => write!(f, "out until {host} is uncordoned"),
        }
    }
}

impl Borrowing {
    fn keys(&self) -> impl Iterator<Item = ReplicaKey> {
        self.replicas.iter().map(|r| ReplicaKey { release: self.of, replica: r.replica })
    }
}

impl ServiceState {
    /// How many replicas of a release are lent.
    pub fn lent(&self, release: ReleaseNumber) -> u32 {
        let n = self.loans.iter().filter(|l| l.replica.release == release).count();
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    /// The loan that keeps another release from being rolled out: what is lent to a rollout comes back to its own place.
    /// A replica that is out for its host's maintenance does not: what comes after it has places of its own.
    pub fn binding_loan(&self) -> Option<&Loan> {
        self.loans.iter().find(|l| matches!(l.to, LentTo::Rollout { .. }))
    }

    /// How many of its replicas this service can lend: those above its floor, and never the last.
    pub fn can_lend(&self) -> u32 {
        let Some(stable) = self.stable.filter(|_| self.rests()) else { return 0 };
        let floor = self.lending_floor(stable);
        let ready = self
            .of(stable)
            .filter(|(key, r)| r.phase == Phase::Ready && !self.vacated.contains(key))
            .count();
        u32::try_from(ready).unwrap_or(u32::MAX).saturating_sub(floor)
    }

    /// So many replicas of a release stay ready whatever is lent: its floor, and never fewer than one.
    fn lending_floor(&self, release: ReleaseNumber) -> u32 {
        let wanted = self.wanted(release);
        self.policy(release).map_or(wanted, |p| count::floor(p, wanted)).max(1)
    }

    /// The same of what is served; 0 where nothing is.
    pub fn stays_ready(&self) -> u32 {
        self.stable.map_or(0, |stable| self.lending_floor(stable))
    }

    /// The `max_unavailable` with which `more` replicas than now could be out; none: fewer than one would stay.
    pub fn unavailable_for(&self, more: u32) -> Option<u32> {
        let stable = self.stable.filter(|_| self.rests())?;
        let floor = self.lending_floor(stable).checked_sub(more).filter(|floor| *floor > 0)?;
        Some(self.wanted(stable).saturating_sub(floor))
    }

    /// Nothing is being changed, so that a replica can be taken out.
    fn rests(&self) -> bool {
        let busy = self.active_rollout().is_some() || !self.moves.is_empty();
        !self.stopping && !self.is_held() && !busy
    }

    /// A replica that can stop for its host's maintenance without the service's losing anything: it serves nothing.
    pub fn is_idle(&self, key: ReplicaKey) -> bool {
        self.rests() && self.replicas.get(&key).is_some_and(|r| r.phase != Phase::Ready)
    }

    /// The new replica is to have devices that were not given over by their lender yet.
    pub(super) fn waits_for_loan(&self, key: ReplicaKey) -> bool {
        if self.borrowed == Some(key.release) {
            return false;
        }
        let Some(release) = self.releases.get(&key.release) else { return false };
        let (Some(borrowing), Some(plan)) = (&release.borrowing, release.replica(key.replica))
        else {
            return false;
        };
        borrowing.replicas.iter().any(|lent| lent.plan.conflicts_with(plan))
    }

    /// The loan that the rollout under way waits for, for people.
    pub(super) fn awaited_loan(&self) -> Option<String> {
        let rollout = self.active_rollout().filter(|r| r.direction == Direction::Forward)?;
        let borrowing = self.releases.get(&rollout.to)?.borrowing.as_ref()?;
        (self.borrowed != Some(rollout.to))
            .then(|| format!("{} has not given over what is borrowed from it", borrowing.lender))
    }
}

impl Decider<'_> {
    /// Lends replicas, as far as they are this service's to lend.
    pub(super) fn lend(&mut self, borrower: &ServiceName, to: ReleaseNumber, what: &Borrowing) {
        if self.state.stable != Some(what.of) || what.lender != self.state.service {
            return;
        }
        let wanted = self.state.wanted_indexes(what.of, self.state.wanted(what.of));
        for lent in &what.replicas {
            let replica = ReplicaKey { release: what.of, replica: lent.replica };
            if self.state.can_lend() == 0 || !wanted.contains(&lent.replica) {
                continue;
            }
            if self.state.vacated.insert(replica) {
                let (borrower, back) = (borrower.clone(), lent.back.clone());
                let to = LentTo::Rollout { borrower, to };
                self.state.loans.push(Loan { to, replica, back });
                self.moved = true;
            }
        }
    }

    /// Takes replicas out for the time in which their host is maintained, as far as the floor allows.
    pub(super) fn take_out_for(
        &mut self,
        release: ReleaseNumber,
        replicas: &[u32],
        host: &HostName,
    ) {
        if self.state.stable != Some(release) {
            return;
        }
        let wanted = self.state.wanted_indexes(release, self.state.wanted(release));
        for replica in replicas.iter().filter(|replica| wanted.contains(replica)) {
            let key = ReplicaKey { release, replica: *replica };
            let may_stop = self.state.can_lend() > 0 || self.state.is_idle(key);
            if may_stop && self.state.vacated.insert(key) {
                // Of an earlier maintenance; a drain that goes on looks here for its own.
                self.state.move_trouble = None;
                let to = LentTo::Maintenance { host: host.clone() };
                self.state.loans.push(Loan { to, replica: key, back: None });
                self.moved = true;
            }
        }
    }

    /// A replica that was lent is wanted again.
    pub(super) fn take_back(&mut self, replica: ReplicaKey, elsewhere: bool) {
        let Some(index) = self.state.loans.iter().position(|l| l.replica == replica) else {
            return;
        };
        let loan = self.state.loans.remove(index);
        self.moved = true;
        match loan.back.filter(|_| elsewhere) {
            Some(plan) => {
                if let Some(release) = self.state.releases.get_mut(&replica.release) {
                    release.change().replicas.push(plan);
                }
            }
            None => {
                self.state.vacated.remove(&replica);
            }
        }
    }

    /// What is borrowed is free of its lender.
    pub(super) fn loan_ready(&mut self, release: ReleaseNumber) {
        if self.state.active_rollout().is_some_and(|r| r.to == release) {
            self.state.borrowed = Some(release);
            self.moved = true;
            self.progressed();
        }
    }
}

/// What is to be told to which service about loans, from the states of all of them.
pub fn due(services: &BTreeMap<ServiceName, ServiceState>) -> Vec<(ServiceName, EventKind)> {
    let mut due = Vec::new();
    for (name, state) in services {
        due.extend(wanted_by(services, name, state));
        for loan in &state.loans {
            if let Some(elsewhere) = comes_back(services, name, state, loan) {
                let kind = EventKind::LentReturned { replica: loan.replica, elsewhere };
                due.push((name.clone(), kind));
            }
        }
    }
    due
}

/// The borrower's side: to be asked of the lender, or given over by it.
fn wanted_by(
    services: &BTreeMap<ServiceName, ServiceState>,
    name: &ServiceName,
    state: &ServiceState,
) -> Option<(ServiceName, EventKind)> {
    let rollout = state.active_rollout().filter(|r| r.direction == Direction::Forward)?;
    let borrowing = state.releases.get(&rollout.to)?.borrowing.as_deref()?;
    if state.borrowed == Some(rollout.to) {
        return None;
    }
    let nobody = ServiceState::new(borrowing.lender.clone());
    let lender = services.get(&borrowing.lender).unwrap_or(&nobody);
    let lent = |key: &ReplicaKey| {
        let to = LentTo::Rollout { borrower: name.clone(), to: rollout.to };
        let is_it = |l: &Loan| l.replica == *key && l.to == to;
        // A lender that was stopped meanwhile has nothing there any more, either.
        lender.loans.iter().any(is_it) || lender.stable != Some(borrowing.of)
    };
    if borrowing.keys().all(|key| lent(&key)) {
        // One that another release has taken over runs on.
        let there = |key: ReplicaKey| lender.replicas.contains_key(&lender.owner(key));
        let gone = borrowing.keys().all(|key| !there(key));
        return gone.then(|| (name.clone(), EventKind::LoanReady { release: rollout.to }));
    }
    let free = borrowing.keys().any(|key| !lent(&key) && !lender.vacated.contains(&key));
    (free && lender.can_lend() > 0).then(|| {
        let (borrower, to) = (name.clone(), rollout.to);
        let kind = EventKind::Lent { borrower, to, what: Box::new(borrowing.clone()) };
        (borrowing.lender.clone(), kind)
    })
}

/// A loan that is over: whether the replica comes back elsewhere than where it was. None: it is not
/// over, or neither place is free yet.
fn comes_back(
    services: &BTreeMap<ServiceName, ServiceState>,
    lender: &ServiceName,
    state: &ServiceState,
    loan: &Loan,
) -> Option<bool> {
    // Of a host's maintenance its cordon tells the end, which is nothing of the services.
    let LentTo::Rollout { borrower, to } = &loan.to else { return None };
    let rollout = services.get(borrower).and_then(ServiceState::active_rollout);
    if rollout.is_some_and(|r| r.to == *to) {
        return None;
    }
    let own = state.releases.get(&loan.replica.release)?.replica(loan.replica.replica)?;
    let free = |plan: &ReplicaPlan| {
        let devices: BTreeSet<(&HostName, &DeviceId)> = plan.gpus().collect();
        !holders(services, lender, loan.replica)
            .any(|other| other.gpus().any(|g| devices.contains(&g)))
    };
    if free(own) {
        return Some(false);
    }
    loan.back.as_ref().filter(|back| free(back)).map(|_| true)
}

/// The places of all replicas that are there or are wanted at rest, but for the lent one.
fn holders<'a>(
    services: &'a BTreeMap<ServiceName, ServiceState>,
    lender: &'a ServiceName,
    lent: ReplicaKey,
) -> impl Iterator<Item = &'a ReplicaPlan> {
    services.iter().flat_map(move |(name, state)| {
        let plan = |key: &ReplicaKey| -> Option<&'a ReplicaPlan> {
            let release: &'a Release = state.releases.get(&key.release)?;
            release.replica(key.replica)
        };
        let there = state
            .replicas
            .iter()
            .filter(move |(key, r)| r.phase != Phase::Stopped && !(name == lender && **key == lent))
            .filter_map(move |(key, _)| plan(key));
        let wanted = state.stable.into_iter().flat_map(|release| {
            let indexes = state.wanted_indexes(release, state.wanted(release));
            indexes.into_iter().map(move |replica| ReplicaKey { release, replica })
        });
        there.chain(wanted.filter_map(move |key| plan(&key)))
    })
}
