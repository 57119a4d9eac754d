//! What an earlier life of the controller did and did not come to write into the trail: it is known from the journal,
//! whose records are written first. What is added so has `happened`, the time at which it did.

use serde_json::{Value, json};

use super::ends::{Before, Happened, of_deck, of_service};
use super::{Asked, Auditor, Entry};
use crate::base::{ServiceName, Timestamp};
use crate::controller::deck_ledger::{DeckEvent, DeckRecord};
use crate::controller::record::{DeckState, Record};
use crate::journal::audit::{Head, Line};
use crate::journal::{self, JournalError, RecordKind};
use crate::rollout::maintenance::UpgradeHost;
use crate::rollout::{EventKind, ServiceState};

/// What the journal says since its checkpoint, as far as it belongs into the trail. (Before that it was another
/// controller's, or is there.)
#[derive(Debug, Default)]
pub(in crate::controller) struct Since {
    happened: Vec<(Timestamp, Happened)>,
    done: Vec<Done>,
}

/// Something that a person asked for and that was done.
#[derive(Debug)]
struct Done {
    at: Timestamp,
    /// The wishes of which it comes.
    intents: &'static [&'static str],
    /// Who asked, where that is known.
    by: Option<String>,
    service: Option<ServiceName>,
    host: Option<String>,
    /// What the answer was, or would have been.
    result: Value,
}

fn accepted() -> Value {
    json!({ "result": "accepted" })
}

impl Since {
    /// Takes a record of the journal into the state, as [`DeckState::replay_line`] does.
    ///
    /// # Errors
    /// A record that this version cannot read.
    pub fn replay(
        &mut self,
        state: &mut DeckState,
        line: &journal::Record,
    ) -> Result<(), JournalError> {
        if line.kind == RecordKind::Checkpoint {
            *state = line.read()?;
            *self = Self::default();
            return Ok(());
        }
        if let Ok(record) = line.read::<DeckRecord>() {
            state.ledger.apply(&record);
            self.deck(record.deck_at, &record.deck_event);
            return Ok(());
        }
        let record = line.read::<Record>()?;
        let before = state.services.get(&record.service).map(Before::of).unwrap_or_default();
        state.replay(&record);
        if let Some(after) = state.services.get(&record.service) {
            self.service(record.event.at, &before, after, &record.event.kind);
        }
        Ok(())
    }

    fn service(&mut self, at: Timestamp, before: &Before, after: &ServiceState, kind: &EventKind) {
        self.happened.extend(of_service(before, after, kind).into_iter().map(|h| (at, h)));
        let behind = after.active_rollout().map(|rollout| rollout.to);
        let (intents, by, result): (&'static [_], _, _) = match kind {
            EventKind::RolloutRequested { release, by, .. } => {
                let result = json!({ "result": "rollout_begun", "release": release.number });
                (&["apply", "undo", "retry"], by, result)
            }
            EventKind::Queued { wish, replace } => {
                let result = json!({ "result": "queued", "behind": behind, "replaces": replace });
                (&["apply", "undo"], &wish.by, result)
            }
            EventKind::QueueCancelled { by, .. } => (&["cancel_queued"], by, accepted()),
            EventKind::Paused { by, .. } => (&["pause"], by, accepted()),
            EventKind::Resumed { by, .. } => (&["resume"], by, accepted()),
            EventKind::Promoted { by, .. } => (&["promote"], by, accepted()),
            EventKind::Retried { by, .. } => (&["retry"], by, accepted()),
            EventKind::Skipped { by, .. } => (&["skip"], by, accepted()),
            EventKind::Aborted { by, .. } => (&["abort", "undo"], by, accepted()),
            EventKind::StopRequested { by, .. } => (&["stop"], by, accepted()),
            EventKind::MovesRequested { by, .. } => (&["move"], by, accepted()),
            _ => return,
        };
        let service = Some(after.service.clone());
        let by = Some(by.clone());
        self.done.push(Done { at, intents, by, service, host: None, result });
    }

    fn deck(&mut self, at: Timestamp, event: &DeckEvent) {
        self.happened.extend(of_deck(event).map(|h| (at, h)));
        let (intents, by, host): (&'static [_], _, _) = match event {
            DeckEvent::Cordoned { host, by, .. } => (&["cordon"], Some(by), Some(host)),
            DeckEvent::Uncordoned { host, .. } => (&["uncordon"], None, Some(host)),
            DeckEvent::DrainBegun { host, by } => (&["drain"], Some(by), Some(host)),
            DeckEvent::GroupBegun { group } => (&["apply_together"], Some(&group.by), None),
            DeckEvent::GroupSteered { by, .. } => (&["steer_group"], Some(by), None),
            DeckEvent::UpgradeBegun { upgrade } => (&["upgrade_hosts"], Some(&upgrade.by), None),
            DeckEvent::UpgradeSteered { steer, by, .. } => {
                (&["steer_upgrade"], Some(by), steer.host())
            }
            // As an older controller wrote it.
            DeckEvent::UpgradeWent { state: UpgradeHost::Skipped { .. }, .. } => {
                (&["stop_upgrade"], None, None)
            }
            _ => return,
        };
        let (by, host) = (by.cloned(), host.map(ToString::to_string));
        self.done.push(Done { at, intents, by, service: None, host, result: accepted() });
    }
}

impl Done {
    /// Whether it may be what came of this wish.
    fn is_of(&self, wish: &Value) -> bool {
        let is = |path: &str, known: Option<&str>| {
            known.is_none_or(|known| wish.pointer(path).and_then(Value::as_str) == Some(known))
        };
        let intent = wish.pointer("/what/intent").and_then(Value::as_str);
        intent.is_some_and(|intent| self.intents.contains(&intent))
            && wish.get("at").and_then(Value::as_u64).is_some_and(|asked| asked <= self.at.0)
            && is("/who/user", self.by.as_deref())
            && is("/service", self.service.as_ref().map(ServiceName::as_str))
            && is("/what/host", self.host.as_deref())
    }
}

impl Auditor {
    /// After a start: what has happened and is not here, since the life before ended between the two, and the wishes that
    /// it did not come to answer. `mark`: the last line when the journal's checkpoint was written.
    pub(in crate::controller) fn make_good(&self, since: Since, mark: Option<&Head>) {
        let lines = match self.lines() {
            Ok(lines) => lines,
            Err(error) => {
                tracing::error!(%error, "what is missing in the audit trail is not known");
                return;
            }
        };
        let Since { happened, done } = since;
        for (at, happened) in missing(happened, &lines, mark) {
            if let Err(error) = self.happened(&happened, Some(at)) {
                tracing::error!(%error, "a result is not in the audit trail yet");
            }
        }
        for (asked, at, result) in answers(done, &lines) {
            let entry = Entry {
                happened: at,
                of: Some(asked.0),
                result: Some(result),
                ..Entry::new("answered")
            };
            if let Err(error) = self.note(&entry) {
                tracing::error!(%error, "an answer is not in the audit trail yet");
            }
        }
    }
}

/// What of it has no line yet.
fn missing(
    happened: Vec<(Timestamp, Happened)>,
    lines: &[Line],
    mark: Option<&Head>,
) -> Vec<(Timestamp, Happened)> {
    // In a trail that was made anew the numbers begin again.
    let is_mark = |line: &&Line| mark.is_some_and(|m| (m.seq, &m.hash) == (line.seq, &line.hash));
    let from = lines.iter().find(is_mark).map_or(0, |line| line.seq);
    let mut written: Vec<&Line> = lines.iter().filter(|line| line.seq > from).collect();
    let mut missing = happened;
    missing.retain(|(_, happened)| {
        let service = happened.service.as_ref().map(ServiceName::as_str);
        let is_it = |line: &&Line| {
            line.entry.get("event").and_then(Value::as_str) == Some(happened.event)
                && line.entry.get("service").and_then(Value::as_str) == service
                && line.entry.get("result") == Some(&happened.result)
        };
        // Each line tells of one thing: the same may happen twice.
        let known = written.iter().position(is_it);
        if let Some(known) = known {
            written.remove(known);
        }
        known.is_none()
    });
    missing
}

/// The answers to the wishes that have none: from what was done, or that nobody knows.
fn answers(mut done: Vec<Done>, lines: &[Line]) -> Vec<(Asked, Option<Timestamp>, Value)> {
    let answered: std::collections::BTreeSet<u64> =
        lines.iter().filter_map(|line| line.entry.get("of")?.as_u64()).collect();
    let is_wish = |line: &&Line| line.entry.get("event").is_some_and(|event| event == "asked");
    // What was answered is not what came of another wish.
    for line in lines.iter().filter(is_wish).filter(|line| answered.contains(&line.seq)) {
        if let Some(known) = done.iter().position(|done| done.is_of(&line.entry)) {
            done.remove(known);
        }
    }
    let open = lines.iter().filter(is_wish).filter(|line| !answered.contains(&line.seq));
    open.map(|line| match done.iter().position(|done| done.is_of(&line.entry)) {
        Some(known) => {
            let Done { at, result, .. } = done.remove(known);
            (Asked(line.seq), Some(at), result)
        }
        None => (Asked(line.seq), None, json!({ "result": "unknown" })),
    })
    .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::api::{Intent, IntentReply, Who};
    use crate::controller::core::now;
    use crate::journal::audit::Known;
    use crate::rollout::{Event, LimitRule, Outcome, RolloutKind};

    struct Trail {
        dir: tempfile::TempDir,
        auditor: Auditor,
        state: DeckState,
        since: Since,
    }

    impl Trail {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let auditor = Auditor::open(dir.path(), &Known::default()).unwrap();
            Self { dir, auditor, state: DeckState::default(), since: Since::default() }
        }

        fn record(&mut self, value: Value) {
            let line = journal::Record { seq: 1, kind: RecordKind::Appended, value };
            self.since.replay(&mut self.state, &line).unwrap();
        }

        fn deck(&mut self, event: DeckEvent) {
            let record = DeckRecord { deck_at: now(), deck_event: event };
            self.record(serde_json::to_value(record).unwrap());
        }

        fn service(&mut self, kind: EventKind) {
            let event = Event { at: now(), kind };
            let record = Record { service: "chat".parse().unwrap(), event };
            self.record(serde_json::to_value(record).unwrap());
        }

        async fn asked(&self, intent: Intent) -> Asked {
            let who =
                Who { user: "ada".to_owned(), uid: None, pid: None, ssh_key: None, ssh_from: None };
            self.auditor.asked(&intent, &who).await.unwrap().unwrap()
        }

        /// The next life; what is in the trail then.
        fn again(&mut self, mark: Option<&Head>) -> Vec<Value> {
            let since = std::mem::take(&mut self.since);
            self.auditor.make_good(since, mark);
            let report = crate::journal::audit::verify(self.dir.path(), None).unwrap();
            assert_eq!(report.worst(), None, "it is chained");
            self.auditor.lines().unwrap().into_iter().map(|line| line.entry).collect()
        }
    }

    fn drained(host: &str) -> DeckEvent {
        DeckEvent::DrainEnded { host: host.parse().unwrap(), trouble: None }
    }

    #[test]
    fn what_happened_just_before_a_crash_is_written_once() {
        let mut trail = Trail::new();
        let ended = |trail: &mut Trail| {
            trail.deck(drained("h1"));
            trail.deck(DeckEvent::UpgradeWent {
                host: "h1".parse().unwrap(),
                state: UpgradeHost::Failed { why: "exit code 1".to_owned() },
            });
        };
        ended(&mut trail);
        let lines = trail.again(None);
        let events: Vec<&Value> = lines.iter().map(|line| &line["event"]).collect();
        assert_eq!(events, ["drain_ended", "host_upgraded"]);
        assert!(lines[0]["happened"].is_u64(), "{lines:#?}");
        // The same journal once more, and then with another drain of the same host.
        ended(&mut trail);
        assert_eq!(trail.again(None).len(), 2);
        ended(&mut trail);
        trail.deck(drained("h1"));
        assert_eq!(trail.again(None).len(), 3);
        // What stands before the checkpoint is not what happened after it.
        let mark = trail.auditor.last();
        trail.deck(drained("h1"));
        assert_eq!(trail.again(Some(&mark)).len(), 4);
    }

    #[test]
    fn the_end_of_a_rollout_and_of_a_stop_are_among_it() {
        let mut trail = Trail::new();
        let service: ServiceName = "chat".parse().unwrap();
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(deck, &service);
        trail.service(EventKind::RolloutRequested {
            release: Box::new(release),
            kind: RolloutKind::Apply,
            by: "ada".to_owned(),
            limits: LimitRule::PRESENT,
            of_group: None,
        });
        assert!(trail.again(None).is_empty(), "it has not ended");
        let before = Before::of(&trail.state.services[&service]);
        let mut after = trail.state.services[&service].clone();
        let rollout = after.rollout.as_mut().unwrap();
        rollout.outcome = Some(Outcome::Completed);
        let told = of_service(&before, &after, &EventKind::Tick);
        assert_eq!(told[0].result, json!({ "release": 3, "outcome": "completed", "why": null }));
        assert!(of_service(&Before::of(&after), &after, &EventKind::Tick).is_empty(), "once");
        let mut stopping = after.clone();
        stopping.stopping = true;
        let told = of_service(&Before::of(&stopping), &after, &EventKind::Tick);
        assert_eq!(told.iter().map(|told| told.event).collect::<Vec<_>>(), ["stopped"]);
    }

    #[tokio::test]
    async fn a_wish_without_an_answer_gets_it_from_the_journal() {
        let mut trail = Trail::new();
        let cordon =
            |host: &str| Intent::Cordon { host: host.parse().unwrap(), gpu: None, reason: None };
        let cordoned = |host: &str| DeckEvent::Cordoned {
            host: host.parse().unwrap(),
            gpu: None,
            by: "ada".to_owned(),
            reason: None,
        };
        let first = trail.asked(cordon("h1")).await;
        trail.deck(cordoned("h1"));
        trail.auditor.answered(first, &Ok(IntentReply::Accepted)).await;
        let second = trail.asked(cordon("h1")).await;
        let third = trail.asked(cordon("h2")).await;
        trail.deck(cordoned("h2"));
        let lines = trail.again(None);
        let answer = |asked: Asked| {
            let of: Vec<&Value> = lines.iter().filter(|l| l["of"] == asked.0).collect();
            assert_eq!(of.len(), 1, "{lines:#?}");
            of[0]["result"]["result"].clone()
        };
        assert_eq!(answer(first), "accepted");
        assert_eq!(answer(second), "unknown", "the first one's is not its");
        assert_eq!(answer(third), "accepted");
        assert_eq!(trail.again(None).len(), lines.len(), "once");
    }
}
