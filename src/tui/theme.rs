//! Colours by meaning, for what the terminal can show.
//!
//! The hues are Okabe and Ito's, told apart by colour-blind eyes, in tones that can be read on dark and
//! on light backgrounds; the background itself is the terminal's own. Colour is never the only sign.

use ratatui::style::{Color, Modifier, Style};

/// How many colours there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Depth {
    /// None (`NO_COLOR`, `TERM=dumb`): bold, dim and reversed remain.
    None,
    /// The sixteen of the terminal's own theme.
    Sixteen,
    /// The palette of 256.
    Palette,
    /// 24 bit.
    #[default]
    True,
}

impl Depth {
    /// From `NO_COLOR`, `COLORTERM` and `TERM`; `lookup` reads the environment.
    pub fn detect(lookup: impl Fn(&str) -> Option<String>) -> Self {
        if lookup("NO_COLOR").is_some_and(|v| !v.is_empty()) {
            return Self::None;
        }
        let term = lookup("TERM").unwrap_or_default();
        if term.is_empty() || term == "dumb" {
            return Self::None;
        }
        let colorterm = lookup("COLORTERM").unwrap_or_default();
        if matches!(colorterm.as_str(), "truecolor" | "24bit") || term.ends_with("-direct") {
            Self::True
        } else if term.contains("256") || term.starts_with("tmux") {
            Self::Palette
        } else {
            Self::Sixteen
        }
    }
}

/// The styles of the screen.
#[derive(Clone, Debug)]
pub struct Theme {
    /// As expected.
    pub good: Style,
    /// Worth a look.
    pub warn: Style,
    /// Failed.
    pub bad: Style,
    /// Titles, keys, what moves.
    pub accent: Style,
    /// Beside the point.
    pub dim: Style,
    /// Plain text.
    pub text: Style,
    /// Names.
    pub strong: Style,
    /// Column titles.
    pub header: Style,
    /// Frames of panels.
    pub border: Style,
    /// Frame of the panel with the keys.
    pub focus: Style,
    /// The selected row of the panel with the keys.
    pub selected: Style,
    /// The selected row of another panel.
    pub selected_elsewhere: Style,
    /// `SIMULATED`.
    pub simulated: Style,
    /// A badge that calls.
    pub badge: Style,
    /// A badge of something lost.
    pub badge_bad: Style,
    /// The program's name in the title.
    pub brand: Style,
    /// The release that comes.
    pub new: Style,
    /// The release that goes.
    pub old: Style,
    /// One for each service, in turn.
    pub services: [Style; 6],
}

impl Theme {
    /// The theme for a terminal.
    pub fn new(depth: Depth) -> Self {
        let fg = |rgb: (u8, u8, u8), index: u8, named: Color| match depth {
            Depth::None => Style::new(),
            Depth::Sixteen => Style::new().fg(named),
            Depth::Palette => Style::new().fg(Color::Indexed(index)),
            Depth::True => Style::new().fg(Color::Rgb(rgb.0, rgb.1, rgb.2)),
        };
        let on = |rgb: (u8, u8, u8), index: u8, named: Color| match depth {
            Depth::None => Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD),
            Depth::Sixteen => Style::new().fg(Color::Black).bg(named),
            Depth::Palette => Style::new().fg(Color::Indexed(16)).bg(Color::Indexed(index)),
            Depth::True => Style::new()
                .fg(Color::Rgb(10, 14, 18))
                .bg(Color::Rgb(rgb.0, rgb.1, rgb.2))
                .add_modifier(Modifier::BOLD),
        };
        let select = |rgb: (u8, u8, u8), index: u8| match depth {
            Depth::None => Style::new().add_modifier(Modifier::REVERSED),
            Depth::Sixteen => Style::new().fg(Color::White).bg(Color::Blue),
            Depth::Palette => Style::new().fg(Color::Indexed(255)).bg(Color::Indexed(index)),
            Depth::True => {
                Style::new().fg(Color::Rgb(240, 244, 248)).bg(Color::Rgb(rgb.0, rgb.1, rgb.2))
            }
        };
        let sky = fg((72, 162, 216), 74, Color::Cyan);
        let orange = fg((224, 150, 20), 172, Color::Yellow);
        let teal = fg((20, 168, 122), 36, Color::Green);
        let vermillion = fg((226, 92, 44), 166, Color::Red);
        let purple = fg((200, 118, 164), 175, Color::Magenta);
        let blue = fg((76, 126, 214), 68, Color::Blue);
        let dim = match depth {
            Depth::None => Style::new().add_modifier(Modifier::DIM),
            _ => fg((126, 134, 144), 245, Color::DarkGray),
        };
        let border = match depth {
            Depth::None => Style::new(),
            _ => fg((88, 98, 110), 240, Color::DarkGray),
        };
        let bold = Style::new().add_modifier(Modifier::BOLD);
        Self {
            good: teal,
            warn: orange,
            bad: vermillion.add_modifier(Modifier::BOLD),
            accent: sky,
            dim,
            text: Style::new(),
            strong: bold,
            header: dim,
            border,
            focus: if depth == Depth::None { bold } else { sky },
            selected: select((34, 66, 96), 24),
            selected_elsewhere: match depth {
                Depth::None | Depth::Sixteen => bold,
                _ => select((52, 58, 66), 238),
            },
            simulated: on((224, 150, 20), 172, Color::Yellow),
            badge: on((72, 162, 216), 74, Color::Cyan),
            badge_bad: on((226, 92, 44), 166, Color::Red),
            brand: on((20, 168, 122), 36, Color::Green),
            new: purple,
            old: sky,
            services: [sky, teal, orange, purple, blue, vermillion],
        }
    }

    /// The style of the service at `index` of the deck.
    pub fn service(&self, index: usize) -> Style {
        self.services.get(index % self.services.len()).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_out_what_the_terminal_can() {
        let with = |pairs: &'static [(&str, &str)]| {
            Depth::detect(move |name| {
                pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
            })
        };
        assert_eq!(with(&[("TERM", "xterm"), ("COLORTERM", "truecolor")]), Depth::True);
        assert_eq!(with(&[("TERM", "screen-256color")]), Depth::Palette);
        assert_eq!(with(&[("TERM", "xterm")]), Depth::Sixteen);
        assert_eq!(with(&[("TERM", "xterm"), ("NO_COLOR", "1")]), Depth::None);
        assert_eq!(with(&[]), Depth::None);
    }
}
