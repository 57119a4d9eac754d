//! OpenSSH's patterns (`PATTERNS` in `ssh_config(5)`).

/// `*` is any run of characters, `?` is one. Linear in time for one `*`, quadratic at worst, never
/// exponential. Characters are bytes, as they are for OpenSSH: an `é` is matched by `??`.
pub(in crate::ssh) fn matches_pattern(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || text.get(t) == Some(c) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    p = star_p + 1;
                    t = star_t + 1;
                    star = Some((star_p, t));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}

/// What a list of patterns says about a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ssh) enum Listed {
    /// A pattern matches, and no negated one before the end.
    Yes,
    /// A negated pattern (`!p`) matches.
    Negated,
    /// None matches.
    No,
}

/// A comma-separated list; `lower`: the patterns are taken in lower case.
pub(in crate::ssh) fn matches_list(list: &str, text: &str, lower: bool) -> Listed {
    let mut found = Listed::No;
    if list.is_empty() {
        return found;
    }
    for pattern in list.split(',') {
        let (negated, pattern) = match pattern.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        let matched = if lower {
            matches_pattern(&pattern.to_ascii_lowercase(), text)
        } else {
            matches_pattern(pattern, text)
        };
        match (matched, negated) {
            (true, true) => return Listed::Negated,
            (true, false) => found = Listed::Yes,
            (false, _) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*b*c", "aXbYbc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*.org", "x.orgs", false),
            ("", "x", false),
            ("?", "é", false),
            ("??", "é", true),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} {text}");
        }
        // Would take for ever in a naive matcher.
        assert!(!matches_pattern(&"*a".repeat(50), &"a".repeat(49)));
    }

    #[test]
    fn lists() {
        assert_eq!(matches_list("a*,!ab", "ab", false), Listed::Negated);
        assert_eq!(matches_list("a*,!ab", "ac", false), Listed::Yes);
        assert_eq!(matches_list("!ab", "ac", false), Listed::No);
        assert_eq!(matches_list("A*", "ac", true), Listed::Yes);
        assert_eq!(matches_list("A*", "ac", false), Listed::No);
    }
}
