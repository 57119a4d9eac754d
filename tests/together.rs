//! Several services rolled out together: holding them, going on and taking them back as a whole, also by a
//! controller that comes after one that was killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/mod.rs"]
mod common;
#[path = "together/people.rs"]
mod people;

use std::path::PathBuf;
use std::time::Duration;

use common::sim_fleet::SimFleet;
use common::{Finished, Gpudeck, Traces, wait_until};
use gpudeck::api::{
    Client, Door as _, ErrorKind, Group, GroupState, GroupSteer, Intent, PLAN_CHANGED, PlanView,
};

const LONG: Duration = Duration::from_mins(2);

/// A deck whose only host is this machine. What is left of it is killed at the end.
struct Deck {
    _traces: Traces,
    person: Gpudeck,
    runtime: tokio::runtime::Runtime,
}

impl Deck {
    fn new() -> Self {
        let person = Gpudeck::new();
        person.run(["init"], LONG).expect_success();
        let file = person.deck().join("deck.toml");
        let before = std::fs::read_to_string(&file).unwrap();
        let host = format!(
            "\n[hosts.here]\ntransport = \"local\"\nfirst_engine_port = {}\nagent_env = {{ GPUDECK_STATE_DIR = \"{}\" }}\n",
            common::engine_port(),
            person.home().join("agent").display()
        );
        std::fs::write(&file, before + &host).unwrap();
        Self { _traces: Traces::of(&person), person, runtime: runtime() }
    }

    /// Writes a spec; `greeting` tells its engine from that of another revision.
    fn spec(&self, service: &str, after: &str, greeting: &str, load_time: &str) {
        let text = format!(
            r#"
model  = "tiny"
engine = {{ command = {{ run = ["{{gpudeck}}", "sim-engine", "--port", "{{port}}", "--load-time", "{load_time}"] }} }}
device = "cpu"
memory = "1MiB"
env    = {{ GREETING = "{greeting}" }}

[rollout]
after = [{after}]
"#
        );
        std::fs::write(self.spec_path(service), text).unwrap();
    }

    fn spec_path(&self, service: &str) -> PathBuf {
        self.person.deck().join(format!("services/{service}.toml"))
    }

    #[track_caller]
    fn expect(&self, arguments: &str, code: i32) -> Finished {
        let done = self.person.run(arguments.split(' '), LONG);
        let story = || self.person.run(["events"], LONG).stdout;
        assert!(done.code() == Some(code), "{arguments}: {done:#?}\n{}", story());
        done
    }

    /// A connection to the controller, which is started if none runs.
    fn client(&self) -> Client {
        self.expect("status", 0);
        let decks = std::fs::read_dir(self.person.home().join(".local/state/gpudeck")).unwrap();
        let socket = decks.flatten().map(|d| d.path().join("controller.sock")).find(|p| p.exists());
        self.runtime.block_on(Client::connect(&socket.expect("a controller"))).unwrap()
    }

    fn group(&self, client: &Client) -> Group {
        let snapshot = self.runtime.block_on(client.snapshot()).unwrap();
        *snapshot.deck.group.expect("several services were applied")
    }

    /// Waits until the group looks as described.
    #[track_caller]
    fn wait_until(&self, what: &str, holds: impl Fn(&Group) -> bool) -> Group {
        let client = self.client();
        wait_until(what, LONG, || holds(&self.group(&client)));
        self.group(&client)
    }

    fn kill_controller(&self) {
        let status = self.expect("controller status --output json", 0).stdout;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let pid = i32::try_from(status["version"]["pid"].as_i64().unwrap()).unwrap();
        let target = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(target, rustix::process::Signal::KILL).unwrap();
        wait_until("the controller's death", Duration::from_secs(30), || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        });
    }
}

impl Drop for Deck {
    fn drop(&mut self) {
        let _ = self.person.run(["controller", "stop"], LONG);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn state<'a>(group: &'a Group, service: &str) -> &'a GroupState {
    &group.services.iter().find(|e| e.service.as_str() == service).unwrap().state
}

fn is_rolling(group: &Group, service: &str) -> bool {
    matches!(state(group, service), GroupState::Rolling { .. })
}

fn is_done(group: &Group, service: &str) -> bool {
    matches!(state(group, service), GroupState::Done { .. })
}

/// What a person has said yes to is what begins.
#[test]
fn other_plans_than_those_agreed_to_are_not_begun() {
    let deck = Deck::new();
    deck.spec("code", "", "one", "100ms");
    deck.spec("chat", "\"code\"", "one", "100ms");
    let client = deck.client();
    let services = ["code", "chat"].map(|s| s.parse().unwrap()).to_vec();
    let plans = deck.runtime.block_on(client.plan_together(&services)).unwrap();
    let agreed = Some(PlanView::digest_together(&plans));
    let wish = Intent::ApplyTogether {
        services,
        atomic: true,
        reason: None,
        accept_outage: false,
        agreed,
    };
    deck.spec("chat", "\"code\"", "two", "100ms");
    let refused = deck.runtime.block_on(client.send(wish.clone()));
    let error = refused.expect_err("the spec is another one");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Conflict, PLAN_CHANGED));
    deck.spec("chat", "\"code\"", "one", "100ms");
    deck.runtime.block_on(client.send(wish)).unwrap();
    deck.wait_until("the end", |g| g.ended.is_some());
}

/// Without an end such a group would refuse all that come after it.
#[test]
fn no_services_are_no_group() {
    let deck = Deck::new();
    deck.spec("code", "", "one", "100ms");
    deck.spec("chat", "\"code\"", "one", "100ms");
    let none = Intent::ApplyTogether {
        services: Vec::new(),
        atomic: true,
        reason: None,
        accept_outage: false,
        agreed: None,
    };
    let client = deck.client();
    let refused = deck.runtime.block_on(client.send(none));
    let error = refused.expect_err("nothing was asked for");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error:?}");
    assert!(error.hint.is_some(), "{error:?}");
    deck.expect("apply code chat --wait --timeout 2m", 0);
}

#[test]
fn a_plan_of_several_is_the_plan_of_each_in_turn() {
    let deck = Deck::new();
    deck.spec("code", "", "one", "100ms");
    deck.spec("chat", "\"code\"", "one", "100ms");
    let text = deck.expect("plan chat code", 2).stdout;
    let at = |words: &str| text.find(words).unwrap_or_else(|| panic!("{words}: {text}"));
    assert!(at("code: nothing → r1") < at("chat: nothing → r2"), "{text}");
    assert_eq!(text.matches("lowest capacity on the way").count(), 2, "{text}");
    let plans = deck.expect("plan chat code --output json", 2).stdout;
    let plans: serde_json::Value = serde_json::from_str(&plans).unwrap();
    assert_eq!((&plans[0]["service"], &plans[1]["to"]), (&"code".into(), &2.into()), "{plans:#}");
    // Where their replicas would be is asked with an option; on host memory there is nothing to place.
    let where_to = deck.expect("plan chat code --explain", 0).stdout;
    assert!(!where_to.contains("lowest capacity"), "{where_to}");
    deck.expect("apply chat code --wait --timeout 2m", 0);
    let nothing = deck.expect("plan chat code", 0).stdout;
    assert!(nothing.contains("chat: nothing to do, r2 is served"), "{nothing}");
}

#[test]
fn between_two_services_a_pause_holds_until_it_is_ended() {
    let deck = Deck::new();
    deck.spec("code", "", "one", "1s");
    deck.spec("chat", "\"code\"", "one", "100ms");
    let none = deck.expect("rollout pause --together", 5);
    assert!(none.stderr.contains("gpudeck apply"), "{none:#?}");
    deck.expect("rollout pause", 64);
    deck.expect("rollout pause code --together", 64);

    deck.expect("apply code chat", 0);
    deck.wait_until("the first one to begin", |g| is_rolling(g, "code"));
    deck.expect("rollout pause --together", 0);
    let held = deck.expect("rollout status code --output json", 0).stdout;
    let held: serde_json::Value = serde_json::from_str(&held).unwrap();
    assert!(held["rollout"]["paused"].is_u64(), "{held:#}");
    deck.kill_controller();
    let text = deck.expect("status", 0).stdout;
    let by = deck.group(&deck.client()).by;
    assert!(text.contains(&format!("paused by {by} since")), "{text}");

    // The first one alone goes on; the other one's turn does not come.
    deck.expect("rollout resume code", 0);
    deck.wait_until("the first one", |g| is_done(g, "code"));
    let turns = || std::thread::sleep(Duration::from_secs(2));
    turns();
    deck.kill_controller();
    deck.client();
    turns();
    let group = deck.group(&deck.client());
    assert_eq!(*state(&group, "chat"), GroupState::Waiting, "{group:#?}");
    assert_eq!(group.paused.as_ref().map(|p| &p.by), Some(&by), "{group:#?}");
    // It is held already.
    assert!(deck.expect("rollout pause --together", 0).stdout.contains("nothing to do"));

    deck.expect("rollout resume --together", 0);
    let group = deck.wait_until("the end", |g| g.ended.is_some());
    assert!(is_done(&group, "chat"), "{group:#?}");
    assert_eq!(group.paused, None);
    deck.expect("rollout resume --together", 5);
}

/// Whenever the answer comes while a plan is prepared: nothing begins after it.
#[test]
fn a_pause_holds_what_is_just_being_begun() {
    let deck = Deck::new();
    let client = deck.client();
    let send = |intent| deck.runtime.block_on(client.send(intent)).unwrap();
    let paused = || {
        let snapshot = deck.runtime.block_on(client.snapshot()).unwrap();
        let code = snapshot.services.values().find(|s| s.name.as_str() == "code").unwrap();
        code.rollout.as_ref().is_some_and(|r| r.outcome.is_none() && r.paused.is_some())
    };
    for delay in [0, 10, 50, 100, 150, 200, 250, 300] {
        deck.spec("code", "", &format!("after {delay}"), "1m");
        deck.spec("chat", "\"code\"", &format!("after {delay}"), "100ms");
        send(Intent::ApplyTogether {
            services: ["code", "chat"].map(|s| s.parse().unwrap()).to_vec(),
            atomic: false,
            reason: None,
            accept_outage: true,
            agreed: None,
        });
        std::thread::sleep(Duration::from_millis(delay));
        send(Intent::SteerGroup { what: GroupSteer::Pause, reason: None });
        let held = deck.group(&client);
        std::thread::sleep(Duration::from_secs(1));
        let still = deck.group(&client);
        assert_eq!(still.services, held.services, "after {delay} ms");
        assert!(!is_rolling(&still, "code") || paused(), "after {delay} ms: {still:#?}");
        deck.expect("rollout abort --together", 0);
        deck.wait_until("the end", |g| g.ended.is_some());
    }
}

#[test]
fn an_abort_takes_back_what_was_atomic_and_ends_what_was_not() {
    let deck = Deck::new();
    let specs = |greeting: &str, load_time: &str| {
        deck.spec("code", "", greeting, "100ms");
        deck.spec("chat", "\"code\"", greeting, load_time);
        deck.spec("late", "\"chat\"", greeting, "100ms");
    };
    specs("one", "100ms");
    deck.expect("apply code chat late --wait --timeout 2m", 0);
    let under_way = |g: &Group| is_done(g, "code") && is_rolling(g, "chat");

    // Paused when it is aborted: that ends with it.
    specs("two", "10m");
    deck.expect("apply code chat late --atomic", 0);
    deck.wait_until("the second one to begin", under_way);
    deck.expect("rollout pause --together", 0);
    deck.expect("rollout abort --together -m wrong", 0);
    deck.kill_controller();
    let group = deck.wait_until("the end", |g| g.ended.is_some());
    let aborted = format!("aborted by {}: wrong", group.by);
    assert_eq!(*state(&group, "code"), GroupState::Undone, "{group:#?}");
    assert_eq!(*state(&group, "chat"), GroupState::Failed { why: aborted.clone() });
    assert_eq!(*state(&group, "late"), GroupState::Skipped { why: aborted.clone() });
    let code = std::fs::read_to_string(deck.spec_path("code")).unwrap();
    assert!(code.contains("\"one\""), "{code}");
    deck.expect("rollout abort --together", 5);

    specs("three", "10m");
    deck.expect("apply code chat late", 0);
    deck.wait_until("the second one to begin", under_way);
    deck.expect("rollout abort --together -m wrong", 0);
    deck.kill_controller();
    let group = deck.wait_until("the end", |g| g.ended.is_some());
    assert!(is_done(&group, "code"), "{group:#?}");
    assert_eq!(*state(&group, "chat"), GroupState::Failed { why: aborted.clone() });
    assert_eq!(*state(&group, "late"), GroupState::Skipped { why: aborted });
}

/// A drain that began meanwhile took a replica out: its service waits for it, and nothing is taken back.
#[test]
fn a_service_of_which_something_is_out_waits_for_it() {
    let fleet = SimFleet::new();
    // `slow` comes first; `code` has replicas on two hosts, and may do with one.
    let code = fleet.world().spec_path("code");
    let slow = fleet.world().spec_path("chat");
    let text = std::fs::read_to_string(&code).unwrap();
    let text = text.replace("max_unavailable   = 0", "max_unavailable   = 1");
    let first = text.replace("\"code\"", "\"chat\"").replace("replicas = 2", "replicas = 1");
    let second = text
        .replace("[rollout]", "[placement]\nspread = \"host\"\n\n[rollout]\nafter = [\"chat\"]");
    let write = |tokens: &str| {
        std::fs::write(&slow, first.replace("\"12\"", tokens)).unwrap();
        std::fs::write(&code, second.replace("\"12\"", tokens)).unwrap();
    };
    write("\"12\"");
    let together = ["apply", "chat", "code", "--atomic", "--accept-outage"];
    fleet.expect(&[&together[..], &["--wait", "--timeout", "2m"]].concat(), 0);

    let json = |arguments: &[&str]| -> serde_json::Value {
        let done = fleet.expect(&[arguments, &["--output", "json"]].concat(), 0);
        serde_json::from_str(&done.stdout).unwrap()
    };
    let host_of = |service: &str, replica: usize| {
        let view = json(&["status", service]);
        view["replicas"][replica]["ranks"][0]["host"].as_str().unwrap().to_owned()
    };
    // A host with replicas of a rollout under way is not drained.
    let hosts = [host_of("code", 0), host_of("code", 1)];
    let host = hosts.into_iter().find(|h| *h != host_of("chat", 0)).unwrap();
    let others = ["gpu-1", "gpu-2", "gpu-3", "gpu-4"].into_iter().filter(|h| *h != host);

    write("\"13\"");
    fleet.expect(&together, 0);
    wait_until("the first one to begin", LONG, || {
        json(&["rollout", "status", "chat"])["rollout"]["to"] == 3
    });
    fleet.expect(&["rollout", "pause", "chat"], 0);
    for other in others.clone() {
        fleet.expect(&["cordon", other], 0);
    }
    fleet.expect(&["drain", &host, "--yes"], 0);
    wait_until("a replica to be out", LONG, || {
        fleet.expect(&["status", "code"], 0).stdout.contains("is out until")
    });
    // From now on there is room; what is out stays out.
    for other in others {
        fleet.expect(&["uncordon", other], 0);
    }
    fleet.expect(&["rollout", "resume", "chat"], 0);

    let waits = || {
        let events = fleet.expect(&["events"], 0).stdout;
        assert!(!events.contains("FAILED"), "{events}");
        events.lines().filter(|l| l.contains("waits") && l.contains("is out until")).count()
    };
    wait_until("the second one's turn", LONG, || waits() > 0);
    // Longer than what only has no room yet is asked for again.
    std::thread::sleep(Duration::from_secs(17));
    assert_eq!(waits(), 1, "it is told once");
    fleet.expect(&["uncordon", &host], 0);
    wait_until("the second one", LONG, || json(&["status", "code"])["stable"] == 4);
    assert_eq!(json(&["status", "chat"])["stable"], 3);
}
