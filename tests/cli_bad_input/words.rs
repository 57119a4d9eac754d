//! Command lines, outputs and paths.

use std::process::Command;

use serde_json::Value;

use super::{DEADLINE, Deck};
use crate::common::{Gpudeck, checkout};

#[test]
fn command_lines_that_are_not_understood() {
    let person = Gpudeck::new();
    for words in [
        &["aply", "chat"][..],
        &["apply"],
        &["apply", "chat", "--timeout", "soon"],
        &["diff", "x", "r2"],
        &["top", "--interval", "0s"],
        &["top", "-n", "0"],
    ] {
        let finished = person.run(words, DEADLINE);
        assert_eq!(finished.code(), Some(64), "{finished:#?}");
        assert!(finished.stderr.contains("error:"), "{finished:#?}");
        for json in [&["--output", "json"][..], &["--output=json"], &["-o", "json"]] {
            let finished = person.run([words, json].concat(), DEADLINE);
            assert_eq!(finished.code(), Some(64), "{finished:#?}");
            let error: Value = serde_json::from_str(finished.stderr.trim()).unwrap();
            assert_eq!(error["exit_code"], 64, "{error}");
        }
    }
    let near = person.run(["aply", "chat"], DEADLINE);
    assert!(near.stderr.contains("apply"), "{near:#?}");
}

/// deck.toml comes first, as on the connections themselves; what is not of the deck is as `ssh` has it.
#[test]
fn how_a_host_of_the_deck_is_reached() {
    let person = Gpudeck::new();
    person.run(["init"], DEADLINE).expect_success();
    let file = person.deck().join("deck.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let host = "\n[hosts.box]\naddress = \"192.0.2.7\"\nport = 2201\nuser = \"ada\"\n\
                identity_files = [\"/keys/one\"]\nknown_hosts = \"/keys/known\"\n";
    std::fs::write(&file, before + host).unwrap();
    let shown = |words: &str| person.run(words.split(' '), DEADLINE).expect_success().stdout;
    let own = shown("ssh-config box");
    for line in [
        "hostname 192.0.2.7",
        "port 2201",
        "user ada",
        "identityfile /keys/one",
        "userknownhostsfile /keys/known",
    ] {
        assert_eq!(own.lines().filter(|l| *l == line).count(), 1, "{line}: {own}");
    }
    assert_eq!(own.lines().filter(|l| l.starts_with("identityfile ")).count(), 1, "{own}");
    for plain in [shown("ssh-config box --plain"), shown("ssh-config other")] {
        assert!(plain.contains("port 22\n") && !plain.contains("/keys/"), "{plain}");
    }
}

/// `gpudeck … | head`, when head has seen enough.
#[test]
fn an_output_that_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
        .args(["model", "inspect"])
        .arg(folder.path())
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(141), &b""[..]), "{ended:?}");

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
        .args(["model", "inspect"])
        .arg(folder.path())
        .stdout(full)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && said.contains("cannot be written"), "{ended:?}");
}

#[test]
fn a_deck_within_a_deck_and_words_that_are_no_paths() {
    let deck = Deck::new();
    let nested = deck.run("init services/inner");
    assert_eq!(nested.code(), Some(5), "{nested:#?}");
    assert!(nested.stderr.contains("inside the deck"), "{nested:#?}");
    assert!(!deck.person.deck().join("services/inner").exists());
    let address = deck.run("model inspect hf://meta-llama/Llama-3.3-70B-Instruct");
    assert!(address.stderr.contains("is an address"), "{address:#?}");
    let help = deck.run("help apply");
    assert_eq!(help.code(), Some(0), "{help:#?}");
    let verify = deck.run("journal verify");
    assert!(verify.stdout.contains("nothing was journaled"), "{verify:#?}");
}

#[test]
fn the_world_of_the_documentation_is_one() {
    let text = std::fs::read_to_string(checkout().join("docs/placement.md")).unwrap();
    let begin = text.find("```json\n{\n  \"version\"").unwrap() + "```json\n".len();
    let world = &text[begin..begin + text[begin..].find("```").unwrap()];
    let deck = Deck::new();
    deck.write("world.json", world);
    let answer = deck.run("place world.json --steps 1000 --output json").expect_success().stdout;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["services"][0]["name"], "chat", "{answer}");
}
