//! Lists of algorithms: OpenSSH's own, and what `+`, `-` and `^` make of them.
//!
//! The names and their order are those of OpenSSH 9.2 (`myproposal.h`, `ssh -Q`), so that
//! `gpudeck ssh-config` prints what `ssh -G` prints; what is really offered is worked out in
//! `ssh::proposal`.

use super::pattern::{Listed, matches_list};

/// Which kind of algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Ciphers`.
    Cipher,
    /// `MACs`.
    Mac,
    /// `KexAlgorithms`.
    Kex,
    /// `HostKeyAlgorithms`, `PubkeyAcceptedAlgorithms`.
    Key,
    /// `CASignatureAlgorithms`.
    CaSignature,
}

const CIPHERS: &str = "3des-cbc,aes128-cbc,aes192-cbc,aes256-cbc,aes128-ctr,aes192-ctr,aes256-ctr,\
    aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com";
const CIPHERS_DEFAULT: &str = "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,\
    aes128-gcm@openssh.com,aes256-gcm@openssh.com";
const MACS: &str = "hmac-sha1,hmac-sha1-96,hmac-sha2-256,hmac-sha2-512,hmac-md5,hmac-md5-96,\
    umac-64@openssh.com,umac-128@openssh.com,hmac-sha1-etm@openssh.com,\
    hmac-sha1-96-etm@openssh.com,hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,\
    hmac-md5-etm@openssh.com,hmac-md5-96-etm@openssh.com,umac-64-etm@openssh.com,\
    umac-128-etm@openssh.com";
const MACS_DEFAULT: &str = "umac-64-etm@openssh.com,umac-128-etm@openssh.com,\
    hmac-sha2-256-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha1-etm@openssh.com,\
    umac-64@openssh.com,umac-128@openssh.com,hmac-sha2-256,hmac-sha2-512,hmac-sha1";
const KEX: &str = "diffie-hellman-group1-sha1,diffie-hellman-group14-sha1,\
    diffie-hellman-group14-sha256,diffie-hellman-group16-sha512,diffie-hellman-group18-sha512,\
    diffie-hellman-group-exchange-sha1,diffie-hellman-group-exchange-sha256,ecdh-sha2-nistp256,\
    ecdh-sha2-nistp384,ecdh-sha2-nistp521,curve25519-sha256,curve25519-sha256@libssh.org,\
    sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com";
const KEX_DEFAULT: &str = "sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com,\
    curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,ecdh-sha2-nistp384,\
    ecdh-sha2-nistp521,diffie-hellman-group-exchange-sha256,diffie-hellman-group16-sha512,\
    diffie-hellman-group18-sha512,diffie-hellman-group14-sha256";
const KEYS: &str = "ssh-ed25519,ssh-ed25519-cert-v01@openssh.com,sk-ssh-ed25519@openssh.com,\
    sk-ssh-ed25519-cert-v01@openssh.com,ecdsa-sha2-nistp256,\
    ecdsa-sha2-nistp256-cert-v01@openssh.com,ecdsa-sha2-nistp384,\
    ecdsa-sha2-nistp384-cert-v01@openssh.com,ecdsa-sha2-nistp521,\
    ecdsa-sha2-nistp521-cert-v01@openssh.com,sk-ecdsa-sha2-nistp256@openssh.com,\
    sk-ecdsa-sha2-nistp256-cert-v01@openssh.com,webauthn-sk-ecdsa-sha2-nistp256@openssh.com,\
    ssh-dss,ssh-dss-cert-v01@openssh.com,ssh-rsa,ssh-rsa-cert-v01@openssh.com,rsa-sha2-256,\
    rsa-sha2-256-cert-v01@openssh.com,rsa-sha2-512,rsa-sha2-512-cert-v01@openssh.com";
const KEYS_DEFAULT: &str = "ssh-ed25519-cert-v01@openssh.com,\
    ecdsa-sha2-nistp256-cert-v01@openssh.com,ecdsa-sha2-nistp384-cert-v01@openssh.com,\
    ecdsa-sha2-nistp521-cert-v01@openssh.com,sk-ssh-ed25519-cert-v01@openssh.com,\
    sk-ecdsa-sha2-nistp256-cert-v01@openssh.com,rsa-sha2-512-cert-v01@openssh.com,\
    rsa-sha2-256-cert-v01@openssh.com,ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,\
    ecdsa-sha2-nistp521,sk-ssh-ed25519@openssh.com,sk-ecdsa-sha2-nistp256@openssh.com,\
    rsa-sha2-512,rsa-sha2-256";
const CA_DEFAULT: &str = "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,\
    sk-ssh-ed25519@openssh.com,sk-ecdsa-sha2-nistp256@openssh.com,rsa-sha2-512,rsa-sha2-256";

/// Names of newer OpenSSH versions (to that of August 2026), which a configuration may carry.
const NEWER: [(Kind, &str); 7] = [
    (Kind::Kex, "mlkem768x25519-sha256"),
    (Kind::Kex, "mlkem768nistp256-sha256"),
    (Kind::Key, "ssh-mldsa-44@openssh.com"),
    (Kind::Key, "ssh-mldsa44-ed25519@openssh.com"),
    (Kind::Key, "ssh-mldsa44-ed25519-cert-v01@openssh.com"),
    (Kind::Key, "webauthn-sk-ecdsa-sha2-nistp256-cert-v01@openssh.com"),
    (Kind::CaSignature, "ssh-mldsa44-ed25519@openssh.com"),
];

fn all(kind: Kind) -> &'static str {
    match kind {
        Kind::Cipher => CIPHERS,
        Kind::Mac => MACS,
        Kind::Kex => KEX,
        Kind::Key | Kind::CaSignature => KEYS,
    }
}

/// What a list may come to. An authority signs with a plain key: certificates among `CASignatureAlgorithms` are
/// taken without a word and dropped.
fn may(kind: Kind) -> impl Iterator<Item = &'static str> {
    let plain = move |name: &&str| kind != Kind::CaSignature || !name.contains("-cert-v01@");
    all(kind).split(',').filter(plain)
}

/// OpenSSH's own list.
pub(super) fn default(kind: Kind) -> &'static str {
    match kind {
        Kind::Cipher => CIPHERS_DEFAULT,
        Kind::Mac => MACS_DEFAULT,
        Kind::Kex => KEX_DEFAULT,
        Kind::Key => KEYS_DEFAULT,
        Kind::CaSignature => CA_DEFAULT,
    }
}

fn is_newer(kind: Kind, name: &str) -> bool {
    NEWER.iter().any(|(k, n)| *k == kind && *n == name)
}

/// Short names of kinds of keys, which OpenSSH takes in a list and which come to nothing there (`sshkey_type_from_name`).
const SHORT: [&str; 7] = ["rsa", "dsa", "ecdsa", "ecdsa-sk", "ed25519", "ed25519-sk", "null"];

/// Whether OpenSSH would take such a list.
pub(super) fn valid(kind: Kind, list: &str) -> bool {
    if list.starts_with('-') {
        return true;
    }
    let names = list.strip_prefix(['+', '^']).unwrap_or(list);
    if names.is_empty() {
        return false;
    }
    let known: Vec<&str> = all(kind).split(',').collect();
    // An empty name ends the list.
    names.split(',').take_while(|name| !name.is_empty()).all(|name| {
        let exact = known.contains(&name) || is_newer(kind, name);
        let patterns = matches!(kind, Kind::Key | Kind::CaSignature);
        let short = patterns && SHORT.iter().any(|short| short.eq_ignore_ascii_case(name));
        exact
            || short
            || (patterns && known.iter().any(|k| matches_list(name, k, false) != Listed::No))
    })
}

fn push_all<'a>(list: &mut Vec<String>, names: impl IntoIterator<Item = &'a str>) {
    for name in names.into_iter().take_while(|name| !name.is_empty()) {
        if !list.iter().any(|known| known == name) {
            list.push(name.to_owned());
        }
    }
}

/// The list that comes of `given` and OpenSSH's own. The error says what is wrong with it.
pub(super) fn assemble(kind: Kind, given: Option<&str>) -> Result<Vec<String>, String> {
    let own: Vec<&str> = default(kind).split(',').collect();
    let Some(given) = given.filter(|g| !g.is_empty()) else {
        return Ok(own.into_iter().map(ToOwned::to_owned).collect());
    };
    if let Some(removed) = given.strip_prefix('-') {
        let kept = own.into_iter().filter(|name| matches_list(removed, name, false) != Listed::Yes);
        return Ok(kept.map(ToOwned::to_owned).collect());
    }
    let mut list = Vec::new();
    if let Some(added) = given.strip_prefix('+') {
        push_all(&mut list, own);
        push_all(&mut list, added.split(','));
    } else if let Some(first) = given.strip_prefix('^') {
        // Only of what is put behind others an empty name is the end.
        list.extend(first.split(',').map(ToOwned::to_owned));
        push_all(&mut list, own);
    } else {
        list.extend(given.split(',').map(ToOwned::to_owned));
    }
    let mut found = Vec::new();
    for pattern in &list {
        if pattern.starts_with('!') {
            return Err("names with `!` are not allowed here".to_owned());
        }
        let matching = may(kind).filter(|name| matches_list(pattern, name, false) == Listed::Yes);
        push_all(&mut found, matching);
        if is_newer(kind, pattern) {
            push_all(&mut found, [pattern.as_str()]);
        }
    }
    if found.is_empty() { Err("nothing is left of the list".to_owned()) } else { Ok(found) }
}
