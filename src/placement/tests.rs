//! Placing on worlds made up by hand and by chance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::cast_possible_truncation)] // small numbers of small tests

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::base::{Bytes, DeviceId, Hint, ReleaseNumber, ReplicaKey};
use crate::spec::{DeviceKind, Link, ParallelShape, PlacementSpec, Spread};

fn gpu(host: &str, index: u32, total: u64, free: u64) -> GpuCapacity {
    GpuCapacity {
        uuid: format!("{host}-{index}"),
        index,
        instance: None,
        name: format!("H{total}"),
        total: Bytes::gib(total),
        free: Bytes::gib(free),
        foreign: Bytes::ZERO,
        healthy: Ok(()),
        cordoned: None,
        island: None,
        pcie_switch: None,
        numa: None,
        reserved_by: None,
    }
}

fn host(name: &str, gpus: Vec<GpuCapacity>) -> HostCapacity {
    HostCapacity {
        name: name.parse().unwrap(),
        labels: BTreeMap::new(),
        up: true,
        cordoned: false,
        draining: false,
        upgrading: false,
        nics: Vec::new(),
        cpus: 8,
        memory_free: Bytes::gib(64),
        gpus,
        gpu_trouble: None,
    }
}

/// `count` GPUs of 80 GiB in islands of `island`.
fn box_of(name: &str, count: u32, island: u32) -> HostCapacity {
    let gpus = (0..count)
        .map(|i| GpuCapacity {
            island: (island > 1).then_some(i / island.max(1)),
            numa: Some(i / 4),
            ..gpu(name, i, 80, 79)
        })
        .collect();
    host(name, gpus)
}

pub(super) fn need(tensor: u32, gib: u64) -> ShapeNeed {
    let one = NonZeroU32::MIN;
    ShapeNeed {
        shape: ParallelShape { tensor: NonZeroU32::new(tensor).unwrap(), pipeline: one, data: one },
        memory_per_device: Bytes::gib(gib),
    }
}

pub(super) fn demand(replicas: u32, shapes: Vec<ShapeNeed>) -> Demand {
    Demand {
        service: "chat".parse().unwrap(),
        replicas,
        indexes: Vec::new(),
        shapes,
        refused_shapes: Vec::new(),
        device: DeviceKind::Gpu,
        memory_share: None,
        within_share: false,
        refused_on: BTreeSet::default(),
        whole_gpus: None,
        placement: PlacementSpec::default(),
        reuse: Vec::new(),
        staying: Vec::new(),
        weights: Bytes::ZERO,
        weights_on: Vec::new(),
        lacking: BTreeMap::new(),
    }
}

fn world(hosts: Vec<HostCapacity>) -> World {
    World { hosts }
}

fn present(release: u64, replica: u32, host: &str, indices: &[u32]) -> Reuse {
    Reuse {
        replica: ReplicaKey { release: ReleaseNumber(release), replica },
        host: host.parse().unwrap(),
        devices: indices.iter().map(|i| DeviceId::Gpu(format!("{host}-{i}"))).collect(),
        memory_per_device: Bytes::gib(70),
        shape: ParallelShape::of_tensor(indices.len() as u32),
    }
}

fn place(w: &World, d: &Demand) -> Result<Placement, Refusal> {
    super::place(w, d, &mut Budget { used: &mut || 0.0, steps: 512 })
}

fn shown(placement: &Placement) -> String {
    let line = |r: &PlacedReplica| {
        let devices: Vec<String> = r.devices.iter().map(ToString::to_string).collect();
        let old: Vec<String> = r.in_place_of.iter().map(ToString::to_string).collect();
        let old = if old.is_empty() { String::new() } else { format!(" <- {}", old.join(",")) };
        format!("{}{old}", devices.join(","))
    };
    placement.replicas.iter().map(line).collect::<Vec<_>>().join(" | ")
}

#[test]
fn spreads_or_packs() {
    let w = world(vec![box_of("a", 4, 1), box_of("b", 4, 1)]);
    let mut d = demand(3, vec![need(1, 40)]);
    assert_eq!(shown(&place(&w, &d).unwrap()), "a-0 | b-0 | a-1");
    d.placement.spread = Spread::Pack;
    assert_eq!(shown(&place(&w, &d).unwrap()), "a-0 | a-1 | a-2");
}

#[test]
fn an_engine_that_cannot_be_told_an_instance_gets_whole_gpus() {
    let instance = |at: u32| GpuCapacity {
        instance: Some(Instance {
            of: "a-1".to_owned(),
            profile: "3g.40gb".to_owned(),
            label: format!("1:{at}"),
        }),
        ..gpu("a", 2 + at, 40, 39)
    };
    let w = world(vec![host("a", vec![gpu("a", 0, 80, 79), instance(0), instance(1)])]);
    let mut d = demand(1, vec![need(1, 30)]);
    d.placement.require = Some("gpu.memory < 50GiB || gpu.index == 0".to_owned());
    assert_eq!(shown(&place(&w, &d).unwrap()), "a-2", "the smallest that suffices");
    d.whole_gpus = Some("it counts".to_owned());
    assert_eq!(shown(&place(&w, &d).unwrap()), "a-0");
    d.replicas = 2;
    let refusal = place(&w, &d).unwrap_err();
    assert_eq!(refusal.fitting, 1);
    let w = world(vec![host("a", vec![instance(0), instance(1)])]);
    let refusal = place(&w, &d).unwrap_err();
    assert_eq!(refusal.reasons, ["a: it has MIG instances: it counts"]);
}

#[test]
fn instances_are_not_joined_to_one_replica() {
    let instance = |at: u32| GpuCapacity {
        instance: Some(Instance {
            of: "a-0".to_owned(),
            profile: "1g.10gb".to_owned(),
            label: format!("0:{at}"),
        }),
        ..gpu("a", 1 + at, 10, 10)
    };
    let w = world(vec![host("a", (0..7).map(instance).collect())]);
    assert!(place(&w, &demand(7, vec![need(1, 8)])).is_ok());
    let refusal = place(&w, &demand(1, vec![need(2, 8)])).unwrap_err();
    let why = "a: it has 0 GPUs and 7 MIG instances, which are not joined, 2 needed";
    assert_eq!(refusal.reasons, [why]);
}

#[test]
fn takes_the_first_shape_that_fits() {
    let w = world(vec![box_of("a", 8, 8)]);
    let d = demand(2, vec![need(1, 150), need(2, 79), need(4, 40)]);
    let placement = place(&w, &d).unwrap();
    assert_eq!(shown(&placement), "a-0,a-1 | a-2,a-3");
    assert_eq!(placement.replicas[0].shape.tensor.get(), 2);
    insta::assert_snapshot!(placement.reasons.join("\n"), @r"
    replicas 0-1: H80, joined by NVLink
    not on 1 GPU each: a: its GPUs have 80.0 GiB, 150 GiB needed
    ");
}

#[test]
fn a_shape_that_is_not_taken_says_why() {
    let w = world(vec![box_of("a", 2, 2), box_of("b", 4, 4), box_of("c", 1, 1)]);
    // Two and four would fit, a replica each; eight on no host.
    let shapes = vec![need(8, 40), need(4, 79), shaped(2, 2, 1, 70), need(2, 79)];
    let told = |reasons: &[String]| -> Vec<String> {
        reasons.iter().filter(|r| r.starts_with("not ")).cloned().collect()
    };
    let mut d = demand(2, shapes);
    let placement = place(&w, &d).unwrap();
    assert_eq!(placement.replicas[0].shape.tensor.get(), 2);
    assert_eq!(
        told(&placement.reasons),
        [
            "not on 8 GPUs each: nearest is b: it has 4 GPUs, 8 needed",
            "not on 4 GPUs each: room for 1 of 2 replicas",
            "not as tp2 pp2: room for 1 of 2 replicas",
        ]
    );
    // The refusal says of the one that came furthest where each host stands, of the others a line.
    d.replicas = 4;
    let refusal = place(&w, &d).unwrap_err();
    assert_eq!(refusal.fitting, 3);
    assert_eq!(
        told(&refusal.reasons),
        [
            "not on 8 GPUs each: nearest is b: it has 4 GPUs, 8 needed",
            "not on 4 GPUs each: room for 1 of 4 replicas",
            "not as tp2 pp2: room for 1 of 4 replicas",
        ]
    );
}

#[test]
fn stays_in_an_island_else_on_a_numa_node_else_says_so() {
    let mut a = box_of("a", 8, 4);
    a.gpus[1].free = Bytes::gib(1);
    let w = world(vec![a.clone()]);
    assert_eq!(shown(&place(&w, &demand(1, vec![need(4, 40)])).unwrap()), "a-4,a-5,a-6,a-7");
    // The fuller island for a small replica: the whole one stays whole.
    assert_eq!(shown(&place(&w, &demand(1, vec![need(2, 40)])).unwrap()), "a-0,a-2");
    a.gpus.iter_mut().for_each(|g| g.island = None);
    let placement = place(&world(vec![a.clone()]), &demand(1, vec![need(4, 40)])).unwrap();
    assert!(placement.reasons[0].ends_with("on one NUMA node without NVLink"));
    a.gpus[5].free = Bytes::gib(1);
    let placement = place(&world(vec![a]), &demand(1, vec![need(4, 40)])).unwrap();
    assert_eq!(shown(&placement), "a-0,a-2,a-3,a-4");
    assert!(placement.reasons[0].ends_with("slow"), "{}", placement.reasons[0]);
}

#[test]
fn prefers_the_smallest_gpu_that_suffices() {
    let a = host("a", vec![gpu("a", 0, 80, 79), gpu("a", 1, 24, 23), gpu("a", 2, 48, 47)]);
    assert_eq!(
        shown(&place(&world(vec![a.clone()]), &demand(1, vec![need(1, 20)])).unwrap()),
        "a-1"
    );
    assert_eq!(shown(&place(&world(vec![a]), &demand(1, vec![need(1, 30)])).unwrap()), "a-2");
}

#[test]
fn an_engine_that_takes_a_share_needs_that_share_free() {
    let mut d = demand(1, vec![need(1, 10)]);
    d.memory_share = Some(0.9);
    let a = host("a", vec![gpu("a", 0, 24, 20), gpu("a", 1, 80, 79)]);
    let placement = place(&world(vec![a]), &d).unwrap();
    assert_eq!(shown(&placement), "a-1");
    assert_eq!(placement.replicas[0].memory_per_device, Bytes::gib(72));
    let full = host("a", vec![gpu("a", 0, 24, 20), gpu("a", 1, 80, 71)]);
    let refusal = place(&world(vec![full]), &d).unwrap_err();
    assert_eq!(refusal.message, "no host has a GPU with 90 % of the memory free");
}

/// The engine refuses to start with more, however much of the GPU is free.
#[test]
fn the_memory_that_would_fit_is_all_of_the_engines_share() {
    let mut d = demand(1, vec![need(1, 78)]);
    (d.memory_share, d.within_share) = (Some(0.9), true);
    // One that is empty, and one that has no more than 59 GiB left.
    let hosts = vec![host("a", vec![gpu("a", 0, 80, 79)]), host("b", vec![gpu("b", 0, 80, 59)])];
    let refusal = place(&world(hosts), &d).unwrap_err();
    let change = refusal.change.unwrap();
    assert_eq!(change, "bring the memory it needs down to 72.0 GiB on each GPU");
}

#[test]
fn what_does_not_fit_into_the_engines_share_needs_a_larger_gpu() {
    let mut d = demand(1, vec![need(1, 74)]);
    d.memory_share = Some(0.9);
    let empty = host("a", vec![gpu("a", 0, 80, 79)]);
    assert_eq!(shown(&place(&world(vec![empty.clone()]), &d).unwrap()), "a-0");
    d.within_share = true;
    let refusal = place(&world(vec![empty.clone()]), &d).unwrap_err();
    let words = "its GPUs have 80.0 GiB, 82.2 GiB needed: the engine takes 90 % of a GPU";
    assert!(refusal.reasons.iter().any(|r| r.contains(words)), "{refusal:?}");
    let larger = host("b", vec![gpu("b", 0, 94, 93)]);
    assert_eq!(shown(&place(&world(vec![empty, larger]), &d).unwrap()), "b-0");
}

/// What a person can do about it is told by what is in the way.
#[test]
fn the_way_to_a_host_depends_on_what_closes_it() {
    let closed = |change: fn(&mut HostCapacity)| {
        let mut host = box_of("a", 2, 2);
        change(&mut host);
        host
    };
    let told = |hosts: Vec<HostCapacity>, d: &Demand| {
        place(&world(hosts), d).unwrap_err().change.unwrap_or_default()
    };
    let d = demand(1, vec![need(2, 70)]);
    assert_eq!(told(vec![closed(|h| h.cordoned = true)], &d), "`gpudeck uncordon a`");
    assert_eq!(told(vec![closed(|h| h.up = false)], &d), "bring a back");
    let mut lacking = d.clone();
    lacking.lacking.insert("a".parse().unwrap(), "there is no program vllm".to_owned());
    assert_eq!(told(vec![closed(|_| ())], &lacking), "see to what a lacks");
    let mut elsewhere = d.clone();
    elsewhere.placement.hosts = vec!["z".parse().unwrap()];
    assert_eq!(told(vec![closed(|_| ())], &elsewhere), "loosen `placement` in the spec");
    let small = host("s", vec![gpu("s", 0, 24, 24), gpu("s", 1, 24, 24)]);
    let small = HostCapacity { cordoned: true, ..small };
    assert!(!told(vec![small], &d).contains("uncordon"), "it is too small");
    // What is being emptied is not the way, and what is full has one beside it.
    let draining = closed(|h| (h.cordoned, h.draining) = (true, true));
    assert!(!told(vec![draining], &d).contains("uncordon"));
    let full = host("b", vec![gpu("b", 0, 80, 10), gpu("b", 1, 80, 10)]);
    let change = told(vec![full, closed(|h| h.cordoned = true)], &d);
    assert!(change.starts_with("`gpudeck uncordon a`, or "), "{change}");
}

#[test]
fn a_cordoned_gpu_is_named_where_others_hold_only_some() {
    let mut a = box_of("a", 4, 4);
    a.gpus[0].cordoned = Some("bob".to_owned());
    a.gpus[1].reserved_by = Some("embed r1-0".to_owned());
    let why = |a: &HostCapacity, tensor| {
        place(&world(vec![a.clone()]), &demand(1, vec![need(tensor, 70)])).unwrap_err().reasons
    };
    let told = "GPU 0 is cordoned by bob: `gpudeck uncordon a/0`";
    assert!(why(&a, 3).iter().any(|r| r.ends_with(told)), "{:?}", why(&a, 3));
    // That alone would not do.
    let told = why(&a, 4);
    assert!(told.iter().all(|r| !r.contains("uncordon")), "{told:?}");
}

/// A cordon keeps new ranks away; what runs there is as well as before.
#[test]
fn a_cordoned_gpu_takes_nothing_new_and_keeps_what_it_has() {
    let mut a = box_of("a", 2, 2);
    a.gpus[0].cordoned = Some("bob".to_owned());
    a.gpus[0].free = Bytes::gib(9);
    let refusal = place(&world(vec![a.clone()]), &demand(1, vec![need(2, 70)])).unwrap_err();
    assert!(refusal.reasons.iter().any(|r| r.contains("cordoned by bob")), "{refusal:?}");
    let shapes = [need(1, 70)];
    let mut d = demand(2, shapes.to_vec());
    d.reuse = vec![present(1, 0, "a", &[0])];
    let hosts = [&a];
    let present = translate::Present::MayStay;
    let wanted = translate::Wanted { demand: &d, shapes: &shapes, present };
    let file = translate::world_file(&hosts, &[wanted]);
    assert_eq!((file.cordons.len(), file.hosts[0].gpus[0].health.as_str()), (1, "ok"));
    let mut control = global::Control {
        used: &mut || 0.0,
        first: &mut || (),
        max_steps: 1000,
        explain: false,
        helpers: None,
    };
    let answer = global::solve(&file, &mut control).unwrap();
    let states: Vec<String> =
        answer.services[0].replicas.iter().map(|r| r.state.to_string()).collect();
    assert_eq!(states, ["stays", "starts"]);
}

#[test]
fn where_the_engine_refused_nothing_is_placed() {
    let mut d = demand(1, vec![need(1, 20)]);
    let small = host("a", vec![gpu("a", 0, 24, 23)]);
    let large = host("b", vec![gpu("b", 0, 80, 79)]);
    d.refused_on = [small.gpus[0].name.clone()].into();
    let refusal = place(&world(vec![small.clone()]), &d).unwrap_err();
    assert!(refusal.reasons.iter().any(|r| r.contains("refused to start")), "{refusal:?}");
    let mut large = large;
    "H100".clone_into(&mut large.gpus[0].name);
    assert_eq!(shown(&place(&world(vec![small, large]), &d).unwrap()), "b-0");
}

#[test]
fn spare_devices_first_then_in_place() {
    let mut a = box_of("a", 3, 1);
    a.gpus[0].free = Bytes::gib(9);
    a.gpus[1].free = Bytes::gib(9);
    let mut d = demand(2, vec![need(1, 70)]);
    d.reuse = vec![present(1, 0, "a", &[0]), present(1, 1, "a", &[1])];
    let w = world(vec![a]);
    assert_eq!(shown(&place(&w, &d).unwrap()), "a-2 | a-1 <- r1-1");
    // What others hold on the GPU does not become free with ours.
    let mut w = w;
    w.hosts[0].gpus[1].foreign = Bytes::gib(20);
    assert_eq!(shown(&place(&w, &d).unwrap()), "a-2 | a-0 <- r1-0");
    d.reuse.clear();
    assert_eq!(place(&w, &d).unwrap_err().fitting, 1);
}

#[test]
fn as_few_present_replicas_as_possible_have_to_go() {
    let mut a = box_of("a", 6, 6);
    a.gpus.iter_mut().for_each(|g| g.free = Bytes::gib(9));
    let mut d = demand(1, vec![need(2, 70)]);
    d.reuse = vec![present(1, 0, "a", &[0]), present(1, 1, "a", &[1]), present(1, 2, "a", &[3, 4])];
    assert_eq!(shown(&place(&world(vec![a]), &d).unwrap()), "a-3,a-4 <- r1-2");
}

#[test]
fn every_host_passed_over_has_its_one_reason() {
    let mut labelled = box_of("label", 8, 8);
    labelled.labels.insert("zone".into(), "b".into());
    let in_zone = |mut h: HostCapacity| {
        h.labels.insert("zone".into(), "a".into());
        h
    };
    let down = HostCapacity { up: false, ..in_zone(box_of("down", 8, 8)) };
    let cordoned = HostCapacity { cordoned: true, ..in_zone(box_of("cordoned", 8, 8)) };
    let mut busy = in_zone(box_of("busy", 2, 2));
    busy.gpus[0].free = Bytes::gib(30);
    let mut held = in_zone(box_of("held", 2, 2));
    held.gpus[1].reserved_by = Some("embed".into());
    let mut sick = in_zone(box_of("sick", 2, 2));
    sick.gpus[1].healthy = Err("Xid 79".into());
    let small = in_zone(host("small", vec![gpu("small", 0, 24, 23), gpu("small", 1, 24, 23)]));
    let bare = HostCapacity {
        gpu_trouble: Some("it has no GPU (libnvidia-ml.so.1 not found)".into()),
        ..in_zone(host("bare", vec![]))
    };
    let w = world(vec![
        labelled,
        box_of("none", 8, 8),
        down,
        cordoned,
        busy,
        held,
        sick,
        small,
        in_zone(box_of("few", 1, 1)),
        bare,
    ]);
    let mut d = demand(1, vec![need(2, 40)]);
    d.placement.labels.insert("zone".into(), "a".into());
    let refusal = place(&w, &d).unwrap_err();
    insta::assert_snapshot!(format!("{refusal}\n{}\n{}", refusal.reasons.join("\n"), refusal.hint().unwrap()), @r"
    chat cannot be placed: no host has 2 GPUs with 40.0 GiB free on each
    bare: it has no GPU (libnvidia-ml.so.1 not found)
    busy: GPUs with 40.0 GiB free: 1 of 2, 2 needed
    cordoned: cordoned
    down: not reached
    few: it has 1 GPU, 2 needed
    held: GPUs not held by other services: 1 of 2, 2 needed; held by embed
    label: label zone is b, not a
    none: label zone = a is missing
    sick: GPUs that are large enough and healthy: 1 of 2, 2 needed; GPU 1: Xid 79
    small: its GPUs have 24.0 GiB, 40.0 GiB needed
    `gpudeck uncordon cordoned`, or bring the memory it needs down to 30.0 GiB on each GPU
    ");
}

#[test]
fn refusals_name_the_numbers_and_the_smallest_change() {
    let w = world(vec![box_of("a", 2, 2), box_of("b", 8, 8)]);
    let text = |d: &Demand, w: &World| {
        let refusal = place(w, d).unwrap_err();
        format!("{refusal}\n  {}", refusal.hint().unwrap_or_default())
    };
    let mut small = w.clone();
    small.hosts[1].gpus.truncate(1);
    small.hosts[1].gpus[0].free = Bytes::gib(30);
    insta::assert_snapshot!(text(&demand(1, vec![need(16, 40)]), &w), @r"
    chat cannot be placed: a replica needs 16 GPUs, the largest host (b) has 8; spanning hosts is not supported yet
      set parallel = { tensor = 8 } or less, or use smaller weights
    ");
    insta::assert_snapshot!(text(&demand(1, vec![need(1, 90)]), &w), @r"
    chat cannot be placed: no GPU is large enough: 90.0 GiB needed on each of 1 GPU, the largest is H80 on b with 80.0 GiB
      bring the memory it needs down to 79.0 GiB on each GPU
    ");
    insta::assert_snapshot!(text(&demand(3, vec![need(1, 40)]), &small), @r"
    chat cannot be placed: 2 of 3 replicas fit
      lower replicas to 2, or bring the memory it needs down to 30.0 GiB on each GPU
    ");
    insta::assert_snapshot!(text(&demand(1, vec![need(1, 40)]), &World::default()), @r"
    chat cannot be placed: no host may be used
      add a host to deck.toml
    ");
    let busy = world(vec![host("a", vec![gpu("a", 0, 80, 31)])]);
    insta::assert_snapshot!(text(&demand(1, vec![need(1, 40), need(2, 20)]), &busy), @r"
    chat cannot be placed: no host has a GPU with 40.0 GiB free
      bring the memory it needs down to 31.0 GiB on each GPU
    ");
}

/// Whatever excludes every host is the headline, with what would be met, and there is always something to do.
#[test]
fn a_refusal_names_the_rule_that_excludes_all_hosts() {
    let zoned = |name: &str, zone: &str| {
        let mut host = box_of(name, 8, 8);
        host.labels.insert("zone".to_owned(), zone.to_owned());
        host
    };
    let w = world(vec![zoned("a", "x"), zoned("b", "y")]);
    let text = |d: &Demand, w: &World| {
        let refusal = place(w, d).unwrap_err();
        format!("{refusal}\n  {}", refusal.hint().unwrap_or_default())
    };
    let mut d = demand(1, vec![need(2, 40)]);
    d.placement.require = Some("gpu.memory > 100GiB".to_owned());
    insta::assert_snapshot!(text(&d, &w), @r"
    chat cannot be placed: no host meets `require`: gpu.memory > 100GiB fails: gpu.memory is 80.0 GiB
      loosen `require`: on a gpu.memory is 80.0 GiB
    ");
    d.placement.require = Some("host.zone == 'z'".to_owned());
    insta::assert_snapshot!(text(&d, &w), @r"
    chat cannot be placed: no host meets `require`: host.zone == 'z' fails: host.zone is 'x'
      loosen `require`: on a host.zone is 'x'; on b host.zone is 'y'
    ");
    d.placement.require = None;
    d.placement.labels.insert("zone".into(), "z".into());
    insta::assert_snapshot!(text(&d, &w), @r"
    chat cannot be placed: no host has the label zone = z
      hosts have zone = x, y
    ");
    d.placement.labels.clear();
    d.shapes = vec![need(8, 40)];
    let mut held = w;
    for gpu in held.hosts.iter_mut().flat_map(|h| h.gpus.iter_mut().take(5)) {
        gpu.reserved_by = Some("embed".to_owned());
    }
    insta::assert_snapshot!(text(&d, &held), @r"
    chat cannot be placed: no host has 8 GPUs with 40.0 GiB free on each
      set parallel = { tensor = 3 } or less if the model allows it, or free 5 more GPUs on a
    ");
}

#[test]
fn host_memory_is_shared_and_balanced() {
    let mut d = demand(3, vec![need(1, 20)]);
    d.device = DeviceKind::Cpu;
    let mut a = host("a", vec![]);
    a.memory_free = Bytes::gib(50);
    let w = world(vec![a, host("b", vec![])]);
    let placement = place(&w, &d).unwrap();
    let hosts: Vec<&str> = placement.replicas.iter().map(|r| r.host.as_str()).collect();
    assert_eq!(hosts, ["b", "a", "b"]);
    assert_eq!(shown(&placement), "cpu | cpu | cpu");
    d.replicas = 6;
    let refusal = place(&w, &d).unwrap_err();
    assert_eq!(refusal.fitting, 5);
    assert!(refusal.hint().unwrap().contains("lower replicas to 5"));
    // Present replicas give their memory back when they go.
    d.reuse = vec![Reuse { devices: vec![DeviceId::Cpu], ..present(1, 0, "a", &[]) }];
    let placement = place(&w, &d).unwrap();
    assert_eq!(placement.replicas.iter().filter(|r| !r.in_place_of.is_empty()).count(), 1);
}

#[test]
fn a_requirement_and_racks_are_kept_to() {
    let in_rack = |name: &str, rack: &str| {
        let mut host = box_of(name, 2, 2);
        host.labels.insert("rack".to_owned(), rack.to_owned());
        host
    };
    let w = world(vec![in_rack("a", "r1"), in_rack("b", "r1"), in_rack("c", "r2")]);
    let mut d = demand(2, vec![need(2, 40)]);
    d.placement.spread = Spread::Rack;
    assert_eq!(shown(&place(&w, &d).unwrap()), "a-0,a-1 | c-0,c-1");
    d.placement.require = Some("host.rack == 'r1' && gpu.memory >= 80GiB".to_owned());
    let placement = place(&w, &d).unwrap();
    assert_eq!(shown(&placement), "a-0,a-1 | b-0,b-1");
    assert_eq!(placement.reasons[1], "c: host.rack == 'r1' fails: host.rack is 'r2'");
    d.placement.require = Some("gpu.memory > 80GiB".to_owned());
    let refusal = place(&w, &d).unwrap_err();
    assert_eq!(refusal.reasons[0], "a: gpu.memory > 80GiB fails: gpu.memory is 80.0 GiB");
}

fn any_world() -> impl Strategy<Value = (World, Demand)> {
    let a_gpu = (
        1u64..5,
        0u64..5,
        prop::bool::weighted(0.9),
        prop::option::of(0u32..2),
        prop::bool::weighted(0.85),
    );
    let a_host = (prop::collection::vec(a_gpu, 0..5), prop::bool::weighted(0.9));
    let hosts = prop::collection::vec(a_host, 0..4);
    (hosts, 1u32..4, 1u32..4, 1u64..5, any::<bool>(), any::<u8>()).prop_map(
        |(hosts, replicas, tensor, gib, pack, reuse)| {
            let hosts = hosts
                .into_iter()
                .enumerate()
                .map(|(h, (gpus, up))| {
                    let name = ["a", "b", "c"][h];
                    let gpus = gpus
                        .into_iter()
                        .enumerate()
                        .map(|(i, (total, free, healthy, island, ours))| GpuCapacity {
                            island,
                            numa: Some(i as u32 % 2),
                            healthy: if healthy { Ok(()) } else { Err("lost".into()) },
                            cordoned: None,
                            reserved_by: (!ours).then(|| "other".into()),
                            ..gpu(name, i as u32, total, free.min(total))
                        })
                        .collect();
                    HostCapacity { up, ..host(name, gpus) }
                })
                .collect();
            let mut d = demand(replicas, vec![need(tensor, gib)]);
            d.placement.spread = if pack { Spread::Pack } else { Spread::Host };
            if reuse & 1 == 1 {
                d.reuse.push(present(1, 0, "a", &[0]));
            }
            if reuse & 2 == 2 {
                d.reuse.push(present(1, 1, "b", &[0, 1]));
            }
            (World { hosts }, d)
        },
    )
}

/// Memory a GPU has for this demand, by the rules and not by the solver.
fn has(g: &GpuCapacity, d: &Demand) -> Bytes {
    let reused = d.reuse.iter().any(|r| r.devices.contains(&g.device()));
    match (g.healthy.is_ok(), reused, g.reserved_by.is_some()) {
        (false, ..) | (true, false, true) => Bytes::ZERO,
        (true, true, _) => g.total,
        (true, false, false) => g.free,
    }
}

/// Tries every choice of GPUs for every replica.
fn possible(w: &World, d: &Demand, taken: &mut BTreeSet<String>, replicas: u32) -> bool {
    if replicas == 0 {
        return true;
    }
    let need = d.shapes[0];
    for h in w.hosts.iter().filter(|h| h.up && !h.cordoned) {
        let free: Vec<&GpuCapacity> = h
            .gpus
            .iter()
            .filter(|g| !taken.contains(&g.uuid) && has(g, d) >= need.memory_per_device)
            .collect();
        for mask in 0u32..1 << free.len() {
            if mask.count_ones() as usize != need.devices() {
                continue;
            }
            // Equal ranks: all GPUs of a replica are alike.
            let totals: BTreeSet<Bytes> =
                (0..free.len()).filter(|i| mask & (1 << i) != 0).map(|i| free[i].total).collect();
            if totals.len() > 1 {
                continue;
            }
            let chosen: Vec<String> = (0..free.len())
                .filter(|i| mask & (1 << i) != 0)
                .map(|i| free[i].uuid.clone())
                .collect();
            taken.extend(chosen.iter().cloned());
            let good = possible(w, d, taken, replicas - 1);
            for c in &chosen {
                taken.remove(c);
            }
            if good {
                return true;
            }
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn places_well_and_refuses_only_the_impossible((w, d) in any_world()) {
        let result = place(&w, &d);
        prop_assert_eq!(&result, &place(&w, &d));
        let mut turned = w.clone();
        turned.hosts.reverse();
        prop_assert_eq!(&result, &place(&turned, &d), "the order of hosts must not matter");
        match result {
            Err(refusal) => {
                prop_assert!(!possible(&w, &d, &mut BTreeSet::new(), d.replicas));
                prop_assert!(refusal.fitting < d.replicas);
                prop_assert_eq!(refusal.reasons.len(), w.hosts.len());
                prop_assert!(possible(&w, &d, &mut BTreeSet::new(), refusal.fitting));
            }
            Ok(placement) => {
                prop_assert_eq!(placement.replicas.len(), d.replicas as usize);
                let mut taken = BTreeSet::new();
                for r in &placement.replicas {
                    let h = w.hosts.iter().find(|h| h.name == r.host).unwrap();
                    prop_assert!(h.up);
                    prop_assert_eq!(r.devices.len(), d.shapes[0].devices());
                    let gpus: Vec<&GpuCapacity> =
                        r.devices.iter().map(|u| h.gpus.iter().find(|g| g.device() == *u).unwrap()).collect();
                    // What the other replicas do not take: were there an island of equal GPUs, it would lie there.
                    let others: BTreeSet<String> = placement.replicas.iter()
                        .filter(|o| *o != r)
                        .flat_map(|o| o.devices.iter().map(ToString::to_string))
                        .collect();
                    let size = |island: u32, total: Bytes| {
                        h.gpus.iter().filter(|g| {
                            g.island == Some(island) && g.total == total && !others.contains(&g.uuid)
                                && has(g, &d) >= d.shapes[0].memory_per_device
                        }).count()
                    };
                    let islands = || (0..2).flat_map(|i| (1..5).map(move |gib| (i, Bytes::gib(gib))));
                    if gpus.len() > 1 && islands().any(|(i, total)| size(i, total) >= gpus.len()) {
                        prop_assert!(gpus[0].island.is_some());
                        prop_assert!(gpus.iter().all(|g| g.island == gpus[0].island));
                    }
                    for g in &gpus {
                        prop_assert!(has(g, &d) >= r.memory_per_device);
                        let old = d.reuse.iter().find(|o| o.devices.contains(&g.device()));
                        prop_assert!(old.is_none_or(|o| r.in_place_of.contains(&o.replica)));
                    }
                    for g in gpus {
                        prop_assert!(taken.insert(g.uuid.clone()), "two replicas on {}", g.uuid);
                    }
                }
            }
        }
    }
}

#[test]
fn a_sample_becomes_a_capacity() {
    let sample: crate::wire::HostSample = serde_json::from_value(serde_json::json!({
        "monotonic_ms": 1, "net_rx_bytes_per_s": null, "gpus": { "some": (0..5).map(|i| serde_json::json!({
            "index": i, "uuid": format!("GPU-{i}"), "name": "H100", "memory": {"used": 1, "total": 10},
            "mig": i == 3,
            "health": if i == 4 { serde_json::json!("lost") } else { serde_json::json!("ok") },
            "throttle_reasons": [], "processes": [],
            // 0-1 and 2-3 are linked, then 1-2 by a link that only one side reports.
            "nvlink_peers": match i { 0 => vec!["GPU-1"], 2 => vec!["GPU-3", "GPU-1"], _ => vec![] },
            // 1-2 are on one switch, 3-4 on several below one port, as one side reports; 0-1 are not.
            "paths": match i {
                1 => serde_json::json!([{"to": "GPU-0", "over": "phb"}, {"to": "GPU-2", "over": "pix"}]),
                4 => serde_json::json!([{"to": "GPU-3", "over": "pxb"}, {"to": "GPU-0", "over": "node"}]),
                _ => serde_json::json!([]),
            },
        })).collect::<Vec<_>>() },
        "memory": {"used": 4, "total": 10},
    }))
    .unwrap();
    let held = BTreeMap::from([(DeviceId::Gpu("GPU-3".into()), "embed".to_owned())]);
    let name = "a".parse().unwrap();
    let host = HostCapacity::observed(name, BTreeMap::new(), true, None, Some(&sample), &held);
    let islands: Vec<Option<u32>> = host.gpus.iter().map(|g| g.island).collect();
    assert_eq!(islands, [Some(0), Some(0), Some(0), Some(0), None]);
    let switches: Vec<Option<u32>> = host.gpus.iter().map(|g| g.pcie_switch).collect();
    assert_eq!(switches, [None, Some(0), Some(0), Some(1), Some(1)]);
    assert_eq!(host.memory_free, Bytes(6));
    assert_eq!(host.gpus[0].free, Bytes(9));
    assert_eq!(host.gpus[3].reserved_by.as_deref(), Some("embed"));
    assert!(host.up && host.gpus[4].healthy.is_err());
    assert_eq!(host.gpus[3].healthy, Err("it is to be divided, and has no instances".to_owned()));
    let name = "a".parse().unwrap();
    let unseen = HostCapacity::observed(name, BTreeMap::new(), true, None, None, &held);
    assert!(!unseen.up);
}

#[test]
fn shapes_that_the_engine_refuses_are_told_either_way() {
    let w = world(vec![box_of("a", 2, 1)]);
    let mut d = demand(1, vec![need(1, 40)]);
    d.refused_shapes = vec!["not on 8 GPUs each: 20 heads cannot be divided".to_owned()];
    assert_eq!(place(&w, &d).unwrap().reasons.last(), d.refused_shapes.last());
    d.replicas = 9;
    assert_eq!(place(&w, &d).unwrap_err().reasons.last(), d.refused_shapes.last());
}

#[test]
fn a_service_may_ask_for_joined_gpus() {
    let hosts = vec![box_of("pairs", 8, 2), box_of("whole", 8, 8)];
    let mut d = demand(1, vec![need(4, 40)]);
    d.placement.link = Link::Nvlink;
    let placed = place(&world(hosts.clone()), &d).unwrap();
    assert!(placed.replicas.iter().all(|r| r.host.as_str() == "whole"), "{placed:?}");
    let pairs = world(hosts[..1].to_vec());
    let refusal = place(&pairs, &d).unwrap_err();
    let why = "pairs: at most 2 of its free GPUs are joined by NVLink, 4 needed";
    assert!(refusal.reasons.iter().any(|r| r == why), "{refusal:?}");
    d.placement.link = Link::Numa;
    assert_eq!(place(&pairs, &d).unwrap().replicas.len(), 1);
}

/// Pairs behind switches, without links: `0, 2` and `1, 3` of each NUMA node of four.
fn switched(name: &str) -> HostCapacity {
    let mut host = box_of(name, 8, 1);
    for gpu in &mut host.gpus {
        gpu.pcie_switch = Some(gpu.index / 4 * 2 + gpu.index % 2);
    }
    host
}

#[test]
fn a_pair_lies_behind_one_switch_where_it_can() {
    let mut a = switched("a");
    let mut d = demand(1, vec![need(2, 40)]);
    let placed = place(&world(vec![a.clone()]), &d).unwrap();
    assert_eq!(shown(&placed), "a-0,a-2");
    assert!(placed.reasons[0].ends_with("on one PCIe switch without NVLink"), "{placed:?}");
    // Four are on one NUMA node, on no switch.
    let four = demand(1, vec![need(4, 40)]);
    let placed = place(&world(vec![a.clone()]), &four).unwrap();
    assert!(placed.reasons[0].ends_with("on one NUMA node without NVLink"), "{placed:?}");
    // Another host has a pair free behind one switch; this one would have to take one of each.
    for at in [0, 1, 6, 7] {
        a.gpus[at].free = Bytes::gib(1);
    }
    let w = world(vec![a.clone(), switched("b")]);
    let placed = place(&w, &d).unwrap();
    assert_eq!(shown(&placed), "b-0,b-2");
    assert!(placed.reasons.iter().any(|r| r == "a: its GPUs are further from each other"));
    let placed = place(&world(vec![a.clone()]), &d).unwrap();
    assert_eq!(shown(&placed), "a-2,a-3");
    // Or it asks for a switch, and has none there.
    d.placement.link = Link::PcieSwitch;
    let refusal = place(&world(vec![a.clone()]), &d).unwrap_err();
    let why = "a: at most 1 of its free GPUs are on one PCIe switch, 2 needed";
    assert!(refusal.reasons.iter().any(|r| r == why), "{refusal:?}");
    assert_eq!(shown(&place(&w, &d).unwrap()), "b-0,b-2");
    // An island will do as well, what an older agent said nothing of will not.
    a.gpus[2..4].iter_mut().for_each(|gpu| gpu.island = Some(0));
    assert_eq!(shown(&place(&world(vec![a.clone()]), &d).unwrap()), "a-2,a-3");
    let unknown = world(vec![box_of("c", 8, 1)]);
    assert!(place(&unknown, &d).is_err());
    d.placement.link = Link::Any;
    assert_eq!(place(&unknown, &d).unwrap().replicas.len(), 1);
}

/// A better placement of the deck leaves them alone; their own next release takes their place all the same.
#[test]
fn replicas_that_may_not_be_moved_stay() {
    let present = Reuse { memory_per_device: Bytes::gib(40), ..present(1, 0, "a", &[0]) };
    let mut d = demand(1, vec![need(1, 40)]);
    d.placement.movable = false;
    d.reuse = vec![present];
    let hosts = vec![box_of("a", 1, 1)];
    let w = world(hosts);
    let hosts = super::sorted(&w);
    let shapes = d.shapes.clone();
    let file = |present| {
        let wanted = super::translate::Wanted { demand: &d, shapes: &shapes, present };
        super::translate::world_file(&hosts, &[wanted])
    };
    let world = file(super::translate::Present::MayStay);
    assert_eq!((world.services[0].movable, world.placements[0].movable), (false, None));
    let mut full = d.clone();
    full.shapes = vec![need(1, 70)];
    let placed = place(&w, &full).unwrap();
    assert_eq!(placed.replicas[0].in_place_of.len(), 1, "{placed:?}");
    assert_eq!(file(super::translate::Present::GiveWay).placements[0].movable, Some(true));
}

fn shaped(tensor: u32, pipeline: u32, data: u32, gib: u64) -> ShapeNeed {
    let of = |n| NonZeroU32::new(n).unwrap();
    let shape = ParallelShape { tensor: of(tensor), pipeline: of(pipeline), data: of(data) };
    ShapeNeed { shape, memory_per_device: Bytes::gib(gib) }
}

/// The link rule holds for each group of `tensor`, and the GPUs are the groups one after another.
#[test]
fn stages_may_lie_on_islands_of_their_own() {
    // Islands of two: 0 and 2, 1 and 3, as the driver counts.
    let mut pairs = box_of("pairs", 4, 1);
    for gpu in &mut pairs.gpus {
        gpu.island = Some(gpu.index % 2);
    }
    let w = world(vec![pairs]);
    let mut d = demand(1, vec![need(4, 40), shaped(2, 2, 1, 40), need(8, 20)]);
    d.placement.link = Link::Nvlink;
    let placed = place(&w, &d).unwrap();
    assert_eq!(placed.replicas[0].shape, d.shapes[1].shape);
    let devices: Vec<String> = placed.replicas[0].devices.iter().map(ToString::to_string).collect();
    let groups = [["pairs-0", "pairs-2"], ["pairs-1", "pairs-3"]];
    assert!(devices == groups.concat() || devices == [groups[1], groups[0]].concat());
    assert!(placed.reasons[0].contains("joined by NVLink"), "{:?}", placed.reasons);
    // Copies are groups, too; a group more than there are islands is told as such.
    d.shapes = vec![shaped(2, 1, 2, 40)];
    assert_eq!(place(&w, &d).unwrap().replicas.len(), 1);
    let mut odd = box_of("odd", 6, 3);
    odd.gpus.truncate(6);
    d.shapes = vec![shaped(2, 3, 1, 40)];
    let refusal = place(&world(vec![odd]), &d).unwrap_err();
    let why = "odd: its free GPUs make 2 groups of 2 that are joined by NVLink, 3 needed";
    assert!(refusal.reasons.iter().any(|r| r == why), "{refusal:?}");
}

/// A pair in an island and a pair behind a switch are two groups behind a switch or nearer.
#[test]
fn groups_may_be_joined_each_in_its_own_way() {
    let mut mixed = box_of("mixed", 4, 1);
    for gpu in &mut mixed.gpus {
        let of_island = gpu.index < 2;
        gpu.island = of_island.then_some(0);
        gpu.pcie_switch = (!of_island).then_some(0);
    }
    let mut d = demand(1, vec![shaped(2, 2, 1, 40)]);
    d.placement.link = Link::PcieSwitch;
    // Where the other host is nearer, that it fits here as well is not denied.
    let fits_as_well = |mixed: &HostCapacity, d: &Demand| {
        let hosts = vec![mixed.clone(), box_of("whole", 4, 4)];
        let placed = place(&world(hosts), d).unwrap();
        assert_eq!(placed.replicas[0].host.as_str(), "whole");
        let told = placed.reasons.iter().find(|r| r.starts_with("mixed: ")).unwrap();
        assert!(!told.contains("groups of"), "{told}");
    };
    fits_as_well(&mixed, &d);
    assert_eq!(place(&world(vec![mixed.clone()]), &d).unwrap().replicas.len(), 1);
    // Two replicas: there is room for one, and no more is said of it than that.
    d.replicas = 2;
    let refusal = place(&world(vec![mixed.clone()]), &d).unwrap_err();
    assert_eq!(refusal.reasons, ["mixed: room for 1 replica and no more"]);
    // By NVLink there is one group.
    d.replicas = 1;
    d.placement.link = Link::Nvlink;
    let refusal = place(&world(vec![mixed.clone()]), &d).unwrap_err();
    let why = "mixed: its free GPUs make 1 groups of 2 that are joined by NVLink, 2 needed";
    assert_eq!(refusal.reasons, [why]);
    // Of an island of three the one is left that has another beside it on its switch.
    for gpu in &mut mixed.gpus {
        gpu.island = (gpu.index < 3).then_some(0);
        gpu.pcie_switch = Some(u32::from(gpu.index == 0 || gpu.index == 3));
    }
    d.placement.link = Link::PcieSwitch;
    fits_as_well(&mixed, &d);
    // Neither is there a group more than there are GPUs.
    d.shapes = vec![shaped(2, 3, 1, 40)];
    mixed.gpus.push(GpuCapacity { numa: Some(1), ..gpu("mixed", 4, 80, 79) });
    mixed.gpus.push(GpuCapacity { numa: Some(0), ..gpu("mixed", 5, 80, 79) });
    let refusal = place(&world(vec![mixed]), &d).unwrap_err();
    let why = "mixed: its free GPUs make 2 groups of 2 that are on one PCIe switch, 3 needed";
    assert_eq!(refusal.reasons, [why]);
}

/// Four GPUs are not told apart by their number: what runs as TP4 is no TP2 with two stages.
#[test]
fn a_running_replica_keeps_the_shape_that_it_has() {
    let divided = shaped(2, 2, 1, 40);
    let runs = |shape| Reuse {
        shape,
        memory_per_device: Bytes::gib(40),
        ..present(1, 0, "a", &[0, 1, 2, 3])
    };
    let world_of = |reuse: Reuse| {
        let mut d = demand(1, vec![need(4, 40), divided]);
        d.reuse = vec![reuse];
        let w = world(vec![box_of("a", 4, 2)]);
        let wanted = super::translate::Wanted {
            demand: &d,
            shapes: &d.shapes,
            present: super::translate::Present::MayStay,
        };
        super::translate::world_file(&super::sorted(&w), &[wanted])
    };
    let degrees = |world: &super::global::WorldFile| {
        world.placements[0].shape.map(|s| (s.tensor, s.pipeline, s.data))
    };
    assert_eq!(degrees(&world_of(runs(divided.shape))), Some((2, 2, 1)));
    assert_eq!(degrees(&world_of(runs(ParallelShape::of_tensor(4)))), Some((4, 1, 1)));
    // One that has lost a GPU is divided no more.
    let lost = Reuse { shape: divided.shape, ..present(1, 0, "a", &[0, 1, 2]) };
    assert_eq!(degrees(&world_of(lost)), None);
}
