//! Where faults are played: a lab of three hosts with simulated GPUs, HAProxy on the first, a service on the
//! other two, and clients.

use std::cell::Cell;
use std::process::Command;
use std::time::Duration;

use gpudeck::api::{Direction, Phase, ServiceView};

use crate::common::lab::{Lab, write_gguf};
use crate::common::operator::Operator;
use crate::common::{run, wait_until};
use crate::eye::Eye;

pub const HOSTS: [&str; 2] = ["h2", "h3"];

/// Notes every start of an engine on the host's disk before it becomes that engine.
const NOTE: &str = "#!/bin/sh\necho \"$1\" >>/srv/starts\nshift\nexec \"$@\"\n";

/// Serves, and is gone a moment after its first token.
const SHORT: &str = "#!/bin/sh\n\"$@\" &\np=$!\nsleep 4\nkill -9 $p\nexit 3\n";

/// Reads its weights before it becomes an engine.
const READER: &str = "#!/bin/sh\ncat \"$1\" >/dev/null || exit 4\nshift\nexec \"$@\"\n";

/// The parts of a spec that faults change.
#[derive(Clone)]
pub struct Spec {
    pub head: String,
    pub before: String,
    pub engine: String,
    pub healthy_deadline: &'static str,
    pub steps: &'static str,
    pub rollout: String,
    pub analysis: String,
    /// Counts up with every spec, so that there is always something to roll out.
    pub revision: u32,
}

impl Spec {
    pub fn good(revision: u32) -> Self {
        Self {
            head: "model = \"simulated\"\nreplicas = 2\nmemory = \"40GiB\"\n".to_owned(),
            before: "\"/srv/note\", \"{release}-{replica}-{attempt}\", ".to_owned(),
            engine: String::new(),
            healthy_deadline: "8s",
            steps: "[{ weight = 50 }, { analyse = \"quick\" }]",
            rollout: String::new(),
            analysis: String::new(),
            revision,
        }
    }

    pub fn text(&self) -> String {
        let Self { head, before, engine, healthy_deadline, steps, rollout, analysis, revision } =
            self;
        // A few requests reach the canary in three seconds.
        let few = if analysis.contains("engine") { "" } else { "engine.min_samples = 3" };
        let before = before.replace("-{attempt}", "");
        format!(
            r#"
{head}env = {{ REVISION = "{revision}" }}

[engine.command]
run = [
  {before}"{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}", "--model", "chat",
  "--load-time", "1s", "--gpu-memory", "40GiB", "--tokens", "8", {engine}
]
metrics = "vllm"

[placement]
hosts  = ["h2", "h3"]
spread = "host"

[rollout]
steps             = {steps}
healthy_deadline  = "{healthy_deadline}"
progress_deadline = "25s"
drain_deadline    = "8s"
stop_grace        = "3s"
{rollout}
[analysis.quick]
duration          = "3s"
min_requests      = 3
max_latency_ratio = 50.0
{few}
{analysis}
"#
        )
    }
}

/// The lab with the service, and its operator.
pub struct Stage {
    pub operator: Operator,
    pub eye: Eye,
    revision: u32,
    chosen: Cell<&'static str>,
}

impl Stage {
    pub fn new() -> Option<Self> {
        use std::os::unix::fs::PermissionsExt;
        let lab = Lab::up(3, &["--haproxy", "1"])?;
        for host in HOSTS {
            for (name, text) in [("note", NOTE), ("short", SHORT), ("reader", READER)] {
                let path = lab.disk(host, &format!("/srv/{name}"));
                std::fs::write(&path, text).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            std::fs::create_dir_all(lab.disk(host, "/srv/allocations")).unwrap();
            std::fs::write(lab.disk(host, "/srv/scenario.json"), scenario(host)).unwrap();
        }
        // A disk of its own that can be filled; mounted outside of the host, so that what is on it outlives a
        // power failure, and the machine's own disk is never the one that is filled.
        lab.lab(&["kill", "h3"]);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=400m", "lab"]);
        mount.arg(lab.disk("h3", "/var/lib/gpudeck"));
        run(&mut mount, Duration::from_secs(10)).expect_success();
        lab.lab(&["start", "h3"]);
        let eye = Eye::open(lab.dir().join("h1"));
        let mut operator = Operator::new(lab);
        operator.state_on_small_disk();
        let file = operator.deck().join("deck.toml");
        let mut text = std::fs::read_to_string(&file).unwrap();
        for host in HOSTS {
            let section = format!("[hosts.{host}]\n");
            let env = "agent_env = { GPUDECK_SCENARIO = \"/srv/scenario.json\", \
                       GPUDECK_SIM_ALLOCATIONS = \"/srv/allocations\" }\n";
            text = text.replace(&section, &format!("{section}{env}"));
        }
        std::fs::write(&file, text).unwrap();
        let mut stage = Self { operator, eye, revision: 0, chosen: Cell::new("") };
        stage.write(|_| {});
        // On a busy machine the agents' first copies take longer than `apply` waits for hosts.
        stage.operator.expect(&["status"], 0);
        wait_until("the hosts", Duration::from_mins(1), || {
            stage.operator.snapshot().is_some_and(|s| {
                s.hosts.values().all(|h| h.link == gpudeck::api::HostLinkState::Up)
            })
        });
        stage.operator.expect(&["apply", "chat", "--wait", "--timeout", "2m", "--yes"], 0);
        Some(stage)
    }

    pub fn write(&mut self, change: impl Fn(&mut Spec)) {
        self.revision += 1;
        let mut spec = Spec::good(self.revision);
        change(&mut spec);
        self.operator.write_spec(&spec.text());
    }

    pub fn lab(&self, arguments: &[&str]) {
        self.operator.lab.lab(arguments);
    }

    /// A shell command in a host, not over SSH.
    pub fn inside(&self, host: &str, script: &str) -> String {
        self.operator.lab.lab(&["exec", host, "--", "sh", "-c", script])
    }

    /// The host of the coming release's replicas so far, once one of them `holds`.
    pub fn await_new(&self, what: &str, holds: impl Fn(&Phase) -> bool) -> (String, u64) {
        let chat =
            self.operator.wait_until_chat(what, |chat| new_ones(chat).any(|r| holds(&r.phase)));
        let replica = new_ones(&chat).find(|r| holds(&r.phase)).unwrap();
        (replica.ranks[0].host.to_string(), u64::from(replica.ranks[0].port))
    }

    pub fn await_measuring(&self) -> ServiceView {
        self.operator.wait_until_chat("the canary to be measured", |chat| {
            chat.rollout.as_ref().is_some_and(|r| {
                r.outcome.is_none() && matches!(r.gate, Some(gpudeck::api::Gate::Analyse { .. }))
            })
        })
    }

    pub fn await_way_back(&self) -> ServiceView {
        self.operator.wait_until_chat("the way back", |chat| {
            let rollout = chat.rollout.as_ref();
            rollout.is_some_and(|r| matches!(r.direction, Direction::Back { .. }))
        })
    }

    /// The host that is to break: the one without a replica of the coming release.
    pub fn choose_without_canary(&self, chat: &ServiceView) -> &'static str {
        let has_canary = |host: &str| new_ones(chat).any(|r| r.ranks[0].host.as_str() == host);
        let host = HOSTS.into_iter().find(|host| !has_canary(host));
        self.chosen.set(host.expect("a host without the canary"));
        self.chosen.get()
    }

    /// The host that was chosen last.
    pub fn chosen(&self) -> &'static str {
        self.chosen.get()
    }

    pub fn pause(&self, seconds: u64) {
        // The length of a fault, not a wait for something.
        std::thread::sleep(Duration::from_secs(seconds));
    }

    /// A signal to every process of a host whose command line, with spaces, matches a shell pattern.
    pub fn signal(&self, host: &str, signal: &str, pattern: &str) {
        // Not to the shell that looks, which has the pattern on its own command line.
        let script = format!(
            "for f in /proc/[0-9]*/cmdline; do a=$(tr '\\0' ' ' <$f 2>/dev/null); case $a in sh\\ *) ;; \
             {pattern}) p=${{f#/proc/}}; kill -{signal} ${{p%/cmdline}};; esac; done; true"
        );
        self.inside(host, &script);
    }

    /// The process of an engine on a port.
    pub fn signal_engine(&self, host: &str, signal: &str, port: u64) {
        self.signal(host, signal, &format!("*\\ sim-engine\\ *--port\\ {port}\\ *"));
    }

    /// Somebody else takes memory of the second GPU (or of both) of a host.
    pub fn take_memory(&self, host: &str, gpus: std::ops::Range<u32>) {
        let of = |gpu| {
            format!(
                r#"{{"pid":1,"gpu":"{}","bytes":{},"name":"stranger"}}"#,
                uuid(host, gpu),
                70_u64 << 30
            )
        };
        let all: Vec<String> = gpus.map(of).collect();
        let text = format!("[{}]", all.join(","));
        let path = self.operator.lab.disk(host, "/srv/allocations");
        std::fs::write(path.join("new"), text).unwrap();
        std::fs::rename(path.join("new"), path.join("stranger.json")).unwrap();
    }

    pub fn give_memory_back(&self) {
        for host in HOSTS {
            let path = self.operator.lab.disk(host, "/srv/allocations/stranger.json");
            if path.exists() {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    /// Fills the small disk of h3, or frees it again.
    pub fn fill_disk(&self, full: bool) {
        let script = if full {
            "[ \"$(stat -f -c %T /var/lib/gpudeck)\" = tmpfs ] || exit 1; \
             dd if=/dev/zero of=/var/lib/gpudeck/filler bs=1M 2>/dev/null; true"
        } else {
            "rm -f /var/lib/gpudeck/filler"
        };
        self.inside("h3", script);
    }

    /// Puts a small model onto the hosts, or takes it away.
    pub fn place_weights(&self, there: bool) {
        for host in HOSTS {
            let path = self.operator.lab.disk(host, "/srv/model.gguf");
            if there {
                write_gguf(&path, 1, 100);
            } else {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    pub fn haproxy_restarts(&self) {
        self.lab(&["haproxy", "h1", "stop"]);
        self.lab(&["haproxy", "h1", "start"]);
    }

    /// The first ports that engines could be given are taken by somebody who listens there, or who merely has them.
    pub fn take_ports(&self, listens: bool) {
        let listen = if listens { "s.listen(1); " } else { "" };
        let python = format!(
            "import socket, time\nkept = []\nfor p in range(21000, 21020):\n    s = socket.socket()\n    \
             try:\n        s.bind((\"0.0.0.0\", p)); {listen}kept.append(s)\n    \
             except OSError: s.close()\nopen(\"/srv/ports-taken\", \"w\").close()\ntime.sleep(600)"
        );
        for host in HOSTS {
            let script = format!(
                "rm -f /srv/ports-taken; setsid python3 -c '{python}' >/dev/null 2>&1 </dev/null &"
            );
            self.inside(host, &script);
            let mark = self.operator.lab.disk(host, "/srv/ports-taken");
            wait_until("the ports to be taken", Duration::from_secs(10), || mark.exists());
        }
    }

    /// Who has the ports ends.
    pub fn give_ports_back(&self) {
        for host in HOSTS {
            self.signal(host, "KILL", "python3*ports-taken*");
        }
    }

    /// A signal to the controller, also to one that does not answer.
    pub fn signal_controller(&self, signal: &str) {
        let pid = self.operator.last_controller().to_string();
        let done =
            run(Command::new("kill").args([&format!("-{signal}"), &pid]), Duration::from_secs(5));
        done.expect_success();
    }
}

pub fn new_ones(chat: &ServiceView) -> impl Iterator<Item = &gpudeck::api::ReplicaView> {
    let to = chat.rollout.as_ref().filter(|r| r.outcome.is_none()).map(|r| r.to);
    chat.replicas.iter().filter(move |r| Some(r.id.release) == to)
}

fn uuid(host: &str, gpu: u32) -> String {
    let number = host.trim_start_matches('h').parse::<u32>().unwrap();
    format!("GPU-51500000-{number:04}-4000-8000-{gpu:012}")
}

/// What the simulated driver of a host says: two GPUs whose memory is free two seconds after a process' end. As
/// on a real H100 it is a little less than 80 GiB: a replica of 40 GiB does not fit beside what an ended one
/// still holds.
fn scenario(host: &str) -> String {
    let gpus: Vec<serde_json::Value> = (0..2)
        .map(|gpu| {
            serde_json::json!({
                "index": gpu, "uuid": uuid(host, gpu), "name": "SIMULATED H100 80GB",
                "pci_bus_id": format!("00000000:{:02X}:00.0", 0x1b + 0x10 * gpu),
                "memory_total": 81_559_u64 << 20,
            })
        })
        .collect();
    serde_json::json!({ "allocations": "allocations", "free_delay_ms": 2000, "gpus": gpus })
        .to_string()
}
