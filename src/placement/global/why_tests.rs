//! Reasons that people are given: each is checked against what is really in the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use serde_json::{Value, json};

use super::super::*;

fn host(name: &str, gpus: u32, change: impl Fn(u32, &mut Value)) -> Value {
    let gpu = |i: u32| {
        let mut gpu = json!({"index": i, "model": "H100", "memory_total": "80GiB", "island": 0});
        change(i, &mut gpu);
        gpu
    };
    json!({"name": name, "gpus": (0..gpus).map(gpu).collect::<Vec<_>>()})
}

fn plain(name: &str, gpus: u32) -> Value {
    host(name, gpus, |_, _| ())
}

/// One service of gangs of four, with these fields besides.
fn four(more: Value) -> Value {
    let mut service =
        json!({"name": "a", "replicas": 1, "shapes": [{"tensor": 4, "memory": "60GiB"}]});
    for (key, value) in more.as_object().unwrap() {
        service[key] = value.clone();
    }
    service
}

fn solved(world: &Value) -> Answer {
    let world = read(&world.to_string(), "world").unwrap_or_else(|e| panic!("{e}"));
    let mut control = Control {
        used: &mut || 0.0,
        first: &mut || (),
        max_steps: 2000,
        explain: true,
        helpers: None,
    };
    solve(&world, &mut control).unwrap()
}

fn unplaced(world: &Value) -> String {
    solved(world).services[0].unplaced.clone().unwrap_or_else(|| "placed".to_owned())
}

/// One that is away, or whose driver hangs, may well have GPUs.
#[test]
fn a_host_whose_gpus_are_not_seen_is_not_said_to_have_none() {
    let mut away = plain("away", 0);
    away["up"] = json!(false);
    let mut hung = plain("hung", 0);
    hung["gpu_trouble"] = json!("its GPU driver has not answered for 45 s");
    let hosts = [plain("bare", 0), away, hung, plain("small", 2)];
    let world = json!({"version": 1, "hosts": hosts, "services": [four(json!({}))]});
    let told = serde_json::to_value(&solved(&world).services[0].rejected).unwrap().to_string();
    for why in ["it has no GPU", "not reached", "its GPU driver has not answered for 45 s"] {
        assert!(told.contains(why), "{why}: {told}");
    }
}

#[test]
fn the_first_rule_that_leaves_too_few_gpus_is_named() {
    let busy = |i: u32, gpu: &mut Value| {
        if i < 5 {
            gpu["memory_free"] = json!("10GiB");
        }
    };
    let small = |i: u32, gpu: &mut Value| {
        if i < 5 {
            gpu["memory_total"] = json!("40GiB");
        }
    };
    let mig = |_: u32, gpu: &mut Value| gpu["mig"] = json!("3g.40gb");
    let mixed = |i: u32, gpu: &mut Value| gpu["model"] = json!(format!("M{}", i % 3));
    let apart = |_: u32, gpu: &mut Value| gpu["island"] = json!(null);
    let pairs = |i: u32, gpu: &mut Value| gpu["island"] = json!(i / 2);
    let stages =
        json!({"shapes": [{"tensor": 4, "pipeline": 4, "memory": "60GiB"}], "one_host": true});
    let cases = [
        (host("h", 8, busy), json!({}), "60.0 GiB are free on 3 of its GPUs, 4 needed together"),
        (host("h", 8, small), json!({}), "3 of its GPUs have 60.0 GiB, 4 needed together"),
        (
            plain("h", 8),
            json!({"require": "gpu.index < 3"}),
            "3 of its GPUs meet the requirement, 4 needed together: gpu.index < 3 fails: gpu.index is 3",
        ),
        (plain("h", 8), json!({"heads": 30}), "30 attention heads cannot be divided by 4"),
        (plain("h", 8), stages, "it has 8 GPUs, 16 needed on one host"),
        (host("h", 4, mig), json!({}), "its MIG instances are not joined, 4 needed together"),
        (
            host("h", 8, mixed),
            json!({}),
            "its GPUs are not alike: at most 3 of one model, 4 needed together",
        ),
        (
            host("h", 8, apart),
            json!({"link": "nvlink"}),
            "its GPUs are not joined by NVLink, 4 needed together",
        ),
        (
            host("h", 8, pairs),
            json!({"link": "nvlink"}),
            "at most 2 of its GPUs are joined by NVLink, 4 needed together",
        ),
        (plain("h", 2), json!({}), "it has 2 GPUs, 4 needed together"),
    ];
    for (host, more, expected) in cases {
        let answer = solved(&json!({"hosts": [host], "services": [four(more)]}));
        let service = &answer.services[0];
        assert_eq!(service.unplaced.as_deref(), Some(expected));
        assert_eq!(service.rejected[0].reason, expected);
    }
}

#[test]
fn what_cannot_be_used_is_counted_by_reason() {
    let sick = host("sick", 8, |i, gpu| {
        if i < 2 {
            gpu["health"] = json!("Xid 79");
        }
    });
    let world = json!({
        "hosts": [sick],
        "services": [four(json!({}))],
        "reservations": [{"host": "sick", "gpus": [2, 3, 4], "by": "bob"}],
    });
    let why = unplaced(&world);
    assert_eq!(
        why,
        "3 GPUs can be used, 4 needed together: 3 are reserved by bob, 2 are not healthy: Xid 79"
    );
}

#[test]
fn a_replica_without_a_place_is_told_what_is_nearest() {
    // One host would nearly do; that the others are none of its hosts helps nobody.
    let world = json!({
        "hosts": [plain("h1", 8), plain("h2", 8), plain("h3", 8)],
        "services": [four(json!({"hosts": ["h1"]}))],
        "reservations": [{"host": "h1", "gpus": [0, 1, 2, 3, 4], "by": "bob"}],
    });
    let why = "3 GPUs can be used, 4 needed together: 5 are reserved by bob (1 of 3 hosts)";
    assert_eq!(unplaced(&world), why);
    // Of hosts that others hold the one that is least held.
    let world = json!({
        "hosts": [plain("h1", 8), plain("h2", 8)],
        "services": [four(json!({}))],
        "reservations": [{"host": "h1", "by": "alice"}, {"host": "h2", "gpus": [0, 1, 2, 3, 4], "by": "bob"}],
    });
    assert!(unplaced(&world).ends_with("5 are reserved by bob (1 of 2 hosts)"));
    // Hosts are there, but not enough of them.
    let stages = json!({"shapes": [{"tensor": 8, "pipeline": 4, "memory": "60GiB"}]});
    let world = json!({
        "hosts": [plain("h1", 8), plain("h2", 8), plain("h3", 8)], "services": [four(stages)],
    });
    assert_eq!(unplaced(&world), "it needs 4 hosts, 3 can take a part");
    let world = json!({"hosts": [], "services": [four(json!({}))]});
    assert_eq!(unplaced(&world), "there is no host");
    // The host that has one is the nearest to have another.
    let mut down = plain("h2", 8);
    down["up"] = json!(false);
    let world =
        json!({"hosts": [plain("h1", 4), down], "services": [four(json!({"replicas": 2}))]});
    assert_eq!(unplaced(&world), "its GPUs are taken: 0 left, 4 needed (1 of 2 hosts)");
}

#[test]
fn a_replica_that_leaves_says_why() {
    let running =
        json!({"service": "a", "replica": 0, "ranks": [{"host": "h1", "gpus": [0, 1, 2, 3]}]});
    let leaves = |change: &dyn Fn(&mut Value)| {
        let mut world = json!({
            "hosts": [plain("h1", 8), plain("h2", 8)], "services": [four(json!({}))],
            "placements": [running],
        });
        change(&mut world);
        let answer = solved(&world);
        let replica = &answer.services[0].replicas[0];
        assert_eq!((replica.state.as_ref(), replica.replica), ("moves", 0));
        replica.reasons[0].clone()
    };
    assert_eq!(leaves(&|w| w["hosts"][0]["draining"] = json!(true)), "h1 is drained");
    assert_eq!(leaves(&|w| w["hosts"][0]["up"] = json!(false)), "h1 is lost");
    let sick = leaves(&|w| w["hosts"][0]["gpus"][2]["health"] = json!("Xid 79"));
    assert_eq!(sick, "GPU 2 of h1 is not healthy: Xid 79");
    let require = leaves(&|w| w["services"][0]["require"] = json!("host.name != 'h1'"));
    assert_eq!(
        require,
        "h1 no longer meets the requirement: host.name != 'h1' fails: host.name is 'h1'"
    );
    let hosts = leaves(&|w| w["services"][0]["hosts"] = json!(["h2"]));
    assert_eq!(hosts, "h1 is not among its hosts any more");
    let shape = leaves(&|w| w["services"][0]["shapes"] = json!([{"tensor": 2, "memory": "60GiB"}]));
    assert_eq!(shape, "a replica is divided otherwise now");
}
