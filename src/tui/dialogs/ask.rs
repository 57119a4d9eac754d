//! Yes or no, beginning on no.

use ratatui::layout::Rect;
use ratatui::text::Line;

use super::{centre, draw_buttons, plan};
use crate::api::{Intent, ServiceName};
use crate::tui::draw::Pen;
use crate::tui::key::Key;
use crate::tui::message::{Effect, Wish};
use crate::tui::state::State;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskWhat {
    /// Leave?
    Quit,
    /// Go on with the rollout of this service?
    Resume(ServiceName),
    /// Read the deck again?
    Reload,
    /// End the controller?
    Shutdown,
}

/// A yes-or-no dialog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What is asked.
    pub what: AskWhat,
    /// `yes` is chosen now.
    pub yes: bool,
}

impl Ask {
    /// Asks; `no` is chosen.
    pub const fn new(what: AskWhat) -> Self {
        Self { what, yes: false }
    }

    fn words(&self, simulated: bool) -> (String, &'static str, &'static str) {
        match &self.what {
            AskWhat::Quit if simulated => {
                ("Leave gpudeck?".to_owned(), "The demo ends with its simulated fleet.", "Leave")
            }
            AskWhat::Quit => (
                "Leave gpudeck?".to_owned(),
                "The controller, its rollouts and what serves go on.",
                "Leave",
            ),
            AskWhat::Resume(service) => (
                format!("Go on with the rollout of {service}?"),
                "It continues where it was paused.",
                "Go on",
            ),
            AskWhat::Reload => (
                "Read deck.toml and the specs again?".to_owned(),
                "Nothing is rolled out by it.",
                "Reload",
            ),
            AskWhat::Shutdown => (
                "End the controller?".to_owned(),
                "What serves goes on serving, and nobody watches it.",
                "End it",
            ),
        }
    }

    /// Handles a key: none while the dialog stays, or the effects of its end.
    pub fn key(&mut self, key: Key) -> Option<Vec<Effect>> {
        match key {
            // At the ends they stay: a letter too many must not choose the other one.
            Key::Left | Key::Char('h') => {
                self.yes = false;
                None
            }
            Key::Right | Key::Char('l') => {
                self.yes = true;
                None
            }
            Key::Tab | Key::BackTab => {
                self.yes = !self.yes;
                None
            }
            // Only leaving and reading again can be had with one letter: who types the service's name, as other dialogs
            // ask for it, has not said yes.
            Key::Char('y') if self.is_harmless() => Some(self.done()),
            Key::Char('y') => {
                self.yes = true;
                None
            }
            // Leaving harms nothing: a second Ctrl-C means it.
            Key::Ctrl('c') if self.what == AskWhat::Quit => Some(self.done()),
            Key::Enter if self.yes => Some(self.done()),
            Key::Enter | Key::Esc | Key::Char('n' | 'q') | Key::Ctrl('c') => Some(Vec::new()),
            _ => None,
        }
    }

    fn is_harmless(&self) -> bool {
        matches!(self.what, AskWhat::Quit | AskWhat::Reload)
    }

    fn done(&self) -> Vec<Effect> {
        let (intent, what) = match &self.what {
            AskWhat::Quit => return vec![Effect::Quit],
            AskWhat::Resume(service) => (
                Intent::Resume { service: service.clone(), reason: None },
                format!("resume {service}"),
            ),
            AskWhat::Reload => (Intent::Reload, "reload".to_owned()),
            AskWhat::Shutdown => (Intent::Shutdown, "shutdown".to_owned()),
        };
        vec![Effect::Send { intent: Wish(intent), what }]
    }

    pub(super) fn draw(&self, pen: &mut Pen<'_>, state: &State, body: Rect) {
        let simulated = state.snapshot.as_ref().is_some_and(|s| s.deck.simulated);
        let (question, more, button) = self.words(simulated);
        let area = centre(body, 64, 7);
        pen.clear(area);
        let inside = pen.frame(area, true, &Line::styled(question, pen.theme.strong));
        let (width, height) = (inside.width.saturating_sub(2), inside.height.saturating_sub(2));
        let text = Rect { x: inside.x + 1, y: inside.y + 1, width, height };
        let lines = plan::wrapped(more, usize::from(width), pen.theme.text);
        pen.lines(text, &lines, 0);
        let y = inside.bottom().saturating_sub(1).max(inside.y);
        draw_buttons(pen, y, inside, &["Cancel", button], usize::from(self.yes));
    }
}
