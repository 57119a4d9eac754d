//! The lab keeps its promises: separate hosts, faults that look like the real ones, nothing left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::Command;
use std::time::{Duration, Instant};

use common::lab::{Lab, llama_server, write_gguf, write_image};
use common::{checkout, run, wait_for, wait_until};

/// The body of a small HTTP exchange, or `None` if there was no 200.
fn http(address: &str, method: &str, path: &str, body: &str) -> Option<String> {
    let target = address.to_socket_addrs().ok()?.next()?;
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(3)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut request =
        format!("{method} {path} HTTP/1.0\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    request.push_str(body);
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.split(' ').nth(1).filter(|code| *code == "200").map(|_| body.to_owned())
}

fn leftovers() -> String {
    let script = "ip -o link show gd-op; ls -d /run/netns/gd-* /run/gpudeck-lab /var/tmp/gpudeck-lab; \
                  find /sys/fs/cgroup -name 'gpudeck-lab-*'; \
                  for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline | grep -e '^bash .*/host-init' ; done";
    run(
        Command::new("sh").args(["-c", &format!("({script}) 2>/dev/null")]),
        Duration::from_secs(20),
    )
    .stdout
}

#[test]
fn hosts_are_machines_of_their_own() {
    let Some(lab) = Lab::up(3, &["--haproxy", "1"]) else { return };
    let mut identities = BTreeSet::new();
    for host in ["h1", "h2", "h3"] {
        let script = "hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id; \
                      ls /proc | grep -c '^[0-9]'; echo own > /root/own; echo own > /tmp/own; echo own > /opt/own";
        let said = lab.ssh(host, script).expect_success().stdout;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], host);
        assert!(lines[3].parse::<u32>().unwrap() < 20, "{host} sees the machine's processes");
        identities.insert(lines[1].to_owned());
        identities.insert(lines[2].to_owned());
    }
    assert_eq!(identities.len(), 6, "machine ids and boot ids differ: {identities:?}");
    assert!(!std::path::Path::new("/opt/own").exists(), "a host wrote to the machine's own disk");
    lab.ssh("h1", "rm /root/own; ping -c1 -W2 h2 2>/dev/null || bash -c '</dev/tcp/h2/22'")
        .expect_success();
    assert!(lab.disk("h2", "/root/own").exists() && !lab.disk("h1", "/root/own").exists());
    let deck = tempfile::tempdir().unwrap();
    lab.deck(deck.path());
    let text = std::fs::read_to_string(deck.path().join("deck.toml")).unwrap();
    let spec = gpudeck::spec::parse_deck(&text, "deck.toml").unwrap();
    assert_eq!((spec.hosts.len(), spec.gateways.len()), (3, 1));
    // Doing it again changes nothing.
    let before = lab.ssh("h1", "cat /proc/sys/kernel/random/boot_id").stdout;
    lab.lab(&["up", "3", "--haproxy", "1"]);
    assert_eq!(lab.ssh("h1", "cat /proc/sys/kernel/random/boot_id").stdout, before);
}

#[test]
fn faults_come_and_go() {
    let Some(lab) = Lab::up(2, &[]) else { return };
    let reached = |host: &str| lab.ssh(host, "true").code() == Some(0);
    assert!(reached("h1"));
    for (bring, mend) in [
        (["link", "h1", "down"], vec!["link", "h1", "up"]),
        (["cut-port", "h1", "22"], vec!["cut-port", "h1", "restore"]),
        (["sshd", "h1", "stop"], vec!["sshd", "h1", "start"]),
    ] {
        lab.lab(&bring);
        assert!(!reached("h1"), "{bring:?} did nothing");
        assert!(reached("h2"), "{bring:?} met the other host");
        lab.lab(&mend);
        wait_until("h1 to be back", Duration::from_secs(10), || reached("h1"));
    }
    lab.lab(&["freeze", "h1"]);
    assert!(!reached("h1"), "freeze did nothing");
    lab.lab(&["thaw", "h1"]);
    assert!(reached("h1"));

    let connect = || {
        let started = Instant::now();
        TcpStream::connect((lab.address(1), 22)).unwrap();
        started.elapsed()
    };
    lab.lab(&["delay", "h1", "80ms"]);
    assert!(connect() >= Duration::from_millis(80));
    lab.lab(&["delay", "h1", "off"]);
    assert!(connect() < Duration::from_millis(80));

    // 2 MB at 8 Mbit/s take two seconds.
    let send = || {
        let started = Instant::now();
        let mut command = Command::new("ssh");
        command.arg("-F").arg(lab.dir().join("ssh_config")).args(["h1", "cat >/dev/null"]);
        let sent =
            common::run_with_input(&mut command, &vec![0; 2_000_000], Duration::from_mins(1));
        sent.expect_success();
        started.elapsed()
    };
    lab.lab(&["rate", "h1", "8mbit"]);
    assert!(send() > Duration::from_millis(1400));
    lab.lab(&["rate", "h1", "off"]);
    assert!(send() < Duration::from_millis(1400));

    lab.lab(&["loss", "h1", "100"]);
    assert!(!reached("h1"), "loss did nothing");
    lab.lab(&["loss", "h1", "off"]);
    assert!(reached("h1"));
}

#[test]
fn a_host_that_lost_power_boots_again_with_its_disk() {
    let Some(lab) = Lab::up(1, &[]) else { return };
    let script = "cat /proc/sys/kernel/random/boot_id /etc/machine-id";
    let before = lab.ssh("h1", &format!("echo kept >/root/kept; {script}")).expect_success().stdout;
    lab.lab(&["kill", "h1"]);
    assert!(lab.ssh("h1", "true").code() != Some(0));
    lab.lab(&["start", "h1"]);
    let after = lab.ssh("h1", script).expect_success().stdout;
    assert_ne!(before.lines().next(), after.lines().next(), "the boot id stayed");
    assert_eq!(before.lines().nth(1), after.lines().nth(1), "the machine id changed");
    assert_eq!(lab.ssh("h1", "cat /root/kept").stdout, "kept\n");
}

#[test]
fn real_engines_serve_behind_haproxy_as_process_and_container() {
    let Some(lab) = Lab::up(2, &["--haproxy", "1", "--dockerd", "2"]) else { return };
    let server = llama_server();
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("llama.tar");
    write_image(&tar, &[&server]);
    lab.lab(&["image", "h2", "gpudeck-test/llama:1", tar.to_str().unwrap()]);
    lab.lab(&["put", "h1", server.to_str().unwrap(), "/srv/llama-server"]);
    for host in ["h1", "h2"] {
        write_gguf(&lab.disk(host, "/srv/tiny.gguf"), 1, 100);
    }
    let arguments = "-m /srv/tiny.gguf -c 1024 -np 2 --host 0.0.0.0 --port 21000";
    lab.ssh("h1", &format!("setsid /srv/llama-server {arguments} >/root/log 2>&1 </dev/null &"))
        .expect_success();
    let words: Vec<String> = arguments.split(' ').map(|w| format!("{w:?}")).collect();
    let container = format!(
        "{{\"Image\":\"gpudeck-test/llama:1\",\"Entrypoint\":[\"/usr/local/bin/llama-server\"],\"Cmd\":[{}],\
         \"HostConfig\":{{\"NetworkMode\":\"host\",\"Binds\":[\"/srv:/srv:ro\"]}}}}",
        words.join(",")
    );
    lab.lab(&["docker", "h2", "POST", "/containers/create?name=engine", &container]);
    lab.lab(&["docker", "h2", "POST", "/containers/engine/start"]);
    for number in [1, 2] {
        let address = format!("{}:21000", lab.address(number));
        wait_for("the engine", Duration::from_secs(30), || http(&address, "GET", "/health", ""));
    }
    let commands = format!(
        "add server chat/a {}:21000 weight 100; enable server chat/a; \
         add server chat/b {}:21000 weight 100; enable server chat/b",
        lab.address(1),
        lab.address(2)
    );
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect('/run/haproxy/admin.sock')\n\
                  s.sendall(sys.argv[1].encode()+b'\\n')\nprint(s.recv(4096))";
    lab.lab(&["exec", "h1", "--", "/usr/bin/python3", "-c", script, &commands]);
    let gateway = lab.gateway(1).replace("http://", "");
    for n in 0..10 {
        let question =
            format!(r#"{{"messages":[{{"role":"user","content":"{n}"}}],"max_tokens":8}}"#);
        let answer = http(&gateway, "POST", "/v1/chat/completions", &question);
        let answer: serde_json::Value = serde_json::from_str(&answer.expect("200")).unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], 8);
    }
}

#[test]
fn down_leaves_nothing_even_when_up_was_killed() {
    let Some(lab) = Lab::up(2, &["--haproxy", "1", "--dockerd", "1"]) else { return };
    assert!(leftovers().contains("host-init"), "the check itself sees nothing");
    lab.lab(&["down"]);
    assert_eq!(leftovers(), "");
    // Killed at different moments of its work.
    for milliseconds in [30, 80, 150, 250, 400, 600] {
        let mut up =
            Command::new(checkout().join("tests/lab/lab")).args(["up", "3"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        up.kill().unwrap();
        up.wait().unwrap();
        lab.lab(&["down"]);
        assert_eq!(leftovers(), "", "killed after {milliseconds} ms");
    }
    lab.lab(&["up", "1"]);
    lab.ssh("h1", "true").expect_success();
}
