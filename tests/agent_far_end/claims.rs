//! Who may act, and what an agent does with lines it does not like.

use std::time::{Duration, Instant};

use gpudeck::base::{Bytes, DeckId, DeviceId, Epoch};
use gpudeck::fleet::LinkError;
use gpudeck::wire::{DeviceNeed, Refusal, Reply, Request, Verb};

use super::harness::{Agent, DECK, LONG, State, rank, script};

#[test]
fn says_hello_and_refuses_another_protocol() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let facts = agent.hello();
    assert_eq!(facts.agent_version, env!("CARGO_PKG_VERSION"));
    assert!(!facts.simulated && facts.driver_version.is_none());
    assert!(facts.cpus > 0 && facts.memory > Bytes::mib(100) && !facts.boot_id.is_empty());
    assert_eq!(
        agent.ask(Request::Hello { protocol: 99 }),
        Err(Refusal::Protocol { agent: 1, asked: 99 })
    );
}

#[test]
fn a_request_of_a_newer_controller_is_refused_and_the_link_goes_on() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    agent.send_line(r#"{"id":1000000,"request":{"from_the_future":{"x":1}}}"#);
    assert!(matches!(agent.answer(1_000_000), Err(Refusal::Failed { .. })));
    agent.hello();
    // What is no message at all ends it.
    agent.send_line("no json");
    let deadline = Instant::now() + LONG;
    while agent.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the agent goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Requests of one controller wait for the lock side by side: the newest is what stays.
#[test]
fn an_older_state_that_comes_late_is_dropped() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "a@here pid 1", false).unwrap();
    let service: gpudeck::base::ServiceName = "chat".parse().unwrap();
    let of_deck = |text: &str, age| Verb::SaveState { state: text.to_owned(), age };
    let of_service = |text: &str, age| {
        let service = service.clone();
        Verb::SaveServiceState { service, state: text.to_owned(), age }
    };
    for (text, age) in [("newer", (2, 7)), ("older", (2, 6)), ("old", (1, 9))] {
        assert_eq!(agent.act(epoch, of_deck(text, age)), Ok(Reply::Done));
        assert_eq!(agent.act(epoch, of_service(text, age)), Ok(Reply::Done));
    }
    let newer = || Ok(Reply::State(Some("newer".to_owned())));
    assert_eq!(agent.ask(Request::LoadState { deck: DECK }), newer());
    let ask = Request::LoadServiceState { deck: DECK, service: service.clone() };
    assert_eq!(agent.ask(ask.clone()), newer());
    assert_eq!(agent.act(epoch, of_service("newest", (3, 1))), Ok(Reply::Done));
    assert_eq!(agent.ask(ask.clone()), Ok(Reply::State(Some("newest".to_owned()))));
    // One that waited in an agent whose connection is gone comes after what the next agent wrote.
    let mut next = Agent::start(state.path());
    assert_eq!(next.act(epoch, of_service("of the next", (3, 2))), Ok(Reply::Done));
    assert_eq!(agent.act(epoch, of_service("late", (3, 1))), Ok(Reply::Done));
    assert_eq!(next.ask(ask), Ok(Reply::State(Some("of the next".to_owned()))));
}

/// Somebody streams something large under the host's lock: what waits too long for it failed for now, not for good.
#[test]
fn a_host_that_is_busy_for_long_says_so() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let epoch = agent.claim(None, "a@here pid 1", false).unwrap();
    let lock = std::fs::File::open(state.path().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let refused = agent.start_rank(epoch, &script(0, "exec sleep 1000"));
    let Err(refusal @ Refusal::Busy { .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.to_string(), "another action has held the host's lock for 10s");
    let host = "h1".parse().unwrap();
    let error = gpudeck::runtime::RuntimeError::Link(LinkError::Refused { host, refusal });
    assert!(error.is_transient());
    drop(lock);
    assert_eq!(agent.status(&rank(0)), None, "nothing was started");
    let saved = agent.act(epoch, Verb::SaveState { state: "x".to_owned(), age: (0, 0) });
    assert_eq!(saved, Ok(Reply::Done));
}

#[test]
fn only_one_controller_acts() {
    let state = State::new();
    let (mut first, mut second) = (Agent::start(state.path()), Agent::start(state.path()));
    let one = first.claim(None, "a@here pid 1", false).unwrap();
    let refused = second.claim(None, "b@there pid 2", false);
    let Err(Refusal::Held { held, holder, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((held, holder.as_str()), (one, "a@here pid 1"));
    assert_eq!(first.claim(Some(one), "a@here pid 1", false), Ok(one), "renewed");

    let save = |text: &str| Verb::SaveState { state: text.to_owned(), age: (0, 0) };
    assert_eq!(first.act(one, save("first")), Ok(Reply::Done));
    let two = second.claim(None, "b@there pid 2", true).unwrap();
    assert!(two > one);
    // The first one has not heard of it; whatever it does is refused.
    for verb in [save("late"), Verb::StartRank(Box::new(script(0, "exec sleep 1000")))] {
        let late = first.act(one, verb);
        assert!(matches!(&late, Err(Refusal::Held { held, .. }) if *held == two), "{late:?}");
    }
    assert!(matches!(first.claim(Some(one), "a@here pid 1", false), Err(Refusal::Held { .. })));
    assert_eq!(first.status(&rank(0)), None, "nothing was started");
    assert_eq!(
        second.ask(Request::LoadState { deck: DECK }),
        Ok(Reply::State(Some("first".to_owned())))
    );
    assert_eq!(second.act(two, save("second")), Ok(Reply::Done));
    // Another deck on the same host is another claim, which reaches none of this one's ranks.
    let deck = DeckId(uuid::Uuid::from_u128(1));
    let stop = Verb::StopRank { rank: rank(0), grace_ms: 0 };
    for epoch in [Epoch(0), two] {
        let other = first.ask(Request::Act { deck, epoch, verb: stop.clone() });
        assert!(matches!(other, Err(Refusal::Failed { .. })), "{other:?}");
    }
}

#[test]
fn two_claims_at_once_are_granted_one_after_the_other() {
    let state = State::new();
    let mut agents: Vec<Agent> = (0..4).map(|_| Agent::start(state.path())).collect();
    for agent in &mut agents {
        agent.hello();
    }
    let ids: Vec<u64> = agents
        .iter_mut()
        .enumerate()
        .map(|(n, agent)| {
            agent.send(Request::Claim {
                deck: DECK,
                epoch: None,
                holder: format!("holder {n}"),
                lease_ms: 60_000,
                force: false,
            })
        })
        .collect();
    let granted: Vec<_> =
        agents.iter_mut().zip(ids).filter_map(|(agent, id)| agent.answer(id).ok()).collect();
    assert!(matches!(granted.as_slice(), [Reply::Claimed { .. }]), "{granted:?}");
}

#[test]
fn a_slow_engine_holds_up_neither_samples_nor_other_requests() {
    let state = State::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut agent = Agent::start(state.path());
    agent.subscribe(100);
    let slow: Vec<u64> = (0..40)
        .map(|_| {
            agent.send(Request::Http {
                port,
                address: None,
                method: "GET".to_owned(),
                path: "/health".to_owned(),
                body: None,
                timeout_ms: 4000,
                key_file: None,
            })
        })
        .collect();
    let began = Instant::now();
    agent.hello();
    let before = agent.samples.len();
    agent.wait(LONG, |a| (a.samples.len() >= before + 5).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let refused = agent.answer(slow[0]);
    assert!(matches!(refused, Err(Refusal::NoAnswer { .. })), "{refused:?}");
}

#[test]
fn needs_are_checked_without_starting_anything() {
    let state = State::new();
    let mut agent = Agent::start(state.path());
    let need = |device, memory| Request::CheckNeeds {
        needs: vec![DeviceNeed { device, memory, healthy: false }],
        ports: Vec::new(),
    };
    assert_eq!(agent.ask(need(DeviceId::Cpu, Bytes::mib(1))), Ok(Reply::Done));
    let much = agent.ask(need(DeviceId::Cpu, Bytes::gib(1 << 20)));
    assert!(matches!(much, Err(Refusal::MemoryBusy { device: DeviceId::Cpu, .. })), "{much:?}");
    let device = DeviceId::Gpu("GPU-0".to_owned());
    assert_eq!(agent.ask(need(device.clone(), Bytes(1))), Err(Refusal::NoDevice { device }));
}
