//! Text from hosts, files and networks, made safe to draw and to log.

/// `text` without control characters and other invisible trickery (bidirectional overrides,
/// zero-width marks), tabs and line ends as one blank, at most `max_chars` characters; a cut is
/// marked with `…`.
pub fn clean(text: &str, max_chars: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max_chars.saturating_mul(4)));
    let mut in_escape = false;
    let mut count = 0;
    for c in text.chars() {
        // An ANSI sequence is dropped whole: ESC [ … final byte, or ESC and one character.
        if in_escape {
            if c != '[' && ('@'..='~').contains(&c) {
                in_escape = false;
            }
            continue;
        }
        let shown = match c {
            '\u{1b}' => {
                in_escape = true;
                continue;
            }
            '\t' | '\n' => ' ',
            c if c.is_control() || is_invisible(c) => continue,
            c => c,
        };
        if count >= max_chars {
            out.pop();
            out.push('…');
            break;
        }
        out.push(shown);
        count += 1;
    }
    out
}

fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// What `%XX` stands for, as in addresses; none: not such a text, or not UTF-8.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let hex = |c: u8| char::from(c).to_digit(16);
        let (high, low) = (hex(rest.next()?)?, hex(rest.next()?)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// The entry of `known` nearest to `word`, when it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), k))
        .filter(|(distance, k)| *distance <= 1.max(k.chars().count().min(word.chars().count()) / 3))
        .min()
        .map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_what_could_steer_a_terminal() {
        assert_eq!(clean("a\u{1b}[31mred\u{1b}[0m\u{7}b\u{202e}c", 80), "aredbc");
        assert_eq!(clean("one\ntwo\tthree", 80), "one two three");
        assert_eq!(clean("abcdef", 4), "abc…");
    }

    #[test]
    fn nearest_finds_typos_only() {
        assert_eq!(nearest("replcas", ["replicas", "engine"]), Some("replicas"));
        assert_eq!(nearest("zzz", ["replicas", "engine"]), None);
    }
}
