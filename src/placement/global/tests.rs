//! Worlds made up by hand. Random ones are compared with CP-SAT in `tests/placement_oracle`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::{Value, json};

use super::*;

fn host(name: &str, rack: &str, gpus: u32, island: u32) -> Value {
    let gpu = |i: u32| {
        json!({"index": i, "uuid": format!("{name}-{i}"), "model": "H100", "memory_total": "80GiB",
            "island": i / island, "numa": i * 2 / gpus})
    };
    json!({"name": name, "rack": rack, "gpus": (0..gpus).map(gpu).collect::<Vec<_>>()})
}

fn service(name: &str, replicas: u32, tensor: u32, pipeline: u32) -> Value {
    json!({"name": name, "replicas": replicas,
        "shapes": [{"tensor": tensor, "pipeline": pipeline, "memory": "60GiB"}]})
}

fn with(mut value: Value, key: &str, new: Value) -> Value {
    value[key] = new;
    value
}

pub(super) fn solved(world: &Value) -> Answer {
    let text = serde_json::to_string_pretty(world).unwrap();
    let world = read(&text, "world").unwrap_or_else(|e| panic!("{e}"));
    let mut firsts = 0;
    let mut control = Control {
        used: &mut || 0.0,
        first: &mut || firsts += 1,
        max_steps: 5000,
        explain: true,
        helpers: None,
    };
    let answer = solve(&world, &mut control).unwrap();
    assert_eq!(firsts, 1);
    answer
}

/// `name/replica state host[gpus]`, a line each.
fn shown(answer: &Answer) -> String {
    let mut lines = Vec::new();
    for s in &answer.services {
        for r in &s.replicas {
            let ranks: Vec<String> =
                r.ranks.iter().map(|rank| format!("{}{:?}", rank.host, rank.gpus)).collect();
            lines.push(format!("{}/{} {} {}", s.name, r.replica, r.state, ranks.join(" ")));
        }
    }
    lines.join("\n")
}

fn level(answer: &Answer, name: &str) -> i64 {
    answer.objective.iter().find(|l| l.name == name).unwrap().value
}

#[test]
fn gangs_lie_in_islands_and_stages_on_hosts_of_a_rack() {
    let world = json!({
        "hosts": [host("a", "r1", 8, 8), host("b", "r2", 8, 4), host("c", "r1", 8, 8)],
        "services": [service("big", 1, 8, 2), service("small", 2, 4, 1)],
    });
    let answer = solved(&world);
    assert!(answer.proven_optimal, "{:?}", answer.objective);
    assert_eq!(
        shown(&answer),
        "big/0 starts a[0, 1, 2, 3, 4, 5, 6, 7] c[0, 1, 2, 3, 4, 5, 6, 7]\n\
         small/0 starts b[0, 1, 2, 3]\nsmall/1 starts b[4, 5, 6, 7]"
    );
    assert_eq!(level(&answer, "link"), 6);
    assert_eq!(answer.services[0].replicas[0].ranks[1].groups.len(), 1);
    assert_eq!(answer.services[0].replicas[0].ranks[1].uuids[0], "c-0");
}

#[test]
fn a_higher_priority_takes_the_place_and_what_runs_is_moved_rather_than_lost() {
    let running = |service: &str, replica: u32, host: &str, gpus: &[u32]| json!({"service": service, "replica": replica, "ranks": [{"host": host, "gpus": gpus}]});
    let world = json!({
        "hosts": [host("a", "r", 4, 4), host("b", "r", 4, 4)],
        "services": [service("low", 3, 2, 1), with(service("high", 1, 4, 1), "priority", json!(5))],
        "placements": [running("low", 0, "a", &[0, 1]), running("low", 1, "b", &[2, 3])],
    });
    let answer = solved(&world);
    // One of the two moves beside the other; the third has no place.
    assert_eq!((answer.placed, level(&answer, "moves")), (3, 1), "{}", shown(&answer));
    assert_eq!(answer.moves.len(), 1);
    assert!(answer.moves[0].serving && !answer.moves[0].to.is_empty());
    let low = &answer.services[0];
    let why = low.unplaced.as_deref().unwrap();
    assert!(why.starts_with("its GPUs are taken"), "{why}");
    assert!(answer.proven_optimal);
    // It may not be moved: then the higher one has to wait.
    let fixed = with(
        world,
        "services",
        json!([
            with(service("low", 2, 2, 1), "movable", json!(false)),
            with(service("high", 1, 4, 1), "priority", json!(5)),
        ]),
    );
    let answer = solved(&fixed);
    assert_eq!(level(&answer, "moves"), 0);
    assert_eq!(answer.services[1].placed, 0);
    assert_eq!(
        answer.services[1].unplaced.as_deref(),
        Some(
            "2 GPUs can be used, 4 needed together: 2 are held by low/1, which stays where it is (1 of 2 hosts)"
        )
    );
}

#[test]
fn one_reason_for_each_host_that_was_passed_over() {
    let mut small = host("small", "r1", 8, 8);
    for gpu in small["gpus"].as_array_mut().unwrap() {
        gpu["memory_total"] = json!("40GiB");
    }
    let mut sick = host("sick", "r1", 1, 1);
    sick["gpus"][0]["health"] = json!("Xid 79");
    let chat = with(service("chat", 1, 2, 1), "require", json!("host.rack != 'r9'"));
    let chat = with(chat, "weights_bytes", json!("10GiB"));
    let chat = with(chat, "weights_on", json!(["good"]));
    let world = json!({
        "hosts": [host("good", "r1", 8, 8), host("other", "r1", 8, 8), small, sick, host("far", "r9", 8, 8),
            with(host("down", "r1", 8, 8), "up", json!(false)), host("full", "r1", 8, 8)],
        "services": [chat],
        "reservations": [{"host": "full", "by": "alice"}],
    });
    let answer = solved(&world);
    assert_eq!(shown(&answer), "chat/0 starts good[0, 1]");
    let mut why: Vec<String> = answer.services[0]
        .rejected
        .iter()
        .map(|r| format!("{}: {}", r.hosts.join(" "), r.reason))
        .collect();
    why.sort();
    assert_eq!(
        why,
        [
            "down: not reached",
            "far: host.rack != 'r9' fails: host.rack is 'r9'",
            "full: reserved by alice",
            "other: 10.0 GiB more to copy",
            "sick: not healthy: Xid 79",
            "small: its GPUs have 40.0 GiB, 60.0 GiB needed",
        ]
    );
}

#[test]
fn kv_heads_beyond_the_degree_are_replicated_and_heads_must_divide() {
    let chat = json!({"name": "chat", "replicas": 1, "heads": 24, "kv_heads": 2, "kv_bytes": "40GiB",
        "shapes": [{"tensor": 5, "memory": "1GiB"}, {"tensor": 4, "memory": "50GiB"}]});
    let answer = solved(&json!({"hosts": [host("a", "r", 8, 8)], "services": [chat]}));
    let replica = &answer.services[0].replicas[0];
    // 24 heads do not divide by 5; on 4 GPUs each of two KV heads lies twice: 50 + 40 / 2.
    assert_eq!(replica.shape.tensor, 4);
    assert_eq!(replica.memory_per_gpu, crate::base::Bytes::gib(70));
    let odd = json!({"name": "chat", "replicas": 1, "heads": 24, "shapes": [{"tensor": 5}]});
    let answer = solved(&json!({"hosts": [host("a", "r", 8, 8)], "services": [odd]}));
    let why = answer.services[0].unplaced.as_deref();
    assert_eq!(why, Some("24 attention heads cannot be divided by 5"));
}

#[test]
fn the_same_world_has_the_same_answer() {
    let world = json!({
        "hosts": (0..12).map(|i| host(&format!("h{i}"), &format!("r{}", i / 4), 8, if i % 3 == 0 { 4 } else { 8 })).collect::<Vec<_>>(),
        "services": (0..30).map(|i| {
            let s = service(&format!("s{i}"), 1 + i % 3, [1, 2, 4, 3][i as usize % 4], 1);
            with(with(s, "weights_bytes", json!("9GiB")), "weights_on", json!([format!("h{}", i % 12)]))
        }).collect::<Vec<_>>(),
    });
    let answer = solved(&world);
    assert_eq!(answer, solved(&world));
    assert_eq!(level(&answer, "domains"), 0);
}

#[test]
fn nothing_at_all_is_a_world_too() {
    let answer = solved(&json!({"hosts": [], "services": []}));
    assert!(answer.proven_optimal);
    let answer = solved(&json!({"hosts": [], "services": [service("chat", 2, 1, 1)]}));
    assert_eq!((answer.placed, answer.wanted), (0, 2));
    let answer = solved(
        &json!({"hosts": [{"name": "a", "gpus": []}], "services": [service("chat", 0, 1, 1)]}),
    );
    assert!(answer.proven_optimal);
    assert_eq!(answer.largest_gang, 0);
}

#[test]
fn replicas_of_an_earlier_release_give_way_only_where_they_must() {
    let old = |replica: u32, host: &str, gpus: &[u32]| json!({"service": "chat", "replica": replica, "outgoing": true, "ranks": [{"host": host, "gpus": gpus}]});
    let world = json!({
        "hosts": [host("a", "r", 4, 4), host("b", "r", 4, 4)],
        "services": [service("chat", 2, 2, 1)],
        "placements": [old(0, "a", &[0, 1]), old(1, "b", &[0, 1])],
    });
    // There is room beside both.
    let answer = solved(&world);
    assert_eq!(shown(&answer), "chat/0 starts a[2, 3]\nchat/1 starts b[2, 3]");
    assert_eq!(level(&answer, "in_place"), 0);
    assert_eq!((answer.wanted, answer.placed), (2, 2));
    assert!(answer.proven_optimal, "{:?}", answer.objective);
    // One more than there is room for: one goes, and only one.
    let three = with(world.clone(), "services", json!([service("chat", 3, 2, 1)]));
    let answer = solved(&three);
    assert_eq!((answer.placed, level(&answer, "in_place")), (3, 1), "{}", shown(&answer));
    assert!(answer.proven_optimal, "{:?}", answer.objective);
    // A gang that needs a whole host.
    let whole = with(world, "services", json!([service("chat", 2, 4, 1)]));
    let answer = solved(&whole);
    assert_eq!((answer.placed, level(&answer, "in_place")), (2, 2), "{}", shown(&answer));
    // A link is for life, an earlier release is not: it goes rather than that the ranks lie apart.
    let islands = json!({
        "hosts": [host("a", "r", 4, 2)],
        "services": [service("chat", 1, 2, 1)],
        "placements": [old(0, "a", &[0]), old(1, "a", &[2])],
    });
    let answer = solved(&islands);
    assert_eq!((level(&answer, "link"), level(&answer, "in_place")), (0, 1), "{}", shown(&answer));
}

/// One that cannot stay, because its host is lost or a GPU of it is not healthy, stands in nobody's way.
#[test]
fn a_lost_replica_of_an_earlier_release_is_not_counted_as_wanting_a_place() {
    let old = json!({"service": "chat", "replica": 0, "outgoing": true, "ranks": [{"host": "lost", "gpus": [0]}]});
    let mut small = host("small", "r", 2, 2);
    for gpu in small["gpus"].as_array_mut().unwrap() {
        gpu["memory_total"] = json!("40GiB");
    }
    let world = |lost: Value| {
        json!({
            "hosts": [lost, host("a", "r", 3, 3), host("b", "r", 1, 1), small],
            "services": [service("chat", 1, 1, 2), service("pair", 1, 2, 1)],
            "placements": [old],
        })
    };
    let mut sick = host("lost", "r", 1, 1);
    sick["gpus"][0]["health"] = json!("Xid 79");
    for lost in [with(host("lost", "r", 1, 1), "up", json!(false)), sick] {
        let answer = solved(&world(lost));
        // Both fit once the stages lie on two hosts; at first they are put on one.
        assert_eq!((answer.placed, answer.wanted), (2, 2), "{}", shown(&answer));
        assert!(answer.proven_optimal, "{:?}", answer.objective);
    }
}

/// Two shapes of the same degrees: what it says it takes is given back when it goes.
#[test]
fn a_running_replica_has_its_own_shape_and_not_the_first_like_it() {
    let mut one = host("a", "r", 1, 1);
    one["gpus"][0]["memory_free"] = json!("2GiB");
    let shapes = json!([{"tensor": 1, "memory": "40GiB"}, {"tensor": 1, "memory": "78GiB"}]);
    let large = json!([{"tensor": 1, "memory": "80GiB"}]);
    let world = json!({
        "hosts": [one],
        "services": [with(service("small", 1, 1, 1), "shapes", shapes),
            with(with(service("large", 1, 1, 1), "shapes", large), "priority", json!(9))],
        "placements": [{"service": "small", "replica": 0, "shape": {"tensor": 1, "memory": "78GiB"},
            "ranks": [{"host": "a", "gpus": [0]}]}],
    });
    assert_eq!(shown(&solved(&world)), "large/0 starts a[0]");
    // A shape that the service has no more is the one of these degrees.
    let mut other = world;
    other["placements"][0]["shape"]["memory"] = json!("60GiB");
    assert_eq!(shown(&solved(&other)), "small/0 stays a[0]");
}

#[test]
fn many_replicas_take_over_a_full_fleet() {
    let count = 60u32;
    let old = |i: u32| json!({"service": "chat", "replica": i, "outgoing": true, "ranks": [{"host": format!("h{i}"), "gpus": [0, 1, 2, 3]}]});
    let world = json!({
        "hosts": (0..count).map(|i| host(&format!("h{i}"), "r", 4, 4)).collect::<Vec<_>>(),
        "services": [service("chat", 20, 4, 1)],
        "placements": (0..count).map(old).collect::<Vec<_>>(),
    });
    let answer = solved(&world);
    assert_eq!((answer.placed, level(&answer, "in_place")), (20, 20));
}

#[test]
fn packed_replicas_lie_on_as_few_hosts_as_can_be() {
    let mut half = host("half", "r", 4, 4);
    half["gpus"].as_array_mut().unwrap().truncate(1);
    let world = json!({
        "hosts": [half, host("a", "r", 4, 4), host("b", "r", 4, 4)],
        "services": [with(service("chat", 4, 1, 1), "spread", json!("pack"))],
    });
    let answer = solved(&world);
    assert_eq!(level(&answer, "domains"), 0, "{}", shown(&answer));
    let more =
        with(world, "services", json!([with(service("chat", 6, 1, 1), "spread", json!("pack"))]));
    let answer = solved(&more);
    assert_eq!((answer.placed, level(&answer, "domains")), (6, 1), "{}", shown(&answer));
    let why = &answer.services[0].rejected[0];
    assert_eq!(
        (why.reason.as_str(), why.hosts[0].as_str()),
        ("its replicas would lie on more hosts", "half")
    );
}

#[test]
fn of_equal_places_the_smallest_gpus_and_racks_before_hosts() {
    let mut small = host("z-small", "r1", 2, 2);
    for gpu in small["gpus"].as_array_mut().unwrap() {
        gpu["memory_total"] = json!("70GiB");
        gpu["model"] = json!("small");
    }
    let world = json!({
        "hosts": [host("a", "r1", 2, 2), small],
        "services": [service("chat", 1, 2, 1)],
    });
    assert_eq!(shown(&solved(&world)), "chat/0 starts z-small[0, 1]");
    // Two racks, four hosts, four replicas: two in each rack, and no two on one host.
    let world = json!({
        "hosts": [host("a", "r1", 4, 4), host("b", "r1", 4, 4), host("c", "r2", 4, 4), host("d", "r2", 4, 4)],
        "services": [with(with(service("chat", 4, 1, 1), "spread", json!("rack")), "one_host", json!(true))],
    });
    let answer = solved(&world);
    let hosts: std::collections::BTreeSet<&str> =
        answer.services[0].replicas.iter().map(|r| r.ranks[0].host.as_str()).collect();
    assert_eq!(hosts.len(), 4, "{}", shown(&answer));
}

#[test]
fn a_replica_that_must_be_on_one_host_is_not_divided() {
    let wide = service("chat", 1, 4, 2);
    let hosts = json!([host("a", "r", 4, 4), host("b", "r", 4, 4)]);
    let answer = solved(&json!({"hosts": hosts, "services": [wide]}));
    assert_eq!(answer.services[0].replicas[0].ranks.len(), 2);
    let one = with(wide, "one_host", json!(true));
    assert_eq!(solved(&json!({"hosts": hosts, "services": [one]})).placed, 0);
}

/// Where no whole replica fits is no failure domain for replicas that must not be divided.
#[test]
fn a_host_is_usable_where_a_part_that_may_be_fits() {
    let hosts = json!([host("a", "r", 8, 8), host("b", "r", 2, 2)]);
    let one = |one_host: bool| {
        let s = with(
            with(service("chat", 2, 2, 2), "one_host", json!(one_host)),
            "spread",
            json!("host"),
        );
        level(&solved(&json!({"hosts": hosts, "services": [s]})), "domains")
    };
    // Divided, both hosts are domains of one replica each, and the second replica crowds the first host.
    assert_eq!((one(true), one(false)), (0, 1));
}

/// A driver never says the same twice: GPUs are told apart by what fits on them, not by their last MiB.
#[test]
fn free_memory_tells_gpus_apart_only_where_it_matters() {
    let hosts: Vec<Value> = (0..4).map(|h| host(&format!("h{h}"), "r", 8, 8)).collect();
    let services: Vec<Value> = (0..6).map(|s| service(&format!("s{s}"), 1, 4, 1)).collect();
    let even = json!({"hosts": hosts, "services": services});
    let mut uneven = even.clone();
    for (h, host) in uneven["hosts"].as_array_mut().unwrap().iter_mut().enumerate() {
        for (g, gpu) in host["gpus"].as_array_mut().unwrap().iter_mut().enumerate() {
            gpu["memory_free"] = json!(format!("{}MiB", 79 * 1024 - 37 * (8 * h + g)));
        }
    }
    let compiled = |world: &Value| {
        let world = read(&world.to_string(), "world").unwrap();
        compile::compile(&world, clock::Clock::none())
    };
    // What is not told apart is one cell for each NUMA node.
    assert!(compiled(&uneven).hosts.iter().all(|h| h.cells.len() == 2));
    let (a, b) = (solved(&even), solved(&uneven));
    assert_eq!(a.objective, b.objective);
    assert_eq!(shown(&a), shown(&b));
    // A service for which it matters makes two of one.
    uneven["services"][0]["shapes"][0]["memory"] = json!(format!("{}MiB", 79 * 1024 - 37 * 4));
    let cells: Vec<usize> = compiled(&uneven).hosts.iter().map(|h| h.cells.len()).collect();
    assert_eq!(cells, [3, 2, 2, 2]);
    assert_eq!(level(&solved(&uneven), "placed"), 6);
}

/// Each GPU is unlike all others: looked through to the end, one host would take longer than anybody waits.
#[test]
fn hosts_of_unlike_gpus_are_divided_as_well_as_a_few_steps_allow() {
    let mut dice = search::Dice::new(11);
    let mut hosts: Vec<Value> = (0..4).map(|h| host(&format!("h{h}"), "r", 64, 64)).collect();
    for gpu in hosts.iter_mut().flat_map(|h| h["gpus"].as_array_mut().unwrap()) {
        let (free, island, numa) = (20 + dice.below(60), dice.below(8), dice.below(4));
        gpu["memory_free"] = json!(format!("{free}GiB"));
        (gpu["island"], gpu["numa"]) = (json!(island), json!(numa));
    }
    let services: Vec<Value> = (0..24)
        .map(|s| {
            let need = format!("{}GiB", 30 + dice.below(40));
            with(
                service(&format!("s{s}"), 1, 8, 1),
                "shapes",
                json!([{"tensor": 8, "memory": need}]),
            )
        })
        .collect();
    let text = json!({"hosts": hosts, "services": services}).to_string();
    let world = read(&text, "world").unwrap();
    let mut control = Control {
        used: &mut || 0.0,
        first: &mut || (),
        max_steps: 64,
        explain: false,
        helpers: None,
    };
    let answer = solve(&world, &mut control).unwrap();
    assert!(level(&answer, "placed") >= 12, "{}", shown(&answer));
}

/// Sixty-four GPUs whose islands and NUMA nodes cross are looked through for long, but no longer than there is time.
#[test]
fn a_division_of_one_host_is_broken_off_when_the_time_is_over() {
    let mut dice = search::Dice::new(5);
    let mut one = host("a", "r", 64, 64);
    for gpu in one["gpus"].as_array_mut().unwrap() {
        (gpu["island"], gpu["numa"]) = (json!(dice.below(9)), json!(dice.below(5)));
    }
    let world = json!({"hosts": [one], "services": [service("s", 9, 7, 1)]});
    let world = read(&world.to_string(), "world").unwrap();
    let looks = |time: u32| {
        let asked = std::cell::Cell::new(0);
        let used = || {
            asked.set(asked.get() + 1);
            if asked.get() < time { 0.0 } else { 1.0 }
        };
        let p = compile::compile(&world, clock::Clock::new(&used));
        p.clock.hurry_from(1.0);
        let part = layout::Part { slot: 0, kind: 0, units: 1, pin: compile::NONE, gpus: 1 };
        layout::divide(&p, 0, &[part; 9], None);
        asked.get()
    };
    assert!(looks(u32::MAX) > 10);
    assert_eq!(looks(4), 4);
}

/// Reasons are for people, and there may be millions: those of replicas without a place come first, and the rest while time
/// lasts.
#[test]
fn reasons_are_given_while_time_lasts() {
    let hosts: Vec<Value> = (0..300).map(|h| host(&format!("h{h}"), "r", 2, 2)).collect();
    let mut services: Vec<Value> = (0..300).map(|s| service(&format!("s{s}"), 1, 1, 1)).collect();
    services.push(service("large", 1, 4, 1));
    let world = read(&json!({"hosts": hosts, "services": services}).to_string(), "world").unwrap();
    let answer = |limit: f64| {
        let mut asked = 0.0;
        let mut used = || {
            asked += 1.0;
            asked / limit
        };
        let mut control = Control {
            used: &mut used,
            first: &mut || (),
            max_steps: 16,
            explain: false,
            helpers: None,
        };
        solve(&world, &mut control).unwrap()
    };
    let all = answer(f64::INFINITY);
    let large = |answer: &Answer| answer.services[300].clone();
    let why = "it has 2 GPUs, 4 needed together";
    let told = all.services[0].rejected.iter().map(|r| r.count).sum::<usize>();
    assert_eq!((all.search.reasons_cut, told), (false, 299));
    assert_eq!(large(&all).unplaced.as_deref(), Some(why));
    // Enough for the one that matters.
    let some = answer(5000.0);
    assert!(some.search.reasons_cut, "{:?}", some.search);
    assert_eq!(large(&some).unplaced.as_deref(), Some(why));
    let none = answer(1.0);
    assert_eq!((none.placed, all.placed), (300, 300));
    assert!(none.search.reasons_cut && none.services.iter().all(|s| s.rejected.is_empty()));
    assert_eq!(
        large(&none).unplaced.as_deref(),
        Some("the time was over before a reason was found")
    );
}

fn at(kind: u32, hosts: &[u32]) -> state::Position {
    state::Position { kind, keep: compile::NONE, hosts: hosts.iter().copied().collect() }
}

/// Whatever an attempt tries, nothing is lost by it, and what is counted is what is there.
#[test]
fn an_attempt_is_kept_only_where_it_loses_nothing() {
    let world = json!({
        "hosts": (0..9).map(|i| host(&format!("h{i}"), &format!("r{}", i / 3), 8, if i % 3 == 0 { 4 } else { 8 })).collect::<Vec<_>>(),
        "services": (0..30).map(|i| {
            let (tensor, pipeline) = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 3), (4, 3)][i % 6];
            let s = with(service(&format!("s{i}"), 1, tensor, pipeline), "priority", json!(i % 2));
            with(with(s, "weights_bytes", json!(format!("{}GiB", 5 + i))), "weights_on", json!([format!("h{}", i % 9)]))
        }).collect::<Vec<_>>(),
    });
    let p = compile::compile(&read(&world.to_string(), "world").unwrap(), clock::Clock::none());
    let mut search = search::Search::new(&p);
    search.construct(&mut || false);
    for n in 0..3000 {
        let heat = if n < 2000 { 1e10 } else { 0.0 };
        if n % 16 == 0 {
            search.look_around();
        }
        let before = search.state.score();
        search.attempt(heat);
        let after = search.state.score();
        assert!(after.unplaced <= before.unplaced);
        assert!(heat > 0.0 || after <= before);
        let mut anew = state::State::new(&p);
        for (slot, position) in search.state.at.iter().enumerate() {
            let Some(position) = position else { continue };
            assert!(anew.place(u32::try_from(slot).unwrap(), position.clone()));
        }
        assert_eq!(anew.score(), after);
    }
}

/// Two had to move for a gang; elsewhere only one would have to. Neither of the two can go back before the gang is
/// there, and as long as they do not that is one more.
#[test]
fn what_moved_for_a_gang_comes_back_when_that_goes_elsewhere() {
    let running = |service: &str, replica: u32, host: &str, gpus: &[u32]| json!({"service": service, "replica": replica, "ranks": [{"host": host, "gpus": gpus}]});
    let world = json!({
        "hosts": [host("a", "r", 4, 4), host("b", "r", 4, 4), host("c", "r", 4, 2)],
        "services": [with(service("two", 2, 2, 1), "hosts", json!(["a", "c"])), service("one", 1, 2, 1), with(service("gang", 1, 4, 1), "link", json!("nvlink"))],
        "placements": [running("two", 0, "a", &[0, 1]), running("two", 1, "a", &[2, 3]), running("one", 0, "b", &[0, 1])],
    });
    let p = compile::compile(&read(&world.to_string(), "world").unwrap(), clock::Clock::none());
    let mut search = search::Search::new(&p);
    let kind = |slot: usize| p.services[p.slots[slot] as usize].kinds[0];
    for (slot, host) in [(0, 2), (1, 2), (3, 0)] {
        assert!(search.state.place(slot, at(kind(slot as usize), &[host])));
    }
    let stays = search.staying(p.slots[2], p.services[1].incumbents[0]);
    assert!(search.state.place(2, stays));
    assert_eq!(search.state.levels().moves, 2);
    for _ in 0..2000 {
        search.look_around();
        search.attempt(0.0);
    }
    assert_eq!(search.state.levels().moves, 1);
}
