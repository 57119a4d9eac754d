//! Security keys (FIDO, such as a `YubiKey`) that an agent holds, at the level of the protocol: a scripted agent signs
//! as an authenticator does, and a real sshd checks it. And an agent that also holds a key of a kind
//! that nobody here knows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod ssh_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gpudeck::ssh::{
    Agents, ConfigFiles, ConnectOptions, Endpoint, NoQuestions, Place, Target, Timeouts, connect,
    run,
};
use ring::digest::{SHA256, digest};
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use ssh_support::{Sshd, lab};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const APPLICATION: &[u8] = b"ssh:";

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn mpint(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    let bytes = &bytes[start..];
    let sign: &[u8] = if bytes.first().is_some_and(|b| *b >= 0x80) { &[0] } else { &[] };
    string(&[sign, bytes].concat())
}

/// An authenticator with one key.
enum Authenticator {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
}

impl Authenticator {
    fn kind(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "sk-ssh-ed25519@openssh.com",
            Self::Ecdsa(_) => "sk-ecdsa-sha2-nistp256@openssh.com",
        }
    }

    /// OpenSSH's `PROTOCOL.u2f`: public keys.
    fn public(&self) -> Vec<u8> {
        let key = match self {
            Self::Ed25519(pair) => string(pair.public_key().as_ref()),
            Self::Ecdsa(pair) => [string(b"nistp256"), string(pair.public_key().as_ref())].concat(),
        };
        [string(self.kind().as_bytes()), key, string(APPLICATION)].concat()
    }

    /// The same: signatures. Somebody touched it.
    fn sign(&self, data: &[u8]) -> Vec<u8> {
        let (flags, counter) = (1_u8, 7_u32.to_be_bytes());
        let hash = |bytes: &[u8]| digest(&SHA256, bytes).as_ref().to_vec();
        let signed = [&hash(APPLICATION)[..], &[flags], &counter, &hash(data)].concat();
        let raw = match self {
            Self::Ed25519(pair) => pair.sign(&signed).as_ref().to_vec(),
            Self::Ecdsa(pair) => {
                let random = ring::rand::SystemRandom::new();
                let both = pair.sign(&random, &signed).unwrap();
                let (r, s) = both.as_ref().split_at(32);
                [mpint(r), mpint(s)].concat()
            }
        };
        [&string(self.kind().as_bytes())[..], &string(&raw), &[flags], &counter].concat()
    }
}

/// An agent that holds a key of an unknown kind and the authenticator's.
fn agent(socket: PathBuf, authenticator: Authenticator) -> Arc<AtomicUsize> {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let touched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&touched);
    let authenticator = Arc::new(authenticator);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (authenticator, count) = (Arc::clone(&authenticator), Arc::clone(&count));
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u32().await {
                    let mut message = vec![0; usize::try_from(length).unwrap()];
                    stream.read_exact(&mut message).await.unwrap();
                    let answer = match message[0] {
                        11 => {
                            let unknown = [string(b"ssh-tomorrow"), string(b"x")].concat();
                            [
                                vec![12, 0, 0, 0, 2],
                                string(&unknown),
                                string(b"from tomorrow"),
                                string(&authenticator.public()),
                                string(b"yubikey"),
                            ]
                            .concat()
                        }
                        13 => {
                            let key_end = 5 + u32_at(&message, 1);
                            assert_eq!(message[5..key_end], authenticator.public());
                            let data_end = key_end + 4 + u32_at(&message, key_end);
                            count.fetch_add(1, Ordering::SeqCst);
                            let signature = authenticator.sign(&message[key_end + 4..data_end]);
                            [vec![14], string(&signature)].concat()
                        }
                        other => panic!("asked {other}"),
                    };
                    stream.write_all(&string(&answer)).await.unwrap();
                }
            });
        }
    });
    touched
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()).try_into().unwrap()
}

fn options(home: &Path, socket: PathBuf) -> ConnectOptions {
    let mut place = Place::here();
    home.clone_into(&mut place.home);
    ConnectOptions {
        config: ConfigFiles::Text("".into()),
        place,
        agents: Arc::new(Agents::new(Some(socket))),
        key_ring: Arc::default(),
        jumps: Arc::default(),
        pace: Arc::default(),
        timeouts: Timeouts::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_security_key_in_the_agent_lets_us_in() {
    if !lab() {
        return;
    }
    let random = ring::rand::SystemRandom::new();
    let curve = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
    let ecdsa = EcdsaKeyPair::from_pkcs8(curve, pkcs8.as_ref(), &random).unwrap();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let ed25519 = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    for authenticator in [Authenticator::Ed25519(ed25519), Authenticator::Ecdsa(ecdsa)] {
        let kind = authenticator.kind();
        let server = Sshd::start();
        let line = format!("{kind} {} yubikey\n", STANDARD.encode(authenticator.public()));
        fs::write(server.path("authorized_keys"), line).unwrap();
        let socket = server.path("agent");
        let touched = agent(socket.clone(), authenticator);
        let target = Target {
            name: "box".to_owned(),
            address: Some("127.0.0.1".to_owned()),
            port: Some(server.port),
            user: Some("root".to_owned()),
            known_hosts: Some(server.known_hosts("ed25519").display().to_string()),
            ..Target::default()
        };
        let options = options(server.dir.path(), socket);
        let endpoint = Endpoint::resolve(&target, &options).unwrap();
        let connection = connect(&endpoint, &options, &NoQuestions, &|_| ()).await;
        let connection = connection.unwrap_or_else(|error| panic!("{kind}: {error}"));
        let out = run(&connection, "id -un", b"", 1 << 20, Duration::from_secs(30)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "root\n", "{kind}");
        assert_eq!(touched.load(Ordering::SeqCst), 1, "{kind}");
    }
}
