//! Known host keys: our own reader and judge of OpenSSH's `known_hosts` files.
//!
//! russh's own check is not used: it ignores `@revoked`, knows no wildcards, takes a second key
//! of one algorithm for a changed one, and gives up at one bad line. The rules here are those of
//! `sshd(8)`, in its section on the file format of known hosts.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};

use super::config::{Listed, matches_list};
use crate::base::text;

/// Longest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// What the files say about a key that a host has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the host's.
    Known,
    /// No key of the host is known.
    Unknown {
        /// `SHA256:…` of the key shown.
        fingerprint: String,
    },
    /// Only other keys are known, be they of this kind or of another.
    Changed {
        /// Where.
        file: PathBuf,
        /// Line in it, from 1.
        line: usize,
        /// The key that is known: `ssh-ed25519 SHA256:…`.
        known: String,
    },
    /// This very key is marked `@revoked`.
    Revoked {
        /// Where.
        file: PathBuf,
        /// Line in it, from 1.
        line: usize,
    },
    /// A key or certificate that cannot be relied upon.
    Bad {
        /// Why not.
        why: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    Revoked,
    /// The key signs host certificates; it is never a host key itself.
    CertAuthority,
}

#[derive(Clone, Debug)]
struct Entry {
    file: PathBuf,
    line: usize,
    marker: Option<Marker>,
    hosts: String,
    key: KeyData,
}

/// A file of known hosts that is longer than what is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// Which file.
    pub file: PathBuf,
    /// In words.
    pub why: String,
}

/// The lines of all known-hosts files that apply, in order.
#[derive(Clone, Debug, Default)]
pub struct KnownHosts {
    entries: Vec<Entry>,
}

impl KnownHosts {
    /// Reads of files what concerns one host; those that do not exist are empty. The keys of a
    /// thousand other hosts are not read a thousand times.
    ///
    /// One that cannot be read is passed over, as OpenSSH does: what it knew is unknown then.
    /// One that is too long to be read whole is an error: what it revokes further on would not count.
    pub fn load(files: &[PathBuf], host: &str, port: u16) -> Result<Self, TooLong> {
        let mut all = Self::default();
        let names = names(host, port);
        let wanted = |hosts: &str| names.iter().any(|name| matches_hosts(hosts, name));
        for path in files {
            let bytes = match read_whole(path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    return Err(TooLong { file: path.clone(), why: error.to_string() });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::warn!(file = %path.display(), %error, "known hosts cannot be read");
                    continue;
                }
            };
            all.add_some(path, &String::from_utf8_lossy(&bytes), wanted);
        }
        Ok(all)
    }

    /// Adds the lines of one file; lines that make no sense are skipped, as OpenSSH does.
    pub fn add(&mut self, file: &Path, text: &str) {
        self.add_some(file, text, |_| true);
    }

    fn add_some(&mut self, file: &Path, text: &str, wanted: impl Fn(&str) -> bool) {
        for (index, line) in text.lines().enumerate() {
            if let Some((marker, hosts, key)) = parse_line(line, &wanted) {
                self.entries.push(Entry {
                    file: file.to_owned(),
                    line: index + 1,
                    marker,
                    hosts,
                    key,
                });
            }
        }
    }

    /// Judges the key that `host` shows on `port`.
    pub fn check(&self, host: &str, port: u16, key: &PublicKey) -> Verdict {
        if let Some(revoked) = self.revoked(host, port, &[key.key_data()]) {
            return revoked;
        }
        let verdict = self.check_name(&entry_name(host, port), key);
        // OpenSSH (check_host_key in sshconnect.c) takes a key known for the plain name too when
        // the port is an unusual one; never a change.
        if port != 22
            && matches!(verdict, Verdict::Unknown { .. })
            && self.check_name(&entry_name(host, 22), key) == Verdict::Known
        {
            return Verdict::Known;
        }
        verdict
    }

    /// Whether one of the keys is revoked for the host, be it for this port or for the plain name:
    /// where a key is good for the plain name on every port, so must be its revocation.
    fn revoked(&self, host: &str, port: u16, keys: &[&KeyData]) -> Option<Verdict> {
        let names = names(host, port);
        let entry = self.entries.iter().find(|e| {
            e.marker == Some(Marker::Revoked)
                && keys.contains(&&e.key)
                && names.iter().any(|name| matches_hosts(&e.hosts, name))
        })?;
        Some(Verdict::Revoked { file: entry.file.clone(), line: entry.line })
    }

    fn check_name(&self, name: &str, key: &PublicKey) -> Verdict {
        let mut changed: Option<&Entry> = None;
        let mut known = false;
        let of_its_kind = |entry: &Entry| same_kind(&entry.key.algorithm(), &key.algorithm());
        for entry in self.entries.iter().filter(|e| matches_hosts(&e.hosts, name)) {
            let same = entry.key == *key.key_data();
            match entry.marker {
                None if same => known = true,
                // A key of another kind is no lesser change: else whoever is in between would only
                // have to show a kind that nobody has seen yet (check_hostkeys_by_key_or_type in
                // OpenSSH). One of the same kind says more to a person.
                None if changed.is_none_or(|c| !of_its_kind(c) && of_its_kind(entry)) => {
                    changed = Some(entry);
                }
                _ => {}
            }
        }
        if known {
            return Verdict::Known;
        }
        match changed {
            None => Verdict::Unknown { fingerprint: key.fingerprint(HashAlg::Sha256).to_string() },
            Some(Entry { file, line, key, .. }) => Verdict::Changed {
                file: file.clone(),
                line: *line,
                known: format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256)),
            },
        }
    }

    /// Judges the certificate that `host` shows on `port`: by the authorities that are known for
    /// it, or, where there is none, by the key in it alone. So it is, too, when the certificate is
    /// not valid (any more) and something is known of the plain key, as OpenSSH goes about it
    /// (`check_host_key`): the host has proved that it holds that key. `now` is in seconds since
    /// 1970, and `allowed` names the algorithms an authority may sign with.
    pub fn check_certificate(
        &self,
        host: &str,
        port: u16,
        certificate: &Certificate,
        now: u64,
        allowed: &[String],
    ) -> Verdict {
        let key = PublicKey::new(certificate.public_key().clone(), "");
        let authority = certificate.signature_key();
        // A revoked key is refused wherever it stands, and so are a revoked certificate and what a revoked authority
        // signed.
        let whole = KeyData::Certificate(Box::new(certificate.clone()));
        let shown = [authority, certificate.public_key(), &whole];
        if let Some(revoked) = self.revoked(host, port, &shown) {
            return revoked;
        }
        if !self.authorities(host, port).any(|entry| entry.key == *authority) {
            return self.check(host, port, &key);
        }
        match certificate_fault(certificate, host, now, allowed) {
            None => Verdict::Known,
            Some(why) if why == FORGED => Verdict::Bad { why },
            Some(why) => match self.check(host, port, &key) {
                // Nothing is known of it: what is wrong with the certificate says more.
                Verdict::Unknown { .. } => Verdict::Bad { why },
                verdict => verdict,
            },
        }
    }

    fn authorities(&self, host: &str, port: u16) -> impl Iterator<Item = &Entry> {
        let names = names(host, port);
        self.entries.iter().filter(move |e| {
            e.marker == Some(Marker::CertAuthority)
                && names.iter().any(|name| matches_hosts(&e.hosts, name))
        })
    }

    /// Whether some authority may vouch for the host.
    pub fn has_authority(&self, host: &str, port: u16) -> bool {
        self.authorities(host, port).next().is_some()
    }

    /// Whether something is revoked for the host, which may be its certificate or who signed that.
    pub fn has_revocation(&self, host: &str, port: u16) -> bool {
        let names = names(host, port);
        let mut revoked = self.entries.iter().filter(|e| e.marker == Some(Marker::Revoked));
        revoked.any(|e| names.iter().any(|name| matches_hosts(&e.hosts, name)))
    }

    /// The algorithms of the keys known for a host: asked for first, so that a host with several
    /// keys shows the one that is known. Those that are revoked for it are not known.
    pub fn algorithms(&self, host: &str, port: u16) -> Vec<Algorithm> {
        let mut found: Vec<Algorithm> = Vec::new();
        for name in names(host, port) {
            for entry in self.entries.iter().filter(|e| e.marker.is_none()) {
                let algorithm = entry.key.algorithm();
                if matches_hosts(&entry.hosts, &name)
                    && !found.contains(&algorithm)
                    && self.revoked(host, port, &[&entry.key]).is_none()
                {
                    found.push(algorithm);
                }
            }
            if !found.is_empty() {
                break;
            }
        }
        found
    }
}

/// OpenSSH does not even read such a certificate.
const FORGED: &str = "its signature is wrong";

/// What is wrong with a host certificate of a known authority (`sshkey_cert_check_authority` in
/// OpenSSH).
fn certificate_fault(
    certificate: &Certificate,
    host: &str,
    now: u64,
    allowed: &[String],
) -> Option<String> {
    if certificate.cert_type() != CertType::Host {
        return Some("it is not for hosts".to_owned());
    }
    let signed_with = certificate.signature().algorithm();
    if !allowed.iter().any(|name| name == signed_with.as_str()) {
        return Some(format!("it is signed with {signed_with}, which is not allowed"));
    }
    let print = certificate.signature_key().fingerprint(HashAlg::Sha256);
    if now < certificate.valid_after() {
        return Some("it is not valid yet".to_owned());
    }
    if now >= certificate.valid_before() {
        return Some("it has expired".to_owned());
    }
    if certificate.validate_at(now, [&print]).is_err() {
        return Some(FORGED.to_owned());
    }
    if !certificate.critical_options().is_empty() {
        return Some("it has options that are not understood".to_owned());
    }
    let principals = certificate.valid_principals();
    let host = host.to_ascii_lowercase();
    if !principals.is_empty() && !principals.contains(&host) {
        return Some(format!("it is for {}", text::clean(&principals.join(", "), 120)));
    }
    None
}

/// Keys that are refused whoever shows them (`RevokedHostKeys`): a text file of public keys.
/// OpenSSH's binary lists are not understood, and then nothing is trusted.
pub fn read_revoked(file: &Path) -> io::Result<Vec<KeyData>> {
    let bytes = read_whole(file)?;
    if bytes.starts_with(b"SSHKRL") {
        return Err(io::Error::other("binary revocation lists (KRL) are not supported"));
    }
    let content = String::from_utf8_lossy(&bytes);
    let mut keys = Vec::new();
    for line in content.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let mut words = line.split_ascii_whitespace();
        let key = match (words.next(), words.next()) {
            (Some(kind), Some(data)) => read_key(kind, data),
            _ => None,
        };
        let wrong = || io::Error::other(format!("no public key: {}", text::clean(line, 60)));
        keys.push(key.ok_or_else(wrong)?);
    }
    Ok(keys)
}

/// All of a file, or an error: what stands further on may revoke what was read.
fn read_whole(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = fs::File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(read).is_ok_and(|read| read <= MAX_FILE_BYTES) {
        return Ok(bytes);
    }
    let why = format!("it has more than {} MiB", MAX_FILE_BYTES >> 20);
    Err(io::Error::new(io::ErrorKind::FileTooLarge, why))
}

/// A name as OpenSSH hashes it: `|1|salt|hmac`.
fn hashed_name(name: &str) -> String {
    let salt: [u8; 20] = rand::random();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    let hash = ring::hmac::sign(&key, name.as_bytes());
    format!("|1|{}|{}", BASE64.encode(salt), BASE64.encode(hash.as_ref()))
}

/// How a host is named in the file: `host`, or `[host]:port` for any port but 22.
pub fn entry_name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// The names that lines about a host may carry: with its port, and plain.
fn names(host: &str, port: u16) -> [String; 2] {
    [entry_name(host, port), entry_name(host, 22)]
}

/// Appends `host`'s key, its name hashed where that is wanted; makes the file (0600) and its
/// directory (0700) where they are missing.
pub fn append(file: &Path, host: &str, port: u16, hash: bool, key: &PublicKey) -> io::Result<()> {
    if let Some(parent) = file.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut open =
        fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file)?;
    let bare = PublicKey::new(key.key_data().clone(), "");
    let text = bare.to_openssh().map_err(io::Error::other)?;
    let name = entry_name(host, port);
    let name = if hash { hashed_name(&name) } else { name };
    let mut line = format!("{name} {}\n", text.trim());
    // A last line without its end would swallow ours.
    if ends_without_newline(&mut open)? {
        line.insert(0, '\n');
    }
    open.write_all(line.as_bytes())?;
    // Not every file can be synced (`/dev/null`), and a key that is asked for again is no harm.
    let _ = open.sync_all();
    Ok(())
}

fn ends_without_newline(file: &mut fs::File) -> io::Result<bool> {
    use std::io::Seek;
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    file.seek(io::SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// None: it makes no sense, or is of hosts that are not wanted.
fn parse_line(
    line: &str,
    wanted: impl Fn(&str) -> bool,
) -> Option<(Option<Marker>, String, KeyData)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let mut words = line.split_ascii_whitespace();
    let mut hosts = words.next()?;
    let marker = match hosts.strip_prefix('@') {
        Some("revoked") => Some(Marker::Revoked),
        Some("cert-authority") => Some(Marker::CertAuthority),
        Some(_) => return None,
        None => None,
    };
    if marker.is_some() {
        hosts = words.next()?;
    }
    if !wanted(hosts) {
        return None;
    }
    let (kind, data) = (words.next()?, words.next()?);
    // A certificate is revoked by itself; known is only who signs them.
    if is_certificate(kind) {
        let revoked = marker.filter(|marker| *marker == Marker::Revoked)?;
        return Some((Some(revoked), hosts.to_owned(), read_key(kind, data)?));
    }
    Some((marker, hosts.to_owned(), read_key(kind, data)?))
}

fn is_certificate(kind: &str) -> bool {
    kind.contains("-cert-v01@")
}

/// A key or a certificate of a line. What the blob is decides how it is read, whatever the word before it says.
fn read_key(kind: &str, data: &str) -> Option<KeyData> {
    if BASE64.decode(data).is_ok_and(|blob| is_nested(&blob)) {
        return None;
    }
    let line = format!("{kind} {data}");
    if is_certificate(kind) {
        return Some(KeyData::Certificate(Box::new(Certificate::from_openssh(&line).ok()?)));
    }
    Some(PublicKey::from_openssh(&line).ok()?.key_data().clone())
}

/// Whether certificates are within certificates, which nobody makes: they are read by recursion, and
/// enough of them would use up the stack. Each has its kind's name in it.
pub(super) fn is_nested(blob: &[u8]) -> bool {
    const NAME: &[u8] = b"-cert-v01@";
    blob.windows(NAME.len()).filter(|w| *w == NAME).nth(8).is_some()
}

/// The host field: a comma list of patterns with `!` for negation, or one hashed name.
fn matches_hosts(field: &str, name: &str) -> bool {
    if let Some(hashed) = field.strip_prefix("|1|") {
        return matches_hashed(hashed, name).unwrap_or(false);
    }
    matches_list(field, name, true) == Listed::Yes
}

/// `salt|hash`, both base64: HMAC-SHA1 of the name with the salt as key (OpenSSH's hostfile.c).
fn matches_hashed(hashed: &str, name: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let (salt, hash) = (BASE64.decode(salt).ok()?, BASE64.decode(hash).ok()?);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    Some(ring::hmac::verify(&key, name.as_bytes(), &hash).is_ok())
}

/// Keys are of one kind whatever hash an RSA signature uses.
pub(super) fn same_kind(a: &Algorithm, b: &Algorithm) -> bool {
    matches!((a, b), (Algorithm::Rsa { .. }, Algorithm::Rsa { .. })) || a == b
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    // Public keys made for these tests with ssh-keygen; nobody holds their private halves.
    const A: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKfiW1UM+IuonXwn3yhd8bLdnMKf2ghDf0pWVyXRV1od";
    const B: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFLXnNKT9+U3bE1FwYiKDUDsp1DBhoXI5IVOEq5z0rz2";

    const E: &str = "ecdsa-sha2-nistp256 \
                     AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBO+Q/i2wOENFNjD4UR\
                     GceJUI7kOOXWcbObHL/LeIjBzuZUGYfEPnAwuRaWymL8WVJG/1Ndwi1aeRV0Zs8D68A6I=";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    fn known(text: &str) -> KnownHosts {
        let mut all = KnownHosts::default();
        all.add(Path::new("kh"), text);
        all
    }

    fn verdict(text: &str, host: &str, port: u16) -> &'static str {
        match known(text).check(host, port, &key(&format!("{A} shown"))) {
            Verdict::Known => "known",
            Verdict::Unknown { .. } => "unknown",
            Verdict::Changed { .. } => "changed",
            Verdict::Revoked { .. } => "revoked",
            Verdict::Bad { .. } => "bad",
        }
    }

    #[test]
    fn names_ports_lists_wildcards_and_negation() {
        for (hosts, host, port, expected) in [
            ("h1", "h1", 22, "known"),
            ("H1", "h1", 22, "known"),
            ("h1", "H1", 22, "known"),
            ("h1", "h2", 22, "unknown"),
            ("h0,h1\t", "h1", 22, "known"),
            ("[h1]:2222", "h1", 2222, "known"),
            ("[h1]:2222", "h1", 22, "unknown"),
            ("h1", "h1", 2222, "known"),
            ("*.org,!bad.org", "good.org", 22, "known"),
            ("*.org,!bad.org", "bad.org", 22, "unknown"),
            ("[10.0.0.?]:*", "10.0.0.7", 2200, "known"),
        ] {
            assert_eq!(
                verdict(&format!("{hosts} {A} comment here"), host, port),
                expected,
                "{hosts} {host}"
            );
        }
    }

    #[test]
    fn another_key_is_a_change_unless_the_right_one_is_there_too() {
        assert_eq!(verdict(&format!("h1 {B}"), "h1", 22), "changed");
        assert_eq!(verdict(&format!("h1 {B}\nh1 {A}"), "h1", 22), "known");
        // A key known for the plain name says nothing against a server on another port.
        assert_eq!(verdict(&format!("h1 {B}"), "h1", 2222), "unknown");
        // Of another kind, too; for people the one of the same kind is named.
        assert_eq!(verdict(&format!("h1 {E}"), "h1", 22), "changed");
        assert_eq!(verdict(&format!("[h1]:2222 {E}"), "h1", 2222), "changed");
        assert_eq!(verdict(&format!("h1 {E}"), "h1", 2222), "unknown");
        assert_eq!(verdict(&format!("h1 {E}\nh1 {A}"), "h1", 22), "known");
        assert_eq!(verdict(&format!("@cert-authority h1 {E}"), "h1", 22), "unknown");
        let found = known(&format!("h1 {E}\nh1 {B}\nh1 {E}")).check("h1", 22, &key(A));
        assert!(matches!(found, Verdict::Changed { line: 2, .. }), "{found:?}");
        let found = known(&format!("# c\n\nh1 {B}")).check("h1", 22, &key(A));
        let Verdict::Changed { line, known, .. } = found else { panic!("{found:?}") };
        assert_eq!((line, known.starts_with("ssh-ed25519 SHA256:")), (3, true));
    }

    #[test]
    fn markers() {
        assert_eq!(verdict(&format!("h1 {A}\n@revoked * {A}"), "h1", 22), "revoked");
        assert_eq!(verdict(&format!("@revoked * {B}\nh1 {A}"), "h1", 22), "known");
        assert_eq!(verdict(&format!("@cert-authority h1 {A}"), "h1", 22), "unknown");
        // What is revoked for the plain name is so on every port, whatever else is known.
        assert_eq!(verdict(&format!("@revoked h1 {A}"), "h1", 2222), "revoked");
        assert_eq!(verdict(&format!("[h1]:2222 {A}\n@revoked h1 {A}"), "h1", 2222), "revoked");
        assert_eq!(verdict(&format!("@revoked [h1]:2222 {A}"), "h1", 22), "unknown");
        assert_eq!(verdict(&format!("@unheard-of h1 {A}"), "h1", 22), "unknown");
    }

    #[test]
    fn bad_lines_are_skipped() {
        let text = format!("h1\nh1 ssh-ed25519 !!!\nh1 ssh-ed25519\n|1|x|y {A}\n\u{0}\nh1 {A}");
        assert_eq!(verdict(&text, "h1", 22), "known");
    }

    #[test]
    fn certificates_within_certificates_are_skipped() {
        let string =
            |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
        let mut blob = Vec::new();
        for _ in 0..2_000 {
            let mut outer = string(b"ssh-ed25519-cert-v01@openssh.com");
            outer.extend(string(&[1; 32]));
            outer.extend(string(&[2; 32]));
            outer.extend([0; 8]);
            outer.extend(1_u32.to_be_bytes());
            outer.extend([string(b"id"), string(b"")].concat());
            outer.extend([0; 16]);
            outer.extend([string(b""), string(b""), string(b"")].concat());
            outer.extend(string(&blob));
            blob = outer;
        }
        let text = format!("a ssh-ed25519-cert-v01@openssh.com {}\na {A}\n", BASE64.encode(&blob));
        assert_eq!(verdict(&text, "a", 22), "known");
    }

    #[test]
    fn hashed_names() {
        let salt = b"01234567890123456789";
        let hmac_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, salt);
        let hash = ring::hmac::sign(&hmac_key, b"[h1]:2222");
        let line = format!("|1|{}|{} {A}", BASE64.encode(salt), BASE64.encode(hash.as_ref()));
        assert_eq!(verdict(&line, "h1", 2222), "known");
        assert_eq!(verdict(&line, "h1", 2223), "unknown");
    }

    #[test]
    fn appends_after_a_line_without_end() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new/known_hosts");
        append(&file, "H1", 22, false, &key(&format!("{A} a comment"))).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("h1 {A}\n"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&file, format!("h0 {B}")).unwrap();
        append(&file, "h1", 2222, false, &key(A)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("h0 {B}\n[h1]:2222 {A}\n"));
    }

    #[test]
    fn the_algorithms_that_are_known() {
        let all = known(&format!("h1 {A}\n@revoked h2 {B}"));
        assert_eq!(all.algorithms("h1", 2222), [Algorithm::Ed25519]);
        assert_eq!(all.algorithms("h2", 22), []);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in "(.|\n){0,400}") {
            let _ = known(&text).check("h1", 22, &key(A));
        }
    }

    #[test]
    fn of_the_files_is_read_what_concerns_the_host_as_if_all_were_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        let hashed = hashed_name("web");
        let text = format!(
            "other {A}\n*.example.org,!bad.example.org {A}\n[web]:2222 {B}\n{hashed} {A}\n\
             @revoked * {B}\n@cert-authority *.example.org {B}\nweb nonsense\nweb,x {A}\n"
        );
        fs::write(&file, &text).unwrap();
        let mut all = KnownHosts::default();
        all.add(&file, &text);
        let names = ["web", "other", "a.example.org", "bad.example.org", "none"];
        for (name, port) in names.iter().flat_map(|name| [(name, 22), (name, 2222), (name, 9)]) {
            let some = KnownHosts::load(std::slice::from_ref(&file), name, port).unwrap();
            for shown in [key(A), key(B)] {
                let expected = all.check(name, port, &shown);
                assert_eq!(some.check(name, port, &shown), expected, "{name}:{port}");
            }
            assert_eq!(some.algorithms(name, port), all.algorithms(name, port));
            assert_eq!(some.has_authority(name, port), all.has_authority(name, port));
        }
        let some = KnownHosts::load(&[file], "none", 22).unwrap();
        assert_eq!(some.entries.len(), 1, "only what is revoked for all");
    }
}
