//! Which algorithms we offer a server: what russh has, in an order of our own or in the one that
//! the configuration asks for.

use std::borrow::Cow;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Preferred, cipher, kex, mac};

use super::config::HostConfig;
use super::known_hosts::same_kind;

/// AES-GCM has hardware; russh's own order is 1.5 times slower.
const CIPHERS: [cipher::Name; 6] = [
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
/// More that is offered when it is asked for by name.
const OLD_CIPHERS: [cipher::Name; 3] =
    [cipher::AES_256_CBC, cipher::AES_192_CBC, cipher::AES_128_CBC];

const MACS: [mac::Name; 4] =
    [mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM, mac::HMAC_SHA512, mac::HMAC_SHA256];
const OLD_MACS: [mac::Name; 2] = [mac::HMAC_SHA1_ETM, mac::HMAC_SHA1];

const KEX: [kex::Name; 10] = [
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G18_SHA512,
    kex::DH_G16_SHA512,
    kex::DH_G14_SHA256,
];
const OLD_KEX: [kex::Name; 3] = [kex::DH_GEX_SHA1, kex::DH_G14_SHA1, kex::DH_G1_SHA1];
/// Not algorithms but signs: extensions are understood, and the strict exchange.
const KEX_SIGNS: [kex::Name; 2] =
    [kex::EXTENSION_SUPPORT_AS_CLIENT, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT];

/// A list of the configuration of which nothing is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NothingLeft {
    pub(super) keyword: &'static str,
    pub(super) asked: String,
}

/// Our list, or what the configuration asks for as far as we have it.
fn choose<T: Copy + AsRef<str>>(
    keyword: &'static str,
    asked: Option<&[String]>,
    ours: &[T],
    old: &[T],
) -> Result<Vec<T>, NothingLeft> {
    let Some(asked) = asked else { return Ok(ours.to_vec()) };
    let found: Vec<T> = asked
        .iter()
        .filter_map(|name| ours.iter().chain(old).find(|have| have.as_ref() == name))
        .copied()
        .collect();
    if found.is_empty() {
        return Err(NothingLeft { keyword, asked: asked.join(",") });
    }
    Ok(found)
}

/// All host key algorithms, the strongest and cheapest first; never SHA-1 signatures.
fn host_keys() -> Vec<Algorithm> {
    vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ]
}

/// What an agent may sign with beside those: keys on a device that wants to be touched.
fn security_keys() -> [Algorithm; 2] {
    [Algorithm::SkEd25519, Algorithm::SkEcdsaSha2NistP256]
}

/// Everything we have of what a keyword lists, for people.
pub(super) fn supported(keyword: &str) -> String {
    fn names<T: AsRef<str>>(ours: &[T], old: &[T]) -> Vec<String> {
        ours.iter().chain(old).map(|name| name.as_ref().to_owned()).collect()
    }
    let all = match keyword {
        "Ciphers" => names(&CIPHERS, &OLD_CIPHERS),
        "MACs" => names(&MACS, &OLD_MACS),
        "KexAlgorithms" => names(&KEX, &OLD_KEX),
        "Compression" => vec!["none".to_owned()],
        _ => host_keys().iter().map(|key| key.as_str().to_owned()).collect(),
    };
    all.join(", ")
}

/// Whether we have an algorithm that a list of this keyword (in lower case) names. Other lists (that of a
/// login by a host's key, which is not done) are not judged.
pub(super) fn has(keyword: &str, name: &str) -> bool {
    fn any<T: AsRef<str>>(ours: &[T], old: &[T], name: &str) -> bool {
        ours.iter().chain(old).any(|have| have.as_ref() == name)
    }
    match keyword {
        "ciphers" => any(&CIPHERS, &OLD_CIPHERS, name),
        "macs" => any(&MACS, &OLD_MACS, name),
        "kexalgorithms" => any(&KEX, &OLD_KEX, name),
        "hostkeyalgorithms" => {
            host_keys().iter().any(|key| name == key.as_str() || name == certificate_name(key))
        }
        "pubkeyacceptedalgorithms" => {
            let mut ours = host_keys().into_iter().chain(security_keys());
            ours.any(|key| name == key.as_str() || name == certificate_name(&key))
        }
        "casignaturealgorithms" => {
            host_keys().into_iter().chain(security_keys()).any(|key| name == key.as_str())
        }
        _ => true,
    }
}

/// What is known of a host decides which kind of key is asked for first, and which certificates.
pub(super) struct KnownKinds {
    pub(super) keys: Vec<Algorithm>,
    pub(super) certificates: Certificates,
}

/// Which certificates are asked for. A server that has one of a kind shows it before any plain key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Certificates {
    /// None: nobody is known who signs them.
    None,
    /// Of the kinds of the keys that are known: something is revoked, and may be such a key's certificate or who signed
    /// it. One of another kind would come before the known key.
    OfKnownKinds,
    /// All: an authority may vouch for the host.
    All,
}

impl KnownKinds {
    /// Those of `all` that are asked for.
    fn wanted(&self, all: Vec<Algorithm>) -> Vec<Algorithm> {
        let is_known = |a: &Algorithm| self.keys.iter().any(|k| same_kind(a, k));
        match self.certificates {
            Certificates::None => Vec::new(),
            Certificates::OfKnownKinds if self.keys.is_empty() => all,
            Certificates::OfKnownKinds => all.into_iter().filter(is_known).collect(),
            Certificates::All => all,
        }
    }
}

/// What to offer to a host.
pub(super) fn proposal(config: &HostConfig, known: &KnownKinds) -> Result<Preferred, NothingLeft> {
    let mut keys: Vec<Algorithm> = Vec::new();
    let mut certificates: Vec<Algorithm> = Vec::new();
    if let Some(asked) = &config.host_key_algorithms {
        for name in asked {
            for algorithm in host_keys() {
                if *name == algorithm.as_str() {
                    keys.push(algorithm);
                } else if *name == certificate_name(&algorithm) {
                    certificates.push(algorithm);
                }
            }
        }
        if keys.is_empty() && certificates.is_empty() {
            return Err(NothingLeft { keyword: "HostKeyAlgorithms", asked: asked.join(",") });
        }
        // With nothing else the key in a certificate is judged.
        if !keys.is_empty() {
            certificates = known.wanted(certificates);
        }
        if !config.host_key_order_given {
            // Stable: what is known first, and both parts in the order of the list.
            let is_unknown = |a: &Algorithm| !known.keys.iter().any(|k| same_kind(a, k));
            keys.sort_by_key(is_unknown);
            certificates.sort_by_key(is_unknown);
        }
    } else {
        // What is known first, then what is left.
        for algorithm in &known.keys {
            keys.extend(host_keys().into_iter().filter(|a| same_kind(a, algorithm)));
        }
        for algorithm in host_keys() {
            if !keys.contains(&algorithm) {
                keys.push(algorithm);
            }
        }
        certificates = known.wanted(host_keys());
    }
    let mut kex = choose("KexAlgorithms", config.kex_algorithms.as_deref(), &KEX, &OLD_KEX)?;
    kex.extend(KEX_SIGNS);
    Ok(Preferred {
        kex: Cow::Owned(kex),
        key: Cow::Owned(keys),
        host_key_certificates: Cow::Owned(certificates),
        cipher: Cow::Owned(choose("Ciphers", config.ciphers.as_deref(), &CIPHERS, &OLD_CIPHERS)?),
        mac: Cow::Owned(choose("MACs", config.macs.as_deref(), &MACS, &OLD_MACS)?),
        ..Preferred::DEFAULT
    })
}

/// `ssh-ed25519-cert-v01@openssh.com` and the like.
pub(super) fn certificate_name(algorithm: &Algorithm) -> String {
    algorithm.to_certificate_type()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::super::config::{ConfigFiles, Given, Place, resolve};
    use super::*;

    /// The kinds of host key that are asked for, of a host whose RSA key is known.
    fn asked(line: &str) -> Vec<String> {
        let files = ConfigFiles::Text(line.into());
        let given = Given { name: "h".to_owned(), ..Given::default() };
        let config = resolve(&files, &given, &Place::here()).unwrap();
        let keys = vec![Algorithm::Rsa { hash: None }];
        let all =
            proposal(&config, &KnownKinds { keys, certificates: Certificates::None }).unwrap();
        all.key.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_known_key_comes_first_unless_a_person_gave_an_order() {
        // As `ssh -vvv` says it: order_hostkeyalgs with none, `+` and `-`, and not otherwise.
        for line in ["", "HostKeyAlgorithms +ssh-dss", "HostKeyAlgorithms -ssh-dss,*nistp521"] {
            let asked = asked(line);
            assert_eq!(asked[..3], ["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519"], "{line}");
            assert_eq!(asked.contains(&"ecdsa-sha2-nistp521".to_owned()), !line.contains("521"));
        }
        assert_eq!(asked("HostKeyAlgorithms ^ecdsa*")[0], "ecdsa-sha2-nistp256");
        let own = asked("HostKeyAlgorithms ssh-ed25519,rsa-sha2-512");
        assert_eq!(own, ["ssh-ed25519", "rsa-sha2-512"]);
    }
}
