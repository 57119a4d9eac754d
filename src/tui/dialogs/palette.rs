//! Any command by its name, found by a few of its letters. Never a shell.

use ratatui::layout::{Position, Rect};
use ratatui::text::Line;

use super::draw_field;
use crate::api::ServiceName;
use crate::tui::command::{Command, Danger, Scope};
use crate::tui::draw::{Pen, window};
use crate::tui::field::Field;
use crate::tui::filter::fuzzy;
use crate::tui::key::Key;
use crate::tui::state::State;

/// A line of the palette.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `apply chat`.
    pub label: String,
    /// The command.
    pub command: Command,
    /// What it is about.
    pub service: Option<ServiceName>,
}

/// The dialog.
#[derive(Clone, Debug)]
pub struct Palette {
    /// What is typed.
    pub field: Field,
    /// Everything that can be chosen.
    pub entries: Vec<Entry>,
    /// Which of the matching ones is chosen.
    pub chosen: usize,
}

impl Palette {
    /// All commands that `state` allows, those for services once for each service.
    pub fn new(state: &State) -> Self {
        let mut entries = Vec::new();
        for &command in Command::ALL {
            if state.look.read_only && command.danger() != Danger::None {
                continue;
            }
            match command.scope() {
                Scope::Key => {}
                Scope::Deck => {
                    entries.push(Entry {
                        label: command.name().to_owned(),
                        command,
                        service: None,
                    });
                }
                Scope::Service => {
                    let names = state.snapshot.iter().flat_map(|s| s.services.keys());
                    entries.extend(names.map(|name| Entry {
                        label: format!("{} {name}", command.name()),
                        command,
                        service: Some(name.clone()),
                    }));
                }
            }
        }
        Self { field: Field::default(), entries, chosen: 0 }
    }

    /// The entries that fit what is typed, the best first.
    pub fn matching(&self) -> Vec<&Entry> {
        let typed = self.field.text().trim();
        if typed.is_empty() {
            return self.entries.iter().collect();
        }
        let score = |entry: &Entry| {
            // What was typed in full comes before what merely contains its letters.
            let whole = match entry.label.strip_prefix(typed) {
                Some("") => 2,
                Some(rest) if rest.starts_with(' ') => 1,
                _ => 0,
            };
            fuzzy(typed, &entry.label).map(|s| (whole, s))
        };
        let mut found: Vec<_> = self.entries.iter().filter_map(|e| Some((score(e)?, e))).collect();
        found.sort_by(|(a, x), (b, y)| b.cmp(a).then(x.label.len().cmp(&y.label.len())));
        found.into_iter().map(|(_, e)| e).collect()
    }

    /// Moves the choice or edits what is typed; `false`: the key is not for that.
    pub fn key(&mut self, key: Key) -> bool {
        let last = self.matching().len().saturating_sub(1);
        match key {
            Key::Up | Key::BackTab => self.chosen = self.chosen.min(last).saturating_sub(1),
            Key::Down | Key::Tab => self.chosen = (self.chosen + 1).min(last),
            Key::PageUp => self.chosen = self.chosen.saturating_sub(10),
            Key::PageDown => self.chosen = (self.chosen + 10).min(last),
            other => {
                self.chosen = 0;
                return self.field.key(other);
            }
        }
        true
    }

    pub(super) fn draw(&self, pen: &mut Pen<'_>, state: &State, body: Rect) -> Option<Position> {
        let found = self.matching();
        let width = body.width.min(72);
        let rows = u16::try_from(found.len()).unwrap_or(u16::MAX).saturating_add(3);
        let height = rows.clamp(6, 18).min(body.height);
        let x = body.x + (body.width - width) / 2;
        let area = Rect { x, y: body.y, width, height };
        pen.clear(area);
        let inside = pen.frame(area, true, &Line::styled("Command", pen.theme.strong));
        let (left, right) = (inside.x, inside.right());
        let cursor = draw_field(pen, (left, inside.y), right, ": ", &self.field, true);
        let list = Rect {
            y: inside.y.saturating_add(1),
            height: inside.height.saturating_sub(1),
            ..inside
        };
        if found.is_empty() {
            let typed = self.field.text();
            let said = if typed.starts_with("picture ") {
                "Enter writes this screen as SVG"
            } else {
                "no such command here; `gpudeck help` in a shell has all"
            };
            pen.put(left + 2, list.y, right, said, pen.theme.dim);
        }
        let chosen = self.chosen.min(found.len().saturating_sub(1));
        let from = window(found.len(), chosen, usize::from(list.height));
        for (y, (i, entry)) in (list.y..list.bottom()).zip(found.iter().enumerate().skip(from)) {
            let mark = if i == chosen { "▌" } else { " " };
            pen.put(left, y, right, mark, pen.theme.accent);
            let style = match entry.command.danger() {
                Danger::Serving => pen.theme.warn,
                _ => pen.theme.text,
            };
            let end = pen.put(left + 2, y, right, &entry.label, style);
            let about = (left + 30).max(end + 2);
            pen.put_cut(about, y, right, entry.command.about(), pen.theme.dim);
            if i == chosen {
                pen.select(inside, y, state.theme.selected);
            }
        }
        cursor
    }
}
