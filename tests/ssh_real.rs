//! The ssh floor against a real OpenSSH server, and the conformance suite of both connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "ssh_real/conformance.rs"]
mod conformance;
#[path = "ssh_real/host_keys.rs"]
mod host_keys;
mod ssh_support;
#[path = "ssh_real/user_keys.rs"]
mod user_keys;
#[path = "ssh_real/ways.rs"]
mod ways;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use gpudeck::ssh::{
    ConfigFiles, ConnectOptions, Connection, Endpoint, Place, Questions, RusshConnection, SshError,
    Target, Timeouts, connect, run,
};
use secrecy::SecretString;
use ssh_support::Sshd;

/// A person who has made up their mind.
#[derive(Default)]
struct Person {
    trusts: Option<bool>,
    secrets: Mutex<VecDeque<&'static str>>,
    asked: Mutex<Vec<String>>,
}

impl Person {
    fn trusting() -> Self {
        Self { trusts: Some(true), ..Self::default() }
    }

    fn knowing(secrets: &[&'static str]) -> Self {
        Self { secrets: Mutex::new(secrets.iter().copied().collect()), ..Self::trusting() }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl Questions for Person {
    async fn host_key(&self, host: &str, key_type: &str, fingerprint: &str) -> Option<bool> {
        self.asked.lock().unwrap().push(format!("{host} {key_type} {fingerprint}"));
        self.trusts
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        self.asked.lock().unwrap().push(prompt.to_owned());
        self.secrets.lock().unwrap().pop_front().map(SecretString::from)
    }
}

fn options(home: &Path) -> ConnectOptions {
    let mut place = Place::here();
    home.clone_into(&mut place.home);
    ConnectOptions {
        config: ConfigFiles::Text("".into()),
        place,
        agents: Arc::default(),
        key_ring: Arc::default(),
        jumps: Arc::default(),
        pace: Arc::default(),
        timeouts: Timeouts::default(),
    }
}

fn target(server: &Sshd, known_hosts: &Path) -> Target {
    Target {
        name: "box".to_owned(),
        address: Some("127.0.0.1".to_owned()),
        port: Some(server.port),
        user: Some("root".to_owned()),
        identity_files: vec![server.user_key().display().to_string()],
        known_hosts: Some(known_hosts.display().to_string()),
    }
}

async fn try_connect(
    target: &Target,
    options: &ConnectOptions,
    questions: &dyn Questions,
) -> Result<RusshConnection, SshError> {
    let endpoint = Endpoint::resolve(target, options)?;
    connect(&endpoint, options, questions, &|_| ()).await
}

async fn says(connection: &dyn Connection, command: &str) -> String {
    let out = run(connection, command, b"", 1 << 20, Duration::from_secs(20)).await.unwrap();
    assert!(out.status.success(), "{command}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}
