//! A line of the audit trail in people's words: what was asked, of what, and what came of it. Fields that another
//! version of gpudeck wrote are shown as they stand there.

use serde_json::Value;

use crate::api::{GroupState, IntentReply, ReleaseNumber, UpgradeHost, text};

/// Longest cell, in characters.
const MAX_WORDS: usize = 200;

/// A field; empty: there is none.
pub fn word(value: &Value, path: &str) -> String {
    value.pointer(path).map(scalar).unwrap_or_default()
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(word) => text::clean(word, MAX_WORDS),
        other => text::clean(&other.to_string(), MAX_WORDS),
    }
}

/// The names of a list.
fn list(entry: &Value, path: &str) -> Vec<String> {
    entry.pointer(path).and_then(Value::as_array).into_iter().flatten().map(scalar).collect()
}

/// `: why`, or nothing.
fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

/// What was asked for, or what has happened by itself.
pub fn what(entry: &Value) -> String {
    let intent = word(entry, "/what/intent");
    match intent.as_str() {
        "" => word(entry, "/event").replace('_', " "),
        "apply_together" => "apply".to_owned(),
        "steer_upgrade" => format!("{} upgrade", word(entry, "/what/what")),
        "steer_group" => format!("{} --together", word(entry, "/what/what")),
        "promote" if entry.pointer("/what/all") == Some(&Value::Bool(true)) => {
            "promote --all".to_owned()
        }
        "take_over" if entry.pointer("/what/force") == Some(&Value::Bool(true)) => {
            "take over --force".to_owned()
        }
        _ => intent.replace('_', " "),
    }
}

/// What it was done to beside its service: hosts and GPUs as on the command line, a release, a step.
pub fn target(entry: &Value) -> String {
    let intent = word(entry, "/what/intent");
    let host = match word(entry, "/what/host") {
        // Of what has happened by itself.
        none if none.is_empty() => word(entry, "/result/host"),
        host => host,
    };
    let mut gpus = list(entry, "/what/gpus");
    gpus.extend(Some(word(entry, "/what/gpu")).filter(|gpu| !gpu.is_empty()));
    let host = if gpus.is_empty() { host } else { format!("{host}/{}", gpus.join(",")) };
    match intent.as_str() {
        "move" => format!("replica {} to {host}", word(entry, "/what/replica")),
        "upgrade_hosts" => match list(entry, "/what/hosts") {
            all if all.is_empty() => "all hosts".to_owned(),
            some => some.join(", "),
        },
        "apply_together" => list(entry, "/what/services").join(", "),
        "undo" => entry.pointer("/what/to").and_then(release).unwrap_or_default(),
        "promote" => match entry.pointer("/what/step").and_then(Value::as_u64) {
            Some(index) => format!("step {}", index.saturating_add(1)),
            None => String::new(),
        },
        "answer" => format!("question {}", word(entry, "/what/question")),
        _ => host,
    }
}

fn release(number: &Value) -> Option<String> {
    number.as_u64().map(|number| ReleaseNumber(number).to_string())
}

/// What came of it; `entry`: the answer to a wish, or what has happened by itself.
pub fn result(entry: &Value) -> String {
    let refused = word(entry, "/result/refused");
    if !refused.is_empty() {
        return format!("refused{}", because(&refused));
    }
    let words = match word(entry, "/event").as_str() {
        "drain_ended" => Some(drained(entry)),
        "host_upgraded" => upgraded(entry),
        "together" => together(entry),
        "stopped" => Some("nothing of it runs any more".to_owned()),
        "rollout_ended" => rollout_ended(entry),
        "answered" => answered(entry),
        _ => None,
    };
    // Of another version, or a field of it is missing.
    text::clean(&words.unwrap_or_else(|| as_it_stands(entry)), MAX_WORDS)
}

fn drained(entry: &Value) -> String {
    match word(entry, "/result/trouble") {
        none if none.is_empty() => "empty".to_owned(),
        trouble => format!("not emptied{}", because(&trouble)),
    }
}

fn upgraded(entry: &Value) -> Option<String> {
    let state: UpgradeHost =
        serde_json::from_value(entry.pointer("/result/state")?.clone()).ok()?;
    Some(format!("{}{}", state.word(), because(&state.why().unwrap_or_default())))
}

fn together(entry: &Value) -> Option<String> {
    let state: GroupState = serde_json::from_value(entry.pointer("/result/state")?.clone()).ok()?;
    let (word, why) = state.words();
    let release = match &state {
        GroupState::Rolling { release } | GroupState::Done { release, .. } => format!(" {release}"),
        _ => String::new(),
    };
    Some(format!("{word}{release}{}", because(why)))
}

fn rollout_ended(entry: &Value) -> Option<String> {
    let outcome = entry.pointer("/result/outcome")?.as_str()?.replace('_', " ");
    let release = entry.pointer("/result/release").and_then(release)?;
    let why = word(entry, "/result/why");
    // Who aborted it is told without that word once more.
    Some(match why.strip_prefix("aborted ").filter(|_| outcome == "aborted") {
        Some(by) => format!("{outcome} {release} {by}"),
        None => format!("{outcome} {release}{}", because(&why)),
    })
}

fn answered(entry: &Value) -> Option<String> {
    let result = entry.get("result")?;
    if result.get("result")? == "rollout_begun" {
        let release = result.get("release").and_then(release)?;
        return Some(format!("rollout begun {release}"));
    }
    if result.get("result")? == "unknown" {
        return Some("not known: the controller ended before it answered".to_owned());
    }
    Some(match serde_json::from_value(result.clone()).ok()? {
        IntentReply::RolloutBegun { release, .. } => format!("rollout begun {release}"),
        IntentReply::NothingToDo => "nothing to do".to_owned(),
        IntentReply::Queued { behind, replaces: false, .. } => format!("queued behind {behind}"),
        IntentReply::Queued { behind, replaces: true, .. } => format!("queued, replaces {behind}"),
        IntentReply::AlreadyPassed { step } => format!("step {step} is already passed"),
        IntentReply::TakenOver { left_out } => {
            let names: Vec<String> = left_out.iter().map(ToString::to_string).collect();
            format!("taken over, left out {}", names.join(", "))
        }
        IntentReply::CordonedBut { comes } => {
            format!("cordoned; still to come: {}", comes.join("; "))
        }
        IntentReply::Accepted => "accepted".to_owned(),
    })
}

/// The fields that are a word or a number.
fn as_it_stands(entry: &Value) -> String {
    match entry.get("result") {
        Some(Value::Object(fields)) => {
            let plain = fields.iter().filter(|(_, value)| !value.is_object() && !value.is_array());
            let words = plain.filter(|(_, value)| !value.is_null()).map(|(key, value)| {
                let value = scalar(value).replace('_', " ");
                if key == "result" { value } else { format!("{} {value}", key.replace('_', " ")) }
            });
            words.collect::<Vec<_>>().join(", ")
        }
        other => other.map(scalar).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_wish_names_what_it_is_done_to() {
        for (asked, words) in [
            (json!({ "intent": "cordon", "host": "h1", "gpu": null }), ("cordon", "h1")),
            (json!({ "intent": "uncordon", "host": "h1", "gpu": 3 }), ("uncordon", "h1/3")),
            (json!({ "intent": "drain", "host": "h1" }), ("drain", "h1")),
            (
                json!({ "intent": "move", "replica": 2, "host": "h2", "gpus": [0, 1] }),
                ("move", "replica 2 to h2/0,1"),
            ),
            (
                json!({ "intent": "upgrade_hosts", "command": "apt", "hosts": ["h1", "h2"] }),
                ("upgrade hosts", "h1, h2"),
            ),
            (
                json!({ "intent": "upgrade_hosts", "command": "apt", "hosts": [] }),
                ("upgrade hosts", "all hosts"),
            ),
            (json!({ "intent": "stop_upgrade" }), ("stop upgrade", "")),
            (json!({ "intent": "steer_upgrade", "what": "pause" }), ("pause upgrade", "")),
            (
                json!({ "intent": "steer_upgrade", "what": "retry", "host": "h1" }),
                ("retry upgrade", "h1"),
            ),
            (json!({ "intent": "reconnect", "host": "h1" }), ("reconnect", "h1")),
            (json!({ "intent": "undo", "to": 3 }), ("undo", "r3")),
            (json!({ "intent": "undo", "to": null }), ("undo", "")),
            (json!({ "intent": "promote", "all": false, "step": 1 }), ("promote", "step 2")),
            (json!({ "intent": "promote", "all": true }), ("promote --all", "")),
            (
                json!({ "intent": "apply_together", "services": ["draft", "chat"] }),
                ("apply", "draft, chat"),
            ),
            (json!({ "intent": "steer_group", "what": "pause" }), ("pause --together", "")),
            (json!({ "intent": "take_over", "force": true }), ("take over --force", "")),
            (json!({ "intent": "answer", "question": 4 }), ("answer", "question 4")),
        ] {
            let entry = json!({ "event": "asked", "what": asked });
            assert_eq!((what(&entry).as_str(), target(&entry).as_str()), words, "{entry}");
        }
        let entry = json!({ "event": "drain_ended", "result": { "host": "h1", "trouble": null } });
        assert_eq!((what(&entry).as_str(), target(&entry).as_str()), ("drain ended", "h1"));
    }

    #[test]
    fn what_came_of_it_is_told_in_words() {
        for (event, came, words) in [
            ("drain_ended", json!({ "host": "h1", "trouble": null }), "empty"),
            (
                "drain_ended",
                json!({ "host": "h1", "trouble": "no place" }),
                "not emptied: no place",
            ),
            ("host_upgraded", json!({ "host": "h1", "state": { "state": "done" } }), "upgraded"),
            (
                "host_upgraded",
                json!({ "host": "h1", "state": { "state": "failed", "why": "exit code 1" } }),
                "UPGRADE FAILED: exit code 1",
            ),
            (
                "together",
                json!({ "state": { "state": "rolling", "release": 4 } }),
                "rolling out r4",
            ),
            (
                "together",
                json!({ "state": { "state": "failed", "why": "no token" } }),
                "FAILED: no token",
            ),
            ("stopped", json!({}), "nothing of it runs any more"),
            ("queued_refused", json!({ "queued": 17, "refused": "no room" }), "refused: no room"),
            (
                "rollout_ended",
                json!({ "release": 4, "outcome": "completed", "why": null }),
                "completed r4",
            ),
            (
                "rollout_ended",
                json!({ "release": 4, "outcome": "rolled_back", "why": "no token" }),
                "rolled back r4: no token",
            ),
            (
                "rollout_ended",
                json!({ "release": 4, "outcome": "aborted", "why": "aborted by ada: too late" }),
                "aborted r4 by ada: too late",
            ),
            ("gap", json!("3 lines are missing"), "3 lines are missing"),
            ("answered", json!({ "result": "rollout_begun", "release": 4 }), "rollout begun r4"),
            ("answered", json!({ "result": "nothing_to_do" }), "nothing to do"),
            (
                "answered",
                json!({ "result": "queued", "behind": 4, "replaces": false }),
                "queued behind r4",
            ),
            (
                "answered",
                json!({ "result": "already_passed", "step": 2 }),
                "step 2 is already passed",
            ),
            ("answered", json!({ "result": "accepted" }), "accepted"),
            (
                "answered",
                json!({ "refused": "no such host", "kind": "not_found" }),
                "refused: no such host",
            ),
            (
                "answered",
                json!({ "result": "unknown" }),
                "not known: the controller ended before it answered",
            ),
            // What only a later version writes.
            (
                "answered",
                json!({ "result": "put_off", "until": 17, "plan": { "a": 1 } }),
                "put off, until 17",
            ),
            ("moved", json!({ "from": "h1", "left": null }), "from h1"),
        ] {
            assert_eq!(result(&json!({ "event": event, "result": came })), words);
        }
        assert_eq!(result(&json!({ "event": "asked" })), "");
    }
}
