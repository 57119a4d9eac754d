//! A line of text that a person types.

use std::fmt;

use tui_input::{Input, InputRequest};
use zeroize::Zeroize as _;

use super::key::Key;

/// Longest text a field takes, in characters.
const MAX_CHARS: usize = 1_000;

/// An input line with a cursor. A secret one never shows what is in it, not even to a log.
#[derive(Clone, Default)]
pub struct Field {
    input: Input,
    secret: bool,
}

impl Field {
    /// An empty field whose text is not to be shown.
    pub fn secret() -> Self {
        Self { input: Input::default(), secret: true }
    }

    /// A field that holds `text` already.
    pub fn with(text: &str) -> Self {
        Self { input: Input::new(text.to_owned()), secret: false }
    }

    /// What was typed.
    pub fn text(&self) -> &str {
        self.input.value()
    }

    /// What to draw: the text, or a dot for each character of a secret.
    pub fn shown(&self) -> String {
        if self.secret {
            "•".repeat(self.input.value().chars().count())
        } else {
            self.input.value().to_owned()
        }
    }

    /// Characters before the cursor.
    pub fn cursor(&self) -> usize {
        self.input.cursor()
    }

    /// Inserts a text without control characters, as from the clipboard.
    pub fn insert(&mut self, text: &str) {
        for c in text.chars().filter(|c| !c.is_control()) {
            self.key(Key::Char(c));
        }
    }

    /// Handles an editing key; `false`: the key is not one.
    pub fn key(&mut self, key: Key) -> bool {
        let request = match key {
            Key::Char(c) => {
                if self.input.value().chars().count() >= MAX_CHARS {
                    return true;
                }
                InputRequest::InsertChar(c)
            }
            Key::Backspace => InputRequest::DeletePrevChar,
            Key::Delete => InputRequest::DeleteNextChar,
            Key::Left => InputRequest::GoToPrevChar,
            Key::Right => InputRequest::GoToNextChar,
            Key::Home | Key::Ctrl('a') => InputRequest::GoToStart,
            Key::End | Key::Ctrl('e') => InputRequest::GoToEnd,
            Key::Ctrl('w') => InputRequest::DeletePrevWord,
            Key::Ctrl('u') => InputRequest::DeleteFromStart,
            Key::Ctrl('k') => InputRequest::DeleteTillEnd,
            _ => return false,
        };
        self.input.handle(request);
        true
    }
}

impl Drop for Field {
    /// What is left of a secret is wiped.
    fn drop(&mut self) {
        if self.secret {
            String::from(std::mem::take(&mut self.input)).zeroize();
        }
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if self.secret { "(secret)" } else { self.input.value() };
        f.debug_tuple("Field").field(&shown).finish()
    }
}
