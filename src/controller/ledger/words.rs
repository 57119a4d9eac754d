//! What stands in the journal, in people's words. Every kind of event has its own, and there is no arm for the rest:
//! a new one does not compile before it has some.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use crate::api::CordonedGpu;
use crate::base::{HostName, ReleaseNumber, ReplicaKey, text, time};
use crate::controller::deck_ledger::DeckEvent;
use crate::rollout::{CheckResult, EngineSamples, EventKind, RequestedMove, StartRefusal};

/// Longest line, in characters.
const MAX_WORDS: usize = 300;

/// `: why`, or nothing.
pub(in crate::controller) fn because(why: Option<&str>) -> String {
    why.filter(|why| !why.trim().is_empty()).map(|why| format!(": {why}")).unwrap_or_default()
}

fn list<T: Display>(names: impl IntoIterator<Item = T>) -> String {
    names.into_iter().map(|name| name.to_string()).collect::<Vec<_>>().join(", ")
}

/// What happened to the deck as a whole.
#[deny(clippy::wildcard_enum_match_arm)]
pub fn deck_words(event: &DeckEvent) -> String {
    let on = |host: &HostName, gpu: &Option<CordonedGpu>| match gpu {
        Some(gpu) => format!("GPU {} of {host}", gpu.index),
        None => host.to_string(),
    };
    let words = match event {
        DeckEvent::Planned { service, progress } => {
            format!(
                "{} steps are foreseen for {} of {service}",
                progress.steps.len(),
                progress.release
            )
        }
        DeckEvent::Cordoned { host, gpu, by, reason } => {
            format!("{by} cordons {}{}", on(host, gpu), because(reason.as_deref()))
        }
        DeckEvent::Uncordoned { host, gpu } => format!("{} is uncordoned", on(host, gpu)),
        DeckEvent::DrainBegun { host, by } => format!("{by} drains {host}"),
        DeckEvent::DrainEnded { host, trouble: None } => format!("{host} is empty"),
        DeckEvent::DrainEnded { host, trouble: Some(trouble) } => {
            format!("{host} was not emptied{}", because(Some(trouble)))
        }
        DeckEvent::GroupBegun { group } => {
            format!("{} services are rolled out together", group.services.len())
        }
        DeckEvent::GroupWent { service, state } => {
            let (word, why) = state.words();
            format!("together with others, {service}: {word}{}", because(Some(why)))
        }
        DeckEvent::GroupSteered { what, by, reason } => {
            let verb = what.verb();
            format!("{by} {verb} the rollout of several services{}", because(reason.as_deref()))
        }
        DeckEvent::UpgradeBegun { upgrade } => {
            format!("{} hosts are upgraded", upgrade.hosts.len())
        }
        DeckEvent::UpgradeWent { host, state } => {
            format!("{host}: {}{}", state.word(), because(state.why().as_deref()))
        }
        DeckEvent::UpgradeSteered { steer, by, reason } => {
            format!("{by} {}{}", steer.words(), because(reason.as_deref()))
        }
        DeckEvent::ClockAhead { ahead_ms: 0 } => {
            "the machine's clock has caught up with the times here".to_owned()
        }
        DeckEvent::ClockAhead { ahead_ms } => {
            let ahead = time::short(Duration::from_millis(*ahead_ms));
            format!("times are {ahead} ahead of the machine's clock from here on")
        }
        DeckEvent::UpgradeMissed { missed_ms } => {
            let missed = time::short(Duration::from_millis(*missed_ms));
            format!(
                "nobody looked after the upgrade of hosts for {missed}: its deadlines are later"
            )
        }
    };
    text::clean(&words, MAX_WORDS)
}

/// What happened to a service.
#[deny(clippy::wildcard_enum_match_arm)]
pub fn event_words(kind: &EventKind) -> String {
    let words = match kind {
        EventKind::Tick => "time has passed".to_owned(),
        EventKind::RolloutRequested { release, by, .. } => format!(
            "{by} asks for {} (revision {}, {} replicas){}",
            release.number,
            release.revision,
            release.replicas.len(),
            because(release.reason.as_deref())
        ),
        EventKind::Paused { by, reason } => {
            format!("{by} pauses the rollout{}", because(reason.as_deref()))
        }
        EventKind::Resumed { by, reason } => {
            format!("{by} resumes the rollout{}", because(reason.as_deref()))
        }
        EventKind::Promoted { by, all, reason, .. } => {
            let how_far = if *all { " to the end" } else { "" };
            format!("{by} promotes{how_far}{}", because(reason.as_deref()))
        }
        EventKind::Retried { by, reason } => {
            format!("{by} tries again what failed{}", because(reason.as_deref()))
        }
        EventKind::Skipped { by, reason } => {
            format!("{by} skips the gate{}", because(Some(reason)))
        }
        EventKind::Queued { wish, replace } => {
            let how = if *replace { "replaces the rollout" } else { "queues a rollout" };
            format!("{} {how}: {}", wish.by, wish.what())
        }
        EventKind::QueueCancelled { by, .. } => format!("{by} cancels the queued rollout"),
        EventKind::QueueRefused { why, .. } => {
            format!("the queued rollout is refused{}", because(Some(why)))
        }
        EventKind::Aborted { by, reason } => {
            format!("{by} aborts the rollout{}", because(reason.as_deref()))
        }
        EventKind::StopRequested { by, reason } => {
            let why = reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("{by} stops the service{why}")
        }
        EventKind::MovesRequested { release, moves, by, why } => {
            format!("{by} moves {}{}", moves_words(*release, moves), because(Some(why)))
        }
        EventKind::MovesCancelled { by } => format!("{by} ends the moving away"),
        EventKind::HoldBegan { hosts, why, .. } => {
            let on = if hosts.is_empty() { String::new() } else { format!(" for {}", list(hosts)) };
            format!("is held{on}{}", because(Some(why)))
        }
        EventKind::HoldEnded => "is not held any more".to_owned(),
        EventKind::RunEnded { attempt, end, output, .. } => {
            let said = because(output.last().map(String::as_str));
            format!("the command of the step has ended (attempt {attempt}): {end}{said}")
        }
        EventKind::RunLost { attempt, .. } => {
            format!("the command of the step (attempt {attempt}) was lost with its controller")
        }
        EventKind::Lent { borrower, to, what } => {
            let lent = what.replicas.iter().map(|lent| lent.replica);
            format!("lends {} to the rollout of {borrower} to {to}", keys(what.of, lent))
        }
        EventKind::TakenOut { release, replicas, host } => {
            let out = keys(*release, replicas.iter().copied());
            format!("takes {out} out until {host} is uncordoned")
        }
        EventKind::LentReturned { replica, elsewhere } => {
            let place = if *elsewhere { "at another place" } else { "where it was" };
            format!("{replica} comes back {place}")
        }
        EventKind::LoanReady { release } => {
            format!("what {release} borrows is free of its lender")
        }
        EventKind::RankRunning { rank } => format!("rank {} of {} runs", rank.rank, rank.replica),
        EventKind::RankRefused { rank, refusal } => {
            let (yet, why) = match refusal {
                StartRefusal::NotYet { why } => (" yet", why),
                StartRefusal::Never { why } => ("", why),
            };
            let why = because(Some(why));
            format!("rank {} of {} cannot start{yet}{why}", rank.rank, rank.replica)
        }
        EventKind::RankEnded { rank, how } => {
            format!("rank {} of {} has ended{}", rank.rank, rank.replica, because(Some(how)))
        }
        EventKind::ReplicaReady { replica } => format!("{replica} generated a token: it is ready"),
        EventKind::NoTokenYet { replica, why } => format!("{replica} gives no token yet: {why}"),
        EventKind::ReplicaUnready { replica, why } => format!("{replica} does not answer: {why}"),
        EventKind::TrafficApplied { version } => {
            format!("the gateway has traffic table {version}")
        }
        EventKind::TrafficFailed { version, why, .. } => {
            format!("the gateway did not take traffic table {version}: {why}")
        }
        EventKind::Drained { replica } => format!("{replica} has no request in flight any more"),
        EventKind::Measured { windows } => {
            let requests: u64 = windows.values().map(|w| w.requests).sum();
            let errors: u64 = windows.values().map(|w| w.errors).sum();
            format!("measured: {requests} requests, {errors} failed")
        }
        EventKind::Unmeasured => "the canary's requests cannot be counted at present".to_owned(),
        EventKind::Sampled { samples } => {
            let seen = samples.iter().map(|(release, seen)| samples_words(*release, seen));
            format!("sampled: {}", seen.collect::<Vec<_>>().join("; "))
        }
        EventKind::Checked { check, result, why, .. } => {
            let how = match result {
                CheckResult::Successful => "is as it should be",
                CheckResult::Failed => "has failed",
                CheckResult::Inconclusive => "is inconclusive",
                CheckResult::Error => "could not be measured",
            };
            format!("{check} of the analysis {how}{}", because(Some(why)))
        }
    };
    text::clean(&words, MAX_WORDS)
}

/// `r3-0, r3-1`.
fn keys(release: ReleaseNumber, replicas: impl Iterator<Item = u32>) -> String {
    list(replicas.map(|replica| ReplicaKey { release, replica }))
}

/// `r3-0 to h2, r3-1 to h3 and h4`.
fn moves_words(release: ReleaseNumber, moves: &[RequestedMove]) -> String {
    list(moves.iter().map(|asked| {
        let key = ReplicaKey { release, replica: asked.replica };
        let hosts: BTreeSet<&HostName> = asked.plan.ranks.iter().map(|rank| &rank.host).collect();
        format!("{key} to {}", list(hosts).replace(", ", " and "))
    }))
}

/// `r3: 17 requests ended, 0 failed`, and what is wrong with its GPUs.
fn samples_words(release: ReleaseNumber, seen: &EngineSamples) -> String {
    let error = seen.gpu.error.as_deref().map(|e| format!(", {e}")).unwrap_or_default();
    format!("{release}: {} requests ended, {} failed{error}", seen.finished, seen.failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rollout::maintenance::UpgradeHost;
    use serde_json::{Value, json};

    fn event(value: Value) -> EventKind {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_was_shown_as_it_stands_in_the_journal_is_told_in_words() {
        let plan = json!({ "ranks": [
            { "host": "h2", "devices": ["cpu"], "memory_per_device": 0, "address": "h2", "port": 1,
              "argv": [], "env": {}, "files": [] },
        ]});
        for (kind, words) in [
            (
                json!({ "event": "moves_requested", "release": 3, "by": "ada", "why": "h1 is drained",
                        "moves": [{ "replica": 0, "plan": plan }] }),
                "ada moves r3-0 to h2: h1 is drained",
            ),
            (json!({ "event": "moves_cancelled", "by": "ada" }), "ada ends the moving away"),
            (
                json!({ "event": "hold_began", "hosts": ["h1", "h2"], "why": "the key is gone" }),
                "is held for h1, h2: the key is gone",
            ),
            (json!({ "event": "hold_ended" }), "is not held any more"),
            (
                json!({ "event": "lent", "borrower": "code", "to": 5,
                "what": { "lender": "chat", "of": 3, "replicas": [
                    { "replica": 0, "plan": { "ranks": [] }, "back": null },
                    { "replica": 2, "plan": { "ranks": [] }, "back": null },
                ]}}),
                "lends r3-0, r3-2 to the rollout of code to r5",
            ),
            (
                json!({ "event": "taken_out", "release": 3, "replicas": [1], "host": "h1" }),
                "takes r3-1 out until h1 is uncordoned",
            ),
            (
                json!({ "event": "lent_returned", "replica": "r3-1",
                        "elsewhere": true }),
                "r3-1 comes back at another place",
            ),
            (
                json!({ "event": "loan_ready", "release": 5 }),
                "what r5 borrows is free of its lender",
            ),
            (
                json!({ "event": "sampled", "samples": { "3": { "finished": 17, "failed": 1,
                        "gpu": { "error": "Xid 79" } } } }),
                "sampled: r3: 17 requests ended, 1 failed, Xid 79",
            ),
            (
                json!({ "event": "checked", "release": 3, "step": 1, "check": "golden 1",
                        "result": "failed", "why": "`Paris` is not in `London`" }),
                "golden 1 of the analysis has failed: `Paris` is not in `London`",
            ),
            (
                json!({ "event": "run_ended", "release": 3, "step": 1, "attempt": 1,
                        "end": { "exited": { "code": 3 } }, "output": ["a", "no route"] }),
                "the command of the step has ended (attempt 1): exit code 3: no route",
            ),
            (
                json!({ "event": "promoted", "all": true, "by": "ada", "reason": "it is late" }),
                "ada promotes to the end: it is late",
            ),
            (json!({ "event": "tick" }), "time has passed"),
        ] {
            assert_eq!(event_words(&event(kind)), words);
        }
    }

    #[test]
    fn a_failed_upgrade_says_why() {
        let state = UpgradeHost::Failed { why: "exit code 1".to_owned() };
        let event = DeckEvent::UpgradeWent { host: "h1".parse().unwrap(), state };
        assert_eq!(deck_words(&event), "h1: UPGRADE FAILED: exit code 1");
    }
}
