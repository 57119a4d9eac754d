//! Everything about one host.
//!
//! ```text
//! ╭ node1 ─ up ────────────────────────────────────────────────────────────────────╮
//! │ Debian GNU/Linux 12 · 6.1.0 x86_64 · 128 CPUs · driver 550.54 · CUDA 12.4      │
//! │ cpu 23%  load 12.0  mem 210/1008G  disk 1.2/3.5T  ↓1.2 MiB/s ↑3.4 MiB/s        │
//! │                                                                                │
//! │ GPU  UTIL   MEM  MEMORY     TEMP    POWER     FAN  SM MHZ  …                   │
//! │   0   87%   61%  61.2/80G   64/90°  512/700W    –    1980  …                   │
//! │                                                                                │
//! │ links, the way between GPUs, wear, MIG instances, processes: host_gpus.rs      │
//! ╰────────────────────────────────────────────────────────────────────────────────╯
//! ```

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::fleet::{age, link_words};
use super::host_gpus;
use crate::api::{Disk, Gpus, HostFacts, HostLinkState, HostName, HostView, Nic, time};
use crate::tui::draw::Pen;
use crate::tui::state::State;
use crate::tui::theme::Theme;
use crate::tui::words::{self, ABSENT, number};

/// A fact that is a text; what is not known is empty there.
fn known(text: &str) -> &str {
    if text.is_empty() { ABSENT } else { text }
}

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
    let lines = lines(state, host, usize::from(text.width));
    let most = pen.lines(text, &lines, scroll);
    if most > 0 {
        let at = scroll.min(most) + usize::from(text.height);
        let foot = format!(" ↑↓ {at} of {} ", lines.len());
        let y = area.bottom().saturating_sub(1);
        pen.put_right(area.x, y, area.right().saturating_sub(1), &foot, pen.theme.dim);
    }
}

/// Rows of what is told of a host in so many columns.
pub fn rows(state: &State, name: &HostName, width: usize) -> usize {
    let host = state.snapshot.as_ref().and_then(|s| s.hosts.get(name));
    host.map_or(0, |host| lines(state, host, width).len())
}

fn lines(state: &State, host: &HostView, width: usize) -> Vec<Line<'static>> {
    let theme = &state.theme;
    let mut out = Vec::new();
    match link_words(&host.link, state.now) {
        None => out.extend(field(theme, width, "link", "up")),
        Some(words) => {
            let style = match host.link {
                HostLinkState::Down { .. } => theme.bad,
                _ => theme.warn,
            };
            out.extend(crate::tui::dialogs::wrapped(&words, width, style));
        }
    }
    if let Some(word) = host.maintenance.word() {
        let mut text = word;
        for cordon in &host.maintenance.cordons {
            let what = cordon
                .gpu
                .as_ref()
                .map_or_else(|| "the host".to_owned(), |gpu| format!("GPU {}", gpu.index));
            let since = words::how_long_ago(state.now, cordon.since);
            let why = cordon.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
            text.push_str(&format!(" · {what} cordoned by {} {since}{why}", cordon.by));
        }
        if let Some(trouble) = host.maintenance.drain.as_ref().and_then(|d| d.trouble.as_ref()) {
            text.push_str(&format!(" · {trouble}"));
        }
        if let Some(crate::api::UpgradeHost::Failed { why }) = &host.maintenance.upgrade {
            text.push_str(&format!(" · {why}"));
        }
        out.extend(crate::tui::dialogs::wrapped(&text, width, theme.warn));
    }
    if let Some(age) = age(host, state.now) {
        out.push(Line::styled(format!("what follows is {age}"), theme.warn));
    }
    if let Some(facts) = &host.facts {
        out.extend(field(
            theme,
            width,
            "system",
            &format!("{} · {} {}", known(&facts.os), known(&facts.kernel), known(&facts.arch)),
        ));
        out.extend(field(
            theme,
            width,
            "hardware",
            &format!(
                "{} · {}{} · {}",
                known(&facts.hostname),
                words::number(facts.known_cpus(), " CPUs"),
                numa(facts),
                facts.known_memory().map_or_else(|| ABSENT.to_owned(), |m| m.to_string()),
            ),
        ));
        let driver = facts.driver_version.as_deref().unwrap_or(ABSENT);
        let cuda = facts.cuda_version.as_deref().unwrap_or(ABSENT);
        out.extend(field(theme, width, "driver", &format!("{driver} · CUDA {cuda}")));
        out.extend(field(
            theme,
            width,
            "agent",
            &format!("{} as {} in {}", facts.agent_version, facts.user, facts.state_dir),
        ));
    }
    if let Some(facts) = &host.facts {
        hardware(theme, width, facts, &mut out);
    }
    if let Some(clock) = &host.clock {
        out.extend(field(theme, width, "clock", &words::clock(clock)));
    }
    if !host.labels.is_empty() {
        let labels: Vec<String> = host.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        out.extend(field(theme, width, "labels", &labels.join(" ")));
    }
    let Some(sample) = &host.sample else {
        out.push(Line::styled("no sample yet", theme.dim));
        return out;
    };
    out.extend(field(
        theme,
        width,
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
    out.extend(field(
        theme,
        width,
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
        out.extend(field(theme, width, "rank", &text));
    }
    out.push(Line::default());
    let is_hung = matches!(sample.gpus, Gpus::Hung { .. });
    if let Some(why) = &sample.gpu_trouble {
        let whose = if is_hung { "the GPUs" } else { "NVIDIA's GPUs" };
        let words = format!("▲ {whose} are not shown: {}", crate::api::text::clean(why, 300));
        out.extend(crate::tui::dialogs::wrapped(&words, width, theme.bad));
    }
    match &sample.gpus {
        Gpus::None { why } => out.push(Line::styled(format!("no GPU: {why}"), theme.dim)),
        // Not the driver: it was said above what.
        Gpus::Hung { .. } if sample.gpu_trouble.is_some() => {}
        Gpus::Hung { for_ms } => {
            let time = time::short(std::time::Duration::from_millis(*for_ms));
            out.push(Line::styled(format!("✖ the driver has not answered for {time}"), theme.bad));
        }
        Gpus::Some(_) => host_gpus::tables(theme, sample, width, &mut out),
    }
    out
}

fn numa(facts: &HostFacts) -> String {
    match facts.numa_nodes {
        Some(nodes) if nodes > 1 => format!(" on {nodes} NUMA nodes"),
        _ => String::new(),
    }
}

/// Engine, disks with their speed class, interfaces with speed and RDMA.
fn hardware(theme: &Theme, width: usize, facts: &HostFacts, out: &mut Vec<Line<'static>>) {
    if let Some(engine) = &facts.container_engine {
        let version = engine.version.as_deref().unwrap_or("does not let us ask");
        out.extend(field(theme, width, "engine", &format!("{} {version}", engine.name)));
    }
    let disk = |disk: &Disk| {
        let size = disk.size.map(|s| format!(" {s}")).unwrap_or_default();
        let holds = if disk.holds_state { " (state)" } else { "" };
        format!("{} {}{size}{holds}", disk.name, disk.class.word())
    };
    if !facts.disks.is_empty() {
        let disks: Vec<String> = facts.disks.iter().take(8).map(disk).collect();
        out.extend(field(theme, width, "disks", &more(disks, facts.disks.len())));
    }
    let nic = |nic: &Nic| {
        let speed = nic.speed_mbit_per_s.map(|s| format!(" {}", words::link_speed(s)));
        let rdma = nic.rdma.as_ref().map(|r| format!(" RDMA {r}")).unwrap_or_default();
        let down = if nic.up { "" } else { " down" };
        format!("{}{}{down}{rdma}", nic.name, speed.unwrap_or_default())
    };
    if !facts.nics.is_empty() {
        let nics: Vec<String> = facts.nics.iter().take(8).map(nic).collect();
        out.extend(field(theme, width, "nics", &more(nics, facts.nics.len())));
    }
}

/// A list, and how many it leaves out.
fn more(shown: Vec<String>, all: usize) -> String {
    let left = all.saturating_sub(shown.len());
    let rest = if left > 0 { format!(" · {left} more") } else { String::new() };
    format!("{}{rest}", shown.join(" · "))
}

/// A name and its value; what does not fit goes on below it.
fn field(theme: &Theme, width: usize, name: &str, text: &str) -> Vec<Line<'static>> {
    let values = crate::tui::dialogs::wrapped(text, width.saturating_sub(10).max(20), theme.text);
    let line = |(at, value): (usize, Line<'static>)| {
        let name = if at == 0 { name } else { "" };
        let mut spans = vec![Span::styled(format!("{name:<9} "), theme.dim)];
        let style = value.style;
        spans.extend(value.spans.into_iter().map(|s| Span { style: style.patch(s.style), ..s }));
        Line::from(spans)
    };
    values.into_iter().enumerate().map(line).collect()
}
