//! Weights, drains, counts and restarts.

use std::time::{Duration, Instant};

use gpudeck::base::{Epoch, Hint, TrafficMode, TrafficServer};
use gpudeck::gateway::{Gateway, GatewayError};
use tokio::net::TcpListener;

use super::DEADLINE;
use crate::bench::Bench;
use crate::engines::{Engine, answers, get};
use crate::rigs::Rig;

fn drained(mut server: TrafficServer) -> TrafficServer {
    server.mode = TrafficMode::Drain;
    server
}

pub async fn suite(rig: &mut dyn Rig, foreign: &Engine) {
    let bench = Bench::new(rig, "chat");
    let seen = bench.gateway.backend().await.unwrap();
    assert_eq!(seen.balance.as_deref(), Some("roundrobin"));
    assert_eq!(seen.foreign, ["foreign"]);
    let address = rig.address();
    let (a, b) = (Engine::start("engine-A").await, Engine::start("engine-B").await);

    // Nothing of ours yet: no counters, and requests go to what was there.
    assert!(bench.gateway.counters().await.unwrap().is_empty());
    assert_eq!(answers(address, 3, &[foreign]).await, [("foreign", 3)].into());
    bench.link.command(&bench.socket, "set server chat/foreign state maint").await.unwrap();
    let foreign_before = bench.foreign_line().await;
    assert!(bench.gateway.backend().await.unwrap().foreign.is_empty(), "it gets none now");

    // Weights: exact shares of a round robin, the canary spread out.
    let stable = |weight| a.server("r1-0-a1", weight);
    let canary = |weight| b.server("r2-0-a1", weight);
    bench.gateway.apply(&[stable(90), canary(10)]).await.unwrap();
    assert_eq!(bench.names().await, ["foreign", "r1-0-a1", "r2-0-a1"]);
    let seen = answers(address, 200, &[&a, &b]).await;
    assert!((178..=182).contains(&seen["engine-A"]), "{seen:?}");

    // The same again is no change at all, and the epoch is the one of now.
    let acts = bench.link.epochs.lock().unwrap().len();
    bench.gateway.apply(&[stable(90), canary(10)]).await.unwrap();
    assert_eq!(bench.link.epochs.lock().unwrap().len(), acts, "idempotent");
    bench.epoch.set(Epoch(8));
    bench.gateway.apply(&[stable(50), canary(50)]).await.unwrap();
    assert_eq!(bench.link.epochs.lock().unwrap().last(), Some(&8));
    let seen = answers(address, 100, &[&a, &b]).await;
    assert!((49..=51).contains(&seen["engine-A"]), "{seen:?}");

    // A server with weight 0 gets nothing until its weight is raised.
    bench.gateway.apply(&[stable(50), canary(50), b.server("r2-1-a1", 0)]).await.unwrap();
    bench.gateway.apply(&[stable(50), canary(0), b.server("r2-1-a1", 50)]).await.unwrap();
    let before = bench.counters("r2-0-a1").await.requests;
    let seen = answers(address, 20, &[&a, &b]).await;
    assert!((9..=11).contains(&seen["engine-B"]), "{seen:?}");
    assert_eq!(bench.counters("r2-0-a1").await.requests, before);
    bench.gateway.apply(&[stable(50), canary(50)]).await.unwrap();
    assert_eq!(bench.names().await, ["foreign", "r1-0-a1", "r2-0-a1"]);

    // Drain: a stream in flight is finished, new requests go elsewhere, it cannot be removed yet.
    bench.gateway.apply(&[drained(stable(50)), canary(50)]).await.unwrap();
    bench.gateway.apply(&[stable(50), drained(canary(50))]).await.unwrap();
    let stream = tokio::spawn(async move { get(address, "/stream").await });
    let deadline = Instant::now() + DEADLINE;
    while bench.counters("r1-0-a1").await.in_flight == 0 {
        assert!(Instant::now() < deadline, "the stream never began");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.gateway.apply(&[drained(stable(50)), canary(50)]).await.unwrap();
    assert_eq!(answers(address, 20, &[&a, &b]).await, [("engine-B", 20)].into());
    bench.gateway.apply(&[canary(50)]).await.unwrap();
    assert!(bench.names().await.contains(&"r1-0-a1".to_owned()), "removed under a stream");
    assert_eq!(bench.counters("r1-0-a1").await.in_flight, 1);
    let (status, body) = stream.await.unwrap();
    assert_eq!((status, body.matches("engine-A").count()), (200, 20), "{body}");
    bench.settle("r1-0-a1", 1).await;
    bench.gateway.apply(&[canary(50)]).await.unwrap();
    assert_eq!(bench.names().await, ["foreign", "r2-0-a1"]);

    // Counting: 5xx, no answer, a broken answer and a refused connection are failures, 404 is not.
    for (path, failed) in [("/404", 0), ("/500", 1), ("/early", 1), ("/break", 1), ("/", 0)] {
        let before = bench.settle("r2-0-a1", 0).await;
        for _ in 0..3 {
            get(address, path).await;
        }
        let after = bench.settle("r2-0-a1", before.requests + 3).await;
        assert_eq!(after.requests - before.requests, 3, "{path}");
        assert_eq!(after.errors - before.errors, 3 * failed, "{path}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let moved = TrafficServer { port: nobody.port(), ..canary(50) };
    let before = bench.settle("r2-0-a1", 0).await;
    bench.gateway.apply(&[moved]).await.unwrap();
    for _ in 0..3 {
        assert_eq!(get(address, "/").await.0, 503);
    }
    let after = bench.settle("r2-0-a1", before.requests + 3).await;
    assert_eq!((after.requests - before.requests, after.errors - before.errors), (3, 3));

    // The time to the head of an answer: the stream's head comes at once, its end after a second.
    bench.gateway.apply(&[canary(50), stable(0)]).await.unwrap();
    bench.gateway.apply(&[canary(0), stable(50)]).await.unwrap();
    assert_eq!(get(address, "/stream").await.0, 200);
    let timed = bench.settle("r1-0-a1", 1).await;
    assert!(timed.mean_response_ms < 500.0, "{timed:?}");

    // A restart loses everything; the next apply puts it back.
    rig.restart().await;
    assert_eq!(bench.names().await, ["foreign"]);
    bench.link.command(&bench.socket, "set server chat/foreign state maint").await.unwrap();
    bench.gateway.apply(&[stable(90), canary(10)]).await.unwrap();
    let seen = answers(address, 100, &[&a, &b]).await;
    assert!((89..=91).contains(&seen["engine-A"]), "{seen:?}");

    // What is not ours is as it was.
    assert_eq!(bench.foreign_line().await, foreign_before);
    bench.gateway.apply(&[]).await.unwrap();
    assert_eq!(bench.names().await, ["foreign"]);
    assert_eq!(get(address, "/").await.0, 503);

    // A backend that is not configured: its own words, and the lines to add.
    let missing = Bench::new(rig, "code");
    for error in [
        missing.gateway.apply(&[stable(1)]).await.unwrap_err(),
        missing.gateway.counters().await.unwrap_err(),
    ] {
        assert!(matches!(error, GatewayError::Gateway { .. }), "{error}");
        assert!(error.hint().unwrap().contains("backend code"), "{error}");
    }
    let evil = Bench::new(rig, "chat; disable server chat/foreign");
    assert!(evil.gateway.counters().await.is_err());

    // HAProxy gone: the socket is named.
    rig.stop().await;
    let error = bench.gateway.counters().await.unwrap_err();
    assert!(matches!(error, GatewayError::Gateway { .. }), "{error}");
    assert!(error.hint().unwrap().contains(&bench.socket), "{error}");
}
