//! Questions about worlds made up by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::{Value, json};

use super::*;
use crate::placement::global::read;

fn host(name: &str, gpus: u32) -> Value {
    let gpu = |i: u32| json!({"index": i, "model": "NVIDIA H100 80GB HBM3", "memory_total": "80GiB", "island": i / 4});
    json!({"name": name, "gpus": (0..gpus).map(gpu).collect::<Vec<_>>()})
}

fn service(name: &str, replicas: u32, tensor: u32) -> Value {
    json!({"name": name, "replicas": replicas, "weights_bytes": "10GiB", "one_host": true,
        "shapes": [{"tensor": tensor, "memory": "60GiB"}]})
}

fn running(service: &str, replica: u32, host: &str, gpus: &[u32]) -> Value {
    json!({"service": service, "replica": replica, "ranks": [{"host": host, "gpus": gpus}]})
}

fn world(value: &Value) -> WorldFile {
    read(&serde_json::to_string_pretty(value).unwrap(), "world").unwrap_or_else(|e| panic!("{e}"))
}

/// Four replicas, so that no island of four is whole.
fn scattered() -> WorldFile {
    world(&json!({
        "hosts": [host("a", 8), host("b", 8)],
        "services": [service("small", 4, 1)],
        "placements": [
            running("small", 0, "a", &[0]), running("small", 1, "a", &[4]),
            running("small", 2, "b", &[1]), running("small", 3, "b", &[6]),
        ],
    }))
}

fn asked(world: WorldFile, question: &WhatIf) -> WhatIfView {
    answer(world, question, &mut || 0.0, 4000, None).unwrap_or_else(|e| panic!("{e}"))
}

fn name<T: FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

#[test]
fn a_hole_is_made_by_the_fewest_moves() {
    let question = WhatIf { defrag: Some(4), ..WhatIf::default() };
    let view = asked(scattered(), &question);
    assert_eq!(view.largest_gang_before, 3);
    let hole = view.hole.unwrap();
    assert_eq!((hole.gpus, hole.restarts, hole.at.unwrap().gpus.len()), (4, 1, 4));
    // It may move within its host, where its weights are.
    assert_eq!(hole.copied, Bytes::ZERO);
    assert_eq!((view.answer.placed, view.answer.wanted), (4, 4));
    assert!(view.world.services.iter().all(|s| s.name != HOLE));
    // No island has five, but a host has; nothing has nine.
    let view = asked(scattered(), &WhatIf { defrag: Some(5), ..WhatIf::default() });
    assert_eq!(view.hole.unwrap().at.unwrap().gpus.len(), 5);
    let view = asked(scattered(), &WhatIf { defrag: Some(9), ..WhatIf::default() });
    assert_eq!((view.hole.unwrap().at, view.answer.placed), (None, 4));
    // Without a number: the largest gang of any service; there is room for one GPU as it is.
    let view = asked(scattered(), &WhatIf { defrag: Some(0), ..WhatIf::default() });
    assert_eq!((view.hole.unwrap().restarts, view.answer.moves.len()), (0, 0));
}

/// GPUs of one host, of which the first so many are joined.
fn partly_joined(name: &str, joined: u32, gpus: u32) -> Value {
    let gpu = |i: u32| {
        let island = (i < joined).then_some(0);
        json!({"index": i, "model": "L40S", "memory_total": "80GiB", "island": island})
    };
    json!({"name": name, "gpus": (0..gpus).map(gpu).collect::<Vec<_>>()})
}

/// As the last level counts: not across an island and what is beside it.
#[test]
fn a_hole_lies_in_an_island_or_beside_it() {
    let world_of = || {
        world(&json!({
            "hosts": [partly_joined("a", 2, 6)],
            "services": [service("small", 1, 1)],
            "placements": [running("small", 0, "a", &[5])],
        }))
    };
    let view = asked(world_of(), &WhatIf { defrag: Some(4), ..WhatIf::default() });
    let hole = view.hole.unwrap();
    assert_eq!((view.largest_gang_before, view.answer.largest_gang), (3, 4));
    assert_eq!((hole.restarts, hole.at.unwrap().gpus), (1, vec![2, 3, 4, 5]));
    // No such group has five, but the host has.
    let view = asked(world_of(), &WhatIf { defrag: Some(5), ..WhatIf::default() });
    assert_eq!(view.hole.unwrap().restarts, 0);
}

#[test]
fn a_hole_lies_where_fewest_moves_make_it_unless_the_gang_needs_nvlink() {
    let ask = |link: &str, gpus: u32| {
        let mut gang = service("gang", 0, 4);
        gang["link"] = json!(link);
        let world = world(&json!({
            "hosts": [partly_joined("nvlink", 4, 4), partly_joined("spare", 2, 2), partly_joined("pcie", 0, 4)],
            "services": [service("small", 1, 1), gang],
            "placements": [running("small", 0, "nvlink", &[1])],
        }));
        let hole = asked(world, &WhatIf { defrag: Some(gpus), ..WhatIf::default() }).hole.unwrap();
        (hole.at.unwrap().host, hole.restarts)
    };
    assert_eq!(ask("any", 4), ("pcie".to_owned(), 0));
    assert_eq!(ask("any", 0), ("pcie".to_owned(), 0));
    assert_eq!(ask("nvlink", 0), ("nvlink".to_owned(), 1));
}

/// A replica's GPUs are all of one model and size, so a hole's are, and so are those that the last level counts.
#[test]
fn a_hole_is_of_one_model() {
    let mut two = partly_joined("a", 0, 4);
    for at in [1, 3] {
        two["gpus"][at]["model"] = json!("A10");
    }
    let ask = |gpus: u32, more: &[Value]| {
        let hosts = [&[two.clone()], more].concat();
        let world = world(&json!({"hosts": hosts, "services": []}));
        let view = asked(world, &WhatIf { defrag: Some(gpus), ..WhatIf::default() });
        (view.largest_gang_before, view.hole.unwrap().at)
    };
    assert_eq!(ask(4, &[]), (2, None));
    assert_eq!(ask(2, &[]), (2, Some(Rank { host: "a".to_owned(), gpus: vec![0, 2] })));
    // No such group has four; of another host an island and what is beside it are as many.
    let all = Some(Rank { host: "b".to_owned(), gpus: vec![0, 1, 2, 3] });
    assert_eq!(ask(4, &[partly_joined("b", 2, 4)]), (2, all));
}

/// What nothing new may use is no place for a hole, so that it is no reason not to look at others.
#[test]
fn a_hole_is_not_looked_for_where_none_can_be() {
    let ask = |change: &dyn Fn(&mut Value)| {
        let mut value = json!({
            "hosts": [partly_joined("a", 0, 4), partly_joined("b", 2, 4)],
            "services": [service("one", 1, 1)],
        });
        change(&mut value);
        let view = asked(world(&value), &WhatIf { defrag: Some(4), ..WhatIf::default() });
        view.hole.unwrap().at.map(|at| at.host)
    };
    let on_b = Some("b".to_owned());
    let holder = json!([{"host": "a", "gpus": [0]}]);
    let runs = || {
        let mut runs = running("one", 0, "a", &[0]);
        runs["movable"] = json!(false);
        json!([runs])
    };
    assert_eq!(ask(&|w| w["cordons"] = holder.clone()), on_b);
    assert_eq!(ask(&|w| w["reservations"] = holder.clone()), on_b);
    assert_eq!(ask(&|w| w["hosts"][0]["gpus"][0]["health"] = json!("Xid 79")), on_b);
    assert_eq!(ask(&|w| w["placements"] = runs()), on_b);
    // Nor what others fill, whom nobody may move.
    assert_eq!(ask(&|w| w["hosts"][0]["gpus"][0]["memory_free"] = json!("60GiB")), on_b);
    // What may move is.
    let runs = json!([running("one", 0, "a", &[0])]);
    assert_eq!(ask(&|w| w["placements"] = runs.clone()), Some("a".to_owned()));
}

/// What its own group costs becomes nobody's.
#[test]
fn a_hole_costs_no_link_and_no_headroom() {
    for joined in ["none", "numa"] {
        let mut host = partly_joined("a", 0, 5);
        for gpu in host["gpus"].as_array_mut().unwrap() {
            gpu["memory_free"] = json!("74GiB");
            if joined == "numa" {
                gpu["numa"] = json!(0);
            }
        }
        let one = json!({"hosts": [host], "services": [service("pair", 1, 2)]});
        let view = asked(world(&one), &WhatIf { defrag: Some(3), ..WhatIf::default() });
        assert_eq!(view.hole.unwrap().at.unwrap().gpus.len(), 3);
        let level = |name: &str| view.answer.objective.iter().find(|l| l.name == name).unwrap();
        // The pair's own.
        let (link, pair) = (level("link"), if joined == "numa" { 2 } else { 4 });
        assert_eq!((link.value, link.bound, link.gap), (pair, pair, 0.0));
        let headroom = level("headroom");
        assert_eq!((headroom.value, headroom.bound, headroom.gap), (0, 0, 0.0));
    }
}

/// What moves says what for, also where it only makes room.
#[test]
fn what_moves_for_a_hole_says_so() {
    let world = world(&json!({
        "hosts": [host("a", 4), host("b", 2), host("c", 1)],
        "services": [service("pair", 1, 2), service("one", 1, 1)],
        "placements": [running("pair", 0, "a", &[0, 1]), running("one", 0, "b", &[0])],
    }));
    let view = asked(world, &WhatIf { defrag: Some(4), ..WhatIf::default() });
    assert_eq!(view.answer.moves.len(), 2);
    let why = |s: usize| view.answer.services[s].replicas[0].reasons[0].clone();
    assert_eq!(why(0), "frees the hole of 4 GPUs on a");
    assert_eq!(why(1), "makes room for what frees the hole of 4 GPUs on a");
}

#[test]
fn what_moves_for_one_gpu_says_so() {
    let mut value = json!({
        "hosts": [host("a", 1), host("b", 1)],
        "services": [service("one", 1, 1)],
        "placements": [running("one", 0, "a", &[0])],
    });
    // Enough for it, not for a hole.
    value["hosts"][1]["gpus"][0]["memory_free"] = json!("70GiB");
    let view = asked(world(&value), &WhatIf { defrag: Some(1), ..WhatIf::default() });
    let replica = &view.answer.services[0].replicas[0];
    assert_eq!(replica.reasons[0], "frees the hole of 1 GPU on a");
}

/// What a hole costs is seen beside what is now, and nothing said about it contradicts the rest.
#[test]
fn a_hole_is_counted_as_free_and_its_cost_shows() {
    let view = asked(scattered(), &WhatIf { defrag: Some(4), ..WhatIf::default() });
    let then = |name: &str| view.answer.objective.iter().find(|l| l.name == name).unwrap().value;
    let now = |name: &str| view.before.iter().find(|l| l.name == name).unwrap().value;
    assert_eq!((now("fragmentation"), now("moves"), now("placed")), (3, 0, 4));
    assert_eq!((then("fragmentation"), then("moves")), (4, 1));
    assert_eq!(view.answer.largest_gang, 4);
    // The world with the stand-in for the hole has the same answer again.
    let mut world = view.world.clone();
    world.services.extend(view.hole.as_ref().unwrap().stand_in.clone());
    let text = serde_json::to_string(&world).unwrap();
    let again = read(&text, "world").unwrap();
    let mut control = Control {
        used: &mut || 0.0,
        first: &mut || (),
        max_steps: 4000,
        explain: false,
        helpers: None,
    };
    let again = solve(&again, &mut control).unwrap();
    assert_eq!(again.services[0], view.answer.services[0]);
    let hole = &again.services[1].replicas[0].ranks[0];
    let at = view.hole.unwrap().at.unwrap();
    assert_eq!((&hole.host, &hole.gpus), (&at.host, &at.gpus));
}

#[test]
fn a_lost_host_and_new_ones() {
    let lost = WhatIf { without: vec![name("a")], ..WhatIf::default() };
    let view = asked(scattered(), &lost);
    assert_eq!((view.answer.placed, view.answer.moves.len()), (4, 2));
    // What was lost served nothing any more: moving it stops nothing.
    assert!(view.answer.moves.iter().all(|m| !m.serving));
    let all = WhatIf { without: vec![name("a"), name("b")], ..WhatIf::default() };
    assert_eq!(asked(scattered(), &all).answer.placed, 0);
    let new = WhatIf { add: vec![name("2x2xh100"), name("1xh200")], ..all };
    let view = asked(scattered(), &new);
    assert_eq!(view.answer.placed, 4);
    let added: Vec<(&str, usize, &str)> = view.world.hosts[2..]
        .iter()
        .map(|h| (h.name.as_str(), h.gpus.len(), h.gpus[0].model.as_str()))
        .collect();
    // The deck's own H100; an H200 from the table.
    let h100 = "NVIDIA H100 80GB HBM3";
    assert_eq!(added, [("new1", 2, h100), ("new2", 2, h100), ("new3", 1, "H200")]);
    for bad in ["", "h200", "0xh200", "2x", "axb", "65xh200", "9999x1xh200"] {
        assert!(NewHosts::from_str(bad).is_err(), "{bad}");
    }
    let new = |text: &str| NewHosts::from_str(text).unwrap();
    assert_eq!(new("2xrtx-4090"), NewHosts { hosts: 1, gpus: 2, model: "rtx-4090".into() });
    let unknown = WhatIf { add: vec![new("2xabacus")], ..WhatIf::default() };
    let error = answer(scattered(), &unknown, &mut || 0.0, 10, None).unwrap_err();
    assert!(error.hint().unwrap().contains("h200"), "{error}");
}

#[test]
fn only_what_is_asked_about_may_change() {
    let mut value = json!({
        "hosts": [host("a", 4), host("b", 4)],
        "services": [service("one", 2, 2), service("two", 1, 2), service("big", 1, 4)],
        "placements": [
            running("one", 0, "a", &[0, 1]), running("one", 1, "b", &[0, 1]), running("two", 0, "b", &[2, 3]),
        ],
    });
    value["services"][2]["priority"] = json!(5);
    // Something must go for the large one: of the two that is asked about, one replica of `one`, to where it is free.
    let big = WhatIf { services: vec![name("big")], ..WhatIf::default() };
    let view = asked(world(&value), &big);
    assert_eq!((view.answer.placed, view.answer.moves.len()), (3, 0));
    let both = WhatIf { services: vec![name("big"), name("one")], ..WhatIf::default() };
    let view = asked(world(&value), &both);
    assert!(view.answer.services[2].placed == 1, "{:#?}", view.answer.services);
    assert!(view.answer.moves.iter().all(|m| m.service == "one"));
    // What a lost host had may go elsewhere all the same.
    let lost = WhatIf { without: vec![name("b")], services: vec![name("one")], ..big };
    let view = asked(world(&value), &lost);
    assert_eq!((view.answer.placed, view.answer.wanted), (2, 3), "{:#?}", view.answer.services);
    assert!(view.answer.services.iter().all(|s| s.name != "big" || s.wanted == 0));
}

#[test]
fn a_place_by_hand_is_checked_by_the_same_rules() {
    let mut value = json!({
        "hosts": [host("a", 8), host("b", 8), host("c", 4)],
        "services": [service("chat", 2, 2), service("other", 1, 1)],
        "placements": [
            running("chat", 0, "a", &[0, 1]), running("chat", 1, "b", &[0, 1]), running("other", 0, "b", &[7]),
        ],
    });
    value["services"][0]["require"] = json!("host.name != 'c'");
    value["services"][0]["spread"] = json!("host");
    value["hosts"][1]["gpus"][5]["health"] = json!("Xid 79");
    let check = |host: &str, gpus: &[u32]| {
        let to =
            ReplicaTo { service: name("chat"), replica: 0, host: name(host), gpus: gpus.to_vec() };
        asked(world(&value), &WhatIf { to: Some(to), ..WhatIf::default() }).check.unwrap()
    };
    let violated = |host: &str, gpus: &[u32]| check(host, gpus).violated.unwrap_or_default();
    assert_eq!(check("a", &[2, 3]), PlaceCheck::default());
    let apart = check("a", &[3, 4]);
    assert_eq!(apart.violated, None);
    assert_eq!(apart.worse, ["link cost: 0 → 4"]);
    let together = check("b", &[2, 3]);
    assert_eq!(together.violated, None);
    assert_eq!(together.worse, ["replicas too many in a failure domain: 0 → 1"]);
    assert_eq!(violated("b", &[6, 7]), "held by other/0");
    assert!(violated("b", &[4, 5]).contains("Xid 79"), "{}", violated("b", &[4, 5]));
    assert!(
        violated("c", &[0, 1]).contains("host.name != 'c' fails"),
        "{}",
        violated("c", &[0, 1])
    );
    assert_eq!(violated("a", &[2]), "1 GPUs are marked, it needs 2");
    assert_eq!(violated("a", &[7, 8]), "a has no GPU 8");
    assert!(violated("a", &[1, 2]).contains("until it has moved"), "{}", violated("a", &[1, 2]));
    let nobody = ReplicaTo { service: name("chat"), replica: 9, host: name("a"), gpus: vec![0, 1] };
    let question = WhatIf { to: Some(nobody), ..WhatIf::default() };
    assert!(answer(world(&value), &question, &mut || 0.0, 10, None).is_err());
}

/// A host that is full or cordoned takes nothing, but is no reason to put two replicas on one host.
#[test]
fn two_replicas_on_one_host_are_seen_whatever_else_is_full() {
    let world_of = |full: bool| {
        let mut value = json!({
            "hosts": [host("h1", 8), host("h2", 8), host("h3", 8), host("h4", 8)],
            "services": [service("a", 3, 2), service("b", 1, 8)],
            "placements": [
                running("a", 0, "h1", &[0, 1]), running("a", 1, "h2", &[0, 1]), running("a", 2, "h3", &[0, 1]),
            ],
        });
        value["services"][0]["spread"] = json!("host");
        if full {
            value["placements"].as_array_mut().unwrap().push(running(
                "b",
                0,
                "h4",
                &[0, 1, 2, 3, 4, 5, 6, 7],
            ));
        } else {
            value["hosts"][3]["cordoned"] = json!(true);
        }
        world(&value)
    };
    for full in [true, false] {
        let to = |host: &str| ReplicaTo {
            service: name("a"),
            replica: 0,
            host: name(host),
            gpus: vec![6, 7],
        };
        let ask =
            |host: &str| asked(world_of(full), &WhatIf { to: Some(to(host)), ..WhatIf::default() });
        let view = ask("h2");
        let crowded = "replicas too many in a failure domain: 0 → 1";
        assert_eq!(view.check.as_ref().unwrap().worse, [crowded], "{full}: {:?}", view.check);
        let domains = |levels: &[Level]| levels.iter().find(|l| l.name == "domains").unwrap().value;
        assert_eq!((domains(&view.before), domains(&view.answer.objective)), (0, 1));
        assert!(ask("h1").check.unwrap().worse.is_empty());
    }
}

/// A small hole does not make what is free already any smaller.
#[test]
fn a_hole_leaves_what_is_free_beside_it() {
    let world = world(&json!({
        "hosts": [{"name": "h4", "gpus": (0..8).map(|i| json!({"index": i, "model": "NVIDIA H100 80GB HBM3",
            "memory_total": "80GiB", "island": 0})).collect::<Vec<_>>()}, host("h1", 4)],
        "services": [service("a", 1, 2)],
        "placements": [running("a", 0, "h1", &[0, 1])],
    }));
    let view = asked(world, &WhatIf { defrag: Some(4), ..WhatIf::default() });
    assert_eq!((view.largest_gang_before, view.answer.largest_gang), (8, 8));
    let level = view.answer.objective.iter().find(|l| l.name == "fragmentation").unwrap();
    assert!(level.value == 8 && level.bound >= 8, "{level:?}");
}

/// Hosts `g1` with one H100 of 80 GiB and `g2` with four A100 of 40; a model of 60 GiB, on one GPU or on two.
fn large_or_divided(replicas: u32, placements: &Value) -> WorldFile {
    let gpu = |i: u32, model: &str, memory: &str| json!({"index": i, "model": model, "memory_total": memory, "island": 0});
    let a100: Vec<Value> = (0..4).map(|i| gpu(i, "A100", "40GiB")).collect();
    world(&json!({
        "hosts": [{"name": "g1", "gpus": [gpu(0, "H100", "80GiB")]}, {"name": "g2", "gpus": a100}],
        "services": [{"name": "chat", "replicas": replicas, "one_host": true, "weights_bytes": "60GiB", "spread": "host",
            "shapes": [{"tensor": 1, "memory": "66GiB"}, {"tensor": 2, "memory": "35GiB"}, {"tensor": 4, "memory": "20GiB"}]}],
        "placements": placements,
    }))
}

fn tensors(view: &WhatIfView) -> Vec<(String, u32)> {
    let replicas = &view.answer.services[0].replicas;
    replicas.iter().map(|r| (r.ranks[0].host.clone(), r.shape.tensor)).collect()
}

/// As its own rollout takes the first shape by which all replicas have a place.
#[test]
fn replicas_that_the_first_shape_leaves_without_a_place_get_another() {
    let view = asked(large_or_divided(1, &json!([])), &WhatIf::default());
    assert_eq!(tensors(&view), [("g1".to_owned(), 1)]);
    let view = asked(large_or_divided(2, &json!([])), &WhatIf::default());
    assert_eq!((view.answer.placed, view.answer.wanted), (2, 2));
    assert_eq!(tensors(&view), [("g2".to_owned(), 2), ("g2".to_owned(), 2)]);
    // The world that is told has the shapes of the answer: `gpudeck place` gives it again.
    let shapes = &view.world.services[0].shapes;
    assert_eq!(shapes.iter().map(|s| s.tensor).collect::<Vec<_>>(), [2]);
    // Three are only possible with several shapes at a time.
    let view = asked(large_or_divided(3, &json!([])), &WhatIf::default());
    assert_eq!((view.answer.placed, view.answer.wanted), (3, 3));
    // More than there is room for: as many as possible.
    let view = asked(large_or_divided(9, &json!([])), &WhatIf::default());
    assert_eq!((view.answer.placed, view.answer.wanted), (3, 9));
}

/// Which shapes are possible is asked of the world that is supposed.
#[test]
fn what_is_lost_or_added_decides_on_the_shape() {
    let runs = json!([running("chat", 0, "g1", &[0])]);
    let view = asked(large_or_divided(1, &runs), &WhatIf::default());
    assert_eq!((tensors(&view), view.answer.moves.len()), (vec![("g1".to_owned(), 1)], 0));
    let lost = WhatIf { without: vec![name("g1")], ..WhatIf::default() };
    let view = asked(large_or_divided(1, &runs), &lost);
    assert_eq!(view.answer.placed, 1, "{:#?}", view.answer.services);
    assert_eq!(tensors(&view), [("g2".to_owned(), 2)]);
    // New hosts take it whole again.
    let view =
        asked(large_or_divided(1, &runs), &WhatIf { add: vec![name("1x1xh100")], ..lost.clone() });
    assert_eq!(tensors(&view), [("new1".to_owned(), 1)]);
    // A hole is as large as what the service is offered, and the service comes before it.
    let hole = WhatIf { defrag: Some(0), ..lost };
    let view = asked(large_or_divided(1, &runs), &hole);
    assert_eq!((view.answer.placed, tensors(&view).len()), (1, 1));
}
