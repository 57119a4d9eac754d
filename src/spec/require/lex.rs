//! Words and signs of a requirement.

use super::{Literal, RequireError, column};
use crate::base::{Bytes, text};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Name(String),
    Literal(Literal),
    /// `&&`, `||`, `!`, `==`, …, parentheses, brackets, comma.
    Sign(&'static str),
    In,
}

impl Token {
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Name(name) => format!("`{}`", text::clean(name, 40)),
            Self::Literal(Literal::Text(t)) => format!("'{}'", text::clean(t, 40)),
            Self::Literal(Literal::Size(n)) => Bytes(*n).to_string(),
            Self::Literal(Literal::Number(n)) => n.to_string(),
            Self::Literal(Literal::Bool(b)) => b.to_string(),
            Self::Sign(sign) => format!("`{sign}`"),
            Self::In => "`in`".to_owned(),
        }
    }
}

/// A token and the bytes it stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Placed {
    pub(super) token: Token,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// Longest first.
const SIGNS: &[&str] =
    &["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ","];

fn wrong(text: &str, at: usize, message: String, hint: Option<&str>) -> RequireError {
    RequireError { column: column(text, at), message, suggestion: hint.map(str::to_owned) }
}

pub(super) fn tokens(text: &str) -> Result<Vec<Placed>, RequireError> {
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let from = text.len() - rest.len();
        let Some(first) = rest.chars().next() else { return Ok(found) };
        let (token, length) = if let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) {
            (Token::Sign(sign), sign.len())
        } else if first == '\'' || first == '"' {
            let inside = rest.get(1..).unwrap_or("");
            let Some(end) = inside.find(first) else {
                let message = format!("the text that begins here has no closing {first}");
                return Err(wrong(text, from, message, None));
            };
            let content = inside.get(..end).unwrap_or("");
            (Token::Literal(Literal::Text(content.to_owned())), end + 2)
        } else if first.is_ascii_digit() || first == '.' || first == '-' {
            number(text, rest, from)?
        } else if first.is_alphabetic() || first == '_' {
            // A key may hold `-` and `/`, as labels do.
            let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let name = rest.get(..end).unwrap_or("");
            let token = match name {
                "in" => Token::In,
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                name => Token::Name(name.to_owned()),
            };
            (token, end)
        } else {
            let hint = match first {
                '=' => Some("write `==` to compare"),
                '&' => Some("write `&&` for and"),
                '|' => Some("write `||` for or"),
                _ => None,
            };
            let shown = text::clean(&first.to_string(), 4);
            return Err(wrong(text, from, format!("`{shown}` is not understood here"), hint));
        };
        found.push(Placed { token, from, to: from + length });
        rest = rest.get(length..).unwrap_or("");
    }
}

/// A number, with a unit a size.
fn number(text: &str, rest: &str, from: usize) -> Result<(Token, usize), RequireError> {
    let digits = rest
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_digit() || *c == '.' || (*i == 0 && *c == '-')))
        .map_or(rest.len(), |(i, _)| i);
    let after = rest.get(digits..).unwrap_or("");
    let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
    let whole = rest.get(..digits + letters).unwrap_or("");
    let length = whole.len();
    if letters > 0 {
        let size: Bytes = whole
            .parse()
            .map_err(|e: crate::base::ParseBytesError| wrong(text, from, e.to_string(), None))?;
        return Ok((Token::Literal(Literal::Size(size.0)), length));
    }
    match whole.parse::<f64>() {
        Ok(n) if n.is_finite() => Ok((Token::Literal(Literal::Number(n)), length)),
        _ => Err(wrong(text, from, format!("`{}` is not a number", text::clean(whole, 40)), None)),
    }
}
