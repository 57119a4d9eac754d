//! Named states of the whole deck that a person should know of.

use serde::{Deserialize, Serialize};

use crate::base::Timestamp;

/// A state of the deck that keeps something from happening.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeckCondition {
    /// Which.
    pub kind: DeckConditionKind,
    /// Since when.
    pub since: Timestamp,
    /// What is so, in words.
    pub text: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Which states there are; the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeckConditionKind {
    /// The journal cannot be written (a full disk): no new work is taken, what runs goes on.
    JournalUnwritable,
    /// Hosts keep something newer than the journal (it was restored from a copy): nothing is done until somebody takes
    /// over.
    JournalBehind,
    /// Another controller holds hosts of the deck, or held them last.
    HostsHeld,
    /// Hosts are there and do not let us in any more: rollouts on them are held before their next step.
    LoginLost,
    /// Hosts on which something of ours runs are not reached: what is told of it is from before.
    HostsAway,
    /// Replicas of what is stable fail again and again, and are started anew each time.
    Restarting,
    /// The controller gives way to another version.
    HandingOver,
    /// deck.toml or a spec has a mistake; the last good one stays in force.
    DeckMistake,
    /// The deck and its remote have gone different ways.
    DeckDiverged,
    /// Hosts run something else than the releases say.
    Drift,
    /// A rollout's state could not be written to hosts: nobody else could go on from there.
    StateNotSaved,
    /// What the deck's remote has could not be fetched when the controller began or took over.
    RemoteUnheard,
    /// Times go on from a clock that is ahead of this machine's.
    ClockAhead,
}

impl DeckConditionKind {
    /// All of them, in this order.
    pub const ALL: [Self; 13] = [
        Self::JournalUnwritable,
        Self::JournalBehind,
        Self::HostsHeld,
        Self::LoginLost,
        Self::HostsAway,
        Self::Restarting,
        Self::HandingOver,
        Self::DeckMistake,
        Self::DeckDiverged,
        Self::Drift,
        Self::StateNotSaved,
        Self::RemoteUnheard,
        Self::ClockAhead,
    ];

    /// Its name, as in JSON: `journal-unwritable`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::JournalUnwritable => "journal-unwritable",
            Self::JournalBehind => "journal-behind",
            Self::HostsHeld => "hosts-held",
            Self::LoginLost => "login-lost",
            Self::HostsAway => "hosts-away",
            Self::Restarting => "restarting",
            Self::HandingOver => "handing-over",
            Self::DeckMistake => "deck-mistake",
            Self::DeckDiverged => "deck-diverged",
            Self::Drift => "drift",
            Self::StateNotSaved => "state-not-saved",
            Self::RemoteUnheard => "remote-unheard",
            Self::ClockAhead => "clock-ahead",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_states_are_listed_in_their_order_under_their_names() {
        for (place, kind) in DeckConditionKind::ALL.into_iter().enumerate() {
            // A kind that is added does not compile here until somebody has thought of the list.
            let expected = match kind {
                DeckConditionKind::JournalUnwritable => 0,
                DeckConditionKind::JournalBehind => 1,
                DeckConditionKind::HostsHeld => 2,
                DeckConditionKind::LoginLost => 3,
                DeckConditionKind::HostsAway => 4,
                DeckConditionKind::Restarting => 5,
                DeckConditionKind::HandingOver => 6,
                DeckConditionKind::DeckMistake => 7,
                DeckConditionKind::DeckDiverged => 8,
                DeckConditionKind::Drift => 9,
                DeckConditionKind::StateNotSaved => 10,
                DeckConditionKind::RemoteUnheard => 11,
                DeckConditionKind::ClockAhead => 12,
            };
            assert_eq!(place, expected);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
