//! What the address of a remote means, as Git reads it (`git help fetch`, "GIT URLS").

use secrecy::SecretString;

use super::reach::{Login, SshPlace};
use crate::base::text;

/// What an address of a remote means.
#[derive(Clone, Debug)]
pub(super) enum Address {
    /// A directory of this machine, or Git's own protocol: libgit2 needs nobody's help.
    Plain,
    /// Over SSH, in this directory there (`~` and relative paths are the server's to understand).
    Ssh(SshPlace, String),
    /// Over HTTP or HTTPS.
    Http(HttpAddress),
    /// Anything else: only the user's `git` may know.
    Other,
}

/// An address without its secrets, and these.
#[derive(Clone, Debug)]
pub(super) struct HttpAddress {
    /// Without user, password, and a slash at its end.
    pub(super) url: String,
    /// The server's name, without its port.
    pub(super) host: String,
    /// The user that stood in it.
    pub(super) user: Option<String>,
    /// The password that stood in it.
    pub(super) password: Option<SecretString>,
}

impl Address {
    pub(super) fn of(url: &str) -> Self {
        let Some((scheme, rest)) = url.split_once("://") else { return Self::without_scheme(url) };
        match scheme {
            "file" | "git" => Self::Plain,
            "ssh" | "git+ssh" | "ssh+git" => ssh(rest).unwrap_or(Self::Other),
            "http" | "https" => HttpAddress::of(scheme, rest).map_or(Self::Other, Self::Http),
            _ => Self::Other,
        }
    }

    /// A path, `[user@]host:path`, or `helper::address`. A path with a colon in it has a slash before that.
    fn without_scheme(url: &str) -> Self {
        let bracket = url.find(']').filter(|_| url.contains('[')).unwrap_or(0);
        let Some(colon) = url.get(bracket..).and_then(|u| u.find(':')).map(|at| at + bracket)
        else {
            return Self::Plain;
        };
        let (place, path) = url.split_at(colon);
        let path = path.get(1..).unwrap_or_default();
        if place.contains('/') {
            return Self::Plain;
        }
        if path.starts_with(':') {
            return Self::Other;
        }
        let (user, host) = match place.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, place),
        };
        // `[host:port]:path` is this form's only way to name a port.
        let inside = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let (host, port) = match inside.map(|h| (h, h.rsplit_once(':'))) {
            Some((_, Some((host, port)))) if !host.contains(':') => (host, port.parse().ok()),
            Some((host, _)) => (host, None),
            None => (host, None),
        };
        if host.is_empty() || path.is_empty() {
            return Self::Other;
        }
        Self::Ssh(SshPlace { user, host: host.to_owned(), port }, path.to_owned())
    }
}

/// `[user@]host[:port]/path`.
fn ssh(rest: &str) -> Option<Address> {
    let (place, path) = rest.split_at(rest.find('/')?);
    let (user, place) = match place.rsplit_once('@') {
        Some((user, place)) => {
            (Some(text::percent_decoded(user.split(':').next().unwrap_or(user))?), place)
        }
        None => (None, place),
    };
    let (host, port) = host_and_port(place)?;
    let path = text::percent_decoded(path)?;
    // `/~user/deck` is below somebody's home.
    let path = path.strip_prefix('/').filter(|p| p.starts_with('~')).unwrap_or(&path).to_owned();
    Some(Address::Ssh(SshPlace { user, host: text::percent_decoded(host)?, port }, path))
}

impl HttpAddress {
    pub(super) fn of(scheme: &str, rest: &str) -> Option<Self> {
        let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, place) = match place.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, place),
        };
        let (host, _) = host_and_port(place)?;
        let (user, password) = match login.map(|l| (l, l.split_once(':'))) {
            None => (None, None),
            Some((user, None)) => (Some(text::percent_decoded(user)?), None),
            Some((_, Some((user, password)))) => {
                (Some(text::percent_decoded(user)?), Some(text::percent_decoded(password)?.into()))
            }
        };
        let path = path.trim_end_matches('/');
        let host = host.to_owned();
        Some(Self { url: format!("{scheme}://{place}{path}"), host, user, password })
    }

    /// Scheme, server and port as they were written: who is told a password.
    pub(super) fn origin(&self) -> &str {
        let host = self.url.split_once("://").map_or(0, |(scheme, _)| scheme.len() + 3);
        let rest = self.url.get(host..).unwrap_or_default();
        let end = rest.find('/').map_or(self.url.len(), |at| at + host);
        self.url.get(..end).unwrap_or_default()
    }

    /// Who asks, if the address says so whole.
    pub(super) fn login(&self) -> Option<Login> {
        let (user, password) = (self.user.clone()?, self.password.clone()?);
        Some(Login { user, password })
    }
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
fn host_and_port(place: &str) -> Option<(&str, Option<u16>)> {
    let (host, after) = match place.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    let port = match after.strip_prefix(':') {
        Some("") | None => None,
        Some(port) => Some(port.parse().ok()?),
    };
    (!host.is_empty()).then_some((host, port))
}

/// The address as it may be shown: of one over HTTP nothing of a login is left, since a token may stand in the
/// user's place; of another no password.
pub(super) fn shown(url: &str) -> String {
    let clean = text::clean(url, 300);
    let Some((scheme, rest)) = clean.split_once("://") else { return clean };
    let (place, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match place.rsplit_once('@') {
        Some((_, host)) if scheme.starts_with("http") => format!("{scheme}://{host}{path}"),
        Some((login, host)) if login.contains(':') => {
            let user = login.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:…@{host}{path}")
        }
        _ => clean,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn ssh(user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> (SshPlace, String) {
        (SshPlace { user: user.map(str::to_owned), host: host.to_owned(), port }, path.to_owned())
    }

    #[test]
    fn addresses_are_read_as_git_reads_them() {
        for (url, wanted) in [
            ("git@host:deck.git", ssh(Some("git"), "host", None, "deck.git")),
            ("host:/srv/deck", ssh(None, "host", None, "/srv/deck")),
            ("host:~ann/deck", ssh(None, "host", None, "~ann/deck")),
            ("u@[::1]:deck", ssh(Some("u"), "::1", None, "deck")),
            ("[host:2222]:deck", ssh(None, "host", Some(2222), "deck")),
            ("ssh://host/srv/a%20b", ssh(None, "host", None, "/srv/a b")),
            ("ssh://ann@host:2222/~/deck", ssh(Some("ann"), "host", Some(2222), "~/deck")),
            ("git+ssh://[fe80::1]:22/d", ssh(None, "fe80::1", Some(22), "/d")),
        ] {
            let Address::Ssh(place, path) = Address::of(url) else { panic!("{url}") };
            assert_eq!((place, path), wanted, "{url}");
        }
        for url in ["/srv/deck.git", "../deck", "file:///srv/deck.git", "./a:b", "git://h/d"] {
            assert!(matches!(Address::of(url), Address::Plain), "{url}");
        }
        for url in ["ext::git %s /d", "s3://b/d", "ssh://host", "https://", "host:", "ssh://h:x/d"]
        {
            assert!(matches!(Address::of(url), Address::Other), "{url}");
        }
    }

    #[test]
    fn a_password_is_taken_out_of_an_address_and_not_shown() {
        let url = "https://ann:s%40crt@git.example:8443/decks/one.git/";
        let Address::Http(address) = Address::of(url) else { panic!() };
        assert_eq!(address.url, "https://git.example:8443/decks/one.git");
        assert_eq!(address.host, "git.example");
        let login = address.login().unwrap();
        assert_eq!((login.user.as_str(), login.password.expose_secret()), ("ann", "s@crt"));
        assert_eq!(address.origin(), "https://git.example:8443");
        assert_eq!(shown(url), "https://git.example:8443/decks/one.git/");
        assert_eq!(shown("https://ghp_token@host/d"), "https://host/d");
        assert_eq!(shown("ssh://u:secret@h:22/d"), "ssh://u:…@h:22/d");
        for plain in ["https://host/d", "git@host:d", "/srv/a:b@c", "ssh://u@h:22/d"] {
            assert_eq!(shown(plain), plain);
        }
        let Address::Http(empty) = Address::of("https://token:@host/d") else { panic!() };
        assert_eq!(empty.login().unwrap().password.expose_secret(), "");
    }
}
