//! What gpudeck shows of hosts in all kinds of trouble: the real agent and its NVML code over a
//! simulated library (`tests/nvml-sim`), scenario by scenario.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "nvml_scenarios/follower.rs"]
mod follower;
#[path = "nvml_scenarios/scenes.rs"]
mod scenes;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gpudeck::agent::gpu::child::{ChildLine, ask_line};
use gpudeck::agent::gpu::{GpuSource, Want, played::PlayedSource};
use gpudeck::base::Bytes;
use gpudeck::placement::HostCapacity;
use gpudeck::wire::{Gpu, GpuHealth, Gpus, PathKind, ProcessKind};
use serde_json::json;

use follower::Follower;
use scenes::{GIB, Scene, h100s, l40s, nvml_sim};

#[test]
fn eight_h100_on_nvlink() {
    let mut gpus = h100s(8);
    gpus[2]["encoder_percent"] = json!(4);
    gpus[2]["decoder_percent"] = json!(7);
    let mut scene = Scene::new(gpus);
    scene.allocate(std::process::id(), 2, 40 * GIB);
    let mut follower = Follower::start(&scene, true);
    let gpus = follower.wait("traffic", |s| {
        let gpus = s.gpus.list();
        // Of all links, not of the first of seven alone.
        let sum = |rate: Option<u64>, kib: u64| rate.is_some_and(|r| r > kib * 1024 / 2);
        let rates = gpus.iter().all(|g| {
            sum(g.nvlink.rx_bytes_per_s, 1_000_000) && sum(g.nvlink.tx_bytes_per_s, 2_000_000)
        });
        (gpus.len() == 8 && rates).then(|| gpus.to_vec())
    });
    for gpu in &gpus {
        assert_eq!((gpu.nvlink.links, gpu.nvlink.active), (Some(18), Some(7)));
        assert_eq!(gpu.nvlink_peers.len(), 7);
        assert_eq!(gpu.paths.len(), 7);
        assert_eq!((gpu.pcie.generation, gpu.pcie.max_generation), (Some(5), Some(5)));
        assert_eq!((gpu.pcie.width, gpu.pcie.rx_bytes_per_s), (Some(16), Some(2_048_000)));
        assert_eq!((gpu.sm_clock_mhz, gpu.max_sm_clock_mhz), (Some(1980), Some(1980)));
        let encoder = if gpu.index == 2 { 4 } else { 0 };
        assert_eq!((gpu.max_memory_clock_mhz, gpu.encoder_percent), (Some(2619), Some(encoder)));
        assert_eq!((gpu.slowdown_temperature_c, gpu.shutdown_temperature_c), (Some(87), Some(92)));
        assert_eq!((gpu.thermal_margin_c, gpu.fabric.as_deref()), (Some(55), Some("completed")));
        assert_eq!(gpu.bar1.unwrap().total, Bytes::gib(128));
        assert_eq!((gpu.persistence, gpu.compute_mode.as_deref()), (Some(true), Some("default")));
        assert_eq!((gpu.ecc_enabled, gpu.ecc_corrected), (Some(true), Some(0)));
        assert_eq!((gpu.row_remap_pending, gpu.remapped_rows), (Some(false), Some(0)));
        // What this GPU does not have is absent, not zero.
        assert_eq!((gpu.fan_percent, gpu.retired_pages), (None, None));
        assert_eq!(gpu.mig, Some(false));
    }
    assert_eq!(gpus[0].paths[0].over, PathKind::Pix);
    assert_eq!(gpus[0].paths[6].over, PathKind::Sys);
    let process = &gpus[2].listed()[0];
    assert_eq!((process.pid, process.memory), (std::process::id(), Some(Bytes::gib(40))));
    assert_eq!(process.kind, Some(ProcessKind::Compute));
    assert!(process.sm_percent.is_some() && process.host_memory.is_some());
    assert_eq!((process.encoder_percent, process.decoder_percent), (Some(4), Some(7)));
    assert!(process.command.as_ref().is_some_and(|c| c.contains("nvml_scenarios")));
    assert!(process.user.is_some() && process.running_s.is_some());
    let process = follower.wait("processor use", |s| {
        let process = s.gpus.list().get(2)?.listed().first()?;
        process.cpu_percent.map(|_| process.clone())
    });
    assert_eq!(process.pid, std::process::id());
}

#[test]
fn four_l40s_over_two_numa_nodes() {
    let mut gpus = l40s();
    // Those of the second processor have ports of their own.
    gpus[3]["pcie_switch"] = json!(null);
    let scene = Scene::new(gpus);
    let mut follower = Follower::start(&scene, false);
    let (sample, gpus) = follower.wait("GPUs", |s| {
        let gpus = s.gpus.list();
        (gpus.len() == 4).then(|| (s.clone(), gpus.to_vec()))
    });
    let nodes: Vec<_> = gpus.iter().map(|g| g.numa_node).collect();
    assert_eq!(nodes, [Some(0), Some(0), Some(1), Some(1)]);
    let over = |gpu: &Gpu| gpu.paths.iter().map(|p| p.over).collect::<Vec<_>>();
    assert_eq!(over(&gpus[0]), [PathKind::Pix, PathKind::Sys, PathKind::Sys]);
    assert_eq!(over(&gpus[2]), [PathKind::Sys, PathKind::Sys, PathKind::Node]);
    // And so placing knows it.
    let (name, none) = ("l40s".parse().unwrap(), BTreeMap::new());
    let seen = HostCapacity::observed(name, none, true, None, Some(&sample), &BTreeMap::new());
    let switches: Vec<_> = seen.gpus.iter().map(|g| (g.pcie_switch, g.numa, g.island)).collect();
    let on = |switch, numa| (switch, Some(numa), None);
    assert_eq!(switches, [on(Some(0), 0), on(Some(0), 0), on(None, 1), on(None, 1)]);
    assert!(gpus.iter().all(|g| g.nvlink_peers.is_empty() && g.nvlink.links.is_none()));
    assert_eq!((gpus[0].pcie.generation, gpus[0].pcie.max_generation), (Some(1), Some(4)));
    assert!(gpus.iter().all(|g| g.pcie.rx_bytes_per_s.is_none()), "nobody looks at it");
    assert_eq!(gpus[0].fan_percent, Some(30));
}

#[test]
fn processes_that_a_driver_does_not_tell_are_not_none() {
    let mut gpus = h100s(4);
    // As of a divided GPU that is asked by somebody else than root, and of a driver before R510.
    gpus[0]["absent"] = json!(["processes"]);
    gpus[1]["absent"] = json!(["processes_v3"]);
    gpus[3]["health"] = json!("lost");
    let mut scene = Scene::new(gpus);
    for gpu in 0..2 {
        scene.allocate(std::process::id(), gpu, 40 * GIB);
    }
    let mut follower = Follower::start(&scene, false);
    let gpus = follower.gpus(4);
    let counts: Vec<_> = gpus.iter().map(|g| g.processes.as_ref().map(Vec::len)).collect();
    assert_eq!(counts, [None, Some(1), Some(0), None]);
}

#[test]
fn mig_instances_are_devices() {
    let mut gpus = h100s(1);
    gpus[0]["mig"] = json!(true);
    gpus[0]["mig_instances"] = json!([
        { "uuid": "MIG-1", "name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "memory_total": 40 * GIB, "memory_used": GIB },
        { "uuid": "MIG-2", "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "memory_total": 10 * GIB },
    ]);
    let scene = Scene::new(gpus);
    let mut follower = Follower::start(&scene, false);
    let gpu = follower.gpus(1).remove(0);
    assert_eq!(gpu.mig, Some(true));
    let [large, small] = &gpu.mig_instances[..] else { panic!("{:?}", gpu.mig_instances) };
    assert_eq!((large.uuid.as_str(), large.name.ends_with("3g.40gb")), ("MIG-1", true));
    let memory = large.memory.unwrap();
    assert_eq!((memory.used, memory.total), (Bytes::gib(1), Bytes::gib(40)));
    assert_eq!(small.memory.unwrap().used, Bytes::ZERO);
    // The played source shows the same.
    let Gpus::Some(played) = PlayedSource::open(&scene.path()).read(Want::Due) else { panic!() };
    assert_eq!(played[0].mig_instances, gpu.mig_instances);
}

#[test]
fn memory_is_that_of_the_instance_also_where_one_is_missing_before_it() {
    let part = |name: &str, gib: u64, place: usize| {
        let uuid = format!("MIG-{name}");
        let used = gib * GIB / 2;
        json!({ "uuid": uuid, "name": name, "memory_total": gib * GIB, "memory_used": used, "place": place })
    };
    let mut gpus = h100s(2);
    gpus[0]["mig"] = json!(true);
    gpus[0]["mig_instances"] = json!([part("a", 20, 0), part("c", 40, 2)]);
    let mut scene = Scene::new(gpus);
    let mut child = Counted::start(&scene);
    let seen = |gpus: &[gpudeck::wire::Gpu], gpu: usize| -> Vec<(String, Option<Bytes>)> {
        let parts = gpus[gpu].mig_instances.iter();
        parts.map(|p| (p.uuid.to_string(), p.memory.map(|m| m.total))).collect()
    };
    let is = |name: &str, gib: u64| (format!("MIG-{name}"), Some(Bytes::gib(gib)));
    assert_eq!(seen(&child.read(Want::Due), 0), [is("a", 20), is("c", 40)]);

    // Instances change, and another GPU is divided: what a decision hangs on is of now.
    scene.change(|gpus| {
        gpus[0]["mig_instances"] = json!([part("b", 10, 1), part("c", 40, 2)]);
        gpus[1]["mig"] = json!(true);
        gpus[1]["mig_instances"] = json!([part("d", 30, 3)]);
    });
    let gpus = child.read(Want::Fresh);
    assert_eq!(seen(&gpus, 0), [is("b", 10), is("c", 40)]);
    assert_eq!(seen(&gpus, 1), [is("d", 30)]);
}

#[test]
fn a_gpu_whose_memory_cannot_be_read_is_not_well() {
    const UNKNOWN: u32 = 999;
    const NO_PERMISSION: u32 = 4;
    let mut gpus = h100s(4);
    gpus[1]["errors"] = json!({ "memory": UNKNOWN });
    gpus[2]["absent"] = json!(["memory"]);
    gpus[3]["errors"] = json!({ "memory": NO_PERMISSION });
    gpus[3]["mig"] = json!(true);
    let scene = Scene::new(gpus);
    let mut follower = Follower::start(&scene, false);
    let gpus = follower.gpus(4);
    assert_eq!(gpus[0].health, GpuHealth::Ok);
    let GpuHealth::Degraded { why } = &gpus[1].health else { panic!("{:?}", gpus[1].health) };
    assert!(why.starts_with("its memory cannot be read: "), "{why}");
    assert!(gpus[1].memory.is_none() && gpus[1].temperature_c.is_some());
    // There is nothing wrong with what has no memory to tell of, or tells it to root alone.
    assert_eq!((&gpus[2].health, gpus[2].memory), (&GpuHealth::Ok, None));
    assert_eq!((&gpus[3].health, gpus[3].memory), (&GpuHealth::Ok, None));
}

#[test]
fn rising_memory_errors_degrade() {
    let mut scene = Scene::new(h100s(2));
    let mut follower = Follower::start(&scene, false);
    assert!(follower.gpus(2).iter().all(|g| g.health == GpuHealth::Ok));
    scene.change(|gpus| {
        gpus[1]["ecc_corrected"] = json!(3);
        gpus[1]["ecc_corrected_aggregate"] = json!(44);
    });
    let gpu = follower.wait("corrected errors", |s| {
        s.gpus.list().get(1).filter(|g| g.ecc_corrected == Some(3)).cloned()
    });
    assert_eq!((&gpu.health, gpu.ecc_corrected_aggregate), (&GpuHealth::Ok, Some(44)));
    scene.change(|gpus| {
        gpus[1]["ecc_uncorrected"] = json!(2);
        gpus[1]["row_remap_pending"] = json!(true);
    });
    let gpu = follower.wait("uncorrected errors", |s| {
        s.gpus.list().get(1).filter(|g| g.health != GpuHealth::Ok).cloned()
    });
    assert_eq!((gpu.ecc_uncorrected, gpu.row_remap_pending), (Some(2), Some(true)));
    assert!(matches!(&gpu.health, GpuHealth::Degraded { why } if why.starts_with("2 uncorrected")));
}

#[test]
fn an_xid_is_told_at_once_and_79_is_a_lost_gpu() {
    let mut scene = Scene::new(h100s(2));
    // An hour between samples: what comes sooner comes because something happened.
    let mut follower = Follower::start_every(&scene, 3_600_000, false);
    assert_eq!(follower.gpus(2)[0].xid, None);
    scene.change(|gpus| gpus[0]["xids"] = json!([31]));
    let gpu =
        follower.wait("the first Xid", |s| s.gpus.list()[0].xid.map(|_| s.gpus.list()[0].clone()));
    assert_eq!((gpu.xid.unwrap().code, gpu.xid.unwrap().count), (31, 1));
    assert_eq!(gpu.health, GpuHealth::Ok, "a program's own fault");
    scene.change(|gpus| gpus[0]["xids"] = json!([31, 48]));
    let gpu = follower.wait("the second Xid", |s| {
        s.gpus.list()[0].xid.filter(|x| x.code == 48).map(|_| s.gpus.list()[0].clone())
    });
    assert_eq!(gpu.xid.unwrap().count, 2);
    assert!(matches!(&gpu.health, GpuHealth::Degraded { why } if why.contains("uncorrectable")));
    scene.change(|gpus| {
        gpus[1]["xids"] = json!([79]);
        gpus[1]["health"] = json!("lost");
        // It does not say any more who it is.
        gpus[1]["absent"] = json!(["identity_of_lost"]);
    });
    let gpu = follower.wait("the lost GPU and why", |s| {
        let gpu = s.gpus.list().get(1).filter(|g| g.health == GpuHealth::Lost);
        gpu.filter(|g| g.xid.is_some()).cloned()
    });
    assert_eq!((gpu.uuid.as_str(), gpu.memory), (scene.uuid(1).as_str(), None));
    assert_eq!(gpu.xid.map(|x| x.code), Some(79));
}

#[test]
fn memory_that_wears_out_and_a_gpu_that_goes_without_an_event_are_told_at_once() {
    let mut scene = Scene::new(h100s(4));
    let mut follower = Follower::start_every(&scene, 3_600_000, false);
    assert!(follower.gpus(4).iter().all(|g| g.health == GpuHealth::Ok));
    // The first look may come after the first sample.
    let looked = Instant::now() + Duration::from_secs(60);
    let looks = || {
        let calls = std::fs::read_to_string(scene.calls()).unwrap();
        calls.lines().filter(|call| *call == "ecc").count()
    };
    let first = looks();
    while looks() < first + 4 {
        assert!(Instant::now() < looked, "nobody looks");
        std::thread::sleep(Duration::from_millis(20));
    }
    scene.change(|gpus| gpus[1]["row_remap_pending"] = json!(true));
    follower.wait("the row", |s| {
        let gpu = s.gpus.list().get(1).filter(|g| g.health != GpuHealth::Ok)?;
        gpu.row_remap_pending.filter(|pending| *pending)
    });
    scene.change(|gpus| gpus[2]["ecc_uncorrected"] = json!(1));
    follower.wait("the error", |s| {
        s.gpus
            .list()
            .get(2)
            .filter(|g| g.health != GpuHealth::Ok && g.ecc_uncorrected == Some(1))
            .map(|_| ())
    });
    scene.change(|gpus| gpus[3]["health"] = json!("lost"));
    follower.wait("the lost GPU", |s| {
        s.gpus.list().get(3).filter(|g| g.health == GpuHealth::Lost).map(|_| ())
    });
}

#[test]
fn what_a_driver_does_not_tell_any_more_is_gone() {
    let mut scene = Scene::new(h100s(2));
    let mut follower = Follower::start(&scene, true);
    follower.wait("counters and traffic", |s| {
        let gpu = s.gpus.list().first()?;
        (gpu.ecc_corrected_aggregate.is_some() && gpu.nvlink.rx_bytes_per_s.is_some()).then_some(())
    });
    scene.change(|gpus| {
        gpus[0]["absent"] = json!(["ecc"]);
        // With the last peer the last link is down; the counters of links go on.
        gpus.truncate(1);
    });
    let gpu = follower.wait("neither", |s| {
        let gpu = s.gpus.list().first()?;
        (gpu.ecc_uncorrected.is_none() && gpu.nvlink.active == Some(0)).then(|| gpu.clone())
    });
    assert_eq!((gpu.ecc_corrected, gpu.ecc_corrected_aggregate), (None, None));
    assert_eq!(gpu.ecc_uncorrected_aggregate, None);
    assert_eq!((gpu.nvlink.rx_bytes_per_s, gpu.nvlink.tx_bytes_per_s), (None, None));
}

#[test]
fn events_are_waited_for_also_where_no_gpu_tells_them_at_first() {
    let mut gpus = h100s(1);
    gpus[0]["absent"] = json!(["event_types"]);
    let mut scene = Scene::new(gpus);
    let mut follower = Follower::start(&scene, false);
    follower.gpus(1);
    scene.change(|gpus| {
        gpus[0]["absent"] = json!([]);
        gpus[0]["xids"] = json!([48]);
    });
    let gpu =
        follower.wait("the Xid", |s| s.gpus.list().first().filter(|g| g.xid.is_some()).cloned());
    assert_eq!(gpu.xid.map(|x| x.code), Some(48));
}

#[test]
fn what_a_driver_logs_after_a_grave_xid_does_not_make_the_gpu_well() {
    let mut scene = Scene::new(h100s(3));
    let mut follower = Follower::start_every(&scene, 3_600_000, false);
    assert!(follower.gpus(3).iter().all(|g| g.health == GpuHealth::Ok));
    scene.change(|gpus| {
        gpus[0]["xids"] = json!([48, 45]);
        gpus[1]["xids"] = json!([79, 45]);
        gpus[2]["xids"] = json!([119, 154, 45]);
    });
    let gpus = follower.wait("the last Xids", |s| {
        let gpus = s.gpus.list();
        gpus.iter().all(|g| g.xid.is_some_and(|x| x.code == 45)).then(|| gpus.to_vec())
    });
    let degraded = |gpu: &gpudeck::wire::Gpu, code: &str| matches!(&gpu.health, GpuHealth::Degraded { why } if why.starts_with(code));
    assert!(degraded(&gpus[0], "Xid 48:"), "{:?}", gpus[0].health);
    assert_eq!(gpus[1].health, GpuHealth::Lost);
    assert!(degraded(&gpus[2], "Xid 119:"), "{:?}", gpus[2].health);
    assert_eq!(gpus[2].grave_xid.map(|x| x.count), Some(1));
    // The played source shows the same.
    let Gpus::Some(played) = PlayedSource::open(&scene.path()).read(Want::Due) else { panic!() };
    let health =
        |gpus: &[gpudeck::wire::Gpu]| gpus.iter().map(|g| g.health.clone()).collect::<Vec<_>>();
    assert_eq!(health(&played), health(&gpus));
}

#[test]
fn a_grave_xid_is_not_forgotten_with_the_process_that_was_told() {
    let mut scene = Scene::new(h100s(2));
    let mut follower = Follower::start(&scene, false);
    follower.gpus(2);
    let file = follower.state_dir().join("xids.json");
    scene.change(|gpus| gpus[0]["xids"] = json!([13, 48, 45]));
    let last = |s: &gpudeck::wire::HostSample| {
        s.gpus.list().first().filter(|g| g.xid.is_some_and(|x| x.count == 3)).cloned()
    };
    let gpu = follower.wait("all Xids", last);
    assert_eq!(gpu.grave_xid.map(|x| x.code), Some(48));

    // The child is killed: another one knows what the driver will not tell again.
    let child = follower.children();
    assert_eq!(child.len(), 1, "one process asks the driver");
    Command::new("kill").args(["-9", &child[0].to_string()]).status().unwrap();
    follower.until_ended(child[0]);
    assert_ne!(follower.child(), child[0], "another one asks at once");
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let after = std::time::Duration::from_secs_f64(seconds).as_millis();
    let gpu = follower.wait("a reading of the next child", |s| {
        let new = u128::from(s.monotonic_ms) > after && s.gpus_age_ms.is_none();
        s.gpus.list().first().filter(|_| new).cloned()
    });
    assert!(matches!(&gpu.health, GpuHealth::Degraded { why } if why.starts_with("Xid 48:")));
    assert_eq!(gpu.xid.map(|x| (x.code, x.count)), Some((45, 3)));

    // Another agent as well, on the same boot.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !file.exists() {
        assert!(std::time::Instant::now() < deadline, "nothing was kept");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut follower = follower.again(&scene, 200);
    let gpu = follower.gpus(2).remove(0);
    assert!(matches!(&gpu.health, GpuHealth::Degraded { why } if why.starts_with("Xid 48:")));
    assert_eq!(gpu.xid.map(|x| x.code), Some(48));

    // Nor is it known any more once who has reset the GPU has removed the file.
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    follower.wait("the GPU that was reset", |s| {
        s.gpus.list().first().filter(|g| g.health == GpuHealth::Ok && g.xid.is_none()).map(|_| ())
    });
    std::fs::write(&file, &text).unwrap();
    let mut follower = follower.again(&scene, 200);
    let gpu = follower.gpus(2).remove(0);
    assert_eq!(gpu.grave_xid.map(|x| x.code), Some(48));

    // Not after another one.
    let text = std::fs::read_to_string(&file).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&file, text.replace(boot.trim(), "another")).unwrap();
    let mut follower = follower.again(&scene, 200);
    let gpu = follower.gpus(2).remove(0);
    assert_eq!((gpu.health, gpu.xid, gpu.grave_xid), (GpuHealth::Ok, None, None));
}

/// The lost GPUs of the next reading that has so many GPUs: their UUIDs' ends and their indices.
fn lost_of(follower: &mut Follower, count: usize) -> Vec<(String, u32)> {
    let gpus = follower.gpus(count);
    let lost = gpus.iter().filter(|g| g.health == GpuHealth::Lost);
    lost.map(|g| (g.uuid.chars().skip(37).collect(), g.index)).collect()
}

#[test]
fn a_gpu_that_the_driver_lists_no_more_is_lost_until_the_next_boot() {
    let mut gpus = h100s(3);
    for (slot, gpu) in gpus.iter_mut().enumerate() {
        gpu["pci_bus_id"] = json!(format!("00000000:{:02X}:00.0", 0x10 + slot));
    }
    let mut scene = Scene::new(gpus);
    let mut follower = Follower::start(&scene, false);
    follower.gpus(3);
    scene.gpus.remove(1);
    // As a driver does: those that are left are counted anew.
    scene.gpus[1]["index"] = json!(1);
    scene.write();
    follower.wait("the lost GPU", |s| {
        s.gpus.list().iter().any(|g| g.health == GpuHealth::Lost).then_some(())
    });
    let lost = [("001".to_owned(), 2)];
    assert_eq!(lost_of(&mut follower, 3), lost, "its number is another GPU's now");

    // The process that had seen it is killed; the next one was never told of it.
    let child = follower.child();
    Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
    follower.until_ended(child);
    assert_ne!(follower.child(), child);
    let ended = follower.sample.as_ref().unwrap().monotonic_ms;
    let again = |s: &gpudeck::wire::HostSample| {
        (s.monotonic_ms > ended + 1_000 && s.gpus_age_ms.is_none()).then_some(())
    };
    follower.wait("a reading of the next child", again);
    assert_eq!(lost_of(&mut follower, 3), lost);

    // So is the agent.
    let file = follower.state_dir().join("gpus.json");
    let mut follower = follower.again(&scene, 200);
    assert_eq!(lost_of(&mut follower, 3), lost);

    // A GPU that a virtual machine was given is not missed.
    let slot = scene.sysfs().join("bus/pci/devices/0000:11:00.0");
    std::fs::create_dir_all(&slot).unwrap();
    std::os::unix::fs::symlink("../../drivers/vfio-pci", slot.join("driver")).unwrap();
    let mut follower = follower.again(&scene, 200);
    assert_eq!(lost_of(&mut follower, 2), []);
    std::fs::remove_file(slot.join("driver")).unwrap();

    // After a boot nobody knows of it.
    let text = std::fs::read_to_string(&file).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&file, text.replace(boot.trim(), "another")).unwrap();
    let mut follower = follower.again(&scene, 200);
    assert_eq!(lost_of(&mut follower, 2), []);
}

#[test]
fn a_gpu_that_the_kernel_holds_and_the_library_never_lists_is_lost() {
    let mut gpus = h100s(3);
    gpus[1]["health"] = json!("lost");
    gpus[1]["absent"] = json!(["identity_of_lost"]);
    let scene = Scene::new(gpus);
    let slots = scene.path().with_file_name("proc").join("driver/nvidia/gpus");
    for (bus, uuid) in [
        (0x10, "?".to_owned()),
        (0x11, scene.uuid(1)),
        (0x12, scene.uuid(2)),
        (0x13, "?".to_owned()),
    ] {
        let slot = slots.join(format!("0000:{bus:02x}:00.0"));
        std::fs::create_dir_all(&slot).unwrap();
        let text = format!(
            "Model: \t\t NVIDIA H100\nGPU UUID: \t GPU-{}\nGPU Excluded:\t No\n",
            uuid.trim_start_matches("GPU-")
        );
        std::fs::write(slot.join("information"), text).unwrap();
    }
    let mut follower = Follower::start(&scene, false);
    let gpus = follower.gpus(4);
    let seen: Vec<_> = gpus.iter().map(|g| (g.index, g.uuid.as_str(), &g.health)).collect();
    let (first, second, third) = (scene.uuid(0), scene.uuid(1), scene.uuid(2));
    let (well, lost) = (&GpuHealth::Ok, &GpuHealth::Lost);
    let wanted = [
        (0, first.as_str(), well),
        (1, second.as_str(), lost),
        (2, third.as_str(), well),
        (3, "PCI-0000:13:00.0", lost),
    ];
    assert_eq!(seen, wanted);
}

#[test]
fn a_gpu_on_nvswitches_is_degraded_until_their_fabric_is_ready() {
    let mut gpus = h100s(2);
    // As without nvidia-fabricmanager.
    gpus[0]["fabric"] = json!([2, 0]);
    gpus[1]["fabric"] = json!([3, 15]);
    let mut scene = Scene::new(gpus);
    let mut follower = Follower::start(&scene, false);
    let why: Vec<_> = follower.gpus(2).into_iter().map(|gpu| gpu.health).collect();
    for (health, state) in why.iter().zip(["in_progress", "failed (15)"]) {
        let told = matches!(health, GpuHealth::Degraded { why } if why.ends_with(state));
        assert!(told, "{health:?}");
    }
    for gpu in &mut scene.gpus {
        gpu["fabric"] = json!([3, 0]);
    }
    scene.write();
    follower.wait("the fabric", |s| {
        s.gpus.list().iter().all(|gpu| gpu.health == GpuHealth::Ok).then_some(())
    });
}

#[test]
fn a_driver_that_hangs_at_its_start_stops_nothing_else() {
    let mut scene = Scene::new(h100s(2));
    scene.hang_init = true;
    scene.write();
    let mut follower = Follower::start(&scene, false);
    let child = follower.child();
    let first = follower.wait("the hung driver", |s| {
        matches!(s.gpus, Gpus::Hung { for_ms } if for_ms >= 2_900).then(|| s.clone())
    });
    assert!(first.memory.is_some() && first.uptime_s.is_some());
    // The host's own values go on.
    let later = follower.wait("another sample", |s| {
        (s.monotonic_ms > first.monotonic_ms && s.cpu_percent.is_some()).then(|| s.clone())
    });
    assert!(matches!(later.gpus, Gpus::Hung { .. }));
    let told = Instant::now();
    follower.until_ended(child);
    assert!(told.elapsed() < Duration::from_secs(2), "killed when it was told");
}

#[test]
fn a_driver_that_begins_slowly_is_waited_for_once_it_was_killed_for_it() {
    let mut scene = Scene::new(h100s(2));
    scene.hang_init = true;
    scene.write();
    let mut follower = Follower::start(&scene, false);
    follower.until_ended(follower.child());
    let slow = follower.child();
    // Longer than the one before had.
    std::thread::sleep(Duration::from_secs(5));
    scene.hang_init = false;
    scene.write();
    follower.gpus(2);
    assert_eq!(follower.children(), [slow], "it was given the time");
}

#[test]
fn a_driver_that_hangs_is_told_at_once_and_its_child_killed() {
    let mut scene = Scene::new(h100s(2));
    // An hour between samples: nobody asks again after the driver has stopped to answer.
    const HOUR: u64 = 3_600_000;
    let mut follower = Follower::start_every(&scene, HOUR, false);
    follower.gpus(2);
    let child = follower.children();
    assert_eq!(child.len(), 1, "one process asks the driver");
    scene.hang = true;
    scene.write();
    follower.follow(HOUR, false);
    let hung = follower.wait("the hung driver", |s| match s.gpus {
        Gpus::Hung { for_ms } => Some((for_ms, s.clone())),
        _ => None,
    });
    assert!((1_800..4_000).contains(&hung.0), "told after {} ms", hung.0);
    assert!(hung.1.memory.is_some() && hung.1.disk.is_some(), "the host's own values go on");
    follower.until_ended(child[0]);
    // The driver answers again: another child asks it.
    scene.hang = false;
    scene.write();
    follower.follow(200, false);
    follower.gpus(2);
    assert!(!follower.children().contains(&child[0]));
}

#[test]
fn a_driver_that_hangs_is_told_though_nobody_asks() {
    let mut scene = Scene::new(h100s(2));
    let mut follower = Follower::start_every(&scene, 3_600_000, false);
    follower.gpus(2);
    let child = follower.children();
    scene.hang = true;
    scene.write();
    let begun = Instant::now();
    let for_ms = follower.wait("the hung driver", |s| match s.gpus {
        Gpus::Hung { for_ms } => Some(for_ms),
        _ => None,
    });
    // Within 3 seconds: one until the next look, two for it; and a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!((1_800..8_000).contains(&for_ms), "told after {for_ms} ms");
    follower.until_ended(child[0]);
}

#[test]
fn a_library_that_does_not_fit_the_driver_is_named() {
    let mut scene = Scene::new(h100s(1));
    scene.init_error = Some(18);
    scene.write();
    let mut follower = Follower::start(&scene, false);
    let why = follower.wait("why", |s| match &s.gpus {
        Gpus::None { why } => Some(why.clone()),
        _ => None,
    });
    assert!(why.contains("mismatch") && why.contains("reboot"), "{why}");
}

/// A sampler's child that is asked line by line, so that its driver calls can be counted.
struct Counted {
    child: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    calls: std::path::PathBuf,
    seen: usize,
}

impl Counted {
    fn start(scene: &Scene) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
            .args(["agent", "sample", "--sysfs", "/nonexistent", "--library"])
            .arg(nvml_sim())
            .env("GPUDECK_SCENARIO", scene.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, calls: scene.calls(), seen: 0 }
    }

    /// A reading.
    fn read(&mut self, want: Want) -> Vec<gpudeck::wire::Gpu> {
        self.child.stdin.as_mut().unwrap().write_all(ask_line(want)).unwrap();
        loop {
            let line = self.lines.next().unwrap().unwrap();
            if let ChildLine::Sample(line) = serde_json::from_str(&line).unwrap() {
                return line.gpus.list().to_vec();
            }
        }
    }

    /// A reading, and the calls it took; those of the thread that waits for events left out.
    fn calls_of(&mut self, want: Want) -> Vec<String> {
        assert_eq!(self.read(want).len(), 8);
        let text = std::fs::read_to_string(&self.calls).unwrap();
        let all: Vec<String> = text.lines().map(str::to_owned).collect();
        let new = all[self.seen..].to_vec();
        self.seen = all.len();
        let of_events = |call: &String| call == "event_types" || call == "register";
        new.into_iter().filter(|call| !of_events(call)).collect()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_a_driver_call_costs_decides_how_often_it_is_made() {
    let scene = Scene::new(h100s(8));
    let mut counted = Counted::start(&scene);
    let first = counted.calls_of(Want::Due);
    let count = |calls: &[String], name: &str| calls.iter().filter(|c| *c == name).count();
    assert_eq!((count(&first, "topology"), count(&first, "name")), (28, 8), "once a minute");
    assert_eq!(count(&first, "processes"), 16);
    assert_eq!(count(&first, "pcie_throughput"), 0);

    // Whoever is slow may see what takes turns once more; three readings in a row cannot.
    let usual = (0..20)
        .map(|_| counted.calls_of(Want::Due))
        .find(|calls| count(calls, "processes") == 0)
        .expect("processes were read with every sample");
    // The thread for events looks GPUs up once, at its start.
    let of_start = |call: &str| ["handle", "count", "uuid"].contains(&call);
    let work: Vec<&String> = usual.iter().filter(|c| !of_start(c)).collect();
    assert_eq!(work.len(), 8 * 6, "{usual:?}");
    for name in ["memory", "utilisation", "temperature", "power", "clocks", "throttle"] {
        assert_eq!(count(&usual, name), 8, "{name}");
    }

    let looked_at = counted.calls_of(Want::LookedAt);
    assert_eq!(count(&looked_at, "pcie_throughput"), 16);
    let fresh = counted.calls_of(Want::Fresh);
    assert_eq!((count(&fresh, "processes"), count(&fresh, "pcie_throughput")), (16, 0));
    assert_eq!((count(&fresh, "ecc"), count(&fresh, "topology")), (32, 0));
}

#[test]
fn a_first_sample_of_eight_gpus_fits_into_two_packets() {
    let scene = Scene::new(h100s(8));
    let mut follower = Follower::start_every(&scene, 3_600_000, false);
    follower.gpus(8);
    let (plain, told) = (follower.whole_bytes, follower.sample.take().unwrap());
    follower.follow_packed(3_600_000);
    let gpus = follower.gpus(8);
    assert!(follower.whole_bytes <= 2 * 1448, "{} bytes", follower.whole_bytes);
    assert!(plain > 4 * follower.whole_bytes, "{plain} bytes as they are");
    let lasting = |gpus: &[Gpu]| {
        let of = |g: &Gpu| (g.uuid.clone(), g.name.clone(), g.paths.to_vec(), g.memory);
        gpus.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(lasting(&gpus), lasting(told.gpus.list()));
}

#[test]
fn a_host_with_eight_busy_gpus_costs_few_bytes() {
    let mut scene = Scene::new(h100s(8));
    for gpu in 0..8 {
        scene.allocate(std::process::id(), gpu, 40 * GIB);
    }
    for looked_at in [false, true] {
        let mut follower = Follower::start_every(&scene, 1_000, looked_at);
        // The whole first sample, once a connection.
        follower.gpus(8);
        let samples = 12;
        follower.wait_lines(samples);
        let bytes: usize = follower.change_bytes.iter().sum();
        let each = bytes / follower.change_bytes.len();
        assert!(each <= 4096, "{each} bytes a sample (looked at: {looked_at})");
        println!(
            "{each} bytes a sample of 8 busy GPUs, looked at: {looked_at}; whole: {}",
            follower.whole_bytes
        );
    }
}
