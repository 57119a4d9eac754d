//! A partition between one operator and the hosts, while another one reaches them: who may act when.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::lab::Lab;
use common::{Finished, Gpudeck, wait_until};
use gpudeck::demo::Load;

const DEADLINE: Duration = Duration::from_mins(2);
const HOSTS: [&str; 2] = ["h1", "h2"];

/// Notes every start of an engine on the host's disk before it becomes that engine.
const NOTE: &str = "#!/bin/sh\necho \"$1\" >>/srv/starts\nshift\nexec \"$@\"\n";

fn spec(tokens: u32) -> String {
    format!(
        r#"
model    = "simulated"
device   = "cpu"
memory   = "64MiB"
replicas = 2

[engine.command]
run = [
  "/srv/note", "{{release}}-{{replica}}", "{{gpudeck}}", "sim-engine", "--address", "{{address}}",
  "--port", "{{port}}", "--model", "chat", "--load-time", "500ms", "--tokens", "{tokens}",
]

[placement]
spread = "host"

[rollout]
steps          = [{{ weight = 50 }}, {{ approve = true }}]
drain_deadline = "10s"
stop_grace     = "5s"
"#
    )
}

/// A way to a host's SSH server that can be cut: what is on it ends, what comes is not answered.
struct Way {
    port: u16,
    cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Way {
    fn to(address: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicBool::new(false));
        let open: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (is_cut, kept) = (Arc::clone(&cut), Arc::clone(&open));
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { continue };
                if is_cut.load(Ordering::SeqCst) {
                    // Silent, as a lost packet is; closed when the test ends.
                    kept.lock().unwrap().push(near);
                    continue;
                }
                let Ok(far) = TcpStream::connect((address.as_str(), 22)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(n @ 1..) = from.read(&mut buffer) {
                            if to.write_all(&buffer[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                kept.lock().unwrap().extend([near, far]);
            }
        });
        Self { port, cut, open }
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

struct Operator(Gpudeck);

impl Operator {
    fn run(&self, words: &str) -> Finished {
        self.0.run(words.split(' '), DEADLINE)
    }

    #[track_caller]
    fn says(&self, words: &str, part: &str) {
        wait_until(&format!("`{part}` in `gpudeck {words}`"), DEADLINE, || {
            self.run(words).stdout.contains(part)
        });
    }

    fn write_spec(&self, tokens: u32) {
        std::fs::write(self.0.deck().join("services/chat.toml"), spec(tokens)).unwrap();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.run("controller stop");
    }
}

fn starts(lab: &Lab) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for host in HOSTS {
        let text = std::fs::read_to_string(lab.disk(host, "/srv/starts")).unwrap_or_default();
        for line in text.lines() {
            *counts.entry(line.trim_start_matches('r').to_owned()).or_default() += 1;
        }
    }
    counts
}

fn each_once(releases: u32) -> BTreeMap<String, usize> {
    (1..=releases).flat_map(|r| [(format!("{r}-0"), 1), (format!("{r}-1"), 1)]).collect()
}

#[test]
fn a_partitioned_controller_is_replaced_and_refused_when_it_is_back() {
    let Some(lab) = Lab::up(2, &["--haproxy", "1"]) else { return };
    for host in HOSTS {
        let note = lab.disk(host, "/srv/note");
        std::fs::write(&note, NOTE).unwrap();
        std::fs::set_permissions(&note, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (a, b) = (Operator(Gpudeck::new()), Operator(Gpudeck::new()));
    // The second one's deck names the hosts as they are, the first one's goes over the ways.
    lab.deck(&b.0.deck());
    let text = std::fs::read_to_string(b.0.deck().join("deck.toml")).unwrap();
    let keys = std::fs::read_to_string(lab.dir().join("known_hosts")).unwrap();
    let ways = [1, 2].map(|number| Way::to(lab.address(number)));
    let known = a.0.home().join("known_hosts");
    let mut way_keys = String::new();
    let mut way_text = text.replace(
        &format!("known_hosts = \"{}\"", lab.dir().join("known_hosts").display()),
        &format!("known_hosts = \"{}\"", known.display()),
    );
    for (way, number) in ways.iter().zip([1, 2]) {
        let address = lab.address(number);
        way_text = way_text.replace(
            &format!("address = \"{address}\""),
            &format!(
                "address = \"127.0.0.1\"\nport = {}\nengine_address = \"{address}\"",
                way.port
            ),
        );
        for line in keys.lines() {
            let Some((names, key)) = line.split_once(' ') else { continue };
            if names.split(',').any(|name| name == address) {
                way_keys.push_str(&format!("[127.0.0.1]:{} {key}\n", way.port));
            }
        }
    }
    assert_eq!(way_text.matches("port = ").count(), 2, "{way_text}");
    std::fs::write(&known, way_keys).unwrap();
    gpudeck::revision::DeckRepo::init(&a.0.deck()).unwrap();
    std::fs::create_dir_all(a.0.deck().join("services")).unwrap();
    std::fs::write(a.0.deck().join("deck.toml"), way_text).unwrap();

    a.write_spec(8);
    a.run("apply chat --wait --timeout 90s").expect_success();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let load = {
        let _in = runtime.enter();
        Load::start(&lab.gateway(1), 5.0, "chat").unwrap()
    };
    a.write_spec(9);
    a.run("apply chat -m second").expect_success();
    a.says("status chat", "waits for approval");

    // Half a partition: the first still has h1, so nobody else gets the service.
    ways[1].cut();
    b.says("hosts", "held by");
    b.says("status", "! hosts-held since");
    let lapsed = |host: &str| {
        let hosts = b.run("hosts --output json").stdout;
        let hosts: serde_json::Value = serde_json::from_str(&hosts).unwrap_or_default();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let until = hosts["hosts"][host]["claim"]["until"].as_u64();
        until.is_some_and(|until| u128::from(until) < now.as_millis())
    };
    wait_until("the end of the lease on h2", DEADLINE, || lapsed("h2"));
    assert!(!lapsed("h1"));
    let refused = b.run("controller take-over");
    assert_eq!(refused.code(), Some(9), "{refused:#?}");

    // A whole one: the second takes over and goes on.
    ways[0].cut();
    b.says("status", "its lease ended at");
    b.run("controller take-over").expect_success();
    b.says("status chat", "waits for approval");
    assert_eq!(starts(&lab)["2-0"], 1);
    b.run("rollout promote chat").expect_success();
    b.run("rollout status chat --wait --timeout 90s").expect_success();
    assert_eq!(starts(&lab), each_once(2));

    // The first is back: it is told and refused, and what the second did stays.
    for way in &ways {
        way.mend();
    }
    a.says("status", "! hosts-held since");
    for words in ["rollout promote chat", "rollout abort chat", "stop chat --yes"] {
        let refused = a.run(words);
        assert_eq!(refused.code(), Some(9), "{words}: {refused:#?}");
    }
    let counts = load.counts();
    let sent = counts.ok + counts.failed + counts.in_flight;
    wait_until("the requests in flight", DEADLINE, || {
        let counts = load.counts();
        counts.ok + counts.failed >= sent + 20
    });
    let counts = load.counts();
    println!("over the partition: {counts:?}");
    assert_eq!(counts.failed, 0, "{counts:?}\n{}", b.run("events").stdout);
    assert_eq!(starts(&lab), each_once(2));
    b.run("stop chat --yes").expect_success();
    b.says("status chat", "stopped");
}
