//! Makers of services and releases for the tests.

use std::collections::BTreeMap;
use std::time::Duration;

use deciding::base::{
    Bytes, DeckId, DeviceId, ReleaseId, ReleaseNumber, Revision, ServiceName, Timestamp,
};
use deciding::rollout::{RankPlan, Release, ReplicaPlan};
use deciding::spec::{Count, ServiceSpec, StepSpec, parse_service};
use uuid::Uuid;

/// A GPU: host and index.
pub type Place = (u32, u32);

pub fn service() -> ServiceName {
    "chat".parse().unwrap()
}

pub fn spec(replicas: u32, unavailable: u32, surge: u32) -> ServiceSpec {
    let text = format!("model = \"/m\"\nengine = \"vllm\"\nreplicas = {}", replicas.max(1));
    let mut spec = parse_service(&text, "chat").unwrap();
    spec.rollout.max_unavailable = Count::Number(unavailable);
    spec.rollout.max_surge = Count::Number(surge);
    spec
}

/// A release whose replica `i` has one rank for each of `places[i]`'s hosts.
pub fn release(number: u64, spec: ServiceSpec, places: &[Vec<Place>]) -> Release {
    let replicas = places
        .iter()
        .map(|gpus| {
            let mut hosts: BTreeMap<u32, Vec<DeviceId>> = BTreeMap::new();
            for (host, gpu) in gpus {
                let devices = hosts.entry(*host).or_default();
                // GPU 99 stands for host memory.
                devices.push(match gpu {
                    99 => DeviceId::Cpu,
                    gpu => DeviceId::Gpu(format!("GPU-{host}-{gpu}")),
                });
            }
            let rank = |(host, devices): (u32, Vec<DeviceId>)| RankPlan {
                host: format!("h{host}").parse().unwrap(),
                devices,
                memory_per_device: Bytes::gib(10),
                address: format!("10.0.0.{host}"),
                listen: None,
                port: 21000,
                argv: vec!["engine".to_owned()],
                env: BTreeMap::new(),
                files: Vec::new(),
            };
            ReplicaPlan { ranks: hosts.into_iter().map(rank).collect(), shape: None }
        })
        .collect();
    Release {
        id: ReleaseId(Uuid::from_u128(0x1000 + u128::from(number))),
        number: ReleaseNumber(number),
        deck: DeckId(Uuid::from_u128(7)),
        service: service(),
        revision: Revision(format!("{number:040x}")),
        spec,
        replicas,
        gateway: None,
        borrowing: None,
        keeps: BTreeMap::new(),
        created: Timestamp(0),
        author: "ada".to_owned(),
        reason: None,
    }
}

/// Replica `i` on GPU `i` of host 0, for `places` starting at `first`.
pub fn single(first: u32, count: u32) -> Vec<Vec<Place>> {
    (first..first + count).map(|gpu| vec![(0, gpu)]).collect()
}

/// Replicas on host memory of host 0.
pub fn on_cpu(count: u32) -> Vec<Vec<Place>> {
    (0..count).map(|_| vec![(0, 99)]).collect()
}

pub fn canary() -> Vec<StepSpec> {
    vec![
        StepSpec::Weight(10),
        StepSpec::Bake(Duration::from_mins(1)),
        StepSpec::Analyse("default".to_owned()),
        StepSpec::Weight(50),
        StepSpec::Approve(true),
    ]
}

/// A small random number generator (splitmix64), so that a seed replays exactly.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to `n` − 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// An index into `len` things.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
