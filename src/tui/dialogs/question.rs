//! A question of the controller: trust this host key, what is this passphrase.
//!
//! It comes up by itself, perhaps under fingers that type something else: therefore one key alone never
//! answers it. A host key wants `yes` in full, as OpenSSH does.

use ratatui::layout::{Position, Rect};
use ratatui::text::Line;

use super::{centre, draw_buttons, draw_field, plan};
use crate::api::{QuestionKind, Secret};
use crate::tui::draw::Pen;
use crate::tui::field::Field;
use crate::tui::key::Key;
use crate::tui::state::State;
use crate::tui::words;

/// The dialog.
#[derive(Clone, Debug)]
pub struct QuestionDialog {
    /// Which question.
    pub id: u64,
    /// Its kind.
    pub kind: QuestionKind,
    /// The answer as typed.
    pub field: Field,
    /// Why Enter did nothing.
    pub said: Option<&'static str>,
}

/// What a key did.
#[derive(Debug)]
pub enum QuestionKey {
    /// The dialog stays.
    Stay,
    /// It is left for later.
    Later,
    /// This is the answer.
    Answer(Secret),
}

impl QuestionDialog {
    /// A dialog with nothing typed yet.
    pub fn new(id: u64, kind: QuestionKind) -> Self {
        let field = match kind {
            QuestionKind::HostKey => Field::default(),
            QuestionKind::Secret => Field::secret(),
        };
        Self { id, kind, field, said: None }
    }

    /// Handles a key.
    pub fn key(&mut self, key: Key) -> QuestionKey {
        self.said = None;
        match key {
            Key::Esc | Key::Ctrl('c') => QuestionKey::Later,
            Key::Enter => {
                let text = self.field.text();
                match (self.kind, text.trim()) {
                    (_, "") => QuestionKey::Later,
                    (QuestionKind::HostKey, "yes" | "no") => {
                        QuestionKey::Answer(text.trim().into())
                    }
                    (QuestionKind::HostKey, _) => {
                        self.said = Some("type yes or no in full");
                        QuestionKey::Stay
                    }
                    // A passphrase may begin or end with a blank.
                    (QuestionKind::Secret, _) => QuestionKey::Answer(text.into()),
                }
            }
            other => {
                self.field.key(other);
                QuestionKey::Stay
            }
        }
    }

    pub(super) fn draw(&self, pen: &mut Pen<'_>, state: &State, body: Rect) -> Option<Position> {
        let question = state.snapshot.as_ref()?.questions.get(&self.id)?;
        let width = body.width.min(84);
        let lines =
            plan::wrapped(&question.text, usize::from(width.saturating_sub(4)), pen.theme.text);
        let rows = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(6);
        let area = centre(body, width, rows);
        pen.clear(area);
        let who = question.host.as_ref().map_or("the controller", |h| h.as_str());
        let asked = words::ago(state.now, question.asked);
        let title = format!("{who} asks · {asked}");
        let inside = pen.frame(area, true, &Line::styled(title, pen.theme.strong));
        let (left, right) = (inside.x + 1, inside.right().saturating_sub(1));
        let text = Rect {
            x: left,
            width: right.saturating_sub(left),
            height: inside.height.saturating_sub(3),
            ..inside
        };
        pen.lines(text, &lines, 0);
        let label = match self.kind {
            QuestionKind::HostKey => "yes or no: ",
            QuestionKind::Secret => "Secret (not shown): ",
        };
        let y = inside.bottom().saturating_sub(2);
        let cursor = draw_field(pen, (left, y), right, label, &self.field, true);
        let y = inside.bottom().saturating_sub(1);
        if let Some(said) = self.said {
            pen.put(left, y, right, said, pen.theme.warn);
        } else {
            pen.put(left, y, right, "Esc leaves it for later (Q)", pen.theme.dim);
        }
        let typed = usize::from(!self.field.text().is_empty());
        draw_buttons(pen, y, inside, &["Later", "Answer"], typed);
        cursor
    }
}
