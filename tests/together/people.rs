//! What people do to one of the services while they are rolled out together: they edit its spec, stop it, roll it out alone.
//! It stays as they wanted it.

use std::time::Duration;

use gpudeck::api::{Door as _, Group, GroupState, Intent};
use gpudeck::spec::ConcurrencyPolicy;

use super::{Deck, LONG, is_done, is_rolling, state, wait_until};

/// Two services that are served; what they load next takes `code` so long, and `chat`.
fn served() -> Deck {
    let deck = Deck::new();
    specs(&deck, "one", "100ms", "100ms");
    deck.expect("apply code chat --wait --timeout 2m", 0);
    deck
}

fn specs(deck: &Deck, greeting: &str, code: &str, chat: &str) {
    deck.spec("code", "", greeting, code);
    deck.spec("chat", "\"code\"", greeting, chat);
}

/// The first one is rolled out, which takes so long, the other one waits for its turn.
fn first_rolls(deck: &Deck, load_time: &str, arguments: &str) {
    specs(deck, "two", load_time, "100ms");
    deck.expect(arguments, 0);
    deck.wait_until("the first one to begin", |g| is_rolling(g, "code"));
}

/// The first one is there, the other one loads for long.
fn second_rolls(deck: &Deck) {
    specs(deck, "two", "100ms", "10m");
    deck.expect("apply code chat --atomic", 0);
    deck.wait_until("the second one to begin", |g| is_done(g, "code") && is_rolling(g, "chat"));
}

fn end(deck: &Deck) -> Group {
    deck.wait_until("the end", |g| g.ended.is_some())
}

#[track_caller]
fn why(group: &Group, service: &str, word: &str) -> String {
    let (is, why) = state(group, service).words();
    assert_eq!(is, word, "{group:#?}");
    why.to_owned()
}

/// Nobody has seen a plan of it.
#[test]
fn a_spec_that_is_edited_after_the_yes_is_not_rolled_out() {
    let deck = served();
    first_rolls(&deck, "3s", "apply code chat --atomic");
    deck.spec("chat", "\"code\"", "three", "100ms");
    let group = end(&deck);
    let changed = why(&group, "chat", "FAILED");
    assert_eq!(changed, "services/chat.toml was changed since it was queued");
    assert_eq!(*state(&group, "code"), GroupState::Undone, "{group:#?}");
    // Whoever was away sees it, until the next ones begin.
    let status = || deck.expect("status", 0).stdout;
    assert!(status().contains(&changed), "{}", status());
    deck.spec("chat", "\"code\"", "three", "100ms");
    deck.expect("apply code chat --wait --timeout 2m", 0);
    assert!(!status().contains("TOGETHER"), "{}", status());
}

#[test]
fn what_is_stopped_while_it_waits_is_not_started() {
    let deck = served();
    deck.spec("late", "\"chat\"", "one", "100ms");
    first_rolls(&deck, "10s", "apply code chat");
    deck.expect("stop chat", 0);
    let group = end(&deck);
    assert!(is_done(&group, "code"), "{group:#?}");
    assert!(why(&group, "chat", "skipped").starts_with("stopped by "), "{group:#?}");
    assert!(deck.expect("status chat", 0).stdout.contains("stopped"));

    // Of what was never served nothing runs that could be stopped. Of what is atomic none may be missing.
    specs(&deck, "three", "10m", "100ms");
    deck.expect("apply code late --atomic", 0);
    deck.wait_until("the first one to begin", |g| is_rolling(g, "code"));
    deck.expect("stop late -m costly", 0);
    let group = end(&deck);
    assert!(why(&group, "late", "skipped").ends_with(": costly"), "{group:#?}");
    assert!(why(&group, "code", "FAILED").contains("late: stopped by "), "{group:#?}");
    let nothing = deck.expect("stop late", 5).stderr;
    assert!(nothing.contains("nothing of late runs"), "{nothing}");
}

#[test]
fn what_was_stopped_is_not_started_to_take_it_back() {
    let deck = served();
    second_rolls(&deck);
    deck.expect("stop code", 0);
    wait_until("the stop", LONG, || deck.expect("status code", 0).stdout.contains("stopped"));
    deck.kill_controller();
    deck.expect("rollout abort --together", 0);
    let group = end(&deck);
    assert!(why(&group, "code", "NOT undone").starts_with("stopped by "), "{group:#?}");
    assert!(deck.expect("status code", 0).stdout.contains("stopped"));
}

#[test]
fn what_was_rolled_out_since_is_not_taken_back() {
    let deck = served();
    second_rolls(&deck);
    deck.spec("code", "", "three", "100ms");
    deck.expect("apply code --wait --timeout 2m", 0);
    deck.expect("rollout abort --together", 0);
    let group = end(&deck);
    let since = why(&group, "code", "NOT undone");
    assert!(since.starts_with("r5 was rolled out since, as "), "{since}");
    let code = deck.expect("status code --output json", 0).stdout;
    let code: serde_json::Value = serde_json::from_str(&code).unwrap();
    assert_eq!(code["stable"], 5, "{code:#}");
}

#[test]
fn what_waits_is_rolled_out_alone_only_in_its_stead() {
    let deck = served();
    first_rolls(&deck, "30s", "apply code chat");
    for policy in ["", " --concurrency-policy queue"] {
        let refused = deck.expect(&format!("apply chat{policy}"), 5).stderr;
        assert!(refused.contains("waits for its turn"), "{refused}");
        assert!(refused.contains("--concurrency-policy replace"), "{refused}");
    }
    deck.expect("apply chat --concurrency-policy replace", 0);
    let group = end(&deck);
    assert!(is_done(&group, "code"), "{group:#?}");
    assert!(why(&group, "chat", "skipped").contains("rolled out since, as "), "{group:#?}");
}

/// Taken back in part only it would be neither all nor none.
#[test]
fn a_mistake_in_the_deck_can_be_mended_before_it_counts() {
    let deck = served();
    let file = deck.person.deck().join("deck.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let spoil = || std::fs::write(&file, format!("{good}\n[hosts.h")).unwrap();
    let mend = || std::fs::write(&file, &good).unwrap();
    first_rolls(&deck, "3s", "apply code chat --atomic");
    spoil();
    wait_until("the turn of the second one", LONG, || {
        deck.expect("events", 0).stdout.contains("its rollout is asked for again until")
    });
    mend();
    let group = end(&deck);
    assert!(is_done(&group, "code") && is_done(&group, "chat"), "{group:#?}");

    specs(&deck, "three", "100ms", "10m");
    deck.expect("apply code chat --atomic", 0);
    deck.wait_until("the second one to begin", |g| is_done(g, "code") && is_rolling(g, "chat"));
    spoil();
    deck.expect("rollout abort --together", 0);
    deck.wait_until("the way back", |g| !is_rolling(g, "chat"));
    std::thread::sleep(Duration::from_secs(2));
    mend();
    let group = end(&deck);
    assert_eq!(*state(&group, "code"), GroupState::Undone, "{group:#?}");
}

/// A hint that is refused when it is followed helps nobody.
#[test]
fn hints_of_what_is_under_way_can_be_followed() {
    let deck = served();
    deck.spec("code", "", "two", "10m");
    deck.expect("apply code", 0);
    let refused = deck.expect("apply code chat", 5).stderr;
    assert!(refused.contains("rollout abort code"), "{refused}");
    assert!(!refused.contains("--concurrency-policy"), "{refused}");
    deck.expect("rollout abort code", 0);
    wait_until("the way back", LONG, || deck.expect("status code", 0).stdout.contains("serving"));

    // Both are planned before either begins: what was given for one under way holds for the other.
    deck.spec("code", "", "three", "10m");
    let client = deck.client();
    let wish = || {
        client.send(Intent::Apply {
            service: "code".parse().unwrap(),
            reason: None,
            accept_outage: false,
            concurrency: Some(ConcurrencyPolicy::Replace),
            agreed: None,
        })
    };
    let (one, other) = deck.runtime.block_on(async { tokio::join!(wish(), wish()) });
    let error = one.and(other).expect_err("both are the same");
    assert!(error.message.contains("is to just this spec"), "{error:?}");
}
