//! Names of modules that a quantisation is for, or not for: plain, with `*`, as regular expressions.
//!
//! Lists come from a model's files: what is kept of them, and the work they make, is bounded.

use std::cell::Cell;
use std::collections::HashSet;

use regex::bytes::{Regex, RegexBuilder};

use super::towers;

/// Most names of a list.
const MAX_NAMES: usize = 100_000;
/// Most names with more than one `*`, or one in the middle.
const MAX_GLOBS: usize = 64;
/// Most regular expressions of a list.
const MAX_PATTERNS: usize = 64;
/// Longest pattern.
const MAX_PATTERN: usize = 300;
/// Most bytes of all expressions of a list, once compiled.
const MAX_COMPILED: usize = 24 << 10;
/// Steps of comparing that one model's modules may take together: a few thousand expressions.
pub(super) const BUDGET: u32 = 400_000;
/// Steps that an expression takes.
const PATTERN_STEPS: u32 = 50;

/// A list of names.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    exact: HashSet<String>,
    /// One to three words that may stand anywhere in a name.
    words: HashSet<String>,
    /// What names begin with; sorted, none the beginning of another.
    beginnings: Vec<String>,
    /// What they end with, backwards; likewise.
    endings: Vec<String>,
    globs: Vec<String>,
    sources: Vec<String>,
    /// Expressions that were looked at, good or not.
    tried: usize,
    pattern: Option<Regex>,
    /// One of the expressions speaks of a wrapper around the language model.
    wrapped: bool,
    /// Plain names are those of layers, not of what is in them, nor words.
    strict: bool,
    /// A part of the list is not followed.
    pub(super) cut: bool,
}

/// What wrappers have before a module of the language model.
const WRAPPERS: [&str; 2] = ["model.language_model.", "language_model.model."];

impl Names {
    /// A list whose plain names mean just the layers of these names, as those of `compressed-tensors`
    /// (`utils/match.py`, `match_name`).
    pub(super) fn strict() -> Self {
        Self { strict: true, ..Self::default() }
    }

    /// Adds names as checkpoints list them. A short one names a word anywhere, or else a module and all
    /// in it.
    pub(super) fn extend<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        for (number, name) in names.enumerate() {
            if number >= MAX_NAMES {
                self.cut = true;
                break;
            }
            if let Some(pattern) = name.strip_prefix("re:") {
                self.keep_pattern(pattern);
                continue;
            }
            let name = general(name);
            match (name.matches('*').count(), name.strip_prefix('*'), name.strip_suffix('*')) {
                (0, ..)
                    if !self.strict
                        && name.split('.').count() <= 3
                        && !name.starts_with("layers.") =>
                {
                    self.words.insert(name.to_owned());
                }
                (0, ..) => {
                    self.exact.insert(usual(name));
                }
                (1, Some(end), _) => self.endings.push(end.chars().rev().collect()),
                (1, _, Some(beginning)) => self.beginnings.push(beginning.to_owned()),
                _ if self.globs.len() < MAX_GLOBS => self.globs.push(name.to_owned()),
                _ => self.cut = true,
            }
        }
        only_shortest(&mut self.beginnings);
        only_shortest(&mut self.endings);
        self.unite();
    }

    /// Adds a module by its whole name.
    pub(super) fn add_module(&mut self, name: &str) {
        if self.exact.len() < MAX_NAMES {
            self.exact.insert(usual(general(name)));
        } else {
            self.cut = true;
        }
    }

    /// Adds a regular expression, which begins where the module's name does.
    pub(super) fn add_pattern(&mut self, pattern: &str) {
        if self.keep_pattern(pattern) {
            self.unite();
        }
    }

    /// Keeps an expression for [`Self::unite`], if it is one of its own: what is none must not become
    /// one among others. Compiling is the work here, so that only the first ones are tried.
    fn keep_pattern(&mut self, pattern: &str) -> bool {
        // It begins where a name does, with or without `model.` before it.
        let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
        self.tried = self.tried.saturating_add(1);
        let sound = self.tried <= MAX_PATTERNS
            && pattern.len() <= MAX_PATTERN
            && compiled(pattern).is_some();
        if sound {
            self.sources.push(format!("(?:{pattern})"));
        } else {
            self.cut = true;
        }
        sound
    }

    /// Makes one expression of those kept; of as many as are not too large together.
    fn unite(&mut self) {
        self.pattern = None;
        while !self.sources.is_empty() && self.pattern.is_none() {
            let whole = self.sources.join("|");
            self.pattern = compiled(&format!("^(?:model\\.)?(?:{whole})"));
            if self.pattern.is_none() {
                self.cut = true;
                self.sources.truncate(self.sources.len() / 2);
            }
        }
        self.wrapped = self.sources.iter().any(|source| source.contains("language_model"));
    }

    /// Whether the module of this name is in the list; no more once `left` is used up.
    pub(super) fn contain(&self, module: &str, left: &Cell<u32>) -> bool {
        match towers::names(module) {
            None => self.has(module, left),
            Some(names) => names.iter().any(|name| self.has(name, left)),
        }
    }

    fn has(&self, module: &str, left: &Cell<u32>) -> bool {
        let name = general(module);
        // A list may name a parent: every ancestor is looked up.
        let mut ancestor = Some(name);
        while let Some(a) = ancestor.filter(|_| !self.exact.is_empty()) {
            if self.exact.contains(a) {
                return true;
            }
            ancestor = a.rsplit_once('.').map(|(parent, _)| parent).filter(|_| !self.strict);
        }
        if !self.words.is_empty() && runs_of_words(name).any(|run| self.words.contains(run)) {
            return true;
        }
        if begins(&self.beginnings, name)
            || begins(&self.beginnings, module)
            || !self.endings.is_empty()
                && begins(&self.endings, &module.chars().rev().collect::<String>())
        {
            return true;
        }
        let wrapped = |wrapper: &str| format!("{wrapper}{name}");
        for pattern in &self.globs {
            if !spend(left, 1) {
                return false;
            }
            if glob(pattern, name)
                || glob(pattern, &format!("model.{name}"))
                || pattern.contains("language_model")
                    && WRAPPERS.iter().any(|wrapper| glob(pattern, &wrapped(wrapper)))
            {
                return true;
            }
        }
        let Some(regex) = &self.pattern else { return false };
        // Experts of one name are one: any number stands for all.
        let matches = |name: &str| {
            spend(left, PATTERN_STEPS) && regex.is_match(name.replace(".*.", ".0.").as_bytes())
        };
        matches(&format!("model.{name}"))
            || self.wrapped && WRAPPERS.iter().any(|wrapper| matches(&wrapped(wrapper)))
    }
}

fn spend(left: &Cell<u32>, steps: u32) -> bool {
    let now = left.get();
    left.set(now.saturating_sub(steps));
    now > steps
}

fn compiled(pattern: &str) -> Option<Regex> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(4 * MAX_COMPILED)
        .build()
        .ok()
}

/// One, two and three words in a row, as they stand in a name.
fn runs_of_words(name: &str) -> impl Iterator<Item = &str> {
    let ends = |from: &str| -> Vec<usize> {
        let dots = from.match_indices('.').map(|(at, _)| at);
        dots.chain([from.len()]).take(3).collect()
    };
    let starts = std::iter::once(0).chain(name.match_indices('.').map(|(at, _)| at + 1));
    starts
        .filter_map(|at| name.get(at..))
        .flat_map(move |rest| ends(rest).into_iter().filter_map(move |end| rest.get(..end)))
}

/// Sorts, and leaves out what begins with another.
fn only_shortest(list: &mut Vec<String>) {
    list.sort_unstable();
    list.dedup_by(|longer, shorter| longer.starts_with(shorter.as_str()));
}

/// Whether one of `list`, which [`only_shortest`] has made, is the beginning of `name`.
fn begins(list: &[String], name: &str) -> bool {
    let after = list.partition_point(|b| b.as_str() <= name);
    after.checked_sub(1).and_then(|at| list.get(at)).is_some_and(|b| name.starts_with(b.as_str()))
}

/// What stands before the layers of a language model, or before a tower.
const WRAPS: [&str; 7] =
    ["model", "language_model", "text_model", "backbone", "transformer", "thinker", "llm"];

/// A module's name without what comes before its layers, which differs from wrapper to wrapper.
pub(super) fn general(name: &str) -> &str {
    let mut name = name;
    while let Some((first, rest)) = name.split_once('.') {
        if !WRAPS.contains(&first) {
            break;
        }
        name = rest;
    }
    name
}

/// A module's name with the words that `arch` has for what Mixtral and `MiniMax` call otherwise.
fn usual(name: &str) -> String {
    let words = [(".w1", ".gate_proj"), (".w2", ".down_proj"), (".w3", ".up_proj")];
    let other = words.iter().find_map(|(own, usual)| {
        let before = name.strip_suffix(own).filter(|before| before.contains(".experts."))?;
        Some(format!("{before}{usual}"))
    });
    other.unwrap_or_else(|| name.replace(".self_attn.index_", ".self_attn.indexer."))
}

/// Shell-like matching with `*` alone.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else { return false };
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}
