//! The tables of one host's GPUs: how they do, how they are linked, how worn they are, who uses them.
//! A value that the driver does not give is `–`, never 0.

use ratatui::text::{Line, Span};

use crate::api::{Bytes, Gpu, GpuHealth, GpuProcess, HostSample, MemoryUse, PathKind, time, xid};
use crate::tui::theme::Theme;
use crate::tui::words::{self, ABSENT, number};

/// Largest number of GPUs whose ways to each other are drawn as a matrix.
const MATRIX: usize = 16;

/// All tables, one after another.
pub fn tables(theme: &Theme, sample: &HostSample, out: &mut Vec<Line<'static>>) {
    let gpus = sample.gpus.list();
    state(theme, sample, gpus, out);
    links(theme, gpus, out);
    matrix(theme, gpus, out);
    wear(theme, gpus, out);
    parts(theme, gpus, out);
    processes(theme, gpus, out);
}

fn absent<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| ABSENT.to_owned(), show)
}

/// Two numbers as `a/b`.
fn of(a: Option<u32>, b: Option<u32>, unit: &str) -> String {
    match (a, b) {
        (Some(a), Some(b)) => format!("{a}/{b}{unit}"),
        (a, _) => number(a, unit),
    }
}

fn state(theme: &Theme, sample: &HostSample, gpus: &[Gpu], out: &mut Vec<Line<'static>>) {
    let head = format!(
        "{:>3} {:>5} {:>5} {:>9} {:>7} {:>9} {:>4} {:>9} {:>9} {:>4} {:>4} {:>4} {:>4}  {}",
        "GPU",
        "UTIL",
        "MEM",
        "MEMORY",
        "TEMP",
        "POWER",
        "FAN",
        "SM MHZ",
        "MEM MHZ",
        "ST",
        "ENC",
        "DEC",
        "OFF",
        "NAME"
    );
    out.push(Line::styled(head, theme.header));
    for gpu in gpus {
        let watts = |mw: Option<u32>| mw.map(|m| (m + 500) / 1_000);
        let row = format!(
            "{:>3} {:>5} {:>5} {:>9} {:>7} {:>9} {:>4} {:>9} {:>9} {:>4} {:>4} {:>4} {:>4}  ",
            gpu.index,
            number(gpu.utilisation_percent, "%"),
            number(gpu.memory_utilisation_percent, "%"),
            words::memory(gpu.memory),
            of(gpu.temperature_c, gpu.slowdown_temperature_c, "°"),
            of(watts(gpu.power_mw), watts(gpu.power_limit_mw), "W"),
            number(gpu.fan_percent, "%"),
            of(gpu.sm_clock_mhz, gpu.max_sm_clock_mhz, ""),
            of(gpu.memory_clock_mhz, gpu.max_memory_clock_mhz, ""),
            gpu.pstate.as_deref().unwrap_or(ABSENT),
            number(gpu.encoder_percent, "%"),
            number(gpu.decoder_percent, "%"),
            number(gpu.shutdown_temperature_c, "°"),
        );
        out.push(Line::from(vec![Span::styled(row, theme.text), Span::raw(gpu.name.clone())]));
        let mut more = Vec::new();
        match &gpu.health {
            GpuHealth::Ok => {}
            GpuHealth::Degraded { why } => more.push(format!("DEGRADED: {why}")),
            GpuHealth::Lost => more.push("LOST: fell off the bus".to_owned()),
        }
        if !gpu.throttle_reasons.is_empty() {
            more.push(format!("slowed: {}", gpu.throttle_reasons.join(", ")));
        }
        if !more.is_empty() {
            out.push(Line::styled(format!("    ▲ {}", more.join(" · ")), theme.bad));
        }
        if let Some(last) = gpu.xid {
            let ago = sample.monotonic_ms.saturating_sub(last.monotonic_ms);
            let ago = time::short(std::time::Duration::from_millis(ago));
            let times =
                if last.count > 1 { format!(", {} so far", last.count) } else { String::new() };
            let meaning = xid::meaning(last.code);
            let style = if meaning.degrades() { theme.bad } else { theme.warn };
            let text = format!("    ▲ {} ({ago} ago{times})", xid::describe(last.code));
            out.push(Line::styled(text, style));
            out.push(Line::styled(format!("      → {}", meaning.advice()), theme.dim));
        }
    }
}

fn links(theme: &Theme, gpus: &[Gpu], out: &mut Vec<Line<'static>>) {
    out.push(Line::default());
    let head = format!(
        "{:>3} {:<13} {:>11} {:>11}  {:<6} {:>11} {:>11} {:>9} {:>4}  {}",
        "GPU",
        "PCIE GEN×W",
        "TO GPU",
        "FROM GPU",
        "NVLINK",
        "TO GPU",
        "FROM GPU",
        "BAR1",
        "NUMA",
        "BUS"
    );
    out.push(Line::styled(head, theme.header));
    for gpu in gpus {
        let link = |generation: Option<u32>, width: Option<u32>| match (generation, width) {
            (None, None) => ABSENT.to_owned(),
            (g, w) => format!("{}×{}", number(g, ""), number(w, "")),
        };
        let now = link(gpu.pcie.generation, gpu.pcie.width);
        let most = link(gpu.pcie.max_generation, gpu.pcie.max_width);
        let pcie = if most == ABSENT || now == most { now } else { format!("{now} of {most}") };
        let row = format!(
            "{:>3} {:<13} {:>11} {:>11}  {:<6} {:>11} {:>11} {:>9} {:>4}  {}",
            gpu.index,
            pcie,
            words::per_second(gpu.pcie.rx_bytes_per_s),
            words::per_second(gpu.pcie.tx_bytes_per_s),
            of(gpu.nvlink.active, gpu.nvlink.links, ""),
            words::per_second(gpu.nvlink.rx_bytes_per_s),
            words::per_second(gpu.nvlink.tx_bytes_per_s),
            words::memory(gpu.bar1),
            number(gpu.numa_node, ""),
            gpu.pci_bus_id.as_deref().unwrap_or(ABSENT),
        );
        out.push(Line::styled(row, theme.text));
        let peers: Vec<u32> =
            gpus.iter().filter(|g| gpu.nvlink_peers.contains(&g.uuid)).map(|g| g.index).collect();
        let peers = if peers.is_empty() { ABSENT.to_owned() } else { words::ranges(peers) };
        out.push(Line::styled(format!("    {}  NVLink {peers}", gpu.uuid), theme.dim));
    }
}

/// What lies between each two GPUs, as `nvidia-smi topo -m` shows it.
fn matrix(theme: &Theme, gpus: &[Gpu], out: &mut Vec<Line<'static>>) {
    if gpus.len() > MATRIX || gpus.iter().all(|gpu| gpu.paths.is_empty()) {
        return;
    }
    out.push(Line::default());
    let columns: String = gpus.iter().map(|gpu| format!(" {:>4}", gpu.index)).collect();
    out.push(Line::styled(format!("{:<4}{columns}", "WAY"), theme.header));
    for gpu in gpus {
        let cells: String =
            gpus.iter().map(|other| format!(" {:>4}", between(gpu, other))).collect();
        out.push(Line::styled(format!("{:>3} {cells}", gpu.index), theme.text));
    }
    let key = "NVL NVLink · PIX one switch · PXB switches · PHB host bridge · NODE one NUMA node · SYS two";
    out.push(Line::styled(format!("    {key}"), theme.dim));
}

fn between(gpu: &Gpu, other: &Gpu) -> &'static str {
    if gpu.uuid == other.uuid {
        return "·";
    }
    if gpu.nvlink_peers.contains(&other.uuid) {
        return "NVL";
    }
    let path = gpu.paths.iter().find(|path| path.to == other.uuid);
    path.map_or(ABSENT, |path| PathKind::word(path.over))
}

fn wear(theme: &Theme, gpus: &[Gpu], out: &mut Vec<Line<'static>>) {
    out.push(Line::default());
    let head = format!(
        "{:>3} {:<4} {:>13} {:>13} {:<16} {:<17} {:<8} {:<4} {}",
        "GPU",
        "ECC",
        "UNCORRECTED",
        "CORRECTED",
        "PAGES RETIRED",
        "ROWS REMAPPED",
        "PERSIST",
        "MIG",
        "COMPUTE"
    );
    out.push(Line::styled(head, theme.header));
    for gpu in gpus {
        let yes = |flag: Option<bool>| absent(flag, |f| if f { "on" } else { "off" }.to_owned());
        let errors = |now: Option<u64>, ever: Option<u64>| match (now, ever) {
            (None, None) => ABSENT.to_owned(),
            (now, ever) => format!("{} (ever {})", number(now, ""), number(ever, "")),
        };
        let waiting = |flag: Option<bool>, words: &str| match flag {
            Some(true) => format!(" {words}"),
            _ => String::new(),
        };
        let pages = format!(
            "{}{}",
            number(gpu.retired_pages, ""),
            waiting(gpu.retired_pages_pending, "PENDING")
        );
        let rows = format!(
            "{}{}{}",
            number(gpu.remapped_rows, ""),
            waiting(gpu.row_remap_pending, "PENDING"),
            waiting(gpu.row_remap_failed, "FAILED")
        );
        let row = format!(
            "{:>3} {:<4} {:>13} {:>13} {pages:<16} {rows:<17} {:<8} {:<4} {}",
            gpu.index,
            yes(gpu.ecc_enabled),
            errors(gpu.ecc_uncorrected, gpu.ecc_uncorrected_aggregate),
            errors(gpu.ecc_corrected, gpu.ecc_corrected_aggregate),
            yes(gpu.persistence),
            yes(gpu.mig),
            gpu.compute_mode.as_deref().unwrap_or(ABSENT),
        );
        let waits = gpu.retired_pages_pending == Some(true)
            || gpu.row_remap_pending == Some(true)
            || gpu.row_remap_failed == Some(true)
            || gpu.ecc_uncorrected.is_some_and(|n| n > 0);
        out.push(Line::styled(row, if waits { theme.bad } else { theme.text }));
    }
}

fn parts(theme: &Theme, gpus: &[Gpu], out: &mut Vec<Line<'static>>) {
    if gpus.iter().all(|gpu| gpu.mig_instances.is_empty()) {
        return;
    }
    out.push(Line::default());
    let head = format!("{:>3} {:>9}  {:<44} {}", "GPU", "MEMORY", "MIG INSTANCE", "UUID");
    out.push(Line::styled(head, theme.header));
    for gpu in gpus {
        for part in &gpu.mig_instances {
            let memory: Option<MemoryUse> = part.memory;
            let row = format!(
                "{:>3} {:>9}  {:<44} {}",
                gpu.index,
                words::memory(memory),
                part.name,
                part.uuid
            );
            out.push(Line::styled(row, theme.text));
        }
    }
}

fn processes(theme: &Theme, gpus: &[Gpu], out: &mut Vec<Line<'static>>) {
    out.push(Line::default());
    if gpus.iter().all(|g| g.processes.is_empty()) {
        out.push(Line::styled("no process uses a GPU", theme.dim));
        return;
    }
    let head = format!(
        "{:>3} {:>8} {:<10} {:<3} {:>10} {:>4} {:>5} {:>10} {:>7} {:<20} {}",
        "GPU",
        "PID",
        "USER",
        "",
        "MEMORY",
        "SM",
        "CPU",
        "HOST MEM",
        "TIME",
        "CONTAINER, UNIT",
        "COMMAND"
    );
    out.push(Line::styled(head, theme.header));
    for gpu in gpus {
        for process in &gpu.processes {
            out.push(process_line(theme, gpu, process));
        }
    }
}

fn process_line(theme: &Theme, gpu: &Gpu, process: &GpuProcess) -> Line<'static> {
    let bytes = |memory: Option<Bytes>| absent(memory, |m| m.to_string());
    let clean = |text: &str, chars| crate::api::text::clean(text, chars);
    let home = process.container.as_deref().or(process.unit.as_deref()).unwrap_or(ABSENT);
    let time = process.running_s.map(|s| time::short(std::time::Duration::from_secs(s)));
    let row = format!(
        "{:>3} {:>8} {:<10} {:<3} {:>10} {:>4} {:>5} {:>10} {:>7} {:<20} ",
        gpu.index,
        process.pid,
        clean(process.user.as_deref().unwrap_or(ABSENT), 10),
        process.kind.map_or(ABSENT, crate::api::ProcessKind::word),
        bytes(process.memory),
        number(process.sm_percent, "%"),
        number(process.cpu_percent.map(f32::round), "%"),
        bytes(process.host_memory),
        time.as_deref().unwrap_or(ABSENT),
        clean(home, 20),
    );
    let command = process.command.as_deref().unwrap_or(&process.name).to_owned();
    Line::from(vec![Span::raw(row), Span::styled(command, theme.strong)])
}
