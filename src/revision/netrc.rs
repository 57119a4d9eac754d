//! Who asks a server, from `~/.netrc` (or the file that `NETRC` names), as curl and with it Git read it.

use std::io::Read as _;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::reach::Login;

/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// User and password for `host`; with `user`, those of that user. A file that others may read is an error.
pub(super) fn login(host: &str, user: Option<&str>) -> Result<Option<Login>, String> {
    let named = std::env::var_os("NETRC").filter(|f| !f.is_empty()).map(PathBuf::from);
    let usual = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".netrc"));
    let Some(path) = named.or_else(usual) else { return Ok(None) };
    let Ok(file) = std::fs::File::open(&path) else { return Ok(None) };
    let shown = path.display();
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(|e| format!("{shown}: {e}"))?;
    let found = find(&text, host, user);
    #[cfg(unix)]
    if found.is_some() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&path).map_err(|e| format!("{shown}: {e}"))?.permissions();
        if mode.mode() & 0o077 != 0 {
            return Err(format!("others may read {shown} → chmod 600 {shown}"));
        }
    }
    Ok(found)
}

/// The first entry that fits; `default` fits every host.
fn find(text: &str, host: &str, user: Option<&str>) -> Option<Login> {
    // What is defined by `macdef` goes on to an empty line.
    let mut words = Vec::new();
    let mut in_macro = false;
    for line in text.lines() {
        if in_macro {
            in_macro = !line.trim().is_empty();
            continue;
        }
        for word in line.split_whitespace() {
            if word.starts_with('#') {
                break;
            }
            if word == "macdef" {
                in_macro = true;
                break;
            }
            words.push(word);
        }
    }
    let (mut here, mut login, mut password) = (false, None, None);
    let whole = |login: Option<&str>, password: Option<&str>| {
        let (login, password) = (login.or(user)?, password?);
        let ours = user.is_none_or(|user| user == login);
        ours.then(|| Login { user: login.to_owned(), password: password.into() })
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" => {
                if let Some(found) = whole(login, password).filter(|_| here) {
                    return Some(found);
                }
                let fits = |name: &str| name.eq_ignore_ascii_case(host);
                here = word == "default" || words.next().is_some_and(fits);
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
            let found: Option<Login> = find(text, host, user);
            found.map(|l| format!("{} {}", l.user, l.password.expose_secret()))
        };
        assert_eq!(of("a", None).unwrap(), "ann one");
        assert_eq!(of("B", None).unwrap(), "bob two");
        assert_eq!(of("b", Some("eve")).unwrap(), "eve three");
        assert_eq!(of("c", None).unwrap(), "any four");
        assert_eq!(of("c", Some("me")), None);
        assert!(find("machine a login x", "a", None).is_none());
        assert!(find("", "a", None).is_none());
    }
}
