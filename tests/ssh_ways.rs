//! Ways to a host and ways to log in, against real OpenSSH servers: jumps, proxy commands,
//! certificates of users and hosts, algorithms, and servers that hang in the middle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "ssh_ways/certificates.rs"]
mod certificates;
#[path = "ssh_ways/configuration.rs"]
mod configuration;
#[path = "ssh_ways/hangs.rs"]
mod hangs;
#[path = "ssh_ways/jumps.rs"]
mod jumps;
#[path = "ssh_ways/questions.rs"]
mod questions;
mod ssh_support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gpudeck::ssh::{
    ConfigFiles, ConnectOptions, Connection, Endpoint, Place, Questions, RusshConnection, SshError,
    Target, Timeouts, connect, run,
};

use self::ssh_support::Sshd;

fn options(home: &Path, config: &str) -> ConnectOptions {
    let mut place = Place::here();
    home.clone_into(&mut place.home);
    ConnectOptions {
        config: ConfigFiles::Text(config.into()),
        place,
        agents: Arc::default(),
        key_ring: Arc::default(),
        jumps: Arc::default(),
        pace: Arc::default(),
        timeouts: Timeouts::default(),
    }
}

async fn to(
    name: &str,
    options: &ConnectOptions,
    questions: &dyn Questions,
) -> Result<RusshConnection, SshError> {
    let target = Target { name: name.to_owned(), ..Target::default() };
    let endpoint = Endpoint::resolve(&target, options)?;
    connect(&endpoint, options, questions, &|_| ()).await
}

async fn says(connection: &dyn Connection, command: &str) -> String {
    let out = run(connection, command, b"", 1 << 20, Duration::from_secs(30)).await.unwrap();
    assert!(out.status.success(), "{command}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// A `Host` block for a server.
fn block(name: &str, server: &Sshd, more: &str) -> String {
    format!(
        "Host {name}\n HostName 127.0.0.1\n Port {}\n User root\n IdentityFile {}\n \
         UserKnownHostsFile {}\n GlobalKnownHostsFile none\n{more}\n",
        server.port,
        server.user_key().display(),
        server.known_hosts("ed25519").display(),
    )
}

fn logins(server: &Sshd) -> usize {
    fs::read_to_string(server.path("log")).unwrap().matches("Accepted publickey").count()
}

fn add_to(server: &mut Sshd, lines: &str) {
    server.kill();
    let mut file = fs::File::options().append(true).open(server.path("sshd_config")).unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    server.up();
}
