//! The named states of the deck: kept here, shown by every door.

use std::collections::BTreeMap;

use super::core::{Core, now};
use crate::api::hub::Change;
use crate::api::{DeckCondition, DeckConditionKind, DeckView, Severity};
use crate::base::text;

/// The states that hold now.
pub type Conditions = BTreeMap<DeckConditionKind, DeckCondition>;

impl Core {
    /// Says which hosts that run something are not reached: what is told of their replicas is from before.
    pub(super) fn tend_hosts_away(&mut self) {
        let away = self.hub.with(crate::api::Snapshot::hosts_away);
        let hint = "`gpudeck hosts` says why; `gpudeck reconnect HOST` tries now";
        let holds = away.map(|words| (words, Some(hint.to_owned())));
        self.set_condition(DeckConditionKind::HostsAway, holds);
    }

    /// Says that a state holds (words and what to do), or does not hold any more.
    pub(super) fn set_condition(
        &mut self,
        kind: DeckConditionKind,
        holds: Option<(String, Option<String>)>,
    ) {
        let known = self.conditions.get(&kind);
        let next = holds.map(|(words, hint)| DeckCondition {
            kind,
            since: known.map_or_else(now, |k| k.since),
            text: text::clean(&words, 600),
            hint,
        });
        if known == next.as_ref() {
            return;
        }
        let (was, is) = (known.is_some(), next.is_some());
        let words = next.as_ref().map(in_words);
        match next {
            Some(next) => self.conditions.insert(kind, next),
            None => self.conditions.remove(&kind),
        };
        let conditions: Vec<DeckCondition> = self.conditions.values().cloned().collect();
        let trouble = conditions.first().map(in_words);
        let deck = self.hub.with(|s| s.deck.clone());
        self.hub.publish(Change::Deck(DeckView { trouble, conditions, ..deck }));
        // A mistake in a file is shown where it stands, and told by whoever looks.
        if kind == DeckConditionKind::DeckMistake {
            return;
        }
        match (was, is) {
            (false, true) => self.say(Severity::Warning, None, &words.unwrap_or_default()),
            // Told of each service by who knows which it was.
            (true, false) if kind == DeckConditionKind::Restarting => {}
            (true, false) => {
                self.say(Severity::Info, None, &format!("{} is over", kind.name()));
            }
            _ => {}
        }
    }
}

/// `hosts-held: …; what to do`; a mistake speaks for itself.
fn in_words(condition: &DeckCondition) -> String {
    let hint = condition.hint.as_deref().map(|h| format!(" → {h}")).unwrap_or_default();
    if condition.kind == DeckConditionKind::DeckMistake {
        return format!("{}{hint}", condition.text);
    }
    format!("{}: {}{hint}", condition.kind.name(), condition.text)
}
