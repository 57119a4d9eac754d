//! Hosts, their links, and their GPUs.
//!
//! ```text
//! ╭ 1 Fleet ─ 4 hosts · 32 GPUs · util 63% · 1.9/2.5 TiB · 11.2 kW ────────────────╮
//! │▌● node1  H100 80GB ×8              cpu 23%  mem 210/1008G  max 71°  4.1 kW     │
//! │   a 0 ━━━━╸───  87%  ━━━━━━── 61.2/80G  64°  512W  chat r11-0                  │  roomy
//! │                                                                                │
//! │▌● node1  H100 80GB ×8              cpu 23%  mem 210/1008G  max 71°  4.1 kW     │
//! │   0▇ 87%  1▇ 91%  2▇ 88%  …                                                    │  close
//! │   a█ 61G  a█ 61G  a█ 61G  …                                                    │
//! │                                                                                │
//! │▌● node1  ▇▇▇▇▅▅▁▁  ████▅▅▁▁  aaaabb··  util 61%  mem …  max 71°  4.1 kW        │  dense
//! ╰────────────────────────────────────────────────── a chat  b code ──────────────╯
//! ```
//!
//! The roomiest of the three that fits is taken. Letters and colours say which service holds a GPU.

use std::fmt::Write as _;

use ratatui::layout::Rect;
use ratatui::style::Style;

use super::fleet_cells::{self as cells, Density};
use super::{nothing, title};
use crate::api::{Bytes, DownCause, GpuHealth, Gpus, HostLinkState, HostView, Timestamp, time};
use crate::tui::command::Panel;
use crate::tui::draw::{Pen, window};
use crate::tui::letters::{holders, letter};
use crate::tui::state::{STALE, State};
use crate::tui::sums::GpuSums;
use crate::tui::words;

/// Rows that the panel would like to have.
pub fn height(state: &State, width: u16) -> u16 {
    let hosts = state.hosts();
    let inner = width.saturating_sub(2);
    let gaps = u16::try_from(hosts.len().saturating_sub(1)).unwrap_or(u16::MAX);
    let rows = rows_within(&hosts, Density::Roomy, inner, state.size.1);
    rows.map_or(u16::MAX, |rows| rows.saturating_add(gaps).saturating_add(2))
}

/// Rows that hosts take; none if that is more than `most`. Of a thousand hosts only the first few are asked.
fn rows_within(hosts: &[&HostView], density: Density, width: u16, most: u16) -> Option<u16> {
    hosts.iter().try_fold(0_u16, |rows, host| {
        let rows = rows.saturating_add(cells::rows(host, density, width));
        (rows <= most).then_some(rows)
    })
}

/// Draws the panel.
pub fn draw(pen: &mut Pen<'_>, state: &State, area: Rect, focused: bool) {
    let hosts = state.hosts();
    let inside = pen.frame(area, focused, &title(state, Panel::Fleet, &summary(state, &hosts)));
    if hosts.is_empty() {
        let lines: &[&str] = if state.filter(Panel::Fleet).is_some() {
            &["no host matches the filter", "Esc clears it"]
        } else {
            &["no hosts in this deck", "name them in deck.toml, then :reload"]
        };
        return nothing(pen, inside, lines);
    }
    legend(pen, state, area);
    let density = [Density::Roomy, Density::Close]
        .into_iter()
        .find(|d| rows_within(&hosts, *d, inside.width, inside.height).is_some())
        .unwrap_or(Density::Dense);
    let selected = state.host.row_among(hosts.iter().map(|h| &h.name));
    let from = if density == Density::Dense {
        window(hosts.len(), selected, usize::from(inside.height))
    } else {
        0
    };
    // A blank row between hosts where there is room for all of them.
    let count = u16::try_from(hosts.len()).unwrap_or(u16::MAX);
    let needed = rows_within(&hosts, density, inside.width, inside.height)
        .map(|rows| rows.saturating_add(count.saturating_sub(1)));
    let roomy = needed.is_some_and(|needed| needed <= inside.height);
    let gap = u16::from(density != Density::Dense && roomy);
    let widest = hosts.iter().map(|h| h.name.as_str().len()).max().unwrap_or(0);
    let name_width = u16::try_from(widest).unwrap_or(u16::MAX).clamp(5, (inside.width / 5).max(5));
    let mut y = inside.y;
    for (i, host) in hosts.iter().enumerate().skip(from) {
        if y >= inside.bottom() {
            break;
        }
        let rows = cells::rows(host, density, inside.width);
        let block = Rect { y, height: rows.min(inside.bottom() - y), ..inside };
        let mark = if i == selected { "▌" } else { " " };
        let place = head(pen, state, host, block, mark, name_width);
        match density {
            Density::Dense => dense(pen, state, host, place, block),
            Density::Close | Density::Roomy => {
                figures(pen, state, host, place, block);
                cells::draw(pen, state, host, block, density);
            }
        }
        if i == selected {
            let style = if focused { state.theme.selected } else { state.theme.selected_elsewhere };
            pen.select(inside, y, style);
        }
        y = y.saturating_add(rows + gap);
    }
}

/// The sums in the title.
fn summary(state: &State, hosts: &[&HostView]) -> String {
    let sums = state.sums.of(hosts);
    let GpuSums { gpus, unknown, lost, used, total, milliwatts, busy_percent, measured } = sums;
    let mut out = format!("{} host{}", hosts.len(), if hosts.len() == 1 { "" } else { "s" });
    let away = hosts.iter().filter(|h| !matches!(h.link, HostLinkState::Up)).count();
    if away > 0 {
        let _ = write!(out, " ({away} not up)");
    }
    if gpus > 0 {
        let _ = write!(out, " · {gpus} GPU{}", if gpus == 1 { "" } else { "s" });
        if unknown > 0 {
            let _ = write!(out, " ({unknown} unknown)");
        }
        if lost > 0 {
            let _ = write!(out, " · {lost} LOST");
        }
        if let Some(mean) = busy_percent.checked_div(measured) {
            let _ = write!(out, " · util {mean}%");
        }
        if total > Bytes::ZERO {
            let _ = write!(out, " · {used} of {total}");
        }
        if let Some(milliwatts) = milliwatts {
            let _ = write!(out, " · {:.1} kW", milliwatts as f64 / 1e6);
        }
    }
    out
}

/// Which letter is which service, in the lower border.
fn legend(pen: &mut Pen<'_>, state: &State, area: Rect) {
    if area.height < 4 {
        return;
    }
    let Some(snapshot) = &state.snapshot else { return };
    let y = area.bottom() - 1;
    let right = area.right().saturating_sub(2);
    let mut x = area.x + 2;
    let mut named: Vec<(usize, crate::api::ServiceName)> =
        holders(snapshot).into_iter().map(|name| (state.service_index(&name), name)).collect();
    named.sort();
    for (i, name) in named {
        let letter = letter(i);
        let needs = u16::try_from(name.as_str().len() + 5).unwrap_or(u16::MAX);
        if x.saturating_add(needs) > right {
            break;
        }
        x = pen.put(x, y, right, &format!(" {letter} "), pen.theme.service(i));
        x = pen.put(x, y, right, &format!("{name} "), pen.theme.dim);
    }
}

/// Mark, name and link; returns where the line goes on.
fn head(
    pen: &mut Pen<'_>,
    state: &State,
    host: &HostView,
    block: Rect,
    mark: &str,
    name_width: u16,
) -> u16 {
    let theme = pen.theme;
    let y = block.y;
    let right = block.right();
    let mut x = pen.put(block.x, y, right, mark, theme.accent);
    let (sign, style) = link_mark(host, state);
    x = pen.put(x, y, right, sign, style) + 1;
    pen.put_cut(x, y, (x + name_width).min(right), host.name.as_str(), theme.strong);
    (x + name_width + 1).min(right)
}

fn link_mark(host: &HostView, state: &State) -> (&'static str, Style) {
    let theme = &state.theme;
    let hung = host.sample.as_ref().is_some_and(|s| matches!(s.gpus, Gpus::Hung { .. }));
    match &host.link {
        HostLinkState::Up if hung => ("✖", theme.bad),
        HostLinkState::Up if has_lost(host) => ("▲", theme.bad),
        HostLinkState::Up => ("●", theme.good),
        HostLinkState::Limited { .. } => ("◐", theme.warn),
        HostLinkState::Connecting { .. } => ("◌", theme.accent),
        HostLinkState::Asking { .. } => ("?", theme.warn),
        HostLinkState::Down { .. } => ("✖", theme.bad),
    }
}

/// Whether a GPU of this host has fallen off the bus.
fn has_lost(host: &HostView) -> bool {
    let gpus = host.sample.as_ref().map_or(&[][..], |s| s.gpus.list());
    gpus.iter().any(|gpu| gpu.health == GpuHealth::Lost)
}

/// Which replicas are on a host whose GPUs are not read: ` · chat r3-0, code r1-1 run there`.
fn sitting(host: &HostView) -> String {
    let keys = host.ranks.iter().map(|r| (r.rank.service.as_str(), r.rank.replica.key()));
    let there: std::collections::BTreeSet<_> = keys.collect();
    if there.is_empty() {
        return String::new();
    }
    let names: Vec<String> =
        there.iter().map(|(service, key)| format!("{service} {key}")).collect();
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!(" · {} {verb} there", names.join(", "))
}

/// The link in words, when it is not simply up.
pub fn link_words(link: &HostLinkState, now: Timestamp) -> Option<String> {
    Some(match link {
        HostLinkState::Up => return None,
        HostLinkState::Limited { why, hint } => {
            let mut out = format!("only looked at, no agent: {why}");
            if let Some(hint) = hint {
                let _ = write!(out, " → {hint}");
            }
            out
        }
        HostLinkState::Connecting { phase } => format!("{phase} …"),
        HostLinkState::Asking { .. } => "asks a question: press Q".to_owned(),
        HostLinkState::Down { kind, cause, hint, since, retry_at, trying, .. } => {
            let state = if *kind == DownCause::LoginLost { "login lost" } else { "down" };
            let mut out = format!("{state} {}: {cause}", words::ago(now, *since));
            if let Some(at) = retry_at {
                let _ = write!(out, " (again in {})", words::left(now, *at));
            }
            if let Some(phase) = trying {
                let _ = write!(out, " ({phase} …)");
            }
            if let Some(hint) = hint {
                let _ = write!(out, " → {hint}");
            }
            out
        }
    })
}

/// The age of a sample that is not fresh any more; with the age that its GPU values had when it was
/// taken.
pub fn age(host: &HostView, now: Timestamp) -> Option<String> {
    let age = now.since(host.sampled?);
    if age > STALE {
        return Some(format!("{} old", time::short(age)));
    }
    let gpus = host.sample.as_ref().and_then(|sample| sample.gpus_age_ms)?;
    let gpus = age + std::time::Duration::from_millis(gpus);
    (gpus > STALE).then(|| format!("GPUs {} old", time::short(gpus)))
}

/// What a host is and how it is doing, behind its name.
fn figures(pen: &mut Pen<'_>, state: &State, host: &HostView, x: u16, block: Rect) {
    let theme = pen.theme;
    let (y, right) = (block.y, block.right());
    let numbers = numbers(host, right.saturating_sub(x) >= 76);
    let end = if matches!(host.link, HostLinkState::Down { .. }) {
        right
    } else {
        pen.put_right(x, y, right, &numbers, theme.dim).saturating_sub(1)
    };
    let mut x = x;
    if let Some(age) = age(host, state.now) {
        x = pen.put(x, y, end, &age, theme.warn) + 2;
    }
    if let Some(word) = host.maintenance.word() {
        x = pen.put(x, y, end, &word, theme.warn) + 2;
    }
    if let Some(words) = link_words(&host.link, state.now) {
        let style = match host.link {
            HostLinkState::Down { .. } => theme.bad,
            HostLinkState::Asking { .. } => theme.warn,
            _ => theme.accent,
        };
        pen.put_cut(x, y, end, &words, style);
        return;
    }
    let Some(sample) = &host.sample else {
        pen.put(x, y, end, "no sample yet", theme.dim);
        return;
    };
    match &sample.gpus {
        Gpus::None { why } => {
            pen.put_cut(x, y, end, &format!("no GPU: {why}"), theme.dim);
        }
        Gpus::Hung { .. } if sample.gpu_trouble.is_some() => {
            let why = sample.gpu_trouble.as_deref().unwrap_or_default();
            pen.put_cut(
                x,
                y,
                end,
                &format!("GPUS NOT READ: {}{}", crate::api::text::clean(why, 200), sitting(host)),
                theme.bad,
            );
        }
        Gpus::Hung { for_ms } => {
            let time = time::short(std::time::Duration::from_millis(*for_ms));
            let text = format!("DRIVER HUNG for {time}{}", sitting(host));
            pen.put_cut(x, y, end, &text, theme.bad);
        }
        Gpus::Some(gpus) => {
            pen.put_cut(x, y, end, &crate::api::models(gpus), theme.text);
        }
    }
}

/// The numbers of a host, for the right end of its line.
fn numbers(host: &HostView, wide: bool) -> String {
    let Some(sample) = &host.sample else { return String::new() };
    let mut parts = Vec::new();
    if let Some(cpu) = sample.cpu_percent {
        parts.push(format!("cpu {cpu:.0}%"));
    }
    parts.push(format!("mem {}", words::memory(sample.memory)));
    if wide && let (Some(rx), Some(tx)) = (sample.net_rx_bytes_per_s, sample.net_tx_bytes_per_s) {
        parts.push(format!("↓{} ↑{}/s", Bytes(rx), Bytes(tx)));
    }
    let gpus = sample.gpus.list();
    if let Some(hottest) = gpus.iter().filter_map(|g| g.temperature_c).max() {
        parts.push(format!("max {hottest}°"));
    }
    let milliwatts: u64 = gpus.iter().filter_map(|g| g.power_mw).map(u64::from).sum();
    if milliwatts > 0 {
        parts.push(format!("{:.1} kW", milliwatts as f64 / 1e6));
    }
    parts.join("  ")
}

/// A whole host in one line.
fn dense(pen: &mut Pen<'_>, state: &State, host: &HostView, x: u16, block: Rect) {
    let (y, right) = (block.y, block.right());
    let known = host.sample.as_ref().is_some_and(|s| !s.gpus.list().is_empty());
    if !known || !matches!(host.link, HostLinkState::Up | HostLinkState::Limited { .. }) {
        return figures(pen, state, host, x, block);
    }
    let gpus = host.sample.as_ref().map_or(&[][..], |s| s.gpus.list());
    let x = cells::strips(pen, state, host, gpus, x, y, right);
    let mut x = x;
    if let Some(age) = age(host, state.now) {
        x = pen.put(x, y, right, &age, pen.theme.warn) + 2;
    }
    if let Some(word) = host.maintenance.word() {
        x = pen.put(x, y, right, &word, pen.theme.warn) + 2;
    }
    let numbers = numbers(host, false);
    let mut parts: Vec<&str> = numbers.split("  ").collect();
    while !parts.is_empty()
        && parts.join("  ").chars().count() > usize::from(right.saturating_sub(x))
    {
        parts.remove(0);
    }
    pen.put_right(x, y, right, &parts.join("  "), pen.theme.dim);
}
