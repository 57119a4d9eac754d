//! The lab of test hosts (`tests/lab/lab`) for a test: up when made, down when dropped.

// `&self` says that the lab is up while these are called.
#![allow(clippy::unused_self)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Finished, checkout, lab_is_wanted, run};

/// A lab that is up. One test has it at a time, over all test programs of the machine.
pub struct Lab {
    dir: PathBuf,
    _turn: File,
}

impl Lab {
    /// Makes `hosts` hosts; `options` as for `lab up` (`--haproxy 1`, `--dockerd 1,2`). Without
    /// `GPUDECK_LAB=1` it says that the test is skipped and gives nothing.
    pub fn up(hosts: u32, options: &[&str]) -> Option<Self> {
        if !lab_is_wanted() {
            println!("skipped: needs root and GPUDECK_LAB=1 (tests/run sets it)");
            return None;
        }
        // Waits for the other tests that use the lab; freed by the kernel however this process ends.
        let place = if Path::new("/run/lock").is_dir() { "/run/lock" } else { "/tmp" };
        let turn = File::open(place).unwrap();
        turn.lock().unwrap();
        // What an earlier test left behind when it was killed.
        script(&["down"]).expect_success();
        let mut lab = Self { dir: PathBuf::new(), _turn: turn };
        let count = hosts.to_string();
        let mut arguments = vec!["up", &count];
        arguments.extend(options);
        script(&arguments).expect_success();
        let env = lab.lab(&["env"]);
        lab.dir = env
            .lines()
            .find_map(|line| line.strip_prefix("export LAB_DIR='")?.strip_suffix('\''))
            .expect("`lab env` names its folder")
            .into();
        Some(lab)
    }

    /// A command of the lab (`["link", "h2", "down"]`); panics if it fails, else gives its output.
    #[track_caller]
    pub fn lab(&self, arguments: &[&str]) -> String {
        script(arguments).expect_success().stdout
    }

    /// Runs a shell command on a host over SSH, as an operator would.
    pub fn ssh(&self, host: &str, command: &str) -> Finished {
        run(
            Command::new("ssh").arg("-F").arg(self.dir.join("ssh_config")).args([
                "-o",
                "ConnectTimeout=3",
                host,
                command,
            ]),
            Duration::from_mins(1),
        )
    }

    /// The address of host `h<number>`.
    pub fn address(&self, number: u32) -> String {
        format!("10.77.{}.{}", (10 + number) / 256, (10 + number) % 256)
    }

    /// Where clients reach HAProxy on host `h<number>`.
    pub fn gateway(&self, number: u32) -> String {
        format!("http://{}:8080", self.address(number))
    }

    /// The lab's folder: `id_ed25519`, `known_hosts`, `ssh_config`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where `/root`, `/home`, `/srv`, `/mnt`, `/var/tmp`, `/var/lib/gpudeck` of a host lie on this machine.
    pub fn disk(&self, host: &str, path: &str) -> PathBuf {
        self.dir.join(host).join("disk").join(path.trim_start_matches('/'))
    }

    /// Writes a deck of these hosts (`h1` …, gateway `main`) into `dir`, a new Git repository.
    #[track_caller]
    pub fn deck(&self, dir: &Path) {
        self.lab(&["deck", dir.to_str().unwrap()]);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let done = script(&["down"]);
        if !std::thread::panicking() {
            done.expect_success();
        }
    }
}

fn script(arguments: &[&str]) -> Finished {
    run(
        Command::new(checkout().join("tests/lab/lab")).args(arguments),
        // The first `up` may have to install packages.
        Duration::from_mins(10),
    )
}

/// The path of a llama-server, built at the first call on a machine (minutes), cached afterwards.
pub fn llama_server() -> PathBuf {
    let done =
        run(&mut Command::new(checkout().join("tests/engines/llama-cpp")), Duration::from_mins(25))
            .expect_success();
    done.stdout.trim().into()
}

/// Writes a tiny model; `percent` below 100 cuts it off, as an interrupted copy.
pub fn write_gguf(path: &Path, seed: u32, percent: u32) {
    let mut command = Command::new(checkout().join("tests/engines/make-gguf.py"));
    command.arg(path).args(["--seed", &seed.to_string()]);
    if percent < 100 {
        command.args(["--truncate", &format!("{percent}%")]);
    }
    run(&mut command, Duration::from_mins(1)).expect_success();
}

/// Makes a tar for `lab image` with these programs in `/usr/local/bin`.
pub fn write_image(tar: &Path, programs: &[&Path]) {
    let mut command = Command::new(checkout().join("tests/engines/image"));
    run(command.arg(tar).args(programs), Duration::from_mins(2)).expect_success();
}
