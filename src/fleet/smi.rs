//! The text of `nvidia-smi` and of `/proc`, as read from hosts where no agent can be. Pure functions:
//! bytes of any kind in, bounded values out.

use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuHealth, GpuProcess, MemoryUse, PcieLink, ProcessKind, throttle};

/// Most GPUs, processes and characters of a line that are looked at.
const MAX_GPUS: usize = 64;
const MAX_PROCESSES: usize = 1024;
const MAX_LINE: usize = 2000;

/// What is asked of `nvidia-smi --query-gpu`, in this order. Old drivers do not know all of the
/// second part, and refuse the whole question then. Free memory and not used: what the driver
/// keeps for itself (480 MiB of an H100) is in neither `memory.used` nor `memory.free`.
pub const GPU_FIELDS: [&str; 10] = [
    "index",
    "uuid",
    "name",
    "pci.bus_id",
    "memory.total",
    "memory.free",
    "utilization.gpu",
    "temperature.gpu",
    "power.draw",
    "power.limit",
];

/// The second part.
pub const MORE_FIELDS: [&str; 14] = [
    "utilization.memory",
    "fan.speed",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "pstate",
    "ecc.errors.uncorrected.volatile.total",
    "pcie.link.gen.current",
    "pcie.link.gen.max",
    "pcie.link.width.current",
    "pcie.link.width.max",
    "persistence_mode",
    "compute_mode",
];

/// Why clocks are lowered: the bits, under the name that drivers have for it since R535 and the one before.
pub const REASON_FIELDS: [&str; 2] =
    ["clocks_event_reasons.active", "clocks_throttle_reasons.active"];

/// What is asked of `nvidia-smi --query-compute-apps`; the name is last because it may hold commas.
pub const APP_FIELDS: [&str; 4] = ["gpu_uuid", "pid", "used_memory", "process_name"];

/// What stands in a cell without brackets where there is no value.
const ABSENT: [&str; 5] = ["n/a", "err!", "not supported", "unknown", "unknown error"];

/// A cell; none for `[N/A]`, `[Not Supported]`, `[Unknown Error]`, `ERR!` and the like.
fn cell(text: &str) -> Option<&str> {
    let text = text.trim();
    let is = |words: &&str| text.eq_ignore_ascii_case(words);
    let absent = text.is_empty() || text.starts_with('[') || ABSENT.iter().any(is);
    (!absent).then_some(text)
}

/// `[GPU is lost]`, `[GPU requires reset]`: there is no use in it before a reset or a reboot.
fn is_gone(text: &str) -> bool {
    let text = text.trim();
    text.starts_with('[') && (text.contains("is lost") || text.contains("requires reset"))
}

/// A number; all ones are what a driver has where there is none.
fn number(text: &str) -> Option<u32> {
    cell(text)?.parse().ok().filter(|number| *number != u32::MAX)
}

/// A share of something.
fn percent(text: &str) -> Option<u32> {
    number(text).filter(|percent| *percent <= 100)
}

/// The part of its usual speed at which a fan turns: some turn faster.
fn fan(text: &str) -> Option<u32> {
    number(text).filter(|percent| *percent <= 200)
}

/// `P0` to `P15`.
fn pstate(text: &str) -> Option<&str> {
    let state = cell(text)?;
    let number: u32 = state.strip_prefix('P')?.parse().ok()?;
    (number <= 15 && state.len() <= 3).then_some(state)
}

/// Mebibytes.
fn mebibytes(text: &str) -> Option<Bytes> {
    let mib: u64 = cell(text)?.parse().ok()?;
    Some(Bytes(mib.checked_mul(1 << 20)?))
}

/// `0x0000000000000004`.
fn bits(text: &str) -> Option<u64> {
    u64::from_str_radix(cell(text)?.strip_prefix("0x")?, 16).ok()
}

/// Watts with decimals, as milliwatts.
fn milliwatts(text: &str) -> Option<u32> {
    let watts: f64 = cell(text)?.parse().ok()?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within its range
    (0.0..1e6).contains(&watts).then_some((watts * 1e3).round() as u32)
}

/// Reads `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`. A GPU that has fallen off the bus is
/// told in words instead of a line. Without a GPU: the words of the tool.
///
/// # Errors
/// Nothing in it is a GPU; what it says instead.
pub fn parse_gpus(text: &str) -> Result<Vec<Gpu>, String> {
    let mut gpus: Vec<Gpu> = Vec::new();
    let mut words = String::new();
    for line in text.lines().take(4 * MAX_GPUS) {
        if gpus.len() >= MAX_GPUS {
            break;
        }
        let line: String = line.chars().take(MAX_LINE).collect();
        if let Some(gpu) = gpu(&line).or_else(|| lost(&line)) {
            gpus.push(gpu);
        } else if words.is_empty() {
            words = clean(line.trim(), 200);
        }
    }
    // A lost GPU has no index any more: it takes the first that is free.
    for at in 0..gpus.len() {
        let taken: Vec<u32> = gpus.iter().map(|g| g.index).collect();
        if let Some(gpu) = gpus.get_mut(at).filter(|g| g.index == u32::MAX) {
            gpu.index = (0..=u32::MAX).find(|i| !taken.contains(i)).unwrap_or(u32::MAX);
        }
    }
    gpus.sort_by_key(|gpu| gpu.index);
    if gpus.is_empty() { Err(words) } else { Ok(gpus) }
}

fn gpu(line: &str) -> Option<Gpu> {
    let cells: Vec<&str> = line.split(", ").collect();
    if cells.len() < GPU_FIELDS.len() {
        return None;
    }
    let at = |index: usize| cells.get(index).copied().unwrap_or_default();
    let more = |index: usize| at(GPU_FIELDS.len() + index);
    let bus = cell(at(3)).map(|bus| clean(bus, 32));
    let gone = cells.iter().any(|cell| is_gone(cell));
    // Who it is, some drivers do not say any more of a GPU that is lost; where it is, they do.
    let uuid = match cell(at(1)) {
        Some(uuid) if uuid.starts_with("GPU-") => clean(uuid, 80),
        None if at(1).trim().starts_with('[') => match &bus {
            Some(bus) => format!("PCI-{bus}"),
            None => format!("index-{}", number(at(0))?),
        },
        _ => return None,
    };
    if gone {
        return Some(Gpu {
            index: number(at(0)).unwrap_or(u32::MAX),
            uuid: uuid.into(),
            name: clean(cell(at(2)).unwrap_or("GPU"), 96).into(),
            pci_bus_id: bus.map(Into::into),
            health: GpuHealth::Lost,
            ..Gpu::default()
        });
    }
    let memory = mebibytes(at(4)).zip(mebibytes(at(5)));
    let uncorrected = cell(more(7)).and_then(|n| n.parse().ok());
    Some(Gpu {
        index: number(at(0))?,
        uuid: uuid.into(),
        name: clean(cell(at(2)).unwrap_or("GPU"), 96).into(),
        pci_bus_id: bus.map(Into::into),
        memory: memory.map(|(total, free)| MemoryUse { used: total.saturating_sub(free), total }),
        utilisation_percent: percent(at(6)),
        temperature_c: number(at(7)),
        power_mw: milliwatts(at(8)),
        power_limit_mw: milliwatts(at(9)),
        memory_utilisation_percent: percent(more(0)),
        fan_percent: fan(more(1)),
        sm_clock_mhz: number(more(2)),
        max_sm_clock_mhz: number(more(3)),
        memory_clock_mhz: number(more(4)),
        max_memory_clock_mhz: number(more(5)),
        pstate: pstate(more(6)).map(Into::into),
        ecc_uncorrected: uncorrected,
        pcie: PcieLink {
            generation: number(more(8)),
            max_generation: number(more(9)),
            width: number(more(10)),
            max_width: number(more(11)),
            ..PcieLink::default()
        },
        persistence: cell(more(12)).map(|mode| mode == "Enabled"),
        compute_mode: cell(more(13)).map(|mode| clean(&mode.to_lowercase(), 20)).map(Into::into),
        throttle_reasons: bits(more(14)).map(throttle::names),
        health: match uncorrected {
            None | Some(0) => GpuHealth::Ok,
            Some(1) => GpuHealth::Degraded { why: "1 uncorrected memory error".to_owned() },
            Some(n) => GpuHealth::Degraded { why: format!("{n} uncorrected memory errors") },
        },
        ..Gpu::default()
    })
}

/// `Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost. Reboot …`
fn lost(line: &str) -> Option<Gpu> {
    let (head, rest) = line.split_once("device handle for GPU")?;
    if !head.starts_with("Unable") || !(rest.contains("lost") || rest.contains("Unknown Error")) {
        return None;
    }
    let bus = rest.trim_start().split([' ', ',']).next()?.trim_end_matches(':');
    let bus = clean(bus, 32);
    let uuid = format!("PCI-{bus}");
    let name = "GPU".to_owned();
    let health = GpuHealth::Lost;
    Some(Gpu {
        index: u32::MAX,
        uuid: uuid.into(),
        name: name.into(),
        pci_bus_id: Some(bus.into()),
        health,
        ..Gpu::default()
    })
}

/// An answer about processes, and not words of why there is none.
pub fn knows_apps(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(MAX_PROCESSES);
    // A driver that hides processes says so in the place of the GPU.
    lines.all(|line| line.starts_with("GPU-") || line.starts_with("MIG-"))
}

/// Whether a GPU that is not in such an answer runs nothing. Programs on the instances of a divided one are listed by the
/// instance, of which nobody says whose it is.
pub fn tells_idle(text: &str) -> bool {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    knows_apps(text)
        && lines().all(|line| !line.starts_with("MIG-"))
        && lines().count() <= MAX_PROCESSES
}

/// Reads `nvidia-smi --query-compute-apps=… --format=csv,noheader,nounits`: processes by their GPU's UUID, each of them
/// once on each GPU.
pub fn parse_apps(text: &str) -> Vec<(String, GpuProcess)> {
    let app = |line: &str| -> Option<(String, GpuProcess)> {
        let line: String = line.chars().take(MAX_LINE).collect();
        let mut cells = line.splitn(APP_FIELDS.len(), ", ");
        let uuid = clean(cells.next()?, 80);
        let pid = number(cells.next()?)?;
        let memory = mebibytes(cells.next()?);
        let program = cell(cells.next()?).unwrap_or_default();
        let name = clean(program.rsplit('/').next().unwrap_or(program), 40);
        let kind = Some(ProcessKind::Compute);
        Some((uuid, GpuProcess { pid, name: name.into(), kind, memory, ..GpuProcess::default() }))
    };
    let mut apps: Vec<(String, GpuProcess)> = Vec::new();
    for (uuid, process) in text.lines().take(MAX_PROCESSES).filter_map(app) {
        let same =
            |(of, known): &&mut (String, GpuProcess)| *of == uuid && known.pid == process.pid;
        match apps.iter_mut().find(same) {
            // Both lines speak of all that it holds there.
            Some((_, known)) => known.memory = known.memory.max(process.memory),
            None => apps.push((uuid, process)),
        }
    }
    apps
}

/// Busy and all ticks of all processors: the first line of `/proc/stat`.
pub fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> =
        line.split_ascii_whitespace().take(8).map_while(|t| t.parse().ok()).collect();
    let idle = ticks.get(3)?.saturating_add(*ticks.get(4).unwrap_or(&0));
    let all = ticks.iter().fold(0_u64, |sum, t| sum.saturating_add(*t));
    Some((all.saturating_sub(idle), all))
}

/// Main memory of `/proc/meminfo`.
pub fn memory(meminfo: &str) -> Option<MemoryUse> {
    let value = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Bytes(kib.saturating_mul(1024)))
    };
    let total = value("MemTotal")?;
    Some(MemoryUse { used: total.saturating_sub(value("MemAvailable")?), total })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO: &str = "\
0, GPU-0a, NVIDIA H100 80GB HBM3, 00000000:18:00.0, 81559, 69573, 87, 61, 512.34, 700.00, 42, [N/A], 1980, 1980, 2619, 2619, P0, 0, 5, 5, 16, 16, Enabled, Default
1, GPU-0b, NVIDIA L40S, 00000000:3B:00.0, 46068, [N/A], [Not Supported], [Unknown Error], [N/A], [N/A], [N/A], 30, [N/A], [N/A], [N/A], [N/A], P8, 2, 1, 4, 16, 16, Disabled, Exclusive_Process
";

    #[test]
    fn reads_gpus_and_leaves_absent_what_is_not_there() {
        let gpus = parse_gpus(TWO).unwrap();
        let [full, sparse] = &gpus[..] else { unreachable!() };
        assert_eq!(
            (full.index, full.uuid.as_str(), full.pstate.as_deref()),
            (0, "GPU-0a", Some("P0"))
        );
        let memory = full.memory.unwrap();
        // `nvidia-smi` of this H100 shows 11,507 MiB used and 480 MiB reserved.
        assert_eq!((memory.used, memory.total), (Bytes::mib(11_507 + 479), Bytes::mib(81_559)));
        assert_eq!(memory.free(), Bytes::mib(69_573));
        assert_eq!((full.utilisation_percent, full.temperature_c), (Some(87), Some(61)));
        assert_eq!((full.power_mw, full.power_limit_mw), (Some(512_340), Some(700_000)));
        assert_eq!((full.fan_percent, full.persistence), (None, Some(true)));
        assert_eq!((full.pcie.generation, full.pcie.max_width), (Some(5), Some(16)));
        assert!(sparse.memory.is_none() && sparse.utilisation_percent.is_none());
        assert!(sparse.power_mw.is_none() && sparse.temperature_c.is_none());
        assert!(matches!(sparse.health, GpuHealth::Degraded { .. }));
        assert_eq!(sparse.compute_mode.as_deref(), Some("exclusive_process"));
    }

    #[test]
    fn what_lowers_the_clocks_is_told_and_not_guessed() {
        let reasons = |cell: &str| {
            let lines = TWO.lines().map(|line| format!("{line}, {cell}\n")).collect::<String>();
            parse_gpus(&lines).unwrap().remove(0).throttle_reasons
        };
        assert_eq!(reasons("0x0000000000000001"), Some(Vec::new()), "an idle GPU is not slowed");
        let both = Some(vec!["sw_power_cap".into(), "hw_thermal_slowdown".into()]);
        assert_eq!(reasons("0x0000000000000044"), both);
        assert_eq!((reasons("[N/A]"), reasons("Not Active"), reasons("0xg")), (None, None, None));
        assert_eq!(parse_gpus(TWO).unwrap()[0].throttle_reasons, None);
    }

    #[test]
    fn an_old_driver_answers_the_short_question() {
        let gpus =
            parse_gpus("0, GPU-1, Tesla V100, 00000000:18:00.0, 32510, 32507, 0, 33, 24.5, 300\n");
        let gpu = &gpus.unwrap()[0];
        assert_eq!(
            (gpu.power_mw, gpu.sm_clock_mhz, gpu.ecc_uncorrected),
            (Some(24_500), None, None)
        );
    }

    #[test]
    fn a_lost_gpu_is_lost_and_words_are_kept() {
        let text = format!(
            "Unable to determine the device handle for GPU 0000:9A:00.0: GPU is lost.  Reboot the system\n{TWO}"
        );
        let gpus = parse_gpus(&text).unwrap();
        assert_eq!((gpus.len(), gpus[2].index, gpus[2].health.clone()), (3, 2, GpuHealth::Lost));
        assert_eq!(gpus[2].pci_bus_id.as_deref(), Some("0000:9A:00.0"));

        // The same told cell by cell.
        let cells = ", [GPU is lost]".repeat(6);
        let reset = TWO.replace("30, [N/A]", "[GPU requires reset], [N/A]");
        let text = format!(
            "3, GPU-0d, NVIDIA H100, 00000000:9B:00.0{cells}\n4, [GPU is lost], [GPU is lost], 00000000:9C:00.0{cells}\n5, [Unknown Error], NVIDIA H100, [N/A]{cells}\n{reset}"
        );
        let gpus = parse_gpus(&text).unwrap();
        let seen: Vec<_> = gpus.iter().map(|g| (g.index, g.uuid.as_str(), &g.health)).collect();
        let lost = &GpuHealth::Lost;
        let wanted = [
            (1, "GPU-0b", lost),
            (3, "GPU-0d", lost),
            (4, "PCI-00000000:9C:00.0", lost),
            (5, "index-5", lost),
        ];
        assert_eq!((&seen[1..], seen[0].2), (&wanted[..], &GpuHealth::Ok));
        let words = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\u{1b}[2J";
        let why = parse_gpus(words).unwrap_err();
        assert!(why.contains("communicate") && !why.contains('\u{1b}'));
    }

    #[test]
    fn reads_processes() {
        let apps = parse_apps(
            "GPU-0a, 4711, 61000, /usr/bin/python3, with a comma\nnonsense\nGPU-0b, 9, [N/A], [Not Found]\n",
        );
        assert_eq!(apps.len(), 2);
        assert_eq!((apps[0].0.as_str(), apps[0].1.pid), ("GPU-0a", 4711));
        assert_eq!(apps[0].1.name, "python3, with a comma");
        assert!(knows_apps("GPU-0a, 4711, 61000, /usr/bin/python3\n") && knows_apps("\n"));
        assert!(
            !knows_apps("[Insufficient Permissions]\n") && !knows_apps("No devices were found")
        );
        assert!(tells_idle("GPU-0a, 4711, 61000, /usr/bin/python3\n") && tells_idle(""));
        assert!(!tells_idle("GPU-0a, 4711, 61000, python3\nMIG-1b, 9, 61000, python3\n"));
        assert!(!tells_idle(&"GPU-0a, 4711, 61000, python3\n".repeat(MAX_PROCESSES + 1)));
        assert_eq!((apps[1].1.memory, apps[1].1.name.as_str()), (None, ""));
    }

    #[test]
    fn a_process_that_is_told_twice_is_there_once_on_each_gpu() {
        let apps = parse_apps(
            "GPU-0a, 7, [N/A], python3\nGPU-0a, 7, 500, python3\nGPU-0b, 7, 600, python3\n\
             GPU-0a, 8, 100, [Insufficient Permissions]\nGPU-0a, 7, 400, python3\n",
        );
        let told: Vec<_> = apps.iter().map(|(gpu, p)| (gpu.as_str(), p.pid, p.memory)).collect();
        let mib = |n| Some(Bytes::mib(n));
        let wanted = [("GPU-0a", 7, mib(500)), ("GPU-0b", 7, mib(600)), ("GPU-0a", 8, mib(100))];
        assert_eq!(told, wanted);
        assert_eq!(apps[2].1.name, "", "nobody says it");
    }

    #[test]
    fn what_no_driver_can_mean_is_absent() {
        let broken = TWO
            .replace("69573, 87, 61, 512.34", "69573, 4294967295, ERR!, ERR!")
            .replace("42, [N/A], 1980", "101, 4294967295, ERR!")
            .replace(", P0,", ", ERR!,")
            .replace(", P8,", ", P99,");
        let gpus = parse_gpus(&broken).unwrap();
        let [first, second] = &gpus[..] else { unreachable!() };
        assert_eq!((first.utilisation_percent, first.memory_utilisation_percent), (None, None));
        assert_eq!((first.temperature_c, first.power_mw, first.fan_percent), (None, None, None));
        assert_eq!((first.sm_clock_mhz, first.max_sm_clock_mhz), (None, Some(1_980)));
        assert_eq!((&first.pstate, &second.pstate), (&None, &None));
        assert_eq!(second.fan_percent, Some(30));
    }

    #[test]
    fn reads_proc() {
        assert_eq!(cpu_ticks("cpu  10 0 10 70 10 0 0 0 5 5\ncpu0 1 1 1 1\n"), Some((20, 100)));
        assert_eq!(cpu_ticks("nonsense"), None);
        let info = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n";
        assert_eq!(memory(info).unwrap().used, Bytes(600 * 1024));
    }

    proptest! {
        #[test]
        fn nothing_that_a_host_writes_breaks_it(text in ".{0,400}", line in "[0-9GPU, \\[\\]/.-]{0,200}") {
            for text in [&text, &line, &format!("{line}\n{text}")] {
                let _ = (parse_gpus(text), parse_apps(text), cpu_ticks(text), memory(text));
            }
        }
    }
}
