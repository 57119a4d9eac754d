//! Worlds with odd values: what `docs/placement.md` says of them holds to the letter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::compile::{Problem, compile};
use super::*;

/// What clock tells the share of the time that is used, and so many attempts.
fn solved_in(world: &Value, used: f64) -> Answer {
    let world = read(&world.to_string(), "world").unwrap_or_else(|e| panic!("{e}"));
    let mut control = Control {
        used: &mut || used,
        first: &mut || (),
        max_steps: 3000,
        explain: true,
        helpers: None,
    };
    solve(&world, &mut control).unwrap()
}

fn solved(world: &Value) -> Answer {
    solved_in(world, 0.0)
}

fn level(answer: &Answer, name: &str) -> i64 {
    answer.objective.iter().find(|l| l.name == name).unwrap().value
}

fn gpu(index: u32, change: Value) -> Value {
    let mut gpu = json!({"index": index, "model": "H100", "memory_total": "80GiB"});
    for (key, value) in change.as_object().unwrap() {
        gpu[key] = value.clone();
    }
    gpu
}

#[test]
fn an_instance_is_in_no_island_for_a_requirement_either() {
    let gpus = [gpu(0, json!({"island": 1, "mig": "3g.40gb"})), gpu(1, json!({"island": 1}))];
    let mut world = json!({"hosts": [{"name": "h", "gpus": gpus}],
        "services": [{"name": "a", "replicas": 2, "shapes": [{}], "require": "gpu.island == 1"}]});
    let answer = solved(&world);
    assert_eq!(answer.placed, 1);
    assert_eq!(answer.services[0].replicas[0].ranks[0].gpus, [1]);
    world["services"][0]["require"] = json!("gpu.island != 1");
    assert_eq!(solved(&world).services[0].replicas[0].ranks[0].gpus, [0]);
}

#[test]
fn a_requirement_may_name_a_switch() {
    let on = |switch: u32| json!({"pcie_switch": switch});
    let world = json!({"hosts": [{"name": "h", "gpus": [gpu(0, on(0)), gpu(1, on(1)), gpu(2, json!({})), gpu(3, on(1))]}],
        "services": [{"name": "a", "replicas": 4, "shapes": [{}], "require": "gpu.pcie_switch == 1"}]});
    let answer = solved(&world);
    let replicas = answer.services[0].replicas.iter();
    let gpus: BTreeSet<u32> = replicas.flat_map(|r| r.ranks[0].gpus.clone()).collect();
    assert_eq!(gpus, BTreeSet::from([1, 3]), "one whose switch is unknown is on none");
}

#[test]
fn less_than_it_needs_is_no_headroom_whatever_share_is_asked_for() {
    let world = json!({"headroom_percent": 0,
        "hosts": [{"name": "h", "gpus": [gpu(0, json!({"memory_free": "10GiB"}))]}],
        "services": [{"name": "a", "replicas": 1, "shapes": [{"memory": "60GiB"}]}],
        "placements": [{"service": "a", "replica": 0, "memory": "10GiB",
            "ranks": [{"host": "h", "gpus": [0]}]}]});
    let answer = solved(&world);
    assert_eq!(answer.services[0].replicas[0].state, "stays");
    assert_eq!(level(&answer, "headroom"), 1);
}

#[test]
fn what_may_not_move_and_has_no_shape_any_more_is_one_stage_a_gpu() {
    let pair = |island: u32| [gpu(0, json!({"island": island})), gpu(1, json!({"island": island}))];
    let world = json!({
        "hosts": [{"name": "h1", "gpus": pair(0)}, {"name": "h2", "gpus": pair(0)}],
        "services": [{"name": "a", "replicas": 1, "shapes": [{"tensor": 2, "memory": "60GiB"}]}],
        "placements": [{"service": "a", "replica": 0, "movable": false,
            "ranks": [{"host": "h1", "gpus": [0, 1]}, {"host": "h2", "gpus": [1]}]}]});
    let answer = solved(&world);
    let one = &answer.services[0].replicas[0];
    assert_eq!((one.state.as_ref(), one.shape.tensor, one.shape.pipeline), ("stays", 1, 3));
    assert_eq!(one.ranks[0].groups, [[0], [1]]);
    assert_eq!((level(&answer, "link"), level(&answer, "headroom")), (6, 0));
}

#[test]
fn a_group_does_not_go_on_over_the_end_of_a_rank() {
    let gpus = |n: u32| (0..n).map(|i| gpu(i, json!({"island": 0}))).collect::<Vec<_>>();
    let world = json!({
        "hosts": [{"name": "h1", "gpus": gpus(3)}, {"name": "h2", "gpus": gpus(1)}],
        "services": [{"name": "a", "replicas": 1, "shapes": [{"tensor": 2, "pipeline": 2}]}],
        "placements": [{"service": "a", "replica": 0, "movable": false,
            "ranks": [{"host": "h1", "gpus": [0, 1, 2]}, {"host": "h2", "gpus": [0]}]}]});
    let answer = solved(&world);
    assert_eq!(answer.services[0].replicas[0].ranks[0].groups, [vec![0, 1], vec![2]]);
    assert_eq!(level(&answer, "link"), 6);
}

/// Four GPUs on two switches, and an island of all that is asked for.
fn on_switches(more: impl Fn(u32) -> Value) -> Vec<Value> {
    let on = |i: u32| {
        let mut gpu = gpu(i, more(i));
        (gpu["pcie_switch"], gpu["numa"]) = (json!(i % 2), json!(0));
        gpu
    };
    (0..4).map(on).collect()
}

#[test]
fn a_group_lies_behind_one_switch_and_what_asks_for_one_nowhere_else() {
    let service = |link: &str, replicas: u32| json!({"name": "a", "replicas": replicas, "link": link, "shapes": [{"tensor": 2}]});
    let mut world = json!({
        "hosts": [{"name": "h", "gpus": on_switches(|_| json!({}))}],
        "services": [service("any", 2)]});
    let ranks = |answer: &Answer| {
        let all = answer.services[0].replicas.iter().flat_map(|r| &r.ranks);
        all.map(|rank| rank.gpus.clone()).collect::<Vec<_>>()
    };
    let answer = solved(&world);
    assert_eq!((ranks(&answer), level(&answer, "link")), (vec![vec![0, 2], vec![1, 3]], 2));
    let reasons = &answer.services[0].replicas[0].reasons;
    assert!(reasons.iter().any(|r| r.contains("one PCIe switch")), "{reasons:?}");
    // One of each switch is sick: on the node two are together, on no switch.
    (world["hosts"][0]["gpus"][0]["health"], world["hosts"][0]["gpus"][3]["health"]) =
        (json!("Xid 79"), json!("Xid 79"));
    let answer = solved(&world);
    assert_eq!((ranks(&answer), level(&answer, "link")), (vec![vec![1, 2]], 2));
    world["services"] = json!([service("pcie_switch", 1)]);
    let answer = solved(&world);
    let why = "no 2 GPUs that suit it together can be used: 2 are not healthy: Xid 79";
    assert_eq!((answer.placed, answer.services[0].unplaced.as_deref()), (0, Some(why)));
    // What runs there cannot stay.
    world["placements"] =
        json!([{"service": "a", "replica": 0, "ranks": [{"host": "h", "gpus": [1, 2]}]}]);
    let answer = solved(&world);
    assert_eq!((answer.placed, answer.moves.len()), (0, 1));
    world["services"] = json!([service("numa", 1)]);
    assert_eq!(solved(&world).placed, 1);
    // Nothing is known of switches: they are on none.
    for gpu in world["hosts"][0]["gpus"].as_array_mut().unwrap() {
        (gpu["pcie_switch"], gpu["health"]) = (json!(null), json!("ok"));
    }
    world["services"] = json!([service("pcie_switch", 1)]);
    let answer = solved(&world);
    let why = "its GPUs are not joined by NVLink or on one PCIe switch, 2 needed together";
    assert_eq!((answer.placed, answer.services[0].unplaced.as_deref()), (0, Some(why)));
    // An island is nearer than a switch.
    world["hosts"][0]["gpus"][3]["island"] = json!(7);
    world["hosts"][0]["gpus"][0]["island"] = json!(7);
    let answer = solved(&world);
    assert_eq!((ranks(&answer), level(&answer, "link")), (vec![vec![0, 3]], 0));
}

/// Each cell more is more to look through: a switch makes none where no group can come to lie on it alone.
#[test]
fn switches_tell_gpus_apart_only_where_it_matters() {
    let cells = |tensor: u32, gpus: Vec<Value>| {
        let world = json!({"hosts": [{"name": "h", "gpus": gpus}],
            "services": [{"name": "a", "replicas": 1, "shapes": [{"tensor": tensor}]}]});
        let world = read(&world.to_string(), "world").unwrap();
        compile(&world, clock::Clock::none()).hosts[0].cells.len()
    };
    assert_eq!(cells(2, on_switches(|_| json!({}))), 2);
    // In one island every group is as near as can be.
    assert_eq!(cells(2, on_switches(|_| json!({"island": 0}))), 1);
    // So it is on switches within two islands, and not where both are on each switch.
    assert_eq!(cells(2, on_switches(|i| json!({"island": i % 2}))), 2);
    assert_eq!(cells(2, on_switches(|i| json!({"island": i / 2}))), 4);
    // No group of four fits on one, single GPUs do not ask.
    assert_eq!(
        (cells(4, on_switches(|_| json!({}))), cells(1, on_switches(|_| json!({})))),
        (1, 1)
    );
}

#[test]
fn a_share_of_nothing_holds_nothing() {
    let mut world = json!({"hosts": [{"name": "h", "gpus": [gpu(0, json!({}))]}],
        "services": [{"name": "a", "replicas": 1, "shapes": [{"memory": 1}],
            "memory_share": 0, "within_share": true}]});
    assert_eq!(solved(&world).placed, 0);
    world["services"][0]["within_share"] = json!(false);
    assert_eq!(solved(&world).placed, 1);
}

#[test]
fn weights_whose_copies_no_number_holds_are_refused() {
    let host = |h: usize| json!({"name": format!("h{h}"), "gpus": [gpu(0, json!({}))]});
    let service = |s: usize| json!({"name": format!("s{s}"), "replicas": 20, "shapes": [{}], "weights_bytes": 1u64 << 50});
    let world = |services: usize| {
        let hosts: Vec<_> = (0..20).map(host).collect();
        json!({"hosts": hosts, "services": (0..services).map(service).collect::<Vec<_>>()})
    };
    assert!(read(&world(51).to_string(), "world").is_ok());
    let error = read(&world(52).to_string(), "world").unwrap_err();
    assert_eq!(error.field, "services[51].weights_bytes");
}

/// Only so many hosts can be chosen as there are.
#[test]
fn a_replica_over_more_hosts_than_there_are_is_soon_given_up() {
    let host = |h: usize| json!({"name": format!("h{h}"), "gpus": [gpu(0, json!({}))]});
    // Two pairs that are counted on four GPUs of which only two are joined: it has to be looked at.
    let gpus: Vec<_> =
        (0..).zip([0, 0, 1, 2]).map(|(i, island)| gpu(i, json!({"island": island}))).collect();
    let mut hosts: Vec<_> = (0..40).map(host).collect();
    hosts.push(json!({"name": "pairs", "gpus": gpus}));
    let world = json!({"hosts": hosts, "services": [
        {"name": "a", "replicas": 2, "shapes": [{"tensor": 2}], "link": "nvlink", "hosts": ["pairs"],
            "priority": 1},
        {"name": "b", "replicas": 1, "shapes": [{"pipeline": 64}]}]});
    let answer = solved(&world);
    assert_eq!(answer.placed, 1);
}

/// Two pairs are counted on four GPUs of which only two are joined.
#[test]
fn bounds_are_for_as_many_replicas_as_have_a_place() {
    let islands = [0, 0, 1, 2];
    let gpus: Vec<_> = (0..).zip(islands).map(|(i, at)| gpu(i, json!({"island": at}))).collect();
    let service = |name: &str, bytes: u64| {
        json!({"name": name, "replicas": 1, "shapes": [{"tensor": 2}], "link": "nvlink",
            "weights_bytes": bytes})
    };
    let world = json!({"hosts": [{"name": "h", "gpus": gpus}],
        "services": [service("a", 10), service("b", 7)]});
    let problem = compile(&read(&world.to_string(), "world").unwrap(), clock::Clock::none());
    let ideal = bound::ideal(&problem);
    assert_eq!((ideal.unplaced, ideal.levels.bytes), (vec![0], 17));
    assert_eq!(bound::levels(&problem, &[1]).bytes, 7);
    assert_eq!((level(&solved(&world), "placed"), level(&solved(&world), "weights")), (1, 7));
}

/// One host on which the first division that comes parts the GPUs that are joined.
fn hasty() -> Value {
    let free = ["80GiB", "70GiB", "80GiB"];
    let gpu = |(i, free): (u32, &str)| gpu(i, json!({"island": i / 2, "memory_free": free}));
    json!({"hosts": [{"name": "h", "gpus": (0..).zip(free).map(gpu).collect::<Vec<_>>()}],
        "headroom_percent": 0,
        "services": [
            {"name": "a", "replicas": 1, "shapes": [{"memory": "75GiB"}], "priority": 1},
            {"name": "b", "replicas": 1, "shapes": [{"tensor": 2, "memory": "60GiB"}]}]})
}

/// In a hurry the first division is taken; what is told has the GPUs that it says.
#[test]
fn what_it_is_worth_is_told_of_the_gpus_that_are_told() {
    for used in [0.0, 0.95] {
        let answer = solved_in(&hasty(), used);
        assert_eq!(answer.placed, 2);
        assert_eq!(answer.services[1].replicas[0].ranks[0].gpus, [0, 1], "{used}");
        assert_eq!(level(&answer, "link"), 0, "{used}");
    }
}

/// A division that was broken off is remembered, and proves nothing.
#[test]
fn a_guess_is_known_as_one() {
    let world = read(&hasty().to_string(), "world").unwrap();
    let guesses = |used: f64| {
        let used = || used;
        let problem: Problem<'_> = compile(&world, clock::Clock::new(&used));
        problem.clock.hurry_from(0.9);
        search::Search::new(&problem).construct(&mut || false);
        problem.guessed.get()
    };
    assert!(!guesses(0.0));
    assert!(guesses(0.95));
}

#[test]
fn reasons_of_those_who_want_nothing_and_of_those_who_stand_behind() {
    let gpus: Vec<_> = (0..4).map(|i| gpu(i, json!({"island": 0}))).collect();
    let service = |name: &str, replicas: u32, tensor: u32, priority: i32| {
        json!({"name": name, "replicas": replicas, "shapes": [{"tensor": tensor}],
            "priority": priority})
    };
    let idle = json!({"hosts": [{"name": "h", "gpus": gpus}], "services": [service("a", 0, 1, 0)]});
    assert_eq!(solved(&idle).services[0].rejected[0].reason, "no replica is wanted");
    // One GPU of four is held by the higher priority: without it there is room for one more pair only.
    let world = |b: u32, c: u32| {
        let hosts = json!([{"name": "h", "gpus": gpus}]);
        json!({"hosts": hosts, "services": [service("a", 1, 1, 5), service("b", b, 3, 0), service("c", c, 4, 0)]})
    };
    let unplaced =
        |b: u32, c: u32, at: usize| solved(&world(b, c)).services[at].unplaced.clone().unwrap();
    assert_eq!(unplaced(2, 0, 1), "its GPUs are taken: 0 left, 3 needed");
    assert_eq!(
        unplaced(1, 1, 2),
        "its GPUs are taken by services of a higher priority: 0 left, 4 needed"
    );
}
