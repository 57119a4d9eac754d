//! The simulated hosts as OpenSSH's client sees them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gpudeck::demo::ssh_server::{HostSetup, SimHost, new_key, write_key};

const DEADLINE: Duration = Duration::from_secs(20);

struct Lab {
    dir: tempfile::TempDir,
    host: SimHost,
    _runtime: tokio::runtime::Runtime,
}

impl Lab {
    /// None where there is no ssh and none is demanded.
    fn start() -> Option<Self> {
        if Command::new("ssh").arg("-V").output().is_err() {
            assert!(
                std::env::var("GPUDECK_LAB").as_deref() != Ok("1"),
                "GPUDECK_LAB=1 and ssh is not installed"
            );
            println!("skipped: needs ssh");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let key = new_key().unwrap();
        write_key(&key, &dir.path().join("id")).unwrap();
        let setup = HostSetup {
            name: "sim-1".to_owned(),
            home: dir.path().join("home"),
            env: BTreeMap::from([("GPUDECK_STATE_DIR".to_owned(), "/state dir".to_owned())]),
        };
        let host = runtime.block_on(SimHost::start(setup, key.public_key().clone())).unwrap();
        std::fs::write(dir.path().join("known_hosts"), host.known_hosts_line().unwrap()).unwrap();
        Some(Self { dir, host, _runtime: runtime })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ssh_with(&self, key: &str, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=/dev/null"])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.path("known_hosts").display()))
            .arg("-i")
            .arg(self.path(key))
            .args(["-p", &self.host.addr.port().to_string(), "anyone@127.0.0.1", command])
            .env_remove("SSH_AUTH_SOCK");
        ssh
    }

    fn ssh(&self, command: &str) -> Command {
        self.ssh_with("id", command)
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn alive(pid: &str) -> bool {
    // A zombie waits for its parent only; it runs nothing.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

#[test]
fn carries_output_errors_status_and_environment() {
    let Some(lab) = Lab::start() else { return };
    let out = lab
        .ssh("echo out; echo err >&2; pwd; echo \"$HOME|$GPUDECK_STATE_DIR|$USER\"; exit 7")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let home = lab.path("home").display().to_string();
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        format!("out\n{home}\n{home}|/state dir|demo\n")
    );
    assert_eq!(String::from_utf8_lossy(&out.stderr), "err\n");
    assert_eq!(out.status.code(), Some(7));
    assert_eq!(lab.ssh("kill -9 $$").output().unwrap().status.code(), Some(137));
}

#[test]
fn lets_nobody_else_in() {
    let Some(lab) = Lab::start() else { return };
    write_key(&new_key().unwrap(), &lab.path("stranger")).unwrap();
    let out = lab.ssh_with("stranger", "true").output().unwrap();
    assert_eq!(out.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&out.stderr).contains("Permission denied"));
    // And the client refuses a host whose key is another.
    let line = std::fs::read_to_string(lab.path("known_hosts")).unwrap();
    let address = line.split(' ').next().unwrap();
    let other = new_key().unwrap().public_key().to_openssh().unwrap();
    std::fs::write(lab.path("known_hosts"), format!("{address} {other}\n")).unwrap();
    assert_eq!(lab.ssh("true").output().unwrap().status.code(), Some(255));
}

#[test]
fn a_hundred_megabytes_go_through_cat_and_come_back() {
    let Some(lab) = Lab::start() else { return };
    let block: Vec<u8> =
        (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let mut child = lab.ssh("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = block.clone();
    let writer = std::thread::spawn(move || {
        for _ in 0..100 {
            stdin.write_all(&sent).unwrap();
        }
    });
    let mut stdout = child.stdout.take().unwrap();
    let mut piece = vec![0; block.len()];
    for i in 0..100 {
        stdout.read_exact(&mut piece).unwrap();
        assert!(piece == block, "block {i} differs");
    }
    writer.join().unwrap();
    assert_eq!(stdout.read(&mut piece).unwrap(), 0, "more came back than was sent");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_slow_reader_holds_the_process_back() {
    let Some(lab) = Lab::start() else { return };
    let count = lab.path("home").join("count");
    let command = "yes | dd bs=64k iflag=fullblock count=3200 2>/dev/null | { while head -c 1048576 >&3 2>/dev/null && echo >>count && [ $(wc -l <count) -lt 200 ]; do :; done; } 3>&1";
    let mut child = lab.ssh(command).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let written = || std::fs::read_to_string(&count).map_or(0, |text| text.lines().count());
    until("it writes", || written() > 0);
    // Nobody reads: it stands still long before its 200 MiB, held by windows and pipes.
    let mut last = (0, Instant::now());
    until("it stands still", || {
        if written() != last.0 {
            last = (written(), Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(700)
    });
    assert!(last.0 < 60, "{} MiB written with no reader", last.0);
    let mut stdout = child.stdout.take().unwrap();
    let mut total = 0;
    let mut piece = vec![0; 1 << 20];
    loop {
        match stdout.read(&mut piece).unwrap() {
            0 => break,
            n => total += n,
        }
    }
    assert_eq!(total, 200 << 20);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_file_is_sent_as_scp_would() {
    let Some(lab) = Lab::start() else { return };
    let bytes: Vec<u8> = (0..30_000_000u32).map(|i| (i >> 7).to_le_bytes()[0]).collect();
    let source = lab.path("source");
    std::fs::write(&source, &bytes).unwrap();
    let status = lab
        .ssh("cat > received.tmp && mv received.tmp received")
        .stdin(std::fs::File::open(&source).unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(std::fs::read(lab.path("home").join("received")).unwrap() == bytes);
}

#[test]
fn ends_the_process_with_its_channel_and_spares_daemons() {
    let Some(lab) = Lab::start() else { return };
    let home = lab.path("home");
    let pid =
        |name: &str| std::fs::read_to_string(home.join(name)).unwrap_or_default().trim().to_owned();
    let command = "setsid sh -c 'echo $$ >daemon; exec sleep 300' </dev/null >/dev/null 2>&1 & echo $$ >shell; sleep 301 & echo $! >child; wait";
    let mut child = lab.ssh(command).stdin(Stdio::piped()).spawn().unwrap();
    until("all run", || ["daemon", "shell", "child"].iter().all(|n| !pid(n).is_empty()));
    child.kill().unwrap();
    child.wait().unwrap();
    until("the foreground is gone", || !alive(&pid("shell")) && !alive(&pid("child")));
    let daemon = pid("daemon");
    assert!(alive(&daemon), "a daemon with its own session was killed");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(daemon.parse().unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn a_dropped_host_ends_its_connections() {
    let Some(lab) = Lab::start() else { return };
    let home = lab.path("home");
    let mut child = lab.ssh("echo $$ >pid; exec sleep 302").stdin(Stdio::piped()).spawn().unwrap();
    until("it runs", || std::fs::read_to_string(home.join("pid")).is_ok_and(|t| t.ends_with('\n')));
    let pid = std::fs::read_to_string(home.join("pid")).unwrap().trim().to_owned();
    let Lab { dir: _dir, host, _runtime } = lab;
    drop(host);
    until("the client sees the end", || child.try_wait().unwrap().is_some());
    until("the process is gone", || !alive(&pid));
}
