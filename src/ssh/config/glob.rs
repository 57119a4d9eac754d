//! Paths with wildcards, as `Include` has them: `*`, `?` and `[a-z]` within one path component.

use std::fs;
use std::path::{Path, PathBuf};

/// More files than this are not included by one pattern.
const MAX_FOUND: usize = 1000;

/// The existing paths that match, in order. A leading dot is matched by a dot only.
pub(super) fn glob(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for component in pattern.split('/').filter(|c| !c.is_empty()) {
        let mut next = Vec::new();
        for base in &found {
            if !component.contains(['*', '?', '[', '\\']) {
                let path = base.join(component);
                if fs::symlink_metadata(&path).is_ok() {
                    next.push(path);
                }
                continue;
            }
            next.extend(matching(base, component));
            next.truncate(MAX_FOUND);
        }
        found = next;
    }
    found
}

fn matching(base: &Path, component: &str) -> Vec<PathBuf> {
    let pattern: Vec<char> = component.chars().collect();
    let mut names: Vec<String> = fs::read_dir(base)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .take(100_000)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') || component.starts_with('.'))
        .filter(|name| matches(&pattern, &name.chars().collect::<Vec<_>>(), 0))
        .collect();
    names.sort();
    names.into_iter().map(|name| base.join(name)).collect()
}

/// Names are short; the depth bounds what many stars could cost.
fn matches(pattern: &[char], text: &[char], depth: usize) -> bool {
    if depth > 16 {
        return false;
    }
    let Some((first, rest)) = pattern.split_first() else { return text.is_empty() };
    match first {
        '*' => (0..=text.len())
            .any(|skip| matches(rest, text.get(skip..).unwrap_or_default(), depth + 1)),
        '?' => text.split_first().is_some_and(|(_, t)| matches(rest, t, depth)),
        '[' => match (class(rest), text.split_first()) {
            (Some((set, after)), Some((c, t))) => set.has(*c) && matches(after, t, depth),
            (None, Some(('[', t))) => matches(rest, t, depth),
            _ => false,
        },
        '\\' => match (rest.split_first(), text.split_first()) {
            (Some((p, after)), Some((c, t))) => p == c && matches(after, t, depth),
            _ => false,
        },
        p => text.split_first().is_some_and(|(c, t)| c == p && matches(rest, t, depth)),
    }
}

struct Class {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Class {
    fn has(&self, c: char) -> bool {
        self.ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != self.negated
    }
}

/// What follows `[`: the class and what comes after its `]`.
fn class(pattern: &[char]) -> Option<(Class, &[char])> {
    let negated = matches!(pattern.first(), Some('!' | '^'));
    let mut at = usize::from(negated);
    let mut ranges = Vec::new();
    loop {
        match pattern.get(at)? {
            ']' if !ranges.is_empty() => {
                return Some((Class { negated, ranges }, pattern.get(at + 1..)?));
            }
            from => match (pattern.get(at + 1), pattern.get(at + 2)) {
                (Some('-'), Some(to)) if *to != ']' => {
                    ranges.push((*from, *to));
                    at += 3;
                }
                _ => {
                    ranges.push((*from, *from));
                    at += 1;
                }
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.conf", "a.conf", ".c.conf", "d.txt", "e1", "e2"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let names = |pattern: &str| {
            let all = glob(&format!("{}/{pattern}", dir.path().display()));
            all.iter()
                .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("*.conf"), ["a.conf", "b.conf"]);
        assert_eq!(names(".*.conf"), [".c.conf"]);
        assert_eq!(names("e[12]"), ["e1", "e2"]);
        assert_eq!(names("e[!1]"), ["e2"]);
        assert_eq!(names("d.txt"), ["d.txt"]);
        assert_eq!(names("nothing"), Vec::<String>::new());
    }
}
