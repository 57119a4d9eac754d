//! `%` tokens, `${VARIABLES}` and `~`, as `TOKENS` in `ssh_config(5)` has them.

use super::Place;

/// What the tokens stand for, once host, port and user are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    /// `%h`: the host that is connected to.
    pub(super) host: String,
    /// `%n`: the name as it was given.
    pub(super) original: String,
    /// `%p`.
    pub(super) port: String,
    /// `%r`: who logs in there.
    pub(super) user: String,
    /// `%k`: the name under which the host key is known.
    pub(super) key_alias: String,
    /// `%j`: what `ProxyJump` says, or nothing.
    pub(super) jump: String,
}

impl Tokens {
    fn of(&self, place: &Place, token: char) -> Option<String> {
        let short = || place.local_host.split('.').next().unwrap_or_default().to_owned();
        Some(match token {
            'h' => self.host.clone(),
            'n' => self.original.clone(),
            'p' => self.port.clone(),
            'r' => self.user.clone(),
            'k' => self.key_alias.clone(),
            'j' => self.jump.clone(),
            'd' => place.home.display().to_string(),
            'u' => place.local_user.clone(),
            'i' => place.uid.to_string(),
            'l' => place.local_host.clone(),
            'L' => short(),
            'C' => self.connection_hash(place),
            _ => return None,
        })
    }

    /// SHA-1 of `%l%h%p%r` (`ssh_connection_hash` in OpenSSH 9.2), in hex.
    fn connection_hash(&self, place: &Place) -> String {
        let mut all = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
        for part in [&place.local_host, &self.host, &self.port, &self.user] {
            all.update(part.as_bytes());
        }
        all.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// `text` with its tokens, and its `${VARIABLES}` where `variables` is set.
    pub(super) fn expand(
        &self,
        text: &str,
        place: &Place,
        variables: bool,
    ) -> Result<String, String> {
        expand(text, |token| self.of(place, token), |name| (place.env)(name), variables)
    }
}

/// `%x` by `token`, and `${NAME}` by `env` where `variables` is set. The error says what is wrong.
pub(super) fn expand(
    text: &str,
    token: impl Fn(char) -> Option<String>,
    env: impl Fn(&str) -> Option<String>,
    variables: bool,
) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        if variables && let Some(inner) = rest.strip_prefix("${") {
            let Some((name, after)) = inner.split_once('}') else {
                return Err("`${` without its `}`".to_owned());
            };
            if name.is_empty() {
                return Err("`${}` names nothing".to_owned());
            }
            out += &env(name).ok_or_else(|| format!("the variable {name} is not set"))?;
            rest = after;
            continue;
        }
        rest = after;
        if c != '%' {
            out.push(c);
            continue;
        }
        let Some(name) = rest.chars().next() else {
            return Err("`%` at the end".to_owned());
        };
        rest = rest.get(name.len_utf8()..).unwrap_or_default();
        if name == '%' {
            out.push('%');
        } else {
            out += &token(name).ok_or_else(|| format!("unknown token `%{name}`"))?;
        }
    }
    Ok(out)
}

/// Whether all `${VARIABLES}` of a socket's path, or the one variable of its old form `$NAME`, make
/// sense.
pub(super) fn check_variables(
    text: &str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<(), String> {
    let mut rest = text;
    while let Some((_, inner)) = rest.split_once("${") {
        let (name, after) = inner.split_once('}').ok_or("`${` without its `}`")?;
        if name.is_empty() || env(name).is_none() {
            return Err(format!("the variable {name} is not set"));
        }
        rest = after;
    }
    match text.strip_prefix('$') {
        Some(name) if !name.starts_with('{') => {
            if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                Ok(())
            } else {
                Err(format!("`{name}` is no variable's name"))
            }
        }
        _ => Ok(()),
    }
}

/// `~`, `~/x` and `~user/x` as paths.
pub(super) fn expand_tilde(text: &str, place: &Place) -> Result<String, String> {
    let Some(rest) = text.strip_prefix('~') else { return Ok(text.to_owned()) };
    let (user, path) = match rest.split_once('/') {
        Some((user, path)) => (user, path.trim_start_matches('/')),
        None => (rest, ""),
    };
    let home = if user.is_empty() {
        place.home.display().to_string()
    } else {
        super::place::home_of(user).ok_or_else(|| format!("there is no user `{user}`"))?
    };
    let slash = if home.ends_with('/') { "" } else { "/" };
    Ok(format!("{home}{slash}{path}"))
}
