//! Paths with wildcards, as `Include` has them: a reading of OpenSSH's own `openbsd-compat/glob.c`, which is another
//! than the C library's. Names are bytes, `^` negates nothing, and a class may name kinds of characters.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// More files than this are not included by one pattern: it is an error.
const MAX_FOUND: usize = 4096;
/// Nor are more names than this looked at for it.
const MAX_NAMES: usize = 1_000_000;
/// A longer pattern matches nothing (`PATH_MAX`).
const MAX_PATTERN: usize = 4096;

/// The existing paths that match, in order; an error if there are too many. A leading dot is matched by a dot only.
pub(super) fn glob(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let Some(tokens) = compile(pattern.as_bytes()).filter(|_| pattern.len() < MAX_PATTERN) else {
        return Ok(Vec::new());
    };
    let mut names_left = MAX_NAMES;
    let mut found: Vec<Vec<u8>> = vec![Vec::new()];
    for segment in tokens.chunk_by(|a, b| a.is_slash() == b.is_slash()) {
        let literal: Option<Vec<u8>> = segment.iter().map(Token::byte).collect();
        match literal {
            Some(bytes) => found.iter_mut().for_each(|path| path.extend_from_slice(&bytes)),
            None => found = matching(&found, segment, &mut names_left)?,
        }
    }
    found.sort();
    let paths = found.into_iter().map(|path| PathBuf::from(std::ffi::OsString::from_vec(path)));
    // One with `/` at its end is a directory, or is not there.
    Ok(paths.filter(|path| fs::symlink_metadata(path).is_ok()).collect())
}

/// The names in these directories that match.
fn matching(
    bases: &[Vec<u8>],
    segment: &[Token],
    names_left: &mut usize,
) -> Result<Vec<Vec<u8>>, String> {
    let dots = segment.first().and_then(Token::byte) == Some(b'.');
    let mut found = Vec::new();
    for base in bases {
        let listed = fs::read_dir(Path::new(std::ffi::OsStr::from_bytes(base)));
        let names = listed.into_iter().flatten().filter_map(Result::ok);
        let names = names.map(|entry| entry.file_name().into_vec());
        for name in [b".".to_vec(), b"..".to_vec()].into_iter().chain(names) {
            *names_left = names_left
                .checked_sub(1)
                .ok_or_else(|| format!("it has more than {MAX_NAMES} names to look at"))?;
            if name.starts_with(b".") && !dots || !matches(segment, &name) {
                continue;
            }
            if found.len() >= MAX_FOUND {
                return Err(format!("more than {MAX_FOUND} names match it"));
            }
            found.push([base.as_slice(), &name].concat());
        }
    }
    Ok(found)
}

/// A part of a pattern.
#[derive(Debug)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Star,
    /// `[…]`
    Set {
        negated: bool,
        members: Vec<Member>,
    },
}

/// What a class holds.
#[derive(Debug)]
enum Member {
    Range(u8, u8),
    /// `[:digit:]`
    Kind(fn(u8) -> bool),
}

impl Token {
    fn byte(&self) -> Option<u8> {
        if let Self::Byte(byte) = self { Some(*byte) } else { None }
    }

    fn is_slash(&self) -> bool {
        self.byte() == Some(b'/')
    }

    /// Whether it stands for this byte; a star does not.
    fn is(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::One => true,
            Self::Star => false,
            Self::Set { negated, members } => {
                let has = |member: &Member| match member {
                    Member::Range(from, to) => (*from..=*to).contains(&byte),
                    Member::Kind(is) => is(byte),
                };
                members.iter().any(has) != *negated
            }
        }
    }
}

/// A byte of a pattern, and whether a `\` before it makes it mean itself.
type Written = (u8, bool);

const END: Written = (b']', false);

/// Reads a pattern; none if nothing can match it.
fn compile(pattern: &[u8]) -> Option<Vec<Token>> {
    let mut written: Vec<Written> = Vec::new();
    let mut bytes = pattern.iter().copied();
    while let Some(byte) = bytes.next() {
        written.push(match byte {
            b'\\' => (bytes.next().unwrap_or(b'\\'), true),
            other => (other, false),
        });
    }
    let mut tokens = Vec::new();
    let mut left = written.as_slice();
    while let Some((first, rest)) = left.split_first() {
        left = rest;
        tokens.push(match first {
            (b'*', false) => Token::Star,
            (b'?', false) => Token::One,
            (b'[', false) => {
                let negated = rest.first() == Some(&(b'!', false));
                let inner = rest.get(usize::from(negated)..)?;
                // Its first member may be a `]`; without another it is no class.
                if inner.get(1..).is_some_and(|after| after.contains(&END)) {
                    let (members, after) = class(inner)?;
                    left = after;
                    Token::Set { negated, members }
                } else {
                    Token::Byte(b'[')
                }
            }
            (byte, _) => Token::Byte(*byte),
        });
    }
    Some(tokens)
}

/// What follows `[` or `[!`: the members, and what comes after the `]`. None for a kind that there is not.
fn class(written: &[Written]) -> Option<(Vec<Member>, &[Written])> {
    let mut members = Vec::new();
    let mut left = written;
    loop {
        let (first, mut rest) = left.split_first()?;
        if *first == END && !members.is_empty() {
            return Some((members, rest));
        }
        match kind(left) {
            Some((is, after)) => {
                members.push(Member::Kind(is?));
                left = after;
                continue;
            }
            None => {
                let mut to = first.0;
                if let [(b'-', false), last, after @ ..] = rest
                    && *last != END
                {
                    (to, rest) = (last.0, after);
                }
                members.push(Member::Range(first.0, to));
            }
        }
        left = rest;
    }
}

/// `[:digit:]` and what comes after; none if it is no such thing, none within if nobody knows the kind.
#[allow(clippy::type_complexity)]
fn kind(written: &[Written]) -> Option<(Option<fn(u8) -> bool>, &[Written])> {
    let name = written.strip_prefix(&[(b'[', false), (b':', false)])?;
    let length = name.iter().position(|at| *at == (b':', false))?;
    let after = name.get(length + 1..)?.strip_prefix(&[END])?;
    let name: Vec<u8> = name.get(..length)?.iter().map(|at| at.0).collect();
    let is: Option<fn(u8) -> bool> = match name.as_slice() {
        b"alnum" => Some(|b| b.is_ascii_alphanumeric()),
        b"alpha" => Some(|b| b.is_ascii_alphabetic()),
        b"blank" => Some(|b| matches!(b, b' ' | b'\t')),
        b"cntrl" => Some(|b| b.is_ascii_control()),
        b"digit" => Some(|b| b.is_ascii_digit()),
        b"graph" => Some(|b| b.is_ascii_graphic()),
        b"lower" => Some(|b| b.is_ascii_lowercase()),
        b"print" => Some(|b| b == b' ' || b.is_ascii_graphic()),
        b"punct" => Some(|b| b.is_ascii_punctuation()),
        b"space" => Some(|b| b.is_ascii_whitespace() || b == 0x0b),
        b"upper" => Some(|b| b.is_ascii_uppercase()),
        b"xdigit" => Some(|b| b.is_ascii_hexdigit()),
        _ => None,
    };
    Some((is, after))
}

/// Whether a name matches. Only the last star is gone back to, so that many cost no more than one.
fn matches(pattern: &[Token], name: &[u8]) -> bool {
    let (mut left, mut text) = (pattern, name);
    let mut star: Option<(&[Token], &[u8])> = None;
    loop {
        match (left.split_first(), text.split_first()) {
            (None, None) => return true,
            (Some((Token::Star, rest)), _) => {
                left = rest;
                star = Some((rest, text));
                continue;
            }
            (Some((token, rest)), Some((byte, after))) if token.is(*byte) => {
                (left, text) = (rest, after);
                continue;
            }
            _ => {}
        }
        let Some((rest, (_, shorter))) =
            star.and_then(|(rest, text)| Some((rest, text.split_first()?)))
        else {
            return false;
        };
        (left, text) = (rest, shorter);
        star = Some((rest, shorter));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    /// What is found of these names.
    fn found(names: &[&[u8]], pattern: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(OsStr::from_bytes(name));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let all = glob(&format!("{}/{pattern}", dir.path().display())).unwrap();
        let name = |p: &PathBuf| p.strip_prefix(dir.path()).unwrap().to_string_lossy().into_owned();
        all.iter().map(name).collect()
    }

    #[test]
    fn wildcards() {
        let names: [&[u8]; 6] = [b"b.conf", b"a.conf", b".c.conf", b"d.txt", b"e1", b"e2"];
        let names = |pattern: &str| found(&names, pattern);
        assert_eq!(names("*.conf"), ["a.conf", "b.conf"]);
        assert_eq!(names(".*.conf"), [".c.conf"]);
        assert_eq!(names("e[12]"), ["e1", "e2"]);
        assert_eq!(names("e[!1]"), ["e2"]);
        assert_eq!(names("d.txt"), ["d.txt"]);
        assert_eq!(names("*.*t*x*t*"), ["d.txt"]);
        assert_eq!(names("nothing"), Vec::<String>::new());
        // What is no directory has nothing in it.
        assert_eq!(names("d.txt/"), Vec::<String>::new());
        assert_eq!(names("*.txt/"), Vec::<String>::new());
    }

    #[test]
    fn classes_are_those_of_openssh_and_not_of_the_c_library() {
        let names: [&[u8]; 9] = [b"1", b"2", b"^", b"a", b"B", b"]", b"-", b"[", b"\\"];
        let names = |pattern: &str| found(&names, pattern).concat();
        assert_eq!(names("[^2]"), "2^");
        assert_eq!(names("[!^2a-]"), "1B[\\]");
        assert_eq!(names("[[:digit:]]"), "12");
        assert_eq!(names("[![:digit:][:punct:]]"), "Ba");
        assert_eq!(names("[[:upper:]a]"), "Ba");
        assert_eq!(names("[[:nothing:]1]"), "", "nobody knows it");
        assert_eq!(names("[]]"), "]");
        assert_eq!(names("[!]]"), "-12B[\\^a");
        assert_eq!(names("["), "[");
        assert_eq!(names("[\\]1]"), "1]");
        assert_eq!(names("[1\\-a]"), "-1a");
        assert_eq!(names("[\\\\1]"), "1\\");
        assert_eq!(names("\\["), "[");
    }

    #[test]
    fn a_name_is_bytes() {
        let names: [&[u8]; 3] = [b"\xff.conf", "\u{e4}.conf".as_bytes(), b"x.conf"];
        assert_eq!(found(&names, "*.conf").len(), 3);
        assert_eq!(found(&names, "??.conf"), ["\u{e4}.conf"]);
    }

    #[test]
    fn the_order_is_that_of_whole_paths() {
        let names: [&[u8]; 3] = [b"a/x", b"a-b/x", b"a.b/x"];
        assert_eq!(found(&names, "*/x"), ["a-b/x", "a.b/x", "a/x"]);
    }

    #[test]
    fn too_many_are_an_error_and_not_left_out() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..=MAX_FOUND {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        let all = format!("{}/*", dir.path().display());
        assert!(glob(&all).unwrap_err().contains("4096"), "not all of them");
        fs::remove_file(dir.path().join("7")).unwrap();
        assert_eq!(glob(&all).unwrap().len(), MAX_FOUND);
    }
}
