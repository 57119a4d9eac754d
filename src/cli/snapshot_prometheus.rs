//! The snapshot in Prometheus' text format. Units are its base units; what is not known has no sample.

use std::fmt::Write as _;
use std::time::Duration;

use crate::api::{
    Gpu, GpuHealth, GpuProcess, Gpus, HostFacts, HostLinkState, HostSample, HostView, MemoryUse,
    Snapshot, Timestamp, age, text,
};

/// One family of metrics: what it is called, what it means, its samples.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    samples: Vec<(String, f64)>,
}

/// All families, in the order in which they were first met.
#[derive(Default)]
struct Families(Vec<Family>);

impl Families {
    fn add(&mut self, name: &'static str, help: &'static str, labels: &str, value: Option<f64>) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let at = self.0.iter().position(|f| f.name == name).unwrap_or_else(|| {
            self.0.push(Family { name, help, kind, samples: Vec::new() });
            self.0.len() - 1
        });
        if let (Some(family), Some(value)) = (self.0.get_mut(at), value) {
            family.samples.push((labels.to_owned(), value));
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let Family { name, help, kind, samples } = family;
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{{{labels}}} {value}");
            }
        }
        out
    }
}

/// A metric: its name, what it means, its value.
type Metric<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

fn percent(p: Option<u32>) -> Option<f64> {
    p.map(|p| f64::from(p) / 100.0)
}
fn used(m: Option<MemoryUse>) -> Option<f64> {
    m.map(|m| m.used.0 as f64)
}
fn total(m: Option<MemoryUse>) -> Option<f64> {
    m.map(|m| m.total.0 as f64)
}
fn small(n: Option<u32>) -> Option<f64> {
    n.map(f64::from)
}
fn count(n: Option<u64>) -> Option<f64> {
    n.map(|n| n as f64)
}
fn flag(f: Option<bool>) -> Option<f64> {
    f.map(|f| f64::from(u8::from(f)))
}
fn hertz(mhz: Option<u32>) -> Option<f64> {
    mhz.map(|mhz| f64::from(mhz) * 1e6)
}
fn watts(mw: Option<u32>) -> Option<f64> {
    mw.map(|mw| f64::from(mw) / 1e3)
}

const HOST: &[Metric<HostSample>] = &[
    ("gpudeck_host_gpu_age_seconds", "Age of the GPU values within the sample, if any.", |s| {
        s.gpus_age_ms.map(|ms| ms as f64 / 1e3)
    }),
    ("gpudeck_host_cpu_ratio", "Use of all processors, 0 to 1.", |s| {
        s.cpu_percent.map(|c| f64::from(c) / 100.0)
    }),
    ("gpudeck_host_load1", "Load average over one minute.", |s| s.load_1m),
    ("gpudeck_host_memory_used_bytes", "Main memory in use.", |s| used(s.memory)),
    ("gpudeck_host_memory_total_bytes", "Main memory.", |s| total(s.memory)),
    ("gpudeck_host_disk_used_bytes", "The disk of the agent's state, in use.", |s| used(s.disk)),
    ("gpudeck_host_disk_total_bytes", "The disk of the agent's state.", |s| total(s.disk)),
    (
        "gpudeck_host_network_receive_bytes_per_second",
        "Received over all physical interfaces.",
        |s| count(s.net_rx_bytes_per_s),
    ),
    ("gpudeck_host_network_transmit_bytes_per_second", "Sent over all physical interfaces.", |s| {
        count(s.net_tx_bytes_per_s)
    }),
    ("gpudeck_host_uptime_seconds", "Since boot.", |s| count(s.uptime_s)),
    ("gpudeck_host_monotonic_seconds", "The host's monotonic clock when it was sampled.", |s| {
        Some(s.monotonic_ms as f64 / 1e3)
    }),
    ("gpudeck_host_gpu_driver_hung", "Whether the GPU driver does not answer.", |s| {
        // Its process that crashes, or cannot be started, is no driver that hangs.
        flag(Some(matches!(s.gpus, Gpus::Hung { .. }) && s.gpu_trouble.is_none()))
    }),
];

const GPU: &[Metric<Gpu>] = &[
    ("gpudeck_gpu_healthy", "Whether nothing is known to be wrong.", |g| {
        flag(Some(g.health == GpuHealth::Ok))
    }),
    ("gpudeck_gpu_lost", "Whether it has fallen off the bus.", |g| {
        flag(Some(g.health == GpuHealth::Lost))
    }),
    ("gpudeck_gpu_utilization_ratio", "Time in which a kernel ran, 0 to 1.", |g| {
        percent(g.utilisation_percent)
    }),
    ("gpudeck_gpu_memory_utilization_ratio", "Time in which memory was used, 0 to 1.", |g| {
        percent(g.memory_utilisation_percent)
    }),
    ("gpudeck_gpu_encoder_ratio", "Use of the video encoder, 0 to 1.", |g| {
        percent(g.encoder_percent)
    }),
    ("gpudeck_gpu_decoder_ratio", "Use of the video decoder, 0 to 1.", |g| {
        percent(g.decoder_percent)
    }),
    ("gpudeck_gpu_memory_used_bytes", "Frame buffer in use.", |g| used(g.memory)),
    ("gpudeck_gpu_memory_total_bytes", "Frame buffer.", |g| total(g.memory)),
    ("gpudeck_gpu_bar1_used_bytes", "Memory window of the processors (BAR1) in use.", |g| {
        used(g.bar1)
    }),
    ("gpudeck_gpu_bar1_total_bytes", "Memory window of the processors (BAR1).", |g| total(g.bar1)),
    ("gpudeck_gpu_temperature_celsius", "Core temperature.", |g| small(g.temperature_c)),
    ("gpudeck_gpu_slowdown_temperature_celsius", "Temperature at which clocks are lowered.", |g| {
        small(g.slowdown_temperature_c)
    }),
    (
        "gpudeck_gpu_shutdown_temperature_celsius",
        "Temperature at which it switches itself off.",
        |g| small(g.shutdown_temperature_c),
    ),
    ("gpudeck_gpu_power_watts", "Power drawn.", |g| watts(g.power_mw)),
    ("gpudeck_gpu_power_limit_watts", "Power limit.", |g| watts(g.power_limit_mw)),
    ("gpudeck_gpu_sm_clock_hertz", "Clock of the multiprocessors.", |g| hertz(g.sm_clock_mhz)),
    ("gpudeck_gpu_sm_clock_max_hertz", "The highest that clock can be.", |g| {
        hertz(g.max_sm_clock_mhz)
    }),
    ("gpudeck_gpu_memory_clock_hertz", "Clock of the memory.", |g| hertz(g.memory_clock_mhz)),
    ("gpudeck_gpu_memory_clock_max_hertz", "The highest that clock can be.", |g| {
        hertz(g.max_memory_clock_mhz)
    }),
    ("gpudeck_gpu_pstate", "Performance state, 0 is the fastest.", |g| {
        g.pstate.as_ref()?.strip_prefix('P')?.parse().ok()
    }),
    ("gpudeck_gpu_fan_ratio", "Fan speed, 0 to 1.", |g| percent(g.fan_percent)),
    ("gpudeck_gpu_pcie_generation", "Generation of PCI Express in use.", |g| {
        small(g.pcie.generation)
    }),
    ("gpudeck_gpu_pcie_generation_max", "The highest that GPU and slot can.", |g| {
        small(g.pcie.max_generation)
    }),
    ("gpudeck_gpu_pcie_lanes", "Lanes of PCI Express in use.", |g| small(g.pcie.width)),
    ("gpudeck_gpu_pcie_lanes_max", "The most that GPU and slot have.", |g| small(g.pcie.max_width)),
    ("gpudeck_gpu_pcie_receive_bytes_per_second", "To the GPU over PCI Express.", |g| {
        count(g.pcie.rx_bytes_per_s)
    }),
    ("gpudeck_gpu_pcie_transmit_bytes_per_second", "From the GPU over PCI Express.", |g| {
        count(g.pcie.tx_bytes_per_s)
    }),
    (
        "gpudeck_gpu_pcie_bytes_per_second",
        "Over PCI Express where the driver does not say which way.",
        |g| count(g.pcie.bytes_per_s),
    ),
    ("gpudeck_gpu_nvlinks", "NVLink links there are.", |g| small(g.nvlink.links)),
    ("gpudeck_gpu_nvlinks_active", "NVLink links that are up.", |g| small(g.nvlink.active)),
    ("gpudeck_gpu_nvlink_receive_bytes_per_second", "To the GPU over NVLink.", |g| {
        count(g.nvlink.rx_bytes_per_s)
    }),
    ("gpudeck_gpu_nvlink_transmit_bytes_per_second", "From the GPU over NVLink.", |g| {
        count(g.nvlink.tx_bytes_per_s)
    }),
    ("gpudeck_gpu_ecc_enabled", "Whether errors of its memory are corrected.", |g| {
        flag(g.ecc_enabled)
    }),
    (
        "gpudeck_gpu_ecc_uncorrected_total",
        "Uncorrected memory errors since the driver was loaded.",
        |g| count(g.ecc_uncorrected),
    ),
    (
        "gpudeck_gpu_ecc_corrected_total",
        "Corrected memory errors since the driver was loaded.",
        |g| count(g.ecc_corrected),
    ),
    (
        "gpudeck_gpu_ecc_uncorrected_aggregate_total",
        "Uncorrected memory errors since it was made.",
        |g| count(g.ecc_uncorrected_aggregate),
    ),
    (
        "gpudeck_gpu_ecc_corrected_aggregate_total",
        "Corrected memory errors since it was made.",
        |g| count(g.ecc_corrected_aggregate),
    ),
    ("gpudeck_gpu_thermal_margin_celsius", "Degrees left until clocks are lowered.", |g| {
        g.thermal_margin_c.map(f64::from)
    }),
    ("gpudeck_gpu_fabric_ready", "Whether it has joined the fabric of its NVSwitches.", |g| {
        flag(g.fabric.as_ref().map(|state| state == crate::api::FABRIC_READY))
    }),
    ("gpudeck_gpu_retired_pages", "Memory pages taken out of use.", |g| small(g.retired_pages)),
    ("gpudeck_gpu_retired_pages_pending", "Whether pages wait to be taken out of use.", |g| {
        flag(g.retired_pages_pending)
    }),
    ("gpudeck_gpu_remapped_rows", "Memory rows replaced by spare ones.", |g| {
        small(g.remapped_rows)
    }),
    ("gpudeck_gpu_row_remap_pending", "Whether rows wait for a reset to be replaced.", |g| {
        flag(g.row_remap_pending)
    }),
    ("gpudeck_gpu_row_remap_failed", "Whether a row could not be replaced.", |g| {
        flag(g.row_remap_failed)
    }),
    ("gpudeck_gpu_last_xid", "Number of the last Xid error.", |g| g.xid.map(|x| x.code as f64)),
    ("gpudeck_gpu_grave_xid", "Number of the gravest Xid error, if one degrades it.", |g| {
        g.judged_xid().map(|x| x.code as f64)
    }),
    ("gpudeck_gpu_xid_errors_total", "Xid errors since the agent was started.", |g| {
        g.xid.map(|x| f64::from(x.count))
    }),
    ("gpudeck_gpu_throttled", "Whether clocks are lowered.", |g| {
        let reasons = g.throttle_reasons.as_ref().filter(|_| g.health != GpuHealth::Lost);
        flag(reasons.map(|r| !r.is_empty()))
    }),
    ("gpudeck_gpu_processes", "Processes on it; absent where they are not known.", |g| {
        g.processes.as_ref().map(|list| list.len() as f64)
    }),
    ("gpudeck_gpu_persistence", "Whether the driver keeps it initialised.", |g| {
        flag(g.persistence)
    }),
    ("gpudeck_gpu_mig_enabled", "Whether it is divided.", |g| flag(g.mig)),
];

const PROCESS: &[Metric<GpuProcess>] = &[
    ("gpudeck_gpu_process_memory_bytes", "GPU memory of a process.", |p| {
        p.memory.map(|m| m.0 as f64)
    }),
    ("gpudeck_gpu_process_sm_ratio", "Its share of the multiprocessors, 0 to 1.", |p| {
        percent(p.sm_percent)
    }),
    ("gpudeck_gpu_process_encoder_ratio", "Its share of the video encoder, 0 to 1.", |p| {
        percent(p.encoder_percent)
    }),
    ("gpudeck_gpu_process_decoder_ratio", "Its share of the video decoder, 0 to 1.", |p| {
        percent(p.decoder_percent)
    }),
    ("gpudeck_gpu_process_cpu_ratio", "Its use of one processor, 1 is all of it.", |p| {
        p.cpu_percent.map(|c| f64::from(c) / 100.0)
    }),
    ("gpudeck_gpu_process_host_memory_bytes", "Its main memory.", |p| {
        p.host_memory.map(|m| m.0 as f64)
    }),
    ("gpudeck_gpu_process_running_seconds", "For how long it has been running.", |p| {
        count(p.running_s)
    }),
];

/// Everything that is known of the hosts.
pub fn prometheus(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut families = Families::default();
    for host in snapshot.hosts.values() {
        of_host(&mut families, host, now);
    }
    families.text()
}

/// Samples that are older are not told.
const FRESH: Duration = Duration::from_secs(30);

fn of_host(families: &mut Families, host: &HostView, now: Timestamp) {
    let labels = labels("", &[("host", Some(host.name.as_str()))]);
    let l = labels.as_str();
    let up = matches!(host.link, HostLinkState::Up | HostLinkState::Limited { .. });
    families.add("gpudeck_host_up", "Whether the host is reached.", l, flag(Some(up)));
    let old = age(now, host.sampled).map(|age| age.as_secs_f64());
    families.add("gpudeck_host_sample_age_seconds", "Age of the host's last sample.", l, old);
    let offset = host.clock.map(|c| c.offset_ms as f64 / 1e3);
    let help = "The host's clock less the controller's.";
    families.add("gpudeck_host_clock_offset_seconds", help, l, offset);
    if let Some(facts) = &host.facts {
        of_facts(families, l, facts);
    }
    // What a host said before it was lost is not what it does now: a gap says so, a flat line would not.
    let is_fresh = up && age(now, host.sampled).is_none_or(|age| age <= FRESH);
    let Some(sample) = host.sample.as_ref().filter(|_| is_fresh) else { return };
    for (name, help, value) in HOST {
        families.add(name, help, l, value(sample));
    }
    let none = match &sample.gpus {
        Gpus::None { why } => Some(why.as_str()),
        Gpus::Some(_) | Gpus::Hung { .. } => None,
    };
    for (name, help, why) in [
        ("gpudeck_host_gpu_none_info", "Why the host shows no GPU.", none),
        ("gpudeck_host_gpu_trouble_info", TROUBLE, sample.gpu_trouble.as_deref()),
    ] {
        if why.is_some() {
            let labels = self::labels(l, &[("reason", why)]);
            families.add(name, help, &labels, Some(1.0));
        }
    }
    for gpu in sample.gpus.list() {
        of_gpu(families, l, gpu);
    }
}

const TROUBLE: &str = "Why GPUs cannot be read, where it is not that the driver hangs.";

fn of_facts(families: &mut Families, host: &str, facts: &HostFacts) {
    let engine = facts.container_engine.as_ref();
    let about = labels(
        host,
        &[
            ("hostname", Some(&facts.hostname)),
            ("os", Some(&facts.os)),
            ("kernel", Some(&facts.kernel)),
            ("arch", Some(&facts.arch)),
            ("driver", facts.driver_version.as_deref()),
            ("cuda", facts.cuda_version.as_deref()),
            ("engine", engine.map(|e| e.name.as_str())),
            ("engine_version", engine.and_then(|e| e.version.as_deref())),
            ("agent", Some(&facts.agent_version)),
        ],
    );
    families.add("gpudeck_host_info", "What the host is.", &about, Some(1.0));
    let cpus = small(facts.known_cpus());
    families.add("gpudeck_host_cpus", "Logical processors.", host, cpus);
    let nodes = small(facts.numa_nodes);
    families.add("gpudeck_host_numa_nodes", "NUMA nodes.", host, nodes);
    for disk in &facts.disks {
        let state = if disk.holds_state { "true" } else { "false" };
        let labels = labels(
            host,
            &[
                ("device", Some(&disk.name)),
                ("class", Some(disk.class.word())),
                ("model", disk.model.as_deref()),
                ("holds_state", Some(state)),
            ],
        );
        let size = disk.size.map(|size| size.0 as f64);
        families.add("gpudeck_host_disk_size_bytes", "Size of a whole disk.", &labels, size);
    }
    for nic in &facts.nics {
        let parts = [("device", Some(nic.name.as_str())), ("rdma", nic.rdma.as_deref())];
        let labels = labels(host, &parts);
        families.add("gpudeck_host_nic_up", "Whether the link is up.", &labels, flag(Some(nic.up)));
        let speed = nic.speed_mbit_per_s.map(|mbit| f64::from(mbit) * 1e6 / 8.0);
        let help = "Speed of the link.";
        families.add("gpudeck_host_nic_speed_bytes_per_second", help, &labels, speed);
    }
}

fn of_gpu(families: &mut Families, host: &str, gpu: &Gpu) {
    let index = gpu.index.to_string();
    let parts =
        [("gpu", Some(index.as_str())), ("uuid", Some(&gpu.uuid)), ("name", Some(&gpu.name))];
    let l = labels(host, &parts);
    let vendor = format!("{:?}", gpu.vendor).to_lowercase();
    let numa = gpu.numa_node.map(|node| node.to_string());
    let about = labels(
        &l,
        &[
            ("vendor", Some(vendor.as_str())),
            ("bus", gpu.pci_bus_id.as_deref()),
            ("numa_node", numa.as_deref()),
            ("compute_mode", gpu.compute_mode.as_deref()),
            ("partition", gpu.partition.as_deref()),
        ],
    );
    families.add("gpudeck_gpu_info", "What the GPU is.", &about, Some(1.0));
    for (name, help, value) in GPU {
        families.add(name, help, &l, value(gpu));
    }
    for reason in gpu.throttle_reasons.iter().flatten() {
        let labels = labels(&l, &[("reason", Some(reason))]);
        let help = "Why clocks are lowered.";
        families.add("gpudeck_gpu_throttle_reason", help, &labels, Some(1.0));
    }
    for peer in gpu.nvlink_peers.iter() {
        let labels = labels(&l, &[("to", Some(peer)), ("over", Some("NVL"))]);
        families.add("gpudeck_gpu_path_info", PATH, &labels, Some(1.0));
    }
    for path in gpu.paths.iter().filter(|path| !gpu.nvlink_peers.contains(&path.to)) {
        let labels = labels(&l, &[("to", Some(&path.to)), ("over", Some(path.over.word()))]);
        families.add("gpudeck_gpu_path_info", PATH, &labels, Some(1.0));
    }
    for part in &gpu.mig_instances {
        let labels = labels(&l, &[("instance", Some(&part.uuid)), ("profile", Some(&part.name))]);
        let help = "Frame buffer of a MIG instance in use.";
        families.add("gpudeck_gpu_mig_memory_used_bytes", help, &labels, used(part.memory));
        let help = "Frame buffer of a MIG instance.";
        families.add("gpudeck_gpu_mig_memory_total_bytes", help, &labels, total(part.memory));
    }
    for process in gpu.listed() {
        let pid = process.pid.to_string();
        let labels = labels(
            &l,
            &[
                ("pid", Some(pid.as_str())),
                ("process", Some(process.name.as_str()).filter(|name| !name.is_empty())),
                ("user", process.user.as_deref()),
                ("container", process.container.as_deref()),
                ("unit", process.unit.as_deref()),
                ("type", process.kind.map(crate::api::ProcessKind::word)),
            ],
        );
        for (name, help, value) in PROCESS {
            families.add(name, help, &labels, value(process));
        }
    }
}

const PATH: &str = "The way to another GPU, as nvidia-smi topo -m names it.";

/// Labels after those that are there already; what is not known has none.
fn labels(before: &str, more: &[(&str, Option<&str>)]) -> String {
    let mut labels = before.to_owned();
    for (name, value) in more.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = write!(labels, "{comma}{name}=\"{}\"", escape(value));
    }
    labels
}

/// A label's value.
fn escape(value: &str) -> String {
    text::clean(value, 100).replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tui::fixture::{NOW, rich};

    #[test]
    fn absent_has_no_sample() {
        let text = prometheus(&rich(), NOW);
        let gpu7 = |line: &&str| line.contains("host=\"node2\",gpu=\"7\"");
        let names: Vec<&str> =
            text.lines().filter(gpu7).filter_map(|line| line.split('{').next()).collect();
        assert!(!names.contains(&"gpudeck_gpu_utilization_ratio"), "{names:?}");
        assert!(names.contains(&"gpudeck_gpu_power_limit_watts"));
        assert!(text.contains("gpudeck_gpu_last_xid{host=\"node2\",gpu=\"5\""));
        assert!(text.contains("gpudeck_host_up{host=\"node4\"} 0\n"));
        assert!(text.contains("gpudeck_gpu_utilization_ratio{host=\"node1\""));
        // It is down: what it said before is not told as if it were so now.
        let told = text.lines().filter(|line| line.contains("host=\"node4\""));
        let told: Vec<&str> = told.filter(|line| !line.starts_with("gpudeck_host_")).collect();
        assert!(told.is_empty(), "{told:?}");
        assert!(text.contains("gpudeck_host_gpu_driver_hung{host=\"node5\"} 1\n"));
        for name in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
            let name = name.split(' ').next().unwrap();
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_driver_that_hangs_is_told_from_one_that_is_not_asked_and_one_that_refuses() {
        let with = |gpus: Gpus, trouble: Option<&str>| {
            let mut snapshot = rich();
            let host = snapshot.hosts.get_mut(&"node1".parse().unwrap()).unwrap();
            let sample = std::sync::Arc::make_mut(host.sample.as_mut().unwrap());
            sample.gpus = gpus;
            sample.gpu_trouble = trouble.map(Into::into);
            let text = prometheus(&snapshot, NOW);
            let of_host = text.lines().filter(|line| line.contains("{host=\"node1\""));
            let gpu = of_host.filter(|line| line.starts_with("gpudeck_host_gpu_"));
            gpu.map(str::to_owned).collect::<Vec<_>>()
        };
        let hung = || Gpus::Hung { for_ms: 4_000 };
        let silent = with(hung(), None);
        assert_eq!(silent, ["gpudeck_host_gpu_driver_hung{host=\"node1\"} 1"]);
        let crashed = with(hung(), Some("it has \"ended\""));
        assert_eq!(
            crashed,
            [
                "gpudeck_host_gpu_driver_hung{host=\"node1\"} 0",
                "gpudeck_host_gpu_trouble_info{host=\"node1\",reason=\"it has \\\"ended\\\"\"} 1",
            ]
        );
        let why = "Driver/library version mismatch".to_owned();
        assert_eq!(
            with(Gpus::None { why }, None),
            [
                "gpudeck_host_gpu_driver_hung{host=\"node1\"} 0",
                "gpudeck_host_gpu_none_info{host=\"node1\",reason=\"Driver/library version mismatch\"} 1",
            ]
        );
    }

    #[test]
    fn everything_that_a_monitor_shows_is_there() {
        let mut snapshot = rich();
        // What no GPU of the fixture has.
        for host in snapshot.hosts.values_mut() {
            let Some(sample) = host.sample.as_mut().map(std::sync::Arc::make_mut) else { continue };
            sample.gpus_age_ms = Some(1_500);
            let Gpus::Some(gpus) = &mut sample.gpus else { continue };
            for gpu in gpus.iter_mut() {
                gpu.fan_percent = Some(30);
                (gpu.retired_pages, gpu.retired_pages_pending) = (Some(1), Some(false));
                gpu.pcie.bytes_per_s = Some(3_000_000_000);
                (gpu.thermal_margin_c, gpu.fabric) = (Some(-2), Some("completed".into()));
                for process in gpu.processes.iter_mut().flatten() {
                    (process.encoder_percent, process.decoder_percent) = (Some(1), Some(2));
                }
            }
        }
        let text = prometheus(&snapshot, NOW);
        let named = HOST.iter().map(|m| m.0).chain(GPU.iter().map(|m| m.0));
        for name in named.chain(PROCESS.iter().map(|m| m.0)) {
            assert!(text.contains(&format!("\n{name}{{")), "{name} is nowhere");
        }
        for part in [
            "gpudeck_host_info{host=\"node1\",",
            "kernel=\"",
            "driver=\"",
            "cuda=\"",
            "gpudeck_host_nic_speed",
        ] {
            assert!(text.contains(part), "{part}");
        }
    }
}
