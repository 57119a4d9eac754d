//! Every refusal says what to do next, for people and for programs.

use serde_json::Value;

use super::{COMMAND, Deck};

impl Deck {
    /// The command does not do what was asked, and says what to do instead.
    #[track_caller]
    fn has_next_step(&self, words: &str) {
        let finished = self.run(words);
        assert!(!matches!(finished.code(), Some(0) | None), "{words}: {finished:#?}");
        assert!(finished.stderr.contains("\n  → "), "{words}: no next step: {finished:#?}");
        let json = self.run(&format!("{words} --output json"));
        let error = json.stderr.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let error = error.unwrap_or_else(|| panic!("{words}: {json:#?}"));
        assert!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{words}: {error}");
    }
}

#[test]
fn every_refusal_has_a_next_step() {
    let deck = Deck::new();
    deck.write("services/chat.toml", COMMAND);
    // Nothing was ever rolled out.
    for verb in
        ["rollout cancel-queued", "rollout retry", "rollout undo", "rollout pause", "stop --yes"]
    {
        deck.refused(&format!("{verb} chat"), 5, &["chat"], &["gpudeck"]);
    }
    deck.run("apply chat --wait --timeout 60s").expect_success();
    // Nothing is under way.
    for verb in [
        "rollout cancel-queued",
        "rollout pause",
        "rollout resume",
        "rollout promote",
        "rollout abort",
        "rollout skip --reason x",
        "rollout retry",
        "rollout undo",
    ] {
        deck.refused(&format!("{verb} chat"), 5, &["chat"], &["gpudeck"]);
    }
    // What is not there.
    for words in [
        "rollout undo chat --to r9",
        "rollout pause --together",
        "rollout abort --together",
        "show r9",
        "diff r1 r9",
        "logs chat/9/9",
        "logs chat/0/0 --previous",
        "logs nonsense/x",
        "history nosuch",
        "blame nosuch",
        "stop nosuch --yes",
        "apply nosuch chat",
        "gateway config nosuch",
        "cordon nosuch",
        "cordon here/7",
        "uncordon nosuch",
        "drain nosuch --yes",
        "reconnect nosuch",
        "doctor nosuch",
        "top nosuch -n 1",
        "hosts upgrade --run true --hosts nosuch --yes",
        "plan --without nosuch",
        "move chat 0 nosuch 0 --yes",
        "move chat 9 here 0 --yes",
        "answer 99 yes",
        "deck push",
        "deck fetch nosuch",
        "controller take-over --force",
        "controller take-over --force --confirm another",
        "apply chat chat --concurrency-policy queue",
        "model inspect /nowhere",
        "place /nowhere.json",
        "place deck.toml",
    ] {
        deck.has_next_step(words);
    }
    // Mistakes in a spec that no key is the nearest of.
    for (line, next) in [
        ("replicas = 0", "write 1 or more"),
        ("replicas = \"two\"", "docs/deck.md"),
        ("replicas = ", "docs/deck.md"),
        ("context = -1", "docs/deck.md"),
    ] {
        deck.write("services/code.toml", &format!("{line}\n{COMMAND}"));
        deck.refused("plan code", 1, &["services/code.toml, line 1"], &[next]);
    }
    std::fs::remove_file(deck.person.deck().join("services/code.toml")).unwrap();
    deck.run("stop chat --yes").expect_success();
}

/// A script can wait for a host to be well.
#[test]
fn a_doctor_ends_as_its_worst_check() {
    let deck = Deck::new();
    let well = deck.run("doctor here");
    assert_eq!(well.code(), Some(0), "{well:#?}");
    let scenario = deck.person.home().join("scenario.json");
    std::fs::write(&scenario, r#"{ "hang": true, "gpus": [] }"#).unwrap();
    let deck_toml = deck.deck_toml().replace(
        "agent_env = { ",
        &format!("agent_env = {{ GPUDECK_SCENARIO = \"{}\", ", scenario.display()),
    );
    deck.write("deck.toml", &deck_toml);
    let is_hung = || deck.run("hosts").stdout.contains("DRIVER HUNG");
    crate::common::wait_until("the driver to hang", super::DEADLINE, is_hung);
    let ill = deck.run("doctor here");
    assert_eq!(ill.code(), Some(1), "{ill:#?}");
    assert!(ill.stdout.contains("BAD   driver"), "{ill:#?}");
    assert!(ill.stderr.contains("one thing is wrong with here\n  → "), "{ill:#?}");
}

/// A clone has the commits, and not how their rollouts ended.
#[test]
fn an_undo_that_does_not_know_how_releases_ended_says_where_that_is() {
    let deck = Deck::new();
    deck.write("services/chat.toml", COMMAND);
    deck.run("apply chat --wait --timeout 60s").expect_success();
    deck.write("services/chat.toml", &format!("{COMMAND}env = {{ A = \"b\" }}\n"));
    deck.run("apply chat --accept-outage --wait --timeout 60s").expect_success();
    // A controller that begins would note again what its journal knows.
    let repo = git2::Repository::open(deck.person.deck()).unwrap();
    repo.find_reference("refs/notes/gpudeck").unwrap().delete().unwrap();
    deck.refused(
        "rollout undo chat",
        5,
        &["no earlier release that is known to have been stable"],
        &["`gpudeck deck fetch`", "`--to`"],
    );
    deck.run("rollout undo chat --to r1 --accept-outage --wait --timeout 60s").expect_success();
    deck.run("stop chat --yes").expect_success();
}
