//! What happened to a service, in words: pure, from the state before and after an event.

use super::ledger::because;
use crate::api::{EventLine, Severity};
use crate::base::{ReleaseNumber, ReplicaKey, Timestamp, text};
use crate::rollout::{
    Condition, Direction, EventKind, Gate, HoldCause, Outcome, Phase, ReplicaState, RequestedMove,
    ServiceState,
};

/// The lines for the Events panel.
pub fn narrate(before: &ServiceState, after: &ServiceState, kind: &EventKind) -> Vec<EventLine> {
    let mut story = Story { at: after.now, state: after, lines: Vec::new() };
    if let EventKind::RolloutRequested { release, by, kind, .. } = kind {
        let verb = match kind {
            crate::rollout::RolloutKind::Apply => "rolls out",
            crate::rollout::RolloutKind::Undo => "goes back with",
        };
        let reason = release.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        story.info(format!(
            "{by} {verb} {} (revision {}){reason}",
            release.number, release.revision
        ));
        match release.keeps.len() {
            0 => {}
            1 => {
                story.info("1 replica runs on: its engine is started with nothing else".to_owned());
            }
            n => story
                .info(format!("{n} replicas run on: their engines are started with nothing else")),
        }
    }
    match kind {
        EventKind::Paused { by, reason } => {
            story.info(format!("{by} pauses the rollout{}", because(reason.as_deref())));
        }
        EventKind::Resumed { by, reason } => {
            story.info(format!("{by} resumes the rollout{}", because(reason.as_deref())));
        }
        EventKind::Promoted { by, all, reason, .. } => {
            let (pause, why) = (pause_ended(before, after), because(reason.as_deref()));
            let how_far = if *all { " to the end" } else { "" };
            story.info(format!("{by} promotes{how_far}{pause}{why}"));
        }
        EventKind::Retried { by, reason } => {
            let (pause, why) = (pause_ended(before, after), because(reason.as_deref()));
            story.info(format!("{by} tries again what failed{pause}{why}"));
        }
        EventKind::Skipped { by, reason } => {
            let gate = before.skippable().unwrap_or_default();
            let pause = pause_ended(before, after);
            story.warn(format!("{by} skips {gate}{pause}: {reason}"));
        }
        EventKind::Queued { wish, replace } => {
            let (by, what) = (&wish.by, wish.what());
            let how = if *replace { "in place of this one" } else { "after this one" };
            story.info(format!("{by} queues a rollout {how}: {what}"));
        }
        EventKind::QueueCancelled { by, .. } => {
            story.info(format!("{by} cancels the queued rollout"));
        }
        EventKind::QueueRefused { why, .. } => {
            story.error(format!("the queued rollout does not begin: {why}"));
        }
        EventKind::RunLost { .. } => {
            story.warn("the controller that ran the command is gone: it is run again".to_owned());
        }
        EventKind::Aborted { by, .. } => {
            let withdrawn = before.queued.is_some() && after.queued.is_none();
            let rest = if withdrawn { "; what was queued does not begin" } else { "" };
            story.warn(format!("{by} aborts the rollout{rest}"));
        }
        EventKind::HoldBegan { why, .. } if has_steps(after) => {
            story.warn(format!("is held before its next step: {why}"));
        }
        EventKind::HoldEnded if before.held.as_ref().is_some_and(|h| h.hosts.is_empty()) => {
            story.info("goes on: no deadline counts that time".to_owned());
        }
        EventKind::HoldEnded if has_steps(after) && before.is_held_elsewhere() => {
            story.info("goes on: no other controller holds its hosts".to_owned());
        }
        EventKind::HoldEnded
            if before.held.as_ref().is_some_and(|h| h.cause == HoldCause::Unasked) =>
        {
            story.info("goes on: who holds its hosts need not be waited for any more".to_owned());
        }
        EventKind::HoldEnded if has_steps(after) => {
            story.info("goes on: its hosts let us in again".to_owned());
        }
        EventKind::StopRequested { by, reason } => {
            let why = reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            story.warn(format!("{by} stops the service{why}"));
        }
        EventKind::MovesRequested { release, why, moves, .. } => {
            story.info(format!("{}: {why}", to_move(*release, moves)));
        }
        EventKind::Lent { .. } | EventKind::TakenOut { .. } => {
            for loan in after.loans.iter().filter(|l| !before.loans.contains(l)) {
                story.warn(format!("{} is {}", loan.replica, loan.to));
            }
        }
        EventKind::LentReturned { replica, elsewhere } => {
            let place = if *elsewhere { "at another place" } else { "where it was" };
            story.info(format!("{replica} comes back {place}"));
        }
        EventKind::LoanReady { .. } => {
            story.info("what is borrowed is free of its lender".to_owned());
        }
        EventKind::TrafficFailed { why, .. } => {
            story.warn(format!("the gateway was not changed: {why}"));
        }
        _ => {}
    }
    // What was decided comes before what follows from it.
    rollout(&mut story, before, after);
    moves(&mut story, before, after, matches!(kind, EventKind::MovesCancelled { .. }));
    replicas(&mut story, before, after);
    outcome(&mut story, before, after);
    if before.condition() != Condition::Down && after.condition() == Condition::Down {
        story.error("no replica is ready".to_owned());
    }
    story.lines
}

/// Which replica is to move and where to, or how many.
fn to_move(release: ReleaseNumber, moves: &[RequestedMove]) -> String {
    match moves {
        [one] => {
            let key = ReplicaKey { release, replica: one.replica };
            let mut hosts: Vec<&str> = one.plan.ranks.iter().map(|r| r.host.as_str()).collect();
            hosts.dedup();
            let to =
                if hosts.is_empty() { String::new() } else { format!(" to {}", hosts.join(", ")) };
            format!("{key} is to move{to}")
        }
        several => format!("{} replicas are to move", several.len()),
    }
}

/// That what somebody did has ended a pause, too: whoever paused it counts on it.
fn pause_ended(before: &ServiceState, after: &ServiceState) -> String {
    let paused = before.active_rollout().filter(|r| r.paused.is_some());
    match (paused, after.active_rollout()) {
        (Some(before), Some(after)) if after.paused.is_none() => {
            let by = before.paused_by.as_ref().map(|by| format!(" of {by}"));
            format!(", which ends the pause{}", by.unwrap_or_default())
        }
        _ => String::new(),
    }
}

/// Whether there is a next step at all: a rollout, or replicas to move.
fn has_steps(state: &ServiceState) -> bool {
    state.active_rollout().is_some() || !state.moves.is_empty()
}

struct Story<'a> {
    at: Timestamp,
    state: &'a ServiceState,
    lines: Vec<EventLine>,
}

impl Story<'_> {
    fn say(&mut self, severity: Severity, words: &str) {
        self.lines.push(EventLine {
            at: self.at,
            severity,
            service: Some(self.state.service.clone()),
            host: None,
            text: text::clean(words, 400),
        });
    }
    fn info(&mut self, words: String) {
        self.say(Severity::Info, &words);
    }
    fn warn(&mut self, words: String) {
        self.say(Severity::Warning, &words);
    }
    fn error(&mut self, words: String) {
        self.say(Severity::Error, &words);
    }
}

fn replicas(story: &mut Story<'_>, before: &ServiceState, after: &ServiceState) {
    for (key, now) in &after.replicas {
        let taken_over = || before.replica_of(now.id(*key));
        let was = before.replicas.get(key).map(|was| &**was).or_else(taken_over);
        if was.is_some_and(|w| same_phase(&w.phase, &now.phase) && w.attempt == now.attempt) {
            continue;
        }
        let was_phase = was.map(|w| &w.phase);
        // As hosts and logs call it.
        let name = now.id(*key).key();
        match &now.phase {
            Phase::Starting if matches!(was_phase, Some(Phase::Waiting { .. })) => {}
            Phase::Starting => {
                let hosts = after
                    .releases
                    .get(&key.release)
                    .and_then(|r| r.replica(key.replica))
                    .map(|p| {
                        p.ranks.iter().map(|r| r.host.to_string()).collect::<Vec<_>>().join(", ")
                    })
                    .unwrap_or_default();
                let attempt = match now.attempt.0.get() {
                    1 => String::new(),
                    n => format!(" (attempt {n})"),
                };
                story.info(format!("{name} starts on {hosts}{attempt}"));
            }
            Phase::Waiting { why, .. } if was.is_none_or(|was| !has_waited_for(was, why)) => {
                story.info(format!("{name} waits: {why}"));
            }
            Phase::Loading if matches!(was_phase, Some(Phase::Ready)) => {
                let why = now.trouble.as_deref().unwrap_or("it does not answer any more");
                story.error(format!("{name} gets no requests until it generates a token: {why}"));
            }
            Phase::Ready => story.info(format!("{name} is ready: it generated a token")),
            Phase::Draining { .. } => story.info(format!("{name} drains")),
            Phase::Stopping => story.info(format!("{name} stops")),
            Phase::Failed { cause } => story.error(format!("{name} failed: {cause}")),
            Phase::Pending { .. } if was.is_some() => {
                let why = now.trouble.as_deref().unwrap_or("it ended");
                story.warn(format!("{name} is to be started again: {why}"));
            }
            _ => {}
        }
    }
}

/// Whether it waits for that already: what is asked for again and again is told once, also where amounts in its
/// words change.
fn has_waited_for(was: &ReplicaState, why: &str) -> bool {
    let gist = |words: &str| words.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let same = || was.trouble.as_deref().is_some_and(|before| gist(before) == gist(why));
    matches!(was.phase, Phase::Waiting { .. }) || was.waiting_since.is_some() && same()
}

fn moves(story: &mut Story<'_>, before: &ServiceState, after: &ServiceState, by_hand: bool) {
    for vacated in after.vacated.difference(&before.vacated) {
        let over = before.moves.first().filter(|m| m.from == vacated.replica);
        if let Some(to) = over.and_then(|m| m.to) {
            story.info(format!("{}-{to} has taken over from {vacated}", vacated.release));
        }
    }
    if let Some(why) = &after.move_trouble
        && before.move_trouble.as_ref() != Some(why)
    {
        if by_hand {
            story.info(format!("the moving away ends: {why}"));
        } else {
            story.error(format!("the moving away is given up: {why}"));
        }
    }
}

/// The same stage of a replica's life, whatever its deadlines are.
fn same_phase(was: &Phase, now: &Phase) -> bool {
    std::mem::discriminant(was) == std::mem::discriminant(now)
}

fn rollout(story: &mut Story<'_>, before: &ServiceState, after: &ServiceState) {
    let Some(now) = &after.rollout else { return };
    let was = before.rollout.as_ref().filter(|w| w.to == now.to && w.began == now.began);
    if let Some(verdict) = &now.verdict
        && was.and_then(|w| w.verdict.as_ref()) != Some(verdict)
    {
        let words = format!("{}: {:?}: {}", verdict.title(), verdict.result, verdict.reason);
        match verdict.result {
            crate::rollout::analysis::VerdictResult::Success => story.info(words),
            _ => story.warn(words),
        }
    }
    if let Direction::Back { why, .. } = &now.direction
        && was.is_some_and(|w| w.direction == Direction::Forward)
    {
        story.error(format!("{} is taken back: {why}", now.to));
    }
    if now.gate != was.and_then(|w| w.gate.clone()) {
        match &now.gate {
            Some(Gate::Bake { until }) => {
                story.info(format!(
                    "bakes for {}",
                    crate::base::time::short(until.since(after.now))
                ));
            }
            // Its end moves when the first request reaches the canary.
            Some(Gate::Analyse { name, .. }) => {
                let same = |g: &Gate| matches!(g, Gate::Analyse { name: was, .. } if was == name);
                if !was.and_then(|w| w.gate.as_ref()).is_some_and(same) {
                    story.info(format!("analysis {name} begins"));
                }
            }
            Some(Gate::Inconclusive { why }) => {
                story.warn(format!("the analysis is inconclusive ({why}): retry, skip or abort"));
            }
            Some(Gate::Run { command, attempt, .. }) => {
                let again = match attempt.0.get() {
                    1 => String::new(),
                    n => format!(" (attempt {n})"),
                };
                story.info(format!("runs {command}{again}"));
            }
            Some(Gate::Approve) => story.warn("waits for approval: promote or abort".to_owned()),
            Some(Gate::Failed { why }) => story.error(format!("failed and held: {why}")),
            None => {}
        }
    }
}

fn outcome(story: &mut Story<'_>, before: &ServiceState, after: &ServiceState) {
    let Some(now) = &after.rollout else { return };
    let was = before.rollout.as_ref().filter(|w| w.to == now.to && w.began == now.began);
    if let Some(outcome) = &now.outcome
        && was.is_none_or(|w| w.outcome.is_none())
    {
        match outcome {
            Outcome::Completed => story.info(format!("{} is stable", now.to)),
            Outcome::RolledBack { why } => story.warn(format!("{} was taken back: {why}", now.to)),
            Outcome::Aborted { .. } => {
                story.warn(format!("{} was {}", now.to, outcome.text()));
            }
            Outcome::Failed { why } => story.error(format!("{} failed: {why}", now.to)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rollout::{
        Event, LimitRule, RankPlan, Release, ReplicaPlan, RolloutKind, StartRefusal, step,
    };

    /// Whoever comes next wants to know who holds it and what for; a journal of before has no reason.
    #[test]
    fn why_somebody_holds_a_rollout_is_told_and_kept_until_it_goes_on() {
        let service = "chat".parse().unwrap();
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(deck, &service);
        let mut state = ServiceState::new(service);
        let begun = crate::controller::saved::tests::requested(release);
        step(&mut state, &Event { at: Timestamp(1_000), kind: begun });
        let mut tell = |at: u64, event: &str| {
            let event: Event =
                serde_json::from_str(&format!("{{\"at\":{at},\"event\":{event}}}")).unwrap();
            let before = state.clone();
            step(&mut state, &event);
            let told = narrate(&before, &state, &event.kind).into_iter().next().unwrap().text;
            let rollout = state.active_rollout().unwrap();
            (told, rollout.paused_by.clone(), rollout.paused_why.clone())
        };
        let by = Some("ada".to_owned());
        assert_eq!(
            tell(2_000, r#""paused","by":"ada","reason":"the switch is changed""#),
            (
                "ada pauses the rollout: the switch is changed".to_owned(),
                by.clone(),
                Some("the switch is changed".to_owned())
            )
        );
        assert_eq!(
            tell(3_000, r#""resumed","by":"bob","reason":"it is in""#),
            ("bob resumes the rollout: it is in".to_owned(), None, None)
        );
        let plain = ("ada pauses the rollout".to_owned(), by, None);
        assert_eq!(tell(4_000, r#""paused","by":"ada""#), plain);
        assert_eq!(tell(5_000, r#""resumed","by":"bob""#).1, None);
        assert_eq!(tell(6_000, r#""paused","by":"ada","reason":" ""#), plain, "nothing was said");
        let ended = tell(7_000, r#""promoted","by":"bob","all":true,"reason":"it is late""#);
        let words = "bob promotes to the end, which ends the pause of ada: it is late".to_owned();
        assert_eq!(ended, (words, None, None));
    }

    #[test]
    fn a_reason_stands_behind_what_it_is_the_reason_for() {
        let plan: ReplicaPlan = ReplicaPlan { ranks: Vec::new(), shape: None };
        let moves = |n| (0..n).map(|replica| RequestedMove { replica, plan: plan.clone() });
        let told = |n| {
            let moves: Vec<RequestedMove> = moves(n).collect();
            to_move(ReleaseNumber(1), &moves)
        };
        assert_eq!([told(1), told(2)], ["r1-0 is to move", "2 replicas are to move"]);
        let mut before = ServiceState::new("chat".parse().unwrap());
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let release = crate::controller::saved::tests::release(deck, &before.service);
        let requested = crate::controller::saved::tests::requested(release);
        step(&mut before, &Event { at: Timestamp(1), kind: requested });
        let mut after = before.clone();
        let ended = Outcome::Aborted { why: "aborted by root".to_owned() };
        after.rollout.as_mut().unwrap().outcome = Some(ended);
        let lines = narrate(&before, &after, &EventKind::Tick);
        assert!(lines.iter().any(|l| l.text.ends_with(" was aborted by root")), "{lines:?}");
    }

    #[test]
    fn a_drain_that_a_person_ends_is_no_error() {
        let before = ServiceState::new("chat".parse().unwrap());
        let why = Some("r1-0: ada cancelled it".to_owned());
        let mut after = before.clone();
        after.move_trouble = why;
        let told = |kind: EventKind| {
            let lines = narrate(&before, &after, &kind);
            lines.into_iter().map(|line| (line.severity, line.text)).collect::<Vec<_>>()
        };
        let by_hand = told(EventKind::MovesCancelled { by: "ada".to_owned() });
        let words = "the moving away ends: r1-0: ada cancelled it".to_owned();
        assert_eq!(by_hand, [(Severity::Info, words)]);
        let by_itself = told(EventKind::Tick);
        assert!(matches!(by_itself.as_slice(), [(Severity::Error, _)]), "{by_itself:?}");
    }

    /// A host that left the deck refuses every start: that is told once, not at every attempt.
    #[test]
    fn what_a_replica_waits_for_is_told_once() {
        let service = "chat".parse().unwrap();
        let deck = crate::base::DeckId(uuid::Uuid::from_u128(1));
        let plan = RankPlan {
            host: "n1".parse().unwrap(),
            devices: vec![crate::base::DeviceId::Cpu],
            memory_per_device: crate::base::Bytes::mib(1),
            address: "10.0.0.1".to_owned(),
            listen: None,
            port: 21_000,
            argv: vec!["serve".to_owned()],
            env: std::collections::BTreeMap::new(),
            files: Vec::new(),
        };
        let release = Release {
            replicas: vec![ReplicaPlan { ranks: vec![plan], shape: None }],
            ..crate::controller::saved::tests::release(deck, &service)
        };
        let rank = release.rank_ids(0, crate::base::Attempt::FIRST).remove(0);
        let mut state = ServiceState::new(service);
        let mut told = Vec::new();
        let mut tell = |at: u64, kind: EventKind| {
            let before = state.clone();
            step(&mut state, &Event { at: Timestamp(at * 1_000), kind: kind.clone() });
            let lines = narrate(&before, &state, &kind).into_iter().map(|line| line.text);
            told.extend(lines.filter(|text| text.contains("waits")));
        };
        tell(
            1,
            EventKind::RolloutRequested {
                release: Box::new(release),
                kind: RolloutKind::Apply,
                by: "ada".to_owned(),
                limits: LimitRule::default(),
                of_group: None,
            },
        );
        let refused = |why: &str| EventKind::RankRefused {
            rank: rank.clone(),
            refusal: StartRefusal::NotYet { why: why.to_owned() },
        };
        for at in 1..20 {
            tell(2 * at, refused(&format!("there is no host n1 (asked {at} times)")));
            tell(2 * at + 1, EventKind::Tick);
        }
        tell(60, EventKind::Tick);
        tell(61, refused("GPU 0 has 3 GiB free"));
        assert_eq!(told.len(), 2, "{told:#?}");
    }
}
