//! The traffic table: who gets new requests, and how many.

use super::action::Action;
use super::analysis::VerdictResult;
use super::roles::Roles;
use super::state::{Direction, Gate, Phase, ReplicaState, Rollout, ServiceState};
use super::step::Decider;
use crate::base::{ReleaseNumber, ReplicaId, ReplicaKey, TrafficMode, TrafficServer};
use crate::spec::{RolloutSpec, Strategy};

/// The largest weight of `HAProxy`.
const MAX_WEIGHT: u32 = 256;

/// The weight of every server when all get the same.
const EVEN: u16 = 100;

/// A server of the table: its weight, its mode, whether requests are sent to it by the canary's rule, and the release that
/// took it over.
type Row = (ReplicaId, u16, TrafficMode, bool, Option<ReleaseNumber>);

impl ServiceState {
    pub(super) fn apply_traffic(&self) -> Action {
        Action::ApplyTraffic { version: self.traffic_version, servers: self.traffic.clone() }
    }

    /// The table is at the gateway as it should be now.
    pub(super) fn traffic_settled(&self) -> bool {
        self.traffic_applied == self.traffic_version && self.is_current(&self.table(&self.roles()))
    }

    /// A gateway that has no backend of the service (any more) sends nothing, and never confirms a table: what leaves
    /// need not wait for that. On the way to a new release it does wait, since nothing would reach that one either.
    pub(super) fn leaves_unrouted(&self) -> bool {
        let forward = self.active_rollout().is_some_and(|r| r.direction == Direction::Forward);
        self.lacks_backend && !forward
    }

    /// Ready replicas of a release that the gateway was last known to send requests to.
    pub(super) fn reached(&self, release: ReleaseNumber) -> u32 {
        let ready = |id: &&ReplicaId| {
            let of = self.key_of(**id).filter(|key| key.release == release);
            of.and_then(|key| self.replicas.get(&key)).is_some_and(|r| r.phase == Phase::Ready)
        };
        u32::try_from(self.traffic_reached.iter().filter(ready).count()).unwrap_or(u32::MAX)
    }

    fn is_current(&self, table: &[Row]) -> bool {
        table.len() == self.traffic.len()
            && table.iter().zip(self.traffic.iter()).all(|(new, old)| {
                *new == (old.replica, old.weight, old.mode, old.by_rule, old.taken_over_by)
            })
    }

    /// Requests that ask for the canary are sent to the release that is coming: from its first ready replica on,
    /// whatever the weights, until it serves alone or its rollout turns back.
    fn goes_by_rule(&self) -> bool {
        let forward = self.active_rollout().filter(|r| r.direction == Direction::Forward);
        let forward = forward.filter(|r| !matches!(r.gate, Some(Gate::Failed { .. })));
        let to = forward.filter(|r| r.from.is_some()).and_then(|r| self.releases.get(&r.to));
        // What it keeps is no canary.
        let policy = to.filter(|to| !to.keeps_any()).map(|to| &to.spec.rollout);
        policy.is_some_and(|p| p.canary_header.is_some() || p.canary_cookie.is_some())
    }

    /// Weights of one server of the release that is coming, and of one of any other.
    pub(super) fn weights(&self, roles: &Roles) -> (u16, u16) {
        let coming = roles.coming.map_or(0, |c| self.ready(c));
        let going = self.ready_total().saturating_sub(coming);
        if coming == 0 || going == 0 {
            return (EVEN, EVEN);
        }
        let rollout = self.active_rollout();
        // Those that stood in for others get nothing again only when these carry the floor, or as much.
        let needed = roles.floor.min(self.served());
        if let Some(r) = rollout.filter(|r| self.strategy(r) == Strategy::BlueGreen) {
            let to_coming = self.sends_to_coming(r, roles, coming, going);
            // Remains of an earlier rollout that stand in beside stable are none of its two sets.
            let remains = r.direction != Direction::Forward && self.ready(r.to) == 0;
            return match (to_coming, remains) {
                (true, true) if coming < needed => (EVEN, EVEN),
                (false, true) if going < needed => (EVEN, EVEN),
                (true, _) => (EVEN, 0),
                (false, _) => (0, EVEN),
            };
        }
        match self.shares(rollout, roles, coming, going) {
            (0, _) if going < needed => (EVEN, EVEN),
            (_, 0) if coming < needed && !roles.forward => (EVEN, EVEN),
            // (That a step gives all to too few of the new ones is refused in the plan.)
            shares => shares,
        }
    }

    /// Ready replicas that get requests by the table as it was last.
    pub(super) fn served(&self) -> u32 {
        let ready = |server: &&TrafficServer| {
            let replica = self.replica_of(server.replica);
            server.weight > 0 && replica.is_some_and(|r| r.phase == Phase::Ready)
        };
        u32::try_from(self.traffic.iter().filter(ready).count()).unwrap_or(u32::MAX)
    }

    /// [`Self::weights`] of rolling updates and canaries, as their steps and their direction ask for it.
    fn shares(
        &self,
        rollout: Option<&Rollout>,
        roles: &Roles,
        coming: u32,
        going: u32,
    ) -> (u16, u16) {
        // The canary's share as the steps ask for it, but never more per replica than the other
        // side gets while the canary is not yet (or no longer) complete.
        let capped = |weight: Option<u32>, canaries: u32, others: u32| {
            weight.filter(|w| {
                u64::from(*w) * u64::from(canaries + others) <= 100 * u64::from(canaries)
            })
        };
        match rollout {
            Some(r) if self.failed_gets_nothing(r, roles, going) => (0, EVEN),
            Some(r) if r.direction == Direction::Forward => {
                let weight = self.step_weight(r);
                let share =
                    if coming >= roles.target { weight } else { capped(weight, coming, going) };
                share.map_or((EVEN, EVEN), |w| share_weights(w, coming, going))
            }
            _ => {
                // On the way back, or with remains of it.
                if self.carries_all(roles, coming) {
                    return (EVEN, 0);
                }
                let weight = rollout.and_then(|r| self.step_weight(r));
                match capped(weight, going, coming) {
                    Some(w) => {
                        let (canary, stable) = share_weights(w, going, coming);
                        (stable, canary)
                    }
                    None => (EVEN, EVEN),
                }
            }
        }
    }

    /// It failed and waits for a person, who may sleep. What was judged to serve badly gets nothing as long as the
    /// others carry the floor; what merely did not come up whole keeps its share until the others are whole, since
    /// nothing brings them back before somebody decides.
    fn failed_gets_nothing(&self, rollout: &Rollout, roles: &Roles, going: u32) -> bool {
        if !matches!(rollout.gate, Some(Gate::Failed { .. })) {
            return false;
        }
        let judged = rollout.verdict.as_ref().is_some_and(|verdict| {
            matches!(verdict.result, VerdictResult::Failed | VerdictResult::Error)
        });
        let whole = rollout.from.map_or(0, |from| self.wanted(from));
        going >= if judged { roles.floor } else { whole.max(roles.floor) }.max(1)
    }

    /// Blue-green: one of the two sets has all the traffic. Forward that is the new one once it was
    /// whole at the switch; a set that loses replicas keeps it while it is the larger one. Back it is
    /// stable as soon as it carries all, or as much as the other and no more of it comes. The new one that
    /// serves before the switch because the old one was lost goes on until the old one carries the floor or as much.
    fn sends_to_coming(&self, rollout: &Rollout, roles: &Roles, coming: u32, going: u32) -> bool {
        let switch = self.policy(rollout.to).map_or(0, RolloutSpec::switch_step);
        let too_few = |old: u32, new: u32| old < roles.floor.min(new);
        match rollout.direction {
            Direction::Forward if rollout.step <= switch => {
                let stands_in = self.has_all(roles) && too_few(going, coming);
                stands_in || rollout.step == switch && coming >= roles.full
            }
            Direction::Forward => coming >= roles.full || coming >= going,
            Direction::Back { .. } if rollout.step < switch => {
                !(self.has_none(roles) && too_few(coming, going))
            }
            Direction::Back { .. } => {
                self.carries_all(roles, coming) || coming >= going && !self.grows(roles)
            }
        }
    }

    /// On the way back all traffic returns to stable once it is whole (Argo's rule), or carries the floor and nothing
    /// more of it comes: what is missing waits for GPUs of the others, which only then may go. What has returned does
    /// not go to the others again as long as the floor is carried; nor does it at rest, where nobody watches them.
    fn carries_all(&self, roles: &Roles, coming: u32) -> bool {
        let at_rest = self.active_rollout().is_none();
        let suffices = || at_rest || self.has_all(roles) || !self.grows(roles);
        coming >= roles.full.max(1) || coming >= roles.floor.max(1) && suffices()
    }

    /// The release that is coming gets all of the traffic by the table as it was last.
    fn has_all(&self, roles: &Roles) -> bool {
        let mut served = self.traffic.iter().filter(|server| server.weight > 0).peekable();
        served.peek().is_some()
            && served.all(|server| Some(self.owner_of(server.replica)) == roles.coming)
    }

    /// Others get all of the traffic by the table as it was last.
    pub(super) fn has_none(&self, roles: &Roles) -> bool {
        let mut served = self.traffic.iter().filter(|server| server.weight > 0).peekable();
        served.peek().is_some()
            && served.all(|server| Some(self.owner_of(server.replica)) != roles.coming)
    }

    /// A replica of the release that is coming is on its way or about to be: its GPUs are free or becoming so, and
    /// nothing speaks against it so far.
    fn grows(&self, roles: &Roles) -> bool {
        let plan = |key: &ReplicaKey| self.releases.get(&key.release)?.replica(key.replica);
        let is_blocked = |key: &ReplicaKey| {
            let mut others = self.replicas.iter().filter(|(other, r)| {
                // What should have stopped long ago is not waited for.
                let leaves = r.retiring && !self.stop_is_overdue(**other, r);
                other.release != key.release && r.phase.is_live() && !leaves
            });
            others.any(|(other, _)| {
                plan(key).zip(plan(other)).is_some_and(|(mine, theirs)| mine.conflicts_with(theirs))
            })
        };
        let comes = |key: &ReplicaKey, r: &ReplicaState| match r.phase {
            Phase::Starting => r.waiting_since.is_none(),
            // One that served and fell silent is not on its way.
            Phase::Loading => !r.proved,
            Phase::Pending { .. } => !is_blocked(key),
            _ => false,
        };
        let mut of_coming = roles.coming.into_iter().flat_map(|coming| self.of(coming));
        of_coming.any(|(key, r)| r.failures == 0 && !r.retiring && comes(key, r))
    }

    fn table(&self, roles: &Roles) -> Vec<Row> {
        let (coming, going) = self.weights(roles);
        // Alone it is reached by all: so the end of a rollout changes nothing at the gateway any more.
        let beside = roles.coming.is_some_and(|c| self.ready_total() > self.ready(c));
        let by_rule = beside && self.goes_by_rule();
        self.replicas
            .iter()
            .filter_map(|(key, replica)| {
                let is_coming = Some(key.release) == roles.coming;
                let id = replica.id(*key);
                let owner = (id.release != key.release).then_some(key.release);
                match replica.phase {
                    Phase::Ready => {
                        let weight = if is_coming { coming } else { going };
                        Some((id, weight, TrafficMode::Ready, by_rule && is_coming, owner))
                    }
                    Phase::Draining { .. } => Some((id, 0, TrafficMode::Drain, false, owner)),
                    _ => None,
                }
            })
            .collect()
    }
}

impl Decider<'_> {
    /// Brings the table up to date and sees to it that the gateway gets it. Once an event, after
    /// everything else is decided, so that no passing table is ever sent.
    pub(super) fn publish_traffic(&mut self) {
        let table = self.state.table(&self.state.roles());
        let now = self.now();
        if !self.state.is_current(&table) {
            let servers: Vec<TrafficServer> = table
                .into_iter()
                .filter_map(|(replica, weight, mode, by_rule, taken_over_by)| {
                    let release = self.state.releases.get(&replica.release)?;
                    let first = release.replica(replica.replica)?.ranks.first()?;
                    let (address, port) = (first.address.clone(), first.port);
                    Some(TrafficServer {
                        replica,
                        address,
                        port,
                        weight,
                        mode,
                        by_rule,
                        taken_over_by,
                    })
                })
                .collect();
            self.state.traffic = servers.into();
            self.state.traffic_version += 1;
            self.state.traffic_retry = None;
            self.state.lacks_backend = false;
            let version = self.state.traffic_version;
            for replica in self.state.replicas.values_mut() {
                if matches!(replica.phase, Phase::Draining { .. }) && replica.drain.version == 0 {
                    replica.drain.version = version;
                }
            }
            let apply = self.state.apply_traffic();
            self.act(apply);
        } else if self.state.traffic_retry.is_some_and(|at| now >= at) {
            self.state.traffic_retry = None;
            let apply = self.state.apply_traffic();
            self.act(apply);
        }
    }
}

/// Weights per server that give `canaries` servers together `percent` of the traffic and `others`
/// the rest: the pair from 1 to 256 with the smallest error in that share (exact where a pair is).
/// 0 and 100 percent give the empty side 0.
pub(super) fn share_weights(percent: u32, canaries: u32, others: u32) -> (u16, u16) {
    if percent == 0 {
        return (0, EVEN);
    }
    if percent >= 100 {
        return (EVEN, 0);
    }
    let (n, m) = (f64::from(canaries), f64::from(others));
    let wanted = f64::from(percent) / 100.0;
    // Per server: x of a canary to y of another.
    let ratio = wanted * m / ((1.0 - wanted) * n);
    let error = |x: u32, y: u32| {
        let (x, y) = (f64::from(x) * n, f64::from(y) * m);
        (x / (x + y) - wanted).abs()
    };
    let mut best = (1u32, 1u32);
    let mut smallest = f64::INFINITY;
    for larger in 1..=MAX_WEIGHT {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
        let pair = if ratio < 1.0 {
            ((f64::from(larger) * ratio).round().clamp(1.0, 256.0) as u32, larger)
        } else {
            (larger, (f64::from(larger) / ratio).round().clamp(1.0, 256.0) as u32)
        };
        let this = error(pair.0, pair.1);
        // Of equally good pairs the first, smallest one: an exact one is a reduced fraction.
        if this + 1e-9 < smallest {
            smallest = this;
            best = pair;
        }
    }
    (u16::try_from(best.0).unwrap_or(1), u16::try_from(best.1).unwrap_or(1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_are_exact_where_they_can_be() {
        assert_eq!(share_weights(10, 1, 1), (1, 9));
        assert_eq!(share_weights(20, 1, 2), (1, 2));
        assert_eq!(share_weights(50, 2, 1), (1, 2));
        assert_eq!(share_weights(1, 1, 1), (1, 99));
        assert_eq!(share_weights(0, 1, 3), (0, 100));
        assert_eq!(share_weights(100, 1, 3), (100, 0));
    }

    proptest! {
        /// For canaries of the size that the steps make, the share is right within 1 %.
        #[test]
        fn the_share_is_right(percent in 1u32..100, replicas in 2u32..100) {
            let canaries = super::super::count::canary_replicas(percent, replicas);
            prop_assume!(canaries < replicas);
            for others in [replicas - canaries, replicas] {
                let (x, y) = share_weights(percent, canaries, others);
                prop_assert!((1..=256).contains(&x) && (1..=256).contains(&y));
                let (x, y) = (u32::from(x) * canaries, u32::from(y) * others);
                let share = 100.0 * f64::from(x) / f64::from(x + y);
                prop_assert!((share - f64::from(percent)).abs() <= 1.0, "{share} for {percent}");
            }
        }
    }
}
