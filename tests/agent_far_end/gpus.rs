//! GPUs: the driver's values and a scenario's agree; memory is really waited for; a driver that
//! hangs stops nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpudeck::agent::gpu::nvml::NvmlSource;
use gpudeck::agent::gpu::played::PlayedSource;
use gpudeck::agent::gpu::{GpuSource, Want};
use gpudeck::base::{Bytes, DeviceId};
use gpudeck::wire::{
    DeviceNeed, GPU_NUMBERS, Gpu, GpuHealth, GpuProcess, Gpus, RankStart, Refusal, Reply,
};
use serde_json::{Value, json};

use super::harness::{Agent, LONG, State, nvml_sim, rank, script, start_ticks, until};

const GIB: u64 = 1 << 30;

fn uuid(index: usize) -> String {
    format!("GPU-00000000-0000-4000-8000-{index:012}")
}

fn scenario(gpus: &[Value], free_delay_ms: u64) -> Value {
    json!({ "free_delay_ms": free_delay_ms, "allocations": "allocations", "gpus": gpus })
}

fn h100(index: usize) -> Value {
    json!({
        "uuid": uuid(index), "name": "NVIDIA H100 80GB HBM3",
        "memory_total": 80 * GIB, "memory_reserved": GIB / 2,
    })
}

/// Writes a scenario so that a reader sees the old or the new one.
fn write(dir: &Path, scenario: &Value) -> PathBuf {
    std::fs::create_dir_all(dir.join("allocations")).unwrap();
    let path = dir.join("scenario.json");
    let temp = dir.join("scenario.new");
    std::fs::write(&temp, scenario.to_string()).unwrap();
    std::fs::rename(&temp, &path).unwrap();
    // The kernel's files: on which NUMA node a GPU is.
    for gpu in scenario["gpus"].as_array().unwrap() {
        if let (Some(bus), Some(node)) = (gpu["pci_bus_id"].as_str(), gpu["numa_node"].as_u64()) {
            let name = bus.trim_start_matches("0000").to_lowercase();
            let device = dir.join("sys/bus/pci/devices").join(format!("0000{name}"));
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("numa_node"), format!("{node}\n")).unwrap();
        }
    }
    path
}

/// What an engine does when it takes GPU memory.
fn allocate(dir: &Path, pid: u32, gpu: &str, bytes: u64) -> PathBuf {
    let start = start_ticks(u64::from(pid));
    let content =
        json!({ "pid": pid, "gpu": gpu, "bytes": bytes, "name": "x", "start_time": start });
    let path = dir.join("allocations").join(format!("{pid}.json"));
    std::fs::write(path.with_extension("tmp"), content.to_string()).unwrap();
    std::fs::rename(path.with_extension("tmp"), &path).unwrap();
    path
}

fn with_library(state: &State, scenario: &Path) -> Agent {
    let library = nvml_sim();
    let sysfs = scenario.parent().unwrap().join("sys");
    let env = [
        ("GPUDECK_NVML", library.as_path()),
        ("GPUDECK_SCENARIO", scenario),
        ("GPUDECK_SYSFS", &sysfs),
    ];
    Agent::start_with(state.path(), &env)
}

fn with_scenario(state: &State, scenario: &Path) -> Agent {
    Agent::start_with(state.path(), &[("GPUDECK_SCENARIO", scenario)])
}

fn gpus_of(agent: &mut Agent) -> Vec<Gpu> {
    agent.hello();
    agent.subscribe(100);
    agent.wait(LONG, |a| match &a.samples.last()?.gpus {
        Gpus::Some(gpus) => Some(gpus.clone()),
        other => panic!("{other:?}"),
    })
}

/// What every source of GPU values must show of this scenario.
fn conformance(gpus: &[Gpu], holder: u32) {
    assert_eq!(gpus.len(), 5);
    let [plain, rich, sparse, lost, ecc] = gpus else { unreachable!() };
    assert_eq!((plain.index, plain.uuid.as_str()), (0, uuid(0).as_str()));
    assert_eq!(plain.health, GpuHealth::Ok);
    let memory = plain.memory.unwrap();
    assert_eq!((memory.total, memory.used), (Bytes::gib(80), Bytes(GIB / 2 + 3 * GIB)));
    assert_eq!(plain.listed().len(), 1);
    assert_eq!((plain.listed()[0].pid, plain.listed()[0].memory), (holder, Some(Bytes::gib(3))));
    assert!(!plain.listed()[0].name.is_empty() && plain.listed()[0].user.is_some());
    assert!(plain.utilisation_percent.is_some_and(|u| (35..=85).contains(&u)));
    assert!(plain.power_mw.unwrap() > 70_000 && plain.temperature_c.unwrap() > 32);

    assert_eq!(rich.utilisation_percent, Some(17));
    assert_eq!((rich.temperature_c, rich.slowdown_temperature_c), (Some(40), Some(90)));
    assert_eq!((rich.power_mw, rich.power_limit_mw), (Some(123_000), Some(500_000)));
    assert_eq!((rich.sm_clock_mhz, rich.memory_clock_mhz), (Some(1500), Some(2600)));
    assert_eq!((rich.fan_percent, rich.pstate.as_deref()), (Some(30), Some("P2")));
    assert_eq!(rich.throttle_reasons.clone().unwrap(), ["sw_power_cap", "hw_thermal_slowdown"]);
    assert_eq!(rich.pci_bus_id.as_deref(), Some("00000000:9A:00.0"));
    assert_eq!((rich.numa_node, rich.nvlink_peers.to_vec()), (Some(1), vec![uuid(2).into()]));

    assert_eq!(*sparse.nvlink_peers, [uuid(1)]);
    assert!(sparse.memory.is_none() && sparse.utilisation_percent.is_none());
    assert!(sparse.power_mw.is_none() && sparse.fan_percent.is_none());
    assert!(sparse.sm_clock_mhz.is_none() && sparse.pstate.is_none());
    assert!(sparse.ecc_uncorrected.is_none() && sparse.numa_node.is_none());

    assert_eq!((lost.uuid.as_str(), &lost.health), (uuid(3).as_str(), &GpuHealth::Lost));
    assert!(lost.memory.is_none());
    assert!(matches!(&ecc.health, GpuHealth::Degraded { why } if why.starts_with("1 uncorrected")));
}

#[test]
fn the_driver_and_the_played_scenario_show_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut gpus: Vec<Value> = (0..5).map(h100).collect();
    for (key, value) in [
        ("utilisation_percent", json!(17)),
        ("temperature_c", json!(40)),
        ("slowdown_temperature_c", json!(90)),
        ("power_mw", json!(123_000)),
        ("power_limit_mw", json!(500_000)),
        ("sm_clock_mhz", json!(1500)),
        ("memory_clock_mhz", json!(2600)),
        ("fan_percent", json!(30)),
        ("pstate", json!(2)),
        ("throttle_reasons", json!(["hw_thermal_slowdown", "sw_power_cap"])),
        ("pci_bus_id", json!("00000000:9A:00.0")),
        ("numa_node", json!(1)),
        ("nvlink_island", json!(4)),
        ("shutdown_temperature_c", json!(92)),
        ("max_sm_clock_mhz", json!(1980)),
        ("max_memory_clock_mhz", json!(2619)),
        ("encoder_percent", json!(11)),
        ("decoder_percent", json!(12)),
        ("bar1_total", json!(128 * GIB)),
        ("bar1_used", json!(GIB)),
        ("pcie", json!({ "generation": 4, "max_generation": 5, "width": 8, "max_width": 16 })),
        ("thermal_margin_c", json!(-2)),
        ("fabric", json!([3, 0])),
        ("ecc_enabled", json!(true)),
        ("ecc_corrected", json!(3)),
        ("ecc_uncorrected_aggregate", json!(1)),
        ("ecc_corrected_aggregate", json!(40)),
        ("remapped_rows", json!(2)),
        ("row_remap_pending", json!(false)),
        ("row_remap_failed", json!(false)),
        ("compute_mode", json!(3)),
        ("persistence", json!(true)),
        ("mig", json!(false)),
    ] {
        gpus[1][key] = value;
    }
    gpus[2]["nvlink_island"] = json!(4);
    gpus[2]["absent"] = json!(["memory", "utilisation", "power", "clocks", "pstate", "ecc"]);
    gpus[3]["health"] = json!("lost");
    gpus[4]["health"] = json!("ecc");
    let path = write(dir.path(), &scenario(&gpus, 0));
    let me = std::process::id();
    allocate(dir.path(), me, &uuid(0), 3 * GIB);

    // Through the agent: the library in its child process, and played without it.
    let (first, second) = (State::new(), State::new());
    let driver = gpus_of(&mut with_library(&first, &path));
    let played = gpus_of(&mut with_scenario(&second, &path));
    conformance(&driver, me);
    conformance(&played, me);
    fn at_rest(process: &GpuProcess) -> GpuProcess {
        GpuProcess {
            cpu_percent: None,
            sm_percent: None,
            host_memory: None,
            running_s: None,
            ..process.clone()
        }
    }
    // And field by field; only what waves with time may differ.
    let still = |gpus: &[Gpu]| -> Vec<Gpu> {
        let calm = |gpu: &Gpu| Gpu {
            utilisation_percent: None,
            memory_utilisation_percent: None,
            temperature_c: None,
            power_mw: None,
            processes: gpu.processes.as_ref().map(|list| list.iter().map(at_rest).collect()),
            ..gpu.clone()
        };
        gpus.iter().map(calm).collect()
    };
    assert_eq!(still(&driver), still(&played));

    let facts = with_library(&first, &path).hello();
    assert_eq!(facts.driver_version.as_deref(), Some("550.90.07"));
    assert_eq!(facts.cuda_version.as_deref(), Some("12.4"));
    assert!(facts.simulated);
}

#[test]
fn no_driver_and_a_broken_scenario_are_hosts_without_gpus() {
    let mut source = NvmlSource::new(Some("/nonexistent/libnvidia-ml.so.1".into()), "/sys".into());
    assert!(matches!(source.read(Want::Due), Gpus::None { why } if why.contains("libnvidia-ml")));
    let mut source = PlayedSource::open(Path::new("/nonexistent/scenario.json"));
    assert!(matches!(source.read(Want::Due), Gpus::None { why } if why.contains("scenario.json")));

    let state = State::new();
    let mut agent = Agent::start(state.path());
    agent.subscribe(100);
    let sample = agent.wait(LONG, |a| a.samples.get(1).cloned());
    assert!(matches!(sample.gpus, Gpus::None { .. }), "{:?}", sample.gpus);
    assert!(sample.memory.is_some() && sample.cpu_percent.is_some() && sample.disk.is_some());
}

fn needing(number: u32, gpu: &str, memory: u64, text: &str) -> RankStart {
    let device = DeviceId::Gpu(gpu.to_owned());
    let needs = vec![DeviceNeed { device, memory: Bytes(memory), healthy: false }];
    RankStart { needs, ..script(number, text) }
}

/// Promise 3: a rank starts only when the memory is really free, not when its holder was stopped.
fn memory_gate(start_agent: impl Fn(&State, &Path) -> Agent) {
    let delay = Duration::from_millis(1500);
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &scenario(&[h100(0)], 1500));
    let state = State::new();
    let mut agent = start_agent(&state, &path);
    let epoch = agent.claim(None, "test", false).unwrap();
    let gpu = uuid(0);

    // The engine learns where to say what it allocates.
    let old = needing(0, &gpu, 60 * GIB, "echo $GPUDECK_SIM_ALLOCATIONS; exec sleep 1000");
    assert_eq!(agent.start_rank(epoch, &old), Ok(Reply::Done));
    let allocations = dir.path().join("allocations");
    let told = format!("{}\n", allocations.display());
    until("the engine runs", || agent.log(&rank(0), Some(0), 1000).text == told);
    let pid = agent.pid(&rank(0));
    let file = allocate(dir.path(), pid, &gpu, 60 * GIB);

    let new = needing(1, &gpu, 60 * GIB, "exec sleep 1000");
    let refused = agent.start_rank(epoch, &new);
    let Err(Refusal::MemoryBusy { free, needed, holders, device }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((free, needed), (Bytes(80 * GIB - GIB / 2 - 60 * GIB), Bytes::gib(60)));
    assert_eq!(device, DeviceId::Gpu(gpu.clone()));
    assert!(holders[0].starts_with(&format!("pid {pid} sleep 60")), "{holders:?}");

    assert_eq!(agent.stop_rank(epoch, &rank(0), 5000), Ok(Reply::Done));
    let stopped = Instant::now();
    // Its process is gone, its memory is not yet.
    let refused = agent.start_rank(epoch, &new);
    let Err(Refusal::MemoryBusy { holders, .. }) = refused else { panic!("{refused:?}") };
    assert!(holders.is_empty(), "{holders:?}");
    assert_eq!(agent.status(&rank(1)), None, "nothing was started");
    until("the memory is free", || match agent.start_rank(epoch, &new) {
        Ok(Reply::Done) => true,
        Err(Refusal::MemoryBusy { .. }) => false,
        other => panic!("{other:?}"),
    });
    assert!(stopped.elapsed() + Duration::from_millis(100) >= delay, "{:?}", stopped.elapsed());
    assert!(!file.exists(), "the allocation is forgotten");
    agent.pid(&rank(1));
}

/// What is new is not begun on a GPU with errors; what ran there may begin again.
#[test]
fn a_gpu_with_errors_takes_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    let mut broken = h100(0);
    broken["row_remap_failed"] = true.into();
    let path = write(dir.path(), &scenario(&[broken, h100(1)], 0));
    let state = State::new();
    let mut agent = with_scenario(&state, &path);
    let epoch = agent.claim(None, "test", false).unwrap();
    let start = |number: u32, gpu: usize, healthy: bool| {
        let mut start = needing(number, &uuid(gpu), GIB, "exec sleep 1000");
        start.needs[0].healthy = healthy;
        start
    };
    let refused = agent.start_rank(epoch, &start(0, 0, true));
    let Err(Refusal::Failed { message }) = refused else { panic!("{refused:?}") };
    assert!(message.contains("has errors"), "{message}");
    assert_eq!(agent.start_rank(epoch, &start(0, 1, true)), Ok(Reply::Done));
    assert_eq!(agent.start_rank(epoch, &start(1, 0, false)), Ok(Reply::Done));
}

/// What an engine is told that knows its GPUs by nothing but numbers.
fn numbers_are_filled_in(start_agent: impl Fn(&State, &Path) -> Agent) {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), &scenario(&[h100(0), h100(1), h100(2)], 0));
    let state = State::new();
    let mut agent = start_agent(&state, &path);
    let epoch = agent.claim(None, "test", false).unwrap();
    let need = |gpu| DeviceNeed {
        device: DeviceId::Gpu(uuid(gpu)),
        memory: Bytes::gib(1),
        healthy: false,
    };
    let visible = "CUDA_VISIBLE_DEVICES".to_owned();
    let start = RankStart {
        needs: vec![need(2), need(0)],
        env: BTreeMap::from([(visible, GPU_NUMBERS.to_owned())]),
        ..script(0, "echo GPUs $CUDA_VISIBLE_DEVICES; exec sleep 1000")
    };
    assert_eq!(agent.start_rank(epoch, &start), Ok(Reply::Done));
    until("it says its GPUs", || agent.log(&rank(0), Some(0), 1000).text == "GPUs 2,0\n");
}

#[test]
fn gpus_are_given_by_number_as_the_driver_counts() {
    numbers_are_filled_in(with_library);
    numbers_are_filled_in(with_scenario);
}

#[test]
fn memory_is_waited_for_with_a_driver() {
    memory_gate(with_library);
}

#[test]
fn memory_is_waited_for_with_a_played_scenario() {
    memory_gate(with_scenario);
}

#[test]
fn a_driver_that_hangs_stops_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut scene = scenario(&[h100(0)], 0);
    let path = write(dir.path(), &scene);
    let state = State::new();
    let mut agent = with_library(&state, &path);
    assert_eq!(gpus_of(&mut agent).len(), 1);

    scene["hang"] = json!(true);
    write(dir.path(), &scene);
    let before = agent.samples.len();
    agent.wait(LONG, |a| matches!(a.samples.last()?.gpus, Gpus::Hung { .. }).then_some(()));
    // Samples went on meanwhile, with the host's own values.
    let meanwhile = &agent.samples[before..];
    assert!(meanwhile.len() >= 4, "{}", meanwhile.len());
    assert!(meanwhile.iter().all(|s| s.memory.is_some() && s.cpu_percent.is_some()));
    // Nothing is started on what cannot be read, and it is asked for again.
    let epoch = agent.claim(None, "test", false).unwrap();
    let refused = agent.start_rank(epoch, &needing(0, &uuid(0), GIB, "exec sleep 1000"));
    assert!(matches!(refused, Err(Refusal::Busy { .. })), "{refused:?}");

    scene["hang"] = json!(false);
    write(dir.path(), &scene);
    agent.wait(LONG, |a| matches!(a.samples.last()?.gpus, Gpus::Some(_)).then_some(()));
}
