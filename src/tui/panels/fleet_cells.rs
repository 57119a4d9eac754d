//! The GPUs of one host, in three densities.

use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::api::{Gpu, GpuHealth, HostLinkState, HostView, RankView};
use crate::tui::draw::{Pen, spark};
use crate::tui::letters::letter;
use crate::tui::state::State;
use crate::tui::words;

/// How much room each GPU gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Density {
    /// A line, or half of one, with bars and all numbers.
    Roomy,
    /// A cell of nine columns and two rows.
    Close,
    /// One character in each of three strips.
    Dense,
}

/// Columns of a cell in `Close`.
const CELL: u16 = 9;
/// Columns from which two GPUs stand side by side in `Roomy`.
const TWO: u16 = 92;
/// Columns that a GPU needs in `Roomy`.
const MIN_ROOMY: u16 = 46;

/// Rows that a host takes.
pub fn rows(host: &HostView, density: Density, width: u16) -> u16 {
    let count = host.sample.as_ref().map_or(0, |s| s.gpus.list().len());
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    match density {
        Density::Dense => 1,
        Density::Close => {
            let across = (width.saturating_sub(2) / CELL).max(1);
            count.div_ceil(across).saturating_mul(2).saturating_add(1)
        }
        // Too narrow for its bars: never the one that fits.
        Density::Roomy if width < MIN_ROOMY => u16::MAX,
        Density::Roomy => count.div_ceil(if width >= TWO { 2 } else { 1 }).saturating_add(1),
    }
}

/// Who holds a GPU.
struct Owner {
    letter: char,
    style: Style,
    /// Which replica, or which process.
    label: String,
    /// The name of the service.
    service: Option<String>,
}

fn owner(state: &State, host: &HostView, gpu: &Gpu) -> Owner {
    let holds = |rank: &&RankView| rank.devices.iter().any(|d| gpu.has(d));
    if let Some(rank) = host.ranks.iter().find(holds) {
        let index = state.service_index(&rank.rank.service);
        let replica = rank.rank.replica.key();
        return Owner {
            letter: letter(index),
            style: state.theme.service(index),
            label: replica.to_string(),
            service: Some(rank.rank.service.to_string()),
        };
    }
    match gpu.listed().first() {
        Some(process) => {
            let label = match process.name.as_str() {
                "" => "–".to_owned(),
                name => name.to_owned(),
            };
            Owner { letter: '?', style: state.theme.warn, label, service: None }
        }
        None if gpu.processes.is_none() => {
            Owner { letter: '·', style: state.theme.dim, label: "–".to_owned(), service: None }
        }
        None => {
            Owner { letter: '·', style: state.theme.dim, label: "free".to_owned(), service: None }
        }
    }
}

fn is_degraded(gpu: &Gpu) -> bool {
    matches!(gpu.health, GpuHealth::Degraded { .. })
}

/// Why a GPU has no numbers or false ones.
fn trouble(gpu: &Gpu) -> Option<String> {
    match &gpu.health {
        GpuHealth::Ok => None,
        GpuHealth::Degraded { why } => Some(format!("DEGRADED: {why}")),
        GpuHealth::Lost => Some("LOST: fell off the bus".to_owned()),
    }
}

fn temperature_style(gpu: &Gpu, state: &State) -> Style {
    let slow = gpu.slowdown_temperature_c.unwrap_or(90);
    match gpu.temperature_c {
        Some(t) if t >= slow => state.theme.bad,
        Some(t) if t + 5 >= slow => state.theme.warn,
        _ => state.theme.text,
    }
}

fn utilisation(gpu: &Gpu) -> Option<f64> {
    Some(f64::from(gpu.utilisation_percent?) / 100.0)
}

/// A share as one character; what is not known is not little.
fn level(share: Option<f64>) -> &'static str {
    share.map_or(words::ABSENT, spark)
}

/// A share as a bar of so many cells; what is not known is no empty bar.
fn bar_of(pen: &mut Pen<'_>, (x, y, width): (u16, u16, u16), share: Option<f64>, style: Style) {
    match share {
        Some(share) => pen.bar(x, y, width, share, style),
        None => {
            pen.put(x, y, x.saturating_add(width), words::ABSENT, pen.theme.dim);
        }
    }
}

/// Draws the GPUs below the host's line.
pub fn draw(pen: &mut Pen<'_>, state: &State, host: &HostView, block: Rect, density: Density) {
    let Some(sample) = &host.sample else { return };
    let gpus = sample.gpus.list();
    let up = matches!(host.link, HostLinkState::Up | HostLinkState::Limited { .. });
    let (across, width, tall) = match density {
        Density::Roomy if block.width >= TWO => (2, (block.width - 2) / 2, 1),
        Density::Roomy => (1, block.width.saturating_sub(2), 1),
        _ => ((block.width.saturating_sub(2) / CELL).max(1), CELL, 2),
    };
    for (i, gpu) in gpus.iter().enumerate() {
        let i = u16::try_from(i).unwrap_or(u16::MAX);
        let y = block.y.saturating_add(1 + i / across * tall);
        if y >= block.bottom() {
            break;
        }
        let x = block.x + 2 + i % across * width;
        let area = Rect { x, y, width, height: tall.min(block.bottom() - y) };
        match density {
            Density::Roomy => roomy(pen, state, host, gpu, area, up),
            _ => close(pen, state, host, gpu, area, up),
        }
    }
}

/// `a 0  ━━━━╸───  87%  ━━━━━━── 61.2/80G  64°  512W  chat r11-0`, or `r11-0` where it is narrow
fn roomy(pen: &mut Pen<'_>, state: &State, host: &HostView, gpu: &Gpu, area: Rect, up: bool) {
    let theme = pen.theme;
    let y = area.y;
    let right = (area.right() - 1).min(pen.buffer.area.right());
    let owner = owner(state, host, gpu);
    let mut x = pen.put(area.x, y, right, &owner.letter.to_string(), owner.style) + 1;
    x = pen.put(x, y, right, &format!("{:<2}", gpu.index), theme.dim) + 1;
    if let (Some(why), GpuHealth::Lost) = (trouble(gpu), &gpu.health) {
        pen.put_cut(x, y, right, &format!("✖ {why}"), theme.bad);
        return;
    }
    let old = |style: Style| if up { style } else { theme.dim };
    // Everything but bars and label has a fixed width: they share what is left.
    let spare = area.width.saturating_sub(34);
    let named = spare >= 34;
    let label = match spare {
        0..=13 => 0,
        14..=33 => 6,
        _ => 16,
    };
    let bar = (spare.saturating_sub(label) / 2).clamp(2, 16);
    bar_of(pen, (x, y, bar), utilisation(gpu), old(owner.style));
    x += bar;
    let percent = words::number(gpu.utilisation_percent, "%");
    pen.put_right(x, y, x + 5, &percent, old(theme.text));
    x += 7;
    bar_of(pen, (x, y, bar), gpu.memory.map(words::share), old(owner.style));
    x += bar;
    pen.put_right(x, y, x + 9, &words::memory(gpu.memory), old(theme.text));
    x += 9;
    let temperature = words::number(gpu.temperature_c, "°");
    pen.put_right(x, y, (x + 5).min(right), &temperature, old(temperature_style(gpu, state)));
    x += 5;
    pen.put_right(x, y, (x + 6).min(right), &words::watts(gpu.power_mw), old(theme.dim));
    x += 7;
    if let Some(why) = trouble(gpu) {
        pen.put_cut(x, y, right, &format!("▲ {why}"), theme.bad)
    } else {
        let service = owner.service.filter(|_| named).map(|s| format!("{s} "));
        let text = format!("{}{}", service.unwrap_or_default(), owner.label);
        pen.put_cut(x, y, right, &text, old(owner.style))
    };
}

/// `0▇ 87%` over `a█ 61G`
fn close(pen: &mut Pen<'_>, state: &State, host: &HostView, gpu: &Gpu, area: Rect, up: bool) {
    let theme = pen.theme;
    let right = area.right().saturating_sub(1);
    let owner = owner(state, host, gpu);
    let old = |style: Style| if up { style } else { theme.dim };
    let x = pen.put(area.x, area.y, right, &gpu.index.to_string(), theme.dim);
    let below = area.y + 1;
    if gpu.health == GpuHealth::Lost {
        pen.put(x, area.y, right, "✖ LOST", theme.bad);
        if area.height > 1 {
            pen.put(area.x, below, right, &owner.letter.to_string(), owner.style);
        }
        return;
    }
    pen.put(x, area.y, right, level(utilisation(gpu)), old(owner.style));
    let percent = words::number(gpu.utilisation_percent, "%");
    pen.put_right(x + 1, area.y, area.x + 7, &percent, old(theme.text));
    if area.height < 2 {
        return;
    }
    let x = pen.put(area.x, below, right, &owner.letter.to_string(), owner.style);
    if is_degraded(gpu) {
        pen.put(x, below, right, "▲ DEGR", theme.bad);
        return;
    }
    // A two-digit index stands over a letter and a blank.
    let x = if gpu.index > 9 { x + 1 } else { x };
    pen.put(x, below, right, level(gpu.memory.map(words::share)), old(owner.style));
    let used = gpu
        .memory
        .map_or_else(|| words::ABSENT.to_owned(), |m| format!("{:.0}G", m.used.as_gib_f64()));
    pen.put_right(x + 1, below, area.x + 7, &used, old(theme.text));
}

/// Three strips of one character for each GPU: utilisation, memory, owner.
pub fn strips(
    pen: &mut Pen<'_>,
    state: &State,
    host: &HostView,
    gpus: &[Gpu],
    x: u16,
    y: u16,
    right: u16,
) -> u16 {
    let theme = pen.theme;
    let mut x = x;
    for strip in 0..3 {
        for gpu in gpus {
            let owner = owner(state, host, gpu);
            let lost = gpu.health == GpuHealth::Lost;
            x = match strip {
                0 | 1 if lost => pen.put(x, y, right, "✖", theme.bad),
                2 if lost => pen.put(x, y, right, &owner.letter.to_string(), theme.bad),
                0 if is_degraded(gpu) => pen.put(x, y, right, "▲", theme.bad),
                0 => pen.put(x, y, right, level(utilisation(gpu)), owner.style),
                1 => pen.put(x, y, right, level(gpu.memory.map(words::share)), owner.style),
                _ => pen.put(x, y, right, &owner.letter.to_string(), owner.style),
            };
        }
        x = x.saturating_add(1);
    }
    let (busy, count) = gpus
        .iter()
        .filter_map(|g| g.utilisation_percent)
        .fold((0_u32, 0_u32), |(sum, n), p| (sum.saturating_add(p), n + 1));
    if let Some(mean) = busy.checked_div(count) {
        x = pen.put(x, y, right, &format!("{mean:>3}%"), theme.text) + 1;
    }
    if gpus.iter().any(|g| g.health == GpuHealth::Lost) {
        x = pen.put(x, y, right, "GPU LOST", theme.bad) + 1;
    }
    match gpus.iter().filter(|g| is_degraded(g)).count() {
        0 => {}
        n => x = pen.put(x, y, right, &format!("{n} DEGRADED"), theme.bad) + 1,
    }
    x
}
