//! Sections that gpudeck wrote for the gateway's configuration.

use std::time::Duration;

use gpudeck::base::TrafficServer;
use gpudeck::gateway::section::{OtherBackend, Section, SectionServer, canary_servers};
use gpudeck::gateway::{Gateway, haproxy};
use gpudeck::spec::CanaryRule;
use tokio::net::TcpListener;

use crate::bench::Bench;
use crate::engines::{Engine, answers, get_with};
use crate::rigs::Rig;

/// A section that was written is all a restart needs; what it names is ours like any other.
pub async fn sections_suite(rig: &mut dyn Rig) {
    let (a, b) = (Engine::start("engine-A").await, Engine::start("engine-B").await);
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let service = "embed".parse().unwrap();
    let rule = CanaryRule::Header { name: "x-canary".into(), value: "1".into() };
    let section = Section {
        deck: "test",
        service: &service,
        backend: "embed",
        listen: Some(&address.to_string()),
        canary: Some(&rule),
        stream_timeout: Duration::from_secs(60),
        also: &[],
    };
    let table = [a.server("r1-0-a1", 90), b.by_rule("r2-0-a1", 10)];
    let canary = canary_servers(&table);
    let written = |servers: &[TrafficServer]| -> Vec<SectionServer> {
        let one = |s: &TrafficServer| SectionServer {
            replica: s.replica,
            address: s.address.parse().unwrap(),
            port: s.port,
            weight: s.weight,
        };
        servers.iter().map(one).collect()
    };
    let text = section.text(&written(&table), &written(&canary));
    std::fs::write(rig.sections().join("embed.cfg"), text).unwrap();
    rig.restart().await;

    let seen = answers(address, 100, &[&a, &b]).await;
    assert!((89..=91).contains(&seen["engine-A"]), "{seen:?}");
    for _ in 0..5 {
        let (status, body) = get_with(address, "/", "x-canary: 1\r\n").await;
        assert!(status == 200 && body.contains("engine-B"), "{body}");
        let (_, body) = get_with(address, "/", "x-canary: 0\r\n").await;
        assert!(!body.is_empty());
    }
    let (main, chosen) = (Bench::new(rig, "embed"), Bench::new(rig, "embed-canary"));
    main.gateway.apply(&table).await.unwrap();
    chosen.gateway.apply(&canary).await.unwrap();
    let acts = main.link.epochs.lock().unwrap().len() + chosen.link.epochs.lock().unwrap().len();
    assert_eq!(acts, 0, "everything is there already");
    assert!(chosen.counters("r2-0-a1").await.requests >= 5);

    // Nobody to choose: the header goes where all go. What the section named can be removed.
    chosen.gateway.apply(&[]).await.unwrap();
    main.gateway.apply(&table[..1]).await.unwrap();
    let (_, body) = get_with(address, "/", "x-canary: 1\r\n").await;
    assert!(body.contains("engine-A"), "{body}");
    assert_eq!(main.gateway.counters().await.unwrap().len(), 1);
    assert!(chosen.gateway.counters().await.unwrap().is_empty());

    // Before its first share the canary is reached by those who ask for it, and by nobody else.
    let rule = CanaryRule::Cookie { name: "canary".into(), value: "always".into() };
    let section = Section { canary: Some(&rule), ..section };
    let table = [a.server("r1-0-a1", 100), b.by_rule("r2-0-a1", 0)];
    let text = section.text(&written(&table), &written(&canary_servers(&table)));
    std::fs::write(rig.sections().join("embed.cfg"), text).unwrap();
    rig.restart().await;
    for _ in 0..10 {
        let asks = "Cookie: theme=dark; canary=always\r\n";
        let (_, body) = get_with(address, "/", asks).await;
        assert!(body.contains("engine-B"), "{body}");
        let (_, body) = get_with(address, "/", "Cookie: canary=never\r\n").await;
        assert!(body.contains("engine-A"), "{body}");
    }

    // A backend beside it has the same servers, and goes with its section.
    let also = [OtherBackend {
        backend: "embed-old".to_owned(),
        canary: false,
        stream_timeout: Duration::from_secs(60),
    }];
    let both = Section { also: &also, ..section.clone() };
    let text = both.text(&written(&table), &written(&canary_servers(&table)));
    std::fs::write(rig.sections().join("embed.cfg"), text).unwrap();
    rig.restart().await;
    for backend in ["embed", "embed-old"] {
        let bench = Bench::new(rig, backend);
        bench.gateway.apply(&table).await.unwrap();
        assert_eq!(bench.link.epochs.lock().unwrap().len(), 0, "everything is at {backend}");
    }
    let text = section.text(&written(&table), &written(&canary_servers(&table)));
    std::fs::write(rig.sections().join("embed.cfg"), text).unwrap();
    rig.restart().await;
    let gone = Bench::new(rig, "embed-old").gateway.counters().await.unwrap_err();
    assert!(haproxy::lacks_backend(&gone.to_string()), "{gone}");
}
