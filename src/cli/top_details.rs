//! The lines that `gpudeck top --details` adds: everything that the host's details on the screen show,
//! each line saying of what it speaks. What is not known is `–`.

use std::time::Duration;

use crate::api::{Bytes, Gpu, GpuProcess, GpuVendor, HostView, MemoryUse, time};

/// Longest list of disks or interfaces.
const MOST: usize = 16;

fn or_dash<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| v.to_string())
}

fn text(words: &str) -> &str {
    if words.is_empty() { "–" } else { words }
}

fn unit<T: std::fmt::Display>(value: Option<T>, unit: &str) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v}{unit}"))
}

fn memory(memory: Option<MemoryUse>) -> String {
    or_dash(memory.map(|m| format!("{} of {}", m.used, m.total)))
}

fn rate(bytes: Option<u64>) -> String {
    or_dash(bytes.map(|b| format!("{}/s", Bytes(b))))
}

fn yes(flag: Option<bool>) -> &'static str {
    match flag {
        None => "–",
        Some(true) => "yes",
        Some(false) => "no",
    }
}

/// What a host is: system, driver, engine, clock, disks, interfaces.
pub(super) fn of_host(host: &HostView) -> Vec<String> {
    let name = &host.name;
    let mut lines = Vec::new();
    if let Some(facts) = &host.facts {
        let engine = facts.container_engine.as_ref();
        let version = engine.and_then(|e| e.version.as_deref()).unwrap_or_default();
        let engine = or_dash(engine.map(|e| format!("{} {version}", e.name)));
        lines.push(format!(
            "{name} system: {}, kernel {}, {} processors, {} NUMA nodes, driver {}, CUDA {}, container engine {}",
            text(&facts.os),
            text(&facts.kernel),
            or_dash(facts.known_cpus()),
            or_dash(facts.numa_nodes),
            or_dash(facts.driver_version.as_deref()),
            or_dash(facts.cuda_version.as_deref()),
            engine.trim_end(),
        ));
        for disk in facts.disks.iter().take(MOST) {
            let state = if disk.holds_state { ", holds the agent's state" } else { "" };
            let (class, size) = (disk.class.word(), or_dash(disk.size));
            lines.push(format!("{name} disk {}: {class}, {size}{state}", disk.name));
        }
        for nic in facts.nics.iter().take(MOST) {
            let up = if nic.up { "up" } else { "down" };
            let speed = unit(nic.speed_mbit_per_s, " Mbit/s");
            let rdma = or_dash(nic.rdma.as_deref());
            lines.push(format!("{name} interface {}: {up}, {speed}, RDMA {rdma}", nic.name));
        }
    }
    if let Some(sample) = &host.sample {
        let uptime = sample.uptime_s.map(|s| time::short(Duration::from_secs(s)));
        lines.push(format!(
            "{name} since boot {}, clock {}, disk {}, received {}, sent {}",
            or_dash(uptime),
            or_dash(host.clock.map(|c| {
                let side = if c.offset_ms < 0 { "behind" } else { "ahead of" };
                format!("{} ms {side} ours", c.offset_ms.unsigned_abs())
            })),
            memory(sample.disk),
            rate(sample.net_rx_bytes_per_s),
            rate(sample.net_tx_bytes_per_s),
        ));
    }
    lines
}

/// What a GPU is and does, beyond its own line; `all` are the GPUs of its host.
pub(super) fn of_gpu(host: &HostView, all: &[Gpu], gpu: &Gpu) -> Vec<String> {
    let name = format!("{} GPU {}", host.name, gpu.index);
    let index_of = |uuid: &str| all.iter().find(|g| g.uuid == uuid).map(|g| g.index);
    let mut lines = vec![
        format!("{name} is {} {} at {}", gpu.name, gpu.uuid, or_dash(gpu.pci_bus_id.as_deref())),
        format!(
            "{name} clocks: {} of {} MHz, memory {} of {} MHz, state {}, fan {}, slows down at {}, off at {}",
            or_dash(gpu.sm_clock_mhz),
            or_dash(gpu.max_sm_clock_mhz),
            or_dash(gpu.memory_clock_mhz),
            or_dash(gpu.max_memory_clock_mhz),
            or_dash(gpu.pstate.as_deref()),
            unit(gpu.fan_percent, " %"),
            unit(gpu.slowdown_temperature_c, " °C"),
            unit(gpu.shutdown_temperature_c, " °C"),
        ),
        format!(
            "{name} units: memory {}, encoder {}, decoder {}, BAR1 {}{}{}",
            unit(gpu.memory_utilisation_percent, " %"),
            unit(gpu.encoder_percent, " %"),
            unit(gpu.decoder_percent, " %"),
            memory(gpu.bar1),
            gpu.thermal_margin_c.map(|left| format!(", slowdown in {left} °C")).unwrap_or_default(),
            gpu.fabric.as_ref().map(|f| format!(", NVSwitch fabric {f}")).unwrap_or_default(),
        ),
        format!(
            "{name} PCI Express: generation {} of {}, lanes {} of {}, to it {}, from it {}{}, NUMA node {}",
            or_dash(gpu.pcie.generation),
            or_dash(gpu.pcie.max_generation),
            or_dash(gpu.pcie.width),
            or_dash(gpu.pcie.max_width),
            rate(gpu.pcie.rx_bytes_per_s),
            rate(gpu.pcie.tx_bytes_per_s),
            gpu.pcie
                .bytes_per_s
                .map(|r| format!(", together {}", rate(Some(r))))
                .unwrap_or_default(),
            or_dash(gpu.numa_node),
        ),
    ];
    let peers: Vec<String> = gpu.nvlink_peers.iter().map(|uuid| or_dash(index_of(uuid))).collect();
    if gpu.nvlink.links.or(gpu.nvlink.active).is_some() || !peers.is_empty() {
        let links = match gpu.vendor {
            GpuVendor::Nvidia => "NVLink",
            GpuVendor::Amd => "XGMI",
        };
        lines.push(format!(
            "{name} {links}: {} of {} up, to it {}, from it {}, to GPU {}",
            or_dash(gpu.nvlink.active),
            or_dash(gpu.nvlink.links),
            rate(gpu.nvlink.rx_bytes_per_s),
            rate(gpu.nvlink.tx_bytes_per_s),
            peers.join(", "),
        ));
    }
    if !gpu.paths.is_empty() {
        let ways: Vec<String> = gpu
            .paths
            .iter()
            .map(|path| format!("{} {}", or_dash(index_of(&path.to)), path.over.word()))
            .collect();
        lines.push(format!("{name} ways to the others: {}", ways.join(", ")));
    }
    lines.push(format!(
        "{name} memory errors: correction {}, uncorrected {} (ever {}), corrected {} (ever {})",
        yes(gpu.ecc_enabled),
        or_dash(gpu.ecc_uncorrected),
        or_dash(gpu.ecc_uncorrected_aggregate),
        or_dash(gpu.ecc_corrected),
        or_dash(gpu.ecc_corrected_aggregate),
    ));
    lines.push(format!(
        "{name} wear: pages retired {} (pending {}), rows remapped {} (pending {}, failed {})",
        or_dash(gpu.retired_pages),
        yes(gpu.retired_pages_pending),
        or_dash(gpu.remapped_rows),
        yes(gpu.row_remap_pending),
        yes(gpu.row_remap_failed),
    ));
    lines.push(format!(
        "{name} modes: compute {}, persistence {}, divided {}{}",
        or_dash(gpu.compute_mode.as_deref()),
        yes(gpu.persistence),
        yes(gpu.mig),
        gpu.partition.as_ref().map(|p| format!(" ({p})")).unwrap_or_default(),
    ));
    for part in &gpu.mig_instances {
        let (id, memory) = (&part.uuid, memory(part.memory));
        lines.push(format!("{name} instance {id}: {}, memory {memory}", part.name));
    }
    lines.extend(gpu.listed().iter().map(|p| process(&name, p)));
    lines
}

fn process(gpu: &str, process: &GpuProcess) -> String {
    let GpuProcess { pid, name, .. } = process;
    let running = process.running_s.map(|s| time::short(Duration::from_secs(s)));
    format!(
        "{gpu} process {pid} {name}: user {}, type {}, container {}, unit {}, memory {}, SM {}, encoder {}, decoder {}, processor {}, host memory {}, for {}, command {}",
        or_dash(process.user.as_deref()),
        or_dash(process.kind.map(crate::api::ProcessKind::word)),
        or_dash(process.container.as_deref()),
        or_dash(process.unit.as_deref()),
        or_dash(process.memory),
        unit(process.sm_percent, " %"),
        unit(process.encoder_percent, " %"),
        unit(process.decoder_percent, " %"),
        unit(process.cpu_percent.map(f32::round), " %"),
        or_dash(process.host_memory),
        or_dash(running),
        or_dash(process.command.as_deref()),
    )
}
