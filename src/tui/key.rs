//! Keys as plain data: from the terminal's events, from text (tests), and for people (help).

use std::fmt;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// One key press that means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names say it
pub enum Key {
    Char(char),
    Ctrl(char),
    Enter,
    Esc,
    Tab,
    BackTab,
    Backspace,
    Delete,
    Up,
    Down,
    Left,
    Right,
    Home,
    End,
    PageUp,
    PageDown,
}

impl Key {
    /// The key of a terminal event; none for releases and for keys without a meaning here.
    pub fn from_event(event: &KeyEvent) -> Option<Self> {
        if event.kind == KeyEventKind::Release {
            return None;
        }
        let ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
        // Alt with a letter would otherwise act as the letter alone.
        if event.modifiers.contains(KeyModifiers::ALT) {
            return None;
        }
        Some(match event.code {
            KeyCode::Char(c) if ctrl => Self::Ctrl(c.to_ascii_lowercase()),
            KeyCode::Char(c) => Self::Char(c),
            KeyCode::Enter => Self::Enter,
            KeyCode::Esc => Self::Esc,
            KeyCode::BackTab => Self::BackTab,
            KeyCode::Tab => Self::Tab,
            KeyCode::Backspace => Self::Backspace,
            KeyCode::Delete => Self::Delete,
            KeyCode::Up => Self::Up,
            KeyCode::Down => Self::Down,
            KeyCode::Left => Self::Left,
            KeyCode::Right => Self::Right,
            KeyCode::Home => Self::Home,
            KeyCode::End => Self::End,
            KeyCode::PageUp => Self::PageUp,
            KeyCode::PageDown => Self::PageDown,
            _ => return None,
        })
    }

    /// The keys of a text: plain characters, and names in angle brackets as in `jj/gpu<enter>`,
    /// `<ctrl-c>`, `<lt>` for the bracket itself.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        let mut keys = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if c != '<' {
                keys.push(Self::Char(c));
                rest = rest.get(c.len_utf8()..).unwrap_or_default();
                continue;
            }
            let end = rest.find('>').ok_or_else(|| format!("`{rest}` lacks its `>`"))?;
            let name = rest.get(1..end).unwrap_or_default();
            keys.push(Self::named(name).ok_or_else(|| format!("`<{name}>` is not a key"))?);
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        Ok(keys)
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "lt" => Self::Char('<'),
            "space" => Self::Char(' '),
            "enter" => Self::Enter,
            "esc" => Self::Esc,
            "tab" => Self::Tab,
            "backtab" => Self::BackTab,
            "backspace" => Self::Backspace,
            "delete" => Self::Delete,
            "up" => Self::Up,
            "down" => Self::Down,
            "left" => Self::Left,
            "right" => Self::Right,
            "home" => Self::Home,
            "end" => Self::End,
            "pageup" => Self::PageUp,
            "pagedown" => Self::PageDown,
            other => {
                let mut chars = other.strip_prefix("ctrl-")?.chars();
                let key = Self::Ctrl(chars.next()?);
                return chars.next().is_none().then_some(key);
            }
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Char(' ') => f.pad("Space"),
            Self::Char(c) => f.pad(&c.to_string()),
            Self::Ctrl(c) => f.pad(&format!("Ctrl-{}", c.to_ascii_uppercase())),
            Self::Enter => f.pad("Enter"),
            Self::Esc => f.pad("Esc"),
            Self::Tab => f.pad("Tab"),
            Self::BackTab => f.pad("Shift-Tab"),
            Self::Backspace => f.pad("Backspace"),
            Self::Delete => f.pad("Delete"),
            Self::Up => f.pad("↑"),
            Self::Down => f.pad("↓"),
            Self::Left => f.pad("←"),
            Self::Right => f.pad("→"),
            Self::Home => f.pad("Home"),
            Self::End => f.pad("End"),
            Self::PageUp => f.pad("PgUp"),
            Self::PageDown => f.pad("PgDn"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_key_strings() {
        assert_eq!(
            Key::parse("j/a<enter><ctrl-c><lt>"),
            Ok(vec![
                Key::Char('j'),
                Key::Char('/'),
                Key::Char('a'),
                Key::Enter,
                Key::Ctrl('c'),
                Key::Char('<')
            ])
        );
        assert!(Key::parse("<nokey>").is_err());
        assert!(Key::parse("<enter").is_err());
    }
}
