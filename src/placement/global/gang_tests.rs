//! What counts as the largest gang that could still be placed: GPUs of one model in an island, or on a host and in none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::tests::solved;

/// A host whose GPUs are what the changes make of GPUs that nothing is known of.
fn host(name: &str, gpus: &[Value]) -> Value {
    let gpus = gpus.iter().enumerate().map(|(i, change)| {
        let mut gpu = json!({"index": i, "model": "L40S", "memory_total": "48GiB"});
        for (key, value) in change.as_object().unwrap() {
            gpu[key] = value.clone();
        }
        gpu
    });
    json!({"name": name, "gpus": gpus.collect::<Vec<_>>()})
}

/// A host of GPUs without `NVLink`, half of them on each NUMA node.
fn pcie(name: &str, gpus: usize) -> Value {
    let numa: Vec<Value> = (0..gpus).map(|i| json!({"numa": i * 2 / gpus})).collect();
    host(name, &numa)
}

fn service(name: &str, tensor: u32) -> Value {
    json!({"name": name, "replicas": 1, "shapes": [{"tensor": tensor, "memory": "40GiB"}]})
}

/// `largest_gang`, which is the last level, whose bound is met.
fn gang(world: &Value) -> u64 {
    let answer = solved(world);
    let level = answer.objective.last().unwrap();
    assert_eq!((&*level.name, level.value), ("fragmentation", answer.largest_gang as i64));
    assert!(answer.proven_optimal, "{:?}", answer.objective);
    answer.largest_gang
}

#[test]
fn gpus_without_nvlink_are_left_together_for_a_gang() {
    for hosts in [
        [pcie("a", 4), pcie("b", 4)],
        [host("a", &[json!({}), json!({}), json!({}), json!({})]), pcie("b", 4)],
    ] {
        let world = json!({"hosts": hosts, "services": [service("x", 2), service("y", 2)]});
        let answer = solved(&world);
        let on: BTreeSet<&str> = answer
            .services
            .iter()
            .flat_map(|s| &s.replicas[0].ranks)
            .map(|rank| rank.host.as_str())
            .collect();
        assert_eq!(on.len(), 1, "{:?}", answer.services);
        assert_eq!(gang(&world), 4);
    }
}

#[test]
fn what_a_host_has_beside_its_islands_is_one_group() {
    let joined = || json!({"island": 0});
    let alone = || json!({});
    let mixed = host("a", &[joined(), joined(), alone(), alone(), alone()]);
    let world = |host: Value, services: Value| json!({"hosts": [host], "services": services});
    assert_eq!(gang(&world(mixed.clone(), json!([]))), 3);
    // A pair that is joined goes into the island, a single one where it leaves the larger group whole.
    let pair = solved(&world(mixed.clone(), json!([service("x", 2)])));
    assert_eq!(pair.services[0].replicas[0].ranks[0].gpus, [0, 1]);
    assert_eq!(gang(&world(mixed.clone(), json!([service("x", 1)]))), 3);
    assert_eq!(gang(&world(mixed, json!([service("x", 1), service("y", 1), service("z", 1)]))), 2);
    // Not on two hosts, and not what may not be used.
    let mut two = json!({"hosts": [pcie("a", 4), pcie("b", 2)], "services": []});
    assert_eq!(gang(&two), 4);
    two["cordons"] = json!([{"host": "a", "gpus": [0]}]);
    two["hosts"][0]["gpus"][1]["health"] = json!("Xid 79");
    assert_eq!(gang(&two), 2);
}

/// Hosts with the same links are divided once for all of them: instances are not taken for GPUs.
#[test]
fn each_mig_instance_counts_for_itself() {
    let instances = vec![json!({"mig": "1g.10gb"}); 4];
    let mut split = instances.clone();
    split.iter_mut().zip([0, 0, 1, 1]).for_each(|(gpu, numa)| gpu["numa"] = json!(numa));
    for mig in [instances.clone(), split] {
        let mig = host("mig", &mig);
        assert_eq!(gang(&json!({"hosts": [mig.clone()], "services": []})), 1);
        assert_eq!(gang(&json!({"hosts": [mig.clone(), pcie("a", 4)], "services": []})), 4);
        assert_eq!(
            gang(&json!({"hosts": [pcie("a", 4), mig.clone()], "services": [service("x", 4)]})),
            1
        );
        let held = json!([{"host": "a", "by": "alice"}]);
        let world = json!({"hosts": [pcie("a", 4), mig], "services": [], "reservations": held});
        assert_eq!(gang(&world), 1);
    }
    let beside = [&instances[..2], &[json!({}), json!({})]].concat();
    assert_eq!(gang(&json!({"hosts": [host("a", &beside)], "services": []})), 2);
}

/// All GPUs of a replica have the same model and memory: others beside them are no room for it.
#[test]
fn models_and_sizes_are_not_counted_together() {
    let large = json!({"model": "A100", "memory_total": "80GiB"});
    let others = [large.clone(), json!({"model": "A10"}), json!({"memory_total": "45GiB"})];
    for island in [Value::Null, json!(0)] {
        let of = |gpu: &Value| {
            let mut gpu = gpu.clone();
            gpu["island"] = island.clone();
            gpu
        };
        let own = of(&json!({}));
        for other in others.iter().map(of) {
            let two = host("a", &[own.clone(), other.clone(), own.clone(), other]);
            assert_eq!(gang(&json!({"hosts": [two], "services": []})), 2);
        }
        // One GPU goes where it leaves the larger group whole.
        let mut gpus = vec![own; 3];
        gpus.extend(vec![of(&large); 2]);
        let world = json!({"hosts": [host("a", &gpus)], "services": [service("x", 1)]});
        assert_eq!(solved(&world).services[0].replicas[0].ranks[0].gpus, [3]);
        assert_eq!(gang(&world), 3);
    }
}
