//! The agent on real hosts that are awkward: a home that two hosts share, several users of one host, an sshd that
//! forbids forwarding, two operators who come at the same moment, no room and no right to run programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::lab::{Lab, llama_server, write_gguf, write_image};
use common::operator::Operator;
use common::{Gpudeck, has_program, run, wait_for, wait_until};
use serde_json::Value;

const LONG: Duration = Duration::from_mins(2);

/// An operator, whose controller ends with the test, however it ends: another lab has the same addresses.
struct Person(Gpudeck);

impl Deref for Person {
    type Target = Gpudeck;

    fn deref(&self) -> &Gpudeck {
        &self.0
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let done = self.0.run(["controller", "stop"], LONG);
        if !std::thread::panicking() {
            done.expect_success();
        }
    }
}

/// An operator with a deck of these hosts: each a name, the address's number and more keys.
fn person(lab: &Lab, hosts: &[(&str, u32, &str)]) -> Person {
    let person = Person(Gpudeck::new());
    lab.deck(&person.deck());
    let path = person.deck().join("deck.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let id = text.lines().find(|line| line.starts_with("id = ")).unwrap();
    let mut deck = format!("{id}\nname = \"lab\"\n");
    let (key, known) = (lab.dir().join("id_ed25519"), lab.dir().join("known_hosts"));
    let (key, known) = (key.display(), known.display());
    for (name, number, more) in hosts {
        deck.push_str(&format!(
            "\n[hosts.{name}]\naddress = \"{}\"\nidentity_files = [\"{key}\"]\nknown_hosts = \"{known}\"\n{more}\n",
            lab.address(*number)
        ));
    }
    std::fs::write(path, deck).unwrap();
    person
}

fn snapshot(person: &Gpudeck) -> Option<Value> {
    let said = person.run(["snapshot", "--output", "json"], LONG);
    serde_json::from_str(&said.stdout).ok()
}

/// The hosts once all of them are in this state of the link.
fn settled(person: &Gpudeck, link: &str) -> Value {
    let mut last = None;
    let seen = wait_for("the hosts", LONG, || {
        last = snapshot(person);
        let hosts = last.as_ref()?.as_object()?;
        let all = hosts.values().all(|h| h["link"]["state"] == link && h["sample"].is_object());
        all.then(|| last.clone())
    });
    seen.unwrap()
}

fn state_dir(hosts: &Value, name: &str) -> String {
    hosts[name]["facts"]["state_dir"].as_str().unwrap().to_owned()
}

fn said(lab: &Lab, host: &str, command: &str) -> String {
    lab.ssh(host, command).expect_success().stdout.trim().to_owned()
}

/// One host's disk folder mounted over another's, as seen from the machine.
struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn hosts_that_share_a_home_keep_their_state_apart() {
    let Some(lab) = Lab::up(2, &[]) else { return };
    // A bind mount stands for the NFS server: both hosts have one /root, with their own machine ids.
    lab.lab(&["kill", "h2"]);
    let bound = Bound(lab.disk("h2", "/root"));
    let mut mount = Command::new("mount");
    mount.arg("--bind").arg(lab.disk("h1", "/root")).arg(&bound.0);
    run(&mut mount, LONG).expect_success();
    lab.lab(&["start", "h2"]);
    // The host has its own mount of it now.
    drop(bound);
    said(&lab, "h1", "echo both >/root/shared");
    assert_eq!(said(&lab, "h2", "cat /root/shared"), "both", "the home is not shared");

    // By itself nothing of the agent is in the home; whoever wants it there has a directory for each host.
    for (more, base) in [
        ("", "/var/lib/gpudeck"),
        ("agent_env = { GPUDECK_STATE_DIR = \"/root/.gpudeck\" }", "/root/.gpudeck"),
    ] {
        let person = person(&lab, &[("h1", 1, more), ("h2", 2, more)]);
        let hosts = settled(&person, "up");
        for host in ["h1", "h2"] {
            let machine = said(&lab, host, "cat /etc/machine-id");
            assert_eq!(state_dir(&hosts, host), format!("{base}/{machine}"));
            let runs =
                said(&lab, host, "ls -l /proc/[0-9]*/exe 2>/dev/null | grep -c /bin/gpudeck-");
            assert_ne!(runs, "0", "no agent runs on {host}");
        }
        let home = said(&lab, "h1", "ls -A /root");
        assert_eq!(home.contains(".gpudeck"), base.starts_with("/root"), "{home}");
    }
    assert_eq!(said(&lab, "h1", "ls /root/.gpudeck | wc -l"), "2");
}

/// Three people who can log in on the first host.
fn users(lab: &Lab) {
    for (user, uid) in [("alice", 2001), ("bob", 2002), ("carol", 2003)] {
        said(
            lab,
            "h1",
            &format!(
                "/usr/sbin/useradd -m -u {uid} -s /bin/sh {user} && /usr/sbin/usermod -p '*' {user} && \
                 mkdir -m 700 /home/{user}/.ssh && cp /root/.ssh/authorized_keys /home/{user}/.ssh/ && \
                 chown -R {user} /home/{user}/.ssh"
            ),
        );
    }
}

#[test]
fn users_of_one_host_have_an_agent_each_and_nobody_takes_anothers_place() {
    let Some(lab) = Lab::up(1, &[]) else { return };
    users(&lab);
    // Bob has made what would be Carol's.
    said(&lab, "h1", "mkdir /var/tmp/gpudeck-2003 && chown bob /var/tmp/gpudeck-2003");
    let well = person(
        &lab,
        &[
            ("root", 1, "user = \"root\""),
            ("alice", 1, "user = \"alice\""),
            ("bob", 1, "user = \"bob\""),
        ],
    );
    let hosts = settled(&well, "up");
    let machine = said(&lab, "h1", "cat /etc/machine-id");
    assert_eq!(state_dir(&hosts, "root"), format!("/var/lib/gpudeck/{machine}"));
    for (user, uid) in [("alice", 2001), ("bob", 2002)] {
        let dir = state_dir(&hosts, user);
        assert_eq!(dir, format!("/var/tmp/gpudeck-{uid}/{machine}"));
        assert_eq!(hosts[user]["facts"]["user"], user);
        assert_eq!(said(&lab, "h1", &format!("stat -c '%U %a' {dir}")), format!("{user} 700"));
    }
    let runs = said(&lab, "h1", "stat -c %U $(ls -d /proc/[0-9]*) 2>/dev/null | sort -u");
    assert!(runs.contains("alice") && runs.contains("bob"), "{runs}");
    let alices = state_dir(&hosts, "alice");
    let peeked = lab.ssh("h1", &format!("su bob -c 'ls {alices}'"));
    assert_ne!(peeked.code(), Some(0), "bob reads alice's state");

    let carols = person(&lab, &[("carol", 1, "user = \"carol\"")]);
    let hosts = settled(&carols, "limited");
    let why = hosts["carol"]["link"]["why"].as_str().unwrap();
    assert!(why.contains("belongs to somebody else"), "{why}");
}

const AS_LOGGED_IN: &str = r#"
model    = "simulated"
device   = "cpu"
memory   = "64MiB"
replicas = 1

[engine.command]
run = ["/usr/local/bin/engine", "sim-engine", "--address", "{address}", "--port", "{port}", "--load-time", "100ms"]

[rollout]
stop_grace = "5s"
"#;

#[test]
fn operators_who_become_root_see_each_other_and_engines_run_as_who_logged_in() {
    let Some(lab) = Lab::up(1, &[]) else { return };
    users(&lab);
    said(&lab, "h1", "/usr/sbin/groupadd -g 2100 gpus && /usr/sbin/usermod -aG gpus alice");
    for user in ["alice", "bob"] {
        let rule = format!("{user} ALL=(root) NOPASSWD: ALL");
        said(
            &lab,
            "h1",
            &format!("mkdir -p /etc/sudoers.d && echo '{rule}' >/etc/sudoers.d/{user}"),
        );
    }
    lab.lab(&["put", "h1", env!("CARGO_BIN_EXE_gpudeck"), "/usr/local/bin/engine"]);
    said(&lab, "h1", "chmod 755 /usr/local/bin/engine");
    let becoming = |user: &str| {
        let person = person(&lab, &[("h1", 1, &format!("user = \"{user}\"\nbecome = \"sudo\""))]);
        std::fs::write(person.deck().join("services/chat.toml"), AS_LOGGED_IN).unwrap();
        person
    };

    let alice = becoming("alice");
    let hosts = settled(&alice, "up");
    let machine = said(&lab, "h1", "cat /etc/machine-id");
    assert_eq!(state_dir(&hosts, "h1"), format!("/var/lib/gpudeck/{machine}"));
    assert_eq!(hosts["h1"]["facts"]["user"], "root");
    alice.run(["apply", "chat", "--wait", "--yes", "--timeout", "1m"], LONG).expect_success();
    let engine = "pid=$(pgrep -f '^/usr/local/bin/engine') && grep -E '^(Uid|Gid|Groups|CapEff):' /proc/$pid/status && \
                  tr '\\0' '\\n' </proc/$pid/environ | grep -E '^(HOME|USER|SUDO_UID)='";
    let runs = said(&lab, "h1", engine);
    let words: Vec<&str> = runs.split_whitespace().collect();
    let gid = said(&lab, "h1", "id -g alice");
    let expected = format!(
        "Uid: 2001 2001 2001 2001 Gid: {gid} {gid} {gid} {gid} Groups: {gid} 2100 CapEff: 0000000000000000 \
         HOME=/home/alice USER=alice"
    );
    let mut sorted = words.clone();
    sorted.sort_unstable();
    let mut wanted: Vec<&str> = expected.split(' ').collect();
    wanted.sort_unstable();
    assert_eq!(sorted, wanted, "{runs}");

    // Another login of the same host, the same deck: whose it is is seen, and respected.
    let bob = becoming("bob");
    let text = std::fs::read_to_string(alice.deck().join("deck.toml")).unwrap();
    let text = text.replace("user = \"alice\"", "user = \"bob\"");
    std::fs::write(bob.deck().join("deck.toml"), text).unwrap();
    settled(&bob, "up");
    wait_until("who holds it", LONG, || bob.run(["hosts"], LONG).stdout.contains("held by"));
    let refused = bob.run(["stop", "chat", "--yes"], LONG);
    assert_eq!(refused.code(), Some(9), "{refused:#?}");
    alice.run(["stop", "chat", "--yes"], LONG).expect_success();
    let left = lab.ssh("h1", "pgrep -f '^/usr/local/bin/engine'");
    assert_ne!(left.code(), Some(0), "the engine is left: {left:#?}");

    // Who may not is told so, and the host is seen all the same.
    let carol = becoming("carol");
    let hosts = settled(&carol, "limited");
    let link = &hosts["h1"]["link"];
    assert!(link["why"].as_str().unwrap().contains("cannot become root"), "{link}");
    assert!(link["hint"].as_str().unwrap().contains("NOPASSWD"), "{link}");
}

#[test]
fn operators_who_log_in_as_different_users_see_each_other() {
    let Some(lab) = Lab::up(1, &[]) else { return };
    users(&lab);
    lab.lab(&["put", "h1", env!("CARGO_BIN_EXE_gpudeck"), "/usr/local/bin/engine"]);
    said(&lab, "h1", "chmod 755 /usr/local/bin/engine");
    let operator = |user: &str| {
        let person = person(&lab, &[("h1", 1, &format!("user = \"{user}\""))]);
        std::fs::write(person.deck().join("services/chat.toml"), AS_LOGGED_IN).unwrap();
        person
    };
    let alice = operator("alice");
    settled(&alice, "up");
    alice.run(["apply", "chat", "--wait", "--yes", "--timeout", "1m"], LONG).expect_success();

    let bob = operator("bob");
    let text = std::fs::read_to_string(alice.deck().join("deck.toml")).unwrap();
    let text = text.replace("user = \"alice\"", "user = \"bob\"");
    std::fs::write(bob.deck().join("deck.toml"), text).unwrap();
    settled(&bob, "up");
    wait_until("who holds it", LONG, || {
        bob.run(["hosts"], LONG).stdout.contains("there as user alice")
    });
    let refused = bob.run(["apply", "chat", "--yes"], LONG);
    assert_eq!(refused.code(), Some(9), "{refused:#?}");
    // Her lease ends with her controller, but her engines go on, and only she can stop them.
    alice.run(["controller", "stop"], LONG).expect_success();
    let end = "f=$(ls /var/tmp/gpudeck-claims-2001/*/*.json) && \
               test $(sed 's/.*\"until\":\\([0-9]*\\).*/\\1/' $f) -lt $(date +%s000)";
    wait_until("the end of her lease", LONG, || lab.ssh("h1", end).code() == Some(0));
    let refused = bob.run(["controller", "take-over"], LONG);
    assert_ne!(refused.code(), Some(0), "{refused:#?}");
    assert!(refused.stderr.contains("there as user alice"), "{refused:#?}");

    // When they have ended the host can be taken, and she is told.
    alice.run(["stop", "chat", "--yes"], LONG).expect_success();
    wait_until("the end of her engine", LONG, || {
        lab.ssh("h1", "pgrep -f '^/usr/local/bin/engine'").code() != Some(0)
    });
    alice.run(["controller", "stop"], LONG).expect_success();
    wait_until("the end of her lease", LONG, || lab.ssh("h1", end).code() == Some(0));
    bob.run(["controller", "take-over"], LONG).expect_success();
    bob.run(["apply", "chat", "--wait", "--yes", "--timeout", "1m"], LONG).expect_success();
    wait_until("who holds it", LONG, || {
        alice.run(["hosts"], LONG).stdout.contains("there as user bob")
    });
    let refused = alice.run(["apply", "chat", "--yes"], LONG);
    assert_eq!(refused.code(), Some(9), "{refused:#?}");
    bob.run(["stop", "chat", "--yes"], LONG).expect_success();
}

#[test]
fn everything_works_where_sshd_forbids_forwarding() {
    let Some(lab) = Lab::up(2, &["--haproxy", "1", "--dockerd", "2"]) else { return };
    let image = "gpudeck-test/llama:1";
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("llama.tar");
    write_image(&tar, &[&llama_server()]);
    lab.lab(&["image", "h2", image, tar.to_str().unwrap()]);
    write_gguf(&lab.disk("h2", "/srv/tiny.gguf"), 1, 100);
    for host in ["h1", "h2"] {
        let forbid = "echo 'DisableForwarding yes' >>/etc/ssh/sshd_config";
        lab.lab(&["exec", host, "--", "/bin/sh", "-c", forbid]);
        lab.lab(&["sshd", host, "stop"]);
        lab.lab(&["sshd", host, "start"]);
        let config = lab.dir().join("ssh_config");
        let mut through = Command::new("ssh");
        through.arg("-F").arg(config).args(["-W", "127.0.0.1:22", host]);
        let refused = run(&mut through, LONG);
        assert_ne!(refused.code(), Some(0), "{host} still forwards");
    }
    let operator = Operator::of_new_hosts(lab, |_, _| ());
    // The container engine's and the gateway's socket are both reached through the agent.
    operator.write_spec(&format!(
        r#"
model    = "/srv/tiny.gguf"
engine   = "llamacpp"
program  = "/usr/local/bin/llama-server"
runtime  = {{ docker = {{ image = "{image}" }} }}
replicas = 1
context  = 2048
device   = "cpu"
memory   = "256MiB"
args     = ["-n", "64", "-t", "1"]

[placement]
hosts = ["h2"]

[rollout]
healthy_deadline  = "60s"
progress_deadline = "120s"
stop_grace        = "5s"
"#
    ));
    operator.expect(&["apply", "chat", "--wait", "--timeout", "2m", "--yes"], 0);
    let traffic = operator.load(4.0);
    traffic.expect_none_failed("through the gateway", 10);
    drop(traffic);
    let log = operator.expect(&["logs", "chat/0/0"], 0).stdout;
    assert!(!log.is_empty());
    for host in ["h1", "h2"] {
        let doctor = operator.expect(&["doctor", host], 0).stdout;
        assert!(!doctor.contains("BAD"), "{doctor}");
    }
    operator.expect(&["stop", "chat", "--yes"], 0);
}

#[test]
fn two_operators_who_come_at_once_do_not_collide() {
    let Some(lab) = Lab::up(2, &[]) else { return };
    let hosts = [("h1", 1, "user = \"root\""), ("h2", 2, "user = \"root\"")];
    let (one, two) = (person(&lab, &hosts), person(&lab, &hosts));
    std::thread::scope(|scope| {
        let both = [&one, &two].map(|person| scope.spawn(move || settled(person, "up")));
        for seen in both {
            seen.join().unwrap();
        }
    });
    let mut local = Command::new("sha256sum");
    let local = run(local.arg(env!("CARGO_BIN_EXE_gpudeck")), LONG).expect_success().stdout;
    let ours = &local[..64];
    for host in ["h1", "h2"] {
        // One whole copy, and nothing half done.
        let files = said(&lab, host, "ls -A /var/lib/gpudeck/*/bin | grep -v ^.checked-");
        assert_eq!(files, format!("gpudeck-{}", &ours[..16]));
        let sum = said(&lab, host, "sha256sum /var/lib/gpudeck/*/bin/gpudeck-*");
        assert_eq!(&sum[..64], ours);
        let agents = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -oE 'gpudeck-[0-9a-f]+ agent --state-dir' | wc -l";
        assert_eq!(said(&lab, host, agents), "2", "an agent for each operator");
    }
    // Both measure the same disk and ports at the same time.
    std::thread::scope(|scope| {
        let both =
            [&one, &two].map(|person| scope.spawn(move || person.run(["doctor", "h1"], LONG)));
        for doctor in both {
            let doctor = doctor.join().unwrap().expect_success().stdout;
            assert!(!doctor.contains("BAD") && doctor.contains("disk speed"), "{doctor}");
            for phase in ["connecting", "shaking hands", "logging in", "the agent answers", "to h2"]
            {
                assert!(doctor.contains(phase), "{phase}: {doctor}");
            }
        }
    });
}

#[test]
fn a_port_that_a_firewall_rejects_is_told_from_one_on_which_nothing_listens() {
    let Some(lab) = Lab::up(3, &[]) else { return };
    let hosts = [1, 2, 3].map(|n| format!("h{n}"));
    let hosts = [1, 2, 3].map(|n| (hosts[n as usize - 1].as_str(), n, "user = \"root\""));
    let person = person(&lab, &hosts);
    settled(&person, "up");
    // What `iptables -j REJECT --reject-with tcp-reset` does: the same answer as that of a free port.
    let reject = "nft add table inet t && nft add chain inet t in '{ type filter hook input priority 0; }' && \
                  nft add rule inet t in tcp dport 21000 reject with tcp reset";
    lab.lab(&["exec", "h3", "--", "/bin/sh", "-c", reject]);
    let said = person.run(["doctor", "h1"], LONG).expect_success().stdout;
    let of = |host: &str| said.lines().find(|l| l.contains(&format!("to {host} "))).unwrap();
    assert!(of("h2").contains("ok") && of("h2").contains("open, nothing listens"), "{said}");
    assert!(of("h3").contains("a firewall rejects it"), "{said}");
    assert!(!of("h3").contains("ok  "), "{said}");
    // Nothing of it stays.
    let listens = "ss -Htln 'sport = :21000' | wc -l";
    assert_eq!(self::said(&lab, "h2", listens), "0");

    // Where nobody can listen it is not known, and said so.
    let stand_still = "kill -STOP $(pgrep -f '[g]pudeck.* agent --state-dir')";
    lab.lab(&["exec", "h2", "--", "/bin/sh", "-c", stand_still]);
    let said = person.run(["doctor", "h1"], LONG).expect_success().stdout;
    let of = said.lines().find(|l| l.contains("to h2 ")).unwrap();
    assert!(of.contains("nothing listens there, or a firewall rejects it"), "{said}");
}

const NVIDIA_SMI: &str = r#"#!/bin/sh
case $1 in
--query-gpu=driver_version) echo 535.183.01 ;;
--query-gpu=*) echo "0, GPU-a, NVIDIA L40S, 00000000:18:00.0, 46068, 45044, 37, 45, 112.50, 350.00" ;;
--query-compute-apps=*) echo "GPU-a, 4711, 900, /opt/python" ;;
esac
"#;

#[test]
fn where_there_is_no_room_or_nothing_may_run_the_host_is_still_seen() {
    let Some(lab) = Lab::up(2, &[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let smi = folder.path().join("nvidia-smi");
    std::fs::write(&smi, NVIDIA_SMI).unwrap();
    for (host, options) in [("h1", "size=1m"), ("h2", "noexec,size=1g")] {
        lab.lab(&["put", host, smi.to_str().unwrap(), "/usr/local/bin/nvidia-smi"]);
        let mount =
            format!("chmod 755 /usr/local/bin/nvidia-smi; mount -t tmpfs -o {options} none /mnt");
        lab.lab(&["exec", host, "--", "/bin/sh", "-c", &mount]);
    }
    let state = "user = \"root\"\nagent_env = { GPUDECK_STATE_DIR = \"/mnt\" }";
    let person = person(&lab, &[("h1", 1, state), ("h2", 2, state)]);
    let hosts = settled(&person, "limited");
    let why: BTreeSet<&str> =
        ["h1", "h2"].iter().map(|h| hosts[h]["link"]["why"].as_str().unwrap()).collect();
    assert!(why.iter().any(|w| w.contains("no space left")), "{why:?}");
    assert!(why.iter().any(|w| w.contains("noexec")), "{why:?}");
    for host in ["h1", "h2"] {
        let sample = &hosts[host]["sample"];
        let gpu = &sample["gpus"]["some"][0];
        assert_eq!((&gpu["uuid"], &gpu["utilisation_percent"]), (&"GPU-a".into(), &37.into()));
        assert_eq!(gpu["processes"][0]["pid"], 4711);
        assert!(sample["memory"]["total"].as_u64().unwrap() > 0 && sample["load_1m"].is_number());
        assert_eq!(hosts[host]["facts"]["driver_version"], "535.183.01");
        let left = said(&lab, host, "du -sk /mnt | cut -f1");
        assert!(left.parse::<u32>().unwrap() < 100, "{left} KiB were left on {host}");
        // The doctor says so, and what to do.
        let doctor = person.run(["doctor", host], LONG);
        assert!(doctor.stdout.contains("GPUDECK_STATE_DIR"), "{doctor:?}");
    }
}

/// A file system of which `/mnt` may use 1 MiB. Btrfs keeps its quotas by itself, and against root as well; those of
/// ext4 and XFS need a kernel that is built with them.
const QUOTA: &str = "set -e; mkdir -p /srv/quota; truncate -s 128M /srv/quota.img
    mkfs.btrfs -q /srv/quota.img >/dev/null; mount -o loop /srv/quota.img /srv/quota
    btrfs quota enable /srv/quota; btrfs subvolume create /srv/quota/state >/dev/null
    btrfs qgroup limit 1M /srv/quota/state; mount --bind /srv/quota/state /mnt";

#[test]
fn a_quota_that_is_used_up_is_a_lack_of_space() {
    if !has_program("mkfs.btrfs") {
        return;
    }
    let Some(lab) = Lab::up(1, &[]) else { return };
    lab.lab(&["exec", "h1", "--", "/bin/sh", "-c", QUOTA]);
    let state = "user = \"root\"\nagent_env = { GPUDECK_STATE_DIR = \"/mnt\" }";
    let person = person(&lab, &[("h1", 1, state)]);
    // The file system has room, the agent's directory has not.
    let room = said(&lab, "h1", "df -Pk /mnt | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4");
    assert!(room.parse::<u32>().unwrap() > 20_000, "{room} KiB are free");
    let hosts = settled(&person, "limited");
    let why = hosts["h1"]["link"]["why"].as_str().unwrap();
    assert!(why.contains("no space left"), "{why}");
    assert!(hosts["h1"]["sample"]["memory"]["total"].as_u64().unwrap() > 0);
    let left = said(&lab, "h1", "du -sk /mnt | cut -f1");
    assert!(left.parse::<u32>().unwrap() < 100, "{left} KiB were left");
}
