//! The basics of `~/.ssh/config`, resolved for one host from the file's text.
//!
//! As `ssh_config(5)`: the first value of a keyword wins, `IdentityFile` adds up. What is not
//! supported and matters (`ProxyJump`, `Match`, `Include`, …) is a warning, never silence.

use std::path::{Path, PathBuf};

use crate::base::text;

/// Longest configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What to do with a host key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StrictHostKeyChecking {
    /// An unknown key is asked about.
    #[default]
    Ask,
    /// An unknown key is refused without a question.
    Yes,
    /// An unknown key is written down without a question. `no` and `off` mean this too: a changed
    /// key is refused whatever the configuration says.
    AcceptNew,
}

/// What a configuration says about one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Name or address to connect to.
    pub host_name: Option<String>,
    /// User to log in as.
    pub user: Option<String>,
    /// Port of the server.
    pub port: Option<u16>,
    /// Private keys in order, `~` expanded.
    pub identity_files: Vec<PathBuf>,
    /// Offer only the keys of `identity_files`.
    pub identities_only: bool,
    /// Socket of the SSH agent; `none` means none.
    pub identity_agent: Option<String>,
    /// Files of known host keys, the first is written to; empty: the default ones.
    pub user_known_hosts_files: Vec<PathBuf>,
    /// What to do with unknown keys.
    pub strict_host_key_checking: Option<StrictHostKeyChecking>,
    /// The name under which the host key is known.
    pub host_key_alias: Option<String>,
    /// `ProxyJump bastion` or `ProxyCommand …`: the host cannot be reached directly.
    pub proxy: Option<String>,
    /// What was found and is not supported, with its line.
    pub warnings: Vec<String>,
}

/// Keywords that change where or how a login happens, and that are not followed.
const UNSUPPORTED: [&str; 9] = [
    "canonicalizehostname",
    "certificatefile",
    "globalknownhostsfile",
    "hostkeyalgorithms",
    "knownhostscommand",
    "pkcs11provider",
    "preferredauthentications",
    "revokedhostkeys",
    "securitykeyprovider",
];

/// Reads `path`; a file that does not exist is an empty configuration.
pub fn load(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What the configuration `text` says about `host`, for a user whose home is `home`.
pub fn resolve(text: &str, host: &str, home: &Path) -> HostConfig {
    let mut found = HostConfig::default();
    let mut raw_identities: Vec<String> = Vec::new();
    let mut raw_known_hosts: Option<Vec<String>> = None;
    let mut identities_only: Option<bool> = None;
    let mut active = true;
    for (index, line) in text.lines().enumerate() {
        let words = split_words(line);
        let Some((keyword, values)) = words.split_first() else { continue };
        let keyword = keyword.to_ascii_lowercase();
        let number = index + 1;
        if keyword == "host" {
            active = matches_list(values, host);
            continue;
        }
        if keyword == "match" {
            active = values.len() == 1 && values.iter().all(|v| v.eq_ignore_ascii_case("all"));
            if !active {
                found
                    .warnings
                    .push(format!("line {number}: Match is not supported; its block is skipped"));
            }
            continue;
        }
        if !active {
            continue;
        }
        let Some(value) = values.first() else { continue };
        match keyword.as_str() {
            "hostname" => set(&mut found.host_name, value.clone()),
            "user" => set(&mut found.user, value.clone()),
            "port" => match value.parse::<u16>() {
                Ok(port) if port != 0 => set(&mut found.port, port),
                _ => found
                    .warnings
                    .push(format!("line {number}: `{}` is not a port", text::clean(value, 20))),
            },
            "identityfile" => raw_identities.push(value.clone()),
            "identitiesonly" => set(&mut identities_only, yes(value)),
            "identityagent" => set(&mut found.identity_agent, value.clone()),
            "userknownhostsfile" => set(&mut raw_known_hosts, values.to_vec()),
            "hostkeyalias" => set(&mut found.host_key_alias, value.clone()),
            "stricthostkeychecking" => set(
                &mut found.strict_host_key_checking,
                match value.to_ascii_lowercase().as_str() {
                    "yes" => StrictHostKeyChecking::Yes,
                    "no" | "off" | "accept-new" => StrictHostKeyChecking::AcceptNew,
                    _ => StrictHostKeyChecking::Ask,
                },
            ),
            // Whichever of the two comes first wins, and `none` counts as a value.
            "proxyjump" | "proxycommand" => {
                let name = if keyword == "proxyjump" { "ProxyJump" } else { "ProxyCommand" };
                set(&mut found.proxy, format!("{name} {}", text::clean(&values.join(" "), 80)));
            }
            "include" => {
                found
                    .warnings
                    .push(format!("line {number}: Include is not supported; the file is not read"));
            }
            k if UNSUPPORTED.contains(&k) => {
                found.warnings.push(format!(
                    "line {number}: {} is not supported and has no effect",
                    text::clean(words.first().map_or("", String::as_str), 40)
                ));
            }
            _ => {}
        }
    }
    finish(found, host, home, identities_only, &raw_identities, raw_known_hosts)
}

fn finish(
    mut found: HostConfig,
    host: &str,
    home: &Path,
    identities_only: Option<bool>,
    raw_identities: &[String],
    raw_known_hosts: Option<Vec<String>>,
) -> HostConfig {
    found.identities_only = identities_only.unwrap_or(false);
    found.host_name =
        found.host_name.map(|name| expand_tokens(&name, |c| (c == 'h').then(|| host.to_owned())));
    let final_name = found.host_name.clone().unwrap_or_else(|| host.to_owned());
    let user = found.user.clone();
    let home_text = home.display().to_string();
    let tokens = |c: char| match c {
        'h' => Some(final_name.clone()),
        'n' => Some(host.to_owned()),
        'd' => Some(home_text.clone()),
        'r' => user.clone(),
        _ => None,
    };
    let path = |raw: &String| expand_home(&expand_tokens(raw, tokens), home);
    // `IdentityFile none` means that there are no identity files at all.
    if !raw_identities.iter().any(|raw| raw.eq_ignore_ascii_case("none")) {
        for identity in raw_identities.iter().map(path) {
            if !found.identity_files.contains(&identity) {
                found.identity_files.push(identity);
            }
        }
    }
    found.identity_agent = found
        .identity_agent
        .map(|raw| expand_home(&expand_tokens(&raw, tokens), home).display().to_string());
    found.user_known_hosts_files = raw_known_hosts
        .unwrap_or_default()
        .iter()
        .filter(|raw| !raw.eq_ignore_ascii_case("none"))
        .map(path)
        .collect();
    if found.proxy.as_deref().is_some_and(|p| p.to_ascii_lowercase().ends_with(" none")) {
        found.proxy = None;
    }
    if let Some(proxy) = &found.proxy {
        found.warnings.push(format!("{proxy}: not supported yet"));
    }
    found
}

fn set<T>(slot: &mut Option<T>, value: T) {
    if slot.is_none() {
        *slot = Some(value);
    }
}

fn yes(value: &str) -> bool {
    value.eq_ignore_ascii_case("yes") || value.eq_ignore_ascii_case("true")
}

/// `~` and `~/…` become the home directory.
pub fn expand_home(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

fn expand_tokens(text: &str, token: impl Fn(char) -> Option<String>) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('%') | None => out.push('%'),
            Some(t) => match token(t) {
                Some(value) => out.push_str(&value),
                None => out.extend(['%', t]),
            },
        }
    }
    out
}

/// A line's words: separated by blanks (or one `=` after the keyword), double quotes group, `#`
/// begins a comment.
fn split_words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.trim().chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => break,
            c if !quoted && c.is_whitespace() => words.extend(word.take()),
            '=' if !quoted && words.is_empty() && word.is_some() => words.extend(word.take()),
            '=' if !quoted && words.len() == 1 && word.is_none() => {}
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// `Host` lists: one match is enough, one negated match (`!pattern`) refuses.
fn matches_list(patterns: &[String], host: &str) -> bool {
    let mut matched = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(negated) if matches_pattern(negated, host) => return false,
            Some(_) => {}
            None => matched = matched || matches_pattern(pattern, host),
        }
    }
    matched
}

/// OpenSSH's patterns: `*` is any run of characters, `?` is one. Linear in time for one `*`,
/// quadratic at worst, never exponential.
pub(super) fn matches_pattern(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || text.get(t) == Some(c) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    p = star_p + 1;
                    t = star_t + 1;
                    star = Some((star_p, t));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const CONFIG: &str = "
# the fleet
Host gpu-* !gpu-9
    HostName %h.example.org
    User=ops
    Port 2222
    IdentityFile ~/.ssh/fleet
    IdentityFile \"~/.ssh/%h key\"

Host gpu-1
    User somebody-else
    IdentitiesOnly yes
    IdentityFile ~/.ssh/fleet
Host far
    ProxyJump bastion
Host near
    ProxyJump none
    StrictHostKeyChecking accept-new
Match user root
    Port 1
Host *
    Port 22
    UserKnownHostsFile ~/.ssh/a /etc/b
    ServerAliveInterval 5
    Include other.conf
    CertificateFile x
";

    fn of(host: &str) -> HostConfig {
        resolve(CONFIG, host, Path::new("/home/u"))
    }

    #[test]
    fn the_first_value_wins_and_identities_add_up() {
        let found = of("gpu-1");
        assert_eq!(found.host_name.as_deref(), Some("gpu-1.example.org"));
        assert_eq!(found.user.as_deref(), Some("ops"));
        assert_eq!(found.port, Some(2222));
        assert!(found.identities_only);
        assert_eq!(
            found.identity_files,
            [Path::new("/home/u/.ssh/fleet"), Path::new("/home/u/.ssh/gpu-1.example.org key")]
        );
        assert_eq!(
            found.user_known_hosts_files,
            [Path::new("/home/u/.ssh/a"), Path::new("/etc/b")]
        );
    }

    #[test]
    fn negation_and_defaults() {
        let found = of("gpu-9");
        assert_eq!(found.user, None);
        assert_eq!(found.port, Some(22));
        assert_eq!(found.identity_files, Vec::<PathBuf>::new());
    }

    #[test]
    fn what_is_not_supported_is_said() {
        let far = of("far");
        assert_eq!(far.proxy.as_deref(), Some("ProxyJump bastion"));
        let near = of("near");
        assert_eq!(near.proxy, None);
        assert_eq!(near.strict_host_key_checking, Some(StrictHostKeyChecking::AcceptNew));
        let said = near.warnings.join("\n");
        for word in ["Match", "Include", "CertificateFile"] {
            assert!(said.contains(word), "{word} is not in: {said}");
        }
        assert!(!said.contains("ServerAliveInterval"));
    }

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*b*c", "aXbYbc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*.org", "x.orgs", false),
            ("", "x", false),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} {text}");
        }
        // Would take for ever in a naive matcher.
        assert!(!matches_pattern(&"*a".repeat(50), &"a".repeat(49)));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,400}", host in "[a-z.*?!-]{0,20}") {
            let _ = resolve(&text, &host, Path::new("/h"));
        }
    }
}
