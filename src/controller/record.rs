//! What the journal holds of a deck.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::deck_ledger::{DeckRecord, Ledger};
use crate::base::{ReleaseNumber, ServiceName};
use crate::journal::audit::Head;
use crate::journal::{self, JournalError};
use crate::rollout::{Event, Outcome, ServiceState, step};

/// One line of the journal: something happened to a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// To which service.
    pub service: ServiceName,
    /// What.
    pub event: Event,
}

/// All that is known and intended: what a checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeckState {
    /// The services that were ever rolled out and not forgotten.
    pub services: BTreeMap<ServiceName, ServiceState>,
    /// The highest release number ever given out.
    pub last_release: ReleaseNumber,
    /// Plans and how they went, cordons, drains, upgrades.
    #[serde(default)]
    pub ledger: Ledger,
    /// Counts how often the deck was taken over from another controller.
    #[serde(default)]
    pub term: u64,
    /// The last line of the audit trail when the checkpoint was written: what is missing of it is missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audited: Option<Head>,
    /// How releases ended that were not noted in Git yet when the checkpoint was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unnoted: Vec<EndedRelease>,
}

/// How a release ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRelease {
    /// Of which service.
    pub service: ServiceName,
    /// Which.
    pub release: ReleaseNumber,
    /// How.
    pub outcome: Outcome,
}

impl DeckState {
    /// Takes a line of the journal of either kind.
    ///
    /// # Errors
    /// A line that this version cannot read.
    pub fn replay_line(&mut self, line: &journal::Record) -> Result<(), JournalError> {
        if let Ok(record) = line.read::<DeckRecord>() {
            self.ledger.apply(&record);
            return Ok(());
        }
        self.replay(&line.read::<Record>()?);
        Ok(())
    }

    /// Applies a record whose actions were carried out in an earlier life.
    pub fn replay(&mut self, record: &Record) {
        if let crate::rollout::EventKind::RolloutRequested { release, .. } = &record.event.kind {
            self.last_release = self.last_release.max(release.number);
        }
        let state = self.service(&record.service);
        let _already_done = step::step(state, &record.event);
        if let Some(state) = self.services.get(&record.service) {
            self.ledger.observe(state);
        }
    }

    /// A service's state, empty if nothing was known of it.
    pub fn service(&mut self, service: &ServiceName) -> &mut ServiceState {
        self.services.entry(service.clone()).or_insert_with(|| ServiceState::new(service.clone()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::base::Timestamp;
    use crate::rollout::EventKind;
    use crate::rollout::engine_samples::EngineSamples;

    /// What was heard in one turn is written at once, and a crash may leave the first of its records: what is read back
    /// is the state of a turn that ended there, from which all goes on.
    #[test]
    fn a_turn_of_which_only_the_beginning_is_on_disk_is_one_that_ended_there() {
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let by = || "ada".to_owned();
        let requested = |service: &ServiceName| EventKind::RolloutRequested {
            release: Box::new(crate::controller::saved::tests::release(deck, service)),
            kind: crate::rollout::RolloutKind::Apply,
            by: by(),
            limits: crate::rollout::LimitRule::default(),
            of_group: None,
        };
        let (chat, code): (ServiceName, ServiceName) =
            ("chat".parse().unwrap(), "code".parse().unwrap());
        let turn: Vec<Record> = [
            (&chat, requested(&chat)),
            (&code, requested(&code)),
            (&chat, EventKind::Paused { by: by(), reason: None }),
            (&code, EventKind::Aborted { by: by(), reason: None }),
            (&chat, EventKind::Resumed { by: by(), reason: None }),
        ]
        .into_iter()
        .zip(1..)
        .map(|((service, kind), at)| Record {
            service: service.clone(),
            event: Event { at: Timestamp(at), kind },
        })
        .collect();
        let after = |records: &[Record]| {
            let mut state = DeckState::default();
            for record in records {
                state.replay(record);
            }
            state
        };
        for n in 0..turn.len() {
            assert_ne!(after(&turn[..n]), after(&turn[..=n]), "record {n} changes nothing");
        }

        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = journal::Journal::open(dir.path()).unwrap();
        let file = dir.path().join(journal::segment::file_name(1));
        let begin = std::fs::read(&file).unwrap().len();
        journal.append(&turn).unwrap();
        drop(journal);
        let whole = std::fs::read(&file).unwrap();
        let ends: Vec<usize> =
            (begin..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
        assert_eq!(ends.len(), turn.len());
        // At each record's end, and within it.
        let cuts = ends.iter().flat_map(|end| [end - 1, *end, end + 1]).chain([begin, begin + 1]);
        for cut in cuts.filter(|cut| *cut <= whole.len()) {
            std::fs::write(&file, &whole[..cut]).unwrap();
            let (mut journal, records) = journal::Journal::open(dir.path()).unwrap();
            let kept = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(records.len(), kept, "cut at {cut}");
            let mut state = DeckState::default();
            for record in &records {
                state.replay_line(record).unwrap();
            }
            assert_eq!(state, after(&turn[..kept]), "cut at {cut}");
            for service in state.services.values() {
                let _awaited = crate::rollout::outstanding(service);
            }
            // What is lacking is heard once more: it comes after what is there.
            journal.append(&turn[kept..]).unwrap();
            turn[kept..].iter().for_each(|record| state.replay(record));
            assert_eq!(state, after(&turn), "cut at {cut}");
            drop(journal);
            assert!(journal::verify(dir.path()).unwrap().is_good(), "cut at {cut}");
            for torn in std::fs::read_dir(dir.path()).unwrap().flatten() {
                if torn.file_name().to_string_lossy().starts_with("journal.torn") {
                    std::fs::remove_file(torn.path()).unwrap();
                }
            }
        }
    }

    /// A number as a map's key is text in JSON, and in a tagged enum nothing makes it a number again.
    #[test]
    fn what_engines_said_is_read_back() {
        let kind =
            EventKind::Sampled { samples: [(ReleaseNumber(1), EngineSamples::default())].into() };
        let service = "chat".parse().unwrap();
        let record = Record { service, event: Event { at: Timestamp(7), kind } };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::from_value::<Record>(value).unwrap(), record);
    }
}
