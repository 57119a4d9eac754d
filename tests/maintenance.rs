//! Plans with measured times and what came of them, cordons, drains and upgrades, on the simulated fleet with
//! the real binary as controller and command line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::{Duration, Instant};

use common::sim_fleet::{LONG, SimFleet};
use common::wait_until;
use gpudeck::api::{Door as _, Intent, PLAN_CHANGED, UpgradeQuestion};
use gpudeck::base::HostName;
use serde_json::Value;

impl SimFleet {
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
}

/// What a program is told of each host.
fn hosts_of(fleet: &SimFleet) -> Value {
    fleet.json(&["hosts"], 0)["hosts"].clone()
}

#[test]
fn a_plan_tells_steps_and_measured_times_and_what_happened_is_beside_it() {
    let fleet = SimFleet::new();
    // Never measured: that is said, nothing is guessed.
    let first = fleet.json(&["plan", "code"], 2);
    let unknown = first["total"]["unknown"].to_string();
    assert!(unknown.contains("2 replicas never measured to load: simulated/coder-8b"), "{first:#}");
    assert_eq!(first["total"]["known_ms"], 0);
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);

    fleet.edit("\"12\"", "\"13\"");
    let plan = fleet.json(&["plan", "code"], 2);
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
    let text = fleet.expect(&["plan", "code"], 2).stdout;
    assert!(text.contains("◀ lowest point"), "{text}");

    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let progress = &fleet.json(&["rollout", "status", "code"], 0)["progress"];
    assert_eq!(progress["predicted"], plan["total"], "{progress:#}");
    assert_eq!(progress["predicted_lowest"], 2);
    assert_eq!(progress["lowest_ready"], 2, "{progress:#}");
    assert!(progress["ended"].is_u64(), "{progress:#}");
    assert!(progress["steps"][0]["ended"].is_u64(), "{progress:#}");
    let history = fleet.json(&["history", "code"], 0);
    assert_eq!(history[0]["progress"], *progress);
    let text = fleet.expect(&["rollout", "status", "code"], 0).stdout;
    assert!(text.contains("FORESEEN"), "{text}");

    // What was foreseen and what happened survive the controller.
    fleet.kill_controller();
    assert_eq!(fleet.json(&["rollout", "status", "code"], 0)["progress"], *progress);
    fleet.expect(&["plan", "code"], 0);
}

#[test]
fn a_drain_moves_replicas_away_and_a_killed_controller_goes_on_with_it() {
    let fleet = SimFleet::new();
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let host = fleet.code_is_on()[0].clone();

    // What does not fit is refused, and nothing is touched.
    let others = ["gpu-1", "gpu-2", "gpu-3", "gpu-4"].into_iter().filter(|h| *h != host);
    for other in others.clone() {
        fleet.expect(&["cordon", other, "-m", "not there"], 0);
    }
    let refused = fleet.expect(&["drain", &host, "--yes"], 6);
    assert!(refused.stderr.contains("cannot be drained"), "{refused:#?}");
    assert!(refused.stderr.contains("cordoned"), "{refused:#?}");
    // Nor does an upgrade begin that would end at this host.
    let upgrade = ["hosts", "upgrade", "--run", "true", "--hosts", &host, "--yes"];
    let refused = fleet.expect(&upgrade, 6);
    assert!(refused.stderr.contains("no host is upgraded"), "{refused:#?}");
    assert!(refused.stderr.contains("cannot be drained"), "{refused:#?}");
    let hosts = hosts_of(&fleet);
    assert_eq!(hosts[&host]["maintenance"]["cordons"], serde_json::json!([]));
    assert_eq!(hosts[&host]["maintenance"]["upgrade"], Value::Null);
    // A cordoned host's replicas serve on; the cordons survive the controller.
    fleet.kill_controller();
    let text = fleet.expect(&["hosts"], 0).stdout;
    assert_eq!(text.matches("up, cordoned").count(), 3, "{text}");
    assert_eq!(fleet.json(&["status", "code"], 0)["ready"], 2);
    for other in others {
        fleet.expect(&["uncordon", other], 0);
    }

    let plan = fleet.json(&["drain", &host, "--dry-run"], 2);
    let count = plan["moves"].as_array().unwrap().len();
    assert!(count >= 1, "{plan:#}");
    assert_eq!(plan["moves"][0]["replica"].as_str().map(|r| r.starts_with("r1-")), Some(true));
    fleet.expect(&["drain", &host, "--yes"], 0);
    fleet.kill_controller();
    fleet.expect(&["hosts"], 0);
    let lost = std::cell::Cell::new(0);
    wait_until("the host to be empty", Duration::from_mins(2), || {
        let hosts = hosts_of(&fleet);
        let maintenance = &hosts[&host]["maintenance"];
        // A start that the kill cut off half way may be lost. The drain ends and says so; a person asks again.
        let trouble = maintenance["drain"]["trouble"].as_str().map(str::to_owned);
        if let Some(trouble) = trouble.filter(|t| lost.get() < 2 && t.contains("nobody saw how")) {
            println!("{trouble}: again");
            lost.set(lost.get() + 1);
            fleet.expect(&["drain", &host, "--yes"], 0);
            return false;
        }
        assert_eq!(maintenance["drain"]["trouble"], Value::Null, "{maintenance:#}");
        maintenance["drain"]["ended"].is_u64()
    });
    let view = fleet.json(&["status", "code"], 0);
    assert_eq!((view["ready"].as_u64(), view["condition"].as_str()), (Some(2), Some("serving")));
    assert!(!fleet.code_is_on().contains(&host), "{view:#}");
    assert!(fleet.expect(&["hosts"], 0).stdout.contains("drained"));
    let audit = fleet.expect(&["audit", "--output", "json"], 0).stdout;
    assert!(audit.contains("drain_ended"), "{audit}");

    // No new rank goes there, until it is welcome again.
    fleet.edit("\"12\"", "\"14\"");
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    assert!(!fleet.code_is_on().contains(&host));
    fleet.expect(&["uncordon", &host, "-m", "the fans are new"], 0);
    let audit = fleet.expect(&["audit", "--output", "json"], 0).stdout;
    assert!(audit.contains("\"why\":\"the fans are new\""), "{audit}");
    let hosts = hosts_of(&fleet);
    assert_eq!(hosts[&host]["maintenance"]["drain"], Value::Null);
    // A single GPU.
    fleet.expect(&["cordon", &format!("{host}/3")], 0);
    assert!(fleet.expect(&["hosts"], 0).stdout.contains("GPU 3 cordoned"));
    fleet.expect(&["cordon", &format!("{host}/99")], 8);
    fleet.expect(&["cordon", "nosuch"], 8);
}

/// While a host is maintained its services can be rolled out and undone where there is room beside it.
#[test]
fn a_rollout_goes_around_a_host_that_is_maintained() {
    let fleet = SimFleet::new();
    fleet.edit("max_unavailable   = 0", "max_unavailable   = 1");
    fleet.edit("[rollout]", "[placement]\nspread = \"host\"\n\n[rollout]");
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let on = fleet.code_is_on();
    let (first, second) = (on[0].as_str(), on[1].as_str());
    let others: Vec<&str> = ["gpu-1", "gpu-2", "gpu-3", "gpu-4"]
        .into_iter()
        .filter(|h| *h != first && *h != second)
        .collect();
    for other in others.iter().chain([&second]) {
        fleet.expect(&["cordon", other], 0);
    }
    fleet.expect(&["drain", first, "--yes"], 0);
    assert_eq!(fleet.json(&["status", "code"], 0)["ready"], 1);

    // Nowhere to go: which host would make room is said.
    fleet.edit("1500ms", "1400ms");
    let refused = fleet.expect(&["apply", "code", "--yes"], 6);
    assert!(refused.stderr.contains(&format!("gpudeck uncordon {first}")), "{refused:#?}");

    // Room beside it: rolled out whole, and back again.
    fleet.expect(&["uncordon", others[0]], 0);
    fleet.expect(&["uncordon", second], 0);
    fleet.expect(&["apply", "code", "--yes", "--wait", "--timeout", "2m"], 0);
    let view = fleet.json(&["status", "code"], 0);
    assert_eq!((&view["ready"], &view["stable"]), (&2.into(), &2.into()), "{view:#}");
    fleet.expect(&["rollout", "undo", "code", "--yes", "--wait", "--timeout", "2m"], 0);
    assert!(!fleet.code_is_on().iter().any(|host| host == first));
    // What was out is nothing any more.
    fleet.expect(&["uncordon", first], 0);
    let view = fleet.json(&["status", "code"], 0);
    assert_eq!((&view["ready"], &view["trouble"]), (&2.into(), &Value::Null), "{view:#}");
    assert!(!fleet.expect(&["events"], 0).stdout.contains("no replica is ready"));
}

/// A fleet whose GPUs are all in use can be maintained, too, as far as the floors allow.
#[test]
fn what_has_no_other_place_stops_until_its_host_is_back() {
    let fleet = SimFleet::new();
    fleet.edit("max_unavailable   = 0", "max_unavailable   = 1");
    fleet.edit("[rollout]", "[placement]\nspread = \"host\"\n\n[rollout]");
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let on = fleet.code_is_on();
    let (first, second) = (on[0].as_str(), on[1].as_str());
    assert_ne!(first, second);
    for other in ["gpu-1", "gpu-2", "gpu-3", "gpu-4"].into_iter().filter(|h| *h != first) {
        fleet.expect(&["cordon", other], 0);
    }
    let plan = fleet.json(&["drain", first, "--dry-run"], 2);
    assert_eq!(plan["moves"].as_array().unwrap().len(), 0, "{plan:#}");
    assert_eq!(plan["out"].as_array().unwrap().len(), 1, "{plan:#}");
    fleet.expect(&["drain", first, "--yes"], 0);
    let view = fleet.json(&["status", "code"], 0);
    assert_eq!(view["ready"], 1, "{view:#}");
    let text = fleet.expect(&["status", "code"], 0).stdout;
    assert!(text.contains(&format!("is out until {first} is uncordoned")), "{text}");
    // The other one is all that serves.
    let refused = fleet.expect(&["drain", second, "--yes"], 6);
    assert!(refused.stderr.contains("0 may stop meanwhile"), "{refused:#?}");

    fleet.kill_controller();
    fleet.expect(&["uncordon", first], 0);
    wait_until("what was out", LONG, || fleet.json(&["status", "code"], 0)["ready"] == 2);
    assert_eq!(fleet.code_is_on(), on);

    // Both hosts one after the other, and never fewer than one.
    fleet.expect(&["uncordon", second], 0);
    let hosts = format!("{first},{second}");
    let upgrade = fleet.json(&["hosts", "upgrade", "--run", "true", "--hosts", &hosts, "--yes"], 0);
    assert_eq!(upgrade["hosts"][1]["state"]["state"], "done", "{upgrade:#}");
    wait_until("what was out", LONG, || fleet.json(&["status", "code"], 0)["ready"] == 2);
    assert!(!fleet.expect(&["events"], 0).stdout.contains("is down"), "it served throughout");
}

#[test]
fn hosts_are_upgraded_one_after_the_other_and_a_failure_stops_it() {
    let fleet = SimFleet::new();
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let host = fleet.code_is_on()[0].clone();
    let mark = fleet.home().join("mark");
    let command = format!("echo \"$GPUDECK_HOST\" >> {}", mark.display());
    let arguments = ["hosts", "upgrade", "--run", &command, "--hosts", &host, "--yes"];
    fleet.expect(&["cordon", &format!("{host}/3"), "-m", "ECC"], 0);
    let upgrade = fleet.json(&arguments, 0);
    assert_eq!(upgrade["hosts"][0]["state"]["state"], "done", "{upgrade:#}");
    // Once, on that host, which is welcome again, but for the GPU that was not before.
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), format!("{host}\n"));
    let cordons = hosts_of(&fleet)[&host]["maintenance"]["cordons"].clone();
    assert_eq!(cordons.as_array().unwrap().len(), 1, "{cordons:#}");
    assert_eq!(cordons[0]["reason"], "ECC", "{cordons:#}");
    fleet.expect(&["uncordon", &format!("{host}/3")], 0);
    assert_eq!(fleet.json(&["status", "code"], 0)["ready"], 2);

    let bad =
        ["hosts", "upgrade", "--run", "echo no space; exit 3", "--hosts", "gpu-3,gpu-4", "--yes"];
    let upgrade = fleet.json(&bad, 3);
    let why = upgrade["hosts"][0]["state"]["why"].as_str().unwrap();
    assert_eq!(why, "exit code 3: no space");
    assert_eq!(upgrade["hosts"][1]["state"]["state"], "skipped", "{upgrade:#}");
    let text = fleet.expect(&["hosts"], 0).stdout;
    assert!(text.contains("UPGRADE FAILED"), "{text}");
    let hosts = hosts_of(&fleet);
    assert_eq!(hosts["gpu-3"]["maintenance"]["cordons"][0]["reason"], "upgrade");
    assert_eq!(hosts["gpu-4"]["maintenance"]["cordons"], serde_json::json!([]));

    // Nobody saw how this one ended: that is not a good end.
    let command = "sleep 2; kill -9 $PPID";
    let upgrade =
        fleet.json(&["hosts", "upgrade", "--run", command, "--hosts", "gpu-4", "--yes"], 3);
    let why = upgrade["hosts"][0]["state"]["why"].as_str().unwrap();
    assert!(why.contains("how the command ended is not known"), "{why}");

    // Stopped: what is begun is finished, and no other host is begun.
    fleet.expect(&["uncordon", "gpu-4"], 0);
    let command = ["hosts", "upgrade", "--run", "sleep 2", "--hosts", "gpu-4,gpu-2", "--yes"];
    fleet.expect(&[&command[..], &["--no-wait"]].concat(), 0);
    wait_until("the command on the first host", LONG, || {
        hosts_of(&fleet)["gpu-4"]["maintenance"]["upgrade"]["state"] == "running"
    });
    fleet.expect(&["hosts", "upgrade", "--stop"], 0);
    wait_until("the end of the first host", LONG, || {
        hosts_of(&fleet)["gpu-4"]["maintenance"]["upgrade"]["state"] == "done"
    });
    let hosts = hosts_of(&fleet);
    assert_eq!(hosts["gpu-2"]["maintenance"]["upgrade"]["state"], "skipped", "{hosts:#}");
    assert_eq!(hosts["gpu-2"]["maintenance"]["cordons"], serde_json::json!([]));
}

/// Another plan than the one that was shown is not begun, the shown one is.
#[test]
fn a_drain_and_an_upgrade_are_those_that_were_agreed_to() {
    let fleet = SimFleet::new();
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let on = fleet.code_is_on();
    let host: HostName = on[0].parse().unwrap();
    let mut homes = std::fs::read_dir(fleet.home().join("s")).unwrap().flatten();
    let socket = homes.find_map(|d| Some(d.path().join("controller.sock")).filter(|s| s.exists()));
    let drain = |agreed| Intent::Drain { host: host.clone(), reason: None, agreed };
    let upgrade = |agreed| Intent::UpgradeHosts {
        command: "true".to_owned(),
        hosts: vec![host.clone()],
        max_parallel: 1,
        timeout_ms: 60_000,
        return_ms: 60_000,
        reason: None,
        agreed,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(gpudeck::controller::connect(&socket.unwrap())).unwrap();
    runtime.block_on(async {
        for intent in [drain(Some("another".to_owned())), upgrade(Some("another".to_owned()))] {
            assert_eq!(client.send(intent).await.unwrap_err().message, PLAN_CHANGED);
        }
        let deck = client.snapshot().await.unwrap();
        assert!(deck.hosts[&host].maintenance.cordons.is_empty(), "nothing was begun");
        assert!(deck.deck.upgrade.is_none(), "nothing was begun");
        let agreed = client.plan_drain(&host).await.unwrap().digest();
        client.send(drain(Some(agreed))).await.unwrap();
    });
    wait_until("the drain", LONG, || {
        !fleet.code_is_on().contains(&on[0])
            && hosts_of(&fleet)[on[0].as_str()]["maintenance"]["drain"]["ended"].is_u64()
    });
    runtime.block_on(async {
        let question = UpgradeQuestion { hosts: vec![host.clone()], max_parallel: 1 };
        let agreed = client.plan_upgrade(&question).await.unwrap().digest();
        client.send(upgrade(Some(agreed))).await.unwrap();
    });
    wait_until("the upgrade", LONG, || {
        fleet.json(&["hosts", "upgrade"], 0)["hosts"][0]["state"]["state"] == "done"
    });
}

/// Two hosts that together would take a service under its floor: the plan has them one after the other, and so they go.
#[test]
fn an_upgrade_is_shown_before_anything_is_touched_and_keeps_to_the_floor() {
    let fleet = SimFleet::new();
    fleet.edit("[rollout]", "[placement]\nspread = \"host\"\n\n[rollout]");
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let on = fleet.code_is_on();
    let (first, second) = (on[0].as_str(), on[1].as_str());
    for other in ["gpu-1", "gpu-2", "gpu-3", "gpu-4"].into_iter().filter(|h| *h != first) {
        fleet.expect(&["cordon", other], 0);
    }
    let hosts = format!("{first},{second}");
    let dry = ["hosts", "upgrade", "--run", "sleep 1", "--hosts", &hosts, "--max-parallel", "2"];
    let dry = [&dry[..], &["--dry-run"]].concat();
    // No replica may be out, and there is no other place: that is said with what would do.
    let refused = fleet.json(&dry, 1);
    let why = &refused["hosts"][0]["refused"];
    assert!(why["message"].as_str().unwrap().contains("cannot be drained"), "{refused:#}");
    assert!(why["hint"].as_str().unwrap().contains("max_unavailable = 1 of code"), "{refused:#}");

    fleet.expect(&["uncordon", second], 0);
    fleet.edit("max_unavailable   = 0", "max_unavailable   = 1");
    fleet.expect(&["apply", "code", "--yes", "--wait", "--timeout", "2m"], 0);
    let on = fleet.code_is_on();
    assert_eq!(on.len(), 2, "{on:?}");
    fleet.expect(&["cordon", second, "-m", "mine"], 0);
    let before = hosts_of(&fleet)[first]["maintenance"].clone();
    let plan = fleet.json(&dry, 2);
    let (one, two) = (&plan["hosts"][0], &plan["hosts"][1]);
    assert_eq!((&one["batch"], &two["batch"]), (&1.into(), &2.into()), "{plan:#}");
    assert!(two["after"].as_str().unwrap().contains("take code under its floor"), "{plan:#}");
    assert_eq!(one["drain"]["out"].as_array().unwrap().len(), 1, "{plan:#}");
    let low = &one["capacity"][0];
    assert_eq!((&low["lowest_ready"], &low["floor"]), (&1.into(), &1.into()), "{plan:#}");
    assert_eq!(plan["lowest"][0]["lowest_ready"], 1, "{plan:#}");
    let text = fleet.expect(&dry, 2).stdout;
    assert!(text.contains("batch 2, after the last"), "{text}");
    assert_eq!(hosts_of(&fleet)[first]["maintenance"], before, "nothing is touched");
    assert_eq!(fleet.json(&["hosts", "upgrade"], 0), Value::Null);

    let begin = [&dry[..dry.len() - 1], &["--yes"]].concat();
    let upgrade = fleet.json(&begin, 0);
    for host in 0..2 {
        assert_eq!(upgrade["hosts"][host]["state"]["state"], "done", "{upgrade:#}");
    }
    wait_until("what was out", LONG, || fleet.json(&["status", "code"], 0)["ready"] == 2);
    let events = fleet.expect(&["events"], 0).stdout;
    assert!(events.contains(&format!("{second} waits for the hosts that are begun")), "{events}");
    assert!(!events.contains("is down"), "it served throughout: {events}");
    let kept = &hosts_of(&fleet)[second]["maintenance"]["cordons"];
    assert_eq!(kept[0]["reason"], "mine", "a person's cordon stays");
}

#[test]
fn an_upgrade_is_held_and_its_hosts_are_tried_again_or_left_out() {
    let fleet = SimFleet::new();
    let mark = fleet.home().join("mended");
    let command = format!("sleep 1; test -e {}", mark.display());
    let hosts = "gpu-1,gpu-2,gpu-3";
    fleet.expect(&["hosts", "upgrade", "--run", &command, "--hosts", hosts, "--yes"], 3);
    let upgrade = |fleet: &SimFleet| fleet.json(&["hosts", "upgrade"], 0);
    let states = |fleet: &SimFleet| -> Vec<String> {
        let view = fleet.json(&["hosts", "upgrade"], 0);
        let all = view["hosts"].as_array().unwrap().iter();
        all.map(|h| h["state"]["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(states(&fleet), ["failed", "skipped", "skipped"]);
    let text = fleet.expect(&["hosts", "upgrade"], 0).stdout;
    assert!(text.contains("gpudeck hosts upgrade --retry gpu-1"), "{text}");
    assert!(text.contains("gpu-1 failed before"), "{text}");

    // Left out only for a reason.
    fleet.expect(&["hosts", "upgrade", "--skip", "gpu-2"], 64);
    fleet.expect(&["hosts", "upgrade", "--skip", "gpu-2", "-m", "the vendor has it"], 0);
    fleet.expect(&["hosts", "upgrade", "--retry", "gpu-2"], 5);
    std::fs::write(&mark, "").unwrap();
    fleet.expect(&["hosts", "upgrade", "--retry", "gpu-1", "-m", "it was mended"], 0);
    fleet.expect(&["hosts", "upgrade", "--pause", "-m", "lunch"], 0);
    fleet.kill_controller();
    let begun = Instant::now();
    loop {
        match states(&fleet)[0].as_str() {
            "done" => break,
            // The pause may have come before it was begun again.
            "waiting" => {
                fleet.expect(&["hosts", "upgrade", "--resume"], 0);
                wait_until("the retry", LONG, || states(&fleet)[0] != "waiting");
                fleet.expect(&["hosts", "upgrade", "--pause", "-m", "lunch"], 0);
            }
            under_way => {
                let is_lost = under_way == "failed" || begun.elapsed() > LONG;
                let view = || (upgrade(&fleet), fleet.expect(&["events"], 0).stdout);
                assert!(!is_lost, "{under_way}: {:#?}", view());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    assert_eq!(states(&fleet), ["done", "skipped", "waiting"]);
    let view = upgrade(&fleet);
    assert_eq!(view["paused"]["reason"], "lunch", "{view:#}");
    assert_eq!(view["hosts"][0]["retries"], 1, "{view:#}");
    let text = fleet.expect(&["hosts", "upgrade"], 0).stdout;
    assert!(text.contains("paused by") && text.contains("the vendor has it"), "{text}");
    assert_eq!(hosts_of(&fleet)["gpu-1"]["maintenance"]["cordons"], serde_json::json!([]));

    fleet.expect(&["hosts", "upgrade", "--resume"], 0);
    wait_until("the last host", LONG, || states(&fleet) == ["done", "skipped", "done"]);
    assert!(upgrade(&fleet)["ended"].is_u64());
    let events = fleet.expect(&["events"], 0).stdout;
    assert!(events.contains("gpu-3 is upgraded"), "{events}");
    let audit = fleet.expect(&["audit", "--output", "json"], 0).stdout;
    for why in ["the vendor has it", "it was mended", "lunch"] {
        assert!(audit.contains(&format!("\"why\":\"{why}\"")), "{why}: {audit}");
    }
    let journal = fleet.expect(&["journal"], 0).stdout;
    assert!(journal.contains("pauses the upgrade of hosts: lunch"), "{journal}");
    assert!(journal.contains("leaves gpu-2 out of the upgrade of hosts: the vendor"), "{journal}");
}

/// A host is not told to be empty while a rollout that waits for a person will still start something there.
#[test]
fn a_host_on_which_a_rollout_is_about_to_start_something_is_not_drained() {
    let fleet = SimFleet::new();
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    fleet.edit(
        "[rollout]",
        "[placement]\nspread = \"host\"\n\n[rollout]\nsteps = [{ weight = 50 }, { approve = true }]",
    );
    fleet.edit("\"12\",", "\"11\",");
    for host in fleet.code_is_on() {
        fleet.expect(&["cordon", &host], 0);
    }
    let plan = fleet.json(&["plan", "code"], 2);
    fleet.expect(&["apply", "code"], 0);
    wait_until("the gate", LONG, || {
        fleet.json(&["status", "code"], 0)["rollout"]["gate"].to_string().contains("approve")
    });
    let on = fleet.code_is_on();
    let steps = plan["steps"].as_array().unwrap();
    let moves = steps.iter().flat_map(|step| step["moves"].as_array().unwrap());
    let starts = moves.filter(|m| m["verb"] == "start");
    let mut places = starts.map(|m| m["ranks"][0]["host"].as_str().unwrap());
    let later = places.find(|host| !on.iter().any(|h| h == host));
    let later = later.unwrap_or_else(|| panic!("no host is used later: {plan:#}"));
    let refused = fleet.expect(&["drain", later, "--yes"], 5);
    assert!(refused.stderr.contains("will start a replica there"), "{refused:#?}");
    fleet.expect(&["rollout", "abort", "code"], 0);
}

#[test]
fn time_without_a_controller_is_not_the_hosts_that_are_upgraded() {
    let fleet = SimFleet::new();
    let mark = fleet.home().join("mark");
    // With its deadline after 4 s it would be ended, were the seconds without a controller counted.
    let command = format!("touch {}; sleep 9", mark.display());
    let arguments = ["--hosts", "gpu-3", "--timeout", "4s", "--no-wait", "--yes"];
    fleet.expect(&[&["hosts", "upgrade", "--run", &command], &arguments[..]].concat(), 0);
    wait_until("the command", LONG, || mark.exists());
    fleet.kill_controller();
    std::thread::sleep(Duration::from_secs(6));
    let mut state = Value::Null;
    wait_until("the end of the command", LONG, || {
        state = hosts_of(&fleet)["gpu-3"]["maintenance"]["upgrade"].clone();
        state["state"] != "running" && state["state"] != "draining"
    });
    assert_ne!(state["state"], "failed", "{state:#}");
}

#[test]
fn several_services_are_rolled_out_in_order_and_taken_back_together() {
    let fleet = SimFleet::new();
    // chat comes after code; only code can be rolled out well.
    let chat = fleet.world().spec_path("chat");
    let text = std::fs::read_to_string(&chat).unwrap();
    let text = text.replace("[rollout]", "[rollout]\nafter = [\"code\"]");
    let text = text.replace("replicas = 4", "replicas = 1");
    std::fs::write(&chat, &text).unwrap();
    let together = ["apply", "chat", "code", "--atomic", "--wait", "--timeout", "2m"];
    let group = fleet.json(&together, 0);
    let order: Vec<&str> = group["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["service"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["code", "chat"]);
    assert_eq!(fleet.json(&["status", "code"], 0)["stable"], 1);
    assert_eq!(fleet.json(&["status", "chat"], 0)["stable"], 2);

    fleet.edit("\"12\"", "\"13\"");
    std::fs::write(&chat, text.replace("\"--load-time\", \"2s\"", "\"--no-such-flag\"")).unwrap();
    let group = fleet.json(&together, 3);
    let states = &group["services"];
    assert_eq!(states[0]["state"]["state"], "undone", "{group:#}");
    assert_eq!(states[1]["state"]["state"], "failed", "{group:#}");
    // code serves its first spec again, chat never stopped serving its own.
    assert_eq!(fleet.json(&["history", "code"], 0)[0]["outcome"], "completed");
    let code = std::fs::read_to_string(fleet.world().spec_path("code")).unwrap();
    assert!(code.contains("\"12\""), "{code}");
    assert_eq!(fleet.json(&["status", "chat"], 0)["stable"], 2);

    let path = fleet.world().spec_path("code");
    let circle = code.replace("[rollout]", "[rollout]\nafter = [\"chat\"]");
    std::fs::write(path, circle).unwrap();
    let refused = fleet.expect(&["apply", "chat", "code"], 1);
    assert!(
        refused.stderr.contains("wait for each other: chat after code after chat"),
        "{refused:#?}"
    );
}

/// What no request would ever reach is not begun.
#[test]
fn a_plan_for_a_backend_that_the_gateway_does_not_have_is_refused() {
    let fleet = SimFleet::new();
    fleet.edit("replicas", "backend = \"nowhere\"\nreplicas");
    let refused = fleet.expect(&["plan", "code"], 1);
    assert!(refused.stderr.contains("has no backend nowhere"), "{refused:#?}");
    assert!(refused.stderr.contains("add to haproxy.cfg"), "{refused:#?}");
    fleet.expect(&["apply", "code", "--yes"], 5);
    assert_eq!(fleet.json(&["history", "code"], 0), serde_json::json!([]), "nothing was committed");
    fleet.edit("\"nowhere\"", "\"code\"");
    fleet.expect(&["plan", "code"], 2);
}

/// What was left on a host while that was not in the deck belongs to nobody: it is shown, its port is not given out, and
/// it ends when a person says so.
#[test]
fn a_rank_that_was_left_on_a_host_out_of_the_deck_can_be_ended() {
    let fleet = SimFleet::new();
    // The gateway is there: it stays.
    fleet.expect(&["cordon", "gpu-1"], 0);
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let view = fleet.status("code");
    let left = view["replicas"][0]["ranks"][0].clone();
    let (host, port) = (left["host"].as_str().unwrap().to_owned(), left["port"].clone());
    let file = fleet.world().deck_dir().join("deck.toml");
    let whole = std::fs::read_to_string(&file).unwrap();
    let mut without: toml::Table = toml::from_str(&whole).unwrap();
    without["hosts"].as_table_mut().unwrap().remove(&host).unwrap();
    std::fs::write(&file, toml::to_string(&without).unwrap()).unwrap();
    wait_until("the host to go", LONG, || hosts_of(&fleet).get(&host).is_none());
    fleet.expect(&["stop", "code", "--yes"], 0);
    fleet.wait("code", "the stop", |view| view["condition"] == "stopped");

    std::fs::write(&file, whole).unwrap();
    wait_until("the host to come back", LONG, || {
        let drift = fleet.gpudeck(&["drift", "code"]);
        drift.code() == Some(2) && drift.stdout.contains(&host)
    });
    let drift = fleet.expect(&["drift", "code"], 2).stdout;
    assert!(drift.contains("no release wants it"), "{drift}");
    assert!(drift.contains(&format!("drift code --end-unknown --host {host}")), "{drift}");
    // Everything else is full, so that it has to start beside it.
    for other in ["gpu-2", "gpu-3", "gpu-4"].into_iter().filter(|h| *h != host) {
        fleet.expect(&["cordon", other], 0);
    }
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let view = fleet.status("code");
    for replica in view["replicas"].as_array().unwrap() {
        let rank = &replica["ranks"][0];
        assert!(rank["host"] == host.as_str() && rank["port"] != port, "{view:#}");
        let id = replica["id"].as_str().unwrap();
        assert!(id.ends_with("-a1"), "it was refused first: {view:#}");
    }

    fleet.expect(&["drift", "code", "--end-unknown", "--host", &host], 0);
    fleet.expect(&["drift", "code"], 0);
    assert_eq!(fleet.status("code")["ready"], 2, "only that one");
    let again = fleet.expect(&["drift", "code", "--end-unknown"], 0).stdout;
    assert!(again.contains("no rank runs that no release wants"), "{again}");
    let audit = fleet.expect(&["audit", "--output", "json"], 0).stdout;
    assert!(audit.contains("end_rank"), "{audit}");
}
