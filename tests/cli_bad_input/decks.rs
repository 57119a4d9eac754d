//! deck.toml and the specs.

use serde_json::Value;

use super::{COMMAND, DEADLINE, Deck};
use crate::common::Gpudeck;

#[test]
fn no_deck_and_a_broken_one() {
    let empty = Gpudeck::new();
    // `plan` has 0, 2 and 1 only.
    for (words, code) in
        [(&["status"][..], 8), (&["plan", "chat"], 1), (&["controller", "status"], 8)]
    {
        let finished = empty.run(words, DEADLINE);
        assert_eq!(finished.code(), Some(code), "{finished:#?}");
        assert!(finished.stderr.contains("there is no deck here"), "{finished:#?}");
        assert!(finished.stderr.contains("→ run `gpudeck init`"), "{finished:#?}");
    }
    let finished = empty.run(["status", "--deck", "/nowhere"], DEADLINE);
    assert_eq!(finished.code(), Some(8), "{finished:#?}");
    assert!(finished.stderr.contains("/nowhere"), "{finished:#?}");
    let finished = empty.run(
        [std::ffi::OsStr::new("hosts"), "--deck".as_ref(), empty.home().as_os_str()],
        DEADLINE,
    );
    assert_eq!(finished.code(), Some(8), "{finished:#?}");
    assert!(finished.stderr.contains("there is no deck in"), "{finished:#?}");
    assert!(finished.stderr.contains("→ `gpudeck init "), "{finished:#?}");
    // The screen is never opened without a terminal.
    let finished = empty.run::<&str>([], DEADLINE);
    assert_eq!(finished.code(), Some(1), "{finished:#?}");
    assert!(finished.stderr.contains("needs a terminal"), "{finished:#?}");

    let deck = Deck::new();
    deck.write("deck.toml", &deck.deck_toml().replace("transport", "trnsport"));
    deck.refused("status", 1, &["deck.toml, line 5", "trnsport"], &["`transport`"]);
    deck.write("deck.toml", "id = \n");
    let finished = deck.run("status");
    assert_eq!(finished.code(), Some(1), "{finished:#?}");
    assert!(finished.stderr.contains("deck.toml, line 1"), "{finished:#?}");
    // No controller was begun on it, and the mended deck is good at once.
    assert!(deck.traces.processes().is_empty(), "{:?}", deck.traces.processes());
    deck.write("deck.toml", &deck.deck_toml());
    deck.run("status").expect_success();
}

/// What runs can be seen and steered whatever somebody has just typed into deck.toml.
#[test]
fn a_mistake_in_the_deck_locks_nobody_out() {
    let deck = Deck::new();
    deck.write("services/chat.toml", COMMAND);
    deck.run("apply chat --wait --timeout 60s").expect_success();
    let good = deck.deck_toml();
    deck.write("deck.toml", &format!("{good}typo = 1\n"));
    for words in
        ["status", "rollout status chat", "journal", "audit", "controller status", "events"]
    {
        let said = deck.run(words);
        assert_eq!(said.code(), Some(0), "{words}: {said:#?}");
    }
    let warned = deck.run("status");
    assert!(warned.stderr.contains("typo") && warned.stderr.contains("as it was"), "{warned:#?}");
    deck.run("stop chat --yes").expect_success();
    deck.write("deck.toml", &good);
    // Without a controller there is no deck as it was.
    deck.run("controller stop").expect_success();
    deck.write("deck.toml", &format!("{good}typo = 1\n"));
    let refused = deck.run("status");
    assert_eq!(refused.code(), Some(1), "{refused:#?}");
    assert!(refused.stderr.contains("typo"), "{refused:#?}");
    deck.write("deck.toml", &good);
}

#[test]
fn specs_with_mistakes() {
    let deck = Deck::new();
    deck.write("services/chat.toml", &COMMAND.replace("memory =", "memry ="));
    for verb in ["plan", "apply"] {
        deck.refused(
            &format!("{verb} chat"),
            1,
            &["services/chat.toml, line 5", "memry"],
            &["`memory`"],
        );
    }
    deck.nothing_was_done("chat");
    let status = deck.status("chat");
    assert!(status["trouble"].as_str().unwrap().contains("memry"), "{status:#}");
    // What is asked of all leaves it out, and says so.
    deck.refused("plan chat --explain", 1, &["services/chat.toml, line 5"], &["`memory`"]);
    let all = deck.run("plan --output json");
    let all: Value = serde_json::from_str(&all.stdout).unwrap();
    assert!(all["left_out"]["chat"].as_str().unwrap_or_default().contains("memry"), "{all:#}");

    // A service that is not there: the nearest one is named, whatever is asked of it.
    deck.write("services/chat.toml", COMMAND);
    for verb in ["plan", "apply", "status", "history", "stop", "rollout pause", "rollout status"] {
        let code = if verb == "plan" { 1 } else { 8 };
        deck.refused(&format!("{verb} chta"), code, &["no service chta"], &["`chat`"]);
    }
    deck.refused("logs chat/0/0", 8, &["chat has no rank 0/0"], &["gpudeck status"]);
    // Nor is it as if there were nothing of it.
    for words in ["journal --service chta", "drift chta", "blame chta", "logs chta/0/0 --previous"]
    {
        deck.refused(words, 8, &["no service chta"], &["`chat`"]);
    }
    deck.run("journal --service chat").expect_success();
    deck.refused("rollout pause nothing", 8, &["no service nothing"], &["chat"]);

    // A host that is not in the deck.
    deck.write("services/chat.toml", &format!("{COMMAND}[placement]\nhosts = [\"heer\"]\n"));
    deck.refused("apply chat", 1, &["services/chat.toml", "heer"], &["`here`"]);
    deck.nothing_was_done("chat");

    // A gateway that is not in the deck, or on a host that is not.
    deck.write("services/chat.toml", &format!("gateway = \"mian\"\n{COMMAND}"));
    deck.write(
        "deck.toml",
        &format!(
            "{}\n[gateways.main]\nhost = \"here\"\nsocket = \"/nowhere.sock\"\n",
            deck.deck_toml()
        ),
    );
    deck.refused("apply chat", 1, &["services/chat.toml", "mian"], &["`main`"]);
    deck.nothing_was_done("chat");
    deck.write(
        "deck.toml",
        &format!(
            "{}\n[gateways.main]\nhost = \"heer\"\nsocket = \"/nowhere.sock\"\n",
            deck.deck_toml()
        ),
    );
    for verb in ["plan", "apply"] {
        deck.refused(&format!("{verb} chat"), 1, &["heer"], &["here"]);
    }
}
