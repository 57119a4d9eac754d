//! What people decided holds at whoever takes over: pauses, cordons, drains.

use gpudeck::controller::saved::Saved;
use gpudeck::controller::saved_deck::SavedDeck;
use rustix::process::Signal;
use serde_json::Value;

use super::{Company, DEADLINE, json, once, stop_chat};
use crate::common::wait_until;

/// A pause leads to no action on any host, and is kept there all the same.
#[test]
fn what_a_person_decided_holds_at_whoever_takes_over() {
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    company.write_spec(&company.person.deck(), "two");
    company.a("apply chat -m second").expect_success();
    company.await_gate();
    company.a("rollout pause chat").expect_success();
    let (deck, chat) = (company.id(), "chat".parse().unwrap());
    wait_until("the pause on both hosts", DEADLINE, || {
        ["h1", "h2"].into_iter().all(|host| {
            let saved = company.kept(host, "service.chat").unwrap();
            let saved = Saved::unpack(&saved, deck, &chat).unwrap();
            saved.state.rollout.is_some_and(|r| r.paused.is_some())
        })
    });
    company.signal_first(Signal::KILL);

    company.b("controller take-over --force --confirm shop").expect_success();
    let status = company.b("status chat").expect_success().stdout;
    assert!(status.contains("paused"), "{status}");
    company.b("rollout resume chat").expect_success();
    company.b("rollout promote chat").expect_success();
    company.b("rollout status chat --wait --timeout 60s").expect_success();
    company.ends(|words| company.b(words));
}

/// Somebody may be at work on the host for which a replica is out.
#[test]
fn what_is_out_for_a_maintenance_stays_out_when_its_cordon_is_not_found() {
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    let deck = company.id();
    let cordons = |host: &str| {
        let kept = company.kept(host, "state.json");
        kept.map_or(0, |text| {
            SavedDeck::unpack(&text, deck).unwrap().ledger.maintenance.cordons.len()
        })
    };
    company.a("cordon h2 --reason disk").expect_success();
    wait_until("the cordon", DEADLINE, || cordons("h1") == 1 && cordons("h2") == 1);
    let older = company.kept("h1", "state.json").unwrap();
    // There is no other place for it.
    company.a("drain h1 --reason fans --yes").expect_success();
    wait_until("the end of the drain", DEADLINE, || {
        let hosts = json(company.a("hosts --output json"))["hosts"].take();
        hosts["h1"]["maintenance"]["drain"]["ended"].is_u64()
    });
    wait_until("both cordons", DEADLINE, || cordons("h1") == 2 && cordons("h2") == 2);
    company.signal_first(Signal::KILL);
    for host in ["h1", "h2"] {
        std::fs::write(company.kept_at(host, "state.json").unwrap(), &older).unwrap();
    }

    company.b("controller take-over --force --confirm shop").expect_success();
    let told = company.b("events --output json");
    assert!(told.stdout.contains("h1 is cordoned: a replica is out"), "{told:#?}");
    let hosts = json(company.b("hosts --output json"))["hosts"].take();
    assert_eq!(hosts["h1"]["maintenance"]["cordons"][0]["by"], "take-over", "{hosts:#}");
    assert_eq!(json(company.b("status chat --output json"))["ready"], 1);
    assert_eq!(company.starts().len(), 2, "{:?}", company.starts());
    company.b("uncordon h1").expect_success();
    wait_until("the one that was out", DEADLINE, || {
        json(company.b("status chat --output json"))["ready"] == 2
    });
    company.ends(|words| company.b(words));
}

#[test]
fn cordons_and_drains_go_on_at_whoever_takes_over() {
    let company = Company::new();
    let file = company.person.deck().join("services/chat.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    // Long enough for the first operator to die while the successor loads.
    std::fs::write(&file, text.replace("100ms", "6s")).unwrap();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    company.a("drain h1 --reason fans --yes").expect_success();
    company.a("cordon h2 --reason disk").expect_success();
    let deck = company.id();
    wait_until("both cordons on both hosts", DEADLINE, || {
        ["h1", "h2"].into_iter().all(|host| {
            let kept = company.kept(host, "state.json");
            let saved = kept.map(|text| SavedDeck::unpack(&text, deck).unwrap());
            saved.is_some_and(|s| s.ledger.maintenance.cordons.len() == 2)
        })
    });
    company.signal_first(Signal::KILL);

    company.b("controller take-over --force --confirm shop").expect_success();
    let hosts = json(company.b("hosts --output json"))["hosts"].take();
    for (host, why) in [("h1", "fans"), ("h2", "disk")] {
        assert_eq!(hosts[host]["maintenance"]["cordons"][0]["reason"], why, "{hosts:#}");
    }
    wait_until("the end of the drain", DEADLINE, || {
        let hosts = json(company.b("hosts --output json"))["hosts"].take();
        let drain = &hosts["h1"]["maintenance"]["drain"];
        assert!(drain["trouble"].is_null(), "{hosts:#}");
        drain["ended"].is_u64()
    });
    let chat = json(company.b("status chat --output json"));
    assert_eq!(chat["ready"], 2, "{chat:#}");
    let places: Vec<&Value> = chat["replicas"].as_array().unwrap().iter().collect();
    assert!(places.iter().all(|r| r["ranks"][0]["host"] == "h2"), "{chat:#}");
    let started_once = once(["1-0", "1-1", "1-2"]);
    assert_eq!(company.starts(), started_once);
    // What was cordoned there is uncordoned here, and the hosts know that too.
    company.b("uncordon h1").expect_success();
    company.b("uncordon h2").expect_success();
    stop_chat(|words| company.b(words));
    company.a("controller take-over --force --confirm shop").expect_success();
    let hosts = json(company.a("hosts --output json"))["hosts"].take();
    assert_eq!(hosts["h1"]["maintenance"]["cordons"], serde_json::json!([]), "{hosts:#}");
    company.a("controller stop").expect_success();
    company.b("controller stop").expect_success();
    company.traces.expect_none(&company.person);
}
