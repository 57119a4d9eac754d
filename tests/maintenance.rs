//! Plans with measured times and what came of them, cordons, drains and upgrades, on the simulated fleet with
//! the real binary as controller and command line.

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
        let home = tempfile::Builder::new().prefix("gdm").tempdir_in("/tmp").unwrap();
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

    fn edit(&self, from: &str, to: &str) {
        let path = self.world().spec_path("code");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    /// The hosts on which replicas of `code` are, one entry a replica.
    fn code_is_on(&self) -> Vec<String> {
        let view = self.json(&["status", "code"], 0);
        let replicas = view["replicas"].as_array().unwrap();
        replicas.iter().map(|r| r["ranks"][0]["host"].as_str().unwrap().to_owned()).collect()
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

#[test]
fn a_plan_tells_steps_and_measured_times_and_what_happened_is_beside_it() {
    let place = Place::new();
    // Never measured: that is said, nothing is guessed.
    let first = place.json(&["plan", "code"], 2);
    let unknown = first["total"]["unknown"].to_string();
    assert!(unknown.contains("2 replicas never measured to load: simulated/coder-8b"), "{first:#}");
    assert_eq!(first["total"]["known_ms"], 0);
    place.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);

    place.edit("\"12\"", "\"13\"");
    let plan = place.json(&["plan", "code"], 2);
    assert!(plan["diff"].as_str().unwrap().contains("+  \"--load-time\""), "{plan:#}");
    let steps = plan["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 1, "{plan:#}");
    assert_eq!(steps[0]["title"], "all replicas");
    assert_eq!(steps[0]["lowest"], true);
    let moves = steps[0]["moves"].as_array().unwrap();
    let starts: Vec<&Value> = moves.iter().filter(|m| m["verb"] == "start").collect();
    assert_eq!((starts.len(), moves.len()), (2, 4), "{plan:#}");
    for start in starts {
        assert!(start["how"].as_str().unwrap().starts_with("surge"), "{start:#}");
        assert!(start["ranks"][0]["devices_text"].as_str().unwrap().contains("GPU "), "{start:#}");
    }
    // The engine takes 1.5 s to load, and one gang is spare at a time.
    assert!(plan["total"]["known_ms"].as_u64().unwrap() >= 1_500, "{plan:#}");
    assert!(!plan["total"]["unknown"].to_string().contains("to load"), "{plan:#}");
    let text = place.expect(&["plan", "code"], 2).stdout;
    assert!(text.contains("◀ lowest point"), "{text}");

    place.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let progress = &place.json(&["rollout", "status", "code"], 0)["progress"];
    assert_eq!(progress["predicted"], plan["total"], "{progress:#}");
    assert_eq!(progress["predicted_lowest"], 2);
    assert_eq!(progress["lowest_ready"], 2, "{progress:#}");
    assert!(progress["ended"].is_u64(), "{progress:#}");
    assert!(progress["steps"][0]["ended"].is_u64(), "{progress:#}");
    let history = place.json(&["history", "code"], 0);
    assert_eq!(history[0]["progress"], *progress);
    let text = place.expect(&["rollout", "status", "code"], 0).stdout;
    assert!(text.contains("FORESEEN"), "{text}");

    // What was foreseen and what happened survive the controller.
    place.kill_controller();
    assert_eq!(place.json(&["rollout", "status", "code"], 0)["progress"], *progress);
    place.expect(&["plan", "code"], 0);
}

#[test]
fn a_drain_moves_replicas_away_and_a_killed_controller_goes_on_with_it() {
    let place = Place::new();
    place.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let host = place.code_is_on()[0].clone();

    // What does not fit is refused, and nothing is touched.
    let others = ["gpu-1", "gpu-2", "gpu-3", "gpu-4"].into_iter().filter(|h| *h != host);
    for other in others.clone() {
        place.expect(&["cordon", other, "-m", "not there"], 0);
    }
    let refused = place.expect(&["drain", &host, "--yes"], 6);
    assert!(refused.stderr.contains("cannot be drained"), "{refused:#?}");
    assert!(refused.stderr.contains("cordoned"), "{refused:#?}");
    let hosts = place.json(&["hosts"], 0);
    assert_eq!(hosts[&host]["maintenance"]["cordons"], serde_json::json!([]));
    // A cordoned host's replicas serve on; the cordons survive the controller.
    place.kill_controller();
    let text = place.expect(&["hosts"], 0).stdout;
    assert_eq!(text.matches("up, cordoned").count(), 3, "{text}");
    assert_eq!(place.json(&["status", "code"], 0)["ready"], 2);
    for other in others {
        place.expect(&["uncordon", other], 0);
    }

    let plan = place.json(&["drain", &host, "--dry-run"], 2);
    let count = plan["moves"].as_array().unwrap().len();
    assert!(count >= 1, "{plan:#}");
    assert_eq!(plan["moves"][0]["replica"].as_str().map(|r| r.starts_with("r1-")), Some(true));
    place.expect(&["drain", &host, "--yes"], 0);
    place.kill_controller();
    place.expect(&["hosts"], 0);
    let lost = std::cell::Cell::new(0);
    wait_until("the host to be empty", Duration::from_mins(2), || {
        let hosts = place.json(&["hosts"], 0);
        let maintenance = &hosts[&host]["maintenance"];
        // A start that the kill cut off half way may be lost. The drain ends and says so; a person asks again.
        let trouble = maintenance["drain"]["trouble"].as_str().map(str::to_owned);
        if let Some(trouble) = trouble.filter(|t| lost.get() < 2 && t.contains("nobody saw how")) {
            println!("{trouble}: again");
            lost.set(lost.get() + 1);
            place.expect(&["drain", &host, "--yes"], 0);
            return false;
        }
        assert_eq!(maintenance["drain"]["trouble"], Value::Null, "{maintenance:#}");
        maintenance["drain"]["ended"].is_u64()
    });
    let view = place.json(&["status", "code"], 0);
    assert_eq!((view["ready"].as_u64(), view["condition"].as_str()), (Some(2), Some("serving")));
    assert!(!place.code_is_on().contains(&host), "{view:#}");
    assert!(place.expect(&["hosts"], 0).stdout.contains("drained"));
    let audit = place.expect(&["audit", "--output", "json"], 0).stdout;
    assert!(audit.contains("drain_ended"), "{audit}");

    // No new rank goes there, until it is welcome again.
    place.edit("\"12\"", "\"14\"");
    place.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    assert!(!place.code_is_on().contains(&host));
    place.expect(&["uncordon", &host, "-m", "the fans are new"], 0);
    let audit = place.expect(&["audit", "--output", "json"], 0).stdout;
    assert!(audit.contains("\"why\":\"the fans are new\""), "{audit}");
    let hosts = place.json(&["hosts"], 0);
    assert_eq!(hosts[&host]["maintenance"]["drain"], Value::Null);
    // A single GPU.
    place.expect(&["cordon", &format!("{host}/3")], 0);
    assert!(place.expect(&["hosts"], 0).stdout.contains("GPU 3 cordoned"));
    place.expect(&["cordon", &format!("{host}/99")], 8);
    place.expect(&["cordon", "nosuch"], 8);
}

/// While a host is maintained its services can be rolled out and undone where there is room beside it.
#[test]
fn a_rollout_goes_around_a_host_that_is_maintained() {
    let place = Place::new();
    place.edit("max_unavailable   = 0", "max_unavailable   = 1");
    place.edit("[rollout]", "[placement]\nspread = \"host\"\n\n[rollout]");
    place.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let on = place.code_is_on();
    let (first, second) = (on[0].as_str(), on[1].as_str());
    let others: Vec<&str> = ["gpu-1", "gpu-2", "gpu-3", "gpu-4"]
        .into_iter()
        .filter(|h| *h != first && *h != second)
        .collect();
    for other in others.iter().chain([&second]) {
        place.expect(&["cordon", other], 0);
    }
    place.expect(&["drain", first, "--yes"], 0);
    assert_eq!(place.json(&["status", "code"], 0)["ready"], 1);

    // Nowhere to go: which host would make room is said.
    place.edit("1500ms", "1400ms");
    let refused = place.expect(&["apply", "code", "--yes"], 6);
    assert!(refused.stderr.contains(&format!("gpudeck uncordon {first}")), "{refused:#?}");

    // Room beside it: rolled out whole, and back again.
    place.expect(&["uncordon", others[0]], 0);
    place.expect(&["uncordon", second], 0);
    place.expect(&["apply", "code", "--yes", "--wait", "--timeout", "2m"], 0);
    let view = place.json(&["status", "code"], 0);
    assert_eq!((&view["ready"], &view["stable"]), (&2.into(), &2.into()), "{view:#}");
    place.expect(&["rollout", "undo", "code", "--yes", "--wait", "--timeout", "2m"], 0);
    assert!(!place.code_is_on().iter().any(|host| host == first));
    // What was out is nothing any more.
    place.expect(&["uncordon", first], 0);
    let view = place.json(&["status", "code"], 0);
    assert_eq!((&view["ready"], &view["trouble"]), (&2.into(), &Value::Null), "{view:#}");
    assert!(!place.expect(&["events"], 0).stdout.contains("no replica is ready"));
}

/// A fleet whose GPUs are all in use can be maintained, too, as far as the floors allow.
#[test]
fn what_has_no_other_place_stops_until_its_host_is_back() {
    let place = Place::new();
    place.edit("max_unavailable   = 0", "max_unavailable   = 1");
    place.edit("[rollout]", "[placement]\nspread = \"host\"\n\n[rollout]");
    place.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let on = place.code_is_on();
    let (first, second) = (on[0].as_str(), on[1].as_str());
    assert_ne!(first, second);
    for other in ["gpu-1", "gpu-2", "gpu-3", "gpu-4"].into_iter().filter(|h| *h != first) {
        place.expect(&["cordon", other], 0);
    }
    let plan = place.json(&["drain", first, "--dry-run"], 2);
    assert_eq!(plan["moves"].as_array().unwrap().len(), 0, "{plan:#}");
    assert_eq!(plan["out"].as_array().unwrap().len(), 1, "{plan:#}");
    place.expect(&["drain", first, "--yes"], 0);
    let view = place.json(&["status", "code"], 0);
    assert_eq!(view["ready"], 1, "{view:#}");
    let text = place.expect(&["status", "code"], 0).stdout;
    assert!(text.contains(&format!("is out until {first} is uncordoned")), "{text}");
    // The other one is all that serves.
    let refused = place.expect(&["drain", second, "--yes"], 6);
    assert!(refused.stderr.contains("0 may stop meanwhile"), "{refused:#?}");

    place.kill_controller();
    place.expect(&["uncordon", first], 0);
    wait_until("what was out", LONG, || place.json(&["status", "code"], 0)["ready"] == 2);
    assert_eq!(place.code_is_on(), on);

    // Both hosts one after the other, and never fewer than one.
    place.expect(&["uncordon", second], 0);
    let hosts = format!("{first},{second}");
    let upgrade = place.json(&["hosts", "upgrade", "--run", "true", "--hosts", &hosts, "--yes"], 0);
    assert_eq!(upgrade["hosts"][1]["state"]["state"], "done", "{upgrade:#}");
    wait_until("what was out", LONG, || place.json(&["status", "code"], 0)["ready"] == 2);
    assert!(!place.expect(&["events"], 0).stdout.contains("is down"), "it served throughout");
}

#[test]
fn hosts_are_upgraded_one_after_the_other_and_a_failure_stops_it() {
    let place = Place::new();
    place.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let host = place.code_is_on()[0].clone();
    let mark = place.home.path().join("mark");
    let command = format!("echo \"$GPUDECK_HOST\" >> {}", mark.display());
    let arguments = ["hosts", "upgrade", "--run", &command, "--hosts", &host, "--yes"];
    place.expect(&["cordon", &format!("{host}/3"), "-m", "ECC"], 0);
    let upgrade = place.json(&arguments, 0);
    assert_eq!(upgrade["hosts"][0]["state"]["state"], "done", "{upgrade:#}");
    // Once, on that host, which is welcome again, but for the GPU that was not before.
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), format!("{host}\n"));
    let cordons = place.json(&["hosts"], 0)[&host]["maintenance"]["cordons"].clone();
    assert_eq!(cordons.as_array().unwrap().len(), 1, "{cordons:#}");
    assert_eq!(cordons[0]["reason"], "ECC", "{cordons:#}");
    place.expect(&["uncordon", &format!("{host}/3")], 0);
    assert_eq!(place.json(&["status", "code"], 0)["ready"], 2);

    let bad =
        ["hosts", "upgrade", "--run", "echo no space; exit 3", "--hosts", "gpu-3,gpu-4", "--yes"];
    let upgrade = place.json(&bad, 3);
    let why = upgrade["hosts"][0]["state"]["why"].as_str().unwrap();
    assert_eq!(why, "exit code 3: no space");
    assert_eq!(upgrade["hosts"][1]["state"]["state"], "skipped", "{upgrade:#}");
    let text = place.expect(&["hosts"], 0).stdout;
    assert!(text.contains("UPGRADE FAILED"), "{text}");
    let hosts = place.json(&["hosts"], 0);
    assert_eq!(hosts["gpu-3"]["maintenance"]["cordons"][0]["reason"], "upgrade");
    assert_eq!(hosts["gpu-4"]["maintenance"]["cordons"], serde_json::json!([]));

    // Nobody saw how this one ended: that is not a good end.
    let command = "sleep 2; kill -9 $PPID";
    let upgrade =
        place.json(&["hosts", "upgrade", "--run", command, "--hosts", "gpu-4", "--yes"], 3);
    let why = upgrade["hosts"][0]["state"]["why"].as_str().unwrap();
    assert!(why.contains("how the command ended is not known"), "{why}");

    // Stopped: what is begun is finished, and no other host is begun.
    place.expect(&["uncordon", "gpu-4"], 0);
    let command = ["hosts", "upgrade", "--run", "sleep 2", "--hosts", "gpu-4,gpu-2", "--yes"];
    place.expect(&[&command[..], &["--no-wait"]].concat(), 0);
    wait_until("the command on the first host", LONG, || {
        place.json(&["hosts"], 0)["gpu-4"]["maintenance"]["upgrade"]["state"] == "running"
    });
    place.expect(&["hosts", "upgrade", "--stop"], 0);
    wait_until("the end of the first host", LONG, || {
        place.json(&["hosts"], 0)["gpu-4"]["maintenance"]["upgrade"]["state"] == "done"
    });
    let hosts = place.json(&["hosts"], 0);
    assert_eq!(hosts["gpu-2"]["maintenance"]["upgrade"]["state"], "skipped", "{hosts:#}");
    assert_eq!(hosts["gpu-2"]["maintenance"]["cordons"], serde_json::json!([]));
}

/// A host is not told to be empty while a rollout that waits for a person will still start something there.
#[test]
fn a_host_on_which_a_rollout_is_about_to_start_something_is_not_drained() {
    let place = Place::new();
    place.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    place.edit(
        "[rollout]",
        "[placement]\nspread = \"host\"\n\n[rollout]\nsteps = [{ weight = 50 }, { approve = true }]",
    );
    place.edit("\"12\",", "\"11\",");
    for host in place.code_is_on() {
        place.expect(&["cordon", &host], 0);
    }
    let plan = place.json(&["plan", "code"], 2);
    place.expect(&["apply", "code"], 0);
    wait_until("the gate", LONG, || {
        place.json(&["status", "code"], 0)["rollout"]["gate"].to_string().contains("approve")
    });
    let on = place.code_is_on();
    let steps = plan["steps"].as_array().unwrap();
    let moves = steps.iter().flat_map(|step| step["moves"].as_array().unwrap());
    let starts = moves.filter(|m| m["verb"] == "start");
    let mut places = starts.map(|m| m["ranks"][0]["host"].as_str().unwrap());
    let later = places.find(|host| !on.iter().any(|h| h == host));
    let later = later.unwrap_or_else(|| panic!("no host is used later: {plan:#}"));
    let refused = place.expect(&["drain", later, "--yes"], 5);
    assert!(refused.stderr.contains("will start a replica there"), "{refused:#?}");
    place.expect(&["rollout", "abort", "code"], 0);
}

#[test]
fn time_without_a_controller_is_not_the_hosts_that_are_upgraded() {
    let place = Place::new();
    let mark = place.home.path().join("mark");
    // With its deadline after 4 s it would be ended, were the seconds without a controller counted.
    let command = format!("touch {}; sleep 9", mark.display());
    let arguments = ["--hosts", "gpu-3", "--timeout", "4s", "--no-wait", "--yes"];
    place.expect(&[&["hosts", "upgrade", "--run", &command], &arguments[..]].concat(), 0);
    wait_until("the command", LONG, || mark.exists());
    place.kill_controller();
    std::thread::sleep(Duration::from_secs(6));
    let mut state = Value::Null;
    wait_until("the end of the command", LONG, || {
        state = place.json(&["hosts"], 0)["gpu-3"]["maintenance"]["upgrade"].clone();
        state["state"] != "running" && state["state"] != "draining"
    });
    assert_ne!(state["state"], "failed", "{state:#}");
}

#[test]
fn several_services_are_rolled_out_in_order_and_taken_back_together() {
    let place = Place::new();
    // chat comes after code; only code can be rolled out well.
    let chat = place.world().spec_path("chat");
    let text = std::fs::read_to_string(&chat).unwrap();
    let text = text.replace("[rollout]", "[rollout]\nafter = [\"code\"]");
    let text = text.replace("replicas = 4", "replicas = 1");
    std::fs::write(&chat, &text).unwrap();
    let together = ["apply", "chat", "code", "--atomic", "--wait", "--timeout", "2m"];
    let group = place.json(&together, 0);
    let order: Vec<&str> = group["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["service"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["code", "chat"]);
    assert_eq!(place.json(&["status", "code"], 0)["stable"], 1);
    assert_eq!(place.json(&["status", "chat"], 0)["stable"], 2);

    place.edit("\"12\"", "\"13\"");
    std::fs::write(&chat, text.replace("\"--load-time\", \"2s\"", "\"--no-such-flag\"")).unwrap();
    let group = place.json(&together, 3);
    let states = &group["services"];
    assert_eq!(states[0]["state"]["state"], "undone", "{group:#}");
    assert_eq!(states[1]["state"]["state"], "failed", "{group:#}");
    // code serves its first spec again, chat never stopped serving its own.
    assert_eq!(place.json(&["history", "code"], 0)[0]["outcome"], "completed");
    let code = std::fs::read_to_string(place.world().spec_path("code")).unwrap();
    assert!(code.contains("\"12\""), "{code}");
    assert_eq!(place.json(&["status", "chat"], 0)["stable"], 2);

    let path = place.world().spec_path("code");
    let circle = code.replace("[rollout]", "[rollout]\nafter = [\"chat\"]");
    std::fs::write(path, circle).unwrap();
    let refused = place.expect(&["apply", "chat", "code"], 1);
    assert!(
        refused.stderr.contains("wait for each other: chat after code after chat"),
        "{refused:#?}"
    );
}
