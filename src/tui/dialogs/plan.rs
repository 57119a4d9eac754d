//! A plan as text.
//!
//! ```text
//! ▲ OUTAGE: …
//! JOURNEY     never fewer than 1 ready (floor 1)  time 3m15s
//!
//! DIFFERENCE  r11 → r12
//!   -args = ["--max-num-seqs=64"]
//! STEPS
//!   1 weight 10 %       10% new   2 ready (lowest 1)  1m05s
//!       + start r12-0 on node1 GPU 0-1 (in place of r11-1) → 2 ready
//! PLACEMENT   llama, 80 layers, 39.6 GiB of weights
//!   r12-0  node1  GPU 0-3  20.1 GiB each of 74.2 GiB free
//! ```

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

use super::text::diff_lines;
use crate::api::{PlanView, ReplicaId, Verb, lowest_text, ready_text, wrap};
use crate::tui::theme::Theme;

/// Where a line of the journey or the placement goes on.
const STAGE_INDENT: usize = 6;

/// Columns of the word that a part begins with.
const TITLE_WIDTH: usize = 12;

/// The plan in lines of at most `width` columns, what hurts first.
pub fn lines(plan: &PlanView, theme: &Theme, width: usize) -> Vec<Line<'static>> {
    let mut out = Vec::new();
    for warning in &plan.warnings {
        let style = if warning.contains("OUTAGE") { theme.bad } else { theme.warn };
        out.extend(wrapped(&short_list(&format!("▲ {warning}"), width), width, style));
    }
    if plan.forecast.outage && !plan.warnings.iter().any(|w| w.contains("OUTAGE")) {
        let text = format!("▲ OUTAGE: {} stops serving on the way", plan.service);
        out.extend(wrapped(&text, width, theme.bad));
    }
    if let Some(behind) = &plan.behind {
        out.extend(wrapped(&behind.text_queued(), width, theme.text));
    }
    let from = plan.from.map_or_else(|| "nothing".to_owned(), |f| f.to_string());
    if plan.nothing_to_do {
        if !out.is_empty() {
            out.push(Line::default());
        }
        out.push(Line::styled(
            format!("● Nothing to do: {from} is just what the spec says."),
            theme.good,
        ));
        return out;
    }
    journey(plan, theme, width, &mut out);
    out.push(Line::default());
    if !plan.diff.trim().is_empty() {
        out.push(title(theme, "DIFFERENCE", &format!("{from} → {}", plan.to)));
        let lines = diff_lines(&plan.diff, theme, width.saturating_sub(2));
        out.extend(lines.into_iter().map(indented));
        out.push(Line::default());
    }
    steps(plan, theme, width, &mut out);
    out.push(Line::default());
    placement(plan, theme, width, &mut out);
    out
}

/// What all of it comes to: how few are ready on the way, and how long it takes.
fn journey(plan: &PlanView, theme: &Theme, width: usize, out: &mut Vec<Line<'static>>) {
    let forecast = &plan.forecast;
    let lowest = forecast.lowest_serving();
    let low = if lowest < forecast.floor { theme.warn } else { theme.dim };
    let mut head = title(theme, "JOURNEY", "");
    head.push_span(Span::styled(
        format!(
            "never fewer than {} (floor {})",
            lowest_text(forecast.lowest_ready, lowest),
            forecast.floor
        ),
        low,
    ));
    if !plan.steps.is_empty() {
        head.push_span(Span::raw(format!("  time {}", plan.total.text())));
    }
    out.extend(flowing(head.spans, width, TITLE_WIDTH));
}

/// Stage by stage, with who starts and stops where.
fn steps(plan: &PlanView, theme: &Theme, width: usize, out: &mut Vec<Line<'static>>) {
    let forecast = &plan.forecast;
    out.push(title(theme, "STEPS", ""));
    let wide = forecast.stages.iter().map(|s| s.title.chars().count()).max().unwrap_or(0).min(32);
    for (i, stage) in forecast.stages.iter().enumerate() {
        let mut spans = vec![
            Span::styled(format!("  {:>2} ", i + 1), theme.dim),
            Span::styled(format!("{:<wide$.32}", stage.title), theme.text),
            Span::styled(format!("  {:>3}% new", stage.new_weight_percent), theme.new),
            Span::raw(format!("  {}", ready_text(stage.ready_after, stage.idle_after))),
        ];
        let lowest = format!(" (lowest {})", stage.lowest_serving);
        let hurts = stage.lowest_serving < forecast.floor || stage.lowest_serving == 0;
        spans.push(Span::styled(lowest, if hurts { theme.warn } else { theme.dim }));
        let Some(step) = plan.steps.get(i) else {
            if !stage.starts.is_empty() {
                spans.push(Span::styled(format!("  +{}", names(&stage.starts)), theme.good));
            }
            if !stage.stops.is_empty() {
                spans.push(Span::styled(format!("  -{}", names(&stage.stops)), theme.dim));
            }
            out.extend(flowing(spans, width, STAGE_INDENT));
            continue;
        };
        if let Some(rate) = step.tokens_per_s_after {
            let least = step.tokens_per_s_lowest.filter(|least| *least < rate);
            let least = least.map(|least| format!(" (lowest {least:.0})")).unwrap_or_default();
            spans.push(Span::styled(format!("  seen at most {rate:.0} tok/s{least}"), theme.dim));
        }
        spans.push(Span::styled(format!("  {}", step.time.text()), theme.accent));
        if step.lowest {
            spans.push(Span::styled("  ◀ lowest", if hurts { theme.warn } else { theme.dim }));
        }
        out.extend(flowing(spans, width, STAGE_INDENT));
        let indent = |line: Line<'static>| indented(indented(indented(line)));
        for entry in &step.moves {
            let (mark, style) = match entry.verb {
                Verb::Start => ("+", theme.good),
                Verb::Stop => ("-", theme.dim),
            };
            let text =
                format!("{mark} {} ({}) → {} ready", entry.text(), entry.how, entry.ready_after);
            out.extend(wrapped(&text, width.saturating_sub(6), style).into_iter().map(indent));
        }
        if let Some(gate) = &step.gate {
            let text = format!("gate: {gate}");
            out.extend(wrapped(&text, width.saturating_sub(6), theme.dim).into_iter().map(indent));
        }
    }
    for borrow in &plan.borrows {
        let text = format!("borrowed: {}", borrow.text());
        let lines = wrapped(&text, width.saturating_sub(2), theme.warn);
        out.extend(lines.into_iter().map(indented));
    }
    for unknown in &plan.total.unknown {
        let text = format!("time not known: {unknown}");
        out.extend(wrapped(&text, width.saturating_sub(2), theme.dim).into_iter().map(indented));
    }
}

/// Most rows that a list of edited files takes: what the plan does stands below it.
const MOST_FILES_ROWS: usize = 3;

/// A warning with a list of files; of a long list the first ones, and how many more.
fn short_list(warning: &str, width: usize) -> String {
    const LIST: &str = "edited and not committed: ";
    let rows = |text: &str| wrapped(text, width, Style::new()).len();
    let Some((head, files)) = warning.split_once(LIST) else { return warning.to_owned() };
    let files: Vec<&str> = files.split(", ").collect();
    let with = |count: usize| {
        let shown = files.get(..count).unwrap_or(&files).join(", ");
        match files.len().saturating_sub(count) {
            0 => format!("{head}{LIST}{shown}"),
            more => format!("{head}{LIST}{shown} and {more} more"),
        }
    };
    let fits = |count: &usize| rows(&with(*count)) <= MOST_FILES_ROWS;
    with((1..=files.len()).rev().find(fits).unwrap_or(1))
}

fn names(replicas: &[ReplicaId]) -> String {
    replicas.iter().map(|r| r.key().to_string()).collect::<Vec<_>>().join(" ")
}

fn placement(plan: &PlanView, theme: &Theme, width: usize, out: &mut Vec<Line<'static>>) {
    out.push(title(theme, "PLACEMENT", &plan.model.join(" · ")));
    for replica in &plan.replicas {
        for (rank, planned) in replica.ranks.iter().enumerate() {
            let room = replica.room(planned).map_or_else(String::new, |room| format!(", {room}"));
            let spans = vec![
                Span::styled(format!("  {}-{}", plan.to, replica.replica), theme.new),
                Span::styled(
                    if replica.ranks.len() > 1 { format!("/{rank}") } else { String::new() },
                    theme.dim,
                ),
                Span::styled(format!("  {}  ", planned.host), theme.strong),
                Span::raw(planned.devices_text.clone()),
                Span::raw(replica.divided()),
                Span::styled(format!("  {} each{room}", planned.memory_per_device), theme.dim),
            ];
            out.extend(flowing(spans, width, STAGE_INDENT));
        }
    }
    for reason in &plan.reasons {
        out.extend(wrapped(reason, width.saturating_sub(4), theme.dim).into_iter().map(indented));
    }
}

fn title(theme: &Theme, word: &str, more: &str) -> Line<'static> {
    Line::from(vec![
        Span::styled(format!("{word:<TITLE_WIDTH$}"), theme.accent),
        Span::styled(more.to_owned(), theme.dim),
    ])
}

/// Spans in lines of at most `width` columns: one that does not fit any more begins the next line, `indent`
/// columns in.
pub fn flowing(spans: Vec<Span<'static>>, width: usize, indent: usize) -> Vec<Line<'static>> {
    let mut out = Vec::new();
    let (mut line, mut used): (Vec<Span<'static>>, usize) = (Vec::new(), 0);
    for span in spans {
        // Blanks at its end may stand beyond the end of the line.
        if used > indent && used + span.content.trim_end_matches(' ').width() > width {
            out.push(Line::from(std::mem::take(&mut line)));
            line.push(Span::raw(" ".repeat(indent)));
            let text = span.content.trim_start_matches(' ').to_owned();
            used = indent + text.width();
            line.push(Span::styled(text, span.style));
        } else {
            used += span.content.width();
            line.push(span);
        }
    }
    out.push(Line::from(line));
    out
}

fn indented(mut line: Line<'static>) -> Line<'static> {
    line.spans.insert(0, Span::raw("  "));
    line
}

/// A text in lines of at most `width` columns, broken at blanks, and within a word that is longer than that.
pub fn wrapped(text: &str, width: usize, style: Style) -> Vec<Line<'static>> {
    let lines = wrap::lines(text, width.max(8), 0).into_iter();
    lines.map(|line| Line::styled(line, style)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_edited_files_leaves_room_for_the_plan() {
        let files: Vec<String> = (0..19).map(|n| format!("services/service-{n:02}.toml")).collect();
        let warning = format!("▲ edited and not committed: {}", files.join(", "));
        let short = short_list(&warning, 70);
        assert!(wrapped(&short, 70, Style::new()).len() <= MOST_FILES_ROWS, "{short}");
        assert!(short.contains("service-00.toml") && short.ends_with(" more"), "{short}");
        let two = "▲ edited and not committed: a.toml, b.toml";
        assert_eq!(short_list(two, 70), two);
        assert_eq!(short_list("▲ OUTAGE: x, y", 70), "▲ OUTAGE: x, y");
    }
}
