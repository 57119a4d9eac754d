//! A controller that is killed in the moment before a record of the deck is whole on the disk, or in the moment after: its
//! next life goes on from the state before it, or from that after it, and from no other.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use super::*;
use crate::base::{DeviceId, ReleaseId};
use crate::controller::auditor::Since;
use crate::controller::record::DeckState;
use crate::journal::Journal;
use crate::rollout::maintenance::UpgradeEntry;

const SEGMENT: &str = "journal.000001.jsonl";

/// Which kind of record it is: one that is added does not compile here until somebody has put it into the journey.
const fn kind(event: &DeckEvent) -> usize {
    match event {
        DeckEvent::Planned { .. } => 0,
        DeckEvent::Cordoned { .. } => 1,
        DeckEvent::Uncordoned { .. } => 2,
        DeckEvent::DrainBegun { .. } => 3,
        DeckEvent::DrainEnded { .. } => 4,
        DeckEvent::GroupBegun { .. } => 5,
        DeckEvent::GroupWent { .. } => 6,
        DeckEvent::GroupSteered { .. } => 7,
        DeckEvent::UpgradeBegun { .. } => 8,
        DeckEvent::UpgradeWent { .. } => 9,
        DeckEvent::UpgradeSteered { .. } => 10,
        DeckEvent::UpgradeMissed { .. } => 11,
        DeckEvent::ClockAhead { .. } => 12,
    }
}

const KINDS: usize = 13;

fn journey() -> Vec<DeckEvent> {
    let (by, reason) = (|| "ada".to_owned(), || Some("fans".to_owned()));
    let host = |name: &str| -> HostName { name.parse().unwrap() };
    let service = || -> ServiceName { "chat".parse().unwrap() };
    let gpu = || Some(CordonedGpu { device: DeviceId::Cpu, index: 3 });
    let release = ReleaseNumber(1);
    let upgrade = Upgrade {
        id: ReleaseId(uuid::Uuid::from_u128(7)),
        command: "true".to_owned(),
        hosts: ["h1", "h2"]
            .map(|name| UpgradeEntry {
                host: host(name),
                state: UpgradeHost::Waiting,
                since: Timestamp(9),
                retries: 0,
                cordoned_before: None,
                gpus_before: None,
            })
            .to_vec(),
        max_parallel: 1,
        timeout_ms: 1_000,
        return_ms: 1_000,
        by: by(),
        began: Timestamp(9),
        ended: None,
        paused: None,
        stopped: None,
    };
    let group = serde_json::json!({
        "services": [{ "service": "chat", "after": [], "state": { "state": "waiting" }, "since": 1 }],
        "atomic": true, "by": "ada", "reason": null, "accept_outage": false, "began": 1, "ended": null,
    });
    let progress = PlanProgress {
        release,
        began: Timestamp(2),
        steps: Vec::new(),
        predicted: PlanTime::default(),
        predicted_lowest: 1,
        lowest_ready: 1,
        serving: None,
        ended: None,
    };
    let steered = |what| DeckEvent::GroupSteered { what, by: by(), reason: reason() };
    let upgrade_steered = |steer| DeckEvent::UpgradeSteered { steer, by: by(), reason: reason() };
    let went = |name: &str, state| DeckEvent::UpgradeWent { host: host(name), state };
    vec![
        DeckEvent::Planned { service: service(), progress },
        DeckEvent::Cordoned { host: host("h3"), gpu: None, by: by(), reason: reason() },
        DeckEvent::Cordoned { host: host("h4"), gpu: gpu(), by: by(), reason: None },
        DeckEvent::Uncordoned { host: host("h4"), gpu: gpu() },
        DeckEvent::DrainBegun { host: host("h3"), by: by() },
        DeckEvent::DrainEnded { host: host("h3"), trouble: Some("no other place".to_owned()) },
        DeckEvent::GroupBegun { group: serde_json::from_value(group).unwrap() },
        steered(GroupSteer::Pause),
        steered(GroupSteer::Resume),
        DeckEvent::GroupWent { service: service(), state: GroupState::Rolling { release } },
        DeckEvent::GroupWent {
            service: service(),
            state: GroupState::Done { release, before: None },
        },
        DeckEvent::UpgradeBegun { upgrade },
        went("h1", UpgradeHost::Draining { cordoned_before: false }),
        DeckEvent::UpgradeMissed { missed_ms: 60_000 },
        went("h1", UpgradeHost::Running { gpus: 8, boot: None, cordoned_before: false }),
        upgrade_steered(UpgradeSteer::Pause),
        upgrade_steered(UpgradeSteer::Resume),
        went("h1", UpgradeHost::Failed { why: "exit code 1".to_owned() }),
        upgrade_steered(UpgradeSteer::Retry { host: host("h1") }),
        upgrade_steered(UpgradeSteer::Skip { host: host("h2") }),
        upgrade_steered(UpgradeSteer::Stop),
        DeckEvent::ClockAhead { ahead_ms: 9_000 },
        DeckEvent::Uncordoned { host: host("h3"), gpu: None },
    ]
}

/// What a kill leaves on the disk.
fn left(journal: &Path, torn: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(journal).unwrap().flatten() {
        std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    if !torn.is_empty() {
        let segment = dir.path().join(SEGMENT);
        let mut file = std::fs::OpenOptions::new().append(true).open(segment).unwrap();
        file.write_all(torn).unwrap();
    }
    dir
}

/// The next controller, as far as its state.
fn next_life(dir: &Path) -> (Journal, DeckState) {
    let (journal, records) = Journal::open(dir).unwrap();
    let (mut state, mut since) = (DeckState::default(), Since::default());
    for record in &records {
        since.replay(&mut state, record).unwrap();
    }
    (journal, state)
}

#[test]
fn a_kill_before_or_after_any_record_of_the_deck_loses_and_doubles_nothing() {
    let journey = journey();
    let met: BTreeSet<usize> = journey.iter().map(kind).collect();
    assert_eq!(met, (0..KINDS).collect(), "a kind of record is not met");

    let home = tempfile::tempdir().unwrap();
    let journal_dir = home.path().join("journal");
    let (mut journal, _) = Journal::open(&journal_dir).unwrap();
    let mut living = DeckState::default();
    for (at, deck_event) in (100..).zip(journey) {
        let record = DeckRecord { deck_at: Timestamp(at), deck_event };
        let what = format!("{:?}", record.deck_event);
        let before = living.clone();
        living.ledger.apply(&record);

        let segment = || std::fs::read(journal_dir.join(SEGMENT)).unwrap_or_default();
        let (nothing, written) = (left(&journal_dir, &[]), segment().len());
        journal.append(std::slice::from_ref(&record)).unwrap();
        let line = segment().split_off(written);
        let half = left(nothing.path(), line.get(..line.len() / 2).unwrap());

        // Right before: it was never asked for, and what is asked again takes effect once.
        for dir in [nothing, half] {
            let (mut journal, state) = next_life(dir.path());
            assert_eq!(state, before, "before {what}");
            journal.append(std::slice::from_ref(&record)).unwrap();
            drop(journal);
            assert_eq!(next_life(dir.path()).1, living, "again {what}");
        }
        // Right after: it is intended, also in the life after a checkpoint.
        let dir = left(&journal_dir, &[]);
        let (mut journal, state) = next_life(dir.path());
        assert_eq!(state, living, "after {what}");
        journal.checkpoint(&state).unwrap();
        drop(journal);
        assert_eq!(next_life(dir.path()).1, living, "after a checkpoint and {what}");
    }
}
