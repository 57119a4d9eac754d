//! Controllers that were killed, and journals that are lost, old or cannot be read.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::process::{Signal, kill_process};

use super::{Company, DEADLINE, json};
use crate::common::{glance, wait_until};

/// SIGKILL when the n-th record of a rollout is on the disk: a sample of n, or with `GPUDECK_NIGHTLY=1`
/// each until a rollout ends with fewer records.
#[test]
fn a_controller_killed_at_any_record_starts_nothing_twice_and_finishes() {
    use gpudeck::journal::{Reader, verify};
    let company = Company::new();
    company.write_spec_without_gate("zero");
    company.a("apply chat --wait --timeout 60s").expect_success();
    let state = company.state();
    let mut reader = Reader::new(&state.join("journal"));
    let nightly = std::env::var("GPUDECK_NIGHTLY").is_ok_and(|v| v == "1");
    let sample: Vec<usize> = if nightly { (1..=200).collect() } else { vec![1, 3, 6, 9, 13] };
    let mut expected: BTreeMap<String, usize> = company.starts();
    let mut killed = 0;
    for (round, at) in sample.into_iter().enumerate() {
        let release = round + 2;
        let _ = reader.more().unwrap();
        company.write_spec_without_gate(&format!("round {round}"));
        let controller = Company::pid(&company.a("controller status --output json"));
        let began = company.a("apply chat --output json").expect_success();
        let mut seen = 0;
        let started = std::time::Instant::now();
        // With hardly a pause, so that few more records come before the signal; a rollout may need fewer.
        for look in 1_u64.. {
            let records = reader.more().unwrap();
            seen += records.iter().filter(|r| r.value.get("service").is_some()).count();
            let done = || json(company.a("status chat --output json"))["stable"] == release;
            if seen >= at || look % 2_000 == 0 && done() {
                break;
            }
            assert!(started.elapsed() < DEADLINE, "neither record {at} nor the rollout's end");
            glance();
        }
        kill_process(controller, Signal::KILL).unwrap();
        let done = company.a("rollout status chat --wait --timeout 60s");
        assert_eq!(done.code(), Some(0), "killed at record {at}: {done:#?} after {began:#?}");
        let chat = json(company.a("status chat --output json"));
        assert_eq!(chat["stable"], release, "killed at record {at}: {chat:#}");
        assert_eq!(chat["ready"], 2, "killed at record {at}: {chat:#}");
        expected.extend([(format!("{release}-0"), 1), (format!("{release}-1"), 1)]);
        assert_eq!(company.starts(), expected, "killed at record {at}");
        assert!(verify(&state.join("journal")).unwrap().is_good(), "killed at record {at}");
        if seen < at {
            break;
        }
        killed += 1;
    }
    println!("killed at {killed} records");
    assert!(killed >= 4, "the rollout has hardly any records: {killed}");
    assert!(company.a("audit verify").expect_success().stdout.contains("is good"));
    company.ends(|words| company.a(words));
}

#[test]
fn what_a_lost_journal_knew_is_read_back_from_the_hosts() {
    let company = Company::new();
    company.a("apply chat").expect_success();
    wait_until("the first release", DEADLINE, || {
        company.a("status chat").stdout.contains("serving")
    });
    company.a("controller stop").expect_success();
    let state = company.state();
    std::fs::remove_dir_all(state.join("journal")).unwrap();
    let refused = company.a("apply chat");
    assert_eq!(refused.code(), Some(9), "{refused:#?}");
    assert!(refused.stderr.contains("whose journal is not here"), "{refused:#?}");
    company.a("controller take-over").expect_success();
    wait_until("the first release", DEADLINE, || {
        let chat = json(company.a("status chat --output json"));
        chat["stable"] == 1 && chat["ready"] == 2
    });
    assert_eq!(company.starts().values().sum::<usize>(), 2, "{:?}", company.starts());
    company.ends(|words| company.a(words));
}

/// A journal from before the last rollout, as in a machine that was restored from a copy.
#[test]
fn a_journal_that_went_back_in_time_touches_nothing_until_a_person_takes_over() {
    let company = Company::new();
    let apply = |greeting: &str| {
        company.write_spec_without_gate(greeting);
        company.a("apply chat --wait --timeout 60s").expect_success();
    };
    apply("one");
    company.a("controller stop").expect_success();
    let state = company.state();
    let (journal, copy) = (state.join("journal"), company.person.home().join("copy"));
    let copied = |from: &Path, to: &Path| {
        std::fs::create_dir(to).unwrap();
        for file in std::fs::read_dir(from).unwrap().flatten() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copied(&journal, &copy);
    apply("two");
    company.a("controller stop").expect_success();
    let starts = company.starts();
    let kept = company.kept("h1", "service.chat").unwrap();

    std::fs::remove_dir_all(&journal).unwrap();
    copied(&copy, &journal);
    wait_until("that it is noticed", DEADLINE, || {
        company.a("status").stdout.contains("journal-behind")
    });
    company.write_spec_without_gate("three");
    let refused = company.a("apply chat --accept-outage");
    assert!(refused.code() != Some(0), "{refused:#?}");
    assert!(refused.stderr.contains("keeps a newer state of chat"), "{refused:#?}");
    assert!(refused.stderr.contains("controller take-over"), "{refused:#?}");
    assert_eq!(company.starts(), starts, "nothing is started");
    assert_eq!(company.kept("h1", "service.chat").unwrap(), kept, "nor written over");

    company.a("controller take-over").expect_success();
    wait_until("the second release", DEADLINE, || {
        let chat = json(company.a("status chat --output json"));
        chat["stable"] == 2 && chat["ready"] == 2
    });
    assert!(!company.a("status").stdout.contains("journal-behind"));
    assert_eq!(company.starts(), starts, "it runs already");
    apply("three");
    company.ends(|words| company.a(words));
}

/// Who cannot read what is served is not to believe that nothing is.
#[test]
fn a_state_that_cannot_be_read_is_not_taken_for_none() {
    let company = Company::new();
    company.a("apply chat --wait --timeout 60s").expect_success();
    company.make_clone();
    company.a("controller stop").expect_success();
    let place = |host| company.kept_at(host, "service.chat").unwrap();
    // What h1 has may be newer than what h2 has.
    std::fs::write(place("h1"), "z1:AAAA").unwrap();
    let mut refused = company.b("controller take-over");
    wait_until("the end of the first one's lease", DEADLINE, || {
        refused = company.b("controller take-over");
        !refused.stderr.contains("are held by")
    });
    assert!(refused.code() != Some(0), "{refused:#?}");
    assert!(refused.stderr.contains("what is served there cannot be read: h1: "), "{refused:#?}");
    assert!(refused.stderr.contains("newer one"), "{refused:#?}");
    let claims = json(company.b("hosts --output json"))["hosts"].take();
    for host in ["h1", "h2"] {
        assert_eq!(claims[host]["claim"]["ours"], false, "nothing was taken: {claims:#}");
    }
    company.b("controller take-over --force --confirm shop").expect_success();
    let told = company.b("events --output json");
    assert!(told.stdout.contains("taken over as it was before: h1: "), "{told:#?}");
    let chat = json(company.b("status chat --output json"));
    assert_eq!(chat["ready"], 2, "{chat:#}");
    company.ends(|words| company.b(words));
}
