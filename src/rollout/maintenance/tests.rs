//! An upgrade of hosts on services that the real decider has brought up: which hosts go beside each other, and what people
//! ask for in the middle of it.

use std::collections::{BTreeMap, BTreeSet};

use super::beside::shared;
use super::*;
use crate::base::{
    Bytes, DeckId, DeviceId, ReleaseId, ReleaseNumber, ReplicaKey, Revision, ServiceName,
};
use crate::rollout::{Event, EventKind, RankPlan, Release, ReplicaPlan, ServiceState, forecast};
use crate::spec::{Count, parse_service};

type Services = BTreeMap<ServiceName, ServiceState>;

pub(super) fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub(super) fn plan(on: &str, gpu: usize) -> ReplicaPlan {
    ReplicaPlan {
        shape: None,
        ranks: vec![RankPlan {
            host: host(on),
            devices: vec![DeviceId::Gpu(format!("GPU-{on}-{gpu}"))],
            memory_per_device: Bytes::gib(10),
            address: "10.0.0.1".to_owned(),
            listen: None,
            port: 21000,
            argv: vec!["engine".to_owned()],
            env: BTreeMap::new(),
            files: Vec::new(),
        }],
    }
}

/// A service of which a replica is served on each of these hosts.
pub(super) fn served(name: &str, unavailable: u32, hosts: &[&str]) -> (ServiceName, ServiceState) {
    let service: ServiceName = name.parse().unwrap();
    let text = format!("model = \"/m\"\nengine = \"vllm\"\nreplicas = {}", hosts.len());
    let mut spec = parse_service(&text, name).unwrap();
    spec.rollout.max_unavailable = Count::Number(unavailable);
    spec.rollout.max_surge = Count::Number(1);
    let release = Release {
        id: ReleaseId(uuid::Uuid::from_u128(5)),
        number: ReleaseNumber(1),
        deck: DeckId(uuid::Uuid::from_u128(7)),
        service: service.clone(),
        revision: Revision("1".repeat(40)),
        spec,
        replicas: (0..).zip(hosts).map(|(gpu, on)| plan(on, gpu)).collect(),
        gateway: None,
        borrowing: None,
        keeps: BTreeMap::new(),
        created: Timestamp(0),
        author: "ada".to_owned(),
        reason: None,
    };
    let state = forecast::state_after(&ServiceState::new(service.clone()), &release).unwrap();
    assert_eq!(state.ready_total() as usize, hosts.len());
    (service, state)
}

fn begun(hosts: &[&str], max_parallel: u32) -> FleetMaintenance {
    let entry = |name: &&str| UpgradeEntry::waiting(host(name), Timestamp(1));
    let upgrade = Upgrade {
        id: ReleaseId(uuid::Uuid::from_u128(1)),
        command: "true".to_owned(),
        hosts: hosts.iter().map(entry).collect(),
        max_parallel,
        timeout_ms: 1_000,
        return_ms: 1_000,
        by: "ada".to_owned(),
        began: Timestamp(1),
        ended: None,
        paused: None,
        stopped: None,
    };
    FleetMaintenance { upgrade: Some(upgrade), ..FleetMaintenance::default() }
}

/// What the decider does at one moment, with hosts of which all is well.
struct Play {
    kept: FleetMaintenance,
    services: Services,
    watch: Watch,
    now: Timestamp,
}

impl Play {
    fn new(
        hosts: &[&str],
        max_parallel: u32,
        services: impl IntoIterator<Item = (ServiceName, ServiceState)>,
    ) -> Self {
        Self {
            kept: begun(hosts, max_parallel),
            services: services.into_iter().collect(),
            watch: Watch::default(),
            now: Timestamp(100),
        }
    }

    fn seen(&self) -> BTreeMap<HostName, HostSeen> {
        let all = self.kept.upgrade.as_ref().unwrap().hosts.iter();
        let seen = |entry: &UpgradeEntry| {
            let seen = HostSeen {
                reach: Reach::Up,
                gpus_well: Some(8),
                read: Some(Timestamp(self.now.0)),
                boot: None,
            };
            (entry.host.clone(), seen)
        };
        all.map(seen).collect()
    }

    /// Decides until nothing more is to be done now. Whoever is asked to do something is busy.
    fn decide(&mut self) {
        let hosts = self.seen();
        for _ in 0..50 {
            let seen = Seen { now: self.now, hosts: &hosts, services: &self.services };
            match self.kept.next_of_upgrade(&seen, &mut self.watch) {
                None => return,
                Some(UpgradeMove::Went { host, state }) => self.went(&host, state),
                Some(UpgradeMove::Drain { host }) => {
                    let by = "ada".to_owned();
                    let cordon = Cordon { gpu: None, by, reason: None, since: self.now };
                    self.kept.cordoned(&host, cordon);
                    self.watch.busy.insert(host);
                }
                Some(UpgradeMove::Run { host } | UpgradeMove::Forget { host }) => {
                    self.watch.busy.insert(host);
                }
            }
        }
        panic!("it has no end");
    }

    fn went(&mut self, host: &HostName, state: UpgradeHost) {
        self.kept.upgrade_went(host, &state, self.now);
        self.watch.went(host);
        self.watch.busy.remove(host);
    }

    fn waits_for(&self) -> Option<AwaitedByNext> {
        let hosts = self.seen();
        let seen = Seen { now: self.now, hosts: &hosts, services: &self.services };
        self.kept.upgrade_waits_for(&seen, &self.watch)
    }

    fn steer(&mut self, what: UpgradeSteer) {
        let upgrade = self.kept.upgrade.as_ref().unwrap();
        assert_eq!(upgrade.takes(&what), Ok(true), "{what:?}");
        self.kept.upgrade_steered(&what, "bob", Some("why"), self.now);
        // Through the journal's checkpoint.
        let text = serde_json::to_string(&self.kept).unwrap();
        assert_eq!(serde_json::from_str::<FleetMaintenance>(&text).unwrap(), self.kept);
    }

    fn words(&self) -> Vec<&'static str> {
        self.kept.upgrade.as_ref().unwrap().hosts.iter().map(|h| h.state.word()).collect()
    }

    fn fail(&mut self, name: &str) {
        self.went(&host(name), UpgradeHost::Failed { why: "exit code 1".to_owned() });
    }

    /// What is on the host stops until it is uncordoned, and has ended.
    fn take_out(&mut self, name: &str, replica: u32) {
        let release = ReleaseNumber(1);
        let kind = EventKind::TakenOut { release, replicas: vec![replica], host: host(name) };
        for state in self.services.values_mut() {
            let _ = crate::rollout::step(state, &Event { at: self.now, kind: kind.clone() });
        }
    }
}

/// Two hosts, one replica each, and the floor lets one of them stop.
#[test]
fn two_hosts_that_together_take_a_service_under_its_floor_go_one_after_the_other() {
    let mut play = Play::new(&["h1", "h2"], 2, [served("chat", 1, &["h1", "h2"])]);
    play.decide();
    assert_eq!(play.words(), ["draining", "to be upgraded"]);
    let Some(AwaitedByNext::Service { next, service }) = play.waits_for() else { panic!() };
    assert_eq!((next.as_str(), service.as_str()), ("h2", "chat"));
    // What was on its way out is out: one fewer is ready, and it is not back.
    play.take_out("h1", 0);
    play.went(&host("h1"), UpgradeHost::Running { gpus: 8, boot: None, cordoned_before: false });
    play.decide();
    assert_eq!(play.words(), ["upgrading", "to be upgraded"]);
    // Back and ready.
    play.went(&host("h1"), UpgradeHost::Done);
    let Some(AwaitedByNext::ComesBack { .. }) = play.waits_for() else { panic!() };
    let (service, state) = served("chat", 1, &["h1", "h2"]);
    play.services.insert(service, state);
    play.decide();
    assert_eq!(play.words(), ["upgraded", "draining"]);
}

#[test]
fn hosts_that_share_no_floor_go_side_by_side() {
    // Two of four may stop; another service is on one of them only.
    let services = [served("chat", 2, &["h1", "h2", "h3", "h4"]), served("code", 0, &["h2"])];
    let mut play = Play::new(&["h1", "h2", "h3"], 3, services);
    play.decide();
    assert_eq!(play.words(), ["draining", "draining", "to be upgraded"]);
    // Nothing of ours at all: as many as are wanted.
    let mut play = Play::new(&["h1", "h2", "h3"], 3, []);
    play.decide();
    assert_eq!(play.words(), ["draining"; 3]);
    // Whatever a person drains beside it counts, too.
    let mut play = Play::new(&["h1"], 1, [served("chat", 1, &["h1", "h9"])]);
    play.kept.drain_begun(&host("h9"), "bob", Timestamp(2));
    play.decide();
    assert_eq!(play.words(), ["to be upgraded"]);
    play.kept.drain_ended(&host("h9"), None, Timestamp(3));
    play.decide();
    assert_eq!(play.words(), ["draining"]);
}

#[test]
fn a_replica_that_moves_to_the_next_host_is_let_arrive() {
    let (service, mut state) = served("chat", 1, &["h1", "h3", "h4"]);
    let moves = vec![crate::rollout::RequestedMove { replica: 0, plan: plan("h2", 7) }];
    let (by, why) = ("ada".to_owned(), "h1 is drained".to_owned());
    let release = ReleaseNumber(1);
    let kind = EventKind::MovesRequested { release, moves, by, why };
    let at = state.now;
    let _ = crate::rollout::step(&mut state, &Event { at, kind });
    assert!(state.moves_to(&host("h2")));
    let services = Services::from([(service, state)]);
    let away = BTreeSet::from([host("h1")]);
    assert!(shared(&host("h2"), &away, &services).is_some());
    assert!(shared(&host("h5"), &away, &services).is_none());
}

/// What cannot be emptied beside others is no failure: it waits for one of them, open.
#[test]
fn a_host_that_cannot_be_emptied_beside_others_waits_for_them() {
    let services = [served("chat", 0, &["h1"]), served("code", 0, &["h2"])];
    let mut play = Play::new(&["h1", "h2", "h3"], 2, services);
    play.decide();
    assert_eq!(play.words(), ["draining", "draining", "to be upgraded"]);
    let (h1, h2) = (host("h1"), host("h2"));
    let state = play.kept.refused(&h2, "no place", &mut play.watch);
    assert_eq!(state, UpgradeHost::Waiting);
    play.went(&h2, state);
    assert!(play.kept.host_cordon(&h2).is_none());
    play.decide();
    assert_eq!(play.words(), ["draining", "to be upgraded", "to be upgraded"], "in order");
    assert_eq!(play.waits_for(), Some(AwaitedByNext::Room { next: h2.clone() }));
    play.services.clear();
    play.went(&h1, UpgradeHost::Done);
    play.decide();
    assert_eq!(play.words(), ["upgraded", "draining", "draining"]);
    // Alone it is one.
    play.went(&host("h3"), UpgradeHost::Done);
    let state = play.kept.refused(&h2, "no place", &mut play.watch);
    assert_eq!(state, UpgradeHost::Failed { why: "no place".to_owned() });
    // Whoever steps back behind one that failed is left out with the others.
    let mut play = Play::new(&["h1", "h2"], 2, []);
    play.decide();
    play.fail("h1");
    play.went(&h2, UpgradeHost::Waiting);
    assert_eq!(play.words(), ["UPGRADE FAILED", "not upgraded"]);
    assert!(play.kept.present_upgrade().is_none(), "it is over");
}

#[test]
fn a_paused_upgrade_finishes_what_is_begun_and_goes_on_after_it() {
    let mut play = Play::new(&["h1", "h2"], 1, []);
    play.decide();
    play.steer(UpgradeSteer::Pause);
    let upgrade = play.kept.upgrade.clone().unwrap();
    let paused = upgrade.paused.as_ref().unwrap();
    assert_eq!((paused.by.as_str(), paused.reason.as_deref()), ("bob", Some("why")));
    assert_eq!(upgrade.takes(&UpgradeSteer::Pause), Ok(false), "the first one's stands");
    play.went(&host("h1"), UpgradeHost::Done);
    play.decide();
    assert_eq!(play.words(), ["upgraded", "to be upgraded"]);
    assert!(play.kept.present_upgrade().is_some());
    play.steer(UpgradeSteer::Resume);
    play.decide();
    assert_eq!(play.words(), ["upgraded", "draining"]);
    let upgrade = play.kept.upgrade.as_ref().unwrap();
    assert!(upgrade.takes(&UpgradeSteer::Resume).is_err());
    assert!(upgrade.takes(&UpgradeSteer::Pause).is_err(), "there is nothing to hold");
    // A pause of which nothing is left ends with it.
    let mut play = Play::new(&["h1", "h2"], 1, []);
    play.decide();
    play.steer(UpgradeSteer::Pause);
    play.steer(UpgradeSteer::Skip { host: host("h2") });
    assert!(play.kept.upgrade.as_ref().unwrap().paused.is_none());
}

#[test]
fn a_host_that_failed_is_tried_again_and_the_others_have_their_turn() {
    let mut play = Play::new(&["h1", "h2", "h3"], 1, []);
    let h1 = host("h1");
    play.decide();
    play.steer(UpgradeSteer::Skip { host: host("h3") });
    play.kept.drain_begun(&h1, "ada", Timestamp(2));
    play.kept.drain_ended(&h1, Some("stuck"), Timestamp(3));
    play.fail("h1");
    assert_eq!(play.words(), ["UPGRADE FAILED", "not upgraded", "not upgraded"]);
    assert!(play.kept.upgrade.as_ref().unwrap().ended.is_some());
    let why = |play: &Play, n: usize| play.kept.upgrade.as_ref().unwrap().hosts[n].state.why();
    assert_eq!(why(&play, 1).as_deref(), Some("h1 failed before"));
    assert_eq!(why(&play, 2).as_deref(), Some("skipped by bob: why"));
    assert!(play.kept.host_cordon(&h1).is_some());
    let first = play.kept.upgrade.as_ref().unwrap().entry(&h1).unwrap().attempt();

    play.steer(UpgradeSteer::Retry { host: h1.clone() });
    assert_eq!(play.words(), ["to be upgraded", "to be upgraded", "not upgraded"]);
    assert!(!play.kept.drains.contains_key(&h1), "it is emptied anew");
    let again = play.kept.upgrade.as_ref().unwrap().entry(&h1).unwrap().attempt();
    assert_eq!(again, first.next(), "the command runs under another name");
    play.decide();
    assert_eq!(play.words(), ["draining", "to be upgraded", "not upgraded"]);
    // The cordon of the first time was the upgrade's own.
    play.went(&h1, UpgradeHost::Done);
    assert!(play.kept.host_cordon(&h1).is_none());
    let upgrade = play.kept.upgrade.as_ref().unwrap();
    assert!(upgrade.takes(&UpgradeSteer::Retry { host: h1.clone() }).is_err());
    assert!(upgrade.takes(&UpgradeSteer::Retry { host: host("h9") }).is_err());
    assert!(upgrade.takes(&UpgradeSteer::Skip { host: h1 }).is_err());

    // One that a person cordoned before stays so, also after a second time.
    let mut play = Play::new(&["h1"], 1, []);
    let h1 = host("h1");
    let cordon = Cordon { gpu: None, by: "eve".to_owned(), reason: None, since: Timestamp(1) };
    play.kept.cordoned(&h1, cordon);
    play.decide();
    play.fail("h1");
    play.steer(UpgradeSteer::Retry { host: h1.clone() });
    play.decide();
    play.went(&h1, UpgradeHost::Done);
    assert!(play.kept.host_cordon(&h1).is_some());
}

#[test]
fn of_two_that_failed_both_are_to_be_dealt_with_before_others_are_begun() {
    let mut play = Play::new(&["h1", "h2", "h3"], 2, []);
    play.decide();
    play.fail("h1");
    play.fail("h2");
    play.steer(UpgradeSteer::Retry { host: host("h1") });
    play.decide();
    assert_eq!(play.words(), ["draining", "UPGRADE FAILED", "not upgraded"]);
    play.went(&host("h1"), UpgradeHost::Done);
    play.decide();
    assert!(play.kept.present_upgrade().is_none());
    play.steer(UpgradeSteer::Skip { host: host("h2") });
    assert!(play.kept.host_cordon(&host("h2")).is_some(), "somebody looks at it");
    play.decide();
    assert_eq!(play.words(), ["upgraded", "not upgraded", "draining"]);
}

#[test]
fn what_is_stopped_begins_no_further_host_and_says_why() {
    let mut play = Play::new(&["h1", "h2"], 1, []);
    play.decide();
    play.steer(UpgradeSteer::Pause);
    play.steer(UpgradeSteer::Stop);
    let upgrade = play.kept.upgrade.clone().unwrap();
    assert!(upgrade.paused.is_none() && upgrade.stopped.is_some() && upgrade.ended.is_none());
    assert_eq!(upgrade.takes(&UpgradeSteer::Stop), Ok(false));
    let why = upgrade.hosts[1].state.why();
    assert_eq!(why.as_deref(), Some("stopped by bob: why"));
    // Nor is one that steps back.
    play.went(&host("h1"), UpgradeHost::Waiting);
    assert_eq!(play.words(), ["not upgraded", "not upgraded"]);
    assert!(play.kept.present_upgrade().is_none());
    assert!(play.kept.upgrade.as_ref().unwrap().takes(&UpgradeSteer::Pause).is_err());
}

/// As the first version of the upgrade wrote it.
#[test]
fn what_an_older_journal_says_of_an_upgrade_is_read() {
    let text = r#"{"upgrade":{"id":"00000000-0000-0000-0000-000000000001","command":"true",
        "hosts":[{"host":"h1","state":{"state":"failed","why":"no"},"since":1},
                 {"host":"h2","state":{"state":"skipped"},"since":1}],
        "max_parallel":1,"timeout_ms":1,"return_ms":1,"by":"ada","began":1,"ended":2}}"#;
    let mut kept: FleetMaintenance = serde_json::from_str(text).unwrap();
    let h1 = host("h1");
    assert_eq!(kept.upgrade.as_ref().unwrap().entry(&h1).unwrap().retries, 0);
    // Nobody knows why the other was left out: it stays so.
    kept.upgrade_steered(&UpgradeSteer::Retry { host: h1 }, "bob", None, Timestamp(9));
    let hosts = &kept.present_upgrade().unwrap().hosts;
    assert_eq!(hosts[0].state, UpgradeHost::Waiting);
    assert_eq!(hosts[1].state, UpgradeHost::Skipped { behind: None, why: None });
    let went: UpgradeHost = serde_json::from_str(r#"{"state":"skipped"}"#).unwrap();
    assert_eq!(went, UpgradeHost::Skipped { behind: None, why: None });
}

#[test]
fn what_is_told_of_a_host_that_is_out_counts_its_loans() {
    let mut play = Play::new(&["h1", "h2"], 2, [served("chat", 1, &["h1", "h2", "h3"])]);
    play.take_out("h1", 0);
    let away = BTreeSet::from([host("h1")]);
    let state = play.services.values().next().unwrap();
    let key = ReplicaKey { release: ReleaseNumber(1), replica: 0 };
    assert!(state.vacated.contains(&key) && state.loans.len() == 1);
    assert!(shared(&host("h2"), &away, &play.services).is_some());
}
