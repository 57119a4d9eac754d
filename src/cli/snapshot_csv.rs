//! The snapshot as CSV: a row for each GPU, and one for each host without. New columns come last.

use std::fmt::Write as _;

use super::snapshot::gpus;
use crate::api::{
    Gpu, GpuHealth, GpuProcess, Gpus, HostFacts, HostLinkState, HostSample, HostView, MemoryUse,
    MigInstance, Snapshot, Timestamp, age, text,
};

/// Longest cell, in characters.
const MAX_CELL: usize = 16_000;

/// What is said of every row's host.
const HOST: [&str; 3] = ["host", "link", "age_ms"];

/// Where a host without GPUs says why.
const HEALTH: &str = "health";

/// A column about a GPU. What is not known is empty.
type OfGpu = (&'static str, fn(&Gpu) -> String);

/// The same about its host.
type OfHost = (&'static str, fn(&Host<'_>) -> String);

/// A host as its columns see it.
struct Host<'a> {
    view: &'a HostView,
    facts: Option<&'a HostFacts>,
    sample: Option<&'a HostSample>,
}

fn cell<T: ToString>(value: Option<T>) -> String {
    value.map(|v| v.to_string()).unwrap_or_default()
}

fn used(memory: Option<MemoryUse>) -> String {
    cell(memory.map(|m| m.used.0))
}

fn total(memory: Option<MemoryUse>) -> String {
    cell(memory.map(|m| m.total.0))
}

const GPU: &[OfGpu] = &[
    ("gpu", |g| g.index.to_string()),
    ("uuid", |g| g.uuid.to_string()),
    ("vendor", |g| format!("{:?}", g.vendor).to_lowercase()),
    ("name", |g| g.name.to_string()),
    (HEALTH, health),
    ("utilisation_percent", |g| cell(g.utilisation_percent)),
    ("memory_used_bytes", |g| used(g.memory)),
    ("memory_total_bytes", |g| total(g.memory)),
    ("temperature_celsius", |g| cell(g.temperature_c)),
    ("power_milliwatts", |g| cell(g.power_mw)),
    ("power_limit_milliwatts", |g| cell(g.power_limit_mw)),
    ("sm_clock_mhz", |g| cell(g.sm_clock_mhz)),
    ("memory_clock_mhz", |g| cell(g.memory_clock_mhz)),
    ("fan_percent", |g| cell(g.fan_percent)),
    ("pstate", |g| cell(g.pstate.as_ref())),
    ("ecc_uncorrected", |g| cell(g.ecc_uncorrected)),
    ("ecc_corrected", |g| cell(g.ecc_corrected)),
    ("xid", |g| cell(g.xid.map(|x| x.code))),
    ("throttle_reasons", |g| {
        // Nothing lowers the clocks, or nobody knows.
        g.throttle_reasons.as_ref().map_or_else(String::new, |reasons| match reasons.as_slice() {
            [] => "none".to_owned(),
            reasons => reasons.join(" "),
        })
    }),
    ("processes", |g| cell(g.processes.as_ref().map(Vec::len))),
    ("memory_utilisation_percent", |g| cell(g.memory_utilisation_percent)),
    ("encoder_percent", |g| cell(g.encoder_percent)),
    ("decoder_percent", |g| cell(g.decoder_percent)),
    ("slowdown_temperature_celsius", |g| cell(g.slowdown_temperature_c)),
    ("shutdown_temperature_celsius", |g| cell(g.shutdown_temperature_c)),
    ("max_sm_clock_mhz", |g| cell(g.max_sm_clock_mhz)),
    ("max_memory_clock_mhz", |g| cell(g.max_memory_clock_mhz)),
    ("bar1_used_bytes", |g| used(g.bar1)),
    ("bar1_total_bytes", |g| total(g.bar1)),
    ("pci_bus_id", |g| cell(g.pci_bus_id.as_ref())),
    ("numa_node", |g| cell(g.numa_node)),
    ("pcie_generation", |g| cell(g.pcie.generation)),
    ("pcie_max_generation", |g| cell(g.pcie.max_generation)),
    ("pcie_width", |g| cell(g.pcie.width)),
    ("pcie_max_width", |g| cell(g.pcie.max_width)),
    ("pcie_rx_bytes_per_s", |g| cell(g.pcie.rx_bytes_per_s)),
    ("pcie_tx_bytes_per_s", |g| cell(g.pcie.tx_bytes_per_s)),
    ("nvlinks", |g| cell(g.nvlink.links)),
    ("nvlinks_active", |g| cell(g.nvlink.active)),
    ("nvlink_rx_bytes_per_s", |g| cell(g.nvlink.rx_bytes_per_s)),
    ("nvlink_tx_bytes_per_s", |g| cell(g.nvlink.tx_bytes_per_s)),
    ("nvlink_peers", |g| g.nvlink_peers.join(" ")),
    ("ways", |g| {
        let ways: Vec<String> =
            g.paths.iter().map(|path| format!("{}:{}", path.over.word(), path.to)).collect();
        ways.join(" ")
    }),
    ("ecc_enabled", |g| cell(g.ecc_enabled)),
    ("ecc_uncorrected_aggregate", |g| cell(g.ecc_uncorrected_aggregate)),
    ("ecc_corrected_aggregate", |g| cell(g.ecc_corrected_aggregate)),
    ("retired_pages", |g| cell(g.retired_pages)),
    ("retired_pages_pending", |g| cell(g.retired_pages_pending)),
    ("remapped_rows", |g| cell(g.remapped_rows)),
    ("row_remap_pending", |g| cell(g.row_remap_pending)),
    ("row_remap_failed", |g| cell(g.row_remap_failed)),
    ("xid_count", |g| cell(g.xid.map(|x| x.count))),
    ("compute_mode", |g| cell(g.compute_mode.as_ref())),
    ("persistence", |g| cell(g.persistence)),
    ("mig", |g| cell(g.mig)),
    ("partition", |g| cell(g.partition.as_ref())),
    ("mig_instances", |g| {
        let parts: Vec<&str> = g.mig_instances.iter().map(|part| part.uuid.as_str()).collect();
        parts.join(" ")
    }),
    ("process_list", |g| {
        let list: Vec<String> = g.listed().iter().map(process).collect();
        list.join("; ")
    }),
];

const OF_HOST: &[OfHost] = &[
    ("host_gpu_age_ms", |h| cell(h.sample.and_then(|s| s.gpus_age_ms))),
    ("host_cpu_percent", |h| cell(h.sample.and_then(|s| s.cpu_percent))),
    ("host_load1", |h| cell(h.sample.and_then(|s| s.load_1m))),
    ("host_memory_used_bytes", |h| used(h.sample.and_then(|s| s.memory))),
    ("host_memory_total_bytes", |h| total(h.sample.and_then(|s| s.memory))),
    ("host_disk_used_bytes", |h| used(h.sample.and_then(|s| s.disk))),
    ("host_disk_total_bytes", |h| total(h.sample.and_then(|s| s.disk))),
    ("host_net_rx_bytes_per_s", |h| cell(h.sample.and_then(|s| s.net_rx_bytes_per_s))),
    ("host_net_tx_bytes_per_s", |h| cell(h.sample.and_then(|s| s.net_tx_bytes_per_s))),
    ("host_uptime_s", |h| cell(h.sample.and_then(|s| s.uptime_s))),
    ("host_monotonic_ms", |h| cell(h.sample.map(|s| s.monotonic_ms))),
    ("host_clock_offset_ms", |h| cell(h.view.clock.map(|c| c.offset_ms))),
    ("host_os", |h| cell(h.facts.map(|f| &f.os))),
    ("host_kernel", |h| cell(h.facts.map(|f| &f.kernel))),
    ("host_arch", |h| cell(h.facts.map(|f| &f.arch))),
    ("host_cpus", |h| cell(h.facts.and_then(HostFacts::known_cpus))),
    ("host_numa_nodes", |h| cell(h.facts.and_then(|f| f.numa_nodes))),
    ("host_driver", |h| cell(h.facts.and_then(|f| f.driver_version.as_ref()))),
    ("host_cuda", |h| cell(h.facts.and_then(|f| f.cuda_version.as_ref()))),
    ("host_engine", |h| {
        let engine = h.facts.and_then(|f| f.container_engine.as_ref());
        cell(engine.map(|e| format!("{} {}", e.name, e.version.as_deref().unwrap_or_default())))
    }),
    ("host_disks", |h| {
        let disks = h.facts.map(|f| f.disks.as_slice()).unwrap_or_default();
        let words = disks.iter().map(|d| {
            let size = cell(d.size.map(|s| s.0));
            let model = d.model.as_deref().map(|m| format!(" model={}", quoted(m)));
            let state = if d.holds_state { " holds_state" } else { "" };
            format!("{} {} {size}{}{state}", d.name, d.class.word(), cell(model))
        });
        words.collect::<Vec<_>>().join("; ")
    }),
    ("host_nics", |h| {
        let nics = h.facts.map(|f| f.nics.as_slice()).unwrap_or_default();
        let words = nics.iter().map(|n| {
            let speed = n.speed_mbit_per_s.map(|s| format!(" {s}Mbit/s")).unwrap_or_default();
            let rdma = n.rdma.as_ref().map(|r| format!(" rdma={r}")).unwrap_or_default();
            let node = n.numa_node.map(|node| format!(" numa={node}")).unwrap_or_default();
            format!("{} {}{speed}{rdma}{node}", n.name, if n.up { "up" } else { "down" })
        });
        words.collect::<Vec<_>>().join("; ")
    }),
];

/// What came later, so that those before it have not moved.
const LATER_OF_GPU: &[OfGpu] = &[
    ("mig_instance_list", |g| {
        let list: Vec<String> = g.mig_instances.iter().map(instance).collect();
        list.join("; ")
    }),
    ("xid_monotonic_ms", |g| cell(g.xid.map(|x| x.monotonic_ms))),
    ("grave_xid", |g| cell(g.grave_xid.map(|x| x.code))),
    ("grave_xid_count", |g| cell(g.grave_xid.map(|x| x.count))),
    ("grave_xid_monotonic_ms", |g| cell(g.grave_xid.map(|x| x.monotonic_ms))),
];

const LATER_OF_HOST: &[OfHost] = &[
    ("host_gpu_trouble", |h| cell(h.sample.and_then(|s| s.gpu_trouble.as_ref()))),
    ("host_clock_round_trip_us", |h| cell(h.view.clock.map(|c| c.round_trip_us))),
    ("host_hostname", |h| cell(h.facts.map(|f| &f.hostname))),
    ("host_memory_bytes", |h| cell(h.facts.and_then(HostFacts::known_memory).map(|m| m.0))),
    ("host_agent", |h| cell(h.facts.map(|f| &f.agent_version))),
    ("host_user", |h| cell(h.facts.map(|f| &f.user))),
    ("host_state_dir", |h| cell(h.facts.map(|f| &f.state_dir))),
    ("host_boot_id", |h| cell(h.facts.map(|f| &f.boot_id))),
    ("host_simulated", |h| cell(h.facts.map(|f| f.simulated))),
];

/// Words of a name or a command line as one word among others.
fn quoted(words: &str) -> String {
    serde_json::Value::from(words).to_string()
}

/// A value among `key=value` words: as it is, or quoted where it could be taken for more than one of them.
fn word(value: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.:/@+~".contains(c);
    if value.chars().all(is_plain) { value.to_owned() } else { quoted(value) }
}

/// `UUID name=… memory_used=…`; what is not known is left out.
fn instance(part: &MigInstance) -> String {
    let memory =
        part.memory.map(|m| format!(" memory_used={} memory_total={}", m.used.0, m.total.0));
    format!("{} name={}{}", part.uuid, quoted(&part.name), cell(memory))
}

fn health(gpu: &Gpu) -> String {
    match &gpu.health {
        GpuHealth::Ok => "ok".to_owned(),
        GpuHealth::Degraded { why } => format!("degraded: {why}"),
        GpuHealth::Lost => "lost".to_owned(),
    }
}

/// `key=value` words; what is not known is left out.
fn process(process: &GpuProcess) -> String {
    let mut words = format!("pid={}", process.pid);
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(words, " {key}={value}");
        }
    };
    add("name", Some(process.name.as_str()).filter(|name| !name.is_empty()).map(word));
    add("user", process.user.as_deref().map(word));
    add("container", process.container.as_deref().map(word));
    add("unit", process.unit.as_deref().map(word));
    add("kind", process.kind.map(|kind| kind.word().to_owned()));
    add("memory", process.memory.map(|m| m.0.to_string()));
    let percent = |share: Option<u32>| share.map(|p| format!("{p}%"));
    add("sm", percent(process.sm_percent));
    add("encoder", percent(process.encoder_percent));
    add("decoder", percent(process.decoder_percent));
    add("cpu", process.cpu_percent.map(|p| format!("{p}%")));
    add("host_memory", process.host_memory.map(|m| m.0.to_string()));
    add("running_s", process.running_s.map(|s| s.to_string()));
    add("command", process.command.as_deref().map(quoted));
    words
}

fn link(host: &HostView) -> &'static str {
    match host.link {
        HostLinkState::Up => "up",
        HostLinkState::Limited { .. } => "limited",
        HostLinkState::Connecting { .. } => "connecting",
        HostLinkState::Asking { .. } => "asking",
        HostLinkState::Down { .. } => "down",
    }
}

/// Columns of GPUs that came after all of those.
const LATEST_OF_GPU: &[OfGpu] = &[
    ("pcie_bytes_per_s", |g| cell(g.pcie.bytes_per_s)),
    ("fabric", |g| cell(g.fabric.as_ref())),
    ("thermal_margin_c", |g| cell(g.thermal_margin_c)),
];

/// One row for each GPU, and one for each host without (RFC 4180). What is not known is empty.
pub fn csv(snapshot: &Snapshot, now: Timestamp) -> String {
    let mut out = String::new();
    let headings = HOST.iter().copied().chain(GPU.iter().map(|c| c.0));
    let headings = headings.chain(OF_HOST.iter().map(|c| c.0));
    let later = LATER_OF_GPU.iter().map(|c| c.0).chain(LATER_OF_HOST.iter().map(|c| c.0));
    let later = later.chain(LATEST_OF_GPU.iter().map(|c| c.0));
    line(&mut out, headings.chain(later).map(str::to_owned));
    for view in snapshot.hosts.values() {
        let age = age(now, view.sampled).map(|age| age.as_millis());
        let head = [view.name.to_string(), link(view).to_owned(), cell(age)];
        let host = Host { view, facts: view.facts.as_ref(), sample: view.sample.as_deref() };
        let of_host = |columns: &[OfHost]| -> Vec<String> {
            columns.iter().map(|(_, value)| value(&host)).collect()
        };
        let (tail, later_tail) = (of_host(OF_HOST), of_host(LATER_OF_HOST));
        if gpus(view).is_empty() {
            let why = host.sample.map_or("", |sample| match sample.gpus {
                Gpus::Hung { .. } => "driver hung",
                Gpus::None { .. } | Gpus::Some(_) => "none",
            });
            let cells = GPU.iter().map(|(name, _)| if *name == HEALTH { why } else { "" });
            let cells = head.iter().cloned().chain(cells.map(str::to_owned)).chain(tail.clone());
            let later = LATER_OF_GPU.iter().map(|_| String::new());
            let latest = LATEST_OF_GPU.iter().map(|_| String::new());
            line(&mut out, cells.chain(later).chain(later_tail.clone()).chain(latest));
        }
        for gpu in gpus(view) {
            let cells = GPU.iter().map(|(_, value)| value(gpu));
            let cells = head.iter().cloned().chain(cells).chain(tail.clone());
            let later = LATER_OF_GPU.iter().map(|(_, value)| value(gpu));
            let latest = LATEST_OF_GPU.iter().map(|(_, value)| value(gpu));
            line(&mut out, cells.chain(later).chain(later_tail.clone()).chain(latest));
        }
    }
    out
}

fn line(out: &mut String, row: impl Iterator<Item = String>) {
    let quoted = |cell: String| {
        let cell = text::clean(&cell, MAX_CELL);
        // A sheet would take what begins like this for a formula; numbers are none.
        let formula = cell.starts_with(['=', '+', '@', '-']) && !is_number(&cell);
        let cell = if formula { format!("'{cell}") } else { cell };
        if cell.contains([',', '"']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
    };
    let cells: Vec<String> = row.map(quoted).collect();
    let _ = write!(out, "{}\r\n", cells.join(","));
}

/// A number as this table writes them: `-12`, `0.5`.
fn is_number(cell: &str) -> bool {
    let digits = cell.strip_prefix('-').unwrap_or(cell);
    digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || c == '.')
        && cell.parse::<f64>().is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::tui::fixture::{NOW, rich};

    #[test]
    fn absent_is_empty() {
        let csv = csv(&rich(), NOW);
        let rows: Vec<&str> = csv.lines().collect();
        let columns = HOST.len()
            + GPU.len()
            + OF_HOST.len()
            + LATER_OF_GPU.len()
            + LATER_OF_HOST.len()
            + LATEST_OF_GPU.len();
        // Commas may lie within quotes only.
        let whole = rows.iter().filter(|r| !r.contains('"'));
        assert!(whole.clone().count() > 20);
        assert!(whole.clone().all(|row| row.split(',').count() == columns), "{csv}");
        let row = rows.iter().find(|r| r.starts_with("node2,up,1000,7,")).unwrap();
        assert!(row.contains(",evilname,ok,,,,,,700000,"), "{row}");
        assert!(rows.iter().any(|r| r.starts_with("node5,") && r.contains(",driver hung,")));
        assert!(!csv.contains('\u{1b}'));
    }

    #[test]
    fn no_cell_is_a_formula() {
        let cells = [
            "-12",
            "-0.5",
            "-1+cmd|' /C calc'!A0",
            "-@SUM(A1)",
            "+1",
            "=1",
            "@x",
            "-inf",
            "-",
            "a-b",
        ];
        let mut out = String::new();
        line(&mut out, cells.iter().map(|c| (*c).to_owned()));
        let wanted = "-12,-0.5,'-1+cmd|' /C calc'!A0,'-@SUM(A1),'+1,'=1,'@x,'-inf,'-,a-b\r\n";
        assert_eq!(out, wanted);
    }

    #[test]
    fn every_value_of_a_busy_gpu_and_its_host_has_its_column() {
        let csv = csv(&rich(), NOW);
        let rows: Vec<Vec<&str>> = csv.lines().map(|l| l.split(',').collect()).collect();
        let row = rows.iter().find(|r| r[0] == "node1" && r[3] == "0").unwrap();
        let of = |name: &str| row[rows[0].iter().position(|h| *h == name).unwrap()];
        for name in ["pcie_generation", "nvlinks", "bar1_total_bytes", "ecc_corrected_aggregate"] {
            assert!(of(name).parse::<u64>().is_ok(), "{name}: {}", of(name));
        }
        for name in [
            "pci_bus_id",
            "compute_mode",
            "host_kernel",
            "host_driver",
            "host_cuda",
            "host_nics",
            "host_disks",
        ] {
            assert!(!of(name).is_empty(), "{name}");
        }
        let busy = csv.lines().find(|l| l.contains("pid=")).unwrap();
        assert!(busy.contains("name=") && busy.contains("user="), "{busy}");
    }

    #[test]
    fn no_name_of_a_process_is_taken_for_other_fields() {
        let mut told = GpuProcess { pid: 7, name: "python3.11".into(), ..GpuProcess::default() };
        told.user = Some("alice".into());
        assert_eq!(process(&told), "pid=7 name=python3.11 user=alice");
        told.name = "x user=root; pid=1".into();
        told.user = Some("a b".into());
        told.container = Some("c\"d".into());
        let wanted = r#"pid=7 name="x user=root; pid=1" user="a b" container="c\"d""#;
        assert_eq!(process(&told), wanted);
        told = GpuProcess { pid: 8, ..GpuProcess::default() };
        assert_eq!(process(&told), "pid=8", "nobody says its name");
    }

    /// The cells of a row.
    fn cells(row: &str) -> Vec<String> {
        let (mut cells, mut quoted) = (vec![String::new()], false);
        for c in row.chars() {
            match c {
                ',' if !quoted => cells.push(String::new()),
                '"' => {
                    // Two within quotes are one.
                    if !quoted && cells.last().is_some_and(|cell| !cell.is_empty()) {
                        cells.last_mut().unwrap().push('"');
                    }
                    quoted = !quoted;
                }
                c => cells.last_mut().unwrap().push(c),
            }
        }
        cells
    }

    /// A GPU, and its host, of which everything is known.
    fn whole() -> Snapshot {
        let mut snapshot = rich();
        for host in snapshot.hosts.values_mut() {
            for disk in host.facts.iter_mut().flat_map(|facts| &mut facts.disks) {
                disk.model = Some("SAMSUNG MZQL2".to_owned());
            }
            let Some(sample) = host.sample.as_mut().map(std::sync::Arc::make_mut) else { continue };
            sample.gpus_age_ms = Some(1_500);
            sample.gpu_trouble = Some("the library is of another version".into());
            let Gpus::Some(gpus) = &mut sample.gpus else { continue };
            for gpu in gpus.iter_mut() {
                gpu.fan_percent = Some(30);
                (gpu.retired_pages, gpu.retired_pages_pending) = (Some(1), Some(false));
                gpu.pcie.bytes_per_s = Some(3_000_000_000);
                (gpu.thermal_margin_c, gpu.fabric) = (Some(-2), Some("completed".into()));
                gpu.partition = Some("CPX/NPS4".into());
                let xid = crate::api::Xid { code: 79, monotonic_ms: 7, count: 2 };
                (gpu.xid, gpu.grave_xid) = (Some(xid), Some(xid));
                gpu.mig_instances = vec![MigInstance {
                    uuid: "MIG-1".into(),
                    name: "H100 MIG 3g.40gb".into(),
                    memory: gpu.memory,
                }];
                for process in gpu.processes.iter_mut().flatten() {
                    (process.encoder_percent, process.decoder_percent) = (Some(1), Some(2));
                    process.command = Some("vllm serve; x".into());
                }
            }
        }
        snapshot
    }

    #[test]
    fn everything_that_a_monitor_shows_is_there() {
        let csv = csv(&whole(), NOW);
        let rows: Vec<Vec<String>> = csv.lines().map(cells).collect();
        for (number, name) in rows[0].iter().enumerate() {
            let some = rows.iter().skip(1).any(|row| !row[number].is_empty());
            assert!(some, "{name} is nowhere");
        }
        for row in &rows {
            assert_eq!(row.len(), rows[0].len(), "{row:?}");
        }
        let column = |name: &str| rows[0].iter().position(|h| h == name).unwrap();
        let list = column("process_list");
        let busy = rows.iter().find(|row| row[list].contains("running_s=")).unwrap();
        for word in [
            "pid=",
            "name=",
            "user=",
            "kind=",
            "memory=",
            "sm=",
            "encoder=1%",
            "decoder=2%",
            "cpu=",
            "host_memory=",
            "command=\"vllm serve; x\"",
        ] {
            assert!(busy[list].contains(word), "{word}: {}", busy[list]);
        }
        let parts = &busy[column("mig_instance_list")];
        assert!(parts.contains("MIG-1 name=\"H100 MIG 3g.40gb\" memory_used="), "{parts}");
        assert!(busy[column("host_disks")].contains("model=\"SAMSUNG MZQL2\" holds_state"));
        assert!(busy[column("host_nics")].contains("rdma=mlx5_0 numa=0"));
    }
}
