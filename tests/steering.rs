//! What a person can do in mid-rollout, and the step `run`, on the simulated fleet with the real binary
//! as controller and command line.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::sim_fleet::{LONG, SimFleet};
use common::wait_until;
use gpudeck::api::{Door, Intent, PLAN_CHANGED, ROLLOUT_CHANGED, SeenRollout};
use gpudeck::base::{ReleaseNumber, ServiceName};
use serde_json::Value;

impl SimFleet {
    /// `code` is served, in its first release.
    fn serving() -> Self {
        let fleet = Self::new();
        fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
        fleet
    }

    fn deck(&self) -> PathBuf {
        self.world().deck_dir()
    }

    /// The spec with another number for the engine, and with these steps.
    fn edit(&self, tokens: &str, rollout: &str) {
        let path = self.world().spec_path("code");
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once("\"--tokens\", \"").unwrap();
        let (_, after) = rest.split_once('"').unwrap();
        let kept: Vec<&str> = after.lines().filter(|l| !l.contains("# test")).collect();
        let after = kept.join("\n").replace("[rollout]", &format!("[rollout]\n{rollout}"));
        std::fs::write(path, format!("{before}\"--tokens\", \"{tokens}\"{after}\n")).unwrap();
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.deck().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// Who asks, as the controller's socket says.
fn me() -> String {
    gpudeck::api::server::user_name(rustix::process::getuid().as_raw())
}

fn runs(view: &Value) -> bool {
    view["rollout"]["gate"]["run"].is_object()
}

#[test]
fn a_command_decides_and_is_told_what_it_is_about() {
    let fleet = SimFleet::serving();
    let seen = fleet.home().join("seen");
    fleet.script(
        "smoke.sh",
        &format!("env | grep ^GPUDECK_ > {}; echo \"$1 is good\"", seen.display()),
    );
    let steps = "steps = [{ weight = 50 }, { run = [\"./smoke.sh\", \"a b\"] }] # test";
    fleet.edit("13", steps);
    let plan = fleet.expect(&["plan", "code"], 2).stdout;
    assert!(plan.contains("run ./smoke.sh a b"), "{plan}");
    assert!(plan.contains("exit code 0"), "{plan}");
    fleet.expect(&["apply", "code", "-m", "try it", "--wait", "--timeout", "2m"], 0);
    let env = std::fs::read_to_string(&seen).unwrap();
    let has = |line: &str| env.lines().any(|l| l == line);
    let by = format!("BY={}", me());
    for line in ["SERVICE=code", "RELEASE=r2", "STABLE=r1", "STEP=2", "ATTEMPT=1", &by] {
        assert!(has(&format!("GPUDECK_{line}")), "{line}: {env}");
    }
    assert!(has(&format!("GPUDECK_DECK={}", fleet.deck().display())), "{env}");
    assert!(has(&format!("GPUDECK_HOME={}", fleet.home().join("s").display())), "{env}");
    assert!(has("GPUDECK_REASON=try it"), "{env}");
    let value = |name: &str| {
        let line = env.lines().find_map(|l| l.strip_prefix(&format!("GPUDECK_{name}=")));
        line.unwrap_or_else(|| panic!("{name}: {env}")).to_owned()
    };
    assert_eq!(value("REVISION").len(), 40);
    assert_eq!(value("CANARY_ADDRESSES").split(' ').count(), 1);
    assert!(value("CANARY_ADDRESSES").contains(':'));
    assert!(value("URL").starts_with("http"), "{env}");
    let verdict = &fleet.status("code")["rollout"]["verdict"];
    assert_eq!(verdict["reason"], "exit code 0: a b is good", "{verdict:#}");

    // A bad end takes the release back, and its last words are shown.
    fleet.script("smoke.sh", "echo one; echo \"two is bad\" >&2; exit 7");
    fleet.edit("14", steps);
    let failed = fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 3);
    assert!(failed.stdout.contains("run ./smoke.sh a b: exit code 7"), "{failed:#?}");
    let text = fleet.expect(&["rollout", "status", "code"], 0).stdout;
    assert!(text.contains("| two is bad"), "{text}");
    assert_eq!(fleet.status("code")["stable"], 2);

    // The same revision once more, now that the test is mended.
    fleet.script("smoke.sh", "exit 0");
    let again = fleet.expect(
        &["rollout", "retry", "code", "-m", "the driver was mended", "--wait", "--timeout", "2m"],
        0,
    );
    assert!(again.stdout.contains("r4"), "{again:#?}");
    let history = fleet.json(&["history", "code"], 0);
    assert_eq!(history[0]["reason"], "retry of r3: the driver was mended", "{history:#}");
    assert_eq!(fleet.status("code")["stable"], 4);
    let nothing = fleet.expect(&["rollout", "retry", "code"], 5);
    assert!(nothing.stderr.contains("did not fail"), "{nothing:#?}");
}

#[test]
fn a_command_is_run_again_after_its_controller_was_killed_and_ended_when_nobody_waits() {
    let fleet = SimFleet::serving();
    let pids = fleet.home().join("pids");
    fleet.script(
        "smoke.sh",
        &format!("echo \"$GPUDECK_ATTEMPT $$\" >> {}; exec sleep 600", pids.display()),
    );
    let steps = "auto_rollback = false # test\nsteps = [{ weight = 50 }, { run = { command = [\"./smoke.sh\"], timeout = \"10m\" } }] # test";
    fleet.edit("13", steps);
    fleet.expect(&["apply", "code", "--yes"], 0);
    let attempts = |n: usize| {
        wait_until("the command to run", LONG, || {
            std::fs::read_to_string(&pids).is_ok_and(|t| t.lines().count() == n)
        });
        let text = std::fs::read_to_string(&pids).unwrap();
        let pid = |line: &str| line.split_once(' ').map(|(a, pid)| (a.to_owned(), pid.to_owned()));
        text.lines().filter_map(pid).collect::<Vec<_>>()
    };
    let gone = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |s| s.contains(") Z "))
    };
    let first = attempts(1)[0].clone();
    assert_eq!(first.0, "1");
    fleet.kill_controller();
    assert!(!gone(&first.1), "a kill leaves it running");
    fleet.wait("code", "the command to run again", |v| v["rollout"]["gate"]["run"]["attempt"] == 2);
    let second = attempts(2)[1].clone();
    assert_eq!(second.0, "2");
    // Never two of them at a time.
    assert!(gone(&first.1));
    assert!(!gone(&second.1));
    // A gate is skipped only with a reason.
    fleet.expect(&["rollout", "skip", "code"], 64);
    let empty = fleet.expect(&["rollout", "skip", "code", "--reason", " "], 1);
    assert!(empty.stderr.contains("only with a reason"), "{empty:#?}");
    // Whose pause it ends is said to whoever does it, and to whoever paused it.
    fleet.expect(&["rollout", "pause", "code"], 0);
    fleet.wait("code", "the pause", |v| v["rollout"]["paused"].is_u64());
    let skipped = fleet.expect(&["rollout", "skip", "code", "--reason", "it hangs"], 0).stdout;
    let pause = format!(", which ends the pause of {}", me());
    assert!(skipped.contains(&format!("accepted{pause}")), "{skipped}");
    assert!(fleet.expect(&["events"], 0).stdout.contains(&pause), "{pause}");
    wait_until("the command's end", Duration::from_secs(30), || gone(&second.1));
    fleet.expect(&["rollout", "status", "code", "--wait", "--timeout", "2m"], 0);
    let text = fleet.expect(&["rollout", "status", "code"], 0).stdout;
    assert!(text.contains(&format!("skipped by {}", me())), "{text}");
    assert!(text.contains("it hangs"), "{text}");
    let audit = fleet.expect(&["audit"], 0).stdout;
    assert!(audit.contains("it hangs"), "{audit}");
    let history = fleet.json(&["history", "code"], 0);
    let skipped = &history[0]["progress"]["steps"][1]["skipped"];
    assert_eq!(*skipped, format!("{}: it hangs", me()), "{history:#}");
}

#[test]
fn the_next_rollout_is_refused_queued_or_replaces_the_present_one() {
    let fleet = SimFleet::serving();
    let held = "steps = [{ weight = 50 }, { approve = true }] # test";
    fleet.edit("13", held);
    fleet.expect(&["apply", "code", "--yes"], 0);
    let waits = |v: &Value| v["rollout"]["gate"] == "approve";
    fleet.wait("code", "r2 to wait for approval", waits);

    fleet.edit("14", "");
    let refused = fleet.expect(&["apply", "code", "--yes"], 5);
    assert!(refused.stderr.contains("--concurrency-policy queue or replace"), "{refused:#?}");
    let queued = fleet.expect(&["apply", "code", "--concurrency-policy", "queue", "-m", "next"], 0);
    assert!(queued.stdout.contains("it begins when the rollout to r2 ends"), "{queued:#?}");
    let text = fleet.expect(&["rollout", "status", "code"], 0).stdout;
    assert!(text.contains(&format!("queued by {}", me())), "{text}");
    fleet.expect(&["rollout", "cancel-queued", "code"], 0);
    assert_eq!(fleet.status("code")["queued"], Value::Null);
    fleet.expect(&["rollout", "cancel-queued", "code"], 5);

    // What is queued survives the controller, and is what was in the deck then.
    fleet.expect(&["apply", "code", "--concurrency-policy", "queue"], 0);
    fleet.kill_controller();
    assert!(fleet.status("code")["queued"].is_object());
    fleet.edit("15", "");
    fleet.expect(&["rollout", "promote", "code", "--all"], 0);
    let view = fleet.wait("code", "the refusal", |v| v["queue_trouble"].is_string());
    assert!(view["queue_trouble"].as_str().unwrap().contains("was changed"), "{view:#}");
    assert_eq!((&view["stable"], &view["queued"]), (&Value::from(2), &Value::Null));

    fleet.edit("16", held);
    fleet.expect(&["apply", "code", "--yes"], 0);
    fleet.wait("code", "r3 to wait for approval", waits);
    // What could not be begun then takes nothing good back: there is no room for forty.
    fleet.edit("17", "");
    let path = fleet.world().spec_path("code");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("replicas = 2", "replicas = 40")).unwrap();
    for policy in ["queue", "replace"] {
        let refused = fleet.expect(&["apply", "code", "--concurrency-policy", policy], 6);
        assert!(refused.stderr.contains("40"), "{refused:#?}");
    }
    let view = fleet.status("code");
    assert!(waits(&view) && view["queued"].is_null(), "{view:#}");
    std::fs::write(&path, good).unwrap();
    // The plan is of the service as it will be.
    let plan = fleet.expect(&["plan", "code"], 2).stdout;
    assert!(plan.contains("when the rollout to r3 has ended as foreseen (until then"), "{plan}");
    assert!(plan.contains("code: r3 → r4") && plan.contains("lowest capacity"), "{plan}");
    fleet.expect(
        &["apply", "code", "--concurrency-policy", "replace", "--wait", "--timeout", "3m"],
        0,
    );
    let view = fleet.status("code");
    assert_eq!(view["stable"], 4, "{view:#}");
    let history = fleet.json(&["history", "code"], 0);
    let third = history.as_array().unwrap().iter().find(|r| r["number"] == 3).unwrap();
    let why = third["outcome"]["aborted"]["why"].as_str().unwrap();
    assert!(why.starts_with(&format!("replaced by a newer rollout of {}", me())), "{third:#}");
    // Stable served all along.
    assert!(third["progress"]["lowest_ready"].as_u64().unwrap() >= 1, "{third:#}");
}

/// Who waits is told apart from a failure, by a code and in words, that nothing was begun.
#[test]
fn who_waits_for_a_queued_rollout_is_told_why_it_does_not_begin() {
    let fleet = SimFleet::serving();
    fleet.edit("13", "steps = [{ weight = 50 }, { approve = true }] # test");
    fleet.expect(&["apply", "code", "--yes"], 0);
    fleet.wait("code", "r2 to wait for approval", |v| v["rollout"]["gate"] == "approve");
    fleet.edit("14", "");
    let queued = |asked_before: &Value| {
        let asked_before = asked_before.clone();
        fleet.wait("code", "the queued one", move |v| {
            v["queued"]["asked"].is_u64() && v["queued"]["asked"] != asked_before
        })["queued"]["asked"]
            .clone()
    };
    let waits = ["apply", "code", "--concurrency-policy", "queue", "--wait", "--timeout", "2m"];
    std::thread::scope(|threads| {
        // A later wish takes its place, and is taken out.
        let first = threads.spawn(|| fleet.gpudeck(&waits));
        let asked = queued(&Value::Null);
        let second = threads.spawn(|| fleet.gpudeck(&waits));
        let overtaken = first.join().unwrap();
        assert_eq!(overtaken.code(), Some(5), "{overtaken:#?}");
        let later = format!("overtaken by a later one of {}", me());
        assert!(overtaken.stderr.contains(&later), "{overtaken:#?}");
        queued(&asked);
        fleet.expect(&["rollout", "cancel-queued", "code", "-m", "not today"], 0);
        let withdrawn = second.join().unwrap();
        assert_eq!(withdrawn.code(), Some(5), "{withdrawn:#?}");
        assert!(withdrawn.stderr.contains("did not begin: it was withdrawn"), "{withdrawn:#?}");
        assert!(withdrawn.stderr.contains("→ `gpudeck audit`"), "{withdrawn:#?}");
        // An abort of what it waits for.
        let third = threads.spawn(|| fleet.gpudeck(&[&waits[..], &["-o", "json"]].concat()));
        queued(&Value::Null);
        fleet.expect(&["rollout", "abort", "code", "-m", "enough"], 0);
        let aborted = third.join().unwrap();
        assert_eq!(aborted.code(), Some(5), "{aborted:#?}");
        let error: Value = serde_json::from_str(aborted.stderr.trim()).unwrap();
        assert_eq!(error["exit_code"], 5, "{error:#}");
        assert!(error["error"].as_str().unwrap().contains("was aborted by"), "{error:#}");
    });
}

#[test]
fn an_undo_in_mid_rollout_takes_it_back_or_goes_further_back() {
    let fleet = SimFleet::serving();
    fleet.edit("13", "");
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 0);
    let held = "steps = [{ weight = 50 }, { approve = true }] # test";
    fleet.edit("14", held);
    fleet.expect(&["apply", "code", "--yes"], 0);
    let waits = |v: &Value| v["rollout"]["gate"] == "approve";
    fleet.wait("code", "r3 to wait for approval", waits);
    // Without a release: what the rollout came from.
    fleet.expect(&["rollout", "undo", "code", "--wait", "--timeout", "2m"], 0);
    let view = fleet.status("code");
    assert_eq!(view["stable"], 2, "{view:#}");
    assert!(view["rollout"]["outcome"]["aborted"].is_object(), "{view:#}");

    fleet.edit("15", held);
    fleet.expect(&["apply", "code", "--yes"], 0);
    fleet.wait("code", "r4 to wait for approval", waits);
    // To an older one, which the controller holds no longer: it comes from Git.
    fleet.expect(&["rollout", "undo", "code", "--to", "r1", "--wait", "--timeout", "3m"], 0);
    let view = fleet.status("code");
    assert_eq!(view["stable"], 5, "{view:#}");
    assert_eq!(view["rollout"]["kind"], "undo");
    let shown = fleet.expect(&["show", "r5"], 0).stdout;
    let first = fleet.expect(&["show", "r1"], 0).stdout;
    let seed = |text: &str| {
        text.split_once("--tokens").map(|(_, s)| s.chars().take(12).collect::<String>())
    };
    assert_eq!(seed(&shown), seed(&first));
    assert!(runs(&view) || view["condition"] == "serving", "{view:#}");

    // r3 was taken back before anybody saw that it is good: there is no short way to it.
    fleet.expect(&["rollout", "undo", "code", "--to", "r3"], 0);
    fleet.wait("code", "r6 to wait for approval", waits);
    let early = fleet.expect(&["rollout", "promote", "code", "--step", "3"], 5);
    assert!(early.stderr.contains("step 3 has not come yet"), "{early:#?}");
    // A key pressed twice means the same step.
    fleet.expect(&["rollout", "promote", "code", "--step", "2", "-m", "seen"], 0);
    let again = fleet.expect(&["rollout", "promote", "code", "--step", "2"], 0);
    assert!(again.stdout.contains("step 2 is already passed"), "{again:#?}");
    fleet.expect(&["rollout", "status", "code", "--wait", "--timeout", "3m"], 0);
    assert_eq!(fleet.status("code")["stable"], 6);
    let text = fleet.expect(&["rollout", "status", "code"], 0).stdout;
    let (promoted, why) = (format!("promoted by {}", me()), "approve: seen");
    assert!(text.contains(&promoted) && text.contains(why), "{text}");
}

#[test]
fn a_plan_refuses_a_gateway_that_the_deck_has_not() {
    let fleet = SimFleet::serving();
    let path = fleet.world().spec_path("code");
    let good = std::fs::read_to_string(&path).unwrap();
    for wrong in ["gateways = [\"edge\", \"egde\"]", "gateway = \"egde\""] {
        std::fs::write(&path, format!("{wrong}\n{good}")).unwrap();
        for arguments in [&["plan", "code"][..], &["apply", "code", "--yes"]] {
            let refused = fleet.expect(arguments, 1);
            assert!(refused.stderr.contains("names the gateway `egde`"), "{refused:#?}");
            assert!(refused.stderr.contains("did you mean `edge`?"), "{refused:#?}");
        }
    }
    assert_eq!(fleet.status("code")["rollout"]["to"], 1, "nothing was begun");
}

#[test]
fn what_would_change_nothing_is_refused_with_the_next_step() {
    let fleet = SimFleet::serving();
    let steps = "steps = [{ weight = 50 }, { run = [\"/bin/false\"] }] # test";
    fleet.edit("13", &format!("auto_rollback = false # test\n{steps}"));
    // What has failed and is held does not end by itself: nobody waits for it for ever.
    let held = fleet.expect(&["apply", "code", "--yes", "--wait"], 3);
    assert!(held.stdout.contains("rollout retry code"), "{held:#?}");
    fleet.wait("code", "the command to fail", |v| v["rollout"]["gate"]["failed"].is_object());
    let resume = fleet.expect(&["rollout", "resume", "code"], 5);
    assert!(resume.stderr.contains("is not paused"), "{resume:#?}");
    let promote = fleet.expect(&["rollout", "promote", "code"], 5);
    assert!(promote.stderr.contains("/bin/false: exit code 1"), "{promote:#?}");
    assert!(promote.stderr.contains("gpudeck rollout retry code"), "{promote:#?}");

    // One way back is enough, and nothing of it is promoted.
    fleet.edit("14", "steps = [{ weight = 50 }, { approve = true }] # test");
    fleet.expect(&["rollout", "abort", "code"], 0);
    let place_back = |v: &Value| v["rollout"]["direction"]["back"].is_object();
    let view = fleet.status("code");
    assert!(place_back(&view) || view["rollout"]["outcome"].is_object(), "{view:#}");
    for what in ["abort", "promote"] {
        let refused = fleet.expect(&["rollout", what, "code"], 5);
        let says = |words: &str| refused.stderr.contains(words);
        assert!(says("is being taken back") || says("no rollout of code"), "{refused:#?}");
    }
}

#[test]
fn a_retry_that_is_a_new_rollout_shows_its_plan_and_asks() {
    if !common::has_program("script") {
        return;
    }
    let fleet = SimFleet::serving();
    let steps = "steps = [{ weight = 50 }, { run = [\"/bin/false\"] }] # test";
    fleet.edit("13", steps);
    fleet.expect(&["apply", "code", "--wait", "--timeout", "2m"], 3);
    // At a terminal a person is asked, and says no.
    let gpudeck = env!("CARGO_BIN_EXE_gpudeck");
    let mut terminal = Command::new("script");
    terminal
        .args(["-qec", &format!("{gpudeck} rollout retry code"), "/dev/null"])
        .current_dir(fleet.deck())
        .env("GPUDECK_HOME", fleet.home().join("s"))
        .env("HOME", fleet.home())
        .env("USER", "tester")
        .env_remove("SSH_AUTH_SOCK");
    let asked = common::run_with_input(&mut terminal, b"n\n", LONG);
    assert!(asked.stdout.contains("code: r1 → r3"), "{asked:#?}");
    assert!(asked.stdout.contains("run /bin/false"), "{asked:#?}");
    assert!(asked.stdout.contains("Go on? [y/N]"), "{asked:#?}");
    assert_eq!(fleet.status("code")["rollout"]["to"], 2, "nothing was begun");
    // Nor is a plan begun that is not the one that was agreed to.
    let mut homes = std::fs::read_dir(fleet.home().join("s")).unwrap().flatten();
    let socket = homes.find_map(|d| Some(d.path().join("controller.sock")).filter(|s| s.exists()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = gpudeck::controller::connect(&socket.unwrap()).await.unwrap();
        let intent = Intent::Retry {
            service: "code".parse().unwrap(),
            accept_outage: false,
            reason: None,
            agreed: Some("another".to_owned()),
            seen: None,
        };
        let retried = client.send(intent).await.unwrap_err().message;
        assert_eq!(retried, PLAN_CHANGED);
        // What was meant for the rollout that was seen is not done to the next one.
        let service: ServiceName = "code".parse().unwrap();
        let seen = Some(SeenRollout { to: ReleaseNumber(2), step: None });
        let (to, reason, accept_outage, agreed) = (None, None, false, None);
        let undo =
            Intent::Undo { service: service.clone(), to, reason, accept_outage, agreed, seen };
        let (reason, agreed) = (None, None);
        let retry = Intent::Retry { service: service.clone(), accept_outage, reason, agreed, seen };
        let skip = Intent::Skip { service: service.clone(), reason: "why".to_owned(), seen };
        let abort = Intent::Abort { service, reason: None, seen };
        for intent in [undo, retry, skip, abort] {
            let refused = client.send(intent).await.unwrap_err();
            assert_eq!(refused.message, ROLLOUT_CHANGED);
            assert!(refused.hint.unwrap().contains("the one to r2 has ended"));
        }
    });
    assert_eq!(fleet.status("code")["rollout"]["to"], 2, "nothing was begun");
    fleet.expect(&["rollout", "retry", "code", "--yes", "--wait", "--timeout", "2m"], 3);
    assert_eq!(fleet.status("code")["rollout"]["to"], 3);
}

#[test]
fn a_plan_names_everything_an_analysis_judges_and_how_long_it_takes() {
    let fleet = SimFleet::serving();
    let path = fleet.world().spec_path("code");
    let good = std::fs::read_to_string(&path).unwrap();
    let analysis = "\n[analysis.all]\nduration = \"1m\"\nengine = { max_first_token = \"2s\" }\n\
        [[analysis.all.golden]]\nprompt = \"The capital of France is\"\ncontains = \"Paris\"\n\
        [[analysis.all.prometheus]]\nurl = \"http://127.0.0.1:9\"\nquery = \"up\"\n\
        success = \"result > 0\"\ninterval = \"1m\"\ncount = 5\n\
        [[analysis.all.prometheus]]\nurl = \"http://127.0.0.1:9\"\nquery = \"late\"\n\
        success = \"result > 0\"\ninitial_delay = \"7m\"\ncount = 2\n";
    let steps = "[rollout]\nsteps = [{ weight = 50 }, { analyse = \"all\" }]";
    // With other engines: steps are for what is new.
    let good = format!("context = 4096\n{}", good.replace("[rollout]", steps));
    std::fs::write(&path, format!("{good}{analysis}")).unwrap();
    let plan = fleet.expect(&["plan", "code"], 2).stdout;
    for gate in [
        "time to first token ≤ 2s (95th percentile)",
        "`The capital of France is` → `Paris`",
        "`up`: result > 0 (5 times, every 1m)",
        "`late`: result > 0 (2 times, every 1m, the first after 7m)",
    ] {
        assert!(plan.contains(gate), "{gate}: {plan}");
    }
    let step = plan.lines().find(|l| l.contains("analyse all")).unwrap();
    assert!(step.trim_end().ends_with("8m00s"), "{step}");
}
