//! What decks note of a release: its outcome, its memory.

use gpudeck::base::ReleaseNumber;
use gpudeck::revision::{DeckRepo, RevisionError};
use gpudeck::rollout::Outcome;

use super::{chat, shared};

fn memory(context: u64) -> gpudeck::model::Observation {
    serde_json::from_value(serde_json::json!({
        "architecture": "LlamaForCausalLM", "weight_bytes": 1, "engine": "vllm", "device": "cpu",
        "tensor": 1, "pipeline": 1, "context": context,
    }))
    .unwrap()
}

/// What each of two decks wrote of a release is kept, here and at the remote, whoever sends it first.
pub fn notes_are_joined(first: &DeckRepo, second: &DeckRepo) {
    let newest = ReleaseNumber(first.next_release().unwrap().0 - 1);
    let release = first.release(newest).unwrap().unwrap();
    let told = |deck: &DeckRepo| {
        let history = deck.history(&chat(), 1).unwrap();
        (history[0].outcome.clone(), history[0].memory.len())
    };
    first.add_memory(&release, &memory(1)).unwrap();
    first.push(None).unwrap();
    second.fetch(None).unwrap();
    assert_eq!(told(second), (None, 1));
    first.set_outcome(&release, &Outcome::Completed).unwrap();
    first.push(None).unwrap();
    second.fetch(None).unwrap();
    assert_eq!(told(second), (Some(Outcome::Completed), 1), "a note that was known is taken anew");

    // Who stopped it is kept with whatever the other one notes meanwhile.
    let stop = gpudeck::rollout::Stop {
        release: newest,
        at: gpudeck::base::Timestamp(7),
        by: "ada".to_owned(),
        reason: Some("too costly".to_owned()),
    };
    second.set_stop(&release, &stop).unwrap();
    second.push(None).unwrap();

    // Both write before they have heard of each other.
    let failed = Outcome::Failed { why: "x".to_owned() };
    first.set_outcome(&release, &failed).unwrap();
    first.push(None).unwrap();
    second.add_memory(&release, &memory(2)).unwrap();
    second.push(None).unwrap();
    assert_eq!(told(second), (Some(failed.clone()), 2));
    first.add_memory(&release, &memory(3)).unwrap();
    first.push(None).unwrap();
    assert_eq!(told(first), (Some(failed.clone()), 3));
    second.push(None).unwrap();
    assert_eq!(told(second), (Some(failed.clone()), 3));
    first.fetch(None).unwrap();
    assert_eq!(told(first), (Some(failed), 3));
    for deck in [first, second] {
        assert_eq!(deck.history(&chat(), 1).unwrap()[0].stop.as_ref(), Some(&stop));
    }
}

#[test]
fn what_two_decks_note_of_a_release_is_joined() {
    let (_dir, first, second) = shared();
    notes_are_joined(&first, &second);
}

/// Two decks that send at the same moment, again and again, lose nothing.
#[test]
fn notes_sent_at_the_same_moment_are_all_there() {
    let (dir, first, second) = shared();
    let r1 = first.release(ReleaseNumber(1)).unwrap().unwrap();
    drop((first, second));
    let send = |name: &str, from: u64| {
        let (path, r1) = (dir.path().join(name), r1.clone());
        std::thread::spawn(move || {
            let deck = DeckRepo::open(&path).unwrap();
            for n in from..from + 4 {
                deck.add_memory(&r1, &memory(n)).unwrap();
                match deck.share(None) {
                    Ok(_) | Err(RevisionError::Outrun { .. } | RevisionError::Locked { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        })
    };
    let both = [send("first", 1), send("second", 11)];
    for thread in both {
        thread.join().unwrap();
    }
    for name in ["first", "second", "first"] {
        DeckRepo::open(&dir.path().join(name)).unwrap().push(None).unwrap();
    }
    for name in ["first", "second"] {
        let deck = DeckRepo::open(&dir.path().join(name)).unwrap();
        assert_eq!(deck.history(&chat(), 1).unwrap()[0].memory.len(), 8, "{name}");
    }
}
