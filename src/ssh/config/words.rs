//! Words, times, sizes and addresses as `ssh_config` writes them.

use std::path::Path;

const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches(BLANKS)
}

/// The first word and what follows it: words end at blanks or at one `=`, double quotes group.
/// None: a quote is not closed. The rest is none when the word ended the text.
pub(super) fn first_word(text: &str) -> Option<(String, Option<&str>)> {
    let Some((at, stop)) =
        text.char_indices().find(|(_, c)| matches!(c, '"' | '=' | ' ' | '\t' | '\r' | '\n'))
    else {
        return Some((text.to_owned(), None));
    };
    let (head, rest) = (text.get(..at)?, text.get(at + 1..)?);
    if stop == '"' {
        let (quoted, after) = rest.split_once('"')?;
        return Some((format!("{head}{quoted}"), Some(skip_blanks(after))));
    }
    let mut rest = skip_blanks(rest);
    if stop != '='
        && let Some(after) = rest.strip_prefix('=')
    {
        rest = skip_blanks(after);
    }
    Some((head.to_owned(), Some(rest)))
}

/// A line's keyword, in lower case, and the rest of the line after blanks. `Ok(None)`: an empty
/// line or a comment.
pub(super) fn keyword(line: &str) -> Result<Option<(String, &str)>, &'static str> {
    // A form feed is allowed at the end of a line only, as in OpenSSH.
    let line = line.trim_end_matches([' ', '\t', '\r', '\n', '\u{c}']);
    let mut found = first_word(line);
    if let Some((word, Some(rest))) = &found
        && word.is_empty()
    {
        found = first_word(rest);
    }
    // An unclosed quote in the keyword hides the line, as it does in OpenSSH.
    let Some((word, rest)) = found else { return Ok(None) };
    if word.is_empty() || word.starts_with('#') {
        return Ok(None);
    }
    match rest.map(skip_blanks) {
        None | Some("") => Err("nothing follows the keyword"),
        Some(rest) => Ok(Some((word.to_ascii_lowercase(), rest))),
    }
}

/// The words of a line's rest: blanks separate, quotes of both kinds group, `\` escapes quotes,
/// itself and blanks, `#` at the beginning of a word ends the line. None: a quote is not closed.
pub(super) fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| matches!(c, ' ' | '\t')).is_some() {}
        match chars.peek() {
            None | Some('#') => return Some(words),
            Some(_) => {}
        }
        let mut word = String::new();
        let mut quote: Option<char> = None;
        loop {
            let Some(c) = chars.next() else {
                if quote.is_some() {
                    return None;
                }
                break;
            };
            match (c, quote) {
                ('\\', _) => match chars.peek() {
                    Some('\'' | '"' | '\\') => word.extend(chars.next()),
                    Some(' ') if quote.is_none() => word.extend(chars.next()),
                    _ => word.push(c),
                },
                (' ' | '\t', None) => break,
                ('"' | '\'', None) => quote = Some(c),
                (c, Some(q)) if c == q => quote = None,
                (c, _) => word.push(c),
            }
        }
        words.push(word);
    }
}

/// `90`, `1m30s`, `2h`: seconds.
pub(super) fn seconds(text: &str) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    let mut total: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        // As C's strtol does, blanks and one sign are skipped.
        let number = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
        let number = number.strip_prefix('+').unwrap_or(number);
        let digits = number.len() - number.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            return None;
        }
        let value: i64 = number.get(..digits)?.parse().ok()?;
        let after = number.get(digits..)?;
        let mut chars = after.chars();
        let unit = match chars.next() {
            None | Some('s' | 'S') => 1,
            Some('m' | 'M') => 60,
            Some('h' | 'H') => 3600,
            Some('d' | 'D') => 86_400,
            Some('w' | 'W') => 604_800,
            Some(_) => return None,
        };
        total = total.checked_add(value.checked_mul(unit)?)?;
        if total > i64::from(i32::MAX) {
            return None;
        }
        rest = chars.as_str();
    }
    u32::try_from(total).ok()
}

/// Longest numbers of a size in digits: whole, and after the point (`scan_scaled`, which OpenSSH has from OpenBSD).
const MAX_DIGITS: usize = 20;

/// `1G`, `512k`, `1.5M`: bytes. What may follow the unit, when it is neither letter nor digit, is not read.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, after) = (text.get(..end)?, text.get(end..)?);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || whole.len() > MAX_DIGITS {
        return None;
    }
    let fraction = fraction.get(..fraction.len().min(MAX_DIGITS - 1))?;
    let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse().ok() };
    let (whole, mut fraction, mut digits): (i64, i64, _) =
        (parse(whole)?, parse(fraction)?, fraction.len());
    let mut after = after.chars();
    let bytes = match after.next() {
        // A fraction of a byte is nothing.
        None => whole,
        Some(unit) => {
            let power = "bkmgtpe".find(unit.to_ascii_lowercase())?;
            if after.next().is_some_and(|c| c.is_ascii_alphanumeric()) {
                return None;
            }
            let unit = 1i64 << (10 * power);
            while fraction >= i64::MAX / unit {
                fraction /= 10;
                digits = digits.saturating_sub(1);
            }
            fraction *= unit;
            for _ in 0..digits {
                fraction /= 10;
            }
            whole.checked_mul(unit)?.checked_add(fraction)?
        }
    };
    if negative && bytes != 0 { None } else { u64::try_from(bytes).ok() }
}

/// A whole number, not negative.
pub(super) fn number(text: &str) -> Option<u32> {
    let value: i64 = text.trim_start().parse().ok()?;
    (0..=i64::from(i32::MAX)).contains(&value).then(|| u32::try_from(value).ok()).flatten()
}

/// A port number, or the name of a TCP service of `/etc/services`; never 0.
pub(super) fn port(text: &str) -> Option<u16> {
    if let Ok(value) = text.trim_start().parse::<i64>() {
        return u16::try_from(value).ok().filter(|port| *port != 0);
    }
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c)) {
        return None;
    }
    let services = super::read::bounded(Path::new("/etc/services")).ok()??;
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let name = words.next()?;
        let port = words.next()?.strip_suffix("/tcp")?;
        (name == text || words.any(|alias| alias == text)).then(|| port.parse().ok()).flatten()
    })
}

/// One place to jump over: `user@host:port`, `ssh://user@host:port` and shorter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jump {
    /// Who logs in there, where it is said.
    pub user: Option<String>,
    /// Name or address.
    pub host: String,
    /// Its port, where it is said.
    pub port: Option<u16>,
}

/// Reads one place; none where it makes no sense.
pub(super) fn jump(text: &str) -> Option<Jump> {
    let (user, rest, uri) = match text.strip_prefix("ssh://") {
        Some(uri) => match uri.split_once('@') {
            Some((user, rest)) => {
                let user = user.split(';').next().unwrap_or_default();
                (Some(url_decoded(user)?), rest, true)
            }
            None => (None, uri, true),
        },
        None => match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user.to_owned()), rest, false),
            None => (None, text, false),
        },
    };
    if user.as_deref() == Some("") {
        return None;
    }
    let (host, port) = host_and_port(rest, uri)?;
    // An empty name in brackets `ssh` notices when it connects.
    if host.is_empty() && !rest.starts_with("[]") {
        return None;
    }
    // In `ssh://` only names and IPv4 addresses are taken.
    let host = if uri { domain(&host)?.to_owned() } else { host };
    Some(Jump { user, host, port })
}

/// A name of domains without the dot that may stand at its end; none where it is none.
pub(super) fn domain(name: &str) -> Option<&str> {
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !name.contains("..");
    valid.then(|| name.strip_suffix('.').unwrap_or(name))
}

fn host_and_port(text: &str, uri: bool) -> Option<(String, Option<u16>)> {
    let end = if text.starts_with('[') {
        text.find(']')? + 1
    } else {
        text.find([':', '/']).unwrap_or(text.len())
    };
    let (host, rest) = (text.get(..end)?, text.get(end..)?);
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let mut rest = rest.chars();
    let port = match rest.next() {
        None => None,
        Some(':') => {
            let port = rest.as_str();
            let port = if uri { port.strip_suffix('/').unwrap_or(port) } else { port };
            if port.is_empty() { None } else { Some(self::port(port)?) }
        }
        Some('/') if uri && rest.as_str().is_empty() => None,
        Some(_) => return None,
    };
    Some((host.to_owned(), port))
}

/// OpenSSH's own way: a plus is a space.
fn url_decoded(text: &str) -> Option<String> {
    crate::base::text::percent_decoded(&text.replace('+', " "))
}

/// A numeric address in its usual form (`127.1` is `127.0.0.1`, `::0001` is `::1`); none for names.
pub(super) fn numeric_address(text: &str) -> Option<String> {
    if text.contains(':') {
        let (address, scope) = match text.split_once('%') {
            Some((address, scope)) => (address, Some(scope)),
            None => (text, None),
        };
        let address: std::net::Ipv6Addr = address.parse().ok()?;
        // As the C library writes it: what is nothing but an IPv4 address looks like one.
        let shown = match (address.segments(), address.octets()) {
            ([0, 0, 0, 0, 0, 0, high, _], [.., a, b, c, d]) if high != 0 => {
                format!("::{a}.{b}.{c}.{d}")
            }
            _ => address.to_string(),
        };
        return Some(match scope {
            Some(scope) => format!("{shown}%{scope}"),
            None => shown,
        });
    }
    // The old forms: one to four numbers, the last fills what is left.
    let mut parts = Vec::new();
    for part in text.split('.') {
        let value = if let Some(hex) = part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
            u32::from_str_radix(hex, 16).ok()?
        } else if part.len() > 1 && part.starts_with('0') {
            u32::from_str_radix(part, 8).ok()?
        } else {
            part.chars().all(|c| c.is_ascii_digit()).then(|| part.parse::<u32>().ok())??
        };
        parts.push(value);
    }
    let last = parts.pop()?;
    if parts.len() > 3 || parts.iter().any(|p| *p > 255) {
        return None;
    }
    let mut address: u64 = 0;
    for part in &parts {
        address = (address << 8) | u64::from(*part);
    }
    let left = 8 * (4 - u32::try_from(parts.len()).ok()?);
    if u64::from(last) >= 1u64 << left {
        return None;
    }
    let address = u32::try_from((address << left) | u64::from(last)).ok()?;
    Some(std::net::Ipv4Addr::from(address).to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keywords_and_words() {
        let key = |line| keyword(line).unwrap().map(|(k, r)| (k, r.to_owned()));
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(key("Port=22"), pair("port", "22"));
        assert_eq!(key("  Port = 22 \r"), pair("port", "22"));
        assert_eq!(key("\"User\" x"), pair("user", "x"));
        assert_eq!(key("Port==22"), pair("port", "=22"));
        assert_eq!(key("   # Port 22"), None);
        assert_eq!(key(""), None);
        assert!(keyword("Port").is_err());
        assert_eq!(
            split("a 'b c' \"d\\\"e\" f\\ g # h"),
            Some(vec!["a".into(), "b c".into(), "d\"e".into(), "f g".into()])
        );
        assert_eq!(split("a \"b"), None);
        assert_eq!(split("# all"), Some(vec![]));
    }

    #[test]
    fn times_sizes_and_addresses() {
        assert_eq!(seconds("1m30"), Some(90));
        assert_eq!(seconds("1x"), None);
        assert_eq!(size("1.5K"), Some(1536));
        assert_eq!(size("1G"), Some(1 << 30));
        assert_eq!(size("+1k"), Some(1024));
        assert_eq!(size("1K "), Some(1024));
        assert_eq!(size("1KB"), None);
        assert_eq!(size("-1"), None);
        assert_eq!(size("-0"), Some(0));
        assert_eq!(size("1.2.3"), None);
        assert_eq!(size("7E"), Some(7 << 60));
        assert_eq!(size("8E"), None);
        assert_eq!(port("ssh"), port("22"));
        assert_eq!(port("0"), None);
        assert_eq!(numeric_address("127.1").as_deref(), Some("127.0.0.1"));
        assert_eq!(numeric_address("::0001").as_deref(), Some("::1"));
        assert_eq!(numeric_address("::1:2").as_deref(), Some("::0.1.0.2"));
        assert_eq!(numeric_address("gpu1"), None);
        assert_eq!(numeric_address("256.1.1.1"), None);
    }

    #[test]
    fn jumps() {
        let of = |text| jump(text).map(|j| (j.user, j.host, j.port));
        let is = |user: Option<&str>, host: &str, port| {
            Some((user.map(ToOwned::to_owned), host.to_owned(), port))
        };
        assert_eq!(of("u@b:2222"), is(Some("u"), "b", Some(2222)));
        assert_eq!(of("[::1]:23"), is(None, "::1", Some(23)));
        assert_eq!(of("ssh://u@b:24/"), is(Some("u"), "b", Some(24)));
        assert_eq!(of("ssh://b."), is(None, "b", None));
        assert_eq!(of("b"), is(None, "b", None));
        assert_eq!(of("@b"), None);
        assert_eq!(of("b:0"), None);
        assert_eq!(of("b/x"), None);
    }
}
