//! Who asks a server, from `~/.netrc` (or the file that `NETRC` names), as curl and with it Git read it.

use std::io::Read as _;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::reach::Login;

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// User and password for `host`; with `user`, those of that user. `default`: what is meant for every host counts, too. A
/// file that others may read is an error.
pub(super) fn login(
    host: &str,
    user: Option<&str>,
    default: bool,
) -> Result<Option<Login>, String> {
    let named = std::env::var_os("NETRC").filter(|f| !f.is_empty()).map(PathBuf::from);
    let usual = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".netrc"));
    let Some(path) = named.or_else(usual) else { return Ok(None) };
    // Nothing is waited for: a pipe is no such file.
    let Some(there) = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file) else {
        return Ok(None);
    };
    let Ok(file) = std::fs::File::open(&path) else { return Ok(None) };
    let shown = path.display();
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| format!("{shown}: {e}"))?;
    let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    let found = find(&text, host, user, default);
    #[cfg(unix)]
    if found.is_some() {
        use std::os::unix::fs::PermissionsExt as _;
        if there.permissions().mode() & 0o077 != 0 {
            return Err(format!("others may read {shown}: `chmod 600 {shown}` keeps them from it"));
        }
    }
    Ok(found)
}

/// The words of a line, up to a comment; in quotes a word may have blanks, and `\` before what is meant as it is.
fn words(line: &str) -> Vec<Zeroizing<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start().chars().peekable();
    while let Some(first) = rest.peek().copied().filter(|c| *c != '#') {
        let mut word = Zeroizing::new(String::new());
        if first == '"' {
            rest.next();
            while let Some(c) = rest.next().filter(|c| *c != '"') {
                word.push(if c == '\\' { rest.next().unwrap_or(c) } else { c });
            }
        } else {
            while let Some(c) = rest.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
        }
        words.push(word);
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
    }
    words
}

/// The first entry that fits; `default` fits every host.
fn find(text: &str, host: &str, user: Option<&str>, default: bool) -> Option<Login> {
    // What is defined by `macdef` goes on to an empty line.
    let mut all = Vec::new();
    let mut in_macro = false;
    for line in text.lines() {
        if in_macro {
            in_macro = !line.trim().is_empty();
            continue;
        }
        for word in words(line) {
            if *word == "macdef" {
                in_macro = true;
                break;
            }
            all.push(word);
        }
    }
    let (mut here, mut login, mut password) = (false, None, None);
    let whole = |login: Option<&str>, password: Option<&str>| {
        let (login, password) = (login.or(user)?, password?);
        let ours = user.is_none_or(|user| user == login);
        ours.then(|| Login { user: login.to_owned(), password: password.into() })
    };
    let mut words = all.iter().map(|word| word.as_str());
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" => {
                if let Some(found) = whole(login, password).filter(|_| here) {
                    return Some(found);
                }
                here = match word {
                    "default" => default,
                    _ => words.next().is_some_and(|name| name.eq_ignore_ascii_case(host)),
                };
                (login, password) = (None, None);
            }
            "login" => login = words.next(),
            "password" => password = words.next(),
            "account" => _ = words.next(),
            _ => {}
        }
    }
    whole(login, password).filter(|_| here)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn the_first_entry_that_fits_counts() {
        let text = "# machine a login x password y\nmachine a\n  login ann password one\n\
                    machine b login bob password two account z\nmacdef init\nmachine c login no\n\n\
                    machine b login eve password three\ndefault login any password four\n";
        let of = |host, user| {
            let found: Option<Login> = find(text, host, user, true);
            found.map(|l| format!("{} {}", l.user, l.password.expose_secret()))
        };
        assert_eq!(of("a", None).unwrap(), "ann one");
        assert_eq!(of("B", None).unwrap(), "bob two");
        assert_eq!(of("b", Some("eve")).unwrap(), "eve three");
        assert_eq!(of("c", None).unwrap(), "any four");
        assert_eq!(of("c", Some("me")), None);
        assert!(find(text, "c", None, false).is_none());
        assert!(find("machine a login x", "a", None, true).is_none());
        assert!(find("", "a", None, true).is_none());
        let quoted = r##"machine a login "two words" password "a\"#b \\" # no more"##;
        let found = find(quoted, "a", None, true).unwrap();
        assert_eq!(found.user, "two words");
        assert_eq!(found.password.expose_secret(), r##"a"#b \"##);
    }
}
