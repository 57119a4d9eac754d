//! A gateway as the controller has it, and what is looked at beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gpudeck::base::{DeckId, Epoch, EpochCell, ReplicaId};
use gpudeck::fleet::HostLink;
use gpudeck::gateway::{Gateway, HaproxyGateway, ServerCounters};

use super::DEADLINE;
use crate::link::SocketLink;
use crate::rigs::Rig;

pub struct Bench {
    pub link: Arc<SocketLink>,
    pub epoch: EpochCell,
    pub gateway: HaproxyGateway,
    pub socket: String,
}

impl Bench {
    pub fn new(rig: &dyn Rig, backend: &str) -> Self {
        let link = Arc::new(SocketLink {
            host: "gw".parse().unwrap(),
            epochs: std::sync::Mutex::default(),
        });
        let epoch = EpochCell::new(Epoch(7));
        let socket = rig.socket().to_str().unwrap().to_owned();
        let gateway = HaproxyGateway::new(
            Arc::clone(&link) as Arc<dyn HostLink>,
            socket.clone(),
            backend.to_owned(),
            DeckId(uuid::Uuid::from_u128(1)),
            epoch.clone(),
        );
        Self { link, epoch, gateway, socket }
    }

    /// Server names of the backend, ours and others.
    pub async fn names(&self) -> Vec<String> {
        let text = self.link.command(&self.socket, "show servers state chat").await.unwrap();
        let mut names: Vec<String> = text
            .lines()
            .skip(2)
            .filter_map(|line| line.split(' ').nth(3).map(str::to_owned))
            .collect();
        names.sort();
        names
    }

    pub async fn foreign_line(&self) -> String {
        let text = self.link.command(&self.socket, "show servers state chat").await.unwrap();
        let line = text.lines().find(|line| line.contains(" foreign ")).unwrap();
        // Address, states and weights; not the time since the last change.
        line.split(' ').skip(3).take(6).collect::<Vec<_>>().join(" ")
    }

    pub async fn counters(&self, replica: &str) -> ServerCounters {
        let id: ReplicaId = replica.parse().unwrap();
        let seen = self.gateway.counters().await.unwrap();
        *seen.get(&id).unwrap_or_else(|| panic!("no {replica} in {seen:?}"))
    }

    pub async fn settle(&self, replica: &str, requests: u64) -> ServerCounters {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let seen = self.counters(replica).await;
            if seen.requests >= requests && seen.in_flight == 0 {
                return seen;
            }
            assert!(Instant::now() < deadline, "{replica}: {seen:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
