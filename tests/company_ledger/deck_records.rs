//! Records of the deck that a controller had just written when it was killed, as its next life finds them: alone, with
//! nothing of what follows from them. (Every kind of them, before and after, without a controller: `kill_tests.rs` of the
//! deck's ledger.)

use serde_json::{Value, json};

use super::common::{Gpudeck, Traces, wait_until};
use super::{DEADLINE, Journal, deck, service, state_dir};

/// The time, as the journal has it.
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// Writes records of the deck into the journal of a controller that is not there.
fn append(person: &Gpudeck, events: &[Value]) {
    let home = person.home().join(".local/state/gpudeck");
    let (mut journal, _) = Journal::open(&state_dir(&home).join("journal")).unwrap();
    let at = now();
    let records: Vec<Value> =
        events.iter().map(|event| json!({ "deck_at": at, "deck_event": event })).collect();
    journal.append(&records).unwrap();
}

/// What was asked when several services were rolled out together last, asked anew.
fn group_again(person: &Gpudeck) -> Value {
    let home = person.home().join(".local/state/gpudeck");
    let (_, records) = Journal::open(&state_dir(&home).join("journal")).unwrap();
    let mut events = records.iter().rev().map(|record| &record.value["deck_event"]);
    let found = events.find(|event| event["kind"] == "group_begun");
    let mut event = found.expect("several were rolled out together").clone();
    // By the time of its beginning a group knows which rollouts are its own.
    event["group"]["began"] = now().into();
    event["group"]["accept_outage"] = true.into();
    for entry in event["group"]["services"].as_array_mut().unwrap() {
        entry["since"] = now().into();
        // Of specs that are not those of then: as records were before they had the digests.
        entry.as_object_mut().unwrap().retain(|key, _| key != "digest" && key != "accept_outage");
    }
    event
}

#[test]
fn what_was_asked_of_the_deck_right_before_a_kill_is_done_by_the_next_life() {
    let person = deck();
    let traces = Traces::of(&person);
    let gpudeck = |words: &str| person.run(words.split(' '), DEADLINE);
    let write = |name: &str, greeting: &str| {
        let spec = person.deck().join(format!("services/{name}.toml"));
        std::fs::write(spec, service(greeting)).unwrap();
    };
    let newest = |name: &str| -> Value {
        let history = gpudeck(&format!("history {name} --output json")).expect_success().stdout;
        serde_json::from_str::<Value>(&history).unwrap()[0].clone()
    };
    write("code", "one");
    gpudeck("apply code chat --wait --timeout 80s").expect_success();
    gpudeck("controller stop").expect_success();

    // A cordon, and its end.
    let cordoned = json!({
        "kind": "cordoned", "host": "here", "gpu": null, "by": "ada", "reason": "fans",
    });
    append(&person, std::slice::from_ref(&cordoned));
    let told = gpudeck("hosts").expect_success().stdout;
    assert!(told.contains("cordoned by ada: fans"), "{told}");
    gpudeck("controller stop").expect_success();
    append(&person, &[json!({ "kind": "uncordoned", "host": "here", "gpu": null })]);
    let told = gpudeck("hosts").expect_success().stdout;
    assert!(!told.contains("cordoned"), "{told}");
    gpudeck("controller stop").expect_success();

    // Several services together, none of which was begun.
    let before = ["code", "chat"].map(|name| newest(name)["number"].as_u64().unwrap());
    write("code", "two");
    write("chat", "two");
    gpudeck("controller stop").expect_success();
    append(&person, &[group_again(&person)]);
    for (name, before) in ["code", "chat"].into_iter().zip(before) {
        wait_until("the services", DEADLINE, || {
            let newest = newest(name);
            newest["number"].as_u64().unwrap() > before && newest["outcome"] == "completed"
        });
    }
    // And held in the moment in which it was begun.
    write("code", "three");
    write("chat", "three");
    gpudeck("controller stop").expect_success();
    let steered = json!({ "kind": "group_steered", "what": "pause", "by": "ada", "reason": "ops" });
    append(&person, &[group_again(&person), steered]);
    let told = gpudeck("status").expect_success().stdout;
    assert!(told.contains("paused by ada since") && told.contains(": ops"), "{told}");
    let held = ["code", "chat"].map(|name| newest(name)["number"].as_u64().unwrap());
    gpudeck("rollout resume --together").expect_success();
    for (name, before) in ["code", "chat"].into_iter().zip(held) {
        wait_until("the services", DEADLINE, || {
            let newest = newest(name);
            newest["number"].as_u64().unwrap() > before && newest["outcome"] == "completed"
        });
    }

    for name in ["code", "chat"] {
        gpudeck(&format!("stop {name} --yes")).expect_success();
        wait_until("the stop", DEADLINE, || {
            gpudeck(&format!("status {name}")).stdout.contains("stopped")
        });
    }
    assert!(gpudeck("audit verify").expect_success().stdout.contains("is good"));
    gpudeck("controller stop").expect_success();
    traces.expect_none(&person);
}
