//! The tables of one host's GPUs: how they do, how they are linked, how worn they are, who uses them.
//! A value that the driver does not give is `–`, never 0. A screen that is too narrow for a table shows it in
//! parts below each other.

use ratatui::style::Style;
use ratatui::text::Line;

use super::columns::{Row, left, right, table};
use crate::api::{
    Bytes, Gpu, GpuHealth, GpuProcess, GpuVendor, HostSample, MigInstance, PathKind, time, wrap,
    xid,
};
use crate::tui::theme::Theme;
use crate::tui::words::{self, ABSENT, number};

/// Largest number of GPUs whose ways to each other are drawn as a matrix.
const MATRIX: usize = 16;

/// All tables, one after another, in so many cells.
pub fn tables(theme: &Theme, sample: &HostSample, width: usize, out: &mut Vec<Line<'static>>) {
    let gpus = sample.gpus.list();
    state(theme, sample, width, out);
    links(theme, gpus, width, out);
    matrix(theme, gpus, width, out);
    wear(theme, gpus, width, out);
    parts(theme, gpus, width, out);
    processes(theme, gpus, width, out);
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

fn state(theme: &Theme, sample: &HostSample, width: usize, out: &mut Vec<Line<'static>>) {
    let columns = [
        right("GPU", 3),
        right("UTIL", 5),
        right("MEM", 5),
        right("MEMORY", 9),
        right("TEMP", 7),
        right("POWER", 9),
        right("FAN", 4),
        right("SM MHZ", 9),
        right("MEM MHZ", 9),
        right("ST", 4),
        right("ENC", 4),
        right("DEC", 4),
        right("OFF", 4),
        left("NAME", 24),
    ];
    let row = |gpu: &Gpu| {
        let watts = |mw: Option<u32>| mw.map(|m| (m + 500) / 1_000);
        Row {
            cells: vec![
                gpu.index.to_string(),
                number(gpu.utilisation_percent, "%"),
                number(gpu.memory_utilisation_percent, "%"),
                words::memory(gpu.memory),
                of(gpu.temperature_c, gpu.slowdown_temperature_c, "°"),
                of(watts(gpu.power_mw), watts(gpu.power_limit_mw), "W"),
                number(gpu.fan_percent, "%"),
                of(gpu.sm_clock_mhz, gpu.max_sm_clock_mhz, ""),
                of(gpu.memory_clock_mhz, gpu.max_memory_clock_mhz, ""),
                gpu.pstate.as_deref().unwrap_or(ABSENT).to_owned(),
                number(gpu.encoder_percent, "%"),
                number(gpu.decoder_percent, "%"),
                number(gpu.shutdown_temperature_c, "°"),
                gpu.name.to_string(),
            ],
            style: theme.text,
            below: troubles(theme, sample, gpu, width),
        }
    };
    let rows = sample.gpus.list().iter().map(row).collect();
    table(theme, width, 1, &columns, rows, out);
}

/// What is wrong with a GPU, and what to do.
fn troubles(theme: &Theme, sample: &HostSample, gpu: &Gpu, width: usize) -> Vec<Line<'static>> {
    let mut out = Vec::new();
    let mut more = Vec::new();
    match &gpu.health {
        GpuHealth::Ok => {}
        GpuHealth::Degraded { why } => more.push(format!("DEGRADED: {why}")),
        GpuHealth::Lost => more.push("LOST: fell off the bus".to_owned()),
    }
    if let Some(reasons) = gpu.throttle_reasons.as_ref().filter(|r| !r.is_empty()) {
        more.push(format!("slowed: {}", reasons.join(", ")));
    }
    if !more.is_empty() {
        out.extend(below(width, 4, &format!("▲ {}", more.join(" · ")), theme.bad));
    }
    if gpu.throttle_reasons.is_none() && gpu.health != GpuHealth::Lost {
        out.extend(below(width, 4, &format!("slowed: {ABSENT}"), theme.dim));
    }
    if let Some(last) = gpu.xid {
        let ago = sample.monotonic_ms.saturating_sub(last.monotonic_ms);
        let ago = time::short(std::time::Duration::from_millis(ago));
        let times = if last.count > 1 { format!(", {} so far", last.count) } else { String::new() };
        let meaning = xid::meaning(last.code);
        let style = if meaning.degrades() { theme.bad } else { theme.warn };
        let text = format!("▲ {} ({ago} ago{times})", xid::describe(last.code));
        out.extend(below(width, 4, &text, style));
        out.extend(below(width, 6, &format!("→ {}", meaning.advice()), theme.dim));
    }
    out
}

/// Words below a row, so far to the right, on as many lines as they need.
fn below(width: usize, indent: usize, text: &str, style: Style) -> Vec<Line<'static>> {
    let lines = crate::tui::dialogs::wrapped(text, width.saturating_sub(indent), style);
    let moved = lines.into_iter().map(|mut line| {
        line.spans.insert(0, " ".repeat(indent).into());
        line
    });
    moved.collect()
}

fn links(theme: &Theme, gpus: &[Gpu], width: usize, out: &mut Vec<Line<'static>>) {
    out.push(Line::default());
    let columns = [
        right("GPU", 3),
        left("PCIE GEN×W", 13),
        right("TO GPU", 11),
        right("FROM GPU", 11),
        left("NVLINK", 6),
        right("TO GPU", 11),
        right("FROM GPU", 11),
        right("BAR1", 9),
        right("NUMA", 4),
        left("BUS", 16),
    ];
    let link = |generation: Option<u32>, width: Option<u32>| match (generation, width) {
        (None, None) => ABSENT.to_owned(),
        (g, w) => format!("{}×{}", number(g, ""), number(w, "")),
    };
    let row = |gpu: &Gpu| {
        let now = link(gpu.pcie.generation, gpu.pcie.width);
        let most = link(gpu.pcie.max_generation, gpu.pcie.max_width);
        let pcie = if most == ABSENT || now == most { now } else { format!("{now} of {most}") };
        let peers: Vec<u32> =
            gpus.iter().filter(|g| gpu.nvlink_peers.contains(&g.uuid)).map(|g| g.index).collect();
        let peers = if peers.is_empty() { ABSENT.to_owned() } else { wrap::ranges(peers) };
        let links = match gpu.vendor {
            GpuVendor::Nvidia => "NVLink",
            GpuVendor::Amd => "XGMI",
        };
        let fabric = gpu.fabric.as_ref().map(|state| format!("  fabric {state}"));
        let fabric = fabric.unwrap_or_default();
        let left = gpu.thermal_margin_c.map(|margin| format!("  slowdown in {margin}°"));
        let left = left.unwrap_or_default();
        let together = gpu.pcie.bytes_per_s.map(|rate| words::per_second(Some(rate)));
        let together = together.map(|rate| format!("  PCIe {rate}")).unwrap_or_default();
        Row {
            cells: vec![
                gpu.index.to_string(),
                pcie,
                words::per_second(gpu.pcie.rx_bytes_per_s),
                words::per_second(gpu.pcie.tx_bytes_per_s),
                of(gpu.nvlink.active, gpu.nvlink.links, ""),
                words::per_second(gpu.nvlink.rx_bytes_per_s),
                words::per_second(gpu.nvlink.tx_bytes_per_s),
                words::memory(gpu.bar1),
                number(gpu.numa_node, ""),
                gpu.pci_bus_id.as_deref().unwrap_or(ABSENT).to_owned(),
            ],
            style: theme.text,
            below: vec![Line::styled(
                format!("    {}  {links} {peers}{together}{fabric}{left}", gpu.uuid),
                theme.dim,
            )],
        }
    };
    table(theme, width, 1, &columns, gpus.iter().map(row).collect(), out);
}

/// What lies between each two GPUs, as `nvidia-smi topo -m` shows it.
fn matrix(theme: &Theme, gpus: &[Gpu], width: usize, out: &mut Vec<Line<'static>>) {
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
    out.extend(below(width, 4, key, theme.dim));
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

fn wear(theme: &Theme, gpus: &[Gpu], width: usize, out: &mut Vec<Line<'static>>) {
    out.push(Line::default());
    let columns = [
        right("GPU", 3),
        left("ECC", 4),
        right("UNCORRECTED", 13),
        right("CORRECTED", 13),
        left("PAGES RETIRED", 16),
        left("ROWS REMAPPED", 17),
        left("PERSIST", 8),
        left("MIG", 4),
        left("COMPUTE", 9),
    ];
    let yes = |flag: Option<bool>| absent(flag, |f| if f { "on" } else { "off" }.to_owned());
    let errors = |now: Option<u64>, ever: Option<u64>| match (now, ever) {
        (None, None) => ABSENT.to_owned(),
        (now, ever) => format!("{} (ever {})", number(now, ""), number(ever, "")),
    };
    let waiting = |flag: Option<bool>, words: &str| match flag {
        Some(true) => format!(" {words}"),
        _ => String::new(),
    };
    let row = |gpu: &Gpu| {
        let waits = gpu.retired_pages_pending == Some(true)
            || gpu.row_remap_pending == Some(true)
            || gpu.row_remap_failed == Some(true)
            || gpu.ecc_uncorrected.is_some_and(|n| n > 0);
        let mode = gpu.compute_mode.as_ref().or(gpu.partition.as_ref());
        Row {
            cells: vec![
                gpu.index.to_string(),
                yes(gpu.ecc_enabled),
                errors(gpu.ecc_uncorrected, gpu.ecc_uncorrected_aggregate),
                errors(gpu.ecc_corrected, gpu.ecc_corrected_aggregate),
                format!(
                    "{}{}",
                    number(gpu.retired_pages, ""),
                    waiting(gpu.retired_pages_pending, "PENDING")
                ),
                format!(
                    "{}{}{}",
                    number(gpu.remapped_rows, ""),
                    waiting(gpu.row_remap_pending, "PENDING"),
                    waiting(gpu.row_remap_failed, "FAILED")
                ),
                yes(gpu.persistence),
                yes(gpu.mig),
                absent(mode, ToString::to_string),
            ],
            style: if waits { theme.bad } else { theme.text },
            below: Vec::new(),
        }
    };
    table(theme, width, 1, &columns, gpus.iter().map(row).collect(), out);
}

fn parts(theme: &Theme, gpus: &[Gpu], width: usize, out: &mut Vec<Line<'static>>) {
    if gpus.iter().all(|gpu| gpu.mig_instances.is_empty()) {
        return;
    }
    out.push(Line::default());
    let columns = [right("GPU", 3), right("MEMORY", 9), left("MIG INSTANCE", 44), left("UUID", 40)];
    let rows = gpus.iter().flat_map(|gpu| gpu.mig_instances.iter().map(move |part| (gpu, part)));
    let row = |(gpu, part): (&Gpu, &MigInstance)| Row {
        cells: vec![
            gpu.index.to_string(),
            words::memory(part.memory),
            part.name.to_string(),
            part.uuid.to_string(),
        ],
        style: theme.text,
        below: Vec::new(),
    };
    table(theme, width, 1, &columns, rows.map(row).collect(), out);
}

fn processes(theme: &Theme, gpus: &[Gpu], width: usize, out: &mut Vec<Line<'static>>) {
    out.push(Line::default());
    if gpus.iter().all(|g| g.listed().is_empty()) {
        let known = gpus.iter().any(|g| g.processes.is_some());
        let words = if known { "no process uses a GPU" } else { "processes: –" };
        out.push(Line::styled(words, theme.dim));
        return;
    }
    let columns = [
        right("GPU", 3),
        right("PID", 8),
        left("USER", 10),
        left("", 3),
        right("MEMORY", 10),
        right("SM", 4),
        right("VIDEO", 6),
        right("CPU", 5),
        right("HOST MEM", 10),
        right("TIME", 7),
        left("CONTAINER, UNIT", 20),
        left("COMMAND", 40),
    ];
    let rows = gpus.iter().flat_map(|gpu| gpu.listed().iter().map(move |p| (gpu, p)));
    let rows = rows.map(|(gpu, process)| process_row(theme, gpu, process)).collect();
    table(theme, width, 2, &columns, rows, out);
}

/// A command as one calls it: the name of the program without its folder, then its arguments.
fn called(command: &str) -> String {
    let (program, arguments) = command.split_once(' ').unwrap_or((command, ""));
    let name = program.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(program);
    format!("{name} {arguments}").trim_end().to_owned()
}

fn process_row(theme: &Theme, gpu: &Gpu, process: &GpuProcess) -> Row {
    let bytes = |memory: Option<Bytes>| absent(memory, |m| m.to_string());
    let clean = |text: &str, chars| crate::api::text::clean(text, chars);
    let home = process.container.as_deref().or(process.unit.as_deref()).unwrap_or(ABSENT);
    let time = process.running_s.map(|s| time::short(std::time::Duration::from_secs(s)));
    Row {
        cells: vec![
            gpu.index.to_string(),
            process.pid.to_string(),
            clean(process.user.as_deref().unwrap_or(ABSENT), 10),
            process.kind.map_or(ABSENT, crate::api::ProcessKind::word).to_owned(),
            bytes(process.memory),
            number(process.sm_percent, "%"),
            of(process.encoder_percent, process.decoder_percent, "%"),
            number(process.cpu_percent.map(f32::round), "%"),
            bytes(process.host_memory),
            time.unwrap_or_else(|| ABSENT.to_owned()),
            clean(home, 20),
            match process.command.as_deref() {
                Some(command) => called(command),
                None if process.name.is_empty() => ABSENT.to_owned(),
                None => process.name.to_string(),
            },
        ],
        style: theme.text,
        below: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::called;

    #[test]
    fn a_command_is_called_by_its_name() {
        assert_eq!(called("/opt/venv/bin/python3 -m vllm /models/x"), "python3 -m vllm /models/x");
        assert_eq!(called("nvidia-smi"), "nvidia-smi");
        assert_eq!(called("/"), "/");
    }
}
