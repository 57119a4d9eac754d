//! The strategies that are not replica by replica, and borrowing, with the real binary as controller and command
//! line on the simulated fleet: what the rules promise is held against the engines' processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/mod.rs"]
mod common;
#[path = "strategies/scaling.rs"]
mod scaling;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::sim_fleet::{LONG, SimFleet};
use common::wait_until;
use serde_json::Value;

/// What a simulated GPU shows as used when nothing is on it, and what counts as its engine's, MiB.
const IDLE_MIB: u64 = 1_024;

/// Everything of a service here is timed for a test.
const TIMES: &str = "healthy_deadline = \"60s\"\nprogress_deadline = \"2m\"\n\
                     drain_deadline = \"20s\"\nstop_grace = \"5s\"\n";

impl SimFleet {
    /// One host of eight GPUs takes ranks; the other three are cordoned until a test needs them.
    fn with_one_host() -> Self {
        let fleet = Self::new();
        for host in ["gpu-2", "gpu-3", "gpu-4"] {
            fleet.expect(&["cordon", host, "-m", "not there"], 0);
        }
        fleet
    }

    fn root(&self) -> PathBuf {
        self.world().root().to_owned()
    }

    #[track_caller]
    fn apply(&self, service: &str, more: &[&str]) {
        let arguments = ["apply", service, "--yes", "--wait", "--timeout", "2m"];
        self.expect(&[&arguments[..], more].concat(), 0);
    }

    /// Writes a spec of two replicas; `tokens` tells its engines from those of another revision.
    fn spec(&self, service: &str, tensor: u32, tokens: u32, top: &str, rollout: &str) {
        self.spec_of(service, (2, tensor), tokens, top, rollout);
    }

    /// The same with so many replicas of so many GPUs.
    fn spec_of(
        &self,
        service: &str,
        (replicas, tensor): (u32, u32),
        tokens: u32,
        top: &str,
        rollout: &str,
    ) {
        let text = format!(
            r#"# SIMULATED: the engine is a process that plays one; there is no model.
model    = "simulated/{service}"
replicas = {replicas}
parallel = {{ tensor = {tensor} }}
memory   = "40GiB"
{top}
[engine.command]
run = [
  "{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}", "--model", "{service}",
  "--load-time", "500ms", "--gpu-memory", "40GiB", "--tokens", "{tokens}",
]

[rollout]
{TIMES}{rollout}
"#
        );
        std::fs::write(self.world().spec_path(service), text).unwrap();
    }

    /// Waits until so many GPUs of the deck hold an engine's memory: an ended engine's is free only a moment
    /// later, and a plan counts what is free.
    fn settle(&self, gpus: usize) {
        wait_until("the GPUs' memory to be as the replicas are", LONG, || {
            let hosts = self.json(&["hosts"], 0)["hosts"].clone();
            let samples = hosts.as_object().unwrap().values().map(|h| &h["sample"]["gpus"]["some"]);
            let gpu = samples.flat_map(|s| s.as_array().cloned().unwrap_or_default());
            let used = |g: &Value| g["memory"]["used"].as_u64().unwrap_or(0) >> 20 > IDLE_MIB;
            gpu.filter(used).count() == gpus
        });
    }

    fn watch(&self) -> Watch {
        Watch::begin(self.root())
    }
}

/// Looks at the engines' processes all the time. What it never saw may have been; what it saw was.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<BTreeSet<BTreeSet<String>>>>,
}

impl Watch {
    fn begin(root: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Acquire) {
                seen.insert(engines(&root).into_iter().map(|e| e.what).collect());
                std::thread::sleep(Duration::from_millis(10));
            }
            seen
        });
        Self { stop, thread: Some(thread) }
    }

    /// Every combination of `SERVICE TOKENS` that lived at a time.
    fn end(mut self) -> BTreeSet<BTreeSet<String>> {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Engine {
    /// `SERVICE TOKENS`
    what: String,
    pid: u32,
}

/// The engines of this test's hosts that live now.
fn engines(root: &Path) -> Vec<Engine> {
    let root = root.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        // A process may end while it is looked at: then it has no such file any more.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let words: Vec<&str> = line.split('\0').collect();
        let after = |name: &str| words.iter().skip_while(|w| **w != name).nth(1).copied();
        if !words.first().is_some_and(|w| w.starts_with(root))
            || words.get(1) != Some(&"sim-engine")
        {
            continue;
        }
        if let (Some(service), Some(tokens)) = (after("--model"), after("--tokens")) {
            found.push(Engine { what: format!("{service} {tokens}"), pid });
        }
    }
    found.sort();
    found
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

#[test]
fn recreate_asks_for_the_outage_and_never_runs_both_releases() {
    let fleet = SimFleet::with_one_host();
    fleet.spec("code", 4, 12, "", "");
    fleet.apply("code", &[]);
    fleet.settle(8);

    fleet.spec("code", 4, 13, "", "strategy = \"recreate\"");
    let refused = fleet.expect(&["apply", "code", "--yes"], 6);
    assert!(refused.stderr.contains("OUTAGE"), "{refused:#?}");
    assert!(refused.stderr.contains("--accept-outage"), "{refused:#?}");
    assert_eq!(fleet.status("code")["ready"], 2, "what is refused touches nothing");

    let watch = fleet.watch();
    fleet.expect(&["apply", "code", "--yes", "--accept-outage"], 0);
    // What is promised while it goes on is the plan's floor, not that of what is served.
    fleet.wait("code", "the floor of the outage", |v| v["floor"] == 0);
    fleet.expect(&["rollout", "status", "code", "--wait", "--timeout", "2m"], 0);
    assert_eq!(fleet.status("code")["floor"], 1);
    let seen = watch.end();
    assert!(!seen.contains(&set(&["code 12", "code 13"])), "both ran: {seen:?}");
    assert!(seen.contains(&set(&["code 12"])) && seen.contains(&set(&["code 13"])), "{seen:?}");
    let view = fleet.status("code");
    assert_eq!((&view["stable"], &view["ready"]), (&Value::from(2), &Value::from(2)), "{view:#}");
    assert_eq!(view["progress"]["lowest_ready"], 0, "the outage is not hidden: {view:#}");
}

#[test]
fn blue_green_needs_room_for_a_second_set_and_switches_all_traffic_at_once() {
    let fleet = SimFleet::with_one_host();
    fleet.spec("code", 4, 12, "", "");
    fleet.apply("code", &[]);
    fleet.settle(8);
    let old = engines(&fleet.root());

    let strategy =
        "strategy = \"blue-green\"\nsteps = [{ approve = true }]\nscale_down_delay = \"1s\"";
    fleet.spec("code", 4, 13, "", strategy);
    let refused = fleet.expect(&["apply", "code", "--yes"], 6);
    assert!(
        refused.stderr.contains("blue-green needs room for a whole second set"),
        "{refused:#?}"
    );
    assert!(refused.stderr.contains("free 8 more GPUs"), "{refused:#?}");
    assert_eq!(engines(&fleet.root()), old, "what is refused touches nothing");

    // With a second host there is room.
    fleet.expect(&["uncordon", "gpu-2"], 0);
    let watch = fleet.watch();
    fleet.expect(&["apply", "code", "--yes"], 0);
    let view = fleet.wait("code", "the gate", |v| v["rollout"]["gate"] == "approve");
    assert_eq!(view["ready"], 4, "two whole sets: {view:#}");
    assert_eq!(traffic(&view), (100, 0), "before the switch the new set gets nothing: {view:#}");
    fleet.expect(&["rollout", "promote", "code"], 0);
    fleet.expect(&["rollout", "status", "code", "--wait", "--timeout", "2m"], 0);
    let seen = watch.end();
    assert!(seen.contains(&set(&["code 12", "code 13"])), "{seen:?}");
    let view = fleet.status("code");
    assert_eq!((&view["stable"], &view["ready"]), (&Value::from(2), &Value::from(2)), "{view:#}");
    assert_eq!(traffic(&view), (0, 100), "{view:#}");
    assert_eq!(view["progress"]["lowest_ready"], 2, "{view:#}");
}

/// The shares of r1 and of r2, percent.
fn traffic(view: &Value) -> (u64, u64) {
    let of = |release: &str| {
        let replicas = view["replicas"].as_array().unwrap().iter();
        let ours = replicas.filter(|r| r["id"].as_str().unwrap().starts_with(release));
        ours.map(|r| r["weight_percent"].as_u64().unwrap()).sum()
    };
    (of("r1-"), of("r2-"))
}

#[test]
fn a_rollout_borrows_from_a_service_of_lower_priority_and_gives_back() {
    let fleet = SimFleet::with_one_host();
    fleet.spec("chat", 2, 12, "placement = { priority = -1 }", "max_unavailable = 1");
    fleet.apply("chat", &[]);
    fleet.spec("code", 2, 12, "", "");
    fleet.apply("code", &[]);
    fleet.settle(8);

    // All eight GPUs are taken, and not one replica of code may be missing.
    let whole = "max_unavailable = 0\nmax_surge = 1";
    fleet.spec("code", 2, 13, "", whole);
    fleet.expect(&["apply", "code", "--yes"], 6);

    fleet.spec("code", 2, 13, "", &format!("{whole}\nborrow = \"chat\""));
    let plan = fleet.json(&["plan", "code"], 2);
    let borrows = plan["borrows"].as_array().unwrap();
    assert_eq!(borrows.len(), 1, "the fewest that help: {plan:#}");
    assert_eq!(borrows[0]["lender"], "chat", "{plan:#}");
    let before = engines(&fleet.root());
    fleet.apply("code", &[]);
    let view = fleet.status("code");
    assert_eq!((&view["ready"], &view["progress"]["lowest_ready"]), (&2.into(), &2.into()));

    // The loan ends with the rollout; chat is whole again, and only the one that was lent was ended.
    let chat = fleet.wait("chat", "chat to be whole again", |v| v["ready"] == 2);
    assert_eq!((&chat["stable"], &chat["condition"]), (&1.into(), &"serving".into()), "{chat:#}");
    fleet.settle(8);
    let after = engines(&fleet.root());
    let chats = |all: &[Engine]| -> BTreeSet<u32> {
        all.iter().filter(|e| e.what == "chat 12").map(|e| e.pid).collect()
    };
    assert_eq!((chats(&before).len(), chats(&after).len()), (2, 2), "{after:?}");
    assert_eq!(chats(&before).intersection(&chats(&after)).count(), 1, "{before:?} {after:?}");
    let codes: Vec<&str> =
        after.iter().map(|e| e.what.as_str()).filter(|w| w.starts_with("code")).collect();
    assert_eq!(codes, ["code 13", "code 13"]);
    let events = fleet.expect(&["events"], 0).stdout;
    assert!(events.contains("is lent to code until its rollout is over"), "{events}");
}

#[test]
fn services_together_are_planned_in_their_order_and_refused_whole() {
    let fleet = SimFleet::with_one_host();
    let together = ["apply", "chat", "code", "--yes"];
    let untouched = |view: &Value| view["stable"].is_null() && view["ready"] == 0;
    // Each alone has room on the eight GPUs, both have not.
    fleet.spec("chat", 4, 12, "", "");
    fleet.spec("code", 4, 12, "", "");
    let refused = fleet.expect(&together, 6);
    assert!(refused.stderr.contains("code, after chat"), "{refused:#?}");
    assert!(refused.stderr.contains('→'), "the smallest change is told: {refused:#?}");
    assert_eq!(engines(&fleet.root()), [], "what is refused touches nothing");
    assert!(untouched(&fleet.status("chat")));

    // chat gives back half of its GPUs, and code comes after it: only so do both fit.
    fleet.apply("chat", &[]);
    fleet.settle(8);
    fleet.spec("chat", 2, 13, "", "");
    fleet.spec("code", 2, 12, "", "");
    fleet.expect(&["plan", "code"], 1);
    let done =
        fleet.expect(&["apply", "chat", "code", "--yes", "--wait", "--timeout", "2m"], 0).stdout;
    assert!(done.contains("chat: r1 → r2") && done.contains("code: nothing → r3"), "{done}");
    fleet.settle(8);

    // An OUTAGE of the second is found before the first begins.
    fleet.spec("chat", 2, 14, "", "");
    fleet.spec("code", 2, 13, "", "strategy = \"recreate\"");
    let refused = fleet.expect(&together, 6);
    assert!(refused.stderr.contains("code, after chat: OUTAGE"), "{refused:#?}");
    assert!(refused.stderr.contains("--accept-outage"), "{refused:#?}");
    let chat = fleet.status("chat");
    assert_eq!((&chat["stable"], &chat["rollout"]["to"]), (&2.into(), &2.into()), "{chat:#}");
    fleet.expect(&[&together[..], &["--accept-outage", "--wait", "--timeout", "2m"]].concat(), 0);
    assert_eq!(fleet.status("code")["stable"], 5);
}

#[test]
fn a_rollout_borrows_from_one_host_where_the_lender_is_spread_over_two() {
    let fleet = SimFleet::with_one_host();
    fleet.expect(&["uncordon", "gpu-2"], 0);
    // Four replicas of four GPUs fill both hosts: 0 and 2 are on one, 1 and 3 on the other.
    fleet.spec_of("chat", (4, 4), 12, "placement = { priority = -1 }", "max_unavailable = 2");
    fleet.apply("chat", &[]);
    fleet.expect(&["uncordon", "gpu-3"], 0);
    fleet.spec_of("code", (1, 8), 12, "", "");
    fleet.apply("code", &[]);
    fleet.settle(24);

    // The next replica of code wants eight GPUs of one host, and not one replica may be missing.
    fleet.spec_of("code", (1, 8), 13, "", "max_unavailable = 0\nmax_surge = 1\nborrow = \"chat\"");
    let plan = fleet.json(&["plan", "code"], 2);
    let borrows = plan["borrows"].as_array().unwrap();
    let from: BTreeSet<&str> =
        borrows.iter().map(|b| b["from"][0]["host"].as_str().unwrap()).collect();
    assert_eq!((borrows.len(), from.len()), (2, 1), "two replicas of one host: {plan:#}");
    assert_eq!(plan["forecast"]["lowest_ready"], 1, "{plan:#}");
}
