//! The rollout of the selected service, and the releases before it.
//!
//! ```text
//! ╭ 3 Rollout ─ chat ───────────────────────────────────────────────────────────╮
//! │ r11 → r12  ▶ forward  step 2 of 5  3m10s  by ann                            │
//! │ traffic r11  90% ████████████████████████████████████████▒▒▒▒▒  10% r12     │
//! │                                                                             │
//! │ ✔ weight 10 %                   │            requests  failed       mean    │
//! │ ▶ analyse default   42s ━━━╸─── │ new r12         214   29.0%     182 ms    │
//! │ ○ weight 50 %                   │ old r11        1934    0.1%     181 ms    │
//! │ ○ approve                       │ ✖ error rate 0.31 (62 of 200) > 0.02      │
//! │ ○ all replicas                  │                                           │
//! │                                                                             │
//! │ REPLICAS                                                                    │
//! │ r12-0  ◑ ▰▰▰▱ loading  34s   node3 GPU 0-3                              10% │
//! │                                                                             │
//! │ RELEASES                                                                    │
//! │▌r12  2m   ann  ▶ under way    quieter sampler                               │
//! ╰─────────────────────────────────────────────────────────────────────────────╯
//! ```

use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use super::services::replica_row;
use super::{nothing, title};
use crate::api::{
    Condition, Direction, Gate, Outcome, ReleaseNumber, ReleaseView, ReplicaView, Rollout,
    RolloutKind, ServiceView, VerdictOf, VerdictResult, Window,
};

use crate::tui::command::Panel;
use crate::tui::draw::{Pen, window};
use crate::tui::state::State;
use crate::tui::words;

/// Columns from which steps and measures stand side by side.
const SIDE_BY_SIDE: u16 = 66;

/// Draws the panel.
pub fn draw(pen: &mut Pen<'_>, state: &State, area: Rect, focused: bool) {
    let service = state.selected_service();
    let more = service.map_or_else(String::new, |s| {
        let others = state.services().len();
        let turn = if others > 1 { "  ← → others" } else { "" };
        format!("{}{turn}", s.name)
    });
    let inside = pen.frame(area, focused, &title(state, Panel::Rollout, &more));
    let Some(service) = service else {
        return nothing(pen, inside, &["no service is selected"]);
    };
    let mut rest = Rect { x: inside.x + 1, width: inside.width.saturating_sub(2), ..inside };
    // The list keeps three rows whatever else there is.
    let keep = if service.history.is_empty() { 0 } else { 4.min(rest.height / 2) };
    let mut top = Rect { height: rest.height - keep, ..rest };
    if let Some(rollout) = &service.rollout {
        journey(pen, state, service, rollout, &mut top);
    } else {
        let y = take(&mut top, 1);
        let text = match service.condition {
            Condition::Stopped => "nothing runs; a rolls it out",
            Condition::Elsewhere => "another controller holds its hosts",
            _ => "no rollout yet; a rolls out the spec",
        };
        pen.put(rest.x, y, rest.right(), text, pen.theme.dim);
    }
    replicas(pen, state, service, &mut top);
    let used = top.y - rest.y;
    rest.y += used;
    rest.height -= used;
    history(pen, state, service, rest, inside, focused);
}

/// Takes `rows` from the top of `rest`; returns their first row.
fn take(rest: &mut Rect, rows: u16) -> u16 {
    let y = rest.y;
    let rows = rows.min(rest.height);
    rest.y += rows;
    rest.height -= rows;
    y
}

fn journey(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    rollout: &Rollout,
    rest: &mut Rect,
) {
    if rest.height == 0 {
        return;
    }
    paragraph(pen, rest, headline(state, service, rollout));
    if let Some(line) = held(state, rollout) {
        paragraph(pen, rest, line);
    }
    if let Some((text, style)) = queued(state, service)
        && rest.height > 0
    {
        let y = take(rest, 1);
        pen.put_cut(rest.x, y, rest.right(), &text, style);
    }
    let over = rollout.outcome.is_some();
    if !over && rest.height > 4 {
        let y = take(rest, 1);
        traffic_bar(pen, service, rollout, *rest, y);
    }
    if rest.height > 12 {
        take(rest, 1);
    }
    let said = is_said(rollout);
    let measured = counts(rollout) || rollout.verdict.is_some() && !said;
    let titles = titles(service, rollout);
    // What has ended needs no steps any more, unless there is plenty of room.
    let wanted = if over && rest.height < 20 { 0 } else { titles.len() };
    let room = usize::from(rest.height.saturating_sub(3).min(10));
    let rows = u16::try_from(wanted.min(room)).unwrap_or(0);
    let side = rest.width >= SIDE_BY_SIDE && measured && rows > 0;
    let measure_rows = if measured { if said { 3 } else { 4 }.min(rest.height) } else { 0 };
    if side {
        let rows = rows.max(measure_rows).min(rest.height);
        let y = take(rest, rows);
        let half = rest.width * 44 / 100;
        let left = Rect { y, height: rows, width: half, ..*rest };
        let right = Rect { x: rest.x + half + 3, width: rest.width - half - 3, ..left };
        for row in left.y..left.bottom() {
            pen.put(left.right() + 1, row, right.x, "│", pen.theme.border);
        }
        steps(pen, state, service, rollout, &titles, left);
        measures(pen, rollout, right);
    } else {
        if rows > 0 {
            let y = take(rest, rows);
            steps(pen, state, service, rollout, &titles, Rect { y, height: rows, ..*rest });
        }
        if measured {
            let y = take(rest, measure_rows);
            measures(pen, rollout, Rect { y, height: measure_rows, ..*rest });
        }
    }
    if rest.height > 6 {
        take(rest, 1);
    }
}

/// A line, and what does not fit into it in the rows below: a reason is read to its end where there is room. The
/// rest of the panel keeps two rows of three.
fn paragraph(pen: &mut Pen<'_>, rest: &mut Rect, line: Line<'static>) {
    let lines = broken(line, usize::from(rest.width));
    let most = usize::from((rest.height / 3).max(1));
    let rows = u16::try_from(lines.len().min(most)).unwrap_or(1).min(rest.height);
    let y = take(rest, rows);
    let room = Rect { y, height: rows, ..*rest };
    pen.lines_cut(room, lines);
}

/// A line in lines of at most `width` columns: its last part, the reason, is what is broken.
pub fn broken(mut line: Line<'static>, width: usize) -> Vec<Line<'static>> {
    if line.width() <= width {
        return vec![line];
    }
    let Some(last) = line.spans.pop() else { return vec![line] };
    let style = line.style.patch(last.style);
    // What follows is a beginning of the text, letter for letter.
    let text = last.content.trim_start().to_owned();
    let blank = last.content.len() - text.len();
    line.spans.push(Span::raw(" ".repeat(blank)));
    let used = line.width();
    let parts = |width| crate::tui::dialogs::wrapped(&text, width, style);
    // As much of it as fits goes on in the same line; it is broken there as the rest is below.
    let hang = 2;
    let room = width.saturating_sub(used);
    if used == 0 || room < 16 {
        let below = parts(width.saturating_sub(hang)).into_iter().map(|l| hanging(l, hang));
        return std::iter::once(line).filter(|l| l.width() > 0).chain(below).collect();
    }
    let first = parts(room).into_iter().next().unwrap_or_default();
    let begun: String = first.spans.iter().map(|s| s.content.as_ref()).collect();
    let left = text.get(begun.len()..).unwrap_or_default().trim_start();
    line.spans.push(Span::styled(begun, style));
    let below = crate::tui::dialogs::wrapped(left, width.saturating_sub(hang), style);
    std::iter::once(line).chain(below.into_iter().map(|l| hanging(l, hang))).collect()
}

fn hanging(line: Line<'static>, by: usize) -> Line<'static> {
    let style = line.style;
    let blank = Span::raw(" ".repeat(by));
    let spans = line.spans.into_iter().map(|s| Span { style: style.patch(s.style), ..s });
    Line::from(std::iter::once(blank).chain(spans).collect::<Vec<_>>())
}

/// From where to where, in which direction, how far, for how long, by whom; or how it ended.
pub fn headline(state: &State, service: &ServiceView, rollout: &Rollout) -> Line<'static> {
    let theme = &state.theme;
    let from = rollout.from.map_or_else(|| "nothing".to_owned(), |f| f.to_string());
    let mut spans = vec![
        Span::styled(from, theme.old.patch(theme.strong)),
        Span::styled(" → ", theme.dim),
        Span::styled(rollout.to.to_string(), theme.new.patch(theme.strong)),
        Span::raw("  "),
    ];
    if let Some(outcome) = &rollout.outcome {
        let (mark, style, word, why) = words::outcome(outcome, theme);
        let took = rollout.ended.unwrap_or(state.now).since(rollout.began);
        spans.push(Span::styled(format!("{mark} {word}"), style.patch(theme.strong)));
        spans.push(Span::styled(format!(" after {}", words::whole(took)), theme.dim));
        if let Some(ended) = rollout.ended {
            let ended = words::how_long_ago(state.now, ended);
            spans.push(Span::styled(format!(", {ended}"), theme.dim));
        }
        if !why.is_empty() {
            spans.push(Span::styled(format!(": {why}"), style));
        }
        return Line::from(spans);
    }
    let (word, style) = match (&rollout.direction, rollout.paused) {
        (Direction::Back { .. }, _) => ("◀ going back", theme.warn),
        (Direction::Forward, Some(_)) => ("║ paused", theme.warn),
        (Direction::Forward, None) if service.condition == Condition::Held => {
            ("║ held", theme.warn)
        }
        (Direction::Forward, None) => ("▶ forward", theme.accent),
    };
    spans.push(Span::styled(word, style.patch(theme.strong)));
    if rollout.kind == RolloutKind::Undo {
        spans.push(Span::styled(" (undo)", theme.dim));
    }
    let count = titles(service, rollout).len();
    let step = (rollout.step + 1).min(count);
    let since = words::ago(state.now, rollout.began);
    spans.push(Span::raw(format!("  step {step} of {count}")));
    spans.push(Span::styled(format!("  {since}  by {}", rollout.by), theme.dim));
    Line::from(spans)
}

/// From where to where, how far, and what holds it: for the strip of small screens.
pub fn in_short(state: &State, service: &ServiceView, rollout: &Rollout) -> Line<'static> {
    let mut line = headline(state, service, rollout);
    line.spans.truncate(5);
    let count = titles(service, rollout).len();
    let text = format!("  {} of {count}", (rollout.step + 1).min(count));
    line.spans.push(Span::raw(text));
    if let Some(gate) = words::gate(rollout, state.now) {
        line.spans.push(Span::styled(format!("  {gate}"), state.theme.accent));
    }
    line
}

/// Why it goes back, or what holds it.
fn held(state: &State, rollout: &Rollout) -> Option<Line<'static>> {
    let theme = &state.theme;
    if rollout.outcome.is_some() {
        return None;
    }
    if let Direction::Back { why, asked } = &rollout.direction {
        let who = if *asked { "taken back: " } else { "taken back by itself: " };
        return Some(Line::from(vec![
            Span::styled(format!("↩ {who}"), theme.warn),
            Span::styled(why.clone(), theme.strong),
        ]));
    }
    let waits = matches!(
        rollout.gate,
        Some(Gate::Approve | Gate::Inconclusive { .. } | Gate::Failed { .. })
    ) || rollout.paused.is_some();
    if !waits {
        return None;
    }
    let text = words::gate(rollout, state.now)?;
    Some(Line::styled(format!("║ {text}"), theme.warn.patch(theme.strong)))
}

/// What comes after this rollout, or why it did not come.
fn queued(state: &State, service: &ServiceView) -> Option<(String, Style)> {
    let theme = &state.theme;
    if let Some(queued) = &service.queued {
        let why = queued.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        let text = format!("» next: {} by {}{why} (X cancels)", queued.what(), queued.by);
        return Some((text, theme.accent));
    }
    let why = service.queue_trouble.as_ref()?;
    Some((format!("✖ the queued rollout did not begin: {why}"), theme.bad))
}

/// How the requests are shared out between the two releases, by weight.
fn traffic_bar(pen: &mut Pen<'_>, service: &ServiceView, rollout: &Rollout, rest: Rect, y: u16) {
    let share_of = |release: ReleaseNumber, of: fn(&ReplicaView) -> u32| -> u32 {
        let replicas = service.replicas.iter().filter(|r| r.id.release == release);
        replicas.map(of).sum()
    };
    let shares = |of: fn(&ReplicaView) -> u32| {
        shared_out(share_of(rollout.to, of), rollout.from.map_or(0, |from| share_of(from, of)))
    };
    let (new, old) = shares(|r| r.weight_percent);
    let mut x = pen.put(rest.x, y, rest.right(), "traffic ", pen.theme.dim);
    if let Some(from) = rollout.from {
        x = pen.put(x, y, rest.right(), &format!("{from} {old:>3}% "), pen.theme.old);
    }
    let waits = service.replicas.iter().any(|r| r.weight_wanted_percent.is_some());
    let tail = if waits {
        let (to_be, _) = shares(|r| r.weight_wanted_percent.unwrap_or(r.weight_percent));
        format!(" {new:>3}→{to_be}% {}", rollout.to)
    } else {
        format!(" {new:>3}% {}", rollout.to)
    };
    let tail_width = u16::try_from(tail.chars().count()).unwrap_or(0);
    let width = rest.right().saturating_sub(x).saturating_sub(tail_width).min(60);
    if width < 4 {
        pen.put(x, y, rest.right(), &tail, pen.theme.new);
        return;
    }
    let cells = |percent: u32| {
        let cells = crate::tui::draw::scale(f64::from(percent) / 100.0, u32::from(width));
        usize::try_from(cells).unwrap_or(0)
    };
    // A canary of one percent is seen, too.
    let new_cells = if new > 0 { cells(new).max(1) } else { 0 };
    let old_cells = cells(old).min(usize::from(width).saturating_sub(new_cells));
    let none = usize::from(width).saturating_sub(new_cells + old_cells);
    let right = rest.right();
    x = pen.put(x, y, right, &"█".repeat(old_cells), pen.theme.old);
    x = pen.put(x, y, right, &"·".repeat(none), pen.theme.border);
    // Another glyph, too: the two are told apart without colours.
    x = pen.put(x, y, right, &"▒".repeat(new_cells), pen.theme.new);
    pen.put(x, y, right, &tail, pen.theme.new);
}

/// The percents of both sides, of what their replicas have, each rounded: together they are 100.
fn shared_out(new: u32, old: u32) -> (u32, u32) {
    match (new, old) {
        (0, 0) => (0, 0),
        (0, _) => (0, 100),
        (_, 0) => (100, 0),
        (new, _) => (new.min(99), 100 - new.min(99)),
    }
}

/// The titles of the steps, the last stretch included.
fn titles(service: &ServiceView, rollout: &Rollout) -> Vec<String> {
    if service.steps.is_empty() || rollout.kind == RolloutKind::Undo {
        return vec!["all replicas".to_owned()];
    }
    service.steps.clone()
}

fn steps(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    rollout: &Rollout,
    titles: &[String],
    area: Rect,
) {
    let theme = pen.theme;
    let back = matches!(rollout.direction, Direction::Back { .. });
    let done = matches!(rollout.outcome, Some(Outcome::Completed));
    let current = rollout.step.min(titles.len().saturating_sub(1));
    let from = window(titles.len(), current, usize::from(area.height));
    let shown = titles.iter().enumerate().skip(from);
    for (y, (i, title)) in (area.y..area.bottom()).zip(shown) {
        let (mark, style) = match () {
            () if done || i < current => ("✔", theme.good),
            () if i > current => ("○", theme.dim),
            () if back || rollout.outcome.is_some() => ("✖", theme.bad),
            () if rollout.paused.is_some() => ("║", theme.warn),
            () => ("▶", theme.accent),
        };
        let right = area.right();
        let mut x = pen.put(area.x, y, right, &format!("{mark} "), style);
        let is_current = i == current && rollout.outcome.is_none() && !back;
        let text = if is_current { theme.strong } else { style_of_text(i, current, theme.dim) };
        let until =
            match &rollout.gate {
                Some(
                    Gate::Bake { until } | Gate::Analyse { until, .. } | Gate::Run { until, .. },
                ) if is_current => Some(words::left(state.now, *until)),
                _ => None,
            };
        let waits = is_current && rollout.gate.is_some() && until.is_none();
        // From the longest to the shortest; the step's own words need room, too.
        let beside: Vec<String> = match &until {
            Some(left) => vec![format!("{left} left"), left.clone()],
            None if waits => Vec::new(),
            None => beside_plan(state, service, rollout, i)
                .or_else(|| is_current.then(|| vec![words::ago(state.now, rollout.step_since)]))
                .unwrap_or_default(),
        };
        let wide = |text: &str| u16::try_from(text.width()).unwrap_or(u16::MAX);
        let room = right.saturating_sub(x);
        let fits = |text: &&String| wide(text).saturating_add(wide(title) + 1) <= room;
        let beside = beside.iter().find(fits).or(beside.last());
        // The time is never cut; a title that is keeps half of the row.
        let beside = beside.filter(|text| fits(text) || wide(text) < room / 2);
        let style = if until.is_some() { theme.accent } else { theme.dim };
        let end = beside.map_or(right, |text| pen.put_right(x, y, right, text, style));
        let gap = u16::from(beside.is_some());
        x = pen.put_cut(x, y, end.saturating_sub(gap), title, text) + 1;
        let width = end.saturating_sub(x + 1).min(14);
        if until.is_some() && width >= 4 {
            let share = words::gate_share(rollout, state.now).unwrap_or(0.0);
            pen.bar(end - width - 1, y, width, share, theme.accent);
        }
    }
}

/// The time a step took or has taken, and its lowest capacity, beside what was foreseen: in full, and shorter.
fn beside_plan(
    state: &State,
    service: &ServiceView,
    rollout: &Rollout,
    index: usize,
) -> Option<Vec<String>> {
    let progress = service.progress.as_ref().filter(|p| p.release == rollout.to)?;
    let step = progress.steps.get(index)?;
    let foreseen = step.predicted.text();
    let Some(took) = step.took(state.now) else {
        let short = foreseen.strip_prefix("at least ").map(|least| format!("≥{least}"));
        let short = short.unwrap_or_else(|| format!("~{foreseen}"));
        return Some(vec![format!("foreseen {foreseen}"), short]);
    };
    let took = words::whole(took);
    let lowest = match (step.lowest_ready, step.predicted_lowest) {
        (Some(seen), Some(planned)) if seen < planned => {
            format!(", lowest {seen} ready (foreseen {planned})")
        }
        _ => String::new(),
    };
    let short = if lowest.is_empty() { took.clone() } else { format!("{took} ▲") };
    Some(vec![
        format!("{took} (foreseen {foreseen}){lowest}"),
        format!("{took} (foreseen {foreseen})"),
        format!("{took} of {foreseen}"),
        short,
    ])
}

fn style_of_text(index: usize, current: usize, dim: Style) -> Style {
    if index > current { dim } else { Style::new() }
}

/// What was measured of both releases, and what follows from it.
fn measures(pen: &mut Pen<'_>, rollout: &Rollout, area: Rect) {
    let theme = pen.theme;
    let right = area.right();
    // The counts are of the analysis under way. Beside the verdict of one that is over they would say 0.
    if rollout.verdict.is_some() && !counts(rollout) {
        return verdict(pen, rollout, area);
    }
    let columns = [area.x + 20, area.x + 29, (area.x + 40).min(right)];
    let row = |pen: &mut Pen<'_>, y: u16, texts: [&str; 3], styles: [Style; 3]| {
        let mut from = area.x + 9;
        for ((text, style), to) in texts.iter().zip(styles).zip(columns) {
            pen.put_right(from, y, to.min(right), text, style);
            from = to;
        }
    };
    let mut y = area.y;
    if y >= area.bottom() {
        return;
    }
    row(pen, y, ["requests", "failed", "mean"], [theme.header; 3]);
    let old_name = rollout.from.map_or_else(|| "–".to_owned(), |f| f.to_string());
    let both = [
        (format!("new {}", rollout.to), theme.new, rollout.measured_new),
        (format!("old {old_name}"), theme.old, rollout.measured_old),
    ];
    let better = mean(&rollout.measured_old);
    for (i, (name, style, seen)) in both.into_iter().enumerate() {
        y += 1;
        if y >= area.bottom() {
            return;
        }
        pen.put(area.x, y, right, &name, style);
        let failed = if seen.requests == 0 {
            words::ABSENT.to_owned()
        } else {
            format!("{:.1}%", seen.errors as f64 * 100.0 / seen.requests as f64)
        };
        let failed_style = if seen.errors > 0 && i == 0 { theme.bad } else { theme.text };
        let mean = mean(&seen);
        let slow = i == 0 && better.zip(mean).is_some_and(|(old, new)| new > old * 1.5);
        let mean_style = if slow { theme.warn } else { theme.text };
        row(
            pen,
            y,
            [&seen.requests.to_string(), &failed, &words::millis(mean)],
            [theme.text, failed_style, mean_style],
        );
    }
    y += 1;
    if y >= area.bottom() {
        return;
    }
    if !is_said(rollout) {
        verdict(pen, rollout, Rect { y, height: area.bottom() - y, ..area });
    }
}

/// Whether requests are or were counted.
fn counts(rollout: &Rollout) -> bool {
    rollout.measured_new.requests + rollout.measured_old.requests > 0
        || matches!(rollout.gate, Some(Gate::Analyse { .. }))
}

/// What follows from what was measured.
fn verdict(pen: &mut Pen<'_>, rollout: &Rollout, area: Rect) {
    let theme = pen.theme;
    let Some(verdict) = &rollout.verdict else {
        pen.put(area.x, area.y, area.right(), "no verdict yet", theme.dim);
        return;
    };
    let (mark, style) = match verdict.result {
        VerdictResult::Success => ("✔", theme.good),
        VerdictResult::Failed | VerdictResult::Error => ("✖", theme.bad),
        VerdictResult::Inconclusive => ("?", theme.warn),
    };
    let what = match verdict.of {
        VerdictOf::Analysis => verdict.analysis.clone(),
        VerdictOf::Run => verdict.title(),
    };
    let text = format!("{mark} {what}: {}", verdict.reason);
    // The number that decided is worth a second row.
    let lines = crate::tui::dialogs::wrapped(&text, usize::from(area.width), style);
    pen.lines_cut(area, lines);
}

/// Whether the headline tells the verdict already: it is why the rollout went back.
fn is_said(rollout: &Rollout) -> bool {
    let why = match &rollout.outcome {
        Some(Outcome::RolledBack { why } | Outcome::Aborted { why } | Outcome::Failed { why }) => {
            why
        }
        Some(Outcome::Completed) | None => return false,
    };
    rollout.verdict.as_ref().is_some_and(|v| why.contains(&v.reason))
}

fn mean(window: &Window) -> Option<f64> {
    (window.requests > 0).then(|| window.response_ms_sum / window.requests as f64)
}

fn replicas(pen: &mut Pen<'_>, state: &State, service: &ServiceView, rest: &mut Rect) {
    if service.replicas.is_empty() || rest.height < 2 {
        return;
    }
    let y = take(rest, 1);
    let text = format!("{}, floor {}", words::ready(service), service.floor);
    let x = pen.put(rest.x, y, rest.right(), "REPLICAS  ", pen.theme.header);
    let style = if service.ready < service.floor { pen.theme.bad } else { pen.theme.dim };
    pen.put(x, y, rest.right(), &text, style);
    let room = usize::from(rest.height);
    let hidden = service.replicas.len().saturating_sub(room);
    let shown = if hidden > 0 { room.saturating_sub(1) } else { room };
    for replica in service.replicas.iter().take(shown) {
        let y = take(rest, 1);
        replica_row(pen, state, service, replica, rest.x, y, rest.right());
    }
    if hidden > 0 {
        let y = take(rest, 1);
        let more = format!("… and {} more (2 shows all)", hidden + 1);
        pen.put(rest.x, y, rest.right(), &more, pen.theme.dim);
    }
    if rest.height > 0 {
        take(rest, 1);
    }
}

fn history(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    area: Rect,
    inside: Rect,
    focused: bool,
) {
    if area.height < 2 || service.history.is_empty() {
        return;
    }
    let theme = pen.theme;
    pen.put(area.x, area.y, area.right(), "RELEASES", theme.header);
    let keys = if focused && area.width > 50 { "j k choose · u undo to it · y diff" } else { "" };
    pen.put_right(area.x + 10, area.y, area.right(), keys, theme.dim);
    let numbers: Vec<ReleaseNumber> = service.history.iter().map(|r| r.number).collect();
    let selected = state.release.row_in(&numbers);
    let rows = usize::from(area.height - 1);
    let from = window(numbers.len(), selected, rows);
    let shown = service.history.iter().enumerate().skip(from);
    for (y, (i, release)) in (area.y + 1..area.bottom()).zip(shown) {
        release_row(pen, state, service, release, area, y);
        if i == selected {
            pen.put(inside.x, y, area.right(), "▌", theme.accent);
            let style = if focused { state.theme.selected } else { state.theme.selected_elsewhere };
            pen.select(inside, y, style);
        }
    }
}

fn release_row(
    pen: &mut Pen<'_>,
    state: &State,
    service: &ServiceView,
    release: &ReleaseView,
    area: Rect,
    y: u16,
) {
    let theme = pen.theme;
    let right = area.right();
    let served = service.stable == Some(release.number);
    let name = if served { theme.strong.patch(theme.good) } else { theme.strong };
    let mut x = pen.put(area.x, y, right, &format!("{:<5}", release.number), name);
    let age = words::ago(state.now, release.created);
    x = pen.put(x, y, right, &format!("{age:>6}  "), theme.dim);
    let (mark, style, word, why) = match &release.outcome {
        Some(outcome) => words::outcome(outcome, theme),
        None => ("▶", theme.accent, "under way", ""),
    };
    x = pen.put(x, y, right, &format!("{mark} {word:<11} "), style);
    if served {
        x = pen.put(x, y, right, "served ", theme.good);
    }
    x = pen.put(x, y, right, &format!("{} ", release.author), theme.dim);
    if area.width >= 70 {
        x = pen.put(x, y, right, &format!("{} ", release.revision.short()), theme.dim);
    }
    let reason = release.reason.as_deref().unwrap_or_default();
    let text = match (reason, why) {
        ("", why) => why.to_owned(),
        (reason, "") => reason.to_owned(),
        (reason, why) => format!("{reason} · {why}"),
    };
    pen.put_cut(x, y, right, &text, theme.text);
}

#[cfg(test)]
mod tests {
    use super::shared_out;

    #[test]
    fn two_sides_are_a_hundred() {
        // Three of 33 or 34 each beside one, as rounding has it.
        assert_eq!(shared_out(33, 68), (33, 67));
        assert_eq!(shared_out(34, 66), (34, 66));
        assert_eq!(shared_out(0, 99), (0, 100));
        assert_eq!(shared_out(101, 0), (100, 0));
        assert_eq!(shared_out(0, 0), (0, 0));
    }
}
