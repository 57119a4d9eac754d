//! Which rows a panel shows: `/text` a regular expression, `/!text` its inverse, `/-f text` fuzzy,
//! `/-l key=value` a label.

use nucleo_matcher::pattern::{CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};
use regex::{Regex, RegexBuilder};

/// A filter as typed, and what it means.
#[derive(Clone, Debug)]
pub struct Filter {
    text: String,
    kind: Kind,
    inverse: bool,
    /// Why the expression is not one; then its letters are looked for as they are.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug)]
enum Kind {
    Regex(Regex),
    Literal(String),
    Fuzzy(Pattern),
    Label(String),
}

/// Memory a compiled expression may take: a person's typing must not be able to exhaust ours.
const MAX_REGEX_BYTES: usize = 1 << 20;

impl Filter {
    /// The filter of a text; none for an empty one. Letters match both cases unless one is a capital.
    pub fn new(text: &str) -> Option<Self> {
        let (inverse, body) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut trouble = None;
        let kind = if let Some(needle) = body.strip_prefix("-f") {
            let needle = needle.trim();
            if needle.is_empty() {
                return None;
            }
            Kind::Fuzzy(Pattern::parse(needle, CaseMatching::Smart, Normalization::Smart))
        } else if let Some(label) = body.strip_prefix("-l") {
            let label = label.trim();
            if label.is_empty() {
                return None;
            }
            Kind::Label(label.to_owned())
        } else if body.is_empty() {
            return None;
        } else {
            let built = RegexBuilder::new(body)
                .case_insensitive(!body.chars().any(char::is_uppercase))
                .size_limit(MAX_REGEX_BYTES)
                .build();
            match built {
                Ok(regex) => Kind::Regex(regex),
                Err(error) => {
                    let text = error.to_string();
                    let last = text.lines().last().unwrap_or("not an expression");
                    trouble = Some(last.trim_start_matches("error: ").to_owned());
                    Kind::Literal(body.to_lowercase())
                }
            }
        };
        Some(Self { text: text.to_owned(), kind, inverse, trouble })
    }

    /// The filter of a text that is being typed: while it is no expression yet, what `before` showed stays.
    pub fn typed(text: &str, before: Option<&Self>) -> Option<Self> {
        let new = Self::new(text)?;
        match before {
            Some(before) if new.trouble.is_some() => {
                Some(Self { kind: before.kind.clone(), inverse: before.inverse, ..new })
            }
            _ => Some(new),
        }
    }

    /// As typed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether a row with this text is shown.
    pub fn matches(&self, row: &str) -> bool {
        let found = match &self.kind {
            Kind::Regex(regex) => regex.is_match(row),
            Kind::Literal(text) => row.to_lowercase().contains(text),
            Kind::Fuzzy(pattern) => {
                let mut buffer = Vec::new();
                let mut matcher = Matcher::new(Config::DEFAULT);
                pattern.score(Utf32Str::new(row, &mut buffer), &mut matcher).is_some()
            }
            Kind::Label(label) => row.contains(label.as_str()),
        };
        found != self.inverse
    }
}

/// How well `text` fits what was typed, higher is better; none: it does not.
pub fn fuzzy(typed: &str, text: &str) -> Option<u32> {
    let pattern = Pattern::parse(typed, CaseMatching::Ignore, Normalization::Smart);
    let mut buffer = Vec::new();
    pattern.score(Utf32Str::new(text, &mut buffer), &mut Matcher::new(Config::DEFAULT))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn four_kinds() {
        let f = |t: &str| Filter::new(t).unwrap();
        assert!(f("node[12]").matches("NODE1"));
        assert!(!f("Nod").matches("node1"));
        assert!(!f("!node").matches("node1"));
        assert!(f("-f nd1").matches("node1"));
        assert!(!f("-f xyz").matches("node1"));
        assert!(f("-l zone=a").matches("node1 zone=a"));
        assert!(Filter::new("").is_none() && Filter::new("!").is_none());
    }

    #[test]
    fn while_an_expression_is_unfinished_the_last_one_holds() {
        let good = Filter::new("err").unwrap();
        let half = Filter::typed("err(", Some(&good)).unwrap();
        assert!(half.trouble.is_some() && half.text() == "err(");
        assert!(half.matches("ERROR 1") && !half.matches("warning"));
        let still = Filter::typed("err(o", Some(&half)).unwrap();
        assert!(still.matches("ERROR 1"));
        let whole = Filter::typed("err(or)", Some(&still)).unwrap();
        assert!(whole.trouble.is_none() && whole.matches("ERROR 1") && !whole.matches("err 1"));
    }

    #[test]
    fn a_broken_expression_is_looked_for_as_it_is() {
        let filter = Filter::new("a(b").unwrap();
        assert!(filter.trouble.is_some());
        assert!(filter.matches("xA(B") && !filter.matches("ab"));
    }
}
