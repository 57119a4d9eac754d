//! What is told below the rows: what is under the cursor, what speaks against a move, what the answer is.

use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::Map;
use super::legend::legend;
use super::lies::{cordoned, lies_now, reserved};
use crate::api::{Hint as _, WhatIfView};
use crate::tui::dialogs::plan::wrapped;
use crate::tui::draw::Pen;
use crate::tui::state::State;

impl Map {
    pub(super) fn draw_foot(
        &self,
        pen: &mut Pen<'_>,
        state: &State,
        view: &WhatIfView,
        area: Rect,
    ) {
        let width = usize::from(area.width);
        let mut lines: Vec<Line<'static>> = legend(pen, state, view, width);
        lines.extend(wrapped(&self.under_cursor(view), width, pen.theme.text));
        lines.extend(self.said.map(|said| Line::styled(said, pen.theme.warn)));
        if let Some(held) = &self.held {
            let aims = self.target();
            let to = aims
                .as_ref()
                .map_or_else(String::new, |t| format!("{} [{}]", t.host, list(&t.gpus)));
            let checked = aims.is_some() && self.question.to == aims && self.ticket.is_none();
            let check = view.check.as_ref().filter(|_| checked);
            let gpus = if held.gpus == 1 { "GPU" } else { "GPUs" };
            lines.push(Line::from(vec![
                Span::styled(format!("{}/{}", held.service, held.replica), pen.theme.strong),
                Span::raw(format!(" needs {} {gpus} → {to}", held.gpus)),
            ]));
            let next = match check {
                None => "Enter checks the rules · Space marks single GPUs · Esc drops it",
                Some(c) if c.violated.is_none() => "Enter moves it · Esc drops it",
                Some(_) => "choose another place · Esc drops it",
            };
            lines.push(Line::styled(next, pen.theme.dim));
            if let Some(check) = check {
                if let Some(why) = &check.violated {
                    lines.extend(wrapped(&format!("✖ rule violated: {why}"), width, pen.theme.bad));
                }
                let worse = check.worse.iter().map(|w| format!("▲ worse: {w}"));
                lines.extend(worse.flat_map(|w| wrapped(&w, width, pen.theme.warn)));
                let better = check.better.iter().map(|w| format!("● better: {w}"));
                lines.extend(better.flat_map(|w| wrapped(&w, width, pen.theme.good)));
                if check == &crate::api::PlaceCheck::default() {
                    lines.push(Line::styled("● as good as where it is", pen.theme.good));
                }
            }
        } else {
            lines.extend(summary(pen, view));
            let unplaced = view.answer.services.iter().filter_map(|s| {
                let why = s.unplaced.as_ref()?;
                Some(format!("✖ {}: {} of {} placed: {why}", s.name, s.placed, s.wanted))
            });
            lines.extend(unplaced.flat_map(|text| wrapped(&text, width, pen.theme.bad)));
            let left_out = view.left_out.iter().map(|(s, why)| format!("▲ without {s}: {why}"));
            lines.extend(left_out.flat_map(|text| wrapped(&text, width, pen.theme.dim)));
        }
        if let Some(error) = &self.trouble {
            lines.extend(wrapped(&format!("✖ {}", error.message), width, pen.theme.bad));
        }
        let room = usize::from(area.height);
        lines.truncate(room);
        pen.lines(area, &lines, 0);
    }

    pub(super) fn draw_trouble(&self, pen: &mut Pen<'_>, inside: Rect) {
        let Some(error) = &self.trouble else { return };
        let width = usize::from(inside.width);
        let mut lines = wrapped(&format!("✖ {}", error.message), width, pen.theme.bad);
        if let Some(hint) = error.hint() {
            lines.extend(wrapped(&format!("→ {hint}"), width, pen.theme.accent));
        }
        pen.lines(inside, &lines, 0);
    }

    fn under_cursor(&self, view: &WhatIfView) -> String {
        let Some(host) = view.world.hosts.get(self.host) else { return String::new() };
        let Some(gpu) = host.gpus.get(self.gpu) else {
            let why = host.gpu_trouble.as_deref().map(|why| format!(": {why}"));
            return format!("{}: no GPU{}", host.name, why.unwrap_or_default());
        };
        // One that does not say its memory has none that counts.
        let known = gpu.memory_total.0 > 1;
        let total =
            if known { gpu.memory_total.to_string() } else { "memory not known".to_owned() };
        let free = gpu.memory_free.filter(|_| known);
        let free = free.map_or_else(String::new, |f| format!(", {f} free"));
        let closed = if cordoned(view, host, gpu.index) { ", cordoned" } else { "" };
        let switch = gpu.pcie_switch.map_or_else(String::new, |n| format!(", PCIe switch {n}"));
        let key = (host.name.clone(), gpu.index);
        let who = match lies_now(view).get(&key) {
            Some((s, replica)) => {
                let name = view.world.services.get(*s).map_or("", |s| s.name.as_str());
                format!(", {name}/{replica}")
            }
            None => reserved(view, host, gpu.index)
                .map_or_else(String::new, |by| format!(", held by {by}")),
        };
        let sick = if gpu.health == "ok" { String::new() } else { format!(", {}", gpu.health) };
        format!(
            "{} GPU {}: {} {total}{free}{switch}{who}{sick}{closed}",
            host.name, gpu.index, gpu.model
        )
    }
}

/// So many GPUs, in words.
fn count(gpus: impl Into<u64>) -> String {
    match gpus.into() {
        1 => "1 GPU".to_owned(),
        n => format!("{n} GPUs"),
    }
}

/// GPUs as people write them.
fn list(gpus: &[u32]) -> String {
    gpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn summary(pen: &Pen<'_>, view: &WhatIfView) -> Vec<Line<'static>> {
    let answer = &view.answer;
    let copied: u64 = answer.copies.iter().map(|c| c.bytes.0).sum();
    let stops = answer.moves.iter().filter(|m| m.to.is_empty() && m.serving).count();
    let moves = answer.moves.iter().filter(|m| !m.to.is_empty()).count();
    let replicas = answer.services.iter().flat_map(|s| &s.replicas);
    let starts = replicas.filter(|r| r.state == "starts").count();
    let mut spans = vec![Span::styled(
        format!("{} of {} placed", answer.placed, answer.wanted),
        pen.theme.strong,
    )];
    match moves {
        0 if stops == 0 => spans.push(Span::raw(", nothing moves")),
        0 => {}
        1 => spans.push(Span::raw(", 1 moves")),
        n => spans.push(Span::raw(format!(", {n} move"))),
    }
    if stops > 0 {
        let word = if stops == 1 { "STOPS" } else { "STOP" };
        spans.push(Span::raw(", "));
        spans.push(Span::styled(format!("{stops} {word}"), pen.theme.bad));
    }
    if starts > 0 {
        let word = if starts == 1 { "starts" } else { "start" };
        spans.push(Span::raw(format!(", {starts} {word}")));
    }
    if copied > 0 {
        spans.push(Span::raw(format!(", {} to copy", crate::api::Bytes(copied))));
    }
    let gang = format!(
        "largest gang that still fits: {} now, {} then",
        count(view.largest_gang_before),
        answer.largest_gang
    );
    let mut lines = vec![Line::from(spans)];
    if let Some(hole) = &view.hole {
        lines.push(match &hole.at {
            Some(at) => Line::styled(
                format!("a hole of {}: {} [{}]", count(hole.gpus), at.host, list(&at.gpus)),
                pen.theme.good,
            ),
            None => {
                Line::styled(format!("no moves free {} together", count(hole.gpus)), pen.theme.bad)
            }
        });
    }
    lines.push(Line::styled(gang, pen.theme.dim));
    lines
}
