//! Hostile models on a host behind a real sshd: the same clear errors as for files of this machine, and the
//! controller and the agent that read them live on with no more memory than before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;
#[path = "hostile/models.rs"]
mod hostile;
mod ssh_support;

use std::time::Duration;

use common::{Gpudeck, Traces};
use ssh_support::{Sshd, lab};

const DEADLINE: Duration = Duration::from_secs(60);

/// Most memory that a process of ours ever had: the program itself, and 64 MiB for what it reads.
const MOST_KIB: u64 = (64 + 64) << 10;

#[test]
fn hostile_models_on_a_host_get_one_clear_error() {
    if !lab() {
        return;
    }
    let server = Sshd::start();
    let person = Gpudeck::new();
    let traces = Traces::of(&person);
    person.run(["init"], DEADLINE).expect_success();
    let deck = format!(
        "id = \"01930000-0000-7000-8000-000000000001\"\nname = \"hostile\"\n\n[hosts.box]\n\
         address = \"127.0.0.1\"\nport = {}\nuser = \"root\"\nidentity_files = [\"{}\"]\n\
         known_hosts = \"{}\"\nagent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
        server.port,
        server.user_key().display(),
        server.known_hosts("ed25519").display(),
        person.home().join("agent").display(),
    );
    std::fs::write(person.deck().join("deck.toml"), deck).unwrap();

    let dir = tempfile::tempdir().unwrap();
    for (name, expected) in hostile::write(dir.path()) {
        let path = format!("box:{}", dir.path().join(name).display());
        let refused = person.run(["model", "inspect", &path], DEADLINE);
        assert!(matches!(refused.code(), Some(1 | 8)), "{name}: {refused:#?}");
        assert!(refused.stderr.contains(expected), "{name}: {refused:#?}");
        assert!(refused.stderr.lines().count() <= 2, "one error and its hint: {refused:#?}");
        assert!(refused.stdout.is_empty(), "{name}: {refused:#?}");
    }
    let alive = traces.processes();
    let is_there = |word: &str| alive.iter().any(|(_, line)| line.contains(word));
    assert!(is_there("controller run") && is_there(" agent"), "{alive:?}");
    for (pid, line) in &alive {
        // One may end while it is looked at.
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let Some(peak) = status.lines().find_map(|l| l.strip_prefix("VmHWM:")) else { continue };
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        println!("{peak} KiB at most: {line}");
        assert!(peak <= MOST_KIB, "{peak} KiB: {line}");
    }
    person.run(["controller", "stop"], DEADLINE).expect_success();
}
