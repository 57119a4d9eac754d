//! What the journal holds of a deck.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::deck_ledger::{DeckRecord, Ledger};
use crate::base::{ReleaseNumber, ServiceName};
use crate::journal::audit::Head;
use crate::journal::{self, JournalError};
use crate::rollout::{Event, ServiceState, step};

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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::Timestamp;
    use crate::rollout::EventKind;
    use crate::rollout::engine_samples::EngineSamples;

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
