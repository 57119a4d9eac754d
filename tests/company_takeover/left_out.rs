//! A host that is away when the deck is taken over by force: what is on the others is not held up by it, and what it
//! says when it is back counts.

use super::{Company, DEADLINE, json};
use crate::common::{Finished, wait_until};

/// Another way to a host: one where nobody is.
const NOWHERE: &str = "address = \"127.0.0.1:1\"\nuser = \"nobody\"";

impl Company {
    /// h2 is away for the second operator, or back.
    fn h2_is_away(&self, away: bool) {
        let file = self.clone().join("deck.toml");
        let whole = std::fs::read_to_string(self.person.deck().join("deck.toml")).unwrap();
        let (before, h2) = whole.split_once("[hosts.h2]\n").unwrap();
        let port = h2.lines().find(|line| line.starts_with("first_engine_port")).unwrap();
        let away_now = format!("{before}[hosts.h2]\n{NOWHERE}\n{port}\n");
        std::fs::write(file, if away { away_now } else { whole }).unwrap();
    }

    fn claim(of: Finished, host: &str) -> serde_json::Value {
        json(of)["hosts"][host]["claim"].clone()
    }

    /// Two replicas of the first operator's, and a second one for whom h2 is away and who takes over by force.
    fn taken_by_force() -> Self {
        let company = Self::new();
        company.write_spec_without_gate("one");
        company.a("apply chat --wait --timeout 60s").expect_success();
        company.make_clone();
        // Seen before: that it is the first one's is known.
        wait_until("the second operator's news of both hosts", DEADLINE, || {
            company.b("status").stdout.contains("h1, h2 are held by")
        });
        company.h2_is_away(true);
        wait_until("h2 is away", DEADLINE, || {
            json(company.b("hosts --output json"))["hosts"]["h2"].to_string().contains("down")
        });
        let refused = company.b("controller take-over");
        assert_eq!(refused.code(), Some(9), "{refused:#?}");
        let forced = company.b("controller take-over --force --confirm shop").expect_success();
        assert!(
            forced.stdout.contains("not reached, and taken over when they are back"),
            "{forced:#?}"
        );
        assert!(forced.stdout.contains(": h2\n"), "{forced:#?}");
        company
    }
}

#[test]
fn what_is_on_reached_hosts_is_not_held_up_by_one_that_a_forced_take_over_left_out() {
    let company = Company::taken_by_force();
    assert!(!company.b("status").stdout.contains("hosts-held"));
    // What needs h1 only goes on: here its replica is ended, in the next life too.
    company.b("controller restart").expect_success();
    wait_until("h1's replica", DEADLINE, || {
        let chat = json(company.b("status chat --output json"));
        chat["replicas"].as_array().is_some_and(|all| all.len() == 2)
    });
    company.b("stop chat --yes").expect_success();
    let of_h1 = || {
        let all = company.traces.processes().into_iter();
        all.filter(|(_, line)| line.contains(" sim-engine ")).count()
    };
    wait_until("the end of h1's replica", DEADLINE, || of_h1() == 1);

    // Back with the claim of the first one, who was cut off by force: it is taken before anything is done there.
    company.h2_is_away(false);
    wait_until("the stop", DEADLINE, || company.b("status chat").stdout.contains("stopped"));
    assert_eq!(of_h1(), 0);
    assert_eq!(Company::claim(company.b("hosts --output json"), "h2")["ours"], true);
    wait_until("the first operator's news", DEADLINE, || {
        company.a("status").stdout.contains("h1, h2 are held by")
    });
    company.a("controller stop").expect_success();
    company.b("controller stop").expect_success();
    company.traces.expect_none(&company.person);
}

#[test]
fn a_host_that_somebody_took_after_it_was_left_out_stays_his() {
    let company = Company::taken_by_force();
    // The first one takes everything back, h2 too.
    company.a("controller take-over --force --confirm shop").expect_success();
    company.h2_is_away(false);
    wait_until("the second operator's news", DEADLINE, || {
        company.b("status").stdout.contains("h1, h2 are held by")
    });
    assert_eq!(company.b("stop chat --yes").code(), Some(9));
    assert_eq!(Company::claim(company.a("hosts --output json"), "h2")["ours"], true);
    company.b("controller stop").expect_success();
    company.ends(|words| company.a(words));
}
