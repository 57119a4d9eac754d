//! From one operator, or one build, to another: who holds the hosts, who waits, who goes on.

use rustix::process::{Signal, kill_process};

use super::{Company, DEADLINE, json, once, stop_chat};
use crate::common::{run, wait_until};

#[test]
fn a_second_operator_waits_takes_over_and_goes_on() {
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();

    // The second operator sees who works there, and can do nothing.
    wait_until("the second operator's news of both hosts", DEADLINE, || {
        let status = company.b("status").stdout;
        status.contains("! hosts-held since") && status.contains("h1, h2 are held by")
    });
    let status = company.b("status").expect_success().stdout;
    assert!(status.contains("/a/"), "{status}");
    let hosts = company.b("hosts").expect_success().stdout;
    assert!(hosts.contains("held by") && hosts.contains(" until "), "{hosts}");
    for words in ["apply chat", "stop chat --yes", "controller take-over"] {
        let refused = company.b(words);
        assert_eq!(refused.code(), Some(9), "{words}: {refused:#?}");
        assert!(refused.stderr.contains("held by"), "{words}: {refused:#?}");
    }
    // It does not see what is served, so it plans nothing either.
    for words in ["plan chat", "plan", "drain h1 --dry-run"] {
        let refused = company.b(words);
        assert!(refused.stderr.contains("held by"), "{words}: {refused:#?}");
        let code = if words.starts_with("plan") { 1 } else { 9 };
        assert_eq!(refused.code(), Some(code), "{words}: {refused:#?}");
    }
    let refused = company.b("controller take-over --force --confirm other");
    assert_eq!(refused.code(), Some(1), "{refused:#?}");

    // The first begins a rollout and falls silent at its gate, with half of it done.
    company.write_spec(&company.person.deck(), "two");
    company.a("apply chat -m second").expect_success();
    company.await_gate();
    let first = company.signal_first(Signal::STOP);
    wait_until("the end of the lease", DEADLINE, || {
        company.b("status").stdout.contains("its lease ended at")
    });
    assert_eq!(company.b("apply chat").code(), Some(9), "taking over is for a person to say");
    company.b("controller take-over").expect_success();

    // It goes on from there: the same rollout, the same gate, the same replicas.
    wait_until("the gate at the second operator", DEADLINE, || {
        company.b("status chat").stdout.contains("waits for approval")
    });
    let chat = json(company.b("status chat --output json"));
    assert_eq!(chat["rollout"]["to"], 2, "{chat:#}");
    assert_eq!(chat["stable"], 1, "{chat:#}");
    // With what was foreseen of it, how it went so far, and what the first had measured.
    let foreseen = &chat["progress"];
    assert_eq!(foreseen["release"], 2, "{foreseen:#}");
    assert!(foreseen["steps"][0]["ended"].is_u64(), "{foreseen:#}");
    assert!(foreseen["ended"].is_null(), "{foreseen:#}");
    let measured = company.home("b").join(company.id().to_string()).join("measured.json");
    wait_until("the loads that the first has measured", DEADLINE, || {
        let text = std::fs::read_to_string(&measured).unwrap_or_default();
        let known: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let loads = |series: &serde_json::Value| series["loads"].as_array().map_or(0, Vec::len);
        known["series"].as_object().is_some_and(|all| all.values().any(|s| loads(s) >= 3))
    });
    let journeys = || {
        let history = json(company.b("history chat --output json"));
        let releases = history.as_array().cloned().unwrap_or_default();
        releases.into_iter().map(|r| r["progress"]["ended"].is_u64()).collect::<Vec<_>>()
    };
    assert_eq!(journeys(), [false, true]);
    company.b("rollout promote chat").expect_success();
    company.b("rollout status chat --wait --timeout 60s").expect_success();
    assert_eq!(journeys(), [true, true]);
    let started_once = once(["1-0", "1-1", "2-0", "2-1"]);
    assert_eq!(company.starts(), started_once);

    // The first is back: it is told, refused, and touches nothing.
    kill_process(first, Signal::CONT).unwrap();
    wait_until("the first operator's news", DEADLINE, || {
        company.a("status").stdout.contains("! hosts-held since")
    });
    for words in ["rollout promote chat", "rollout abort chat", "stop chat --yes", "apply chat"] {
        let refused = company.a(words);
        assert_eq!(refused.code(), Some(9), "{words}: {refused:#?}");
    }
    // Also in its next life it knows better than to act.
    company.a("controller restart").expect_success();
    wait_until("the first operator's news", DEADLINE, || {
        company.a("status").stdout.contains("! hosts-held since")
    });
    assert_eq!(company.a("stop chat --yes").code(), Some(9));
    let chat = json(company.b("status chat --output json"));
    assert_eq!((&chat["ready"], &chat["stable"]), (&2.into(), &2.into()), "{chat:#}");
    assert_eq!(company.starts(), started_once);

    // Back again, by force, with what the second did.
    let forced = company.a("controller take-over --force --confirm shop");
    forced.expect_success();
    wait_until("the state at the first operator", DEADLINE, || {
        json(company.a("status chat --output json"))["stable"] == 2
    });
    wait_until("the second operator's news", DEADLINE, || {
        company.b("status").stdout.contains("! hosts-held since")
    });
    assert_eq!(company.b("stop chat --yes").code(), Some(9));
    stop_chat(|words| company.a(words));
    assert_eq!(company.starts(), started_once);
    company.a("controller stop").expect_success();
    company.b("controller stop").expect_success();
    company.traces.expect_none(&company.person);
}

/// A lease is for controllers that fell silent: one that was ended, by a command or by a signal, keeps nobody waiting for it.
#[test]
fn what_a_stopped_controller_held_can_be_taken_at_once() {
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    // Its lease runs: of a live one nothing is taken.
    assert_eq!(company.b("controller take-over").code(), Some(9));
    company.a("controller stop").expect_success();
    assert_eq!(company.b("apply chat").code(), Some(9), "taking over is for a person to say");
    company.b("controller take-over").expect_success();
    let second = Company::pid(&company.b("controller status --output json"));
    kill_process(second, Signal::TERM).unwrap();
    wait_until("the end of the second", DEADLINE, || {
        company.b("controller status").stdout.contains("no controller runs")
    });
    company.a("controller take-over").expect_success();
    // Nobody stood between: it has them again by itself.
    company.a("controller restart").expect_success();
    let chat = json(company.a("status chat --output json"));
    assert_eq!((&chat["condition"], &chat["ready"]), (&"serving".into(), &2.into()), "{chat:#}");
    assert_eq!(company.starts(), once(["1-0", "1-1"]));
    company.ends(|words| company.a(words));
}

/// A controller that was just started knows nothing of what runs: it asks who holds the hosts before it answers.
#[test]
fn what_another_operator_runs_is_never_taken_for_nothing_or_for_a_stranger() {
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    // Each asks one thing, as the first thing in its life.
    let first = |operator: &str, words: &str| company.run(operator, &company.clone(), words);

    let status = first("b", "status").expect_success().stdout;
    let line = status.lines().find(|l| l.starts_with("chat")).unwrap_or_default();
    assert!(line.contains("elsewhere") && !line.contains("0/"), "{status}");
    assert!(status.contains("! chat: h1, h2 are held by"), "{status}");
    let chat = json(first("c", "status chat --output json"));
    assert_eq!(chat["condition"], "elsewhere", "{chat:#}");
    assert!(chat["trouble"].as_str().unwrap_or_default().contains("held by"), "{chat:#}");
    // What was not looked at is not said to be well.
    let looked = first("d", "drift --output json");
    assert_eq!(looked.code(), Some(9), "{looked:#?}");
    let drift: serde_json::Value = serde_json::from_str(&looked.stdout).unwrap();
    assert_eq!(drift["items"], serde_json::json!([]), "{drift:#}");
    assert_eq!(drift["not_seen"].as_array().map(Vec::len), Some(2), "{drift:#}");
    assert!(drift["not_seen"][0].as_str().unwrap_or_default().contains("is held by"), "{drift:#}");
    let stop = first("e", "stop chat --yes");
    assert_eq!(stop.code(), Some(9), "{stop:#?}");
    assert!(stop.stderr.contains("held by"), "{stop:#?}");

    for operator in ["b", "c", "d", "e"] {
        first(operator, "controller stop").expect_success();
    }
    let chat = json(company.a("status chat --output json"));
    assert_eq!((&chat["condition"], &chat["ready"]), (&"serving".into(), &2.into()), "{chat:#}");
    company.ends(|words| company.a(words));
}

#[test]
fn another_build_is_told_and_takes_over_between_two_steps() {
    use std::io::Write;
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.write_spec(&company.person.deck(), "two");
    company.a("apply chat").expect_success();
    company.await_gate();
    let same = company.a("controller upgrade").expect_success();
    assert!(same.stdout.contains("of this build already") && same.stderr.is_empty(), "{same:#?}");

    // Another build: the same program with a byte more at its end.
    let newer = company.person.home().join("gpudeck-new");
    std::fs::copy(env!("CARGO_BIN_EXE_gpudeck"), &newer).unwrap();
    std::fs::OpenOptions::new().append(true).open(&newer).unwrap().write_all(&[0]).unwrap();
    let new = |words: &str| {
        let mut command = std::process::Command::new(&newer);
        let like = company.person.command(["x"]);
        command.args(words.split(' ')).current_dir(company.person.deck()).env_clear();
        command.envs(like.get_envs().filter_map(|(k, v)| Some((k, v?))));
        run(command.env("GPUDECK_HOME", company.home("a")), DEADLINE)
    };
    let told = new("status").expect_success();
    assert!(told.stderr.contains("of another build"), "{told:#?}");
    let before = Company::pid(&new("controller status --output json"));
    new("rollout promote chat").expect_success();
    let upgraded = new("controller upgrade").expect_success();
    assert!(upgraded.stdout.contains("runs with pid"), "{upgraded:#?}");
    assert_ne!(Company::pid(&new("controller status --output json")), before);
    new("rollout status chat --wait --timeout 60s").expect_success();
    let told = new("status").expect_success();
    assert!(!told.stderr.contains("of another build"), "{told:#?}");
    let chat = json(new("status chat --output json"));
    assert_eq!((&chat["ready"], &chat["stable"]), (&2.into(), &2.into()), "{chat:#}");
    let started_once = once(["1-0", "1-1", "2-0", "2-1"]);
    assert_eq!(company.starts(), started_once);
    company.ends(new);
}
