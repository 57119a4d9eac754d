//! What a deck remembers besides its services' states: how rollouts went beside their plans, which hosts
//! get no new ranks, and which are being emptied. Pure; part of the checkpoint, rebuilt by replay.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::plan::{Capacity, PlanProgress, StepProgress};
use crate::api::{PlanTime, PlanView};
use crate::base::{HostName, ReleaseNumber, ServiceName, Timestamp};
use crate::rollout::group::{Group, GroupState, GroupSteer};
use crate::rollout::maintenance::{
    Cordon, CordonedGpu, FleetMaintenance, Upgrade, UpgradeHost, UpgradeSteer,
};
use crate::rollout::{Direction, ServiceState};

/// Rollouts that are remembered of each service.
const MAX_CHRONICLES: usize = 20;

/// Steps of them that go to a service's hosts, for whoever takes over: the newest rollouts that have so many in all.
const MAX_SHARED_STEPS: usize = 200;

/// A line of the journal about the deck as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeckRecord {
    /// When, by the controller's clock.
    pub deck_at: Timestamp,
    /// What.
    pub deck_event: DeckEvent,
}

/// What happened to the deck, or was asked of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DeckEvent {
    /// A rollout is about to begin, and this is foreseen of it.
    Planned {
        /// Of which service.
        service: ServiceName,
        /// What is foreseen; nothing has happened yet.
        progress: PlanProgress,
    },
    /// No new ranks there.
    Cordoned {
        /// The host.
        host: HostName,
        /// Only this GPU.
        gpu: Option<CordonedGpu>,
        /// Who asked.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// New ranks are welcome again; a drain of the host ends.
    Uncordoned {
        /// The host.
        host: HostName,
        /// Only this GPU.
        gpu: Option<CordonedGpu>,
    },
    /// The host is being emptied.
    DrainBegun {
        /// The host.
        host: HostName,
        /// Who asked.
        by: String,
    },
    /// Nothing of ours is left there, or it could not be emptied.
    DrainEnded {
        /// The host.
        host: HostName,
        /// Why not.
        trouble: Option<String>,
    },
    /// Several services are rolled out together.
    GroupBegun {
        /// All that is asked.
        group: Group,
    },
    /// One of them has come further.
    GroupWent {
        /// Which.
        service: ServiceName,
        /// How far.
        state: GroupState,
    },
    /// A person held them, let them go on, or aborted them.
    GroupSteered {
        /// Which of it.
        what: GroupSteer,
        /// Who asked.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// Hosts are upgraded one after the other.
    UpgradeBegun {
        /// All that is asked.
        upgrade: Upgrade,
    },
    /// One of them has come further.
    UpgradeWent {
        /// Which.
        host: HostName,
        /// How far.
        state: UpgradeHost,
    },
    /// A person held the upgrade of hosts, let it go on, had a host tried again or left out, or stopped it.
    UpgradeSteered {
        /// What.
        steer: UpgradeSteer,
        /// Who asked.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// Nobody looked after the upgrade of hosts for so long: its deadlines are later by that.
    UpgradeMissed {
        /// Milliseconds.
        missed_ms: u64,
    },
    /// Times go on from a clock that is ahead of the machine's by so much, or not any more.
    ClockAhead {
        /// Milliseconds; 0: the machine's clock has caught up.
        ahead_ms: u64,
    },
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// How rollouts went, the newest last.
    pub chronicles: BTreeMap<ServiceName, VecDeque<PlanProgress>>,
    /// Cordons, drains, an upgrade of hosts.
    #[serde(flatten)]
    pub maintenance: FleetMaintenance,
    /// The services that are rolled out together, or were last.
    pub group: Option<Group>,
}

impl Ledger {
    /// Takes what the journal says.
    pub fn apply(&mut self, record: &DeckRecord) {
        let at = record.deck_at;
        match &record.deck_event {
            DeckEvent::Planned { service, progress } => {
                let kept = self.chronicles.entry(service.clone()).or_default();
                kept.retain(|c| c.release != progress.release);
                kept.push_back(progress.clone());
                while kept.len() > MAX_CHRONICLES {
                    kept.pop_front();
                }
            }
            DeckEvent::Cordoned { host, gpu, by, reason } => {
                let (by, reason) = (by.clone(), reason.clone());
                let cordon = Cordon { gpu: gpu.clone(), by, reason, since: at };
                self.maintenance.cordoned(host, cordon);
            }
            DeckEvent::Uncordoned { host, gpu } => {
                self.maintenance.uncordoned(host, gpu.as_ref(), at);
            }
            DeckEvent::DrainBegun { host, by } => self.maintenance.drain_begun(host, by, at),
            DeckEvent::DrainEnded { host, trouble } => {
                self.maintenance.drain_ended(host, trouble.as_deref(), at);
            }
            DeckEvent::GroupBegun { group } => self.group = Some(group.clone()),
            DeckEvent::GroupWent { service, state } => {
                if let Some(group) = &mut self.group {
                    group.went(service, state, at);
                }
            }
            DeckEvent::GroupSteered { what, by, reason } => {
                if let Some(group) = &mut self.group {
                    group.steered(*what, by, reason.as_deref(), at);
                }
            }
            DeckEvent::UpgradeBegun { upgrade } => {
                self.maintenance.upgrade = Some(upgrade.clone());
            }
            DeckEvent::UpgradeWent { host, state } => {
                self.maintenance.upgrade_went(host, state, at);
            }
            DeckEvent::UpgradeSteered { steer, by, reason } => {
                self.maintenance.upgrade_steered(steer, by, reason.as_deref(), at);
            }
            DeckEvent::UpgradeMissed { missed_ms } => {
                if let Some(upgrade) = &mut self.maintenance.upgrade {
                    upgrade.missed(Duration::from_millis(*missed_ms));
                }
            }
            // For whoever reads the times beside it.
            DeckEvent::ClockAhead { .. } => {}
        }
    }

    /// How the rollout of a release went.
    pub fn chronicle(
        &self,
        service: &ServiceName,
        release: ReleaseNumber,
    ) -> Option<&PlanProgress> {
        self.chronicles.get(service)?.iter().rev().find(|c| c.release == release)
    }

    /// How the newest rollouts of a service went that were begun, for whoever takes over.
    pub fn shared_chronicles(&self, service: &ServiceName) -> VecDeque<PlanProgress> {
        let mut shared = VecDeque::new();
        let mut steps = 0;
        for chronicle in self.chronicles.get(service).into_iter().flatten().rev() {
            steps += chronicle.steps.len();
            if steps > MAX_SHARED_STEPS {
                break;
            }
            if chronicle.steps.iter().any(|step| step.began.is_some()) {
                shared.push_front(chronicle.clone());
            }
        }
        shared
    }

    /// Takes how rollouts went at whoever acted before; what is known here only stays.
    pub fn adopt_chronicles(
        &mut self,
        service: &ServiceName,
        theirs: impl IntoIterator<Item = PlanProgress>,
    ) {
        let kept = self.chronicles.entry(service.clone()).or_default();
        let mut all: BTreeMap<ReleaseNumber, PlanProgress> =
            kept.drain(..).map(|c| (c.release, c)).collect();
        all.extend(theirs.into_iter().map(|c| (c.release, c)));
        let mut all: Vec<_> = all.into_values().collect();
        all.sort_by_key(|c| (c.began, c.release));
        kept.extend(all.split_off(all.len().saturating_sub(MAX_CHRONICLES)));
        if kept.is_empty() {
            self.chronicles.remove(service);
        }
    }

    /// Releases that were planned, and whose rollout nothing was heard of since.
    pub fn never_begun(
        &self,
        services: &BTreeMap<ServiceName, ServiceState>,
    ) -> Vec<(ServiceName, ReleaseNumber)> {
        let is_known = |service, number: &ReleaseNumber| {
            services.get(service).is_some_and(|s: &ServiceState| s.releases.contains_key(number))
        };
        let all = self.chronicles.iter().flat_map(|(s, kept)| kept.iter().map(move |c| (s, c)));
        all.filter(|(_, c)| c.ended.is_none() && !c.has_begun())
            .filter(|(service, c)| !is_known(*service, &c.release))
            .map(|(service, c)| (service.clone(), c.release))
            .collect()
    }

    /// Writes down what a change of a service's state means for the plan of its rollout. Harmless when
    /// told twice.
    pub fn observe(&mut self, after: &ServiceState) {
        let Some(rollout) = &after.rollout else { return };
        let Some(kept) = self.chronicles.get_mut(&after.service) else { return };
        let Some(chronicle) = kept.iter_mut().find(|c| c.release == rollout.to) else { return };
        if chronicle.ended.is_some() {
            return;
        }
        let now = after.now;
        let back = matches!(rollout.direction, Direction::Back { .. });
        let planned = chronicle.steps.iter().filter(|s| s.predicted_lowest.is_some()).count();
        if back && chronicle.steps.len() == planned {
            chronicle.steps.push(StepProgress {
                title: "way back".to_owned(),
                predicted: PlanTime::default(),
                predicted_lowest: None,
                began: None,
                ended: None,
                lowest_ready: None,
                serving: None,
                skipped: None,
                promoted: None,
            });
        }
        let last = planned.saturating_sub(1);
        let current = if back { planned } else { rollout.step.min(last) };
        if chronicle.steps.iter().all(|s| s.began.is_none()) {
            chronicle.began = rollout.began;
        }
        let ready = after.ready_total();
        chronicle.lowest_ready = chronicle.lowest_ready.min(ready);
        let serving = after.serving_total();
        if let Some(capacity) = &mut chronicle.serving {
            capacity.see(serving);
        }
        for skipped in &rollout.skipped {
            if let Some(step) = chronicle.steps.get_mut(skipped.step) {
                let why = if skipped.reason.is_empty() { "" } else { ": " };
                let who = Some(format!("{}{why}{}", skipped.by, skipped.reason));
                let slot = if skipped.promoted { &mut step.promoted } else { &mut step.skipped };
                *slot = who;
            }
        }
        for (index, step) in chronicle.steps.iter_mut().enumerate() {
            // What the present step has set going at its begin is not the earlier one's.
            if index < current && step.ended.is_none() && (step.began.is_some() || !back) {
                step.began.get_or_insert(now);
                step.lowest_ready.get_or_insert(ready);
                if let Some(capacity) = &mut step.serving {
                    capacity.seen.get_or_insert(serving);
                }
                step.ended = Some(now);
            }
            if index == current {
                step.began.get_or_insert(now);
                step.lowest_ready = Some(step.lowest_ready.map_or(ready, |low| low.min(ready)));
                if let Some(capacity) = &mut step.serving {
                    capacity.see(serving);
                }
                if rollout.outcome.is_some() {
                    step.ended = Some(rollout.ended.unwrap_or(now));
                }
            }
        }
        if rollout.outcome.is_some() {
            chronicle.ended = Some(rollout.ended.unwrap_or(now));
        }
    }
}

/// What is kept of a plan when its rollout begins.
pub fn foreseen(plan: &PlanView, ready: u32, now: Timestamp) -> PlanProgress {
    let steps = plan.steps.iter().map(|step| StepProgress {
        title: step.title.clone(),
        predicted: step.time.clone(),
        predicted_lowest: Some(step.lowest_ready),
        began: None,
        ended: None,
        lowest_ready: None,
        serving: Some(Capacity { predicted: step.lowest_serving, seen: None }),
        skipped: None,
        promoted: None,
    });
    PlanProgress {
        release: plan.to,
        began: now,
        steps: steps.collect(),
        predicted: plan.total.clone(),
        predicted_lowest: plan.forecast.lowest_ready,
        lowest_ready: ready,
        serving: Some(Capacity { predicted: plan.forecast.lowest_serving(), seen: None }),
        ended: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod kill_tests;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn group(services: &[&str], atomic: bool) -> serde_json::Value {
        let services: Vec<_> = services
            .iter()
            .map(|service| {
                let state = serde_json::json!({ "state": "waiting" });
                serde_json::json!({ "service": service, "after": [], "state": state, "since": 1 })
            })
            .collect();
        // As it was written before a group could be steered.
        serde_json::json!({
            "services": services, "atomic": atomic, "by": "ada", "reason": null,
            "accept_outage": false, "began": 1, "ended": null,
        })
    }

    struct Told(Ledger, u64);

    impl Told {
        fn group(services: &[&str], atomic: bool) -> Self {
            let group = serde_json::from_value(group(services, atomic)).unwrap();
            let mut told = Self(Ledger::default(), 1);
            told.tell(DeckEvent::GroupBegun { group });
            told
        }

        fn tell(&mut self, deck_event: DeckEvent) -> Group {
            self.1 += 1;
            let record = DeckRecord { deck_at: Timestamp(self.1), deck_event };
            // Through the journal.
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<DeckRecord>(&text).unwrap(), record);
            self.0.apply(&record);
            self.0.group.clone().unwrap()
        }

        fn steer(&mut self, what: GroupSteer) -> Group {
            let reason = Some("why".to_owned());
            self.tell(DeckEvent::GroupSteered { what, by: "bob".to_owned(), reason })
        }

        fn went(&mut self, service: &str, state: GroupState) -> Group {
            self.tell(DeckEvent::GroupWent { service: service.parse().unwrap(), state })
        }
    }

    fn rolling(release: u64) -> GroupState {
        GroupState::Rolling { release: ReleaseNumber(release) }
    }

    fn done(release: u64) -> GroupState {
        GroupState::Done { release: ReleaseNumber(release), before: None }
    }

    fn failed() -> GroupState {
        GroupState::Failed { why: "no token".to_owned() }
    }

    #[test]
    fn a_pause_is_the_first_ones_until_it_is_ended() {
        let mut told = Told::group(&["a", "b"], true);
        let paused = told.steer(GroupSteer::Pause).paused.unwrap();
        assert_eq!((paused.by.as_str(), paused.since), ("bob", Timestamp(3)));
        assert_eq!(told.steer(GroupSteer::Pause).paused, Some(paused.clone()));
        told.went("a", rolling(1));
        assert_eq!(told.went("a", done(1)).paused, Some(paused));
        assert_eq!(told.steer(GroupSteer::Resume).paused, None);
        let over = told.went("b", done(2));
        assert!(over.ended.is_some() && !over.failed());
    }

    #[test]
    fn a_failure_ends_the_pause_of_what_is_atomic_only() {
        for atomic in [true, false] {
            let mut told = Told::group(&["a", "b"], atomic);
            told.steer(GroupSteer::Pause);
            let group = told.went("a", failed());
            assert_eq!(group.paused.is_none(), atomic, "the others are not begun meanwhile");
            assert_eq!(group.ended, None);
        }
    }

    #[test]
    fn an_abort_ends_the_pause_and_is_over_when_all_are() {
        for atomic in [true, false] {
            let mut told = Told::group(&["a", "b", "c"], atomic);
            told.went("a", done(1));
            told.went("b", rolling(2));
            told.steer(GroupSteer::Pause);
            let group = told.steer(GroupSteer::Abort);
            assert_eq!((group.paused.is_none(), group.failed()), (true, true));
            assert_eq!(group.abort_words().unwrap(), "aborted by bob: why");
            assert_eq!(group.goes_back(), atomic);
            told.went("c", GroupState::Skipped { why: String::new() });
            let group = told.went("b", failed());
            assert_eq!(group.ended.is_none(), atomic, "what was rolled out is taken back");
            assert!(told.went("a", GroupState::Undone).ended.is_some());
        }
    }

    fn chronicle(release: u64, steps: usize, began: bool) -> PlanProgress {
        let step = StepProgress {
            title: "weight 50".to_owned(),
            predicted: PlanTime::default(),
            predicted_lowest: Some(1),
            began: began.then_some(Timestamp(release)),
            ended: None,
            lowest_ready: None,
            serving: None,
            skipped: None,
            promoted: None,
        };
        PlanProgress {
            release: ReleaseNumber(release),
            began: Timestamp(release),
            steps: vec![step; steps],
            predicted: PlanTime::default(),
            predicted_lowest: 1,
            lowest_ready: 1,
            serving: None,
            ended: None,
        }
    }

    #[test]
    fn how_rollouts_went_goes_on_elsewhere() {
        let service: ServiceName = "chat".parse().unwrap();
        let mut first = Ledger::default();
        let all = [(1, 150, true), (2, 90, true), (3, 90, true), (4, 2, false)];
        first.adopt_chronicles(&service, all.map(|(n, steps, began)| chronicle(n, steps, began)));
        let numbers = |kept: &VecDeque<PlanProgress>| -> Vec<(u64, usize)> {
            kept.iter().map(|c| (c.release.0, c.steps.len())).collect()
        };
        let shared = first.shared_chronicles(&service);
        assert_eq!(numbers(&shared), [(2, 90), (3, 90)], "the newest that began");

        let mut second = Ledger::default();
        second.adopt_chronicles(&service, [chronicle(1, 3, true), chronicle(3, 3, true)]);
        second.adopt_chronicles(&service, shared);
        let of = |ledger: &Ledger| numbers(ledger.chronicles.get(&service).unwrap());
        assert_eq!(of(&second), [(1, 3), (2, 90), (3, 90)]);
        second.adopt_chronicles(&service, (4..40).map(|n| chronicle(n, 1, true)));
        assert_eq!(second.chronicles.get(&service).unwrap().len(), MAX_CHRONICLES);
        let mut none = Ledger::default();
        none.adopt_chronicles(&service, []);
        assert_eq!(none, Ledger::default());
    }

    #[test]
    fn a_group_of_no_services_ends_with_an_abort() {
        let mut told = Told::group(&[], false);
        assert_eq!(told.0.group.as_ref().unwrap().ended, None);
        assert!(told.steer(GroupSteer::Abort).ended.is_some());
    }
}
