//! A controller that was replaced while clocks ran: it decides nothing any more, runs no command, notes no outcome.

use gpudeck::base::ReleaseNumber;
use gpudeck::revision::DeckRepo;
use gpudeck::rollout::Outcome;
use rustix::process::{Signal, kill_process};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Company, DEADLINE, json, once};
use crate::common::wait_until;

/// Long enough for the second operator to take over in it.
const BAKE: Duration = Duration::from_secs(12);

/// What each run of the step's command has left: whose controller ran it.
fn runs(company: &Company) -> Vec<String> {
    let text = std::fs::read_to_string(company.person.home().join("runs")).unwrap_or_default();
    text.lines().map(|home| home.rsplit('/').next().unwrap_or_default().to_owned()).collect()
}

fn outcome(deck: &Path) -> Option<Outcome> {
    let history = DeckRepo::open(deck).unwrap().history(&"chat".parse().unwrap(), 9).unwrap();
    history.into_iter().find(|entry| entry.release == ReleaseNumber(2)).unwrap().outcome
}

/// The first operator's second release bakes, and its command comes after that.
fn baking() -> Company {
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    let script = company.person.home().join("command");
    let runs = company.person.home().join("runs");
    let text = format!("#!/bin/sh\necho \"$GPUDECK_HOME\" >>{}\n", runs.display());
    std::fs::write(&script, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    company.write_spec(&company.person.deck(), "two");
    let file = company.person.deck().join("services/chat.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let steps =
        format!("{{ bake = \"{}s\" }}, {{ run = [\"{}\"] }}", BAKE.as_secs(), script.display());
    std::fs::write(&file, text.replace("{ approve = true }", &steps)).unwrap();
    company.a("apply chat -m second").expect_success();
    company.make_clone();
    wait_until("the bake", DEADLINE, || {
        json(company.a("status chat --output json"))["rollout"]["gate"].to_string().contains("bake")
    });
    company
}

/// The second operator brings the rollout to its end.
fn finish(company: &Company) {
    company.b("controller take-over --force --confirm shop").expect_success();
    company.b("rollout status chat --wait --timeout 60s").expect_success();
    assert_eq!(runs(company), ["b"]);
    assert_eq!(outcome(&company.clone()), Some(Outcome::Completed));
}

/// The first one knows that it was replaced, and goes on when it takes over again.
fn ends_at_first(company: &Company) {
    let knows = || company.a("status").stdout.contains("! hosts-held since");
    wait_until("the first operator's news", DEADLINE, knows);
    let end = Instant::now() + BAKE + Duration::from_secs(4);
    while Instant::now() < end {
        assert_eq!((runs(company), outcome(&company.person.deck())), (vec!["b".to_owned()], None));
        std::thread::sleep(Duration::from_millis(300));
    }
    company.a("controller restart").expect_success();
    wait_until("the first operator's news", DEADLINE, knows);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((runs(company), outcome(&company.person.deck())), (vec!["b".to_owned()], None));

    company.a("controller take-over --force --confirm shop").expect_success();
    wait_until("what came of it, in the first operator's notes", DEADLINE, || {
        outcome(&company.person.deck()) == Some(Outcome::Completed)
    });
    let chat = json(company.a("status chat --output json"));
    assert_eq!((&chat["ready"], &chat["stable"]), (&2.into(), &2.into()), "{chat:#}");
    assert_eq!(runs(company), ["b"]);
    assert_eq!(company.starts(), once(["1-0", "1-1", "2-0", "2-1"]));
    company.b("controller stop").expect_success();
    company.ends(|words| company.a(words));
}

/// It comes back in the middle of its bake, and is told by the hosts.
#[test]
fn one_that_comes_back_leaves_the_rollout_to_the_other() {
    let company = baking();
    let first = company.signal_first(Signal::STOP);
    finish(&company);
    kill_process(first, Signal::CONT).unwrap();
    ends_at_first(&company);
}

/// It reaches no host, so it cannot know; its bake ends, and the command waits for a host to say whose it is.
#[test]
fn one_that_is_cut_off_runs_no_command() {
    let company = baking();
    let file = company.person.deck().join("deck.toml");
    let deck = std::fs::read_to_string(&file).unwrap();
    let away = deck.replace("GPUDECK_STATE_DIR = \"", "GPUDECK_STATE_DIR = \"/proc/nowhere");
    std::fs::write(&file, away).unwrap();
    let mut status = String::new();
    wait_until("the command that waits", DEADLINE, || {
        status = company.a("status chat").stdout;
        status.contains("run-waits: who holds h1 is not known")
    });
    assert!(runs(&company).is_empty(), "{status}");
    finish(&company);
    std::fs::write(&file, deck).unwrap();
    ends_at_first(&company);
}

/// A Prometheus that counts what it is asked.
fn prometheus() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            counted.fetch_add(1, Ordering::SeqCst);
            let body = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"1"]}}"#;
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    (url, asked)
}

/// What it measured would be heard by nobody: neither a Prometheus nor the canary's replicas are asked any more.
#[test]
fn one_that_was_replaced_in_an_analysis_asks_nothing_more() {
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    let (url, asked) = prometheus();
    company.write_spec(&company.person.deck(), "two");
    let file = company.person.deck().join("services/chat.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("{ approve = true }", "{ analyse = \"long\" }");
    let analysis = format!(
        "\n[analysis.long]\nduration = \"10m\"\nmin_requests = 0\n[[analysis.long.prometheus]]\nurl = \"{url}\"\n\
         query = \"up\"\nsuccess = \"result > 0\"\ninterval = \"1s\"\ncount = 600\n"
    );
    std::fs::write(&file, text + &analysis).unwrap();
    company.a("apply chat -m second").expect_success();
    company.make_clone();
    wait_until("queries of the first", DEADLINE, || asked.load(Ordering::SeqCst) > 1);
    company.b("controller take-over --force --confirm shop").expect_success();
    let second = Company::pid(&company.b("controller status --output json"));
    wait_until("the first operator's news", DEADLINE, || {
        company.a("status").stdout.contains("! hosts-held since")
    });
    let until_then = asked.load(Ordering::SeqCst);
    wait_until("queries of the second", DEADLINE, || asked.load(Ordering::SeqCst) > until_then + 2);
    // From now on only the first could ask.
    kill_process(second, Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let by_then = asked.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(asked.load(Ordering::SeqCst), by_then);
    kill_process(second, Signal::CONT).unwrap();
    wait_until("queries of the second", DEADLINE, || asked.load(Ordering::SeqCst) > by_then);
    company.b("rollout abort chat").expect_success();
    company.b("rollout status chat --wait --timeout 60s");
    company.a("controller stop").expect_success();
    company.ends(|words| company.b(words));
}
