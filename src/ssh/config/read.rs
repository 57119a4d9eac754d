//! Reading configuration files line by line, as OpenSSH's `readconf.c` goes about it: the first
//! value of a keyword wins, blocks are entered by `Host` and `Match`, `Include` nests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::keywords::{self, Found, Keyword, What, find};
use super::pattern::{Listed, matches_list, matches_pattern};
use super::tokens::{self, Tokens};
use super::{ConfigError, Place, algorithms, glob, words};
use crate::base::text;
use crate::ssh::proposal;

/// Longest configuration file that is read, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Files within files.
const MAX_DEPTH: usize = 16;
/// All files together, so that includes cannot multiply without end.
const MAX_FILES: usize = 4096;
/// As in OpenSSH.
const MAX_IDENTITIES: usize = 100;
/// As in OpenSSH (`SSH_MAX_HOSTS_FILES`, `MAX_CANON_DOMAINS`).
const MAX_WORDS: usize = 32;

/// A text file of at most [`MAX_CONFIG_BYTES`]; none if it does not exist. Of a longer one nothing is read: what is
/// cut off might be how a host is reached.
pub(super) fn bounded(path: &Path) -> io::Result<Option<String>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(io::Error::other(format!("it is longer than {} MiB", MAX_CONFIG_BYTES >> 20)));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// What the lines have said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    pub(super) set: BTreeMap<&'static str, Vec<String>>,
    pub(super) jump: Option<JumpValue>,
    /// The values of keywords whose lines add up, with whose files they are in: each is there once of each.
    added: BTreeSet<(&'static str, Owner, String)>,
}

/// What `ProxyJump` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JumpValue {
    None,
    Over {
        /// The places before the last, as they were written.
        before: Option<String>,
        /// The last place.
        last: words::Jump,
    },
}

impl Values {
    pub(super) fn first(&self, key: &str) -> Option<&str> {
        self.set.get(key).and_then(|v| v.first()).map(String::as_str)
    }

    fn put(&mut self, key: &'static str, value: String) {
        self.set.entry(key).or_insert_with(|| vec![value]);
    }

    /// Reads a `ProxyJump`; false when it makes no sense.
    pub(super) fn put_jump(&mut self, text: &str, active: bool) -> bool {
        let active = active && self.jump.is_none() && self.first("proxycommand").is_none();
        if text.eq_ignore_ascii_case("none") {
            if active {
                self.jump = Some(JumpValue::None);
            }
            return true;
        }
        // What follows the first blank is not read, as in OpenSSH; the first character may be one.
        let places = text.split('#').next().unwrap_or_default();
        let blank = |(at, c): (usize, char)| {
            (at > 0 && (c.is_ascii_whitespace() || c == '\u{b}')).then_some(at)
        };
        let end = places.char_indices().find_map(blank).unwrap_or(places.len());
        let places = places.get(..end).unwrap_or_default();
        let mut last = None;
        for place in places.split(',') {
            let Some(jump) = words::jump(place) else { return false };
            last = Some(jump);
        }
        let Some(last) = last else { return false };
        if active {
            let before = places.rsplit_once(',').map(|(before, _)| before.to_owned());
            let before = before.filter(|b| !b.is_empty());
            self.jump = Some(JumpValue::Over { before, last });
            self.put("proxycommand", "none".to_owned());
        }
        true
    }
}

/// Whose file it is: a person's or the system's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    User,
    System,
}

/// One pass over the configuration for one host.
pub(super) struct Pass<'a> {
    pub(super) place: &'a Place,
    /// The name as it was given.
    pub(super) original: &'a str,
    /// What `Host` is matched against.
    pub(super) host: String,
    /// The second pass, in which `Match final` and `Match canonical` match.
    pub(super) last: bool,
    pub(super) values: Values,
    pub(super) wants_last: bool,
    pub(super) warnings: Vec<String>,
    /// What is no mistake of the person's: only told when somebody asks.
    pub(super) notes: Vec<String>,
    pub(super) files: usize,
}

/// A line's place in the files.
#[derive(Clone, Copy)]
struct At<'a> {
    file: &'a Path,
    line: usize,
    owner: Owner,
    /// Only looked over for mistakes: nothing in it applies.
    never: bool,
    depth: usize,
}

impl At<'_> {
    fn bad(&self, why: impl Into<String>) -> ConfigError {
        ConfigError {
            file: self.file.to_owned(),
            line: self.line,
            why: text::clean(&why.into(), 200),
        }
    }
}

impl Pass<'_> {
    /// Reads a file; false if it does not exist.
    pub(super) fn file(
        &mut self,
        path: &Path,
        owner: Owner,
        check_owner: bool,
    ) -> Result<bool, ConfigError> {
        let at = At { file: path, line: 0, owner, never: false, depth: 0 };
        self.read(at, check_owner)
    }

    /// Reads a text as if it were a person's file.
    pub(super) fn text(&mut self, text: &str) -> Result<(), ConfigError> {
        let name = Path::new("config");
        self.lines(text, At { file: name, line: 0, owner: Owner::User, never: false, depth: 0 })
    }

    fn read(&mut self, at: At<'_>, check_owner: bool) -> Result<bool, ConfigError> {
        self.files += 1;
        if at.depth > MAX_DEPTH {
            return Err(at.bad(format!("more than {MAX_DEPTH} files within one another")));
        }
        if self.files > MAX_FILES {
            return Err(at.bad(format!("more than {MAX_FILES} files in all")));
        }
        if check_owner && !safe(at.file) {
            return Err(at.bad("bad owner or permissions: others may write to it"));
        }
        match bounded(at.file) {
            Ok(None) => Ok(false),
            // OpenSSH reads nothing from a directory, and says nothing.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(true),
            Err(error) => Err(at.bad(error.to_string())),
            Ok(Some(text)) => {
                self.lines(&text, at)?;
                Ok(true)
            }
        }
    }

    fn lines(&mut self, text: &str, at: At<'_>) -> Result<(), ConfigError> {
        let mut active = !at.never;
        for (index, line) in text.split('\n').enumerate() {
            self.line(line, At { line: index + 1, ..at }, &mut active)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str, at: At<'_>, active: &mut bool) -> Result<(), ConfigError> {
        // A NUL ends a line for OpenSSH, which is written in C.
        let line = line.split('\0').next().unwrap_or_default();
        let Some((word, rest)) = words::keyword(line).map_err(|why| at.bad(why))? else {
            return Ok(());
        };
        let found = find(&word);
        let all = || words::split(rest).ok_or_else(|| at.bad("a quote is not closed"));
        let keyword = match found {
            Found::Known(keyword) => keyword,
            Found::Skipped => {
                let all = all()?;
                let value = all.first().map(String::as_str).unwrap_or_default();
                if *active && keywords::is_missed(&word, value) {
                    let shown = text::clean(value, 60);
                    let what = format!("{word} {shown} is not supported and has no effect");
                    let usual = is_of_distribution(&word) && at.owner == Owner::System;
                    self.say(at, &what, usual || keywords::is_convenience(&word));
                }
                return Ok(());
            }
            Found::Newer => {
                all()?;
                if *active {
                    self.warn(at, &format!("{word} is of a newer OpenSSH and has no effect"));
                }
                return Ok(());
            }
            Found::Unknown => {
                let ignored = self.values.first("ignoreunknown").unwrap_or_default();
                if matches_list(ignored, &word, true) == Listed::Yes {
                    return all().map(|_| ());
                }
                return Err(at.bad(format!("unknown keyword `{word}`")));
            }
        };
        let all = all()?;
        let raw = rest.trim_start_matches([' ', '\t', '\r', '\n', '=']);
        match keyword.what {
            What::Host => {
                *active = self.host_line(&all, at)?;
                Ok(())
            }
            What::Match => {
                *active = self.match_line(rest, at)? && !at.never;
                Ok(())
            }
            What::Include => self.include(&all, at, *active),
            What::Rest => {
                let jumps = matches!(self.values.jump, Some(JumpValue::Over { .. }));
                if keyword.name != "proxycommand" || !jumps {
                    self.set(keyword, raw.to_owned(), at, *active);
                }
                Ok(())
            }
            What::Jump => {
                if self.values.put_jump(raw, *active) {
                    Ok(())
                } else {
                    Err(at.bad(format!("`{raw}` is no ProxyJump")))
                }
            }
            What::Words => self.words(keyword, all, at, *active),
            _ => self.one(keyword, all, at, *active),
        }
    }

    fn warn(&mut self, at: At<'_>, what: &str) {
        self.say(at, what, false);
    }

    /// `is_note`: it is what everybody has, and costs nobody anything.
    fn say(&mut self, at: At<'_>, what: &str, is_note: bool) {
        let file = at.file.display();
        let said = text::clean(&format!("{file}:{}: {what}", at.line), 300);
        let list = if is_note { &mut self.notes } else { &mut self.warnings };
        if !list.contains(&said) {
            list.push(said);
        }
    }

    fn set(&mut self, keyword: &'static Keyword, value: String, at: At<'_>, active: bool) {
        if !active || self.values.set.contains_key(keyword.name) {
            return;
        }
        let harmless =
            keyword.harmless.is_none_or(|list| list.iter().any(|v| v.eq_ignore_ascii_case(&value)));
        if !harmless {
            let shown = text::clean(&value, 60);
            let what = format!("{} {shown} is not supported and has no effect", keyword.name);
            let usual = is_of_distribution(keyword.name) && at.owner == Owner::System;
            self.say(at, &what, usual);
        }
        let lacking = lacking(keyword.name, &value);
        if !lacking.is_empty() {
            let shown = text::clean(&lacking.join(","), 120);
            let what = format!("{} {shown}: not supported, the others are used", keyword.name);
            self.say(at, &what, at.owner == Owner::System);
        }
        if keyword.name == "stricthostkeychecking" && value == "false" {
            self.warn(at, "StrictHostKeyChecking no: a changed host key is refused all the same");
        }
        self.values.put(keyword.name, value);
    }

    /// A keyword with one value (or two, for `RekeyLimit`).
    fn one(
        &mut self,
        keyword: &'static Keyword,
        all: Vec<String>,
        at: At<'_>,
        active: bool,
    ) -> Result<(), ConfigError> {
        let mut all = all.into_iter();
        let value =
            all.next().filter(|v| !v.is_empty()).ok_or_else(|| at.bad("a value is missing"))?;
        let wrong = |what: &str| at.bad(format!("`{value}` is {what}"));
        let stored = match keyword.what {
            What::Flag => match value.to_ascii_lowercase().as_str() {
                "yes" | "true" => Some("yes".to_owned()),
                "no" | "false" => Some("no".to_owned()),
                _ => return Err(wrong("neither yes nor no")),
            },
            What::Choice(choices) => {
                let found = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(&value));
                Some(found.ok_or_else(|| wrong("not among the values there are"))?.1.to_owned())
            }
            What::Number => {
                Some(words::number(&value).ok_or_else(|| wrong("no number"))?.to_string())
            }
            What::Time if value == "none" => None,
            What::Time => Some(words::seconds(&value).ok_or_else(|| wrong("no time"))?.to_string()),
            What::Port => Some(words::port(&value).ok_or_else(|| wrong("no port"))?.to_string()),
            What::Algorithms(kind) => {
                if !algorithms::valid(kind, &value) {
                    return Err(wrong("not a list of algorithms"));
                }
                Some(value.clone())
            }
            What::Agent => {
                tokens::check_variables(&value, |name| (self.place.env)(name))
                    .map_err(|why| at.bad(why))?;
                Some(value.clone())
            }
            What::Rekey => {
                let bytes = if value == "default" {
                    0
                } else {
                    words::size(&value).ok_or_else(|| wrong("no size"))?
                };
                if bytes != 0 && bytes < 16 {
                    return Err(wrong("too small"));
                }
                // Of each of the two the first that is said counts.
                if let Some(time) = all.next().filter(|time| time != "none") {
                    let time = words::seconds(&time).ok_or_else(|| wrong("no time"))?;
                    if active {
                        self.values.put(keywords::REKEY_INTERVAL, time.to_string());
                    }
                }
                Some(bytes.to_string())
            }
            _ => Some(value.clone()),
        };
        if all.next().is_some() {
            return Err(at.bad("more values than one"));
        }
        let Some(stored) = stored else { return Ok(()) };
        if matches!(keyword.what, What::More) {
            if active {
                let list = self.values.set.entry(keyword.name).or_default();
                if list.len() >= MAX_IDENTITIES {
                    return Err(at.bad("too many files"));
                }
                // As OpenSSH: what both a person's and the system's files name counts twice.
                if self.values.added.insert((keyword.name, at.owner, stored.clone())) {
                    list.push(stored);
                }
            }
        } else {
            self.set(keyword, stored, at, active);
        }
        Ok(())
    }

    fn words(
        &mut self,
        keyword: &'static Keyword,
        mut all: Vec<String>,
        at: At<'_>,
        active: bool,
    ) -> Result<(), ConfigError> {
        if all.iter().any(String::is_empty) {
            return Err(at.bad("an empty value"));
        }
        if all.len() > 1 && all.iter().any(|v| v.eq_ignore_ascii_case("none")) {
            return Err(at.bad("`none` must stand alone"));
        }
        if keyword.name == "canonicaldomains" {
            for domain in &mut all {
                let lower = domain.to_ascii_lowercase();
                *domain = words::domain(&lower)
                    .ok_or_else(|| at.bad(format!("`{domain}` is no domain")))?
                    .to_owned();
            }
        }
        if !active || all.is_empty() || self.values.set.contains_key(keyword.name) {
            return Ok(());
        }
        if all.len() > MAX_WORDS {
            return Err(at.bad("too many values"));
        }
        self.values.set.insert(keyword.name, all);
        Ok(())
    }

    fn host_line(&self, patterns: &[String], at: At<'_>) -> Result<bool, ConfigError> {
        let mut matched = false;
        for pattern in patterns {
            if pattern.is_empty() {
                return Err(at.bad("an empty pattern"));
            }
            if at.never {
                return Ok(false);
            }
            match pattern.strip_prefix('!') {
                Some(negated) if matches_pattern(negated, &self.host) => return Ok(false),
                Some(_) => {}
                None => matched = matched || matches_pattern(pattern, &self.host),
            }
        }
        Ok(matched)
    }

    /// The name that is connected to, as far as is known by now.
    fn present_host(&self, at: At<'_>) -> Result<String, ConfigError> {
        match self.values.first("hostname") {
            Some(name) if self.last => Ok(name.to_owned()),
            Some(name) => {
                let host = |token| (token == 'h').then(|| self.host.clone());
                tokens::expand(name, host, |_| None, false).map_err(|why| at.bad(why))
            }
            None => Ok(self.host.clone()),
        }
    }

    fn match_line(&mut self, rest: &str, at: At<'_>) -> Result<bool, ConfigError> {
        let host = self.present_host(at)?;
        let user = self.values.first("user").unwrap_or(&self.place.local_user).to_owned();
        let mut left = Some(rest);
        let mut result = true;
        let mut attributes = 0;
        let mut next = || -> Option<String> {
            let (word, rest) = words::first_word(left?)?;
            left = rest;
            Some(word).filter(|w| !w.is_empty() && !w.starts_with('#'))
        };
        while let Some(word) = next() {
            let (negated, attribute) = match word.strip_prefix('!') {
                Some(attribute) => (true, attribute.to_ascii_lowercase()),
                None => (false, word.to_ascii_lowercase()),
            };
            if attribute == "all" {
                if attributes > 1 || next().is_some() {
                    return Err(at.bad("`all` cannot be combined with others"));
                }
                return Ok(result && !negated);
            }
            attributes += 1;
            if matches!(attribute.as_str(), "canonical" | "final") {
                self.wants_last = self.wants_last || attribute == "final";
                result = result && self.last != negated;
                continue;
            }
            let Some(argument) = next() else {
                return Err(at.bad(format!("`{attribute}` wants a value")));
            };
            let matched = match attribute.as_str() {
                "host" => matches_list(&argument, &host.to_ascii_lowercase(), true) == Listed::Yes,
                "originalhost" => {
                    let name = self.original.to_ascii_lowercase();
                    matches_list(&argument, &name, true) == Listed::Yes
                }
                "user" => matches_list(&argument, &user, false) == Listed::Yes,
                "localuser" => {
                    matches_list(&argument, &self.place.local_user, false) == Listed::Yes
                }
                "exec" => match self.exec(&argument, &host, &user, result, at)? {
                    Some(matched) => matched,
                    // Not known: the block is left out, whatever the sign.
                    None => negated,
                },
                "tagged" | "localnetwork" | "version" | "sessiontype" | "command" => {
                    let shown =
                        format!("Match {attribute} is not supported; its block is left out");
                    self.warn(at, &shown);
                    negated
                }
                other => return Err(at.bad(format!("unknown Match attribute `{other}`"))),
            };
            result = result && matched != negated;
        }
        if attributes == 0 {
            return Err(at.bad("Match wants a condition"));
        }
        Ok(result)
    }

    /// Runs the command of `Match exec`, if that is allowed; none: not run.
    fn exec(
        &mut self,
        command: &str,
        host: &str,
        user: &str,
        so_far: bool,
        at: At<'_>,
    ) -> Result<Option<bool>, ConfigError> {
        let tokens = Tokens {
            host: host.to_owned(),
            original: self.original.to_owned(),
            port: self.values.first("port").unwrap_or("22").to_owned(),
            user: user.to_owned(),
            key_alias: self.values.first("hostkeyalias").unwrap_or(host).to_owned(),
            jump: String::new(),
        };
        let command = tokens.expand(command, self.place, false).map_err(|why| at.bad(why))?;
        if !so_far {
            return Ok(Some(true));
        }
        if !self.place.run_match_exec {
            self.warn(
                at,
                "Match exec is not run; its block is left out (GPUDECK_SSH_MATCH_EXEC=1 runs it)",
            );
            return Ok(None);
        }
        super::exec::succeeds(&command).map(Some).map_err(|why| at.bad(why))
    }

    fn include(
        &mut self,
        patterns: &[String],
        at: At<'_>,
        active: bool,
    ) -> Result<(), ConfigError> {
        for pattern in patterns {
            if pattern.is_empty() {
                return Err(at.bad("an empty path"));
            }
            let home = self.place.home.display().to_string();
            let full = if pattern.starts_with('~') {
                if at.owner == Owner::System {
                    return Err(
                        at.bad(format!("`{pattern}`: no `~` in the system's configuration"))
                    );
                }
                // Of a user who does not exist there is nothing to read.
                let Ok(path) = tokens::expand_tilde(pattern, self.place) else { continue };
                path
            } else if pattern.starts_with('/') {
                pattern.clone()
            } else if at.owner == Owner::User {
                format!("{home}/.ssh/{pattern}")
            } else {
                format!("/etc/ssh/{pattern}")
            };
            let found =
                glob::glob(&full).map_err(|why| at.bad(format!("Include {pattern}: {why}")))?;
            for path in found {
                let inner = At {
                    file: &path,
                    line: 0,
                    owner: at.owner,
                    never: at.never || !active,
                    depth: at.depth + 1,
                };
                self.read(inner, true)?;
            }
        }
        Ok(())
    }
}

/// Nobody else may have written it (Debian's OpenSSH lets a person's own group write).
fn safe(path: &Path) -> bool {
    let Ok(meta) = fs::metadata(path) else { return true };
    let uid = rustix::process::getuid().as_raw();
    let owner = meta.uid() == 0 || meta.uid() == uid;
    let group = meta.mode() & 0o020 == 0 || (meta.gid() == uid && meta.uid() == uid);
    owner && group && meta.mode() & 0o002 == 0
}

/// Distributions have Kerberos in their own file for everybody: where it is not done, keys are tried.
fn is_of_distribution(keyword: &str) -> bool {
    keyword.starts_with("gssapi")
}

/// What a list names that we do not have.
fn lacking(keyword: &str, list: &str) -> Vec<String> {
    let names = list.strip_prefix(['+', '^']).unwrap_or(list).split(',').map(str::trim);
    let lacks = |name: &&str| match keyword {
        "preferredauthentications" => matches!(*name, "gssapi-with-mic" | "hostbased"),
        // What is taken off the list is not missed, and a pattern finds what there is.
        _ => !list.starts_with('-') && !name.contains(['*', '?']) && !proposal::has(keyword, name),
    };
    names.filter(lacks).map(str::to_owned).collect()
}
