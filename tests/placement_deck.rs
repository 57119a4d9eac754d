//! Placement on a deck, through the controller's API: what a plan takes is taken, what services ask for is kept to, and
//! questions touch nothing. The hosts are simulated, as tasks of this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpudeck::api::{
    ApiError, Client, Door, ErrorKind, Gate, HostLinkState, Intent, IntentReply, Outcome,
    ReplicaTo, ServiceView, Snapshot, WhatIf,
};
use gpudeck::controller::{self, Options, Paths, start_in_process};
use gpudeck::demo::{BigFleet, BigFleetShape};

const DEADLINE: Duration = Duration::from_mins(2);

struct Stage {
    _dir: tempfile::TempDir,
    deck: PathBuf,
    _running: controller::Running,
    client: Client,
}

/// So many hosts of so many GPUs; every second host has the label `team = b`.
async fn stage(hosts: u16, gpus: u16) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let shape = BigFleetShape { hosts, gpus, load_time: Duration::from_millis(100), busy: false };
    let fleet = BigFleet::new(shape, tokio::runtime::Handle::current()).unwrap();
    let mut deck = fleet.deck();
    for (number, host) in deck.hosts.values_mut().enumerate() {
        let team = if number % 2 == 0 { "a" } else { "b" };
        host.labels.insert("team".to_owned(), team.to_owned());
        host.labels.insert("rack".to_owned(), format!("r{}", number / 2));
    }
    let deck_dir = dir.path().join("deck");
    fleet.write_deck(&deck_dir, &deck, 1).unwrap();
    std::fs::remove_file(deck_dir.join("services/chat.toml")).unwrap();
    controller::init_repository(&deck_dir).unwrap();
    let options = Options {
        deck_dir: Some(deck_dir.clone()),
        deck,
        agent_binary: None,
        leave_when_idle: None,
        in_process: Some(Arc::new(fleet)),
    };
    let paths = Paths::in_dir(&dir.path().join("controller"));
    let running = start_in_process(options, &paths).await.unwrap();
    let client = controller::connect(&running.socket).await.unwrap();
    let stage = Stage { _dir: dir, deck: deck_dir, _running: running, client };
    let up = |s: &Snapshot| {
        s.hosts.values().all(|h| h.link == HostLinkState::Up && h.sample.is_some()).then_some(())
    };
    stage.until("the hosts", up).await;
    stage
}

impl Stage {
    fn write(&self, service: &str, replicas: u32, tensor: u32, placement: &str, rollout: &str) {
        let text = format!(
            r#"
model    = "simulated/llama-3.1-8b"
replicas = {replicas}
parallel = {{ tensor = {tensor} }}
memory   = "40GiB"

[engine.command]
run = ["sim-engine", "--port", "{{port}}"]

[placement]
{placement}

[rollout]
healthy_deadline  = "1m"
progress_deadline = "2m"
min_healthy_time  = "100ms"
stop_grace        = "1s"
{rollout}
"#
        );
        std::fs::write(self.deck.join(format!("services/{service}.toml")), text).unwrap();
    }

    async fn until<T>(&self, what: &str, seen: impl Fn(&Snapshot) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        loop {
            let snapshot = self.client.snapshot().await.unwrap();
            if let Some(found) = seen(&snapshot) {
                return found;
            }
            assert!(Instant::now() < end, "in vain: {what}: {:#?}", snapshot.services);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn apply(&self, service: &str) -> Result<IntentReply, ApiError> {
        apply(&self.client, service).await
    }

    /// Applies, and waits until all of it serves.
    async fn serve(&self, service: &str) {
        let reply = self.apply(service).await;
        assert!(matches!(reply, Ok(IntentReply::RolloutBegun { .. })), "{reply:?}");
        let outcome = self.until(service, |s| outcome(view(s, service)?)).await;
        assert_eq!(outcome, Outcome::Completed);
    }

    /// The hosts of a service's replicas, one entry a replica, sorted.
    async fn hosts_of(&self, service: &str) -> Vec<String> {
        let snapshot = self.client.snapshot().await.unwrap();
        let view = view(&snapshot, service).unwrap();
        let mut hosts: Vec<String> =
            view.replicas.iter().map(|r| r.ranks[0].host.to_string()).collect();
        hosts.sort();
        hosts
    }
}

fn view<'a>(snapshot: &'a Snapshot, service: &str) -> Option<&'a ServiceView> {
    snapshot.services.get(&service.parse().unwrap())
}

fn outcome(view: &ServiceView) -> Option<Outcome> {
    view.rollout.as_ref().and_then(|r| r.outcome.clone())
}

async fn apply(client: &Client, service: &str) -> Result<IntentReply, ApiError> {
    let service = service.parse().unwrap();
    client
        .send(Intent::Apply {
            service,
            reason: None,
            accept_outage: true,
            concurrency: None,
            agreed: None,
        })
        .await
}

fn gpus_of(view: &ServiceView) -> Vec<String> {
    let ranks = view.replicas.iter().flat_map(|r| &r.ranks);
    ranks.flat_map(|r| r.devices.iter().map(ToString::to_string)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_services_cannot_take_the_same_gpus() {
    for round in 0..3 {
        let stage = stage(1, 4).await;
        stage.write("one", 2, 2, "", "");
        stage.write("two", 2, 2, "", "");
        // Both plans are good as long as neither is begun.
        for service in ["one", "two"] {
            let plan = stage.client.plan(&service.parse().unwrap()).await.unwrap();
            assert_eq!(plan.replicas.len(), 2);
        }
        let (one, two) = tokio::join!(stage.apply("one"), stage.apply("two"));
        let (winner, refused) = match (one, two) {
            (Ok(_), Err(refused)) => ("one", refused),
            (Err(refused), Ok(_)) => ("two", refused),
            other => panic!("round {round}: {other:?}"),
        };
        assert_eq!(refused.kind, ErrorKind::Unplaceable, "{refused:?}");
        assert!(refused.message.contains(&format!("held by {winner}")), "{}", refused.message);
        let taken = stage
            .until("the winner", |s| {
                let view = view(s, winner)?;
                (outcome(view)? == Outcome::Completed).then(|| gpus_of(view))
            })
            .await;
        assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 4, "{taken:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rollout_takes_in_a_later_step_is_taken_already() {
    let stage = stage(1, 8).await;
    stage.write("one", 2, 2, "", "");
    stage.serve("one").await;
    // The new release's first replica starts, the second one waits behind a gate for its spare GPUs.
    let steps = "max_surge = 2\nmax_unavailable = 0\nsteps = [{ weight = 50 }, { approve = true }]";
    stage.write("one", 2, 2, "priority = 1", steps);
    stage.apply("one").await.unwrap();
    stage
        .until("the gate", |s| {
            let view = view(s, "one")?;
            (view.rollout.as_ref()?.gate == Some(Gate::Approve)).then_some(())
        })
        .await;
    stage.write("two", 1, 2, "", "");
    let refused = stage.apply("two").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unplaceable, "{refused:?}");
    assert!(refused.message.contains("held by one"), "{}", refused.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requirements_labels_spread_and_pack_are_kept_to() {
    let stage = stage(4, 4).await;
    stage.write("near", 2, 1, "spread = 'pack'", "");
    stage.write("far", 2, 1, "spread = 'rack'", "");
    stage.write("mine", 2, 1, "require = \"host.team == 'b' && gpu.memory >= 60GiB\"", "");
    stage.write("never", 1, 1, "require = \"gpu.memory > 1TiB\"", "");
    stage.write("named", 1, 1, "hosts = ['sim-0004']", "");
    for service in ["near", "far", "mine", "named"] {
        stage.serve(service).await;
    }
    let near = stage.hosts_of("near").await;
    assert_eq!(near[0], near[1], "{near:?}");
    let racks: BTreeSet<bool> =
        stage.hosts_of("far").await.iter().map(|h| h.as_str() < "sim-0003").collect();
    assert_eq!(racks.len(), 2);
    assert_eq!(stage.hosts_of("mine").await, ["sim-0002", "sim-0004"]);
    assert_eq!(stage.hosts_of("named").await, ["sim-0004"]);
    let refused = stage.apply("never").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unplaceable);
    assert!(refused.message.contains("gpu.memory > 1TiB fails"), "{}", refused.message);
    let wide = stage.client.plan(&"named".parse().unwrap()).await.unwrap();
    assert!(wide.nothing_to_do);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_are_answered_and_nothing_is_touched() {
    let stage = stage(2, 4).await;
    stage.write("low", 2, 2, "", "");
    stage.serve("low").await;
    stage.write("high", 1, 4, "priority = 5", "");
    let before = stage.client.snapshot().await.unwrap();

    // Each host holds half of it: room for the large gang is made by a move, since it goes first.
    let view = stage.client.what_if(&WhatIf::default()).await.unwrap();
    assert_eq!((view.answer.placed, view.answer.wanted), (3, 3), "{:#?}", view.answer);
    assert_eq!(view.answer.moves.len(), 1);
    // The simulated GPUs have no links: those of a host count together.
    assert_eq!(view.largest_gang_before, 2);

    // One host lost: of what is left the higher priority takes all.
    let lost = WhatIf { without: vec!["sim-0001".parse().unwrap()], ..WhatIf::default() };
    let view = stage.client.what_if(&lost).await.unwrap();
    assert_eq!((view.answer.placed, view.answer.wanted), (1, 3), "{:#?}", view.answer.services);
    let add = WhatIf { add: vec!["4xh100".parse().unwrap()], ..lost };
    let view = stage.client.what_if(&add).await.unwrap();
    assert_eq!(view.answer.placed, 3, "{:#?}", view.answer.services);

    std::fs::remove_file(stage.deck.join("services/high.toml")).unwrap();
    let hole = WhatIf { defrag: Some(4), ..WhatIf::default() };
    let view = stage.client.what_if(&hole).await.unwrap();
    let hole = view.hole.unwrap();
    assert_eq!((hole.gpus, hole.restarts), (4, 1));
    assert_eq!(hole.at.unwrap().gpus, [0, 1, 2, 3]);

    // The world can be replayed.
    let text = serde_json::to_string(&view.world).unwrap();
    let again = gpudeck::placement::global::read(&text, "world").unwrap();
    assert_eq!(again, view.world);

    let unknown = WhatIf { without: vec!["sim-0009".parse().unwrap()], ..WhatIf::default() };
    assert_eq!(stage.client.what_if(&unknown).await.unwrap_err().kind, ErrorKind::NotFound);
    let after = stage.client.snapshot().await.unwrap();
    assert_eq!(before.services[&"low".parse().unwrap()], after.services[&"low".parse().unwrap()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_moved_by_hand_by_the_rules() {
    let stage = stage(2, 4).await;
    stage.write("chat", 1, 2, "hosts = ['sim-0001', 'sim-0002']", "");
    stage.write("other", 1, 4, "", "");
    stage.serve("chat").await;
    let from = stage.hosts_of("chat").await[0].clone();
    let to = if from == "sim-0001" { "sim-0002" } else { "sim-0001" };
    let place = |host: &str, gpus: &[u32]| ReplicaTo {
        service: "chat".parse().unwrap(),
        replica: 0,
        host: host.parse().unwrap(),
        gpus: gpus.to_vec(),
    };
    let check = async |place: ReplicaTo| {
        let question = WhatIf { to: Some(place), ..WhatIf::default() };
        stage.client.what_if(&question).await.unwrap().check.unwrap()
    };
    assert_eq!(check(place(to, &[2, 3])).await.violated, None);
    assert_eq!(
        check(place(to, &[1])).await.violated.as_deref(),
        Some("1 GPUs are marked, it needs 2")
    );
    assert!(check(place(to, &[7, 8])).await.violated.unwrap().contains("has no GPU 7"));

    let moved = |place: ReplicaTo| {
        let ReplicaTo { service, replica, host, gpus } = place;
        Intent::Move { service, replica, host, gpus, reason: None }
    };
    let refused = stage.client.send(moved(place(to, &[1]))).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unplaceable, "{refused:?}");
    let refused = stage.client.send(moved(place(to, &[7, 8]))).await.unwrap_err();
    assert_eq!(refused.message, format!("{to} has no GPU 7"));
    assert_eq!(refused.hint.as_deref(), Some("it has 0, 1, 2, 3"));
    let reply = stage.client.send(moved(place(to, &[2, 3]))).await.unwrap();
    assert_eq!(reply, IntentReply::Accepted);
    // From then on the place is taken, also before the successor is there.
    let refused = stage.apply("other").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unplaceable, "{refused:?}");
    let devices = stage
        .until("the move", |s| {
            let view = view(s, "chat")?;
            let there = view.replicas.len() == 1 && view.replicas[0].ranks[0].host.as_str() == to;
            (there && view.ready == 1).then(|| view.replicas[0].ranks[0].devices.clone())
        })
        .await;
    let snapshot = stage.client.snapshot().await.unwrap();
    let sample = snapshot.hosts[&to.parse().unwrap()].sample.clone().unwrap();
    let wanted: Vec<_> = sample.gpus.list().iter().filter(|g| g.index >= 2).collect();
    assert!(wanted.iter().all(|g| devices.contains(&g.device())), "{devices:?}");
    // Held by the other: that rule is named too. What has left gives its memory back a moment later.
    stage
        .until("free memory", |s| {
            let sample = s.hosts.get(&from.parse().unwrap())?.sample.as_ref()?;
            let free = |g: &gpudeck::wire::Gpu| g.memory.is_some_and(|m| m.free().0 > 40 << 30);
            sample.gpus.list().iter().all(free).then_some(())
        })
        .await;
    stage.serve("other").await;
    let successor = snapshot.services[&"chat".parse().unwrap()].replicas[0].id.replica;
    let held = ReplicaTo { replica: successor, ..place(&from, &[0, 1]) };
    assert!(check(held).await.violated.unwrap().contains("held by other/0"));
}

/// A list of shapes: the first by which all replicas have a place, told as it is in the plan, the command and the world.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_runs_in_the_first_of_its_shapes_that_has_room() {
    let stage = stage(1, 4).await;
    stage.write("chat", 1, 1, "", "");
    let file = stage.deck.join("services/chat.toml");
    let written = |shapes: &str| {
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.replace(
            "\"{port}\"]",
            "\"{port}\", \"--tp\", \"{tensor}\", \"--pp\", \"{pipeline}\"]",
        );
        let text = text.replace("parallel = { tensor = 1 }", &format!("parallel = {shapes}"));
        std::fs::write(&file, text).unwrap();
    };
    written("[{ tensor = 8 }, { tensor = 2, pipeline = 2 }, { tensor = 1 }]");
    let plan = stage.client.plan(&"chat".parse().unwrap()).await.unwrap();
    let [replica] = plan.replicas.as_slice() else { panic!("{plan:?}") };
    assert_eq!((replica.divided().as_str(), replica.ranks[0].devices.len()), (" as tp2 pp2", 4));
    assert!(replica.ranks[0].argv.ends_with(&["--tp", "2", "--pp", "2"].map(str::to_owned)));
    let view = stage.client.what_if(&WhatIf::default()).await.unwrap();
    let shape = view.answer.services[0].replicas[0].shape;
    assert_eq!((shape.tensor, shape.pipeline), (2, 2));
    stage.serve("chat").await;
    // What runs so stays so, and goes on where only the number of replicas that are wanted changes.
    let view = stage.client.what_if(&WhatIf::default()).await.unwrap();
    assert_eq!(view.answer.services[0].replicas[0].state, "stays", "{:#?}", view.answer.services);
    let running = view.world.placements[0].shape.unwrap();
    assert_eq!((running.tensor, running.pipeline, running.data), (2, 2, 1));
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text + "max_surge = 1\n").unwrap();
    let plan = stage.client.plan(&"chat".parse().unwrap()).await.unwrap();
    assert!(plan.replicas[0].runs_on_as.is_some(), "{plan:#?}");
    assert_eq!(plan.replicas[0].divided(), " as tp2 pp2");
}
