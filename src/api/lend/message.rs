//! What of the SSH agent's protocol (draft-ietf-sshm-ssh-agent) goes between a door's agent and the
//! controller: the list of identities, and signatures for logins. Both ends check: a controller gets
//! nothing else signed, a door gets nothing else believed.
//!
//! Messages are here without the length that stands before them on a socket.

/// Longest message, as in OpenSSH's `AGENT_MAX_LEN`.
pub const MAX_MESSAGE_BYTES: usize = 256 << 10;

/// More identities are not believed, as in OpenSSH's `MAX_AGENT_IDENTITIES`.
const MAX_IDENTITIES: u32 = 2048;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// `SSH_MSG_USERAUTH_REQUEST` of RFC 4252.
const USERAUTH_REQUEST: u8 = 50;

/// An agent's answer when it does not do what it is asked.
pub const REFUSED: [u8; 1] = [FAILURE];

/// What an agent is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Which keys it holds.
    Identities,
    /// To sign a login.
    Signature,
}

/// The request for the list of keys.
pub const LIST: [u8; 1] = [REQUEST_IDENTITIES];

/// What is read of a message; what is not there ends it.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*head))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// What a request asks for; none: it is nothing that is lent.
pub fn asked(message: &[u8]) -> Option<Asked> {
    if message.len() > MAX_MESSAGE_BYTES {
        return None;
    }
    let mut reader = Reader(message);
    match reader.byte()? {
        REQUEST_IDENTITIES => reader.end().map(|()| Asked::Identities),
        SIGN_REQUEST => {
            let (key, data, _flags) = (reader.string()?, reader.string()?, reader.number()?);
            reader.end()?;
            login(key, data).map(|()| Asked::Signature)
        }
        _ => None,
    }
}

/// Whether `data` is what is signed for a login with `key` (RFC 4252, section 7), and nothing else: no
/// commit, no file. The check is the one that OpenSSH's agent makes before a FIDO key signs
/// (`parse_userauth_request` in its `ssh-agent.c`).
fn login(key: &[u8], data: &[u8]) -> Option<()> {
    let mut reader = Reader(data);
    let session = reader.string()?;
    if !(16..=64).contains(&session.len()) || reader.byte()? != USERAUTH_REQUEST {
        return None;
    }
    let _user = reader.string()?;
    if reader.string()? != b"ssh-connection" || reader.string()? != b"publickey" {
        return None;
    }
    if reader.byte()? != 1 {
        return None;
    }
    let (algorithm, offered) = (reader.string()?, reader.string()?);
    reader.end()?;
    // For a certificate the agent may be asked by its plain key.
    (offered == key || algorithm.ends_with(b"-cert-v01@openssh.com")).then_some(())
}

/// Whether an agent's answer to `asked` is one: its own kind, or a refusal, and whole.
pub fn is_answer(asked: Asked, message: &[u8]) -> bool {
    let right = || {
        let mut reader = Reader(message);
        match (reader.byte()?, asked) {
            (FAILURE, _) => reader.end(),
            (IDENTITIES_ANSWER, Asked::Identities) => {
                let count = reader.number()?;
                for _ in 0..Some(count).filter(|n| *n <= MAX_IDENTITIES)? {
                    let (_key, comment) = (reader.string()?, reader.string()?);
                    std::str::from_utf8(comment).ok()?;
                }
                reader.end()
            }
            (SIGN_RESPONSE, Asked::Signature) => {
                let mut signature = Reader(reader.string()?);
                let (_algorithm, _bytes) = (signature.string()?, signature.string()?);
                reader.end()
            }
            _ => None,
        }
    };
    message.len() <= MAX_MESSAGE_BYTES && right().is_some()
}

/// The public keys in a list that [`is_answer`] has found to be one.
pub fn keys(list: &[u8]) -> Vec<Vec<u8>> {
    let mut reader = Reader(list);
    if reader.byte() != Some(IDENTITIES_ANSWER) || reader.number().is_none() {
        return Vec::new();
    }
    std::iter::from_fn(|| {
        let key = reader.string()?.to_vec();
        reader.string()?;
        Some(key)
    })
    .take(2048)
    .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        out.extend(bytes);
    }

    fn sign(key: &[u8], data: &[u8]) -> Vec<u8> {
        let mut message = vec![SIGN_REQUEST];
        string(&mut message, key);
        string(&mut message, data);
        message.extend([0; 4]);
        message
    }

    fn login_data(key: &[u8], algorithm: &str, service: &str) -> Vec<u8> {
        let mut data = Vec::new();
        string(&mut data, &[7; 32]);
        data.push(USERAUTH_REQUEST);
        string(&mut data, b"root");
        string(&mut data, service.as_bytes());
        string(&mut data, b"publickey");
        data.push(1);
        string(&mut data, algorithm.as_bytes());
        string(&mut data, key);
        data
    }

    #[test]
    fn logins_are_signed_and_nothing_else() {
        let data = login_data(b"key", "ssh-ed25519", "ssh-connection");
        assert_eq!(asked(&LIST), Some(Asked::Identities));
        assert_eq!(asked(&sign(b"key", &data)), Some(Asked::Signature));
        assert_eq!(asked(&sign(b"other", &data)), None, "not the key that is offered");
        let with_more = [&data[..], b"x"].concat();
        assert_eq!(asked(&sign(b"key", &with_more)), None);
        let certificate = login_data(b"cert", "ssh-ed25519-cert-v01@openssh.com", "ssh-connection");
        assert_eq!(asked(&sign(b"key", &certificate)), Some(Asked::Signature));
        let other = login_data(b"key", "ssh-ed25519", "ssh-other");
        assert_eq!(asked(&sign(b"key", &other)), None);
        assert_eq!(asked(&sign(b"key", b"SSHSIG\0\0\0\x03git")), None);
        // Adding, removing, locking, extensions.
        for kind in (0..=255).filter(|k| ![REQUEST_IDENTITIES, SIGN_REQUEST].contains(k)) {
            assert_eq!(asked(&[kind]), None, "{kind}");
        }
        assert_eq!(asked(&[REQUEST_IDENTITIES, 0]), None);
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&sign(b"key", &vec![0; MAX_MESSAGE_BYTES])), None);
    }

    #[test]
    fn answers_are_whole_and_of_their_kind() {
        let mut list = vec![IDENTITIES_ANSWER, 0, 0, 0, 1];
        string(&mut list, b"key");
        string(&mut list, b"comment");
        assert!(is_answer(Asked::Identities, &list));
        assert_eq!(keys(&list), [b"key".to_vec()]);
        assert!(!is_answer(Asked::Signature, &list));
        assert!(!is_answer(Asked::Identities, list.get(..list.len() - 1).unwrap()));
        let mut signed = vec![SIGN_RESPONSE];
        let mut inner = Vec::new();
        string(&mut inner, b"ssh-ed25519");
        string(&mut inner, &[1; 64]);
        string(&mut signed, &inner);
        assert!(is_answer(Asked::Signature, &signed));
        assert!(is_answer(Asked::Signature, &REFUSED));
        let many = [IDENTITIES_ANSWER, 0xff, 0xff, 0xff, 0xff];
        assert!(!is_answer(Asked::Identities, &many));
        assert!(!is_answer(Asked::Identities, &[]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 10_u8..16) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let _ = asked(&bytes);
            for what in [Asked::Identities, Asked::Signature] {
                if is_answer(what, &bytes) {
                    let _ = keys(&bytes);
                }
            }
        }
    }
}
