//! Everything about one host.
//!
//! ```text
//! ╭ node1 ─ up ────────────────────────────────────────────────────────────────────╮
//! │ Debian GNU/Linux 12 · 6.1.0 x86_64 · 128 CPUs · driver 550.54 · CUDA 12.4      │
//! │ cpu 23%  load 12.0  mem 210/1008G  disk 1.2/3.5T  ↓1.2 MiB/s ↑3.4 MiB/s        │
//! │                                                                                │
//! │ GPU  NAME       UTIL  MEM  MEMORY     TEMP    POWER     FAN  SM MHZ  …         │
//! │   0  H100 80GB   87%  61%  61.2/80G   64/90°  512/700W    –    1980  …         │
//! │                                                                                │
//! │ PROCESSES                                                                      │
//! │ GPU 0  4711  vllm  VLLM::Worker  61.0 GiB                                      │
//! ╰────────────────────────────────────────────────────────────────────────────────╯
//! ```

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::fleet::{age, link_words};
use crate::api::{Bytes, Gpu, GpuHealth, Gpus, HostLinkState, HostName, HostView, time};
use crate::tui::draw::Pen;
use crate::tui::state::State;
use crate::tui::theme::Theme;
use crate::tui::words::{self, ABSENT, number};

/// Draws the detail in place of the panel.
pub fn draw(pen: &mut Pen<'_>, state: &State, name: &HostName, scroll: usize, area: Rect) {
    let host = state.snapshot.as_ref().and_then(|s| s.hosts.get(name));
    let title = Line::from(vec![
        Span::styled("Host ", pen.theme.accent),
        Span::styled(name.to_string(), pen.theme.strong),
        Span::styled(" ─ Esc goes back", pen.theme.dim),
    ]);
    let inside = pen.frame(area, true, &title);
    let Some(host) = host else {
        return super::nothing(pen, inside, &["this host has left the deck"]);
    };
    let text = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
    let lines = lines(state, host);
    let most = pen.lines(text, &lines, scroll);
    if most > 0 {
        let at = scroll.min(most) + usize::from(text.height);
        let foot = format!(" ↑↓ {at} of {} ", lines.len());
        let y = area.bottom().saturating_sub(1);
        pen.put_right(area.x, y, area.right().saturating_sub(1), &foot, pen.theme.dim);
    }
}

fn lines(state: &State, host: &HostView) -> Vec<Line<'static>> {
    let theme = &state.theme;
    let mut out = Vec::new();
    match link_words(&host.link, state.now) {
        None => out.push(field(theme, "link", "up")),
        Some(words) => {
            let style = match host.link {
                HostLinkState::Down { .. } => theme.bad,
                _ => theme.warn,
            };
            out.extend(crate::tui::dialogs::wrapped(&words, 96, style));
        }
    }
    if let Some(word) = host.maintenance.word() {
        let mut text = word;
        for cordon in &host.maintenance.cordons {
            let what = cordon
                .gpu
                .as_ref()
                .map_or_else(|| "the host".to_owned(), |gpu| format!("GPU {}", gpu.index));
            let since = words::ago(state.now, cordon.since);
            let why = cordon.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
            text.push_str(&format!(" · {what} cordoned by {} {since} ago{why}", cordon.by));
        }
        if let Some(trouble) = host.maintenance.drain.as_ref().and_then(|d| d.trouble.as_ref()) {
            text.push_str(&format!(" · {trouble}"));
        }
        if let Some(crate::api::UpgradeHost::Failed { why }) = &host.maintenance.upgrade {
            text.push_str(&format!(" · {why}"));
        }
        out.extend(crate::tui::dialogs::wrapped(&text, 96, theme.warn));
    }
    if let Some(age) = age(host, state.now) {
        out.push(Line::styled(format!("what follows is {age}"), theme.warn));
    }
    if let Some(facts) = &host.facts {
        out.push(field(
            theme,
            "system",
            &format!("{} · {} {}", facts.os, facts.kernel, facts.arch),
        ));
        out.push(field(
            theme,
            "hardware",
            &format!("{} · {} CPUs · {}", facts.hostname, facts.cpus, facts.memory),
        ));
        let driver = facts.driver_version.as_deref().unwrap_or(ABSENT);
        let cuda = facts.cuda_version.as_deref().unwrap_or(ABSENT);
        out.push(field(theme, "driver", &format!("{driver} · CUDA {cuda}")));
        out.push(field(
            theme,
            "agent",
            &format!("{} as {} in {}", facts.agent_version, facts.user, facts.state_dir),
        ));
    }
    if !host.labels.is_empty() {
        let labels: Vec<String> = host.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        out.push(field(theme, "labels", &labels.join(" ")));
    }
    let Some(sample) = &host.sample else {
        out.push(Line::styled("no sample yet", theme.dim));
        return out;
    };
    out.push(field(
        theme,
        "load",
        &format!(
            "cpu {}  load {}  mem {}  disk {}",
            number(sample.cpu_percent.map(f32::round), "%"),
            sample.load_1m.map_or_else(|| ABSENT.to_owned(), |l| format!("{l:.1}")),
            words::memory(sample.memory),
            words::memory(sample.disk),
        ),
    ));
    let uptime = sample.uptime_s.map(|s| time::short(std::time::Duration::from_secs(s)));
    out.push(field(
        theme,
        "network",
        &format!(
            "↓{} ↑{}  up {}",
            words::per_second(sample.net_rx_bytes_per_s),
            words::per_second(sample.net_tx_bytes_per_s),
            uptime.as_deref().unwrap_or(ABSENT),
        ),
    ));
    for rank in &host.ranks {
        let text = format!("{} {} on port {}", rank.rank, rank.rank.replica, rank.port);
        out.push(field(theme, "rank", &text));
    }
    out.push(Line::default());
    match &sample.gpus {
        Gpus::None { why } => out.push(Line::styled(format!("no GPU: {why}"), theme.dim)),
        Gpus::Hung { for_ms } => {
            let time = time::short(std::time::Duration::from_millis(*for_ms));
            out.push(Line::styled(format!("✖ the driver has not answered for {time}"), theme.bad));
        }
        Gpus::Some(gpus) => {
            gpu_table(theme, gpus, &mut out);
            processes(theme, gpus, &mut out);
        }
    }
    out
}

fn field(theme: &Theme, name: &str, text: &str) -> Line<'static> {
    Line::from(vec![
        Span::styled(format!("{name:<9} "), theme.dim),
        Span::styled(text.to_owned(), theme.text),
    ])
}

fn gpu_table(theme: &Theme, gpus: &[Gpu], out: &mut Vec<Line<'static>>) {
    let head = format!(
        "{:>3} {:>5} {:>5} {:>9} {:>7} {:>9} {:>4} {:>6} {:>7} {:>4} {:>4} {:>4}  {}",
        "GPU",
        "UTIL",
        "MEM",
        "MEMORY",
        "TEMP",
        "POWER",
        "FAN",
        "SM",
        "MEM MHZ",
        "ST",
        "ECC",
        "NUMA",
        "NAME"
    );
    out.push(Line::styled(head, theme.header));
    for gpu in gpus {
        let with = |a: Option<u32>, b: Option<u32>, unit: &str| match (a, b) {
            (Some(a), Some(b)) => format!("{a}/{b}{unit}"),
            (a, _) => number(a, unit),
        };
        let watts = |mw: Option<u32>| mw.map(|m| (m + 500) / 1_000);
        let row = format!(
            "{:>3} {:>5} {:>5} {:>9} {:>7} {:>9} {:>4} {:>6} {:>7} {:>4} {:>4} {:>4}  ",
            gpu.index,
            number(gpu.utilisation_percent, "%"),
            number(gpu.memory_utilisation_percent, "%"),
            words::memory(gpu.memory),
            with(gpu.temperature_c, gpu.slowdown_temperature_c, "°"),
            with(watts(gpu.power_mw), watts(gpu.power_limit_mw), "W"),
            number(gpu.fan_percent, "%"),
            number(gpu.sm_clock_mhz, ""),
            number(gpu.memory_clock_mhz, ""),
            gpu.pstate.as_deref().unwrap_or(ABSENT),
            number(gpu.ecc_uncorrected, ""),
            number(gpu.numa_node, ""),
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
        let peers: Vec<u32> =
            gpus.iter().filter(|g| gpu.nvlink_peers.contains(&g.uuid)).map(|g| g.index).collect();
        let peers = if peers.is_empty() { ABSENT.to_owned() } else { words::ranges(peers) };
        let bus = gpu.pci_bus_id.as_deref().unwrap_or(ABSENT);
        out.push(Line::styled(format!("    {}  bus {bus}  NVLink {peers}", gpu.uuid), theme.dim));
    }
}

fn processes(theme: &Theme, gpus: &[Gpu], out: &mut Vec<Line<'static>>) {
    out.push(Line::default());
    let any = gpus.iter().any(|g| !g.processes.is_empty());
    if !any {
        out.push(Line::styled("no process uses a GPU", theme.dim));
        return;
    }
    let head = format!("{:>3} {:>8} {:<10} {:>10}  {}", "GPU", "PID", "USER", "MEMORY", "COMMAND");
    out.push(Line::styled(head, theme.header));
    for gpu in gpus {
        for process in &gpu.processes {
            let memory = process.memory.map_or_else(|| ABSENT.to_owned(), |m: Bytes| m.to_string());
            let user = crate::api::text::clean(process.user.as_deref().unwrap_or(ABSENT), 10);
            out.push(Line::from(vec![
                Span::raw(format!("{:>3} {:>8} {user:<10} {memory:>10}  ", gpu.index, process.pid)),
                Span::styled(process.name.clone(), theme.strong),
            ]));
        }
    }
}
