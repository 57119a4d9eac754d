//! The steps, each with its time.

use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr;

use super::headline::waits_for_a_person;
use crate::api::{Direction, Gate, Outcome, Rollout, RolloutKind, ServiceView, SkippedGate};
use crate::tui::draw::{Pen, window};
use crate::tui::state::State;
use crate::tui::words;

/// The titles of the steps, the last stretch included.
pub(super) fn titles(service: &ServiceView, rollout: &Rollout) -> Vec<String> {
    if service.steps.is_empty() || rollout.kind == RolloutKind::Undo {
        return vec!["all replicas".to_owned()];
    }
    service.steps.clone()
}

pub(super) fn steps(
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
        // The approval of a person is what that step is for; what else they let pass was not seen to be good.
        let passed = rollout.skipped.iter().rev().find(|skipped| skipped.step == i);
        let passed = passed.filter(|_| i != current || rollout.outcome.is_some());
        let unproven = passed.filter(|skipped| !(skipped.promoted && skipped.gate == "approve"));
        let (mark, style) = match () {
            () if unproven.is_some() && i <= current => ("↪", theme.warn),
            () if done || i < current => ("✔", theme.good),
            () if i > current => ("○", theme.dim),
            () if back || rollout.outcome.is_some() => ("✖", theme.bad),
            () if matches!(rollout.gate, Some(Gate::Failed { .. })) => ("✖", theme.bad),
            () if waits_for_a_person(rollout) => ("║", theme.warn),
            () => ("▶", theme.accent),
        };
        let right = area.right();
        let mut x = pen.put(area.x, y, right, &format!("{mark} "), style);
        let is_current = i == current && rollout.outcome.is_none() && !back;
        let text = if is_current { theme.strong } else { style_of_text(i, current, theme.dim) };
        let until = if is_current { words::gate_left(rollout, state.now) } else { None };
        let waits = is_current && rollout.gate.is_some() && until.is_none();
        // From the longest to the shortest; the step's own words need room, too.
        let beside: Vec<String> = match (passed, &until) {
            (Some(skipped), _) => by_whom(skipped),
            (None, Some(left)) => left.clone(),
            (None, None) if waits => Vec::new(),
            (None, None) => beside_plan(state, service, rollout, i)
                .or_else(|| is_current.then(|| vec![words::ago(state.now, rollout.step_since)]))
                .unwrap_or_default(),
        };
        let wide = |text: &str| u16::try_from(text.width()).unwrap_or(u16::MAX);
        let room = right.saturating_sub(x);
        let fits = |text: &&String| wide(text).saturating_add(wide(title) + 1) <= room;
        let beside = beside.iter().find(fits).or(beside.last());
        // The time is never cut; a title that is keeps half of the row.
        let beside = beside.filter(|text| fits(text) || wide(text) < room / 2);
        let style = match until {
            Some(_) if rollout.paused.is_some() => theme.warn,
            Some(_) => theme.accent,
            None => theme.dim,
        };
        let end = beside.map_or(right, |text| pen.put_right(x, y, right, text, style));
        let gap = u16::from(beside.is_some());
        x = pen.put_cut(x, y, end.saturating_sub(gap), title, text) + 1;
        let width = end.saturating_sub(x + 1).min(14);
        if until.is_some()
            && width >= 4
            && let Some(share) = words::gate_share(rollout, state.now)
        {
            pen.bar(end - width - 1, y, width, share, theme.accent);
        }
    }
}

/// Who passed a step, and why: in full, and shorter.
fn by_whom(skipped: &SkippedGate) -> Vec<String> {
    let verb = if skipped.promoted { "promoted" } else { "skipped" };
    let short = format!("{verb} by {}", skipped.by);
    if skipped.reason.is_empty() {
        return vec![short, verb.to_owned()];
    }
    vec![format!("{short}: {}", skipped.reason), short, verb.to_owned()]
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
    let lowest = match step.lowest() {
        (Some(seen), Some(planned), what) if seen < planned => {
            format!(", lowest {seen} {what} (foreseen {planned})")
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
