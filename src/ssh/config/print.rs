//! What was resolved, in the format of `ssh -G`: only the keys we claim.

use super::HostConfig;
use super::algorithms::assemble;
use super::keywords::{KEYWORDS, REKEY_INTERVAL, What};
use super::read::{JumpValue, Values};

/// Lists that are printed otherwise than they are used.
pub(super) struct Shown<'a> {
    pub(super) user_known_hosts: &'a [String],
    pub(super) global_known_hosts: &'a [String],
}

/// `ProxyJump` as one text.
pub(super) fn jump(values: &Values) -> Option<String> {
    let JumpValue::Over { before, last } = values.jump.as_ref()? else { return None };
    let mut text = String::new();
    if let Some(before) = before {
        text.extend([before.as_str(), ","]);
    }
    if let Some(user) = &last.user {
        text.extend([user.as_str(), "@"]);
    }
    let numeric =
        last.host.contains(':') || last.host.chars().all(|c| c.is_ascii_digit() || c == '.');
    if numeric {
        text.extend(["[", &last.host, "]"]);
    } else {
        text += &last.host;
    }
    if let Some(port) = last.port {
        text += &format!(":{port}");
    }
    Some(text)
}

/// All keys and values. A list of algorithms that comes to nothing is left out.
pub(super) fn all(
    config: &HostConfig,
    values: &Values,
    identities: &[String],
    certificates: &[String],
    shown: &Shown<'_>,
) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    out.push(("host".to_owned(), config.name.clone()));
    let one_line = |list: &[String]| {
        if list.is_empty() { "none".to_owned() } else { list.join(" ") }
    };
    for keyword in KEYWORDS {
        let key = keyword.name;
        let mut put = |value: String| out.push((key.to_owned(), value));
        match (key, keyword.what) {
            (_, What::Host | What::Match | What::Include) => {}
            ("user", _) => put(config.user.clone()),
            ("hostname", _) => put(config.host_name.clone()),
            ("port", _) => put(config.port.to_string()),
            ("hostkeyalias", _) => config.host_key_alias.iter().cloned().for_each(put),
            ("identityagent", _) => config.identity_agent.iter().cloned().for_each(put),
            ("identityfile", _) => identities.iter().cloned().for_each(put),
            ("certificatefile", _) => certificates.iter().cloned().for_each(put),
            ("userknownhostsfile", _) => put(one_line(shown.user_known_hosts)),
            ("globalknownhostsfile", _) => put(one_line(shown.global_known_hosts)),
            ("canonicaldomains", _) => {
                put(values.set.get(key).map_or_else(|| "none".to_owned(), |list| list.join(" ")));
            }
            ("serveraliveinterval", _) => put(match values.first(key) {
                Some(value) => value.to_owned(),
                // Debian's OpenSSH does this in batch mode.
                None if config.batch_mode => "300".to_owned(),
                None => "0".to_owned(),
            }),
            ("rekeylimit", _) => {
                let of = |key| values.first(key).unwrap_or("0");
                put(format!("{} {}", of(key), of(REKEY_INTERVAL)));
            }
            // Of the jump's own command OpenSSH takes no descriptor.
            ("proxyusefdpass", _) if jump(values).is_some() => put("no".to_owned()),
            ("proxyjump", _) => jump(values).into_iter().for_each(put),
            ("proxycommand", _) => {
                if values.jump.as_ref().is_none_or(|j| *j == JumpValue::None) {
                    clear_none(values.first(key)).for_each(put);
                }
            }
            ("revokedhostkeys" | "knownhostscommand" | "pkcs11provider", _) => {
                clear_none(values.first(key)).for_each(put);
            }
            (_, What::Algorithms(kind)) => {
                if let Ok(list) = assemble(kind, values.first(key)) {
                    put(list.join(","));
                }
            }
            (_, _) => match (values.first(key), keyword.default) {
                (Some(value), _) => put(value.to_owned()),
                (None, Some(value)) => put(value.to_owned()),
                (None, None) => {}
            },
        }
    }
    out
}

fn clear_none(value: Option<&str>) -> impl Iterator<Item = String> {
    value.filter(|v| !v.eq_ignore_ascii_case("none")).map(ToOwned::to_owned).into_iter()
}
