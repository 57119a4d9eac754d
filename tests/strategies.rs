//! Blue-green, recreate and borrowing on the simulated fleet, with the real binary as controller and command line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Finished, run, wait_until};
use gpudeck::demo::World;
use serde_json::Value;

const LONG: Duration = Duration::from_mins(3);

/// A simulated fleet with a deck; its controller is a process of its own.
struct Place {
    world: Option<World>,
    home: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("gds").tempdir_in("/tmp").unwrap();
        std::fs::create_dir(home.path().join("w")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let world = runtime.block_on(World::start(Some(home.path().join("w")))).unwrap();
        gpudeck::controller::init_repository(&world.deck_dir()).unwrap();
        Self { world: Some(world), home, _runtime: runtime }
    }

    fn world(&self) -> &World {
        self.world.as_ref().unwrap()
    }

    fn gpudeck(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpudeck"));
        command
            .arg("--deck")
            .arg(self.world().deck_dir())
            .args(arguments)
            .env("GPUDECK_HOME", self.home.path().join("s"))
            .env("HOME", self.home.path())
            .env("USER", "tester")
            .env_remove("SSH_AUTH_SOCK");
        run(&mut command, LONG)
    }

    #[track_caller]
    fn expect(&self, arguments: &[&str], code: i32) -> Finished {
        let done = self.gpudeck(arguments);
        let story = || self.gpudeck(&["events"]).stdout;
        assert!(done.code() == Some(code), "{arguments:?}: {done:#?}\n{}", story());
        done
    }

    #[track_caller]
    fn json(&self, arguments: &[&str], code: i32) -> Value {
        let done = self.expect(&[arguments, &["--output", "json"]].concat(), code);
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {}", done.stdout))
    }

    /// Two replicas of two of the eight GPUs of one host: two such services fill it.
    fn write(&self, service: &str, load: &str, placement: &str, rollout: &str) {
        let text = format!(
            r#"model    = "simulated/{service}"
replicas = 2
parallel = {{ tensor = 2 }}
memory   = "40GiB"

[engine.command]
run = [
  "{{gpudeck}}", "sim-engine", "--address", "{{address}}", "--port", "{{port}}", "--model", "{service}",
  "--load-time", "{load}", "--gpu-memory", "40GiB", "--tokens", "12",
]
metrics = "vllm"

[placement]
hosts = ["gpu-1"]
{placement}

[rollout]
healthy_deadline  = "60s"
progress_deadline = "2m"
drain_deadline    = "20s"
stop_grace        = "5s"
{rollout}
"#
        );
        std::fs::write(self.world().spec_path(service), text).unwrap();
    }

    fn apply(&self, service: &str) {
        self.expect(&["apply", service, "--wait", "--timeout", "2m", "--yes"], 0);
    }

    fn ready(&self, service: &str) -> u64 {
        self.json(&["status", service], 0)["ready"].as_u64().unwrap()
    }

    fn kill_controller(&self) {
        let status = self.json(&["controller", "status"], 0);
        let pid = i32::try_from(status["version"]["pid"].as_i64().unwrap()).unwrap();
        let target = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(target, rustix::process::Signal::KILL).unwrap();
        wait_until("the controller's death", Duration::from_secs(30), || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !Path::new(&format!("/proc/{pid}")).exists() || state.contains(") Z ")
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.gpudeck(&["controller", "stop"]);
        // Engines end with it.
        self.world = None;
    }
}

/// What was foreseen is what happened: the capacity, and every step was walked.
fn as_foreseen(place: &Place, service: &str, titles: &[&str], lowest: u64) {
    let progress = &place.json(&["rollout", "status", service], 0)["progress"];
    assert_eq!(progress["predicted_lowest"], lowest, "{progress:#}");
    assert_eq!(progress["lowest_ready"], lowest, "{progress:#}");
    let steps = progress["steps"].as_array().unwrap();
    let seen: Vec<&str> = steps.iter().map(|s| s["title"].as_str().unwrap()).collect();
    assert_eq!(seen, titles);
    for step in steps {
        assert!(step["ended"].is_u64(), "{step:#}");
        assert!(step["lowest_ready"].as_u64() >= step["predicted_lowest"].as_u64(), "{step:#}");
    }
}

#[test]
fn all_replicas_at_once_beside_the_old_ones_or_after_them() {
    let place = Place::new();
    place.write("code", "1s", "", "");
    place.apply("code");

    // Beside: four of the eight GPUs are free.
    place.write("code", "1100ms", "", "strategy = \"blue-green\"\nscale_down_delay = \"1s\"");
    let plan = place.json(&["plan", "code"], 2);
    assert_eq!(plan["forecast"]["lowest_ready"], 2, "{plan:#}");
    place.apply("code");
    let titles =
        ["second set, no traffic", "switch all traffic", "keep the old set 1s", "the old set goes"];
    as_foreseen(&place, "code", &titles, 2);
    place.expect(&["plan", "code"], 0);

    // Without room it is refused, with what would work; nothing is touched.
    place.write("batch", "1s", "", "");
    place.apply("batch");
    place.write("code", "1200ms", "", "strategy = \"blue-green\"");
    for verb in [&["plan", "code"][..], &["apply", "code", "--yes"]] {
        let refused = place.expect(verb, 6);
        assert!(refused.stderr.contains("room for a whole second set"), "{refused:#?}");
        assert!(
            refused
                .stderr
                .contains("set strategy = \"rolling\" (it fits in place), or free 4 more GPUs"),
            "{refused:#?}"
        );
    }
    assert_eq!(place.ready("code"), 2);

    // After them: an outage, which a person accepts or not.
    place.write("code", "1200ms", "", "strategy = \"recreate\"");
    let plan = place.expect(&["plan", "code"], 2).stdout;
    assert!(plan.contains("OUTAGE"), "{plan}");
    assert!(plan.contains("recreate: all old ones go first"), "{plan}");
    let refused = place.expect(&["apply", "code", "--yes"], 6);
    assert!(refused.stderr.contains("--accept-outage"), "{refused:#?}");
    place.expect(&["apply", "code", "--wait", "--timeout", "2m", "--yes", "--accept-outage"], 0);
    as_foreseen(&place, "code", &["all old ones go, then all replicas"], 0);
}

#[test]
fn room_is_borrowed_and_given_back_through_the_death_of_the_controller() {
    let place = Place::new();
    place.write("code", "1s", "priority = 10", "max_unavailable = 0\nmax_surge = 1");
    place.write("batch", "1s", "", "");
    place.apply("code");
    place.apply("batch");

    // Alone it would stand still.
    place.write("code", "4s", "priority = 10", "max_unavailable = 0\nmax_surge = 1");
    let refused = place.expect(&["plan", "code"], 6);
    assert!(refused.stderr.contains("stand still"), "{refused:#?}");
    // Not from somebody as important.
    let borrow = "max_unavailable = 0\nmax_surge = 1\nborrow = \"batch\"";
    place.write("code", "4s", "", borrow);
    let refused = place.expect(&["plan", "code"], 1);
    assert!(refused.stderr.contains("not lower than 0"), "{refused:#?}");
    place.write("code", "4s", "priority = 10", &borrow.replace("batch", "bach"));
    let refused = place.expect(&["plan", "code"], 1);
    assert!(refused.stderr.contains("did you mean `batch`?"), "{refused:#?}");

    place.write("code", "4s", "priority = 10", borrow);
    let plan = place.json(&["plan", "code"], 2);
    assert_eq!(plan["forecast"]["lowest_ready"], 2, "{plan:#}");
    assert_eq!(plan["borrows"].as_array().unwrap().len(), 1, "{plan:#}");
    let text = place.expect(&["plan", "code"], 2).stdout;
    assert!(text.contains("borrowed: batch r2-"), "{text}");
    assert!(text.contains("on what is borrowed"), "{text}");
    assert!(text.contains("until the rollout is over, and comes back on gpu-1 GPU"), "{text}");

    place.expect(&["apply", "code", "--yes"], 0);
    wait_until("a replica to be lent", Duration::from_mins(1), || place.ready("batch") == 1);
    place.kill_controller();
    let refused = place.expect(&["plan", "batch"], 0);
    assert!(refused.stdout.contains("nothing to do"), "{refused:#?}");
    wait_until("the rollout's end", Duration::from_mins(2), || {
        assert!(place.ready("code") >= 2);
        assert!(place.ready("batch") >= 1);
        let status = place.json(&["rollout", "status", "code"], 0);
        status["rollout"]["outcome"] == "completed"
    });
    wait_until("what was lent", Duration::from_mins(1), || place.ready("batch") == 2);
    let events = place.expect(&["journal"], 0).stdout;
    assert!(events.contains("is lent to code until its rollout to r3 is over"), "{events}");
    assert!(events.contains("was lent and comes back"), "{events}");
}
