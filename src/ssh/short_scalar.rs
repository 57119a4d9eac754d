//! ECDSA keys whose private number is short. OpenSSH writes it as an integer without its leading zeros, so one P-256 key in
//! five hundred has 31 bytes or fewer of it; `ssh-key` wants 32 of them (`EcdsaPrivateKey::decode`, 0.7.0-rc.11), and would say of such a
//! key that it is none. Only OpenSSH's own format (`PROTOCOL.key` of its sources) is read here, and only for those.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use russh::keys::ssh_key::private::{EcdsaKeypair, EcdsaPrivateKey, KeypairData};
use russh::keys::ssh_key::sec1::EncodedPoint;
use russh::keys::{Algorithm, EcdsaCurve, PrivateKey};
use zeroize::Zeroizing;

const MAGIC: &[u8] = b"openssh-key-v1\0";
const ALGORITHM: &[u8] = b"ecdsa-sha2-nistp256";
const CURVE: &[u8] = b"nistp256";
/// Bytes of a number of this curve.
const SCALAR: usize = 32;

/// The key of a file in OpenSSH's format, if it is one of these: opened by the passphrase where it is encrypted.
pub(super) fn read(text: &str, passphrase: Option<&str>) -> Option<PrivateKey> {
    let private = match passphrase {
        None => in_the_clear(text)?,
        Some(passphrase) => decrypted(text, passphrase)?,
    };
    keypair(&private)
}

/// What is private in a file that is not encrypted.
fn in_the_clear(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let body = text.trim().strip_prefix("-----BEGIN OPENSSH PRIVATE KEY-----")?;
    let body = body.strip_suffix("-----END OPENSSH PRIVATE KEY-----")?;
    let packed: Zeroizing<String> =
        Zeroizing::new(body.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    let whole = Zeroizing::new(BASE64.decode(packed.as_bytes()).ok()?);
    let mut rest = whole.strip_prefix(MAGIC)?;
    // Cipher, key derivation and its options.
    if string(&mut rest)? != b"none"
        || string(&mut rest)? != b"none"
        || !string(&mut rest)?.is_empty()
    {
        return None;
    }
    if number(&mut rest)? != 1 {
        return None;
    }
    string(&mut rest)?;
    Some(Zeroizing::new(string(&mut rest)?.to_vec()))
}

/// What is private in an encrypted one. Ciphers with a tag behind the text are left out: nobody gets them unasked.
fn decrypted(text: &str, passphrase: &str) -> Option<Zeroizing<Vec<u8>>> {
    let key = PrivateKey::from_openssh(text.as_bytes()).ok()?;
    // Before the passphrase is worked on, which takes its time.
    if key.algorithm() != (Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }) {
        return None;
    }
    let cipher = key.cipher();
    let mut private = Zeroizing::new(key.key_data().encrypted()?.to_vec());
    if cipher.has_tag() {
        return None;
    }
    let (secret, start) = key.kdf().derive_key_and_iv(cipher, passphrase).ok()?;
    cipher.decrypt(&secret, &start, &mut private, None).ok()?;
    Some(private)
}

fn keypair(private: &[u8]) -> Option<PrivateKey> {
    let mut rest = private;
    // The same number twice: the passphrase was the right one.
    if number(&mut rest)? != number(&mut rest)? {
        return None;
    }
    if string(&mut rest)? != ALGORITHM || string(&mut rest)? != CURVE {
        return None;
    }
    let public = EncodedPoint::from_bytes(string(&mut rest)?).ok()?;
    let scalar = string(&mut rest)?;
    // Longer ones are read as ever, and one that begins with a set bit is negative.
    if scalar.is_empty() || scalar.len() >= SCALAR || scalar.first().is_some_and(|b| b & 0x80 != 0)
    {
        return None;
    }
    let mut whole = Zeroizing::new([0; SCALAR]);
    whole.get_mut(SCALAR - scalar.len()..)?.copy_from_slice(scalar);
    let comment = String::from_utf8_lossy(string(&mut rest)?).into_owned();
    let private = EcdsaPrivateKey::from(*whole);
    PrivateKey::new(KeypairData::Ecdsa(EcdsaKeypair::NistP256 { public, private }), comment).ok()
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (bytes, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_be_bytes(*bytes))
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::decode_secret_key;

    /// The curve's base point: the public key of the private number 1.
    const BASE: &str = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
        4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

    fn put(to: &mut Vec<u8>, what: &[u8]) {
        to.extend(u32::try_from(what.len()).unwrap().to_be_bytes());
        to.extend(what);
    }

    fn file(scalar: &[u8]) -> String {
        let point: Vec<u8> = (0..BASE.len() / 2)
            .map(|at| u8::from_str_radix(&BASE[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let mut public = Vec::new();
        for part in [ALGORITHM, CURVE, &point] {
            put(&mut public, part);
        }
        let mut private = vec![1, 2, 3, 4, 1, 2, 3, 4];
        private.extend(&public);
        put(&mut private, scalar);
        put(&mut private, b"me");
        for byte in 1..=u8::try_from((8 - private.len() % 8) % 8).unwrap() {
            private.push(byte);
        }
        let mut whole = MAGIC.to_vec();
        for part in [&b"none"[..], b"none", b""] {
            put(&mut whole, part);
        }
        whole.extend([0, 0, 0, 1]);
        put(&mut whole, &public);
        put(&mut whole, &private);
        let lines: Vec<String> = BASE64
            .encode(whole)
            .as_bytes()
            .chunks(70)
            .map(|line| String::from_utf8(line.to_vec()).unwrap())
            .collect();
        format!(
            "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
            lines.join("\n")
        )
    }

    #[test]
    fn a_short_number_is_read_as_the_long_one_is() {
        let mut long = [0; SCALAR];
        long[SCALAR - 1] = 1;
        let usual = decode_secret_key(&file(&long), None).unwrap();
        // As long as this fails there this file is needed.
        assert!(decode_secret_key(&file(&[1]), None).is_err());
        let short = read(&file(&[1]), None).unwrap();
        assert_eq!(short.key_data(), usual.key_data());
        assert_eq!(short.comment(), usual.comment());
    }

    #[test]
    fn others_and_broken_ones_are_left_alone() {
        let good = file(&[1]);
        assert!(read(&file(&[0; SCALAR]), None).is_none());
        assert!(read(&file(&[0x80, 1]), None).is_none());
        assert!(read(&file(&[]), None).is_none());
        assert!(read("", None).is_none());
        assert!(read(&good, Some("a passphrase that nobody set")).is_none());
        for cut in 0..good.len() - 1 {
            // The end line cut off, or the middle of the text taken out.
            assert!(read(&good[..cut], None).is_none());
        }
        let body: Vec<&str> = good.lines().collect();
        for gone in 1..body.len() - 1 {
            let mut rest = body.clone();
            rest.remove(gone);
            assert!(read(&rest.join("\n"), None).is_none());
        }
    }
}
