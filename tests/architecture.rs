//! The floors of the house (docs/architecture.md), enforced: which floor may use which, what a pure floor may
//! never touch, and where engines' names may be matched. Reads the source text; tests inside
//! the source are left out, because they may reach further than the code they test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

/// Everything a floor may use besides itself.
const FLOORS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("spec", &["base"]),
    ("wire", &["base"]),
    ("agent", &["base", "wire"]),
    // deciding: pure
    ("model", &["base", "spec", "wire", "engine", "placement", "rollout"]),
    ("engine", &["base", "spec", "wire", "model", "placement", "rollout"]),
    ("placement", &["base", "spec", "wire", "model", "engine", "rollout"]),
    ("rollout", &["base", "spec", "wire", "model", "engine", "placement"]),
    // doing: with disks, networks and clocks, told what to do by the controller
    ("ssh", &["base", "spec", "wire"]),
    ("fleet", &["base", "spec", "wire", "ssh"]),
    ("runtime", &["base", "spec", "wire", "fleet", "ssh"]),
    ("gateway", &["base", "spec", "wire", "fleet", "ssh"]),
    ("weights", &["base", "spec", "wire", "fleet", "ssh", "model"]),
    ("revision", &["base", "spec", "wire"]),
    ("journal", &["base", "spec", "wire"]),
    // the front desk
    ("api", &["base", "spec", "wire", "model", "engine", "placement", "rollout"]),
    (
        "controller",
        &[
            "base",
            "spec",
            "wire",
            "model",
            "engine",
            "placement",
            "rollout",
            "ssh",
            "fleet",
            "runtime",
            "gateway",
            "weights",
            "revision",
            "journal",
            "api",
        ],
    ),
    // the simulated fleet plays hosts and gateways: it stands beside the doing floors
    (
        "demo",
        &["base", "spec", "wire", "agent", "ssh", "fleet", "gateway", "revision", "model", "api"],
    ),
    // doors
    ("tui", &["base", "api"]),
    ("cli", &["base", "api"]),
];

/// What a file may use beyond its floor, and why. Keep it short.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/cli/", "tui", "the command line without a command opens the terminal UI"),
    (
        "src/cli/",
        "controller",
        "the controller is run, installed and handed over, and its journal read, by commands",
    ),
    ("src/cli/", "demo", "`demo` is a command"),
    (
        "src/api/server.rs",
        "agent",
        "who speaks to the controller has the name that hosts show: one way to the name service",
    ),
    (
        "src/revision/",
        "rollout",
        "it keeps releases and how they ended, whose types are `rollout`'s",
    ),
    (
        "src/revision/history",
        "model",
        "it keeps what engines logged of their memory, whose type is `model`'s",
    ),
    ("src/cli/place", "placement", "`place` solves a world from a file: there is no controller"),
    ("src/cli/model", "model", "`model inspect` works without a controller"),
    ("src/cli/model", "engine", "`model inspect` works without a controller"),
    ("src/cli/model", "weights", "`model inspect` works without a controller"),
    ("src/cli/init", "spec", "`init` writes the first deck.toml: there is no controller yet"),
    ("src/cli/ssh_config", "ssh", "`ssh-config` shows how SSH would reach a host, without a deck"),
    ("src/cli/init", "revision", "`init` makes the deck's repository: there is no controller yet"),
];

const PURE: &[&str] = &["base", "spec", "model", "engine", "placement", "rollout"];

/// Paths that a pure floor must not use, by their beginning.
const IMPURE: &[&str] = &[
    "tokio",
    "russh",
    "rand",
    "sysinfo",
    "rustix",
    "tempfile",
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// Words that read a clock or a source of randomness, wherever they come from.
const IMPURE_WORDS: &[&str] = &["Instant", "SystemTime", "now", "now_v7", "new_v4"];

const RULE_CLOCK: &str = "a pure floor has no clock, no disk, no network and no randomness";

#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
}

/// A word, `::`, or any other single character, and its line.
type Token = (String, usize);

/// The source as tokens, without comments, and without what is in strings and character literals.
fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let at = |i: usize| text.get(i).copied().unwrap_or('\0');
    let (mut found, mut i, mut line) = (Vec::new(), 0, 1);
    while i < text.len() {
        let c = at(i);
        let start = i;
        if c == '/' && at(i + 1) == '/' {
            while i < text.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => depth += 1,
                    ('*', '/') => depth -= 1,
                    _ => {
                        i += 1;
                        if i >= text.len() {
                            break;
                        }
                        continue;
                    }
                }
                i += 2;
                if depth == 0 {
                    break;
                }
            }
        } else if c == '"' {
            i += 1;
            while i < text.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' && at(i + 1) == '\\' {
            i += 3;
            while i < text.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else if c == '\'' && at(i + 2) == '\'' {
            i += 3;
        } else if c == '_' || c.is_alphanumeric() {
            while at(i) == '_' || at(i).is_alphanumeric() {
                i += 1;
            }
            let word: String = text[start..i].iter().collect();
            let mut hashes = 0;
            while at(i + hashes) == '#' {
                hashes += 1;
            }
            if matches!(word.as_str(), "r" | "br" | "cr") && at(i + hashes) == '"' {
                let end: Vec<char> =
                    std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                i += hashes + 1;
                while i < text.len() && !text[i..].starts_with(&end) {
                    i += 1;
                }
                i += end.len();
            } else {
                found.push((word, line));
            }
        } else if c == ':' && at(i + 1) == ':' {
            found.push(("::".to_owned(), line));
            i += 2;
        } else {
            if !c.is_whitespace() {
                found.push((c.to_string(), line));
            }
            i += 1;
        }
        line += text[start..i.min(text.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

/// Takes out every item under `#[cfg(test)]` (also `#[cfg(all(test, …))]`).
fn without_tests(all: &[Token]) -> Vec<Token> {
    let word = |i: usize| all.get(i).map_or("", |t| t.0.as_str());
    let mut kept = Vec::new();
    let mut i = 0;
    while i < all.len() {
        let starts =
            word(i) == "#" && word(i + 1) == "[" && word(i + 2) == "cfg" && word(i + 3) == "(";
        if !starts {
            kept.push(all[i].clone());
            i += 1;
            continue;
        }
        let close = matching(all, i + 1);
        let is_test = (word(i + 4) == "test" || word(i + 4) == "all")
            && all[i..close].iter().any(|t| t.0 == "test")
            && !all[i..close].iter().any(|t| t.0 == "not");
        if !is_test {
            kept.extend_from_slice(&all[i..=close]);
            i = close + 1;
            continue;
        }
        // To the end of the item: its block, or its semicolon.
        i = close + 1;
        while i < all.len() && word(i) != ";" && word(i) != "{" {
            i = if matches!(word(i), "[" | "(") { matching(all, i) + 1 } else { i + 1 };
        }
        i = if word(i) == "{" { matching(all, i) + 1 } else { i + 1 };
    }
    kept
}

/// Where the bracket opened at `open` closes (or the last token).
fn matching(all: &[Token], open: usize) -> usize {
    let mut depth = 0_i32;
    for (i, (word, _)) in all.iter().enumerate().skip(open) {
        match word.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    all.len().saturating_sub(1)
}

/// Every path in the tokens (`a::b::c`), with the groups of `use` trees written out.
fn paths(all: &[Token]) -> Vec<(Vec<String>, usize)> {
    let mut found = Vec::new();
    let mut i = 0;
    while i < all.len() {
        if is_word(&all[i].0) { i = path(all, i, &[], &mut found) } else { i += 1 }
    }
    found
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// Reads the path that begins at `i` below `prefix`; returns where reading goes on.
fn path(
    all: &[Token],
    mut i: usize,
    prefix: &[String],
    found: &mut Vec<(Vec<String>, usize)>,
) -> usize {
    let line = all[i].1;
    let mut parts = prefix.to_vec();
    parts.push(all[i].0.clone());
    i += 1;
    while all.get(i).is_some_and(|t| t.0 == "::") {
        match all.get(i + 1).map(|t| t.0.as_str()) {
            Some("{") => {
                let end = matching(all, i + 1);
                i += 2;
                while i < end {
                    if is_word(&all[i].0) { i = path(all, i, &parts, found) } else { i += 1 }
                }
                return end + 1;
            }
            Some(next) if is_word(next) => {
                parts.push(next.to_owned());
                i += 2;
            }
            _ => break,
        }
    }
    found.push((parts, line));
    i
}

/// All rules for one file; `file` is its path from the package's root, `src/floor/…`.
fn check(file: &str, source: &str) -> Vec<Violation> {
    let module = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let module: Vec<&str> = module.split('/').collect();
    let floor = module[0];
    let mut found = Vec::new();
    let mut complain =
        |line: usize, rule: String| found.push(Violation { file: file.to_owned(), line, rule });
    let Some((_, allowed)) = FLOORS.iter().find(|(name, _)| *name == floor) else {
        complain(
            1,
            format!("`{floor}` is not a floor of the house; add it to tests/architecture.rs"),
        );
        return found;
    };
    let code = without_tests(&tokens(source));
    for (path, line) in paths(&code) {
        if let Some(used) = floor_used(&path, &module)
            && used != floor
            && FLOORS.iter().any(|(name, _)| *name == used)
            && !allowed.contains(&used)
            && !EXCEPTIONS.iter().any(|(start, to, _)| file.starts_with(start) && *to == used)
        {
            complain(line, format!("`{floor}` must not use `{used}`"));
        }
        if path == ["crate"] || path[0] == "crate" && path.get(1).is_some_and(|p| p == "self") {
            let renamed = code.iter().any(|(word, at)| *at == line && word == "as");
            if renamed {
                complain(
                    line,
                    "the crate's root must not be renamed: this check could not follow".to_owned(),
                );
            }
        }
        if PURE.contains(&floor) {
            let full = path.join("::");
            if let Some(what) =
                IMPURE.iter().find(|p| full == **p || full.starts_with(&format!("{p}::")))
            {
                complain(line, format!("`{floor}` must not use `{what}`: {RULE_CLOCK}"));
            } else if path.len() > 1
                && let Some(word) = path.iter().find(|p| IMPURE_WORDS.contains(&p.as_str()))
            {
                complain(line, format!("`{floor}` must not use `{word}`: {RULE_CLOCK}"));
            }
        }
        let engine_name = path.iter().position(|p| p == "EngineSpec").and_then(|i| path.get(i + 1));
        if let Some(name) = engine_name
            && name.starts_with(char::is_uppercase)
            && !["engine", "spec"].contains(&floor)
        {
            complain(
                line,
                format!("`EngineSpec::{name}`: an engine's name is matched only in `engine`"),
            );
        }
    }
    if floor == "ssh" {
        for (word, line) in &code {
            let word = word.to_lowercase();
            if (word.contains("gpu") && !word.contains("gpudeck")) || word.contains("nvml") {
                complain(*line, format!("`{word}`: `ssh` does not know what a GPU is"));
            }
        }
    }
    found
}

/// The floor that a path leads to, if it leads out of its own module.
fn floor_used<'a>(path: &'a [String], module: &[&str]) -> Option<&'a str> {
    let supers = path.iter().take_while(|p| *p == "super").count();
    let at_root = match path[0].as_str() {
        "crate" | "gpudeck" => 1,
        "super" if supers >= module.len() => supers,
        _ => return None,
    };
    path.get(at_root).map(String::as_str)
}

fn source_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|e| e.unwrap().path())
        .collect();
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            source_files(&entry, found);
        } else if entry.extension().is_some_and(|e| e == "rs") {
            found.push(entry);
        }
    }
}

#[test]
fn every_floor_uses_only_what_it_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    source_files(&root.join("src"), &mut files);
    assert!(files.len() > 20, "only {} source files found", files.len());
    let mut report = Vec::new();
    for path in files {
        let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        // A file of tests (`#[cfg(test)] mod tests;`) may reach further; the two roots pick doors.
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "tests.rs"
            || file.contains("/tests/")
            || file == "src/lib.rs"
            || file == "src/main.rs"
        {
            continue;
        }
        for violation in check(&file, &std::fs::read_to_string(&path).unwrap()) {
            report.push(format!("{}:{}: {}", violation.file, violation.line, violation.rule));
        }
    }
    assert!(report.is_empty(), "the house is not in order:\n{}", report.join("\n"));
}

#[cfg(test)]
mod planted {
    use super::check;

    fn rules(file: &str, source: &str) -> Vec<(usize, String)> {
        check(file, source).into_iter().map(|v| (v.line, v.rule)).collect()
    }

    #[track_caller]
    fn caught(file: &str, source: &str, line: usize, part: &str) {
        let found = rules(file, source);
        assert!(
            found.iter().any(|(at, rule)| *at == line && rule.contains(part)),
            "{part:?} on line {line} was not caught; found {found:?}"
        );
    }

    #[test]
    fn a_floor_that_reaches_up_is_caught() {
        caught(
            "src/agent/mod.rs",
            "\nuse crate::rollout::State;",
            2,
            "`agent` must not use `rollout`",
        );
        caught("src/wire/mod.rs", "fn f() { crate::spec::x() }", 1, "`wire` must not use `spec`");
        caught(
            "src/tui/panels/a.rs",
            "use crate::{\n api::View,\n controller::{self, Core},\n};",
            3,
            "`controller`",
        );
        caught(
            "src/agent/deep/x.rs",
            "use super::super::super::ssh::A;",
            1,
            "`agent` must not use `ssh`",
        );
        caught(
            "src/agent/mod.rs",
            "use super::{wire::A, ssh::B};",
            1,
            "`agent` must not use `ssh`",
        );
        caught(
            "src/cli/apply.rs",
            "fn f(x: gpudeck::rollout::X) {}",
            1,
            "`cli` must not use `rollout`",
        );
        caught("src/cellar/mod.rs", "", 1, "not a floor");
        caught("src/agent/mod.rs", "use crate as house;", 1, "renamed");
    }

    #[test]
    fn a_clock_or_a_disk_on_a_pure_floor_is_caught() {
        caught("src/rollout/step.rs", "use std::time::{Duration,\n Instant};", 2, "Instant");
        caught("src/placement/mod.rs", "fn f() { let _ = std::fs::read(p); }", 1, "std::fs");
        caught(
            "src/engine/mod.rs",
            "use std::{collections::BTreeMap, net::IpAddr};",
            1,
            "std::net",
        );
        caught(
            "src/model/mod.rs",
            "use std::time;\nfn f() { time::SystemTime::now() }",
            2,
            "SystemTime",
        );
        caught("src/base/id.rs", "fn f() { Uuid::now_v7() }", 1, "now_v7");
        caught("src/rollout/mod.rs", "async fn f() { tokio::spawn(x) }", 1, "tokio");
    }

    #[test]
    fn engines_and_gpus_out_of_place_are_caught() {
        caught("src/controller/mod.rs", "match e { EngineSpec::Vllm => 1 }", 1, "only in `engine`");
        caught(
            "src/controller/mod.rs",
            "use crate::spec::EngineSpec::{self, LlamaCpp};",
            1,
            "only in `engine`",
        );
        caught("src/ssh/mod.rs", "struct GpuChannel;", 1, "does not know what a GPU is");
    }

    #[test]
    fn what_is_allowed_is_not_complained_of() {
        let quiet = |file: &str, source: &str| assert_eq!(rules(file, source), [], "{source}");
        quiet("src/agent/mod.rs", "use crate::{base::Bytes, wire::Reply}; use super::base::id;");
        quiet("src/agent/act/x.rs", "use super::super::lock; use crate::agent::lock;");
        quiet(
            "src/rollout/step.rs",
            "// use std::fs\n/* /* tokio:: */ crate::ssh */ const A: &str = \"crate::ssh\";",
        );
        quiet(
            "src/rollout/step.rs",
            "const A: &str = r#\"crate::ssh \" tokio::x\"#; const Q: char = '\"';",
        );
        quiet("src/rollout/step.rs", "fn f<'a>(now: &'a u8) { let n = now; } // crate::tui");
        quiet(
            "src/rollout/step.rs",
            "#[cfg(test)]\n#[allow(x)]\nmod tests { use crate::ssh::A; fn f() { tokio::x() } }",
        );
        quiet("src/rollout/step.rs", "#[cfg(test)]\nuse crate::ssh::A;\nstruct B;");
        quiet("src/spec/parse.rs", "match e { EngineSpec::Vllm => 1 }");
        quiet("src/cli/demo.rs", "use crate::demo::run;");
        quiet("src/ssh/install.rs", "const NAME: &str = \"gpu\"; fn gpudeck_path() {}");
    }

    #[test]
    fn code_after_a_test_module_is_still_read() {
        let source = "#[cfg(test)]\nmod tests { fn f() { let s = \"}\"; } }\nuse crate::ssh::A;";
        caught("src/rollout/step.rs", source, 3, "`ssh`");
        caught("src/rollout/step.rs", "#[cfg(not(test))]\nuse crate::ssh::A;", 2, "`ssh`");
    }
}
