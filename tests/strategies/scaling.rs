//! Another number of replicas, or another policy, restarts no engine.

use super::*;

/// The engines' processes.
fn pids(fleet: &SimFleet) -> BTreeSet<u32> {
    engines(&fleet.root()).into_iter().map(|engine| engine.pid).collect()
}

/// The starts of the replicas that there are, with the release that each belongs to.
fn replicas(view: &Value) -> Vec<(String, u64)> {
    let all = view["replicas"].as_array().unwrap().iter().map(|replica| {
        let id = replica["id"].as_str().unwrap().to_owned();
        let named = id[1..].split('-').next().unwrap().parse().unwrap();
        let now = replica["taken_over_by"].as_str().map(|key| key[1..].split('-').next().unwrap());
        (id, now.map_or(named, |now| now.parse().unwrap()))
    });
    let mut all: Vec<_> = all.collect();
    all.sort();
    all
}

fn named(names: &[(&str, u64)]) -> Vec<(String, u64)> {
    names.iter().map(|(id, release)| ((*id).to_owned(), *release)).collect()
}

#[test]
fn another_number_of_replicas_restarts_no_engine() {
    let fleet = SimFleet::with_one_host();
    // Steps, a second set, an outage: none of that is for what runs on.
    let policy = "strategy = \"blue-green\"\nscale_down_delay = \"1s\"";
    fleet.spec_of("code", (2, 2), 12, "", policy);
    fleet.apply("code", &[]);
    fleet.settle(4);
    let two = pids(&fleet);

    fleet.spec_of("code", (3, 2), 12, "", policy);
    let plan = fleet.json(&["plan", "code"], 2);
    let runs_on = |i: usize| plan["replicas"][i]["runs_on_as"].clone();
    assert_eq!([runs_on(0), runs_on(1), runs_on(2)], ["r1-0".into(), "r1-1".into(), Value::Null]);
    let steps = plan["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 1, "{plan:#}");
    let moves = steps[0]["moves"].as_array().unwrap();
    assert_eq!((moves.len(), &moves[0]["replica"]), (1, &"r2-2-a1".into()), "{plan:#}");
    let warnings = plan["warnings"].to_string();
    assert!(!warnings.contains("started anew"), "{warnings}");
    let told = fleet.expect(&["plan", "code"], 2).stdout;
    assert!(
        told.contains("runs on as r1-0") && told.contains("code/2/0  gpu-1  GPU 4-5"),
        "{told}"
    );
    fleet.apply("code", &[]);
    fleet.settle(6);
    let three = pids(&fleet);
    assert!(three.len() == 3 && three.is_superset(&two), "{two:?} {three:?}");
    let view = fleet.status("code");
    assert_eq!((&view["stable"], &view["ready"]), (&2.into(), &3.into()), "{view:#}");
    assert_eq!(view["progress"]["lowest_ready"], 2, "{view:#}");
    assert_eq!(replicas(&view), named(&[("r1-0-a1", 2), ("r1-1-a1", 2), ("r2-2-a1", 2)]));
    let drift = fleet.expect(&["drift"], 0);
    assert!(!drift.stdout.contains("r1-0"), "{drift:#?}");

    // The next controller finds them under their names.
    fleet.kill_controller();
    let view = fleet.wait("code", "it to serve", |v| v["condition"] == "serving");
    assert_eq!((replicas(&view).len(), pids(&fleet)), (3, three.clone()));
    let nothing = fleet.json(&["plan", "code"], 0);
    assert_eq!(nothing["nothing_to_do"], true, "{nothing:#}");

    // Down, with the policy of a canary.
    let policy = "steps = [{ weight = 10 }, { approve = true }]";
    fleet.spec_of("code", (1, 2), 12, "", policy);
    fleet.apply("code", &[]);
    fleet.settle(2);
    let one = pids(&fleet);
    assert!(one.len() == 1 && two.is_superset(&one), "{two:?} {one:?}");
    assert_eq!(replicas(&fleet.status("code")), named(&[("r1-0-a1", 3)]));

    // Only the policy: it is written down, and nothing is done.
    fleet.spec_of("code", (1, 2), 12, "", "max_unavailable = 1");
    fleet.apply("code", &[]);
    assert_eq!(pids(&fleet), one);
    assert_eq!(replicas(&fleet.status("code")), named(&[("r1-0-a1", 4)]));

    // Back to three, and what has its place again is called as the release is that starts it.
    let undo = ["rollout", "undo", "code", "--to", "r2", "--yes", "--wait", "--timeout", "2m"];
    fleet.expect(&undo, 0);
    fleet.settle(6);
    assert!(pids(&fleet).is_superset(&one));
    let view = fleet.status("code");
    assert_eq!(replicas(&view), named(&[("r1-0-a1", 5), ("r5-1-a1", 5), ("r5-2-a1", 5)]));

    // One that dies is started again as what it is by now.
    kill(*one.first().unwrap());
    let view = fleet.wait("code", "the one that was killed to be back", |v| {
        v["ready"] == 3 && replicas(v).iter().any(|(id, _)| id == "r5-0-a2")
    });
    assert_eq!(replicas(&view), named(&[("r5-0-a2", 5), ("r5-1-a1", 5), ("r5-2-a1", 5)]));

    // Another revision of the engines replaces them all.
    let all = pids(&fleet);
    fleet.spec_of("code", (3, 2), 13, "", "max_unavailable = 1");
    fleet.apply("code", &[]);
    fleet.settle(6);
    assert!(pids(&fleet).is_disjoint(&all));
    let view = fleet.status("code");
    assert_eq!(replicas(&view), named(&[("r6-0-a1", 6), ("r6-1-a1", 6), ("r6-2-a1", 6)]));
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
