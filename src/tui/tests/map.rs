//! The map, as a person meets it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::{Value, json};

use super::text;
use crate::api::{Intent, WhatIf};
use crate::placement::{global, what_if};
use crate::tui::fixture::{calm, press, service_name, state};
use crate::tui::message::{Effect, Message, Wish};
use crate::tui::state::{Mode, State};
use crate::tui::update::update;

fn host(name: &str) -> Value {
    let gpu = |i: u32| json!({"index": i, "model": "NVIDIA H100 80GB HBM3", "memory_total": "80GiB", "island": i / 4});
    json!({"name": name, "gpus": (0..8).map(gpu).collect::<Vec<_>>()})
}

fn running(service: &str, replica: u32, host: &str, gpus: &[u32]) -> Value {
    json!({"service": service, "replica": replica, "ranks": [{"host": host, "gpus": gpus}]})
}

/// The deck of the fixture as a world: `chat` wants a third replica, `code` lies where it could.
fn world() -> global::WorldFile {
    let mut sick = host("node3");
    sick["gpus"][6]["health"] = json!("Xid 79");
    let value = json!({
        "hosts": [host("node1"), host("node2"), sick, host("node4")],
        "services": [
            {"name": "chat", "replicas": 3, "priority": 5, "weights_bytes": "140GiB", "one_host": true, "spread": "host",
                "shapes": [{"tensor": 4, "memory": "60GiB"}]},
            {"name": "code", "replicas": 3, "weights_bytes": "40GiB", "one_host": true, "spread": "host",
                "shapes": [{"tensor": 2, "memory": "38GiB"}]},
        ],
        "placements": [
            running("chat", 0, "node1", &[0, 1, 2, 3]), running("chat", 1, "node2", &[0, 1, 2, 3]),
            running("code", 0, "node1", &[4, 5]), running("code", 1, "node2", &[4, 5]),
            running("code", 2, "node4", &[1, 2]),
        ],
        "reservations": [{"host": "node3", "gpus": [0, 1], "by": "training"}],
        "cordons": [],
    });
    global::read(&value.to_string(), "world").unwrap_or_else(|e| panic!("{e}"))
}

/// Answers the newest question as the controller would.
fn answer(state: &mut State, effects: &[Effect]) -> WhatIf {
    answer_of(state, effects, world())
}

fn answer_of(state: &mut State, effects: &[Effect], world: global::WorldFile) -> WhatIf {
    let asked = effects.iter().rev().find_map(|e| match e {
        Effect::WhatIf { ticket, question } => Some((*ticket, question.clone())),
        _ => None,
    });
    let (ticket, question) = asked.unwrap_or_else(|| panic!("a question: {effects:?}"));
    let view = what_if::answer(world, &question, &mut || 0.0, 2000, None).unwrap();
    update(state, Message::WhatIf { ticket, result: Ok(Box::new(view)) });
    *question
}

fn open(size: (u16, u16)) -> State {
    let mut state = state(calm(), size);
    let effects = press(&mut state, "1m");
    answer(&mut state, &effects);
    state
}

const SIZES: [((u16, u16), &str); 2] = [((80, 24), "80x24"), ((200, 50), "200x50")];

#[test]
fn before_and_after_beside_each_other() {
    for (size, label) in SIZES {
        let state = open(size);
        insta::assert_snapshot!(format!("map_{label}"), text(&state));
    }
}

#[test]
fn what_hangs_on_different_switches_lies_apart() {
    let mut state = state(calm(), (80, 24));
    let effects = press(&mut state, "1m");
    let mut switched = world();
    for gpu in switched.hosts.iter_mut().skip(2).flat_map(|host| &mut host.gpus) {
        (gpu.island, gpu.pcie_switch) = (None, Some(gpu.index / 2));
    }
    answer_of(&mut state, &effects, switched);
    press(&mut state, "jjlll");
    let shown = text(&state);
    assert!(shown.contains("node1   a0 a0 a0 a0  b0 b0 ·  ·  "), "{shown}");
    assert!(shown.contains("node3   #  #   ·  ·   ·  ·   x  ·  "), "{shown}");
    assert!(
        shown.contains("node3 GPU 3: NVIDIA H100 80GB HBM3 80.0 GiB, PCIe switch 1"),
        "{shown}"
    );
}

#[test]
fn a_cordoned_gpu_is_not_free_in_the_map() {
    let mut state = state(calm(), (80, 24));
    let effects = press(&mut state, "1m");
    let mut closed = world();
    closed.cordons = vec![crate::placement::global::file::Cordon {
        host: "node1".to_owned(),
        gpus: Some(vec![7]),
    }];
    let dead = &mut closed.hosts[2].gpus[6];
    (dead.memory_total, dead.memory_free) = (crate::api::Bytes(1), Some(crate::api::Bytes::ZERO));
    answer_of(&mut state, &effects, closed);
    press(&mut state, "lllllll");
    let shown = text(&state);
    assert!(shown.contains("node1   a0 a0 a0 a0  b0 b0 ·  -  "), "{shown}");
    assert!(shown.contains("node1 GPU 7") && shown.contains(", cordoned"), "{shown}");
    // What says nothing of its memory has not got one byte of it.
    press(&mut state, "jjh");
    let shown = text(&state);
    assert!(shown.contains("node3 GPU 6") && shown.contains("memory not known"), "{shown}");
    assert!(!shown.contains("1 B"), "{shown}");
}

#[test]
fn a_replica_is_picked_up_checked_and_moved_as_a_wish() {
    for (size, label) in SIZES {
        let mut state = open(size);
        // `code/0` lies on GPU 4 of node1; it goes onto what is reserved on node3, and that is said.
        press(&mut state, "llll<enter>jjhhhh");
        let effects = press(&mut state, "<enter>");
        let asked = answer(&mut state, &effects).to.unwrap();
        assert_eq!((asked.host.as_str(), asked.gpus.as_slice()), ("node3", &[0, 1][..]));
        insta::assert_snapshot!(format!("map_violated_{label}"), text(&state));
        assert!(press(&mut state, "<enter>").is_empty());
        assert!(matches!(state.mode, Mode::Map(_)));

        // Two GPUs marked one by one, one of each island: it may lie there, and what it costs is said.
        let effects = press(&mut state, "jlll <right> <enter>");
        let asked = answer(&mut state, &effects).to.unwrap();
        assert_eq!((asked.host.as_str(), asked.gpus.as_slice()), ("node4", &[3, 4][..]));
        insta::assert_snapshot!(format!("map_worse_{label}"), text(&state));
        assert!(press(&mut state, "<enter>").is_empty());
        let Mode::Confirm(_) = &state.mode else { panic!("{:?}", state.mode) };
        // Enter alone cancels; the service's name makes it a wish.
        let effects = press(&mut state, "code<enter>");
        let Some(Effect::Send { intent: Wish(intent), .. }) = effects.first() else {
            panic!("{effects:?}")
        };
        let expected = Intent::Move {
            service: service_name("code"),
            replica: 0,
            host: "node4".parse().unwrap(),
            gpus: vec![3, 4],
            reason: None,
        };
        assert_eq!(*intent, expected);
    }
}

/// What is picked up is shown where it would go; Cancel leads back to the map, as it was.
#[test]
fn the_map_shows_where_it_would_go_and_cancel_leads_back() {
    let mut state = open((80, 24));
    press(&mut state, "llll<enter>jjj<right><right>");
    let shown = text(&state);
    let then = |row: &str| {
        let line = shown.lines().find(|l| l.contains(row)).unwrap().to_owned();
        line.chars().skip(36).collect::<String>()
    };
    assert!(then("node4").contains("b0 b0") && !then("node1").contains("b0"), "{shown}");
    let effects = press(&mut state, "<enter>");
    answer(&mut state, &effects);
    press(&mut state, "<enter>");
    assert!(matches!(state.mode, Mode::Confirm(_)), "{:?}", state.mode);
    press(&mut state, "<esc>");
    let Mode::Map(map) = &state.mode else { panic!("{:?}", state.mode) };
    assert_eq!(map.held.as_ref().map(|h| h.replica), Some(0));
}

#[test]
fn the_map_has_a_help_of_its_own() {
    for (size, label) in SIZES {
        let mut state = open(size);
        press(&mut state, "?");
        insta::assert_snapshot!(format!("map_help_{label}"), text(&state));
        // The key that closes the help does nothing else.
        press(&mut state, "q");
        assert!(matches!(state.mode, Mode::Map(_)) && !text(&state).contains("Keys in the map"));
    }
}

#[test]
fn holes_and_lost_hosts_are_one_key_away() {
    let mut state = open((80, 24));
    let effects = press(&mut state, "f");
    assert_eq!(answer(&mut state, &effects).defrag, Some(0));
    let effects = press(&mut state, "jw");
    let asked = answer(&mut state, &effects);
    assert_eq!(asked.without, ["node2".parse().unwrap()]);
    assert!(text(&state).contains("without node2"), "{}", text(&state));
    // Esc takes the suppositions away, then closes.
    let effects = press(&mut state, "<esc>");
    assert_eq!(answer(&mut state, &effects), WhatIf::default());
    press(&mut state, "<esc>");
    assert!(matches!(state.mode, Mode::Browse));
}

/// The letters are those of the fleet; what only starts is not said to move.
#[test]
fn the_map_speaks_as_the_fleet_does_and_a_key_that_does_nothing_says_why() {
    let mut state = open((80, 24));
    let effects = press(&mut state, "jw");
    answer(&mut state, &effects);
    let shown = text(&state);
    assert!(shown.contains("a chat") && !shown.contains("replicas move"), "{shown}");
    assert!(shown.contains("Esc back to what is"), "{shown}");
    press(&mut state, "gllllll<enter>");
    assert!(text(&state).contains("nothing to pick up"), "{}", text(&state));
    press(&mut state, "h");
    assert!(!text(&state).contains("nothing to pick up"));
}

#[test]
fn who_only_looks_picks_nothing_up() {
    let mut state = state(calm(), (80, 24));
    state.look.read_only = true;
    let effects = press(&mut state, "1m");
    answer(&mut state, &effects);
    assert!(press(&mut state, "<enter>").is_empty());
    let Mode::Map(map) = &state.mode else { panic!() };
    assert_eq!(map.held, None);
    assert!(text(&state).contains("you only look"), "{}", text(&state));
    // An answer to an older question is dropped.
    let effects = press(&mut state, "r");
    let Some(Effect::WhatIf { ticket, .. }) = effects.first() else { panic!("{effects:?}") };
    let late = crate::api::ApiError {
        kind: crate::api::ErrorKind::Internal,
        message: "late".to_owned(),
        hint: None,
    };
    update(&mut state, Message::WhatIf { ticket: ticket - 1, result: Err(late) });
    assert!(!text(&state).contains("late"));
}
