//! The faults, one after the other: what is broken, when, what mends it, and how the rollout must end.

use std::time::Duration;

use gpudeck::api::Phase;

use crate::eye::Server;
use crate::stage::{Spec, Stage};

/// How a rollout must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Completed,
    RolledBack,
    Aborted,
    /// What cannot be judged is a person's to decide; until then it serves.
    Asks,
    /// `apply` says no, and nothing was touched.
    Refused,
}

/// Whose requests may fail: those that the broken part itself had or got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Nobody's.
    Nothing,
    /// The new release's replicas.
    Canary,
    /// Replicas on that host.
    Host(&'static str),
    /// Replicas on the host that the fault chose.
    Chosen,
    /// The gateway itself: whatever comes while it is away.
    Gateway,
}

impl Broken {
    pub fn is_of(self, server: &Server, release: u64, chosen: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Canary => server.name.starts_with(&format!("r{release}-")),
            Self::Host(host) => server.host == host,
            Self::Chosen => server.host == chosen,
            Self::Gateway => true,
        }
    }
}

pub struct Case {
    pub name: &'static str,
    pub spec: fn(&mut Spec),
    /// Before `apply`.
    pub before: fn(&Stage),
    /// After it.
    pub fault: fn(&Stage),
    /// Once the rollout has ended.
    pub mend: fn(&Stage),
    pub end: End,
    /// Part of the outcome's reason, or of the refusal; with `|` between them, one of several.
    pub why: &'static str,
    pub broken: Broken,
    /// The rollout is over that soon after `apply`.
    pub within: Duration,
    /// In the sample of every run of the tests.
    pub sample: bool,
}

impl Case {
    /// Whether this text gives the reason that the case is to have.
    pub fn is_why(&self, text: &str) -> bool {
        self.why.split('|').any(|why| text.contains(why))
    }
}

const fn nothing(_: &Stage) {}
const fn good(_: &mut Spec) {}

/// A rollout without any fault, to be changed.
const PLAIN: Case = Case {
    name: "nothing",
    spec: good,
    before: nothing,
    fault: nothing,
    mend: nothing,
    end: End::Completed,
    why: "",
    broken: Broken::Nothing,
    within: Duration::from_secs(60),
    sample: false,
};

fn loading(phase: &Phase) -> bool {
    matches!(phase, Phase::Starting | Phase::Loading)
}

/// An engine that reads its weights, as real ones do, before it serves.
fn reads(spec: &mut Spec, model: &str) {
    spec.head = spec.head.replace("simulated", model);
    spec.before = "\"/srv/reader\", \"{model}\", ".to_owned();
}

fn image(spec: &mut Spec) {
    spec.head = "model = \"simulated\"\nreplicas = 2\ndevice = \"cpu\"\nmemory = \"64MiB\"\n\
                 runtime = { docker = { image = \"gpudeck-test/none:1\" } }\n"
        .to_owned();
    spec.before = String::new();
}

#[allow(clippy::too_many_lines)]
pub fn cases() -> Vec<Case> {
    use Broken::{Canary, Chosen, Gateway, Host, Nothing};
    use End::{Aborted, Asks, Refused, RolledBack};
    let slow = Duration::from_secs(90);
    vec![
        Case { name: "none at all", ..PLAIN },
        // The engine.
        Case {
            name: "engine: bad command line",
            spec: |s| s.engine = "\"--no-such-option\",".to_owned(),
            end: RolledBack,
            why: "exit code 2",
            sample: true,
            ..PLAIN
        },
        Case {
            name: "engine: program missing",
            spec: |s| s.before = "\"/srv/nothing\", ".to_owned(),
            end: RolledBack,
            why: "/srv/nothing",
            ..PLAIN
        },
        Case {
            name: "engine: exits at once",
            spec: |s| s.before = "\"/bin/false\", ".to_owned(),
            end: RolledBack,
            why: "exit code 1",
            ..PLAIN
        },
        Case {
            name: "engine: fails in load",
            spec: |s| s.engine = "\"--fail-load\",".to_owned(),
            end: RolledBack,
            why: "exit code 1",
            ..PLAIN
        },
        Case {
            name: "engine: killed in load",
            spec: |s| s.engine = "\"--load-time\", \"6s\",".to_owned(),
            fault: |stage| {
                let (host, port) = stage.await_new("the canary to load", loading);
                stage.pause(1);
                stage.signal_engine(&host, "KILL", port);
            },
            end: RolledBack,
            why: "signal 9",
            ..PLAIN
        },
        Case {
            name: "engine: dies after its first tokens",
            spec: |s| s.before = "\"/srv/short\", ".to_owned(),
            end: RolledBack,
            // Its end, or the errors that it makes: whichever is seen first.
            why: "ended|error rate",
            broken: Canary,
            sample: true,
            ..PLAIN
        },
        Case {
            name: "engine: hangs in load",
            spec: |s| s.engine = "\"--load-time\", \"1h\",".to_owned(),
            end: RolledBack,
            why: "healthy_deadline",
            ..PLAIN
        },
        Case {
            name: "engine: lies in /health",
            spec: |s| s.engine = "\"--lie\",".to_owned(),
            end: RolledBack,
            why: "healthy_deadline",
            sample: true,
            ..PLAIN
        },
        Case {
            name: "engine: frozen in load",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                let (host, port) = stage.await_new("the canary to load", loading);
                stage.pause(1);
                stage.signal_engine(&host, "STOP", port);
            },
            end: RolledBack,
            why: "healthy_deadline",
            ..PLAIN
        },
        Case {
            name: "engine: serves 500s",
            spec: |s| s.engine = "\"--error-rate\", \"0.4\",".to_owned(),
            end: RolledBack,
            why: "error rate",
            broken: Canary,
            ..PLAIN
        },
        Case {
            name: "engine: slow first token",
            spec: |s| {
                s.engine = "\"--first-token\", \"1500ms\",".to_owned();
                s.analysis = "[analysis.quick.engine]\nmax_first_token = \"500ms\"\n".to_owned();
            },
            end: RolledBack,
            why: "first token",
            ..PLAIN
        },
        Case {
            name: "engine: slow between tokens",
            spec: |s| {
                s.engine = "\"--token-time\", \"300ms\",".to_owned();
                s.analysis = "[analysis.quick.engine]\nmax_inter_token = \"100ms\"\n".to_owned();
            },
            end: RolledBack,
            why: "inter",
            ..PLAIN
        },
        Case {
            name: "engine: slower than stable",
            spec: |s| {
                s.engine = "\"--first-token\", \"900ms\",".to_owned();
                s.analysis = "max_latency = \"400ms\"\nengine = { min_samples = 10 }\n".to_owned();
            },
            end: RolledBack,
            why: "",
            ..PLAIN
        },
        Case {
            name: "engine: wrong golden answer",
            spec: |s| {
                s.analysis =
                    "[[analysis.quick.golden]]\nprompt = \"Capital of France?\"\ncontains = \"Paris\"\n"
                        .to_owned();
            },
            end: RolledBack,
            why: "golden",
            ..PLAIN
        },
        Case {
            name: "engine: canary's rank killed",
            fault: |stage| {
                let chat = stage.await_measuring();
                let replica = crate::stage::new_ones(&chat).next().unwrap().clone();
                let rank = &replica.ranks[0];
                stage.signal_engine(rank.host.as_str(), "KILL", u64::from(rank.port));
            },
            end: RolledBack,
            // Its end, or the errors of the requests that it cut: whichever is seen first.
            why: "signal 9|error rate",
            broken: Canary,
            sample: true,
            ..PLAIN
        },
        Case {
            name: "engine: a stable rank killed",
            fault: |stage| {
                let chat = stage.await_measuring();
                let old = chat.replicas.iter().find(|r| {
                    Some(r.id.release) == chat.stable && r.ranks[0].host.as_str() == "h3"
                });
                let port = old.unwrap().ranks[0].port;
                stage.signal_engine("h3", "KILL", u64::from(port));
            },
            broken: Host("h3"),
            ..PLAIN
        },
        Case {
            name: "supervisor killed in load",
            spec: |s| s.engine = "\"--load-time\", \"5s\",".to_owned(),
            fault: |stage| {
                let (host, _) = stage.await_new("the canary to load", |p| *p == Phase::Loading);
                let release = stage.operator.look().unwrap().rollout.unwrap().to;
                // The engine goes on without it, and any later agent finds it.
                stage.signal(&host, "KILL", &format!("*agent\\ supervise\\ *-{release}-*"));
            },
            ..PLAIN
        },
        // What it needs.
        Case {
            name: "more memory than any GPU has",
            spec: |s| s.head = s.head.replace("40GiB", "90GiB"),
            end: Refused,
            why: "memory",
            ..PLAIN
        },
        Case {
            name: "ports taken",
            before: |stage| stage.take_ports(true),
            mend: |stage| stage.take_ports(false),
            end: RolledBack,
            why: "in use",
            ..PLAIN
        },
        Case {
            name: "memory free only later (in place)",
            before: |stage| {
                for host in crate::stage::HOSTS {
                    stage.take_memory(host, 1..2);
                }
                stage.pause(6);
            },
            mend: Stage::give_memory_back,
            within: slow,
            ..PLAIN
        },
        Case {
            name: "memory never free",
            before: |stage| {
                for host in crate::stage::HOSTS {
                    stage.take_memory(host, 1..2);
                }
                stage.pause(6);
            },
            fault: |stage| {
                // In place: the old one has gone, its memory is not free yet, and somebody else is faster.
                let waits = |p: &Phase| matches!(p, Phase::Waiting { .. });
                let (host, _) = stage.await_new("the canary to wait for memory", waits);
                stage.take_memory(&host, 0..2);
            },
            mend: Stage::give_memory_back,
            end: RolledBack,
            why: "",
            within: slow,
            ..PLAIN
        },
        Case {
            name: "image: no container engine",
            spec: image,
            // Whether nothing of it runs is known only when there is an engine to be asked.
            mend: |stage| {
                for host in crate::stage::HOSTS {
                    stage.lab(&["dockerd", host, "start"]);
                }
            },
            end: RolledBack,
            why: "container engine",
            within: slow,
            ..PLAIN
        },
        Case {
            name: "image missing",
            spec: image,
            before: |stage| {
                for host in crate::stage::HOSTS {
                    stage.lab(&["dockerd", host, "start"]);
                }
            },
            mend: |stage| {
                for host in crate::stage::HOSTS {
                    stage.lab(&["dockerd", host, "stop"]);
                }
            },
            end: RolledBack,
            why: "none:1",
            ..PLAIN
        },
        Case {
            // Behind a command line of the user's own nobody but the engine knows that they are needed.
            name: "weights missing",
            spec: |s| reads(s, "/srv/none.gguf"),
            end: RolledBack,
            why: "none.gguf: No such file",
            ..PLAIN
        },
        Case {
            name: "weights gone before the second replica",
            spec: |s| reads(s, "/srv/model.gguf"),
            before: |stage| stage.place_weights(true),
            fault: |stage| {
                stage.await_measuring();
                stage.place_weights(false);
            },
            end: RolledBack,
            why: "/srv/model.gguf",
            ..PLAIN
        },
        // Hosts.
        Case {
            name: "host: power failure in load, for good",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["kill", "h3"]);
            },
            mend: |stage| {
                stage.lab(&["start", "h3"]);
            },
            end: RolledBack,
            why: "",
            broken: Host("h3"),
            within: slow,
            ..PLAIN
        },
        Case {
            // Of the host without the canary: a canary that dies is taken back.
            name: "host: power failure while measured, back at once",
            fault: |stage| {
                let host = stage.choose_without_canary(&stage.await_measuring());
                stage.lab(&["kill", host]);
                stage.lab(&["start", host]);
            },
            broken: Chosen,
            within: slow,
            ..PLAIN
        },
        Case {
            // The canary may be on it, and has to have its time after that.
            name: "host: frozen for 8 s",
            spec: |s| s.healthy_deadline = "24s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["freeze", "h3"]);
                stage.pause(8);
                stage.lab(&["thaw", "h3"]);
            },
            within: slow,
            ..PLAIN
        },
        Case {
            name: "host: sshd stopped for 8 s",
            // The token is asked for over SSH: it has to be back, and tried again, before that.
            spec: |s| s.healthy_deadline = "24s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["sshd", "h3", "stop"]);
                stage.pause(8);
                stage.lab(&["sshd", "h3", "start"]);
            },
            within: slow,
            sample: true,
            ..PLAIN
        },
        Case {
            name: "host: sshd of all stopped for good while measured",
            fault: |stage| {
                stage.await_measuring();
                for host in ["h2", "h3"] {
                    stage.lab(&["sshd", host, "stop"]);
                }
            },
            mend: |stage| {
                for host in ["h2", "h3"] {
                    stage.lab(&["sshd", host, "start"]);
                }
            },
            end: Asks,
            why: "",
            within: slow,
            ..PLAIN
        },
        Case {
            // Shorter than the healthy deadline: the token is asked for over SSH.
            name: "network: port 22 of a host cut for 4 s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["cut-port", "h2", "22"]);
                stage.pause(4);
                stage.lab(&["cut-port", "h2", "restore"]);
            },
            within: slow,
            ..PLAIN
        },
        Case {
            name: "network: link of a host down for 5 s",
            fault: |stage| {
                stage.await_measuring();
                stage.lab(&["link", "h3", "down"]);
                stage.pause(5);
                stage.lab(&["link", "h3", "up"]);
            },
            within: slow,
            ..PLAIN
        },
        Case {
            name: "network: 10 % of a host's packets lost",
            before: |stage| stage.lab(&["loss", "h3", "10"]),
            mend: |stage| stage.lab(&["loss", "h3", "off"]),
            within: slow,
            ..PLAIN
        },
        Case {
            name: "network: 150 ms to a host",
            before: |stage| stage.lab(&["delay", "h3", "150ms"]),
            mend: |stage| stage.lab(&["delay", "h3", "off"]),
            within: slow,
            ..PLAIN
        },
        // The gateway.
        Case {
            name: "gateway: restarted while the canary loads",
            spec: |s| s.engine = "\"--load-time\", \"5s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.haproxy_restarts();
            },
            broken: Gateway,
            ..PLAIN
        },
        Case {
            name: "gateway: restarted while measured",
            fault: |stage| {
                stage.await_measuring();
                stage.haproxy_restarts();
            },
            broken: Gateway,
            ..PLAIN
        },
        Case {
            name: "gateway: frozen for 6 s",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.signal("h1", "STOP", "haproxy*haproxy.cfg*");
                stage.pause(6);
                stage.signal("h1", "CONT", "haproxy*haproxy.cfg*");
            },
            ..PLAIN
        },
        Case {
            name: "gateway: socket gone for 8 s",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.inside("h1", "mv /run/haproxy/admin.sock /run/haproxy/away");
                stage.pause(8);
                stage.inside("h1", "mv /run/haproxy/away /run/haproxy/admin.sock");
            },
            sample: true,
            ..PLAIN
        },
        Case {
            name: "gateway: socket gone for good",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.inside("h1", "mv /run/haproxy/admin.sock /run/haproxy/away");
            },
            mend: |stage| {
                stage.inside("h1", "mv /run/haproxy/away /run/haproxy/admin.sock");
            },
            end: RolledBack,
            why: "gateway",
            within: slow,
            ..PLAIN
        },
        // Disks.
        Case {
            name: "disk: a host's full before the start",
            before: |stage| stage.fill_disk(true),
            mend: |stage| stage.fill_disk(false),
            end: RolledBack,
            why: "space",
            ..PLAIN
        },
        Case {
            // Longer than the healthy deadline: nobody could write down that it was kept.
            name: "disk: the controller's full for 10 s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.operator.fill_state(true);
                stage.pause(10);
                stage.operator.fill_state(false);
            },
            within: slow,
            ..PLAIN
        },
        // The controller.
        Case {
            name: "controller: killed while the canary loads",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.operator.kill_controller();
            },
            ..PLAIN
        },
        Case {
            name: "controller: killed on the way back",
            spec: |s| s.engine = "\"--fail-load\",".to_owned(),
            fault: |stage| {
                stage.operator.wait_until_chat("the way back", |chat| {
                    chat.rollout.as_ref().is_some_and(|r| {
                        matches!(r.direction, gpudeck::api::Direction::Back { .. })
                    })
                });
                stage.operator.kill_controller();
            },
            end: RolledBack,
            why: "exit code 1",
            ..PLAIN
        },
        Case {
            name: "controller: killed, and a host's sshd away for 8 s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.lab(&["sshd", "h3", "stop"]);
                stage.operator.kill_controller();
                let _ = stage.operator.run(&["status", "chat"]);
                stage.pause(8);
                stage.lab(&["sshd", "h3", "start"]);
            },
            // The canary may be on that host, and the token is asked for over SSH.
            spec: |s| s.healthy_deadline = "24s",
            within: slow,
            ..PLAIN
        },
        Case {
            name: "controller: frozen for 8 s",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.signal_controller("STOP");
                stage.pause(8);
                stage.signal_controller("CONT");
            },
            mend: |stage| stage.signal_controller("CONT"),
            ..PLAIN
        },
        Case {
            name: "agent killed",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                for host in crate::stage::HOSTS {
                    stage.signal(host, "KILL", "*gpudeck*\\ agent\\ --state-dir*");
                }
            },
            ..PLAIN
        },
        // People.
        Case {
            name: "a person aborts while the canary loads",
            spec: |s| s.engine = "\"--load-time\", \"4s\",".to_owned(),
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.operator.expect(&["rollout", "abort", "chat"], 0);
            },
            end: Aborted,
            why: "aborted by",
            ..PLAIN
        },
        Case {
            name: "a person aborts while it is measured",
            fault: |stage| {
                stage.await_measuring();
                stage.operator.expect(&["rollout", "abort", "chat"], 0);
            },
            end: Aborted,
            why: "aborted by",
            ..PLAIN
        },
        Case {
            name: "a person aborts in the last stretch",
            spec: |s| s.engine = "\"--load-time\", \"3s\",".to_owned(),
            fault: |stage| {
                stage.operator.wait_until_chat("the last stretch", |chat| {
                    chat.rollout.as_ref().is_some_and(|r| r.outcome.is_none() && r.step == 2)
                        && crate::stage::new_ones(chat).any(|r| loading(&r.phase))
                });
                stage.operator.expect(&["rollout", "abort", "chat"], 0);
            },
            end: Aborted,
            why: "aborted by",
            ..PLAIN
        },
        Case {
            name: "pause, five more applies, resume",
            fault: |stage| {
                stage.await_new("the canary to load", loading);
                stage.operator.expect(&["rollout", "pause", "chat"], 0);
                for _ in 0..5 {
                    let done = stage.operator.run(&["apply", "chat", "--yes"]);
                    assert_ne!(done.code(), None, "an apply that hangs");
                }
                stage.operator.expect(&["rollout", "resume", "chat"], 0);
            },
            broken: Nothing,
            ..PLAIN
        },
    ]
}
