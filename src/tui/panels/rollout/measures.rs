//! What was measured of both releases, and what follows from it.

use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::api::{Gate, Outcome, Rollout, Verdict, VerdictOf, VerdictResult, Window};
use crate::tui::dialogs::wrapped;
use crate::tui::draw::Pen;
use crate::tui::theme::Theme;
use crate::tui::words;

/// Rows that they take in so many columns.
pub(super) fn height(rollout: &Rollout, width: u16) -> u16 {
    match (counts(rollout), is_said(rollout), &rollout.verdict) {
        (false, _, Some(verdict)) => {
            let lines = wrapped(&words_of(verdict).0, usize::from(width), Style::new()).len();
            // The number that decided is worth a second row, a whole story is not.
            u16::try_from(lines).unwrap_or(u16::MAX).min(4)
        }
        (_, true, _) => 3,
        (_, false, _) => 4,
    }
}

/// What was measured of both releases, and what follows from it.
pub(super) fn measures(pen: &mut Pen<'_>, rollout: &Rollout, area: Rect) {
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
    // Requests that come meanwhile are not counted: the numbers stand.
    // The engines' own counts, of which a verdict may tell, are others.
    let is_paused = rollout.paused.is_some() && matches!(rollout.gate, Some(Gate::Analyse { .. }));
    if is_paused {
        pen.put(area.x, y, right, "paused", theme.warn);
    } else {
        pen.put(area.x, y, right, "gateway's", theme.header);
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
pub(super) fn counts(rollout: &Rollout) -> bool {
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
    let (text, style) = words_of(verdict);
    pen.lines_cut(area, wrapped(&text, usize::from(area.width), style(theme)));
}

/// A verdict in words, and its colour.
fn words_of(verdict: &Verdict) -> (String, fn(&Theme) -> Style) {
    let (mark, style): (_, fn(&Theme) -> Style) = match verdict.result {
        VerdictResult::Success => ("✔", |theme| theme.good),
        VerdictResult::Failed | VerdictResult::Error => ("✖", |theme| theme.bad),
        VerdictResult::Inconclusive => ("?", |theme| theme.warn),
    };
    let what = match verdict.of {
        VerdictOf::Analysis => verdict.analysis.clone(),
        VerdictOf::Run => verdict.title(),
    };
    (format!("{mark} {what}: {}", verdict.reason), style)
}

/// Whether the lines at the top tell the verdict already: it is why the rollout went back, or why it is held.
pub(super) fn is_said(rollout: &Rollout) -> bool {
    let why = match (&rollout.outcome, &rollout.gate) {
        (
            Some(Outcome::RolledBack { why } | Outcome::Aborted { why } | Outcome::Failed { why }),
            _,
        )
        | (None, Some(Gate::Inconclusive { why } | Gate::Failed { why })) => why,
        (Some(Outcome::Completed) | None, _) => return false,
    };
    rollout.verdict.as_ref().is_some_and(|v| why.contains(&v.reason))
}

fn mean(window: &Window) -> Option<f64> {
    (window.requests > 0).then(|| window.response_ms_sum / window.requests as f64)
}
