//! Names of files: parts of a model, and what is left of a path.

use crate::base::text;

/// What the names of numbered parts say their number is.
pub(super) fn numbered(names: &[&str]) -> Option<usize> {
    let (_, count) = names.first()?.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    count.parse().ok()
}

/// Engines tell files apart by their endings, in lower case.
pub(super) fn has_ending(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some()
}

pub(super) fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

pub(super) fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((parent, _)) => parent,
        None => ".",
    }
}

pub(super) fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

pub(super) fn shown(names: &[&str]) -> String {
    let mut text = names.iter().take(4).map(|n| text::clean(n, 80)).collect::<Vec<_>>().join(", ");
    if names.len() > 4 {
        text.push_str(", …");
    }
    text
}

/// `STEM-00002-of-00005.gguf`, as llama.cpp's `gguf-split` names parts.
pub(super) struct SplitName<'a> {
    pub(super) stem: &'a str,
    pub(super) count: u32,
}

impl SplitName<'_> {
    pub(super) fn part(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

pub(super) fn split_name(name: &str) -> Option<SplitName<'_>> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |s: &str| (s.len() == 5).then(|| s.parse::<u32>().ok()).flatten();
    let (number, count) = (five(number)?, five(count)?);
    (number >= 1 && number <= count).then_some(SplitName { stem, count })
}

/// The file to begin with, if these are one model: a single file, or parts of one split.
pub(super) fn one_model<'a>(names: &[&'a str]) -> Option<&'a str> {
    let first = *names.first()?;
    if names.len() == 1 {
        return Some(first);
    }
    let split = split_name(first)?;
    let same =
        |n: &&str| split_name(n).is_some_and(|s| s.stem == split.stem && s.count == split.count);
    names.iter().all(same).then_some(first)
}

/// All names of the parts that a `model-00001-of-00003.safetensors` is one of.
pub(super) fn all_parts(name: &str) -> Option<Vec<String>> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let width = number.len();
    if !digits(number) || !digits(count) || width > 9 {
        return None;
    }
    let all: u32 = count.parse().ok().filter(|n| *n <= 2_000)?;
    let parts: Vec<String> =
        (1..=all).map(|n| format!("{stem}-{n:0width$}-of-{count}.safetensors")).collect();
    parts.iter().any(|part| part == name).then_some(parts)
}

/// Without an index: numbers missing among `model-00001-of-00003.safetensors`.
pub(super) fn missing_of_numbered(names: &[&str]) -> Option<Vec<String>> {
    let (rest, count) = names.first()?.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, _) = rest.rsplit_once('-')?;
    let number: u32 = count.parse().ok().filter(|n| *n <= 2_000)?;
    let missing: Vec<String> = (1..=number)
        .map(|n| format!("{stem}-{n:05}-of-{count}.safetensors"))
        .filter(|n| !names.contains(&n.as_str()))
        .collect();
    (!missing.is_empty()).then_some(missing)
}
