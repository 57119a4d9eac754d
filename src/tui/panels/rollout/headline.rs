//! The lines at the top: where it goes, what holds it, what is next.

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::steps::titles;
use super::take;
use crate::api::{Condition, Direction, Gate, Rollout, RolloutKind, ServiceView};
use crate::tui::draw::Pen;
use crate::tui::state::State;
use crate::tui::words;

/// A line, and what does not fit into it in the rows below: a reason is read to its end where there is room. The
/// rest of the panel keeps two rows of three.
pub(super) fn paragraph(pen: &mut Pen<'_>, rest: &mut Rect, line: Line<'static>) {
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
    if room < 16 {
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

/// Whether it goes on only when a person says so.
pub(super) fn waits_for_a_person(rollout: &Rollout) -> bool {
    let gate = &rollout.gate;
    matches!(gate, Some(Gate::Approve | Gate::Inconclusive { .. } | Gate::Failed { .. }))
        || rollout.paused.is_some()
}

/// Why it goes back, or what holds it.
pub(super) fn held(state: &State, rollout: &Rollout) -> Option<Line<'static>> {
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
    if !waits_for_a_person(rollout) {
        return None;
    }
    let text = words::gate(rollout, state.now)?;
    Some(Line::styled(format!("║ {text}"), theme.warn.patch(theme.strong)))
}

/// What comes after this rollout, or why it did not come.
pub(super) fn queued(state: &State, service: &ServiceView) -> Option<Line<'static>> {
    let theme = &state.theme;
    if let Some(queued) = &service.queued {
        let why = queued.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        let text = format!("» next: {} by {}{why} (X cancels)", queued.what(), queued.by);
        return Some(Line::styled(text, theme.accent));
    }
    let why = service.queue_trouble.as_ref()?;
    Some(Line::styled(format!("✖ the queued rollout did not begin: {why}"), theme.bad))
}
